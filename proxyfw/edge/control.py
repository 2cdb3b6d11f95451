"""How the command line talks to the running service: one line of JSON each way, over a Unix socket for root alone."""

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_LIMIT = 1 << 16
_PATIENCE = 60.0  # seconds that a reload may take

Answer = dict[str, Any]


class ControlError(Exception):
    """No service answers."""


class NotPermitted(Exception):
    """There may be a service, and it answers root alone."""


class Control:
    """The service's end. `answer(command)` makes the reply to one command."""

    def __init__(self, path: Path, answer: Callable[[str], Awaitable[Answer]]) -> None:
        self._path = path
        self._answer = answer
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Listens. A socket left by a dead service is replaced. Raises OSError."""
        with suppress(FileNotFoundError):
            self._path.unlink()
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_LIMIT)
        finally:
            os.umask(before)

    def stop(self) -> None:
        """Stops listening and takes the socket away."""
        if self._server is not None:
            self._server.close()
            with suppress(OSError):
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, ValueError, TimeoutError):
                line = await asyncio.wait_for(reader.readline(), 5)
                reply = await self._answer(line.decode("utf-8", "replace").strip())
                writer.write(json.dumps(reply).encode() + b"\n")
                await writer.drain()
        finally:
            writer.close()


def ask(path: Path, command: str) -> Answer:
    """Sends one command to the running service. Raises ControlError when there is none, or it does not answer;
    NotPermitted where that cannot be told."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_PATIENCE)
        try:
            sock.connect(str(path))
            sock.sendall(command.encode() + b"\n")
            data = b""
            while not data.endswith(b"\n"):
                piece = sock.recv(_LIMIT)
                if not piece:
                    break
                data += piece
            answer: Answer = json.loads(data)
            return answer
        except PermissionError:
            raise NotPermitted(f"only root may ask the running proxyfw ({path}); try it with sudo") from None
        except (OSError, ValueError) as error:
            raise ControlError(f"no running proxyfw answers at {path} ({error or 'no answer'})") from None
