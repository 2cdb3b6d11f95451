"""What reaches a server, read by a parser that shares nothing with the code under test: only judged hosts."""

import re
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyfw.core.hostname import Hostname
from proxyfw.core.http1 import Close, CloseServer, Command, Decide, Session, Switch, ToServer

GET = b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n"
GET_OTHER = b"GET /other HTTP/1.1\r\nHost: other.example\r\n\r\n"
GET_EVIL = b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: good.example\r\n\r\n"
OLD_GET = b"GET / HTTP/1.0\r\nHost: good.example\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: chunked\r\n\r\n"
WEBSOCKET = b"GET / HTTP/1.1\r\nHost: good.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CLOSED = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
CHUNKED_OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
AGREED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@dataclass
class Network:
    """Carries out what a session says, permits every name, and keeps what each server connection was sent."""

    session: Session
    streams: list[tuple[Hostname | None, bytearray]] = field(default_factory=list)
    answered: int = 0
    over: bool = False

    def run(self, commands: list[Command]) -> None:
        queue = deque(commands)
        while queue:
            match queue.popleft():
                case Decide(name):
                    assert not queue
                    fresh = not self.session.reusable
                    if fresh:
                        self.streams.append((name, bytearray()))
                        self.answered = 0
                    assert self.streams[-1][0] == name
                    queue.extend(self.session.permit(fresh))
                case ToServer(data):
                    self.streams[-1][1].extend(data)
                case Close() | Switch():
                    self.over = True

    def feed(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.run(self.session.from_client(piece))
            while self.streams and not self.over and self.unanswered():
                self.answered += 1
                self.run(self.session.from_server(OK))

    def unanswered(self) -> bool:
        return len(complete_requests(bytes(self.streams[-1][1]))[0]) > self.answered


STRICT_HEAD = re.compile(
    rb"[A-Z][A-Z0-9_-]* (/[\x21-\x7e]*|\*) HTTP/1\.1\r\nHost: ([^\r\n]*)\r\n"
    rb"((?:[-!#$%&'*+.^_`|~0-9A-Za-z]+: ?(?:[^\s\0](?:[^\r\n\0\v\f]*[^\s\0])?)?\r\n)*)\r\n"
)
STRICT_CHUNK = re.compile(rb"([0-9a-f]{1,16})\r\n")


def complete_requests(stream: bytes) -> tuple[list[bytes], bytes]:
    """The Host of every complete request, and of a last one that lacks only its body; nothing else may be there."""
    hosts, rest = [], b""
    while stream:
        head = STRICT_HEAD.match(stream)
        assert head, stream
        fields = b"\n" + head[3].lower()
        assert b"\nhost:" not in fields
        lengths = re.findall(rb"\ncontent-length: *([0-9]+)\r", fields)
        chunked = re.findall(rb"\ntransfer-encoding: *chunked\r", fields)
        assert fields.count(b"\ncontent-length:") + fields.count(b"\ntransfer-encoding:") == len(lengths + chunked) <= 1
        stream = stream[head.end() :]
        body = chunked_length(stream) if chunked else int((lengths or [b"0"])[0])
        if body is None or body > len(stream):
            rest = head[2]
            break
        hosts.append(head[2])
        stream = stream[body:]
    return hosts, rest


def chunked_length(stream: bytes) -> int | None:
    at = 0
    while chunk := STRICT_CHUNK.match(stream, at):
        size = int(chunk[1], 16)
        at = chunk.end() + size
        if size == 0:
            end = stream.find(b"\r\n\r\n", at - 2)
            return None if end < 0 else end + 4
        if at + 2 > len(stream):
            return None
        assert stream[at : at + 2] == b"\r\n"
        at += 2
    assert len(stream) - at < 20
    return None


def named(streams: list[tuple[Hostname | None, bytearray]]) -> None:
    """Every request on every server connection names the host that was asked about, or none."""
    for name, stream in streams:
        hosts, last = complete_requests(bytes(stream))
        for host in [*hosts, last] if last else hosts:
            assert host.partition(b":")[0] == (name or "").encode() or (
                name is None and re.fullmatch(rb"[0-9.:\[\]a-f]+", host)
            )


SMUGGLED = {
    "CL.TE": b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE.CL": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n",
    "TE.TE": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "xchunked": b"Transfer-Encoding: xchunked\r\n\r\n",
    "folded chunked": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "chunk extension with a line feed": b"Transfer-Encoding: chunked\r\n\r\n2;\nxx\r\n0\r\n\r\n",
    "chunk extension with a request in it": b"Transfer-Encoding: chunked\r\n\r\n0;" + GET_EVIL[:20] + b"\r\n\r\n",
    "chunk size of 17 digits": b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n",
    "line feeds alone": b"Content-Length: 0\n\n",
    "carriage return before Host": b"X: a\rHost: evil.example\r\n\r\n",
    "Connection names Host": b"Connection: host\r\n\r\n",
    "Connection names the length": b"Connection: content-length\r\nContent-Length: 38\r\n\r\n",
    "Host as a trailer": b"Transfer-Encoding: chunked\r\n\r\n0\r\nHost: evil.example\r\n\r\n",
}


@pytest.mark.parametrize("tail", [pytest.param(tail, id=name) for name, tail in SMUGGLED.items()])
@pytest.mark.parametrize("size", [1, 7, 10000])
def test_nothing_is_smuggled(tail, size):
    raw = b"POST / HTTP/1.1\r\nHost: good.example\r\n" + tail + GET_EVIL
    network = Network(Session(80))
    network.feed([raw[at : at + size] for at in range(0, len(raw), size)])
    named(network.streams)


SEEDS = [GET, GET_OTHER, HEAD, OLD_GET, POST + b"hello", CHUNKED + b"5\r\nhello\r\n0\r\nX: y\r\n\r\n", WEBSOCKET]
SEEDS += [b"POST / HTTP/1.1\r\nHost: good.example\r\n" + tail for tail in SMUGGLED.values()]
SPLINTERS = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b"@",
    b"#",
    b"\\",
    b"//",
    b"http://evil.example",
    b"\xff",
]
SPLINTERS += [
    b"Host: evil.example\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 3\r\n",
    b"0\r\n\r\n",
    b"x",
]


@st.composite
def conversations(draw) -> list[bytes]:
    """Requests one after the other, wounded in a few places, cut anywhere."""
    raw = b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.sampled_from(SPLINTERS)) + raw[at + draw(st.integers(0, 3)) :]
    cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=4)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    return [piece for piece in pieces if piece]


@given(conversations())
@settings(max_examples=400, deadline=None)
def test_a_server_only_hears_requests_for_the_name_that_was_asked_about(pieces):
    network = Network(Session(80))
    network.feed([*pieces, b""])
    named(network.streams)


@given(conversations())
@settings(max_examples=200, deadline=None)
def test_how_the_bytes_were_cut_makes_no_difference(pieces):
    networks = []
    for cut in (pieces, [b"".join(pieces)]):
        networks.append(Network(Session(80)))
        networks[-1].feed([piece for piece in cut if piece])
    first, second = ([(name, complete_requests(bytes(stream))) for name, stream in each.streams] for each in networks)
    assert first == second


@given(st.lists(st.binary(min_size=1, max_size=80), max_size=5))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_from_a_client(pieces):
    network = Network(Session(80))
    network.feed([*pieces, b""])
    assert network.over
    named(network.streams)


@given(
    st.sampled_from([GET, HEAD, OLD_GET, POST, WEBSOCKET]),
    st.lists(
        st.sampled_from([OK, CHUNKED_OK, CLOSED, AGREED, *SPLINTERS]) | st.binary(min_size=1, max_size=40), max_size=6
    ),
)
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_from_a_server(request_, pieces):
    session = Session(80)
    session.from_client(request_)
    session.permit(fresh=True)
    commands = [command for piece in [*pieces, b""] for command in session.from_server(piece)]
    assert sum(isinstance(command, Close | CloseServer | Switch) for command in commands) == 1
