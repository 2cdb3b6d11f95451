"""The one door to nftables: libnftables for rulesets, netlink for elements; one atomic transaction a call."""

import errno
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from proxyfw.core.address import IPAddress
from proxyfw.core.addresslist import Range
from proxyfw.core.generations import feed_sets, following, generation_of, leftovers, named, removal, stages
from proxyfw.core.netlink import error_code, interrupted, messages
from proxyfw.core.nftbatch import Change, batch
from proxyfw.core.nftread import (
    Chain,
    Rule,
    ask_chains,
    ask_counters,
    ask_elements,
    ask_rules,
    ask_sets,
    ask_tables,
    chain_of,
    counter_of,
    ends_of,
    ranges_of,
    rule_of,
    set_of,
    table_of,
)
from proxyfw.core.ruleset import TABLE

_FAMILY, _NAME = TABLE.split()
_NETLINK_NETFILTER = 12
_SO_SNDBUFFORCE = 32
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SPARE = 1 << 16
_PATIENCE = 10.0  # seconds for an answer; the kernel makes it while it is being asked
_TRIES = 100


class NftError(Exception):
    """The kernel or the parser refused the transaction; nothing was changed."""


@dataclass(slots=True)
class _Generation:
    """Of the ruleset in force; None: it has to be asked for."""

    name: str | None = None


class Nft:
    """Needs CAP_NET_ADMIN in the network namespace it is used in. For one thread; `another` is for another one.

    The first use of `apply`, `replace`, `elements` or `copy` has to come early: libnftables waits with select(2), which
    aborts the process for a descriptor of 1024 or more. From then on it keeps the one that it has.
    """

    def __init__(self) -> None:
        self._context: Any = None
        self._generation = _Generation()

    def another(self) -> "Nft":
        """One for another thread, which knows the same generation of the ruleset."""
        other = Nft()
        other._generation = self._generation
        return other

    def prepare(self) -> None:
        """Is the early first use."""
        self._kept().cmd("list chains")  # of which it does not read the sets

    def apply(self, text: str) -> None:
        """Applies all of the text, or nothing. Raises NftError."""
        self._run(text)

    def change(self, changes: Iterable[Change]) -> None:
        """Changes elements of proxyfw's sets, those of the generation in force: all of them, or none. Raises NftError.

        For any thread, also beside other calls.
        """
        generation = self._in_force()
        found = [change._replace(set=named(change.set, generation)) for change in changes if change.elements]
        if found:
            _send(batch(_NAME, found))

    def replace(self, text: str, also: str = "") -> frozenset[str]:
        """Puts a ruleset of proxyfw's in force, in place of the one before: all of it, or nothing. Raises NftError.

        `also`: further text, for the moment at which it takes the place. Answers which sets of feeds were made anew,
        and so are empty.
        """
        chains, sets = self._named()
        before = {name for _, name in sets}
        generation = following([*chains, *before])
        staged = stages(text, generation)
        self._run(staged.build)
        try:
            self._run(staged.flip + also)
        except NftError:
            self._remove(generation)
            raise
        self._generation.name = generation
        base, feeds = [name for name in chains if not generation_of(name)], feed_sets(text)
        with suppress(NftError):  # it is in nobody's way, and goes the next time
            self._run(leftovers(chains, sets, base, generation, feeds))
        return feeds - before

    def _remove(self, generation: str) -> None:
        """Takes away what was built of a generation that is not in force."""
        with suppress(NftError):
            chains, sets = self._named()
            self._run(
                removal(
                    [name for name in chains if generation_of(name) == generation],
                    [(kind, name) for kind, name in sets if generation_of(name) == generation],
                )
            )

    def base_chains(self) -> dict[str, str]:
        """Those of proxyfw's table: where each leads; "" where it is not one rule that leads to a chain. Raises
        NftError.
        """
        found = {}
        for chain in _chains(_FAMILY, _NAME):
            if chain.hooked:
                rules = _rules(_FAMILY, _NAME, chain.name)
                found[chain.name] = rules[0].goto if len(rules) == 1 else ""
        return found

    def intact(self) -> bool:
        """Whether the base chains of `replace` lead to the ruleset that it has put in force. Raises NftError."""
        generation, found = self._generation.name or "", self.base_chains()
        return bool(generation and found) and all(to == name + generation for name, to in found.items())

    def tables(self) -> frozenset[str]:
        """Family and name of every table. Raises NftError."""
        return frozenset(map(table_of, _listed(ask_tables())))

    def judges(self, table: str) -> bool:
        """Whether this table, as in `ip qubes`, has a chain: without one it does nothing. Raises NftError."""
        return bool(_chains(*table.split()))

    def comments(self, chain: str) -> list[str] | None:
        """The comments of a chain's rules, "" for one without; None: there is no such chain. As in `ip qubes input`.
        Raises NftError.
        """
        family, table, name = chain.split()
        if not any(each.name == name for each in _chains(family, table)):
            return None
        return [rule.comment for rule in _rules(family, table, name)]

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

    def ranges(self, name: str, version: int) -> list[Range]:
        """What an interval set of addresses of proxyfw's table holds; nothing where there is no such set. For any
        thread. Raises NftError.
        """
        ends = [end for body in _listed(ask_elements(_FAMILY, _NAME, name)) for end in ends_of(body)]
        return ranges_of(ends, version)

    def counter(self, name: str) -> int:
        """Packets of a named counter of proxyfw's table; 0 where there is none. Raises NftError."""
        return dict(map(counter_of, _listed(ask_counters(_FAMILY, _NAME)))).get(name, 0)

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
        chains = [chain.name for chain in _chains(_FAMILY, _NAME)]
        sets = [("map" if each.is_map else "set", each.name) for each in map(set_of, _listed(ask_sets(_FAMILY, _NAME)))]
        # The ones that nft makes for `{ ... }` inside a rule go with it.
        return chains, [each for each in sets if not each[1].startswith("__")]

    def _run(self, text: str) -> None:
        status, _, error = self._kept().cmd(text)
        if status:
            raise NftError(error.strip() or f"libnftables answered {status}")

    def _list(self, what: str) -> list[dict[str, Any]]:
        """The objects; none where there is no such thing."""
        status, output, _ = self._kept().cmd(f"list {what}")
        items: list[dict[str, Any]] = json.loads(output)["nftables"] if not status else []
        return items

    def _kept(self) -> Any:
        if self._context is None:
            import nftables  # of the system, and only there where there is a packet layer

            self._context = nftables.Nftables()
            self._context.set_json_output(True)
        return self._context


def _chains(family: str, table: str) -> list[Chain]:
    return [chain for chain in map(chain_of, _listed(ask_chains(family))) if chain.table == table]


def _rules(family: str, table: str, chain: str) -> list[Rule]:
    bodies = _listed(ask_rules(family, table, chain))
    return [rule for body in bodies if (rule := rule_of(body, chain)) is not None]


def _send(data: bytes) -> None:
    """Raises NftError. The kernel carries a transaction out, and answers, while it is being sent."""
    codes: list[int] = []
    try:
        with _socket(len(data)) as sock:
            sock.send(data)
            sock.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    codes += [error_code(body) for _, body in messages(sock.recv(_SPARE))]
    except OSError as error:
        raise NftError(f"elements of sets: {error.strerror}") from None
    if set(codes) != {0}:
        failed = next((code for code in codes if code), 0)
        raise NftError(f"elements of sets: {os.strerror(failed) if failed else 'the kernel does not answer'}")


def _listed(request: bytes) -> list[bytes]:
    """What the kernel lists, as it was at one moment; nothing where it is not there. Raises NftError."""
    for _ in range(_TRIES):
        found = _list_once(request)
        if found is not None:
            return found
    raise NftError("the ruleset changes too fast to be listed")


def _list_once(request: bytes) -> list[bytes] | None:
    """None: it was changed meanwhile."""
    bodies: list[bytes] = []
    whole = True
    try:
        with _socket(len(request)) as sock:
            sock.send(request)
            while True:
                data = sock.recv(_SPARE)
                whole = whole and not interrupted(data)
                for kind, body in messages(data):
                    if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                        code = error_code(body)
                        if code not in (0, errno.ENOENT, errno.EINTR):
                            raise NftError(f"the ruleset cannot be listed: {os.strerror(code)}")
                        return bodies if whole and code != errno.EINTR else None
                    bodies.append(body)
    except OSError as error:
        raise NftError(f"the ruleset cannot be listed: {error.strerror or 'the kernel does not answer'}") from None


def _socket(size: int) -> socket.socket:
    """Raises OSError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    sock.settimeout(_PATIENCE)
    if size > _SPARE:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size + _SPARE)
    sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
    return sock
