"""A real SSH client and server: no name on the wire, so only an address can permit it."""

import os
import shutil
import subprocess

import pytest

from lab.sockets import connect, eventually
from lab.world import ONE_PORT, RAW4


@pytest.fixture(scope="session")
def lab(shared_hasty):
    return shared_hasty


@pytest.fixture(scope="module")
def sshd(lab):
    """A real sshd at two addresses: one that a network grants with this port, one that nothing grants."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None or shutil.which("ssh-keyscan") is None:
        pytest.skip("no SSH server and client are installed")
    os.makedirs("/run/sshd", exist_ok=True)  # where Debian's sshd confines itself; its package makes it at boot
    key = lab.folder / "ssh_host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    listen = [word for address in (ONE_PORT, RAW4) for word in ("-o", f"ListenAddress={address}:2222")]
    lab.spawn(lab.network.internet, program, "-D", "-e", "-f", "/dev/null", "-h", str(key), *listen)
    assert eventually(lambda: answers(lab))
    return key.with_suffix(".pub").read_text().split()[1]


def answers(lab):
    try:
        connect(lab, "work", ONE_PORT, 2222).close()
    except OSError:
        return False
    return True


def test_ssh_to_a_granted_address_works(lab, sshd):
    done = lab.inside("work", "ssh-keyscan", "-T", "5", "-p", "2222", "-t", "ed25519", ONE_PORT)
    assert sshd in done.stdout, done.stderr


def test_ssh_to_any_other_address_is_refused_for_want_of_a_name(lab, log, sshd):
    options = [
        f"-o{option}" for option in ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
    ]
    done = lab.inside("quiet", "ssh", "-F", "none", *options, "-p", "2222", f"nobody@{RAW4}", "true")
    assert done.returncode == 255
    assert "Connection reset" in done.stderr
    row = log.expect(client="quiet", destination=RAW4, port=2222, verdict="deny")
    assert (row["reason"], row["protocol"], row["name"]) == ("no-name", "tcp", None)


def test_a_client_that_waits_for_the_server_to_speak_is_refused_at_the_deadline(lab, log, sshd):
    done = lab.inside("work", "ssh-keyscan", "-T", "10", "-p", "2222", "-t", "ed25519", RAW4)
    assert sshd not in done.stdout
    log.expect(client="work", destination=RAW4, port=2222, verdict="deny", reason="silent")
