"""dynamic-firewall's own Python, read and not run: the profiles that it has, and how they are refreshed."""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from proxyfw.core.problem import Problem, Where
from proxyfw.core.pyextract import ExtractError, Module, extract, load_program

PROFILES = "site_profiles"
MAIN = "main"

_OPTIONS, _CLIENTS = "options_defaults", "clients_path"
_REFRESH, _INTERVAL, _ALIASES = "refresh", "refreshIntervalMins", "aliases"
_SUMS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


@dataclass(frozen=True, slots=True)
class OldProfile:
    """One entry of `site_profiles`. `minutes` between two refreshes; None: not known here. `program`: a Python file
    that has its refresh; "", where none can be made, and `why`.
    """

    name: str
    where: Where
    minutes: float | None
    aliases: tuple[str, ...]
    program: str
    why: str = ""


@dataclass(slots=True)
class OldFirewall:
    """What the program says. `problems`: errors, and as warnings what it does that is not known here."""

    profiles: dict[str, OldProfile] = field(default_factory=dict)
    clients_file: str = "clients"
    problems: list[Problem] = field(default_factory=list)


def read_old(read: Callable[[str], str | None], file_of: Callable[[str], str]) -> OldFirewall:
    """Reads main.py and all that it imports. `read`: the text of a module, None where there is no such file; `file_of`:
    its path, for people.
    """
    old = OldFirewall()
    try:
        program = load_program(MAIN, read) or load_program("sites", read)
    except ExtractError as error:
        old.problems.append(Problem(Where(file_of(error.module), error.line), str(error)))
        return old
    reader = _Reader(program, file_of, old)
    for module in program.values():
        for unit in module.units:
            reader.statement(module, unit.node, unit.binds | unit.changes)
    reader.translate()
    return old


@dataclass(slots=True)
class _Entry:
    """A profile on its way."""

    module: str
    where: Where
    fields: dict[str, ast.expr]


class _Reader:
    def __init__(self, program: Mapping[str, Module], file_of: Callable[[str], str], old: OldFirewall) -> None:
        self._program, self._file_of, self._old = program, file_of, old
        self._entries: dict[str, _Entry] = {}

    def statement(self, module: Module, node: ast.stmt, touched: frozenset[str]) -> None:
        """Takes in what one statement does to the profiles, or says that it is not known."""
        if _OPTIONS in touched and isinstance(node, ast.Assign):
            self._options(node.value)
        if PROFILES in touched and not self._is_understood(module.name, node):
            where = self._where(module.name, node)
            message = f"what this does to {PROFILES} is not known here"
            fix = 'compare; profiles are taken over from site_profiles = {"NAME": {"refresh": ...}}'
            self._old.problems.append(Problem(where, message, fix, warning=True))

    def translate(self) -> None:
        """Makes profiles of all that was found."""
        for name, entry in self._entries.items():
            refresh, aliases = entry.fields.get(_REFRESH), entry.fields.get(_ALIASES)
            program, why = self._program_of(entry, refresh)
            texts = _texts(aliases) if aliases is not None else ()
            if texts is None:
                self._warn(entry, aliases, f"the aliases of {name} are not known here", "write them out as a list")
            interval = entry.fields.get(_INTERVAL)
            minutes = _number(interval) if interval is not None else None
            if minutes is None:
                self._warn(entry, interval, f"how often {name} is refreshed is not known here: once a day", "")
            self._old.profiles[name] = OldProfile(name, entry.where, minutes, texts or (), program, why)

    def _program_of(self, entry: _Entry, refresh: ast.expr | None) -> tuple[str, str]:
        if refresh is None:
            return "", f"it has no {_REFRESH} that can be read ({entry.where})"
        try:
            return extract(self._program, entry.module, refresh, _REFRESH), ""
        except ExtractError as error:
            return "", f"{error} ({Where(self._file_of(error.module), error.line)})"

    def _is_understood(self, module: str, node: ast.stmt) -> bool:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if len(targets) != 1 or node.value is None:
                return False
            return self._assigned(module, targets[0], node.value)
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.BitOr) and _is_profiles(node.target):
            return self._update(module, node.value)
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and _is_profiles(call.func.value):
            if call.func.attr == "update" and not call.args:
                return self._update(module, ast.Call(ast.Name("dict"), [], call.keywords))
            whole = call.func.attr == "update" and len(call.args) == 1 and not call.keywords
            return whole and self._update(module, call.args[0])
        return False

    def _assigned(self, module: str, target: ast.expr, value: ast.expr) -> bool:
        if _is_profiles(target):
            self._entries.clear()
            return self._update(module, value)
        if not isinstance(target, ast.Subscript):
            return False
        key = _text(target.slice)
        if key is not None and _is_profiles(target.value):
            return self._entry(module, key, target, value)
        of = target.value
        if key is None or not isinstance(of, ast.Subscript) or not _is_profiles(of.value):
            return False
        name = _text(of.slice)
        if name not in self._entries or self._entries[name].module != module:
            return False
        self._entries[name].fields[key] = value
        return True

    def _update(self, module: str, value: ast.expr) -> bool:
        items = _items(value)
        if items is None:
            return False
        found = [self._entry(module, key, node, part) for key, node, part in items]
        return all(found)

    def _entry(self, module: str, name: str, node: ast.expr, value: ast.expr) -> bool:
        items = _items(value)
        fields = {key: part for key, _, part in items} if items is not None else {}
        self._entries[name] = _Entry(module, self._where(module, node), fields)
        return items is not None

    def _options(self, value: ast.expr) -> None:
        for key, _, part in _items(value) or []:
            if key == _CLIENTS:
                self._old.clients_file = _text(part) or self._old.clients_file

    def _where(self, module: str, node: ast.expr | ast.stmt) -> Where:
        return Where(self._file_of(module), node.lineno)

    def _warn(self, entry: _Entry, node: ast.expr | None, message: str, fix: str) -> None:
        where = entry.where if node is None else self._where(entry.module, node)
        self._old.problems.append(Problem(where, message, fix, warning=True))


def _is_profiles(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == PROFILES


def _items(node: ast.expr) -> list[tuple[str, ast.expr, ast.expr]] | None:
    """Keys with their nodes and values, where all keys of a dict are written out; else None."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        named = [(keyword.arg, keyword.value) for keyword in node.keywords]
        return [(key, value, value) for key, value in named if key is not None] if _all_set(named) else None
    if not isinstance(node, ast.Dict):
        return None
    found = []
    for key, value in zip(node.keys, node.values, strict=True):
        text = _text(key) if key is not None else None
        if key is None or text is None:
            return None
        found.append((text, key, value))
    return found


def _all_set(named: list[tuple[str | None, ast.expr]]) -> bool:
    return all(key is not None for key, _ in named)


def _text(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _texts(node: ast.expr) -> tuple[str, ...] | None:
    if not isinstance(node, ast.List | ast.Tuple | ast.Set):
        return None
    found = [_text(each) for each in node.elts]
    return tuple(each for each in found if each is not None) if None not in found else None


def _number(node: ast.expr) -> float | None:
    """What a sum of numbers that are written out comes to."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, int | float) and not isinstance(node.value, bool) else None
    if not isinstance(node, ast.BinOp) or type(node.op) not in _SUMS:
        return None
    left, right = _number(node.left), _number(node.right)
    if left is None or right is None:
        return None
    try:
        return _SUMS[type(node.op)](left, right)
    except (ArithmeticError, ValueError):
        return None


def used_modules(program: str) -> Iterator[str]:
    """The modules that a program imports, by their first name."""
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
