"""Responses: what the client sees of them, and what becomes of the two connections."""

import re

import pytest

from proxyfw.core.http1 import Close, CloseServer, Command, ServerBroken, Session, ToClient

GET = b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: good.example\r\n\r\n"
OLD_GET = b"GET / HTTP/1.0\r\nHost: good.example\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 5\r\n\r\n"
WEBSOCKET = b"GET / HTTP/1.1\r\nHost: good.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
AGREED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
CLOSED = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
FRAMED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def permitted(request: bytes) -> Session:
    """A session whose request was asked about, permitted and passed on over a new server connection."""
    session = Session(80)
    session.from_client(request)
    session.permit(fresh=True)
    return session


def page_of(commands: list[Command]) -> bytes:
    return b"".join(command.data for command in commands if isinstance(command, ToClient))


@pytest.mark.parametrize(
    ("request_", "response", "seen", "then"),
    [
        pytest.param(GET, [OK], OK, [], id="a length"),
        pytest.param(
            GET,
            [FRAMED + b"1\r\no\r\n0\r\nX-Sum: 1\r\n\r\n"],
            FRAMED + b"1\r\no\r\n0\r\nX-Sum: 1\r\n\r\n",
            [],
            id="chunks",
        ),
        pytest.param(
            GET,
            [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: x\r\n\r\n"],
            FRAMED + b"0\r\n\r\n",
            [],
            id="chunks beat a length, framing is no trailer",
        ),
        pytest.param(
            GET,
            [b"HTTP/1.1 200 OK\r\n\r\n", b"o", b"k", b""],
            FRAMED + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
            [CloseServer()],
            id="framed by close",
        ),
        pytest.param(
            GET, [b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"], OK, [CloseServer()], id="a server of HTTP/1.0"
        ),
        pytest.param(
            GET,
            [OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")],
            OK,
            [CloseServer()],
            id="a server that closes",
        ),
        pytest.param(GET, [OK + OK], OK, [CloseServer()], id="an answer that nobody asked for is dropped"),
        pytest.param(HEAD, [OK[:-2]], OK[:-2], [], id="HEAD"),
        pytest.param(
            GET,
            [b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"],
            b"HTTP/1.1 204 No Content\r\n\r\n",
            [],
            id="204",
        ),
        pytest.param(
            GET,
            [b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"],
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
            [],
            id="304",
        ),
        pytest.param(
            GET,
            [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", OK],
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK,
            [],
            id="early hints",
        ),
        pytest.param(
            GET,
            [b"HTTP/1.1 200 OK\r\nUpgrade: h2,h2c\r\nConnection: X-A\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nok"],
            OK,
            [],
            id="fields for one hop",
        ),
        pytest.param(
            GET[:-2] + b"Connection: close\r\n\r\n",
            [OK],
            OK[:-4] + b"Connection: close\r\n\r\nok",
            [Close()],
            id="a client that closes",
        ),
        pytest.param(
            OLD_GET, [OK], OK[:-4] + b"Connection: close\r\n\r\nok", [Close()], id="HTTP/1.0: one answer, then close"
        ),
        pytest.param(
            OLD_GET,
            [b"HTTP/1.1 103 Early Hints\r\n\r\n" + FRAMED + b"1\r\no\r\n0\r\nX-Sum: 1\r\n\r\n"],
            CLOSED + b"o",
            [Close()],
            id="HTTP/1.0 knows neither chunks, nor trailers, nor 1xx",
        ),
        pytest.param(
            POST + b"hel",
            [OK],
            OK[:-4] + b"Connection: close\r\n\r\nok",
            [Close()],
            id="answered before the body has ended",
        ),
        pytest.param(WEBSOCKET, [OK], OK, [], id="WebSocket that the server declines"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000], ids=["byte by byte", "whole"])
def test_responses(request_, response, seen, then, size):
    session = permitted(request_)
    pieces = [part[at : at + size] for part in response for at in range(0, max(1, len(part)), size)]
    commands = [command for piece in pieces for command in session.from_server(piece)]
    assert page_of(commands) == seen
    assert [command for command in commands if not isinstance(command, ToClient)] == then


def test_a_response_head_over_64_kib_is_no_answer():
    session = permitted(GET)
    first, page, close = session.from_server(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 65536)
    assert first == ServerBroken("response: Receive buffer too long")
    assert page.data.startswith(b"HTTP/1.1 502 ")
    assert close == Close()


@pytest.mark.parametrize(
    ("response", "detail"),
    [
        pytest.param(b"SSH-2.0-OpenSSH\r\n\r\n", r"illegal status line", id="not HTTP"),
        pytest.param(b"\x15\x03\x01\x00\x02\x02\x16", r"illegal request line", id="a TLS alert"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nA B: c\r\n\r\n", r"illegal header line", id="a field name that is not a token"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n", r"illegal header line", id="carriage return in a value"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", r"conflicting", id="two lengths"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", r"chunked is supported", id="gzip as framing"
        ),
        pytest.param(AGREED, r"without a pending proposal", id="101 that nobody asked for"),
        pytest.param(b"", r"^the server closed the connection without an answer$", id="no answer"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", r"unexpectedly closed", id="half a head"),
    ],
)
def test_servers_that_cannot_be_understood(response, detail):
    session = permitted(GET)
    commands = session.from_server(response) if response else []
    first, page, close = commands or session.from_server(b"")
    assert re.search(detail, first.detail)
    assert page.data.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert close == Close()


@pytest.mark.parametrize(
    ("head", "passed_on"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"ok", id="with a length"),
        pytest.param(FRAMED + b"2\r\nok\r\n", b"2\r\nok\r\n", id="in chunks"),
    ],
)
def test_an_answer_cut_short_looks_cut_short(head, passed_on):
    session = permitted(GET)
    seen = page_of(session.from_server(head if head.endswith(b"ok\r\n") else head + b"ok"))
    assert seen.endswith(b"\r\n\r\n" + passed_on)
    broken, close = session.from_server(b"")
    assert broken.detail.startswith("response: peer closed connection without sending complete message body")
    assert close == Close()


def test_a_kept_connection_that_closes_unanswered_is_left_to_the_client_to_repeat():
    session = permitted(GET)
    session.from_server(OK)
    session.from_client(GET)
    session.permit(fresh=False)
    told = ServerBroken("the server closed the connection without an answer")
    assert session.from_server(b"") == [told, Close()]


@pytest.mark.parametrize("data", [b"", OK], ids=["closes", "speaks unasked"])
@pytest.mark.parametrize("client", [b"", GET[:9], GET], ids=["idle", "within a head", "with a question open"])
def test_a_server_that_closes_or_speaks_between_requests(data, client):
    session = permitted(GET)
    session.from_server(OK)
    if client:
        session.from_client(client)
    assert session.from_server(data) == [CloseServer()]
    assert not session.reusable
    assert session.from_server(b"") == []
