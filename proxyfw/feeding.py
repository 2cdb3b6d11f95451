"""The feeds of the policy in force: fetched when they are due, kept in a file, and put into the packet layer.

A list is in `lists`, where decisions look, once the packet layer has it. Whatever goes wrong, the last good list stays.
"""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from proxyfw.core.addresslist import EMPTY, AddressList, Range
from proxyfw.core.feed import MAX_EVERY, Feed, Source
from proxyfw.core.feedbounds import judged, objection
from proxyfw.core.nftbatch import Change, ranges, steps
from proxyfw.core.ruleset import feed_set
from proxyfw.core.upstreamproxy import UpstreamProxy
from proxyfw.edge import feedprocess
from proxyfw.edge.feedcache import Cached, CacheError, FeedCache
from proxyfw.edge.feedprocess import Changed, Failed
from proxyfw.edge.nft import Nft, NftError

PATIENCE = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 6 * 3600.0  # seconds before what failed is tried again
UNUSED = 2 * MAX_EVERY  # seconds for which the list of a feed that nobody wants is kept
TOGETHER = 8192  # ranges that one transaction changes: it keeps the kernel for a tenth of a second
AT_ONCE = 2  # lists that are fetched at the same time
_LOOK = 600.0  # seconds after which the clock is looked at again: a netvm may have slept
_VERSIONS = (4, 6)


@dataclass(frozen=True, slots=True)
class Door:
    """What every list needs. `changing`: held while the packet layer is changed. `on_list(source, list)`: called with
    it held, when the packet layer has it.
    """

    nft: Nft  # for one thread at a time
    cache: FeedCache
    python: Path
    changing: asyncio.Lock
    on_list: Callable[[Source, AddressList], None]
    say: Callable[[str], None]
    patience: float
    clock: Callable[[], float]
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))


class FeedKeeper:
    """`lists`: what the packet layer holds. `patience`: seconds for one list, from the first byte asked to the last one
    read. `clock`: seconds since the epoch.
    """

    def __init__(
        self,
        nft: Nft,
        folder: Path,
        python: Path,
        changing: asyncio.Lock,
        on_change: Callable[[], None],
        say: Callable[[str], None],
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lists: dict[Source, AddressList] = {}
        self._on_change = on_change
        cache = FeedCache(folder, clock)
        self._door = Door(nft, cache, python, changing, self._on_list, say, patience, clock)
        self._kept: dict[Source, _Kept] = {}
        self._gone: set[asyncio.Task[None]] = set()
        self._pruned = False

    def want(self, feeds: Iterable[Feed], empty: Collection[str] = ()) -> None:
        """What the policy asks for that is in force from now on. To be called with `changing` held.

        `empty`: those sets of the packet layer that are new.
        """
        wanted: dict[Source, list[Feed]] = {}
        for feed in feeds:
            wanted.setdefault(feed.source, []).append(feed)
        for source in self._kept.keys() - wanted.keys():
            self._end(self._kept.pop(source))
            self.lists.pop(source, None)
        for source, grants in wanted.items():
            if source not in self._kept:
                self._kept[source] = _Kept(self._door, source)
            self._kept[source].wanted(grants)
            if any(feed_set(source, version) in empty for version in _VERSIONS):
                self._kept[source].doubt()
        if not self._pruned:
            self._pruned = True
            self._see_to_its_end(asyncio.get_running_loop().create_task(self._prune()))

    async def refresh(self, accept: bool) -> None:
        """Has all lists fetched now, and waits for it. `accept`: takes those that were held back for their growth
        instead, and fetches none.
        """
        await asyncio.gather(*(kept.refresh(accept) for kept in self._kept.values()))

    async def restored(self) -> None:
        """Waits until the lists of the last run are in force."""
        await asyncio.gather(*(kept.restored.wait() for kept in self._kept.values()))

    def doubt(self) -> None:
        """Somebody may have changed the packet layer: what is in its sets is read, and put right."""
        for kept in self._kept.values():
            kept.doubt()

    def status(self) -> list[dict[str, Any]]:
        """Of each list, for `status`."""
        return [kept.status() for kept in self._kept.values()]

    async def stop(self) -> None:
        """Stops fetching; what is in force stays."""
        for kept in self._kept.values():
            self._end(kept)
        await asyncio.gather(*self._gone, return_exceptions=True)

    async def _prune(self) -> None:
        keep, before = {source.id for source in self._kept}, self._door.clock() - UNUSED
        try:
            await asyncio.to_thread(self._door.cache.prune, keep, before)
        except CacheError as error:
            self._door.say(f"old lists of feeds are still there: {error}")

    def _end(self, kept: "_Kept") -> None:
        self._see_to_its_end(kept.stop())

    def _see_to_its_end(self, task: "asyncio.Task[None]") -> None:
        self._gone.add(task)
        task.add_done_callback(self._gone.discard)

    def _on_list(self, source: Source, found: AddressList) -> None:
        self.lists[source] = found
        self._on_change()


class _Kept:
    """One list, from the moment it is wanted until `stop`."""

    def __init__(self, door: Door, source: Source) -> None:
        self._door, self._source = door, source
        self._profiles: list[str] = []
        self._every = 0
        self._through: UpstreamProxy | None = None
        self._good = EMPTY  # the last one taken
        self._held: AddressList | None = None  # the last one held back
        self._cached = self._new("", "", [])
        self._due = 0.0  # when it is to be fetched next, in epoch seconds
        self._pause = 0.0  # seconds for which that is put off at most
        self._failures = 0
        self._error = ""
        self._sets: AddressList | None = None  # what the packet layer holds; None: to be read there
        self._in_force = EMPTY  # the one that decisions know of, as well as the packet layer
        self.restored = asyncio.Event()
        self._wake = asyncio.Event()
        self._asked: list[tuple[asyncio.Future[None], bool]] = []
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._ended)

    def wanted(self, feeds: list[Feed]) -> None:
        """Who wants it, how often, and through what it is fetched from now on."""
        self._profiles = list(dict.fromkeys(feed.profile for feed in feeds))
        through = feeds[0].through  # one for all
        if through != self._through:
            self._through, self._due = through, 0.0
            self._wake.set()
        every = min(feed.every for feed in feeds)
        if every != self._every:
            self._every, self._due = every, min(self._due, self._cached.checked + every)
            self._wake.set()

    def doubt(self) -> None:
        """What the packet layer holds is not known any more."""
        self._sets = None
        self._wake.set()

    async def refresh(self, accept: bool) -> None:
        """Fetches it now."""
        if not self._task.done():
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._asked.append((done, accept))
            self._wake.set()
            await done

    def stop(self) -> "asyncio.Task[None]":
        """Ends it; the task that ends."""
        self._task.cancel()
        return self._task

    def status(self) -> dict[str, Any]:
        """For `status`."""
        return {
            "source": str(self._source),
            "profiles": self._profiles,
            "networks": self._in_force.prefixes,
            "checked": self._cached.checked,
            "due": self._due,
            "error": self._error,
            "held_back": self._held.prefixes if self._held is not None else 0,
        }

    def _ended(self, _: "asyncio.Task[None]") -> None:
        self.restored.set()
        _answer(self._asked)

    async def _run(self) -> None:
        with self._told():
            await self._restore()
        self.restored.set()
        while True:
            await self._wait()
            self._wake.clear()
            asked, self._asked = self._asked, []
            try:
                with self._told():
                    await self._work(any(accept for _, accept in asked), not all(accept for _, accept in asked))
            finally:
                _answer(asked)

    async def _work(self, accept: bool, fetch: bool) -> None:
        """All that is to be done now. `fetch`: due or not."""
        if self._sets is None:
            await self._put(self._good)
        if accept and self._held is not None and await self._put(self._held):
            await self._taken(self._new("", "", await asyncio.to_thread(_texts_of, self._good)))
        if fetch or self._door.clock() >= self._due:
            await self._fetch()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """A fault of ours keeps one list as it is for a while; it ends nothing else, and must not be missed."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is
            self._sets = None
            self._fail(f"a fault of proxyfw: {error!r}")

    async def _wait(self) -> None:
        """Until it is due, or there is another thing to do."""
        while not self._wake.is_set() and (left := self._left()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, _LOOK)):
                    await self._wake.wait()

    def _left(self) -> float:
        """Seconds until it is due. A clock that went back does not keep it from being fetched."""
        now = self._door.clock()
        self._due = min(self._due, now + self._pause)
        return self._due - now

    async def _restore(self) -> None:
        """Begins with the list of the last run. Without one, what that run left in the packet layer goes."""
        cached, wrong = await asyncio.to_thread(self._door.cache.load, self._source.id, str(self._source))
        if cached is not None:
            found, wrong = await asyncio.to_thread(judged, None, cached.networks)
            if not wrong:
                self._good, self._cached = found, cached
                self._later(self._every, cached.checked)
        if wrong:
            self._door.say(f"feed {self._source}: the list of the last run cannot be used: {wrong}")
        await self._put(self._good)

    async def _fetch(self) -> None:
        if self._source.python and self._through is not None:
            # Fails closed: nothing can make somebody's program take the proxy.
            self._fail("not run, as it would not leave through the upstream proxy")
            return
        async with self._door.slots:
            answer = await feedprocess.ask(self._request(), self._door.patience)
        if isinstance(answer, Failed):
            self._fail(answer.error)
        elif isinstance(answer, Changed):
            await self._judge(answer)
        elif self._good is EMPTY:
            self._fail("it says that nothing has changed, and there is no list yet")
        else:
            await self._taken(self._cached)

    def _request(self) -> dict[str, Any]:
        source = self._source
        if source.python:
            return {"python": str(self._door.python / f"{source.python}.py"), "current": self._cached.networks}
        return {
            "url": source.url,
            "format": source.format,
            "select": list(source.select),
            "etag": self._cached.etag,
            "modified": self._cached.modified,
            "through": _told(self._through),
        }

    async def _judge(self, answer: Changed) -> None:
        found, wrong = await asyncio.to_thread(judged, self._good, answer.networks)
        if wrong:
            self._held = found if not objection(None, found) else None
            self._fail(f"held back: {wrong}")
        elif await self._put(found):
            await self._taken(self._new(answer.etag, answer.modified, answer.networks))

    async def _taken(self, cached: Cached) -> None:
        """The list is good as of now."""
        cached = replace(cached, checked=self._door.clock())
        error = ""
        try:
            await asyncio.to_thread(self._door.cache.save, cached)
        except CacheError as failed:
            error = f"it is in force, and will not survive a restart: {failed}"
        self._cached = cached
        self._failures, self._held = 0, None
        self._later(self._every, cached.checked)
        self._tell(error, error)

    def _fail(self, error: str) -> None:
        kept = "nothing is granted by it" if self._good is EMPTY else "the last good list stays"
        self._tell(error, f"{error}; {kept}")
        pause = min(FIRST_PAUSE * 2.0 ** min(self._failures, 16), LONGEST_PAUSE, max(self._every, FIRST_PAUSE))
        self._failures += 1
        self._later(pause, self._door.clock())

    def _tell(self, error: str, words: str) -> None:
        """Once, as long as it stays the same."""
        if error and error != self._error:
            self._door.say(f"feed {self._source}: {words}")
        self._error = error

    def _later(self, seconds: float, since: float) -> None:
        """Not all at the same moment, nor at one that tells who is asking."""
        self._pause = seconds * random.uniform(0.9, 1.1)
        self._due = since + self._pause

    async def _put(self, found: AddressList) -> bool:
        """Has the packet layer hold this list; whether it does."""
        async with self._door.changing:
            try:
                await asyncio.shield(asyncio.to_thread(self._apply, found))
            except NftError as error:
                self._sets = None
                self._fail(f"the packet layer does not take it: {error}")
                return False
            self._sets = self._good = found
            if self._in_force is not found:
                self._door.on_list(self._source, found)
                self._in_force = found
            return True

    def _apply(self, found: AddressList) -> None:
        """In a thread."""
        if self._sets is not None:
            with suppress(NftError):  # somebody else has changed what is there
                return self._change({version: self._sets.ranges(version) for version in _VERSIONS}, found)
        names = {version: feed_set(self._source, version) for version in _VERSIONS}
        return self._change({version: self._door.nft.ranges(name, version) for version, name in names.items()}, found)

    def _change(self, held: Mapping[int, Iterable[Range]], found: AddressList) -> None:
        """In one transaction, unless it is a large change."""
        together: list[Change] = []
        size = 0
        for version in _VERSIONS:
            name = feed_set(self._source, version)
            for going, coming in steps(held[version], found.ranges(version), TOGETHER):
                count = len(going) + len(coming)
                if together and size + count > TOGETHER:
                    self._door.nft.change(together)
                    together, size = [], 0
                together += [Change(name, False, ranges(going, version)), Change(name, True, ranges(coming, version))]
                size += count
        self._door.nft.change(together)

    def _new(self, etag: str, modified: str, networks: list[str]) -> Cached:
        return Cached(self._source.id, str(self._source), etag, modified, 0.0, networks)


def _told(proxy: UpstreamProxy | None) -> list[Any] | None:
    """A proxy as proxyfw.feedworker has it."""
    return [proxy.scheme, str(proxy.address), proxy.port, proxy.user, proxy.password] if proxy is not None else None


def _answer(asked: Iterable[tuple[asyncio.Future[None], bool]]) -> None:
    for done, _ in asked:
        if not done.done():
            done.set_result(None)


def _texts_of(found: AddressList) -> list[str]:
    return [str(network) for network in found.networks()]
