"""A client that waits for the server to speak (SMTP, IMAP, MySQL), where a pin grants the port: the server is dialled.

The server's bytes are passed on as they come. The client's first bytes are still judged: until they are, none of them
reaches the server.
"""

import asyncio

from proxyfw.connection import SNIFF_DEADLINE, Connection
from proxyfw.core.policy import Protocol
from proxyfw.core.sniffed import Malformed, Nameless, NeedMore, NotMine, Sniffed
from proxyfw.core.sniffer import Sniffer
from proxyfw.core.verdict import Deny, Reason, is_refused
from proxyfw.edge.poller import Stream

SERVER_FIRST = 0.1  # seconds for the client to speak first: most do at once, and need no second dial
_CHUNK = 1 << 14


async def first_words(connection: Connection) -> bytes | None:
    """The client's first bytes, to be served as on any port. None: it waits for the server, and all is done here.

    Until the server speaks, the client may still be the first to: then the server that was dialled is let go of, as the
    client's bytes may name another one.
    """
    connection.arm(SERVER_FIRST, connection.client)
    try:
        return await connection.client.recv(_CHUNK)
    except TimeoutError:
        connection.disarm()
    except ConnectionError:
        return b""
    flow = connection.flow()
    verdict, server = await connection.connect(flow)
    connection.record(flow, verdict, server)
    if server is None:
        assert isinstance(verdict, Deny)
        await connection.refuse(verdict)
        return None
    try:
        connection.disarm()
        speaker, first = await _first_to_speak(connection.client, server)
    except BaseException:
        server.close()
        raise
    if speaker is connection.client and first:
        connection.end_entry("client")
        server.close()
        return first
    if speaker is server:
        connection.begin_splice(server, b"", first, gate=Gate(connection).open_for)
    else:
        connection.begin_splice(server, b"", b"")
    return None


async def _first_to_speak(client: Stream, server: Stream) -> tuple[Stream, bytes]:
    """Who spoke (or ended) first, and the bytes; b"" for an end. Raises OSError."""
    tasks = {asyncio.ensure_future(stream.recv(_CHUNK)): stream for stream in (client, server)}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        task = next(task for task in tasks if task.done())
        other = next(each for each in tasks if each is not task)
        if other.done() and not other.cancelled() and other.exception() is None and tasks[task] is client:
            task = other  # both at once: what the server has said must reach the client
        return tasks[task], task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Gate:
    """Judges the client's first bytes once the server has spoken."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sniffer = Sniffer()
        self._deadline: asyncio.TimerHandle | None = None

    def open_for(self, data: bytes) -> bool | None:
        """Whether the bytes so far may go to the server; None: more are needed to tell."""
        sniffed = self._sniffer.feed(data)
        if isinstance(sniffed, NeedMore):
            if self._deadline is None:
                loop = asyncio.get_running_loop()
                self._deadline = loop.call_later(SNIFF_DEADLINE, self._expire)
            return None
        if self._deadline is not None:
            self._deadline.cancel()
        if self._sniffer.protocol is Protocol.HTTP and isinstance(sniffed, Nameless):
            sniffed = Malformed("an HTTP request to a server that spoke first")
        return isinstance(sniffed, NotMine) or not self._is_refused(sniffed)

    def _expire(self) -> None:
        splice = self._connection.splice
        if splice is not None and not splice.closed:
            late = Malformed("the name was not complete within the deadline", Reason.TIMEOUT)
            if self._is_refused(late):
                splice.close("proxy")

    def _is_refused(self, sniffed: Sniffed) -> bool:
        connection, splice = self._connection, self._connection.splice
        assert splice is not None
        connection.protocol = self._sniffer.protocol
        flow = connection.flow(sniffed)
        verdict = connection.decide(flow)
        if is_refused(verdict):
            connection.end_entry("proxy", splice.bytes_up, splice.bytes_down)
            connection.record(flow, verdict)
            return True
        return False
