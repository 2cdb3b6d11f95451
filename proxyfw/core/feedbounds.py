"""Which lists of a feed are held back: what no owner means to publish, and what would open far too much at once."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from proxyfw.core.address import EMBEDDING, INTERNAL, PRIVATE, IPNetwork
from proxyfw.core.addresslist import BITS, EMPTY, AddressList, Range, networks_of, parse_networks

MAX_PREFIXES = 1 << 17
WIDEST = {4: 8, 6: 19}
"""The shortest prefix that one network may have."""

MAX_SIZE = {4: 1 << 28, 6: 1 << 128 - 15}
"""Addresses in all: a sixteenth of IPv4; of IPv6 sixteen times the widest network."""

GROWTH = 10

_FREE_COUNT = 64
_FREE_SIZE = {4: 1 << 12, 6: 1 << 80}
"""A list that stays as small as this is ten times as large after ordinary news, one host that became a /28, say; and it
opens no more then than one network of one site, a /20 or a /48."""

_NOT_GLOBAL: tuple[IPNetwork, ...] = (*PRIVATE, *INTERNAL, *EMBEDDING)


def objection(before: AddressList | None, now: AddressList) -> str:
    """Why a list is held back, for a person; "": it can be taken. `before`: the list that it replaces, None: none.

    A list may shrink, unless nothing is left: that only closes. A version that appears first is not measured against
    the other.
    """
    return _too_much(now) or _not_global(now) or (_grown(before, now) if before is not None else "")


def judged(before: AddressList | None, networks: Iterable[str]) -> tuple[AddressList, str]:
    """The list of these networks, and why it is held back: also where one of them is none, and then it is empty."""
    try:
        found = AddressList.of(parse_networks(networks))
    except ValueError as error:
        return EMPTY, str(error)
    return found, objection(before, found)


def _too_much(now: AddressList) -> str:
    if not now.prefixes:
        return "the list is empty"
    for network in _wide(now):
        return f"{network} is wider than /{WIDEST[network.version]}"
    if now.prefixes > MAX_PREFIXES:
        return f"it has {now.prefixes:,} networks, and {MAX_PREFIXES:,} are the most"
    for version, most in MAX_SIZE.items():
        size = now.size(version)
        if size > most:
            return f"it has {_number(size)} IPv{version} addresses, and {_number(most)} are the most"
    return ""


def _wide(now: AddressList) -> Iterator[IPNetwork]:
    for version, widest in WIDEST.items():
        for first, last in now.ranges(version):
            if (last - first) >> (BITS[version] - widest):  # no smaller range has such a network in it
                for network in networks_of((first, last), version):
                    if network.prefixlen < widest:
                        yield network


def _not_global(now: AddressList) -> str:
    for special in _NOT_GLOBAL:
        network = _overlap(now, special)
        if network is not None:
            return f"{network} overlaps {special}, which is no network of the Internet"
    return ""


def _overlap(now: AddressList, special: IPNetwork) -> IPNetwork | None:
    """The first network of the list that has an address in common with another network."""
    first, last = int(special.network_address), int(special.broadcast_address)
    ranges = now.ranges(special.version)
    place = bisect_left(ranges, first, key=_last)
    if place == len(ranges) or ranges[place][0] > last:
        return None
    return next(each for each in networks_of(ranges[place], special.version) if each.overlaps(special))


def _last(range_: Range) -> int:
    return range_[1]


def _grown(before: AddressList, now: AddressList) -> str:
    for version, free in _FREE_SIZE.items():
        old, new = before.count(version), now.count(version)
        if new > _FREE_COUNT and 0 < old * GROWTH <= new:
            return f"it grew from {old:,} to {new:,} IPv{version} networks at once"
        old, new = before.size(version), now.size(version)
        if new > free and 0 < old * GROWTH <= new:
            return f"it grew from {_number(old)} to {_number(new)} IPv{version} addresses at once"
    return ""


def _number(size: int) -> str:
    return f"{size:,}" if size < 10**15 else f"{size:.2e}"
