"""Beside the tables of a stock netvm of Qubes OS: what they do is left to them, what is ours stands in them once."""

import json
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from lab import qubes_world
from lab.packets import put_on_the_wire, udp_packet
from lab.qubes_prober import Prober
from lab.qubes_world import (
    FREE4,
    FREE6,
    GITHUB4,
    GITHUB6,
    LISTED,
    WITHIN4,
    ZONE,
    ZONE_TOO,
    World,
    never,
    soon,
)
from lab.sockets import Server, UdpEcho, connect, echo, eventually, family_of, socket_in, udp
from proxyfw.demo.lab import LabError
from proxyfw.demo.network import GATEWAY4, GATEWAY6, UPLINK4, UPLINK6

BOTH = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
REPLACED = {"ip qubes-firewall", "ip6 qubes-firewall"}


@pytest.fixture(scope="module")
def resting_prober(shared_netvm: World) -> Iterator[Prober]:
    """Tries what is forbidden to "dev", once it wakes."""
    with Prober(shared_netvm, "dev") as made:
        made.rest()
        yield made


@pytest.fixture
def prober(resting_prober: Prober) -> Iterator[Prober]:
    """Tries what is forbidden to "dev" all the time."""
    resting_prober.wake()
    yield resting_prober
    resting_prober.rest()


def custom_rules(world: World, chain: str) -> list[str]:
    """The rules of a chain of the user's, of both families."""
    shown = (world.lab.nft(f"list chain {family} qubes {chain}") for family in ("ip", "ip6"))
    return [line.strip() for text in shown for line in text.splitlines()[2:-2]]


def all_works(world: World) -> bool:
    """What "dev" may: by name through the proxy, by name through the relay, and by address."""
    return (
        world.tls("dev", GITHUB4, "github.com")
        and world.tls("dev", GITHUB6, "github.com")
        and world.looked_up("dev", "github.com") == [GITHUB4]
        and world.echoes("dev", FREE4, 4321)
        and world.echoes("dev", FREE6, 4321)
    )


@pytest.fixture
def free(netvm: World) -> Iterator[None]:
    """Servers at the addresses that are granted as networks."""
    with ExitStack() as stack:
        for address in (FREE4, FREE6):
            stack.enter_context(Server(netvm.lab, address, 4321, echo))
            stack.enter_context(UdpEcho(netvm.lab, address, 4321))
        yield


@BOTH
def test_a_permitted_name_is_reached_and_another_is_not(netvm, netvm_log, version):
    reached = netvm.lab.curl("dev", f"-{version}", "https://github.com/")
    refused = netvm.lab.curl(
        "dev", f"-{version}", "--resolve", "evil.example:443:198.51.100.66", "https://evil.example/"
    )

    assert (reached.returncode, reached.stdout.startswith("reached github.com")) == (0, True)
    assert refused.returncode != 0
    netvm_log.expect(client="dev", protocol="tls", name="github.com", verdict="allow")


@pytest.mark.parametrize("options", [(), ("+tcp",)], ids=["UDP", "TCP"])
@pytest.mark.parametrize("resolver", ["10.139.1.1", "10.139.1.2", ZONE, GATEWAY4, GATEWAY6, UPLINK6, "2001:db8:9::53"])
def test_the_relay_answers_for_whatever_resolver_a_client_asks(netvm, netvm_log, resolver, options):
    # Each name has a row once in a minute.
    forbidden = f"{'-'.join(['at', *options]).replace('+', '')}-{resolver.replace(':', '-')}.example"
    assert netvm.looked_up("dev", "github.com", f"@{resolver}", *options) == [GITHUB4]
    assert netvm.looked_up("dev", forbidden, f"@{resolver}", *options) == []

    netvm_log.expect(client="dev", protocol="dns", name=forbidden, verdict="deny", reason="no-match")
    assert forbidden not in netvm.zone.names()


@pytest.mark.parametrize("address", [GATEWAY4, GATEWAY6, UPLINK4, UPLINK6])
@pytest.mark.parametrize("port", [3129, 3130, 443, 22])
def test_the_netvms_own_ports_are_not_reached(netvm, netvm_log, address, port):
    with pytest.raises(ConnectionRefusedError):
        connect(netvm.lab, "dev", address, port)

    netvm_log.expect(client="dev", protocol="tcp", destination=address, port=port, reason="internal-address")


def test_the_relays_own_address_is_not_reached(netvm, netvm_log):
    """Port 53 of it is the relay as any resolver is; no other port of it is anything."""
    put_on_the_wire(netvm.lab, "dev", udp_packet(netvm.addresses("dev")[0], "127.0.53.53", 3129))

    netvm_log.expect(client="dev", destination="127.0.53.53", verdict="deny", reason="internal-address")


def test_our_rule_stands_once_whatever_is_restarted_and_the_users_rules_stay(netvm):
    own = 'tcp dport 8888 accept comment "mine"'
    netvm.later(netvm.lab.nft, "flush chain ip qubes custom-input\n")
    netvm.lab.nft(f"add rule ip qubes custom-input {own}\nadd rule ip qubes custom-forward counter\n")
    netvm.later(netvm.lab.nft, "flush chain ip qubes custom-forward\n")

    def ours_once():
        found = custom_rules(netvm, "custom-input")
        return own in found and [sum('"proxyfw"' in rule for rule in found), len(found)] == [2, 3]

    assert ours_once()
    netvm.ask("reload")
    assert ours_once()
    netvm.lab.end_service()
    assert ours_once()
    netvm.lab.start_service()
    assert ours_once()
    netvm.lab.end_service(signal.SIGKILL)
    netvm.lab.start_service()
    assert ours_once()
    assert custom_rules(netvm, "custom-forward")


DISTURBANCES = {
    "our table is deleted": "delete table inet proxyfw\n",
    "our table is flushed": "flush table inet proxyfw\n",
    "our chain of the forward hook is flushed": "flush chain inet proxyfw forward\n",
    "a rule is put before ours": "insert rule inet proxyfw forward accept\n",
    "the user's chains are flushed": "flush chain ip qubes custom-input\nflush chain ip6 qubes custom-input\n",
    "the user's chain of one family is flushed": "flush chain ip6 qubes custom-input\n",
}


def ours(world: World) -> list[str]:
    """All our rules, without what packets change in them, and without the number of their generation."""
    chains = [item["rule"] for item in listed(world, "ruleset") if "rule" in item]
    rules = [
        [rule["chain"], [part for part in rule["expr"] if "counter" not in part]]
        for rule in chains
        if rule["table"] == "proxyfw" or rule.get("comment") == "proxyfw"
    ]
    return sorted(re.sub(r'([a-z][\w-]*)\.\d+"', r'\1"', json.dumps(rule)) for rule in rules)


@pytest.mark.parametrize("disturbance", DISTURBANCES.values(), ids=DISTURBANCES)
def test_who_disturbs_the_rules_opens_nothing_and_all_is_back_at_once(netvm, free, prober, disturbance):
    netvm.later(netvm.ask, "reload")
    assert all_works(netvm)
    before = ours(netvm)
    prober.forget()

    netvm.lab.nft(disturbance)

    assert soon(lambda: ours(netvm) == before)
    assert soon(lambda: all_works(netvm))
    assert prober.goes_on(5)
    assert not prober.leaked()


@pytest.mark.parametrize("what", ["flush chain inet proxyfw client-0{}\n", "flush map inet proxyfw clients4{}\n"])
def test_who_disturbs_what_is_deep_inside_opens_nothing_and_a_reload_puts_it_back(netvm, free, prober, what):
    netvm.later(netvm.ask, "reload")
    before = ours(netvm)
    now = re.search(r"goto forward(\.\d+)", netvm.lab.nft("list chain inet proxyfw forward"))
    prober.forget()

    netvm.lab.nft(what.format(now[1]))

    assert prober.goes_on(5)
    assert not prober.leaked()
    netvm.ask("reload")
    assert ours(netvm) == before
    assert soon(lambda: all_works(netvm))


def test_the_fail_safe_loaded_by_hand_opens_nothing_and_all_is_back_at_once(netvm, free, prober):
    netvm.later(netvm.ask, "reload")
    prober.forget()

    netvm.lab.nft((qubes_world.SHIPPED / "fail-safe.nft").read_text())

    assert soon(lambda: all_works(netvm))
    assert prober.goes_on(5)
    assert not prober.leaked()


def test_qubes_firewall_that_comes_back_is_sent_away(netvm, free, prober):
    netvm.later(netvm.ask, "reload")
    prober.forget()

    netvm.lab.stock_firewall((netvm.addresses("dev")[0], "accept"))

    assert soon(lambda: not REPLACED & netvm.lab.tables())
    assert soon(lambda: all_works(netvm))
    assert prober.goes_on(5)
    assert not prober.leaked()


class Flood:
    """Datagrams of a client to one address, as many as it can send. `refused`: how often it was told so."""

    def __init__(self, world: World, client: str, address: str) -> None:
        self.sent = self.refused = 0
        self._sock = udp(world.lab, client, address, 4321)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Flood":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._sock.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._sock.send(b"again")
                self.sent += 1
            except OSError:  # the answer to an earlier one
                self.refused += 1


def replace_policy(world: World, times: int) -> None:
    """The rules of another client change."""
    for turn in range(times):
        world.rules("ruled", *["action=drop dsthost=github.com"] * (turn % 2), "action=accept")
        world.settle()


@BOTH
def test_what_is_permitted_is_not_refused_while_one_policy_replaces_another(netvm, free, version):
    with Flood(netvm, "twin", FREE4 if version == 4 else FREE6) as flood:
        replace_policy(netvm, 30)

    assert flood.sent > 10_000
    assert flood.refused == 0


def test_nothing_within_is_reached_while_one_policy_replaces_another(netvm):
    """Rule 1 stands above every network that a profile grants."""
    lab = netvm.lab
    internet = lab.network.command(lab.network.internet, "nft")
    subprocess.run([*internet, "-f", "-"], input=WITHIN, text=True, check=True)
    with Flood(netvm, "dev", WITHIN4) as flood:
        replace_policy(netvm, 30)

    command = [*internet, "-j", "list counter inet within arrived"]
    shown = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    subprocess.run([*internet, "delete table inet within"], check=True)
    assert flood.sent > 10_000
    assert shown["nftables"][1]["counter"]["packets"] == 0


WITHIN = f"""\
table inet within {{
	counter arrived {{ }}
	chain prerouting {{
		type filter hook prerouting priority raw; policy accept;
		ip daddr {WITHIN4} counter name arrived
	}}
}}
"""


def test_new_resolvers_of_the_netvm_change_nothing_for_clients(netvm):
    """Qubes makes the chain dnat-dns anew, so that it is hooked in after ours."""
    netvm.later(netvm.lab.stock_dns, ZONE, ZONE_TOO)
    netvm.lab.stock_dns(ZONE_TOO, ZONE)

    assert netvm.looked_up("dev", "github.com") == [GITHUB4]
    assert netvm.looked_up("dev", "evil.example") == []


def test_who_flushes_every_table_has_ours_back_at_once(fresh_netvm):
    """With Qubes' own, nothing is left that would masquerade, or that would stop anything until then."""
    netvm = fresh_netvm
    netvm.lab.nft("flush ruleset\n")

    assert soon(lambda: netvm.tls("dev", GITHUB4, "github.com"))
    assert not netvm.tls("dev", "198.51.100.66", "evil.example")


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def spoofed(request, netvm: World) -> Iterator[tuple[str, str, socket.socket]]:
    """The address of "twin" in the hands of "ruled": the address, where it aims, and a socket that sends from there."""
    lab, six = netvm.lab, request.param == 6
    twin, aim = netvm.addresses("twin")[six], FREE6 if six else FREE4
    namespace = lab.network.namespace("ruled")
    interface, network = ["ip", "-n", namespace, "address"], f"{twin}/{128 if six else 32}"
    subprocess.run([*interface, "add", network, "dev", "eth0", *["nodad"] * six], check=True)
    try:
        with socket_in(namespace, family_of(aim), socket.SOCK_DGRAM) as sock:
            sock.bind((twin, 0))
            sock.connect((aim, 4321))
            yield twin, aim, sock
    finally:
        subprocess.run([*interface, "del", network, "dev", "eth0"], check=True)


def test_a_spoofed_source_gets_nowhere_where_qubes_table_does_not_know_better(netvm, netvm_log, spoofed):
    twin, aim, sock = spoofed
    allowed = f'{family(twin)} qubes allowed {{ "{netvm.lab.network.clients["ruled"].vif}" . {twin} }}\n'
    netvm.lab.nft(f"add element {allowed}")
    netvm.later(netvm.lab.nft, f"delete element {allowed}")
    with UdpEcho(netvm.lab, aim, 4321) as server:
        sock.send(b"spoofed")

        netvm_log.expect(verdict="deny", reason="unknown-client", client=None, address=twin, destination=aim)
        assert netvm.echoes("twin", aim, 4321)
        assert server.seen == [b"anyone?"]


def test_a_spoofed_source_gets_nowhere_where_our_table_is_gone(netvm, spoofed):
    twin, aim, sock = spoofed
    netvm.lab.end_service()
    netvm.later(netvm.lab.start_service)
    netvm.lab.nft("delete table inet proxyfw\n")
    for version in ("ip", "ip6"):  # where we had left word that nobody is to pass without our mark
        netvm.lab.nft(f"flush chain {version} qubes custom-forward\n")
    dropped = counted(netvm, family(twin))
    with UdpEcho(netvm.lab, aim, 4321) as server:
        sock.send(b"spoofed")

        assert eventually(lambda: counted(netvm, family(twin)) > dropped)
        assert netvm.echoes("twin", aim, 4321)
        assert server.seen == [b"anyone?"]


def family(address: str) -> str:
    """The family of the tables that judge it."""
    return "ip6" if ":" in address else "ip"


def listed(world: World, what: str) -> list[dict[str, Any]]:
    """What nft lists in the netvm."""
    command = world.lab.network.command(world.lab.network.netvm, "nft", "-j", f"list {what}")
    found: list[dict[str, Any]] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)[
        "nftables"
    ]
    return found


def counted(world: World, family: str) -> int:
    """What Qubes' chain has dropped."""
    items = listed(world, f"chain {family} qubes antispoof")
    counters = [part["counter"] for item in items for part in item.get("rule", {}).get("expr", ()) if "counter" in part]
    return int(counters[-1]["packets"])


def test_a_port_forwarded_from_outside_works_as_on_a_stock_netvm(netvm):
    """With the two rules that Qubes' documentation has for it; without the second, Qubes' own table drops it."""
    lab, (dev, _) = netvm.lab, netvm.addresses("dev")
    netvm.later(lab.nft, "flush chain ip qubes custom-forward\ndelete chain ip qubes custom-dnat-dev\n")
    lab.nft(
        "table ip qubes { chain custom-dnat-dev { type nat hook prerouting priority filter + 1; policy accept;\n"
        f'iifname "eth0" tcp dport 8443 ct state new counter dnat to {dev}:8080\n}}\n}}\n'
    )

    def stands():
        with socket_in(lab.network.internet, socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(0.3)
            return sock.connect_ex((UPLINK4, 8443)) == 0

    with server_in(netvm, "dev", dev, 8080):
        assert not stands()
        lab.nft(f'add rule ip qubes custom-forward iifname "eth0" ip daddr {dev} tcp dport 8080 accept\n')
        assert stands()
        netvm.ask("reload")
        assert stands()
        lab.nft("flush chain ip qubes custom-forward\n")
        assert not stands()


@BOTH
def test_clients_reach_each_other_only_where_a_rule_names_the_one_and_the_user_lets_it_through(netvm, version):
    lab = netvm.lab
    dev, twin = (netvm.addresses(name)[version == 6] for name in ("dev", "twin"))
    family, key, length = ("ip", "dst4", 32) if version == 4 else ("ip6", "dst6", 128)
    within = "10.137.0.0/16" if version == 4 else "fd09:24ef:4179::/64"
    accept = f"add rule {family} qubes custom-forward {family} saddr {dev} {family} daddr {twin} accept\n"
    netvm.later(lab.nft, f"flush chain {family} qubes custom-forward\n")

    with server_in(netvm, "twin", twin):
        lab.nft(accept)
        for rules in ((), (f"action=accept {key}={within}",), ("action=accept",)):
            netvm.rules("dev", *rules)
            netvm.settle()
            assert not reaches(netvm, "dev", twin)  # without a row of its own: the prober's rows are as many as may be

        netvm.rules("dev", f"action=accept {key}={twin}/{length} proto=tcp dstports=4321-4321", "action=drop")
        assert soon(lambda: reaches(netvm, "dev", twin))
        assert not reaches(netvm, "ruled", twin)
        lab.nft(f"flush chain {family} qubes custom-forward\n")
        assert never(lambda: reaches(netvm, "dev", twin))
    with server_in(netvm, "dev", dev):
        lab.nft(accept)
        assert not reaches(netvm, "twin", dev)  # the other way round


def server_in(world: World, client: str, address: str, port: int = 4321) -> socket.socket:
    """A TCP listener in a client; what connects to it stands, whether or not it is accepted."""
    sock = socket_in(world.lab.network.namespace(client), family_of(address), socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.listen()
    return sock


def reaches(world: World, client: str, address: str) -> bool:
    """Whether a TCP connection stands."""
    sock = socket_in(world.lab.network.namespace(client), family_of(address), socket.SOCK_STREAM)
    with sock:
        sock.settimeout(0.3)
        return sock.connect_ex((address, 4321)) == 0


def test_qubes_firewall_is_in_force_until_ours_is(netvm):
    lab = netvm.lab
    assert not REPLACED & lab.tables()
    lab.end_service()
    lab.nft("delete table inet proxyfw\n")
    lab.stock_firewall()
    lab.write_config({"dev": {"profiles": ["there-is-none"]}})

    with pytest.raises(LabError, match="there-is-none"):
        lab.start_service()

    assert lab.tables() >= {*REPLACED, "inet proxyfw"}  # the fail-safe
    assert not netvm.tls("dev", GITHUB4, "github.com")
    lab.write_config(LISTED)
    lab.start_service()
    assert not REPLACED & lab.tables()
    assert netvm.tls("dev", GITHUB4, "github.com")


def test_without_qubesdb_the_service_does_not_start_and_qubes_firewall_stays(netvm):
    lab = netvm.lab
    lab.end_service()
    lab.stock_firewall()
    netvm.daemon.stop()
    try:
        with pytest.raises(LabError, match="QubesDB"):
            lab.start_service()
        assert lab.tables() >= REPLACED
    finally:
        netvm.daemon.start()
    lab.start_service()
    assert not REPLACED & lab.tables()
    assert netvm.tls("dev", GITHUB4, "github.com")
