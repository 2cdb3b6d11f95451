"""Rendered rules in a real kernel: packets of clients, and what becomes of them, beside what the policy says.

No service runs here. Where the proxy or the relay would take a packet, the packet layer refuses it with "proxy-down".
"""

import ctypes
import errno
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random

import pytest
from core import nftmodel
from core.agreement import wrong
from core.ruleworlds import ADDRESSES, HOSTS, LISTS, World, draw_flow, draw_pinned_flow, draw_world

from lab.sockets import PATIENCE, family_of, socket_in
from proxyfw.core import ruleset
from proxyfw.core.address import AddressKind, kind_of
from proxyfw.core.clients import Member
from proxyfw.core.config import Config
from proxyfw.core.flow import Flow, Protocol
from proxyfw.core.policy import Policy, build
from proxyfw.core.profile import Library
from proxyfw.core.qubes_rules import parse_rules
from proxyfw.demo.network import DOWNSTREAM_GROUP, ROUTER4, ROUTER6, UPLINK4, UPLINK6, Network
from proxyfw.edge.nflog import Nflog, Reported

SKELETON = (Path(__file__).parents[2] / "iptables" / "proxyfw.nft").read_text()
RESOLVER6 = "2001:db8:1::53"
SEEDS, FLOWS = (0, 1, 2, 3, 10, 98, 205, 238, 344), 18  # the worlds, and the flows of each; every end is among them

_CLONE_NEWNET = 0x40000000
_TO_OTHERS = 4  # PACKET_OUTGOING, linux/if_packet.h
_ETH_P_ALL = 3
_NUMBERS = {Protocol.TCP: (6, 6), Protocol.UDP: (17, 17), Protocol.ICMP: (1, 58), Protocol.OTHER: (47, 47)}
_UNSEEN = tuple(map(ip_network, ("198.51.100.0/24", "2001:db8:1::/64", "0.0.0.0/8", "255.255.255.255/32")))
"""On the link outside, where only who is there gets a packet, and broadcasts."""
_LOOPBACK6 = ip_address("::1")  # the kernel throws such packets away before any rule
_LAST = Flow("work", Protocol.UDP, ip_address("127.0.0.1"), 9)  # refused and told, whatever the rules


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """Two clients, their netvm without a service, and the outside."""
    made = Network(f"pfw{os.getpid()}-rules", ("work", "study"), (RESOLVER6,))
    assert all(
        (qube.address4, qube.address6) == tuple(map(str, ADDRESSES[name])) for name, qube in made.clients.items()
    )
    made.start()
    try:
        for setting in ("net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"):  # tests provoke many ICMP errors
            run(made, made.netvm, "sysctl", "-qw", setting)
        for version, via in (("-4", UPLINK4), ("-6", UPLINK6)):
            for address in (each for name in made.clients for each in ADDRESSES[name]):
                if f"-{address.version}" == version:
                    run(made, made.internet, "ip", version, "route", "add", str(address), "via", via)
        yield made
    finally:
        made.stop()


def run(network: Network, namespace: str, *command: str, text: str = "") -> None:
    subprocess.run(network.command(namespace, *command), input=text, text=True, check=True)


def apply(network: Network, text: str) -> None:
    run(network, network.netvm, "nft", "-f", "-", text=f"table {ruleset.TABLE}\ndelete table {ruleset.TABLE}\n{text}")


# A sample of flows.


@dataclass
class Sent:
    """A flow on its way, and what was seen of it: the words of the packet layer, and "out" where it came out."""

    flow: Flow
    mark: bytes
    seen: set[str] = field(default_factory=set)

    @property
    def settled(self) -> bool:
        """Whether more is to come: what is let through and told is seen twice."""
        return bool(self.seen - {"allow pin", "observe no-name"})

    def end(self) -> str:
        """The chain at which the packet must have ended."""
        dns = self.flow.port == 53 and self.flow.protocol in (Protocol.TCP, Protocol.UDP)
        destination = self.flow.destination
        assert destination is not None
        forwarded = "forward-within" if kind_of(destination) is AddressKind.INTERNAL else "forward-it"
        ends = {
            ("out",): forwarded,
            ("allow pin", "out"): f"pinned{destination.version}",
            ("observe no-name", "out"): "observe-no-name",
            ("no-name",): "refuse-no-name",
            ("internal-address",): "refuse-internal",
            ("qubes-rule",): "refuse-qubes",
            ("unsupported",): "refuse-unsupported",
            ("proxy-down",): "to-relay" if dns else "to-proxy",
        }
        return ends.get(tuple(sorted(self.seen)), f"nowhere known: {self.seen}")


def sample(world: World, random: Random) -> list[Sent]:
    """Flows that can be told apart by what a refusal says of them, to where something can be seen of them."""
    found: dict[tuple[object, ...], Flow] = {}
    while len(found) < FLOWS:
        flow = random.choice((draw_flow, draw_pinned_flow))(random, world)
        destination = flow.destination
        assert destination is not None
        known = str(destination) in ("198.51.100.53", RESOLVER6)
        hidden = destination.is_multicast or destination == _LOOPBACK6 or destination in ADDRESSES[flow.client]
        unseen = any(destination in net for net in _UNSEEN if net.version == destination.version)
        if not hidden and (known or not unseen):
            found.setdefault((flow.client, destination, flow.protocol, flow.port), flow)
    return [Sent(flow, b"flow%04d" % number) for number, flow in enumerate(found.values())]


class Observer:
    """Everything that is to be seen around a netvm: what comes out on each side, and what the packet layer says."""

    def __init__(self, network: Network, stack: ExitStack) -> None:
        self._sent: list[Sent] = []
        self._nflog = Nflog(ruleset.LOG_GROUP)
        in_namespace(network.netvm, self._nflog.start)
        stack.callback(self._nflog.stop)
        self._wires = [
            stack.enter_context(socket_in(namespace, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)))
            for namespace in (network.internet, *map(network.namespace, network.clients))
        ]
        self._macs = {}
        self._senders = {}
        for name, qube in network.clients.items():
            show = network.command(network.netvm, "cat", f"/sys/class/net/{qube.vif}/address")
            told = subprocess.run(show, capture_output=True, text=True, check=True).stdout
            self._macs[name] = bytes.fromhex(told.strip().replace(":", ""))
            self._senders[name] = stack.enter_context(
                socket_in(network.namespace(name), socket.AF_PACKET, socket.SOCK_DGRAM)
            )

    def send(self, *several: Sent) -> None:
        """Puts packets on the clients' wires, past their own routing, and waits for what becomes of them."""
        self._sent += several
        for sent in several:
            flow = sent.flow
            assert flow.destination is not None
            kind = 0x0800 if flow.destination.version == 4 else 0x86DD
            self._senders[flow.client].sendto(packet(sent), ("eth0", kind, 0, 0, self._macs[flow.client]))
        deadline = time.monotonic() + PATIENCE
        while not all(sent.settled for sent in several) and time.monotonic() < deadline:
            select.select([self._nflog.fileno(), *self._wires], [], [], 0.2)
            self._look()

    def _look(self) -> None:
        for report in self._nflog.read():
            for sent in self._sent:
                if is_of(report, sent.flow):
                    sent.seen.add(report.prefix)
        for wire in self._wires:
            while select.select([wire], [], [], 0)[0]:
                data, (_, _, direction, *_) = wire.recvfrom(2048)
                for sent in self._sent:
                    to = sent.flow.destination
                    if direction != _TO_OTHERS and sent.mark in data and to is not None and to.packed in data[:40]:
                        sent.seen.add("out")


def is_of(report: Reported, flow: Flow) -> bool:
    protocol = "ip-47" if flow.protocol is Protocol.OTHER else flow.protocol.value
    return (
        report.source in ADDRESSES[flow.client]
        and (report.destination, report.protocol, report.port) == (flow.destination, protocol, flow.port)
        and (report.icmp_type == flow.icmp_type or flow.icmp_type is None)
    )


def packet(sent: Sent) -> bytes:
    """The flow's first packet: a SYN, a datagram, an ICMP message; its mark is its payload."""
    flow = sent.flow
    assert flow.destination is not None
    version = flow.destination.version
    source = next(each for each in ADDRESSES[flow.client] if each.version == version).packed
    destination = flow.destination.packed
    number = _NUMBERS[flow.protocol][0 if version == 4 else 1]
    ports = struct.pack("!HH", 40000 + int(sent.mark[4:]), flow.port)
    body, at = {
        Protocol.TCP: (ports + struct.pack("!IIBBHHH", 1, 0, 0x50, 2, 1024, 0, 0), 16),
        Protocol.UDP: (ports + struct.pack("!HH", 8 + len(sent.mark), 0), 6),
        Protocol.ICMP: (struct.pack("!BBHHH", flow.icmp_type or 0, 0, 0, 7, 1), 2),
        Protocol.OTHER: (struct.pack("!HH", 0, 0x0800), None),  # RFC 2784
    }[flow.protocol]
    body += sent.mark
    if at is not None:
        pseudo = b"" if number == 1 else source + destination + struct.pack("!IHBB", len(body), 0, 0, number)
        body = body[:at] + checksum(pseudo + body).to_bytes(2) + body[at + 2 :]
    if version == 6:
        return struct.pack("!IHBB", 6 << 28, len(body), number, 64) + source + destination + body
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, number, 0)
    return header[:10] + checksum(header + source + destination).to_bytes(2) + source + destination + body


def checksum(data: bytes) -> int:
    """RFC 1071; of 0 there is none in UDP, and none comes out here."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def in_namespace(namespace: str, call: Callable[[], object]) -> None:
    """Calls it in a thread that has entered the network namespace; sockets that it makes stay there."""

    def enter() -> None:
        with open(f"/run/netns/{namespace}") as handle:
            if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        call()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(enter).result()


def listed(policy: Policy) -> str:
    """What the feeds hold, as elements of their sets."""
    return "".join(
        f"add element {ruleset.TABLE} {ruleset.feed_set(feed.source, network.version)} {{ {network} }}\n"
        for feed in policy.feeds()
        for network in LISTS[feed.source].networks()
    )


def test_what_becomes_of_packets_is_what_the_policy_says(network: Network) -> None:
    ends = set()
    for seed in SEEDS:
        random = Random(seed)
        world = draw_world(random, clients=tuple(network.clients))
        told = {
            pin: 300
            for (client, address), names in world.pins.items()
            for name in names
            for pin in ruleset.pinned(world.policy, client, name, [address])
        }
        apply(network, ruleset.render(world.policy, SKELETON, DOWNSTREAM_GROUP, told) + listed(world.policy))
        flows = sample(world, random)
        with ExitStack() as stack:
            observer = Observer(network, stack)
            observer.send(*flows)
            observer.send(Sent(_LAST, b"flow9999"))  # what is told of it comes after all else
        for sent in flows:
            problem = wrong(world.policy, sent.flow, world.names(sent.flow), HOSTS, sent.end())
            assert not problem, f"{sent.flow}\n{sent.seen}: {problem}\n{world.texts}\n{world.pins}"
            ends.add(sent.end())
    assert ends == nftmodel.ENDS - {"hosted4", "hosted6"}  # which are told as pinned4 and pinned6 are


# Connections to clients, and what may answer them.


def rules(texts: dict[str, str], beside_qubes: bool = True) -> str:
    """The ruleset of clients without profiles; each with these rules, one a line, and a closing drop."""
    found = []
    for name in ("work", "study"):
        written = {f"{number:04}": text for number, text in enumerate(texts.get(name, "").splitlines())}
        both = dict.fromkeys((4, 6), parse_rules({"policy": "drop"} | written))
        found.append(Member(name, addresses=ADDRESSES[name], rules=both))
    policy: Policy = build(Config({}), Library({}), (), found)
    return ruleset.render(policy, SKELETON, DOWNSTREAM_GROUP, beside_qubes=beside_qubes)


class Listener:
    """A TCP server in a namespace, on one address."""

    def __init__(self, namespace: str, address: str, port: int) -> None:
        self._socket = socket_in(namespace, family_of(address), socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((address, port))
        self._socket.listen()

    def __enter__(self) -> socket.socket:
        return self._socket

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def error_of_connecting(namespace: str, address: str, port: int, source_port: int = 0, patience: float = 8.0) -> int:
    """Which error a connection attempt ends with; 0: it stands. Nothing at all: ETIMEDOUT."""
    with socket_in(namespace, family_of(address), socket.SOCK_STREAM) as sock:
        sock.settimeout(patience)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if source_port:
            sock.bind(("::" if ":" in address else "0.0.0.0", source_port))
        try:
            sock.connect((address, port))
        except TimeoutError:
            return errno.ETIMEDOUT
        except OSError as error:
            return error.errno or -1
    return 0


def talk(here: str, there: str, address: str, port: int) -> bool:
    """A TCP connection from here to there: whether both directions carry, whoever speaks first."""
    with Listener(there, address, port) as listener, socket_in(here, family_of(address), socket.SOCK_STREAM) as sock:
        sock.connect((address, port))
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(PATIENCE)
            accepted.sendall(b"welcome")
            heard = sock.recv(100)
            sock.sendall(b"thanks")
            return (heard, accepted.recv(100)) == (b"welcome", b"thanks")


OUTSIDE = {4: ROUTER4, 6: ROUTER6}
both_families = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


def address_of(name: str, version: int) -> str:
    return next(str(address) for address in ADDRESSES[name] if address.version == version)


@both_families
def test_a_connection_from_outside_that_the_netvm_lets_through_is_answered(network: Network, version: int) -> None:
    apply(network, rules({}))
    work, client = network.namespace("work"), address_of("work", version)
    assert talk(network.internet, work, client, 8080)
    with Listener(network.internet, OUTSIDE[version], 8081):
        assert error_of_connecting(work, OUTSIDE[version], 8081) == errno.ECONNREFUSED  # nothing else goes there
        assert error_of_connecting(work, OUTSIDE[version], 8081, source_port=8080) == errno.ECONNREFUSED


@both_families
def test_a_datagram_from_outside_is_answered(network: Network, version: int) -> None:
    apply(network, rules({}))
    client = address_of("work", version)
    with (
        socket_in(network.namespace("work"), family_of(client), socket.SOCK_DGRAM) as server,
        socket_in(network.internet, family_of(client), socket.SOCK_DGRAM) as asking,
    ):
        server.bind((client, 5000))
        asking.connect((client, 5000))
        asking.send(b"anyone?")
        data, back = server.recvfrom(100)
        server.sendto(data, back)
        assert asking.recv(100) == b"anyone?"
        server.connect((back[0], back[1] + 1))
        server.send(b"and you?")  # another port of the same peer
        with pytest.raises(OSError, match=r".") as caught:
            server.recv(100)
        assert caught.value.errno in (errno.EHOSTUNREACH, errno.EACCES)


@both_families
def test_where_no_table_of_qubes_judges_them_connections_from_outside_end(network: Network, version: int) -> None:
    apply(network, rules({}, beside_qubes=False))
    client = address_of("work", version)
    with Listener(network.namespace("work"), client, 8082) as listener:
        assert error_of_connecting(network.internet, client, 8082, patience=0.5) == errno.ETIMEDOUT
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


@both_families
def test_a_neighbour_that_a_rule_names_answers_and_does_not_begin(network: Network, version: int) -> None:
    study = address_of("study", version)
    apply(network, rules({"work": f"action=accept dst{version}={study} proto=tcp dstports=8083-8083"}))
    work_namespace, study_namespace = network.namespace("work"), network.namespace("study")
    assert talk(work_namespace, study_namespace, study, 8083)
    with Listener(study_namespace, study, 8084):
        assert error_of_connecting(work_namespace, study, 8084) == errno.ECONNREFUSED  # another port
    work = address_of("work", version)
    with Listener(work_namespace, work, 8085):
        assert error_of_connecting(study_namespace, work, 8085) == errno.ECONNREFUSED
        assert error_of_connecting(study_namespace, work, 8085, source_port=8083) == errno.ECONNREFUSED


@both_families
def test_a_neighbour_that_no_rule_names_is_not_reached(network: Network, version: int) -> None:
    study = address_of("study", version)
    apply(network, rules({"work": f"action=accept dst{version}={ip_network(ip_address(study)).supernet(8)}"}))
    with Listener(network.namespace("study"), study, 8086):
        assert error_of_connecting(network.namespace("work"), study, 8086) == errno.ECONNREFUSED
