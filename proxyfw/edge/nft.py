"""The one door to nftables: libnftables, one atomic transaction a call."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import nftables

from proxyfw.core.address import IPAddress
from proxyfw.core.generations import following, generation_of, leftovers, named, stages, within
from proxyfw.core.ruleset import TABLE

_FAMILY, _NAME = TABLE.split()


class NftError(Exception):
    """The kernel or the parser refused the transaction; nothing was changed."""


@dataclass(slots=True)
class _Generation:
    """Of the ruleset in force; None: it has to be asked for."""

    name: str | None = None


class Nft:
    """Needs CAP_NET_ADMIN in the network namespace it is used in. For one thread; `another` is for another one.

    Its first use has to come early: libnftables waits with select(2), which aborts the process for a descriptor of 1024
    or more. From then on it keeps the one that it has.
    """

    def __init__(self) -> None:
        self._context: nftables.Nftables | None = None
        self._generation = _Generation()

    def another(self) -> "Nft":
        """One for another thread, which knows the same generation of the ruleset."""
        other = Nft()
        other._generation = self._generation
        return other

    def apply(self, text: str) -> None:
        """Applies all of the text, or nothing. Elements of proxyfw's sets go to the generation in force.

        Raises NftError.
        """
        self._run(within(text, self._in_force()) if self._in_force() else text)

    def replace(self, text: str, also: str = "") -> None:
        """Puts a ruleset of proxyfw's in force, in place of the one before: all of it, or nothing. Raises NftError.

        `also`: further text, for the moment at which it takes the place.
        """
        chains, sets = self._named()
        generation = following([*chains, *(name for _, name in sets)])
        staged = stages(text, generation)
        self._run(staged.build)
        self._run(staged.flip + also)
        self._generation.name = generation
        with suppress(NftError):  # it is in nobody's way, and goes the next time
            self._run(leftovers(chains, sets, [name for name in chains if not generation_of(name)], generation))

    def base_chains(self) -> dict[str, str]:
        """Those of proxyfw's table: where each leads; "" where it is not one rule that leads to a chain."""
        found = {}
        for item in self._list(f"chains {_FAMILY}"):
            chain = item.get("chain", {})
            if chain.get("table") == _NAME and "hook" in chain:
                rules = [
                    each["rule"]["expr"] for each in self._list(f"chain {TABLE} {chain['name']}") if "rule" in each
                ]
                first = rules[0][0] if len(rules) == 1 else {}
                found[chain["name"]] = first.get("goto", {}).get("target", "")
        return found

    def intact(self) -> bool:
        """Whether the base chains of `replace` lead to the ruleset that it has put in force."""
        generation, found = self._generation.name or "", self.base_chains()
        return bool(generation and found) and all(to == name + generation for name, to in found.items())

    def tables(self) -> frozenset[str]:
        """Family and name of every table."""
        items = [item["table"] for item in self._list("tables") if "table" in item]
        return frozenset(f"{table['family']} {table['name']}" for table in items)

    def comments(self, chain: str) -> list[str] | None:
        """The comments of a chain's rules, "" for one without; None: there is no such chain. As in `ip qubes input`."""
        items = self._list(f"chain {chain}")
        if not any("chain" in item for item in items):
            return None
        return [item["rule"].get("comment", "") for item in items if "rule" in item]

    def elements(self, names: Iterable[str]) -> list[tuple[IPAddress, IPAddress, int, int]]:
        """What these sets of proxyfw's table hold, of elements of two addresses and maybe a port (else it is 0): these,
        and for how many seconds still. A set that does not exist holds nothing.
        """
        found = []
        for _, key, seconds in self._elements(names):
            one, other, port = (*key, 0)[:3]
            found.append((ip_address(one), ip_address(other), int(port), seconds))
        return found

    def copy(self, names: Iterable[str], of: Callable[[IPAddress], bool]) -> str:
        """The nftables text that adds what these sets of proxyfw's table hold, with the time that each has left: those
        whose first address is wanted (`of`).
        """
        return "".join(
            f"add element {TABLE} {name} {{ {' . '.join(map(str, key))} timeout {max(seconds, 1)}s }}\n"
            for name, key, seconds in self._elements(names)
            if of(ip_address(key[0]))
        )

    def counter(self, name: str) -> int:
        """Packets of a named counter of proxyfw's table; 0 where there is none."""
        items = self._list(f"counter {TABLE} {name}")
        return sum(item["counter"]["packets"] for item in items if "counter" in item)

    def _elements(self, names: Iterable[str]) -> Iterator[tuple[str, list[Any], int]]:
        """The set's name, the fields of the element, and its seconds."""
        for name in names:
            for item in self._list(f"set {TABLE} {named(name, self._in_force())}"):
                for element in item.get("set", {}).get("elem", ()):
                    yield name, element["elem"]["val"]["concat"], int(element["elem"]["expires"])

    def _in_force(self) -> str:
        if self._generation.name is None:
            found = {generation_of(to) for to in self.base_chains().values()}
            self._generation.name = found.pop() if len(found) == 1 else ""
        return self._generation.name

    def _named(self) -> tuple[list[str], list[tuple[str, str]]]:
        """The chains, and the sets and maps, of proxyfw's table."""
        chains = [item["chain"] for item in self._list(f"chains {_FAMILY}") if "chain" in item]
        sets = [
            (kind, item[kind])
            for what in ("sets", "maps")
            for item in self._list(f"{what} {_FAMILY}")
            for kind in ("set", "map")
            if kind in item
        ]
        return (
            [chain["name"] for chain in chains if chain["table"] == _NAME],
            [(kind, each["name"]) for kind, each in sets if each["table"] == _NAME],
        )

    def _run(self, text: str) -> None:
        status, _, error = self._kept().cmd(text)
        if status:
            raise NftError(error.strip() or f"libnftables answered {status}")

    def _list(self, what: str) -> list[dict[str, Any]]:
        """The objects; none where there is no such thing."""
        status, output, _ = self._kept().cmd(f"list {what}")
        items: list[dict[str, Any]] = json.loads(output)["nftables"] if not status else []
        return items

    def _kept(self) -> nftables.Nftables:
        if self._context is None:
            self._context = nftables.Nftables()
            self._context.set_json_output(True)
        return self._context
