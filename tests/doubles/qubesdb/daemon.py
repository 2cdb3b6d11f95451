"""QubesDB's daemon in a netvm (daemon/db-core.c, db-cmds.c, db-daemon.c of qubes-core-qubesdb): the same messages, the
same order of answers and notices, the same limits. One thread, one loop, as the real one.

As a program: `python -m qubesdb.daemon SOCKET`; it says "ready" when it listens.
"""

import os
import re
import selectors
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from qubesdb.wire import HEADER, MAX_DATA, Message, pack, unpack

_PATH = re.compile(r"(?!-)[a-zA-Z0-9_/.:@-]*\Z")
_FROM_CLIENTS = range(Message.READ, Message.RESP_OK)


class _Client:
    """`sock` None: dom0, over the vchan, which hears no answer."""

    def __init__(self, sock: socket.socket | None) -> None:
        self.sock = sock
        self.received = b""
        self.unsent = b""

    def send(self, data: bytes) -> None:
        """Sends what the socket takes, and keeps the rest."""
        if self.sock is None:
            return
        self.unsent += data
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.unsent:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]


class Daemon:
    """Serves one database on a socket. `entries` holds it; look, do not touch, while the daemon runs.

    `before`: called in the daemon's loop before each command is obeyed, with its type and path; it may use `from_dom0`,
    and so change the database at exactly that moment.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.entries: dict[str, bytes] = {}
        self.before: Callable[[Message, str], None] = lambda kind, path: None
        self._watches: list[tuple[str, _Client]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Listens. What was in the database is still there, as dom0 fills a new daemon's."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="qubesdb-daemon", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends all connections, and the socket is gone."""
        self._wake.close()
        self._thread.join()

    def from_dom0(self, kind: Message, path: str, data: bytes = b"") -> None:
        """WRITE or RM, as if it came over the vchan. Only in `before`."""
        self._obey(None, kind, path, data)

    def wait(self) -> None:
        """Until it ends."""
        self._thread.join()

    def _run(self) -> None:
        ending = False
        while not ending:
            for key, events in self._selector.select():
                if key.fileobj is self._woken:
                    ending = True
                elif key.fileobj is self._listener:
                    sock, _ = self._listener.accept()
                    sock.setblocking(False)
                    self._selector.register(sock, selectors.EVENT_READ, _Client(sock))
                else:
                    self._serve(key.data, events)
                self._wait_to_send()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        self._watches.clear()
        os.unlink(self.path)

    def _wait_to_send(self) -> None:
        """A client that does not take its answers is not heard until it did."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Client):
                wanted = selectors.EVENT_WRITE if key.data.unsent else selectors.EVENT_READ
                if key.events != wanted:
                    self._selector.modify(key.fileobj, wanted, key.data)

    def _serve(self, client: _Client, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            client.send(b"")
            return
        try:
            data = client.sock.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        client.received += data
        alive = bool(data)
        while alive and len(client.received) >= HEADER.size:
            length = HEADER.unpack(client.received[: HEADER.size])[2]
            end = HEADER.size + length
            if len(client.received) < end:
                return
            message, client.received = client.received[:end], client.received[end:]
            alive = self._handle(client, message)
        if not alive:
            self._watches = [watch for watch in self._watches if watch[1] is not client]
            self._selector.unregister(client.sock)
            client.sock.close()

    def _handle(self, client: _Client, message: bytes) -> bool:
        """Answers one command; False where the daemon then ends the connection."""
        number, raw_path, length = HEADER.unpack(message[: HEADER.size])
        if number not in _FROM_CLIENTS or length >= MAX_DATA:
            client.send(HEADER.pack(Message.RESP_ERROR, raw_path, 0))
            return True
        kind, path, _ = unpack(message[: HEADER.size])
        data = message[HEADER.size :]
        odd_data = data and kind is not Message.WRITE
        if not _PATH.match(path) or b"\0" in data or odd_data:
            client.send(pack(Message.RESP_ERROR, path))
            return True
        self.before(kind, path)
        return self._obey(client, kind, path, data)

    def _obey(self, client: _Client | None, kind: Message, path: str, data: bytes) -> bool:
        client = client or _Client(None)
        match kind:
            case Message.READ:
                found = self.entries.get(path)
                client.send(pack(Message.ERROR_NOENT, path) if found is None else pack(Message.RESP_READ, path, found))
            case Message.MULTIREAD | Message.LIST:
                values = kind is Message.MULTIREAD
                answer = Message.RESP_MULTIREAD if values else Message.RESP_LIST
                for name in sorted(self.entries):
                    if name.startswith(path):
                        client.send(pack(answer, name, self.entries[name] if values else b""))
                client.send(pack(answer, ""))
            case Message.WRITE:
                if not path.startswith("/") or path.endswith("/"):
                    client.send(pack(Message.RESP_ERROR, path))
                    return False
                self.entries[path] = data
                client.send(pack(Message.RESP_OK, path))
                self._fire(path)
            case Message.RM:
                gone = [name for name in self.entries if name == path or (path[-1:] == "/" and name.startswith(path))]
                for name in gone:
                    del self.entries[name]
                client.send(pack(Message.RESP_OK if gone else Message.ERROR_NOENT, path))
                if gone:
                    self._fire(path)
            case Message.WATCH:
                self._watches.insert(0, (path, client))
                client.send(pack(Message.RESP_OK, path))
            case Message.UNWATCH:
                known = (path, client) in self._watches
                if known:
                    self._watches.remove((path, client))
                client.send(pack(Message.RESP_OK if known else Message.ERROR_NOENT, path))
        return True

    def _fire(self, path: str) -> None:
        """One notice for each watch on this very path, or on a beginning of it that ends in a slash. The removal of a
        directory is one notice, of the path as it was given.
        """
        for watched, client in self._watches:
            if path == watched or (watched.endswith("/") and path.startswith(watched)):
                client.send(pack(Message.RESP_WATCH, path))


if __name__ == "__main__":
    served = Daemon(sys.argv[1])
    served.start()
    print("ready", flush=True)
    served.wait()
