"""Who the clients are just now: the configuration, put together with what Qubes OS knows of them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from proxyfw.core.address import IPAddress
from proxyfw.core.config import Client, Config
from proxyfw.core.netvm import Netvm, Qube, World
from proxyfw.core.qubes_rules import RuleSet


@dataclass(frozen=True, slots=True)
class Member:
    """A client with the addresses that it has just now; none: it stays refused.

    `rules`: its Qubes firewall rules, by IP version; none outside Qubes OS. `exact`: it is not listed, and gets exactly
    what those rules say (`unlisted: qubes`).
    """

    name: str
    profiles: tuple[str, ...] = ()
    observe: bool = False
    dns_all: bool = False
    addresses: tuple[IPAddress, ...] = ()
    rules: Mapping[int, RuleSet] = field(default_factory=dict)
    exact: bool = False


def members(config: Config, profiles: Collection[str], world: World) -> tuple[list[Member], list[str]]:
    """The clients, in the order of the configuration, and what a person should know of them.

    `profiles`: the names of those that exist. Fails closed: an address that is in doubt is nobody's.
    """
    notes: list[str] = []
    found = _Finder(config, world, notes)
    listed = [found.member(name, _held(name, world.netvm, profiles, notes)) for name in found.names()]
    return [*listed, *found.unlisted(listed)], notes


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
    def __init__(self, config: Config, world: World, notes: list[str]) -> None:
        self._config, self._world, self._notes = config, world, notes
        self._qubes = {qube.name: qube for qube in world.attached.qubes} if world.attached else {}
        owners: dict[IPAddress, list[str]] = {}
        for qube in self._qubes.values():
            for address in qube.addresses:
                owners.setdefault(address, []).append(qube.name)
        self._owner = {address: names[0] for address, names in owners.items() if len(names) == 1}
        self._shared = {address for address, names in owners.items() if len(names) > 1}
        for address in sorted(self._shared, key=str):
            notes.append(f"{address} is the address of {' and '.join(owners[address])}, as dom0 says: refused")
        self._taken: dict[IPAddress, str] = {}

    def names(self) -> list[str]:
        """Those listed by name, those that have a listed tag, and those that dom0 holds profiles for."""
        tagged = [name for name, qube in self._qubes.items() if self._tags(qube)]
        held = self._world.netvm.profiles if self._world.netvm else ()
        return list(dict.fromkeys([*self._config.clients, *tagged, *held]))

    def _tags(self, qube: Qube | None) -> list[Client]:
        return [entry for tag, entry in self._config.tags.items() if qube is not None and tag in qube.tags]

    def member(self, name: str, held: tuple[str, ...] | None) -> Member:
        """A listed client. What dom0 holds stands in place of what the file says of its profiles."""
        own, qube = self._config.clients.get(name), self._qubes.get(name)
        entries = [*([own] if own else []), *self._tags(qube)]
        decisive = entries[:1] if own else entries  # by tags alone, the strictest of them
        profiles = held if held is not None else tuple(each for entry in entries for each in entry.profiles)
        return self._located(
            Member(
                name=name,
                profiles=tuple(dict.fromkeys(profiles)),
                observe=bool(decisive) and all(entry.observe for entry in decisive),
                dns_all=bool(decisive) and all(entry.dns_all for entry in decisive),
            ),
            [each for each in self._addresses(name, own, qube) if self._undisputed(name, each)],
        )

    def _undisputed(self, name: str, address: IPAddress) -> bool:
        """Whether nothing that dom0 tells speaks against it that this client has this address."""
        netvm, attached, owner = self._world.netvm, self._world.attached, self._owner.get(address)
        if address in self._shared:
            return False
        if str(address) == name or owner == name:
            return True
        here = netvm is not None and address in netvm.connected
        if owner is not None:
            self._notes.append(f'"{name}": {address} is the address of "{owner}", as dom0 says: refused')
        elif here and attached is not None and name in attached.visible:
            self._notes.append(f'"{name}": {address} is not its address, as dom0 says: refused')
        else:
            return True
        return False

    def _addresses(self, name: str, own: Client | None, qube: Qube | None) -> Sequence[IPAddress]:
        if own is not None and own.addresses:
            return own.addresses
        if qube is not None:
            return qube.addresses
        try:
            return (ip_address(name),)  # dom0 may call a client by its address, which needs no Admin API
        except ValueError:
            return ()

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

    def unlisted(self, listed: Iterable[Member]) -> list[Member]:
        """Who is attached and not listed, where they are to have what sys-firewall would give them."""
        netvm = self._world.netvm
        if netvm is None or not self._config.unlisted_qubes:
            return []
        names: dict[str, list[IPAddress]] = {}
        attached = netvm.connected & netvm.rules.keys()
        for address in sorted(attached - self._taken.keys() - self._shared, key=str):
            name = self._owner.get(address)
            if name is None and self._in_doubt():
                self._notes.append(f"{address} is attached; it may be a listed qube whose name is not known: refused")
                continue
            names.setdefault(name or str(address), []).append(address)
        known = {member.name for member in listed}
        return [
            self._located(Member(name=name, exact=True), addresses)
            for name, addresses in names.items()
            if name not in known
        ]

    def _in_doubt(self) -> bool:
        """Whether an attached qube without a known name may be a listed one."""
        visible = self._world.attached.visible if self._world.attached else frozenset()
        unseen = (client for client in self._config.clients.values() if client.name not in visible)
        return bool(self._config.tags) or any(not client.addresses for client in unseen)


def _rules(addresses: Sequence[IPAddress], rules: Mapping[IPAddress, RuleSet]) -> dict[int, RuleSet]:
    """By IP version. A flow does not tell which of two addresses it came from."""
    found: dict[int, RuleSet] = {}
    for address in addresses:
        own = rules[address]
        if found.setdefault(address.version, own) != own:
            found[address.version] = RuleSet(broken=f"two IPv{address.version} addresses have different firewall rules")
    return found
