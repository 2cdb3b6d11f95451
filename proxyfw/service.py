"""The one service: builds the edges, hands them to each other, and carries out reloads. The only wiring there is."""

import asyncio
import gc
import os
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from proxyfw import __version__
from proxyfw.core.config import Config
from proxyfw.core.policy import DNS_PORT, Policy
from proxyfw.core.ruleset import LOG_GROUP, MARK, MASK, PROXY_PORT, RELAY4, RELAY6, RELAY_PORT, render
from proxyfw.dnsrelay import DnsRelay
from proxyfw.dnsserve import DnsServer
from proxyfw.edge import files, routes
from proxyfw.edge.control import Answer, Control
from proxyfw.edge.dnssocket import DnsSocket
from proxyfw.edge.listen import listen
from proxyfw.edge.logdb import LogWriter
from proxyfw.edge.nflog import Nflog, NflogError
from proxyfw.edge.nft import Nft, NftError
from proxyfw.edge.pinstore import PinStore
from proxyfw.edge.poller import Poller
from proxyfw.edge.resolver import Resolver
from proxyfw.edge.upstream import MAX_WAITING, Upstream
from proxyfw.load import Loaded, load
from proxyfw.logview import visible
from proxyfw.packetlog import row_of
from proxyfw.pinning import PinKeeper
from proxyfw.proxy import DESCRIPTORS_EACH, MAX_CONNECTIONS, Proxy
from proxyfw.shared import Shared

CONTROL_SOCKET = "control.sock"
LOG_FILE = "log.sqlite"
PIN_FILE = "pins.sqlite"
_UNLOGGED, _UNASKED = "unlogged", "queries_dropped"  # the counters of the packet layer
SPARE_DESCRIPTORS = 256 + MAX_WAITING + 256  # our own, those of look-ups, and those of queries over TCP
_FEW = 16  # connections, however low the limit of open files
_GARBAGE = 20_000


class StartError(Exception):
    """The service cannot start; the message says why and what to do. What was in force stays in force."""


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

    def __init__(self, path: Path) -> None:
        self._path = path
        self._nft = Nft()
        self._nflog = Nflog(LOG_GROUP)
        self._poller = Poller()
        self._counted = {_UNLOGGED: 0, _UNASKED: 0}  # of the tables before the present one
        self._stop = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[Answer]] = set()

    async def run(self) -> None:
        """Starts everything in the order that never leaves a gap, and serves. Raises StartError."""
        self._close_first()
        loaded = load(self._path)
        if loaded.policy is None or loaded.config is None:
            raise StartError("\n".join(map(str, loaded.problems)))
        for problem in loaded.problems:
            say(str(problem))
        self._state = _State(loaded, loaded.config, time.time())
        loop = asyncio.get_running_loop()
        families = [family for family in (socket.AF_INET, socket.AF_INET6) if _has(family)]
        proxied, relayed = ([_listen(family, port) for family in families] for port in (PROXY_PORT, RELAY_PORT))
        datagrams = [_open_dns(family) for family in families]
        self._start_log(loaded)
        store = PinStore(Path(loaded.config.state_dir) / PIN_FILE, loop.time)
        self._pins = PinKeeper(loaded.policy, self._nft, Nft(), store, loop)
        self._pins.restore()
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
        self._proxy = Proxy(self._shared, _raise_descriptors())
        self._proxy.start(proxied)
        self._relay = DnsRelay(self._shared)
        dns = DnsServer(self._relay, loop)
        await dns.start(datagrams, relayed)
        loop.add_reader(self._nflog.fileno(), self._on_packets)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        gc.collect()
        gc.freeze()  # what is there now lives as long as the service
        gc.set_threshold(_GARBAGE)  # a connection leaves few cycles behind: look for them less often
        say(f"ready: {len(loaded.policy.clients)} clients, {len(loaded.profiles)} profiles, log in {self._log.path}")
        await self._stop.wait()
        control.stop()
        await dns.stop()
        await self._end()

    async def _end(self) -> None:
        self._proxy.stop()
        await asyncio.sleep(0)  # lets the closed connections write their rows
        self._shared.pipes.close()
        self._poller.stop()
        self._nflog.stop()
        await self._pins.stop()
        self._log.stop()
        say("stopped; the packet layer stays in force, and connections by name are refused until proxyfw runs again")

    async def _start_control(self, loaded: Loaded) -> Control:
        assert loaded.config is not None
        control = Control(Path(loaded.config.state_dir) / CONTROL_SOCKET, self._answer)
        try:
            await control.start()
        except OSError as error:
            raise StartError(f"{loaded.config.state_dir}: {CONTROL_SOCKET}: {error.strerror or error}") from None
        return control

    def _enforce(self, loaded: Loaded, policy: Policy) -> None:
        """Puts the packet layer in force."""
        try:
            routes.ensure(MARK, MASK)
            self._nflog.start()
            self._apply(loaded, policy)
        except (routes.RoutesError, NflogError, NftError, OSError) as error:
            raise StartError(f"the packet layer could not be set up: {error}") from None

    def _close_first(self) -> None:
        """Fail closed: from here on nothing passes that a former or the new policy does not allow."""
        if not self._nft.has_table():
            try:
                self._nft.apply(files.read(files.shipped("iptables") / "fail-safe.nft"))
            except (NftError, files.FileError) as error:
                raise StartError(f"the fail-safe ruleset could not be loaded: {error}") from None

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

    def _apply(self, loaded: Loaded, policy: Policy) -> None:
        assert loaded.config is not None
        skeleton = files.read(files.shipped("iptables") / "proxyfw.nft")
        counted = {name: self._count(name) for name in self._counted}  # the new table counts from 0 again
        self._nft.apply(render(policy, skeleton, loaded.config.downstream_group, self._pins.ports(policy)))
        self._counted = counted

    def _count(self, name: str) -> int:
        return self._counted[name] + self._nft.counter(name)

    def _on_hangup(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload(self) -> Answer:
        """Takes the new files, all of them or none: the last good policy stays until another one is in force."""
        async with self._reloading:
            loaded = await asyncio.to_thread(load, self._path)
            told = [str(problem) for problem in loaded.problems]
            if loaded.policy is None or loaded.config is None:
                return self._reload_failed(told)
            try:
                self._apply(loaded, loaded.policy)
            except (NftError, files.FileError) as error:
                return self._reload_failed([*told, f"the packet layer could not be set up: {error}"])
            self._state.loaded = loaded
            if loaded.policy.upstream != self._shared.policy.upstream:
                clock = self._poller.loop.time
                self._shared.resolver = Resolver(Upstream(loaded.policy.upstream, clock).ask, clock)
            self._pins.replaced(loaded.policy)
            closed = self._proxy.rejudge(loaded.policy)
            self._state.reloaded, self._state.failed = time.time(), []
            told += _needs_restart(self._state.started, loaded.config)
            for line in (*told, f"reloaded: {len(loaded.policy.clients)} clients, {closed} connections closed"):
                say(line)
            return {"ok": True, "problems": told, "closed": closed, "clients": len(loaded.policy.clients)}

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
        if command == "status":
            return self._status()
        if command.startswith("pins "):
            return self._pinned(command.removeprefix("pins "))
        return {"ok": False, "problems": [f"unknown command {command!r}"]}

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
            "clients": [
                {
                    "name": client.name,
                    "addresses": [str(address) for address in client.addresses],
                    "profiles": list(self._profiles_of(client.name)),
                    "mode": "observe" if client.observe else "enforce",
                    "dns": "all" if client.dns_all else "profile",
                    "connections": open_now.get(client.name, 0),
                    "pins": pins.get(client.name, 0),
                    "lookups": self._shared.looked_up[client.name],
                }
                for client in policy.clients.values()
            ],
            "resolvers": [f"{address} port {port}" for address, port in policy.upstream],
            "accepted": self._proxy.accepted,
            "relay": {
                **asdict(self._relay.counts),
                "dropped": self._relay.counts.dropped + self._count(_UNASKED),
                "pins_not_kept": self._pins.store_error,
            },
            "log": {
                "file": str(self._log.path),
                "written": self._log.written,
                "lost": self._log.dropped,
                "error": self._log.last_error,
                "packets_not_logged": self._count(_UNLOGGED),
                "kernel_overruns": self._nflog.lost,
            },
        }

    def _profiles_of(self, client: str) -> tuple[str, ...]:
        config: Any = self._state.loaded.config
        return tuple(config.clients[client].profiles)


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
            ("log: keep", "log_keep"),
            ("log: max_size", "log_max_size"),
        )
        if getattr(started, attribute) != getattr(now, attribute)
    ]


def _listen(family: socket.AddressFamily, port: int) -> socket.socket:
    try:
        return listen(family, port)
    except OSError as error:
        raise StartError(f"port {port} on loopback: {error.strerror}; is proxyfw running already?") from None


def _open_dns(family: socket.AddressFamily) -> DnsSocket:
    sock, address = DnsSocket(family), RELAY6 if family == socket.AF_INET6 else RELAY4
    try:
        sock.open(address)
    except OSError as error:
        fix = f"`ss -lunp sport = {DNS_PORT}` tells who has it; a resolver there must not listen on every address"
        raise StartError(f"UDP port {DNS_PORT} at {address}: {error.strerror}; {fix}") from None
    return sock


def _has(family: socket.AddressFamily) -> bool:
    """Whether the kernel has this family (IPv6 can be switched off)."""
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return family == socket.AF_INET or Path("/proc/net/if_inet6").exists()


def _raise_descriptors() -> int:
    """Raises the limit of open files as far as it goes; how many connections that allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(min(MAX_CONNECTIONS, (hard - SPARE_DESCRIPTORS) // DESCRIPTORS_EACH), _FEW)
