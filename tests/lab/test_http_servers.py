"""Plain HTTP with servers made by hand: silent ones, broken ones, and WebSocket."""

import pytest

from lab.sockets import Server, connect, read_all, read_until
from lab.world import RAW4

GET = b"GET / HTTP/1.1\r\nHost: raw.lab.example\r\n\r\n"
UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: raw.lab.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def says(answer, then=lambda sock: None):
    """A handler: reads a request head, answers with these bytes, and goes on as `then` says; the head."""

    def handle(sock):
        head = read_until(sock, b"\r\n\r\n")
        sock.sendall(answer)
        then(sock)
        return head

    return handle


def test_websocket_turns_into_a_relay(lab, log):
    def switch_and_echo(sock):
        head = read_until(sock, b"\r\n\r\n")
        sock.sendall(SWITCHING + b"first")
        got = b""
        while piece := sock.recv(4096):
            got += piece
            sock.sendall(piece[::-1])
        return head, got

    with Server(lab, RAW4, 80, switch_and_echo) as server, connect(lab, "work", RAW4, 80) as sock:
        sock.sendall(UPGRADE)
        assert read_until(sock, b"first").startswith(b"HTTP/1.1 101 ")
        sock.sendall(b"\x81\x05GET /")
        assert read_until(sock, b"\x81") == b"/ TEG\x05\x81"
        sock.close()
        head, got = server.result()

    assert b"GET /chat HTTP/1.1\r\nHost: raw.lab.example\r\n" in head
    assert got == b"\x81\x05GET /"
    row = log.expect(name="raw.lab.example", verdict="allow", closed_by="client")
    assert row["bytes_up"] == len(head) + 7
    assert row["bytes_down"] > len(SWITCHING)


def test_websocket_to_a_refused_host_gets_a_page(lab):
    with Server(lab, RAW4, 80, says(SWITCHING)) as server, connect(lab, "work", RAW4, 80) as sock:
        sock.sendall(UPGRADE.replace(b"raw.lab", b"evil"))
        assert read_all(sock).startswith(b"HTTP/1.1 403 ")
        assert server.untouched


def test_a_request_after_a_declined_upgrade_is_judged_too(lab, log):
    declined = b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n"

    with Server(lab, RAW4, 80, says(declined, read_all)) as server, connect(lab, "work", RAW4, 80) as sock:
        sock.sendall(UPGRADE)
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 426 ")
        sock.sendall(GET.replace(b"raw.lab", b"evil"))
        assert read_all(sock).startswith(b"HTTP/1.1 403 ")
        assert b"evil" not in server.result()

    log.expect(name="evil.example", verdict="deny", reason="no-match")


def test_a_server_may_not_switch_unasked(lab):
    with Server(lab, RAW4, 80, says(SWITCHING, read_all)), connect(lab, "work", RAW4, 80) as sock:
        sock.sendall(GET)
        assert read_all(sock).startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        pytest.param(b"", "the server closed the connection without an answer", id="closes without an answer"),
        pytest.param(b"220 mail.example ESMTP\r\n\r\n", "response: illegal status line", id="speaks mail"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            "response: conflicting Content-Length headers",
            id="gives two lengths",
        ),
    ],
)
def test_a_server_that_breaks_http_gets_the_client_a_502(lab, log, answer, detail):
    with Server(lab, RAW4, 80, says(answer)), connect(lab, "work", RAW4, 80) as sock:
        sock.sendall(GET)
        page = read_all(sock)

    assert page.startswith(b"HTTP/1.1 502 ")
    assert detail.encode() in page
    row = log.expect(name="raw.lab.example", verdict="allow", closed_by="server")
    assert row["detail"].startswith(f"the server: {detail}")


def test_a_download_that_is_cut_short_is_not_made_to_look_whole(lab, log):
    with Server(lab, RAW4, 80, says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")):
        done = lab.curl("work", "http://raw.lab.example/")

    assert done.returncode == 18
    assert done.stdout == "half"
    assert log.closed(name="raw.lab.example")["closed_by"] == "server"


def test_an_answer_without_a_length_ends_with_the_connection(lab):
    with Server(lab, RAW4, 80, says(b"HTTP/1.0 200 OK\r\n\r\nall of it")):
        done = lab.curl("work", "http://raw.lab.example/")

    assert (done.returncode, done.stdout) == (0, "all of it")


def test_a_server_that_never_answers_is_left_when_the_client_leaves(lab, log):
    with Server(lab, RAW4, 80, says(b"", read_all)) as server:
        done = lab.curl("work", "--max-time", "1", "http://raw.lab.example/")
        assert done.returncode == 28
        assert server.result().startswith(b"GET / HTTP/1.1\r\n")

    assert log.closed(name="raw.lab.example")["closed_by"] == "client"


def test_what_the_server_gets_is_written_anew(lab):
    odd = (
        b"GET http://RAW.lab.example:80/a?b HTTP/1.1\r\nhost:  raw.lab.example.:80 \r\nConnection: x-hop, close\r\n"
        b"X-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nX-End: yes\r\n\r\n"
    )
    with (
        Server(lab, RAW4, 80, says(b"HTTP/1.1 204 No Content\r\n\r\n")) as server,
        connect(lab, "work", RAW4, 80) as sock,
    ):
        sock.sendall(odd)
        assert read_all(sock).startswith(b"HTTP/1.1 204 ")
        lines = server.result().split(b"\r\n")

    assert lines[:2] == [b"GET /a?b HTTP/1.1", b"Host: raw.lab.example:80"]
    assert [line.partition(b":")[0] for line in lines[2:] if line] == [b"X-End"]
