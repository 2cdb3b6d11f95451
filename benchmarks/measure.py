"""One round of one peer: start it, load it, read what it used."""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lab import RESOLVER_ADDRESS, SERVER_ADDRESS, Lab, Side, lab
from peers import Peer
from usage import Memory, cpu_seconds, memory

NAME = "api.github.com"
ANSWER_BYTES = 1000
AT_ONCE = 64
STREAMS = 8
WARM_UP = 200  # connections before the first figure: imports, caches, first allocations
START_SECONDS = 30.0
QUIET_SECONDS = 0.5
QUIET_CPU = 0.015  # seconds: one tick within QUIET_SECONDS is rest
TOLERATED_FAILURES = 0.01  # of the connections of a run; named under the table
RUN_SECONDS = 120.0  # no single run of `load` takes this long

_numbers = itertools.count()


class PeerError(Exception):
    """The peer did not do its work; the message says what was seen."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The compiled programs and the files they need, all in `directory`."""

    directory: Path

    @property
    def load(self) -> Path:
        return self.directory / "load"

    @property
    def server(self) -> Path:
        return self.directory / "srv"

    @property
    def hello(self) -> Path:
        return self.directory / "hello"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much work a round is. `idle`: connections; `stream_bytes`: of each of the STREAMS."""

    seconds: float
    stream_bytes: int
    idle: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What one round gave. Bytes and seconds.

    `per_idle_connection` is None when not all connections stood; `notes` say why, and how many others failed.
    """

    connections_per_second: float
    bytes_per_second: float
    cpu_per_connection: float
    cpu_per_byte: float
    at_rest: Memory
    per_idle_connection: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """What `load run` counted: connections, bytes received, seconds from the first to the last."""

    good: int
    failed: int
    bytes: int
    seconds: float


def measure(peer: Peer, program: str, tools: Tools, scale: Scale) -> Figures:
    """One round. Two fresh processes: one for the speeds, one for the memory of idle connections. Raises PeerError."""
    notes = []
    with _running(peer, program, tools) as network:
        at_rest = memory(_processes(network))
        with _server(network, tools, ANSWER_BYTES):
            _run(network, tools, ANSWER_BYTES, AT_ONCE, total=WARM_UP)
            cpu_before = settled_cpu(network)
            rate = _run(network, tools, ANSWER_BYTES, AT_ONCE, seconds=scale.seconds)
            rate_cpu = settled_cpu(network) - cpu_before
        with _server(network, tools, scale.stream_bytes):
            cpu_before = settled_cpu(network)
            bulk = _run(network, tools, scale.stream_bytes, STREAMS, total=STREAMS)
            bulk_cpu = settled_cpu(network) - cpu_before
    if rate.failed:
        notes.append(f"{rate.failed} of {rate.good + rate.failed} connections failed")
    per_idle_connection = None
    try:
        with _running(peer, program, tools) as network, _server(network, tools, ANSWER_BYTES, "hold"):
            per_idle_connection = _idle(network, tools, scale.idle)
    except PeerError as error:
        notes.append(str(error))
    return Figures(
        connections_per_second=rate.good / rate.seconds,
        bytes_per_second=bulk.bytes / bulk.seconds,
        cpu_per_connection=rate_cpu / rate.good,
        cpu_per_byte=bulk_cpu / bulk.bytes,
        at_rest=at_rest,
        per_idle_connection=per_idle_connection,
        notes=tuple(notes),
    )


def _running(peer: Peer, program: str, tools: Tools) -> AbstractContextManager[Lab]:
    """A fresh network with the peer in its firewall, started and able to carry a connection."""

    def carries(network: Lab) -> bool:
        with _server(network, tools, ANSWER_BYTES):
            return bool(_load(network, tools, "run", ANSWER_BYTES, 1, 1, 0)["good"])

    return running(peer, program, tools.directory, (NAME, SERVER_ADDRESS), "tcp dport 443", carries)


@contextmanager
def running(
    peer: Peer, program: str, directory: Path, zone: Sequence[str], match: str, works: Callable[[Lab], bool]
) -> Iterator[Lab]:
    """A fresh network with the peer in its firewall, started; from when `works` on. Raises PeerError.

    `zone`: what the resolver of the internet knows, a name and its addresses. `match`: what is redirected to the peer.
    """
    log_path = directory / f"{peer.name}.out"
    arguments = [argument.format(dir=directory) for argument in peer.arguments[1:]]
    with lab(next(_numbers)) as network, log_path.open("w") as log, _resolver(network, zone):
        if peer.port is not None:
            network.redirect(match, peer.port)
        process = subprocess.Popen(
            network.command(Side.FIREWALL, program, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=directory,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while not works(network):
                if process.poll() is not None:
                    raise PeerError(f"ended at the start with status {process.returncode}: {_last_words(log_path)}")
                if time.monotonic() > deadline:
                    raise PeerError(f"did not work within {START_SECONDS:.0f} s: {_last_words(log_path)}")
                time.sleep(0.1)
            settled_cpu(network)
            yield network
        finally:
            network.stop(Side.FIREWALL)
            process.wait()


@contextmanager
def _resolver(network: Lab, zone: Sequence[str]) -> Iterator[None]:
    script = Path(__file__).parent / "dns_server.py"
    with _serving(network.command(Side.INTERNET, sys.executable, script, RESOLVER_ADDRESS, *zone)):
        yield


@contextmanager
def _server(network: Lab, tools: Tools, answer_bytes: int, *mode: str) -> Iterator[None]:
    with _serving(network.command(Side.INTERNET, tools.server, "443", str(answer_bytes), *mode)):
        yield


@contextmanager
def _serving(command: list[str]) -> Iterator[None]:
    """A server that prints a line when it serves, stopped at the end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        if not _output(process).readline():
            raise PeerError(f"the benchmark's own server did not start: {' '.join(command)}")
        yield
    finally:
        process.terminate()
        process.wait()
        _output(process).close()


def _run(network: Lab, tools: Tools, want: int, at_once: int, *, total: int = 0, seconds: float = 0) -> Run:
    result = _load(network, tools, "run", want, at_once, total, seconds)
    run = Run(int(result["good"]), int(result["failed"]), int(result["bytes"]), result["seconds"])
    if not run.good or run.failed > TOLERATED_FAILURES * (run.good + run.failed):
        raise PeerError(f"{run.failed} of {run.good + run.failed} connections failed")
    return run


def _load(network: Lab, tools: Tools, mode: str, *numbers: float) -> dict[str, float]:
    command = _load_command(network, tools, mode, *numbers)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=RUN_SECONDS)
    except subprocess.TimeoutExpired:
        raise PeerError(f"a run did not end within {RUN_SECONDS:.0f} s") from None
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _load_command(network: Lab, tools: Tools, mode: str, want: float, *numbers: float) -> list[str]:
    words = (str(tools.load), mode, SERVER_ADDRESS, "443", str(tools.hello), str(want), *map(str, numbers))
    return network.command(Side.CLIENT, *words)


def _idle(network: Lab, tools: Tools, total: int) -> float:
    """Bytes of the peer's own memory per connection that stands and carries nothing."""
    with _standing(network, tools, min(total, AT_ONCE)):
        pass
    settled_cpu(network)
    before = memory(_processes(network)).proportional
    with _standing(network, tools, total):
        settled_cpu(network)
        after = memory(_processes(network)).proportional
    return (after - before) / total


@contextmanager
def _standing(network: Lab, tools: Tools, total: int) -> Iterator[None]:
    """Connections that each received the whole answer, from before the block until after it."""
    command = _load_command(network, tools, "hold", ANSWER_BYTES, total)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as client:
        try:
            _check_standing(_output(client).readline(), total)
            yield
            closing, _ = client.communicate(timeout=RUN_SECONDS)
            _check_standing(closing, total)
        finally:
            client.kill()


def _check_standing(line: bytes, total: int) -> None:
    standing = json.loads(line)["standing"] if line else 0
    if standing != total:
        raise PeerError(f"only {standing} of {total} idle connections stood")


def settled_cpu(network: Lab) -> float:
    """CPU seconds of the peer, once they no longer grow: what it does after the last byte is part of its work."""
    used = cpu_seconds(_processes(network))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        time.sleep(QUIET_SECONDS)
        later = cpu_seconds(_processes(network))
        if later - used < QUIET_CPU:
            return later
        used = later
    raise PeerError(f"did not come to rest within {START_SECONDS:.0f} s")


def _processes(network: Lab) -> list[int]:
    """The peer's processes."""
    processes = network.processes(Side.FIREWALL)
    if not processes:
        raise PeerError("ended in the middle of the round")
    return processes


def _output(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _last_words(log_path: Path) -> str:
    lines = log_path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
