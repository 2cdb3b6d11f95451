"""Pins on disk: an application that was told an address before a restart still finds its pin after it."""

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from itertools import chain
from pathlib import Path

from proxyfw.core.hostname import normalise
from proxyfw.core.pins import Pin

MAX_LIFE = 2 * 3600.0  # seconds from now: no pin is given a longer life, for the clock may have been wrong
KEEP_PAST = 3600.0  # seconds that a pin is kept after it ran out: something may use its address still

_VERSION = 1  # PRAGMA user_version
_TABLE = """CREATE TABLE pin (client TEXT NOT NULL, address TEXT NOT NULL, name TEXT NOT NULL,
    until REAL NOT NULL, PRIMARY KEY (client, address, name)) WITHOUT ROWID"""
_BUSY = 1.0  # seconds to wait for another program's lock
_SOME = 64  # rows of one statement: Python takes its lock again after each, and waits for it while a loop is busy


class PinStore:
    """The file at `path`. `steady` is the clock of `Pin.until`; the file has seconds since the epoch, by `clock`.

    No method raises for what is wrong with the file: it is then as if there were none, and `last_error` says why; it
    is "" while the store works.
    """

    def __init__(self, path: Path, steady: Callable[[], float], clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.last_error = ""
        self._steady = steady
        self._clock = clock
        self._db: sqlite3.Connection | None = None

    def load(self) -> list[Pin]:
        """The pins of an earlier run, the first to run out first, which it may have done. Rows that are no pins are
        passed over; a corrupt file is moved aside.
        """
        now = self._clock()
        ahead = now - self._steady()
        try:
            with self._database() as db:
                db.execute("BEGIN IMMEDIATE")
                db.execute("DELETE FROM pin WHERE until < ? OR typeof(until) <> 'real'", (now - KEEP_PAST,))
                db.execute("UPDATE pin SET until = ? WHERE until > ?", (now + MAX_LIFE, now + MAX_LIFE))
                rows = db.execute("SELECT client, address, name, until FROM pin ORDER BY until").fetchall()
            self.last_error = ""
        except (sqlite3.Error, OSError) as error:
            self._abandon(error)
            return []
        return [pin for row in rows if (pin := _pin(row, ahead)) is not None]

    def save(self, changed: list[Pin], deleted: list[Pin]) -> None:
        """Write these pins, delete those, all or none; not tried again. Blocks; from any thread, but one at a time."""
        ahead = self._clock() - self._steady()
        old = [_key(pin) for pin in deleted]
        new = [(*_key(pin), pin.until + ahead) for pin in changed]
        try:
            with self._database() as db:
                db.execute("BEGIN IMMEDIATE")
                _in_portions(db, "DELETE FROM pin WHERE ", "(client, address, name) = (?, ?, ?)", " OR ", old)
                _in_portions(db, "REPLACE INTO pin (client, address, name, until) VALUES ", "(?, ?, ?, ?)", ", ", new)
            self.last_error = ""
        except (sqlite3.Error, OSError) as error:
            self._abandon(error)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _database(self) -> sqlite3.Connection:
        if self._db is None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.path.exists():
                self.path.touch(mode=0o600)
            self._db = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
            _prepare(self._db)
        return self._db

    def _abandon(self, error: Exception) -> None:
        """Note the error; what comes next opens the file anew, for it may be gone or broken."""
        self.last_error = f"{self.path}: {error}"
        self.close()
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            try:
                for suffix in ("-wal", "-shm"):
                    Path(f"{self.path}{suffix}").unlink(missing_ok=True)
                os.replace(self.path, f"{self.path}.corrupt")  # one name only, or they would fill the disk
                self.last_error += "; it was moved aside"
            except OSError as failure:
                self.last_error += f"; it could not be moved aside: {failure}"


def _prepare(db: sqlite3.Connection) -> None:
    db.text_factory = bytes  # what is not UTF-8 would fail the whole answer otherwise
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found > _VERSION:
        raise sqlite3.NotSupportedError("the pins were written by a later version of proxyfw")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    if found < _VERSION:
        with db:
            db.execute("BEGIN IMMEDIATE")
            db.execute(_TABLE)
            db.execute(f"PRAGMA user_version = {_VERSION}")


def _in_portions(db: sqlite3.Connection, sql: str, one: str, glue: str, rows: Sequence[tuple[object, ...]]) -> None:
    for start in range(0, len(rows), _SOME):
        some = rows[start : start + _SOME]
        db.execute(sql + glue.join([one] * len(some)), [*chain(*some)])


def _key(pin: Pin) -> tuple[str, str, str]:
    return pin.client, str(pin.address), pin.name


def _pin(row: tuple[bytes, bytes, bytes, float], ahead: float) -> Pin | None:
    try:
        client, address, name = (str(cell, "utf-8") for cell in row[:3])
        pin = Pin(client, ip_address(address), normalise(name), row[3] - ahead)
    except (ValueError, TypeError):
        return None
    # Written otherwise it would not be found again; and a zone ("%eth0") may have anything in it.
    return pin if _key(pin) == (client, address, name) and "%" not in address else None
