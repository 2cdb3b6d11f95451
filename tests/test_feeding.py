"""The keeper of lists, on a clock that runs as fast as the test: the process that fetches, and the packet layer, are
doubles; the cache is real.
"""

import asyncio
import json
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from proxyfw.core.addresslist import AddressList, Range
from proxyfw.core.feed import DAY, MAX_EVERY, Feed, Source
from proxyfw.core.feedformats import Format
from proxyfw.core.netlink import attributes
from proxyfw.core.nftbatch import Change
from proxyfw.core.problem import Where
from proxyfw.core.ruleset import feed_set
from proxyfw.core.upstreamproxy import parse_upstream_proxy
from proxyfw.edge import feedprocess
from proxyfw.edge.feedcache import Cached, CacheError, FeedCache
from proxyfw.edge.feedprocess import Changed, Failed, Same
from proxyfw.edge.nft import NftError
from proxyfw.feeding import AT_ONCE, FIRST_PAUSE, LONGEST_PAUSE, UNUSED, FeedKeeper

START = 1_800_000_000.0  # epoch seconds
ONE = Source("https://one.example/list", Format.TEXT)
TWO = Source("https://two.example/list", Format.TEXT)
PYTHON = Source(python="ours")
FOUR, SIX, OTHER = "192.0.2.0/24", "2001:db8::/32", "198.51.100.0/25"
MANY = [f"20.0.{number}.0/24" for number in range(0, 200, 2)]
TOO_WIDE = "held back: 0.0.0.0/0 is wider than /8"


def feed(source: Source = ONE, every: int = DAY, profile: str = "p") -> Feed:
    return Feed(source, (), every, Where("p.yaml", 1), profile)


class Selector(selectors.DefaultSelector):
    """Waits for nothing: the time is over when it is asked to."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found:
            assert timeout is not None, "nothing will ever happen again"
            self.now += max(timeout, 0.0)
        return found


class Loop(asyncio.SelectorEventLoop):
    """Its clock is the selector's."""

    def __init__(self) -> None:
        self._own = Selector()
        super().__init__(self._own)

    def time(self) -> float:
        return self._own.now


class Kernel:
    """Stands in for Nft, and takes a change as the kernel does: all of it, or none. `sets`: what is in them."""

    def __init__(self) -> None:
        self.sets: dict[str, set[Range]] = {}
        self.changes = 0
        self.fails = False

    def change(self, changes: Iterable[Change]) -> None:
        found = {name: set(held) for name, held in self.sets.items()}
        for change in changes:
            held = found.setdefault(change.set, set())
            some = set(_ranges(change.elements))
            if self.fails or (held & some if change.adds else some - held):
                raise NftError("elements of sets: No such file or directory")
            held ^= some
        self.sets = found
        self.changes += 1

    def ranges(self, name: str, version: int) -> list[Range]:
        if self.fails:
            raise NftError("the ruleset cannot be listed: no")
        return sorted(self.sets.get(name, ()))

    def networks(self, source: Source) -> set[str]:
        """What a list's sets let through."""
        held = ((self.sets.get(feed_set(source, version), set()), version) for version in (4, 6))
        return {text for some, version in held for text in _texts(some, version)}


def _ranges(elements: Iterable[bytes]) -> list[Range]:
    ends = []
    for element in elements:
        ((_, body),) = attributes(element)
        values = dict(attributes(body))
        ends.append(int.from_bytes(dict(attributes(values[1]))[1]))
    return [(first, beyond - 1) for first, beyond in zip(ends[::2], ends[1::2], strict=True)]


def _texts(ranges: Iterable[Range], version: int) -> list[str]:
    four, six = (tuple(sorted(ranges)) if version == each else () for each in (4, 6))
    return [str(network) for network in AddressList(four, six).networks()]


Reply = feedprocess.Answer | BaseException | Callable[[], Awaitable[feedprocess.Answer]]


class World:
    """A keeper, and all that is around it. `replies`: what comes of asking for a list. `asked`: when, and for what."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loop = Loop()
        self.kernel = Kernel()
        self.changing = asyncio.Lock()
        self.said: list[str] = []
        self.replies: dict[str, Reply] = {}
        self.asked: list[tuple[float, Mapping[str, Any]]] = []
        self.under_way: list[str] = []
        self.cancelled: list[str] = []
        self.patience: set[float] = set()
        self.fault: Exception | None = None
        self.on_changes = 0
        self.jump = 0.0  # seconds by which somebody has set the clock
        self.cache = FeedCache(folder, self.clock)
        self.keeper = self.again()

    def again(self) -> FeedKeeper:
        """As after a restart: the kernel and the disk are what they were."""
        arguments = (self.kernel, self.folder, Path("/feeds"), self.changing, self._on_change, self.said.append)
        self.keeper = FeedKeeper(*arguments, patience=7.0, clock=self.clock)  # type: ignore[arg-type]
        return self.keeper

    def clock(self) -> float:
        return START + self.loop.time() + self.jump

    async def ask(self, request: Mapping[str, Any], patience: float) -> feedprocess.Answer:
        name = str(request.get("url") or request["python"])
        self.asked.append((self.loop.time(), request))
        self.under_way.append(name)
        self.patience.add(patience)
        reply = self.replies.get(name, Failed("nobody is there"))
        try:
            if isinstance(reply, BaseException):
                raise reply
            return await reply() if callable(reply) else reply
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        finally:
            self.under_way.remove(name)

    async def want(self, *feeds: Feed, empty: Iterable[str] = ()) -> None:
        """As a reload does it; and what follows from it at once is done."""
        async with self.changing:
            self.keeper.want(feeds, tuple(empty))
        await self.settled()

    async def settled(self) -> None:
        await asyncio.sleep(1e-3)

    def status(self, source: Source = ONE) -> dict[str, Any]:
        return next(each for each in self.keeper.status() if each["source"] == str(source))

    def times(self, source: Source = ONE) -> list[float]:
        """When it was asked for, on the loop's clock."""
        return [when for when, request in self.asked if request.get("url") == source.url]

    def gaps(self) -> list[float]:
        times = self.times()
        return [later - earlier for earlier, later in pairwise(times)]

    def keep(self, source: Source, *networks: str, checked: float = START) -> None:
        """Leaves a list on the disk, as an earlier run has."""
        self.cache.save(Cached(source.id, str(source), '"1"', "", checked, list(networks)))

    def _on_change(self) -> None:
        assert self.changing.locked()
        self.on_changes += 1
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault


def changed(*networks: str, etag: str = "") -> Changed:
    return Changed([str(ip_network(network)) for network in networks], etag, "")


async def _at_once(function: Callable[..., Any], /, *arguments: Any) -> Any:
    """In place of a thread, which takes time that this clock does not have."""
    return function(*arguments)


Play = Callable[[Callable[[World], Coroutine[Any, Any, None]]], World]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Runs a story on a loop of its own; when it ends, everything has to end."""
    monkeypatch.setattr(asyncio, "to_thread", _at_once)
    world = World(tmp_path / "feeds")
    monkeypatch.setattr(feedprocess, "ask", world.ask)

    async def whole(story: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        await story(world)
        await asyncio.wait_for(world.keeper.stop(), 1.0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not world.under_way

    def run(story: Callable[[World], Coroutine[Any, Any, None]]) -> World:
        with asyncio.Runner(loop_factory=lambda: world.loop) as runner:
            runner.run(whole(story))
        return world

    return run


# When it is fetched


def test_a_list_is_fetched_at_once_and_is_in_force(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR, SIX, etag='"a"')
        await world.want(feed())
        assert world.times() == [0.0]
        assert world.kernel.networks(ONE) == {FOUR, SIX}
        assert [str(each) for each in world.keeper.lists[ONE].networks()] == [FOUR, SIX]
        assert world.patience == {7.0}
        told = world.status()
        due = told.pop("due")
        assert 0.9 * DAY <= due - START <= 1.1 * DAY
        assert told == {
            "source": ONE.url,
            "profiles": ["p"],
            "networks": 2,
            "checked": START,
            "error": "",
            "held_back": 0,
        }

    assert play(story).said == []


@pytest.mark.parametrize("every", [600, 7200, DAY])
def test_it_is_fetched_again_and_again_as_often_as_every_says_give_or_take_a_tenth(play: Play, every: int) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR)
        await world.want(feed(every=every))
        await asyncio.sleep(every * 40)
        gaps = world.gaps()
        assert len(gaps) >= 36
        assert all(0.9 * every <= gap <= 1.1 * every for gap in gaps)
        assert max(gaps) - min(gaps) > 0.05 * every  # jittered

    play(story)


@pytest.mark.parametrize(
    ("every", "longest"),
    [
        pytest.param(MAX_EVERY, LONGEST_PAUSE, id="up to six hours"),
        pytest.param(600, 600.0, id="but no more seldom than where all is well"),
    ],
)
def test_what_fails_is_tried_again_after_twice_as_long_each_time(play: Play, every: int, longest: float) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = Failed("HTTP status 500")
        await world.want(feed(every=every))
        await asyncio.sleep(40 * longest)
        gaps = world.gaps()
        wanted = [min(FIRST_PAUSE * 2**number, longest) for number in range(len(gaps))]
        assert wanted[-1] == longest
        assert all(0.9 * pause <= gap <= 1.1 * pause for gap, pause in zip(gaps, wanted, strict=True))
        assert (world.status()["error"], world.status()["checked"]) == ("HTTP status 500", 0.0)

    assert play(story).said == [f"feed {ONE.url}: HTTP status 500; nothing is granted by it"]


def test_after_a_success_a_failure_is_tried_again_soon(play: Play) -> None:
    async def story(world: World) -> None:
        for reply in (Failed("down"), changed(FOUR), Failed("down")):
            world.replies[ONE.url] = reply
            if not world.asked:
                await world.want(feed())
            await world.keeper.refresh(False)
        failed_at = world.loop.time()
        await asyncio.sleep(2 * FIRST_PAUSE)
        assert 0.9 * FIRST_PAUSE <= world.times()[-1] - failed_at <= 1.1 * FIRST_PAUSE
        assert world.kernel.networks(ONE) == {FOUR}

    assert play(story).said == [
        f"feed {ONE.url}: down; nothing is granted by it",
        f"feed {ONE.url}: down; the last good list stays",
    ]


@pytest.mark.parametrize(
    ("jump", "within"),
    [
        pytest.param(-365.0 * DAY, 1.1 * DAY, id="a year back"),
        pytest.param(-0.5 * DAY, 1.6 * DAY, id="half a day back"),
        pytest.param(365.0 * DAY, 600.0, id="a year ahead"),
    ],
)
def test_a_clock_that_is_set_does_not_keep_a_list_from_being_fetched(play: Play, jump: float, within: float) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR)
        await world.want(feed())
        world.jump = jump
        await asyncio.sleep(within + 1.0)
        assert len(world.times()) == 2
        await asyncio.sleep(11 * DAY)  # and then as ever
        assert 11 <= len(world.times()) <= 14

    play(story)


def test_the_shortest_every_counts_and_a_shorter_one_brings_it_forward(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR)
        await world.want(feed(every=7 * DAY), feed(every=9 * DAY, profile="q"))
        assert world.status()["profiles"] == ["p", "q"]
        assert 0.9 * 7 * DAY <= world.status()["due"] - START <= 1.1 * 7 * DAY
        await asyncio.sleep(3600)
        await world.want(feed(every=9 * DAY, profile="q"), feed(every=7200, profile="r"))
        assert world.status()["profiles"] == ["q", "r"]
        await asyncio.sleep(3700)
        assert len(world.times()) == 2

    play(story)


def test_only_so_many_are_fetched_at_the_same_time(play: Play) -> None:
    sources = [Source(f"https://{number}.example/", Format.TEXT) for number in range(7)]

    async def story(world: World) -> None:
        most = 0

        async def slow() -> feedprocess.Answer:
            nonlocal most
            most = max(most, len(world.under_way))
            await asyncio.sleep(5.0)
            return changed(FOUR)

        world.replies = {source.url: slow for source in sources}
        await world.want(*map(feed, sources))
        await asyncio.sleep(30.0)
        assert most == AT_ONCE
        assert all(world.kernel.networks(source) == {FOUR} for source in sources)

    play(story)


# Lists that come and go


def waits_for(gate: asyncio.Event, then: feedprocess.Answer) -> Callable[[], Awaitable[feedprocess.Answer]]:
    async def reply() -> feedprocess.Answer:
        await gate.wait()
        return then

    return reply


def test_a_list_that_nobody_wants_any_more_while_it_is_fetched_comes_to_nothing(play: Play) -> None:
    async def story(world: World) -> None:
        gate = asyncio.Event()
        world.replies = {ONE.url: waits_for(gate, changed(FOUR)), TWO.url: changed(OTHER)}
        await world.want(feed(ONE), feed(TWO))
        assert world.under_way == [ONE.url]
        await world.want(feed(TWO))
        assert (world.under_way, world.cancelled) == ([], [ONE.url])
        gate.set()
        await asyncio.sleep(30 * DAY)
        assert set(world.keeper.lists) == {TWO}
        assert world.kernel.networks(ONE) == set()
        assert len(world.times(ONE)) == 1
        await world.want(feed(ONE), feed(TWO))
        assert world.kernel.networks(ONE) == {FOUR}

    play(story)


def test_a_list_that_waits_for_a_reload_which_takes_it_away_is_not_put_in_force(play: Play) -> None:
    async def story(world: World) -> None:
        gate = asyncio.Event()
        world.replies[ONE.url] = waits_for(gate, changed(FOUR))
        await world.want(feed())
        async with world.changing:
            gate.set()
            await world.settled()  # it is there, and waits
            assert not world.under_way
            world.keeper.want(())
        await asyncio.sleep(30 * DAY)
        assert (world.keeper.lists, world.kernel.networks(ONE)) == ({}, set())

    play(story)


@pytest.mark.parametrize("steps", range(6))
def test_to_be_woken_and_ended_at_the_same_moment_is_to_be_ended(play: Play, steps: int) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR)
        await world.want(feed())
        world.keeper.doubt()
        for _ in range(steps):
            await asyncio.sleep(0)
        async with world.changing:
            world.keeper.want(())
        await asyncio.sleep(30 * DAY)
        assert len(world.times()) == 1

    play(story)


def test_one_list_with_other_ports_in_two_profiles_is_fetched_once_and_another_selection_of_it_is_another(
    play: Play,
) -> None:
    some = Source(ONE.url, Format.JSON, ("a",))
    others = Source(ONE.url, Format.JSON, ("b",))

    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR)
        await world.want(feed(some), feed(some, profile="q"), feed(others))
        assert [request["select"] for _, request in world.asked] == [["a"], ["b"]]

    play(story)


def test_stopping_while_it_is_fetched_ends_at_once_and_what_is_in_force_stays(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies = {ONE.url: changed(FOUR), TWO.url: waits_for(asyncio.Event(), Same())}
        await world.want(feed(ONE), feed(TWO))
        await world.keeper.stop()
        assert world.cancelled == [TWO.url]
        assert world.kernel.networks(ONE) == {FOUR}
        await world.keeper.refresh(False)  # waits for nothing

    play(story)


# The packet layer


def test_a_list_that_the_packet_layer_does_not_take_is_tried_again(play: Play) -> None:
    async def story(world: World) -> None:
        async def reply() -> feedprocess.Answer:
            world.kernel.fails = len(world.asked) == 1
            return changed(FOUR, etag='"a"')

        world.replies[ONE.url] = reply
        await world.want(feed())
        assert world.keeper.lists == {}
        assert world.status()["error"] == "the packet layer does not take it: the ruleset cannot be listed: no"
        assert world.on_changes == 0
        world.kernel.fails = False
        await asyncio.sleep(4 * FIRST_PAUSE)
        assert world.kernel.networks(ONE) == {FOUR}
        assert world.status()["error"] == ""
        assert [request["etag"] for _, request in world.asked] == ["", ""]  # the first was not taken

    play(story)


def test_a_new_list_that_the_packet_layer_does_not_take_leaves_the_old_one_everywhere(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR, etag='"a"')
        await world.want(feed())
        before = world.keeper.lists[ONE]
        world.kernel.fails = True
        world.replies[ONE.url] = changed(OTHER, etag='"b"')
        await world.keeper.refresh(False)
        assert world.keeper.lists[ONE] is before
        assert (world.kernel.networks(ONE), world.status()["networks"]) == ({FOUR}, 1)
        assert world.cache.load(ONE.id, str(ONE))[0].networks == [FOUR]  # type: ignore[union-attr]
        world.kernel.fails = False
        await asyncio.sleep(2 * FIRST_PAUSE)
        assert world.kernel.networks(ONE) == {OTHER}

    play(story)


def test_what_somebody_else_took_out_of_the_sets_does_not_hold_up_the_next_list(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR, OTHER)
        await world.want(feed())
        world.kernel.sets[feed_set(ONE, 4)].clear()
        world.replies[ONE.url] = changed(FOUR, SIX)
        await world.keeper.refresh(False)
        assert world.kernel.networks(ONE) == {FOUR, SIX}
        assert world.status()["error"] == ""

    play(story)


@pytest.mark.parametrize("how", ["in doubt", "the sets are new"])
def test_in_doubt_what_is_in_the_sets_is_put_right_and_nothing_is_fetched(play: Play, how: str) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR)
        await world.want(feed())
        world.kernel.sets = {feed_set(ONE, 6): {(1, 2)}}  # somebody has been there
        if how == "in doubt":
            world.keeper.doubt()
            await world.settled()
        else:
            await world.want(feed(), empty=[feed_set(ONE, 4)])
        assert world.kernel.networks(ONE) == {FOUR}
        assert (len(world.times()), world.on_changes) == (1, 1)  # decisions have known it all the time

    play(story)


def test_the_same_list_again_changes_nothing(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR, etag='"a"')
        await world.want(feed())
        world.replies[ONE.url] = Same()
        changes = world.kernel.changes
        await asyncio.sleep(3600)
        await world.keeper.refresh(False)
        assert world.asked[-1][1]["etag"] == '"a"'
        assert (world.kernel.changes, world.on_changes) == (changes, 1)
        assert 3600 <= world.status()["checked"] - START < 3601
        assert world.cache.load(ONE.id, str(ONE))[0].checked == world.status()["checked"]  # type: ignore[union-attr]

    play(story)


# Asked for by a person


def test_refresh_while_it_is_being_fetched_fetches_it_once_more(play: Play) -> None:
    async def story(world: World) -> None:
        gate = asyncio.Event()
        world.replies[ONE.url] = waits_for(gate, changed(FOUR))
        await world.want(feed())
        asked = asyncio.create_task(world.keeper.refresh(False))
        await world.settled()
        world.replies[ONE.url] = changed(OTHER)
        gate.set()
        await asked
        assert world.kernel.networks(ONE) == {OTHER}  # not the one that was under way
        assert len(world.times()) == 2

    play(story)


def test_refresh_ends_when_the_list_is_not_wanted_any_more(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = waits_for(asyncio.Event(), Same())
        await world.want(feed())
        asked = [asyncio.create_task(world.keeper.refresh(accept)) for accept in (False, True)]
        await world.settled()
        await world.want()
        await asyncio.wait_for(asyncio.gather(*asked), 1.0)

    play(story)


def test_whoever_stops_waiting_for_a_refresh_stops_nothing(play: Play) -> None:
    async def story(world: World) -> None:
        gate = asyncio.Event()
        world.replies[ONE.url] = waits_for(gate, changed(FOUR))
        await world.want(feed())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(world.keeper.refresh(False), 5.0)
        gate.set()
        await world.settled()
        assert world.kernel.networks(ONE) == {FOUR}

    play(story)


def test_a_list_that_grew_tenfold_is_held_back_until_a_person_takes_it(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(*MANY[:5], etag='"a"')
        await world.want(feed())
        world.replies[ONE.url] = changed(*MANY, etag='"b"')
        await world.keeper.refresh(False)
        assert world.status()["error"] == "held back: it grew from 5 to 100 IPv4 networks at once"
        assert (world.status()["held_back"], world.status()["networks"]) == (100, 5)
        assert world.kernel.networks(ONE) == set(MANY[:5])
        await world.keeper.refresh(True)
        assert world.kernel.networks(ONE) == set(MANY)
        assert (world.status()["held_back"], world.status()["networks"], world.status()["error"]) == (0, 100, "")
        assert len(world.asked) == 2  # to accept is not to ask
        await world.keeper.refresh(False)
        assert [request["etag"] for _, request in world.asked] == ["", '"a"', ""]
        assert world.cache.load(ONE.id, str(ONE))[0].networks == MANY  # type: ignore[union-attr]

    play(story)


def test_to_accept_where_nothing_is_held_back_does_nothing(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR)
        await world.want(feed())
        before = world.status()
        await world.keeper.refresh(True)
        assert (world.status(), len(world.asked)) == (before, 1)

    play(story)


@pytest.mark.parametrize(
    ("then", "held"),
    [
        pytest.param(changed(FOUR), 0, id="a good list came"),
        pytest.param(changed("0.0.0.0/0"), 0, id="a list came that nobody may accept"),
        pytest.param(changed(*MANY, *MANY[:7]), 100, id="it came again"),
        pytest.param(Failed("down"), 100, id="no list came"),
    ],
)
def test_what_is_held_back_is_the_latest_that_could_be_taken(play: Play, then: feedprocess.Answer, held: int) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(*MANY[:5])
        await world.want(feed())
        for reply in (changed(*MANY), then):
            world.replies[ONE.url] = reply
            await world.keeper.refresh(False)
        assert world.status()["held_back"] == held
        await world.keeper.refresh(True)
        assert len(world.kernel.networks(ONE)) == (held or (1 if then == changed(FOUR) else 5))

    play(story)


def test_both_are_done_where_one_person_accepts_and_another_refreshes(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(*MANY[:5])
        await world.want(feed())
        world.replies[ONE.url] = changed(*MANY)
        await world.keeper.refresh(False)
        world.replies[ONE.url] = changed(*MANY, SIX)
        await asyncio.gather(world.keeper.refresh(True), world.keeper.refresh(False))
        assert world.kernel.networks(ONE) == {*MANY, SIX}

    play(story)


# What goes wrong


def test_what_stays_wrong_is_said_once_and_said_again_when_it_comes_back(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR)
        await world.want(feed())
        for reply in (Failed("a"), Failed("a"), Failed("b"), changed(FOUR), Failed("b"), changed("0.0.0.0/0")):
            world.replies[ONE.url] = reply
            await world.keeper.refresh(False)
        assert world.status()["error"] == TOO_WIDE

    said = play(story).said
    assert said == [f"feed {ONE.url}: {words}; the last good list stays" for words in ("a", "b", "b", TOO_WIDE)]


@pytest.mark.parametrize("source", [ONE, PYTHON], ids=str)
def test_nothing_has_changed_is_no_answer_where_there_is_no_list(play: Play, source: Source) -> None:
    async def story(world: World) -> None:
        world.replies = {ONE.url: Same(), "/feeds/ours.py": Same()}
        await world.want(feed(source))
        assert world.status(source)["error"] == "it says that nothing has changed, and there is no list yet"
        assert world.status(source)["checked"] == 0.0
        assert world.cache.load(source.id, str(source)) == (None, "")

    play(story)


def test_a_python_feed_is_given_the_list_that_is_in_force(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies["/feeds/ours.py"] = changed(FOUR, SIX)
        await world.want(feed(PYTHON))
        await world.keeper.refresh(False)
        assert [request for _, request in world.asked] == [
            {"python": "/feeds/ours.py", "current": []},
            {"python": "/feeds/ours.py", "current": [FOUR, SIX]},
        ]

    play(story)


def test_a_list_that_cannot_be_written_down_is_in_force_and_it_is_told_once(play: Play) -> None:
    async def story(world: World) -> None:
        world.folder.write_text("no folder")
        world.replies[ONE.url] = changed(FOUR)
        await world.want(feed())
        await world.keeper.refresh(False)
        assert world.kernel.networks(ONE) == {FOUR}
        with pytest.raises(CacheError) as why:
            world.keep(ONE, FOUR)
        error = f"it is in force, and will not survive a restart: {why.value}"
        assert world.status()["error"] == error
        assert [line for line in world.said if "survive" in line] == [f"feed {ONE.url}: {error}"]
        assert (
            0.9 * DAY <= world.status()["due"] - world.clock() <= 1.1 * DAY
        )  # which is no reason to fetch it more often
        world.folder.unlink()
        await world.keeper.refresh(False)
        assert world.status()["error"] == ""

    play(story)


def test_a_fault_of_ours_at_one_list_is_told_and_ends_neither_it_nor_the_others(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies = {ONE.url: ZeroDivisionError("oh"), TWO.url: changed(OTHER)}
        await world.want(feed(ONE), feed(TWO))
        assert world.status(ONE)["error"] == "a fault of proxyfw: ZeroDivisionError('oh')"
        assert world.kernel.networks(TWO) == {OTHER}
        await asyncio.wait_for(world.keeper.refresh(False), 1.0)
        await asyncio.wait_for(world.keeper.restored(), 1.0)
        world.replies[ONE.url] = changed(FOUR)
        await asyncio.sleep(4 * FIRST_PAUSE)
        assert (world.kernel.networks(ONE), world.status(ONE)["error"]) == ({FOUR}, "")

    assert play(story).said == [
        f"feed {ONE.url}: a fault of proxyfw: ZeroDivisionError('oh'); nothing is granted by it"
    ]


def test_a_list_that_decisions_could_not_be_told_of_is_told_to_them_again(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR)
        world.fault = ValueError("in the policy")
        await world.want(feed())
        assert world.status()["error"] == "a fault of proxyfw: ValueError('in the policy')"
        await asyncio.sleep(2 * FIRST_PAUSE)
        assert (world.on_changes, world.status()["error"]) == (3, "")

    play(story)


# After a restart


def test_the_lists_of_the_last_run_are_in_force_before_anything_is_asked(play: Play) -> None:
    async def story(world: World) -> None:
        world.keep(ONE, FOUR, checked=START - 3600)
        world.keep(TWO, OTHER, SIX, checked=START - 9 * DAY)
        world.replies[TWO.url] = Failed("the network is down")
        async with world.changing:
            world.keeper.want([feed(ONE), feed(TWO)])
        await world.keeper.restored()
        assert (world.kernel.networks(ONE), world.kernel.networks(TWO)) == ({FOUR}, {OTHER, SIX})
        assert set(world.keeper.lists) == {ONE, TWO}
        await world.settled()
        assert [request["url"] for _, request in world.asked] == [TWO.url]  # the other is not due
        assert world.asked[0][1]["etag"] == '"1"'
        assert world.status(ONE)["checked"] == START - 3600
        assert 0.9 * DAY <= world.status(ONE)["due"] - START + 3600 <= 1.1 * DAY

    assert play(story).said == [f"feed {TWO.url}: the network is down; the last good list stays"]


def test_a_restart_does_not_touch_what_is_in_the_packet_layer_already(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR, SIX)
        await world.want(feed())
        await world.keeper.stop()
        seen: list[Any] = []
        world.kernel.change = seen.extend  # type: ignore[method-assign,assignment]
        world.again()
        await world.want(feed())
        assert not [change for change in seen if change.elements]

    play(story)


@pytest.mark.parametrize(
    ("file", "why"),
    [
        pytest.param(b"", "this is not a list that proxyfw wrote", id="empty"),
        pytest.param(b"\xff\x00", "this is not a list that proxyfw wrote", id="junk"),
        pytest.param(["0.0.0.0/0"], "0.0.0.0/0 is wider than /8", id="everything"),
        pytest.param(
            ["10.1.0.0/16"], "10.1.0.0/16 overlaps 10.0.0.0/8, which is no network of the Internet", id="private"
        ),
        pytest.param([FOUR, "nonsense"], '"nonsense" is not an address or network', id="no network"),
        pytest.param([], "the list is empty", id="no networks"),
    ],
)
def test_a_list_of_the_last_run_that_is_no_good_is_told_and_what_it_left_in_the_packet_layer_goes(
    play: Play, file: bytes | list[str], why: str
) -> None:
    async def story(world: World) -> None:
        world.keep(ONE, *(file if isinstance(file, list) else ()))
        if isinstance(file, bytes):
            (world.folder / f"{ONE.id}.json").write_bytes(file)
        world.kernel.sets = {feed_set(ONE, 4): {(1, 2)}}
        await world.want(feed())
        assert (world.keeper.lists, world.kernel.networks(ONE)) == ({}, set())
        assert [request["etag"] for _, request in world.asked] == [""]

    said, failed = play(story).said
    assert said.startswith(f"feed {ONE.url}: the list of the last run cannot be used: ")
    assert said.endswith(why)
    assert failed == f"feed {ONE.url}: nobody is there; nothing is granted by it"


def test_what_a_run_left_in_the_packet_layer_without_a_file_goes(play: Play) -> None:
    """No decision would know of it."""

    async def story(world: World) -> None:
        world.kernel.sets = {feed_set(ONE, 6): {(1, 2)}}
        await world.want(feed())
        assert world.kernel.networks(ONE) == set()

    play(story)


def test_a_list_of_the_last_run_that_the_packet_layer_does_not_take_at_first_is_not_forgotten(play: Play) -> None:
    async def story(world: World) -> None:
        world.keep(ONE, FOUR)
        world.kernel.fails = True
        await world.want(feed())
        assert (world.keeper.lists, world.status()["networks"]) == ({}, 0)
        await asyncio.wait_for(world.keeper.restored(), 1.0)
        world.kernel.fails = False
        await asyncio.sleep(4 * FIRST_PAUSE)
        assert world.kernel.networks(ONE) == {FOUR}
        assert set(world.keeper.lists) == {ONE}

    play(story)


def test_nobody_waits_for_a_list_that_is_not_wanted_any_more(play: Play) -> None:
    async def story(world: World) -> None:
        world.keep(ONE, FOUR)
        async with world.changing:  # so it cannot be put in force
            world.keeper.want([feed()])
            waiting = asyncio.create_task(world.keeper.restored())
            await world.settled()
            assert not waiting.done()
            world.keeper.want([])
            await asyncio.wait_for(waiting, 1.0)

    play(story)


def test_lists_that_nobody_has_wanted_for_long_go_from_the_disk(play: Play) -> None:
    async def story(world: World) -> None:
        world.jump = UNUSED * 3  # what is written now is old
        world.keep(ONE, FOUR)
        world.keep(TWO, OTHER)
        (world.folder / "note.txt").write_text("of somebody")
        await world.want(feed(TWO))
        assert {path.name for path in world.folder.iterdir()} == {f"{TWO.id}.json", "note.txt"}

    play(story)


def test_what_a_list_says_survives_on_the_disk_as_it_is(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR, SIX, etag='W/"x"')
        await world.want(feed())
        assert json.loads((world.folder / f"{ONE.id}.json").read_text()) == {
            "id": ONE.id,
            "source": ONE.url,
            "etag": 'W/"x"',
            "modified": "",
            "checked": START,
            "networks": [FOUR, SIX],
        }

    play(story)


# Through another proxy


PROXY = parse_upstream_proxy("socks5://me:pass@127.0.0.1:9050")
TOLD = ["socks5", "127.0.0.1", 9050, "me", "pass"]
NOT_RUN = "not run, as it would not leave through the upstream proxy"


def test_a_list_is_asked_for_through_the_proxy_and_at_once_where_that_is_new(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies[ONE.url] = changed(FOUR)
        await world.want(feed())
        await world.want(replace(feed(), through=PROXY))
        await world.want(replace(feed(), through=PROXY))
        await world.want(feed())
        assert [request["through"] for _, request in world.asked] == [None, TOLD, None]
        assert not any("pass" in said for said in world.said)

    play(story)


def test_a_python_feed_is_not_run_where_all_leaves_through_a_proxy(play: Play) -> None:
    async def story(world: World) -> None:
        world.replies["/feeds/ours.py"] = changed(FOUR)
        await world.want(replace(feed(PYTHON), through=PROXY))
        await world.keeper.refresh(accept=False)
        assert world.asked == []
        assert world.status(PYTHON)["error"] == NOT_RUN
        assert world.said == [f"feed feeds/ours.py: {NOT_RUN}; nothing is granted by it"]
        await world.want(feed(PYTHON))
        assert len(world.asked) == 1
        assert world.status(PYTHON)["error"] == ""

    play(story)
