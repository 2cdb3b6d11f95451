"""The installed command with the mitmproxy engine: what the table of cases does not say."""

import json
import os
import signal
import socket
import subprocess

import pytest
from lab import hellos, ways
from lab.sockets import Server, connect, eventually, read_all, read_until, socket_in, udp
from lab.world import ONE_UDP_PORT, OPEN4, RAW4
from mitmproxy import version

from mitm.world import DNS, EXPLICIT, PHONE, TRANSPARENT, WEB
from proxyfw.demo.network import GATEWAY4

PROXY = f"{GATEWAY4}:{EXPLICIT}"
GITHUB = "198.51.100.10"
GET = b"GET %s HTTP/1.1\r\nHost: %s\r\n\r\n"


def greet(sock):
    """Speaks first; what the client says then."""
    sock.sendall(b"220 hello\r\n")
    return sock.recv(100)


def talk(sock):
    """Speaks first, and listens until the client ends."""
    sock.sendall(b"220 hello\r\n")
    return read_all(sock)


def ask_proxy(lab, data, port=EXPLICIT, client="work"):
    """Everything that a client gets for these bytes."""
    with connect(lab, client, GATEWAY4, port) as sock:
        sock.sendall(data)
        return read_all(sock)


def test_the_certificate_is_the_servers_own(lab):
    ours = lab.inside("work", "openssl", "s_client", "-proxy", PROXY, "-connect", "github.com:443", "-showcerts")
    direct = lab.network.command(lab.network.internet, "openssl", "s_client", "-connect", f"{GITHUB}:443", "-showcerts")
    theirs = subprocess.run(direct, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    assert begin in theirs.stdout
    assert ours.stdout.partition(begin)[2].partition(end)[0] == theirs.stdout.partition(begin)[2].partition(end)[0]


def test_there_is_no_authority_and_no_key_of_one(lab, tunnel):
    kept = lab.folder / "state" / "mitmproxy"

    assert sorted(path.name for path in kept.iterdir()) == ["wireguard-client.conf", "wireguard.conf"]
    assert {path.stat().st_mode & 0o777 for path in kept.iterdir()} == {0o600}
    assert kept.stat().st_mode & 0o777 == 0o700
    assert not os.path.exists(os.path.expanduser("~/.mitmproxy"))


def test_bytes_and_their_end_are_in_the_log(lab, log):
    lab.curl("work", "-x", f"http://{PROXY}", "https://github.com/")

    row = log.closed(client="work", protocol="tls", name="github.com")
    assert min(row["bytes_up"], row["bytes_down"]) > 300
    assert row["detail"] == "asked by connect for github.com"


def test_a_second_request_on_a_kept_connection_is_a_decision_of_its_own(lab, log, arrived, tunnel):
    permitted, refused = GET % (b"/", b"github.com"), GET % (b"/", b"evil.example")
    with connect(lab, PHONE, GITHUB, 80) as sock:
        sock.sendall(permitted * 3 + refused + permitted)
        answer = read_all(sock)

    assert (answer.count(b"reached github.com"), answer.count(b"HTTP/1.1 ")) == (3, 4)
    assert {request["host"] for request in arrived("request")} == {"github.com"}
    log.expect(name="evil.example", verdict="deny", reason="no-match")


@pytest.mark.parametrize(
    ("query", "status", "answer", "row"),
    [
        pytest.param(["github.com"], "NOERROR", GITHUB, {"verdict": "allow", "reason": "domain"}, id="permitted"),
        pytest.param(["+tcp", "pypi.org"], "NOERROR", "198.51.100.20", {"verdict": "allow"}, id="over TCP"),
        pytest.param(["@192.0.2.53", "pypi.org"], "", "", {}, id="not by the tunnel"),
        pytest.param(["use-application-dns.net"], "NXDOMAIN", "", {"reason": "canary"}, id="refused"),
        pytest.param(["private.lab.example"], "NOERROR", "", {"reason": "private-address"}, id="private"),
    ],
)
def test_names_in_the_tunnel_are_judged(lab, log, tunnel, query, status, answer, row):
    done = lab.inside(PHONE, "dig", "+tries=1", "+time=1", *query)

    assert f"status: {status}," in done.stdout or not status
    assert answer in done.stdout
    if row:
        log.expect(client="work", protocol="dns", name=query[-1], destination=DNS, **row)


def test_the_peer_is_nobody_else(lab, log, tunnel):
    lab.inside(PHONE, "ip", "address", "add", "10.137.0.12/32", "dev", tunnel.device)
    address = ["--interface", "10.137.0.12", "--resolve", "en.wikipedia.org:443:198.51.100.30"]

    done = lab.curl(PHONE, "--max-time", "2", *address, "https://en.wikipedia.org/")

    lab.inside(PHONE, "ip", "address", "del", "10.137.0.12/32", "dev", tunnel.device)
    assert "reached" not in done.stdout
    log.expect(verdict="deny", reason="unknown-client", client=None, address="10.137.0.12")


def test_a_server_speaks_first_where_the_phone_was_told_its_address(lab, log, tunnel):
    with Server(lab, RAW4, 7000, greet) as server:
        lab.inside(PHONE, "dig", "raw.lab.example")
        with connect(lab, PHONE, RAW4, 7000) as sock:
            assert read_until(sock, b"\n") == b"220 hello\r\n"
            sock.sendall(b"HELO\r\n")
            assert server.result() == b"HELO\r\n"
            assert read_all(sock) == b""

    log.closed(client="work", name="raw.lab.example", name_source="pin", reason="pin", closed_by="server")


@pytest.mark.parametrize("way", [ways.SOCKS5, ways.SOCKS4A, ways.CONNECT], ids=str)
def test_a_server_speaks_first_to_who_asked_for_it_by_name(lab, log, way):
    with Server(lab, RAW4, 7000, greet) as server, connect(lab, "work", GATEWAY4, EXPLICIT) as sock:
        sock.sendall(way.request("raw.lab.example", 7000))
        assert read_until(sock, b"hello\r\n") == way.success + b"220 hello\r\n"
        sock.sendall(hellos.hello("evil.example"))
        assert read_all(sock) == hellos.ACCESS_DENIED
        assert server.result() == b""

    log.expect(name="evil.example", verdict="deny", reason="no-match", protocol="tls")


def test_datagrams_go_by_address(lab, log, tunnel):
    with socket_in(lab.network.internet, socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((ONE_UDP_PORT, 123))
        with udp(lab, PHONE, ONE_UDP_PORT, 123) as sock:
            sock.sendall(b"what time is it")
            question, peer = server.recvfrom(100)
            server.sendto(question.upper(), peer)
            assert sock.recv(100) == b"WHAT TIME IS IT"
    log.expect(protocol="udp", destination=ONE_UDP_PORT, port=123, verdict="allow", reason="network")


@pytest.mark.parametrize(("address", "port"), [(ONE_UDP_PORT, 124), (GITHUB, 443)], ids=["another port", "QUIC"])
def test_other_datagrams_are_dropped(lab, log, tunnel, address, port):
    with udp(lab, PHONE, address, port) as sock:
        sock.sendall(bytes(1200))
    log.expect(protocol="udp", destination=address, port=port, verdict="deny", reason="no-name")


@pytest.mark.parametrize(
    ("said", "port", "heard", "row"),
    [
        pytest.param(hellos.hello("github.com"), EXPLICIT, b"", {"detail": "TLS to the proxy itself"}, id="TLS"),
        pytest.param(GET % (b"/", b"github.com"), TRANSPARENT, b"403", {"reason": "internal-address"}, id="aimed"),
        pytest.param(GET % (b"http://mitm.it/", b"mitm.it"), EXPLICIT, b"403", {"reason": "no-match"}, id="mitm.it"),
        pytest.param(
            ways.CONNECT.request(*WEB), EXPLICIT, b"403", {"reason": "internal-address"}, id="CONNECT to its web view"
        ),
    ],
)
def test_what_the_engine_has_at_its_own_addresses(lab, log, said, port, heard, row):
    assert heard in ask_proxy(lab, said, port)
    log.expect(verdict="deny", **row)


def test_a_large_upload_waits_for_the_server(lab, log):
    """More than there is room for on the way, to a server that reads it slowly, and is dialled late."""
    size = 8 << 20

    def count(sock):
        head = read_until(sock, b"\r\n\r\n")
        got = len(head.partition(b"\r\n\r\n")[2])
        while got < size and (piece := sock.recv(1 << 16)):
            got += len(piece)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        return got

    with Server(lab, RAW4, 80, count) as server, connect(lab, "work", GATEWAY4, EXPLICIT) as sock:
        head = b"PUT http://raw.lab.example/ HTTP/1.1\r\nHost: raw.lab.example\r\nContent-Length: %d\r\n\r\n" % size
        sock.sendall(head + bytes(size))
        assert server.result() == size
        assert b" 200 " in read_until(sock, b"\r\n\r\n")
    assert log.closed(name="raw.lab.example", protocol="http")["bytes_up"] > size


def web(lab, *arguments, path=""):
    """The answer of the web view, by its address and token."""
    said = lab.said.read_text()
    url = next(line.partition("web view: ")[2] for line in said.splitlines() if "web view: " in line)
    base, _, token = url.partition("?")
    command = ["curl", "-sS", "-w", "\n%{http_code}", *arguments, f"{base}{path}?{token}"]
    done = subprocess.run(
        lab.network.command(lab.network.netvm, *command), capture_output=True, text=True, check=True, timeout=10
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def test_the_web_view_shows_what_was_decided(lab):
    lab.curl("work", "-x", f"http://{PROXY}", "https://github.com/", "http://pypi.org/simple", "http://evil.example/")

    status, body = web(lab, path="flows")

    assert status == 200
    flows = json.loads(body)[-3:]
    assert [flow["type"] for flow in flows] == ["tcp", "http", "tcp"]
    assert [flow["comment"] for flow in flows] == [
        "allow work: domain: github: .github.com",
        "allow work: domain: pypi: .pypi.org",
        "deny work: no-match",
    ]
    assert flows[0]["server_conn"]["sni"] == "github.com"
    assert (flows[1]["request"]["path"], flows[1]["response"]["status_code"]) == ("/simple", 200)


@pytest.mark.parametrize("more", [[], ["-H", "Transfer-Encoding: chunked"]], ids=["with its length", "in chunks"])
def test_the_web_view_takes_nothing(lab, more):
    assert web(lab, "-X", "GET", "--data", "x" * 100, *more, path="state")[0] == 400


BY_A_NAME = 403 if version.VERSION.startswith("11.") else 200
"""mitmproxy 11 lets in whoever says its address, mitmproxy 12 who has the token, as is the case here."""


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [
        pytest.param("flows/dump", [], 404, id="not of the page"),
        pytest.param("processes", [], 404, id="the programs of this machine"),
        pytest.param("state", ["-H", "Host: evil.example"], BY_A_NAME, id="by a name"),
        pytest.param("static/none", [], 404, id="no such file"),
    ],
)
def test_what_the_web_view_refuses_has_no_line(lab, path, more, status):
    before = lab.faults()
    assert web(lab, *more, path=path)[0] == status
    assert lab.faults() == before


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_the_web_view_changes_nothing(lab, method):
    for path in ("clear", "options", "commands/set", "flows/resume"):
        assert web(lab, "-X", method, path=path)[0] == 404


def test_the_web_view_does_not_tell_the_key_of_the_peer(lab, tunnel):
    status, body = web(lab, path="state")

    assert status == 200
    assert "PrivateKey" not in body


def test_status_says_what_runs_where(lab):
    notes = json.loads(lab.ask("status", "--json").stdout)["notes"]

    assert any(f"HTTP(S) proxy at {GATEWAY4} port {EXPLICIT}" in note for note in notes)


def test_a_reload_takes_away_and_a_broken_one_changes_nothing(lab, log):
    config = lab.config.read_text()
    with Server(lab, OPEN4, 5555, talk), connect(lab, "work", GATEWAY4, EXPLICIT) as sock:
        sock.sendall(ways.SOCKS5.request(OPEN4, 5555))
        read_until(sock, b"hello\r\n")
        try:
            lab.config.write_text(config.replace('"clients"', '"klients"'))
            assert lab.ask("reload").returncode == 1
            sock.sendall(b"still there")
            lab.write_config({"work": {"profiles": ["github"]}})
            lab.service.send_signal(signal.SIGHUP)
            assert read_all(sock) == b""
        finally:
            lab.config.write_text(config)
            assert eventually(lambda: lab.ask("reload").returncode == 0)

    log.closed(destination=OPEN4, port=5555, verdict="allow", closed_by="policy")
