"""Bytes between two sockets by splice(2) through a pipe: none is copied into Python.

A pipe is taken from the pool when there is something to carry and given back when it is empty, so an idle splice holds
none. Back-pressure is the kernel's: what the other side does not take stays in the pipe, and nothing more is read.
"""

import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import suppress

from proxyfw.edge.poller import GONE, PEER_ENDED, READABLE, WRITABLE, Events, Poller, Stream

PIPE_SIZE = 1 << 18
_ROUNDS = 16  # of splicing one direction before others get their turn
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_LAST = _FLAGS | os.SPLICE_F_MORE  # the source's FIN is here already: the last bytes and ours leave in one segment
_POOLED = 64
_GATED = 1 << 14  # bytes of the client's first ones that are read at a time


class Pipes:
    """A pool of empty pipes."""

    def __init__(self) -> None:
        self._idle: list[tuple[int, int]] = []

    def take(self) -> tuple[int, int]:
        """An empty pipe, (read end, write end). Raises OSError when no descriptor is left."""
        if self._idle:
            return self._idle.pop()
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError):  # over the user's quota of pipe pages: the default size serves too
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        return pipe

    def give(self, pipe: tuple[int, int]) -> None:
        """Back into the pool; it must be empty."""
        if len(self._idle) < _POOLED:
            self._idle.append(pipe)
        else:
            discard(pipe)

    def close(self) -> None:
        """Closes every idle pipe."""
        while self._idle:
            discard(self._idle.pop())


def discard(pipe: tuple[int, int]) -> None:
    """Closes a pipe, with whatever is in it."""
    os.close(pipe[0])
    os.close(pipe[1])


class _Half:
    """One direction. `first` are bytes already in Python, sent before any is spliced."""

    __slots__ = ("count", "done", "ending", "first", "held", "into", "out_of", "pipe", "who")

    def __init__(self, out_of: Stream, into: Stream, first: bytes, who: str) -> None:
        self.out_of = out_of
        self.into = into
        self.first = first
        self.ending = out_of.ending
        self.who = who  # whose bytes: the one who closes when they end
        self.pipe: tuple[int, int] | None = None
        self.held = 0  # bytes in the pipe
        self.count = 0  # bytes delivered
        self.done = False  # the source has sent FIN, and so have we


class Splice:
    """Relays between two streams until both have ended, one fails, or it is closed.

    `to_server` and `to_client` are sent first; `sent` and `received` bytes had gone that way before.
    Owns both streams from `start` on. `on_close(splice, closed_by)` is called once, when they are closed; `closed_by`
    is "client", "server", or what `close` was called with.

    `gate`, where given, is asked about the client's first bytes as they come (first `to_server`), and about its end
    (b""): they wait until it says True, and with False everything is closed.
    """

    __slots__ = ("_client", "_down", "_gate", "_on_close", "_pipes", "_poller", "_server", "_up", "active_at", "closed")

    def __init__(
        self,
        client: Stream,
        server: Stream,
        poller: Poller,
        pipes: Pipes,
        on_close: Callable[["Splice", str], None],
        to_server: bytes = b"",
        to_client: bytes = b"",
        sent: int = 0,
        received: int = 0,
        gate: Callable[[bytes], bool | None] | None = None,
    ) -> None:
        self._gate = gate
        self._client, self._server = client, server
        self._poller, self._pipes, self._on_close = poller, pipes, on_close
        self._up = _Half(client, server, to_server, "client")
        self._down = _Half(server, client, to_client, "server")
        self._up.count = sent
        self._down.count = received
        self.active_at = 0.0
        self.closed = False

    @property
    def bytes_up(self) -> int:
        """Bytes delivered to the server by this splice."""
        return self._up.count

    @property
    def bytes_down(self) -> int:
        """Bytes delivered to the client by this splice."""
        return self._down.count

    def start(self) -> None:
        """Begins; nobody else may await the streams any more."""
        self.active_at = self._poller.now
        self._poller.rewatch(self._client.fd, self._client_event)
        self._poller.rewatch(self._server.fd, self._server_event)
        if self._gate is not None and self._up.first:
            self._judge(self._gate, self._up.first)
        # Edge-triggered: what came before is not announced again.
        for half in (self._down, self._up):
            if (half.first or half.out_of.readable) and not self.closed:
                self._pump(half)

    def reset_on_close(self) -> None:
        """The coming `close` sends both sides a reset, and nothing that is still on its way to them."""
        self._client.reset_on_close()
        self._server.reset_on_close()

    def close(self, closed_by: str) -> None:
        """Closes both sockets at once."""
        if self.closed:
            return
        self.closed = True
        self._client.close()
        self._server.close()
        for half in (self._up, self._down):
            if half.pipe is not None:
                discard(half.pipe)
                half.pipe = None
        self._on_close(self, closed_by)

    def _client_event(self, events: Events) -> None:
        self._event(events, self._up, self._down)

    def _server_event(self, events: Events) -> None:
        self._event(events, self._down, self._up)

    def _event(self, events: Events, reading: _Half, writing: _Half) -> None:
        self.active_at = self._poller.now
        if events & PEER_ENDED:
            reading.ending = True
        if events & WRITABLE and (writing.held or writing.first):
            self._pump(writing)
        if events & READABLE and not self.closed:
            self._pump(reading)
        # The source had ended before: a reset is all that can come from there, and no read will tell of it.
        if events & GONE and reading.done and not self.closed:
            self.close(reading.who)

    def _pump(self, half: _Half) -> None:
        """Carries bytes of one direction until the source has none or the other side takes none."""
        try:
            for _ in range(_ROUNDS):
                if self._gate is not None and half is self._up:
                    self._ask_gate(half, self._gate)
                    if self.closed:
                        return
                elif half.first:
                    sent = half.into.sock.send(half.first, socket.MSG_MORE if half.ending else 0)
                    half.first = half.first[sent:]
                    half.count += sent
                elif half.held and half.pipe is not None:
                    sent = os.splice(half.pipe[0], half.into.fd, half.held, flags=_LAST if half.ending else _FLAGS)
                    half.held -= sent
                    half.count += sent
                else:
                    if half.pipe is None:
                        half.pipe = self._pipes.take()
                    half.held = os.splice(half.out_of.fd, half.pipe[1], PIPE_SIZE, flags=_FLAGS)
                    if not half.held:
                        self._finish(half)
                        return
        except BlockingIOError:
            if half.pipe is not None and not half.held:
                self._pipes.give(half.pipe)
                half.pipe = None
        except OSError:
            # Of two sockets one failed: the one written to while there was something to write. Up to a gate, none is.
            gated = self._gate is not None and half is self._up
            writing = not gated and (half.first or half.held)
            self.close(self._other(half).who if writing else half.who)
        else:
            self._poller.loop.call_soon(self._resume, half)

    def _ask_gate(self, half: _Half, gate: Callable[[bytes], bool | None]) -> None:
        """Reads the client's first bytes and has them judged. Raises BlockingIOError when there are no more for now."""
        data = half.out_of.sock.recv(_GATED)
        half.first += data
        self._judge(gate, data)

    def _judge(self, gate: Callable[[bytes], bool | None], data: bytes) -> None:
        opened = gate(data)
        if opened:
            self._gate = None
        elif opened is False or not data:
            self.close("proxy")

    def open_gate(self) -> None:
        """Lets the client's bytes through that wait, and all that come."""
        self._gate = None
        if not self.closed:
            self._pump(self._up)

    def _resume(self, half: _Half) -> None:
        if not self.closed:
            self._pump(half)

    def _other(self, half: _Half) -> _Half:
        return self._down if half is self._up else self._up

    def _finish(self, half: _Half) -> None:
        """The source has ended and everything is delivered: pass the FIN on; the second one ends the splice."""
        if half.pipe is not None:
            self._pipes.give(half.pipe)
            half.pipe = None
        if half.done:
            return
        half.done = True
        other = self._other(half)
        if other.done:
            self.close(other.who)  # the first to end is who closed; the second only answered
            return
        half.into.finish()
