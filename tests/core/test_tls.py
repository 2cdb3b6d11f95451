"""The ClientHello: every way to write one, every way to break one, and the second one after a HelloRetryRequest."""

import re
import ssl
from collections.abc import Iterable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyfw.core.hostname import Hostname
from proxyfw.core.sniffed import MAX_HELLO, Malformed, Named, Nameless, NeedMore, NotMine, Sniffed
from proxyfw.core.tls import ClientHello
from proxyfw.core.verdict import Reason

GITHUB = Named(Hostname("github.com"))
WRONG_LENGTH = Malformed("a length field inside the ClientHello is wrong")
LETTERS = "only letters, digits, hyphens, underscores and dots may be in a name"
BROKEN_SUITES = Malformed("the list of cipher suites is broken")
TOO_LONG = Malformed("the ClientHello is longer than 64 KiB", Reason.OVERSIZED)

SERVER_NAME, GROUPS, ALPN, PADDING, KEY_SHARE, ECH = 0, 10, 16, 21, 51, 0xFE0D
GREASE = 0x3A3A
CHANGE_CIPHER_SPEC = bytes.fromhex("140303000101")
EARLY_DATA = b"\x17\x03\x03\x00\x20" + bytes(32)
AFTER = b"\x17\x03\x03 what the client sends next"


def vector(octets: int, body: bytes) -> bytes:
    return len(body).to_bytes(octets) + body


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2) + vector(2, body)


def sni(*names: bytes) -> bytes:
    return extension(SERVER_NAME, vector(2, b"".join(b"\0" + vector(2, name) for name in names)))


def alpn(*names: bytes) -> bytes:
    return extension(ALPN, vector(2, b"".join(vector(1, name) for name in names)))


def handshake(body: bytes, kind: int = 1) -> bytes:
    return bytes([kind]) + vector(3, body)


def hello(
    *extensions: bytes,
    version: bytes = b"\x03\x03",
    session: bytes = b"\x20" + bytes(32),
    suites: bytes = b"\x00\x04\x13\x01\x13\x02",
    compression: bytes = b"\x01\x00",
    end: bytes = b"",
) -> bytes:
    """A handshake message. What has a length field of its own is given with it."""
    return handshake(version + bytes(32) + session + suites + compression + vector(2, b"".join(extensions)) + end)


def record(body: bytes, kind: int = 22, version: bytes = b"\x03\x01") -> bytes:
    return bytes([kind]) + version + vector(2, body)


def records(message: bytes, size: int = 1 << 14) -> bytes:
    return b"".join(record(message[at : at + size]) for at in range(0, len(message), size))


def by_openssl(
    name: str | None = "github.com",
    oldest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    offer: tuple[str, ...] = (),
) -> bytes:
    """The first flight of a real client."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.minimum_version, context.maximum_version = oldest, newest
    if offer:
        context.set_alpn_protocols(list(offer))
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def feed(pieces: Iterable[bytes], second: bool = False) -> tuple[Sniffed, int]:
    """The final answer, or NeedMore, and `consumed`."""
    sniffer = ClientHello(second)
    answer: Sniffed = NeedMore()
    for piece in pieces:
        answer = sniffer.feed(piece)
        if answer != NeedMore():
            break
    return answer, sniffer.consumed


def single(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def check_complete(data: bytes, answer: Sniffed, second: bool = False) -> None:
    """Whole, byte by byte, and with bytes after it: the same answer, at the last byte, and where the hello ends."""
    assert feed([data], second) == (answer, len(data))
    assert feed([data + AFTER], second) == (answer, len(data))
    assert feed(single(data), second) == (answer, len(data))
    assert feed(single(data[:-1]), second)[0] == NeedMore()


def check_answer(data: bytes, answer: Sniffed, second: bool = False) -> None:
    """Whole, byte by byte, and with bytes after it: the same answer."""
    assert feed([data], second)[0] == answer
    assert feed([data + AFTER], second)[0] == answer
    assert feed(single(data), second)[0] == answer


POST_QUANTUM = hello(
    extension(GROUPS, vector(2, b"\x11\xec\x00\x1d")),
    extension(KEY_SHARE, vector(2, b"\x11\xec" + vector(2, bytes(1700)) + b"\x00\x1d" + vector(2, bytes(32)))),
    alpn(b"h2", b"http/1.1"),
    sni(b"github.com"),
)
GREASED = hello(
    extension(GREASE, b""),
    sni(b"github.com"),
    alpn(b"\x3a\x3a", b"h2"),
    extension(0xDADA, b"\0"),
    suites=vector(2, b"\x3a\x3a\x13\x01"),
)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        pytest.param(by_openssl(), GITHUB, id="OpenSSL, TLS 1.2 and 1.3"),
        pytest.param(by_openssl(oldest=ssl.TLSVersion.TLSv1_3), GITHUB, id="OpenSSL, TLS 1.3 only"),
        pytest.param(by_openssl(newest=ssl.TLSVersion.TLSv1_2), GITHUB, id="OpenSSL, TLS 1.2 only"),
        pytest.param(
            by_openssl(offer=("h2", "http/1.1")), Named(GITHUB.name, (b"h2", b"http/1.1")), id="OpenSSL with ALPN"
        ),
        pytest.param(by_openssl(None), Nameless(), id="OpenSSL without a name"),
        pytest.param(by_openssl("bücher.de"), Named(Hostname("xn--bcher-kva.de")), id="OpenSSL, international name"),
        pytest.param(
            records(POST_QUANTUM), Named(GITHUB.name, (b"h2", b"http/1.1")), id="a post-quantum key share, name last"
        ),
        pytest.param(records(GREASED), Named(GITHUB.name, (b"\x3a\x3a", b"h2")), id="GREASE everywhere"),
        pytest.param(records(hello(sni(b"GitHub.COM."))), GITHUB, id="upper case and a trailing dot"),
        pytest.param(records(hello()), Nameless(), id="an empty list of extensions"),
        pytest.param(
            record(handshake(b"\x03\x01" + bytes(32) + b"\0" + b"\x00\x02\x00\x2f" + b"\x01\x00")),
            Nameless(),
            id="TLS 1.0 without extensions",
        ),
        pytest.param(records(hello(sni(b"github.com"), version=b"\x03\x01")), GITHUB, id="TLS 1.0 with a name"),
        pytest.param(records(hello(sni(b"github.com"), version=b"\x03\x00")), GITHUB, id="SSL 3.0 with a name"),
        pytest.param(
            records(hello(sni(b"github.com"), extension(ECH, bytes(200)))),
            Named(GITHUB.name, (), ech=True),
            id="an outer name, and an encrypted inner one",
        ),
        pytest.param(records(hello(sni(b"github.com"), session=b"\0")), GITHUB, id="no session id"),
        pytest.param(records(hello(sni(b"github.com"), compression=b"\x02\x01\x00")), GITHUB, id="two compressions"),
        pytest.param(records(hello(sni(b"github.com"), alpn())), GITHUB, id="an empty ALPN list"),
        pytest.param(
            records(hello(extension(PADDING, bytes(16200)), sni(b"github.com"))), GITHUB, id="as long as a record"
        ),
    ],
)
def test_a_hello_is_read(data: bytes, answer: Sniffed) -> None:
    check_complete(data, answer)


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(1, id="1 byte a record"),
        pytest.param(3, id="3 bytes a record: the handshake header is split"),
        pytest.param(17, id="17 bytes a record"),
        pytest.param(len(POST_QUANTUM) // 5 + 1, id="5 records"),
    ],
)
def test_a_hello_in_many_records_is_read(size: int) -> None:
    check_complete(records(POST_QUANTUM, size), Named(GITHUB.name, (b"h2", b"http/1.1")))


def test_the_longest_hello_is_read() -> None:
    overhead = len(hello(sni(b"github.com"), extension(PADDING, b"")))
    headers = 5 * 4
    message = hello(sni(b"github.com"), extension(PADDING, bytes(MAX_HELLO - headers - overhead)))
    data = records(message)
    assert len(data) == MAX_HELLO
    assert feed([data]) == (GITHUB, MAX_HELLO)
    assert feed(data[at : at + 1000] for at in range(0, len(data), 1000)) == (GITHUB, MAX_HELLO)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2p1\r\n", id="SSH"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: github.com\r\n\r\n", id="HTTP"),
        pytest.param(b"EHLO mail.example\r\n", id="SMTP"),
        pytest.param(bytes.fromhex("802e0100020015001000000010"), id="an SSLv2 hello"),
        pytest.param(b"\x16\x02\x00", id="a handshake record of SSL 2.0"),
        pytest.param(b"\x16\xfe\xfd\0\0", id="a handshake record of DTLS 1.2"),
        pytest.param(b"\x15\x03\x03\0\x02\x02\x28", id="an alert"),
        pytest.param(CHANGE_CIPHER_SPEC, id="a change_cipher_spec"),
        pytest.param(b"\x17\x03\x03\0\x01\0", id="application data"),
        pytest.param(b"\0", id="a zero byte"),
    ],
)
def test_another_protocol_is_not_ours(data: bytes) -> None:
    check_answer(data, NotMine())
    assert feed([data])[1] == 0


@pytest.mark.parametrize("data", [pytest.param(b"", id="nothing"), pytest.param(b"\x16", id="one byte")])
def test_too_little_to_tell(data: bytes) -> None:
    assert feed([data]) == (NeedMore(), 0)


NAME = b"\0" + vector(2, b"github.com")
A_HELLO = hello(sni(b"github.com"))


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        pytest.param(handshake(bytes(40), 2), Malformed("a handshake message of type 2 in place of a ClientHello"),
                     id="a ServerHello"),
        pytest.param(handshake(b"", 0), Malformed("a handshake message of type 0 in place of a ClientHello"),
                     id="a HelloRequest"),
        pytest.param(A_HELLO + handshake(b""), Malformed("handshake bytes after the ClientHello"),
                     id="another message in the same record"),
        pytest.param(hello(version=b"\x04\x00"), Malformed("the ClientHello is of an unknown protocol version"),
                     id="version 4.0"),
        pytest.param(hello(session=b"\x21" + bytes(33)), Malformed("the session id is longer than 32 bytes"),
                     id="a session id of 33 bytes"),
        pytest.param(hello(suites=b"\0\0"), BROKEN_SUITES, id="no cipher suite"),
        pytest.param(hello(suites=b"\0\x03\x13\x01\x13"), BROKEN_SUITES, id="one and a half cipher suites"),
        pytest.param(hello(compression=b"\0"), Malformed("the list of compression methods is empty"),
                     id="no compression method"),
        pytest.param(hello(sni(b"github.com"), end=b"\0"), Malformed("bytes after the extensions"),
                     id="a byte after the extensions"),
        pytest.param(handshake(b""), WRONG_LENGTH, id="an empty hello"),
        pytest.param(handshake(b"\x03\x03" + bytes(31)), WRONG_LENGTH, id="a random that is too short"),
        pytest.param(hello(suites=b"\xff\xfe\x13\x01"), WRONG_LENGTH, id="cipher suites past the end"),
        pytest.param(hello(compression=b"\xff\x00"), WRONG_LENGTH, id="compression methods past the end"),
        pytest.param(handshake(b"\x03\x03" + bytes(33) + b"\0\x02\x13\x01\x01\0" + b"\x00"), WRONG_LENGTH,
                     id="half a length of the extensions"),
        pytest.param(handshake(b"\x03\x03" + bytes(33) + b"\0\x02\x13\x01\x01\0" + b"\x00\x05\0\0\0\0"), WRONG_LENGTH,
                     id="extensions past the end"),
        pytest.param(hello(b"\0\0\0"), WRONG_LENGTH, id="an extension without a length"),
        pytest.param(hello(b"\0\x15\0\x02\0"), WRONG_LENGTH, id="an extension past the end"),
        pytest.param(hello(extension(SERVER_NAME, b"")), WRONG_LENGTH, id="server_name without a list"),
        pytest.param(hello(extension(SERVER_NAME, b"\0\0")), WRONG_LENGTH, id="an empty list of names"),
        pytest.param(hello(extension(SERVER_NAME, b"\0\x0e" + NAME)), WRONG_LENGTH, id="a list past the end"),
        pytest.param(hello(extension(SERVER_NAME, vector(2, b"\0\0\x0bgithub.com"))), WRONG_LENGTH,
                     id="a name past the list"),
        pytest.param(hello(extension(SERVER_NAME, vector(2, NAME) + b"\0")), Malformed("bytes after the server names"),
                     id="a byte after the list of names"),
        pytest.param(hello(extension(SERVER_NAME, vector(2, b"\x01" + vector(2, b"github.com")))),
                     Malformed("a server name that is not a host name"), id="a name of another type"),
        pytest.param(hello(sni(b"github.com", b"evil.example")),
                     Malformed("more than one server name", Reason.AMBIGUOUS), id="two names"),
        pytest.param(hello(sni(b"github.com", b"github.com")),
                     Malformed("more than one server name", Reason.AMBIGUOUS), id="the same name twice"),
        pytest.param(hello(extension(SERVER_NAME, vector(2, b"\0\0\x09github.com"))),
                     Malformed("more than one server name", Reason.AMBIGUOUS), id="a byte after the name, in its list"),
        pytest.param(hello(sni(b"github.com"), sni(b"evil.example")), Malformed("extension 0 stands twice"),
                     id="two server_name extensions"),
        pytest.param(hello(extension(GREASE, b""), extension(GREASE, b"")), Malformed("extension 14906 stands twice"),
                     id="an unknown extension twice"),
        pytest.param(hello(extension(ALPN, b"")), WRONG_LENGTH, id="ALPN without a list"),
        pytest.param(hello(sni(b"github.com"), extension(ALPN, vector(2, b"\x03h2"))), WRONG_LENGTH,
                     id="an ALPN name past its list"),
        pytest.param(hello(sni(b"")), Malformed("the server name is not a host name: the name is empty"),
                     id="an empty name"),
        pytest.param(hello(sni(b"192.0.2.1")),
                     Malformed("the server name is not a host name: it is an address, not a name"), id="an address"),
        pytest.param(hello(sni(b"github.com\0.evil.example")),
                     Malformed("the server name is not a host name: " + LETTERS), id="a zero byte"),
        pytest.param(hello(sni(b"::1")),
                     Malformed("the server name is not a host name: " + LETTERS), id="an IPv6 address"),
        pytest.param(hello(sni("bücher.de".encode())), Malformed("the server name is not ASCII"), id="not ASCII"),
    ],
)  # fmt: skip
def test_a_broken_hello_is_refused_with_the_reason(message: bytes, answer: Malformed) -> None:
    check_answer(records(message), answer)


def test_a_hello_cut_short_anywhere_is_refused() -> None:
    body = A_HELLO[4:]
    before_extensions = 2 + 32 + 33 + 6 + 2
    for length in range(len(body)):
        answer, _ = feed([records(handshake(body[:length]))])
        if length == before_extensions:
            assert answer == Nameless()
        else:
            assert isinstance(answer, Malformed)
            assert answer.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        pytest.param(record(b""), Malformed("an empty TLS record"), id="an empty record"),
        pytest.param(
            record(A_HELLO[:9]) + record(b"") + record(A_HELLO[9:]),
            Malformed("an empty TLS record"),
            id="an empty record in the middle",
        ),
        pytest.param(
            record(bytes(16385)), Malformed("a TLS record longer than 16 KiB"), id="a record one byte over 16 KiB"
        ),
        pytest.param(
            record(A_HELLO[:9]) + CHANGE_CIPHER_SPEC + record(A_HELLO[9:]),
            Malformed("a record of type 20 inside the ClientHello"),
            id="a change_cipher_spec in the middle",
        ),
        pytest.param(
            record(A_HELLO[:9]) + EARLY_DATA,
            Malformed("a record of type 23 inside the ClientHello"),
            id="application data in the middle",
        ),
        pytest.param(
            record(A_HELLO[:9]) + b"\x15\x03\x01\0\x02\x02\x5a",
            Malformed("a record of type 21 inside the ClientHello"),
            id="an alert in the middle",
        ),
        pytest.param(
            record(A_HELLO[:9]) + record(A_HELLO[9:], version=b"\x02\x00"),
            Malformed("a record of another protocol version inside the ClientHello"),
            id="another version in the middle",
        ),
        pytest.param(record(b"\x01\x01\0\0"), TOO_LONG, id="the handshake header says more than 64 KiB"),
        pytest.param(record(b"\x01\x00\xff\xfd"), TOO_LONG, id="the handshake header says one byte more than 64 KiB"),
    ],
)
def test_broken_records_are_refused_with_the_reason(data: bytes, answer: Malformed) -> None:
    check_answer(data, answer)


def test_a_hello_longer_than_64_kib_with_its_record_headers_is_refused() -> None:
    message = hello(sni(b"github.com"), extension(PADDING, bytes(12_000)))
    data = records(message, 1)
    assert len(message) < MAX_HELLO < len(data)
    check_answer(data, TOO_LONG)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(b"", id="nothing before it"),
        pytest.param(CHANGE_CIPHER_SPEC, id="change_cipher_spec"),
        pytest.param(EARLY_DATA * 3 + CHANGE_CIPHER_SPEC, id="0-RTT data and change_cipher_spec"),
        pytest.param(record(bytes(16384 + 256), 23, b"\x03\x03"), id="the longest encrypted record"),
    ],
)
def test_a_second_hello_is_read_after_what_may_come_before(before: bytes) -> None:
    check_complete(before + records(A_HELLO, 100), GITHUB, second=True)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        pytest.param(b"SSH-2.0-x", Malformed("a record of type 83 inside the ClientHello"), id="another protocol"),
        pytest.param(
            CHANGE_CIPHER_SPEC + b"\x16\x02",
            Malformed("a record of another protocol version inside the ClientHello"),
            id="another version",
        ),
        pytest.param(
            record(A_HELLO[:9]) + CHANGE_CIPHER_SPEC,
            Malformed("a record of type 20 inside the ClientHello"),
            id="change_cipher_spec in the middle",
        ),
        pytest.param(
            record(bytes(16384 + 257), 23, b"\x03\x03"),
            Malformed("a TLS record longer than 16 KiB"),
            id="an encrypted record that is too long",
        ),
        pytest.param(EARLY_DATA * 2000, TOO_LONG, id="0-RTT data without end"),
        pytest.param(
            CHANGE_CIPHER_SPEC + records(hello(sni(b"github.com", b"evil.example"))),
            Malformed("more than one server name", Reason.AMBIGUOUS),
            id="two names",
        ),
    ],
)
def test_a_broken_second_hello_is_refused_with_the_reason(data: bytes, answer: Malformed) -> None:
    check_answer(data, answer, second=True)


# An independent reading of the same bytes, for comparison: plain and strict, all at once.


class Refused(Exception):
    pass


def split(data: bytes, octets: int) -> tuple[bytes, bytes]:
    """A vector and what follows it."""
    length = int.from_bytes(data[:octets])
    if len(data) < octets + length:
        raise Refused
    return data[octets : octets + length], data[octets + length :]


def strict_name(message: bytes) -> str | None:
    """The name in a whole ClientHello. Raises Refused."""
    body, after = split(message[1:], 3)
    if message[0] != 1 or after or len(body) < 35 or body[0] != 3:
        raise Refused
    session, body = split(body[34:], 1)
    suites, body = split(body, 2)
    compressions, body = split(body, 1)
    if len(session) > 32 or not suites or len(suites) % 2 or not compressions:
        raise Refused
    if not body:
        return None
    listed, after = split(body, 2)
    found: list[tuple[bytes, bytes]] = []
    while listed:
        kind = listed[:2]
        value, listed = split(listed[2:], 2)
        found.append((kind, value))
    if after or len(dict(found)) != len(found):
        raise Refused
    if b"\0\0" not in dict(found):
        return None
    names, after = split(dict(found)[b"\0\0"], 2)
    name, more = split(names[1:], 2)
    if after or more or names[:1] != b"\0" or not re.fullmatch(rb"[A-Za-z0-9._-]+", name):
        raise Refused
    return name.decode().lower().removesuffix(".")


names = st.sampled_from([b"github.com", b"GitHub.com.", b"a_b.example", b"xn--bcher-kva.de", b"a-b.c", b"x"])
extensions = st.lists(
    st.one_of(
        st.builds(sni, names),
        st.builds(alpn, st.binary(min_size=1, max_size=4), st.just(b"h2")),
        st.builds(extension, st.integers(20, 23) | st.integers(0, 65535), st.binary(max_size=20)),
    ),
    max_size=5,
)
messages = st.builds(
    lambda found, session: hello(*found, session=vector(1, session)), extensions, st.binary(max_size=33)
)
edits = st.lists(st.tuples(st.integers(4, 400), st.integers(0, 255)), max_size=3)


def edited(message: bytes, changes: list[tuple[int, int]]) -> bytes:
    result = bytearray(message)
    for at, value in changes:
        result[4 + at % (len(result) - 4)] = value
    return bytes(result)


@settings(max_examples=300)
@given(messages, edits, st.integers(1, 200))
def test_another_strict_parser_agrees_on_the_name(message: bytes, changes: list[tuple[int, int]], size: int) -> None:
    message = edited(message, changes)
    answer, _ = feed([records(message, size)])
    try:
        expected = strict_name(message)
    except Refused:
        assert isinstance(answer, Malformed)
        return
    if isinstance(answer, Named):
        assert answer.name == expected
    elif isinstance(answer, Nameless):
        assert expected is None
    else:  # stricter still: ALPN, and the rules for labels
        assert isinstance(answer, Malformed)
        assert changes or b"\0\x10" in message


@settings(max_examples=300)
@given(st.binary(max_size=300) | messages.map(records), edits, st.lists(st.integers(1, 90)), st.booleans())
def test_any_bytes_in_any_pieces_have_one_answer(
    data: bytes, changes: list[tuple[int, int]], sizes: list[int], second: bool
) -> None:
    if len(data) > 4:
        data = edited(data, changes)
    pieces = []
    rest = data
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    whole = feed([data], second)
    chunked = feed([*pieces, rest], second)
    assert isinstance(whole[0], NeedMore | NotMine | Nameless | Named | Malformed)
    assert chunked[0] == whole[0]
    if not isinstance(whole[0], Malformed):
        assert chunked[1] == whole[1]
