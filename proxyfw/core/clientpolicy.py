"""What one client may reach, as the decision needs it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxyfw.core.address import IPAddress
from proxyfw.core.addresslist import EMPTY, AddressList
from proxyfw.core.feed import Feed, Source
from proxyfw.core.networks import NetworkTable
from proxyfw.core.pattern import Index
from proxyfw.core.profile import Library, NetworkGrant
from proxyfw.core.qubes_rules import RuleSet
from proxyfw.core.upstreamproxy import UpstreamProxy


@dataclass(frozen=True, slots=True)
class ClientPolicy:
    """What one client may reach."""

    name: str
    addresses: tuple[IPAddress, ...]
    observe: bool
    patterns: Index
    grants: tuple[NetworkGrant, ...]
    networks: NetworkTable
    private: frozenset[str]
    """The profiles whose names may lead to private addresses."""
    by_pin: Index
    """Those of the patterns that name a port."""
    feeds: tuple[Feed, ...] = ()
    lists: tuple[AddressList, ...] = ()
    """What each of the feeds holds just now."""
    dns_all: bool = False
    """Every name resolves, whether a profile grants it or not."""
    rules: Mapping[int, RuleSet] = field(default_factory=dict)
    """The Qubes firewall rules of its address, by IP version."""
    exact: bool = False
    """Not listed: it gets what its Qubes firewall rules say, the closing one included, and nothing else."""
    profiles: tuple[str, ...] = ()
    upstream_proxy: UpstreamProxy | None = None
    """By which all that it reaches is reached: the kernel forwards nothing of it, and no query of it leaves."""

    def rules_for(self, destination: IPAddress | None) -> RuleSet | None:
        """The rules that judge a flow; where only a name is known, those of either version (a name is in both)."""
        version = next(iter(self.rules), 4) if destination is None else destination.version
        return self.rules.get(version)

    def find_feed(self, destination: IPAddress, transport: str, port: int) -> Feed | None:
        """The feed that grants this address and port."""
        for feed, found in zip(self.feeds, self.lists, strict=True):
            if feed.covers(transport, port) and destination in found:
                return feed
        return None


def lists_of(feeds: tuple[Feed, ...], lists: Mapping[Source, AddressList]) -> tuple[AddressList, ...]:
    """What each of the feeds holds; one that was not fetched yet grants nothing."""
    return tuple(lists.get(feed.source, EMPTY) for feed in feeds)


def of_profiles(profiles: tuple[str, ...], library: Library) -> ClientPolicy:
    """What these profiles grant together, to nobody yet."""
    members = {member.name: member for name in profiles for member in library.expand(name)}.values()
    grants = tuple(grant for member in members for grant in member.networks)
    patterns = [pattern for member in members for pattern in member.domains]
    return ClientPolicy(
        name="",
        addresses=(),
        observe=False,
        patterns=Index(patterns),
        by_pin=Index(pattern for pattern in patterns if pattern.names_port),
        grants=grants,
        networks=NetworkTable(grants),
        feeds=tuple(feed for member in members for feed in member.feeds),
        private=frozenset(member.name for member in members if member.private),
    )
