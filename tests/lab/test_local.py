"""The explicit proxy on a machine that is nobody's netvm: a user without any right, without nftables, on loopback."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.conftest import Log
from lab.sockets import eventually
from lab.world import EXPLICIT_PORT
from proxyfw import load, startup
from proxyfw.demo.internet import SITES
from proxyfw.demo.lab import Lab
from proxyfw.demo.network import UPLINK4

ME = {"me": {"profiles": ["github", "own"], "address": ["127.0.0.1"]}}
PROFILES = {"own": f"description: this machine, by an address\nnetworks: [{UPLINK4}]\n"}
LISTEN = f"127.0.0.1:{EXPLICIT_PORT}"
NOBODY = 65534
EVIL = "evil.example"


def as_user(number):
    """What runs a command as that user, without groups, capabilities, or any way to get some."""
    return (
        *("setpriv", f"--reuid={number}", f"--regid={number}", "--clear-groups", "--no-new-privs"),
        *("--inh-caps=-all", "--bounding-set=-all"),
    )


@pytest.fixture(scope="module")
def user():
    """A user other than root who can run this Python, which may lie in somebody's own folder."""
    for number in (NOBODY, os.stat(sys.prefix).st_uid):
        tried = [*as_user(number), sys.executable, "-c", "import proxyfw.cli"]
        if number and not subprocess.run(tried, capture_output=True, check=False, cwd="/").returncode:
            return number
    pytest.skip(f"{sys.prefix} is in a folder that is root's alone: no other user can run it")


class Laptop(Lab):
    """A machine with a way to the internet and no client but its own programs; all is done by its user."""

    def __init__(self, user):
        super().__init__(ME, SITES, PROFILES)
        self._user = user

    def write_config(self, clients, listen=LISTEN, **settings):
        """For its user, to whom the folder belongs."""
        config = {"clients": clients, "explicit": {"listen": listen}, "state_dir": str(self.folder / "state")}
        self.config.write_text(json.dumps({**config, **settings}))

    def start_service(self, *before):
        """As the Lab's, once the folder is the user's, and nftables cannot be had."""
        (self.folder / "nftables.py").write_text('raise ImportError("there is no nftables here")\n')
        (self.folder / "certificates").chmod(0o755)
        os.chown(self.folder, self._user, self._user)
        super().start_service(*before)

    def proxyfw(self, *arguments):
        """As the Lab's, by the user."""
        given = ("env", f"PYTHONPATH={self.folder}", f"HOME={self.folder}", "PYTHONDONTWRITEBYTECODE=1")
        return [*as_user(self._user), *given, *super().proxyfw(*arguments)]

    def here(self, *command):
        """Runs a command on this machine, in its network."""
        full = self.network.command(self.network.netvm, *command)
        return subprocess.run(full, capture_output=True, text=True, check=False, timeout=20)

    def fetch(self, url, *options, proxy=f"http://{LISTEN}"):
        """The user's curl, which asks the proxy."""
        curl = ("curl", "-sS", "--cacert", str(self.authority.ca), "--max-time", "15")
        return self.here(*as_user(self._user), *curl, "-x", proxy, *options, url)


@pytest.fixture(scope="module")
def laptop(user):
    """That machine; its service runs."""
    made = Laptop(user)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def log(laptop):
    """Its log from here on."""
    return Log(laptop)


@pytest.mark.parametrize("proxy", ["http", "socks5h", "socks4a"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_permitted_name_is_reached(laptop, log, proxy, scheme):
    done = laptop.fetch(f"{scheme}://github.com/", proxy=f"{proxy}://{LISTEN}")
    assert "reached github.com" in done.stdout, done.stderr
    row = log.expect(client="me", address="127.0.0.1", name="github.com", verdict="allow", reason="domain")
    assert row["protocol"] == ("http" if scheme == "http" else "tls")


def test_a_refused_name_is_answered_by_a_page(laptop, log):
    done = laptop.fetch(f"http://{EVIL}/", "-w", "%{http_code}")
    assert done.stdout.endswith(f"host:   {EVIL}\nreason: no-match\n403")
    log.expect(client="me", name=EVIL, verdict="deny", reason="no-match", protocol="http")


def test_a_refused_name_is_curls_own_error(laptop, log):
    done = laptop.fetch(f"https://{EVIL}/")
    assert re.search(r"curl: \(56\) .*403", done.stderr)
    log.expect(client="me", name=EVIL, verdict="deny", reason="no-match", protocol="connect")


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", UPLINK4])
def test_the_machine_itself_is_never_reached(laptop, log, address):
    """Not even where a profile grants one of its addresses."""
    done = laptop.fetch(f"http://{address}:{EXPLICIT_PORT}/")
    assert "reason: internal-address" in done.stdout
    log.expect(client="me", verdict="deny", reason="internal-address")


def test_another_of_its_addresses_is_another_client(laptop, log):
    done = laptop.fetch("https://github.com/", "--interface", "127.0.0.2")
    assert done.returncode in (7, 56)  # the reset may come before curl has seen that it is connected
    log.expect(client=None, address="127.0.0.2", verdict="deny", reason="unknown-client")


def test_it_has_no_right_at_all(laptop, user):
    status = Path(f"/proc/{laptop.service.pid}/status").read_text()
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert f"Cap{kind}:\t0000000000000000\n" in status
    assert f"Uid:\t{user}\t{user}\t{user}\t{user}\n" in status


def test_its_user_can_give_every_command(laptop, log):
    assert laptop.ask("check").returncode == 0
    told = laptop.ask("explain", "me", f"https://{EVIL}/")
    assert (told.returncode, "no-match" in told.stdout) == (1, True)
    told = json.loads(laptop.ask("status", "--json").stdout)
    assert (told["pid"], [client["name"] for client in told["clients"]]) == (laptop.service.pid, ["me"])
    assert laptop.ask("reload").returncode == 0

    assert laptop.fetch(f"https://{EVIL}/").returncode == 56
    log.expect(name=EVIL, verdict="deny")
    assert EVIL in laptop.ask("log", "--verdict", "deny").stdout

    done = laptop.ask("allow", "me", EVIL)
    assert done.returncode == 0, done.stderr
    assert EVIL in (laptop.folder / "allowed" / "me.yaml").read_text()
    assert f"reached {EVIL}" in laptop.fetch(f"https://{EVIL}/").stdout
    assert laptop.ask("revoke", "me", EVIL).returncode == 0
    assert laptop.fetch(f"https://{EVIL}/").returncode == 56


def test_a_mistake_changes_nothing_and_another_port_takes_effect_at_the_next_start(laptop):
    laptop.write_config(ME, nonsense=True)
    done = laptop.ask("reload")
    assert (done.returncode, "nonsense" in done.stdout) == (1, True)
    assert laptop.fetch("https://github.com/").returncode == 0

    laptop.write_config(ME, listen="127.0.0.1:3129")
    assert "explicit: listen is another than at the start" in laptop.ask("reload").stdout
    assert laptop.fetch("https://github.com/").returncode == 0

    laptop.write_config(ME)
    assert "explicit: listen" not in laptop.ask("reload").stdout


def test_a_second_service_says_that_the_port_is_taken(laptop):
    done = laptop.here(*laptop.proxyfw("run", "-c", str(laptop.config)))
    assert done.returncode == 2
    assert f"explicit: listen: 127.0.0.1 port {EXPLICIT_PORT}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr
    assert laptop.fetch("https://github.com/").returncode == 0


def test_it_ends_when_it_is_told_to_and_starts_again_at_another_address(laptop):
    said = laptop.service.stderr
    laptop.service.send_signal(signal.SIGTERM)
    *_, last = said.read().splitlines()
    assert last == "proxyfw: stopped; connections by name are refused until proxyfw runs again"
    assert laptop.end_service() == 0
    assert laptop.fetch("https://github.com/").returncode == 7  # nobody is there

    laptop.write_config({"me": {"profiles": ["github"], "address": ["::1"]}}, listen=f"[::1]:{EXPLICIT_PORT}")
    laptop.start_service()
    done = laptop.fetch("https://github.com/", proxy=f"http://[::1]:{EXPLICIT_PORT}")
    assert "reached github.com" in done.stdout, done.stderr

    assert laptop.end_service() == 0
    laptop.write_config(ME)
    laptop.start_service()
    assert eventually(lambda: laptop.fetch("https://github.com/").returncode == 0)


def test_on_qubes_os_it_is_refused(tmp_path, monkeypatch):
    """There, a netvm would be left open: it is closed as ever, and then told what is wrong."""
    config = tmp_path / "proxyfw.yaml"
    config.write_text(f"clients: {{}}\nexplicit: {{listen: {LISTEN}}}\n")
    assert startup.is_local(config)
    for module in (startup, load):
        monkeypatch.setattr(module, "on_qubes", lambda: True)
    assert not startup.is_local(config)
    errors = [str(problem) for problem in load.load(config).problems if not problem.warning]
    assert errors == [
        f"{config}: error: explicit: listen: is for a machine that is nobody's netvm; write explicit: {{port: 3128}}"
    ]
    config.write_text(f"clients: {{}}\nexplicit: {{port: {EXPLICIT_PORT}}}\n")
    assert not startup.is_local(config)
