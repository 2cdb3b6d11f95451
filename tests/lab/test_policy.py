"""`explain` agrees with what happens, and observe mode lets through what it records."""

import json

import pytest

from lab.hellos import hello
from lab.sockets import Server, UdpEcho, connect, echo, read_all, read_until, udp
from lab.world import ONE_PORT, ONE_UDP_PORT, OPEN4, OPEN6, RAW4, RAW6
from proxyfw.demo.internet import ADDRESS_OF_EVIL


def through_tls(name, address, port=443):
    """Whether a server's answer to a ClientHello comes back."""

    def happens(lab, client):
        with connect(lab, client, address, port) as sock:
            sock.sendall(hello(name))
            return sock.recv(1) == b"\x16"

    return happens


def through_http(name, address):
    def happens(lab, client):
        with connect(lab, client, address, 80) as sock:
            sock.sendall(f"GET / HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())
            return read_all(sock).startswith(b"HTTP/1.1 200 ")

    return happens


def through_tcp(address, port):
    def happens(lab, client):
        with Server(lab, address, port, echo):
            try:
                with connect(lab, client, address, port) as sock:
                    sock.sendall(b"anyone?\n")
                    return read_until(sock, b"\n") == b"anyone?\n"
            except OSError:
                return False

    return happens


def through_udp(address, port):
    def happens(lab, client):
        with UdpEcho(lab, address, port), udp(lab, client, address, port) as sock:
            sock.send(b"anyone?")
            try:
                return sock.recv(100) == b"anyone?"
            except OSError:
                return False

    return happens


def through_own_tls(name, address, port):
    """Like `through_tls`, with a server that only says something."""

    def happens(lab, client):
        def handle(sock):
            sock.recv(1000)
            sock.sendall(b"\x16")

        with Server(lab, address, port, handle):
            return through_tls(name, address, port)(lab, client)

    return happens


@pytest.mark.parametrize(
    ("client", "target", "happens", "verdict", "reason"),
    [
        ("work", "https://github.com/some/page", through_tls("github.com", "198.51.100.10"), "allow", "domain"),
        ("work", "api.github.com", through_tls("api.github.com", "198.51.100.10"), "allow", "domain"),
        ("work", "GITHUB.com.", through_tls("GITHUB.com.", "198.51.100.10"), "allow", "domain"),
        ("work", "http://pypi.org", through_http("pypi.org", "198.51.100.20"), "allow", "domain"),
        ("work", "https://evil.example", through_tls("evil.example", ADDRESS_OF_EVIL), "deny", "no-match"),
        ("work", "http://evil.example", through_http("evil.example", ADDRESS_OF_EVIL), "deny", "no-match"),
        ("work", "https://notgithub.com", through_tls("notgithub.com", "198.51.100.10"), "deny", "no-match"),
        ("study", "https://github.com", through_tls("github.com", "198.51.100.10"), "deny", "no-match"),
        ("study", "https://en.wikipedia.org", through_tls("en.wikipedia.org", "198.51.100.30"), "allow", "domain"),
        ("watched", "https://github.com", through_tls("github.com", "198.51.100.10"), "observe", "no-match"),
        ("work", "raw.lab.example:7000", through_own_tls("raw.lab.example", RAW4, 7000), "allow", "domain"),
        ("work", "raw.lab.example:7001", through_own_tls("raw.lab.example", RAW4, 7001), "deny", "no-match"),
        ("quiet", f"{RAW4}:4321", through_tcp(RAW4, 4321), "deny", "no-name"),
        ("quiet", f"[{RAW6}]:4321", through_tcp(RAW6, 4321), "deny", "no-name"),
        ("work", f"{OPEN4}:4321", through_tcp(OPEN4, 4321), "allow", "network"),
        ("work", f"[{OPEN6}]:4321", through_tcp(OPEN6, 4321), "allow", "network"),
        ("work", f"{OPEN4}:4321/udp", through_udp(OPEN4, 4321), "allow", "network"),
        ("study", f"{OPEN4}:4321/udp", through_udp(OPEN4, 4321), "deny", "no-name"),
        ("watched", f"{OPEN4}:4321/udp", through_udp(OPEN4, 4321), "observe", "no-name"),
        ("work", f"{ONE_PORT}:2222", through_tcp(ONE_PORT, 2222), "allow", "network"),
        ("work", f"{ONE_PORT}:2223", through_tcp(ONE_PORT, 2223), "deny", "no-name"),
        ("work", f"{ONE_UDP_PORT}:123/udp", through_udp(ONE_UDP_PORT, 123), "allow", "network"),
        ("work", f"{ONE_UDP_PORT}:124/udp", through_udp(ONE_UDP_PORT, 124), "deny", "no-name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_explain_says_what_happens(lab, client, target, happens, verdict, reason):
    told = lab.ask("explain", client, target, "--json")
    answer = json.loads(told.stdout)

    assert (answer["verdict"], answer["reason"]) == (verdict, reason)
    assert told.returncode == (1 if verdict == "deny" else 0)
    assert happens(lab, client) == (verdict != "deny")


def test_explain_names_the_line_that_grants(lab):
    told = lab.ask("explain", "work", "https://raw.lab.example:7000").stdout

    assert told.startswith("allow: work -> raw.lab.example port 7000/tcp\n")
    assert f"{lab.folder}/profiles/lab.yaml:2" in told


def test_explain_says_what_to_write(lab):
    told = lab.ask("explain", "work", "https://evil.example").stdout

    assert "to allow it: sudo proxyfw allow work evil.example" in told


def test_observe_mode_lets_a_forbidden_name_through_to_where_the_client_aimed(lab, log):
    done = lab.curl("watched", "-k", "--resolve", f"github.com:443:{ADDRESS_OF_EVIL}", "https://github.com/")

    assert f"at {ADDRESS_OF_EVIL} port 443" in done.stdout, done.stderr
    row = log.closed(client="watched", name="github.com")
    assert (row["verdict"], row["reason"], row["destination"]) == ("observe", "no-match", ADDRESS_OF_EVIL)


def test_observe_mode_lets_a_permitted_name_lead_only_where_the_name_leads(lab):
    done = lab.curl("watched", "--resolve", f"en.wikipedia.org:443:{ADDRESS_OF_EVIL}", "https://en.wikipedia.org/")

    assert "at 198.51.100.30 port 443" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(hello(), "no-name", id="a hello without a name"),
        pytest.param(hello("one.example", "two.example"), "ambiguous", id="two names"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n", "ambiguous", id="two Hosts"),
        pytest.param(b"CONNECT a.example:443 HTTP/1.1\r\n\r\n", "malformed", id="CONNECT"),
        pytest.param(b"SSH-2.0-lab\r\n", "no-name", id="SSH"),
    ],
)
def test_observe_mode_lets_what_cannot_be_judged_through_as_it_came(lab, log, data, reason):
    with Server(lab, RAW4, 4321, echo) as server, connect(lab, "watched", RAW4, 4321) as sock:
        sock.sendall(data)
        assert read_until(sock, data) == data
        sock.close()
        assert server.result() == data

    assert log.expect(client="watched", verdict="observe", port=4321)["reason"] == reason


def test_observe_mode_waits_for_a_server_that_speaks_first(lab, log):
    def greet(sock):
        sock.sendall(b"220 ready\r\n")
        return read_until(sock, b"\n")

    with Server(lab, RAW4, 25, greet) as server, connect(lab, "watched", RAW4, 25) as sock:
        assert read_until(sock, b"\n") == b"220 ready\r\n"
        sock.sendall(b"EHLO lab\r\n")
        assert server.result() == b"EHLO lab\r\n"

    log.expect(client="watched", verdict="observe", reason="silent", port=25)
