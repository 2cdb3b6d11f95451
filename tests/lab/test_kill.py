"""The service killed, stopped and started again: nothing gets through that its policy forbids, at no moment."""

import signal
import threading
from contextlib import ExitStack

import pytest

from lab.hellos import hello
from lab.sockets import PATIENCE, Server, connect, echo, eventually, read_until
from lab.world import OPEN4, OPEN6
from proxyfw.demo.internet import ADDRESS_OF_EVIL
from proxyfw.proxy import DESCRIPTORS_EACH
from proxyfw.startup import SPARE_DESCRIPTORS

BOTH_ENDS = pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])


@BOTH_ENDS
def test_without_the_service_names_are_refused_at_once_and_networks_flow(fresh_lab, number):
    lab = fresh_lab
    with Server(lab, OPEN4, 4321, echo), connect(lab, "work", OPEN4, 4321) as before:
        before.sendall(b"before\n")
        assert read_until(before, b"\n") == b"before\n"

        assert lab.end_service(number) == (-number if number == signal.SIGKILL else 0)

        for host, address in (("evil.example", ADDRESS_OF_EVIL), ("github.com", "198.51.100.10")):
            by_name = lab.curl("work", "--max-time", "2", f"https://{host}/")
            by_hand = lab.curl("work", "--max-time", "2", "--resolve", f"{host}:443:{address}", f"https://{host}/")
            assert (by_name.returncode, by_hand.returncode) == (6, 7)  # neither a look-up nor a connection
        before.sendall(b"and after\n")
        assert read_until(before, b"\n") == b"and after\n"
        with connect(lab, "work", OPEN4, 4321) as new:
            new.sendall(b"new\n")
            assert read_until(new, b"\n") == b"new\n"

        lab.start_service()

        assert lab.curl("work", "https://github.com/").returncode == 0
        assert lab.curl("work", "--max-time", "2", "https://evil.example/").returncode == 35
        before.sendall(b"at last\n")
        assert read_until(before, b"\n") == b"at last\n"
    assert not [request for request in lab.arrived("request") if request["address"] == ADDRESS_OF_EVIL]


@pytest.mark.parametrize("address", [OPEN4, OPEN6], ids=["IPv4", "IPv6"])
def test_a_transfer_through_a_network_goes_on_while_the_service_is_killed_and_restarted(fresh_lab, address):
    lab = fresh_lab
    block, blocks = bytes(range(256)) * 4096, 128

    def send(sock):
        for _ in range(blocks):
            sock.sendall(block)

    def read_blocks(sock, count):
        for _ in range(count):
            data = bytearray()
            while len(data) < len(block):
                piece = sock.recv(len(block) - len(data))
                assert piece, "the transfer ended early"
                data += piece
            assert data == block

    with Server(lab, address, 4321, send), connect(lab, "work", address, 4321) as sock:
        read_blocks(sock, blocks // 4)
        lab.end_service(signal.SIGKILL)
        read_blocks(sock, blocks // 4)
        lab.start_service()
        read_blocks(sock, blocks // 2)
        assert sock.recv(1) == b""


class Prober:
    """Tries a refused name again and again. `tries`: how often; `through`: what came back and was no refusal."""

    def __init__(self, lab):
        self.tries = 0
        self.through = []
        self._lab = lab
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(2 * PATIENCE)

    def goes_on(self):
        """Whether it gets a few more tries done now."""
        enough = self.tries + 5
        return eventually(lambda: self.tries >= enough, PATIENCE)

    def _run(self):
        while not self._stop.is_set():
            try:
                with connect(self._lab, "work", ADDRESS_OF_EVIL, 443) as sock:
                    sock.sendall(hello("evil.example"))
                    answer = sock.recv(1000)
            except OSError:
                answer = b""
            if answer[:1] not in (b"", b"\x15"):
                self.through.append(answer)
            self.tries += 1


@BOTH_ENDS
def test_ten_restarts_leave_no_gap(fresh_lab, number):
    lab = fresh_lab
    with Prober(lab) as prober:
        for _ in range(10):
            lab.end_service(number)
            assert prober.goes_on()
            lab.start_service()
            assert prober.goes_on()

    assert not prober.through
    assert not lab.arrived("broken")
    assert not lab.arrived("request")


def test_what_was_logged_survives_a_kill(fresh_lab, fresh_log):
    assert fresh_lab.curl("work", "--max-time", "2", "https://evil.example/").returncode == 35
    fresh_log.expect(name="evil.example", verdict="deny")

    fresh_lab.end_service(signal.SIGKILL)

    rows = fresh_lab.rows()
    assert [(row["name"], row["protocol"]) for row in rows] == [("evil.example", "dns"), ("evil.example", "tls")]
    fresh_lab.start_service()
    fresh_lab.curl("work", "--max-time", "2", "https://evil.example/")
    fresh_log.expect(name="evil.example", verdict="deny", id=4)


def test_a_stopped_service_writes_down_what_was_open(fresh_lab, fresh_log):
    with Server(fresh_lab, "198.51.100.50", 443, echo), connect(fresh_lab, "work", "198.51.100.50", 443) as sock:
        sock.sendall(hello("raw.lab.example"))
        assert sock.recv(1) == b"\x16"

        fresh_lab.end_service(signal.SIGTERM)

        row = fresh_log.closed(name="raw.lab.example")
    assert (row["closed_by"], row["bytes_up"] > 0) == ("proxy", True)


def test_out_of_room_new_connections_are_refused_and_open_ones_live(fresh_lab, fresh_log):
    """No client has more than half of the room."""
    lab = fresh_lab
    lab.end_service()
    room = 20
    enough = SPARE_DESCRIPTORS + DESCRIPTORS_EACH * room
    lab.start_service("prlimit", f"--nofile={enough}:{enough}")

    with Server(lab, "198.51.100.50", 443, echo), ExitStack() as stack:

        def open_one(client):
            sock = stack.enter_context(connect(lab, client, "198.51.100.50", 443))
            sock.sendall(hello("raw.lab.example"))
            return sock

        opened = []
        for client in ("work", "quiet"):
            opened += [open_one(client) for _ in range(room // 2)]
            for sock in opened[-room // 2 :]:
                assert sock.recv(1) == b"\x16"
            with pytest.raises(ConnectionResetError):
                open_one(client).recv(1)
        row = fresh_log.expect(client="work", verdict="deny", reason="limit")
        assert row["detail"] == f"{room // 2} connections of this client are open"
        row = fresh_log.expect(client="quiet", verdict="deny", reason="limit")
        assert row["detail"] == f"{room} connections are open in all"

        for sock in opened:
            sock.sendall(b"still here")
            assert read_until(sock, b"still here").endswith(b"still here")
        opened[0].close()
        fresh_log.closed(name="raw.lab.example")
        assert open_one("work").recv(1) == b"\x16"
