"""Changes of the elements of nftables sets, as one transaction (linux/netfilter/nfnetlink.h, nf_tables.h).

Not through libnftables: it reads every interval set of the network namespace before it adds one element (0.4 seconds
beside a set of 100,000 networks), and to replace 1,000 of these takes it three minutes.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from proxyfw.core.addresslist import Range
from proxyfw.core.netlink import attribute, message, nested, text_attribute

_BEGIN, _END = 0x10, 0x11  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_ADD, _DELETE = 12, 14  # NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM
_REQUEST, _ACK, _CREATE = 1, 4, 0x400
INET = 1  # NFPROTOINET
_TABLE, _SET, _ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_...
_ELEMENT = 1  # NFTA_LIST_ELEM
_KEY, _FLAGS, _TIMEOUT = 1, 3, 4  # NFTA_SET_ELEM_...
_VALUE = 1  # NFTA_DATA_VALUE
_INTERVAL_END = struct.pack("!I", 1)  # NFT_SET_ELEM_INTERVAL_END
_TOGETHER = 48_000  # bytes of elements in one message; an attribute has no more than 65,535


class Change(NamedTuple):
    """Elements, as from `element` and `ranges`, that come into a set, or go."""

    set: str
    adds: bool
    elements: Sequence[bytes]


def element(*fields: bytes, seconds: int | None = None) -> bytes:
    """One element of these fields; `seconds`: its time-out."""
    key = b"".join(field + b"\0" * (-len(field) % 4) for field in fields)
    values = [nested(_KEY, attribute(_VALUE, key))]
    if seconds is not None:
        values.append(attribute(_TIMEOUT, struct.pack("!Q", seconds * 1000)))
    return nested(_ELEMENT, *values)


def ranges(found: Iterable[Range], version: int) -> list[bytes]:
    """The elements of an interval set of addresses. The ranges must neither overlap nor touch."""
    size = 4 if version == 4 else 16
    begin = element(bytes(size))[:-size]
    end = nested(_ELEMENT, nested(_KEY, attribute(_VALUE, bytes(size))), attribute(_FLAGS, _INTERVAL_END))
    cut = len(end) - size - 8
    head, tail = end[:cut], end[-8:]
    beyond = 1 << 8 * size
    elements = []
    for first, last in found:
        elements.append(begin + first.to_bytes(size))
        if last + 1 < beyond:  # else it has no end
            elements.append(head + (last + 1).to_bytes(size) + tail)
    return elements


def steps(before: Iterable[Range], now: Iterable[Range], most: int) -> Iterator[tuple[list[Range], list[Range]]]:
    """From what an interval set holds to what it is to hold: ranges that go and ranges that come, about `most` of them
    in one step, as a transaction keeps the kernel from all others. Ranges that overlap or touch are of the same step,
    so that an address that was there and stays is never missing.
    """
    held, wanted = frozenset(before), frozenset(now)
    going: list[Range] = []
    coming: list[Range] = []
    end = -2  # the last address so far
    changes = [*((each, False) for each in held - wanted), *((each, True) for each in wanted - held)]
    for range_, comes in sorted(changes):
        if len(going) + len(coming) >= most and range_[0] > end + 1:
            yield going, coming
            going, coming = [], []
        (coming if comes else going).append(range_)
        end = max(end, range_[1])
    if going or coming:
        yield going, coming


def batch(table: str, changes: Iterable[Change]) -> bytes:
    """The transaction, to be sent in one piece. The kernel acknowledges the last change, or tells of an error."""
    bodies = [body for change in changes for body in _bodies(table, change)]
    begin = struct.pack("!BBH", 0, 0, SUBSYSTEM)
    parts = [message(_BEGIN, _REQUEST, begin)]
    for number, (kind, flags, body) in enumerate(bodies, start=1):
        last = _ACK if number == len(bodies) else 0
        parts.append(message(SUBSYSTEM << 8 | kind, _REQUEST | flags | last, body))
    return b"".join([*parts, message(_END, _REQUEST, begin)])


def _bodies(table: str, change: Change) -> Iterable[tuple[int, int, bytes]]:
    kind, flags = (_ADD, _CREATE) if change.adds else (_DELETE, 0)
    head = struct.pack("!BBH", INET, 0, 0) + text_attribute(_TABLE, table) + text_attribute(_SET, change.set)
    together: list[bytes] = []
    size = 0
    for each in change.elements:
        together.append(each)
        size += len(each)
        if size >= _TOGETHER:
            yield kind, flags, head + nested(_ELEMENTS, *together)
            together, size = [], 0
    if together:
        yield kind, flags, head + nested(_ELEMENTS, *together)
