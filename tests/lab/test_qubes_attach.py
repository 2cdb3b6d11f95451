"""What dom0 says is in force within a second: who is attached, who it is, what it may; and nobody else notices."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from lab.hellos import hello
from lab.qubes_world import (
    CLIENTS,
    FORBIDDEN4,
    FORBIDDEN6,
    FREE4,
    FREE6,
    GITHUB4,
    GITHUB6,
    LISTED,
    PLAIN4,
    POLICY,
    UNTOUCHED,
    ZONE,
    ZONE_TOO,
    Dom0,
    World,
    never,
    soon,
)
from lab.sockets import Server, UdpEcho, connect, echo, eventually, read_all, read_until
from lab.zone import Zone

MORE_THAN_A_PAUSE = 5.0  # seconds: the service waits for one before it tries again


class Downloads:
    """Two that go on and on: one through the proxy, one that the kernel forwards."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._stop = threading.Event()

    def __enter__(self) -> "Downloads":
        lab = self._world.lab
        with ExitStack() as stack:
            stack.enter_context(Server(lab, PLAIN4, 443, self._send))
            stack.enter_context(Server(lab, FREE4, 5432, self._send))
            stack.callback(self._stop.set)
            self._open = [connect(lab, "twin", PLAIN4, 443), connect(lab, "twin", FREE4, 5432)]
            for sock in self._open:
                stack.callback(sock.close)
            self._open[0].sendall(hello("plain.example"))
            self._stack = stack.pop_all()
        assert self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def go_on(self) -> bool:
        """Whether bytes come that were not there yet."""
        for sock in self._open:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                while sock.recv(1 << 16):
                    pass
            sock.settimeout(2)
        for sock in self._open:
            assert sock.recv(1), sock
        return True

    def _send(self, sock: socket.socket) -> None:
        while not self._stop.wait(0.01):
            sock.sendall(bytes(100))


@pytest.fixture
def untouched(netvm: World) -> Iterator[None]:
    """What is permitted all the time goes on, whatever happens to others."""
    with Downloads(netvm) as downloads:
        yield
        assert downloads.go_on()


def works(world: World, client: str) -> bool:
    """Whether it reaches by name what "tools" grants."""
    return world.tls(client, GITHUB4, "github.com")


def dead(world: World, client: str) -> bool:
    """Whether it reaches nothing at all."""
    return not (
        works(world, client) or world.tls(client, GITHUB6, "github.com") or world.looked_up(client, "github.com")
    )


def known(world: World) -> None:
    """Waits until the service has learnt names and tags."""
    assert eventually(lambda: world.client("named")["addresses"], MORE_THAN_A_PAUSE), world.lab.console


def quiet(world: World) -> None:
    """Waits until the service has no more to ask dom0."""
    while True:
        before = len(world.qubesd.calls)
        if never(lambda before=before: len(world.qubesd.calls) > before):
            return


def tracked(world: World, source: str) -> bool:
    """Whether the kernel tracks a TCP connection of this address."""
    command = world.lab.network.command(world.lab.network.netvm, "conntrack", "-L", "-p", "tcp", "-s", source)
    return bool(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_client_that_is_attached_reaches_what_its_profiles_grant(netvm, netvm_log, untouched):
    """First come its rules, then the list of who is connected, then its vif."""
    netvm.detach("dev")
    assert soon(lambda: not works(netvm, "dev"))
    assert dead(netvm, "dev")
    netvm_log.expect(verdict="deny", reason="unknown-client", client=None, address=netvm.addresses("dev")[0])
    netvm.lab.vif("dev", online=False)
    assert dead(netvm, "dev")

    netvm.attach("dev")
    netvm.lab.vif("dev", online=True)

    assert soon(lambda: works(netvm, "dev"))
    assert netvm.lab.curl("dev", "https://github.com/").returncode == 0
    netvm_log.expect(client="dev", protocol="tls", name="github.com", verdict="allow")


def test_rules_alone_do_not_attach_a_client(netvm, untouched):
    netvm.detach("dev")
    netvm.rules("dev", "action=accept")
    netvm.settle()

    assert dead(netvm, "dev")


@pytest.mark.parametrize("free", [FREE4, FREE6], ids=["IPv4", "IPv6"])
def test_what_is_open_ends_when_its_client_is_detached(netvm, netvm_log, untouched, free):
    lab, own = netvm.lab, netvm.addresses("dev")[":" in free]
    with (
        Server(lab, FREE4, 443, echo),
        Server(lab, free, 4321, echo),
        connect(lab, "dev", PLAIN4, 443) as proxied,
        connect(lab, "dev", free, 4321) as forwarded,
    ):
        proxied.sendall(hello("plain.example"))
        assert proxied.recv(1)
        forwarded.sendall(b"before\n")
        assert read_until(forwarded, b"\n") == b"before\n"
        assert tracked(netvm, own)

        netvm.detach("dev")

        read_all(proxied)  # which would time out if it lived
        assert netvm_log.closed(client="dev", name="plain.example")["closed_by"] == "policy"
        assert soon(lambda: not tracked(netvm, own))
        forwarded.settimeout(1)
        with suppress(ConnectionError):
            forwarded.sendall(b"after\n")
            assert read_all(forwarded) == b""

        netvm.attach("dev")
        assert soon(lambda: works(netvm, "dev"))
        assert netvm.speaks("dev", free, 4321)


def test_a_client_with_another_address_is_known_by_that_one(netvm, netvm_log, untouched):
    """`qvm-prefs named ip 10.137.0.99`, and its vif comes again with that one."""
    lab, old, new = netvm.lab, netvm.addresses("named")[0], "10.137.0.99"
    qube, namespace = lab.network.clients["named"], lab.network.namespace("named")
    subprocess.run(["ip", "-n", namespace, "address", "add", f"{new}/32", "dev", "eth0"], check=True)
    netvm.later(subprocess.run, ["ip", "-n", namespace, "address", "del", f"{new}/32", "dev", "eth0"])
    subprocess.run(["ip", "-n", lab.network.netvm, "route", "add", f"{new}/32", "dev", qube.vif], check=True)
    netvm.later(subprocess.run, ["ip", "-n", lab.network.netvm, "route", "del", f"{new}/32", "dev", qube.vif])
    netvm.later(lab.nft, f'delete element ip qubes allowed {{ "{qube.vif}" . {new} }}\n')
    lab.nft(f'add element ip qubes allowed {{ "{qube.vif}" . {new} }}\n')
    assert soon(lambda: netvm.tls("named", GITHUB4, "github.com", old))
    assert not netvm.tls("named", GITHUB4, "github.com", new)

    netvm.later(netvm.qubesd.set, "named", "ip", old)
    netvm.qubesd.set("named", "ip", new)
    netvm.dom0.firewall(new, UNTOUCHED)
    others = [address for name in netvm.lab.network.clients for address in netvm.addresses(name) if address != old]
    netvm.later(netvm.dom0.connected, [old, *others])
    netvm.dom0.connected([new, *others])

    assert soon(lambda: netvm.tls("named", GITHUB4, "github.com", new))
    assert not netvm.tls("named", GITHUB4, "github.com", old)
    netvm_log.expect(client="named", address=new, name="github.com", verdict="allow")
    netvm_log.expect(client=None, address=old, reason="unknown-client")


def test_a_tag_comes_and_goes(netvm, netvm_log, untouched):
    assert dead(netvm, "tagged")

    netvm.qubesd.tag("tagged", "research")

    assert soon(lambda: works(netvm, "tagged"))
    with Server(netvm.lab, FREE4, 443, echo), connect(netvm.lab, "tagged", PLAIN4, 443) as open_one:
        open_one.sendall(hello("plain.example"))
        assert open_one.recv(1)

        netvm.qubesd.untag("tagged", "research")

        read_all(open_one)
    assert netvm_log.closed(client="tagged", name="plain.example")["closed_by"] == "policy"
    assert soon(lambda: dead(netvm, "tagged"))


def test_a_renamed_client_is_another_one(netvm, untouched):
    """Qubes renames a qube by making a new one and deleting the old."""
    assert works(netvm, "named")
    own = netvm.addresses("named")
    netvm.later(netvm.qubesd.add, "named", *own)
    netvm.qubesd.remove("named")

    netvm.later(netvm.qubesd.remove, "other-name")
    netvm.qubesd.add("other-name", *own)

    assert soon(lambda: dead(netvm, "named"))


def test_a_client_that_moves_to_another_netvm_is_denied_before_it_is_gone(netvm, untouched):
    netvm.later(netvm.qubesd.set, "named", "netvm", "sys-fw")
    netvm.qubesd.set("named", "netvm", "sys-whonix")

    assert soon(lambda: dead(netvm, "named"))


def test_dom0_holds_the_profiles_of_a_client_by_its_name(netvm, netvm_log, untouched):
    assert dead(netvm, "guest")

    netvm.vm_config("proxyfw-guest", "tools nets")

    assert soon(lambda: works(netvm, "guest"))
    netvm_log.expect(client="guest", name="github.com", verdict="allow")
    netvm.vm_config("proxyfw-guest", "nets")
    assert soon(lambda: not works(netvm, "guest"))
    with UdpEcho(netvm.lab, FREE4, 4321):
        assert netvm.echoes("guest", FREE4, 4321)


def test_dom0_holds_the_profiles_of_a_client_by_its_address(netvm, netvm_log, untouched):
    own = netvm.addresses("guest")[0]

    netvm.vm_config(f"proxyfw-{own}", "tools")

    assert soon(lambda: works(netvm, "guest"))
    netvm_log.expect(client=own, name="github.com", verdict="allow")


def test_dom0s_profiles_stand_in_place_of_the_files(netvm, untouched):
    netvm.vm_config("proxyfw-dev", "wikipedia no-such-profile")

    assert soon(lambda: not works(netvm, "dev"))
    assert netvm.tls("dev", "198.51.100.30", "en.wikipedia.org")
    assert '"dev": dom0 names the profile "no-such-profile", which does not exist' in netvm.lab.console


def test_rules_from_qubes_manager(netvm, netvm_log, untouched):
    with ExitStack() as stack:
        for address in (FORBIDDEN4, FORBIDDEN6, FREE4):
            stack.enter_context(Server(netvm.lab, address, 4321, echo))
        assert not netvm.speaks("dev", FORBIDDEN4, 4321)
        netvm.rules("dev", f"action=accept dst4={FORBIDDEN4}", f"action=accept dst6={FORBIDDEN6}", "action=drop")
        assert soon(lambda: netvm.speaks("dev", FORBIDDEN4, 4321) and netvm.speaks("dev", FORBIDDEN6, 4321))
        assert works(netvm, "dev")
        forwarded = stack.enter_context(connect(netvm.lab, "dev", FREE4, 4321))
        forwarded.sendall(b"before\n")
        assert read_until(forwarded, b"\n") == b"before\n"

        netvm.rules("dev", f"action=drop dst4={FREE4}", "action=drop dsthost=github.com", "action=drop")

        assert soon(lambda: not works(netvm, "dev"))
        assert not works(netvm, "dev")  # the former one may have been under way
        assert not netvm.speaks("dev", FORBIDDEN4, 4321)
        assert soon(lambda: not tracked(netvm, netvm.addresses("dev")[0]))
        assert netvm.tls("dev", "198.51.100.81", "outside.example")
    row = netvm_log.expect(client="dev", name="github.com", verdict="deny", reason="qubes-rule")
    assert "dsthost=github.com" in row["rule"]


def test_what_is_counted_as_handled_is_in_force(netvm, untouched):
    own = netvm.addresses("dev")[0]
    for expected in (False, True, False, True):
        before = netvm.dom0.handled(own)
        netvm.rules("dev", *["action=drop dsthost=github.com"] * (not expected), "action=accept")
        assert soon(lambda before=before: netvm.dom0.handled(own) > before)
        assert works(netvm, "dev") is expected
        assert netvm.dom0.handled(own) == before + 1


def test_another_resolver_of_the_netvm_is_asked_at_once(netvm, untouched):
    with Zone(netvm.lab, ZONE_TOO, {"github.com": [f"60 A {GITHUB4}"], "ssh.example": ["60 A 198.51.100.9"]}):
        netvm.later(netvm.dom0.dns, ZONE, ZONE_TOO)
        netvm.dom0.dns(ZONE_TOO, ZONE_TOO)

        assert soon(lambda: netvm.looked_up("dev", "ssh.example") == ["198.51.100.9"])


NEEDED = {
    "who there is": "admin.vm.List",
    "events": "admin.Events",
    "addresses": "admin.vm.property.Get+ip",
    "netvms": "admin.vm.property.Get+netvm",
    "tags": "admin.vm.tag.List",
}


@pytest.mark.parametrize("call", NEEDED.values(), ids=NEEDED)
def test_what_dom0_refuses_is_told_with_the_line_that_its_policy_lacks(netvm, call):
    netvm.later(known, netvm)
    netvm.later(netvm.lab.start_service)
    netvm.later(netvm.lab.end_service)
    netvm.later(setattr, netvm.qubesd, "policy", POLICY)
    netvm.lab.end_service()
    netvm.qubesd.refuse(call)

    netvm.lab.start_service()

    method, _, argument = call.partition("+")
    told = eventually(lambda: [note for note in netvm.ask("status")["notes"] if method in note])
    assert told
    assert all("policy lacks" in note and "sys-fw" in note and "allow target=dom0" in note for note in told)
    assert any(f"+{argument}" in note for note in told) or not argument
    assert told[0] in netvm.lab.console
    assert method in netvm.lab.ask("status").stdout
    assert works(netvm, "dev")  # it has `address:`
    if call != "admin.Events":
        assert dead(netvm, "tagged")


def test_dom0_that_refuses_everything_later_changes_nothing(netvm, untouched):
    quiet(netvm)
    assert works(netvm, "named")
    netvm.later(known, netvm)
    netvm.later(netvm.lab.start_service)
    netvm.later(netvm.lab.end_service)
    netvm.later(setattr, netvm.qubesd, "policy", POLICY)
    netvm.qubesd.policy = ""
    netvm.qubesd.drop_events()

    assert eventually(lambda: any("policy lacks" in note for note in netvm.ask("status")["notes"]), MORE_THAN_A_PAUSE)
    assert works(netvm, "dev")
    assert works(netvm, "named")


def test_what_happened_while_no_events_were_heard_is_learnt_when_they_are_back(netvm, untouched):
    netvm.qubesd.tag("tagged", "research")
    assert soon(lambda: works(netvm, "tagged"))

    netvm.qubesd.drop_events()
    netvm.qubesd.untag("tagged", "research")

    assert eventually(lambda: not works(netvm, "tagged"), MORE_THAN_A_PAUSE)
    assert "dom0 ended its stream of events" in netvm.lab.console
    assert eventually(lambda: netvm.ask("status")["notes"] == [], MORE_THAN_A_PAUSE)


def test_without_qubesdb_the_last_policy_stays_and_then_it_is_followed_again(netvm, untouched):
    netvm.daemon.stop()
    try:
        assert never(lambda: not works(netvm, "dev") or netvm.tls("dev", GITHUB4, "evil.example"))
    finally:
        netvm.daemon.start()
        netvm.dom0.close()
        netvm.dom0 = Dom0(netvm.daemon.path)
    assert works(netvm, "dev")

    netvm.rules("dev", "action=drop dsthost=github.com")

    assert eventually(lambda: not works(netvm, "dev"), MORE_THAN_A_PAUSE)
    assert "what it said last stays in force" in netvm.lab.console


def test_a_configuration_without_names_does_not_ask_dom0(netvm):
    netvm.configure({name: part for name, part in CLIENTS.items() if name != "named"})
    quiet(netvm)
    asked = len(netvm.qubesd.calls)
    netvm.qubesd.tag("tagged", "other")
    netvm.later(netvm.qubesd.untag, "tagged", "other")
    netvm.settle()
    assert len(netvm.qubesd.calls) == asked
    netvm.configure(LISTED)
    assert soon(lambda: works(netvm, "named"))
