"""The one door to nftables: libnftables, one atomic transaction a call."""

import json
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

import nftables

from proxyfw.core.address import IPAddress
from proxyfw.core.ruleset import TABLE


class NftError(Exception):
    """The kernel or the parser refused the transaction; nothing was changed."""


class Nft:
    """Needs CAP_NET_ADMIN in the network namespace it is used in. For one thread.

    Its first use has to come early: libnftables waits with select(2), which aborts the process for a descriptor of 1024
    or more. From then on it keeps the one that it has.
    """

    def __init__(self) -> None:
        self._context: nftables.Nftables | None = None

    def apply(self, text: str) -> None:
        """Applies all of the text, or nothing. Raises NftError."""
        status, _, error = self._kept().cmd(text)
        if status:
            raise NftError(error.strip() or f"libnftables answered {status}")

    def has_table(self) -> bool:
        """Whether a table of proxyfw (its ruleset or the fail-safe) is in force."""
        return bool(self._kept().cmd(f"list table {TABLE}")[0] == 0)

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
        """What these sets of proxyfw's table hold, of elements of two addresses and a port: these, and for how many
        seconds still. A set that does not exist holds nothing.
        """
        found = []
        for item in (item for name in names for item in self._list(f"set {TABLE} {name}")):
            for element in item.get("set", {}).get("elem", ()):
                one, other, port = element["elem"]["val"]["concat"]
                found.append((ip_address(one), ip_address(other), int(port), int(element["elem"]["expires"])))
        return found

    def copy(self, names: Iterable[str]) -> str:
        """The nftables text that adds what these sets of proxyfw's table hold, with the time that each has left."""
        lines = []
        for item in (item for name in names for item in self._list(f"set {TABLE} {name}")):
            for element in item.get("set", {}).get("elem", ()):
                key = " . ".join(map(str, element["elem"]["val"]["concat"]))
                left = max(int(element["elem"]["expires"]), 1)
                lines.append(f"add element {TABLE} {item['set']['name']} {{ {key} timeout {left}s }}\n")
        return "".join(lines)

    def counter(self, name: str) -> int:
        """Packets of a named counter of proxyfw's table; 0 where there is none."""
        items = self._list(f"counter {TABLE} {name}")
        return sum(item["counter"]["packets"] for item in items if "counter" in item)

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
