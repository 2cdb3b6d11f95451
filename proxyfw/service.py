"""The one service: builds the edges, hands them to each other, and carries out reloads. The only wiring there is."""

import asyncio
import gc
import math
import os
import signal
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from proxyfw import __version__
from proxyfw.clientstatus import clients_status
from proxyfw.core.config import Config
from proxyfw.core.policy import Policy
from proxyfw.core.policychange import addresses, changed, same
from proxyfw.core.ruleset import LOG_GROUP, MARK, MASK
from proxyfw.edge import routes
from proxyfw.edge.control import Answer, Control
from proxyfw.edge.logdb import LogWriter
from proxyfw.edge.nflog import Nflog, NflogError
from proxyfw.edge.nft import Nft
from proxyfw.edge.nonft import NoNft
from proxyfw.edge.notify import notify, watchdog_interval
from proxyfw.edge.pinstore import PinStore
from proxyfw.edge.poller import Poller
from proxyfw.edge.resolver import Resolver
from proxyfw.edge.upstream import Upstream
from proxyfw.enforce import UNASKED, UNLOGGED, EnforceError, Enforcer, Unenforced
from proxyfw.feeding import FeedKeeper
from proxyfw.load import FEEDS, Loaded, load
from proxyfw.logview import visible
from proxyfw.packetlog import row_of
from proxyfw.pinning import PinKeeper
from proxyfw.plane import Plane
from proxyfw.shared import Shared
from proxyfw.sources import Sources, SourcesError
from proxyfw.startup import StartError, is_local
from proxyfw.statefiles import CONTROL_SOCKET, FEED_FOLDER, LOG_FILE, PIN_FILE

_GARBAGE = 20_000
_LONGEST_SLEEP = 60.0  # seconds after which the clock is looked at again, before a grant ends: a netvm may sleep
_REFRESH = 50.0  # seconds that `refresh` waits for the lists; fetching goes on
_RETRY = 1.0  # seconds before a policy that could not be put in force is tried again


@dataclass(slots=True)
class _State:
    """What `status` tells beside the live counts."""

    loaded: Loaded
    started: Config
    since: float
    reloaded: float = 0.0
    failed: list[str] = field(default_factory=list)  # why the latest reload was not taken


class Service:
    """Runs until SIGTERM or SIGINT. SIGHUP reloads. The packet layer stays in force afterwards."""

    def __init__(self, path: Path, plane: Plane | None = None) -> None:
        """`path`: of the configuration, whose kind is looked at here. `plane`: in place of the one that fits it. Raises
        StartError.
        """
        self._path = path
        self._plane = plane or Plane(is_local(path))
        self._local = self._plane.local
        self._nft = NoNft() if self._local else Nft()
        self._enforcer = (Unenforced if self._local else Enforcer)(self._nft, say)
        self._sources = Sources(say, self._fail)
        self._nflog = Nflog(LOG_GROUP)
        self._poller = Poller()
        self._stop = asyncio.Event()
        self._failed = ""  # why the service must end, and be started anew
        self._retry: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._changing, self._reading = asyncio.Lock(), asyncio.Lock()
        self._committed: frozenset[str] = frozenset()  # addresses whose rules are to be put in force
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Starts everything in the order that never leaves a gap, and serves. Raises StartError."""
        try:
            self._enforcer.close_first()
            await asyncio.to_thread(self._sources.start)
        except (EnforceError, SourcesError) as error:
            raise StartError(str(error)) from None
        loaded = load(self._path, self._sources.world)
        if loaded.policy is None or loaded.config is None:
            raise StartError("\n".join(map(str, loaded.problems)))
        for line in (*map(str, loaded.problems), *loaded.notes):
            say(line)
        self._state = _State(loaded, loaded.config, time.time())
        loop = asyncio.get_running_loop()
        self._plane.open(loaded.config, loaded.policy)
        self._start_log(loaded)
        store = PinStore(Path(loaded.config.state_dir) / PIN_FILE, loop.time)
        self._pins = PinKeeper(loaded.policy, self._nft, self._nft.another(), store, loop)
        self._pins.restore()
        feeds = Path(loaded.config.state_dir) / FEED_FOLDER
        python = self._path.absolute().parent / FEEDS
        self._feeds = FeedKeeper(self._nft.another(), feeds, python, self._changing, self._on_lists, say)
        control = await self._start_control(loaded)
        # From here on nothing is awaited until a command would find all that it asks, so none can come too early.
        try:
            self._enforce(loaded, loaded.policy)
        except StartError:
            control.stop()
            raise
        self._poller.start(loop)
        self._pins.start()
        resolver = Resolver(Upstream(loaded.policy.upstream, loop.time).ask, loop.time)
        self._shared = Shared(loaded.policy, resolver, self._poller, self._log, self._pins)
        self._proxy, self._relay = self._plane.make(self._shared)
        try:
            await self._plane.start()
        except StartError:
            control.stop()
            raise
        self._feeds.want(loaded.policy.feeds())
        self._follow(loop, loaded)
        self._expire_later()
        gc.collect()
        gc.freeze()  # what is there now lives as long as the service
        gc.set_threshold(_GARBAGE)  # a connection leaves few cycles behind: look for them less often
        for line in self._plane.in_words():
            say(line)
        say(f"ready: {len(loaded.policy.clients)} clients, {len(loaded.profiles)} profiles, log in {self._log.path}")
        notify("READY=1")
        self._watchdog(loop, watchdog_interval(os.environ))
        await self._stop.wait()
        notify("STOPPING=1")
        control.stop()
        await self._plane.stop()
        await self._end()
        if self._failed:
            raise StartError(self._failed)

    def _fail(self, why: str) -> None:
        """Something that must never end has ended: what is in force stays, and whoever started us does so again."""
        say(why)
        self._failed = self._failed or why
        self._stop.set()

    def _follow(self, loop: asyncio.AbstractEventLoop, loaded: Loaded) -> None:
        """Hears from now on whatever can change what is in force, or is to be told."""
        assert loaded.policy is not None
        assert loaded.config is not None
        if not self._local:
            loop.add_reader(self._nflog.fileno(), self._on_packets)
        for number, action in (
            (signal.SIGHUP, self._on_hangup),
            (signal.SIGTERM, self._stop.set),
            (signal.SIGINT, self._stop.set),
        ):
            loop.add_signal_handler(number, action)
        self._enforcer.start(loop, self._on_lost)
        self._sources.follow(loop, self._on_world)
        self._sources.want_names(loaded.config)
        netvm = self._sources.world.netvm
        self._spawn(self._sources.handled(frozenset(map(str, netvm.rules if netvm is not None else ()))))
        self._spawn(self._end_former())

    async def _end_former(self) -> None:
        """Ends what the kernel has forwarded up to now and is no longer permitted."""
        await self._feeds.restored()  # until then it is not known what the lists permit
        policy = self._shared.policy
        self._enforcer.end_forwarded(addresses(policy), policy, self._pins)

    def _watchdog(self, loop: asyncio.AbstractEventLoop, interval: float | None) -> None:
        """Tells systemd that the loop turns."""
        if interval is not None:
            notify("WATCHDOG=1")
            loop.call_later(interval, self._watchdog, loop, interval)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._fail(f"a fault of proxyfw: {task.exception()!r}")

    async def _end(self) -> None:
        self._proxy.stop()
        await asyncio.sleep(0)  # lets the closed connections write their rows
        self._shared.pipes.close()
        self._poller.stop()
        if not self._local:
            self._nflog.stop()
        self._enforcer.stop(asyncio.get_running_loop())
        for timer in (self._retry, self._expiry):
            if timer is not None:
                timer.cancel()
        await self._feeds.stop()
        await self._sources.stop()
        await self._pins.stop()
        self._log.stop()
        stays = "" if self._local else "the packet layer stays in force, and "
        say(f"stopped; {stays}connections by name are refused until proxyfw runs again")

    async def _start_control(self, loaded: Loaded) -> Control:
        assert loaded.config is not None
        control = Control(Path(loaded.config.state_dir) / CONTROL_SOCKET, self._answer)
        try:
            await control.start()
        except OSError as error:
            raise StartError(f"{loaded.config.state_dir}: {CONTROL_SOCKET}: {error.strerror or error}") from None
        return control

    def _enforce(self, loaded: Loaded, policy: Policy) -> None:
        """Puts the packet layer in force for the first time."""
        try:
            if not self._local:
                routes.ensure(MARK, MASK)
                self._nflog.start()
            self._apply(loaded, policy)
        except (routes.RoutesError, NflogError, EnforceError, OSError) as error:
            raise StartError(str(error)) from None

    def _apply(self, loaded: Loaded, policy: Policy) -> frozenset[str]:
        assert loaded.config is not None
        own_rules = self._sources.world.netvm is not None
        config = loaded.config
        return self._enforcer.apply(policy, config.downstream_group, self._pins, own_rules, config.explicit_port)

    def _start_log(self, loaded: Loaded) -> None:
        assert loaded.config is not None
        self._log = LogWriter(
            Path(loaded.config.state_dir) / LOG_FILE, loaded.config.log_keep, loaded.config.log_max_size
        )
        self._log.start()
        if self._log.moved_aside:
            say(f"the log was corrupt; a new one was begun, and the old one is {self._log.moved_aside}")
        if self._log.last_error:
            say(f"the log cannot be written now, and will be tried again: {self._log.last_error}")

    def _on_hangup(self) -> None:
        self._spawn(self._reload())

    def _on_lost(self) -> None:
        say("another program has taken rules of proxyfw away: they are put in force again")
        self._spawn(self._renew(anyway=True))

    def _on_world(self, committed: frozenset[str]) -> None:
        self._committed |= committed
        self._spawn(self._renew())

    async def _renew(self, anyway: bool = False) -> None:
        """Puts in force what Qubes OS knows now, with the files as they were last taken; again and again if need be."""
        async with self._changing:
            now = self._state.loaded.at(time.time()).within(self._sources.world, self._feeds.lists)
            assert now.policy is not None
            committed = self._committed
            if anyway or committed or not same(now.policy, self._shared.policy):
                for note in now.notes:
                    if note not in self._state.loaded.notes:
                        say(note)
                try:
                    closed = self._take(now, now.policy)
                except EnforceError as error:
                    self._again(f"{error}; the last good policy stays in force")
                    return
                if anyway:
                    self._feeds.doubt()  # a try that failed may have left their sets empty
                if closed:
                    say(f"{closed} connections closed that are no longer permitted")
            self._state.loaded = now
            self._committed -= committed
            self._expire_later()
        await self._sources.handled(committed)

    def _again(self, why: str) -> None:
        """Tries it once more in a moment: what must be refused from now on may be permitted as yet."""
        if self._state.failed != [why]:
            say(why)
        self._state.failed = [why]
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(_RETRY, lambda: self._spawn(self._renew(anyway=True)))

    async def _reload(self) -> Answer:
        """Takes the new files, all of them or none: the last good policy stays until another one is in force."""
        async with self._reading:  # in turn, so that who reads later is in force later
            return await self._read_and_take()

    async def _read_and_take(self) -> Answer:
        read = await asyncio.to_thread(load, self._path, self._sources.world)
        async with self._changing:
            loaded = read.within(self._sources.world, self._feeds.lists)  # both may be others by now
            told = [str(problem) for problem in loaded.problems]
            if loaded.policy is None or loaded.config is None:
                return self._reload_failed(told)
            try:
                closed = self._take(loaded, loaded.policy)
            except EnforceError as error:
                return self._reload_failed([*told, str(error)])
            self._sources.want_names(loaded.config)
            self._feeds.doubt()
            self._expire_later()
            self._state.reloaded = time.time()
            told += [*loaded.notes, *_needs_restart(self._state.started, loaded.config)]
            for line in (*told, f"reloaded: {len(loaded.policy.clients)} clients, {closed} connections closed"):
                say(line)
            return {"ok": True, "problems": told, "closed": closed, "clients": len(loaded.policy.clients)}

    def _take(self, loaded: Loaded, policy: Policy) -> int:
        """Puts a policy in force, and ends what it forbids; how many proxied connections that were."""
        before = self._shared.policy
        empty = self._apply(loaded, policy)
        self._state.loaded, self._state.failed = loaded, []
        if policy.upstream != before.upstream:
            clock = self._poller.loop.time
            self._shared.resolver = Resolver(Upstream(policy.upstream, clock).ask, clock)
        self._pins.replaced(policy)
        self._feeds.want(policy.feeds(), empty)
        return self._rejudge(before, policy)

    def _rejudge(self, before: Policy, policy: Policy) -> int:
        """Ends what the policy, which is in force, forbids; how many proxied connections that were."""
        closed = self._proxy.rejudge(policy)
        self._enforcer.end_forwarded(changed(before, policy), policy, self._pins)
        return closed

    def _on_lists(self) -> None:
        """The packet layer holds other lists of feeds: so does the policy from here on."""
        before = self._shared.policy
        policy = before.with_lists(self._feeds.lists)
        self._pins.policy = policy
        self._rejudge(before, policy)

    def _expire_later(self) -> None:
        """Renews the policy when the next of the grants that are for a while ends."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        left = self._state.loaded.expires - time.time()
        if left < math.inf:
            sleep = min(max(left, 0.0), _LONGEST_SLEEP)
            self._expiry = asyncio.get_running_loop().call_later(sleep, lambda: self._spawn(self._renew()))

    def _reload_failed(self, problems: list[str]) -> Answer:
        self._state.failed = problems
        for line in (*problems, "reload: nothing was changed, the last good policy stays in force"):
            say(line)
        return {"ok": False, "problems": problems}

    def _on_packets(self) -> None:
        policy = self._shared.policy
        for packet in self._nflog.read():
            self._log.open_row(row_of(packet, policy, self._pins.names))

    async def _answer(self, command: str) -> Answer:
        if command == "reload":
            return await self._reload()
        if command in ("refresh", "refresh accept"):
            return await self._refresh(command.endswith("accept"))
        if command == "status":
            return self._status()
        if command == "world":
            return {"ok": True, "world": self._sources.as_data()}
        if command.startswith("pins "):
            return self._pinned(command.removeprefix("pins "))
        return {"ok": False, "problems": [f"unknown command {command!r}"]}

    async def _refresh(self, accept: bool) -> Answer:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._feeds.refresh(accept), _REFRESH)
        return {"ok": True, "feeds": self._feeds.status()}

    def _pinned(self, client: str) -> Answer:
        found = self._pins.of(client)
        pins = [{"name": pin.name, "address": str(pin.address), "seconds": round(left)} for pin, left in found]
        return {"ok": True, "pins": pins}

    def _status(self) -> Answer:
        policy, open_now = self._shared.policy, self._proxy.open_connections()
        pins = self._pins.count()
        return {
            "ok": True,
            "version": __version__,
            "pid": os.getpid(),
            "config": str(self._path),
            "since": self._state.since,
            "reloaded": self._state.reloaded,
            "reload_failed": self._state.failed,
            "clients": clients_status(policy, open_now, pins, self._shared.looked_up),
            "feeds": self._feeds.status(),
            "feeds_on": self._state.loaded.config is None or self._state.loaded.config.feeds,
            "notes": [*self._plane.in_words(), *self._state.loaded.notes, *self._sources.trouble],
            "resolvers": [f"{address} port {port}" for address, port in policy.upstream],
            "explicit": _explicit(self._state.started, self._state.loaded.config),
            "accepted": self._proxy.accepted,
            "relay": {
                **asdict(self._relay.counts),
                "dropped": self._relay.counts.dropped + self._enforcer.count(UNASKED),
                "pins_not_kept": self._pins.store_error,
            },
            "log": {
                "file": str(self._log.path),
                "written": self._log.written,
                "lost": self._log.dropped,
                "error": self._log.last_error,
                "packets_not_logged": self._enforcer.count(UNLOGGED),
                "kernel_overruns": self._nflog.lost,
            },
        }


def _explicit(started: Config, now: Config | None) -> str:
    """Where clients find a proxy that they can ask, in words."""
    if started.listen is not None:
        address, port = started.listen
        return f"{address} port {port}"
    return f"port {now.explicit_port} of this netvm" if now is not None and now.explicit_port else ""


def say(text: str) -> None:
    """One message for the console or the journal."""
    with suppress(OSError):
        print(f"proxyfw: {visible(text)}", file=sys.stderr, flush=True)


def _needs_restart(started: Config, now: Config) -> list[str]:
    """What the files say now and the service was not started with."""
    return [
        f"{key} is another than at the start: it takes effect at the next one"
        for key, attribute in (
            ("state_dir", "state_dir"),
            ("explicit: listen", "listen"),
            ("log: keep", "log_keep"),
            ("log: max_size", "log_max_size"),
        )
        if getattr(started, attribute) != getattr(now, attribute)
    ]
