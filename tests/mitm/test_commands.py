"""`proxyfw run --engine mitmproxy`: how it starts, ends, and says why it does not."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.sockets import eventually
from mitmproxy.version import VERSION

PROXYFW = str(Path(sys.executable).parent / "proxyfw")
_WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")


@pytest.fixture
def port() -> int:
    """One of loopback that is free."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def config(tmp_path: Path, port: int) -> Path:
    """For programs of this machine."""
    path = tmp_path / "proxyfw.yaml"
    path.write_text(
        json.dumps(
            {
                "clients": {"me": {"profiles": ["github"], "address": ["127.0.0.1"]}},
                "explicit": {"listen": f"127.0.0.1:{port}"},
                "dns": {"upstream": ["127.0.0.1:9"]},
                "state_dir": str(tmp_path / "state"),
            }
        )
    )
    return path


def run(config: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs it to its end."""
    command = [PROXYFW, "run", "-c", str(config), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=20, env={**os.environ, **environment}
    )


@pytest.fixture
def running(config: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The engine with its defaults, without any capability."""
    said = tmp_path / "said"
    with said.open("w") as out:
        command = [*_WITHOUT_CAPABILITIES, PROXYFW, "run", "-c", str(config), "--engine", "mitmproxy"]
        process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            assert eventually(lambda: "ready:" in said.read_text(), 20.0), said.read_text()
            yield process
        finally:
            process.kill()
            process.wait()


def test_it_is_an_explicit_proxy_by_itself_and_ends_when_told(running, config, port):
    """Where `explicit: listen:` says, as the proxy would be; no right is needed for it."""
    refused = ["curl", "-sS", "--max-time", "5", "-x", f"http://127.0.0.1:{port}", "http://evil.example/"]
    done = subprocess.run(refused, capture_output=True, text=True, check=False)

    assert "reason: no-match" in done.stdout
    running.send_signal(signal.SIGTERM)
    assert running.wait(10) == 0
    log = subprocess.run([PROXYFW, "log", "--json", "-c", str(config)], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in log.stdout.splitlines()]
    assert [(row["client"], row["name"], row["reason"]) for row in rows] == [("me", "evil.example", "no-match")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--mode", "regular"], "--mode and --web are for --engine mitmproxy", id="a mode for the proxy"),
        pytest.param(["--web", "127.0.0.1:8081"], "are for --engine mitmproxy", id="a view for the proxy"),
        pytest.param(["--engine", "mitmproxy", "--mode", "reverse:http://x"], "is not done here", id="a mode"),
        pytest.param(["--engine", "mitmproxy", "--mode", "x"], "write one of regular, socks5", id="no mode"),
        pytest.param(["--engine", "mitmproxy", "--web", "8081"], "write it as in 127.0.0.1:8081", id="no host"),
        pytest.param(["--engine", "mitmproxy", "--mode", "regular@192.0.2.1:9"], "192.0.2.1:9", id="no such address"),
    ],
)
def test_it_does_not_start(config, arguments, words):
    done = run(config, *arguments)

    assert done.returncode == 2
    assert words in done.stderr


def test_where_it_listens_is_never_guessed(config):
    given = json.loads(config.read_text())
    del given["explicit"]
    given["clients"]["me"]["address"] = ["10.137.0.11"]
    config.write_text(json.dumps(given))

    done = run(config, "--engine", "mitmproxy")

    assert done.returncode == 2
    assert "write --mode, or in the configuration explicit: {listen: 127.0.0.1:3128}" in done.stderr


@pytest.mark.skipif(not VERSION.startswith("11.0."), reason="this mitmproxy has a token for its view")
def test_a_view_without_a_password_is_for_this_machine(config):
    done = run(config, "--engine", "mitmproxy", "--web", "0.0.0.0:8081")

    assert done.returncode == 2
    assert "has no password: write 127.0.0.1" in done.stderr


def test_a_client_with_an_upstream_proxy_is_not_for_it(config):
    given = json.loads(config.read_text())
    given["clients"]["me"]["upstream_proxy"] = "socks5://192.0.2.1:9050"
    config.write_text(json.dumps(given))

    done = run(config, "--engine", "mitmproxy")

    assert done.returncode == 2
    assert "upstream_proxy: the mitmproxy engine has none (clients: me)" in done.stderr


def test_a_configuration_with_an_error_does_not_start(config):
    config.write_text("clients: {me: [no-such-profile]}\n")

    done = run(config, "--engine", "mitmproxy")

    assert done.returncode == 2
    assert "no-such-profile" in done.stderr


def test_without_mitmproxy_it_says_how_to_get_it(config, tmp_path):
    missing = tmp_path / "without" / "mitmproxy"
    missing.mkdir(parents=True)
    (missing / "__init__.py").write_text("raise ModuleNotFoundError(name='mitmproxy')\n")

    done = run(config, "--engine", "mitmproxy", PYTHONPATH=str(missing.parent))

    assert done.returncode == 2
    assert "./setup.sh mitmproxy" in done.stderr
    assert "Traceback" not in done.stderr
