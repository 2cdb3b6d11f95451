"""A ruleset in generations: a new one is built beside the one in force, and takes its place in one step.

Interval sets and verdict maps are empty to packets for a moment in the transaction that makes them (seen on Linux 6.18:
about a millisecond of our ruleset, in which granted packets are refused, and rule 1 is not there). So a first
transaction makes all sets and chains of the new generation, under names of its own; a second one lets the base chains
lead there; a third one takes the old ones away.
"""

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from proxyfw.core.ruleset import FEED_SET, TABLE

KEPT = frozenset({"told4", "told6", "hosts-told4", "hosts-told6", "queries", "flood"})
"""Sets that are of no policy: what has been counted and told in them goes on from one generation to the next. So does
what is in the sets of feeds."""

_DECLARED = re.compile(r"^[ \t]*(?:set|map|chain) ([\w-]+) \{", re.MULTILINE)
_BASE = re.compile(r"^([ \t]*)chain ([\w-]+) \{\n[ \t]*(type [^\n]*)\n", re.MULTILINE)
_NAMED = re.compile(
    rf"((?:^|[ \t])(?:set|map|chain) (?=[\w-]+ \{{)|@|\b(?:goto|jump) |\belement {TABLE} )([\w-]+)", re.MULTILINE
)
_SUFFIX = re.compile(r"\.(\d+)")


class Stages(NamedTuple):
    """The nftables text of the first and the second transaction."""

    build: str
    flip: str


def stages(text: str, generation: str) -> Stages:
    """A ruleset in pieces. `text`: the table, as nft would take it at once. `generation`: as from `following`."""
    base = [(match[2], match[3]) for match in _BASE.finditer(text)]
    names = frozenset(name for name in _DECLARED.findall(text) if not _is_kept(name))
    flip = []
    for name, kind in base:
        flip += [
            f"add chain {TABLE} {name} {{ {kind} }}",
            f"flush chain {TABLE} {name}",
            f"add rule {TABLE} {name} goto {name}{generation}",
        ]
    return Stages(_renamed(_BASE.sub(r"\1chain \2 {\n", text), generation, names), "\n".join(flip) + "\n")


def named(name: str, generation: str) -> str:
    """What a set or chain is called in a generation."""
    return name if _is_kept(name) else f"{name}{generation}"


def feed_sets(text: str) -> frozenset[str]:
    """The sets of feeds that a ruleset has."""
    return frozenset(name for name in _DECLARED.findall(text) if name.startswith(FEED_SET))


def generation_of(name: str) -> str:
    """The generation that a name belongs to; "" where it belongs to none."""
    match = _SUFFIX.search(name)
    return match[0] if match else ""


def following(names: Iterable[str]) -> str:
    """A generation that none of these names is of."""
    numbers = [int(match[1]) for name in names if (match := _SUFFIX.search(name))]
    return f".{max(numbers, default=0) + 1}"


def leftovers(
    chains: Collection[str],
    sets: Collection[tuple[str, str]],
    base: Collection[str],
    generation: str,
    feeds: Collection[str] = (),
) -> str:
    """The nftables text that takes away what is of another generation, and all sets of feeds but these. `sets`: `set`
    or `map`, and the name.
    """
    return removal(
        [name for name in chains if name not in base and generation_of(name) != generation],
        [
            (kind, name)
            for kind, name in sets
            if (name not in feeds if name.startswith(FEED_SET) else not _is_kept(name))
            and generation_of(name) != generation
        ],
    )


def removal(chains: Collection[str], sets: Collection[tuple[str, str]]) -> str:
    """The nftables text that takes these away."""
    return "".join(
        [
            *(f"flush chain {TABLE} {name}\n" for name in chains),
            *(f"delete {kind} {TABLE} {name}\n" for kind, name in sets),
            *(f"delete chain {TABLE} {name}\n" for name in chains),
        ]
    )


def _is_kept(name: str) -> bool:
    return name in KEPT or name.startswith(FEED_SET)


def _renamed(text: str, generation: str, names: frozenset[str]) -> str:
    return _NAMED.sub(lambda match: match[1] + (f"{match[2]}{generation}" if match[2] in names else match[2]), text)
