"""What Qubes OS knows, kept up to date: QubesDB for rules and addresses, dom0's Admin API for names and tags.

Outside Qubes OS neither is there, and the configuration alone says who the clients are.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

from proxyfw.core.address import IPAddress
from proxyfw.core.config import Config, is_qube_name, parse_address
from proxyfw.core.netvm import Attached, Netvm, World, read_netvm, world_as_data
from proxyfw.edge.adminapi import AdminApi, Refused
from proxyfw.edge.adminway import AdminError
from proxyfw.edge.qubesdb import Entries, QubesDb, QubesDbError, available, on_qubes

_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 60.0  # seconds before dom0 is asked again after no answer


class SourcesError(Exception):
    """This is a qube, and it cannot be told which rules its clients have: nothing may be let through."""


def needs_names(config: Config, netvm: Netvm) -> bool:
    """Whether the configuration, or what dom0 holds, speaks of qubes by name or tag: dom0 is not bothered otherwise."""
    held = {name for name in netvm.profiles if is_qube_name(name)}
    fixed = {client.name for client in config.clients.values() if client.addresses}
    return bool(config.tags) or not (config.clients.keys() | held) <= fixed


class Sources:
    """`world`: the latest. `trouble`: what cannot be learnt at present, for `status`.

    `say`: tells a person. `on_fault(text)`: something that must never end has ended, because of an error of this
    program, and `world` may stay as it is from now on.

    While dom0 does not answer, a name stays with its address until QubesDB tells that the address may be another's: it
    is not connected any more, or its rules are written, as they are at every start of a qube. That a qube loses a tag
    meanwhile, or its name, cannot be known.
    """

    def __init__(self, say: Callable[[str], None], on_fault: Callable[[str], None]) -> None:
        self.world = World()
        self._say, self._on_fault = say, on_fault
        self._qubesdb = QubesDb() if available() or on_qubes() else None
        self._names = _Names(say, self._on_names, on_fault)
        self._config: Config | None = None  # that says whether names are wanted
        self._entries: Entries = {}
        self._lost = ""  # why QubesDB is not heard of
        self._on_change: Callable[[frozenset[str]], None] = lambda _: None

    @property
    def trouble(self) -> list[str]:
        """That QubesDB is away; what dom0 refuses, and the policy lines that are missing there."""
        return [*([self._lost] if self._lost else []), *self._names.trouble]

    def start(self) -> None:
        """Reads QubesDB for the first time. Blocks. Raises SourcesError."""
        if self._qubesdb is not None:
            try:
                self._entries = self._qubesdb.start()
            except QubesDbError as error:
                raise SourcesError(f"this is a qube, but its firewall rules cannot be read: {error}") from None
            self._take()

    def follow(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[frozenset[str]], None]) -> None:
        """Goes on. `on_change(addresses)`: `world` is another, and these addresses have new rules."""
        self._on_change = on_change
        if self._qubesdb is not None:
            self._qubesdb.follow(loop, self._on_entries, self._on_lost, self._on_fault)

    def want_names(self, config: Config) -> None:
        """Asks dom0 for names and tags from now on where this configuration needs them. Also asks again where dom0 has
        refused.
        """
        self._config = config
        before = self._names.attached
        self._adjust(again=True)
        if self._names.attached != before:
            self._on_names()

    async def stop(self) -> None:
        """Stops following."""
        self._config = None
        self._names.stop()
        await self._names.ended()
        if self._qubesdb is not None:
            await asyncio.to_thread(self._qubesdb.stop)

    async def handled(self, addresses: frozenset[str]) -> None:
        """Tells users' scripts that the rules of these addresses are in force."""
        if self._qubesdb is not None and addresses:
            try:
                await asyncio.to_thread(self._qubesdb.handled, addresses)
            except QubesDbError as error:
                self._say(f"/qubes-firewall-handled could not be written: {error}")

    def as_data(self) -> dict[str, Any] | None:
        """The world, for a command; None outside Qubes OS."""
        return None if self._qubesdb is None else world_as_data(self._entries, self._names.attached)

    def _take(self) -> None:
        netvm = read_netvm(self._entries, time.time()) if self._qubesdb is not None else None
        self.world = World(netvm, self._names.attached)

    def _adjust(self, again: bool = False) -> None:
        """Asks dom0 from now on, or no longer, as what is in force needs it."""
        netvm, config = self.world.netvm, self._config
        if netvm is not None and config is not None and needs_names(config, netvm):
            self._names.start(netvm.name, again)
        else:
            self._names.stop()

    def _on_entries(self, entries: Entries, committed: frozenset[str]) -> None:
        before = self.world.netvm
        self._entries, self._lost = entries, ""
        self._take()
        now = self.world.netvm
        assert before is not None
        assert now is not None
        self._adjust()
        # Whoever has come is asked for, also where dom0 tells of no events. Rules are written anew when a qube starts:
        # an address may be another's by then.
        if committed or before.connected != now.connected:
            written = {address for text in committed if (address := parse_address(text)) is not None}
            self._names.may_be_others(before.connected - now.connected, written)
        self.world = World(now, self._names.attached)
        self._on_change(committed)

    def _on_lost(self, text: str) -> None:
        self._lost = text
        self._say(text)

    def _on_names(self) -> None:
        self._take()
        self._on_change(frozenset())


class _Names:
    """What dom0 tells of the qubes, from `start` to `stop`. `attached`: None where it told nothing yet.

    An address whose name is in doubt is forgotten: its owner stays known, and is not here, until it was asked about
    again.
    """

    def __init__(self, say: Callable[[str], None], on_change: Callable[[], None], on_fault: Callable[[str], None]):
        self.attached: Attached | None = None
        self._say, self._on_change, self._on_fault = say, on_change, on_fault
        self._following: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._cancelled: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._reset()

    def _reset(self) -> None:
        self.attached = None
        self._again = self._fully = False  # how to ask next
        self._answered = False  # since it was followed
        self._refused = self._failing = False
        self._pause = _FIRST_PAUSE
        self._written: set[IPAddress] = set()  # since all was asked for that was then answered
        self._forgotten: set[IPAddress] = set()  # and their owners were not asked about since
        self._unheard = ""  # why changes are not heard of
        self._unseen: tuple[str, ...] = ()  # what the latest answer lacks, and why

    @property
    def trouble(self) -> list[str]:
        return [*([self._unheard] if self._unheard else []), *self._unseen]

    def start(self, netvm: str, again: bool) -> None:
        """`again`: also where it was started, and dom0 refuses. `netvm`: the name of this one."""
        if self._following is not None:
            if not (again and (self._refused or self._unheard)):
                return
            self._cancel()
        self._refused = self._answered = False
        self._api = AdminApi(netvm)
        following = self._api.follow(self._on_event, self._on_trouble)
        self._following = self._begin(following, "names are no longer followed", lasts=True)

    def stop(self) -> None:
        """Knows nothing any more."""
        self._cancel()
        self._reset()

    async def ended(self) -> None:
        """Waits until all is at an end that was stopped."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def may_be_others(self, gone: Collection[IPAddress], written: Collection[IPAddress]) -> None:
        """Addresses that are not connected any more, and those whose rules were written."""
        if self._following is None:
            return
        self._written |= set(written)
        self._forget({*gone, *(self._written if self._refused or self._failing else ())})
        self._ask(fully=True)

    def _forget(self, addresses: set[IPAddress]) -> None:
        """Whoever comes with one of these addresses next may be another."""
        self._forgotten |= addresses
        if self.attached is not None:
            self.attached = _without(self.attached, addresses)

    def _cancel(self) -> None:
        for task in (self._following, self._asking):
            if task is not None and task.cancel():
                self._cancelled.add(task)
        self._following = self._asking = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _begin(self, work: Coroutine[Any, Any, None], fault: str, lasts: bool = False) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, fault, lasts))
        return task

    def _ended(self, fault: str, lasts: bool, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        cause = asyncio.CancelledError() if task.cancelled() else task.exception()
        if task in self._cancelled:
            self._cancelled.remove(task)
        elif lasts or cause is not None:
            task.get_loop().call_exception_handler({"message": fault, "exception": cause, "task": task})
            self._on_fault(f"{fault}: {cause!r}" if cause is not None else fault)

    def _on_event(self) -> None:
        self._unheard, self._refused = "", False
        self._ask()

    def _on_trouble(self, text: str) -> None:
        self._unheard = f"changes of names and tags are not heard of: {text}"
        self._say(self._unheard)
        if not self._answered:
            self._ask(fully=True)

    def _ask(self, fully: bool = False) -> None:
        """Asks dom0 which qubes there are, once more if it is being asked already.

        `fully`: and then, which takes longer, about qubes of which no event has told. Where dom0 refuses, it shows each
        refusal to its user: then it is not asked until it tells of events, or is to be followed again.
        """
        if self._following is None or self._refused:
            return
        self._again, self._fully = True, self._fully or fully
        if self._asking is None or self._asking.done():
            self._asking = self._begin(self._ask_now(), "dom0 is no longer asked for names")

    async def _ask_now(self) -> None:
        while self._again or self._fully:
            try:
                found = await self._answer()
            except AdminError as error:
                self._failed(error)
                return
            self._answered, self._failing, self._pause = True, False, _FIRST_PAUSE
            self._tell_unseen((*map(_lacks, self._api.refused), *self._api.odd))
            if found != self.attached:
                self.attached = found
                self._on_change()

    async def _answer(self) -> Attached:
        """Raises AdminError; what was to be asked about is still to be then."""
        forgotten, self._forgotten = self._forgotten, set()
        known, written = None, set()
        if self._again and self.attached is not None:
            known = Attached(tuple(qube for qube in self.attached.qubes if forgotten.isdisjoint(qube.addresses)))
        else:
            self._fully = False
            written, self._written = self._written, written
        self._again = False
        try:
            found = await self._api.attached(known)
        except BaseException:
            self._forgotten |= forgotten
            self._written |= written
            raise
        believed = _without(found, self._forgotten)  # some were asked before that, and are asked again
        self._again = self._again or believed != found
        return believed

    def _failed(self, error: AdminError) -> None:
        self._refused, self._failing = isinstance(error, Refused), True
        self._tell_unseen((str(error),))
        if not self._refused:
            if self._retry is not None:
                self._retry.cancel()
            self._retry = asyncio.get_running_loop().call_later(self._pause, self._ask, True)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        before = self.attached
        self._forget(self._written)
        if self.attached != before:
            self._on_change()

    def _tell_unseen(self, texts: tuple[str, ...]) -> None:
        for text in texts:
            if text not in self._unseen:
                self._say(f"names and tags of qubes: {text}")
        self._unseen = texts


def _without(attached: Attached, addresses: Collection[IPAddress]) -> Attached:
    """The same, where the owners of these addresses are not here."""
    gone = set(addresses)
    return Attached(
        tuple(qube if gone.isdisjoint(qube.addresses) else replace(qube, here=False) for qube in attached.qubes)
    )


def _lacks(line: str) -> str:
    return f"dom0 refuses; its policy lacks: {line}"
