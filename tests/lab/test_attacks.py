"""What a hostile client tried, and must not get: bytes out, others' service, descriptors, a log full of noise."""

import os
import socket
import time
from contextlib import suppress

import pytest

from lab import control
from lab.hellos import hello
from lab.impatient import SNIFF_DEADLINE
from lab.packets import put_on_the_wire, udp_packet
from lab.sockets import Server, connect, echo, eventually, read_all, read_until, socket_in
from lab.world import AT_HOME, NOBODY, NOT_THERE, OPEN4, PROFILES, RAW4
from proxyfw.proxy import MAX_UNDECIDED


def descriptors(lab):
    return len(os.listdir(f"/proc/{lab.service.pid}/fd"))


@pytest.mark.parametrize("aim", ["198.51.100.66", "10.137.0.5"], ids=["a refused address", "the netvm"])
def test_a_refusal_carries_nothing_to_a_made_up_source(lab, log, aim):
    with socket_in(lab.network.internet, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as ear:
        put_on_the_wire(lab, "study", udp_packet(NOBODY, aim, 7777, b"a secret"))
        log.expect(destination=aim, port=7777, reason="unknown-client")
        ear.setblocking(False)
        heard = b""
        while True:
            try:
                heard += ear.recv(2048)
            except BlockingIOError:
                break
    assert b"a secret" not in heard


def test_a_flood_from_made_up_sources_is_counted_and_does_not_fill_the_log(lab, log):
    before = control.status(lab)["log"]["packets_not_logged"]
    made_up = (udp_packet(f"192.0.2.{number % 250 + 1}", OPEN4, 4000 + number) for number in range(600))
    put_on_the_wire(lab, "noisy", *made_up)
    unlogged = eventually(lambda: control.status(lab)["log"]["packets_not_logged"] - before or None)
    assert unlogged
    assert len([row for row in log.rows() if row["reason"] == "unknown-client"]) < 600


def test_a_client_that_resets_while_its_second_host_is_dialled_leaves_nothing_behind(spare_lab, spare_log):
    lab = spare_lab
    assert lab.curl("work", "https://github.com/").returncode == 0  # what is opened once is open now
    before = descriptors(lab)
    for _ in range(5):
        sock = connect(lab, "work", "198.51.100.10", 80)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: github.com\r\n\r\n")
        assert b"reached github.com" in read_until(sock, b"SNI none)")
        sock.sendall(b"GET / HTTP/1.1\r\nHost: half-dead.lab.example\r\n\r\n")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
    assert eventually(lambda: descriptors(lab) <= before, 6.0)
    assert all(c["connections"] == 0 for c in control.status(lab)["clients"])

    def all_closed():
        rows = [row for row in spare_log.rows() if row["verdict"] == "allow" and row["protocol"] != "dns"]
        return rows and all(row["closed_by"] for row in rows)

    assert eventually(all_closed), spare_log.rows()


def test_bytes_that_trickle_in_do_not_put_off_the_deadline(hasty_lab, hasty_log):
    """A hello that grows by a byte each few milliseconds for ever."""
    with connect(hasty_lab, "work", "198.51.100.10", 443) as sock:
        sock.sendall(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03")
        until = time.monotonic() + 5 * SNIFF_DEADLINE
        with suppress(ConnectionError):
            while time.monotonic() < until:
                sock.sendall(b"\0")
                time.sleep(0.003)  # the attack itself, not a wait
        assert time.monotonic() < until
    hasty_log.expect(client="work", verdict="deny", reason="timeout")


def test_connections_without_a_verdict_are_few_and_another_client_is_served(lab, log):
    socks = []
    try:
        for _ in range(MAX_UNDECIDED + 20):
            with suppress(ConnectionResetError):  # what is beyond the limit, where that is quick
                socks.append(connect(lab, "noisy", NOT_THERE, 443))
        row = log.expect(client="noisy", reason="limit")
        assert row["detail"] == f"{MAX_UNDECIDED} connections of this client are being set up"
        assert lab.curl("work", "https://github.com/").returncode == 0
    finally:
        for sock in socks:
            sock.close()


def test_what_private_true_allowed_is_closed_when_it_goes(spare_lab, spare_log):
    lab = spare_lab
    with Server(lab, AT_HOME, 443, echo), connect(lab, "home", AT_HOME, 443) as sock:
        sock.sendall(hello("server.home.example"))
        assert sock.recv(1) == b"\x16"
        lab.write_profile("home", PROFILES["home"].replace("private: true\n", ""))
        control.reload(lab)
        assert spare_log.closed(name="server.home.example")["closed_by"] == "policy"


def test_a_client_that_never_pauses_leaves_others_their_turn(lab):
    """One-byte chunks without end, for a permitted host; meanwhile another client is served."""
    with Server(lab, RAW4, 80, read_all), connect(lab, "work", RAW4, 80) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: raw.lab.example\r\nTransfer-Encoding: chunked\r\n\r\n")
        sock.setblocking(False)
        chunks = b"1\r\nx\r\n" * 10_000
        for _ in range(20):
            with suppress(BlockingIOError):
                sock.send(chunks)
            assert lab.curl("study", "--max-time", "5", "https://en.wikipedia.org/").returncode == 0
