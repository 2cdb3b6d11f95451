"""What the kernel's listings say; how they are asked for, and real ones: tests/edge/test_nft.py."""

import struct

import pytest

from proxyfw.core.addresslist import Range
from proxyfw.core.netlink import attribute, interrupted, message, nested
from proxyfw.core.nftread import Chain, Rule, Set, chain_of, counter_of, ends_of, ranges_of, rule_of, set_of, table_of

INET, IP = struct.pack("!BBH", 1, 0, 0), struct.pack("!BBH", 2, 0, 0)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def goto(chain: str, code: int = -4) -> bytes:
    verdict = nested(2, attribute(1, struct.pack("!i", code)), text(2, chain))
    return nested(1, text(1, "immediate"), nested(2, attribute(1, bytes(4)), nested(2, verdict)))


def test_tables_chains_and_sets() -> None:
    assert table_of(IP + text(1, "qubes")) == "ip qubes"
    assert table_of(struct.pack("!BBH", 99, 0, 0) + text(1, "x")) == "99 x"
    assert chain_of(INET + text(1, "t") + text(3, "input") + nested(4, attribute(1, bytes(4)))) == Chain(
        "t", "input", True
    )
    assert chain_of(INET + text(1, "t") + text(3, "judge")) == Chain("t", "judge", False)
    assert set_of(INET + text(1, "t") + text(2, "s") + attribute(3, struct.pack("!I", 4))) == Set("t", "s", False)
    assert set_of(INET + text(1, "t") + text(2, "m") + attribute(3, struct.pack("!I", 8))) == Set("t", "m", True)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        pytest.param(nested(4, goto("there")), Rule("", "there"), id="one goto"),
        pytest.param(nested(4, goto("there", -3)), Rule("", ""), id="a jump is another thing"),
        pytest.param(nested(4, goto("a"), goto("b")), Rule("", ""), id="two statements"),
        pytest.param(nested(4, nested(1, text(1, "counter"), nested(2))), Rule("", ""), id="no verdict"),
        pytest.param(nested(4), Rule("", ""), id="nothing"),
        pytest.param(attribute(7, b"\0\x08proxyfw\0"), Rule("proxyfw", ""), id="a comment"),
        pytest.param(attribute(7, b"\1\1x\0\x02y\0"), Rule("y", ""), id="a comment after something else"),
        pytest.param(attribute(7, b"\0"), Rule("", ""), id="a comment that is cut"),
    ],
)
def test_rules(body: bytes, found: Rule) -> None:
    head = INET + text(1, "t") + text(2, "output")
    assert rule_of(head + body, "output") == found
    assert rule_of(head + body, "input") is None


def test_counters() -> None:
    counts = nested(4, attribute(1, struct.pack("!Q", 700)), attribute(2, struct.pack("!Q", 7)))
    assert counter_of(INET + text(1, "t") + text(2, "refused") + counts) == ("refused", 7)


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        ([], []),
        ([(1, False), (3, True)], [(1, 2)]),
        ([(9, True), (5, False), (3, True), (1, False)], [(1, 2), (5, 8)]),
        ([(3, False), (1, False), (3, True), (5, True)], [(1, 2), (3, 4)]),  # two that touch
        ([(0, True), (7, False)], [(7, 2**32 - 1)]),  # up to the last address; the kernel also notes that 0 is outside
    ],
)
def test_ranges(ends: list[tuple[int, bool]], found: list[Range]) -> None:
    assert ranges_of(ends, 4) == found
    bodies = [nested(1, nested(1, attribute(1, end.to_bytes(4))), attribute(3, bytes([0, 0, 0, is_end])))
              for end, is_end in ends]  # fmt: skip
    assert list(ends_of(INET + nested(3, *bodies))) == ends


def test_a_listing_that_was_interrupted_says_so_in_any_of_its_messages() -> None:
    whole, not_whole = message(1, 2, b"body"), message(1, 2 | 0x10, b"body")
    assert not interrupted(whole + whole)
    assert interrupted(whole + not_whole)
    assert not interrupted(b"\0" * 64)
