"""What the log holds, and the SQL for it."""

import sqlite3
from dataclasses import dataclass, fields
from pathlib import Path


class LogError(Exception):
    """The log cannot be read or written; the message says which file and why."""


@dataclass(slots=True)
class Row:
    """One decision. Only the writer changes it, and only through `open_row` and `close_row`.

    Unknown text is "", an unknown port 0. `id` is given when the row is first written and grows with time.
    """

    time: float = 0.0  # seconds since the epoch, set by the writer
    client: str = ""
    address: str = ""  # the client's
    protocol: str = ""
    name: str = ""
    name_source: str = ""
    destination: str = ""
    port: int = 0
    verdict: str = ""  # allow, deny, observe (refused, and let through because the client is in observe mode)
    reason: str = ""
    rule: str = ""
    detail: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    duration: float = 0.0  # seconds
    closed_by: str = ""  # client, server, policy, idle, limit, proxy; "" while open, and for a denial
    id: int = 0


COLUMNS = tuple(field.name for field in fields(Row))

UPGRADES = (
    (
        """CREATE TABLE flow (
            time REAL NOT NULL, client TEXT NOT NULL, address TEXT NOT NULL, protocol TEXT NOT NULL,
            name TEXT NOT NULL, name_source TEXT NOT NULL, destination TEXT NOT NULL, port INTEGER NOT NULL,
            verdict TEXT NOT NULL, reason TEXT NOT NULL, rule TEXT NOT NULL, detail TEXT NOT NULL,
            bytes_up INTEGER NOT NULL, bytes_down INTEGER NOT NULL, duration REAL NOT NULL, closed_by TEXT NOT NULL,
            id INTEGER PRIMARY KEY)""",
        "CREATE INDEX flow_time ON flow (time)",
        "CREATE INDEX flow_client ON flow (client, time)",
        "CREATE INDEX flow_verdict ON flow (verdict, time)",
        "CREATE INDEX flow_name ON flow (name, time)",
    ),
)
"""The statements that lead from each version of the schema (PRAGMA user_version) to the next."""


def query(
    client: str | None, verdict: str | None, name: str | None, since: float | None, after_id: int, last: bool = False
) -> tuple[str, list[str | float], list[str]]:
    """The SQL of `LogReader.rows`, its values but for the closing LIMIT, and the columns of its order.

    The values end with one for each of those columns: the place in the order after which the rows begin.
    """
    where: list[str] = []
    values: list[str | float] = []
    if client is not None:
        where.append("client = ?")
        values.append(client)
    if verdict is not None:
        where.append("verdict = ?")
        values.append(verdict)
    if name is not None and "*" in name:
        where.append("name GLOB ?")
        values.append(name.lower().replace("[", "[[]").replace("?", "[?]"))
    elif name is not None:
        where.append("name = ?")
        values.append(name.lower())
    if after_id:
        # There are few rows after the one a follower saw last; an index on what he filters by would find all of them.
        table, order = "flow NOT INDEXED", ["id"]
        if since is not None:
            where.append("time >= ?")
            values.append(since)
        values.append(after_id)
    else:
        table, order = "flow", ["time", "id"]
        values += [float("-inf") if since is None else since, 0]
    where.append(f"({', '.join(order)}) > ({', '.join('?' * len(order))})")
    direction = " DESC" if last else ""
    ordering = ", ".join(column + direction for column in order)
    sql = f"SELECT {', '.join(COLUMNS)} FROM {table} WHERE {' AND '.join(where)} ORDER BY {ordering} LIMIT ?"
    return sql, values, order


def version(db: sqlite3.Connection, path: Path) -> int:
    version = number(db, "PRAGMA user_version")
    if version > len(UPGRADES):
        raise LogError(f"{path}: the log was written by a later version of proxyfw")
    return version


def number(db: sqlite3.Connection, sql: str, *values: str | float) -> int:
    return int(db.execute(sql, values).fetchone()[0])


def is_corrupt(error: sqlite3.Error) -> bool:
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
