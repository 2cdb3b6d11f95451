"""Qubes' Python module `qubesdb`, as far as its behaviour goes (python/qubesdb.c and client/qdb-client.c of
qubes-core-qubesdb), over the socket that the environment variable QUBESDB_SOCKET names, else where Qubes OS has it.

Kept on purpose: notices that come inside a command's response wait in the handle, the newest first; the daemon's end
is seen as DisconnectedError; the next command then connects anew, and its watches are gone.
"""

import errno
import os
import socket
from typing import NoReturn

from qubesdb.wire import HEADER, Message, pack, unpack


class Error(RuntimeError):
    """The daemon refused a command, or cannot be reached."""


class DisconnectedError(Error):
    """The daemon ended the connection."""


class QubesDB:
    """One connection. `vmname` is for dom0 alone."""

    def __init__(self, vmname: str | None = None) -> None:
        self._sock: socket.socket | None = None
        self._closed = False
        self._notices: list[str] = []
        try:
            self._connect()
        except OSError as error:
            raise Error(error.errno, os.strerror(error.errno or 0)) from None

    def read(self, path: str) -> bytes | None:
        """The value; None where there is none."""
        kind, _, value = self._ask(Message.READ, path)
        return None if kind is Message.ERROR_NOENT else value

    def multiread(self, path: str) -> dict[str, bytes]:
        """All entries whose paths begin so."""
        found = {}
        _, name, value = self._ask(Message.MULTIREAD, path)
        while name:
            found[name] = value
            _, name, value = self._response()
        return found

    def list(self, path: str) -> list[str]:
        """All paths that begin so."""
        found = []
        _, name, _ = self._ask(Message.LIST, path)
        while name:
            found.append(name)
            _, name, _ = self._response()
        return found

    def write(self, path: str, data: str | bytes) -> None:
        """Sets a value."""
        self._ask(Message.WRITE, path, data.encode() if isinstance(data, str) else data)

    def rm(self, path: str) -> None:
        """Removes an entry, or all that begin so where the path ends in a slash. That there is none is no error."""
        self._ask(Message.RM, path)

    def watch(self, path: str) -> None:
        """Asks for notices of a path, or of all that begin so where it ends in a slash."""
        self._ask(Message.WATCH, path)

    def unwatch(self, path: str) -> None:
        """Takes one such request back."""
        self._ask(Message.UNWATCH, path)

    def read_watch(self) -> str:
        """Waits for a notice: the path that changed."""
        self._check_open()
        if self._notices:
            return self._notices.pop()
        assert self._sock is not None
        try:
            header = self._sock.recv(HEADER.size)
        except ConnectionResetError as error:
            raise Error(error.errno, "Connection reset by peer") from None
        if not header:
            self._disconnected()
        if len(header) < HEADER.size:
            raise Error(0, "Error")
        kind, path, _ = unpack(header)
        assert kind is Message.RESP_WATCH
        return path

    def watch_fd(self) -> int:
        """The descriptor to wait on. What waits in the handle does not show there."""
        self._check_open()
        if self._sock is None:
            self._reconnect()
        assert self._sock is not None
        return self._sock.fileno()

    def close(self) -> None:
        """Ends the connection."""
        self._check_open()
        self._closed = True
        if self._sock is not None:
            self._sock.close()

    def __del__(self) -> None:
        if not self._closed and self._sock is not None:
            self._sock.close()

    def _path(self) -> str:
        return os.environ.get("QUBESDB_SOCKET", "/run/qubes/qubesdb.sock")

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(self._path())
        except OSError:
            sock.close()
            raise
        self._sock = sock

    def _reconnect(self) -> None:
        try:
            self._connect()
        except OSError:
            self._disconnected()

    def _ask(self, kind: Message, path: str, data: bytes = b"") -> tuple[Message, str, bytes]:
        self._check_open()
        if "\0" in path:
            raise TypeError("null byte in path")
        if not path.startswith("/") or len(path.encode()) >= 64 or len(data) > 3072:
            raise Error(0, "Error")
        if self._sock is None:
            self._reconnect()
        assert self._sock is not None
        try:
            self._sock.sendall(pack(kind, path, data))
        except BrokenPipeError:
            self._sock.close()
            self._reconnect()
            self._sock.sendall(pack(kind, path, data))
        return self._response()

    def _response(self) -> tuple[Message, str, bytes]:
        while True:
            kind, path, length = unpack(self._receive(HEADER.size))
            if kind is not Message.RESP_WATCH:
                break
            self._notices.append(path)
        if kind is Message.RESP_ERROR:
            raise Error(0, "Error")
        return kind, path, self._receive(length)

    def _receive(self, size: int) -> bytes:
        assert self._sock is not None
        data = b""
        while len(data) < size:
            try:
                piece = self._sock.recv(size - len(data))
            except ConnectionResetError as error:
                raise Error(error.errno, "Connection reset by peer") from None
            if not piece:
                self._sock.close()
                self._sock = None
                self._disconnected()
            data += piece
        return data

    def _check_open(self) -> None:
        if self._closed:
            raise Error(errno.EINVAL, "Invalid argument")

    def _disconnected(self) -> NoReturn:
        raise DisconnectedError("QubesDB disconnected")
