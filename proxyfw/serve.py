"""What happens to a connection, stage by stage: sniff, decide, resolve and dial, splice."""

from proxyfw.connection import Connection
from proxyfw.core import http1, tls
from proxyfw.core.policy import Protocol
from proxyfw.core.sniffed import Malformed, Named, NeedMore, NotMine, Sniffed
from proxyfw.core.verdict import Deny, Reason
from proxyfw.http_flow import HttpFlow
from proxyfw.tls_flow import TlsFlow

_CHUNK = 1 << 14


async def serve(connection: Connection) -> None:
    """Serves one connection until its splice begins, or it ends."""
    connection.arm_sniff()
    first, sniffed, hello_end = await _sniff(connection)
    late = isinstance(sniffed, Malformed) and sniffed.reason is Reason.TIMEOUT
    if connection.protocol is Protocol.HTTP and not late:
        http = HttpFlow(connection, first)
        del first
        await http.run()
        return
    connection.disarm()
    flow = connection.flow(sniffed)
    verdict, server = await connection.connect(flow)
    connection.record(flow, verdict, server)
    if server is None:
        assert isinstance(verdict, Deny)
        await connection.refuse(verdict)
    elif connection.protocol is Protocol.TLS and isinstance(sniffed, Named):
        await TlsFlow(connection, server, sniffed).run(first, hello_end)
    else:
        connection.begin_splice(server, first, b"")


async def _sniff(connection: Connection) -> tuple[bytes, Sniffed, int]:
    """The client's first bytes, what they say, and where a ClientHello in them ends."""
    hello = tls.ClientHello()
    data = b""
    while True:
        try:
            piece = await connection.client.recv(_CHUNK)
        except TimeoutError:
            return data, _too_late(data), 0
        except ConnectionError:
            piece = b""
        if not piece:
            return data, _ended_early(data), 0
        data += piece
        if connection.protocol is not Protocol.HTTP:
            answer = hello.feed(piece)
            if not isinstance(answer, NotMine):
                connection.protocol = Protocol.TLS
                if not isinstance(answer, NeedMore):
                    return data, answer, hello.consumed
                continue
        answer = http1.sniff(data)
        if isinstance(answer, NotMine):
            connection.protocol = Protocol.TCP
            return data, answer, 0
        connection.protocol = Protocol.HTTP
        if not isinstance(answer, NeedMore):
            return data, answer, 0


def _too_late(data: bytes) -> Malformed:
    if not data:
        return Malformed("nothing was sent within the deadline", Reason.SILENT)
    return Malformed("the name was not complete within the deadline", Reason.TIMEOUT)


def _ended_early(data: bytes) -> Malformed:
    if not data:
        return Malformed("the client closed the connection without a word", Reason.SILENT)
    return Malformed("the connection ended before the name was complete")
