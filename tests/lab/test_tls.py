"""TLS by real clients: curl and openssl against the lab's servers, permitted and refused by SNI."""

import hashlib
import os
import ssl
import subprocess
from pathlib import Path
from subprocess import PIPE

import pytest

from lab.sockets import Server, eventually, read_until
from lab.world import RAW4, RAW6
from proxyfw.demo.internet import ADDRESS_OF_EVIL

EVIL6 = "2001:db8:1::66"
MIB = 1 << 20


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        pytest.param(["--tls-max", "1.2"], "(TLSv1.2, SNI github.com)", id="TLS 1.2"),
        pytest.param(["--tlsv1.3"], "(TLSv1.3, SNI github.com)", id="TLS 1.3"),
        pytest.param(["-6"], "at 2001:db8:1::10 port 443", id="IPv6"),
        pytest.param(["-4"], "at 198.51.100.10 port 443", id="IPv4"),
    ],
)
def test_a_permitted_name_is_reached(lab, log, options, seen):
    done = lab.curl("work", *options, "https://github.com/")

    assert seen in done.stdout, done.stderr
    row = log.closed(client="work", name="github.com", verdict="allow")
    assert (row["protocol"], row["name_source"], row["reason"]) == ("tls", "sni", "domain")
    assert row["rule"].startswith("github: .github.com")
    assert min(row["bytes_up"], row["bytes_down"]) > 300


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_http_2_runs_through(lab, nginx, family):
    done = lab.curl("work", "--http2", family, "-w", "%{http_version}", "https://files.lab.example/hello")

    assert done.stdout == "hello over HTTP/2.0\n2"


@pytest.mark.parametrize("options", [["-4"], ["-6"], ["--tls-max", "1.2"]], ids=["IPv4", "IPv6", "TLS 1.2"])
def test_a_refused_name_gets_an_alert_at_once(lab, log, arrived, options):
    done = lab.curl("work", "--max-time", "2", *options, "-w", "%{time_total}", "https://evil.example/")

    assert done.returncode == 35
    assert "access denied" in done.stderr
    assert float(done.stdout) < 0.2
    log.expect(client="work", name="evil.example", verdict="deny", reason="no-match", protocol="tls")
    assert not arrived("request")
    assert not arrived("broken")


def test_what_one_client_may_another_may_not(lab, log):
    done = lab.curl("study", "--max-time", "2", "https://github.com/")

    assert done.returncode == 35
    log.expect(client="study", name="github.com", verdict="deny", reason="no-match")


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        pytest.param(ADDRESS_OF_EVIL, "198.51.100.10", id="IPv4"),
        pytest.param(f"[{EVIL6}]", "2001:db8:1::10", id="IPv6"),
    ],
)
def test_a_permitted_name_at_evils_address_ends_at_the_name(lab, log, arrived, address, reached):
    done = lab.curl("work", "--resolve", f"github.com:443:{address}", "https://github.com/")

    assert f"reached github.com at {reached} port 443" in done.stdout, done.stderr
    assert [request["address"] for request in arrived("request")] == [reached]
    assert not arrived("broken")
    row = log.expect(name="github.com", verdict="allow", destination=reached)
    assert row["detail"] == f"the client aimed at {address.strip('[]')}"


@pytest.mark.parametrize("address", [ADDRESS_OF_EVIL, f"[{EVIL6}]"], ids=["IPv4", "IPv6"])
def test_tls_without_a_name_is_refused(lab, log, arrived, address):
    done = lab.curl("quiet", "--max-time", "2", "-k", f"https://{address}/")

    assert done.returncode == 35
    assert "access denied" in done.stderr
    log.expect(client="quiet", verdict="deny", reason="no-name", protocol="tls", destination=address.strip("[]"))
    assert not arrived("broken")


def test_another_port_has_to_be_granted(lab, log):
    done = lab.curl("work", "--max-time", "2", "https://github.com:7000/")

    assert done.returncode == 35
    row = log.expect(name="github.com", port=7000, verdict="deny", reason="no-match")
    assert row["detail"] == "granted on 80/tcp, 443/tcp, 22/tcp"


def generate(path: Path, size: int) -> str:
    """Writes a file in which no MiB is like another; its SHA-256."""
    block, digest = os.urandom(MIB - 8), hashlib.sha256()
    with path.open("wb") as file:
        for number in range(size // MIB):
            for piece in (number.to_bytes(8), block):
                file.write(piece)
                digest.update(piece)
    return digest.hexdigest()


def test_two_gigabytes_arrive_as_they_are(lab, log):
    """More than 31 bits count; and no MiB is like another."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*lab.authority.certificate(["raw.lab.example"]))
    block, count = os.urandom(MIB - 8), 2048

    def send(plain):
        with context.wrap_socket(plain, server_side=True) as sock:
            read_until(sock, b"\r\n\r\n")
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (count * MIB))
            for number in range(count):
                sock.sendall(number.to_bytes(8) + block)

    curl = lab.network.command(lab.network.namespace("work"), "curl", "-sS", "-4", "--max-time", "100")
    with (
        Server(lab, RAW4, 443, send),
        subprocess.Popen([*curl, "--cacert", str(lab.authority.ca), "https://raw.lab.example/"], stdout=PIPE) as client,
    ):
        for number in range(count):
            assert client.stdout.read(MIB) == number.to_bytes(8) + block, f"MiB {number}"
        assert client.stdout.read() == b""
    assert client.returncode == 0
    assert log.closed(name="raw.lab.example")["bytes_down"] > count * MIB


def test_an_upload_arrives_as_it_is(lab, log, nginx, tmp_path):
    file = tmp_path / "upload"
    expected = generate(file, 64 * MIB)

    done = lab.curl("work", "-T", str(file), "-w", "%{http_code}", "https://files.lab.example/uploaded")

    assert done.stdout == "201", done.stderr
    uploaded = lab.folder / "nginx" / "www" / "uploaded"
    assert hashlib.sha256(uploaded.read_bytes()).hexdigest() == expected
    uploaded.unlink()
    assert log.closed(name="files.lab.example")["bytes_up"] > 64 * MIB


@pytest.fixture
def picky_server(lab):
    """openssl's own server, which takes P-384 alone and asks a client that guessed otherwise to say hello again."""
    certificate, key = lab.authority.certificate(["raw.lab.example"])
    command = ["openssl", "s_server", "-cert", str(certificate), "-key", str(key), "-groups", "P-384", "-www", "-quiet"]
    process = lab.spawn(lab.network.internet, *command, "-accept", f"{RAW4}:443")
    yield process
    lab.end(process)


def test_a_hello_that_the_server_asks_for_again_passes(lab, log, picky_server):
    trace = ["-trace", "-groups", "X25519:P-384", "-CAfile", str(lab.authority.ca), "-verify_return_error"]
    ask = ["openssl", "s_client", "-connect", f"{RAW4}:443", "-servername", "raw.lab.example", *trace]

    done = eventually(lambda: (tried := lab.inside("work", *ask)).returncode == 0 and tried)

    assert done, "the handshake did not succeed"
    assert done.stdout.count("ClientHello, Length=") == 2
    row = log.closed(name="raw.lab.example", verdict="allow")
    assert row["bytes_up"] > 500
    assert RAW6 not in row["destination"]
