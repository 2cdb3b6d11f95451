"""First bytes, and a conversation: what is asked, what reaches the server, and when it ends."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyfw.core.hostname import Hostname
from proxyfw.core.http1 import Broken, Close, Decide, ServerBroken, Session, Switch, ToClient, ToServer, sniff
from proxyfw.core.sniffed import Malformed, Nameless, NeedMore, NotMine
from proxyfw.core.verdict import Reason

GOOD = Hostname("good.example")
GET = b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n"
GET_OTHER = b"GET /other HTTP/1.1\r\nHost: other.example\r\n\r\n"
GET_EVIL = b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: good.example\r\n\r\n"
OLD_GET = b"GET / HTTP/1.0\r\nHost: good.example\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: chunked\r\n\r\n"
WEBSOCKET = b"GET / HTTP/1.1\r\nHost: good.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
AGREED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        pytest.param(GET, Nameless(), id="a request"),
        pytest.param(b"\r\nGET / HTTP/1.0\r\n", Nameless(), id="one empty line first"),
        pytest.param(b"M-SEARCH * HTTP/1.1\r\n", Nameless(), id="a rare method"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Malformed("HTTP/2 without TLS"), id="HTTP/2"),
        pytest.param(
            b"CONNECT good.example:443 HTTP/1.1\r\n",
            Malformed("CONNECT belongs to an explicit proxy"),
            id="CONNECT",
        ),
        pytest.param(b"get / HTTP/1.1\r\n", Malformed("the method is not in upper-case letters"), id="lower case"),
        pytest.param(b"GET / HTTP/1.1\n", Malformed("a line feed without a carriage return"), id="line feed alone"),
        pytest.param(b"GET /\r\n", Malformed("the request line has no version (HTTP/0.9)"), id="HTTP/0.9"),
        pytest.param(
            b"GET /\xff HTTP/1.1\r\n",
            Malformed("a control character or a non-ASCII byte in the request line"),
            id="binary in an HTTP line",
        ),
        pytest.param(
            b"GET /" + b"x" * 65536,
            Malformed("the request line is longer than 65536 bytes", Reason.OVERSIZED),
            id="a line without end",
        ),
        pytest.param(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n", NotMine(), id="SSH"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", NotMine(), id="TLS"),
        pytest.param(b"EHLO x\r\n", NotMine(), id="SMTP"),
        pytest.param(b"QUIT\r\n", NotMine(), id="one word"),
        pytest.param(b"OPTIONS rtsp://x/ RTSP/1.0\r\n", NotMine(), id="RTSP"),
        pytest.param(b"\x13BitTorrent protocol", NotMine(), id="binary"),
        pytest.param(b"\r\n\r\nGET / HTTP/1.1\r\n", NotMine(), id="two empty lines first"),
        pytest.param(b"A" * 33, NotMine(), id="a word longer than any method"),
    ],
)
def test_first_bytes(data, answer):
    assert sniff(data) == answer
    assert sniff(data + GET) == answer
    prefixes = [sniff(data[:end]) for end in range(max(0, len(data) - 300), len(data))]
    told = [found for found in prefixes if found != NeedMore()]
    assert all(found == answer for found in told)


@pytest.mark.parametrize("data", [b"", b"\r", b"\r\n", b"G", b"GET", b"GET ", b"GET /x HTTP/1.1\r"])
def test_first_bytes_that_need_more(data):
    assert sniff(data) == NeedMore()


@given(st.binary(max_size=60), st.binary(max_size=20))
@settings(max_examples=300, deadline=None)
def test_more_bytes_never_change_an_answer_once_given(first, more):
    answer = sniff(first)
    assert answer == NeedMore() or sniff(first + more) == answer


def permitted(request: bytes, session: Session | None = None) -> Session:
    """A session whose request was asked about, permitted and passed on over a new server connection."""
    session = session or Session(80)
    asked = session.from_client(request)
    assert isinstance(asked[-1], Decide)
    session.permit(fresh=True)
    return session


# Requests


def test_requests_on_one_connection_are_asked_about_one_by_one():
    session = Session(80)
    assert session.from_client(GET + GET + GET_OTHER) == [Decide(GOOD)]
    assert not session.want_client
    assert not session.reusable
    assert session.permit(fresh=True) == [ToServer(GET)]
    assert not session.want_client  # the next request lies here already
    assert session.from_server(OK) == [ToClient(OK), Decide(GOOD)]
    assert session.reusable
    assert session.permit(fresh=False) == [ToServer(GET)]
    assert session.from_server(OK) == [ToClient(OK), Decide(Hostname("other.example"))]
    assert not session.reusable
    assert session.permit(fresh=True) == [ToServer(GET_OTHER)]
    assert session.want_client
    assert session.from_server(OK) == [ToClient(OK)]
    assert session.from_client(b"") == [Close()]


def test_a_connection_to_one_host_cannot_carry_a_request_to_another():
    session = permitted(GET)
    session.from_server(OK)
    session.from_client(GET_EVIL)
    with pytest.raises(RuntimeError):
        session.permit(fresh=False)


def test_answers_without_a_question_are_a_mistake_of_the_caller():
    with pytest.raises(RuntimeError):
        Session(80).permit(fresh=True)
    with pytest.raises(RuntimeError):
        Session(80).refuse(403, b"no")
    with pytest.raises(RuntimeError):
        permitted(GET).permit(fresh=True)


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        pytest.param(GET_EVIL, b"no\n", id="GET"),
        pytest.param(GET_EVIL.replace(b"1.1", b"1.0"), b"no\n", id="HTTP/1.0"),
        pytest.param(GET_EVIL.replace(b"GET", b"HEAD"), b"", id="HEAD"),
        pytest.param(POST.replace(b"good", b"evil"), b"no\n", id="a body not yet sent"),
        pytest.param(POST.replace(b"good", b"evil") + b"hello" + GET, b"no\n", id="a body and a next request"),
    ],
)
def test_refused(request_, body):
    session = Session(80)
    assert session.from_client(request_) == [Decide(Hostname("evil.example"))]
    page = (
        b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n"
        b"Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    assert session.refuse(403, b"no\n") == [ToClient(page + body), Close()]
    assert session.from_client(GET) == []
    assert session.from_server(OK) == []


def test_a_later_request_to_a_refused_host_never_reaches_a_server():
    session = permitted(GET + GET_EVIL)
    assert session.from_server(OK) == [ToClient(OK), Decide(Hostname("evil.example"))]
    told, close = session.refuse(403, b"no\n")
    assert told.data.startswith(b"HTTP/1.1 403 ")
    assert close == Close()


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        pytest.param(b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", id="one chunk"),
        pytest.param(b"005;a=b\r\nhello\r\n0;x\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", id="chunk extensions go"),
        pytest.param(b"0\r\nX-Sum: 1\r\n\r\n", b"0\r\nX-Sum: 1\r\n\r\n", id="trailers stay"),
        pytest.param(
            b"26\r\n" + GET_EVIL + b"\r\n0\r\n\r\n", b"26\r\n" + GET_EVIL + b"\r\n0\r\n\r\n", id="a body like a request"
        ),
    ],
)
def test_chunked_bodies(body, sent):
    session = Session(80)
    assert session.from_client(CHUNKED + body + GET_OTHER) == [Decide(GOOD)]
    assert session.permit(fresh=True) == [ToServer(CHUNKED), ToServer(sent)]
    assert session.from_server(OK)[-1] == Decide(Hostname("other.example"))


def test_a_body_is_passed_on_as_it_comes():
    session = permitted(POST)
    assert session.from_client(b"hel") == [ToServer(b"hel")]
    assert session.want_client
    assert session.from_client(b"lo" + GET) == [ToServer(b"lo")]
    assert not session.want_client


@pytest.mark.parametrize(
    ("request_", "body", "detail"),
    [
        pytest.param(CHUNKED, b"x\r\n", r"illegal chunk header", id="a chunk size that is no number"),
        pytest.param(CHUNKED, b"-5\r\nhello\r\n", r"illegal chunk header", id="a negative chunk size"),
        pytest.param(CHUNKED, b"f" * 21 + b"\r\n", r"illegal chunk header", id="a chunk size that overflows"),
        pytest.param(CHUNKED, b"5 x\r\nhello\r\n", r"illegal chunk header", id="more after the chunk size"),
        pytest.param(CHUNKED, b"5\nhello\r\n", r"illegal chunk header", id="line feed after the chunk size"),
        pytest.param(CHUNKED, b"1;a\nb\r\nx\r\n", r"illegal chunk header", id="line feed in a chunk extension"),
        pytest.param(CHUNKED, b"5\r\nhelloX\r\n", r"malformed chunk footer", id="a chunk longer than its size"),
        pytest.param(CHUNKED, b"0\r\nHost: evil.example\r\n\r\n", r"a trailer that names", id="Host as a trailer"),
        pytest.param(CHUNKED, b"0\r\nContent-Length: 9\r\n\r\n", r"a trailer that names", id="a length as a trailer"),
        pytest.param(CHUNKED, b"0\r\nbad trailer\r\n\r\n", r"illegal header line", id="a trailer without a colon"),
        pytest.param(CHUNKED, b"5\r\nhel", r"incomplete chunked read", id="chunks cut short"),
        pytest.param(POST, b"hell", r"received 4 bytes, expected 5", id="body cut short"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000], ids=["byte by byte", "whole"])
def test_broken_bodies(request_, body, detail, size):
    session = permitted(request_)
    pieces = [*(body[at : at + size] for at in range(0, len(body), size)), b""]
    commands = [command for piece in pieces for command in session.from_client(piece)]
    broken, page, close = [command for command in commands if not isinstance(command, ToServer)]
    assert re.search(detail, broken.malformed.detail)
    assert broken.malformed.reason is Reason.MALFORMED
    assert page.data.startswith(b"HTTP/1.1 400 ")
    assert close == Close()
    assert b"0\r\n" not in b"".join(command.data for command in commands if isinstance(command, ToServer))


@pytest.mark.parametrize(
    ("sent", "commands"),
    [
        pytest.param(b"", [Close()], id="nothing"),
        pytest.param(b"\r\n", [Close()], id="an empty line"),
    ],
)
def test_a_client_that_leaves_without_asking(sent, commands):
    session = Session(80)
    assert [*session.from_client(sent), *(session.from_client(b"") if sent else [])] == commands


def test_a_client_that_leaves_in_the_middle_of_a_head():
    session = Session(80)
    session.from_client(GET[:-2])
    broken, _, close = session.from_client(b"")
    assert broken == Broken(Malformed("the connection ended in the middle of a request head"))
    assert close == Close()


def test_a_client_that_says_its_end_after_two_requests_gets_both_answers():
    session = permitted(GET + GET)
    assert session.from_client(b"") == []
    assert not session.want_client
    assert session.from_server(OK) == [ToClient(OK), Decide(GOOD)]
    session.permit(fresh=False)
    assert session.from_server(OK) == [ToClient(OK), Close()]


def test_a_client_that_has_said_its_end_is_not_read_again():
    session = permitted(GET)
    assert session.want_client
    assert session.from_client(b"") == []
    assert not session.want_client


def test_a_body_that_breaks_after_the_answer_began_gets_no_page_in_the_middle_of_it():
    session = permitted(CHUNKED)
    assert session.from_server(OK[:-2])[0].data.endswith(b"Connection: close\r\n\r\n")
    broken, close = session.from_client(b"x\r\n")
    assert isinstance(broken, Broken)
    assert close == Close()


def test_expect_100_continue():
    head = b"POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    session = Session(80)
    session.from_client(head)
    assert session.permit(fresh=True) == [ToServer(head)]
    assert session.from_server(b"HTTP/1.1 100 Continue\r\n\r\n") == [ToClient(b"HTTP/1.1 100 Continue\r\n\r\n")]
    assert session.from_client(b"hello") == [ToServer(b"hello")]
    assert session.from_server(OK) == [ToClient(OK)]


# WebSocket


def test_websocket_is_relayed_raw_after_101():
    session = permitted(WEBSOCKET)
    assert session.from_client(b"early") == []
    assert session.from_server(AGREED + b"frames") == [
        ToClient(AGREED),
        Switch(to_server=b"early", to_client=b"frames"),
    ]
    assert session.from_client(GET) == []
    assert session.from_server(OK) == []


def test_what_follows_a_declined_websocket_is_a_request():
    session = permitted(WEBSOCKET + GET_EVIL)
    assert session.from_server(OK) == [ToClient(OK), Decide(Hostname("evil.example"))]


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(WEBSOCKET.replace(b"GET", b"POST"), id="not by GET"),
        pytest.param(WEBSOCKET.replace(b"1.1", b"1.0"), id="in HTTP/1.0"),
        pytest.param(WEBSOCKET.replace(b"Connection: Upgrade\r\n", b""), id="without Connection"),
        pytest.param(WEBSOCKET[:-2] + b"Content-Length: 5\r\n\r\nhello", id="with a body"),
        pytest.param(WEBSOCKET.replace(b"websocket", b"h2c"), id="to HTTP/2"),
    ],
)
def test_upgrades_that_are_not_passed_on(request_):
    session = Session(80)
    session.from_client(request_)
    head = session.permit(fresh=True)[0]
    assert b"pgrade" not in head.data
    assert isinstance(session.from_server(AGREED)[0], ServerBroken)


def test_101_to_something_else_than_was_asked():
    commands = permitted(WEBSOCKET).from_server(AGREED.replace(b"websocket", b"h2c"))
    assert commands[0] == ServerBroken("response: 101 to something else than WebSocket")
    assert commands[-1] == Close()
