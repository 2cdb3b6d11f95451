"""Asks dom0 for the qubes and which of them are attached to this netvm, and hears when that changes: the Admin API of
Qubes OS.

What dom0 lets a netvm see is for its policy to say: proxyfw.core.qubes_policy has the lines. A call that no line allows
is refused; a qube that none covers is not: the list and the events leave it out (qubes/ext/admin.py).
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from proxyfw.core.address import IPAddress
from proxyfw.core.config import is_qube_name, parse_address
from proxyfw.core.netvm import Attached, Qube
from proxyfw.edge.adminway import AdminError, Declined, Refusal, Way, best_way

_PATIENCE = 20.0  # seconds for one call
_AT_ONCE = 4  # calls; each is a process here and another in dom0
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds before events are asked for again
_REFUSED_PAUSE = 600.0  # seconds, where they were refused: dom0 shows its user each refusal

_TAG = re.compile(r"[a-zA-Z0-9_-]+")
_PROPERTY = re.compile(r"default=(?:True|False) type=([a-z]+) (.*)")
_EVENTS = re.compile(
    r"connection-established|domain-(?:add|delete|start|shutdown)|domain-tag-(?:add|delete):.+"
    r"|property-(?:set|reset):(?:name|netvm|ip|ip6)|domain-feature-(?:set|delete):ipv6"
)
"""Those after which the qubes or their addresses may be others. An ip6 that comes with the feature has no event."""
_GONE = frozenset({"QubesVMNotFoundError", "QubesNoSuchPropertyError"})


class Refused(AdminError):
    """The policy of dom0 forbids a call. `line`: the line that allows it."""

    def __init__(self, line: str) -> None:
        super().__init__(f"dom0 refuses; its policy lacks: {line}")
        self.line = line


class AdminApi:
    """What dom0 tells the netvm of this name. What it declines, or says oddly, is not known: it never counts as nothing
    or none.
    """

    def __init__(self, netvm: str) -> None:
        self._netvm = netvm
        self._refused: defaultdict[str, list[str]] = defaultdict(list)  # by qube
        self._odd: defaultdict[str, list[str]] = defaultdict(list)  # by qube; "": the list of them
        self._way: Way | None = None
        self._heard_of: set[str] = set()  # since they were asked about last; "" stands for all
        self._slots = asyncio.Semaphore(_AT_ONCE)

    @property
    def refused(self) -> list[str]:
        """The lines that the policy of dom0 lacks for some of what `attached` answered last."""
        return sorted({line for lines in self._refused.values() for line in lines})

    @property
    def odd(self) -> list[str]:
        """What dom0 said to it that could not be read, or was an error."""
        return [text for name in sorted(self._odd) for text in sorted(self._odd[name])]

    async def attached(self, known: Attached | None = None) -> Attached:
        """The qubes that dom0 shows, with this netvm or another, running or not, by name; for one caller at a time.

        One of which an answer is refused or cannot be read, or that goes meanwhile, is left out, and the rest stays.
        Of two with one address, a halted one does not have it where the other runs here. Each call to dom0 takes its
        time: with `known`, what was answered before, only the list is asked for, and those that are new in it, that
        `known` lacks, or that `follow` heard of since. Raises AdminError.
        """
        heard_of, self._heard_of = self._heard_of, set()
        try:
            return await self._attached(None if "" in heard_of else known, heard_of)
        except BaseException:
            self._heard_of |= heard_of
            raise

    async def _attached(self, known: Attached | None, heard_of: set[str]) -> Attached:
        states = self._states(await self._ask("dom0", "admin.vm.List"))
        asked = [name for name in states if known is None or name in heard_of or not self._has(known, name)]
        for notes in (self._refused, self._odd):
            for name in notes.keys() - (states.keys() - asked) - {""}:
                del notes[name]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._qube(name)) for name in asked]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        qubes = [qube for task in tasks if (qube := task.result())]
        if known is not None:
            qubes += [qube for qube in known.qubes if qube.name in states.keys() - asked]
        qubes.sort(key=lambda qube: qube.name)
        running = (qube for qube in qubes if qube.here and states[qube.name] != "Halted")
        taken = {address for qube in running for address in qube.addresses}
        for at, qube in enumerate(qubes):
            if states[qube.name] == "Halted":
                qubes[at] = replace(qube, addresses=tuple(a for a in qube.addresses if a not in taken))
        return Attached(tuple(qubes))

    def _has(self, known: Attached, name: str) -> bool:
        """Whether this qube need not be asked about. dom0 shows its user each refusal: what was refused is."""
        return name in known.names or bool(self._refused.get(name) or self._odd.get(name))

    async def follow(self, on_change: Callable[[], None], on_trouble: Callable[[str], None]) -> None:
        """Tells when `attached` may answer otherwise: at first, after each interruption, and at events that matter.
        Runs until it is cancelled. The same trouble is told once, until events come again.
        """
        told, pause = "", _FIRST_PAUSE

        def heard(about: str, event: str) -> None:
            nonlocal told, pause
            told, pause = "", _FIRST_PAUSE
            if _EVENTS.fullmatch(event):
                self._heard_of.add("" if event.endswith(":name") else about)
                on_change()

        while True:
            refused = False
            try:
                await self._chosen().listen(heard)
                trouble = "dom0 ended its stream of events"
            except Refusal:
                refused = True
                trouble = str(Refused(self._line("dom0", "admin.Events")))
            except AdminError as error:
                trouble = str(error)
            if trouble != told:
                on_trouble(trouble)
                told = trouble
            await asyncio.sleep(_REFUSED_PAUSE if refused else pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _chosen(self) -> Way:
        if self._way is None:
            self._way = best_way()
        return self._way

    def _line(self, target: str, method: str, argument: str = "") -> str:
        columns = (
            method,
            f"+{argument}",
            self._netvm,
            "@adminvm" if target == "dom0" else "@tag:proxyfw",
            "allow target=dom0",
        )
        return "  ".join(columns)

    async def _ask(self, target: str, method: str, argument: str = "") -> bytes:
        async with self._slots:
            try:
                async with asyncio.timeout(_PATIENCE):
                    return await self._chosen().call(target, method, argument)
            except TimeoutError:
                raise AdminError(f"dom0 does not answer: {method} for {target}, {_PATIENCE:g} seconds") from None
            except Refusal:
                raise Refused(self._line(target, method, argument)) from None

    async def _value(self, name: str, method: str, argument: str = "") -> str | None:
        """The answer about one qube. None where there is none; why is noted, unless the qube has gone."""
        try:
            return (await self._ask(name, method, argument)).decode()
        except Refused as error:
            self._refused[name].append(error.line)
        except Declined as error:
            if error.kind not in _GONE:
                self._odd[name].append(f"{name}: {error}")
        except UnicodeDecodeError:
            self._odd[name].append(f"{name}: an answer to {method} that is not text")
        return None

    def _states(self, answer: bytes) -> dict[str, str]:
        """The listed qubes but dom0 and this one, and their states."""
        states = {}
        odd = self._odd[""] = []
        for line in answer.decode("utf-8", "replace").splitlines():
            name, *rest = line.split(" ")
            facts = dict(word.split("=", 1) for word in rest if "=" in word)
            if not is_qube_name(name) or "class" not in facts or "state" not in facts:
                odd.append(f"admin.vm.List: {line[:80]!r}")
            elif facts["class"] != "AdminVM" and name != self._netvm:
                states[name] = facts["state"]
        if not states:
            line = self._line("a qube", "admin.vm.List")
            odd.append(f"dom0 shows no qube: none has the tag proxyfw, or its policy lacks: {line}")
        return states

    async def _qube(self, name: str) -> Qube | None:
        """None where anything of it is not known."""
        try:
            async with asyncio.TaskGroup() as group:
                asked = (
                    group.create_task(self._property(name, "netvm", "vm")),
                    group.create_task(self._address(name, "ip", 4)),
                    group.create_task(self._address(name, "ip6", 6)),
                    group.create_task(self._tags(name)),
                )
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        netvm, ip, ip6, tags = asked[0].result(), asked[1].result(), asked[2].result(), asked[3].result()
        if netvm is None or ip is None or ip6 is None or tags is None:
            return None
        return Qube(name, (*ip, *ip6), tags, netvm == self._netvm)

    async def _property(self, name: str, key: str, kind: str) -> str | None:
        value = await self._value(name, "admin.vm.property.Get", key)
        match = _PROPERTY.fullmatch(value) if value is not None else None
        if match and match[1] == kind:
            return match[2]
        if value is not None:
            self._odd[name].append(f"{name}: the property {key}, {value[:80]!r}")
        return None

    async def _address(self, name: str, key: str, version: int) -> tuple[IPAddress, ...] | None:
        """One address or none."""
        value = await self._property(name, key, "str")
        if not value:
            return None if value is None else ()
        address = parse_address(value)
        if address is not None and address.version == version:
            return (address,)
        self._odd[name].append(f"{name}: the property {key}, {value[:80]!r}, is not such an address")
        return None

    async def _tags(self, name: str) -> frozenset[str] | None:
        value = await self._value(name, "admin.vm.tag.List")
        if value is None:
            return None
        tags = frozenset(value.split("\n")) - {""}
        odd = [f"{name}: the tag {tag[:40]!r}" for tag in sorted(tags) if not _TAG.fullmatch(tag)]
        self._odd[name] += odd
        return None if odd else tags
