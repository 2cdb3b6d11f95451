"""Plain HTTP on one client connection: carries out what a `http1.Session` says, request by request. At the explicit
proxy, each request says by its URL where it is to go.

Two tasks. The connection's own reads the client; a second one reads the current server, so that a server that answers
before it has read everything cannot stall both. Each socket has one writer at a time, in the order of the session's
calls.
"""

import asyncio
from dataclasses import replace

from proxyfw.connection import Connection
from proxyfw.core import http1, refusal
from proxyfw.core.flow import Flow
from proxyfw.core.sniffed import Malformed
from proxyfw.core.verdict import Deny, Reason, Verdict, is_refused
from proxyfw.edge.poller import Stream
from proxyfw.reach import reach

_CHUNK = 1 << 14


class _Interrupted(OSError):
    """The client's reader is to look at what has changed."""


class HttpFlow:
    """Serves one client connection until it ends, or turns into a splice (WebSocket)."""

    def __init__(self, connection: Connection, first: bytes, forward: bool = False) -> None:
        """`first`: the bytes that were sniffed. `forward`: the client knows that it speaks to a proxy."""
        self._connection = connection
        self._client = connection.client
        self._forward = forward
        self._session = http1.Session(None if forward else connection.ends.port)
        self._server: Stream | None = None
        self._server_task: asyncio.Task[None] | None = None
        self._client_lock = asyncio.Lock()
        self._server_lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._fault: Exception | None = None
        self._closing = False
        self._client_left = False
        self._carrying_out = 0  # answers of servers whose commands are not all carried out
        self._switch: http1.Switch | None = None
        self._first = first
        self._unjudged: bytearray | None = bytearray()  # the client's bytes until the first decision
        self._up = self._down = 0  # bytes under the current verdict

    async def run(self) -> None:
        """Serves until the end, or until the splice begins."""
        self._client.on_end = self._client_ended
        try:
            first, self._first = self._first, b""
            await self._from_client(first)
            del first  # up to 64 KiB, and the connection may be kept for long
            while not self._closing and self._switch is None:
                await self._next()
            if self._switch is not None:
                self._begin_splice(self._switch)
            elif self._connection.splice is None:
                await self._connection.linger()
        finally:
            self._client.on_end = None
            self._drop_server()
            if self._connection.splice is None:
                self._end_entry(self._connection.closed_by or "client")

    async def _next(self) -> None:
        """Awaits the client, or a change of what the session wants."""
        connection = self._connection
        if self._session.in_head and not connection.armed:
            connection.arm_sniff()
        try:
            if self._session.want_client:
                await self._from_client(await self._client.recv(_CHUNK))
            else:
                self._changed.clear()
                await self._changed.wait()
        except _Interrupted:
            pass
        except TimeoutError:
            await self._broken(Malformed("the request was not complete within the deadline", Reason.TIMEOUT))
        if self._fault is not None:
            raise self._fault

    async def _from_client(self, data: bytes) -> None:
        if self._switch is not None:  # read just before the server agreed to switch
            self._switch = replace(self._switch, to_server=self._switch.to_server + data)
            return
        self._connection.touch()
        if self._unjudged is not None:
            self._unjudged += data
        await self._do(self._session.from_client(data))
        self._client_left = not data
        self._pass_end_on()

    def _pass_end_on(self) -> None:
        """Tells the server that the client has ended, once all that it said has been sent."""
        if self._client_left and not self._carrying_out and self._server is not None:
            self._server.finish()

    async def _serve_server(self, server: Stream) -> None:
        """The second task: reads one server connection until it ends or is replaced."""
        try:
            while self._server is server and not self._closing and self._switch is None:
                try:
                    data = await server.recv(_CHUNK)
                except ConnectionError:
                    data = b""
                if self._server is not server:
                    return
                self._connection.touch()
                self._carrying_out += 1
                await self._do(self._session.from_server(data))
                self._carrying_out -= 1
                self._pass_end_on()
                self._wake()
        except OSError:
            self._connection.close("client")  # it takes no more of the answer
        except Exception as error:  # noqa: BLE001 - handed to the connection's own task, which has the one broad catch
            self._fault = error
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        if self._closing or self._switch is not None or self._fault is not None:
            self._client.interrupt(_Interrupted())

    async def _do(self, commands: list[http1.Command]) -> None:
        """Carries out commands in order; a decision brings further ones."""
        for command in commands:
            match command:
                case http1.ToServer(data):
                    await self._to_server(data)
                case http1.ToClient(data):
                    async with self._client_lock:
                        await self._client.send(data)
                    self._down += len(data)
                case http1.Decide() as asked:
                    await self._do(await self._decide(asked))
                case http1.Broken(malformed):
                    if await self._broken(malformed):
                        return
                case http1.ServerBroken(detail):
                    if self._connection.entry is not None and not self._client_left:
                        self._connection.entry.row.detail = f"the server: {detail}"
                    self._end_entry("client" if self._client_left else "server")
                case http1.CloseServer():
                    self._drop_server()
                case http1.Switch():
                    self._switch = command
                case http1.Close():
                    async with self._client_lock:
                        self._closing = True
                    self._wake()

    async def _to_server(self, data: bytes) -> None:
        server = self._server
        if server is None:
            return
        async with self._server_lock:
            try:
                await server.send(data)
                self._up += len(data)
            except OSError:
                pass  # it closed: its own task reads what it still had to say, and the end

    async def _decide(self, asked: http1.Decide) -> list[http1.Command]:
        connection = self._connection
        connection.disarm()
        self._unjudged = None
        flow = connection.http_flow(asked, self._forward)
        entry = connection.entry
        again = connection.decide(flow)
        same_host = entry is not None and entry.flow == flow and self._server is not None
        if same_host and self._session.reusable and not is_refused(again):
            return self._session.permit(fresh=False)
        self._drop_server()
        verdict, server, _ = await reach(connection, flow)
        self._record(flow, verdict, server)
        if server is None:
            assert isinstance(verdict, Deny)
            page = refusal.page(verdict, flow.client, asked.name or asked.address)
            return self._session.refuse(refusal.status_of(verdict), page)
        self._server = server
        self._server_task = asyncio.create_task(self._serve_server(server))
        return self._session.permit(fresh=True)

    async def _broken(self, malformed: Malformed) -> bool:
        """Logs what cannot be judged; in observe mode, relays it raw if nothing was judged yet, and answers True."""
        connection = self._connection
        flow = connection.flow()._replace(broken=malformed)
        if self._unjudged is None or self._forward:  # where it would go, its URL alone says
            self._record(flow, Deny(malformed.reason, detail=malformed.detail))
            self._closing = True
            return False
        verdict, server, _ = await reach(connection, flow)
        self._record(flow, verdict, server)
        self._closing = True
        if server is None:
            return False
        connection.begin_splice(server, bytes(self._unjudged), b"")
        return True

    def _begin_splice(self, switch: http1.Switch) -> None:
        server, self._server = self._server, None
        if server is not None:
            self._drop_task()
            connection = self._connection
            connection.begin_splice(server, switch.to_server, switch.to_client, self._up, self._down)

    def _record(self, flow: Flow, verdict: Verdict, server: Stream | None = None) -> None:
        self._end_entry("client")
        self._connection.record(flow, verdict, server)

    def _end_entry(self, closed_by: str) -> None:
        self._connection.end_entry(closed_by, self._up, self._down)
        self._up = self._down = 0

    def _client_ended(self, reset: bool) -> None:
        if reset:
            self._connection.close("client")

    def _drop_server(self) -> None:
        self._drop_task()
        if self._server is not None:
            self._server.close()
            self._server = None

    def _drop_task(self) -> None:
        # The second task may be the one that asks: it is kept, so that it ends with the connection while it dials.
        task = self._server_task
        if task is not None and task is not asyncio.current_task():
            self._server_task = None
            task.cancel()
