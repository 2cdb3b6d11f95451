r"""The documents that owners publish their addresses in, and how the addresses are found there.

`json`: each entry of `select` is a path into the document (RFC 8259). All addresses and networks below it count.

    git                          the key "git"
    domains.actions              keys below each other; a list on the way stands for each of its elements
    prefixes[service=S3].ip_prefix
                                 only objects with that value, compared as text; more than one may stand: [a=b][c=d]
    [serviceArea=Exchange].ips   the same where the document is a list
    a\.b                         a \ takes the next character as it is: in keys . [ ] \ and in brackets = [ ] \

`html-table`: each entry is the heading of a column, or names a table by the element before it that has this id:

    IPv4 prefix                  the columns with this heading, in any table
    #Public_IPs                  the first table after the element with this id, in its section
    #Public_IPs/Prefix           the columns of that table with this heading

Nothing selected: all addresses in the document, or in the cells of its tables. `text`: one a line; # and ; begin
comments; nothing can be selected, and any other line makes the document worthless.

In JSON and in tables, what is no address is passed over. A network with bits beyond its prefix is an error everywhere:
to mask it would grant more than is written there, to pass over it would hide that the list is not what its owner means.
Each entry of `select` must find an address, or a key that is renamed would quietly close what it opened.
"""

import json
import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any, NamedTuple, NoReturn

from proxyfw.core.address import IPNetwork
from proxyfw.core.addresslist import HostBitsError, parse_network, shown
from proxyfw.core.htmltable import Cell, TableError, tables

MAX_DOCUMENT = 16 << 20
"""Bytes."""

MAX_ADDRESSES = 1 << 18
"""Read from one document, those that stand there twice included."""

_KEY = re.compile(r"(?:[^.\[\]\\]|\\.)+", re.DOTALL)
_CONDITION = re.compile(r"\[((?:[^\[\]=\\]|\\.)+)=((?:[^\[\]\\]|\\.)*)\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_NOTE = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_BETWEEN = re.compile(r"[\s,;]+")


class Format(StrEnum):
    """What a feed's document is."""

    JSON = "json"
    TEXT = "text"
    HTML_TABLE = "html-table"


class FeedError(Exception):
    """The document is not what it should be; the message says why, for a person."""


def addresses(format: Format, select: tuple[str, ...], document: bytes) -> list[IPNetwork]:
    """The networks in a document, at least one, as often as they stand there. Raises FeedError."""
    if len(document) > MAX_DOCUMENT:
        raise FeedError(f"the document is larger than {MAX_DOCUMENT >> 20} MiB")
    try:
        text = document.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise FeedError(f"the document is not UTF-8 (byte {error.start})") from None
    for entry in select:
        wrong = selector_problem(format, entry)
        if wrong:
            raise FeedError(f'"{shown(entry)}": {wrong}')
    match format:
        case Format.JSON:
            return _from_json(select, text)
        case Format.HTML_TABLE:
            return _from_html(select, text)
        case Format.TEXT:
            return _collected([("", _from_lines(text))])


def selector_problem(format: Format, text: str) -> str:
    """What is wrong with an entry of `select`; "": nothing."""
    if format is Format.TEXT:
        return "nothing can be selected in a text"
    if format is Format.HTML_TABLE:
        return _column_problem(text)
    try:
        _path(text)
    except _PathError as error:
        return str(error)
    return ""


def _collected(found: Iterable[tuple[str, Iterable[IPNetwork]]]) -> list[IPNetwork]:
    """What each entry of `select` finds; "" is for the whole document."""
    networks: list[IPNetwork] = []
    for entry, some in found:
        before = len(networks)
        for network in some:
            if len(networks) == MAX_ADDRESSES:
                raise FeedError(f"there are more than {MAX_ADDRESSES:,} addresses in it")
            networks.append(network)
        if len(networks) == before:
            raise FeedError(f'there is no address at "{shown(entry)}"' if entry else "there is no address in it")
    return networks


def _network(text: str) -> IPNetwork | None:
    """None: it is no address."""
    try:
        return parse_network(text)
    except HostBitsError as error:
        raise FeedError(str(error)) from None
    except ValueError:
        return None


def _from_lines(text: str) -> Iterator[IPNetwork]:
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        entry = re.split("[#;]", line, maxsplit=1)[0].strip(" \t")
        if entry:
            try:
                yield parse_network(entry)
            except ValueError as error:
                raise FeedError(f"line {number}: {error}") from None


class _Step(NamedTuple):
    """A key (None: none, the value itself), and what the objects reached must have: fields and their values."""

    key: str | None
    conditions: tuple[tuple[str, str], ...]


class _PathError(ValueError):
    pass


def _path(text: str) -> list[_Step]:
    steps: list[_Step] = []
    place = 0
    while True:
        match = _KEY.match(text, place)
        place = match.end() if match else place
        conditions: list[tuple[str, str]] = []
        while condition := _CONDITION.match(text, place):
            conditions.append((_plain(condition[1]), _plain(condition[2])))
            place = condition.end()
        if place < len(text) and text[place] != ".":
            raise _PathError(rf'"{shown(text[place:])}" is no [key=value]; a \ goes before a bracket that is of a key')
        if match is None and (steps or not conditions):
            raise _PathError("a key is missing; write keys with a dot between them, as in prefixes.ip_prefix")
        steps.append(_Step(_plain(match[0]) if match else None, tuple(conditions)))
        if place == len(text):
            return steps
        place += 1


def _plain(text: str) -> str:
    return _ESCAPE.sub(r"\1", text)


def _from_json(select: tuple[str, ...], text: str) -> list[IPNetwork]:
    document = _json(text)
    if not select:
        return _collected([("", _below([document]))])
    return _collected((entry, _below(_reached(document, _path(entry)))) for entry in select)


def _json(text: str) -> Any:
    try:
        # Numbers stay the text that they are: none is an address, and one of a million digits costs nothing.
        return json.loads(text, object_pairs_hook=_object, parse_int=str, parse_float=str, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise FeedError(f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise FeedError("not JSON that can be read: it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise FeedError(f'the key "{shown(key)}" stands twice in one object')
        found[key] = value
    return found


def _no_constant(text: str) -> NoReturn:
    raise FeedError(f"not JSON: {text}")


def _reached(document: Any, path: list[_Step]) -> list[Any]:
    values = [document]
    for step in path:
        if step.key is not None:
            values = [each[step.key] for each in _spread(values) if isinstance(each, dict) and step.key in each]
        if step.conditions:
            values = [each for each in _spread(values) if isinstance(each, dict) and _meets(each, step.conditions)]
    return values


def _meets(value: dict[str, Any], conditions: tuple[tuple[str, str], ...]) -> bool:
    return all(field in value and _as_text(value[field]) == wanted for field, wanted in conditions)


def _as_text(value: Any) -> str | None:
    """As it stands in the document; None for what has no one text."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return None


def _spread(values: list[Any]) -> Iterator[Any]:
    """The values, and the elements of lists in place of the lists."""
    left = values[::-1]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left.extend(reversed(value))
        else:
            yield value


def _below(values: list[Any]) -> Iterator[IPNetwork]:
    """All addresses among the strings of these values, however deep."""
    left = values[::-1]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left.extend(reversed(value))
        elif isinstance(value, dict):
            left.extend(reversed(value.values()))
        elif isinstance(value, str) and (network := _network(value)) is not None:
            yield network


class _Column(NamedTuple):
    """`id` "": any table. `heading` "": any column."""

    id: str
    heading: str


def _column(text: str) -> _Column:
    if not text.startswith("#"):
        return _Column("", _collapsed(text))
    id_, _, heading = text[1:].partition("/")
    return _Column(id_, _collapsed(heading))


def _column_problem(text: str) -> str:
    column = _column(text)
    if text.startswith("#") and not column.id:
        return "an id is missing after the #"
    if not column.heading and (not column.id or "/" in text):
        return "a heading is missing"
    return ""


def _collapsed(text: str) -> str:
    return " ".join(text.split()).casefold()


def _from_html(select: tuple[str, ...], text: str) -> list[IPNetwork]:
    columns = [_column(entry) for entry in select]
    try:
        found = tables(text, frozenset(column.id for column in columns if column.id))
    except TableError as error:
        raise FeedError(str(error)) from None
    if not select:
        return _collected([("", (network for table in found for network in _in_cells(table.cells)))])
    wanted = []
    for entry, column in zip(select, columns, strict=True):
        some = [table for table in found if not column.id or column.id in table.ids]
        if not some:
            raise FeedError(f'there is no table at "{shown(entry)}"')
        cells = [cell for table in some for cell in (table.under(column.heading) if column.heading else table.cells)]
        wanted.append((entry, _in_cells(cells)))
    return _collected(wanted)


def _in_cells(cells: Iterable[Cell]) -> Iterator[IPNetwork]:
    """The addresses of lines that hold nothing else but notes in brackets. Prose that names an address grants none."""
    for cell in cells:
        for line in cell.text.split("\n"):
            words = [word for word in _BETWEEN.split(_NOTE.sub(" ", line)) if word]
            networks = [_network(word) for word in words]
            if None not in networks:
                yield from (network for network in networks if network is not None)
