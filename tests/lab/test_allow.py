"""`allow` and `revoke` against the running service, with real connections; and killed at whatever moment."""

import json
import random
import shlex
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from datetime import datetime

import pytest

from lab import control
from lab.hellos import hello
from lab.sockets import Server, connect, echo, eventually, read_all, read_until
from lab.world import CLIENTS, OPEN4, RAW4
from proxyfw.load import load

NAME = "raw.lab.example"
KILLS = 30


def strict(lab):
    """That world, with its client study confined to one profile, and to what resolves of that."""
    lab.write_config(CLIENTS | {"study": {"profiles": ["wikipedia"]}})
    control.reload(lab)
    return lab


@pytest.fixture
def strict_lab(spare_lab):
    return strict(spare_lab)


class Endless(Server):
    """A web server: one page, and a download that never ends, at a pace that fills no buffer."""

    def __init__(self, lab, address, port):
        self._stop = threading.Event()
        super().__init__(lab, address, port, self._page)

    def __exit__(self, *error):
        self._stop.set()
        super().__exit__(*error)

    def _page(self, sock):
        asked = read_until(sock, b"\r\n\r\n")
        if b"GET /endless" not in asked:
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nhi\n")
            return
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n")
        while not self._stop.wait(0.02):
            sock.sendall(bytes(4096))


def test_a_grant_for_a_while_opens_at_once_and_ends_on_time_with_its_connections(strict_lab, spare_log):
    lab = strict_lab
    with Endless(lab, RAW4, 80):
        assert lab.curl("study", "-4", f"http://{NAME}/").returncode == 6  # it does not resolve

        told = json.loads(lab.ask("allow", "study", NAME, "--for", "5s", "--json").stdout)
        until = datetime.fromisoformat(told["until"]).timestamp()
        assert (told["ok"], told["running"]) == (True, True)
        assert lab.curl("study", "-4", f"http://{NAME}/").stdout == "hi\n"
        page = lab.folder / "page"
        download = lab.spawn(
            lab.network.namespace("study"),
            *("curl", "-sS", "-4", "-N", "-o", str(page), f"http://{NAME}/endless"),
        )
        assert eventually(lambda: page.exists() and page.stat().st_size > 0)
        assert "   (for another " in lab.ask("profiles", "allowed/study").stdout

        assert download.wait(30) in (18, 56)  # cut short
        assert time.time() >= until

        assert spare_log.closed(name=NAME, closed_by="policy")["verdict"] == "allow"
        assert eventually(lambda: lab.curl("study", "-4", f"http://{NAME}/").returncode == 6)
        with connect(lab, "study", RAW4, 80) as sock:
            sock.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            read_all(sock)
        spare_log.expect(name=NAME, protocol="http", verdict="deny", reason="no-match")


def test_a_grant_is_revoked_with_its_connections_and_no_others(strict_lab, spare_log):
    lab = strict_lab
    with ExitStack() as stack:
        stack.enter_context(Server(lab, RAW4, 443, echo))
        lab.ask("allow", "study", NAME)
        ended, kept = (stack.enter_context(connect(lab, client, RAW4, 443)) for client in ("study", "work"))
        for sock in (ended, kept):
            sock.sendall(hello(NAME))
            assert sock.recv(1) == b"\x16"

        done = lab.ask("revoke", "study", NAME)

        assert (done.returncode, "; 1 connection closed" in done.stdout) == (0, True)
        read_all(ended)  # which would time out if it lived
        kept.sendall(b"still here")
        assert read_until(kept, b"still here").endswith(b"still here")
    assert spare_log.closed(client="study", name=NAME)["closed_by"] == "policy"


@pytest.mark.parametrize(
    ("target", "what"),
    [(NAME, NAME), (f"{NAME}:4321", f"{NAME}:4321"), (f"{OPEN4}:4321", f"{OPEN4}:4321")],
    ids=["a name", "a name with a port", "an address"],
)
def test_the_command_that_explain_names_is_the_one_that_allows_it(strict_lab, target, what):
    lab = strict_lab
    refused = lab.ask("explain", "study", target)
    assert refused.returncode == 1
    command = shlex.split(refused.stdout.splitlines()[-1].partition("to allow it: ")[2])
    assert command == ["sudo", "proxyfw", "allow", "study", what]

    assert lab.ask(*command[2:]).returncode == 0

    assert lab.ask("explain", "study", target).returncode == 0


def test_an_address_is_allowed_for_programs_without_a_name(strict_lab):
    lab = strict_lab
    with Server(lab, OPEN4, 4321, echo):
        with connect(lab, "study", OPEN4, 4321) as sock:
            sock.sendall(b"may I?\n")
            assert read_all(sock) == b""
        lab.ask("allow", "study", f"{OPEN4}:4321")
        with connect(lab, "study", OPEN4, 4321) as sock:
            sock.sendall(b"granted\n")
            assert read_until(sock, b"\n") == b"granted\n"
            lab.ask("revoke", "study", f"{OPEN4}:4321")
            sock.sendall(b"still granted?\n")
            with pytest.raises(ConnectionResetError):
                sock.recv(100)


def test_an_address_for_a_while_ends_though_the_service_is_dead(fresh_lab):
    lab = strict(fresh_lab)

    def reaches():
        try:
            with connect(lab, "study", OPEN4, 4321) as sock:
                sock.sendall(b"hello\n")
                return read_until(sock, b"\n") == b"hello\n"
        except ConnectionError:
            return False

    with Server(lab, OPEN4, 4321, echo):
        told = json.loads(lab.ask("allow", "study", f"{OPEN4}:4321", "--for", "3s", "--json").stdout)
        lab.end_service(signal.SIGKILL)
        assert reaches()
        assert eventually(lambda: not reaches(), 10.0)
        assert time.time() >= datetime.fromisoformat(told["until"]).timestamp()


def test_a_killed_allow_leaves_the_old_file_or_the_new_one(strict_lab):
    lab, whole = strict_lab, {}
    assert lab.ask("allow", "study", "first.example").returncode == 0
    names = ["first.example"]
    begun = time.monotonic()
    lab.ask("allow", "study", "first.example")
    takes = time.monotonic() - begun
    moments = random.Random(5)
    for number in range(KILLS):
        name = f"n{number}.example"
        process = subprocess.Popen(
            lab.proxyfw("allow", "study", name, "-c", str(lab.config)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with process:
            try:
                process.wait(moments.uniform(0.2, 1.2) * takes)
            except subprocess.TimeoutExpired:
                process.kill()
        loaded = load(lab.config)
        assert loaded.policy is not None, loaded.problems
        found = [pattern.text for pattern in loaded.profiles["allowed/study"].domains]
        assert found in (names, [*names, name])
        whole[process.returncode] = whole.get(process.returncode, 0) + 1
        names = found
    assert whole.get(-signal.SIGKILL, 0) > 0
    assert lab.ask("allow", "study", "last.example").returncode == 0
    assert [path.name for path in (lab.folder / "allowed").iterdir()] == ["study.yaml"]


def test_several_at_once_lose_nothing(strict_lab):
    lab = strict_lab
    names = [f"n{number}.example" for number in range(6)]
    commands = [lab.proxyfw("allow", "study", name, "-c", str(lab.config)) for name in names]
    processes = [subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for each in commands]
    for process in processes:
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0, out + error

    found = [pattern.text for pattern in load(lab.config).profiles["allowed/study"].domains]
    assert sorted(found) == names
    assert all(lab.ask("explain", "study", name).returncode == 0 for name in names)


def test_a_broken_configuration_writes_nothing_and_what_is_in_force_stays(strict_lab):
    lab = strict_lab
    lab.write_profile("broken", "domain: [x]\n")

    done = lab.ask("allow", "study", NAME)

    assert (done.returncode, done.stdout) == (2, "")
    assert f'{lab.folder}/profiles/broken.yaml:1: error: unknown key "domain"' in done.stderr
    assert not (lab.folder / "allowed").exists()
    assert lab.curl("study", "https://en.wikipedia.org/").returncode == 0


LIST = 'def refresh(current):\n    return ["203.0.113.128/25"]\n'


def test_a_list_is_refreshed_by_hand_and_explain_knows_what_it_holds(strict_lab):
    lab = strict_lab
    (lab.folder / "feeds").mkdir()
    (lab.folder / "feeds" / "mine.py").write_text(LIST)
    (lab.folder / "feeds" / "bad.py").write_text(LIST.replace("return", "return nothing or"))
    lab.write_profile("listed", "feeds:\n  - {python: mine, ports: [4321]}\n")
    lab.write_profile("bad", "feeds:\n  - {python: bad}\n")
    assert "no profile of any client has a feed" in lab.ask("refresh").stdout
    lab.write_config(CLIENTS | {"study": {"profiles": ["listed"]}})
    control.reload(lab)

    done = lab.ask("refresh")

    assert done.returncode == 0, done.stdout
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["feed", "networks"], ["feeds/mine.py", "1"]]
    assert next(line for line in lab.ask("status").stdout.splitlines() if line.startswith("feeds/mine.py")).endswith(
        "good"
    )
    told = lab.ask("explain", "study", "203.0.113.200:4321")
    assert (told.returncode, "  reason:  feed (" in told.stdout) == (0, True)
    assert lab.ask("explain", "study", "203.0.113.200:22").returncode == 1

    lab.write_config(CLIENTS | {"study": {"profiles": ["listed", "bad"]}})
    control.reload(lab)
    done = lab.ask("refresh")
    assert done.returncode == 1
    assert "bad.py:2: NameError" in done.stdout
    assert "note: not known here: what the list feeds/bad.py: " in lab.ask("explain", "study", "203.0.113.9:22").stdout
