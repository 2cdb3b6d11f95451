"""Writing the log.

The writer is called from an event loop, so it only appends to a queue; a thread of its own does the rest. What it
cannot write it counts, and says so in the log itself.
"""

import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain
from operator import attrgetter
from pathlib import Path

from proxyfw.edge.logdb.schema import COLUMNS, UPGRADES, LogError, Row, is_corrupt, number, version

GATHER = 0.05  # seconds that the thread lets rows gather after the first one
RETRY_AFTER = (0.1, 0.3, 1.0, 3.0, 10.0)  # seconds before each further attempt at a batch; after the last it is lost
TRIM_EVERY = 3600.0  # seconds between two looks at the age of the rows; their size is looked at after every batch
TRIM_ROWS = 2000  # rows deleted in one transaction: some 20 ms

_BUSY = 1.0  # seconds to wait for another program's lock
_PUT_ROWS = 64  # rows written by one statement
_VACUUM_PAGES = 1000  # database pages given back in one transaction
_WAL_BYTES = 4 << 20  # kept of the write-ahead log once it was folded in
_LOST = -1  # the id of a row that was given one and then not written

_row_values = attrgetter(*COLUMNS)


class LogWriter:
    """Writes rows to the file at `path` and keeps it within `keep` seconds and `max_size` bytes.

    At most `capacity` rows wait in memory; what comes beyond that is lost and counted. Rows are on their way to the
    file within 100 ms, and a row that reached it survives the death of the process. Only one writer may have a file.
    """

    def __init__(
        self, path: Path, keep: int, max_size: int, clock: Callable[[], float] = time.time, capacity: int = 50_000
    ) -> None:
        self.path = path
        self.written = 0  # rows; the closing of a row is not counted
        self.last_error = ""  # why the latest attempt at writing failed; "" while writing works
        self.moved_aside: Path | None = None  # where the latest corrupt file went
        self._keep = keep
        self._max_size = max_size
        self._clock = clock
        self._capacity = capacity
        self._queue: deque[Row] = deque()
        self._held = 0  # rows taken from the queue and not yet written
        self._refused = 0  # rows lost for want of room: counted by the caller's thread alone
        self._lost = 0  # rows lost in writing: counted by the writer's thread alone
        self._told = 0  # lost rows that the log itself speaks of
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # device and inode of the open file
        self._too_big = False
        self._last_id = 0  # the highest id given
        self._committed = 0  # the highest id in the file

    @property
    def dropped(self) -> int:
        """Rows, and closings of rows, that were lost."""
        return self._refused + self._lost

    def start(self) -> None:
        """Open or make the file, and start writing. What goes wrong is in `last_error` and is tried again later."""
        try:
            self._database()
        except (sqlite3.Error, OSError, LogError) as error:
            self._abandon(error)
        self._thread.start()

    def stop(self) -> None:
        """Write what is waiting, and end. Blocks, a few seconds at most; rows opened afterwards are not written."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def open_row(self, row: Row) -> Row:
        """Record a decision now, and answer with the same row. Never blocks, never raises."""
        row.time = self._clock()
        self._enqueue(row)
        return row

    def close_row(self, row: Row, bytes_up: int, bytes_down: int, duration: float, closed_by: str) -> None:
        """Record how an opened flow ended. Never blocks, never raises."""
        row.bytes_up = bytes_up
        row.bytes_down = bytes_down
        row.duration = duration
        row.closed_by = closed_by
        # The id is given before the values are read: a row without one is still waiting, and is written as it is now
        # (or it was lost).
        if row.id > 0:
            self._enqueue(row)

    def _enqueue(self, row: Row) -> None:
        if len(self._queue) + self._held >= self._capacity:
            self._refused += 1
            return
        self._queue.append(row)
        if not self._wake.is_set():
            self._wake.set()

    # From here on: the writer's thread.

    def _run(self) -> None:
        trimming: Iterator[None] | None = self._trim()
        due = time.monotonic() + TRIM_EVERY
        while not self._stopping.is_set():
            patience = RETRY_AFTER[-1] if self.dropped > self._told else due - time.monotonic()
            if self._wake.wait(0 if trimming else patience):
                self._stopping.wait(GATHER)
            wrote = self._write_waiting()
            if trimming is None and (time.monotonic() >= due or (wrote and self._too_big)):
                trimming, due = self._trim(), time.monotonic() + TRIM_EVERY
            if trimming is not None and not self._advance(trimming):
                trimming = None
        self._write_waiting()
        self._close()

    def _write_waiting(self) -> bool:
        """Write the queue, with retries. Whether something was written."""
        self._wake.clear()
        self._held = len(self._queue)
        taken = [self._queue.popleft() for _ in range(self._held)]
        batch = [row for row in taken if row.id != _LOST]
        if not batch and self.dropped == self._told:
            return False
        pauses = iter(RETRY_AFTER)
        wrote = self._commit(batch)
        while batch and not wrote:
            pause = next(pauses, None)
            if pause is None:
                self._lose(batch)
                break
            self._stopping.wait(pause)  # which does not wait once it is set
            wrote = self._commit(batch)
        self._held = 0
        return wrote

    def _commit(self, batch: list[Row]) -> bool:
        try:
            db = self._database()
            for row in batch:
                row.id = row.id or self._next_id()
            lost = self.dropped - self._told
            rows = [*batch, self._gap(lost)] if lost else batch
            values = [_row_values(row) for row in rows]
            try:
                _put(db, values)
            except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 cannot hold
                _put(db, [tuple(map(_encodable, row)) for row in values])
            self._too_big = _sizes(db)[0] > self._max_size
        except (sqlite3.Error, OSError, LogError) as error:
            self._abandon(error)
            return False
        self.written += sum(row.id > self._committed for row in rows)
        self._committed = self._last_id
        self._told += lost
        self.last_error = ""
        return True

    def _gap(self, lost: int) -> Row:
        detail = f"{lost} log row{'s were' if lost > 1 else ' was'} lost"
        return Row(time=self._clock(), verdict="deny", reason="error", detail=detail, id=self._next_id())

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _lose(self, batch: list[Row]) -> None:
        self._lost += len(batch)
        for row in batch:
            if row.id > self._committed:
                row.id = _LOST

    def _database(self) -> sqlite3.Connection:
        """The open file; opened again where it is not, or no longer, the one at `path`. Raises what went wrong."""
        if self._db is not None and self._file == _identity(self.path):
            return self._db
        self._close()
        self._db = self._open()
        self._file = _identity(self.path)
        return self._db

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.path.exists():
            self.path.touch(mode=0o600)
        db = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has an effect on an empty file only, and before WAL
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
            _upgrade(db, self.path)
            highest = number(db, "SELECT coalesce(max(id), 0) FROM flow")
            self._last_id = max(self._last_id, highest)
            self._committed = max(self._committed, highest)
        except BaseException:
            db.close()
            raise
        return db

    def _abandon(self, error: Exception) -> None:
        """Note the error; what comes next opens the file anew, for it may be gone or broken."""
        self.last_error = f"{self.path}: {error}"
        self._close()
        if isinstance(error, sqlite3.DatabaseError) and is_corrupt(error):
            try:
                self._move_aside()
            except OSError as failure:
                self.last_error = f"{self.last_error}; it could not be moved aside: {failure}"

    def _move_aside(self) -> None:
        moment = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = self.path.with_name(f"{self.path.name}.corrupt-{moment}")
        for suffix in ("", "-wal"):  # SQLite finds the rows in the -wal again only under the matching name
            if Path(f"{self.path}{suffix}").exists():
                os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        Path(f"{self.path}-shm").unlink(missing_ok=True)
        self.moved_aside = aside

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _advance(self, trimming: Iterator[None]) -> bool:
        """One step of `_trim`. False when it is at its end; a failed one is begun again when it is next due."""
        try:
            return next(trimming, self) is None
        except (sqlite3.Error, OSError, LogError) as error:
            self._abandon(error)
            return False

    def _trim(self) -> Iterator[None]:
        """Delete what is too old or too much, in short transactions, so that rows can be written between them."""
        while self._delete_oldest(self._clock() - self._keep):
            yield
        if _sizes(self._database())[0] <= self._max_size:
            return
        while _sizes(self._database())[1] > 0.9 * self._max_size and self._delete_oldest(float("inf")):
            yield
        for _ in range(0, number(self._database(), "PRAGMA freelist_count"), _VACUUM_PAGES):
            # `execute` would stop after the first page: each is a row of the answer, but one without columns.
            self._database().executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
            yield
        self._database().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _delete_oldest(self, before: float) -> int:
        oldest = "SELECT id FROM flow WHERE time < ? ORDER BY time LIMIT ?"
        return self._database().execute(f"DELETE FROM flow WHERE id IN ({oldest})", (before, TRIM_ROWS)).rowcount


def _put(db: sqlite3.Connection, rows: list[tuple[str | float, ...]]) -> None:
    """Write new rows, and complete those written before; a row whose file was removed meanwhile is written again.

    Many rows to a statement: Python takes its lock again after each one, and waits 5 ms for it while a loop is busy.
    """
    row = f"({', '.join('?' * len(COLUMNS))})"
    with db:
        db.execute("BEGIN IMMEDIATE")
        for start in range(0, len(rows), _PUT_ROWS):
            some = rows[start : start + _PUT_ROWS]
            db.execute(
                f"""INSERT INTO flow ({", ".join(COLUMNS)}) VALUES {", ".join([row] * len(some))}
                ON CONFLICT (id) DO UPDATE SET bytes_up = excluded.bytes_up, bytes_down = excluded.bytes_down,
                duration = excluded.duration, closed_by = excluded.closed_by, detail = excluded.detail""",
                list(chain.from_iterable(some)),
            )


def _upgrade(db: sqlite3.Connection, path: Path) -> None:
    found = version(db, path)
    if found == len(UPGRADES):
        return
    with db:
        db.execute("BEGIN IMMEDIATE")
        for statements in UPGRADES[found:]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {len(UPGRADES)}")


def _sizes(db: sqlite3.Connection) -> tuple[int, int]:
    """Bytes of the file, and those of them in use."""
    page, pages, free = (number(db, f"PRAGMA {what}") for what in ("page_size", "page_count", "freelist_count"))
    return pages * page, (pages - free) * page


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _encodable(value: str | float) -> str | float:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
