"""Who the clients are just now: the configuration, put together with what Qubes OS knows of them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from proxyfw.core.address import IPAddress
from proxyfw.core.config import Client, Config, parse_address
from proxyfw.core.netvm import Netvm, Qube, World
from proxyfw.core.profile import ALLOWED
from proxyfw.core.qubes_rules import RuleSet
from proxyfw.core.upstreamproxy import UpstreamProxy


@dataclass(frozen=True, slots=True)
class Member:
    """A client with the addresses that it has just now; none: it stays refused.

    `rules`: its Qubes firewall rules, by IP version; none outside Qubes OS. `exact`: it is not listed, and gets exactly
    what those rules say (`unlisted: qubes`). `upstream_proxy`: by which it leaves; None: by none.
    """

    name: str
    profiles: tuple[str, ...] = ()
    observe: bool = False
    dns_all: bool = False
    addresses: tuple[IPAddress, ...] = ()
    rules: Mapping[int, RuleSet] = field(default_factory=dict)
    exact: bool = False
    upstream_proxy: UpstreamProxy | None = None


def members(config: Config, profiles: Collection[str], world: World) -> tuple[list[Member], list[str]]:
    """The clients, in the order of the configuration, and what a person should know of them.

    `profiles`: the names of those that exist. Fails closed: an address that is in doubt is nobody's.
    """
    notes: list[str] = []
    found = _Finder(config, profiles, world, notes)
    listed = [found.member(name, _held(name, world.netvm, profiles, notes)) for name in found.names()]
    return [*listed, *found.unlisted()], notes


def _held(name: str, netvm: Netvm | None, profiles: Collection[str], notes: list[str]) -> tuple[str, ...] | None:
    """The profiles that dom0 holds for this client; None: it holds none."""
    if netvm is None or name not in netvm.profiles:
        return None
    held = netvm.profiles[name]
    notes += [
        f'"{name}": dom0 names the profile "{each}", which does not exist' for each in held if each not in profiles
    ]
    return tuple(each for each in held if each in profiles)


class _Finder:
    def __init__(self, config: Config, profiles: Collection[str], world: World, notes: list[str]) -> None:
        self._config, self._world, self._notes = config, world, notes
        self._qubes = {qube.name: qube for qube in world.attached.qubes} if world.attached else {}
        self._held = world.netvm.profiles if world.netvm else {}
        self._profiles = profiles
        owners: dict[IPAddress, list[Qube]] = {}
        for qube in self._qubes.values():
            for address in qube.addresses:
                owners.setdefault(address, []).append(qube)
        self._owner = {address: qubes[0] for address, qubes in owners.items() if len(qubes) == 1}
        self._shared = {address for address, qubes in owners.items() if len(qubes) > 1}
        for address in sorted(self._shared, key=str):
            if world.netvm is None or address in world.netvm.connected:
                names = " and ".join(qube.name for qube in owners[address])
                notes.append(f"{address} is the address of {names}, as dom0 says: refused")
        self._taken: dict[IPAddress, str] = {}

    def names(self) -> list[str]:
        """Those listed by name, those here that have a listed tag, and those that dom0 holds profiles for."""
        tagged = [name for name, qube in self._qubes.items() if qube.here and self._tags(qube)]
        return list(dict.fromkeys([*self._config.clients, *tagged, *self._held]))

    def _tags(self, qube: Qube | None) -> list[Client]:
        return [entry for tag, entry in self._config.tags.items() if qube is not None and tag in qube.tags]

    def member(self, name: str, held: tuple[str, ...] | None) -> Member:
        """A listed client. What dom0 holds stands in place of what the file says of its profiles; what was allowed to
        this client alone is added to either.
        """
        own, qube = self._config.clients.get(name), self._qubes.get(name)
        entries = [*([own] if own else []), *self._tags(qube)]
        decisive = entries[:1] if own else entries  # by tags alone, the strictest of them
        profiles = held if held is not None else tuple(each for entry in entries for each in entry.profiles)
        if ALLOWED + name in self._profiles:
            profiles = (*profiles, ALLOWED + name)
        return self._located(
            Member(
                name=name,
                profiles=tuple(dict.fromkeys(profiles)),
                observe=bool(decisive) and all(entry.observe for entry in decisive),
                dns_all=bool(decisive) and all(entry.dns_all for entry in decisive),
                upstream_proxy=self._upstream_proxy(name, entries),
            ),
            [each for each in self._addresses(name, qube) if self._undisputed(name, each)],
        )

    def _upstream_proxy(self, name: str, entries: Iterable[Client]) -> UpstreamProxy | None:
        """Its own, else that of a tag, else everybody's: one that is written anywhere is never done without."""
        given = list(dict.fromkeys(entry.upstream_proxy for entry in entries if entry.upstream_proxy is not None))
        own = self._config.clients.get(name)
        if len(given) > 1 and (own is None or own.upstream_proxy is None):
            told = " and ".join(map(str, given))
            self._notes.append(f'"{name}": its tags have several upstream proxies, {told}: it leaves by the first')
        return given[0] if given else self._config.upstream_proxy

    def _undisputed(self, name: str, address: IPAddress) -> bool:
        """Whether nothing that dom0 tells speaks against it that this client has this address."""
        netvm, owner = self._world.netvm, self._owner.get(address)
        if address in self._shared:
            return False
        if str(address) == name or (owner is not None and owner.name == name):
            return True
        if owner is not None:
            self._notes.append(f'"{name}": {address} is the address of "{owner.name}", as dom0 says: refused')
        elif name in self._qubes and netvm is not None and address in netvm.connected:
            self._notes.append(f'"{name}": {address} is not its address, as dom0 says: refused')
        else:
            return True
        return False

    def _addresses(self, name: str, qube: Qube | None) -> Sequence[IPAddress]:
        return self._given(name) or (qube.addresses if qube is not None and qube.here else ())

    def _given(self, name: str) -> tuple[IPAddress, ...]:
        """The addresses of a listed client that nobody has to tell: those of the file, or its name where dom0 calls it
        by its address.
        """
        own, address = self._config.clients.get(name), parse_address(name)
        return own.addresses if own is not None else (address,) if address is not None else ()

    def _located(self, member: Member, addresses: Iterable[IPAddress]) -> Member:
        """The member at those of the addresses that are its own just now, with their rules."""
        netvm, kept = self._world.netvm, []
        for address in addresses:
            if address in self._taken:
                self._notes.append(f'"{member.name}": {address} is "{self._taken[address]}" already: refused')
            elif netvm is None or (address in netvm.connected and address in netvm.rules):
                self._taken[address] = member.name
                kept.append(address)
        rules = _rules(kept, netvm.rules) if netvm is not None else {}
        return replace(member, addresses=tuple(kept), rules=rules)

    def unlisted(self) -> list[Member]:
        """Who is attached and not listed, where they are to have what sys-firewall would give them. Comes after all
        listed members.
        """
        netvm = self._world.netvm
        if netvm is None or not self._config.unlisted_qubes:
            return []
        names: dict[str, list[IPAddress]] = {}
        attached = netvm.connected & netvm.rules.keys()
        for address in sorted(attached - self._taken.keys() - self._shared, key=str):
            owner = self._owner.get(address)
            if owner is not None and self._is_listed(owner):
                continue
            known = owner is not None and owner.here
            if not known and self._in_doubt(address):
                self._notes.append(
                    f"{address} is attached; it may be a listed qube whose name is not known: refused (tag it in dom0: "
                    "qvm-tags QUBE add proxyfw, or give the listed qubes their addresses)"
                )
                continue
            names.setdefault(owner.name if owner is not None and known else str(address), []).append(address)
        proxy = self._config.upstream_proxy
        return [
            self._located(Member(name=name, exact=True, upstream_proxy=proxy), addresses)
            for name, addresses in names.items()
        ]

    def _is_listed(self, qube: Qube) -> bool:
        """Whether anything says what this qube may do, under its name, a tag or one of its addresses."""
        names = (qube.name, *map(str, qube.addresses))
        return bool(self._tags(qube)) or any(name in self._config.clients or name in self._held for name in names)

    def _in_doubt(self, address: IPAddress) -> bool:
        """Whether an attached address that nobody here is known to have may be a listed qube's.

        It may be where tags are listed, or a client of whom neither dom0 told nor the file gives an address of this
        version.
        """
        return bool(self._config.tags) or any(
            not self._is_told(name) and all(each.version != address.version for each in self._given(name))
            for name in (*self._config.clients, *self._held)
        )

    def _is_told(self, name: str) -> bool:
        """Whether dom0 told all about this listed client."""
        address = parse_address(name)
        return name in self._qubes or (address is not None and address in self._owner)


def _rules(addresses: Sequence[IPAddress], rules: Mapping[IPAddress, RuleSet]) -> dict[int, RuleSet]:
    """By IP version. A flow does not tell which of two addresses it came from."""
    found: dict[int, RuleSet] = {}
    for address in addresses:
        own = rules[address]
        if found.setdefault(address.version, own) != own:
            found[address.version] = RuleSet(broken=f"two IPv{address.version} addresses have different firewall rules")
    return found
