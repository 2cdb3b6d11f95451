"""A client that waits for the server to speak (SMTP, IMAP, MySQL), where a pin grants the port: the server is dialled.

The server's bytes are passed on as they come. The client's first bytes are still judged: until they are, none of them
reaches the server.
"""

import asyncio

from proxyfw.connection import SNIFF_DEADLINE, Connection
from proxyfw.core.flow import Flow, Protocol
from proxyfw.core.sniffed import Malformed, Nameless, NeedMore, NotMine, Sniffed
from proxyfw.core.sniffer import Sniffer
from proxyfw.core.verdict import Deny, Reason, is_refused
from proxyfw.edge.poller import Stream
from proxyfw.reach import reach

SERVER_FIRST = 0.1  # seconds for the client to speak first: most do at once, and need no second dial
_CHUNK = 1 << 14
_TOO_MANY = "too many connections of this client are being set up"


async def first_words(connection: Connection) -> bytes | None:
    """The client's first bytes, to be served as on any port. None: it waits for the server, and all is done here.

    Until the server speaks, the client may still be the first to: then the server that was dialled is let go of, as the
    client's bytes may name another one.
    """
    connection.arm(SERVER_FIRST, connection.client)
    try:
        first = await connection.client.recv(_CHUNK)
        if first:
            return first  # else it has ended its side already, and only wants to hear
    except TimeoutError:
        pass
    except ConnectionError:
        return b""
    connection.disarm()
    flow = connection.flow()
    verdict, server, _ = await reach(connection, flow)
    connection.record(flow, verdict, server)
    if server is None:
        assert isinstance(verdict, Deny)
        await connection.refuse(verdict)
        return None
    try:
        connection.disarm()
        from_client, from_server = await _first_to_speak(connection, server)
    except BaseException:
        server.close()
        raise
    if from_client and from_server is None:
        connection.end_entry("client")
        server.close()
        if connection.set_decided(False):
            return from_client
        await _refuse(connection, flow, Deny(Reason.LIMIT, detail=_TOO_MANY))
        return None
    connection.begin_splice(server, from_client or b"", from_server or b"", gate=Gate(connection).open_for)
    return None


async def _refuse(connection: Connection, flow: Flow, deny: Deny) -> None:
    connection.record(flow, deny)
    await connection.refuse(deny)


async def _first_to_speak(connection: Connection, server: Stream) -> tuple[bytes | None, bytes | None]:
    """What the client and the server said first: None where that one did not, b"" where it ended. Raises OSError."""
    tasks = [asyncio.ensure_future(stream.recv(_CHUNK)) for stream in (connection.client, server)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[1].done() and tasks[1].exception() is not None:
            connection.closed_by = "server"
        from_client, from_server = (task.result() if task.done() else None for task in tasks)
        return from_client, from_server
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Gate:
    """Judges the client's first bytes once the server has spoken, or the client has ended."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sniffer = Sniffer()
        self._deadline: asyncio.TimerHandle | None = None

    def open_for(self, data: bytes) -> bool | None:
        """Whether the bytes so far may go to the server; None: more are needed to tell. b"": the client has ended."""
        if not data:
            return not self._sniffer.data or not self._is_refused(self._sniffer.ended_early())
        sniffed = self._sniffer.feed(data)
        if isinstance(sniffed, NeedMore):
            if self._deadline is None:
                self._deadline = asyncio.get_running_loop().call_later(SNIFF_DEADLINE, self._expire)
                if not self._connection.set_decided(False):
                    return not self._is_refused(Malformed(_TOO_MANY, Reason.LIMIT))
            return None
        self._connection.set_decided(True)
        if self._deadline is not None:
            self._deadline.cancel()
        if self._sniffer.protocol is Protocol.HTTP and isinstance(sniffed, Nameless):
            sniffed = Malformed("an HTTP request to a server that spoke first")
        return isinstance(sniffed, NotMine) or not self._is_refused(sniffed)

    def _expire(self) -> None:
        splice = self._connection.splice
        if splice is None or splice.closed:
            return
        if self._is_refused(self._sniffer.too_late()):
            splice.close("proxy")
        else:
            splice.open_gate()

    def _is_refused(self, sniffed: Sniffed) -> bool:
        """The verdict on what the client said; a refusal is recorded, also one that observe mode lets through."""
        connection, splice = self._connection, self._connection.splice
        assert splice is not None
        connection.protocol = self._sniffer.protocol
        flow = connection.flow(sniffed)
        verdict = connection.decide(flow)
        if isinstance(verdict, Deny):
            connection.end_entry("proxy" if is_refused(verdict) else "client", splice.bytes_up, splice.bytes_down)
            connection.record(flow, verdict)
        return is_refused(verdict)
