"""Rows of the log as text: JSON lines for programs, aligned columns for people.

Names and details come from hostile clients. Nothing but printable ASCII of theirs reaches a terminal.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from proxyfw.edge.logdb import Row

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
_COLOURS = {"allow": "\x1b[32m", "deny": "\x1b[31m", "observe": "\x1b[33m"}
_NO_COLOUR = "\x1b[0m"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def as_json(row: Row) -> str:
    """One JSON object on one line, in ASCII: every field of the row, the time as ISO 8601 in UTC, "" as null."""
    moment = datetime.fromtimestamp(row.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    values = {field: None if value == "" else value for field, value in asdict(row).items()}
    # json escapes everything outside printable ASCII, DEL and halves of surrogate pairs included.
    return json.dumps(values | {"time": moment})


def printable(text: str) -> str:
    r"""The text with all but printable ASCII escaped: `\x1b` for an escape character, `\u202e` for a bidi override."""
    return text.translate(_CONTROLS).encode("ascii", "backslashreplace").decode("ascii")


def visible(text: str) -> str:
    """The text with what is not printable escaped: for words of the user's own files, in any script."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def human_bytes(count: int) -> str:
    """At most five characters, in powers of 1000: `999`, `1.5k`, `20M`."""
    if count < 1000:
        return str(count)
    size = float(count)
    for unit in "kMGTP":
        size /= 1000
        if size < 9.95:
            return f"{size:.1f}{unit}"
        if size < 999.5:
            return f"{size:.0f}{unit}"
    return f"{size:.0f}P"


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    width: int
    text: Callable[[Row], str]
    cut: Callable[[str, int], str]


class Table:
    """Aligned columns for a terminal of `width` columns.

    A narrow one gets time, client, verdict, reason, protocol and target; a wider one the bytes, the rule and detail,
    and the destination as well. Below 75 columns the lines are longer than the terminal is wide.
    """

    def __init__(self, width: int, colour: bool) -> None:
        self._colour = colour
        self._columns = _columns(width)

    def header(self) -> str:
        """The titles, without a line end."""
        return " ".join(column.title.ljust(column.width) for column in self._columns).rstrip()

    def line(self, row: Row) -> str:
        """One row, without a line end."""
        return " ".join(self._cell(column, row) for column in self._columns).rstrip()

    def _cell(self, column: _Column, row: Row) -> str:
        text = column.cut(printable(column.text(row)), column.width).ljust(column.width)
        if self._colour and column.title == "VERDICT" and row.verdict in _COLOURS:
            return f"{_COLOURS[row.verdict]}{text}{_NO_COLOUR}"
        return text


def parse_since(text: str, now: float) -> float:
    """The moment, in epoch seconds, that `10m`, `today`, `2025-01-31` or `2025-01-31T12:00` speaks of.

    Dates are local unless they carry an offset. Raises ValueError with what may be written.
    """
    text = text.strip()
    if ago := re.fullmatch(r"([0-9]{1,9})([smhd])", text):
        return now - int(ago[1]) * _SECONDS[ago[2]]
    try:
        if text == "today":
            return datetime.fromtimestamp(now).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ValueError(
            f"{printable(text)!r} is no time: write how long ago (45s, 10m, 2h, 3d), today,"
            " a date (2025-01-31) or a date and time (2025-01-31T12:00, with +02:00 or Z if it is not local)"
        ) from None


def _columns(width: int) -> list[_Column]:
    """The columns that fit, in their order on the line; those beyond the first six come as there is room for them."""
    free = width - 75
    optional = {}
    for title, cells in (("BYTES", 12), ("DAY", 6), ("RULE", 21), ("DESTINATION", 22)):
        optional[title] = free >= cells
        free -= cells if optional[title] else 0
    free = max(free, 0)
    for_rule = free // 2 if optional["RULE"] else 0
    columns = [
        _Column("TIME", 14, _date_and_time, _cut) if optional["DAY"] else _Column("TIME", 8, _time_of_day, _cut),
        _Column("CLIENT", 12, lambda row: row.client or row.address, _cut),
        _Column("VERDICT", 7, lambda row: row.verdict, _cut),
        _Column("REASON", 16, lambda row: row.reason, _cut),
        _Column("PROTO", 7, lambda row: row.protocol, _cut),
        _Column("TARGET", 20 + free - for_rule, lambda row: row.name or _destination(row), _cut_front),
    ]
    if optional["DESTINATION"]:
        columns.append(_Column("DESTINATION", 21, _destination, _cut))
    if optional["BYTES"]:
        columns.append(_Column("   UP", 5, lambda row: human_bytes(row.bytes_up).rjust(5), _cut))
        columns.append(_Column(" DOWN", 5, lambda row: human_bytes(row.bytes_down).rjust(5), _cut))
    if optional["RULE"]:
        columns.append(_Column("RULE, DETAIL", 20 + for_rule, _rule_and_detail, _cut))
    return columns


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _cut_front(text: str, width: int) -> str:
    # The end of a name says whose it is: github.com.login.evil.example must not show as github.com.
    return text if len(text) <= width else "…" + text[1 - width :]


def _time_of_day(row: Row) -> str:
    return datetime.fromtimestamp(row.time).strftime("%H:%M:%S")


def _date_and_time(row: Row) -> str:
    return datetime.fromtimestamp(row.time).strftime("%m-%d %H:%M:%S")


def _destination(row: Row) -> str:
    if not row.destination:  # it came to none: refused when it was asked for, or left to an upstream proxy
        return f"port {row.port}" if row.port else ""
    host = f"[{row.destination}]" if ":" in row.destination else row.destination
    return f"{host}:{row.port}" if row.port else host


def _rule_and_detail(row: Row) -> str:
    return "; ".join(text for text in (row.rule, row.detail) if text)
