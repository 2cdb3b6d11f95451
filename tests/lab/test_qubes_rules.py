"""Qubes firewall rules beside profiles: DESIGN section 2, by real connections of every protocol and both families."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from lab.hellos import hello
from lab.packets import ping
from lab.qubes_world import (
    A4,
    A6,
    CLIENTS,
    FORBIDDEN4,
    FORBIDDEN6,
    FREE4,
    FREE6,
    GITHUB4,
    HOST4,
    HOST6,
    INSIDE4,
    INSIDE6,
    NET4,
    NET6,
    OUTSIDE4,
    OUTSIDE6,
    PLAIN4,
    RULES,
    ZONE,
    World,
    soon,
)
from lab.sockets import Server, UdpEcho, connect, echo, eventually, read_until
from proxyfw.demo.network import CLIENT_DNS

PORT = 4321


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def six(request) -> bool:
    """Whether it is about IPv6."""
    return bool(request.param == 6)


@pytest.fixture(scope="module")
def servers(shared_netvm: World) -> Iterator[dict[str, Server]]:
    """TCP and UDP servers that speak no TLS, at every address that rules and networks are about."""
    lab = shared_netvm.lab
    with ExitStack() as stack:
        found = {}
        for address in (A4, A6, NET4, NET6, FREE4, FREE6, FORBIDDEN4, FORBIDDEN6, INSIDE4, INSIDE6, *HOST4, *HOST6):
            found[address] = stack.enter_context(Server(lab, address, PORT, echo))
            stack.enter_context(UdpEcho(lab, address, PORT))
        yield found


@pytest.fixture
def ruled(netvm: World, servers: dict[str, Server]) -> World:
    """The client "ruled" has the rules of the issue."""
    netvm.rules("ruled", *RULES)
    netvm.settle()
    return netvm


def all_of(world: World, client: str, address: str) -> tuple[bool, bool, bool]:
    """Whether plain TCP, UDP and a ping go through."""
    return (
        world.speaks(client, address, PORT),
        world.echoes(client, address, PORT),
        ping(world.lab, client, address) == "reply",
    )


EVERYTHING, NOTHING = (True, True, True), (False, False, False)


def test_an_accepted_address_is_reached_by_every_protocol(ruled, netvm_log, six):
    assert all_of(ruled, "ruled", (A4, A6)[six]) == EVERYTHING

    assert not [row for row in netvm_log.rows() if row["client"] == "ruled"]  # the kernel forwards it by itself


def test_a_dropped_network_is_not_reached_though_a_profile_grants_it(ruled, netvm_log, six):
    address = (NET4, NET6)[six]
    assert all_of(ruled, "dev", address) == EVERYTHING  # who has no such rule

    assert all_of(ruled, "ruled", address) == NOTHING

    for protocol in ("tcp", "udp", "icmp"):
        row = netvm_log.expect(client="ruled", protocol=protocol, destination=address, verdict="deny")
        assert (row["reason"], row["rule"].startswith(f"qubes 000{2 + six}: action=drop")) == ("qubes-rule", True)


def test_what_no_rule_is_about_is_up_to_the_profiles(ruled, netvm_log, six):
    assert all_of(ruled, "ruled", (FREE4, FREE6)[six]) == EVERYTHING
    assert all_of(ruled, "ruled", (FORBIDDEN4, FORBIDDEN6)[six]) == NOTHING

    netvm_log.expect(client="ruled", destination=(FORBIDDEN4, FORBIDDEN6)[six], protocol="udp", reason="no-name")


def test_a_granted_name_outside_is_reached(ruled, netvm_log, six):
    got = ruled.lab.curl("ruled", f"-{(4, 6)[six]}", "https://outside.example/")

    assert (got.returncode, got.stdout.startswith("reached outside.example")) == (0, True)
    netvm_log.expect(client="ruled", protocol="tls", name="outside.example", verdict="allow", reason="domain")


def test_a_granted_name_inside_a_dropped_network_is_not_reached(ruled, netvm_log, six):
    got = ruled.lab.curl("ruled", f"-{(4, 6)[six]}", "--max-time", "2", "https://inside.example/")

    assert got.returncode != 0
    netvm_log.expect(client="ruled", name="inside.example", destination=(INSIDE4, INSIDE6)[six], reason="qubes-rule")


def test_a_granted_name_is_never_dialled_at_a_dropped_address_whatever_the_client_aims_at(ruled, six):
    """both.example is at one inside, and at one outside."""
    lab, outside, inside = ruled.lab, (OUTSIDE4, OUTSIDE6)[six], (INSIDE4, INSIDE6)[six]
    shown = f"[{outside}]" if six else outside
    before = len(lab.arrived("request"))
    reached = [
        lab.curl("ruled", "--max-time", "2", "--connect-to", f"both.example:443:{shown}:443", "https://both.example/")
        for _ in range(5)
    ]

    assert [got.returncode for got in reached] == [0] * 5
    assert {event["address"] for event in lab.arrived("request")[before:]} <= {OUTSIDE4, OUTSIDE6}
    assert not ruled.tls("ruled", inside, "both.example")


def test_a_host_of_a_rule_is_reached_by_its_name_and_another_name_there_is_not(ruled, netvm_log, six):
    address = (HOST4, HOST6)[six][0]
    assert ruled.lab.curl("ruled", f"-{(4, 6)[six]}", "https://host.example/").returncode == 0
    assert not ruled.tls("ruled", address, "other.example")
    assert all_of(ruled, "ruled", address) == NOTHING  # the rule is about TCP 443

    row = netvm_log.expect(client="ruled", protocol="tls", name="host.example", verdict="allow", reason="qubes-rule")
    assert "dsthost=host.example" in row["rule"]
    netvm_log.expect(client="ruled", protocol="tls", name="other.example", verdict="deny", reason="no-match")


def test_a_host_of_a_rule_is_reached_while_its_address_rotates(ruled, six):
    """Each address holds for a second, and is gone then; the neighbours at the same addresses are never reached."""
    zone, lab, addresses = ruled.zone, ruled.lab, (HOST4, HOST6)[six]
    kind = ("A", "AAAA")[six]
    ruled.later(zone.records.update, {name: list(zone.records[name]) for name in ("host.example", "other.example")})
    before = len(lab.arrived("request"))
    dialled = []
    for turn in range(4):
        now = addresses[turn % 3]
        zone.records["host.example"] = zone.records["other.example"] = [f"1 {kind} {now}"]

        def reached(now=now):
            got = lab.curl("ruled", f"-{(4, 6)[six]}", "--max-time", "2", "https://host.example/")
            assert got.returncode == 0, got
            return f"at {now} " in got.stdout

        assert eventually(reached, 3.0)  # the old answer may be kept as long as it says
        dialled.append(now)
        for address in addresses:
            assert not ruled.tls("ruled", address, "other.example")
    assert [event["sni"] for event in lab.arrived("request")[before:] if event["sni"] != "host.example"] == []
    assert len(set(dialled)) == 3


def test_an_open_connection_to_a_host_lives_on_when_its_address_changes(ruled):
    zone = ruled.zone
    ruled.later(zone.records.update, {"host.example": list(zone.records["host.example"])})
    zone.records["host.example"] = [f"1 A {PLAIN4}"]
    with Server(ruled.lab, PLAIN4, 443, echo):
        assert eventually(lambda: ruled.looked_up("ruled", "host.example") == [PLAIN4])
        with connect(ruled.lab, "ruled", PLAIN4, 443) as sock:
            sock.sendall(hello("host.example"))
            assert sock.recv(1) == b"\x16"
            zone.records["host.example"] = [f"1 A {HOST4[0]}"]
            assert eventually(lambda: ruled.looked_up("ruled", "host.example") == [HOST4[0]])
            ruled.rules("dev", "action=accept")
            ruled.settle()
            sock.sendall(b"still here")
            assert read_until(sock, b"still here").endswith(b"still here")


def test_a_host_of_a_rule_resolves_though_no_profile_names_it(ruled, netvm_log):
    assert ruled.looked_up("ruled", "host.example")
    assert ruled.looked_up("dev", "host.example") == []
    assert ruled.looked_up("ruled", "other.example") == []

    netvm_log.expect(client="dev", protocol="dns", name="host.example", verdict="deny", reason="no-match")


def test_a_dropped_host_is_not_reached_though_a_profile_grants_it(netvm, netvm_log, six):
    netvm.rules("ruled", "action=drop dsthost=outside.example", "action=accept")
    netvm.settle()

    assert not netvm.tls("ruled", (OUTSIDE4, OUTSIDE6)[six], "outside.example")
    assert netvm.tls("ruled", (OUTSIDE4, OUTSIDE6)[six], "both.example")

    row = netvm_log.expect(client="ruled", protocol="tls", name="outside.example", verdict="deny", reason="qubes-rule")
    assert "action=drop dsthost=outside.example" in row["rule"]


def test_a_dropped_host_does_not_resolve(netvm, netvm_log):
    netvm.rules("ruled", "action=drop dsthost=outside.example", "action=accept")
    netvm.settle()

    assert netvm.looked_up("ruled", "outside.example") == []
    assert netvm.looked_up("dev", "outside.example") == [OUTSIDE4]

    row = netvm_log.expect(client="ruled", protocol="dns", name="outside.example", verdict="deny", reason="qubes-rule")
    assert "action=drop dsthost=outside.example" in row["rule"]


def test_a_host_without_a_protocol_is_open_by_what_the_client_was_told(netvm, servers, netvm_log, six):
    """UDP and ping know no names: the addresses that the relay has told this client are the host's."""
    address = (HOST4, HOST6)[six][0]
    netvm.rules("ruled", "action=accept dsthost=host.example", "action=drop")
    netvm.settle()
    assert all_of(netvm, "ruled", address) == NOTHING

    assert netvm.looked_up("ruled", "host.example", ("A", "AAAA")[six]) == [address]

    assert all_of(netvm, "ruled", address) == EVERYTHING
    assert not netvm.tls("ruled", address, "other.example")
    assert all_of(netvm, "dev", address) == NOTHING
    assert all_of(netvm, "ruled", (HOST4, HOST6)[six][1]) == NOTHING


def test_dns_can_be_dropped(netvm, netvm_log):
    netvm.rules("ruled", "action=drop specialtarget=dns", "action=accept")
    netvm.settle()

    for options in ((), ("+tcp",), (f"@{CLIENT_DNS[1]}",), (f"@{ZONE}",)):
        assert netvm.looked_up("ruled", "github.com", *options) == []
    assert netvm.looked_up("dev", "github.com") == [GITHUB4]
    assert netvm.tls("ruled", GITHUB4, "github.com")

    row = netvm_log.expect(client="ruled", destination=CLIENT_DNS[0], port=53, verdict="deny", reason="qubes-rule")
    assert "specialtarget=dns" in row["rule"]


def test_ports_of_a_rule_are_compared_as_numbers(netvm, servers, six):
    address = (FORBIDDEN4, FORBIDDEN6)[six]
    key = ("dst4", "dst6")[six]
    for ports, reached in (("80-1024", False), ("1024-10000", True), ("4321-4321", True), ("4322-65535", False)):
        netvm.rules("ruled", f"action=accept {key}={address} proto=tcp dstports={ports}", "action=drop")
        netvm.settle()
        assert all_of(netvm, "ruled", address) == (reached, False, False)


def test_an_icmp_type_alone_opens_ping_alone(netvm, servers, six):
    address = (FORBIDDEN4, FORBIDDEN6)[six]
    netvm.rules("ruled", f"action=accept proto=icmp icmptype={(8, 128)[six]}", "action=drop")
    netvm.settle()

    assert all_of(netvm, "ruled", address) == (False, False, True)


def test_observe_mode_does_not_lift_a_drop(netvm, servers, netvm_log, six):
    dropped = (NET4, NET6)[six]
    assert all_of(netvm, "seen", dropped) == EVERYTHING

    netvm.rules("seen", *RULES)
    netvm.settle()

    assert all_of(netvm, "seen", dropped) == NOTHING
    assert not netvm.tls("seen", (INSIDE4, INSIDE6)[six], "inside.example")
    assert netvm.tls("seen", (OUTSIDE4, OUTSIDE6)[six], "unheard.example")
    netvm_log.expect(client="seen", destination=dropped, protocol="udp", verdict="deny", reason="qubes-rule")
    netvm_log.expect(client="seen", name="unheard.example", protocol="tls", verdict="observe", reason="no-match")


@pytest.mark.parametrize(
    "rule", ["action=drop dst4=nonsense", "action=drop quantum=yes", "dst4=198.51.100.10", "action=frobnicate", ""]
)
def test_a_drop_that_cannot_be_read_closes_its_client_and_no_other(netvm, servers, netvm_log, rule):
    netvm.rules("ruled", f"action=accept dst4={A4}", rule, "action=accept")
    netvm.settle()

    assert all_of(netvm, "ruled", A4) == NOTHING
    assert not netvm.tls("ruled", GITHUB4, "github.com")
    assert netvm.looked_up("ruled", "github.com") == []
    assert netvm.tls("dev", GITHUB4, "github.com")
    row = netvm_log.expect(client="ruled", destination=A4, protocol="tcp", verdict="deny", reason="qubes-rule")
    assert "rule 0001 cannot be read" in row["detail"]
    assert any("rule 0001 cannot be read" in note for note in netvm.ask("status")["notes"])


def test_an_accept_that_cannot_be_read_is_left_out_and_told(netvm, servers):
    netvm.rules("ruled", "action=accept dst4=nonsense", f"action=accept dst4={A4}", "action=drop")
    netvm.settle()

    assert all_of(netvm, "ruled", A4) == EVERYTHING
    assert any("rule 0000 is left out" in note for note in netvm.ask("status")["notes"])
    assert "rule 0000 is left out" in netvm.lab.console


# `unlisted: qubes`


@pytest.fixture
def stock(netvm: World, servers: dict[str, Server]) -> World:
    """Unlisted clients have what sys-firewall would give them."""
    netvm.configure(CLIENTS, unlisted="qubes")
    return netvm


def test_an_unlisted_client_that_was_never_touched_reaches_everything(stock, six):
    assert soon(lambda: stock.tls("guest", (OUTSIDE4, OUTSIDE6)[six], "unheard.example"))
    assert all_of(stock, "guest", (FORBIDDEN4, FORBIDDEN6)[six]) == EVERYTHING
    assert stock.lab.curl("guest", "https://unheard.example/").returncode == 0


def test_an_unlisted_client_is_nothing_to_the_log_and_to_its_neighbours(stock, netvm_log):
    assert soon(lambda: stock.client("guest")["mode"] == "qubes")
    assert stock.speaks("guest", FORBIDDEN4, PORT)
    with suppress(OSError), connect(stock.lab, "guest", stock.addresses("twin")[0], PORT) as sock:
        pytest.fail(f"{sock} stands")

    netvm_log.expect(client="guest", destination=stock.addresses("twin")[0], reason="internal-address")


def test_without_that_setting_an_unlisted_client_reaches_nothing(netvm, servers, netvm_log, six):
    assert all_of(netvm, "guest", (A4, A6)[six]) == NOTHING
    netvm_log.expect(client=None, address=netvm.addresses("guest")[six], reason="unknown-client", protocol="udp")


def test_an_unlisted_client_gets_exactly_what_its_rules_say(stock, netvm_log, six):
    stock.rules("guest", *RULES[:4], "action=accept")
    stock.settle()
    for address, reached in ((A4, A6), EVERYTHING), ((NET4, NET6), NOTHING), ((FORBIDDEN4, FORBIDDEN6), EVERYTHING):
        assert all_of(stock, "guest", address[six]) == reached

    stock.rules("guest", *RULES)
    stock.settle()
    for address, reached in ((A4, A6), EVERYTHING), ((NET4, NET6), NOTHING), ((FORBIDDEN4, FORBIDDEN6), NOTHING):
        assert all_of(stock, "guest", address[six]) == reached
    assert not stock.tls("guest", GITHUB4, "github.com")
    row = netvm_log.expect(client="guest", destination=(FORBIDDEN4, FORBIDDEN6)[six], protocol="udp", verdict="deny")
    assert (row["reason"], row["rule"]) == ("qubes-rule", "qubes: the closing drop")


def test_an_unlisted_clients_dns_goes_to_the_real_resolver_by_qubes_own_way(stock, netvm_log):
    assert soon(lambda: stock.looked_up("guest", "unheard.example") == [OUTSIDE4])
    for options in (("+tcp",), (f"@{CLIENT_DNS[0]}",), ("TXT",)):
        stock.looked_up("guest", "unheard.example", *options)

    assert ("unheard.example", "TXT") in stock.zone.asked
    assert not [row for row in netvm_log.rows() if row["client"] == "guest" and row["protocol"] == "dns"]


def test_an_unlisted_clients_hosts_are_followed_by_name(stock, netvm_log, six):
    """With the rule that Qubes Manager writes for DNS; without it the closing drop is about DNS too."""
    stock.rules("guest", *RULES[4:])
    stock.settle()
    assert stock.looked_up("guest", "host.example") == []
    stock.rules("guest", "action=accept specialtarget=dns", *RULES[4:])
    stock.settle()

    assert stock.looked_up("guest", "host.example")
    assert stock.lab.curl("guest", f"-{(4, 6)[six]}", "https://host.example/").returncode == 0
    assert not stock.tls("guest", (HOST4, HOST6)[six][0], "other.example")
    netvm_log.expect(client="guest", protocol="tls", name="host.example", verdict="allow", reason="qubes-rule")


def test_an_unlisted_client_whose_rules_cannot_be_read_reaches_nothing(stock):
    stock.rules("guest", "action=drop dst4=nonsense", "action=accept")
    stock.settle()

    assert all_of(stock, "guest", A4) == NOTHING
    assert stock.looked_up("guest", "unheard.example") == []


def test_while_the_service_is_dead_what_addresses_decide_goes_on(stock, six):
    stock.rules("guest", *RULES[:4], "action=accept")
    stock.rules("ruled", *RULES)
    stock.settle()
    assert soon(lambda: stock.looked_up("guest", "unheard.example") == [OUTSIDE4])
    stock.later(stock.lab.start_service)
    stock.lab.end_service(signal.SIGKILL)

    assert stock.looked_up("guest", "unheard.example") == [OUTSIDE4]
    assert all_of(stock, "guest", (FORBIDDEN4, FORBIDDEN6)[six]) == EVERYTHING
    assert all_of(stock, "guest", (NET4, NET6)[six]) == NOTHING
    assert stock.lab.curl("guest", "https://unheard.example/").returncode == 0
    assert all_of(stock, "ruled", (A4, A6)[six]) == EVERYTHING
    assert all_of(stock, "ruled", (NET4, NET6)[six]) == NOTHING
    assert not stock.tls("ruled", (HOST4, HOST6)[six][0], "host.example")
