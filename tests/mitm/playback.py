"""One connection without a network: our addon and layers are real, mitmproxy's connection handler is this."""

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

from mitmproxy.connection import Client, Connection, ConnectionState, Server
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from proxyfw.core.clients import Member
from proxyfw.core.config import Config
from proxyfw.core.hostname import Hostname
from proxyfw.core.policy import Policy, build
from proxyfw.core.profile import link, parse_profile
from proxyfw.core.qubes_rules import parse_rules
from proxyfw.core.ratelimit import RateLimit
from proxyfw.edge.logdb import Row
from proxyfw.edge.mitm.addon import ProxyfwAddon
from proxyfw.edge.mitm.case import ProxyfwAskHook
from proxyfw.edge.resolver import Addresses, Failure
from proxyfw.mitmproxying import MitmProxy

CLIENT = "10.137.0.11"
GOOD, OTHER, DEAD, EVIL, GRANTED = "192.0.9.1", "192.0.9.2", "192.0.9.9", "192.0.2.66", "192.0.8.1"
NAMES = {
    "good.example": (GOOD,),
    "other.example": (OTHER,),
    "two.example": (DEAD, GOOD),
    "dead.example": (DEAD,),
    "private.example": ("10.1.2.3",),
    "evil.example": (EVIL,),
}
PROFILE = f"""\
domains: [good.example, "good.example:7000", other.example, two.example, dead.example, private.example, none.example]
networks: [{GRANTED}]
"""


def policy(observe: bool = False, profile: str = PROFILE, rules: str = "") -> Policy:
    """What one client, `work`, may. `rules`: a Qubes firewall rule of it."""
    parsed, problems = parse_profile("web", "web", profile)
    assert parsed is not None, problems
    library, _ = link({"web": parsed})
    addresses = (ip_address(CLIENT), ip_address("10.0.0.1"))
    own = {4: parse_rules({"policy": "drop", "0000": rules})} if rules else {}
    work = Member("work", ("web",), observe, False, addresses, own)
    return build(Config({}), library, (), [work])


class World:
    """What all connections share: the policy, the resolver, the log."""

    def __init__(self, own: Policy | None = None, wireguard: bool = False) -> None:
        self.rows: list[Row] = []
        self.now = 0.0
        self.on_look_up: Any = lambda: None
        self.shared: Any = SimpleNamespace(
            policy=own or policy(),
            pins=self,
            resolver=self,
            log=self,
            poller=SimpleNamespace(loop=self),
            may_look_up=lambda *_, **__: True,
        )
        self.relay: Any = SimpleNamespace(
            reply=lambda message, *_: b"reply to " + message, counts=SimpleNamespace(dropped=0)
        )
        self.plane = MitmProxy(self.shared, self.relay, wireguard, max_connections=16)
        self.plane._rows = RateLimit(1000.0, 1000.0)
        self.handlers: dict[str, Any] = {}
        self.addon = ProxyfwAddon(self.plane, lambda: self.handlers)
        self.plane.on_close = self.addon.close
        self.faults: list[Any] = []

    def time(self) -> float:
        return self.now

    def call_later(self, *_: Any) -> Any:
        """Nothing happens by itself."""

    def call_exception_handler(self, context: Any) -> None:
        self.faults.append(context)

    def names(self, *_: Any) -> tuple[Hostname, ...]:
        return ()

    def holds(self, *_: Any) -> bool:
        return False

    def use(self, *_: Any) -> None:
        """Nothing is pinned."""

    release = use

    def is_asking(self, _: Hostname) -> bool:
        return False

    def cached(self, _: Hostname) -> None:
        return None

    async def resolve(self, name: Hostname, _: str) -> Addresses:
        self.on_look_up()
        return tuple(map(ip_address, NAMES.get(name, ()))) or Failure.UNRESOLVABLE

    def open_row(self, row: Row) -> Row:
        self.rows.append(row)
        return row

    def close_row(self, row: Row, up: int, down: int, duration: float, closed_by: str) -> None:
        row.bytes_up, row.bytes_down, row.closed_by = up, down, closed_by

    @property
    def told(self) -> list[tuple[str, str]]:
        """Verdict and reason of each row."""
        return [(row.verdict, row.reason) for row in self.rows]


@dataclass
class Opened:
    """A server connection that was opened, and what was sent on it."""

    server: Server
    address: tuple[str, int]
    sent: bytes = b""
    open: bool = True
    ended: bool = False  # our side


@dataclass
class Playback:
    """A client's connection. `mode`: of mitmproxy. `aimed`: to which the client aims, where it asks no proxy."""

    world: World
    mode: str = "regular"
    aimed: tuple[str, int] | None = None
    address: str = CLIENT
    udp: bool = False
    heard: bytes = b""
    opened: list[Opened] = field(default_factory=list)
    closed: bool = False
    half_closed: bool = False
    wakeups: list[commands.RequestWakeup] = field(default_factory=list)
    waiting: list[bytes] = field(default_factory=list)  # that are not read as yet

    def __post_init__(self) -> None:
        transport = "udp" if self.udp else "tcp"
        self.client = Client(
            peername=(self.address, 40000),
            sockname=("10.137.0.5", 3128),
            transport_protocol=transport,
            proxy_mode=ProxyMode.parse(self.mode),
            state=ConnectionState.OPEN,
        )
        context = Context(self.client, Options())
        context.server.address = self.aimed
        top = modes.HttpProxy(context) if self.aimed is None else modes.TransparentProxy(context)
        self.io = _io()
        self.handler: Any = SimpleNamespace(
            client=self.client,
            layer=top,
            transports={self.client: self.io},
            close_connection=lambda connection: self._close(connection),
        )
        self.world.handlers[self.client.id] = self.handler

    async def start(self) -> "Playback":
        self.world.addon.client_connected(self.client)
        if self.client.error:
            self.closed = True
        else:
            await self.event(events.Start())
        return self

    async def say(self, *pieces: bytes) -> "Playback":
        """The client sends, as far as it is read."""
        self.waiting += pieces
        while self.waiting and self.reads and not self.closed:
            await self.event(events.DataReceived(self.client, self.waiting.pop(0)))
        return self

    @property
    def reads(self) -> bool:
        return bool(self.io.reader._wanted.is_set())

    def reads_server(self, which: int = -1) -> bool:
        return bool(self.handler.transports[self.opened[which].server].reader._wanted.is_set())

    async def end(self) -> "Playback":
        """The client sends no more."""
        self.client.state &= ~ConnectionState.CAN_READ
        await self.event(events.ConnectionClosed(self.client))
        return self

    async def answer(self, data: bytes, which: int = -1) -> "Playback":
        """A server sends."""
        await self.event(events.DataReceived(self.opened[which].server, data))
        return await self.say()

    async def server_ends(self, which: int = -1) -> "Playback":
        server = self.opened[which].server
        server.state &= ~ConnectionState.CAN_READ
        await self.event(events.ConnectionClosed(server))
        return self

    async def late(self) -> "Playback":
        """The latest deadline that was asked for is over."""
        await self.event(events.Wakeup(self.wakeups[-1]))
        return self

    def gone(self) -> "Playback":
        self.world.addon.client_disconnected(self.client)
        return self

    @property
    def sent(self) -> bytes:
        """To all servers."""
        return b"".join(opened.sent for opened in self.opened)

    @property
    def reached(self) -> list[str]:
        return [opened.address[0] for opened in self.opened]

    async def event(self, event: events.Event) -> None:
        pending = [event]
        while pending:
            for command in list(self.handler.layer.handle_event(pending.pop(0))):
                follows = await self._carry_out(command)
                if follows is not None:
                    pending.append(follows)

    async def _carry_out(self, command: commands.Command) -> events.Event | None:
        match command:
            case ProxyfwAskHook(question):
                await self.world.addon.proxyfw_ask(question)
                return events.HookCompleted(command)
            case commands.OpenConnection():
                return events.OpenConnectionCompleted(command, await self._open(command.connection))
            case commands.RequestWakeup():
                self.wakeups.append(command)
            case commands.SendData():
                self._send(command.connection, command.data)
            case commands.CloseTcpConnection(connection=connection, half_close=True):
                self._half_close(connection)
            case commands.CloseConnection():
                self._close(command.connection)
            case _:
                raise AssertionError(command)
        return None

    async def _open(self, server: Connection) -> str | None:
        assert isinstance(server, Server)
        data = ServerConnectionHookData(server=server, client=self.client)
        self.world.addon.server_connect(data)
        if server.error:
            return f"Connection killed: {server.error}"
        assert server.address is not None
        if server.address[0] == DEAD:
            self.world.addon.server_connect_error(data)
            return "[Errno 111] Connect call failed"
        self.handler.transports[server] = _io()
        self.world.addon.server_connected(data)
        server.state = ConnectionState.OPEN
        self.opened.append(Opened(server, server.address))
        return None

    def _found(self, connection: Connection) -> Opened | None:
        return next((opened for opened in self.opened if opened.server is connection), None)

    def _send(self, connection: Connection, data: bytes) -> None:
        if connection is self.client:
            assert not self.closed
            self.heard += data
            return
        opened = self._found(connection)
        assert opened is not None
        if opened.open:
            opened.sent += data

    def _half_close(self, connection: Connection) -> None:
        if connection is self.client:
            self.half_closed = True
        elif opened := self._found(connection):
            opened.ended = True

    def _close(self, connection: Connection) -> None:
        connection.state = ConnectionState.CLOSED
        if connection is self.client:
            self.closed = True
        elif opened := self._found(connection):
            opened.open = False


def _io() -> SimpleNamespace:
    """What mitmproxy has of a connection."""
    return SimpleNamespace(reader=None, writer=SimpleNamespace(is_closing=lambda: False), handler=None)


def pieces(data: bytes, size: int) -> Sequence[bytes]:
    """The data in pieces of so many bytes."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def run(test: Any) -> Any:
    """A test that is a coroutine."""

    def wrapped(**given: Any) -> None:
        asyncio.run(test(**given))

    made: Any = wrapped
    made.__name__, made.__doc__ = test.__name__, test.__doc__
    made.__signature__ = inspect.signature(test)
    made.pytestmark = getattr(test, "pytestmark", [])
    return made
