"""Profiles: named, reusable grants, one YAML file each, and the library that resolves their includes."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from graphlib import CycleError, TopologicalSorter
from ipaddress import ip_address, ip_network

from yaml.nodes import MappingNode, Node, SequenceNode

from proxyfw.core.address import IPNetwork
from proxyfw.core.feed import Feed, parse_feeds
from proxyfw.core.hostname import HostnameError, normalise
from proxyfw.core.pattern import PORT_FIX, Form, Index, Pattern, Port, PortError, caution, parse_pattern, parse_port
from proxyfw.core.problem import Problem, Where
from proxyfw.core.yamltext import Document, Text, suggestion

ALLOWED = "allowed/"
"""How the names of those profiles begin that `proxyfw allow` writes: allowed/CLIENT is the client's own."""

_KEYS = ("description", "domains", "networks", "feeds", "include", "private", "temporary")
_UNTIL_FIX = "write a date, a time and its offset, as in 2026-01-31T12:00:00+00:00"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::(.*))?")


@dataclass(frozen=True, slots=True)
class NetworkGrant:
    """One entry of a profile's `networks`. `port` None: every port and every protocol. `until`: when it ends, in epoch
    seconds; None: never.
    """

    network: IPNetwork
    port: Port | None
    text: str
    where: Where
    profile: str
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Temporary:
    """One entry of a profile's `temporary`: a pattern or network, granted up to a moment in epoch seconds."""

    grant: Pattern | NetworkGrant
    until: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What one file grants. `private`: its domains may lead to private addresses; what it includes is not affected.

    `temporary`: what is granted for a while, and not among the others before `at`. `include_where` holds the line of
    each include.
    """

    name: str
    description: str
    domains: tuple[Pattern, ...]
    networks: tuple[NetworkGrant, ...]
    feeds: tuple[Feed, ...]
    temporary: tuple[Temporary, ...]
    include: tuple[str, ...]
    include_where: tuple[Where, ...]
    private: bool
    where: Where

    def at(self, now: float) -> "Profile":
        """The profile as it is at this moment, in epoch seconds: what is granted for a while has come to the others."""
        if not self.temporary:
            return self
        live = [each for each in self.temporary if each.until > now]
        patterns = (each.grant for each in live if isinstance(each.grant, Pattern))
        networks = (replace(each.grant, until=each.until) for each in live if isinstance(each.grant, NetworkGrant))
        return replace(self, domains=(*self.domains, *patterns), networks=(*self.networks, *networks))


def parse_network(text: str, where: Where, profile: str) -> NetworkGrant | Problem:
    """`10.0.0.0/8`, `10.0.0.1:22`, `10.0.0.0/8:123/udp`, `2001:db8::/32`, `[2001:db8::/32]:22`."""
    address, port_text = _split_network(text)
    host, _, length = address.partition("/")
    try:
        network = ip_network(address, strict=False)
        beyond = ip_address(host) != network.network_address
    except ValueError:
        return Problem(where, f'"{text}" is not an address or network', _not_a_network_fix(address))
    if "%" in address:
        return Problem(where, f'"{text}": a zone means nothing here', f'write "{address.partition("%")[0]}"')
    if beyond:
        fix = f'write "{network}", or "{host}" for that one address'
        return Problem(where, f'"{text}": the address has bits beyond /{length}', fix)
    try:
        port = None if port_text is None else parse_port(port_text)
    except PortError as error:
        return Problem(where, f'"{text}": {error}', PORT_FIX)
    return NetworkGrant(network, port, text, where, profile)


def _split_network(text: str) -> tuple[str, str | None]:
    """The address part, and the port part where there is one. Without brackets, two colons are IPv6 without a port."""
    bracketed = _BRACKETED.fullmatch(text)
    if bracketed:
        return bracketed[1], bracketed[2]
    if text.count(":") > 1:
        return text, None
    address, colon, port = text.partition(":")
    return address, port if colon else None


def _not_a_network_fix(address: str) -> str:
    try:
        normalise(address.removeprefix("*.").removeprefix(".").replace("*", "x"))
    except HostnameError:
        return "write an address such as 192.0.2.0/24, 192.0.2.1:22 or [2001:db8::/32]:22"
    return "write it under domains:"


def is_profile_name(text: str) -> bool:
    """Whether a profile may be called this."""
    return bool(_NAME.fullmatch(text))


def parse_profile(name: str, file: str, text: str) -> tuple[Profile | None, list[Problem]]:
    """The profile (None where there is an error), and all errors and warnings. `name`: the file's, without .yaml."""
    if name.startswith(ALLOWED) and not re.search(r"^[\ufeff \t]*[^#\ufeff \t\r\n]", text, re.MULTILINE):
        text = "{}"  # all that was allowed was taken back by hand, and the comments were left
    document = Document(file, text)
    if not name.startswith(ALLOWED) and not is_profile_name(name):
        fix = "rename the file: letters, digits, -, _ and . (a letter or digit first), then .yaml"
        document.error(Where(file), f'"{name}" cannot be the name of a profile', fix)
    fields = document.fields(document.root, _KEYS)
    description = document.text(fields.get("description"))
    includes = document.texts(fields.get("include"))
    profile = Profile(
        name=name,
        description=" ".join(description.value.split()) if description else "",
        domains=_domains(document, fields.get("domains"), name),
        networks=_networks(document, fields.get("networks"), name),
        feeds=parse_feeds(document, fields.get("feeds"), name),
        temporary=_temporary(document, fields.get("temporary"), name),
        include=tuple(include.value for include in includes),
        include_where=tuple(include.where for include in includes),
        private=document.boolean(fields.get("private")) or False,
        where=document.where(document.root),
    )
    if document.failed:
        return None, document.problems
    if not (profile.domains or profile.networks or profile.feeds or profile.include or name.startswith(ALLOWED)):
        document.warn(profile.where, "this profile grants nothing", "add names under domains:, or delete the file")
    return profile, document.problems


def _domains(document: Document, node: Node | None, profile: str) -> tuple[Pattern, ...]:
    patterns: list[Pattern] = []
    first: dict[tuple[Form, str, tuple[Port, ...]], Pattern] = {}
    for text in document.texts(node):
        parsed = parse_pattern(text.value, text.where, profile)
        if isinstance(parsed, Problem):
            document.add(parsed)
            continue
        same = first.setdefault((parsed.form, parsed.name, parsed.ports), parsed)
        if same is not parsed:
            fix = f"remove it: it stands on line {same.where.line}"
            document.warn(text.where, f'"{text.value}" stands twice', fix)
            continue
        patterns.append(parsed)
        doubt = caution(parsed)
        if doubt:
            document.add(doubt)
    _warn_of_missing_apex(document, patterns)
    return tuple(patterns)


def _warn_of_missing_apex(document: Document, patterns: list[Pattern]) -> None:
    index = Index(patterns)
    for pattern in patterns:
        if pattern.form is Form.BELOW and not index.ports_of(pattern.fixed):
            message = f'"{pattern.text}" does not grant "{pattern.name}" itself'
            document.warn(pattern.where, message, f'write "{pattern.text[1:]}" for both')


def _networks(document: Document, node: Node | None, profile: str) -> tuple[NetworkGrant, ...]:
    return tuple(grant for text in document.texts(node) if (grant := _network(document, text, profile)))


def _network(document: Document, text: Text, profile: str) -> NetworkGrant | None:
    parsed = parse_network(text.value, text.where, profile)
    if isinstance(parsed, Problem):
        document.add(parsed)
        return None
    if parsed.network.prefixlen == 0:
        document.warn(text.where, f'"{text.value}" grants every address', "write only the networks that are needed")
    return parsed


def _temporary(document: Document, node: Node | None, profile: str) -> tuple[Temporary, ...]:
    if node is None:
        return ()
    if not isinstance(node, SequenceNode):
        document.error(document.where(node), "a list is wanted", "write one entry with grant: and until: for each")
        return ()
    return tuple(entry for item in node.value if (entry := _temporary_entry(document, item, profile)))


def _temporary_entry(document: Document, node: Node, profile: str) -> Temporary | None:
    fields = document.fields(node, ("grant", "until"))
    if isinstance(node, MappingNode) and len(node.value) < 2:
        document.error(document.where(node), "grant: and until: are wanted", "write both")
    grant, until = document.text(fields.get("grant")), document.text(fields.get("until"))
    if grant is None or until is None:
        return None
    parsed = parse_grant(grant.value, grant.where, profile)
    moment = _moment(until.value)
    if moment is None:
        document.error(until.where, f'until "{until.value}" is no moment', _UNTIL_FIX)
    if isinstance(parsed, Problem):
        document.add(parsed)
    return None if isinstance(parsed, Problem) or moment is None else Temporary(parsed, moment)


def parse_grant(text: str, where: Where, profile: str) -> Pattern | NetworkGrant | Problem:
    """A network where an address is written, else a pattern."""
    network = parse_network(text, where, profile)
    if isinstance(network, NetworkGrant) or _is_address(_split_network(text)[0].partition("/")[0]):
        return network
    return parse_pattern(text, where, profile)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _moment(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
        return moment.timestamp() if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class Library:
    """All profiles by name, their includes checked. Made by `link`."""

    profiles: Mapping[str, Profile]

    def expand(self, name: str) -> tuple[Profile, ...]:
        """The profile and all that it includes, each once, in the order written.

        Fails closed: a name that does not exist expands to nothing. A cycle ends where it began.
        """
        found: dict[str, Profile] = {}
        stack = [name]
        while stack:
            profile = self.profiles.get(stack.pop())
            if profile and profile.name not in found:
                found[profile.name] = profile
                stack.extend(reversed(profile.include))
        return tuple(found.values())


def link(profiles: Mapping[str, Profile], broken: Collection[str] = ()) -> tuple[Library, list[Problem]]:
    """The library, and the unknown includes and include cycles, each an error at the line of the include.

    `broken`: names of profiles that exist, and have errors that were told already.
    """
    problems = []
    for profile in profiles.values():
        for include, where in zip(profile.include, profile.include_where, strict=True):
            if include.startswith(ALLOWED):
                message = f'profile "{profile.name}" includes "{include}", which is one client\'s own'
                problems.append(Problem(where, message, "write a profile of its own for what several clients have"))
            elif include not in profiles and include not in broken:
                message = f'profile "{profile.name}" includes "{include}", which does not exist'
                problems.append(Problem(where, message, suggestion(include, profiles)))
    return Library(profiles), problems + _cycles(profiles)


def _cycles(profiles: Mapping[str, Profile]) -> list[Problem]:
    graph = {
        name: [include for include in profile.include if include in profiles] for name, profile in profiles.items()
    }
    problems = []
    while cycle := _find_cycle(graph):
        last, first = cycle[-2], cycle[-1]
        graph[last] = [include for include in graph[last] if include != first]
        where = profiles[last].include_where[profiles[last].include.index(first)]
        fix = f'remove "{first}" from the includes of "{last}"'
        problems.append(Problem(where, f"the includes run in a circle: {' -> '.join(cycle)}", fix))
    return problems


def _find_cycle(graph: Mapping[str, list[str]]) -> list[str]:
    """Names, each including the next, the first again as the last; empty: no cycle is left."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1][::-1]
        return cycle
    return []
