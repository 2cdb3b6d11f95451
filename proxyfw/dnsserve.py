"""How queries reach the relay and replies leave: datagrams, and TCP connections with one query after the other."""

import asyncio
import socket
import time
from collections import Counter
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address

from proxyfw.core.ratelimit import RateLimit
from proxyfw.core.verdict import Deny, Reason
from proxyfw.dnsrelay import Asked, DnsRelay
from proxyfw.edge.dnssocket import Datagram, DnsSocket

IDLE = 10.0  # seconds between two queries on a TCP connection, and for each part of one (RFC 7766 section 6.2.3)
MAX_TCP = 32  # TCP connections of one client
RATE, BURST = 3000.0, 6000.0  # queries of one client over TCP: as the packet layer has it for UDP
SHARE, SHARE_AT_ONCE = 0.5, 0.2
"""Of one processor's time, what one client may have for its queries: a second, and after a rest. Names and answers that
take long to read and write are chosen by clients; the others shall be served all the same."""

_PAUSE = 0.05  # seconds that a connection waits when its client has asked too much
_BATCH = 64  # datagrams taken before others get their turn


class DnsServer:
    """Serves the sockets until it is stopped."""

    def __init__(self, relay: DnsRelay, loop: asyncio.AbstractEventLoop) -> None:
        self._relay = relay
        self._loop = loop
        self._sockets: list[DnsSocket] = []
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: Counter[str] = Counter()
        self._rate = RateLimit(RATE, BURST)
        self._share = RateLimit(SHARE, SHARE_AT_ONCE)

    async def start(self, sockets: list[DnsSocket], listeners: list[socket.socket]) -> None:
        """Begins to take queries."""
        self._sockets = sockets
        for sock in sockets:
            self._loop.add_reader(sock.fileno(), self._take, sock)
        self._servers = [await asyncio.start_server(self._serve, sock=listener) for listener in listeners]

    async def stop(self) -> None:
        """Takes no more, and drops what is under way."""
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        for server in self._servers:
            server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take(self, sock: DnsSocket) -> None:
        for _ in range(_BATCH):
            try:
                datagram = sock.receive()
            except OSError:
                continue
            if datagram is None:
                return
            address, destination = datagram.peer[0].partition("%")[0], _text(datagram.destination)
            if self._share.left(self._relay.client_at(address), self._loop.time()) <= 0:
                self._relay.counts.dropped += 1
                continue
            reply = self._reply(datagram.data, address, destination, udp=True)
            if isinstance(reply, Asked):
                self._begin(sock, datagram, reply)
            else:
                _send(sock, datagram, reply)

    def _reply(self, data: bytes, address: str, destination: str, udp: bool) -> bytes | Asked:
        begun = time.thread_time()
        try:
            return self._relay.reply(data, address, destination, udp)
        except Exception as error:  # noqa: BLE001 - a fault of ours refuses one query, and is logged
            return self._relay.fault(data, address, destination, error)
        finally:
            self._share.spend(self._relay.client_at(address), time.thread_time() - begun, self._loop.time())

    def _begin(self, sock: DnsSocket, datagram: Datagram, asked: Asked) -> None:
        task = self._loop.create_task(self._look_up(sock, datagram, asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_up(self, sock: DnsSocket, datagram: Datagram, asked: Asked) -> None:
        _send(sock, datagram, await self._found(asked))

    async def _found(self, asked: Asked) -> bytes:
        try:
            return await self._relay.look_up(asked)
        except Exception as error:  # noqa: BLE001 - as in _reply
            return self._relay.fault(asked.data, asked.address, asked.destination, error)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writer.transport.set_write_buffer_limits(0)  # what is drained is the kernel's
        address = str(writer.get_extra_info("peername")[0]).partition("%")[0]
        destination = str(writer.get_extra_info("sockname")[0]).partition("%")[0]
        client = self._relay.client_at(address)
        self._connections[client] += 1
        try:
            if self._connections[client] > MAX_TCP:
                detail = f"{MAX_TCP} TCP connections to the relay are open"
                self._relay.refuse_connection(address, destination, Deny(Reason.LIMIT, detail=detail))
                return
            with suppress(OSError, EOFError, TimeoutError):
                while True:
                    await self._serve_one(reader, writer, address, destination)
        finally:
            self._connections[client] -= 1
            if not self._connections[client]:
                del self._connections[client]
            self._tasks.discard(task)
            writer.transport.abort()  # a peer that reads nothing must not keep it open

    async def _serve_one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str, destination: str
    ) -> None:
        async with asyncio.timeout(IDLE):
            length = int.from_bytes(await reader.readexactly(2))
            data = await reader.readexactly(length)
        client = self._relay.client_at(address)
        while self._share.left(client, self._loop.time()) <= 0 or not self._rate.take(client, self._loop.time()):
            await asyncio.sleep(_PAUSE)
        reply = self._reply(data, address, destination, udp=False)
        if isinstance(reply, Asked):
            reply = await self._found(reply)
        if not reply:
            raise EOFError  # who sends what is no query need not go on
        writer.write(len(reply).to_bytes(2) + reply)
        async with asyncio.timeout(IDLE):
            await writer.drain()
        await asyncio.sleep(0)  # who always has more must leave the others their turn


def _send(sock: DnsSocket, datagram: Datagram, reply: bytes) -> None:
    if reply:
        with suppress(OSError):  # a full buffer: the client asks again, as for any lost datagram
            sock.send(reply, datagram)


@lru_cache(maxsize=1024)
def _text(packed: bytes) -> str:
    return str(ip_address(packed))
