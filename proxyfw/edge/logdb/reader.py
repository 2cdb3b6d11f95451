"""Questions to the log."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from proxyfw.edge.logdb.schema import LogError, Row, is_corrupt, number, query, version

PAGE_OF_ROWS = 1000  # rows that a reader takes in one transaction


class LogReader:
    """Reads the file at `path`, also while it is being written. Opens it for each question, and never changes it.

    Every method raises LogError for a file that is missing, unreadable or corrupt.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(
        self,
        client: str | None = None,
        verdict: str | None = None,
        name: str | None = None,
        since: float | None = None,
        after_id: int = 0,
        limit: int | None = None,
    ) -> Iterator[Row]:
        """The rows that match all that is given, in the order of their time; the last `limit` of them.

        `name` is compared lower-case, and `*` in it stands for any characters. `after_id` is for following a log: only
        rows recorded after that one, in the order of their id.

        Rows come in pages of a transaction each: a reader that pauses (`| less`) does not stop the log's upkeep.
        """
        if limit is not None:
            sql, values, _ = query(client, verdict, name, since, after_id, last=True)
            yield from reversed(self._ask(sql, [*values, limit]))
            return
        sql, values, order = query(client, verdict, name, since, after_id)
        while True:
            page = self._ask(sql, [*values, PAGE_OF_ROWS])
            yield from page
            if len(page) < PAGE_OF_ROWS:
                return
            values[-len(order) :] = [getattr(page[-1], column) for column in order]

    def last_id(self) -> int:
        """The id of the latest row; 0 where there is none."""
        with self._open() as db:
            return number(db, "SELECT coalesce(max(id), 0) FROM flow")

    def _ask(self, sql: str, values: list[str | float]) -> list[Row]:
        with self._open() as db:
            return [Row(*row) for row in db.execute(sql, values)]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.stat()
            with closing(sqlite3.connect(f"file:{quote(str(self.path.absolute()))}?mode=ro", uri=True)) as db:
                if version(db, self.path) == 0:
                    raise LogError(f"{self.path}: nothing has been written yet")
                yield db
        except FileNotFoundError:
            raise LogError(f"{self.path}: there is no log yet; the service makes it when it starts") from None
        except PermissionError:
            raise LogError(f"{self.path}: this user may not read the log; try it as root") from None
        except OSError as error:
            raise LogError(f"{self.path}: {error.strerror}") from None
        except sqlite3.Error as error:
            what = "the log is damaged" if is_corrupt(error) else "the log cannot be read"
            raise LogError(f"{self.path}: {what} ({error})") from None
