"""The tables of an HTML page, as cells with their columns (HTML Living Standard, section 4.9, as far as wikis go)."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import NamedTuple

MAX_COLUMNS = 100
MAX_NESTED = 20
"""Tables within each other."""

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_GROUPS = frozenset({"thead", "tbody", "tfoot"})
_CELLS = frozenset({"td", "th"})
_BREAKS = frozenset({"br", "p", "div", "li", "ul", "ol", "dl", "dd", "dt", "hr", "pre", "blockquote"})
_PASSED_OVER = frozenset(
    {"sup", "script", "style", "template", "del", "s", "strike"}
)  # footnotes, and what was removed
_SPAN = re.compile(r"[0-9]{1,5}")
_NEVER = 1 << 62

Attributes = list[tuple[str, str | None]]


class TableError(Exception):
    """The page cannot be read; the message says why, for a person."""


class Cell(NamedTuple):
    """`first`, `last`: its columns, from 0. `text`: what is seen there; a line break for each `<br>` or paragraph."""

    row: int
    first: int
    last: int
    heading: bool
    text: str


@dataclass(slots=True)
class Table:
    """`ids`: those elements that were asked for, and have this as their first table."""

    ids: frozenset[str] = frozenset()
    cells: list[Cell] = field(default_factory=list)

    def under(self, heading: str) -> list[Cell]:
        """The cells of the columns with this heading, which is in lower case, with one blank between its words."""
        rows: dict[int, list[Cell]] = {}
        for cell in self.cells:
            rows.setdefault(cell.row, []).append(cell)
        columns: set[int] = set()
        for number, cells in enumerate(rows.values()):
            if number > 0 and not all(cell.heading for cell in cells):
                break  # a heading further down is one of some rows, not of the columns
            for cell in cells:
                if " ".join(cell.text.split()).casefold() == heading:
                    columns.update(range(cell.first, cell.last + 1))
        return [cell for cell in self.cells if not columns.isdisjoint(range(cell.first, cell.last + 1))]


def tables(text: str, ids: Collection[str] = ()) -> list[Table]:
    """All tables of a page, in order; a table in a cell of another is a table by itself. `ids`: of the elements whose
    first table is to be found. Raises TableError.
    """
    page = _Page(ids)
    try:
        page.feed(text + "\n")
    except (AssertionError, ValueError) as error:  # from html.parser: broken declarations; from html: huge references
        raise TableError(f"not HTML that can be read: {error}") from None
    # Not `close`: it would try again from each next tag, and take hours over what a hostile page never ends.
    if page.open or page.rawdata:
        raise TableError("a table, tag or comment in it does not end: the page is cut short")
    return page.tables


class _Page(HTMLParser):
    def __init__(self, ids: Collection[str]) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[Table] = []
        self.open: list[_Grid] = []
        self._wanted = ids
        self._seen: set[str] = set()
        self._awaiting: dict[str, int] = {}  # ids without a table yet, and the level of the heading that they are in
        self._level = 0  # of the heading that is open; 0: none

    def handle_starttag(self, tag: str, attributes: Attributes) -> None:
        if tag in _HEADINGS:
            self._level = _HEADINGS[tag]
            self._awaiting = {id_: level for id_, level in self._awaiting.items() if level < self._level}
        self._look_for_id(_value(attributes, "id"))
        if tag == "table":
            if len(self.open) == MAX_NESTED:
                raise TableError("tables are nested too deeply")
            table = Table(frozenset(self._awaiting))
            self._awaiting.clear()
            self.tables.append(table)
            self.open.append(_Grid(table))
        elif self.open:
            self.open[-1].start(tag, attributes)

    def handle_startendtag(self, tag: str, attributes: Attributes) -> None:
        self.handle_starttag(tag, attributes)  # HTML knows no element that ends by a slash

    def handle_endtag(self, tag: str) -> None:
        if tag in _HEADINGS:
            self._level = 0
        if not self.open:
            return
        self.open[-1].end(tag)
        if tag == "table":
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1].say(data)

    def _look_for_id(self, found: str) -> None:
        if found not in self._wanted:
            return
        if found in self._seen:
            raise TableError(f'there are two elements with the id "{found}"')
        self._seen.add(found)
        self._awaiting[found] = self._level


class _Grid:
    """A table while it is read. `until`: for each column the first row in which it is free again."""

    def __init__(self, table: Table) -> None:
        self._cells = table.cells
        self._row = -1
        self._column = 0
        self._until = [0] * MAX_COLUMNS
        self._cell: Cell | None = None  # the one that is open, without its text
        self._text: list[str] = []
        self._passed_over = ""  # the element whose text is left out
        self._depth = 0  # how often it is open

    def start(self, tag: str, attributes: Attributes) -> None:
        if tag == "tr":
            self._next_row()
        elif tag in _GROUPS:
            self._next_group()
        elif tag in _CELLS:
            self._next_cell(tag == "th", attributes)
        elif tag == (self._passed_over or tag) and tag in _PASSED_OVER:
            self._passed_over = tag
            self._depth += 1
        elif tag in _BREAKS:
            self._text.append("\n")

    def end(self, tag: str) -> None:
        if tag in _CELLS or tag in ("tr", "table"):
            self._end_cell()
        elif tag in _GROUPS:
            self._next_group()
        elif tag == self._passed_over:
            self._depth -= 1
            self._passed_over = tag if self._depth else ""
        elif tag in _BREAKS:
            self._text.append("\n")

    def say(self, data: str) -> None:
        if self._cell is not None and not self._passed_over:
            self._text.append(data.replace("\n", " ").replace("\r", " "))

    def _next_row(self) -> None:
        self._end_cell()
        self._row += 1
        self._column = 0

    def _next_group(self) -> None:
        self._end_cell()
        self._until = [0] * MAX_COLUMNS  # no cell reaches beyond its group

    def _next_cell(self, heading: bool, attributes: Attributes) -> None:
        self._end_cell()
        self._row = max(self._row, 0)
        while self._column < MAX_COLUMNS and self._until[self._column] > self._row:
            self._column += 1
        if self._column == MAX_COLUMNS:
            raise TableError(f"a table has more than {MAX_COLUMNS} columns")
        first = self._column
        last = min(first + max(_span(attributes, "colspan"), 1), MAX_COLUMNS) - 1
        rows = _span(attributes, "rowspan") or _NEVER  # 0: up to the end of the group
        for column in range(first, last + 1):
            self._until[column] = self._row + rows
        self._column = last + 1
        self._cell = Cell(self._row, first, last, heading, "")

    def _end_cell(self) -> None:
        if self._cell is not None:
            self._cells.append(self._cell._replace(text="".join(self._text)))
        self._cell, self._text = None, []
        self._passed_over, self._depth = "", 0


def _span(attributes: Attributes, name: str) -> int:
    text = _value(attributes, name).strip()
    return int(text) if _SPAN.fullmatch(text) else 1


def _value(attributes: Iterable[tuple[str, str | None]], name: str) -> str:
    """The first one counts (section 13.2.5.33)."""
    return next((value or "" for key, value in attributes if key == name), "")
