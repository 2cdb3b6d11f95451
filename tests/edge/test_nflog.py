"""What the kernel reports of refused packets: attributes and packet headers, as bytes."""

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.edge.nflog import Reported, parse


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def report(packet: bytes, prefix: bytes = b"no-name\0") -> bytes:
    """The body of a packet message as the kernel lays it out."""
    header = struct.pack("!BBH", 2, 0, 28774)
    hardware = attribute(1, struct.pack("!HBx", 0x0800, 1))
    return header + hardware + attribute(10, prefix) + attribute(9, packet)


def ipv4(protocol: int, rest: bytes, options: bytes = b"", fragment: int = 0) -> bytes:
    header = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, 0, 0, fragment, 64, protocol, 0)
    return header + bytes([10, 137, 0, 11]) + bytes([192, 0, 2, 7]) + options + rest


def ipv6(following: int, rest: bytes) -> bytes:
    header = struct.pack("!IHBB", 0x60000000, len(rest), following, 64)
    return header + ip_address("fd09:24ef:4179::a89:b").packed + ip_address("2001:db8::7").packed + rest


def ports(destination: int) -> bytes:
    return struct.pack("!HH", 40000, destination) + bytes(16)


def refused(protocol: str, port: int, version: int = 4, icmp_type: int | None = None) -> Reported:
    source, destination = ("10.137.0.11", "192.0.2.7") if version == 4 else ("fd09:24ef:4179::a89:b", "2001:db8::7")
    return Reported("no-name", ip_address(source), ip_address(destination), protocol, port, icmp_type)


HOP_BY_HOP = 0
DESTINATION_OPTIONS = 60


@pytest.mark.parametrize(
    ("packet", "answer"),
    [
        pytest.param(ipv4(6, ports(22)), refused("tcp", 22), id="TCP"),
        pytest.param(ipv4(17, ports(53)), refused("udp", 53), id="UDP"),
        pytest.param(ipv4(1, b"\x08\0\0\0"), refused("icmp", 0, icmp_type=8), id="ping"),
        pytest.param(ipv4(47, ports(22)), refused("ip-47", 0), id="a protocol without ports"),
        pytest.param(ipv4(6, ports(22), options=bytes(8)), refused("tcp", 22), id="IP options before TCP"),
        pytest.param(ipv4(17, ports(53), fragment=0x2000), refused("udp", 53), id="the first fragment has the ports"),
        pytest.param(ipv4(17, ports(53), fragment=100), refused("udp", 0), id="a later fragment has none"),
        pytest.param(ipv4(6, ports(22)[:4]), refused("tcp", 22), id="just the ports"),
        pytest.param(ipv4(6, ports(22)[:3]), refused("tcp", 0), id="one byte less"),
        pytest.param(ipv4(6, b""), refused("tcp", 0), id="nothing after the IP header"),
        pytest.param(ipv6(6, ports(22)), refused("tcp", 22, 6), id="TCP over IPv6"),
        pytest.param(ipv6(58, b"\x80\0\0\0"), refused("icmp", 0, 6, 128), id="ping over IPv6"),
        pytest.param(
            ipv6(HOP_BY_HOP, bytes([DESTINATION_OPTIONS, 0]) + bytes(6) + bytes([17, 1]) + bytes(14) + ports(53)),
            refused("udp", 53, 6),
            id="UDP after two extension headers",
        ),
        pytest.param(ipv6(HOP_BY_HOP, bytes([17, 9]) + bytes(6)), refused("udp", 0, 6), id="an extension cut short"),
        pytest.param(ipv4(6, ports(22))[:19], None, id="an IPv4 header cut short"),
        pytest.param(ipv6(6, ports(22))[:39], None, id="an IPv6 header cut short"),
        pytest.param(b"\x55" + bytes(40), None, id="IP version 5"),
        pytest.param(b"", None, id="no packet"),
    ],
)
def test_a_refused_packet(packet: bytes, answer: Reported | None) -> None:
    assert parse(report(packet)) == answer


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        pytest.param(b"observe no-name\0", "observe no-name", id="with its zero byte"),
        pytest.param(b"proxy-down", "proxy-down", id="without one"),
        pytest.param(b"\xff\0", "\ufffd", id="not ASCII"),
        pytest.param(b"\0", "", id="empty"),
    ],
)
def test_the_prefix(prefix: bytes, text: str) -> None:
    found = parse(report(ipv4(6, ports(22)), prefix))
    assert found is not None
    assert found.prefix == text


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x02\0\x70\x66", id="a header without attributes"),
        pytest.param(b"\x02\0\x70\x66" + struct.pack("=HH", 3, 9) + ipv4(6, ports(22)), id="a length below four"),
        pytest.param(b"\x02\0\x70\x66" + struct.pack("=HH", 99, 9) + ipv4(6, ports(22)), id="a length past the end"),
    ],
)
def test_a_message_without_a_whole_packet_tells_nothing(body: bytes) -> None:
    assert parse(body) is None


packets = st.binary(max_size=80) | st.builds(
    lambda start, protocol, rest: bytes([start]) + ipv4(protocol, rest)[1:], st.integers(0, 255), st.integers(0, 255),
    st.binary(max_size=60),
) | st.builds(ipv6, st.sampled_from([0, 6, 17, 43, 60]), st.binary(max_size=60))  # fmt: skip


@given(packets.map(report) | st.binary(max_size=100), st.integers(0, 60))
def test_any_report_is_read_or_none(body: bytes, cut: int) -> None:
    found = parse(body[: len(body) - cut])
    assert found is None or (0 <= found.port <= 65535 and found.protocol)
