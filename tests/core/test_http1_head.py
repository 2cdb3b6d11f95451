"""Which requests are asked about, under which name and how they are sent on; and which are refused, with what words."""

import pytest

from proxyfw.core.hostname import Hostname
from proxyfw.core.http1 import Broken, Close, Command, Decide, Session, ToClient, ToServer
from proxyfw.core.sniffed import Malformed
from proxyfw.core.verdict import Reason

NEXT_REQUEST = b"GET /next HTTP/1.1\r\nHost: next.example\r\n\r\n"


def whole(raw: bytes) -> list[bytes]:
    return [raw]


def byte_by_byte(raw: bytes) -> list[bytes]:
    return [raw[at : at + 1] for at in range(len(raw))]


def with_a_request_after_it(raw: bytes) -> list[bytes]:
    return [raw + NEXT_REQUEST]


three_ways = pytest.mark.parametrize("cut", [whole, byte_by_byte, with_a_request_after_it])


def fed(session: Session, pieces: list[bytes]) -> list[Command]:
    return [command for piece in pieces for command in session.from_client(piece)]


def refused(commands: list[Command]) -> Malformed:
    """What was refused, once it is sure that nothing was asked or sent, and that the client was told."""
    broken, page, close = commands
    assert isinstance(broken, Broken)
    assert isinstance(page, ToClient)
    status = b"431" if broken.malformed.reason is Reason.OVERSIZED else b"400"
    assert page.data.startswith(b"HTTP/1.1 " + status)
    assert b"\r\nConnection: close\r\n" in page.data
    assert page.data.endswith(f"reason: {broken.malformed.reason} ({broken.malformed.detail})\n".encode())
    assert close == Close()
    return broken.malformed


def request(*lines: bytes, first: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([first, *lines, b"", b""])


def to(target: bytes, host: bytes = b"good.example", method: bytes = b"GET") -> bytes:
    return request(b"Host: " + host, first=method + b" " + target + b" HTTP/1.1")


HOST = b"Host: good.example"

LINE_FEED = "a line feed without a carriage return"
NO_FORM = "the request line is not method, target and version with one space between them"
NOT_VISIBLE = "a control character or a non-ASCII byte in the request line"
BAD_VERSION = "the version is neither HTTP/1.0 nor HTTP/1.1"
NOT_CHUNKED = "Transfer-Encoding is not exactly chunked"
CHARACTERS = "is not a host: only letters, digits, hyphens, underscores and dots may be in a name"
BAD_PORT = "is not a number from 1 to 65535"
FRAGMENT = "a fragment in the request target"

MALFORMED = {
    # the request line
    "line feeds alone": (b"GET / HTTP/1.1\nHost: good.example\n\n", LINE_FEED),
    "one bare line feed between fields": (request(b"A: 1\nHost: evil.example", HOST), LINE_FEED),
    "two empty lines first": (b"\r\n\r\n" + request(HOST), "more than one empty line before the request"),
    "HTTP/0.9": (b"GET /\r\n", "the request line has no version (HTTP/0.9)"),
    "HTTP/2 with prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2 without TLS"),
    "HTTP/2.0 in a request": (request(HOST, first=b"GET / HTTP/2.0"), BAD_VERSION),
    "HTTP/1.2": (request(HOST, first=b"GET / HTTP/1.2"), BAD_VERSION),
    "version in lower case": (request(HOST, first=b"GET / http/1.1"), BAD_VERSION),
    "version with more digits": (request(HOST, first=b"GET / HTTP/1.10"), BAD_VERSION),
    "two spaces": (request(HOST, first=b"GET  / HTTP/1.1"), NO_FORM),
    "space at the end": (request(HOST, first=b"GET / HTTP/1.1 "), NO_FORM),
    "space in the target": (request(HOST, first=b"GET /a b HTTP/1.1"), NO_FORM),
    "space first": (request(HOST, first=b" GET / HTTP/1.1"), NO_FORM),
    "tab for space": (request(HOST, first=b"GET\t/ HTTP/1.1"), NOT_VISIBLE),
    "control character in the target": (to(b"/\x01"), NOT_VISIBLE),
    "NUL in the target": (to(b"/\0"), NOT_VISIBLE),
    "non-ASCII byte in the target": (to(b"/\xc3\xa9"), NOT_VISIBLE),
    "carriage return in the target": (to(b"/\r"), "a carriage return without a line feed"),
    "method in lower case": (to(b"/", method=b"get"), "the method is not in upper-case letters"),
    "method of 33 letters": (to(b"/", method=b"A" * 33), "the method is longer than 32 characters"),
    "CONNECT": (to(b"good.example:443", method=b"CONNECT"), "CONNECT belongs to an explicit proxy"),
    "asterisk for GET": (to(b"*"), "the target * belongs to OPTIONS"),
    "a bare name as target": (to(b"good.example"), "the request target is neither a path nor a URL"),
    "backslashes for slashes": (to(b"http:\\\\evil.example"), "the request target is neither a path nor a URL"),
    "fragment in a path": (to(b"/#evil.example"), FRAGMENT),
    # the URL as target
    "https URL": (to(b"https://good.example/"), "the URL has a scheme other than http"),
    "URL without host": (to(b"http:///evil.example"), "the URL names no host"),
    "URL with only a port": (to(b"http://:80/"), "the URL is not one host with at most one port"),
    "userinfo": (to(b"http://good.example@evil.example/"), "userinfo in the URL"),
    "userinfo that looks like a port": (to(b"http://good.example:80@evil.example"), "userinfo in the URL"),
    "backslash before the at sign": (to(b"http://evil.example\\@good.example/"), "userinfo in the URL"),
    "backslash after the name": (to(b"http://evil.example\\.good.example/"), f"the URL {CHARACTERS}"),
    "fragment after the name": (to(b"http://evil.example#good.example"), FRAGMENT),
    "percent-encoded dot": (to(b"http://good%2eexample/"), f"the URL {CHARACTERS}"),
    # Host
    "no Host": (request(b"Accept: */*"), "request head: Missing mandatory Host: header"),
    "two names with a comma": (to(b"/", b"good.example, evil.example"), f"Host {CHARACTERS}"),
    "two names with a space": (to(b"/", b"good.example evil.example"), f"Host {CHARACTERS}"),
    "two names with a tab": (to(b"/", b"good.example\tevil.example"), f"Host {CHARACTERS}"),
    "userinfo in Host": (to(b"/", b"good.example@evil.example"), "userinfo in Host"),
    "path in Host": (to(b"/", b"good.example/x"), f"Host {CHARACTERS}"),
    "UTF-8 in Host": (to(b"/", b"b\xc3\xbccher.example"), "Host has a non-ASCII byte in it"),
    "two ports": (to(b"/", b"good.example:80:80"), "Host is not one host with at most one port"),
    "empty port": (to(b"/", b"good.example:"), f"the port in Host {BAD_PORT}"),
    "port with a sign": (to(b"/", b"good.example:+80"), f"the port in Host {BAD_PORT}"),
    "port with a leading zero": (to(b"/", b"good.example:080"), f"the port in Host {BAD_PORT}"),
    "port out of range": (to(b"/", b"good.example:65616"), f"the port in Host {BAD_PORT}"),
    "short IPv4 address": (to(b"/", b"127.1"), "Host is not a host: it is an address, not a name"),
    "octal IPv4 address": (to(b"/", b"0177.0.0.1"), "Host is not a host: it is an address, not a name"),
    "bracket not closed": (to(b"/", b"[::1"), "Host is not one host with at most one port"),
    "IPv6 address with a zone": (to(b"/", b"[fe80::1%25eth0]"), "Host is not one host with at most one port"),
    # header lines
    "folded line": (request(HOST, b"X: a", b" b"), "a header line is folded (obs-fold)"),
    "folded Host": (request(b"Host:", b"\tevil.example"), "a header line is folded (obs-fold)"),
    "folded first line": (request(b" Host: evil.example", HOST), "a header line is folded (obs-fold)"),
    "space before the colon": (
        request(HOST, b"Transfer-Encoding : chunked"),
        "whitespace between a field name and its colon",
    ),
    "no colon": (request(HOST, b"garbage"), "a header line without a colon"),
    "empty name": (request(HOST, b": x"), "a field name is not a token"),
    "space in a name": (request(HOST, b"X Y: x"), "a field name is not a token"),
    "control character in a name": (request(HOST, b"Transfer-Encoding\x0b: chunked"), "a field name is not a token"),
    "NUL in a value": (request(HOST, b"X: a\0b"), "a NUL in a header line"),
    "carriage return in a value": (
        request(HOST, b"X: a\rHost: evil.example"),
        "a carriage return without a line feed",
    ),
    "two carriage returns at the end": (request(HOST + b"\r"), "a carriage return without a line feed"),
    # lengths
    "two lengths that differ": (
        request(HOST, b"Content-Length: 5", b"Content-Length: 6"),
        "two Content-Length fields",
    ),
    "two equal lengths": (request(HOST, b"Content-Length: 5", b"Content-Length: 5"), "two Content-Length fields"),
    "a list of lengths": (request(HOST, b"Content-Length: 5, 5"), "Content-Length is not one number"),
    "length with a sign": (request(HOST, b"Content-Length: +5"), "Content-Length is not one number"),
    "length in hex": (request(HOST, b"Content-Length: 0x5"), "Content-Length is not one number"),
    "negative length": (request(HOST, b"Content-Length: -1"), "Content-Length is not one number"),
    "empty length": (request(HOST, b"Content-Length:"), "Content-Length is not one number"),
    "length over 64 bits": (request(HOST, b"Content-Length: " + b"9" * 20), "Content-Length is not one number"),
    "CL.TE": (
        request(HOST, b"Content-Length: 6", b"Transfer-Encoding: chunked") + b"0\r\n\r\nG",
        "Content-Length together with Transfer-Encoding",
    ),
    "TE.CL": (
        request(HOST, b"Transfer-Encoding: chunked", b"Content-length: 4") + b"0\r\n\r\n",
        "Content-Length together with Transfer-Encoding",
    ),
    "TE.TE": (
        request(HOST, b"Transfer-Encoding: chunked", b"Transfer-encoding: cow"),
        "two Transfer-Encoding fields",
    ),
    "xchunked": (request(HOST, b"Transfer-Encoding: xchunked"), NOT_CHUNKED),
    "quoted chunked": (request(HOST, b'Transfer-Encoding: "chunked"'), NOT_CHUNKED),
    "chunked with a vertical tab": (request(HOST, b"Transfer-Encoding: \x0bchunked"), NOT_CHUNKED),
    "gzip, chunked": (request(HOST, b"Transfer-Encoding: gzip, chunked"), NOT_CHUNKED),
    "chunked, identity": (request(HOST, b"Transfer-Encoding: chunked, identity"), NOT_CHUNKED),
    "chunked in HTTP/1.0": (
        request(HOST, b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0"),
        "Transfer-Encoding in an HTTP/1.0 request",
    ),
}


@three_ways
@pytest.mark.parametrize(("raw", "detail"), [pytest.param(*case, id=name) for name, case in MALFORMED.items()])
def test_malformed(cut, raw, detail):
    assert refused(fed(Session(80), cut(raw))) == Malformed(detail, Reason.MALFORMED)


OTHER_PORT = "names another port than 80, where the connection goes"


@three_ways
@pytest.mark.parametrize(
    ("raw", "detail"),
    [
        pytest.param(request(HOST, b"host: evil.example"), "two Host fields", id="two Hosts"),
        pytest.param(request(HOST, HOST), "two Host fields", id="the same Host twice"),
        pytest.param(to(b"http://evil.example/"), "Host and the URL name different hosts", id="Host is not the URL's"),
        pytest.param(to(b"http://good.example/", b""), "Host and the URL name different hosts", id="Host is empty"),
        pytest.param(to(b"http://good.example:81/"), f"the URL {OTHER_PORT}", id="URL with another port"),
        pytest.param(to(b"/", b"good.example:443"), f"Host {OTHER_PORT}", id="Host with another port"),
        pytest.param(to(b"http://good.example/", b"good.example:8080"), f"Host {OTHER_PORT}", id="two ports"),
    ],
)
def test_ambiguous(cut, raw, detail):
    assert refused(fed(Session(80), cut(raw))) == Malformed(detail, Reason.AMBIGUOUS)


@three_ways
@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(request(HOST, b"X: " + b"x" * 65536), id="one long field"),
        pytest.param(request(HOST, *[b"X: " + b"x" * 1000] * 66), id="many fields"),
        pytest.param(to(b"/" + b"x" * 65536), id="a long target"),
    ],
)
def test_oversized(cut, raw):
    told = Malformed("the header section is longer than 65536 bytes", Reason.OVERSIZED)
    assert refused(fed(Session(80), cut(raw))) == told


@pytest.mark.parametrize(("fields", "good"), [(255, True), (256, False)], ids=["256 with Host", "one too many"])
def test_a_head_has_at_most_256_fields(fields, good):
    commands = fed(Session(80), [request(HOST, *[b"X: y"] * fields)])
    if good:
        assert commands == [Decide(Hostname("good.example"))]
    else:
        assert refused(commands) == Malformed("more than 256 header fields", Reason.OVERSIZED)


def test_a_head_of_exactly_64_kib_is_read():
    padding = 65536 - len(request(HOST, b"X: "))
    assert fed(Session(80), [request(HOST, b"X: " + b"x" * padding)]) == [Decide(Hostname("good.example"))]
    assert refused(fed(Session(80), [request(HOST, b"X: " + b"x" * (padding + 1))])).reason is Reason.OVERSIZED


def test_a_url_without_a_port_means_80():
    detail = "the URL names another port than 8080, where the connection goes"
    assert refused(Session(8080).from_client(to(b"http://good.example/"))) == Malformed(detail, Reason.AMBIGUOUS)


@three_ways
@pytest.mark.parametrize(
    ("port", "raw", "name", "sent"),
    [
        pytest.param(80, to(b"/a?b=c"), "good.example", to(b"/a?b=c"), id="a path"),
        pytest.param(80, b"\r\n" + to(b"/"), "good.example", to(b"/"), id="one empty line first"),
        pytest.param(80, to(b"/", b"GOOD.Example."), "good.example", to(b"/"), id="case and trailing dot"),
        pytest.param(80, to(b"/", b"\t good.example \t"), "good.example", to(b"/"), id="whitespace around the value"),
        pytest.param(80, to(b"/", b"a.example:80"), "a.example", to(b"/", b"a.example:80"), id="port 80 given"),
        pytest.param(
            8080, to(b"/", b"a.example"), "a.example", to(b"/", b"a.example:8080"), id="another port left out"
        ),
        pytest.param(
            8080, to(b"http://a.example:8080/", b"a.example"), "a.example", to(b"/", b"a.example:8080"), id="URL"
        ),
        pytest.param(80, to(b"HTTP://Good.example/x"), "good.example", to(b"/x"), id="a URL becomes its path"),
        pytest.param(80, to(b"http://good.example"), "good.example", to(b"/"), id="a URL without a path"),
        pytest.param(
            80, to(b"http://good.example?x=/@evil"), "good.example", to(b"/?x=/@evil"), id="a URL with a query"
        ),
        pytest.param(
            80,
            to(b"http://good.example", method=b"OPTIONS"),
            "good.example",
            to(b"*", method=b"OPTIONS"),
            id="OPTIONS of a URL without a path",
        ),
        pytest.param(80, to(b"*", method=b"OPTIONS"), "good.example", to(b"*", method=b"OPTIONS"), id="asterisk"),
        pytest.param(80, to(b"//evil.example/"), "good.example", to(b"//evil.example/"), id="a path of two slashes"),
        pytest.param(80, to(b"/", b"192.0.2.1"), None, to(b"/", b"192.0.2.1"), id="IPv4 address"),
        pytest.param(80, to(b"/", b"[2001:DB8:0::1]:80"), None, to(b"/", b"[2001:db8::1]:80"), id="IPv6 address"),
        pytest.param(80, to(b"/", b""), None, to(b"/", b""), id="empty Host"),
        pytest.param(80, b"GET / HTTP/1.0\r\n\r\n", None, to(b"/", b""), id="HTTP/1.0 without Host"),
        pytest.param(
            80, b"GET http://good.example/ HTTP/1.0\r\n\r\n", "good.example", to(b"/"), id="HTTP/1.0 with a URL"
        ),
        pytest.param(
            80,
            request(HOST, b"Expect: 100-continue", first=b"GET / HTTP/1.0"),
            "good.example",
            to(b"/"),
            id="HTTP/1.0 knows no Expect",
        ),
        pytest.param(
            80,
            request(b"Accept: */*", HOST, b"X-Forwarded-Host: evil.example", b"cOOkie: a=b"),
            "good.example",
            request(HOST, b"Accept: */*", b"X-Forwarded-Host: evil.example", b"cOOkie: a=b"),
            id="Host goes first, the rest keeps order and case",
        ),
        pytest.param(
            80,
            request(
                HOST, b"Connection: close, X-A , host, content-length", b"X-A: 1", b"Keep-Alive: 5", b"TE: trailers"
            ),
            "good.example",
            to(b"/"),
            id="fields for one hop, and those that Connection names",
        ),
        pytest.param(
            80,
            request(
                HOST,
                b"User-Agent: curl/7.88.1",
                b"Connection: Upgrade, HTTP2-Settings",
                b"Upgrade: h2c",
                b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
            ),
            "good.example",
            request(HOST, b"User-Agent: curl/7.88.1"),
            id="curl --http2: the upgrade is not passed on",
        ),
        pytest.param(
            80,
            request(HOST, b"upgrade: WebSocket", b"connection: keep-alive, upgrade", b"Sec-WebSocket-Version: 13"),
            "good.example",
            request(HOST, b"Sec-WebSocket-Version: 13", b"Connection: Upgrade", b"Upgrade: websocket"),
            id="WebSocket",
        ),
        pytest.param(
            80,
            request(HOST, b"Upgrade: websocket, h2c", b"Connection: upgrade"),
            "good.example",
            to(b"/"),
            id="WebSocket or something else: not passed on",
        ),
    ],
)
def test_asked_about_and_sent_on(cut, port, raw, name, sent):
    session = Session(port)
    assert fed(session, cut(raw)) == [Decide(name)]
    assert not session.want_client
    assert session.permit(fresh=True) == [ToServer(sent)]
