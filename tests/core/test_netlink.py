"""Netlink messages and attributes, as bytes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core import netlink
from proxyfw.core.netlink import attribute, attributes, messages, nested


def message(body: bytes, kind: int = 0x400) -> bytes:
    """One netlink message with its padding."""
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + bytes(-len(body) % 4)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(message(b"abcd"), [(0x400, b"abcd")], id="one"),
        pytest.param(message(b"abc") + message(b"", 2), [(0x400, b"abc"), (2, b"")], id="two, the first padded"),
        pytest.param(message(b"abcd") + message(b"efgh")[:-1], [(0x400, b"abcd")], id="the second cut short"),
        pytest.param(message(b"abcd") + bytes(15), [(0x400, b"abcd")], id="half a header at the end"),
        pytest.param(struct.pack("=IHHII", 0, 2, 0, 0, 0), [], id="a length of zero"),
        pytest.param(message(b"abc")[:19], [(0x400, b"abc")], id="the last without its padding"),
    ],
)
def test_the_messages_of_a_datagram(data: bytes, found: list[tuple[int, bytes]]) -> None:
    assert list(messages(data)) == found


@pytest.mark.parametrize(
    ("data", "found"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(attribute(1, b"abc") + attribute(2, b""), [(1, b"abc"), (2, b"")], id="two, the first padded"),
        pytest.param(attribute(1, b"abc")[:-1], [(1, b"abc")], id="the last without its padding"),
        pytest.param(attribute(1, b"abcd") + attribute(2, b"abcd")[:-1], [(1, b"abcd")], id="the second cut short"),
        pytest.param(attribute(1, b"abcd") + bytes(3), [(1, b"abcd")], id="half a header at the end"),
        pytest.param(struct.pack("=HH", 3, 1) + bytes(8), [], id="a length below four"),
        pytest.param(nested(3, attribute(1, b"abcd")), [(3, attribute(1, b"abcd"))], id="attributes in it"),
        pytest.param(attribute(0x4005, b"\0\1"), [(5, b"\0\1")], id="in network order"),
    ],
)
def test_the_attributes_of_a_body(data: bytes, found: list[tuple[int, bytes]]) -> None:
    assert list(attributes(data)) == found
    assert list(attributes(b"head" + data, 4)) == found


def test_a_request() -> None:
    body = b"\2\0\0\0" + attribute(1, b"a")
    assert netlink.message(0x101, 5, body) == struct.pack("=IHHII", 28, 0x101, 5, 0, 0) + body
    assert list(messages(netlink.message(0x101, 5, body))) == [(0x101, body)]


@given(st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=20)), max_size=5), st.binary(max_size=15))
def test_messages_are_read_back(sent: list[tuple[int, bytes]], rest: bytes) -> None:
    assert list(messages(b"".join(message(body, kind) for kind, body in sent) + rest)) == sent


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=20)), max_size=5), st.binary(max_size=3))
def test_attributes_are_read_back(sent: list[tuple[int, bytes]], rest: bytes) -> None:
    assert list(attributes(b"".join(attribute(*one) for one in sent) + rest)) == sent


@given(st.binary(max_size=100))
def test_any_datagram_ends(data: bytes) -> None:
    assert sum(16 + len(body) for _, body in messages(data)) <= len(data)
    assert sum(4 + len(value) for _, value in attributes(data)) <= len(data)
