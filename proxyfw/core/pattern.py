"""Patterns: the entries of a profile's `domains`, and the lookup of a name among all of a client's patterns.

Forms: `x` (that name), `*.x` (any name below x, at any depth, not x), `.x` (both), and `r*.x` (* inside a label: any
characters of that one label, zero or more). `:22` or `:123/udp` at the end names another port.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from ipaddress import ip_network
from typing import TYPE_CHECKING, Literal, cast

from proxyfw.core.hostname import Hostname, HostnameError, normalise
from proxyfw.core.problem import Problem, Where

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList

Transport = Literal["tcp", "udp"]

_PORT = re.compile(r"([1-9][0-9]{0,4})(?:/(tcp|udp))?")
_OTHER_DOTS = str.maketrans("。．｡", "...")  # UTS 46 reads these as dots


class PortError(ValueError):
    """The text is not a port; the message says why."""


@dataclass(frozen=True, slots=True)
class Port:
    """A destination port, 1 to 65535."""

    transport: Transport
    number: int

    def __str__(self) -> str:
        return str(self.number) if self.transport == "tcp" else f"{self.number}/{self.transport}"


DEFAULT_PORTS = (Port("tcp", 80), Port("tcp", 443), Port("udp", 443))
"""What a pattern without a port grants."""


def parse_port(text: str) -> Port:
    """`22`, `22/tcp` or `123/udp`. Raises PortError."""
    match = _PORT.fullmatch(text)
    if not match or int(match[1]) > 65535:
        raise PortError(f'"{text}" is not a port')
    return Port(cast(Transport, match[2] or "tcp"), int(match[1]))


PORT_FIX = "write a port from 1 to 65535, as in :22 or :123/udp"


class Form(Enum):
    """Which names a pattern grants."""

    EXACT = "x"
    BELOW = "*.x"
    NAME_AND_BELOW = ".x"
    IN_LABEL = "r*.x"


@dataclass(frozen=True, slots=True)
class Pattern:
    """One entry of a profile's `domains`.

    `text` is what the user wrote. `name` is normalised: x without `*.` or `.` in front, and for IN_LABEL the whole
    pattern with its stars.
    """

    text: str
    form: Form
    name: str
    ports: tuple[Port, ...]
    where: Where
    profile: str

    @property
    def names_port(self) -> bool:
        """Whether a port was written: then a pin grants it, without SNI or Host (DESIGN section 2)."""
        return self.ports is not DEFAULT_PORTS

    @property
    def fixed(self) -> Hostname:
        """The part of the name without a star, right of the last one."""
        if self.form is Form.IN_LABEL:
            return Hostname(self.name.rpartition("*")[2].partition(".")[2])
        return Hostname(self.name)


class _Refused(Exception):
    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


def parse_pattern(text: str, where: Where, profile: str) -> Pattern | Problem:
    """The pattern, or the error that says what to write instead. See also `caution`."""
    try:
        host, ports = _split(text)
        form, name = _form(host)
        pattern = Pattern(text, form, name, ports, where, profile)
        _refuse_public_suffix(pattern)
    except _Refused as refused:
        return Problem(where, f'"{text}": {refused}', refused.fix)
    except HostnameError as error:
        return Problem(
            where, f'"{text}": {error}', "write a name such as www.example.com; addresses go under networks:"
        )
    except PortError as error:
        return Problem(where, f'"{text}": {error}', PORT_FIX)
    return pattern


def caution(pattern: Pattern) -> Problem | None:
    """A warning where a valid pattern grants names that strangers can have."""
    if pattern.form is Form.EXACT:
        return None
    suffixes, name = _all_suffixes(), pattern.fixed
    if suffixes.is_public(name):
        message, fix = f'anyone can have a name under "{name}"', f"write the names that are needed, as in some.{name}"
    elif "." not in name:
        message, fix = f'this grants every name that ends in ".{name}"', f"write more of the name, as in *.some.{name}"
    else:
        return None
    return Problem(pattern.where, f'"{pattern.text}": {message}', fix, warning=True)


def _split(text: str) -> tuple[str, tuple[Port, ...]]:
    """The host part as written, and the ports. Raises _Refused, PortError."""
    _, scheme, rest = text.partition("://")
    if scheme:
        host = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
        raise _Refused("a URL", f'write the host in it: "{host}"' if host else "write a host name")
    if _is_address(text):
        raise _Refused("an address, not a name", "write it under networks:")
    host, colon, port = text.partition(":")
    if "/" in host:
        raise _Refused("a path is not judged, only the name", f'write "{host.partition("/")[0]}"')
    return host, (parse_port(port),) if colon else DEFAULT_PORTS


def _is_address(text: str) -> bool:
    if text.startswith("["):
        return True
    for part in (text, text.partition(":")[0]):
        try:
            ip_network(part, strict=False)
        except ValueError:
            continue
        return True
    return False


def _form(host: str) -> tuple[Form, str]:
    """The form, and the normalised name. Raises _Refused, HostnameError."""
    host = host.translate(_OTHER_DOTS)
    if host and not host.strip("*."):
        raise _Refused("this would grant every name", "write the names that are needed, as in *.example.com")
    if host.startswith("*."):
        form, rest = Form.BELOW, host[2:]
    elif host.startswith("."):
        form, rest = Form.NAME_AND_BELOW, host[1:]
    else:
        form, rest = Form.EXACT, host
    if "*" not in rest:
        return form, normalise(rest)
    if form is Form.NAME_AND_BELOW:
        raise _Refused("a dot in front does not go with * in a label", f'write both "{rest}" and "*.{rest}"')
    return Form.IN_LABEL, ("*." if form is Form.BELOW else "") + _in_label_name(rest)


def _in_label_name(text: str) -> str:
    written = text.split(".")
    if not all(label.isascii() for label in written if "*" in label):
        raise _Refused("a label with * in it must be ASCII", "write * in place of the whole label")
    # A letter stands in for each star, so that everything else is normalised and measured as in any name.
    fixed = normalise(text.replace("*", "x")).split(".")
    name = ".".join(old.lower() if "*" in old else new for old, new in zip(written, fixed, strict=False))
    if "*" in name.rpartition(".")[2]:
        raise _Refused("no fixed name right of the *", "write the domain in full, as in r*.example.com")
    return name


def _refuse_public_suffix(pattern: Pattern) -> None:
    name = pattern.fixed
    if not _icann_suffixes().is_public(name):
        return
    what = "is" if pattern.form is Form.EXACT else "grants everything under"
    raise _Refused(f'it {what} the public suffix "{name}"', f'write more of the name, as in "example.{name}"')


# Imported where it is needed: whoever only asks an Index does not pay for the lists.
@cache
def _icann_suffixes() -> "PublicSuffixList":
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList(accept_unknown=False, only_icann=True)


@cache
def _all_suffixes() -> "PublicSuffixList":
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList(accept_unknown=False)


class Index:
    """Finds the pattern that grants a name on a port.

    An exact name goes before `.x` and `*.x` (the longest x first), and those before a `*` inside a label; among equals
    the first given. The cost grows with the labels of the name, and not with the number of patterns, save for those
    with a `*` inside a label right before the same fixed name.
    """

    __slots__ = ("_anywhere", "_tables")

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        by_port: dict[Port, list[Pattern]] = {}
        everything = tuple(patterns)
        self._anywhere = _Table(DEFAULT_PORTS[0], everything)  # on whatever port: most names are granted on none
        for pattern in everything:
            for port in pattern.ports:
                by_port.setdefault(port, []).append(pattern)
        self._tables: dict[tuple[str, int], _Table] = {
            (port.transport, port.number): _Table(port, found) for port, found in by_port.items()
        }

    def find(self, name: Hostname, transport: str, port: int) -> Pattern | None:
        """The pattern that grants `name` on this port."""
        table = self._tables.get((transport, port))
        return table.find(name) if table else None

    def find_all(self, name: Hostname) -> list[Pattern]:
        """The patterns that grant `name`, one for each port on which it is granted."""
        if self._anywhere.find(name) is None:
            return []
        return [found for table in self._tables.values() if (found := table.find(name))]

    def covers(self, transport: str, port: int) -> bool:
        """Whether some name is granted on this port."""
        return (transport, port) in self._tables

    def ports(self) -> list[Port]:
        """Every port on which some name is granted."""
        return [table.port for table in self._tables.values()]

    def ports_of(self, name: Hostname) -> tuple[Port, ...]:
        """The ports on which `name` is granted; empty: it is not granted at all."""
        return tuple(table.port for table in self._tables.values() if table.find(name))


class _Table:
    """The patterns of one port."""

    __slots__ = ("below", "exact", "in_label", "port")

    def __init__(self, port: Port, patterns: Sequence[Pattern]) -> None:
        self.port = port
        self.exact: dict[str, Pattern] = {}
        self.below: dict[str, Pattern] = {}
        self.in_label: dict[str, list[tuple[re.Pattern[str], Pattern]]] = {}
        for pattern in patterns:
            if pattern.form is Form.EXACT:
                self.exact.setdefault(pattern.name, pattern)
            elif pattern.form is Form.IN_LABEL:
                self.in_label.setdefault(pattern.fixed, []).append((_expression(pattern.name), pattern))
            else:
                self.below.setdefault(pattern.name, pattern)
        for pattern in patterns:  # after every EXACT, which goes first
            if pattern.form is Form.NAME_AND_BELOW:
                self.exact.setdefault(pattern.name, pattern)

    def find(self, name: str) -> Pattern | None:
        found = self.exact.get(name)
        if found is not None:
            return found
        below = self.below
        dot = name.find(".")
        while dot >= 0:
            found = below.get(name[dot + 1 :])
            if found is not None:
                return found
            dot = name.find(".", dot + 1)
        return self._find_in_label(name) if self.in_label else None

    def _find_in_label(self, name: str) -> Pattern | None:
        dot = name.find(".")
        while dot >= 0:
            for expression, pattern in self.in_label.get(name[dot + 1 :], ()):
                if expression.fullmatch(name):
                    return pattern
            dot = name.find(".", dot + 1)
        return None


def _expression(name: str) -> re.Pattern[str]:
    below = name.startswith("*.")
    labels = name.removeprefix("*.").split(".")
    return re.compile((r".+\." if below else "") + r"\.".join(map(_label_expression, labels)))


def _label_expression(label: str) -> str:
    # Clients choose the names: atomic groups keep a label of many stars from backtracking without end.
    first, *rest = label.split("*")
    if not rest:
        return re.escape(first)
    *middle, last = rest
    atoms = "".join(f"(?>[^.]*?{re.escape(piece)})" for piece in middle if piece)
    return f"{re.escape(first)}{atoms}[^.]*{re.escape(last)}"
