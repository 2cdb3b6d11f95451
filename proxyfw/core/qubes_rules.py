"""Qubes firewall rules: the texts that dom0 writes for a qube, read, and the rule that a flow meets first.

Both notations: that of QubesDB (`action=accept dst4=1.2.3.4/32 proto=tcp dstports=443-443`), and that of
admin.vm.firewall.Get, which adds `expire=` and `comment=` (Qubes OS, core-admin, qubes/firewall.py). The keys may stand
in any order. A host name is kept as a name: it is compared with the one that a flow is known by.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from proxyfw.core.address import IPAddress, IPNetwork
from proxyfw.core.hostname import Hostname, HostnameError, normalise

DNS_PORT = 53
QUIC = ("udp", 443)

_RULE = re.compile(r"[0-9]{4}")
_COMMENT = re.compile(r"(?:^|\s)comment=.*", re.DOTALL)
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_NUMBER = re.compile(r"[0-9]{1,12}")
_KEYS = frozenset({"action", "dst4", "dst6", "dsthost", "proto", "specialtarget", "dstports", "icmptype", "expire"})
_SHOWN = 120  # characters of a text that could not be read


class Action(StrEnum):
    """What a rule does with what it matches."""

    ACCEPT = "accept"
    DROP = "drop"


class Attempt(NamedTuple):
    """What rules look at. `transport`: tcp, udp, icmp. `names`: those that the flow is known by, or its pins.

    `destination` None: only names are asked about. `icmp_type` None: not ICMP, or not known.
    """

    destination: IPAddress | None
    transport: str
    port: int
    names: Collection[Hostname] = ()
    icmp_type: int | None = None


class RuleError(ValueError):
    """The text is not a rule; the message says why."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. What is None is not asked for. `ports`: the first and the last. `dns`: the resolvers that clients use.

    `number` and `text` are for people. `expires`: seconds since the epoch.
    """

    action: Action
    network: IPNetwork | None = None
    host: Hostname | None = None
    dns: bool = False
    proto: str | None = None
    ports: tuple[int, int] | None = None
    icmp_type: int | None = None
    number: str = ""
    text: str = ""
    expires: float | None = None

    @property
    def bare(self) -> bool:
        """Whether it matches everything: the closing rule of a list."""
        return not self.by_address and self.host is None and self.transports() is None

    @property
    def by_address(self) -> bool:
        """Whether it asks for the destination's address."""
        return self.network is not None or self.dns

    @property
    def single(self) -> IPAddress | None:
        """The one address that it names; None where it names none, or a network that merely includes it."""
        network = self.network
        return network.network_address if network is not None and network.prefixlen == network.max_prefixlen else None

    def transports(self) -> frozenset[str] | None:
        """The protocols that it matches; None: every one. Ports are of TCP and UDP, types are of ICMP."""
        if self.proto is not None:
            return frozenset({self.proto})
        if self.icmp_type is not None:
            return frozenset({"icmp"})
        return frozenset({"tcp", "udp"}) if self.ports is not None or self.dns else None

    def covers(self, transport: str, port: int) -> bool:
        """Whether it can match this protocol and port, whatever the destination."""
        transports = self.transports()
        if transports is not None and transport not in transports:
            return False
        if (transport, port) == QUIC and self.host is not None and self.proto is None and self.action is Action.ACCEPT:
            return False  # its name is not read yet, and the client can use TCP; `proto=udp` says that it is meant
        if self.dns:  # with another port than 53 it never matches, as in the stock agent
            return port == DNS_PORT and self.ports in (None, (DNS_PORT, DNS_PORT))
        return self.ports is None or self.ports[0] <= port <= self.ports[1]

    def matches(self, attempt: Attempt, resolvers: Collection[IPAddress]) -> bool:
        """Whether it matches. `resolvers`: what `specialtarget=dns` stands for."""
        if not self.covers(attempt.transport, attempt.port):
            return False
        if self.icmp_type is not None and self.icmp_type != attempt.icmp_type:
            return False
        if self.host is not None:
            return self.host in attempt.names
        if not self.by_address:
            return True
        destination = attempt.destination
        if destination is None or (self.dns and destination not in resolvers):
            return False
        network = self.network
        return network is None or (network.version == destination.version and destination in network)

    def __str__(self) -> str:
        return f"{self.number}: {self.text}"


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The rules of one client's address, up to the bare one that closes the list.

    `closing`: what becomes of what no rule matches, by the bare rule or the policy. `broken`: why everything is dropped
    ("": the rules could be read). `skipped`: accept rules that could not be read, and why.
    """

    rules: tuple[Rule, ...] = ()
    closing: Action = Action.DROP
    broken: str = ""
    skipped: tuple[str, ...] = ()

    def find(self, attempt: Attempt, resolvers: Collection[IPAddress]) -> Rule | None:
        """The first rule that matches."""
        return next((rule for rule in self.rules if rule.matches(attempt, resolvers)), None)

    def of_name(self, name: Hostname) -> Rule | None:
        """The first rule that says whether any connection to this name can be permitted by it: a query's rule.

        A drop of some ports only leaves the others open.
        """
        for rule in self.rules:
            if rule.host == name and (rule.action is Action.ACCEPT or rule.transports() is None):
                return rule
        return None

    def hosts(self) -> tuple[Hostname, ...]:
        """The names that rules ask for, each once, in order."""
        return tuple(dict.fromkeys(rule.host for rule in self.rules if rule.host is not None))

    def named(self) -> tuple[IPAddress, ...]:
        """The single addresses that rules accept."""
        found = (rule.single for rule in self.rules if rule.action is Action.ACCEPT)
        return tuple(dict.fromkeys(address for address in found if address is not None))


def parse_rule(text: str, number: str = "") -> Rule:
    """One rule in either notation. Raises RuleError."""
    bare_text = _COMMENT.sub("", text, count=1).strip()
    fields: dict[str, str] = {}
    for word in bare_text.split():
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise RuleError(f'"{_cut(word)}" is not key=value')
        if key not in _KEYS:
            raise RuleError(f'the key "{_cut(key)}" is not known')
        if key in fields:
            raise RuleError(f'"{key}" stands twice')
        fields[key] = value
    if fields.get("action") not in tuple(Action):
        raise RuleError("there is no action=accept or action=drop")
    if len(fields.keys() & {"dst4", "dst6", "dsthost"}) > 1:
        raise RuleError("there are two destinations")
    network, host = _destination(fields)
    rule = Rule(
        action=Action(fields["action"]),
        network=network,
        host=host,
        dns=_choice(fields, "specialtarget", ("dns",)) is not None,
        proto=_choice(fields, "proto", ("tcp", "udp", "icmp")),
        ports=_ports(fields.get("dstports")),
        icmp_type=_number(fields, "icmptype", 255),
        number=number,
        text=bare_text,
        expires=_number(fields, "expire", 10**12),
    )
    if rule.ports is not None and (rule.proto == "icmp" or rule.icmp_type is not None):
        raise RuleError("ports are of TCP and UDP, not of ICMP")
    if rule.icmp_type is not None and rule.proto not in (None, "icmp"):
        raise RuleError(f"{rule.proto} has no icmptype")
    if rule.dns and (rule.proto == "icmp" or rule.icmp_type is not None or rule.host is not None):
        raise RuleError("specialtarget=dns goes with TCP and UDP, and without a host name")
    return rule


def parse_rules(entries: Mapping[str, str], now: float = 0.0) -> RuleSet:
    """The rules of one address, as QubesDB has them: `policy`, and four-digit numbers with gaps.

    Fails closed: an accept that cannot be read is left out, anything else that cannot be read drops everything.
    """
    policy = entries.get("policy")
    if policy not in tuple(Action):
        return RuleSet(broken="there is no policy" if policy is None else f'the policy is "{_cut(policy)}"')
    rules: list[Rule] = []
    skipped: list[str] = []
    for number in sorted(entries.keys() - {"policy"}):
        text = entries[number]
        if not _RULE.fullmatch(number):
            return RuleSet(broken=f'"{_cut(number)}" is not the number of a rule')
        try:
            rule = parse_rule(text, number)
        except RuleError as error:
            if not _surely_accept(text):
                return RuleSet(broken=f'rule {number} cannot be read ("{_cut(text)}"): {error}')
            skipped.append(f'rule {number} is left out ("{_cut(text)}"): {error}')
            continue
        if rule.expires is not None and rule.expires <= now:
            continue
        if rule.bare:
            return RuleSet(tuple(rules), rule.action, "", tuple(skipped))
        rules.append(rule)
    return RuleSet(tuple(rules), Action(policy), "", tuple(skipped))


def _surely_accept(text: str) -> bool:
    words = _COMMENT.sub("", text, count=1).split()
    return [word for word in words if word.startswith("action")] == ["action=accept"]


def _destination(fields: Mapping[str, str]) -> tuple[IPNetwork | None, Hostname | None]:
    for key, version in (("dst4", 4), ("dst6", 6)):
        if key in fields:
            return _network(fields[key], version), None
    if "dsthost" not in fields:
        return None, None
    try:
        if "%" not in fields["dsthost"]:  # nft takes no zone, and refuses the rules of everybody with it
            return ip_network(ip_address(fields["dsthost"])), None
    except ValueError:
        pass
    try:
        return None, normalise(fields["dsthost"])
    except HostnameError as error:
        raise RuleError(f'"{_cut(fields["dsthost"])}": {error}') from None


def _network(text: str, version: int) -> IPNetwork:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise RuleError(f'"{_cut(text)}" is not an address or network') from None
    _, slash, length = text.partition("/")
    if network.version != version or "%" in text or (slash and not length.isdigit()):
        raise RuleError(f'"{_cut(text)}" is not an IPv{version} address or network')
    return network


def _choice(fields: Mapping[str, str], key: str, choices: tuple[str, ...]) -> str | None:
    value = fields.get(key)
    if value is not None and value not in choices:
        raise RuleError(f'{key} "{_cut(value)}" is none of {", ".join(choices)}')
    return value


def _ports(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = _PORTS.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not first <= last <= 65535:
        raise RuleError(f'"{_cut(text)}" is not a port or a range of ports')
    return first, last


def _number(fields: Mapping[str, str], key: str, most: int) -> int | None:
    text = fields.get(key)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text) or int(text) > most:
        raise RuleError(f'{key} "{_cut(text)}" is not a number up to {most}')
    return int(text)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
