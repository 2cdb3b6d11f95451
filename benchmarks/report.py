"""The rounds of every peer as markdown tables: medians, and their ratios to the peers that everybody knows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from measure import Figures

REFERENCES = ("nginx", "mitmproxy")


@dataclass(frozen=True, slots=True)
class Column:
    """One figure: its heading, how it is read (None: not measured in that round), and how it is printed."""

    heading: str
    value: Callable[[Figures], float | None]
    form: str


COLUMNS = (
    Column("connections/s", lambda figures: figures.connections_per_second, ",.0f"),
    Column("bulk MB/s", lambda figures: figures.bytes_per_second / 1e6, ",.0f"),
    Column("CPU ms/connection", lambda figures: figures.cpu_per_connection * 1e3, ".3f"),
    Column("CPU s/GB", lambda figures: figures.cpu_per_byte * 1e9, ".2f"),
    Column("RSS at rest MB", lambda figures: figures.at_rest.resident / 1e6, ".1f"),
    Column("PSS at rest MB", lambda figures: figures.at_rest.proportional / 1e6, ".1f"),
    Column(
        "kB/idle connection",
        lambda figures: None if figures.per_idle_connection is None else figures.per_idle_connection / 1e3,
        ".1f",
    ),
)

Rounds = Mapping[str, Sequence[Figures]]
"""The figures of each peer, one entry a round."""


def figures_table(rounds: Rounds) -> str:
    """The median of every figure, one row a peer."""
    rows = []
    for name, figures in rounds.items():
        rows.append([name, *(_form(_median(figures, column), column.form) for column in COLUMNS)])
    return table(["proxy", *(column.heading for column in COLUMNS)], rows)


def ratios_table(rounds: Rounds, reference: str) -> str:
    """Every median divided by that of `reference`."""
    rows = []
    for name, figures in rounds.items():
        cells = []
        for column in COLUMNS:
            own, other = _median(figures, column), _median(rounds[reference], column)
            cells.append(_form(own / other if own is not None and other else None, ".2f"))
        rows.append([name, *cells])
    return table([f"÷ {reference}", *(column.heading for column in COLUMNS)], rows)


def shown(figures: Figures, column: Column) -> str:
    """One figure of one round."""
    return _form(column.value(figures), column.form)


def notes(rounds: Rounds, failures: Mapping[str, str]) -> list[str]:
    """What the figures do not say: the peers without figures, and what failed in the rounds of the others."""
    lines = [f"- {name}: {failure}" for name, failure in failures.items()]
    for name, figures in rounds.items():
        lines += [f"- {name}, round {number}: {note}" for number, one in enumerate(figures, 1) for note in one.notes]
    return lines


def _median(figures: Sequence[Figures], column: Column) -> float | None:
    values = [value for one in figures if (value := column.value(one)) is not None]
    return median(values) if values else None


def _form(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown: the first column is text, the others are numbers."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [_line(heading, widths), _line(rule, widths), *(_line(row, widths) for row in rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    numbers = (text.rjust(width) for text, width in zip(cells[1:], widths[1:], strict=True))
    return f"| {' | '.join([cells[0].ljust(widths[0]), *numbers])} |"
