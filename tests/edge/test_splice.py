"""Bytes between two real TCP connections: ends, resets, back-pressure, counts; and the streams underneath."""

import asyncio
import hashlib
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from proxyfw.edge.poller import Poller, Stream
from proxyfw.edge.splice import Pipes, Splice

MEGABYTE = 1 << 20
SMALL = 4096  # asked of the kernel as a socket's buffer; it gives at least twice as much


def run(coroutine: Coroutine[None, None, None]) -> None:
    """Runs a test, which ends within ten seconds and leaves no descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(asyncio.wait_for(coroutine, 10))
    assert len(os.listdir("/proc/self/fd")) == before


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop turn until it is so."""
    while not condition():
        await asyncio.sleep(0)


def tcp_pair(small: bool = False) -> tuple[socket.socket, socket.socket]:
    """Two ends of one connection; `small`: with buffers that fill up at once."""
    with socket.socket() as listener:
        if small:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        one = socket.socket()
        if small:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        one.connect(listener.getsockname())
        other, _ = listener.accept()
    for end in (one, other):
        end.setblocking(False)
    return one, other


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@contextmanager
def polling() -> Iterator[Poller]:
    poller = Poller()
    poller.start(asyncio.get_running_loop())
    yield poller
    poller.stop()


class Peer:
    """The client or the server, at the far end of the splice."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def receive(self, size: int) -> bytes:
        """Exactly so many bytes, or fewer at the end."""
        found = b""
        while len(found) < size and (piece := await self._loop.sock_recv(self.sock, min(size - len(found), MEGABYTE))):
            found += piece
        return found

    async def rest(self) -> bytes:
        """Everything up to the end."""
        return await self.receive(1 << 40)

    def end(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)


class Bench:
    """A client, a splice and a server."""

    def __init__(self, poller: Poller, small: str) -> None:
        client, near_client = tcp_pair(small="client" in small)
        server, near_server = tcp_pair(small="server" in small)
        self.client, self.server = Peer(client), Peer(server)
        self.poller, self.pipes = poller, Pipes()
        self.streams = Stream(near_client, poller), Stream(near_server, poller)
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.closings: list[str] = []
        self.splice = self.prepare()

    def prepare(self, **options: object) -> Splice:
        """A splice over these streams, not started."""
        self.splice = Splice(*self.streams, self.poller, self.pipes, self._on_close, **options)  # type: ignore[arg-type]
        return self.splice

    def _on_close(self, splice: Splice, closed_by: str) -> None:
        assert splice is self.splice
        self.closings.append(closed_by)
        if not self.closed.done():
            self.closed.set_result(closed_by)


@asynccontextmanager
async def bench(small: str = "", start: bool = True) -> AsyncIterator[Bench]:
    """`small`: the sides, "client" and "server", whose buffers are."""
    with polling() as poller:
        found = Bench(poller, small)
        if start:
            found.splice.start()
        try:
            yield found
        finally:
            found.splice.close("test")
            found.client.sock.close()
            found.server.sock.close()
            found.pipes.close()


def test_bytes_go_both_ways_and_are_counted() -> None:
    async def test() -> None:
        async with bench() as b:
            await b.client.send(b"question")
            assert await b.server.receive(8) == b"question"
            await b.server.send(b"an answer")
            assert await b.client.receive(9) == b"an answer"
            assert (b.splice.bytes_up, b.splice.bytes_down) == (8, 9)

    run(test())


def test_an_idle_relay_holds_no_pipe() -> None:
    async def test() -> None:
        async with bench() as b:
            assert len(b.pipes._idle) == 1  # both directions looked for bytes with it, one after the other
            for _ in range(3):
                await b.client.send(b"question")
                await b.server.receive(8)
                await b.server.send(b"answer")
                await b.client.receive(6)
            assert len(b.pipes._idle) == 1
            assert (b.splice._up.pipe, b.splice._down.pipe) == (None, None)

    run(test())


def test_the_client_ends_first_and_still_gets_the_answer() -> None:
    async def test() -> None:
        async with bench() as b:
            await b.client.send(b"question")
            b.client.end()
            assert await b.server.rest() == b"question"
            await b.server.send(b"answer")
            assert await b.client.receive(6) == b"answer"
            assert not b.closed.done()
            b.server.end()
            assert await b.client.rest() == b""
            assert await b.closed == "client"
            assert len(b.pipes._idle) == 1

    run(test())


def test_the_server_ends_first_and_still_gets_the_rest() -> None:
    async def test() -> None:
        async with bench() as b:
            await b.server.send(b"banner")
            b.server.end()
            assert await b.client.rest() == b"banner"
            await b.client.send(b"more")
            assert await b.server.receive(4) == b"more"
            assert not b.closed.done()
            b.client.sock.close()
            assert await b.server.rest() == b""
            assert await b.closed == "server"

    run(test())


def test_the_first_bytes_go_before_all_others_and_are_counted() -> None:
    async def test() -> None:
        async with bench(start=False) as b:
            await b.client.send(b" world")
            await b.server.send(b" ready")
            b.prepare(to_server=b"hello", to_client=b"220", sent=100, received=1000).start()
            assert await b.server.receive(11) == b"hello world"
            assert await b.client.receive(9) == b"220 ready"
            assert (b.splice.bytes_up, b.splice.bytes_down) == (111, 1009)

    run(test())


def test_first_bytes_that_the_server_does_not_take_at_once() -> None:
    async def test() -> None:
        first = random.Random(1).randbytes(MEGABYTE)
        async with bench(small="client and server", start=False) as b:
            b.prepare(to_server=first).start()
            assert 0 < b.splice.bytes_up < MEGABYTE
            await b.client.send(b"after")
            b.client.end()
            assert await b.server.rest() == first + b"after"

    run(test())


def test_what_came_and_ended_before_the_start_is_relayed() -> None:
    async def test() -> None:
        async with bench(start=False) as b:
            await b.client.send(b"question")
            b.client.end()
            await b.server.send(b"answer")
            b.server.end()
            turned = asyncio.Event()
            asyncio.get_running_loop().call_soon(turned.set)
            await turned.wait()  # the poller has told the streams, and does not tell the splice again
            b.splice.start()
            assert await b.server.rest() == b"question"
            assert await b.client.rest() == b"answer"
            await b.closed

    run(test())


def test_bytes_that_a_stream_has_left_unread_are_relayed() -> None:
    async def test() -> None:
        async with bench(start=False) as b:
            await b.client.send(b"0123456789")
            assert await b.streams[0].recv(4) == b"0123"
            b.prepare(to_server=b"0123").start()
            assert await b.server.receive(10) == b"0123456789"

    run(test())


@pytest.mark.parametrize(
    "small",
    [
        pytest.param("", id="large buffers"),
        pytest.param("server", id="a slow server"),
        pytest.param("client and server", id="small buffers"),
    ],
)
def test_megabytes_both_ways_at_once_arrive_whole(small: str) -> None:
    async def test() -> None:
        size = MEGABYTE if small else 24 * MEGABYTE
        up, down = random.Random(2).randbytes(size), random.Random(3).randbytes(size)

        async def talk(peer: Peer, data: bytes) -> str:
            async def send() -> None:
                await peer.send(data)
                peer.end()

            sending = asyncio.create_task(send())
            received = hashlib.sha256()
            while piece := await peer.receive(MEGABYTE):
                received.update(piece)
            await sending
            return received.hexdigest()

        async with bench(small) as b:
            client_got, server_got = await asyncio.gather(talk(b.client, up), talk(b.server, down))
            assert client_got == hashlib.sha256(down).hexdigest()
            assert server_got == hashlib.sha256(up).hexdigest()
            await b.closed
            assert (b.splice.bytes_up, b.splice.bytes_down) == (size, size)
            assert (b.splice._up.pipe, b.splice._down.pipe) == (None, None)

    run(test())


def test_a_reader_that_pauses_holds_the_sender_back() -> None:
    async def test() -> None:
        data = random.Random(4).randbytes(4 * MEGABYTE)
        async with bench(small="client and server") as b:
            sending = asyncio.create_task(b.client.send(data))
            await until(lambda: b.splice._up.held > 0)
            for _ in range(100):
                await asyncio.sleep(0)
            assert not sending.done()
            assert b.splice.bytes_up < MEGABYTE
            # The other direction is not held up.
            await b.server.send(b"answer")
            assert await b.client.receive(6) == b"answer"
            assert await b.server.receive(len(data)) == data
            await sending
            assert (b.splice._up.pipe, b.splice.bytes_up) == (None, len(data))

    run(test())


def test_a_source_that_ends_while_the_sink_is_blocked_is_delivered_whole() -> None:
    async def test() -> None:
        data = random.Random(5).randbytes(MEGABYTE // 10)
        async with bench(small="server") as b:
            await b.client.send(data)
            b.client.sock.close()
            await until(lambda: b.splice._up.held > 0)
            assert await b.server.rest() == data
            b.server.end()
            assert await b.closed == "client"
            assert b.splice.bytes_up == len(data)

    run(test())


@pytest.mark.parametrize("who", [pytest.param("client", id="the client"), pytest.param("server", id="the server")])
def test_a_reset_ends_the_relay_and_names_who_did_it(who: str) -> None:
    async def test() -> None:
        async with bench() as b:
            await b.client.send(b"question")
            await b.server.receive(8)
            breaking, other = (b.client, b.server) if who == "client" else (b.server, b.client)
            reset(breaking.sock)
            assert await b.closed == who
            assert await other.rest() == b""

    run(test())


@pytest.mark.parametrize("who", [pytest.param("client", id="the client"), pytest.param("server", id="the server")])
def test_a_reset_after_the_end_of_ones_own_side(who: str) -> None:
    async def test() -> None:
        async with bench() as b:
            breaking, other = (b.client, b.server) if who == "client" else (b.server, b.client)
            breaking.end()
            assert await other.rest() == b""
            reset(breaking.sock)
            assert await b.closed == who

    run(test())


def test_a_server_that_resets_during_an_upload_is_who_closed() -> None:
    async def test() -> None:
        async with bench(small="client and server") as b:
            sending = asyncio.create_task(b.client.send(bytes(4 * MEGABYTE)))
            await until(lambda: b.splice._up.held > 0)
            reset(b.server.sock)
            assert await b.closed == "server"
            with pytest.raises(ConnectionError):
                await sending

    run(test())


def test_a_client_that_resets_during_a_download_is_who_closed() -> None:
    async def test() -> None:
        async with bench(small="client and server") as b:
            sending = asyncio.create_task(b.server.send(bytes(4 * MEGABYTE)))
            await until(lambda: b.splice._down.held > 0)
            reset(b.client.sock)
            assert await b.closed == "client"
            with pytest.raises(ConnectionError):
                await sending

    run(test())


def test_a_reset_before_the_start() -> None:
    async def test() -> None:
        async with bench(start=False) as b:
            reset(b.server.sock)
            b.prepare().start()
            assert await b.closed == "server"
            assert await b.client.rest() == b""

    run(test())


def test_close_closes_both_sides_once() -> None:
    async def test() -> None:
        async with bench() as b:
            await b.client.send(b"question")
            await b.server.receive(8)
            b.splice.close("policy")
            b.splice.close("again")
            assert b.splice.closed
            assert b.closings == ["policy"]
            assert await b.client.rest() == b""
            assert await b.server.rest() == b""

    run(test())


def test_close_lets_go_of_what_is_under_way() -> None:
    async def test() -> None:
        async with bench(small="client and server") as b:
            sending = asyncio.create_task(b.client.send(bytes(4 * MEGABYTE)))
            await until(lambda: b.splice._up.held > 0)
            b.splice.close("policy")
            idle = list(b.pipes._idle)
            assert b.splice._up.pipe is None
            with pytest.raises(ConnectionError):
                await sending
            assert b.pipes._idle == idle  # a pipe with bytes in it never goes back

    run(test())


class Gate:
    """Opens for a full stop in the bytes so far, and for an end without a word; refuses an exclamation mark."""

    def __init__(self) -> None:
        self.seen = b""

    def __call__(self, data: bytes) -> bool | None:
        if not data:
            return not self.seen
        self.seen += data
        return False if b"!" in self.seen else True if b"." in self.seen else None


@asynccontextmanager
async def gated(small: str = "", **options: object) -> AsyncIterator[tuple[Bench, Gate]]:
    async with bench(small, start=False) as b:
        gate = Gate()
        b.prepare(gate=gate, **options).start()
        yield b, gate


async def nothing_reaches(peer: Peer) -> None:
    """For some turns of the loop."""
    for _ in range(20):
        await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            peer.sock.recv(1)


def test_a_gate_holds_the_first_bytes_until_it_opens() -> None:
    async def test() -> None:
        async with gated() as (b, gate):
            for piece in (b"one", b" two", b" three"):
                await b.client.send(piece)
                await until(lambda piece=piece: gate.seen.endswith(piece))
                await nothing_reaches(b.server)
            assert b.splice.bytes_up == 0
            await b.client.send(b". four")
            assert await b.server.receive(19) == b"one two three. four"
            await b.client.send(b" and five!")  # it is not asked any more
            assert await b.server.receive(10) == b" and five!"
            assert gate.seen == b"one two three. four"
            assert b.splice.bytes_up == 29
            await b.server.send(b"answer")
            assert await b.client.receive(6) == b"answer"

    run(test())


@pytest.mark.parametrize("end", [False, True], ids=["", "and ended"])
def test_a_gate_judges_what_came_before_the_start(end: bool) -> None:
    async def test() -> None:
        async with bench(start=False) as b:
            await b.client.send(b"hello.")
            if end:
                b.client.end()
            b.prepare(gate=Gate()).start()
            assert await b.server.receive(6) == b"hello."
            b.server.end()
            assert await b.client.rest() == b""
            if end:
                assert await b.server.rest() == b""
                assert await b.closed == "client"

    run(test())


@pytest.mark.parametrize(
    ("known", "closed_by", "arrives"),
    [
        pytest.param(b"hello.", "client", b"hello. more", id="opens it"),
        pytest.param(b"hello!", "proxy", b"", id="is refused"),
        pytest.param(b"hello", "client", b"hello more.", id="is not enough"),
    ],
)
def test_what_was_read_before_the_start_is_judged_first(known: bytes, closed_by: str, arrives: bytes) -> None:
    async def test() -> None:
        async with bench(start=False) as b:
            await b.client.send(b" more." if arrives.endswith(b".") else b" more")
            b.client.end()
            b.prepare(gate=Gate(), to_server=known).start()
            assert await b.server.rest() == arrives
            b.server.end()
            assert await b.closed == closed_by

    run(test())


def test_a_gate_can_be_opened_from_outside() -> None:
    async def test() -> None:
        async with gated() as (b, gate):
            await b.client.send(b"half")
            await until(lambda: gate.seen == b"half")
            b.splice.open_gate()
            assert await b.server.receive(4) == b"half"

    run(test())


def test_a_gate_that_opens_late_for_a_slow_server() -> None:
    async def test() -> None:
        first = random.Random(7).randbytes(MEGABYTE).replace(b".", b",").replace(b"!", b"?")
        async with gated(small="client and server") as (b, gate):
            await b.client.send(first)
            await until(lambda: gate.seen == first)
            await nothing_reaches(b.server)
            sending = asyncio.create_task(b.client.send(b"." + first))
            await until(lambda: b.splice.bytes_up > 0)
            assert await b.server.receive(2 * MEGABYTE + 1) == first + b"." + first
            await sending
            assert b.splice.bytes_up == 2 * MEGABYTE + 1

    run(test())


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"hello!"], id="the first bytes"),
        pytest.param([b"hello", b" world", b"!"], id="later ones"),
    ],
)
def test_a_gate_that_refuses_closes_both(pieces: list[bytes]) -> None:
    async def test() -> None:
        async with gated() as (b, gate):
            for piece in pieces:
                await b.client.send(piece)
                await until(lambda piece=piece: gate.seen.endswith(piece))
            assert await b.closed == "proxy"
            assert await b.server.rest() == b""
            assert await b.client.rest() == b""
            assert (b.closings, b.splice.bytes_up) == (["proxy"], 0)

    run(test())


def test_a_gate_that_refuses_at_the_start() -> None:
    async def test() -> None:
        async with bench(start=False) as b:
            await b.client.send(b"hello!")
            b.prepare(gate=Gate(), to_client=b"220 ready").start()
            assert b.closings == ["proxy"]
            assert await b.server.rest() == b""
            assert await b.client.rest() == b"220 ready"

    run(test())


def test_the_end_of_a_client_without_a_word_passes_the_gate() -> None:
    async def test() -> None:
        async with gated() as (b, gate):
            b.client.end()
            assert await b.server.rest() == b""
            assert not b.closed.done()
            await b.server.send(b"goodbye")
            b.server.end()
            assert await b.client.rest() == b"goodbye"
            assert await b.closed == "client"
            assert gate.seen == b""

    run(test())


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "at once"])
def test_a_client_that_ends_before_the_gate_has_opened(apart: bool) -> None:
    async def test() -> None:
        async with gated() as (b, gate):
            await b.client.send(b"half a word")
            if apart:
                await until(lambda: gate.seen == b"half a word")
            b.client.end()
            assert await b.closed == "proxy"
            assert await b.server.rest() == b""
            assert await b.client.rest() == b""
            assert b.splice.bytes_up == 0

    run(test())


def test_the_server_is_heard_while_the_gate_waits() -> None:
    async def test() -> None:
        answer = random.Random(8).randbytes(MEGABYTE)
        async with gated(to_client=b"220 ") as (b, gate):
            await b.client.send(b"EHLO")
            await until(lambda: gate.seen == b"EHLO")
            sending = asyncio.create_task(b.server.send(answer))
            assert await b.client.receive(4 + MEGABYTE) == b"220 " + answer
            await sending
            await nothing_reaches(b.server)
            assert (b.splice.bytes_up, b.splice.bytes_down) == (0, 4 + MEGABYTE)
            assert not b.closed.done()

    run(test())


@pytest.mark.parametrize("who", [pytest.param("client", id="the client"), pytest.param("server", id="the server")])
@pytest.mark.parametrize("words", [pytest.param(b"", id="without a word"), pytest.param(b"half", id="half a word")])
def test_a_reset_while_the_gate_waits(who: str, words: bytes) -> None:
    async def test() -> None:
        async with gated() as (b, gate):
            await b.client.send(words)
            await until(lambda: gate.seen == words)
            breaking, other = (b.client, b.server) if who == "client" else (b.server, b.client)
            reset(breaking.sock)
            assert await b.closed == who
            assert await other.rest() == b""
            assert b.splice.bytes_up == 0

    run(test())


def test_a_server_that_ends_while_the_gate_waits() -> None:
    async def test() -> None:
        async with gated() as (b, gate):
            await b.client.send(b"half")
            await until(lambda: gate.seen == b"half")
            await b.server.send(b"goodbye")
            b.server.end()
            assert await b.client.rest() == b"goodbye"
            await nothing_reaches(b.server)
            assert not b.closed.done()
            await b.client.send(b" whole.")
            b.client.end()
            assert await b.server.rest() == b"half whole."
            assert await b.closed == "server"

    run(test())


def test_a_client_that_answers_the_servers_end_with_its_own_behind_a_gate() -> None:
    async def test() -> None:
        async with gated() as (b, _):
            b.server.end()
            assert await b.client.rest() == b""
            b.client.end()
            assert await b.closed == "server"
            assert await b.server.rest() == b""

    run(test())


def test_close_while_the_gate_waits() -> None:
    async def test() -> None:
        async with gated() as (b, gate):
            await b.client.send(b"half")
            await until(lambda: gate.seen == b"half")
            b.splice.close("policy")
            assert await b.server.rest() == b""
            assert await b.client.rest() == b""
            assert b.closings == ["policy"]

    run(test())


def test_no_descriptor_left_for_a_pipe_ends_that_relay() -> None:
    class NoPipes(Pipes):
        def take(self) -> tuple[int, int]:
            raise OSError(24, "Too many open files")

    async def test() -> None:
        async with bench(start=False) as b:
            b.pipes = NoPipes()
            b.prepare().start()
            await b.closed
            assert await b.client.rest() == b""
            assert len(b.closings) == 1

    run(test())


def test_the_pool_of_pipes_is_bounded() -> None:
    before = len(os.listdir("/proc/self/fd"))
    pipes = Pipes()
    taken = [pipes.take() for _ in range(70)]
    for pipe in taken:
        pipes.give(pipe)
    assert len(os.listdir("/proc/self/fd")) == before + 2 * 64
    assert pipes.take() in taken
    pipes.give(taken[63])
    pipes.close()
    assert len(os.listdir("/proc/self/fd")) == before


@asynccontextmanager
async def stream(small: bool = False) -> AsyncIterator[tuple[Stream, Peer]]:
    with polling() as poller:
        near, far = tcp_pair(small)
        found, peer = Stream(near, poller), Peer(far)
        try:
            yield found, peer
        finally:
            found.close()
            peer.sock.close()


def test_a_stream_waits_for_bytes_and_for_the_end() -> None:
    async def test() -> None:
        async with stream() as (s, peer):
            for word in (b"one", b"two", b"three"):
                reading = asyncio.create_task(s.recv(100))
                await asyncio.sleep(0)
                await peer.send(word)
                assert await reading == word
            reading = asyncio.create_task(s.recv(100))
            await asyncio.sleep(0)
            peer.end()
            assert await reading == b""
            assert await s.recv(100) == b""

    run(test())


def test_a_stream_reads_what_came_with_the_end() -> None:
    async def test() -> None:
        async with stream() as (s, peer):
            await peer.send(b"last words")
            peer.end()
            assert [await s.recv(4), await s.recv(4), await s.recv(4), await s.recv(4)] == [
                b"last",
                b" wor",
                b"ds",
                b"",
            ]

    run(test())


def test_a_stream_sends_all_of_it_to_a_slow_reader() -> None:
    async def test() -> None:
        data = random.Random(6).randbytes(MEGABYTE)
        async with stream(small=True) as (s, peer):
            sending = asyncio.create_task(s.send(data))
            await asyncio.sleep(0)
            assert not sending.done()
            assert await peer.receive(MEGABYTE) == data
            await sending

    run(test())


def test_a_cancelled_read_leaves_the_stream_as_it_was() -> None:
    async def test() -> None:
        async with stream() as (s, peer):
            reading = asyncio.create_task(s.recv(100))
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await peer.send(b"bytes")
            assert await s.recv(100) == b"bytes"

    run(test())


def test_who_awaits_a_stream_can_be_interrupted() -> None:
    async def test() -> None:
        async with stream() as (s, peer):
            s.interrupt(TimeoutError())  # nobody waits: nothing happens
            reading = asyncio.create_task(s.recv(100))
            await asyncio.sleep(0)
            s.interrupt(TimeoutError("too late"))
            with pytest.raises(TimeoutError, match="too late"):
                await reading
            await peer.send(b"bytes")
            assert await s.recv(100) == b"bytes"

    run(test())


def test_a_stream_knows_whether_its_peer_has_ended() -> None:
    async def test() -> None:
        async with stream() as (s, peer):
            assert not s.has_ended()
            ended = asyncio.get_running_loop().create_future()
            s.on_end = ended.set_result
            await peer.send(b"x")
            peer.end()
            assert await ended is False
            assert not s.has_ended()  # there is something left to read
            s.on_end = None
            assert await s.recv(1) == b"x"
            assert s.has_ended()

    run(test())


def test_a_stream_tells_a_reset_from_an_end() -> None:
    async def test() -> None:
        async with stream() as (s, peer):
            ended = asyncio.get_running_loop().create_future()
            s.on_end = ended.set_result
            reset(peer.sock)
            assert await ended is True
            assert s.has_ended()

    run(test())


def test_a_refusal_can_be_a_reset() -> None:
    async def test() -> None:
        async with stream() as (s, peer):
            s.reset_on_close()
            s.close()
            with pytest.raises(ConnectionResetError):
                await peer.rest()

    run(test())


def test_finish_ends_only_ones_own_side() -> None:
    async def test() -> None:
        async with stream() as (s, peer):
            s.finish()
            assert await peer.rest() == b""
            await peer.send(b"still")
            assert await s.recv(100) == b"still"

    run(test())
