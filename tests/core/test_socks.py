"""SOCKS4, 4a and 5: every way to ask, every way to ask wrongly, and what the client is told."""

import errno
from ipaddress import IPv4Address, IPv6Address

import pytest

from proxyfw.core.sniffed import Malformed, NeedMore
from proxyfw.core.socks import Answer, Request, Socks4, Socks5
from proxyfw.core.verdict import Deny, Reason

AFTER = b"\x16\x03\x01 what the client sends next"
NO_PASSWORD = b"\x05\x01\x00"
TAKEN = b"\x05\x00"
NOT_TAKEN = b"\x05\xff"
LETTERS = "only letters, digits, hyphens, underscores and dots may be in a name"
NOT_A_NAME = "the host's name is not a host name: "


def pieces_of(data: bytes) -> dict[str, list[bytes]]:
    return {"whole": [data], "byte by byte": [data[at : at + 1] for at in range(len(data))], "more": [data + AFTER]}


def feed(socks: Socks4 | Socks5, pieces: list[bytes]) -> tuple[bytes, Answer]:
    """All that was sent to the client, and the final answer, or NeedMore."""
    sent = b""
    answer: Answer = NeedMore()
    for piece in pieces:
        reply, answer = socks.feed(piece)
        sent += reply
        if answer != NeedMore():
            break
    return sent, answer


def check_complete(kind: type[Socks4 | Socks5], data: bytes, host: object, port: int) -> None:
    """Whole, byte by byte and with bytes after it: the same answer, at the last byte."""
    greeting = TAKEN if kind is Socks5 else b""
    for cut, pieces in pieces_of(data).items():
        rest = AFTER if cut == "more" else b""
        assert feed(kind(), pieces) == (greeting, Request(host, port, rest)), cut
    for end in range(1, len(data)):
        assert feed(kind(), [data[:end]])[1] == NeedMore()


def check_refused(kind: type[Socks4 | Socks5], data: bytes, answer: Malformed, sent: bytes, reply: bytes) -> None:
    """Whole, byte by byte and with bytes after it: the same answer, and what the client is told."""
    for cut, pieces in pieces_of(data).items():
        socks = kind()
        assert feed(socks, pieces) == (sent, answer), cut
        assert socks.refusal(Deny(answer.reason)) == reply


def asked_5(kind: int, address: bytes, port: int = 443, command: int = 1, reserved: int = 0, version: int = 5) -> bytes:
    return bytes([version, command, reserved, kind]) + address + port.to_bytes(2)


def name_5(name: bytes, port: int = 443) -> bytes:
    return asked_5(3, bytes([len(name)]) + name, port)


def answered_5(code: int) -> bytes:
    return bytes([5, code, 0, 1]) + bytes(6)


LONGEST = b".".join([b"a" * 63] * 3 + [b"b" * 61])

HOSTS = [
    pytest.param(b"github.com", "github.com", id="a name"),
    pytest.param(b"GitHub.COM.", "github.com", id="case and trailing dot"),
    pytest.param(b"xn--bcher-kva.example", "xn--bcher-kva.example", id="an A-label"),
    pytest.param(b"x", "x", id="one letter"),
    pytest.param(LONGEST, LONGEST.decode(), id="the longest name"),
    pytest.param(b"192.0.2.1", IPv4Address("192.0.2.1"), id="an IPv4 address as text"),
    pytest.param(b"0.0.0.0", IPv4Address("0.0.0.0"), id="the unspecified address as text"),
    pytest.param(b"2001:DB8::1", IPv6Address("2001:db8::1"), id="an IPv6 address as text"),
    pytest.param(b"::ffff:192.0.2.1", IPv6Address("::ffff:192.0.2.1"), id="an IPv4-mapped address as text"),
]

BAD_HOSTS = [
    pytest.param(b"", NOT_A_NAME + "the name is empty", id="an empty name"),
    pytest.param(b".", NOT_A_NAME + "the name is empty", id="a dot alone"),
    pytest.param("bücher.example".encode(), "the host's name is not ASCII", id="UTF-8"),
    pytest.param(b"a b", NOT_A_NAME + LETTERS, id="a space"),
    pytest.param(b"good.example\r\nevil.example", NOT_A_NAME + LETTERS, id="a line feed"),
    pytest.param(b"good.example:443", NOT_A_NAME + LETTERS, id="a port"),
    pytest.param(b"good.example/", NOT_A_NAME + LETTERS, id="a slash"),
    pytest.param(b"user@good.example", NOT_A_NAME + LETTERS, id="an at sign"),
    pytest.param(b"[::1]", NOT_A_NAME + LETTERS, id="an IPv6 address in brackets"),
    pytest.param(b"fe80::1%eth0", NOT_A_NAME + LETTERS, id="an IPv6 address with a zone"),
    pytest.param(b"127.1", NOT_A_NAME + "it is an address, not a name", id="a short address"),
    pytest.param(b"0x7f.1", NOT_A_NAME + "it is an address, not a name", id="an address in hex"),
    pytest.param(b"127.0.0.1.", NOT_A_NAME + "it is an address, not a name", id="an address with a trailing dot"),
    pytest.param(b"0177.0.0.1", NOT_A_NAME + "it is an address, not a name", id="an address in octal"),
    pytest.param(b"2130706433", NOT_A_NAME + "it is an address, not a name", id="an address as one number"),
    pytest.param(b"a..b", NOT_A_NAME + "a label is empty (two dots in a row, or a dot at the start)", id="two dots"),
    pytest.param(b"a" * 64 + b".example", NOT_A_NAME + "a label is longer than 63 characters", id="a long label"),
    pytest.param(LONGEST + b"c", NOT_A_NAME + "the name is longer than 253 characters", id="a long name"),
]


# SOCKS5


@pytest.mark.parametrize(("name", "host"), HOSTS)
def test_socks5_asks_for_a_host_by_text(name: bytes, host: object) -> None:
    check_complete(Socks5, NO_PASSWORD + name_5(name), host, 443)


@pytest.mark.parametrize(
    ("data", "host", "port"),
    [
        pytest.param(asked_5(1, bytes([192, 0, 2, 1]), 22), IPv4Address("192.0.2.1"), 22, id="IPv4"),
        pytest.param(asked_5(1, bytes(4)), IPv4Address("0.0.0.0"), 443, id="the unspecified IPv4 address"),
        pytest.param(
            asked_5(4, IPv6Address("2001:db8::1").packed, 65535), IPv6Address("2001:db8::1"), 65535, id="IPv6"
        ),
        pytest.param(
            asked_5(4, IPv6Address("::ffff:192.0.2.1").packed, 1),
            IPv6Address("::ffff:192.0.2.1"),
            1,
            id="an IPv4-mapped address stays what it is",
        ),
    ],
)
def test_socks5_asks_for_an_address(data: bytes, host: object, port: int) -> None:
    check_complete(Socks5, NO_PASSWORD + data, host, port)


@pytest.mark.parametrize(
    "greeting",
    [
        pytest.param(b"\x05\x03\x01\x02\x00", id="no password is the last offer"),
        pytest.param(b"\x05\x02\x00\x00", id="offered twice"),
        pytest.param(b"\x05\xff" + bytes(range(255, 0, -1))[:254] + b"\0", id="255 methods"),
    ],
)
def test_socks5_greetings(greeting: bytes) -> None:
    check_complete(Socks5, greeting + name_5(b"github.com"), "github.com", 443)


@pytest.mark.parametrize(
    ("greeting", "detail"),
    [
        pytest.param(
            b"\x05\x01\x02",
            "the client insists on a password: there is none, leave user and password out",
            id="a password",
        ),
        pytest.param(b"\x05\x01\x01", "the client offers no way in without authentication", id="GSSAPI"),
        pytest.param(b"\x05\x01\xff", "the client offers no way in without authentication", id="method 255"),
        pytest.param(b"\x05\x00", "the client offers no way in without authentication", id="no method"),
    ],
)
def test_socks5_without_a_method_that_serves(greeting: bytes, detail: str) -> None:
    check_refused(Socks5, greeting, Malformed(detail), b"", NOT_TAKEN)


@pytest.mark.parametrize(
    ("request_", "answer", "code"),
    [
        pytest.param(
            asked_5(1, bytes(4), 0, command=2),
            Malformed("SOCKS BIND is not done here, only CONNECT", Reason.UNSUPPORTED),
            7,
            id="BIND",
        ),
        pytest.param(
            asked_5(1, bytes(4), 0, command=3),
            Malformed("SOCKS UDP ASSOCIATE is not done here, only CONNECT", Reason.UNSUPPORTED),
            7,
            id="UDP ASSOCIATE",
        ),
        pytest.param(asked_5(1, bytes(4), command=0), Malformed("an unknown SOCKS command: 0"), 7, id="command 0"),
        pytest.param(
            asked_5(1, bytes(4), command=0xF0), Malformed("an unknown SOCKS command: 240"), 7, id="Tor's RESOLVE"
        ),
        pytest.param(
            asked_5(1, bytes([192, 0, 2, 1]), version=4),
            Malformed("the greeting was of SOCKS5, and the request is not"),
            1,
            id="another version",
        ),
        pytest.param(
            asked_5(1, bytes([192, 0, 2, 1]), reserved=1),
            Malformed("the reserved byte of the request is not zero"),
            1,
            id="the reserved byte",
        ),
        pytest.param(asked_5(2, bytes(4)), Malformed("an unknown type of address: 2"), 8, id="type 2"),
        pytest.param(asked_5(0, bytes(4)), Malformed("an unknown type of address: 0"), 8, id="type 0"),
        pytest.param(asked_5(1, bytes([192, 0, 2, 1]), 0), Malformed("the port is 0"), 1, id="port 0 of an address"),
        pytest.param(name_5(b"github.com", 0), Malformed("the port is 0"), 1, id="port 0 of a name"),
    ],
)
def test_socks5_requests_that_are_refused(request_: bytes, answer: Malformed, code: int) -> None:
    check_refused(Socks5, NO_PASSWORD + request_, answer, TAKEN, answered_5(code))


@pytest.mark.parametrize(("name", "detail"), BAD_HOSTS)
def test_socks5_names_that_are_refused(name: bytes, detail: str) -> None:
    check_refused(Socks5, NO_PASSWORD + name_5(name), Malformed(detail), TAKEN, answered_5(1))


def test_socks5_is_greeted_before_it_asks() -> None:
    socks = Socks5()
    assert socks.feed(b"\x05\x01") == (b"", NeedMore())
    assert socks.feed(b"\0") == (TAKEN, NeedMore())
    assert socks.feed(name_5(b"github.com")) == (b"", Request("github.com", 443, b""))
    assert socks.success() == answered_5(0)


REFUSALS = {
    2: [
        Deny(Reason.NO_MATCH),
        Deny(Reason.NO_NAME),
        Deny(Reason.QUBES_RULE),
        Deny(Reason.INTERNAL_ADDRESS),
        Deny(Reason.PRIVATE_ADDRESS),
        Deny(Reason.CANARY),
        Deny(Reason.UNKNOWN_CLIENT),
        Deny(Reason.UNSUPPORTED),
    ],
    3: [Deny(Reason.UNREACHABLE, error=errno.ENETUNREACH)],
    4: [
        Deny(Reason.UNRESOLVABLE),
        Deny(Reason.DNS_FAILURE),
        Deny(Reason.UNREACHABLE),
        Deny(Reason.UNREACHABLE, error=errno.EHOSTUNREACH),
        Deny(Reason.UNREACHABLE, error=errno.ETIMEDOUT),
    ],
    5: [Deny(Reason.UNREACHABLE, error=errno.ECONNREFUSED)],
    1: [
        Deny(Reason.MALFORMED),
        Deny(Reason.TIMEOUT),
        Deny(Reason.LIMIT),
        Deny(Reason.ERROR),
        Deny(Reason.UPSTREAM_PROXY),
        Deny(Reason.UPSTREAM_PROXY, error=errno.ECONNREFUSED),
    ],
}


@pytest.mark.parametrize(
    ("deny", "code"), [pytest.param(deny, code, id=str(deny)) for code, of in REFUSALS.items() for deny in of]
)
def test_what_a_refused_client_is_told(deny: Deny, code: int) -> None:
    socks5, socks4 = Socks5(), Socks4()
    feed(socks5, [NO_PASSWORD + name_5(b"github.com")])
    feed(socks4, [asked_4(b"\0\0\0\1", b"", b"github.com")])
    assert socks5.refusal(deny) == answered_5(code)
    assert socks4.refusal(deny) == REFUSED_4


def test_a_greeting_that_stays_incomplete_is_refused_as_a_greeting() -> None:
    socks = Socks5()
    socks.feed(b"\x05\x02\x00")
    assert socks.refusal(Deny(Reason.TIMEOUT)) == NOT_TAKEN


# SOCKS4 and 4a

REFUSED_4 = bytes.fromhex("005b000000000000")
NAMED = b"\0\0\0\1"


def asked_4(address: bytes, user: bytes = b"", name: bytes | None = None, port: int = 443, command: int = 1) -> bytes:
    ending = b"" if name is None else name + b"\0"
    return bytes([4, command]) + port.to_bytes(2) + address + user + b"\0" + ending


@pytest.mark.parametrize(
    ("data", "host", "port"),
    [
        pytest.param(asked_4(bytes([192, 0, 2, 1]), port=22), IPv4Address("192.0.2.1"), 22, id="without a user"),
        pytest.param(asked_4(bytes([192, 0, 2, 1]), b"user\xff"), IPv4Address("192.0.2.1"), 443, id="with a user"),
        pytest.param(asked_4(bytes([192, 0, 2, 1]), b"u" * 255), IPv4Address("192.0.2.1"), 443, id="255 bytes of user"),
        pytest.param(asked_4(bytes(4)), IPv4Address("0.0.0.0"), 443, id="0.0.0.0 is an address"),
        pytest.param(asked_4(b"\0\0\1\0"), IPv4Address("0.0.1.0"), 443, id="0.0.1.0 is an address"),
        pytest.param(asked_4(b"\1\0\0\1"), IPv4Address("1.0.0.1"), 443, id="1.0.0.1 is an address"),
        pytest.param(asked_4(b"\0\0\0\xff", b"user", b"github.com", 65535), "github.com", 65535, id="0.0.0.255"),
    ],
)
def test_socks4_asks_for_a_host(data: bytes, host: object, port: int) -> None:
    check_complete(Socks4, data, host, port)


@pytest.mark.parametrize(("name", "host"), HOSTS)
def test_socks4a_asks_for_a_host_by_text(name: bytes, host: object) -> None:
    check_complete(Socks4, asked_4(NAMED, b"", name), host, 443)


@pytest.mark.parametrize(("name", "detail"), BAD_HOSTS)
def test_socks4a_names_that_are_refused(name: bytes, detail: str) -> None:
    check_refused(Socks4, asked_4(NAMED, b"user", name), Malformed(detail), b"", REFUSED_4)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        pytest.param(
            asked_4(bytes([192, 0, 2, 1]), command=2),
            Malformed("SOCKS BIND is not done here, only CONNECT", Reason.UNSUPPORTED),
            id="BIND",
        ),
        pytest.param(
            asked_4(bytes([192, 0, 2, 1]), command=3), Malformed("an unknown SOCKS command: 3"), id="command 3"
        ),
        pytest.param(asked_4(bytes([192, 0, 2, 1]), port=0), Malformed("the port is 0"), id="port 0"),
        pytest.param(
            asked_4(bytes([192, 0, 2, 1]), b"u" * 256),
            Malformed("the user's name is longer than 255 bytes", Reason.OVERSIZED),
            id="256 bytes of user",
        ),
        pytest.param(
            asked_4(bytes([192, 0, 2, 1]))[:8] + b"u" * 256,
            Malformed("the user's name is longer than 255 bytes", Reason.OVERSIZED),
            id="256 bytes of user, and no end",
        ),
        pytest.param(
            asked_4(NAMED, b"", b"a" * 256),
            Malformed("the host's name is longer than 255 bytes", Reason.OVERSIZED),
            id="256 bytes of name",
        ),
    ],
)
def test_socks4_requests_that_are_refused(data: bytes, answer: Malformed) -> None:
    check_refused(Socks4, data, answer, b"", REFUSED_4)


def test_socks4_that_stands() -> None:
    assert Socks4().success() == bytes.fromhex("005a000000000000")
