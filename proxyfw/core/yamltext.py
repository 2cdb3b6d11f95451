"""YAML text -> checked values with line numbers, and every mistake as a Problem; never an exception.

The node tree is walked by hand. Scalars are taken as their source text: YAML 1.1 would read `no` as false and `22:22`
as 1342, and a file of names must not depend on that.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from proxyfw.core.problem import Problem, Where

_MAX_DEPTH = 16  # PyYAML composes recursively; what proxyfw reads is at most four deep
_LISTED = 12  # names that a fix lists when none of them is near

# Escapes in double quotes can produce what the file itself may not contain: it would reach terminals and the log.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


_SPECIAL_START = re.compile(r"(?:^|[\s\[,])[*&!@`%\[]")


@dataclass(frozen=True, slots=True)
class Text:
    """One scalar: its text as written (without quotes), and its line."""

    value: str
    where: Where


def suggestion(word: str, known: Iterable[str]) -> str:
    """The fix for an unknown word: the nearest known one, else some of the known ones."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1)
    if near:
        return f'write "{near[0]}"'
    if not names:
        return "remove it: there is none"
    return f"known: {', '.join(names[:_LISTED])}" + (", ..." if len(names) > _LISTED else "")


class _Loader(yaml.SafeLoader):
    """Refuses, with the line, what the walk must never meet."""

    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.coming_event()
        for refused, message, fix in (
            (getattr(event, "tag", None) is not None, "a tag (!) is not read here", "put the value in quotes"),
            (isinstance(event, yaml.ScalarEvent) and _UNSAFE.search(event.value), "a control character", "remove it"),
            (self.depth >= _MAX_DEPTH, "nested too deeply", "remove what is not wanted here"),
        ):
            if refused:
                raise ComposerError(None, None, message, event.start_mark, note=fix)
        self.depth += 1
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def coming_event(self) -> Any:
        return self.peek_event()  # type: ignore[no-untyped-call]


class Document:
    """One YAML file, and what has been found wrong in it so far.

    The reading methods take a node (or None, where an earlier step failed), add what is wrong to the problems, and go
    on with what is right, so that one run names every mistake.
    """

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._problems: list[Problem] = []
        self.root = self._compose(text)

    @property
    def problems(self) -> list[Problem]:
        """All problems, in the order of the file."""
        return sorted(self._problems, key=lambda problem: problem.where.line)

    @property
    def failed(self) -> bool:
        """Whether an error (not only warnings) was found."""
        return any(not problem.warning for problem in self._problems)

    def where(self, node: Node | None) -> Where:
        return self._line(node.start_mark.line if node else 0)

    def add(self, problem: Problem) -> None:
        self._problems.append(problem)

    def error(self, where: Where, message: str, fix: str) -> None:
        self.add(Problem(where, message, fix))

    def warn(self, where: Where, message: str, fix: str) -> None:
        self.add(Problem(where, message, fix, warning=True))

    def fields(self, node: Node | None, known: Collection[str]) -> dict[str, Node]:
        """A mapping whose keys are known."""
        found: dict[str, Node] = {}
        for key, value in self.entries(node):
            if key.value in known:
                found[key.value] = value
            else:
                self.error(key.where, f'unknown key "{key.value}"', suggestion(key.value, known))
        return found

    def entries(self, node: Node | None) -> list[tuple[Text, Node]]:
        """A mapping with any keys, in order; a key that stands twice is an error."""
        if node is None:
            return []
        if not isinstance(node, MappingNode):
            self._wrong_type(node, "a mapping", 'write "key: value" lines')
            return []
        lines: dict[str, int] = {}
        found = []
        for key_node, value in node.value:
            key = self.text(key_node)
            if key is None:
                continue
            if key.value in lines:
                fix = f"keep one of the two; the first is on line {lines[key.value]}"
                self.error(key.where, f'the key "{key.value}" stands twice', fix)
                continue
            lines[key.value] = key.where.line
            found.append((key, value))
        return found

    def texts(self, node: Node | None, one: bool = False) -> list[Text]:
        """A list of strings; with `one`, a single string will do."""
        if node is None:
            return []
        if one and isinstance(node, ScalarNode) and not _is_nothing(node):
            items = [node]
        elif isinstance(node, SequenceNode):
            items = node.value
        else:
            self._wrong_type(node, "a list", _list_fix(node))
            return []
        return [text for text in map(self.text, items) if text]

    def text(self, node: Node | None) -> Text | None:
        if node is None:
            return None
        if isinstance(node, ScalarNode) and not _is_nothing(node):
            return Text(node.value, self.where(node))
        colon = '; ": " with a space makes a mapping' if isinstance(node, MappingNode) else ""
        self._wrong_type(node, "a string", f"write one value{colon}")
        return None

    def boolean(self, node: Node | None) -> bool | None:
        text = self.text(node)
        if text is None:
            return None
        if text.value not in ("true", "false"):
            self.error(text.where, f'true or false is wanted, this is "{text.value}"', "write true or false")
            return None
        return text.value == "true"

    def _wrong_type(self, node: Node, wanted: str, fix: str) -> None:
        if _is_nothing(node):
            self.error(self.where(node), f"{wanted} is wanted, there is nothing here", f"{fix}, or remove the key")
        else:
            self.error(self.where(node), f"{wanted} is wanted, this is {_kind(node)}", fix)

    def _line(self, index: int) -> Where:
        return Where(self._file, index + 1)

    def _compose(self, text: str) -> Node | None:
        try:
            loader = _Loader(text)
        except ReaderError as error:
            where = self._line(text.count("\n", 0, error.position))
            code = ord(text[error.position])
            self.error(where, f"not valid YAML: a control character (U+{code:04X})", "remove it")
            return None
        try:
            node = loader.get_node() if loader.check_node() else None
            if node is None:
                self.error(self._line(0), "the file is empty", "write at least one key")
            elif loader.check_node():
                where = self._line(loader.coming_event().start_mark.line)
                self.error(where, "a second YAML document begins here", 'remove the "---" and what follows')
        except yaml.MarkedYAMLError as error:
            self._syntax_error(error, text)
            return None
        except (ValueError, OverflowError):  # PyYAML lets these through: "\UFFFFFFFF", %YAML 1.<5000 digits>
            self.error(self._line(loader.line), "not valid YAML: a number out of range", "remove it")
            return None
        return node

    def _syntax_error(self, error: yaml.MarkedYAMLError, text: str) -> None:
        mark = error.problem_mark
        index = mark.line if mark else 0
        message = f"{error.problem}" if error.note else f"not valid YAML: {error.problem}"
        if error.context_mark and error.context_mark.line != index:
            message += f" ({error.context} that begins on line {error.context_mark.line + 1})"
        lines = text.split("\n")
        line = lines[index] if index < len(lines) else ""
        self.error(self._line(index), message, error.note or _syntax_fix(line))


def _syntax_fix(line: str) -> str:
    if "\t" in line:
        return "write spaces in place of tabs"
    if _SPECIAL_START.search(line):
        return 'put a value that begins with one of * & ! @ % [ in quotes, as in "*.example.com"'
    return "check the indentation, the quotes and the brackets"


def _is_nothing(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.value == "" and not node.style


def _kind(node: Node) -> str:
    if isinstance(node, SequenceNode):
        return "a list"
    return "a mapping" if isinstance(node, MappingNode) else "a string"


def _list_fix(node: Node) -> str:
    if isinstance(node, ScalarNode) and node.value:
        quote = node.style if node.style in ('"', "'") else ""
        return f"write [{quote}{node.value}{quote}]"
    return 'write [a, b], or one "- " line for each entry'
