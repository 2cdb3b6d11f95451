"""What an answer opens: the ports that a pattern names, at the addresses told, for that client alone."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from contextlib import closing, suppress

import dns.message
import dns.rcode
import pytest

from lab.hellos import ACCESS_DENIED, hello
from lab.names_world import (
    AT_HOME,
    CLIENTS,
    GITHUB4,
    GITHUB6,
    MAIL4,
    POOL4,
    POOL4_TOO,
    POOL6,
    PROFILES,
    SHARED4,
)
from lab.sockets import Server, UdpEcho, connect, echo, eventually, read_all, read_until, udp
from proxyfw.demo.internet import ADDRESS_OF_EVIL

PROHIBITED = {errno.EHOSTUNREACH, errno.EACCES}


def resolve(names, client, name):
    """The client asks for the name, as any program would."""
    done = names.lab.inside(client, "getent", "ahosts", name)
    return sorted({line.split()[0] for line in done.stdout.splitlines()})


def asks_back(names, client, address, port):
    """Whether an echo server at this UDP port is reached; False: refused at once."""
    with udp(names.lab, client, address, port) as sock:
        sock.send(b"anyone?")
        try:
            return sock.recv(100) == b"anyone?"
        except OSError as error:
            if error.errno not in PROHIBITED:
                raise
            return False


def talks(names, client, address, port, words=b"SSH-2.0-lab\r\n"):
    """Whether what is neither TLS nor HTTP reaches an echo server."""
    with connect(names.lab, client, address, port) as sock:
        try:
            sock.sendall(words)
            return read_until(sock, b"\n") == words
        except ConnectionError:
            return False


@pytest.fixture(scope="module")
def sshd(shared_names, tmp_path_factory):
    """A real sshd on port 22 of github.com and of evil.example; the command to log in with."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("no SSH server and client are installed")
    os.makedirs("/run/sshd", exist_ok=True)  # where Debian's sshd confines itself; its package makes it at boot
    folder = tmp_path_factory.mktemp("ssh")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    settings = [f"ListenAddress={address}:22" for address in (GITHUB4, f"[{GITHUB6}]", SHARED4, ADDRESS_OF_EVIL)]
    settings += ["PermitRootLogin=yes", "StrictModes=no", "ForceCommand=echo welcome", "UsePAM=no"]
    settings += [f"AuthorizedKeysFile={folder / 'authorized'}", "PidFile=none"]
    options = [word for setting in settings for word in ("-o", setting)]
    lab = shared_names.lab
    lab.spawn(lab.network.internet, program, "-D", "-e", "-f", "/dev/null", "-h", str(folder / "host"), *options)
    assert eventually(lambda: _listens(lab, GITHUB4))
    known = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
    return ["ssh", "-F", "none", "-i", str(folder / "user"), *(f"-o{option}" for option in known)]


def _listens(lab, address):
    command = ["bash", "-c", f"exec 3<>/dev/tcp/{address}/22"]
    return subprocess.run(lab.network.command(lab.network.internet, *command), capture_output=True).returncode == 0


def test_ssh_to_a_name_whose_port_is_granted_works(names, sshd):
    done = names.lab.inside("dev", *sshd, "root@github.com", "true")

    assert done.stdout == "welcome\n", done.stderr
    row = names.closed(client="dev", name="github.com", port=22)
    assert (row["verdict"], row["reason"], row["name_source"], row["protocol"]) == ("allow", "pin", "pin", "tcp")
    assert (row["rule"], row["bytes_down"] > 500) == ("tools: github.com:22", True)


def test_ssh_over_ipv6_works(names, sshd):
    done = names.lab.inside("dev", *sshd, "-6", "root@github.com", "true")

    assert done.stdout == "welcome\n", done.stderr
    names.closed(client="dev", name="github.com", destination=GITHUB6, verdict="allow", reason="pin")


@pytest.mark.parametrize(
    ("client", "host", "words"),
    [
        pytest.param("dev", "evil.example", "Could not resolve hostname", id="another name"),
        pytest.param("none", "github.com", "Could not resolve hostname", id="the same name for another client"),
        pytest.param("dev", ADDRESS_OF_EVIL, "Connection reset", id="another address"),
        pytest.param("same", GITHUB4, "Connection reset", id="the address given literally"),
    ],
)
def test_ssh_to_anything_else_is_refused(names, sshd, client, host, words):
    done = names.lab.inside(client, *sshd, f"root@{host}", "true")

    assert (done.returncode, done.stdout) == (255, "")
    assert words in done.stderr


def test_a_name_that_only_resolves_is_refused_and_the_log_says_what_to_allow(names, sshd):
    done = names.lab.inside("all", *sshd, "root@evil.example", "true")

    assert "Connection reset" in done.stderr
    row = names.expect(client="all", name="evil.example", port=22, verdict="deny")
    assert (row["reason"], row["name_source"]) == ("no-match", "pin")


def test_of_two_names_on_one_address_the_port_is_open_and_tls_to_the_other_stays_refused(names, sshd):
    """The grant of a port is a grant of that port at the address: documented."""
    assert names.lab.inside("dev", *sshd, "root@shared.example", "true").stdout == "welcome\n"

    with Server(names.lab, SHARED4, 443, echo) as server:
        for name in ("other.example", "evil.example"):
            with connect(names.lab, "dev", SHARED4, 443) as sock:
                sock.sendall(hello(name))
                assert read_all(sock) == ACCESS_DENIED
        assert server.untouched
    with connect(names.lab, "dev", SHARED4, 22) as sock:  # on the open port too
        sock.sendall(hello("other.example"))
        assert read_all(sock) == ACCESS_DENIED
    names.expect(client="dev", name="other.example", port=22, verdict="deny", reason="no-match")


@pytest.mark.parametrize(("address", "family"), [(POOL4, "IPv4"), (POOL6, "IPv6")], ids=["IPv4", "IPv6"])
def test_a_udp_service_is_reached_on_the_port_that_is_named_and_on_no_other(names, address, family):
    with UdpEcho(names.lab, address, 123), UdpEcho(names.lab, address, 124) as other:
        assert not asks_back(names, "same", address, 123)  # it was not told the address
        assert address in resolve(names, "dev", "0.pool.example")

        assert asks_back(names, "dev", address, 123)

        assert not asks_back(names, "dev", address, 124)
        assert not asks_back(names, "same", address, 123)
        assert not asks_back(names, "none", address, 123)
        assert not other.seen

    row = names.expect(client="dev", destination=address, port=123, verdict="allow", protocol="udp")
    assert (row["reason"], row["name"], row["name_source"]) == ("pin", "0.pool.example", "pin")
    assert row["rule"] == "tools: .pool.example:123/udp"
    row = names.expect(client="dev", destination=address, port=124, verdict="deny", protocol="udp")
    assert (row["reason"], row["name"], row["detail"]) == ("no-match", "0.pool.example", "granted on 123/udp")


def test_a_ttl_of_zero_serves_as_well(names):
    with UdpEcho(names.lab, POOL4, 123):
        assert resolve(names, "dev", "brief.pool.example") == [POOL4]
        assert asks_back(names, "dev", POOL4, 123)


def test_round_robin_answers_are_all_remembered(spare_names):
    names = spare_names
    names.zone.records["turns.pool.example"] = [f"0 A {POOL4}", f"0 A {POOL4_TOO}"]
    names.zone.turn = True
    with UdpEcho(names.lab, POOL4, 123), UdpEcho(names.lab, POOL4_TOO, 123):
        for _ in range(3):
            assert resolve(names, "dev", "turns.pool.example") == [POOL4, POOL4_TOO]
        assert asks_back(names, "dev", POOL4, 123)
        assert asks_back(names, "dev", POOL4_TOO, 123)


def test_through_a_chain_of_aliases_the_name_asked_is_pinned(names):
    with Server(names.lab, GITHUB4, 2022, echo):
        assert resolve(names, "dev", "alias.example") == [GITHUB4]
    explained = json.loads(names.lab.ask("explain", "--json", "dev", "alias.example:22").stdout)
    assert [(pin["name"], pin["address"]) for pin in explained["pins"]] == [("alias.example", GITHUB4)]


def test_an_answer_that_changes_leaves_open_connections_alone(spare_names):
    names = spare_names
    with Server(names.lab, MAIL4, 22, echo), Server(names.lab, POOL4, 22, echo):
        assert resolve(names, "dev", "changing.example") == [MAIL4]
        with connect(names.lab, "dev", MAIL4, 22) as old:
            old.sendall(b"before\n")
            assert read_until(old, b"\n") == b"before\n"

            names.zone.records["changing.example"] = [f"1 A {POOL4}"]

            assert eventually(lambda: resolve(names, "dev", "changing.example") == [POOL4])
            assert talks(names, "dev", POOL4, 22)
            old.sendall(b"still here\n")
            assert read_until(old, b"\n") == b"still here\n"
            assert talks(names, "dev", MAIL4, 22)  # and the old address too, for a while


def test_a_tls_connection_goes_where_the_client_was_told_without_another_look_up(spare_names):
    """Even where the name leads elsewhere by now, and the resolvers are dead."""
    names = spare_names
    names.zone.records["told.wild.example"] = [f"1 A {MAIL4}"]
    with Server(names.lab, MAIL4, 443, echo):
        assert resolve(names, "dev", "told.wild.example") == [MAIL4]
        names.zone.silent = True
        asked = len(names.zone.asked)
        with connect(names.lab, "dev", MAIL4, 443) as sock:
            sock.sendall(hello("told.wild.example"))
            assert sock.recv(1) == b"\x16"
        row = names.closed(client="dev", name="told.wild.example", protocol="tls")
        assert (row["destination"], row["name_source"], row["reason"]) == (MAIL4, "sni", "domain")
        assert len(names.zone.asked) == asked


def greet(sock):
    """A server that speaks first: the handler for `Server`."""
    sock.sendall(b"220 mail.example\r\n")
    return echo(sock)


def test_a_server_that_speaks_first_is_heard(names):
    with Server(names.lab, MAIL4, 25, greet) as server:
        assert resolve(names, "dev", "mail.example") == [MAIL4]
        with connect(names.lab, "dev", MAIL4, 25) as sock:
            assert read_until(sock, b"\n") == b"220 mail.example\r\n"
            sock.sendall(b"EHLO there\r\n")
            assert read_until(sock, b"\n") == b"EHLO there\r\n"
            sock.sendall(bytes(range(256)) * 500)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == bytes(range(256)) * 500
        assert server.result().startswith(b"EHLO there\r\n")
    row = names.closed(client="dev", name="mail.example", port=25)
    assert (row["reason"], row["verdict"], row["bytes_up"]) == ("pin", "allow", 12 + 128000)


@pytest.mark.parametrize(
    ("words", "protocol", "reason", "name"),
    [
        pytest.param(hello("evil.example"), "tls", "no-match", "evil.example", id="a refused SNI"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "http", "malformed", "mail.example", id="HTTP"),
        pytest.param(b"\x16\x03\x01\x00\x05hello", "tls", "malformed", "mail.example", id="broken TLS"),
    ],
)
def test_what_the_client_then_says_is_judged_all_the_same(names, words, protocol, reason, name):
    is_refused(names, words, protocol, reason, name)


def test_half_a_hello_that_the_client_then_says_is_not_waited_for(hasty_names):
    is_refused(hasty_names, hello("mail.example")[:40], "tls", "timeout", "mail.example")


def is_refused(names, words, protocol, reason, name):
    """What a client says after a server that has spoken first; it is refused, and the server has not heard of it."""
    with Server(names.lab, MAIL4, 25, greet) as server:
        assert resolve(names, "dev", "mail.example") == [MAIL4]
        with connect(names.lab, "dev", MAIL4, 25) as sock:
            assert read_until(sock, b"\n") == b"220 mail.example\r\n"
            sock.sendall(words)
            assert read_all(sock) == b""
        assert server.result() == b""
    names.expect(client="dev", port=25, verdict="deny", protocol=protocol, reason=reason, name=name)


def test_a_client_that_speaks_after_all_before_the_server_is_served_as_anywhere(names):
    """A browser opens connections before it needs them: each request is still judged."""
    names.zone.records["late.wild.example"] = [f"60 A {MAIL4}"]
    with Server(names.lab, MAIL4, 25, echo) as server:
        assert resolve(names, "dev", "mail.example") == [MAIL4]
        with connect(names.lab, "dev", MAIL4, 25) as sock:
            names.expect(client="dev", name="mail.example", port=25, verdict="allow")  # the server was dialled
            sock.sendall(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
            assert b"reason: no-match" in read_all(sock)
        assert server.result() == b""


def test_a_client_that_only_listens_hears_the_server(names):
    """As `nc mail.example 25 < /dev/null`: its side is ended before the server has spoken."""
    with Server(names.lab, MAIL4, 25, greet):
        assert resolve(names, "dev", "mail.example") == [MAIL4]
        with connect(names.lab, "dev", MAIL4, 25) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b"220 mail.example\r\n"


def test_a_server_that_resets_before_a_word_is_told_from_a_client_that_leaves(names):
    def reset(sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with Server(names.lab, MAIL4, 25, reset):
        assert resolve(names, "dev", "mail.example") == [MAIL4]
        with connect(names.lab, "dev", MAIL4, 25) as sock:
            read_all(sock)
        assert names.closed(client="dev", name="mail.example", port=25)["closed_by"] == "server"


def test_half_hellos_to_a_server_that_speaks_first_are_limited_as_anywhere(spare_names):
    """Each holds up to 64 KiB of memory: no client gets more of them by waiting for a server first."""
    names = spare_names
    lines = "".join(f"  - mail.example:{port}\n" for port in range(26, 28))
    names.lab.write_profile("tools", PROFILES["tools"] + lines)
    names.configure()
    half, socks = hello("mail.example")[:40], []
    with Server(names.lab, MAIL4, 25, echo), Server(names.lab, MAIL4, 26, greet):
        assert resolve(names, "dev", "mail.example") == [MAIL4]
        try:
            for wave in (1, 2, 3):  # each is settled, by the pin, before the next one comes
                socks += [connect(names.lab, "dev", MAIL4, 25 + number % 2) for number in range(200)]
                assert eventually(lambda wave=wave: len([r for r in names.rows() if r["port"] != 53]) >= 200 * wave, 10)
            for sock in socks:
                with suppress(ConnectionError):
                    sock.sendall(half)
            row = names.expect(client="dev", verdict="deny", reason="limit")
            assert "are being set up" in row["detail"]
        finally:
            for sock in socks:
                sock.close()


def test_http_without_a_host_is_permitted_by_the_pin_on_a_port_that_is_named(names):
    with Server(names.lab, MAIL4, 25, echo):
        assert resolve(names, "dev", "mail.example") == [MAIL4]
        with connect(names.lab, "dev", MAIL4, 25) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            read_until(sock, b"\r\n\r\n")
    names.expect(client="dev", name="mail.example", port=25, protocol="http", reason="pin", verdict="allow")


def test_when_both_speak_at_once_nothing_is_lost(names):
    """The client begins at the very moment at which the server is dialled instead."""
    with Server(names.lab, MAIL4, 25, greet):
        assert resolve(names, "dev", "mail.example") == [MAIL4]
        for delay in (0.09, 0.1, 0.11, 0.12, 0.15, 0.19, 0.2, 0.21):
            with connect(names.lab, "dev", MAIL4, 25) as sock:
                time.sleep(delay)  # the attack itself, not a wait
                sock.sendall(b"EHLO there\r\n")
                heard = read_until(sock, b"EHLO there\r\n")
                assert heard == b"220 mail.example\r\nEHLO there\r\n"


def test_a_network_for_another_port_opens_no_udp_port_at_a_private_address(spare_names):
    """The relay tells the address, as the network grants it; the packet layer must not open more than that."""
    names = spare_names
    names.zone.records["inside.pool.example"] = [f"60 A {AT_HOME}"]
    names.lab.write_profile("tools", PROFILES["tools"] + f'networks: ["{AT_HOME}:22"]\n')
    names.configure()
    with UdpEcho(names.lab, AT_HOME, 123) as server:
        assert resolve(names, "dev", "inside.pool.example") == [AT_HOME]
        assert not asks_back(names, "dev", AT_HOME, 123)
        assert not server.seen
    row = names.expect(client="dev", destination=AT_HOME, port=123, verdict="deny")
    assert (row["reason"], row["name"]) == ("private-address", "inside.pool.example")


def test_it_is_refused_at_once_where_the_service_is_down(fresh_names):
    names = fresh_names
    with Server(names.lab, MAIL4, 25, greet), UdpEcho(names.lab, POOL4, 123):
        resolve(names, "dev", "mail.example")
        resolve(names, "dev", "0.pool.example")
        assert asks_back(names, "dev", POOL4, 123)
        names.lab.end_service(signal.SIGKILL)

        with pytest.raises(ConnectionRefusedError):
            connect(names.lab, "dev", MAIL4, 25)
        assert asks_back(names, "dev", POOL4, 123)  # what addresses decide goes on


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_pins_outlive_the_service(fresh_names, number):
    names = fresh_names
    with Server(names.lab, MAIL4, 25, greet), UdpEcho(names.lab, POOL4, 123), UdpEcho(names.lab, POOL4_TOO, 123):
        resolve(names, "dev", "mail.example")
        resolve(names, "dev", "0.pool.example")
        assert eventually(lambda: _stored(names) >= 3)
        names.lab.end_service(number)
        asked = len(names.zone.asked)

        names.lab.start_service()

        with connect(names.lab, "dev", MAIL4, 25) as sock:
            assert read_until(sock, b"\n") == b"220 mail.example\r\n"
        assert asks_back(names, "dev", POOL4, 123)
        assert not asks_back(names, "dev", POOL4_TOO, 123)
        assert not asks_back(names, "same", POOL4, 123)
        assert len(names.zone.asked) == asked


def _stored(names):
    with closing(sqlite3.connect(f"file:{names.lab.folder}/state/pins.sqlite?mode=ro", uri=True)) as db:
        return db.execute("SELECT count(*) FROM pin").fetchone()[0]


def test_pins_are_kept_over_a_reload(spare_names):
    names = spare_names
    with Server(names.lab, MAIL4, 25, greet), UdpEcho(names.lab, POOL4, 123):
        resolve(names, "dev", "mail.example")
        resolve(names, "dev", "0.pool.example")

        names.configure(CLIENTS | {"none": {"profiles": ["home"]}})

        with connect(names.lab, "dev", MAIL4, 25) as sock:
            assert read_until(sock, b"\n") == b"220 mail.example\r\n"
        assert asks_back(names, "dev", POOL4, 123)


def test_a_name_that_the_policy_drops_takes_its_pins_and_connections_along(spare_names):
    names = spare_names
    with Server(names.lab, MAIL4, 25, greet), UdpEcho(names.lab, POOL4, 123):
        resolve(names, "dev", "mail.example")
        resolve(names, "dev", "0.pool.example")
        assert asks_back(names, "dev", POOL4, 123)
        with connect(names.lab, "dev", MAIL4, 25) as sock:
            assert read_until(sock, b"\n") == b"220 mail.example\r\n"
            lines = PROFILES["tools"].splitlines(keepends=True)
            kept = [line for line in lines if "pool.example" not in line and "mail.example" not in line]

            names.lab.write_profile("tools", "".join(kept))
            names.configure()

            assert read_all(sock) == b""
        names.closed(client="dev", name="mail.example", closed_by="policy")
        assert not asks_back(names, "dev", POOL4, 123)
        assert not talks(names, "dev", MAIL4, 25)

        names.lab.write_profile("tools", PROFILES["tools"])  # granted again: it must be asked for again
        names.configure()
        assert not asks_back(names, "dev", POOL4, 123)
        assert not talks(names, "dev", MAIL4, 25)


def test_explain_and_status_tell_of_pins(names):
    resolve(names, "dev", "0.pool.example")

    by_name = names.lab.ask("explain", "dev", "0.pool.example:123/udp").stdout
    by_address = names.lab.ask("explain", "dev", f"{POOL4}:123/udp").stdout
    untold = names.lab.ask("explain", "same", f"{POOL4}:123/udp")
    status = json.loads(names.lab.ask("status", "--json").stdout)

    assert f"0.pool.example = {POOL4} (for " in by_name
    assert by_address.startswith(f"allow: dev -> {POOL4} port 123/udp\n  reason:  pin ")
    assert (untold.returncode, "none: the client was told no address" in untold.stdout) == (1, True)
    assert next(client["pins"] for client in status["clients"] if client["name"] == "dev") >= 2
    assert status["relay"]["queries"] > 0


def test_an_answer_that_cannot_be_pinned_is_not_given(fresh_names):
    """The packet layer gone wrong: the client is told nothing that it could not use, and the log says why."""
    names = fresh_names

    def nft(*words):
        netvm = names.lab.network.netvm
        subprocess.run(names.lab.network.command(netvm, "nft", *words), check=True)

    listing = names.lab.network.command(names.lab.network.netvm, "nft", "list", "chain", "inet", "proxyfw", "forward")
    led_to = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    now = re.search(r"goto forward(\.\d+)", led_to)[1]
    for number in range(len(CLIENTS)):
        nft("flush", "chain", "inet", "proxyfw", f"client-{number}{now}")
    nft("delete", "set", "inet", "proxyfw", f"pins4{now}")
    nft("add", "rule", "inet", "proxyfw", f"client-0{now}", "udp", "dport", "53", "goto", f"to-relay{now}")

    with udp(names.lab, "dev", "10.139.1.1", 53) as sock:
        sock.send(dns.message.make_query("0.pool.example", "A").to_wire())
        reply = dns.message.from_wire(sock.recv(4096))

    assert (reply.rcode(), reply.answer) == (dns.rcode.SERVFAIL, [])
    row = names.expect(client="dev", name="0.pool.example", verdict="deny", reason="error")
    assert "the packet layer: " in row["detail"]
