"""The explicit proxy, asked by hand: what it answers, byte for byte, and when; what is inside is judged as well."""

import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from lab import world
from lab.conftest import Log
from lab.hellos import ACCESS_DENIED, hello
from lab.sockets import PATIENCE, Server, connect, echo, eventually, read_all, read_until, socket_in
from lab.ways import CONNECT, GREETING, SOCKS4A, SOCKS5, WELCOME, reply, request4, request5
from lab.world import CLIENTS, EXPLICIT_PORT, NOT_THERE, OPEN4, RAW4, STRANGER
from proxyfw.demo.network import GATEWAY4, GATEWAY6, UPLINK4, UPLINK6

RAW, GITHUB, EVIL = "raw.lab.example", "github.com", "evil.example"
GITHUB4 = "198.51.100.10"
HELLO, HELLO_OF_EVIL = hello(RAW), hello(EVIL)
MUTE, MUTE_TOO = 4441, 4442  # ports where nobody answers
NAMED_PORT = 7000  # of raw.lab.example, as its profile says
REFUSED4 = b"\0\x5b" + bytes(6)
EACH_WAY = pytest.mark.parametrize("way", [SOCKS5, SOCKS4A, CONNECT], ids=str)


@pytest.fixture(scope="module")
def lab(explicit_lab):
    """The lab's world, where clients find a proxy that they can ask."""
    return explicit_lab


def to_proxy(lab, client="work", address=GATEWAY4):
    """A client's connection to the proxy."""
    return connect(lab, client, address, EXPLICIT_PORT)


def said_to(lab, data, client="work"):
    """All that the proxy answers."""
    with to_proxy(lab, client) as sock:
        sock.sendall(data)
        return read_all(sock)


def read_exactly(sock, count):
    """So many bytes, or fewer where the peer ends before."""
    data = b""
    while len(data) < count and (piece := sock.recv(count - len(data))):
        data += piece
    return data


def tunnel(lab, way, host, port, client="work"):
    """A tunnel that stands."""
    sock = to_proxy(lab, client)
    try:
        sock.sendall(way.request(host, port))
        assert read_exactly(sock, len(way.success)) == way.success
    except BaseException:
        sock.close()
        raise
    return sock


def asked(way, host):
    """What a row says of the request that its connection came by."""
    return f"asked by {way.source} for {host}"


@pytest.fixture(scope="module", autouse=True)
def late(lab, mute):
    """What takes seconds goes on while the other tests run: what clients heard that were silent, or wait for a server
    that is.
    """

    def sysctl(*words):
        full = lab.network.command(lab.network.netvm, "sysctl", "-n", *words)
        return subprocess.run(full, check=True, capture_output=True, text=True).stdout.strip()

    def heard(said):
        """What each client hears, who says this; all at the same time."""
        with ExitStack() as stack:
            socks = [stack.enter_context(to_proxy(lab, client)) for client, _ in said]
            for sock, (_, words) in zip(socks, said, strict=True):
                sock.sendall(words)
            return [read_all(sock) for sock in socks]

    def unanswered():
        """The kernel of the netvm gives up after 3 s, and not after minutes."""
        retries = "net.ipv4.tcp_syn_retries"
        before = sysctl(retries)
        sysctl("-w", f"{retries}=1")
        try:
            return heard([("work", way.request(OPEN4, MUTE_TOO)) for way in (SOCKS5, SOCKS4A, CONNECT)])
        finally:
            sysctl("-w", f"{retries}={before}")

    def silent():
        half_connect = CONNECT.request(GITHUB, 443)[:-1]
        *others, inside = heard(
            [("noisy", b""), ("study", GREETING), ("home", half_connect), ("quiet", CONNECT.request(GITHUB, 443))]
        )
        return [*others, inside.removeprefix(CONNECT.success)]

    with ThreadPoolExecutor(2) as threads:
        yield SimpleNamespace(log=Log(lab), silent=threads.submit(silent), unanswered=threads.submit(unanswered))


# Requests and the client's first bytes, however they are cut


@EACH_WAY
def test_request_and_first_bytes_in_one_segment(lab, log, way):
    with Server(lab, RAW4, 443, echo) as server, to_proxy(lab) as sock:
        sock.sendall(way.request(RAW, 443) + HELLO)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == way.success + HELLO
        assert server.result() == HELLO
    row = log.closed(name=RAW, verdict="allow")
    assert (row["protocol"], row["name_source"], row["detail"]) == ("tls", "sni", asked(way, RAW))
    assert (row["destination"], row["port"], row["bytes_up"], row["bytes_down"]) == (RAW4, 443, len(HELLO), len(HELLO))


@EACH_WAY
def test_request_and_first_bytes_byte_by_byte(lab, way):
    with Server(lab, RAW4, 443, echo) as server, to_proxy(lab) as sock:
        for byte in way.request(RAW, 443) + HELLO:
            sock.sendall(bytes([byte]))
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == way.success + HELLO
        assert server.result() == HELLO


@EACH_WAY
@pytest.mark.parametrize(
    "address", [GATEWAY6, UPLINK4, UPLINK6], ids=["IPv6", "the uplink's IPv4", "the uplink's IPv6"]
)
def test_the_proxy_is_at_every_address_of_the_netvm(lab, way, address):
    with Server(lab, RAW4, 443, echo), to_proxy(lab, address=address) as sock:
        sock.sendall(way.request(RAW, 443) + HELLO)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == way.success + HELLO


@EACH_WAY
def test_20_megabytes_both_ways_at_once(lab, log, way):
    up, down = os.urandom(20 << 20), os.urandom(20 << 20)

    def exchange(sock):
        """The hello and what follows it are hashed, while as much is sent."""
        sender = threading.Thread(target=sock.sendall, args=(down,))
        got = hashlib.sha256(read_exactly(sock, len(HELLO)))
        sender.start()
        while piece := sock.recv(1 << 18):
            got.update(piece)
        sender.join()
        return got.digest()

    def send():
        sock.sendall(up)
        sock.shutdown(socket.SHUT_WR)

    with Server(lab, RAW4, 443, exchange) as server, tunnel(lab, way, RAW, 443) as sock:
        sock.sendall(HELLO)
        first = sock.recv(1)
        sender = threading.Thread(target=send)
        sender.start()
        got = hashlib.sha256(first)
        while piece := sock.recv(1 << 18):
            got.update(piece)
        sender.join()
        assert server.result() == hashlib.sha256(HELLO + up).digest()
    assert got.digest() == hashlib.sha256(down).digest()
    row = log.closed(name=RAW, verdict="allow")
    assert (row["bytes_up"], row["bytes_down"]) == (len(HELLO + up), len(down))


# What a refusal says


@dataclass(frozen=True)
class Refusal:
    """`host` and `port` are asked for; what SOCKS5 and HTTP answer, and the row."""

    words: str
    host: str
    port: int
    code: int
    status: str
    reason: str
    detail: str = ""

    def __str__(self):
        return self.words


REFUSALS = [
    Refusal("a name that nothing grants", EVIL, 443, 2, "403 Forbidden", "no-match"),
    Refusal("a port that no pattern names", GITHUB, 8443, 2, "403 Forbidden", "no-match"),
    Refusal("an address", NOT_THERE, 443, 2, "403 Forbidden", "no-name", "an address was asked for: let the "),
    Refusal("the netvm", GATEWAY4, 443, 2, "403 Forbidden", "internal-address"),
    Refusal("the proxy itself", GATEWAY4, EXPLICIT_PORT, 2, "403 Forbidden", "internal-address"),
    Refusal("another client", "10.137.0.12", 443, 2, "403 Forbidden", "internal-address"),
    Refusal("loopback", "127.0.0.1", 22, 2, "403 Forbidden", "internal-address"),
    Refusal("a name for loopback", "loopback.lab.example", 443, 2, "403 Forbidden", "private-address"),
    Refusal("a name for the netvm", "netvm.lab.example", 443, 2, "403 Forbidden", "private-address"),
    Refusal("a name for the uplink", "uplink.lab.example", 443, 2, "403 Forbidden", "internal-address"),
    Refusal("a name for another client", "neighbour.lab.example", 443, 2, "403 Forbidden", "private-address"),
    Refusal("a name for a private address", "private.lab.example", 443, 2, "403 Forbidden", "private-address"),
    Refusal("a name that does not exist", "nothing.lab.example", 443, 4, "502 Bad Gateway", "unresolvable"),
    Refusal(
        "a port where nobody listens", "dead.lab.example", 443, 5, "502 Bad Gateway", "unreachable", "Connection r"
    ),
    Refusal("DNS, which is the relay's", RAW, 53, 2, "403 Forbidden", "unsupported", "DNS belongs to the relay"),
]


@pytest.mark.parametrize("case", REFUSALS, ids=str)
def test_a_refusal_says_why_as_far_as_the_protocol_can(lab, log, case):
    assert said_to(lab, SOCKS5.request(case.host, case.port)) == WELCOME + reply(case.code)
    assert said_to(lab, SOCKS4A.request(case.host, case.port)) == REFUSED4
    head, _, page = said_to(lab, CONNECT.request(case.host, case.port)).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {case.status}\r\n".encode())
    assert f"\r\nContent-Length: {len(page)}\r\n".encode() in head
    assert f"client: work\nhost:   {case.host}\nreason: {case.reason}".encode() in page
    assert case.detail.encode() in page

    log.expect(protocol="connect")  # the last of them
    rows = log.rows()
    assert [row["protocol"] for row in rows] == ["socks", "socks", "connect"]
    for row in rows:
        name, source, destination = (case.host, row["protocol"], None)
        if case.host[0].isdigit():
            name, source, destination = (None, None, case.host)
        assert (row["client"], row["verdict"], row["reason"]) == ("work", "deny", case.reason)
        assert (row["name"], row["name_source"], row["destination"]) == (name, source, destination)
        assert (row["port"], row["bytes_up"], row["bytes_down"]) == (case.port, 0, 0)
        assert (row["detail"] or "").startswith(case.detail)


NOT_DONE = {
    "BIND": (GREETING + request5(RAW, 443, 2), WELCOME + reply(7), "unsupported", "SOCKS BIND"),
    "UDP ASSOCIATE": (GREETING + request5(RAW, 443, 3), WELCOME + reply(7), "unsupported", "SOCKS UDP ASSOCIATE"),
    "no such command": (GREETING + request5(RAW, 443, 9), WELCOME + reply(7), "malformed", "unknown SOCKS command"),
    "no such type": (GREETING + b"\5\1\0\2abcd\1\xbb", WELCOME + reply(8), "malformed", "unknown type of address"),
    "port 0": (GREETING + request5(RAW, 0), WELCOME + reply(1), "malformed", "the port is 0"),
    "no host name": (GREETING + request5("a b.example", 443), WELCOME + reply(1), "malformed", "not a host name"),
    "only with a password": (b"\5\1\2", b"\5\xff", "malformed", "insists on a password"),
    "only with GSSAPI": (b"\5\1\1", b"\5\xff", "malformed", "without authentication"),
    "SOCKS4: BIND": (request4(RAW, 443, 2), REFUSED4, "unsupported", "SOCKS BIND"),
    "SOCKS4: a long user": (request4(RAW, 443)[:8] + b"u" * 300, REFUSED4, "oversized", "the user's name"),
}


@pytest.mark.parametrize(("data", "answer", "reason", "detail"), NOT_DONE.values(), ids=NOT_DONE)
def test_a_socks_request_that_is_not_done(lab, log, data, answer, reason, detail):
    assert said_to(lab, data) == answer
    row = log.expect(protocol="socks", verdict="deny", reason=reason)
    assert detail in row["detail"]


def head(first, *fields):
    return "\r\n".join([f"{first} HTTP/1.1", *fields, "", ""]).encode()


TO_443 = "CONNECT github.com:443"
NOT_JUDGED = {
    "no port": (head("CONNECT github.com", "Host: github.com"), 400, "malformed", "not a host and a port"),
    "two hosts in CONNECT": (
        head(TO_443, "Host: pypi.org"),
        400,
        "ambiguous",
        "Host and the target name different hosts",
    ),
    "two ports in CONNECT": (head(TO_443, "Host: github.com:80"), 400, "ambiguous", "name different ports"),
    "no Host": (head(TO_443), 400, "malformed", "Missing mandatory Host"),
    "a body": (head(TO_443, "Host: github.com", "Content-Length: 5") + b"abcde", 400, "malformed", "with a body"),
    "as to a server": (head("GET /", "Host: github.com"), 400, "malformed", "names no URL"),
    "https": (head("GET https://github.com/", "Host: github.com"), 400, "malformed", "asked by CONNECT"),
    "two hosts": (head("GET http://github.com/", "Host: pypi.org"), 400, "ambiguous", "different hosts"),
    "64 KiB": (head("GET http://github.com/", "X: " + "x" * 65536), 431, "oversized", "longer than 65536 bytes"),
}


@pytest.mark.parametrize(("data", "status", "reason", "detail"), NOT_JUDGED.values(), ids=NOT_JUDGED)
def test_an_http_request_that_cannot_be_judged(lab, log, data, status, reason, detail):
    answer = said_to(lab, data)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert detail.encode() in answer
    protocol = "connect" if data.startswith(b"CONNECT") else "http"
    assert detail in log.expect(protocol=protocol, verdict="deny", reason=reason)["detail"]


def send_and_hear(sock, data):
    """Raises ConnectionError, already while it sends where that is long."""
    sock.sendall(data)
    assert sock.recv(1) == b""


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"\x80garbage of no protocol\r\n\r\n", "neither SOCKS nor HTTP"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "neither SOCKS nor HTTP"),
        (bytes(65536), "neither SOCKS nor HTTP"),
        (HELLO, "TLS to the proxy itself"),
    ],
    ids=["garbage", "SSH", "64 KiB of nothing", "TLS"],
)
def test_what_is_no_request_is_answered_by_a_reset(lab, log, data, detail):
    with to_proxy(lab) as sock, pytest.raises(ConnectionError):
        send_and_hear(sock, data)
    row = log.expect(verdict="deny", reason="malformed")
    assert row["detail"] == detail


@pytest.mark.parametrize(
    ("data", "answer", "protocol"),
    [
        (b"\5", b"\5\xff", "socks"),
        (GREETING, WELCOME + reply(1), "socks"),
        (GREETING + request5(RAW, 443)[:-1], WELCOME + reply(1), "socks"),
        (request4(RAW, 443)[:-1], REFUSED4, "socks"),
        (CONNECT.request(RAW, 443)[:-1], b"HTTP/1.1 400 ", "connect"),
    ],
    ids=["half a greeting", "a greeting", "half a SOCKS5 request", "half a SOCKS4 request", "half a CONNECT"],
)
def test_a_request_that_ends_before_it_is_complete(lab, log, data, answer, protocol):
    with Server(lab, RAW4, 443, echo) as server:
        with to_proxy(lab) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock).startswith(answer)
        assert server.untouched
    row = log.expect(protocol=protocol, verdict="deny", reason="malformed")
    assert row["detail"] == "the proxy request was not complete before the connection ended"


def test_a_client_that_comes_and_goes_without_a_word(lab, log):
    to_proxy(lab).close()
    row = log.expect(client="work", verdict="deny", reason="silent")
    assert row["detail"] == "nothing was asked of the proxy before the connection ended"


def test_those_who_keep_silent_are_refused_at_the_deadline(late):
    """Nothing at all, half a greeting, half a CONNECT, and a tunnel in which nothing is said."""
    silent, half, half_connect, inside = late.silent.result()
    assert (silent, inside) == (b"", b"")
    assert half == WELCOME + reply(1)
    assert half_connect.startswith(b"HTTP/1.1 408 ")
    for client, reason, protocol in (("study", "timeout", "socks"), ("home", "timeout", "connect")):
        late.log.expect(client=client, verdict="deny", reason=reason, protocol=protocol)
    row = late.log.expect(client="noisy", verdict="deny", protocol="tcp")
    assert (row["reason"], row["detail"]) == ("silent", "nothing was asked of the proxy within the deadline")
    row = late.log.expect(client="quiet", verdict="deny", reason="silent")
    assert (row["name"], row["detail"]) == (GITHUB, f"nothing was sent within the deadline; {asked(CONNECT, GITHUB)}")


def test_a_qube_that_is_not_listed_hears_nothing(lab, log):
    with pytest.raises(ConnectionRefusedError):
        to_proxy(lab, STRANGER)
    log.expect(client=None, verdict="deny", reason="unknown-client", port=EXPLICIT_PORT)


@pytest.mark.parametrize("address", [UPLINK4, UPLINK6], ids=["IPv4", "IPv6"])
def test_from_the_internet_nobody_reaches_the_proxy(lab, address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket_in(lab.network.internet, family, socket.SOCK_STREAM) as sock,
        pytest.raises(ConnectionRefusedError),
    ):
        sock.connect((address, EXPLICIT_PORT))


# Success is said when the server connection stands


@pytest.fixture(scope="module")
def mute(lab):
    """Two ports of the internet drop all packets. The first can be opened, and counts what it drops."""

    def nft(command, *options):
        full = lab.network.command(lab.network.internet, "nft", *options, command)
        return subprocess.run(full, check=True, capture_output=True, text=True).stdout

    def dropped():
        told = json.loads(nft("list counter inet mute dropped", "-j"))["nftables"]
        return next(item["counter"]["packets"] for item in told if "counter" in item)

    rules = f"tcp dport {MUTE_TOO} drop; tcp dport {MUTE} tcp dport @mute counter name dropped drop"
    chain = f"chain in {{ type filter hook input priority 0; {rules}; }}"
    ports = f"set mute {{ type inet_service; elements = {{ {MUTE} }}; }}"
    nft(f"table inet mute {{ counter dropped {{ }}; {ports}; {chain}; }}")
    yield SimpleNamespace(dropped=dropped, open=lambda: nft("flush set inet mute mute"))
    nft("delete table inet mute")


def test_success_is_said_when_the_server_answers_and_not_before(lab, mute):
    with Server(lab, OPEN4, MUTE, echo) as server, ExitStack() as stack:
        socks = {way: stack.enter_context(to_proxy(lab)) for way in (SOCKS5, SOCKS4A, CONNECT)}
        for way, sock in socks.items():
            sock.sendall(way.request(OPEN4, MUTE) + b"words")
        assert eventually(lambda: mute.dropped() >= len(socks))  # the proxy dials
        assert socks[SOCKS5].recv(100) == WELCOME
        for sock in socks.values():
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)
        assert server.untouched
        mute.open()
        for way, sock in socks.items():
            sock.settimeout(PATIENCE)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == way.success.removeprefix(WELCOME if way is SOCKS5 else b"") + b"words"


def test_a_server_that_never_answers_is_never_a_success(late):
    socks5, socks4, http = late.unanswered.result()
    assert socks5 == WELCOME + reply(4)
    assert socks4 == REFUSED4
    assert http.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
    assert b"reason: unreachable (Connection timed out)" in http
    for protocol in ("socks", "connect"):
        row = late.log.expect(protocol=protocol, verdict="deny", reason="unreachable", port=MUTE_TOO)
        assert (row["destination"], row["detail"]) == (OPEN4, "Connection timed out")


# Both names count: the one that was asked for, and the one inside


@EACH_WAY
def test_a_refused_sni_inside_a_tunnel_to_a_permitted_name(lab, log, way):
    with Server(lab, RAW4, 443, echo) as server:
        with tunnel(lab, way, RAW, 443) as sock:
            sock.sendall(HELLO_OF_EVIL)
            assert read_all(sock) == ACCESS_DENIED
        assert server.result() == b""
    row = log.expect(protocol="tls", verdict="deny", reason="no-match")
    assert (row["name"], row["name_source"], row["detail"]) == (EVIL, "sni", asked(way, RAW))


@EACH_WAY
def test_a_permitted_sni_in_a_tunnel_to_a_refused_name(lab, log, arrived, way):
    """It is refused before a word is asked for from inside; what came with the request is in the row all the same."""
    answer = said_to(lab, way.request(EVIL, 443) + hello(GITHUB))
    assert not answer.startswith(way.success)
    row = log.expect(verdict="deny", reason="no-match", protocol=way.source)
    assert (row["name"], row["name_source"]) == (EVIL, way.source)
    assert row["detail"] == f"{GITHUB} is named inside"
    assert not arrived("broken")


@EACH_WAY
def test_another_permitted_sni_inside_leads_to_its_own_server(lab, log, way):
    with Server(lab, RAW4, 443, echo) as server, tunnel(lab, way, GITHUB, 443) as sock:
        sock.sendall(HELLO)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == HELLO
        assert server.result() == HELLO
    row = log.closed(name=RAW, verdict="allow")
    assert (row["destination"], row["name_source"]) == (RAW4, "sni")
    assert row["detail"].endswith(asked(way, GITHUB))


def request_to(host, path="/"):
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


@EACH_WAY
def test_a_refused_host_inside_a_tunnel_to_a_permitted_name(lab, log, arrived, way):
    with tunnel(lab, way, GITHUB, 80) as sock:
        sock.sendall(request_to(EVIL))
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"host:   evil.example\nreason: no-match" in answer
    row = log.expect(protocol="http", verdict="deny", reason="no-match")
    assert (row["name"], row["name_source"], row["detail"]) == (EVIL, "host", asked(way, GITHUB))
    assert not arrived("request")


@EACH_WAY
def test_a_permitted_host_in_a_tunnel_to_a_refused_name(lab, log, arrived, way):
    answer = said_to(lab, way.request(EVIL, 80) + request_to(GITHUB))
    assert not answer.startswith(way.success)
    row = log.expect(verdict="deny", reason="no-match", protocol=way.source)
    assert (row["name"], row["port"]) == (EVIL, 80)
    assert not arrived("request")


@EACH_WAY
def test_further_requests_in_a_tunnel_are_judged_one_by_one(lab, log, arrived, way):
    with tunnel(lab, way, GITHUB, 80) as sock:
        sock.sendall(request_to(GITHUB, "/first"))
        assert b"reached github.com at " in read_until(sock, b"SNI none)\n")
        sock.sendall(request_to("pypi.org", "/second"))
        assert b"reached pypi.org at " in read_until(sock, b"SNI none)\n")
        sock.sendall(request_to(EVIL, "/third"))
        answer = read_all(sock)
    assert b"HTTP/1.1 403 " in answer
    for name, verdict in ((GITHUB, "allow"), ("pypi.org", "allow"), (EVIL, "deny")):
        row = log.expect(protocol="http", name=name, verdict=verdict)
        assert asked(way, GITHUB) in row["detail"]
    assert [(request["host"], request["path"]) for request in arrived("request")] == [
        (GITHUB, "/first"),
        ("pypi.org", "/second"),
    ]


# Servers that speak first


def greet(sock):
    """A server that speaks first, and then says everything back."""
    sock.sendall(b"220 ready\r\n")
    return echo(sock)


@EACH_WAY
def test_a_servers_banner_comes_before_the_client_says_a_word(lab, log, way):
    with Server(lab, RAW4, NAMED_PORT, greet) as server, tunnel(lab, way, RAW, NAMED_PORT) as sock:
        assert read_until(sock, b"\n") == b"220 ready\r\n"
        sock.sendall(b"QUIT\r\n")
        assert read_until(sock, b"\n") == b"QUIT\r\n"
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
        assert server.result() == b"QUIT\r\n"
    row = log.closed(name=RAW, port=NAMED_PORT, verdict="allow")
    assert (row["name_source"], row["destination"], row["detail"]) == (way.source, RAW4, asked(way, RAW))


@EACH_WAY
def test_a_refused_sni_after_a_servers_banner(lab, log, way):
    with Server(lab, RAW4, NAMED_PORT, greet) as server, tunnel(lab, way, RAW, NAMED_PORT) as sock:
        assert read_until(sock, b"\n") == b"220 ready\r\n"
        sock.sendall(HELLO_OF_EVIL)
        read_all(sock)
        assert server.result() == b""
    row = log.expect(name=EVIL, verdict="deny", reason="no-match", port=NAMED_PORT)
    assert asked(way, RAW) in row["detail"]


# The service, reconfigured and killed


@pytest.fixture(scope="module")
def own_lab():
    """A world of these tests' own; each of them writes the configuration that it is about."""
    made = world.make()
    made.start()
    yield made
    made.stop()


def configure(lab, clients=CLIENTS, **settings):
    lab.write_config(clients, **settings)
    done = lab.ask("reload")
    assert done.returncode == 0, done.stdout


ON = {"explicit": {"port": EXPLICIT_PORT}}


def test_the_port_is_refused_as_any_other_of_the_netvm_until_it_is_switched_on(own_lab):
    configure(own_lab)
    log = Log(own_lab)
    with pytest.raises(ConnectionRefusedError):
        to_proxy(own_lab)
    log.expect(client="work", destination=GATEWAY4, port=EXPLICIT_PORT, verdict="deny", reason="internal-address")

    configure(own_lab, **ON)
    with Server(own_lab, RAW4, NAMED_PORT, greet), tunnel(own_lab, CONNECT, RAW, NAMED_PORT) as sock:
        assert read_until(sock, b"\n") == b"220 ready\r\n"

    configure(own_lab)
    with pytest.raises(ConnectionRefusedError):
        to_proxy(own_lab)


@EACH_WAY
def test_a_tunnel_ends_with_the_grant_of_the_name_that_was_asked_for(own_lab, way):
    """The name inside stays permitted."""
    configure(own_lab, **ON)
    log = Log(own_lab)
    with Server(own_lab, RAW4, 443, echo), ExitStack() as stack:
        ends, stays = (stack.enter_context(tunnel(own_lab, way, name, 443)) for name in (GITHUB, RAW))
        for sock in (ends, stays):
            sock.sendall(HELLO)
            assert read_exactly(sock, len(HELLO)) == HELLO

        configure(own_lab, CLIENTS | {"work": {"profiles": ["lab"]}}, **ON)

        with pytest.raises(ConnectionResetError):
            ends.recv(1)
        stays.sendall(b"still here")
        assert read_until(stays, b"here") == b"still here"
    row = log.expect(name=RAW, verdict="allow", closed_by="policy")
    assert asked(way, GITHUB) in row["detail"]


@EACH_WAY
def test_a_tunnel_ends_with_the_grant_of_the_name_inside(own_lab, way):
    configure(own_lab, **ON)
    log = Log(own_lab)
    with Server(own_lab, RAW4, 443, echo), tunnel(own_lab, way, GITHUB, 443) as sock:
        sock.sendall(HELLO)
        assert read_exactly(sock, len(HELLO)) == HELLO

        configure(own_lab, CLIENTS | {"work": {"profiles": ["github"]}}, **ON)

        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    log.expect(name=RAW, verdict="allow", closed_by="policy")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_without_the_service_nobody_is_there(own_lab, number):
    configure(own_lab, **ON)
    tunnel(own_lab, CONNECT, GITHUB, 443).close()
    own_lab.end_service(number)
    with pytest.raises(ConnectionRefusedError):
        to_proxy(own_lab)
    own_lab.start_service()
    tunnel(own_lab, CONNECT, GITHUB, 443).close()


@EACH_WAY
def test_a_server_that_speaks_first_at_an_address_that_a_network_grants(lab, log, way):
    def greet(sock):
        sock.sendall(b"220 welcome\r\n")
        return sock.recv(100)

    with Server(lab, OPEN4, 9, greet) as server, tunnel(lab, way, OPEN4, 9) as sock:
        assert read_until(sock, b"\n") == b"220 welcome\r\n"
        sock.sendall(b"EHLO\r\n")
        assert server.result() == b"EHLO\r\n"
    row = log.closed(client="work", reason="network", verdict="allow")
    assert (row["protocol"], row["destination"], row["detail"]) == ("tcp", OPEN4, asked(way, OPEN4))


@EACH_WAY
def test_an_address_that_was_told_for_a_permitted_name_and_later_for_a_refused_one(lab, log, way):
    for name in (GITHUB, "shared.example"):
        assert GITHUB4 in lab.inside("work", "dig", "+short", "A", name).stdout
    with tunnel(lab, way, GITHUB4, 443) as sock:
        sock.sendall(hello(GITHUB))
        assert sock.recv(1) == b"\x16"
    row = log.closed(name=GITHUB, protocol="tls", verdict="allow", destination=GITHUB4)
    assert row["detail"] == asked(way, GITHUB4)
    with tunnel(lab, way, GITHUB4, 443) as sock:
        sock.sendall(hello("shared.example"))
        assert read_all(sock) == ACCESS_DENIED


@EACH_WAY
def test_a_client_that_resets_the_connection_as_it_stands_leaves_a_row(lab, log, way):
    with Server(lab, RAW4, 443, echo) as server:
        sock = to_proxy(lab)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request = way.request(RAW, 443)
        if way is SOCKS5:
            sock.sendall(GREETING)
            assert read_exactly(sock, len(WELCOME)) == WELCOME
            request = request.removeprefix(GREETING)
        sock.sendall(request)
        sock.close()
        assert server.result() == b""
    row = log.expect(client="work", name=RAW, name_source=way.source, destination=RAW4, bytes_up=0)
    # What the kernel tells of first: that nothing can be sent, or that nothing will come.
    assert (row["verdict"], row["protocol"]) == ("allow", way.source) or row["reason"] == "silent"
