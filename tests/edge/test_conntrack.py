"""Flows that the real kernel tracks, in a network namespace of this test's own."""

import asyncio
import ctypes
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import ip_address

import nftables
import pytest

from proxyfw.core.netlink import attribute, nested
from proxyfw.edge.conntrack import ConntrackError, Tracked, delete, flows, parse

CLONE_NEWNET = 0x40000000
TRACK = "table inet test { chain output { type filter hook output priority 0; ct state invalid counter; }; }"
ONE, OTHER, SIX = "127.0.0.11", "127.0.0.12", "fd00::11"  # the clients; fd00::12 is their other side
PROXIED = "127.0.0.99"  # where DNAT leads to

Inside = Callable[[Callable[[], None]], None]


def _enter() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture
def inside() -> Iterator[Inside]:
    """Runs a test in a thread with a network namespace to itself (unshare(2) is for one thread), which tracks."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces are made by root")
    made = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")

    def run(test: Callable[[], None]) -> None:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for address in (SIX, "fd00::12"):
            subprocess.run(["ip", "address", "add", f"{address}/128", "dev", "lo", "nodad"], check=True)
        rules(TRACK)
        test()

    with ThreadPoolExecutor(1, initializer=_enter) as thread:
        yield lambda test: thread.submit(run, test).result()


def rules(text: str) -> None:
    status, _, error = nftables.Nftables().cmd(text)
    assert status == 0, error


def tracked(source: str, destination: str, protocol: str, port: int = 0, icmp_type: int | None = None) -> Tracked:
    return Tracked(ip_address(source), ip_address(destination), protocol, port, icmp_type)


def opened_by(*sources: str) -> set[Tracked]:
    found = asyncio.run(flows([ip_address(source) for source in sources]))
    assert len(found) == len(set(found))
    return set(found)


def ended(*these: Tracked) -> int:
    return asyncio.run(delete(these))


def send(source: str, destination: str, port: int, kind: int = socket.SOCK_DGRAM, protocol: int = 0) -> None:
    """A datagram of 8 zero bytes, or what stands for them: nobody listens."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with socket.socket(family, kind, protocol) as sock:
        sock.bind((source, 0))
        sock.sendto(ECHO.get(protocol, bytes(8)), (destination, port))


ECHO = {  # with its checksum, which of ICMPv6 the kernel computes
    socket.IPPROTO_ICMP: struct.pack("!BBHHH", 8, 0, 0xF7FE, 0, 1),
    socket.IPPROTO_ICMPV6: struct.pack("!BBHHH", 128, 0, 0, 0, 1),
}


RAW = socket.SOCK_RAW


@pytest.mark.parametrize(
    ("opening", "found"),
    [
        pytest.param(lambda: send(ONE, "127.1.0.1", 53), tracked(ONE, "127.1.0.1", "udp", 53), id="UDP"),
        pytest.param(lambda: send(SIX, "fd00::12", 53), tracked(SIX, "fd00::12", "udp", 53), id="UDP over IPv6"),
        pytest.param(
            lambda: send(ONE, "127.1.0.1", 0, RAW, socket.IPPROTO_ICMP),
            tracked(ONE, "127.1.0.1", "icmp", 0, 8),
            id="ping",
        ),
        pytest.param(
            lambda: send(SIX, "fd00::12", 0, RAW, socket.IPPROTO_ICMPV6),
            tracked(SIX, "fd00::12", "icmp", 0, 128),
            id="ping over IPv6",
        ),
        pytest.param(lambda: send(ONE, "127.1.0.1", 0, RAW, 253), tracked(ONE, "127.1.0.1", "ip-253"), id="no ports"),
        pytest.param(lambda: send(ONE, "127.1.0.1", 0, RAW, 47), tracked(ONE, "127.1.0.1", "ip-47"), id="GRE"),
        pytest.param(lambda: send(SIX, "fd00::12", 0, RAW, 253), tracked(SIX, "fd00::12", "ip-253"), id="over IPv6"),
    ],
)
def test_what_a_client_opened(opening: Callable[[], None], found: Tracked, inside: Inside) -> None:
    def test() -> None:
        opening()
        assert opened_by(ONE, SIX) == {found}
        assert ended(found) == 1
        assert opened_by(ONE, SIX) == set()

    inside(test)


def test_tcp(inside: Inside) -> None:
    def test() -> None:
        with socket.create_server(("127.1.0.1", 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection(("127.1.0.1", port), source_address=(ONE, 0)):
                assert opened_by(ONE) == {tracked(ONE, "127.1.0.1", "tcp", port)}

    inside(test)


def test_the_destination_is_that_of_the_clients_own_packets(inside: Inside) -> None:
    def test() -> None:
        rules(
            "table ip nat { chain output { type nat hook output priority -100;\n"
            f"ip daddr 127.1.0.1 udp dport 53 dnat to {PROXIED}:5353; }}; }}"
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind((PROXIED, 5353))
            server.settimeout(5)
            send(ONE, "127.1.0.1", 53)
            assert server.recv(8) == bytes(8)
        assert opened_by(ONE) == {tracked(ONE, "127.1.0.1", "udp", 53)}
        assert opened_by(PROXIED) == set()
        assert ended(tracked(ONE, PROXIED, "udp", 5353)) == 0
        assert ended(tracked(ONE, "127.1.0.1", "udp", 53)) == 1

    inside(test)


def test_whose_flows(inside: Inside) -> None:
    def test() -> None:
        assert opened_by(ONE) == set()
        for port in (1, 2, 2):
            send(ONE, "127.1.0.1", port)  # from another source port each time
        send(OTHER, ONE, 3)
        send(SIX, "fd00::12", 4)
        own = {tracked(ONE, "127.1.0.1", "udp", 1), tracked(ONE, "127.1.0.1", "udp", 2)}
        others, six = tracked(OTHER, ONE, "udp", 3), tracked(SIX, "fd00::12", "udp", 4)
        assert opened_by() == set()
        assert opened_by(ONE) == own
        assert opened_by(OTHER) == {others}
        assert opened_by(SIX, ONE, OTHER) == {*own, others, six}
        assert opened_by("127.1.0.1", "fd00::12") == set()  # those only answer

    inside(test)


def test_exactly_these_are_deleted(inside: Inside) -> None:
    def test() -> None:
        for port in (1, 2, 2):
            send(ONE, "127.1.0.1", port)
            send(OTHER, "127.1.0.1", port)
            send(ONE, "127.1.0.2", port)
        everything = opened_by(ONE, OTHER)
        assert len(everything) == 6
        gone = {tracked(ONE, "127.1.0.1", "udp", 2), tracked(OTHER, "127.1.0.1", "udp", 1)}
        never = tracked(ONE, "127.1.0.1", "tcp", 2)
        assert ended() == 0
        assert ended(never) == 0
        assert ended(*gone, never) == 3
        assert opened_by(ONE, OTHER) == everything - gone
        assert ended(*gone) == 0

    inside(test)


def test_a_connection_that_is_deleted_is_a_new_one_to_the_rules(inside: Inside) -> None:
    def test() -> None:
        with ExitStack() as stack:
            server = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            server.bind(("127.1.0.1", 53))
            server.settimeout(5)
            clients = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)]
            for client, address in zip(clients, (ONE, OTHER), strict=True):
                client.bind((address, 0))
                client.connect(("127.1.0.1", 53))
                client.send(b"first")
                assert server.recv(9) == b"first"
                server.sendto(b"answer", client.getsockname())
            rules(
                "table inet new { chain input { type filter hook input priority 0;\n"
                "meta l4proto udp ct state established accept\nmeta l4proto udp drop; }; }"
            )

            def arrives() -> bytes:
                for client, text in zip(clients, (b"the one", b"the other"), strict=True):
                    client.send(text)
                return server.recv(9)

            assert arrives() == b"the one"
            assert server.recv(9) == b"the other"
            assert ended(tracked(ONE, "127.1.0.1", "udp", 53)) == 1
            assert arrives() == b"the other"

    inside(test)


def test_the_same_tuple_in_several_zones(inside: Inside) -> None:
    def test() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((ONE, 0))
            for zone in (0, 7, 8):
                rules(
                    "add table ip zones; delete table ip zones; table ip zones { chain output {\n"
                    f"type filter hook output priority raw\nct zone set {zone}; }}; }}"
                )
                sock.sendto(b"", ("127.1.0.1", 53))
        flow = tracked(ONE, "127.1.0.1", "udp", 53)
        assert opened_by(ONE) == {flow}
        assert ended(flow) == 3
        assert opened_by(ONE) == set()

    inside(test)


def test_thousands_of_entries_and_who_deletes_them_first(inside: Inside) -> None:
    def test() -> None:
        with ExitStack() as stack:
            for _ in range(30):  # source ports
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sock.bind((ONE, 0))
                for at in range(100):
                    sock.sendto(b"", (f"127.1.0.{at}", 53))
        found = opened_by(ONE)
        assert found == {tracked(ONE, f"127.1.0.{at}", "udp", 53) for at in range(100)}

        async def at_once() -> list[int]:
            return await asyncio.gather(*(delete(found) for _ in range(3)))

        assert sum(asyncio.run(at_once())) == 3000
        assert opened_by(ONE) == set()

    inside(test)


WITHOUT_THE_RIGHT = """
import asyncio, os
from ipaddress import ip_address
from proxyfw.edge.conntrack import ConntrackError, Tracked, delete, flows
os.setgroups([])
os.setuid(65534)
one = ip_address("127.0.0.11")
for work in (flows([one]), delete([Tracked(one, one, "udp", 53, None)])):
    try:
        print(asyncio.run(work))
    except ConntrackError as error:
        print(error)
"""


def test_without_the_right_to(inside: Inside) -> None:
    def test() -> None:
        done = subprocess.run([sys.executable, "-c", WITHOUT_THE_RIGHT], capture_output=True, text=True, timeout=20)
        assert done.stdout.splitlines() == ["connection tracking: Operation not permitted"] * 2
        assert not done.stderr

    inside(test)


def entry(protocol: bytes, *rest: bytes) -> bytes:
    """The body of an entry's message: from ONE to 127.1.0.1."""
    addresses = nested(1, attribute(1, bytes([127, 0, 0, 11])), attribute(2, bytes([127, 1, 0, 1])))
    return b"\2\0\0\0" + nested(1, addresses, nested(2, protocol)) + b"".join(rest)


SOURCES = {ip_address(address).packed: ip_address(address) for address in (ONE, SIX)}
NUMBER, ZONE = attribute(12, b"\1\2\3\4"), attribute(18, b"\0\7")
UDP = attribute(1, b"\x11") + attribute(2, b"\x9c\x40") + attribute(3, b"\0\x35")


@pytest.mark.parametrize(
    ("body", "flow", "request_body"),
    [
        pytest.param(entry(UDP, NUMBER), tracked(ONE, "127.1.0.1", "udp", 53), entry(UDP, NUMBER), id="its own number"),
        pytest.param(
            entry(UDP, attribute(3, bytes(4)), NUMBER, attribute(7, bytes(4)), ZONE),
            tracked(ONE, "127.1.0.1", "udp", 53),
            entry(UDP, NUMBER, ZONE),
            id="its own zone, and nothing else of it",
        ),
        pytest.param(
            entry(attribute(1, b"\x84") + attribute(3, b"\0\x35")),
            tracked(ONE, "127.1.0.1", "ip-132"),
            entry(attribute(1, b"\x84") + attribute(3, b"\0\x35")),
            id="SCTP has ports, which no rule names",
        ),
        pytest.param(
            entry(attribute(1, b"\x3a")), tracked(ONE, "127.1.0.1", "icmp"), entry(attribute(1, b"\x3a")), id="no type"
        ),
    ],
)
def test_an_entry_and_the_request_that_deletes_it(body: bytes, flow: Tracked, request_body: bytes) -> None:
    assert parse(SOURCES, body) == (flow, request_body)


def test_an_entry_of_another_source_is_passed_over() -> None:
    assert parse({ip_address(OTHER).packed: ip_address(OTHER)}, entry(UDP)) is None
    assert parse({}, entry(UDP)) is None
    assert parse(SOURCES, b"") is None


@pytest.mark.parametrize("work", [pytest.param(flows, id="flows"), pytest.param(delete, id="delete")])
def test_where_there_is_no_netlink(work: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxyfw.edge.conntrack._NETLINK_NETFILTER", 31)  # nobody has that number
    with pytest.raises(ConntrackError, match="Protocol not supported"):
        asyncio.run(work([]))  # type: ignore[arg-type]
