"""The commands, as they are typed: what they print, how they exit, and that no mistake ends in a traceback."""

import json
import os
import signal
import socket
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import pytest

from lab import world
from lab.hellos import hello
from lab.sockets import connect, read_all
from proxyfw.demo.internet import ADDRESS_OF_EVIL

COMMANDS = [
    *("run", "check", "explain", "log", "status", "reload", "refresh", "allow", "revoke", "profiles", "import"),
    *("qubes-policy", "demo"),
]
_NOBODY = 65534
FIELDS = [
    *("time", "client", "address", "protocol", "name", "name_source", "destination", "port", "verdict", "reason"),
    *("rule", "detail", "bytes_up", "bytes_down", "duration", "closed_by", "id"),
]


def refuse_one(lab, name="evil.example", client="work"):
    with connect(lab, client, ADDRESS_OF_EVIL, 443) as sock:
        sock.sendall(hello(name))
        read_all(sock)


def run(lab, *arguments):
    """The command line as it stands, without the lab's configuration."""
    return subprocess.run(lab.proxyfw(*arguments), capture_output=True, text=True, check=False, timeout=20)


@pytest.fixture(scope="module")
def all_commands(lab):
    return run(lab, "--help").stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(lab, all_commands, command):
    done = run(lab, command, "--help")

    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: proxyfw {command}")
    assert command in all_commands


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        pytest.param(["frobnicate"], 2, "invalid choice: 'frobnicate'", id="an unknown command"),
        pytest.param([], 2, "required: COMMAND", id="no command"),
        pytest.param(["explain", "work"], 2, "required: TARGET", id="no target"),
        pytest.param(["explain", "nobody", "github.com"], 2, "no client 'nobody'", id="an unknown client"),
        pytest.param(["explain", "work", "ftp://github.com"], 2, "for the rest write host:port", id="another scheme"),
        pytest.param(["explain", "work", "git hub"], 2, "this is no host name", id="no name"),
        pytest.param(["explain", "work", "github.com:99999"], 2, "this is no URL, host or address", id="no port"),
        pytest.param(["explain", "work", ""], 2, "the name is empty", id="an empty target"),
        pytest.param(["log", "--since", "yesteryear"], 2, "is no time", id="no time"),
        pytest.param(["log", "-n", "many"], 2, "a whole number of at most 9 digits is wanted", id="no number"),
        pytest.param(["log", "-n", "9" * 30], 2, "a whole number of at most 9 digits is wanted", id="a huge number"),
        pytest.param(["log", "--name", "\x1b[2J"], 2, "characters that no name has", id="an escape sequence"),
        pytest.param(["log", "--client", "\udcff"], 2, "characters that no name has", id="not UTF-8"),
        pytest.param(
            ["explain", "work", "fe80::1%\x1b["], 2, "characters that no name has", id="an escape in a target"
        ),
        pytest.param(["log", "--verdict", "perhaps"], 2, "invalid choice: 'perhaps'", id="no verdict"),
        pytest.param(["profiles", "no-such"], 2, "there is no profile 'no-such'", id="an unknown profile"),
        pytest.param(["profiles", "../github"], 2, "there is no profile '../github'", id="a path as a profile"),
    ],
)
def test_a_mistake_gets_words_and_no_traceback(lab, arguments, code, words):
    done = lab.ask(*arguments) if arguments else run(lab)

    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["check"], 1, "No such file or directory"),
        (["explain", "work", "github.com"], 2, "No such file or directory"),
        (["profiles", "no-such"], 2, "there is no profile"),
    ],
    ids=["check", "explain", "profiles"],
)
def test_a_configuration_that_is_not_there(lab, command, code, words, tmp_path):
    done = run(lab, *command, "-c", str(tmp_path / "none.yaml"))

    assert done.returncode == code
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [(["status"], 1, "no running proxyfw"), (["reload"], 1, "no running proxyfw"), (["log"], 2, "there is no log yet")],
    ids=["status", "reload", "log"],
)
def test_where_no_service_has_run(lab, command, code, words, tmp_path):
    config = tmp_path / "proxyfw.yaml"
    config.write_text(f"clients: {{}}\ndns: {{upstream: [192.0.2.53]}}\nstate_dir: {tmp_path}/state\n")

    done = run(lab, *command, "-c", str(config))

    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def for_root_alone():
    """A configuration that everybody may read, and the control socket of a service that root alone may ask."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as service:
        config = Path(folder, "proxyfw.yaml")
        config.write_text(
            "clients: {work: {profiles: [github], address: 10.137.0.11}}\n"
            f"dns: {{upstream: [192.0.2.53]}}\nstate_dir: {folder}\n"
        )
        service.bind(f"{folder}/control.sock")
        service.listen()
        os.chmod(f"{folder}/control.sock", 0o600)
        os.chmod(folder, 0o755)
        yield config


@pytest.mark.parametrize(
    "command", [["explain", "work", "github.com"], ["status"], ["reload"]], ids=["explain", "status", "reload"]
)
def test_who_may_not_ask_the_running_service_is_told_and_gets_no_answer(lab, command, for_root_alone):
    line = lab.proxyfw(*command, "-c", str(for_root_alone))
    if subprocess.run(lab.proxyfw("--version"), user=_NOBODY, capture_output=True, check=False).returncode:
        pytest.skip("another user cannot run the installed command")

    done = subprocess.run(line, user=_NOBODY, capture_output=True, text=True, check=False, timeout=20)

    assert (done.returncode, done.stdout) == (2, "")
    assert "try it with sudo" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("clients", "words"),
    [
        ("{work: {profiles: [github], address: 10.137.0.11}}", "good: 1 client, "),
        ("{a: {address: 10.137.0.11}, b: {address: 10.137.0.12}}", "good: 2 clients, "),
        ('{work: {address: 10.137.0.11}, "tag:x": [github]}', "good: 1 client, 1 tag, "),
        ('{"tag:x": [github], "tag:y": [github]}', "good: 0 clients, 2 tags, "),
    ],
    ids=["one", "two", "a client and a tag", "tags alone"],
)
def test_check_counts_who_is_listed(lab, clients, words, tmp_path):
    config = tmp_path / "proxyfw.yaml"
    config.write_text(f"clients: {clients}\ndns: {{upstream: [192.0.2.53]}}\n")

    done = run(lab, "check", "-c", str(config))

    assert done.returncode == 0
    assert words in done.stdout


def test_check_of_a_good_configuration(lab):
    done = lab.ask("check")

    assert done.returncode == 0, done.stdout
    assert f"{lab.config}: good: 6 clients, " in done.stdout
    assert json.loads(lab.ask("check", "--json").stdout)["ok"] is True


def test_check_names_file_line_and_what_to_write(lab, tmp_path):
    config = tmp_path / "proxyfw.yaml"
    config.write_text(
        "clients:\n  work:\n    profiles: [github, gihub]\n    address: [10.137.0.11]\n    mod: observe\n"
        "dns: {upstream: [192.0.2.53]}\n"
    )

    done = run(lab, "check", "-c", str(config))
    told = json.loads(run(lab, "check", "--json", "-c", str(config)).stdout)

    assert done.returncode == 1
    assert f'{config}:5: error: unknown key "mod"' in done.stdout
    assert "mode" in done.stdout
    assert told["ok"] is False
    assert (told["problems"][0]["file"], told["problems"][0]["line"]) == (str(config), 5)


def test_the_log_can_be_asked(lab, log):
    for name, client in (("one.evil.example", "work"), ("two.evil.example", "work"), ("one.evil.example", "study")):
        refuse_one(lab, name, client)
    lab.curl("work", "https://github.com/")
    log.closed(name="github.com")
    log.expect(client="study", name="one.evil.example")

    def names(*options):
        rows = lab.rows("--since", "10s", *options)
        return [(row["client"], row["name"]) for row in rows if row["protocol"] == "tls"][-4:]

    one, two, other, allowed = (
        ("work", "one.evil.example"),
        ("work", "two.evil.example"),
        ("study", "one.evil.example"),
        ("work", "github.com"),
    )
    assert names() == [one, two, other, allowed]
    assert names("--verdict", "deny", "--client", "work")[-2:] == [one, two]
    assert names("--name", "ONE.evil.example.")[-2:] == [one, other]
    assert names("--name", "*.evil.example", "-n", "2")[-1] == other
    assert names("--verdict", "allow")[-1] == allowed


def test_the_log_for_programs_has_every_field(lab, log):
    refuse_one(lab)
    log.expect(name="evil.example")

    row = lab.rows("-n", "1")[0]

    assert list(row) == FIELDS
    assert (row["client"], row["address"], row["port"]) == ("work", "10.137.0.11", 443)


def test_the_log_for_people_is_a_table(lab, log):
    refuse_one(lab)
    log.expect(name="evil.example")

    header, line = lab.ask("log", "-n", "1").stdout.splitlines()

    assert header.split()[:6] == ["TIME", "CLIENT", "VERDICT", "REASON", "PROTO", "TARGET"]
    assert line.split()[2:7] == ["work", "deny", "no-match", "tls", "evil.example"]


def test_a_name_that_would_fool_a_terminal_is_shown_escaped(lab, log):
    with connect(lab, "work", ADDRESS_OF_EVIL, 80) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\x1b[31m.example\r\n\r\n")
        read_all(sock)
    log.expect(verdict="deny", reason="malformed")

    assert "\x1b" not in lab.ask("log", "-n", "5").stdout


def test_a_followed_log_shows_what_comes_and_ends_quietly(lab, log):
    refuse_one(lab, "before.example")
    log.expect(name="before.example")
    command = lab.proxyfw("log", "--follow", "--json", "-n", "1", "-c", str(lab.config))
    # As from a terminal: where the tests run in the background, SIGINT is ignored, and is so in what they start.
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=default
    ) as follower:
        follower.stdout.readline()  # the last one so far
        refuse_one(lab, "followed.example")
        shown = json.loads(follower.stdout.readline())
        follower.send_signal(signal.SIGINT)
        words = follower.stderr.read()

    assert shown["name"] == "followed.example"
    assert (follower.returncode, words) == (130, "")


def test_a_reader_that_has_seen_enough_is_no_error(lab):
    command = " ".join(lab.proxyfw("log", "-n", "0", "-c", str(lab.config)))

    done = subprocess.run(["sh", "-c", f"{command} | head -n 1"], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("TIME")
    assert done.stderr == ""


def test_status_tells_who_is_there_and_what_is_open(lab):
    status = json.loads(lab.ask("status", "--json").stdout)
    told = lab.ask("status").stdout

    work = next(client for client in status["clients"] if client["name"] == "work")
    assert work["addresses"] == ["10.137.0.11", "fd09:24ef:4179::a89:b"]
    assert (work["mode"], work["profiles"]) == ("enforce", ["github", "pypi", "lab", "nets"])
    assert status["pid"] == lab.service.pid
    assert (status["log"]["lost"], status["log"]["error"]) == (0, "")
    assert status["resolvers"] == ["198.51.100.53 port 53"]
    assert "running for" in told
    assert str(lab.config) in told


def test_status_counts_open_connections(lab):
    def opened():
        clients = json.loads(lab.ask("status", "--json").stdout)["clients"]
        return {client["name"]: client["connections"] for client in clients}["noisy"]

    before = opened()
    with connect(lab, "noisy", ADDRESS_OF_EVIL, 443):
        assert opened() == before + 1


def test_qubes_policy_is_for_the_configured_clients_alone(lab):
    def told(*more):
        return lab.ask("qubes-policy", "--netvm", "sys-proxyfw", *more).stdout.splitlines()

    policy, commands = told("--policy"), told("--commands")

    assert all(line.startswith(("#", "admin.")) for line in policy)
    assert all(" sys-proxyfw " in line for line in policy if line.startswith("admin."))
    assert {line.split()[0] for line in commands if line and line[0] != "#"} <= {"qvm-service", "qvm-tags", "qvm-prefs"}
    assert "qvm-prefs work netvm sys-proxyfw" in commands
    assert [line.split()[1] for line in commands if line.startswith("qvm-prefs")] == [*world.CLIENTS]
    assert set(policy) | set(commands) <= set(told())


def test_qubes_policy_asks_for_the_netvm_where_nobody_tells_it(lab):
    done = lab.ask("qubes-policy")

    assert (done.returncode, done.stdout) == (2, "")
    assert "write --netvm NAME" in done.stderr


def test_profiles_are_listed_and_shown(lab):
    listed = lab.ask("profiles").stdout
    shown = lab.ask("profiles", "lab").stdout
    told = json.loads(lab.ask("profiles", "lab", "--json").stdout)

    assert {"github", "pypi", "wikipedia", "lab", "nets"} <= {line.split()[0] for line in listed.splitlines()}
    assert f"file: {lab.folder}/profiles/lab.yaml" in shown
    assert "raw.lab.example:7000" in shown
    assert [entry["pattern"] for entry in told["domains"]] == [".lab.example", "raw.lab.example:7000"]


def test_the_demo_shows_itself_and_leaves_nothing_behind(lab):
    def namespaces():
        return set(subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout.splitlines())

    before = namespaces()

    done = run(lab, "demo")

    assert done.returncode == 0, done.stdout
    assert "went as they must" in done.stdout
    assert {line.split()[0] for line in before} >= {line.split()[0] for line in namespaces()}
