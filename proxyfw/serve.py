"""What happens to a connection, stage by stage: sniff, decide, resolve and dial, splice."""

from proxyfw.connection import Connection
from proxyfw.core.flow import Protocol
from proxyfw.core.sniffed import Malformed, Named, NeedMore, Sniffed
from proxyfw.core.sniffer import Sniffer
from proxyfw.core.verdict import Deny, Reason
from proxyfw.http_flow import HttpFlow
from proxyfw.reach import reach
from proxyfw.server_first import first_words
from proxyfw.tls_flow import TlsFlow

_CHUNK = 1 << 14


async def serve(connection: Connection, first: bytes = b"") -> None:
    """Serves one connection until its splice begins, or it ends. `first`: what the client has said already."""
    if not first and connection.granted_unheard():
        heard = await first_words(connection)
        if heard is None:
            return
        first = heard
    connection.arm_sniff()
    sniffer = Sniffer()
    sniffed = await _sniff(connection, sniffer, first)
    await _judge(connection, sniffer, sniffed)


async def _judge(connection: Connection, sniffer: Sniffer, sniffed: Sniffed) -> None:
    first = sniffer.data
    late = isinstance(sniffed, Malformed) and sniffed.reason is Reason.TIMEOUT
    if connection.protocol is Protocol.HTTP and not late:
        http = HttpFlow(connection, first)
        sniffer.data = first = b""  # up to 64 KiB, and the connection may be kept for long
        await http.run()
        return
    connection.disarm()
    flow = connection.flow(sniffed)
    verdict, server, _ = await reach(connection, flow)
    connection.record(flow, verdict, server)
    if server is None:
        assert isinstance(verdict, Deny)
        await connection.refuse(verdict)
    elif connection.protocol is Protocol.TLS and isinstance(sniffed, Named):
        await TlsFlow(connection, server, sniffed).run(first, sniffer.hello_end)
    else:
        connection.begin_splice(server, first, b"")


async def _sniff(connection: Connection, sniffer: Sniffer, piece: bytes = b"") -> Sniffed:
    """What the client's first bytes say; `piece`: those that are here already."""
    while True:
        if not piece:
            try:
                piece = await connection.client.recv(_CHUNK)
            except TimeoutError:
                return sniffer.too_late()
            except ConnectionError:
                piece = b""
        if not piece:
            return sniffer.ended_early()
        answer = sniffer.feed(piece)
        connection.protocol = sniffer.protocol
        if not isinstance(answer, NeedMore):
            return answer
        piece = b""
