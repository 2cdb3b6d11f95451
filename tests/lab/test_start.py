"""Starting on a fresh netvm, with mistakes, and twice; and a disk that is full."""

import subprocess

import pytest

from lab import control
from lab.hellos import ACCESS_DENIED, hello
from lab.impatient import with_constants
from lab.packets import ping
from lab.sockets import Server, connect, echo, eventually, read_all, read_until, udp
from lab.world import CLIENTS, OPEN4, OPEN6, STRANGER
from proxyfw.demo.internet import ADDRESS_OF_EVIL
from proxyfw.demo.network import RESOLVER

RETRY_AFTER = (0.05, 0.1, 0.2, 0.5, 1.0)  # seconds, in place of up to ten


def run(lab):
    """`proxyfw run` that is expected to end by itself."""
    command = lab.network.command(lab.network.netvm, *lab.proxyfw("run", "-c", str(lab.config)))
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)


def nft(lab, *arguments):
    return subprocess.run(lab.network.command(lab.network.netvm, "nft", *arguments), capture_output=True, check=True)


@pytest.fixture
def fresh_netvm(fresh_lab):
    """A netvm where proxyfw has never run, with a mistake in its configuration."""
    fresh_lab.end_service()
    nft(fresh_lab, "delete", "table", "inet", "proxyfw")
    fresh_lab.config.write_text("clients:\n  work:\n    profils: [github]\n")
    return fresh_lab


def test_with_a_broken_configuration_it_says_where_and_does_not_start(fresh_netvm):
    done = run(fresh_netvm)

    assert done.returncode == 2
    assert f"{fresh_netvm.config}:3: error: " in done.stderr
    assert '"profils"' in done.stderr
    assert "profiles" in done.stderr
    assert "Traceback" not in done.stderr


def test_with_a_broken_configuration_on_a_fresh_netvm_everything_is_refused(fresh_netvm):
    lab = fresh_netvm
    with Server(lab, OPEN4, 4321, echo) as server:
        assert run(lab).returncode == 2

        for client in (*CLIENTS, STRANGER):
            for address in (OPEN4, OPEN6, "198.51.100.10", "10.137.0.5"):
                with pytest.raises(OSError, match="Connection refused"):
                    connect(lab, client, address, 4321)
            with udp(lab, client, RESOLVER, 53) as sock:
                sock.send(b"anyone?")
                with pytest.raises(OSError, match="No route to host"):
                    sock.recv(1)
            assert ping(lab, client, OPEN4) == "prohibited"
        assert server.untouched

        lab.write_config(CLIENTS)
        lab.start_service()

        with connect(lab, "work", OPEN4, 4321) as sock:
            sock.sendall(b"now\n")
            assert read_until(sock, b"\n") == b"now\n"
        assert lab.curl("work", "https://github.com/").returncode == 0


def test_a_start_that_fails_leaves_the_rules_that_were_in_force(fresh_lab):
    lab = fresh_lab
    lab.end_service()
    before = nft(lab, "-s", "list", "ruleset").stdout
    lab.write_profile("lab", "domains: ['*']\n")

    assert run(lab).returncode == 2

    assert nft(lab, "-s", "list", "ruleset").stdout == before
    known = ("--resolve", "github.com:443:198.51.100.10")
    assert lab.curl("work", "--max-time", "2", *known, "https://github.com/").returncode == 7


def test_a_second_service_is_refused_and_the_first_one_unharmed(lab):
    pid = control.status(lab)["pid"]

    done = run(lab)

    assert done.returncode == 2
    assert "is proxyfw running already?" in done.stderr
    assert "Traceback" not in done.stderr
    assert control.status(lab)["pid"] == pid
    assert lab.curl("work", "https://github.com/").returncode == 0
    assert lab.curl("work", "--max-time", "2", "https://evil.example/").returncode == 35


@pytest.fixture
def small_disk(fresh_lab):
    """The state folder on a disk of one MiB."""
    state = fresh_lab.folder / "state"
    fresh_lab.end_service()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(state)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        fresh_lab.start_service(*with_constants({"proxyfw.edge.logdb.writer.RETRY_AFTER": RETRY_AFTER}))
        yield state
        fresh_lab.end_service()
    finally:
        subprocess.run(["umount", str(state)], check=True)


def fill(path):
    """Writes until the disk takes no more."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def test_a_full_disk_stops_no_decision_and_its_loss_is_told(fresh_lab, small_disk, fresh_log):
    lab, refused = fresh_lab, 40

    def status():
        return control.status(lab)["log"]

    fill(small_disk / "filler")
    for _ in range(refused):
        with connect(lab, "work", ADDRESS_OF_EVIL, 443) as sock:
            sock.sendall(hello("evil.example") + bytes(1000))
            assert read_all(sock) == ACCESS_DENIED
    assert lab.curl("work", "https://github.com/").returncode == 0

    assert "full" in eventually(lambda: status()["error"])
    lost = eventually(lambda: status()["lost"], 10)
    told = lab.ask("status").stdout
    assert f" {lost} lost" in told
    assert "the log cannot be written: " in told

    (small_disk / "filler").unlink()
    gap = fresh_log.expect(patience=15, reason="error")
    assert gap["detail"] == f"{lost} log row{'s were' if lost > 1 else ' was'} lost"
    assert status()["error"] == ""
    assert lost + sum(row["name"] == "evil.example" for row in fresh_log.rows()) >= refused  # the others had waited
