"""The two connections of a layer, client's and server's: sending, dialling, relaying, closing, and what was counted."""

import asyncio
import errno
import os
import re
from collections.abc import Awaitable, Callable, Generator

from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.proxy.commands import (
    CloseConnection,
    CloseTcpConnection,
    Command,
    OpenConnection,
    RequestWakeup,
    SendData,
)
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.events import ConnectionClosed, DataReceived, Event, Wakeup
from mitmproxy.proxy.layer import Layer

from proxyfw.core.address import IPAddress
from proxyfw.core.flow import Flow
from proxyfw.core.verdict import Deny, Reason, Verdict, is_refused
from proxyfw.edge.mitm.case import Case, Found, ProxyfwAskHook, Question

LINGER = 1.0  # seconds that a refused client has to read its refusal

_ERRNO = re.compile(r"\[Errno (\d+)\]")

Steps = Generator[Command, object, None]
Judged = Generator[Command, object, Verdict]
Told = Generator[Command, object, bool]


class Gates:
    """Whether the client is read, and its servers; while they are not, the network holds their bytes back."""

    def __init__(self) -> None:
        self.client, self.servers = asyncio.Event(), asyncio.Event()
        self.set(client=True, servers=True)

    def set(self, client: bool, servers: bool) -> None:
        """From now on."""
        for gate, wanted in ((self.client, client), (self.servers, servers)):
            gate.set() if wanted else gate.clear()


class Wire(Layer):
    """`permit(server)`: that this server connection may be opened. What comes while an answer is awaited, mitmproxy
    queues without bound: so nobody is read then.
    """

    def __init__(self, context: Context, case: Case, permit: Callable[[Server], None], gates: Gates) -> None:
        super().__init__(context)
        self.case = case
        self.client = context.client
        self.server: Server | None = None
        self.up = self.down = 0  # bytes under the current verdict
        self._permit, self._gates = permit, gates
        self._deadline: RequestWakeup | None = None
        self._closing = ""  # who began to close a relay
        self._held: tuple[IPAddress, Server] | None = None

    def handle_event(self, event: Event) -> Steps:
        """Carries on; a fault of ours ends this one connection, whatever it awaited."""
        try:
            yield from super().handle_event(event)
        except Exception as error:  # noqa: BLE001 - the one broad catch: fail closed, and log it
            self._handle_event = self._nothing
            self._paused = None
            self._paused_event_queue.clear()
            self.case.tell_fault(error)
            yield from self.drop_server()
            yield from self.hang_up("proxy")
        idle = self._paused is None
        self._gates.set(client=idle and self.want_client, servers=idle)

    @property
    def want_client(self) -> bool:
        """Whether the client's bytes can be taken now."""
        return True

    # What every stage needs.

    def arm(self, seconds: float) -> Steps:
        """From now on, so many seconds: then `is_late` says so of an event."""
        self._deadline = RequestWakeup(seconds)
        yield self._deadline

    def disarm(self) -> None:
        """Takes the deadline back."""
        self._deadline = None

    @property
    def armed(self) -> bool:
        """Whether a deadline runs."""
        return self._deadline is not None

    def is_late(self, event: Event) -> bool:
        """Whether this is the deadline."""
        if isinstance(event, Wakeup) and event.command is self._deadline:
            self._deadline = None
            return True
        return False

    def is_from(self, connection: Connection | None, event: Event) -> bytes | None:
        """What came from this connection: b"" where it ended, None where the event is another."""
        if connection is None:
            return None
        if isinstance(event, DataReceived) and event.connection is connection:
            return bytes(event.data)
        return b"" if isinstance(event, ConnectionClosed) and event.connection is connection else None

    @property
    def client_is_gone(self) -> bool:
        """Whether the client neither sends nor takes anything any more."""
        return self.client.state is ConnectionState.CLOSED

    def to_client(self, data: bytes) -> Steps:
        """Sends, and counts."""
        if data:
            self.down += len(data)
            yield SendData(self.client, data)

    def to_server(self, data: bytes) -> Steps:
        """The same."""
        if data and self.server is not None:
            self.up += len(data)
            yield SendData(self.server, data)

    def reach(self, find: Callable[[], Awaitable[Found]]) -> Generator[Command, object, tuple[Found, Verdict]]:
        """Asks, and opens the server connection where that is permitted: then `server` stands."""
        while True:
            question = Question(find)
            yield ProxyfwAskHook(question)
            found = question.answer
            if not isinstance(found, Found):
                yield from self._drop_held()
                flow = self.case.flow()
                return Found(flow, Deny(Reason.ERROR)), Deny(Reason.ERROR, detail="it could not be decided")
            if is_refused(found.verdict):
                yield from self._drop_held()
                return found, found.verdict
            verdict = yield from self._open(found)
            if self.case.is_in_force(found):
                return found, verdict
            # The policy changed while we waited: what it says now is what counts.
            yield from self.drop_server()

    def reach_flow(self, flow: Flow) -> Generator[Command, object, tuple[Found, Verdict]]:
        """The same for a flow."""
        return (yield from self.reach(lambda: self.case.find(flow)))

    def _open(self, found: Found) -> Judged:
        if self._held is not None and self._held[0] in found.addresses:
            (_, self.server), self._held = self._held, None
            return found.verdict
        yield from self._drop_held()
        error = "no address"
        for address in found.addresses:
            if self.client_is_gone:
                error = f"[Errno {errno.ECONNABORTED}]"
                break
            server = Server(address=(str(address), found.flow.port), transport_protocol=self.client.transport_protocol)
            self._permit(server)
            failed = yield OpenConnection(server)
            if not failed:
                self.server = self.context.server = server
                return found.verdict
            error = str(failed)
        number = int(match[1]) if (match := _ERRNO.search(error)) else errno.ETIMEDOUT
        return Deny(Reason.UNREACHABLE, found.verdict.rule, os.strerror(number), error=number)

    @property
    def reached(self) -> str:
        """The address of the server connection."""
        return str(self.server.address[0]) if self.server is not None and self.server.address else ""

    def hold(self, address: IPAddress) -> None:
        """Keeps the server connection until it is known whether it is the one to use."""
        assert self.server is not None
        self._held, self.server = (address, self.server), None

    @property
    def held(self) -> Server | None:
        """The server connection that is held."""
        return self._held[1] if self._held is not None else None

    def _drop_held(self) -> Steps:
        if self._held is not None:
            (_, server), self._held = self._held, None
            yield CloseConnection(server)

    def drop_server(self) -> Steps:
        """Closes the server connections there are."""
        yield from self._drop_held()
        if self.server is not None:
            server, self.server = self.server, None
            yield CloseConnection(server)

    def end(self, closed_by: str) -> None:
        """What was let through has ended."""
        self.case.end(closed_by, self.up, self.down)
        self.up = self.down = 0

    def hang_up(self, closed_by: str) -> Steps:
        """Closes everything: there is nothing more to say."""
        self.end(closed_by)
        yield from self.drop_server()
        yield CloseConnection(self.client)
        self._handle_event = self._nothing

    def linger(self) -> Steps:
        """Closes when the client has read what it was told: with unread bytes it would be reset away."""
        yield from self.drop_server()
        yield CloseTcpConnection(self.client, half_close=True)
        yield from self.arm(LINGER)
        self._handle_event = self._lingering

    def _lingering(self, event: Event) -> Steps:
        if self.is_late(event) or self.is_from(self.client, event) == b"":
            yield from self.hang_up("proxy")

    def _nothing(self, event: Event) -> Steps:
        yield from ()

    def begin_relay(self) -> None:
        """From now on both directions are passed on as they are."""
        assert self.server is not None
        self.disarm()
        self._handle_event = self._relay

    def pass_end_on(self) -> Steps:
        """The client may have ended before the relay began."""
        if not self.client.state & ConnectionState.CAN_READ:
            yield from self._ended("client", self.server)

    def _relay(self, event: Event) -> Steps:
        data = self.is_from(self.client, event)
        if data:
            yield from self.to_server(data)
        elif data == b"":
            yield from self._ended("client", self.server)
        elif data := self.is_from(self.server, event):
            yield from self.to_client(data)
        elif data == b"":
            yield from self._ended("server", self.client)

    def _ended(self, side: str, other: Connection | None) -> Steps:
        """One side has said all: the other one is told, until both have, or one is gone altogether."""
        assert self.server is not None
        self._closing = self._closing or side
        both = not (self.client.state & ConnectionState.CAN_READ or self.server.state & ConnectionState.CAN_READ)
        if both or ConnectionState.CLOSED in (self.client.state, self.server.state):
            yield from self.hang_up(self._closing)
        elif other is not None:
            yield CloseTcpConnection(other, half_close=True)
