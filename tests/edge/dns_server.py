"""A DNS server on loopback, over UDP and TCP, that answers as a test says; and what tests of the resolvers share."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import dns.flags
import dns.message
from dns.message import Message

Script = Callable[[Message, bool], Iterable[bytes]]
"""From a query, and whether it came over TCP, to the datagrams that answer it, or the bytes of the stream."""


def run(coroutine: Coroutine[None, None, None]) -> None:
    """Runs a test, which ends within ten seconds and leaves no descriptor behind."""
    gc.collect()  # or a descriptor of an earlier test is closed meanwhile
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(asyncio.wait_for(coroutine, 10))
    assert len(os.listdir("/proc/self/fd")) == before


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Server(asyncio.DatagramProtocol):
    """`queries` and `senders`: what came, and from where; `over_tcp`: how many that way. `asked` is set by each."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.queries: list[Message] = []
        self.senders: list[tuple[str, int]] = []
        self.over_tcp = 0
        self.held: asyncio.Event | None = None
        """Where there is one, answers wait for it."""
        self.asked = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._serve_udp(data, address))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                data = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                self.over_tcp += 1
                for piece in await self._take(data, writer.get_extra_info("peername"), tcp=True):
                    writer.write(piece)
                await writer.drain()
        finally:
            writer.close()

    async def _serve_udp(self, data: bytes, address: Any) -> None:
        for datagram in await self._take(data, address, tcp=False):
            self._transport.sendto(datagram, address)

    async def _take(self, data: bytes, address: Any, tcp: bool) -> Iterable[bytes]:
        query = dns.message.from_wire(data)
        self.queries.append(query)
        self.senders.append(address[:2])
        self.asked.set()
        if self.held is not None:
            await self.held.wait()
        return self.script(query, tcp)


@asynccontextmanager
async def serving(server: Server, host: str = "127.0.0.1", tcp: bool = True) -> AsyncIterator[int]:
    """The port on which it serves."""
    while True:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: server, (host, 0))
        port: int = transport.get_extra_info("sockname")[1]
        try:
            listener = await asyncio.start_server(server.serve_tcp, host, port) if tcp else None
            break
        except OSError:  # somebody has this very port for TCP
            transport.close()
    try:
        yield port
    finally:
        transport.close()
        if server.held is not None:
            server.held.set()
        if listener is not None:
            listener.close()
            await listener.wait_closed()


def stream(message: Message) -> bytes:
    """A message as it goes over TCP."""
    wire = message.to_wire()
    return len(wire).to_bytes(2) + wire


def truncated(query: Message) -> Message:
    """The reply that sends a client to TCP."""
    response = dns.message.make_response(query)
    response.flags |= dns.flags.TC
    return response
