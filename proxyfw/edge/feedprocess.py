"""Has a feed read by a process of its own, proxyfw.feedworker, and believes nothing of what that says."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

MAX_ANSWER = 8 << 20  # bytes
MAX_NETWORKS = 1 << 18
MAX_ERROR = 300  # characters

_GRACE = 2.0  # seconds beyond its patience: for the start of Python
_LAST_WORDS = 4096  # bytes of its stderr that are kept
_LINGER = 1.0  # seconds for the pipes to end after all that is known to have them was killed
_HANDED_ON = ("PATH", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR")
_NETWORK = re.compile(r"[0-9a-f.:]{2,45}/[0-9]{1,3}")
_VALIDATOR = re.compile(r"[ -~]{0,1024}")
_STDIN, _STDOUT = 0, 1


@dataclass(frozen=True, slots=True)
class Same:
    """The list is what it was."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The list, its networks aggregated, as text that looks like networks; and what to ask with the next time."""

    networks: list[str]
    etag: str
    modified: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Why there is no list, for a person: one line, printable."""

    error: str


Answer = Same | Changed | Failed


async def ask(request: Mapping[str, Any], patience: float) -> Answer:
    """The answer to a request of proxyfw.feedworker, but for its `patience`. Past that many seconds the process, and
    whatever it started, is killed; as it is when this is cancelled, and in the end anyway.
    """
    words = json.dumps({**request, "patience": patience}).encode()
    try:
        transport, talk = await asyncio.get_running_loop().subprocess_exec(
            *(_Talk, sys.executable, "-I", "-B", "-m", "proxyfw.feedworker"),
            env=_environment(),
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        return Failed(_one_line(f"the process cannot be started: {error.strerror}"))
    try:
        async with asyncio.timeout(patience + _GRACE):
            _send(transport, words)
            await talk.ended.wait()
    except TimeoutError:
        return Failed(f"timed out after {patience:g} s")
    finally:
        await _end(transport, talk)
    return await asyncio.to_thread(_answer, talk, transport.get_returncode())


class _Talk(asyncio.SubprocessProtocol):
    """What a process says, as far as it is wanted."""

    def __init__(self) -> None:
        self.answer = bytearray()
        self.last_words = bytearray()
        self.ended = asyncio.Event()  # there is nothing more to wait for
        self.exited = asyncio.Event()
        self.silent = asyncio.Event()  # all its pipes have ended
        self._open = 3

    @property
    def too_long(self) -> bool:
        return len(self.answer) > MAX_ANSWER

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd != _STDOUT:
            self.last_words = (self.last_words + data)[-_LAST_WORDS:]
        elif not self.too_long:
            self.answer += data
            if self.too_long:
                self.ended.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open -= 1
        if not self._open:
            self.silent.set()

    def process_exited(self) -> None:
        self.exited.set()
        self.ended.set()


def _environment() -> dict[str, str]:
    """Nothing that steers Python, and no second heap for each thread: it has little address space."""
    kept = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
    return {"PATH": os.defpath, "LANG": "C.UTF-8", **kept, "HOME": "/", "MALLOC_ARENA_MAX": "2"}


def _send(transport: asyncio.SubprocessTransport, words: bytes) -> None:
    stdin = transport.get_pipe_transport(_STDIN)
    assert isinstance(stdin, asyncio.WriteTransport)
    stdin.write(words)
    stdin.write_eof()


async def _end(transport: asyncio.SubprocessTransport, talk: _Talk) -> None:
    """Kills the process with all of its group; waits until it is reaped, and has said what is still in the pipes."""
    # Where the process is reaped already, its number stays taken as long as the group has members.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(transport.get_pid(), signal.SIGKILL)
    try:
        await talk.exited.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                await talk.silent.wait()
    finally:
        transport.close()


def _answer(talk: _Talk, status: int | None) -> Answer:
    if talk.too_long:
        return Failed(f"the answer of the process is longer than {MAX_ANSWER >> 20} MiB")
    if not talk.answer:
        return Failed(_one_line(_epitaph(status, bytes(talk.last_words))))
    return _read(bytes(talk.answer)) or Failed("the process gave an answer that cannot be read")


def _read(words: bytes) -> Answer | None:
    """None: it is no answer."""
    if sum(map(words.count, (b",", b"[", b"{"))) > MAX_NETWORKS + _LAST_WORDS:
        return None  # so many values would take much more memory than their text
    try:
        told = json.loads(words)
    except (ValueError, RecursionError):
        return None
    match told:
        case {"status": "same"}:
            return Same()
        case {"status": "failed", "error": str(error)}:
            return Failed(_one_line(error) or "it failed, and does not say why")
        case {"status": "changed", "networks": list(networks), "etag": str(etag), "modified": str(modified)}:
            good = all(isinstance(each, str) and _NETWORK.fullmatch(each) for each in networks)
            if good and len(networks) <= MAX_NETWORKS and _VALIDATOR.fullmatch(etag) and _VALIDATOR.fullmatch(modified):
                return Changed(networks, etag, modified)
    return None


def _epitaph(status: int | None, last_words: bytes) -> str:
    if status == -signal.SIGXCPU:
        return "it takes more time of the processor than it has"
    how = "ended" if status is None or status >= 0 else f"was killed by {_signal(-status)}"
    lines = last_words.decode("utf-8", "replace").strip().splitlines()
    return f"the process {how} without an answer" + (f": {lines[-1]}" if lines else "")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _one_line(text: str) -> str:
    printable = "".join(each if each.isprintable() else " " for each in text[: 2 * MAX_ERROR])
    return " ".join(printable.split())[:MAX_ERROR]
