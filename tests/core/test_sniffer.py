"""The first bytes of a connection: which protocol they are of, whole, byte by byte, and with bytes after them."""

import ssl
from contextlib import suppress

import pytest

from proxyfw.core.hostname import Hostname
from proxyfw.core.policy import Protocol
from proxyfw.core.sniffed import MAX_HELLO, Malformed, Named, Nameless, NeedMore, NotMine, Sniffed
from proxyfw.core.sniffer import Sniffer
from proxyfw.core.verdict import Reason

HTTP, TCP, TLS = Protocol.HTTP, Protocol.TCP, Protocol.TLS


def hello(name: str | None) -> bytes:
    """The first flight of a real client."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def feed(pieces: list[bytes]) -> tuple[Sniffed, Sniffer]:
    """The final answer, or NeedMore; the sniffer has seen all pieces up to it, and no more."""
    sniffer = Sniffer()
    answer: Sniffed = NeedMore()
    for at, piece in enumerate(pieces, 1):
        answer = sniffer.feed(piece)
        assert sniffer.data == b"".join(pieces[:at])
        if answer != NeedMore():
            break
    return answer, sniffer


def single(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def check(data: bytes, after: bytes, answer: Sniffed, protocol: Protocol, hello_end: int) -> None:
    for pieces in ([data], single(data), [data + after], [*single(data), after], [b"", data, after]):
        found, sniffer = feed(pieces)
        assert (found, sniffer.protocol, sniffer.hello_end) == (answer, protocol, hello_end)


HELLO = hello("github.com")
GET = b"GET / HTTP/1.1\r\n"
SERVER_HELLO = b"\x16\x03\x03\x00\x04\x02\x00\x00\x00"


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        pytest.param(HELLO, Named(Hostname("github.com")), id="a ClientHello with a name"),
        pytest.param(hello(None), Nameless(), id="a ClientHello without one"),
    ],
)
def test_tls(data: bytes, answer: Sniffed) -> None:
    check(data, b"\x17\x03\x03\x00\x01\x00", answer, TLS, len(data))


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        pytest.param(b"\x16\x03\x01\x00\x00", "an empty TLS record", id="an empty record"),
        pytest.param(SERVER_HELLO, "a handshake message of type 2 in place of a ClientHello", id="a ServerHello"),
    ],
)
def test_tls_that_is_broken_is_not_taken_for_another_protocol(data: bytes, detail: str) -> None:
    for pieces in ([data], single(data), [data + GET]):
        answer, sniffer = feed(pieces)
        assert (answer, sniffer.protocol) == (Malformed(detail), TLS)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        pytest.param(GET, Nameless(), id="a request line"),
        pytest.param(b"\r\n" + GET, Nameless(), id="an empty line first"),
        pytest.param(b"PROPFIND /x HTTP/1.1\r\n", Nameless(), id="a method that is rare"),
        pytest.param(b"GET / HTTP/1.1\n", Malformed("a line feed without a carriage return"), id="a line feed alone"),
        pytest.param(b"GET / HTTP/9.9\r\n", Malformed("the version is neither HTTP/1.0 nor HTTP/1.1"),
                     id="a version that is not"),
        pytest.param(b"PRI * HTTP/2.0\r\n", Malformed("HTTP/2 without TLS"), id="HTTP/2 without TLS"),
        pytest.param(b"GET /" + b"a" * (MAX_HELLO - 5),
                     Malformed("the request line is longer than 65536 bytes", Reason.OVERSIZED), id="a line too long"),
    ],
)  # fmt: skip
def test_http(data: bytes, answer: Sniffed) -> None:
    after = b"Host: github.com\r\n\r\n"
    if len(data) < 1000:
        check(data, after, answer, HTTP, 0)
    else:  # byte by byte would take its square
        pieces = [data[at : at + 4096] for at in range(0, len(data), 4096)]
        for parts in ([data], pieces, [data + after]):
            found, sniffer = feed(parts)
            assert (found, sniffer.protocol) == (answer, HTTP)


@pytest.mark.parametrize(
    ("data", "enough"),
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2p1\r\n", 22, id="the banner of SSH"),
        pytest.param(b"EHLO mail.example\r\n", 19, id="the EHLO of SMTP"),
        pytest.param(b"a1 LOGIN anna secret\r\n", 22, id="a login of IMAP"),
        pytest.param(b"A1 LOGIN anna secret\r\n", 22, id="a login of IMAP, its tag in upper case"),
        pytest.param(b"USER anna\r\n", 11, id="a login of POP3"),
        pytest.param(b"\x4e\x00\x00\x01\x85\xa6\xff\x01root\0", 2, id="a login of MySQL"),
        pytest.param(b"\x16\x00\x00\x01\x85\xa6\xff\x01", 2, id="a packet of MySQL that begins as TLS does"),
        pytest.param(b"\x00\x00\x00\x08\x04\xd2\x16\x2f", 1, id="PostgreSQL asks for TLS"),
        pytest.param(b"\x80\x2e\x01\x00\x02", 1, id="a hello of SSL 2"),
        pytest.param(b"GET the weather\r\n", 17, id="a line that begins like HTTP"),
        pytest.param(b"\0" + HELLO, 1, id="a zero byte before a ClientHello"),
        pytest.param(b"\xff" + GET, 1, id="a byte before HTTP"),
    ],
)
def test_another_protocol(data: bytes, enough: int) -> None:
    """`enough`: bytes after which it is sure; of a line, all, as any word might be a method."""
    check(data, b"what comes next", NotMine(), TCP, 0)
    check(data[:enough], data[enough:] + GET + HELLO, NotMine(), TCP, 0)
    assert feed([data[: enough - 1]])[0] == NeedMore()


@pytest.mark.parametrize("data", [HELLO, GET])
def test_it_needs_more_until_the_last_byte(data: bytes) -> None:
    for length in range(len(data)):
        assert feed([data[:length]])[0] == NeedMore()
    assert feed(single(data[:-1]))[0] == NeedMore()
