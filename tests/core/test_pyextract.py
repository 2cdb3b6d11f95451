"""The part of a Python program that one expression needs: it does the same as the whole, and nothing else is in it."""

import ast
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.pyextract import ExtractError, extract, load_program

UTILS = """\
import re, json as _json
from functools import reduce
PATTERN = re.compile("[0-9.]+")
_hidden = 1

def is_address(text):
    return bool(PATTERN.fullmatch(text))

@(lambda make: make())
def ready():
    return 7

def total(numbers): return reduce(lambda a, b: a + b, numbers)
"""


def taken(expression: str, main: str, **others: str) -> str:
    program = load_program("main", {"main": main, **others}.get)
    return extract(program, "main", ast.parse(expression, mode="eval").body, "result")


def run(text: str) -> Any:
    found: dict[str, Any] = {"__name__": "feed"}
    exec(compile(text, "feed", "exec"), found)
    return found["result"]


@pytest.mark.parametrize(
    ("expression", "main", "value"),
    [
        pytest.param("1 + 2", "", 3, id="nothing"),
        pytest.param("a", "a = 5\nb = a\n", 5, id="a constant"),
        pytest.param(
            "f()", "def f():\n    return g() + 1\n\ndef g():\n    return 2\n", 3, id="a function of a function"
        ),
        pytest.param("is_address('1.2')", "from utils import *\n", True, id="all names of another module"),
        pytest.param("is_address('x')", "from utils import is_address\n", False, id="one name of another module"),
        pytest.param("total([1, 2])", "from utils import *\n", 3, id="what another module imports"),
        pytest.param("ready", "from utils import *\n", 7, id="what a decorator made"),
        pytest.param("a", "a = []\na.append(1)\na[0] += 1\n", [2], id="what is changed in place"),
        pytest.param("a", "a = {}\nfor i in range(2):\n    a[i] = i\n", {0: 0, 1: 1}, id="what a loop fills"),
        pytest.param("a", "def fill(x):\n    x.append(1)\na = []\nfill(a)\n", [1], id="what a function fills"),
        pytest.param("a", "try:\n    import no_such as a\nexcept ImportError:\n    a = 4\n", 4, id="one of two ways"),
        pytest.param("a", "a = 1\na = a + 1\n", 2, id="what is bound again"),
        pytest.param("a", "x = 1; a = x + 1\n", 2, id="two statements on a line"),
        pytest.param(
            "[f(i) for i in range(2)]", "def f(i):\n    return [j for j in range(i)]\n", [[], [0]], id="comprehensions"
        ),
        pytest.param("C().x", "class B:\n    x = 3\nclass C(B):\n    pass\n", 3, id="a class and what it is made of"),
        pytest.param("f(3)", "def f(n):\n    import math\n    return math.floor(n)\n", 3, id="an import in a function"),
        pytest.param(
            "f()", "n = 1\ndef f():\n    global n\n    n += 1\n    return n\n", 2, id="a global of a function"
        ),
        pytest.param("f()", "def f():\n    match [1]:\n        case [x]:\n            return x\n", 1, id="a match"),
        pytest.param("math.floor(2.5)", "import os.path, math\n", 2, id="a module"),
        pytest.param("floor(2.5)", "from math import *\n", 2, id="all names of a module that is elsewhere"),
        pytest.param(
            "f(1)",
            "from __future__ import annotations\nclass A: pass\ndef f(x: A | 'B'): return x\n",
            1,
            id="a future import",
        ),
        pytest.param("f", "f = 1 if __name__ else 2\n", 1, id="its own name"),
    ],
)
def test_what_it_does(expression: str, main: str, value: object) -> None:
    assert run(taken(expression, main, utils=UTILS)) == value


def test_nothing_else_is_in_it() -> None:
    main = (
        'from utils import *\nimport os\nos.remove("x")\nPROFILES = {"a": f(1)}\n\ndef g():\n    """Ours."""\n'
        "    return is_address  # kept\n\nif __name__ == '__main__':\n    g()\n"
    )
    assert taken("g", main, utils=UTILS) == (
        'import re, json as _json\nPATTERN = re.compile("[0-9.]+")\n\n\ndef is_address(text):\n'
        "    return bool(PATTERN.fullmatch(text))\n\n\n"
        'def g():\n    """Ours."""\n    return is_address  # kept\n\n\nresult = g\n'
    )


@pytest.mark.parametrize(
    ("expression", "main", "where", "why"),
    [
        pytest.param("nope", "", ("main", 1), 'it is not known here what "nope" is', id="an unknown name"),
        pytest.param("f", "def f():\n    return nope\n", ("main", 1), 'what "nope" is', id="an unknown name within"),
        pytest.param("__file__", "", ("main", 1), 'what "__file__" is', id="the path of the program"),
        pytest.param(
            "_hidden", "from utils import *\n", ("main", 1), 'what "_hidden" is', id="a name that * leaves out"
        ),
        pytest.param("utils.total", "import utils\n", ("main", 1), '"utils" is a module of the program', id="a module"),
        pytest.param(
            "t",
            "from utils import total as t\n",
            ("main", 1),
            '"t" is a module of the program, or a part of one',
            id="another name",
        ),
        pytest.param(
            "result + 1",
            "result = 1\n",
            ("main", 1),
            'another thing is called "result" there',
            id="the name that is wanted",
        ),
        pytest.param(
            "is_address(PATTERN)",
            "from utils import *\nPATTERN = 1\n",
            ("main", 2),
            '"PATTERN" is another thing in utils.py',
            id="two things of one name",
        ),
    ],
)
def test_what_cannot_be_taken_out(expression: str, main: str, where: tuple[str, int], why: str) -> None:
    with pytest.raises(ExtractError) as refused:
        taken(expression, main, utils=UTILS)
    assert (refused.value.module, refused.value.line) == where
    assert why in str(refused.value)


@pytest.mark.parametrize("text", ["def f(:\n", "x = '\0'\n", "  x = 1\n"], ids=["syntax", "a NUL", "indentation"])
def test_what_is_no_python(text: str) -> None:
    with pytest.raises(ExtractError, match="this is no Python") as refused:
        load_program("main", {"main": "import sites\n", "sites": text}.get)
    assert refused.value.module == "sites"


def test_modules_come_after_those_that_they_import_and_circles_end() -> None:
    sources = {"main": "from a import *\nimport os\n", "a": "from b import *\n", "b": "from a import *\nx = 1\n"}
    assert list(load_program("main", sources.get)) == ["b", "a", "main"]
    assert load_program("none", sources.get) == {}


lines = st.lists(
    st.sampled_from(
        [
            *("a = 1", "b = a", "a += 1", "def f(): return a", "c = f()", "import re", "a, b = b, a", "d = [a]"),
            *("d.append(b)", "for e in d: a = e", "class G: a = a", "if a: b = 2", "with b as c: d = c", "del a"),
            *("f = lambda x=a: x", "g: int", "g: int = b", "try: pass\nexcept E as h: a = h", "from utils import *"),
            *("async def k(): await a", "a = (b := 3)", "from __future__ import annotations"),
        ]
    ),
    max_size=8,
)


@given(lines, st.sampled_from(["a", "b", "f()", "[a for a in d]", "c", "lambda a: a + b", "k"]))
def test_whatever_is_taken_out_is_python_that_needs_nothing_more(parts: list[str], expression: str) -> None:
    try:
        text = taken(expression, "\n".join(parts), utils=UTILS)
    except ExtractError:
        return
    again = {"main": text}
    assert extract(load_program("main", again.get), "main", ast.parse("result", mode="eval").body, "result")
