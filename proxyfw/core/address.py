"""Addresses, sorted by what a name may lead to.

IANA special-purpose registries (RFC 6890 and its successors) and the ranges of Qubes OS. Documentation ranges
(RFC 5737, RFC 3849) count as global: they are routed nowhere, and tests and examples live in them.
"""

from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


class AddressKind(StrEnum):
    """What an address is to a client of this netvm."""

    GLOBAL = "global"
    PRIVATE = "private"  # reached by a name only where the profile says `private: true`
    INTERNAL = "internal"  # reached by nothing: loopback, link-local, multicast, reserved, Qubes' own ranges


QUBES = tuple(map(ip_network, ("10.137.0.0/16", "10.138.0.0/16", "10.139.0.0/16", "fd09:24ef:4179::/48")))
"""Client addresses, disposables, the virtual DNS addresses, and their IPv6 range."""

INTERNAL: tuple[IPNetwork, ...] = (
    *QUBES,
    *map(
        ip_network,
        (
            "0.0.0.0/8",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "224.0.0.0/4",
            "240.0.0.0/4",  # reserved, and the limited broadcast
            "::/128",
            "::1/128",
            "fe80::/10",
            "fec0::/10",  # site-local, RFC 3879
            "ff00::/8",
        ),
    ),
)

PRIVATE: tuple[IPNetwork, ...] = tuple(
    map(
        ip_network,
        (
            "10.0.0.0/8",
            "100.64.0.0/10",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "fc00::/7",
            "100::/64",
        ),
    )
)

EMBEDDING: tuple[IPv6Network, ...] = tuple(
    map(IPv6Network, ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16"))
)
"""IPv6 addresses that stand for an IPv4 address (RFC 4291, 6052, 8215, 4380, 3056). They are never dialled for a name:
which host they reach depends on a translator on the way."""


@lru_cache(maxsize=8192)
def kind_of(address: IPAddress) -> AddressKind:
    """Sorts an address; an IPv6 address that stands for an IPv4 one is INTERNAL."""
    if any(address.version == net.version and address in net for net in (*INTERNAL, *EMBEDDING)):
        return AddressKind.INTERNAL
    if any(address.version == net.version and address in net for net in PRIVATE):
        return AddressKind.PRIVATE
    return AddressKind.GLOBAL


def dial_order(addresses: tuple[IPAddress, ...], wanted: IPAddress) -> tuple[IPAddress, ...]:
    """The addresses in the order to try them: the client's own destination first when it is among them, then its family
    and the other one in turn (RFC 8305 section 4).
    """
    if len(addresses) == 1:
        return addresses
    same = [a for a in addresses if a.version == wanted.version and a != wanted]
    other = [a for a in addresses if a.version != wanted.version]
    order: list[IPAddress] = [wanted] if wanted in addresses else []
    if order:
        same, other = other, same
    while same or other:
        if same:
            order.append(same.pop(0))
        same, other = other, same
    return tuple(order)
