"""Leaving through another proxy: pproxy, on the internet, with a resolver of its own. Nothing leaves another way."""

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from lab import world
from lab.cases import CONNECT, FORWARD, SOCKS4A, SOCKS5, TRANSPARENT, options
from lab.conftest import Log
from lab.packets import ping
from lab.sockets import Server, connect, echo, eventually, read_all, read_until, socket_in, udp
from proxyfw.demo.lab import Lab
from proxyfw.demo.network import GATEWAY4, RESOLVER

PROXY = "198.51.100.9"
PORTS = {"socks5": 1080, "http": 8080}
EXPLICIT = f"{GATEWAY4}:3128"
EVIL = "198.51.100.66"
ETH_P_ALL = 0x0003


class Wire:
    """What leaves the netvm by its uplink: the packets of the port, from the moment it is made."""

    def __init__(self, lab: Lab) -> None:
        self._sock = socket_in(lab.network.netvm, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self._sock.bind(("eth0", ETH_P_ALL))
        self._sock.setblocking(False)

    def sent(self) -> list[tuple[str, str, int]]:
        """Protocol, destination and port of each packet so far, IPv4 and IPv6, but for those of the link."""
        found = []
        while True:
            try:
                data, (_, kind, direction, *_) = self._sock.recvfrom(2048)
            except BlockingIOError:
                return found
            if direction == socket.PACKET_OUTGOING and kind in (0x0800, 0x86DD):
                packet = _read(data)
                if not ip_address(packet[1]).is_multicast:  # the kernel's own: groups, neighbours
                    found.append(packet)

    def close(self) -> None:
        self._sock.close()


def _read(packet: bytes) -> tuple[str, str, int]:
    if packet[0] >> 4 == 4:
        protocol, to, rest = packet[9], socket.inet_ntop(socket.AF_INET, packet[16:20]), packet[(packet[0] & 15) * 4 :]
    else:
        protocol, to, rest = packet[6], socket.inet_ntop(socket.AF_INET6, packet[24:40]), packet[40:]
    name = {6: "tcp", 17: "udp"}.get(protocol, str(protocol))
    return name, to, int.from_bytes(rest[2:4]) if protocol in (6, 17) else 0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The lab's world; all leave through a SOCKS5 proxy, which is there as `upstream` says."""
    made = world.make()
    made.network._addresses += (PROXY,)
    made.start()
    try:
        folder = Path("/etc/netns") / made.network.internet  # taken away with the network
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "resolv.conf").write_text(f"nameserver {RESOLVER}\n")
        configure(made, "socks5")
        yield made
    finally:
        made.stop()


def configure(lab: Lab, scheme: str) -> None:
    """All leave by this kind of proxy from now on."""
    lab.write_config(world.CLIENTS, explicit={"port": 3128}, upstream_proxy=f"{scheme}://{PROXY}:{PORTS[scheme]}")
    done = lab.ask("reload")
    assert done.returncode == 0, done.stderr


@contextmanager
def upstream(lab: Lab, scheme: str = "socks5") -> Iterator[None]:
    """pproxy as this kind of proxy, from here to the end of the block."""
    listener = f"{scheme}://{PROXY}:{PORTS[scheme]}"
    process = lab.spawn(lab.network.internet, sys.executable, "-m", "pproxy", "-l", listener)
    try:
        assert eventually(lambda: _listens(lab, PORTS[scheme]), 10.0)
        yield
    finally:
        lab.end(process)


def _listens(lab: Lab, port: int) -> bool:
    try:
        with socket_in(lab.network.internet, socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.connect((PROXY, port))
    except OSError:
        return False
    return True


@pytest.fixture
def log(lab: Lab) -> Log:
    """Its log from here on."""
    return Log(lab)


@pytest.fixture
def wire(lab: Lab) -> Iterator[Wire]:
    """What leaves the netvm from here on."""
    made = Wire(lab)
    yield made
    made.close()


def mapped_to(lab: Lab, client: str, name: str) -> str:
    """What the client is told for the name."""
    return lab.inside(client, "dig", "+short", "A", name).stdout.strip()


@pytest.mark.parametrize("scheme", ["socks5", "http"])
def test_all_leaves_through_the_proxy_and_no_query_for_the_target_leaves_the_netvm(lab, log, wire, scheme):
    configure(lab, scheme)
    with upstream(lab, scheme):
        wire.sent()
        answers = [
            lab.curl("work", *options(way, EXPLICIT), url).stdout
            for way in (TRANSPARENT, SOCKS5, SOCKS4A, CONNECT, FORWARD)
            for url in ("https://github.com/", "http://github.com/")
        ]
        assert all(answer.startswith("reached github.com at ") for answer in answers), answers
        assert set(wire.sent()) == {("tcp", PROXY, PORTS[scheme])}

    row = log.closed(name="github.com", protocol="tls", verdict="allow")
    assert row["destination"].startswith("198.1")
    assert row["detail"] == f"through {scheme}://{PROXY}:{PORTS[scheme]}"
    asked = log.closed(name="github.com", protocol="tls", verdict="allow", destination=None)
    assert asked["detail"] == f"asked by socks for github.com; through {scheme}://{PROXY}:{PORTS[scheme]}"
    configure(lab, "socks5")


def test_the_relay_answers_by_itself(lab, log, wire):
    wire.sent()
    address = mapped_to(lab, "work", "github.com")
    assert ip_address(address) in ip_network("198.18.0.0/15")
    assert mapped_to(lab, "work", "GitHub.com.") == address
    for rdtype in ("AAAA", "HTTPS", "MX", "TXT"):
        answer = lab.inside("work", "dig", rdtype, "github.com").stdout
        assert "status: NOERROR" in answer
        assert "ANSWER: 0" in answer
    assert "status: NXDOMAIN" in lab.inside("quiet", "dig", "A", "evil.example").stdout
    assert wire.sent() == []
    log.expect(client="quiet", name="evil.example", protocol="dns", verdict="deny", reason="no-match")


def test_a_server_that_speaks_first_at_a_port_that_a_pattern_names(lab, log):
    def greet(sock: socket.socket) -> bytes:
        sock.sendall(b"220 welcome\r\n")
        return sock.recv(100)

    with upstream(lab), Server(lab, world.RAW4, 7000, greet) as server:
        address = mapped_to(lab, "work", "raw.lab.example")
        with connect(lab, "work", address, 7000) as sock:
            assert read_until(sock, b"\r\n") == b"220 welcome\r\n"
            sock.sendall(b"HELO\r\n")
            assert server.result() == b"HELO\r\n"
        log.closed(name="raw.lab.example", name_source="pin", reason="pin", verdict="allow", destination=address)


def test_what_an_address_grants_leaves_through_the_proxy_too(lab, log, wire):
    with upstream(lab), Server(lab, world.OPEN4, 9, echo):
        wire.sent()
        with connect(lab, "work", world.OPEN4, 9) as sock:
            sock.sendall(b"hello\r\n")
            assert read_until(sock, b"\n") == b"hello\r\n"
        assert set(wire.sent()) == {("tcp", PROXY, 1080)}
        log.closed(client="work", reason="network", destination=world.OPEN4, verdict="allow")


def test_nothing_but_tcp_leaves(lab, log, wire):
    with udp(lab, "work", world.ONE_UDP_PORT, 123) as sock:
        sock.send(b"time?")
        with pytest.raises(OSError, match=r"Permission denied|No route to host|unreachable"):
            sock.recv(100)
    assert ping(lab, "work", world.OPEN4) == "prohibited"
    assert wire.sent() == []
    log.expect(client="work", destination=world.ONE_UDP_PORT, protocol="udp", verdict="deny", reason="unsupported")


def test_what_is_refused_never_gets_to_the_proxy(lab, log, wire):
    with upstream(lab):
        wire.sent()
        for way in (TRANSPARENT, SOCKS5, CONNECT):
            done = lab.curl(
                "work", *options(way, EXPLICIT), "--resolve", f"evil.example:443:{EVIL}", "https://evil.example/"
            )
            assert done.returncode
        assert wire.sent() == []
        log.expect(client="work", name="evil.example", verdict="deny", reason="no-match")


def test_a_mapped_address_that_nobody_was_told_is_nothing(lab, log):
    with connect(lab, "quiet", "198.18.7.7", 22) as sock:
        sock.sendall(b"hello\r\n")
        assert read_all(sock) == b""
    log.expect(client="quiet", destination="198.18.7.7", verdict="deny", reason="no-name")


def test_observe_mode_leaves_through_the_proxy_too(lab, log, wire):
    with upstream(lab):
        wire.sent()
        done = lab.curl("watched", "https://evil.example/")
        assert done.stdout.startswith("reached evil.example"), done.stderr
        assert set(wire.sent()) == {("tcp", PROXY, 1080)}
        log.expect(client="watched", name="evil.example", protocol="tls", verdict="observe", reason="no-match")


def test_with_the_proxy_down_all_is_refused_and_says_so(lab, log, wire):
    wire.sent()
    told = {
        way: lab.curl("work", *options(way, EXPLICIT), url)
        for way, url in (
            (TRANSPARENT, "https://github.com/"),
            (SOCKS5, "https://github.com/"),
            (CONNECT, "https://github.com/"),
            (FORWARD, "http://github.com/"),
        )
    }
    assert "alert" in told[TRANSPARENT].stderr
    assert "(1)" in told[SOCKS5].stderr or "general" in told[SOCKS5].stderr.lower()
    assert "502" in told[CONNECT].stderr
    assert "reason: upstream-proxy (the upstream proxy: not reached: connection refused)" in told[FORWARD].stdout
    with connect(lab, "work", world.OPEN4, 9) as sock:
        sock.sendall(b"hello\r\n")
        assert read_all(sock) == b""
    assert set(wire.sent()) == {("tcp", PROXY, 1080)}
    for protocol in ("tls", "socks", "connect", "http", "tcp"):
        log.expect(client="work", protocol=protocol, verdict="deny", reason="upstream-proxy")


def test_another_proxy_ends_what_left_by_the_first(lab, log):
    with upstream(lab), Server(lab, world.RAW4, 7000, echo):
        address = mapped_to(lab, "work", "raw.lab.example")
        with connect(lab, "work", address, 7000) as sock:
            sock.sendall(b"hello\r\n")
            assert read_until(sock, b"\n") == b"hello\r\n"
            configure(lab, "http")
            assert read_all(sock) == b""
        log.closed(name="raw.lab.example", closed_by="policy")
    configure(lab, "socks5")


@pytest.mark.parametrize("change", ["the proxy is removed", "the client is removed"])
def test_what_was_asked_for_by_name_ends_as_well(lab, log, change):
    clients = {name: part for name, part in world.CLIENTS.items() if name != "work" or "client" not in change}
    with upstream(lab), Server(lab, world.RAW4, 7000, echo):
        with connect(lab, "work", GATEWAY4, 3128) as sock:
            sock.sendall(b"CONNECT raw.lab.example:7000 HTTP/1.1\r\nHost: raw.lab.example\r\n\r\nhello\r\n")
            assert read_until(sock, b"hello\r\n").endswith(b"\r\n\r\nhello\r\n")
            lab.write_config(clients, explicit={"port": 3128})
            assert lab.ask("reload").returncode == 0
            assert read_all(sock) == b""
        log.closed(name="raw.lab.example", closed_by="policy", destination=None)
    configure(lab, "socks5")


def test_bytes_are_the_same_at_the_far_end(lab):
    data = os.urandom(3 << 20)
    with upstream(lab), Server(lab, world.RAW4, 7000, echo) as server:
        address = mapped_to(lab, "work", "raw.lab.example")
        with connect(lab, "work", address, 7000) as sock:
            sender = threading.Thread(target=sock.sendall, args=(data,))
            sender.start()
            got = b""
            while len(got) < len(data) and (piece := sock.recv(1 << 16)):
                got += piece
            sender.join()
        assert got == data
        assert server.result() == data


def test_status_tells_by_which_proxy_a_client_leaves(lab):
    clients = json.loads(lab.ask("status", "--json").stdout)["clients"]
    assert {client["upstream_proxy"] for client in clients} == {f"socks5://{PROXY}:1080"}
