"""Telling systemd, over sockets as it makes them."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxyfw.edge.notify import notify, watchdog_interval


@pytest.fixture
def systemd() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        yield sock


def test_a_socket_with_a_path(systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    notify("READY=1\nSTATUS=3 clients")
    notify("STATUS=für alle")
    assert systemd.recv(100) == b"READY=1\nSTATUS=3 clients"
    assert systemd.recv(100) == "STATUS=für alle".encode()


def test_an_abstract_socket(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd.bind(f"\0proxyfw-test-{os.getpid()}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@proxyfw-test-{os.getpid()}")
    notify("WATCHDOG=1")
    assert systemd.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("", id="empty"),
        pytest.param("/nowhere/at/all", id="nobody is there"),
        pytest.param("notify", id="neither a full path nor abstract"),
        pytest.param("vsock:2:9", id="another kind of socket"),
        pytest.param("/" + "x" * 200, id="too long a path"),
    ],
)
def test_nothing_happens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


def test_nothing_happens_where_systemd_did_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


OWN = str(os.getpid())


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        pytest.param({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": OWN}, 15.0, id="for us"),
        pytest.param({"WATCHDOG_USEC": "30000000"}, 15.0, id="for whoever reads it"),
        pytest.param({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None, id="for another process"),
        pytest.param({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}, None, id="for no process"),
        pytest.param({"WATCHDOG_USEC": "500000"}, 0.25, id="half a second"),
        pytest.param({"WATCHDOG_USEC": "0", "WATCHDOG_PID": OWN}, None, id="zero"),
        pytest.param({"WATCHDOG_USEC": "-1"}, None, id="below zero"),
        pytest.param({"WATCHDOG_USEC": "30s"}, None, id="no number"),
        pytest.param({"WATCHDOG_PID": OWN}, None, id="no time"),
        pytest.param({}, None, id="nothing"),
    ],
)
def test_the_watchdog(environ: dict[str, str], seconds: float | None) -> None:
    assert watchdog_interval(environ) == seconds
