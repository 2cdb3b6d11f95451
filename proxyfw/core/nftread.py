"""What the kernel tells of an nftables ruleset (linux/netfilter/nf_tables.h): requests, and what the answers say.

Not through libnftables: whatever it is asked for, it first reads all elements of all sets, half a second of 100,000.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from proxyfw.core.addresslist import Range
from proxyfw.core.netlink import attribute, attributes, message, text_attribute
from proxyfw.core.nftbatch import INET, SUBSYSTEM

_REQUEST, _DUMP = 1, 0x300
_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_SET, _GET_ELEMENT, _GET_OBJECT = 1, 4, 7, 10, 13, 19  # NFT_MSG_GET...
_FAMILIES = {"inet": INET, "ip": 2, "ip6": 10, "arp": 3, "bridge": 7, "netdev": 5}
_NAMES = {number: name for name, number in _FAMILIES.items()}
_MAP = 8  # NFT_SET_MAP
_GOTO = -4  # NFT_GOTO
_COUNTER = 1  # NFT_OBJECT_COUNTER
_INTERVAL_END = 1  # NFT_SET_ELEM_INTERVAL_END
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT, of libnftnl


class Chain(NamedTuple):
    """A chain; `hooked`: packets begin there."""

    table: str
    name: str
    hooked: bool


class Rule(NamedTuple):
    """Of a rule its comment, and the chain that it leads to if it does nothing else; "" for none."""

    comment: str
    goto: str


class Set(NamedTuple):
    """A set, or a map."""

    table: str
    name: str
    is_map: bool


def ask_tables() -> bytes:
    """All tables of all families."""
    return _request(_GET_TABLE, 0)


def ask_chains(family: str) -> bytes:
    """All chains of a family."""
    return _request(_GET_CHAIN, _FAMILIES[family])


def ask_rules(family: str, table: str, chain: str) -> bytes:
    """The rules of a chain; older kernels may tell of more of the table."""
    return _request(_GET_RULE, _FAMILIES[family], text_attribute(1, table) + text_attribute(2, chain))


def ask_sets(family: str, table: str) -> bytes:
    """The sets and maps of a table, without their elements."""
    return _request(_GET_SET, _FAMILIES[family], text_attribute(1, table))


def ask_elements(family: str, table: str, name: str) -> bytes:
    """The elements of a set."""
    return _request(_GET_ELEMENT, _FAMILIES[family], text_attribute(1, table) + text_attribute(2, name))


def ask_counters(family: str, table: str) -> bytes:
    """The named counters of a table."""
    kind = attribute(3, struct.pack("!I", _COUNTER))
    return _request(_GET_OBJECT, _FAMILIES[family], text_attribute(1, table) + kind)


def table_of(body: bytes) -> str:
    """Family and name."""
    return f"{_NAMES.get(body[0], body[0])} {_string(dict(attributes(body, 4)).get(1, b''))}"


def chain_of(body: bytes) -> Chain:
    values = dict(attributes(body, 4))
    return Chain(_string(values.get(1, b"")), _string(values.get(3, b"")), 4 in values)


def rule_of(body: bytes, chain: str) -> Rule | None:
    """None where it is of another chain."""
    values = dict(attributes(body, 4))
    if _string(values.get(2, b"")) != chain:
        return None
    return Rule(_comment(values.get(7, b"")), _goto(values.get(4, b"")))


def set_of(body: bytes) -> Set:
    values = dict(attributes(body, 4))
    return Set(
        _string(values.get(1, b"")), _string(values.get(2, b"")), bool(int.from_bytes(values.get(3, b"")) & _MAP)
    )


def counter_of(body: bytes) -> tuple[str, int]:
    """Its name, and its packets."""
    values = dict(attributes(body, 4))
    return _string(values.get(2, b"")), int.from_bytes(dict(attributes(values.get(4, b""))).get(2, b""))


def ends_of(body: bytes) -> Iterator[tuple[int, bool]]:
    """Of the elements of an interval set of addresses: a number, and whether it is the first one beyond a range."""
    for _, each in attributes(dict(attributes(body, 4)).get(3, b"")):
        values = dict(attributes(each))
        key = dict(attributes(values.get(1, b""))).get(1, b"")
        yield int.from_bytes(key), bool(int.from_bytes(values.get(3, b"")) & _INTERVAL_END)


def ranges_of(ends: list[tuple[int, bool]], version: int) -> list[Range]:
    """The ranges of an interval set, in their order, from all of `ends_of`."""
    found: list[Range] = []
    first: int | None = None
    for number, is_end in sorted(ends, key=lambda end: (end[0], not end[1])):  # an end goes before a beginning there
        if not is_end:
            first = number
        elif first is not None:
            found.append((first, number - 1))
            first = None
    if first is not None:
        found.append((first, (1 << (32 if version == 4 else 128)) - 1))
    return found


def _request(kind: int, family: int, body: bytes = b"") -> bytes:
    return message(SUBSYSTEM << 8 | kind, _REQUEST | _DUMP, struct.pack("!BBH", family, 0, 0) + body)


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")


def _comment(data: bytes) -> str:
    at = 0
    while at + 2 <= len(data):
        kind, length = data[at], data[at + 1]
        if kind == _COMMENT:
            return _string(data[at + 2 : at + 2 + length])
        at += 2 + length
    return ""


def _goto(expressions: bytes) -> str:
    """The chain of a rule that is one goto."""
    found = [dict(attributes(each)) for _, each in attributes(expressions)]
    if len(found) != 1 or _string(found[0].get(1, b"")) != "immediate":
        return ""
    verdict = dict(attributes(dict(attributes(dict(attributes(found[0][2])).get(2, b""))).get(2, b"")))
    is_goto = int.from_bytes(verdict.get(1, b""), signed=True) == _GOTO
    return _string(verdict.get(2, b"")) if is_goto else ""
