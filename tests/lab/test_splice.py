"""What is permitted is relayed as TCP is: each side may end first, and the other may go on."""

import hashlib
import os
import socket

import pytest

from lab.hellos import hello
from lab.sockets import Server, connect, read_all, read_until
from lab.world import RAW4, RAW6

HELLO = hello("raw.lab.example")
BOTH = pytest.mark.parametrize("address", [RAW4, RAW6], ids=["IPv4", "IPv6"])


@BOTH
def test_a_server_may_answer_after_the_clients_end(lab, log, address):
    def answer_at_the_end(sock):
        got = read_all(sock)
        sock.sendall(b"all of " + str(len(got)).encode())
        return got

    with Server(lab, address, 443, answer_at_the_end) as server, connect(lab, "work", address, 443) as sock:
        sock.sendall(HELLO)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"all of %d" % len(HELLO)
        assert server.result() == HELLO

    row = log.closed(name="raw.lab.example", verdict="allow")
    assert (row["bytes_up"], row["bytes_down"]) == (len(HELLO), len(b"all of %d" % len(HELLO)))


@BOTH
def test_a_client_may_end_later_and_still_get_its_answer(lab, address):
    def greet_then_answer_at_the_end(sock):
        read_until(sock, HELLO[-8:])
        sock.sendall(b"go on")
        rest = read_all(sock)
        sock.sendall(rest[::-1])
        return rest

    with Server(lab, address, 443, greet_then_answer_at_the_end), connect(lab, "work", address, 443) as sock:
        sock.sendall(HELLO)
        assert sock.recv(5) == b"go on"
        sock.sendall(b"one two three")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"eerht owt eno"


@BOTH
def test_a_client_may_go_on_after_the_servers_end(lab, log, address):
    def answer_and_end(sock):
        read_until(sock, HELLO[-8:])
        sock.sendall(b"that is all")
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)

    with Server(lab, address, 443, answer_and_end) as server, connect(lab, "work", address, 443) as sock:
        sock.sendall(HELLO)
        assert read_all(sock) == b"that is all"
        sock.sendall(b"and yet")
        sock.shutdown(socket.SHUT_WR)
        assert server.result() == b"and yet"

    log.expect(name="raw.lab.example", verdict="allow", closed_by="server")


def test_a_reset_is_passed_on(lab, log):
    def reset(sock):
        read_until(sock, HELLO[-8:])
        sock.sendall(b"hm")
        read_until(sock, b"?")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with Server(lab, RAW4, 443, reset), connect(lab, "work", RAW4, 443) as sock:
        sock.sendall(HELLO)
        assert sock.recv(2) == b"hm"
        sock.sendall(b"?")
        assert read_all(sock) == b""

    log.expect(name="raw.lab.example", closed_by="server", bytes_down=2)


def test_a_client_that_goes_away_takes_the_server_connection_with_it(lab):
    def wait(sock):
        read_until(sock, HELLO[-8:])
        return read_all(sock)

    with Server(lab, RAW4, 443, wait) as server:
        with connect(lab, "work", RAW4, 443) as sock:
            sock.sendall(HELLO)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert server.result() == b""


def test_a_reader_that_is_slow_holds_the_sender_back_and_loses_nothing(lab):
    size = 32 << 20
    data = os.urandom(size)

    def send(sock):
        read_until(sock, HELLO[-8:])
        sock.sendall(data)

    with Server(lab, RAW4, 443, send) as server, connect(lab, "work", RAW4, 443) as sock:
        sock.sendall(HELLO)
        first = sock.recv(1)
        digest = hashlib.sha256(first)
        got = 1
        while piece := sock.recv(16384):
            digest.update(piece)
            got += len(piece)
        assert server.result() is None

    assert (got, digest.digest()) == (size, hashlib.sha256(data).digest())
