"""The part of the nftables language that `ruleset.render` writes, read and carried out on one packet.

It is far from all of nft(8), on purpose: a line that it does not know raises, so that nothing is judged by a guess.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import TypeVar

from proxyfw.core.address import IPAddress

# Chains and sets of the static part (iptables/proxyfw.nft): where a packet that goes to one of these ends is known.
ENDS = frozenset(
    {
        "forward-it",
        "forward-within",
        "to-proxy",
        "to-relay",
        "pinned4",
        "pinned6",
        "hosted4",
        "hosted6",
        "refuse-no-name",
        "refuse-internal",
        "refuse-qubes",
        "refuse-unsupported",
        "observe-no-name",
    }
)
SETS = ("clients4", "clients6", "pins4", "pins6", "used4", "used6")

_TABLE = "inet proxyfw"
_PORTS = re.compile(r"[0-9]+(?:-[0-9]+)?")
_TIMEOUT = re.compile(r" timeout [0-9]+s$")
_ICMP = {4: "icmp", 6: "ipv6-icmp"}
Value = TypeVar("Value")


class UnknownSyntax(Exception):
    """The text has something that the model does not know."""


@dataclass(frozen=True)
class Packet:
    """One packet. `protocol`: tcp, udp, icmp (of its IP version) or other."""

    source: IPAddress
    destination: IPAddress
    protocol: str
    port: int = 0
    icmp_type: int | None = None

    @property
    def version(self) -> int:
        """Of IP."""
        return self.destination.version

    @property
    def l4proto(self) -> str:
        """As nft calls it."""
        return {"icmp": _ICMP[self.version], "other": "gre"}.get(self.protocol, self.protocol)


@dataclass
class Tables:
    """What a rendered text makes: chains with their rules, sets with their elements."""

    chains: dict[str, list[list[str]]] = field(default_factory=dict)
    sets: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in SETS})

    def judge(self, packet: Packet) -> str:
        """The chain of the static part at which a client's packet ends; "": at none, or from nobody's address."""
        for element in self.sets[f"clients{packet.version}"]:
            address, _, verdict = element.partition(" : ")
            if ip_address(address) == packet.source:
                return self._chain(_after("goto", verdict), packet)
        return ""

    def _chain(self, name: str, packet: Packet) -> str:
        if name in ENDS:
            return name
        if name not in self.chains:
            raise UnknownSyntax(f"there is no chain {name}")
        for rule in self.chains[name]:
            words, verdict, target = rule[:-2], rule[-2], rule[-1]
            if verdict not in ("goto", "jump"):
                raise UnknownSyntax(" ".join(rule))
            if all(_Matches(words, self.sets, packet)):
                found = self._chain(target, packet)
                if found or verdict == "goto":  # after a goto nothing comes back here, nor to whoever jumped here
                    return found or "nowhere"
        return ""


class _Matches:
    """The matches of a rule, one after the other: does each hold for the packet? Later ones are read all the same."""

    def __init__(self, words: list[str], sets: Mapping[str, list[str]], packet: Packet) -> None:
        self._words, self._sets, self._packet = list(words), sets, packet

    def __iter__(self) -> Iterator[bool]:
        found = []
        while self._words:
            found.append(self._match())
        return iter(found)

    def _match(self) -> bool:
        packet = self._packet
        first, second = self._take(), self._take()
        is_family = packet.version == (6 if first == "ip6" else 4)
        if first in ("ip", "ip6") and second == "saddr":
            return self._concatenation(first) and is_family
        if first in ("ip", "ip6") and second == "daddr":
            return self._address(packet.destination) and is_family
        if (first, second) == ("meta", "nfproto"):
            return self._one_of() == f"ipv{packet.version}"
        if (first, second) == ("meta", "l4proto"):
            return self._protocol()
        if first in ("tcp", "udp", "th") and second == "dport":
            has_ports = packet.protocol in ("tcp", "udp")
            return self._ports() and (packet.protocol == first if first != "th" else has_ports)
        if first in ("icmp", "icmpv6") and second == "type":
            same = packet.protocol == "icmp" and packet.version == (4 if first == "icmp" else 6)
            return int(self._one_of()) == packet.icmp_type and same
        raise UnknownSyntax(f"{first} {second}")

    def _take(self) -> str:
        if not self._words:
            raise UnknownSyntax("the rule ends too early")
        return self._words.pop(0)

    def _one_of(self) -> str:
        word = self._take()
        if not re.fullmatch(r"[a-z0-9-]+", word):
            raise UnknownSyntax(word)
        return word

    def _several(self) -> list[str]:
        """The elements of `{ a, b }`, or the one value."""
        word = self._take()
        if word != "{":
            return [word]
        end = self._words.index("}")
        inside, self._words = self._words[:end], self._words[end + 1 :]
        return [each.removesuffix(",") for each in inside]

    def _protocol(self) -> bool:
        unequal = self._words[:1] == ["!="]
        if unequal:
            self._take()
        names = self._several()
        if not set(names) <= {"tcp", "udp", *_ICMP.values()}:
            raise UnknownSyntax(str(names))
        return (self._packet.l4proto in names) != unequal

    def _ports(self) -> bool:
        unequal = self._words[:1] == ["!="]
        if unequal:
            self._take()
        word = self._take()
        if not _PORTS.fullmatch(word):
            raise UnknownSyntax(word)
        first, _, last = word.partition("-")
        return (int(first) <= self._packet.port <= int(last or first)) != unequal

    def _address(self, address: IPAddress) -> bool:
        words = self._several()
        elements = self._elements(words[0]) if words[0].startswith("@") else words
        networks = map(ip_network, elements)
        return any(network.version == address.version and address in network for network in networks)

    def _concatenation(self, ip: str) -> bool:
        rest = [self._take() for _ in range(6)]
        if rest != [".", ip, "daddr", ".", "udp", "dport"]:
            raise UnknownSyntax(" ".join(rest))
        packet = self._packet
        wanted = f"{packet.source} . {packet.destination} . {packet.port}"
        return wanted in self._elements(self._take()) and packet.protocol == "udp"

    def _elements(self, name: str) -> list[str]:
        if name.removeprefix("@") not in self._sets:
            raise UnknownSyntax(f"there is no set {name}")
        return self._sets[name.removeprefix("@")]


def read(text: str) -> Tables:
    """Reads what `ruleset.render` made without a static part. Raises UnknownSyntax."""
    tables = Tables()
    chain: list[list[str]] | None = None
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#") or line.removesuffix(" {") in (f"table {_TABLE}", f"delete table {_TABLE}"):
            continue
        if line == "}":
            chain = None
        elif chain is not None:
            chain.append(line.split())
        elif match := re.fullmatch(r"chain (\S+) \{", line):
            chain = _new(tables.chains, match[1], [])
        elif match := re.fullmatch(r"set (\S+) \{ type (?:ipv[46]_addr); (.*) \}", line):
            _new(tables.sets, match[1], _declared(match[2]))
        elif match := re.fullmatch(rf"add element {_TABLE} (\S+) \{{ (.*) \}}", line):
            if match[1] not in tables.sets:
                raise UnknownSyntax(f"there is no set {match[1]}")
            tables.sets[match[1]].append(_TIMEOUT.sub("", match[2]))
        else:
            raise UnknownSyntax(line)
    _check(tables)
    return tables


def _new(there: dict[str, Value], name: str, value: Value) -> Value:
    if name in there:
        raise UnknownSyntax(f"{name} stands twice")
    return there.setdefault(name, value)


def _declared(text: str) -> list[str]:
    """The elements of a set's declaration."""
    elements: list[str] = []
    for part in text.split("; "):
        if match := re.fullmatch(r"elements = \{ (.*) \}", part):
            elements = match[1].split(", ")
        elif not re.fullmatch(r"flags (?:interval|timeout);?|size [0-9]+;?", part):
            raise UnknownSyntax(part)
    return elements


def _check(tables: Tables) -> None:
    """Reads every rule once, also those that no packet comes to."""
    address = ip_address("192.0.2.1")
    for name in tables.chains.keys() - ENDS:
        for rule in tables.chains[name]:
            all(_Matches(rule[:-2], tables.sets, Packet(address, address, "tcp")))


def _after(word: str, text: str) -> str:
    first, _, rest = text.partition(" ")
    if first != word:
        raise UnknownSyntax(text)
    return rest
