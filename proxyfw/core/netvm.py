"""What Qubes OS knows of this netvm and its clients: the entries of QubesDB and the answers of the Admin API, read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from proxyfw.core.address import IPAddress
from proxyfw.core.config import is_qube_name, parse_address
from proxyfw.core.qubes_rules import RuleSet, parse_rules

RULES = "/qubes-firewall/"
DOM0_PROFILES = "/vm-config/proxyfw-"
"""Where dom0 holds the profiles of a client: `qvm-features NETVM vm-config.proxyfw-CLIENT "github pypi"`."""

_VISIBLE = "visible-ip"


@dataclass(frozen=True, slots=True)
class Qube:
    """A qube, as the Admin API tells. `here`: its netvm is this one, for all that is known just now."""

    name: str
    addresses: tuple[IPAddress, ...]
    tags: frozenset[str]
    here: bool


@dataclass(frozen=True, slots=True)
class Attached:
    """The `qubes` of which the Admin API answered all that we ask, here or not. Of any other, nothing is known."""

    qubes: tuple[Qube, ...]

    @property
    def names(self) -> frozenset[str]:
        """Theirs."""
        return frozenset(qube.name for qube in self.qubes)


@dataclass(frozen=True, slots=True)
class Netvm:
    """What QubesDB says. An address that is not in `connected` belongs to nobody here, whatever rules it has.

    `upstream`: the resolvers of this netvm. `client_dns`: those that its clients are told (10.139.1.1 and .2).
    `profiles`: by client, a qube's name or an address, what dom0 holds. `problems`: what could not be read, for people.
    """

    name: str = ""
    rules: Mapping[IPAddress, RuleSet] = field(default_factory=dict)
    connected: frozenset[IPAddress] = frozenset()
    upstream: tuple[IPAddress, ...] = ()
    client_dns: tuple[IPAddress, ...] = ()
    profiles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class World:
    """Both together. None: not on Qubes OS, or not (yet) told."""

    netvm: Netvm | None = None
    attached: Attached | None = None


def read_netvm(entries: Mapping[str, bytes], now: float = 0.0) -> Netvm:
    """Reads a snapshot of QubesDB. `now`: seconds since the epoch, for rules that expire.

    Fails closed: what cannot be read is not connected, or drops everything.
    """
    text = {path: value.decode("utf-8", "replace") for path, value in entries.items()}
    problems: list[str] = []
    visible = _addresses(text.get("/connected-ips", ""), problems) | _addresses(
        text.get("/connected-ips6", ""), problems
    )
    by_address: dict[IPAddress, dict[str, str]] = {}
    connected = set(visible)
    for path, value in text.items():
        if path.startswith(RULES):
            owner, _, key = path.removeprefix(RULES).partition("/")
            address = parse_address(owner)
            if address is None:
                problems.append(f"{path}: this is not the path of an address")
            else:
                rules = by_address.setdefault(address, {})
                if key:
                    rules[key] = value
        elif path.startswith("/mapped-ip/") and path.endswith(f"/{_VISIBLE}"):
            # A qube that is shown another address: it is connected by that one, and comes from its real one.
            real, shown = parse_address(path.split("/")[2]), parse_address(value)
            if real is not None and shown in visible:
                connected.add(real)
    read = {address: parse_rules(rules, now) for address, rules in by_address.items()}
    for address in sorted(read, key=str):
        if address in connected:
            found = read[address]
            problems += [f"firewall rules of {address}: {said}" for said in (*found.skipped, found.broken) if said]
    return Netvm(
        name=text.get("/name", ""),
        rules=read,
        connected=frozenset(connected),
        upstream=_resolvers(text, "/qubes-"),
        client_dns=_resolvers(text, "/qubes-netvm-"),
        profiles=_profiles(text, problems),
        problems=tuple(dict.fromkeys(problems)),
    )


def world_as_data(entries: Mapping[str, bytes], attached: Attached | None) -> dict[str, Any]:
    """What the service knows, for a command that asks it: JSON's types."""
    data: dict[str, Any] = {"qubesdb": {path: value.decode("latin-1") for path, value in entries.items()}}
    if attached is not None:
        data["qubes"] = [[q.name, [str(a) for a in q.addresses], sorted(q.tags), q.here] for q in attached.qubes]
    return data


def world_from_data(data: Mapping[str, Any], now: float) -> World:
    """The same, read by the command. Raises KeyError, TypeError, ValueError where the data is something else."""
    attached = None
    if "qubes" in data:
        attached = Attached(
            tuple(
                Qube(name, tuple(map(ip_address, addresses)), frozenset(tags), here)
                for name, addresses, tags, here in data["qubes"]
            )
        )
    return World(read_netvm({path: text.encode("latin-1") for path, text in data["qubesdb"].items()}, now), attached)


def _profiles(text: Mapping[str, str], problems: list[str]) -> dict[str, tuple[str, ...]]:
    """What dom0 holds, by client. A name goes into the ruleset, so it must be one."""
    found = {}
    for path, value in text.items():
        if path.startswith(DOM0_PROFILES):
            name = path.removeprefix(DOM0_PROFILES)
            if is_qube_name(name) or str(parse_address(name)) == name:
                found[name] = tuple(value.split())
            else:
                problems.append(f'{path}: "{name}" is neither the name of a qube nor an address at its shortest')
    return found


def _resolvers(text: Mapping[str, str], prefix: str) -> tuple[IPAddress, ...]:
    found = (parse_address(text.get(f"{prefix}{which}-dns", "")) for which in ("primary", "secondary"))
    return tuple(dict.fromkeys(address for address in found if address is not None))


def _addresses(text: str, problems: list[str]) -> set[IPAddress]:
    found = set()
    for word in text.split():
        address = parse_address(word)
        if address is None:
            problems.append(f'connected addresses: "{word[:60]}" is not an address')
        else:
            found.add(address)
    return found
