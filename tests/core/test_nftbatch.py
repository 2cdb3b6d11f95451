"""Transactions of elements, byte by byte. What the kernel makes of them: tests/edge/test_nft.py."""

import struct
from ipaddress import ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.addresslist import AddressList, Range
from proxyfw.core.netlink import attributes, messages
from proxyfw.core.nftbatch import Change, batch, element, ranges, steps

ONE = element(bytes(4))
NEW, DELETE, BEGIN, END = 0xA0C, 0xA0E, 0x10, 0x11


def told(data: bytes) -> list[tuple[int, str, str, int]]:
    """Of each message that is about elements: its type, table and set, and how many."""
    found = []
    for kind, body in messages(data):
        if kind in (NEW, DELETE):
            values = dict(attributes(body, 4))
            table, name = (values[at].rstrip(b"\0").decode() for at in (1, 2))
            found.append((kind, table, name, len(list(attributes(values[3])))))
    return found


def test_a_transaction_has_a_beginning_an_end_and_the_changes_in_their_order() -> None:
    data = batch("proxyfw", [Change("a", False, [ONE]), Change("b", True, [ONE, ONE])])
    assert [kind for kind, _ in messages(data)] == [BEGIN, DELETE, NEW, END]
    assert told(data) == [(DELETE, "proxyfw", "a", 1), (NEW, "proxyfw", "b", 2)]


def test_the_last_change_is_acknowledged_and_no_other() -> None:
    data, asked, at = batch("proxyfw", [Change("a", False, [ONE]), Change("a", True, [ONE])]), [], 0
    while at < len(data):
        length, _, flags = struct.unpack_from("=IHH", data, at)
        asked.append(bool(flags & 4))
        at += (length + 3) & ~3
    assert asked == [False, False, True, False]


def test_many_elements_are_told_in_messages_that_the_kernel_can_read() -> None:
    many = ranges([(at * 4, at * 4 + 1) for at in range(50_000)], 4)
    data = batch("proxyfw", [Change("a", True, many)])
    assert sum(count for *_, count in told(data)) == len(many) == 100_000
    assert all(len(body) < 65_536 for _, body in messages(data))


@pytest.mark.parametrize(
    ("version", "found", "keys"),
    [
        pytest.param(4, (1, 2), [(b"\0\0\0\1", False), (b"\0\0\0\3", True)], id="two addresses"),
        pytest.param(4, (2**32 - 2, 2**32 - 1), [(b"\xff\xff\xff\xfe", False)], id="up to the last, it has no end"),
        pytest.param(6, (7, 7), [(bytes(15) + b"\7", False), (bytes(15) + b"\x08", True)], id="one address of IPv6"),
    ],
)
def test_a_range_is_its_first_address_and_the_one_after_its_last(
    version: int, found: Range, keys: list[tuple[bytes, bool]]
) -> None:
    got = []
    for each in ranges([found], version):
        ((_, body),) = attributes(each)
        values = dict(attributes(body))
        key = dict(attributes(values[1]))[1]
        got.append((key, values.get(3) == b"\0\0\0\1"))
    assert got == keys


def test_fields_are_padded_and_the_time_out_is_in_milliseconds() -> None:
    ((_, body),) = attributes(element(b"\1\2\3\4", b"\0\x7b", seconds=60))
    values = dict(attributes(body))
    assert dict(attributes(values[1]))[1] == b"\1\2\3\4\0\x7b\0\0"
    assert int.from_bytes(values[4]) == 60_000


@given(st.lists(st.integers(0, 60)), st.lists(st.integers(0, 60)), st.integers(1, 5))
def test_in_steps_what_stays_is_never_missing_and_nothing_else_is_ever_there(
    before: list[int], now: list[int], most: int
) -> None:
    def list_of(numbers: list[int]) -> AddressList:
        return AddressList.of(ip_network(0x0B000000 + number) for number in numbers)

    def addresses(ranges: set[Range]) -> set[int]:
        return {address for first, last in ranges for address in range(first, last + 1)}

    old, new = list_of(before).ranges(4), list_of(now).ranges(4)
    held = set(old)
    for going, coming in steps(old, new, most):
        assert going or coming
        assert held >= set(going)
        held -= set(going)
        held |= set(coming)
        assert addresses(set(old)) & addresses(set(new)) <= addresses(held) <= addresses(set(old)) | addresses(set(new))
        merged = sorted(held)
        assert all(one[1] < other[0] for one, other in pairwise(merged))  # none overlap
    assert held == set(new)


def test_a_step_has_about_so_many_ranges() -> None:
    many = [(at * 4, at * 4 + 1) for at in range(100)]
    assert [len(coming) for _, coming in steps([], many, 30)] == [30, 30, 30, 10]
    assert list(steps(many, many, 30)) == []
