"""This netvm's own QubesDB, read and followed: Qubes firewall rules, connected addresses, resolvers, settings of dom0.

Qubes' Python module does the talking (python/qubesdb.c of qubes-core-qubesdb). It exists only on Qubes OS, so it is
imported when it is needed. Values are handed out as they are, by path.

One connection would mix answers with notices, so one is for watching and another for reading. The calls block: a thread
makes them. The daemon is one loop: a notice is in the socket before any answer that shows the change it tells of.
"""

import importlib
import importlib.util
import os
import select
import signal
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

Entries = dict[str, bytes]
OnChange = Callable[[Entries, frozenset[str]], None]

_MARKER = Path("/usr/share/qubes/marker-vm")
_RULES = "/qubes-firewall/"
_HANDLED = "/qubes-firewall-handled/"
_OTHERS = (
    "/connected-ips",
    "/connected-ips6",
    "/mapped-ip/",
    "/vm-config/",
    "/qubes-primary-dns",
    "/qubes-secondary-dns",
    "/qubes-netvm-primary-dns",
    "/qubes-netvm-secondary-dns",
    "/name",
)
"""A watch on a directory, with the slash at its end, tells of all below it; any other of that very path alone."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds before the daemon is looked for again
_LONGEST_PATH = 63  # QDB_MAX_PATH in include/qubesdb.h of qubes-core-qubesdb, without the NUL
_ERRORS = (RuntimeError, OSError, ValueError, SystemError)
"""qubesdb.Error is a RuntimeError. The last two: of a path that is no text (python/qubesdb.c sets an error, and goes on
where it makes a list or dictionary).
"""


class QubesDbError(Exception):
    """There is no QubesDB to ask: its module is not installed, or its daemon does not answer or refuses."""


def available() -> bool:
    """Whether Qubes' module can be imported."""
    return importlib.util.find_spec("qubesdb") is not None


def on_qubes() -> bool:
    """Whether this is a qube, by the file that Qubes' agent installs in each."""
    return _MARKER.exists()


def own_name() -> str:
    """The name of this qube; "" where there is no QubesDB to tell it."""
    try:
        database = _module().QubesDB()
        try:
            return (database.read("/name") or b"").decode("ascii", "replace")
        finally:
            database.close()
    except (QubesDbError, *_ERRORS):
        return ""


class QubesDb:
    """A snapshot of what concerns a netvm, and a new one after each change that dom0 has completed.

    dom0 changes the rules of an address in steps, of which the last writes the empty key `/qubes-firewall/ADDRESS`
    (qubes-core-admin, qubes/vm/mix/net.py). A snapshot holds the keys as they were at that write, never in between.
    """

    def __init__(self) -> None:
        self._rules: dict[str, Entries] = {}  # by address: its keys as last committed, the empty one too
        self._others: dict[str, Entries] = {}  # by entry of _OTHERS
        self._due: set[str] = set()  # addresses that were committed, and not read since
        self._changed: set[str] = set()  # entries of _OTHERS, likewise
        self._watching: Any = None
        self._reading: Any = None
        self._bell = -1
        self._thread: threading.Thread | None = None
        self._stopping = False

    def start(self) -> Entries:
        """Connects, asks for notices, and only then reads everything. Blocks. Raises QubesDbError."""
        try:
            self._connect()
        except _ERRORS as error:
            self._disconnect()
            raise QubesDbError(_says(error)) from None
        return self._snapshot()

    def follow(
        self,
        loop: AbstractEventLoop,
        on_change: OnChange,
        on_trouble: Callable[[str], None],
        on_end: Callable[[str], None],
    ) -> None:
        """Tells of changes, in `loop`, from the snapshot of `start` on.

        on_change: a whole new snapshot, and the addresses whose rules were committed since the last one. on_trouble:
        that the daemon has gone, once; the last snapshot stands until it is back, which is told as a change. on_end:
        that nothing will be told any more, because of an error of this program.
        """

        def tell(callback: Callable[..., None], *what: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(callback, *what)

        def run() -> None:
            # A signal handled in this thread would cut a call off in the middle of an answer.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                self._run(lambda committed: tell(on_change, self._snapshot(), committed), lambda s: tell(on_trouble, s))
            finally:
                if not self._stopping:
                    tell(on_end, "QubesDB is no longer followed: an unexpected error, see the journal")
                self._disconnect()

        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=run, name="qubesdb", daemon=True)
        self._thread.start()

    def handled(self, addresses: Iterable[str]) -> None:
        """Counts once more that the rules of each address are in force, as Qubes' own agent does: users' scripts wait
        for it. Blocks; any thread may call it. Raises QubesDbError.
        """
        try:
            database = _module().QubesDB()
            try:
                for address in addresses:
                    before = database.read(_HANDLED + address) or b""
                    database.write(_HANDLED + address, str(int(before) + 1 if before.isdigit() else 1))
            finally:
                database.close()
        except _ERRORS as error:
            raise QubesDbError(_says(error)) from None

    def stop(self) -> None:
        """Ends the thread and the connections. A daemon that hangs is waited for a second, then left to the thread."""
        self._stopping = True
        if self._thread is None:
            self._disconnect()
            return
        os.eventfd_write(self._bell, 1)
        self._thread.join(1)
        if not self._thread.is_alive():
            os.close(self._bell)
            self._thread = None

    def _run(self, tell: Callable[[frozenset[str]], None], complain: Callable[[str], None]) -> None:
        pause = 0.0  # while all is well
        while not self._stopping:
            try:
                if pause:
                    self._disconnect()
                    if self._rings(pause):
                        return
                    self._connect()
                    pause = 0.0
                    tell(frozenset(self._rules))
                while self._wait():
                    self._sort_notices()
                    committed, others = self._settle()
                    if committed or others:
                        tell(committed)
            except _ERRORS as error:
                if not pause:
                    complain(f"{_says(error)}; what it said last stays in force")
                pause = min(pause * 2, _LONGEST_PAUSE) or _FIRST_PAUSE

    def _connect(self) -> None:
        module = _module()
        self._watching = module.QubesDB()
        # The rules last: a notice that comes inside the answer to a later command would wait in the handle, unseen.
        for path in (*_OTHERS, _RULES):
            self._watching.watch(path)
        self._reading = module.QubesDB()
        listed = [path.removeprefix(_RULES) for path in self._reading.list(_RULES) or ()]
        known = {address for address in listed if "/" not in address and _has_keys(address)}
        self._rules = {address: keys for address, keys in self._rules.items() if address in known}
        self._due, self._changed = known, set(_OTHERS)
        self._settle()

    def _disconnect(self) -> None:
        # A handle that was disconnected would connect again by itself, without its watches: never use it again.
        for handle in (self._watching, self._reading):
            if handle is not None:
                handle.close()
        self._watching = self._reading = None

    def _wait(self) -> bool:
        """Waits for a notice; False when it is time to stop."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        poll.register(self._watching.watch_fd(), select.POLLIN)
        return self._bell not in {fd for fd, _ in poll.poll()}

    def _rings(self, seconds: float) -> bool:
        """Waits that long, or until it is time to stop."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _notices(self) -> Iterator[str]:
        """The paths of the notices that are there. Those that wait in the handle come first, late and unordered, and
        tell of nothing that the first reading did not show.
        """
        poll = select.poll()
        poll.register(self._watching.watch_fd(), select.POLLIN)
        while poll.poll(0):
            path = self._watching.read_watch()
            if path is None:
                raise OSError("the daemon ended the connection")
            yield path

    def _sort_notices(self) -> set[str]:
        """Notes what there is to read, from the notices that are there; the addresses that they name.

        An address with a notice of one of its keys after that of its commit is within its next change, and not due.
        """
        touched = set()
        for path in self._notices():
            if path.startswith(_RULES):
                address, below, _ = path.removeprefix(_RULES).partition("/")
                if path == _RULES:  # all of it was removed
                    self._due |= self._rules.keys()
                elif _has_keys(address):
                    touched.add(address)
                    if below:
                        self._due.discard(address)
                    else:
                        self._due.add(address)
            else:
                self._changed.update(o for o in _OTHERS if path == o or (o[-1] == "/" and path.startswith(o)))
        return touched

    def _settle(self) -> tuple[frozenset[str], bool]:
        """Reads what there is to read: the addresses whose rules were read, and whether anything else was.

        Rules that were touched while they were read may be half of a change: they wait for its commit.
        """
        done: set[str] = set()
        others = False
        while self._due or self._changed:
            due, self._due = self._due, set()
            changed, self._changed = self._changed, set()
            read = {address: self._rules_of(address) for address in due}
            others = others or bool(changed)
            self._others.update({path: self._other(path) for path in changed})
            for address in due - self._sort_notices():
                done.add(address)
                if read[address]:
                    self._rules[address] = read[address]
                else:
                    self._rules.pop(address, None)
        return frozenset(done), others

    def _rules_of(self, address: str) -> Entries:
        """The keys of an address; none where its empty key was removed."""
        own = self._reading.read(_RULES + address)
        return {} if own is None else {_RULES + address: own, **(self._reading.multiread(f"{_RULES}{address}/") or {})}

    def _other(self, path: str) -> Entries:
        if path.endswith("/"):
            return dict(self._reading.multiread(path) or {})
        value = self._reading.read(path)
        return {} if value is None else {path: value}

    def _snapshot(self) -> Entries:
        parts = (*self._others.values(), *self._rules.values())
        return {path: value for part in parts for path, value in part.items()}


def _has_keys(address: str) -> bool:
    """Whether there can be a path below that of the address: asking for a longer one is an error."""
    return len(_RULES + address) < _LONGEST_PATH


def _module() -> Any:
    try:
        return importlib.import_module("qubesdb")
    except ImportError:
        raise QubesDbError("the Python module qubesdb is not installed (package python3-qubesdb of Qubes OS)") from None


def _says(error: Exception) -> str:
    return f"QubesDB: {error.args[-1] if error.args else type(error).__name__}"
