"""Out of a Python program that is not run here: the part of it that one expression needs, as a program of its own.

What is needed is told by the compiler's own symbol tables. Whatever cannot be told for certain is refused.
"""

import ast
import builtins
import symtable
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

_KNOWN = frozenset(dir(builtins)) - {"__loader__", "__spec__", "__package__"}


class ExtractError(Exception):
    """Why it cannot be taken out; `line` of `module` is where."""

    def __init__(self, module: str, line: int, message: str) -> None:
        super().__init__(message)
        self.module, self.line = module, line


@dataclass(frozen=True, slots=True)
class _Unit:
    """One statement that stands by itself in a module: what it binds there, needs from there, and changes there."""

    module: str
    node: ast.stmt
    text: str
    binds: frozenset[str]
    uses: frozenset[str]
    changes: frozenset[str]


@dataclass(slots=True)
class Module:
    """A file of the program. `stars`: the modules of it that it imports all names of; `others`: what it imports so from
    elsewhere.
    """

    name: str
    tree: ast.Module
    text: str
    units: list[_Unit] = field(default_factory=list)
    stars: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    local: dict[str, str] = field(default_factory=dict)  # a name, and the module of the program that it comes from
    whole: set[str] = field(default_factory=set)  # names that stand for modules of the program, or rename a part of one


def load_program(main: str, read: Callable[[str], str | None]) -> dict[str, Module]:
    """The modules that `main` imports, itself included, those first that others import. `read`: the text of a module;
    None: it is none of the program's. Raises ExtractError where one is no Python.
    """
    found: dict[str, Module] = {}
    _load(main, read, found, set())
    for module in found.values():
        _divide(module, found)
    return found


def _load(name: str, read: Callable[[str], str | None], found: dict[str, Module], begun: set[str]) -> None:
    if name in begun:
        return
    begun.add(name)
    text = read(name)
    if text is None:
        return
    try:
        module = Module(name, ast.parse(text), text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ExtractError(name, getattr(error, "lineno", 0) or 0, f"this is no Python: {error}") from None
    for node in ast.walk(module.tree):
        for each in _imported(node):
            _load(each, read, found, begun)
    found[name] = module


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module.partition(".")[0]]
    return []


def _divide(module: Module, program: Mapping[str, Module]) -> None:
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom) and not node.level and node.module is not None and node.module in program:
            _from_program(module, node, node.module)
        elif isinstance(node, ast.Import) and any(each in program for each in _imported(node)):
            module.whole |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            module.others.append(ast.unparse(node))
        elif not _is_main(node):
            module.units.append(_unit(module, node))


def _from_program(module: Module, node: ast.ImportFrom, source: str) -> None:
    for alias in node.names:
        if alias.name == "*":
            module.stars.append(source)
        elif alias.asname in (None, alias.name):
            module.local[alias.name] = source
        else:
            module.whole.add(alias.asname or "")


def _is_main(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and any(
        isinstance(each, ast.Name) and each.id == "__name__" for each in ast.walk(node.test)
    )


def _unit(module: Module, node: ast.stmt) -> _Unit:
    text = _text(module, node)
    top = _symbols(text, module.name)
    binds = {each.get_name() for each in top.get_symbols() if each.is_assigned() or each.is_imported()}
    is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    changes = set() if is_definition else set(_changed(node))
    return _Unit(module.name, node, text, frozenset(binds), frozenset(_used(top)), frozenset(changes))


def _text(module: Module, node: ast.stmt) -> str:
    """As it is written, where it has its lines for itself."""
    first, last = _lines(node)
    for other in module.tree.body:
        if other is not node and _lines(other)[0] <= last and first <= _lines(other)[1]:
            return ast.unparse(node)
    return "\n".join(module.text.splitlines()[first - 1 : last])


def _lines(node: ast.stmt) -> tuple[int, int]:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(each.lineno for each in decorators)]), node.end_lineno or node.lineno


def _symbols(text: str, file: str) -> symtable.SymbolTable:
    """The names of a text, where those of a comprehension are its own: from Python 3.12 on they are not (PEP 709)."""
    return symtable.symtable(ast.unparse(_Apart().visit(ast.parse(text))), file, "exec")


class _Apart(ast.NodeTransformer):
    """Puts each comprehension into a function, as earlier Pythons have it: all but what it goes through first."""

    def visit(self, node: ast.AST) -> ast.AST:
        """The node, as it is to be read."""
        self.generic_visit(node)
        binds = any(isinstance(each, ast.NamedExpr) for each in ast.walk(node))
        if not isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp) or binds:
            return node
        first = node.generators[0]
        through, first.iter = first.iter, ast.Name("_through", ast.Load())
        parameters = ast.arguments([], [ast.arg("_through")], None, [], [], None, [])
        return ast.Call(ast.Lambda(parameters, node), [through], [])


def _used(table: symtable.SymbolTable) -> Iterator[str]:
    """The names of the module's own that this needs, at whatever depth."""
    top = table.get_type() == "module"
    for each in table.get_symbols():
        if each.is_referenced() if top else each.is_global():
            yield each.get_name()
    for child in table.get_children():
        yield from _used(child)


def _changed(node: ast.stmt) -> Iterator[str]:
    """Names whose value it may change in place: `x[0] = 1`, `x.y += 1`, `x.append(1)`, `change(x)`."""
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute | ast.Subscript) and not isinstance(each.ctx, ast.Load):
            yield from _base(each)
        elif isinstance(each, ast.Expr) and isinstance(each.value, ast.Call):
            for part in (each.value.func, *each.value.args, *(keyword.value for keyword in each.value.keywords)):
                yield from _base(part)


def _base(node: ast.expr) -> Iterator[str]:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    if isinstance(node, ast.Name):
        yield node.id


def extract(program: Mapping[str, Module], module: str, expression: ast.expr, name: str) -> str:
    """A program that binds `name` to what the expression is in that module. Raises ExtractError."""
    try:
        return _Extraction(program).run(module, expression, name)
    except RecursionError:
        raise ExtractError(module, expression.lineno, "it is nested too deeply") from None


class _Extraction:
    def __init__(self, program: Mapping[str, Module]) -> None:
        self._program = program
        self._taken: list[_Unit] = []
        self._others: dict[str, None] = {}

    def run(self, module: str, expression: ast.expr, name: str) -> str:
        text = ast.unparse(expression)
        self._need(module, _used(_symbols(f"({text})", module)), expression.lineno)
        while more := [unit for unit in self._units() if unit not in self._taken and unit.changes & self._bound()]:
            for unit in more:
                self._take(unit)
        self._refuse_two_of_a_name()
        if name in self._bound() and text != name:
            raise ExtractError(module, expression.lineno, f'another thing is called "{name}" there')
        order = [unit for unit in self._units() if unit in self._taken]
        future = [unit for unit in order if _is_future(unit.node)]
        parts = [*future, *(unit for unit in order if unit not in future)]
        texts = [unit.text for unit in parts]
        texts[len(future) : len(future)] = list(self._others)
        return _joined([*texts, *([] if text == name else [f"{name} = {text}"])])

    def _units(self) -> Iterator[_Unit]:
        for module in self._program.values():
            yield from module.units

    def _bound(self) -> set[str]:
        return {name for unit in self._taken for name in unit.binds}

    def _take(self, unit: _Unit) -> None:
        if unit not in self._taken:
            self._taken += [unit, *(each for each in self._program[unit.module].units if _is_future(each.node))]
            self._need(unit.module, unit.uses, unit.node.lineno)

    def _need(self, module: str, names: Iterable[str], line: int) -> None:
        for name in names:
            units = self._find(module, name, line, set())
            if not units and name not in _KNOWN:
                if not self._program[module].others:
                    raise ExtractError(module, line, f'it is not known here what "{name}" is')
                self._others.update(dict.fromkeys(self._program[module].others))
            for unit in units:
                self._take(unit)

    def _find(self, module: str, name: str, line: int, seen: set[str]) -> list[_Unit]:
        """All statements that bind the name, in the module itself, or where it imports it from."""
        here = self._program[module]
        seen.add(module)
        if name in here.whole:
            raise ExtractError(module, line, f'"{name}" is a module of the program, or a part of one by another name')
        if name in here.local:
            return self._find(here.local[name], name, line, seen)
        units = [unit for unit in here.units if name in unit.binds]
        if units or name.startswith("_"):
            return units
        for star in reversed(here.stars):
            if star not in seen and (units := self._find(star, name, line, seen)):
                return units
        return []

    def _refuse_two_of_a_name(self) -> None:
        owners: dict[str, _Unit] = {}
        for unit in self._taken:
            for name in unit.binds:
                owner = owners.setdefault(name, unit)
                if owner.module != unit.module and not _same_import(owner.node, unit.node, name):
                    raise ExtractError(unit.module, unit.node.lineno, f'"{name}" is another thing in {owner.module}.py')


def _same_import(one: ast.stmt, other: ast.stmt, name: str) -> bool:
    found = []
    for node in (one, other):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            return False
        source = node.module if isinstance(node, ast.ImportFrom) else ""
        found += [(source, a.name) for a in node.names if name in (a.asname, a.name, a.name.partition(".")[0])]
    return len(set(found)) == 1


def _joined(texts: list[str]) -> str:
    """With blank lines around what is longer than a line."""
    lines: list[str] = []
    before = ""
    for text in texts:
        lines += ["", ""] if lines and "\n" in before + text else []
        lines.append(text)
        before = text
    return "\n".join(lines) + "\n"


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"
