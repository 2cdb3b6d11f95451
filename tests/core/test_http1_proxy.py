"""Requests to a proxy: each names its host and port in a URL; what is asked, sent on, reused and refused."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from proxyfw.core.hostname import Hostname
from proxyfw.core.http1 import Broken, Close, CloseServer, Command, Decide, Session, Switch, ToClient, ToServer
from proxyfw.core.sniffed import Malformed
from proxyfw.core.verdict import Reason

GOOD = Hostname("good.example")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NEXT_REQUEST = b"GET http://next.example/ HTTP/1.1\r\nHost: next.example\r\n\r\n"


def whole(raw: bytes) -> list[bytes]:
    return [raw]


def byte_by_byte(raw: bytes) -> list[bytes]:
    return [raw[at : at + 1] for at in range(len(raw))]


def with_a_request_after_it(raw: bytes) -> list[bytes]:
    return [raw + NEXT_REQUEST]


three_ways = pytest.mark.parametrize("cut", [whole, byte_by_byte, with_a_request_after_it])


def fed(session: Session, pieces: list[bytes]) -> list[Command]:
    return [command for piece in pieces for command in session.from_client(piece)]


def request(target: bytes, *fields: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([method + b" " + target + b" HTTP/" + version, *fields, b"", b""])


def get(url: bytes, host: bytes, *fields: bytes) -> bytes:
    return request(url, b"Host: " + host, *fields)


@three_ways
@pytest.mark.parametrize(
    ("raw", "asked", "sent"),
    [
        pytest.param(
            get(b"http://good.example/a?b=c", b"good.example"),
            Decide(GOOD, port=80),
            get(b"/a?b=c", b"good.example"),
            id="port 80 left out",
        ),
        pytest.param(
            get(b"HTTP://GOOD.example:80", b"Good.Example."),
            Decide(GOOD, port=80),
            get(b"/", b"good.example:80"),
            id="port 80 given, case, trailing dot, no path",
        ),
        pytest.param(
            get(b"http://good.example:8080/", b"good.example:8080"),
            Decide(GOOD, port=8080),
            get(b"/", b"good.example:8080"),
            id="another port",
        ),
        pytest.param(
            get(b"http://good.example:8080/", b"good.example"),
            Decide(GOOD, port=8080),
            get(b"/", b"good.example:8080"),
            id="another port that Host leaves out",
        ),
        pytest.param(
            get(b"http://192.0.2.1/", b"192.0.2.1"),
            Decide(None, IPv4Address("192.0.2.1"), 80),
            get(b"/", b"192.0.2.1"),
            id="an IPv4 address",
        ),
        pytest.param(
            get(b"http://[2001:DB8:0::1]:81/", b"[2001:db8::1]:81"),
            Decide(None, IPv6Address("2001:db8::1"), 81),
            get(b"/", b"[2001:db8::1]:81"),
            id="an IPv6 address",
        ),
        pytest.param(
            request(b"http://good.example/", version=b"1.0"),
            Decide(GOOD, port=80),
            get(b"/", b"good.example"),
            id="HTTP/1.0 without Host",
        ),
        pytest.param(
            request(b"http://good.example", b"Host: good.example", method=b"OPTIONS"),
            Decide(GOOD, port=80),
            request(b"*", b"Host: good.example", method=b"OPTIONS"),
            id="OPTIONS of a server",
        ),
        pytest.param(
            get(
                b"http://good.example/",
                b"good.example",
                b"Proxy-Connection: keep-alive",
                b"proxy-authorization: Basic dTpw",
                b"Authorization: Basic dTpw",
                b"Connection: X-Mine",
                b"X-Mine: 1",
            ),
            Decide(GOOD, port=80),
            get(b"/", b"good.example", b"Authorization: Basic dTpw"),
            id="what is for the proxy stays here",
        ),
    ],
)
def test_asked_about_and_sent_on(cut, raw, asked, sent):
    session = Session(None)
    assert fed(session, cut(raw)) == [asked]
    assert session.permit(fresh=True) == [ToServer(sent)]


NO_URL = "the request names no URL, and this is a proxy"


@three_ways
@pytest.mark.parametrize(
    ("raw", "detail"),
    [
        pytest.param(get(b"/", b"good.example"), NO_URL, id="a path"),
        pytest.param(get(b"//good.example/", b"good.example"), NO_URL, id="a path of two slashes"),
        pytest.param(request(b"*", b"Host: good.example", method=b"OPTIONS"), NO_URL, id="an asterisk"),
        pytest.param(
            get(b"https://good.example/", b"good.example"),
            "the URL has a scheme other than http, for which a proxy is asked by CONNECT",
            id="https",
        ),
        pytest.param(get(b"ftp://good.example/", b"good.example"), "the URL has a scheme other than http", id="ftp"),
        pytest.param(
            get(b"good.example/", b"good.example"),
            "the request target is neither a path nor a URL",
            id="a URL without a scheme",
        ),
        pytest.param(get(b"http:///x", b"good.example"), "the URL names no host", id="no host"),
        pytest.param(get(b"http://u:p@good.example/", b"good.example"), "userinfo in the URL", id="userinfo"),
        pytest.param(
            get(b"http://good.example/#evil", b"good.example"), "a fragment in the request target", id="a fragment"
        ),
        pytest.param(
            get(b"http://good.example:0/", b"good.example"),
            "the port in the URL is not a number from 1 to 65535",
            id="port 0",
        ),
        pytest.param(
            get(b"http://127.1/", b"127.1"), "Host is not a host: it is an address, not a name", id="a short address"
        ),
        pytest.param(
            request(b"http://good.example/"), "request head: Missing mandatory Host: header", id="HTTP/1.1 without Host"
        ),
        pytest.param(
            request(b"good.example:443", b"Host: good.example:443", method=b"CONNECT"),
            "CONNECT on a connection that carries other requests: it needs one of its own",
            id="CONNECT",
        ),
    ],
)
def test_malformed(cut, raw, detail):
    broken, page, close = fed(Session(None), cut(raw))
    assert broken == Broken(Malformed(detail))
    assert page.data.startswith(b"HTTP/1.1 400 ")
    assert close == Close()


@three_ways
@pytest.mark.parametrize(
    ("url", "host", "detail"),
    [
        pytest.param(b"http://good.example/", b"evil.example", "hosts", id="another host"),
        pytest.param(b"http://good.example/", b"", "hosts", id="Host is empty"),
        pytest.param(b"http://192.0.2.1/", b"good.example", "hosts", id="an address and a name"),
        pytest.param(b"http://192.0.2.1/", b"192.0.2.2", "hosts", id="another address"),
        pytest.param(b"http://good.example/", b"good.example:8080", "ports", id="another port"),
        pytest.param(b"http://good.example:8080/", b"good.example:80", "ports", id="the port of another server"),
    ],
)
def test_ambiguous(cut, url, host, detail):
    broken, page, close = fed(Session(None), cut(get(url, host)))
    assert broken == Broken(Malformed(f"Host and the URL name different {detail}", Reason.AMBIGUOUS))
    assert page.data.startswith(b"HTTP/1.1 400 ")
    assert close == Close()


FIRST = get(b"http://good.example/", b"good.example")
BY_ADDRESS = get(b"http://192.0.2.1/", b"192.0.2.1")


@pytest.mark.parametrize(
    ("first", "then", "reusable"),
    [
        pytest.param(FIRST, get(b"http://GOOD.example:80/b", b"good.example"), True, id="the same host and port"),
        pytest.param(FIRST, get(b"http://good.example:81/", b"good.example:81"), False, id="another port"),
        pytest.param(FIRST, get(b"http://evil.example/", b"evil.example"), False, id="another name"),
        pytest.param(FIRST, BY_ADDRESS, False, id="an address after a name"),
        pytest.param(BY_ADDRESS, BY_ADDRESS, True, id="the same address and port"),
        pytest.param(BY_ADDRESS, get(b"http://192.0.2.2/", b"192.0.2.2"), False, id="another address"),
        pytest.param(BY_ADDRESS, get(b"http://192.0.2.1:81/", b"192.0.2.1:81"), False, id="another port of an address"),
        pytest.param(BY_ADDRESS, FIRST, False, id="a name after an address"),
    ],
)
def test_a_kept_server_connection_carries_only_what_goes_to_the_same_host_and_port(first, then, reusable):
    session = Session(None)
    session.from_client(first + then)
    session.permit(fresh=True)
    told, asked = session.from_server(OK)
    assert told == ToClient(OK)
    assert isinstance(asked, Decide)
    assert session.reusable is reusable
    if not reusable:
        with pytest.raises(RuntimeError):
            session.permit(fresh=False)
    assert len(session.permit(fresh=not reusable)) == 1


def test_a_later_request_without_a_url_never_reaches_a_server():
    session = Session(None)
    session.from_client(FIRST + get(b"/", b"good.example"))
    session.permit(fresh=True)
    told, broken, page, close = session.from_server(OK)
    assert told == ToClient(OK)
    assert broken == Broken(Malformed(NO_URL))
    assert page.data.startswith(b"HTTP/1.1 400 ")
    assert close == Close()


def test_connect_after_other_requests_is_refused():
    session = Session(None)
    session.from_client(FIRST)
    session.permit(fresh=True)
    session.from_server(OK)
    broken, _, close = session.from_client(request(b"good.example:443", b"Host: good.example:443", method=b"CONNECT"))
    detail = "CONNECT on a connection that carries other requests: it needs one of its own"
    assert broken == Broken(Malformed(detail))
    assert close == Close()


def test_a_body_and_the_next_request():
    post = request(b"http://good.example/", b"Host: good.example", b"Content-Length: 5", method=b"POST")
    session = Session(None)
    session.from_client(post + b"hello" + NEXT_REQUEST)
    head, body = session.permit(fresh=True)
    assert head.data.startswith(b"POST / HTTP/1.1\r\nHost: good.example\r\n")
    assert body == ToServer(b"hello")
    closed = OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n")
    *_, drop, asked = session.from_server(closed)
    assert drop == CloseServer()
    assert asked == Decide(Hostname("next.example"), port=80)


def test_websocket_through_the_proxy():
    session = Session(None)
    upgrade = [b"Connection: Upgrade", b"Upgrade: websocket"]
    assert session.from_client(get(b"http://good.example/", b"good.example", *upgrade)) == [Decide(GOOD, port=80)]
    assert session.permit(fresh=True) == [ToServer(get(b"/", b"good.example", *upgrade))]
    agreed = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert session.from_server(agreed + b"x") == [ToClient(agreed), Switch(b"", b"x")]


def test_the_transparent_path_asks_for_a_name_alone():
    assert Session(80).from_client(FIRST) == [Decide(GOOD, None, None)]
    assert Session(80).from_client(BY_ADDRESS) == [Decide(None, None, None)]
