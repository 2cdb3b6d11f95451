"""ClientHellos made by hand: cut to pieces, broken, too large, too late; each has its own verdict and reason."""

import socket
from contextlib import ExitStack

import pytest

from lab.hellos import (
    ACCESS_DENIED,
    DECODE_ERROR,
    hello,
    message,
    records,
    retry_request,
    server_names,
    session_of,
)
from lab.sockets import Server, connect, echo, read_all, read_until
from lab.world import RAW4, RAW6

GITHUB, GITHUB6, EVIL = "198.51.100.10", "2001:db8:1::10", "198.51.100.66"
SERVER_HELLO = b"\x16\x03\x03"
LONG_EXTENSION = b"\x00\x63\xfd\xe8" + bytes(65000)
LIMIT = 7.0  # seconds: the deadline of 5, and what a slow machine needs


def pieces(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


def two_hellos_in_one_record(name):
    return records(message(name) + message(name))


WAYS = [
    pytest.param(lambda name: [hello(name)], id="in one segment"),
    pytest.param(lambda name: pieces(hello(name), 1), id="byte by byte"),
    pytest.param(lambda name: [records(message(name), 7)], id="in records of seven bytes"),
    pytest.param(lambda name: pieces(records(message(name), 3), 2), id="in tiny records and segments"),
    pytest.param(lambda name: [hello(name, post_quantum=True)], id="with a post-quantum share"),
    pytest.param(lambda name: pieces(hello(name, post_quantum=True), 1400), id="post-quantum, in two segments"),
    pytest.param(lambda name: pieces(hello(name, post_quantum=True), 1), id="post-quantum, byte by byte"),
    pytest.param(lambda name: [hello(name.upper() + ".")], id="in capitals, with the closing dot"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("address", [GITHUB, GITHUB6], ids=["IPv4", "IPv6"])
def test_however_a_permitted_hello_is_cut_it_reaches_its_server(lab, log, way, address):
    with connect(lab, "work", address, 443) as sock:
        for piece in way("github.com"):
            sock.sendall(piece)
        assert sock.recv(3) == SERVER_HELLO

    log.expect(name="github.com", verdict="allow", reason="domain", destination=address)


@pytest.mark.parametrize("way", WAYS)
def test_however_a_refused_hello_is_cut_it_is_refused(lab, log, arrived, way):
    with connect(lab, "work", EVIL, 443) as sock:
        for piece in way("evil.example"):
            sock.sendall(piece)
        assert read_all(sock) == ACCESS_DENIED

    log.expect(name="evil.example", verdict="deny", reason="no-match")
    assert not arrived("broken")


def test_the_post_quantum_hello_is_of_a_browsers_size():
    assert 1600 < len(hello("github.com", post_quantum=True)) < 1900


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        pytest.param(hello("github.com", "evil.example"), "ambiguous", "more than one server name", id="two names"),
        pytest.param(
            records(message("github.com", more=server_names("evil.example"))),
            "malformed",
            "extension 0 stands twice",
            id="two lists of names",
        ),
        pytest.param(
            hello("198.51.100.10"),
            "malformed",
            "the server name is not a host name: it is an address, not a name",
            id="an address as the name",
        ),
        pytest.param(
            hello("git hub.com"),
            "malformed",
            "the server name is not a host name: only letters, digits, hyphens, underscores and dots may be in a name",
            id="a space in the name",
        ),
        pytest.param(
            two_hellos_in_one_record("github.com"),
            "malformed",
            "handshake bytes after the ClientHello",
            id="two hellos in one record",
        ),
        pytest.param(
            records(message("github.com")[:100]) + b"garbage",
            "malformed",
            "a record of type 103 inside the ClientHello",
            id="garbage between the records of a hello",
        ),
        pytest.param(b"\x16\x03\x01\x00\x00" * 3, "malformed", "an empty TLS record", id="empty records"),
        pytest.param(b"\x16\x03\x01\x48\x00", "malformed", "a TLS record longer than 16 KiB", id="a record too long"),
        pytest.param(
            records(b"\x01" + (1 << 17).to_bytes(3) + message("github.com")[4:]),
            "oversized",
            "the ClientHello is longer than 64 KiB",
            id="a hello that says it is longer than 64 KiB",
        ),
        pytest.param(
            records(message("github.com", more=LONG_EXTENSION), 100),
            "oversized",
            "the ClientHello is longer than 64 KiB",
            id="so many records that they are longer than 64 KiB",
        ),
    ],
)
def test_a_broken_hello_has_its_own_reason(lab, log, arrived, data, reason, detail):
    with connect(lab, "work", GITHUB, 443) as sock:
        sock.sendall(data)
        assert read_all(sock) == DECODE_ERROR

    row = log.expect(client="work", verdict="deny", destination=GITHUB)
    assert (row["reason"], row["detail"], row["protocol"]) == (reason, detail, "tls")
    assert not arrived("broken")


def test_a_hello_without_a_name_is_refused(lab, log):
    with connect(lab, "work", GITHUB, 443) as sock:
        sock.sendall(hello())
        assert read_all(sock) == ACCESS_DENIED

    log.expect(client="work", verdict="deny", reason="no-name", protocol="tls")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="SSH"),
        pytest.param(b"\0\x01\x02\x03", id="garbage"),
        pytest.param(b"\x80\x2e\x01\x00\x02", id="SSL 2"),
    ],
)
def test_what_names_nothing_is_reset(lab, log, data):
    with connect(lab, "work", GITHUB, 443) as sock:
        sock.sendall(data)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)

    log.expect(client="work", verdict="deny", reason="no-name", protocol="tcp")


def test_garbage_after_a_whole_hello_goes_only_to_the_named_server(lab, log):
    first = hello("raw.lab.example")

    def answer_and_read(sock):
        got = sock.recv(65536)
        sock.sendall(b"answer")
        return got + read_all(sock)

    with Server(lab, RAW4, 443, answer_and_read) as server, connect(lab, "work", RAW4, 443) as sock:
        sock.sendall(first + b"garbage")
        assert sock.recv(6) == b"answer"
        sock.close()
        assert server.result() == first + b"garbage"

    log.expect(name="raw.lab.example", verdict="allow", bytes_up=len(first) + 7, bytes_down=6, closed_by="client")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "silent", id="before its first byte"),
        pytest.param(hello("github.com")[:50], "malformed", id="inside the hello"),
    ],
)
def test_a_client_that_ends_early_is_logged(lab, log, data, reason):
    with connect(lab, "work", GITHUB, 443) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        read_all(sock)

    log.expect(client="work", verdict="deny", reason=reason)


def drip(sock, data):
    """Sends a byte whenever a while has passed without an answer; the answer."""
    sock.settimeout(0.2)
    for byte in data[: int(2 * LIMIT / 0.2)]:
        sock.sendall(bytes([byte]))
        try:
            return sock.recv(100)
        except TimeoutError:
            continue
    raise AssertionError("it could go on for ever")


def test_silent_and_slow_clients_are_cut_off_while_others_go_on(lab, log):
    with ExitStack() as stack:
        server = stack.enter_context(Server(lab, RAW4, 443, echo))
        neighbour = stack.enter_context(connect(lab, "work", RAW4, 443))
        neighbour.sendall(hello("raw.lab.example"))
        read_until(neighbour, b"raw.lab.example")
        silent, stalled, slow = (stack.enter_context(connect(lab, "work", GITHUB, port)) for port in (443, 8443, 9443))
        stalled.sendall(hello("github.com")[:-1])

        assert drip(slow, hello("github.com")) == ACCESS_DENIED
        assert read_all(stalled) == ACCESS_DENIED
        with pytest.raises(ConnectionResetError):
            silent.recv(1)
        neighbour.sendall(b"still here")
        assert read_until(neighbour, b"still here").endswith(b"still here")
        neighbour.close()
        assert server.result().endswith(b"still here")

    assert log.expect(client="work", verdict="deny", port=443)["reason"] == "silent"
    assert log.expect(client="work", verdict="deny", port=8443)["reason"] == "timeout"
    assert log.expect(client="work", verdict="deny", port=9443)["reason"] == "timeout"


@pytest.mark.parametrize(
    ("second", "detail"),
    [
        pytest.param(
            hello("evil.example"), "the second ClientHello does not name raw.lab.example again", id="another name"
        ),
        pytest.param(hello(), "the second ClientHello does not name raw.lab.example again", id="no name"),
        pytest.param(hello("raw.lab.example", "evil.example"), "more than one server name", id="two names"),
    ],
)
def test_a_second_hello_with_another_name_never_reaches_the_server(lab, log, second, detail):
    first = hello("raw.lab.example")

    def ask_again(sock):
        got = sock.recv(65536)
        sock.sendall(retry_request(session_of(got)))
        return got, read_all(sock)

    with Server(lab, RAW4, 443, ask_again) as server, connect(lab, "work", RAW4, 443) as sock:
        sock.sendall(first)
        retry = retry_request(session_of(first))
        assert sock.recv(len(retry)) == retry
        sock.sendall(second)
        assert read_all(sock) == DECODE_ERROR
        assert server.result() == (first, b"")

    log.expect(client="work", verdict="deny", reason="ambiguous", detail=detail)


def test_a_second_hello_with_the_same_name_passes_however_it_is_cut(lab):
    first, second = hello("raw.lab.example"), hello("raw.lab.example")
    change_cipher_spec = bytes.fromhex("140303000101")

    def ask_again(sock):
        got = sock.recv(65536)
        sock.sendall(retry_request(session_of(got)))
        return got, read_all(sock)

    with Server(lab, RAW6, 443, ask_again) as server, connect(lab, "work", RAW6, 443) as sock:
        sock.sendall(first)
        read_until(sock, retry_request(session_of(first))[-6:])
        for piece in pieces(change_cipher_spec + second, 1):
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        assert server.result() == (first, change_cipher_spec + second)
