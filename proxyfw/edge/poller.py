"""Edge-triggered readiness for many sockets, inside asyncio's loop, and sockets that can be awaited.

asyncio's own add_reader costs several Python objects and calls for each change of interest. A connection here is
registered once, for reading and writing, with an epoll descriptor that asyncio watches as a whole.
"""

import asyncio
import os
import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

Events = int
READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
GONE = select.EPOLLHUP | select.EPOLLERR
PEER_ENDED = select.EPOLLRDHUP | GONE
_INTEREST = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_BATCH = 256
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, no seconds


class Poller:
    """Calls back with the events of a descriptor. A callback may come late or for nothing: try, and mind EAGAIN."""

    def __init__(self) -> None:
        self._callbacks: dict[int, Callable[[Events], None]] = {}

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins to watch, inside `loop`."""
        self.loop = loop
        self.now = loop.time()
        """The loop's time when the latest events came; good enough where a second more or less does not matter."""
        self._epoll = select.epoll()
        loop.add_reader(self._epoll.fileno(), self._ready)

    def stop(self) -> None:
        """Ends it; sockets still watched are left to their owners."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def watch(self, fd: int, callback: Callable[[Events], None]) -> None:
        """Registers a descriptor; it must be forgotten before it is closed."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, _INTEREST)

    def rewatch(self, fd: int, callback: Callable[[Events], None]) -> None:
        """Puts another callback in place of the one that was registered."""
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Takes a descriptor back. Closing it ends the kernel's own registration."""
        self._callbacks.pop(fd, None)

    def _ready(self) -> None:
        callbacks = self._callbacks
        self.now = self.loop.time()
        for fd, events in self._epoll.poll(0, _BATCH):
            callback = callbacks.get(fd)
            if callback is None:
                continue
            try:
                callback(events)
            except Exception as error:  # noqa: BLE001 - a fault in one connection must not lose the others' events
                self.forget(fd)
                self.loop.call_exception_handler({"message": "a connection's callback failed", "exception": error})


class Stream:
    """A connected (or connecting) non-blocking TCP socket that can be awaited. One reader and one writer at a time.

    `on_end(reset)`, when set, is called when the peer ends its side, or resets the connection, while nobody reads it.
    """

    __slots__ = ("_eager", "_poller", "_reader", "_seen", "_writer", "fd", "on_end", "peer", "readable", "sock")

    def __init__(self, sock: socket.socket, poller: Poller) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.on_end: Callable[[bool], None] | None = None
        self.peer = ""
        """The address that it was connected to, by `connect`."""
        self.readable = True
        """Whether there may be something to read: the kernel has said so since a read last found nothing."""
        self._poller = poller
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._seen: Events = 0
        self._eager = False  # the last read had not to wait
        poller.watch(self.fd, self._event)

    def _event(self, events: Events) -> None:
        reader, writer = self._reader, self._writer
        self._seen |= events
        if events & READABLE:
            self.readable = True
            if reader is not None and not reader.done():
                reader.set_result(None)
        if writer is not None and events & WRITABLE and not writer.done():
            writer.set_result(None)
        if events & PEER_ENDED and reader is None and self.on_end is not None:
            self.on_end(bool(events & GONE))

    async def recv(self, limit: int) -> bytes:
        """At most so many bytes; b"" at the peer's end. Raises OSError."""
        waited = False
        while True:
            if self.readable:
                try:
                    data = self.sock.recv(limit)
                    # Fewer bytes than asked for: there are no more, unless an end was announced (epoll(7)).
                    self.readable = len(data) == limit or self.ending
                    if self._eager and not waited:  # a peer that always has more must leave the others their turn
                        await asyncio.sleep(0)  # after the read: whoever was interrupted meanwhile looks around first
                    self._eager = not waited
                    return data
                except BlockingIOError:
                    self.readable = False
            waited = True
            self._reader = self._poller.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    async def send(self, data: bytes) -> None:
        """Sends all of it. Raises OSError."""
        while True:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                await self._writable()
                continue
            if sent == len(data):
                return
            data = data[sent:]

    async def connect(self, host: str, port: int) -> None:
        """Connects to an address, not a name. Raises OSError."""
        self.peer = host
        self.readable = False
        self._seen = 0  # a socket that is not connected yet counts as hung up
        try:
            self.sock.connect((host, port))
            return
        except BlockingIOError:
            pass
        await self.connected()

    async def connected(self) -> None:
        """Awaits the end of a `connect` that was interrupted. Raises OSError."""
        if not self._seen & WRITABLE:
            await self._writable()
        if self._seen & GONE:
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            raise OSError(error, os.strerror(error))

    async def _writable(self) -> None:
        self._writer = self._poller.loop.create_future()
        try:
            await self._writer
        finally:
            self._writer = None

    @property
    def ending(self) -> bool:
        """Whether the peer's end has been announced; bytes of it may still have to be read."""
        return bool(self._seen & PEER_ENDED)

    def has_ended(self) -> bool:
        """Whether the peer has closed its side and nothing of it is left to read."""
        if not self.readable:
            return False
        try:
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            self.readable = False
            return False
        except OSError:
            return True

    def interrupt(self, error: OSError) -> bool:
        """Whoever awaits this socket gets this error; False where nobody does, or where it is ready just now."""
        awaited = [w for w in (self._reader, self._writer) if w is not None and not w.done()]
        for waiting in awaited:
            waiting.set_exception(error)
        return bool(awaited)

    def reset_on_close(self) -> None:
        """The coming `close` sends a reset, so that the peer sees a refusal and not an end."""
        with suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def finish(self) -> None:
        """Sends FIN: nothing more will be sent."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Closes, whatever is still on its way is sent by the kernel."""
        self._poller.forget(self.fd)
        self.sock.close()
