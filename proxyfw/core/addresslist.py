"""Address lists: the networks that a feed holds, as ranges of addresses. Made for 100,000 of them."""

import re
from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Network, IPv6Network, NetmaskValueError

from proxyfw.core.address import IPAddress, IPNetwork

Range = tuple[int, int]
"""The first and the last address, as numbers."""

BITS = {4: 32, 6: 128}
"""Of an address, for each version."""

_BEYOND = 1 << 128
_MAPPED = IPv6Network("::ffff:0:0/96")
_SHAPE = re.compile(r"(?:[0-9.]{7,15}|[0-9A-Fa-f:.]{2,45})(?:/(?:0|[1-9][0-9]{0,2}))?")
_SHOWN = 60  # characters of a text that somebody else wrote


class HostBitsError(ValueError):
    """The text is a network, with bits beyond its prefix: it could mean one address or all of them."""


def parse_network(text: str) -> IPNetwork:
    """`192.0.2.1`, `192.0.2.0/24`, `2001:db8::/32`; nothing else: no mask, no zone, no IPv4-mapped address, no blank.

    Raises HostBitsError, ValueError.
    """
    try:
        if _SHAPE.fullmatch(text):
            network = IPv6Network(text) if ":" in text else IPv4Network(text)
            if network.version == 4 or not network.subnet_of(_MAPPED):
                return network
    except (AddressValueError, NetmaskValueError):
        pass
    except ValueError:
        raise HostBitsError(f'"{shown(text)}" has bits beyond its prefix') from None
    raise ValueError(f'"{shown(text)}" is not an address or network')


def parse_networks(texts: Iterable[str]) -> list[IPNetwork]:
    """The networks, as they are. Raises ValueError at the first text that is none."""
    return [parse_network(text) for text in texts]


def shown(text: str) -> str:
    """A text that somebody else wrote, fit for a message."""
    cut = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return "".join(each if each.isprintable() else "?" for each in cut)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AddressList:
    """A set of IPv4 and IPv6 addresses. The ranges of a version are in order, and neither overlap nor touch.

    One list equals itself alone: policies are compared often, and lists are never walked for it.
    """

    _four: tuple[Range, ...] = ()
    _six: tuple[Range, ...] = ()
    _counts: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, networks: Iterable[IPNetwork]) -> "AddressList":
        """The addresses of all these networks."""
        found: dict[int, list[Range]] = {4: [], 6: []}
        for network in networks:
            first = int(network.network_address)
            found[network.version].append((first, first | (1 << network.max_prefixlen - network.prefixlen) - 1))
        four, six = _merged(found[4]), _merged(found[6])
        return cls(four, six, (_count(four, 4), _count(six, 6)))

    def __contains__(self, address: IPAddress) -> bool:
        value, ranges = int(address), self.ranges(address.version)
        place = bisect(ranges, (value, _BEYOND))
        return place > 0 and value <= ranges[place - 1][1]

    def ranges(self, version: int) -> tuple[Range, ...]:
        """The ranges of IPv4 or IPv6. `version`: 4 or 6."""
        return self._four if version == 4 else self._six

    def count(self, version: int) -> int:
        """How many CIDR networks make up the ranges of a version."""
        return self._counts[0 if version == 4 else 1]

    @property
    def prefixes(self) -> int:
        """How many CIDR networks it has: the length of `networks()`."""
        return sum(self._counts)

    def size(self, version: int) -> int:
        """How many addresses of a version it has."""
        return sum(last - first + 1 for first, last in self.ranges(version))

    def networks(self) -> list[IPNetwork]:
        """The fewest CIDR networks that are the list, in order, IPv4 first."""
        return [
            network for version in BITS for range_ in self.ranges(version) for network in networks_of(range_, version)
        ]

    def __repr__(self) -> str:
        return f"AddressList({self.prefixes} networks)"


EMPTY = AddressList()


def networks_of(range_: Range, version: int) -> Iterator[IPNetwork]:
    """The CIDR networks that make up a range, in order."""
    for block in _blocks(range_, version):
        yield IPv4Network(block) if version == 4 else IPv6Network(block)


def _blocks(range_: Range, version: int) -> Iterator[tuple[int, int]]:
    """First address and prefix length of each."""
    bits = BITS[version]
    first, last = range_
    while first <= last:
        free = (last - first + 1).bit_length() - 1
        if first:
            free = min(free, (first & -first).bit_length() - 1)
        yield first, bits - free
        first += 1 << free


def _merged(ranges: list[Range]) -> tuple[Range, ...]:
    ranges.sort()
    merged: list[Range] = []
    end = -2  # the last address so far
    for first, last in ranges:
        if first > end + 1:
            merged.append((first, last))
        elif last > end:
            merged[-1] = (merged[-1][0], last)
        end = max(end, last)
    return tuple(merged)


def _count(ranges: tuple[Range, ...], version: int) -> int:
    return sum(1 for range_ in ranges for _ in _blocks(range_, version))
