"""The packet layer: what addresses alone decide, in both directions of the answer."""

import errno
import json
import subprocess
from socket import SOCK_DGRAM

import pytest

from lab.packets import ping, put_on_the_wire, udp_packet
from lab.sockets import Server, UdpEcho, connect, echo, eventually, family_of, read_until, socket_in, udp
from lab.world import AT_HOME, ONE_PORT, ONE_UDP_PORT, OPEN4, OPEN6, STRANGER
from proxyfw.demo.network import GATEWAY4, GATEWAY6, RESOLVER, UPLINK4, UPLINK6

GITHUB, GITHUB6 = "198.51.100.10", "2001:db8:1::10"
PROHIBITED = {errno.EHOSTUNREACH, errno.EACCES}  # how a socket learns of "administratively prohibited": IPv4, IPv6


def error_of_tcp(lab, client, address, port):
    """Which error a connection attempt ends with; 0: it stands."""
    try:
        connect(lab, client, address, port).close()
    except OSError as error:
        return error.errno
    return 0


def error_of_udp(lab, client, address, port):
    """Which error a datagram is answered with."""
    with udp(lab, client, address, port) as sock:
        sock.send(b"anyone?")
        with pytest.raises(OSError, match=r".") as caught:
            sock.recv(100)
        return caught.value.errno


def ask_back(lab, client, address, port):
    """The echo of a datagram."""
    with udp(lab, client, address, port) as sock:
        sock.send(b"anyone?")
        return sock.recv(100)


@pytest.mark.parametrize("address", [OPEN4, OPEN6], ids=["IPv4", "IPv6"])
def test_a_granted_network_is_forwarded_without_the_proxy(lab, log, address):
    with Server(lab, address, 4321, echo), UdpEcho(lab, address, 4321):
        with connect(lab, "work", address, 4321) as sock:
            sock.sendall(b"no TLS, no HTTP")
            assert read_until(sock, b"HTTP") == b"no TLS, no HTTP"
        assert ask_back(lab, "work", address, 4321) == b"anyone?"
        assert ping(lab, "work", address) == "reply"
        assert error_of_tcp(lab, "study", address, 4321) == 0  # the proxy takes it, and finds no name in it

    assert not [row for row in log.rows() if row["client"] == "work"]


def test_a_network_with_a_port_is_granted_on_that_port_alone(lab, log):
    with Server(lab, ONE_PORT, 2222, echo), Server(lab, ONE_PORT, 2223, echo) as other:
        with connect(lab, "work", ONE_PORT, 2222) as sock:
            sock.sendall(b"SSH-2.0-lab\r\n")
            assert read_until(sock, b"\n") == b"SSH-2.0-lab\r\n"
        with connect(lab, "work", ONE_PORT, 2223) as sock:
            sock.sendall(b"SSH-2.0-lab\r\n")
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        assert other.untouched
        assert error_of_udp(lab, "work", ONE_PORT, 2222) in PROHIBITED
        assert ping(lab, "work", ONE_PORT) == "prohibited"

    log.expect(client="work", verdict="deny", reason="no-name", protocol="tcp", destination=ONE_PORT, port=2223)
    log.expect(client="work", verdict="deny", reason="no-name", protocol="udp", destination=ONE_PORT, port=2222)
    log.expect(client="work", verdict="deny", reason="no-name", protocol="icmp", destination=ONE_PORT)


def test_a_network_with_a_udp_port_is_granted_on_that_port_alone(lab, log):
    with UdpEcho(lab, ONE_UDP_PORT, 123), UdpEcho(lab, ONE_UDP_PORT, 124):
        assert ask_back(lab, "work", ONE_UDP_PORT, 123) == b"anyone?"
        assert error_of_udp(lab, "work", ONE_UDP_PORT, 124) in PROHIBITED

    log.expect(client="work", verdict="deny", reason="no-name", protocol="udp", destination=ONE_UDP_PORT, port=124)


@pytest.mark.parametrize("address", [GITHUB, GITHUB6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("port", [443, 123, 5353], ids=["QUIC", "NTP", "mDNS port"])
def test_udp_is_refused_at_once(lab, log, address, port):
    assert error_of_udp(lab, "quiet", address, port) in PROHIBITED

    log.expect(client="quiet", verdict="deny", reason="no-name", protocol="udp", destination=address, port=port)


@pytest.mark.parametrize("address", [GITHUB, GITHUB6], ids=["IPv4", "IPv6"])
def test_ping_is_refused_at_once(lab, log, address):
    assert ping(lab, "quiet", address) == "prohibited"

    log.expect(client="quiet", verdict="deny", reason="no-name", protocol="icmp", destination=address)


INTERNAL = [
    pytest.param(GATEWAY4, 22, id="the netvm, SSH"),
    pytest.param(GATEWAY4, 443, id="the netvm, a port that a name could have"),
    pytest.param(GATEWAY4, 3129, id="the netvm, the proxy's own port"),
    pytest.param(GATEWAY6, 3129, id="the netvm, the proxy's own port, IPv6"),
    pytest.param(UPLINK4, 3129, id="the netvm's uplink"),
    pytest.param(UPLINK6, 443, id="the netvm's uplink, IPv6"),
    pytest.param("10.137.0.12", 443, id="another client"),
    pytest.param("fd09:24ef:4179::a89:c", 443, id="another client, IPv6"),
    pytest.param("10.137.99.1", 443, id="the range of qubes"),
    pytest.param("10.138.0.1", 443, id="the range of disposables"),
    pytest.param("10.139.1.1", 80, id="Qubes' virtual DNS address, not on port 53"),
    pytest.param("fd09:24ef:4179::1234", 443, id="the range of qubes, IPv6"),
    pytest.param("169.254.169.254", 80, id="link-local: a cloud's metadata"),
    pytest.param("240.0.0.1", 443, id="reserved"),
    pytest.param("64:ff9b::a00:1", 443, id="an IPv4 address inside an IPv6 one"),
]


@pytest.mark.parametrize(("address", "port"), INTERNAL)
def test_the_netvm_and_what_is_inside_is_never_reached(lab, log, address, port):
    assert error_of_tcp(lab, "work", address, port) == errno.ECONNREFUSED
    for client in ("work", "watched"):  # observe mode does not open it
        assert error_of_udp(lab, client, address, port) in PROHIBITED
        log.expect(client=client, verdict="deny", reason="internal-address", protocol="udp", destination=address)

    log.expect(client="work", verdict="deny", reason="internal-address", protocol="tcp", destination=address, port=port)


def test_the_netvms_loopback_is_not_reached_by_a_packet_made_by_hand(lab, log):
    put_on_the_wire(lab, "work", udp_packet("10.137.0.11", "127.0.0.1", 3129))

    log.expect(client="work", verdict="deny", reason="internal-address", destination="127.0.0.1")


@pytest.mark.parametrize("address", [GITHUB, GITHUB6, OPEN4, OPEN6])
def test_a_client_that_is_not_listed_reaches_nothing(lab, log, address):
    assert error_of_tcp(lab, STRANGER, address, 443) == errno.ECONNREFUSED
    assert error_of_udp(lab, STRANGER, address, 53) in PROHIBITED
    assert ping(lab, STRANGER, address) == "prohibited"

    for protocol in ("tcp", "udp", "icmp"):
        row = log.expect(verdict="deny", reason="unknown-client", protocol=protocol, destination=address)
        assert row["client"] is None
        assert row["address"] in (lab.network.clients[STRANGER].address4, lab.network.clients[STRANGER].address6)


def test_a_client_that_is_not_listed_resolves_nothing(lab, log):
    assert error_of_udp(lab, STRANGER, RESOLVER, 53) in PROHIBITED

    log.expect(verdict="deny", reason="unknown-client", destination=RESOLVER, port=53)


def test_another_clients_address_gives_no_rights(lab, log):
    with UdpEcho(lab, OPEN4, 4321) as server:
        put_on_the_wire(lab, "study", udp_packet("10.137.0.11", OPEN4, 4321, b"spoofed"))
        row = log.expect(verdict="deny", reason="unknown-client", destination=OPEN4, port=4321)
        assert ask_back(lab, "work", OPEN4, 4321) == b"anyone?"
        assert server.seen == [b"anyone?"]

    assert (row["client"], row["address"]) == (None, "10.137.0.11")


@pytest.mark.parametrize("network", ["10.137.0.11/32", "fd09:24ef:4179::a89:b/128"], ids=["IPv4", "IPv6"])
def test_a_client_that_takes_another_ones_address_reaches_nothing(lab, log, network):
    address = network.partition("/")[0]
    aim = OPEN6 if ":" in address else OPEN4
    interface = ["ip", "-n", lab.network.namespace("study"), "address"]
    subprocess.run([*interface, "add", network, "dev", "eth0", *["nodad"] * (":" in address)], check=True)
    try:
        with (
            socket_in(lab.network.namespace("study"), family_of(address), SOCK_DGRAM) as sock,
            UdpEcho(lab, aim, 4321) as server,
        ):
            sock.bind((address, 0))
            sock.connect((aim, 4321))
            sock.send(b"let me in")
            log.expect(verdict="deny", reason="unknown-client", address=address, destination=aim)
            assert not server.seen
    finally:
        subprocess.run([*interface, "del", network, "dev", "eth0"], check=True)


def test_the_resolver_itself_is_reached_on_no_other_port(lab, log):
    assert error_of_udp(lab, "quiet", RESOLVER, 54) in PROHIBITED

    log.expect(client="quiet", verdict="deny", reason="no-name", protocol="udp", destination=RESOLVER, port=54)


def test_observe_mode_lets_packets_through_and_records_them(lab, log):
    with UdpEcho(lab, OPEN4, 4321):
        assert ask_back(lab, "watched", OPEN4, 4321) == b"anyone?"
        assert ping(lab, "watched", OPEN4) == "reply"

    for protocol in ("udp", "icmp"):
        row = log.expect(client="watched", protocol=protocol, destination=OPEN4)
        assert (row["verdict"], row["reason"]) == ("observe", "no-name")


def test_a_flood_is_counted_and_crowds_nobody_out(lab, log):
    def not_logged():
        return json.loads(lab.ask("status", "--json").stdout)["log"]["packets_not_logged"]

    before = not_logged()
    flood = 2000
    with socket_in(lab.network.namespace("noisy"), family_of(GITHUB), SOCK_DGRAM) as sock:
        for _ in range(flood):
            sock.sendto(b"x", (GITHUB, 9))
    with udp(lab, "work", AT_HOME, 9) as sock:
        sock.send(b"x")

    log.expect(client="work", verdict="deny", protocol="udp", destination=AT_HOME, port=9)
    logged = len([row for row in log.rows() if row["client"] == "noisy"])
    assert 0 < logged < 500
    assert eventually(lambda: not_logged() - before == flood - logged)
    told = lab.ask("status").stdout
    assert f"refused packets not logged, as there were too many: {not_logged()}" in told
