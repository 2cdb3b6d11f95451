"""The first bytes on the explicit proxy's port: what they ask for, what is refused, and what the client is told.

`PROXYFW_EXAMPLES=100000` tries that many greetings that hypothesis makes up, in all, and not the 3,000 of every day.
"""

import os
import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxyfw.core.address import IPAddress
from proxyfw.core.explicit import Answer, Asked, Forward, Opening
from proxyfw.core.flow import Protocol
from proxyfw.core.http1 import Decide, Session
from proxyfw.core.sniffed import MAX_HELLO, Malformed, NeedMore
from proxyfw.core.verdict import Deny, Reason

SOCKS, CONNECT, HTTP, TCP, TLS = Protocol.SOCKS, Protocol.CONNECT, Protocol.HTTP, Protocol.TCP, Protocol.TLS
AFTER = b"\x16\x03\x01 what the client sends next\r\n\r\n"
TAKEN = b"\x05\x00"
LETTERS = "only letters, digits, hyphens, underscores and dots may be in a name"


def single(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def feed(pieces: list[bytes]) -> tuple[Opening, bytes, Answer]:
    """What was sent to the client, and the final answer, or NeedMore."""
    opening = Opening()
    sent = b""
    answer: Answer = NeedMore()
    for piece in pieces:
        reply, answer = opening.feed(piece)
        sent += reply
        if answer != NeedMore():
            break
    return opening, sent, answer


def head(*lines: bytes) -> bytes:
    return b"\r\n".join([*lines, b"", b""])


def connect(target: bytes, *fields: bytes, version: bytes = b"1.1") -> bytes:
    return head(b"CONNECT " + target + b" HTTP/" + version, *fields)


def socks4(host: bytes, port: int = 443, command: int = 1) -> bytes:
    return bytes([4, command]) + port.to_bytes(2) + b"\0\0\0\1user\0" + host + b"\0"


def socks5(host: bytes, port: int = 443, command: int = 1) -> bytes:
    return b"\x05\x01\x00\x05" + bytes([command, 0, 3, len(host)]) + host + port.to_bytes(2)


SOCKS5_IPV4 = b"\x05\x01\x00" + bytes([5, 1, 0, 1, 192, 0, 2, 1]) + (22).to_bytes(2)
SOCKS5_IPV6 = b"\x05\x02\x00\x02" + bytes([5, 1, 0, 4]) + IPv6Address("2001:db8::1").packed + (22).to_bytes(2)
HOST = b"Host: good.example:443"
GOOD = b"good.example:443"
STOOD = b"HTTP/1.1 200 Connection established\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "protocol", "host", "port", "sent", "success"),
    [
        pytest.param(
            socks5(b"good.example"), SOCKS, "good.example", 443, TAKEN, b"\5\0\0\1" + bytes(6), id="SOCKS5, a name"
        ),
        pytest.param(
            SOCKS5_IPV4, SOCKS, IPv4Address("192.0.2.1"), 22, TAKEN, b"\5\0\0\1" + bytes(6), id="SOCKS5, IPv4"
        ),
        pytest.param(
            SOCKS5_IPV6, SOCKS, IPv6Address("2001:db8::1"), 22, TAKEN, b"\5\0\0\1" + bytes(6), id="SOCKS5, IPv6"
        ),
        pytest.param(socks4(b"good.example"), SOCKS, "good.example", 443, b"", b"\0\x5a" + bytes(6), id="SOCKS4a"),
        pytest.param(
            b"\x04\x01\x00\x50\xc0\x00\x02\x01\0",
            SOCKS,
            IPv4Address("192.0.2.1"),
            80,
            b"",
            b"\0\x5a" + bytes(6),
            id="SOCKS4",
        ),
        pytest.param(connect(GOOD, HOST), CONNECT, "good.example", 443, b"", STOOD, id="CONNECT"),
        pytest.param(
            connect(b"Good.Example.:22", b"host: good.example"),
            CONNECT,
            "good.example",
            22,
            b"",
            STOOD,
            id="CONNECT, case and trailing dot, Host without a port",
        ),
        pytest.param(
            connect(GOOD, version=b"1.0"), CONNECT, "good.example", 443, b"", STOOD, id="CONNECT in HTTP/1.0, no Host"
        ),
        pytest.param(
            connect(b"192.0.2.1:1", b"Host: 192.0.2.1:1", b"Proxy-Authorization: Basic dTpw"),
            CONNECT,
            IPv4Address("192.0.2.1"),
            1,
            b"",
            STOOD,
            id="CONNECT, IPv4",
        ),
        pytest.param(
            connect(b"[2001:DB8::1]:65535", b"Host: [2001:db8::1]:65535"),
            CONNECT,
            IPv6Address("2001:db8::1"),
            65535,
            b"",
            STOOD,
            id="CONNECT, IPv6",
        ),
        pytest.param(
            b"\r\n" + connect(GOOD, HOST, b"Content-Length: 0"),
            CONNECT,
            "good.example",
            443,
            b"",
            STOOD,
            id="CONNECT, one empty line first, a length of 0",
        ),
    ],
)
def test_a_tunnel_is_asked_for(
    data: bytes, protocol: Protocol, host: str | IPAddress, port: int, sent: bytes, success: bytes
) -> None:
    for pieces, rest in (([data], b""), (single(data), b""), ([data + AFTER], AFTER), ([*single(data)], b"")):
        opening, told, answer = feed(pieces)
        assert (opening.protocol, told, answer) == (protocol, sent, Asked(protocol, host, port, rest))
        assert opening.success() == success
    for end in range(len(data)):
        assert feed([data[:end]])[2] == NeedMore()


FORWARDS = [
    pytest.param(head(b"GET http://good.example/ HTTP/1.1", b"Host: good.example"), id="a URL"),
    pytest.param(b"\r\n" + head(b"POST http://good.example:81/ HTTP/1.0", b"Content-Length: 0"), id="HTTP/1.0"),
    pytest.param(head(b"GET / HTTP/1.1", b"Host: good.example"), id="a path, which a Session refuses"),
    pytest.param(head(b"CONNECTED http://good.example/ HTTP/1.1", b"Host: x"), id="a method that begins with CONNECT"),
]


@pytest.mark.parametrize("data", FORWARDS)
def test_http_requests_go_to_a_session(data: bytes) -> None:
    line = data[: data.index(b"HTTP/1.") + 10]
    for pieces, so_far in (([data], data), (single(data), line), ([data + AFTER], data + AFTER)):
        opening, sent, answer = feed(pieces)
        assert (opening.protocol, sent, answer) == (HTTP, b"", Forward(so_far))
    assert opening.refusal(Deny(Reason.LIMIT), "work").startswith(b"HTTP/1.1 503 Service Unavailable\r\n")


def test_a_session_takes_what_it_is_handed() -> None:
    data = head(b"GET http://good.example/ HTTP/1.1", b"Host: good.example")
    _, _, answer = feed([data])
    assert isinstance(answer, Forward)
    assert Session(None).from_client(answer.data) == [Decide("good.example", port=80)]


BAD_PORT = "the port in the target is not a number from 1 to 65535"
BODY = "CONNECT with a body"
NO_FORM = "the request line is not method, target and version with one space between them"
LONG_HEAD = Malformed("the header section is longer than 65536 bytes", Reason.OVERSIZED)


def ambiguous(what: str) -> Malformed:
    return Malformed(f"Host and the target name different {what}", Reason.AMBIGUOUS)


@pytest.mark.parametrize(
    ("data", "answer", "status"),
    [
        pytest.param(
            connect(b"good.example", b"Host: good.example"),
            Malformed("the target of CONNECT is not a host and a port"),
            400,
            id="no port",
        ),
        pytest.param(connect(b"good.example:", HOST), Malformed(BAD_PORT), 400, id="an empty port"),
        pytest.param(connect(b"good.example:0", HOST), Malformed(BAD_PORT), 400, id="port 0"),
        pytest.param(connect(b"good.example:0443", HOST), Malformed(BAD_PORT), 400, id="a leading zero"),
        pytest.param(connect(b"good.example:65536", HOST), Malformed(BAD_PORT), 400, id="port 65536"),
        pytest.param(connect(b"good.example:https", HOST), Malformed(BAD_PORT), 400, id="a port by name"),
        pytest.param(
            connect(b":443", HOST), Malformed("the target is not one host with at most one port"), 400, id="no host"
        ),
        pytest.param(connect(b"u@good.example:443", HOST), Malformed("userinfo in the target"), 400, id="userinfo"),
        pytest.param(connect(b"http://good.example", HOST), Malformed(BAD_PORT), 400, id="a URL"),
        pytest.param(
            connect(b"http://good.example:443/", HOST),
            Malformed("the target is not one host with at most one port"),
            400,
            id="a URL with a port",
        ),
        pytest.param(
            connect(b"good.example/:443", HOST), Malformed(f"the target is not a host: {LETTERS}"), 400, id="a path"
        ),
        pytest.param(
            connect(b"127.1:443", HOST),
            Malformed("the target is not a host: it is an address, not a name"),
            400,
            id="a short address",
        ),
        pytest.param(
            connect(b"::1:443", HOST),
            Malformed("the target is not one host with at most one port"),
            400,
            id="IPv6 without brackets",
        ),
        pytest.param(connect(b"good.example:443 evil.example:443", HOST), Malformed(NO_FORM), 400, id="two targets"),
        pytest.param(connect(GOOD, b"Host: evil.example:443"), ambiguous("hosts"), 400, id="another Host"),
        pytest.param(connect(GOOD, b"Host:"), ambiguous("hosts"), 400, id="an empty Host"),
        pytest.param(connect(GOOD, b"Host: good.example:80"), ambiguous("ports"), 400, id="another port in Host"),
        pytest.param(connect(GOOD, HOST, HOST), Malformed("two Host fields", Reason.AMBIGUOUS), 400, id="two Hosts"),
        pytest.param(
            connect(GOOD), Malformed("request head: Missing mandatory Host: header"), 400, id="HTTP/1.1 without Host"
        ),
        pytest.param(connect(GOOD, HOST, b"Content-Length: 5"), Malformed(BODY), 400, id="a length"),
        pytest.param(connect(GOOD, HOST, b"Transfer-Encoding: chunked"), Malformed(BODY), 400, id="chunked"),
        pytest.param(
            connect(GOOD, HOST, b" folded"), Malformed("a header line is folded (obs-fold)"), 400, id="a folded line"
        ),
        pytest.param(connect(GOOD, b"X: " + b"x" * MAX_HELLO), LONG_HEAD, 431, id="a long field"),
        pytest.param(
            b"CONNECT good.example:443 HTTP/1.1\n",
            Malformed("a line feed without a carriage return"),
            400,
            id="a line feed alone",
        ),
    ],
)
def test_connect_that_is_refused(data: bytes, answer: Malformed, status: int) -> None:
    ways = [[data], [data + AFTER], single(data) if len(data) < 1000 else [data[:-1], data[-1:]]]
    for pieces in ways:
        opening, sent, found = feed(pieces)
        assert (opening.protocol, sent, found) == (CONNECT, b"", answer)
        told = opening.refusal(Deny(answer.reason, detail=answer.detail), "work")
        assert told.startswith(b"HTTP/1.1 %d " % status)
        assert f"reason: {answer.reason.value} ({answer.detail})\n".encode() in told


@pytest.mark.parametrize(
    ("data", "protocol", "answer", "sent", "told"),
    [
        pytest.param(b"\x16", TLS, Malformed("TLS to the proxy itself"), b"", b"", id="TLS"),
        pytest.param(b"\0", TCP, Malformed("neither SOCKS nor HTTP"), b"", b"", id="a zero byte"),
        pytest.param(b"\x06\x01\x00", TCP, Malformed("neither SOCKS nor HTTP"), b"", b"", id="SOCKS6"),
        pytest.param(b"SSH-2.0-x\r\n", TCP, Malformed("neither SOCKS nor HTTP"), b"", b"", id="SSH"),
        pytest.param(b"EHLO x\r\n", TCP, Malformed("neither SOCKS nor HTTP"), b"", b"", id="SMTP"),
        pytest.param(
            b"CONNECT good.example:443\r\n",
            TCP,
            Malformed("neither SOCKS nor HTTP"),
            b"",
            b"",
            id="CONNECT, no version",
        ),
        pytest.param(
            b"\x05\x01\x02",
            SOCKS,
            Malformed("the client insists on a password: there is none, leave user and password out"),
            b"",
            b"\x05\xff",
            id="SOCKS5 with a password",
        ),
        pytest.param(
            socks5(b"good.example", command=3),
            SOCKS,
            Malformed("SOCKS UDP ASSOCIATE is not done here, only CONNECT", Reason.UNSUPPORTED),
            TAKEN,
            b"\5\7\0\1" + bytes(6),
            id="SOCKS5, UDP",
        ),
        pytest.param(
            socks4(b"good.example", command=2),
            SOCKS,
            Malformed("SOCKS BIND is not done here, only CONNECT", Reason.UNSUPPORTED),
            b"",
            b"\0\x5b" + bytes(6),
            id="SOCKS4, BIND",
        ),
    ],
)
def test_refused(data: bytes, protocol: Protocol, answer: Malformed, sent: bytes, told: bytes) -> None:
    for pieces in ([data], single(data), [data + AFTER]):
        opening, replied, found = feed(pieces)
        assert (opening.protocol, replied, found) == (protocol, sent, answer)
        assert opening.refusal(Deny(answer.reason), "work") == told


@pytest.mark.parametrize(
    ("data", "answer", "status"),
    [
        pytest.param(b"GET /\r\n", Malformed("the request line has no version (HTTP/0.9)"), 400, id="HTTP/0.9"),
        pytest.param(b"PRI * HTTP/2.0\r\n", Malformed("HTTP/2 without TLS"), 400, id="HTTP/2"),
        pytest.param(
            b"connect good.example:443 HTTP/1.1\r\n",
            Malformed("the method is not in upper-case letters"),
            400,
            id="connect in lower case",
        ),
        pytest.param(
            b"GET http://good.example/" + b"x" * MAX_HELLO,
            Malformed("the request line is longer than 65536 bytes", Reason.OVERSIZED),
            431,
            id="a line without end",
        ),
    ],
)
def test_http_that_is_refused_in_its_first_line(data: bytes, answer: Malformed, status: int) -> None:
    for pieces in ([data], [data + AFTER], single(data) if len(data) < 1000 else [data[:5], data[5:]]):
        opening, sent, found = feed(pieces)
        assert (opening.protocol, sent, found) == (HTTP, b"", answer)
        assert opening.refusal(Deny(answer.reason), "work").startswith(b"HTTP/1.1 %d " % status)


def test_the_page_of_a_refused_tunnel() -> None:
    opening, _, answer = feed([connect(GOOD, HOST)])
    assert isinstance(answer, Asked)
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="CONNECT", target=GOOD, headers=[("Host", GOOD)]))
    client.send(h11.EndOfMessage())
    client.receive_data(opening.refusal(Deny(Reason.NO_MATCH), "work", answer.host))
    response, body, end = client.next_event(), client.next_event(), client.next_event()
    assert isinstance(response, h11.Response)
    assert (response.status_code, response.reason) == (403, b"Forbidden")
    assert (b"connection", b"close") in list(response.headers)
    assert (b"content-type", b"text/plain; charset=utf-8") in list(response.headers)
    assert isinstance(body, h11.Data)
    text = "proxyfw refused this connection.\n\nclient: work\nhost:   good.example\nreason: no-match\n"
    assert body.data.decode() == text
    assert isinstance(end, h11.EndOfMessage)


def test_a_client_that_has_not_said_what_it_speaks_is_told_nothing() -> None:
    for data in (b"", b"\r", b"GET", b"CONNECT good.example"):
        assert feed([data])[0].refusal(Deny(Reason.TIMEOUT), "work") == b""


# An independent reading of the same bytes, for comparison: all at once, and strict.


Reading = tuple[Protocol, str, int, bytes]

NAME = re.compile(r"(?=[^.]{1,63}(\.[^.]{1,63})*\Z)(?!.{254})[a-z0-9_](([a-z0-9_]|-(?![.]|\Z)|\.(?!-|\Z))*)", re.ASCII)


def address(text: str) -> str | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return str(ip_address(socket.inet_pton(family, text)))
        except OSError:
            pass
    return None


def name_or_address(raw: bytes) -> str | None:
    if not raw.isascii() or b"\0" in raw:
        return None
    text = raw.decode().lower()
    found = address(text)
    if found is not None:
        return found
    text = text[:-1] if text.endswith(".") else text
    last = text.split(".")[-1]
    if not NAME.fullmatch(text) or last.isdigit() or re.fullmatch("0x[0-9a-f]*", last):
        return None
    return text


def read_socks(data: bytes) -> Reading | None:
    """What valid SOCKS bytes ask for; None: they are not, or not complete."""
    if data[:1] == b"\x04":
        user, found, after = data[8:].partition(b"\0")
        if not found or data[1] != 1 or len(user) > 255:
            return None
        host: str | None = str(ip_address(data[4:8]))
        if data[4:7] == bytes(3) and data[7]:
            name, found, after = after.partition(b"\0")
            host = name_or_address(name) if found and len(name) < 256 else None
        port = int.from_bytes(data[2:4])
        return (SOCKS, host, port, after) if host is not None and port else None
    try:
        methods = data[2 : 2 + data[1]]
        request = data[2 + data[1] :]
        size = {1: 4, 3: 1 + request[4], 4: 16}[request[3]]
        raw, after = request[4 : 4 + size], request[4 + size :]
        port = after[0] << 8 | after[1]
    except (IndexError, KeyError):
        return None
    if 0 not in methods or request[:3] != b"\5\1\0" or not port:
        return None
    host = name_or_address(raw[1:]) if request[3] == 3 else str(ip_address(raw))
    return (SOCKS, host, port, after[2:]) if host is not None else None


HEAD = re.compile(
    rb"(?:\r\n)?CONNECT ([!-~]+) HTTP/1\.([01])\r\n((?:[-!#$%&'*+.^_`|~0-9A-Za-z]+:[^\r\n\0\v\f]*\r\n)*)\r\n"
)
HOST_PORT = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]@]+)):([1-9][0-9]{0,4})")


def host_in(found: re.Match[bytes]) -> str | None:
    if found[1] is None:
        return name_or_address(found[2])
    return address(found[1].decode()) if b":" in found[1] else None


def read_connect(data: bytes) -> Reading | None:
    """What a valid CONNECT asks for; None: it is not, or not complete."""
    found = HEAD.match(data)
    if found is None:
        return None
    target = HOST_PORT.fullmatch(found[1])
    if target is None or int(target[3]) > 65535:
        return None
    host = host_in(target)
    fields = [line.split(b":", 1) for line in found[3].split(b"\r\n")[:-1]]
    given = [value.strip(b" \t") for name, value in fields if name.lower() == b"host"]
    lengths = [value.strip(b" \t") for name, value in fields if name.lower() == b"content-length"]
    if host is None or len(given) > 1 or (not given and found[2] == b"1") or len(lengths) > 1:
        return None
    if any(name.lower() == b"transfer-encoding" for name, _ in fields) or not all(
        re.fullmatch(rb"0{1,19}", each) for each in lengths
    ):
        return None
    for each in given:
        also = HOST_PORT.fullmatch(each) or HOST_PORT.fullmatch(each + b":" + target[3])
        if also is None or also[3] != target[3]:
            return None
        if host_in(also) != host:
            return None
    return CONNECT, host, int(target[3]), data[found.end() :]


def read(data: bytes) -> Reading | None:
    return read_socks(data) if data[:1] in (b"\4", b"\5") else read_connect(data)


HOSTS = [b"good.example", b"GOOD.example.", b"a_b.c-d", b"192.0.2.1", b"2001:db8::1", b"127.1", b"x", b"b\xc3\xbc.de"]
seldom = st.integers(0, 9).map(lambda n: n == 9)
hosts = seldom.flatmap(
    lambda odd: (
        st.binary(max_size=80) if odd else st.sampled_from(HOSTS) | st.text("ab.-_0x1", max_size=70).map(str.encode)
    )
)
ports = st.sampled_from([1, 22, 80, 443, 65535]) | st.integers(0, 65535)
commands = seldom.flatmap(lambda odd: st.integers(0, 255) if odd else st.just(1))
methods = seldom.flatmap(lambda odd: st.binary(max_size=5) if odd else st.sampled_from([b"\0", b"\0\1", b"\2\0"]))
addresses = st.one_of(
    st.binary(min_size=4, max_size=4).map(lambda raw: b"\1" + raw),
    st.binary(min_size=16, max_size=16).map(lambda raw: b"\4" + raw),
    hosts.map(lambda raw: b"\3" + bytes([len(raw)]) + raw),
    st.binary(max_size=20),
)
asks_5 = st.builds(
    lambda offered, command, to, port: (
        b"\5" + bytes([len(offered)]) + offered + b"\5" + bytes([command]) + b"\0" + to + port.to_bytes(2)
    ),
    methods,
    commands,
    addresses,
    ports,
)
asks_4 = st.builds(
    lambda command, port, at, user, name: (
        b"\4" + bytes([command]) + port.to_bytes(2) + at + user + b"\0" + name + b"\0"
    ),
    commands,
    ports,
    st.sampled_from([b"\0\0\0\1", bytes(4), b"\xc0\0\2\1"]) | st.binary(min_size=4, max_size=4),
    st.binary(max_size=8) | st.integers(250, 258).map(lambda size: b"u" * size),
    hosts | st.integers(250, 258).map(lambda size: b"n" * size),
)
FIELDS = [b"Content-Length: 0", b"Content-Length: 7", b"Transfer-Encoding: chunked", b"User-Agent: x", b"X-Y:", b" z"]
fields = seldom.flatmap(lambda odd: st.lists(st.sampled_from(FIELDS if odd else FIELDS[::3]), max_size=2))
FORMS = [b"%s:%d", b"[%s]:%d", b"%s", b"http://%s:%d/"]


@st.composite
def asks_connect(draw: st.DrawFn) -> bytes:
    def authority(host: bytes, port: int) -> bytes:
        form = draw(st.sampled_from(FORMS)) if draw(seldom) else FORMS[host.count(b":") > 1]
        return form % ((host, port) if b"%d" in form else host)

    host, port = draw(hosts), draw(ports)
    lines = [b"CONNECT " + authority(host, port) + draw(st.sampled_from([b" HTTP/1.1", b" HTTP/1.0"]))]
    if not draw(seldom):
        lines.append(b"Host: " + authority(draw(hosts) if draw(seldom) else host, port))
    return head(*lines, *draw(fields))


SPLINTERS = [b"\r", b"\n", b"\r\n", b"\0", b"\xff", b" ", b":", b"@", b"\4", b"\5", b"\1", b"\3", b"GET ", b"Host: x"]


@st.composite
def wounded(draw: st.DrawFn) -> bytes:
    """A greeting, broken in up to three places, and what follows it."""
    data = draw(st.one_of(asks_5, asks_4, asks_connect(), st.sampled_from([each.values[0] for each in FORWARDS])))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        piece = draw(st.sampled_from(SPLINTERS) | st.binary(max_size=2))
        data = data[:at] + piece + data[at + draw(st.integers(0, 3)) :]
    return (
        data[: draw(st.integers(0, len(data)))] if not draw(st.integers(0, 9)) else data + draw(st.binary(max_size=9))
    )


arbitrary = st.binary(max_size=600) | st.builds(
    lambda first, rest: first + rest, st.sampled_from([b"\4", b"\5"]), st.binary(max_size=600)
)
cuts = st.lists(st.integers(0, 600), max_size=6)

EXAMPLES = int(os.environ.get("PROXYFW_EXAMPLES", "3000"))
often = settings(max_examples=EXAMPLES // 3, deadline=None, suppress_health_check=[HealthCheck.too_slow])

DENIALS = [Deny(reason, detail="x") for reason in Reason]


def check_any(data: bytes, at: list[int]) -> None:
    """One answer however the bytes are cut; a tunnel only if the other reader sees one; never success in a refusal."""
    opening, sent, answer = feed([data])
    ends = sorted({min(end, len(data)) for end in at} | {len(data)})
    pieces = [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    again, sent_again, in_pieces = feed(pieces)
    assert sent in (b"", TAKEN)
    assert (opening.protocol, sent) == (again.protocol, sent_again)
    if isinstance(answer, Forward):
        assert isinstance(in_pieces, Forward)
        assert answer.data == data
        assert data.startswith(in_pieces.data)
        assert opening.protocol is HTTP
    elif isinstance(answer, Asked):
        assert isinstance(in_pieces, Asked)
        assert (answer.protocol, answer.host, answer.port) == (in_pieces.protocol, in_pieces.host, in_pieces.port)
        assert answer.rest.startswith(in_pieces.rest)
    else:
        assert in_pieces == answer
    expected = read(data)
    if expected is None:
        assert not isinstance(answer, Asked)
    else:
        assert isinstance(answer, Asked)
        assert (answer.protocol, str(answer.host), answer.port, answer.rest) == expected
    if opening.protocol is SOCKS:
        assert answer != NeedMore() or len(data) < 8 + 2 * 256 + 1
    for deny in DENIALS:
        told = opening.refusal(deny, "work")
        assert told[:2] not in (b"\5\0", b"\0\x5a")
        assert not re.match(rb"HTTP/1\.1 [^45]", told)


@often
@given(arbitrary, cuts)
def test_arbitrary_bytes_never_raise_and_never_pass(data: bytes, at: list[int]) -> None:
    check_any(data, at)


@often
@given(asks_5 | asks_4 | asks_connect(), cuts)
def test_another_strict_reader_agrees_on_what_is_asked_for(data: bytes, at: list[int]) -> None:
    check_any(data, at)


@often
@given(wounded(), cuts)
def test_wounded_greetings_never_raise_and_never_pass(data: bytes, at: list[int]) -> None:
    check_any(data, at)


def test_what_is_never_complete_is_bounded() -> None:
    for start in (b"\4\1\1\xbb\0\0\0\1", b"\5\xff", b"CONNECT good.example:443 HTTP/1.1\r\nX: ", b"GET http://", b"A"):
        opening = Opening()
        answer: Answer = opening.feed(start)[1]
        fed = len(start)
        while answer == NeedMore():
            assert fed < MAX_HELLO + 1000
            answer = opening.feed(b"a" * 1000)[1]
            fed += 1000
        assert isinstance(answer, Malformed)
