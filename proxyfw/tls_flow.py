"""A permitted TLS connection, from the ClientHello that was judged until the splice may begin.

A server may ask for a second ClientHello (HelloRetryRequest, RFC 8446 section 4.1.4), which is in the clear again and
could name another host. So the client's further bytes are held until the server has spoken, and a second hello is
judged like the first.
"""

import errno

from proxyfw.connection import Connection
from proxyfw.core import tls
from proxyfw.core.sniffed import Malformed, Named, NeedMore
from proxyfw.core.verdict import Reason, is_refused
from proxyfw.edge.poller import Stream

SERVER_DEADLINE = 60.0  # seconds for the server's first byte
_CHUNK = 1 << 14


class TlsFlow:
    """Owns the server's stream until the splice does."""

    def __init__(self, connection: Connection, server: Stream, named: Named) -> None:
        self._connection = connection
        self._client = connection.client
        self._server = server
        self._named = named
        self._held = b""  # from the client, not to be sent on yet

    async def run(self, first: bytes, hello_end: int) -> None:
        """Sends the hello, and begins the splice when the server has answered. Raises OSError if a side breaks off."""
        connection = self._connection
        self._held = first[hello_end:]
        connection.arm(SERVER_DEADLINE, self._server)
        received = 0
        try:
            await self._server.send(first[:hello_end])
            answer = await self._answer()
            if tls.server_first(answer) is tls.ServerFirst.RETRY:
                await self._client.send(answer)
                received, answer = len(answer), b""
                connection.arm_sniff()
                await self._second_hello()
        except BaseException as error:
            self._server.close()
            # Who broke off: the deadline, or the server, unless somebody else has said so already.
            by = connection.closed_by or ("idle" if isinstance(error, TimeoutError) else "server")
            connection.end_entry(by, hello_end, received)
            raise
        connection.disarm()
        connection.begin_splice(self._server, self._held, answer, hello_end, received)

    async def _answer(self) -> bytes:
        """The server's first bytes, as many as are needed to tell what they are; all there are where it ends."""
        self._client.on_end = self._client_ended
        if self._client.has_ended():
            self._client_ended(reset=False)
        data = b""
        while tls.server_first(data) is tls.ServerFirst.NEED_MORE:
            piece = await self._server.recv(_CHUNK)
            if not piece:
                break
            data += piece
        self._client.on_end = None
        return data

    def _client_ended(self, reset: bool) -> None:
        """The client ended while the server is awaited: pass it on, if it holds nothing unjudged."""
        if reset:
            self._connection.closed_by = "client"
            self._server.interrupt(ConnectionResetError(errno.ECONNRESET, "the client reset the connection"))
        elif not self._held and self._client.has_ended():
            self._server.finish()

    async def _second_hello(self) -> None:
        """Awaits a second ClientHello that names the same host. Raises OSError when it does not come, or is refused."""
        hello = tls.ClientHello(second=True)
        answer = hello.feed(self._held)
        while isinstance(answer, NeedMore):
            piece = await self._client.recv(_CHUNK)
            if not piece:
                self._connection.closed_by = "client"
                raise ConnectionResetError(errno.ECONNRESET, "no second ClientHello")
            self._held += piece
            answer = hello.feed(piece)
        name = self._named.name
        if isinstance(answer, Named) and answer.name == name:
            return
        if isinstance(answer, Malformed):
            broken = answer
        else:
            broken = Malformed(f"the second ClientHello does not name {name} again", Reason.AMBIGUOUS)
        connection = self._connection
        flow = connection.flow(answer)._replace(broken=broken)
        verdict = connection.decide(flow)
        connection.end_entry("proxy")
        connection.record(flow, verdict)
        if is_refused(verdict):
            await connection.refuse(verdict)
            raise ConnectionAbortedError(errno.ECONNABORTED, broken.detail)
