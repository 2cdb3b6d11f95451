"""What Qubes OS knows, kept up to date: QubesDB for rules and addresses, dom0's Admin API for names and tags.

Outside Qubes OS neither is there, and the configuration alone says who the clients are.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from proxyfw.core.address import IPAddress
from proxyfw.core.config import Config
from proxyfw.core.netvm import Attached, World, read_netvm, world_as_data
from proxyfw.edge.adminapi import AdminApi, AdminError, Refused
from proxyfw.edge.qubesdb import Entries, QubesDb, QubesDbError, available, on_qubes

_RETRY = 10.0  # seconds before dom0 is asked again after no answer


class SourcesError(Exception):
    """This is a qube, and it cannot be told which rules its clients have: nothing may be let through."""


def needs_names(config: Config) -> bool:
    """Whether the configuration speaks of qubes by name or tag: dom0 is not bothered otherwise."""
    return bool(config.tags) or any(not client.addresses for client in config.clients.values())


class Sources:
    """`world`: the latest. `say`: tells a person. `trouble`: what cannot be learnt at present, for `status`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.world = World()
        self._say = say
        self._qubesdb = QubesDb() if available() or on_qubes() else None
        self._entries: Entries = {}
        self._attached: Attached | None = None
        self._following: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._again = self._fully = self._refused = False
        self._unheard = ""  # why changes are not heard of
        self._unseen: tuple[str, ...] = ()  # what the latest answer lacks, and why
        self._on_change: Callable[[frozenset[str]], None] = lambda _: None

    @property
    def trouble(self) -> list[str]:
        """What dom0 refuses, and the policy lines that are missing there."""
        return [*([self._unheard] if self._unheard else []), *self._unseen]

    def start(self) -> None:
        """Reads QubesDB for the first time. Blocks. Raises SourcesError."""
        if self._qubesdb is not None:
            try:
                self._take(self._qubesdb.start())
            except QubesDbError as error:
                raise SourcesError(f"this is a qube, but its firewall rules cannot be read: {error}") from None

    def follow(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[frozenset[str]], None]) -> None:
        """Goes on. `on_change(addresses)`: `world` is another, and these addresses have new rules."""
        self._on_change = on_change
        if self._qubesdb is not None:
            self._qubesdb.follow(loop, self._on_entries, self._say)

    def want_names(self, wanted: bool) -> None:
        """Asks dom0 for names and tags from now on, or no longer. Also asks again where dom0 has refused."""
        if self._following is not None and (self._refused or self._unheard or not wanted):
            self._following.cancel()
            self._following, self._refused = None, False
        if wanted and self._qubesdb is not None and self._following is None:
            assert self.world.netvm is not None
            self._api = AdminApi(self.world.netvm.name)
            self._following = asyncio.get_running_loop().create_task(self._api.follow(self._on_event, self._on_trouble))
        elif not wanted and self._attached is not None:
            self._attached = None
            self._unheard, self._unseen = "", ()
            self._take(self._entries)
            self._on_change(frozenset())

    async def stop(self) -> None:
        """Stops following."""
        tasks = [task for task in (self._following, self._asking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
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
        return None if self._qubesdb is None else world_as_data(self._entries, self._attached)

    def _take(self, entries: Entries) -> None:
        self._entries = entries
        self.world = World(read_netvm(entries, time.time()) if self._qubesdb is not None else None, self._attached)

    def _on_entries(self, entries: Entries, committed: frozenset[str]) -> None:
        before = self.world.netvm
        self._take(entries)
        now = self.world.netvm
        assert now is not None
        if before is not None and before.connected - now.connected:
            self._forget(before.connected - now.connected)
        if committed or before is None or before.connected != now.connected:
            # Whoever has come is asked for, also where dom0 tells of no events. Rules are written anew when a qube
            # starts: an address may be another's by then.
            self._ask(fully=True)
        self._on_change(committed)

    def _forget(self, gone: frozenset[IPAddress]) -> None:
        """Whoever comes with one of these addresses next may be another."""
        if self._attached is not None:
            qubes = [
                replace(qube, addresses=tuple(each for each in qube.addresses if each not in gone))
                for qube in self._attached.qubes
            ]
            self._attached = replace(self._attached, qubes=tuple(qubes))
            self._take(self._entries)

    def _on_event(self) -> None:
        self._unheard, self._refused = "", False
        self._ask()

    def _on_trouble(self, text: str) -> None:
        self._unheard = f"changes of names and tags are not heard of: {text}"
        self._say(self._unheard)

    def _ask(self, fully: bool = False) -> None:
        """Asks dom0 who is attached, once more if it is being asked already.

        `fully`: and then, which takes longer, about qubes of which no event has told. Where dom0 refuses, it shows each
        refusal to its user: then it is not asked until it tells of events, or `want_names` is called.
        """
        if self._following is None or self._refused:
            return
        self._again, self._fully = True, self._fully or fully
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask_now())

    async def _ask_now(self) -> None:
        try:
            while (self._again or self._fully) and self._following is not None:
                known = self._attached if self._again else None
                if known is None:
                    self._fully = False
                self._again = False
                try:
                    found = await self._api.attached(known)
                except AdminError as error:
                    self._refused = isinstance(error, Refused)
                    self._tell_unseen((str(error),))
                    if not self._refused:
                        asyncio.get_running_loop().call_later(_RETRY, self._ask, True)
                    return
                self._tell_unseen((*map(_lacks, self._api.refused), *self._api.odd))
                if found != self._attached and self._following is not None:
                    self._attached = found
                    self._take(self._entries)
                    self._on_change(frozenset())
        finally:
            self._asking = None

    def _tell_unseen(self, texts: tuple[str, ...]) -> None:
        for text in texts:
            if text not in self._unseen:
                self._say(f"names and tags of qubes: {text}")
        self._unseen = texts


def _lacks(line: str) -> str:
    return f"dom0 refuses; its policy lacks: {line}"
