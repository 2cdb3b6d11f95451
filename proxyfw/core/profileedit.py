"""One entry put into the text of a profile, or taken out; all the rest stays as it is, byte for byte.

Whatever was done, the text is then read again: unless it is the profile of before with that one entry more or less,
nothing is changed.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from yaml.nodes import MappingNode, Node, ScalarNode

from proxyfw.core import yamledit
from proxyfw.core.pattern import Pattern
from proxyfw.core.problem import Problem, Where
from proxyfw.core.profile import NetworkGrant, Profile, Temporary, parse_grant, parse_profile
from proxyfw.core.wanted import Grant, for_good, same

DOMAINS, NETWORKS, TEMPORARY = "domains", "networks", "temporary"

HEADER = """\
# What was granted to this client alone: `proxyfw allow` and `proxyfw revoke` write it.
# It is a profile as any other, and may be edited by hand; comments stay where they are.
"""
"""What a new file begins with."""

_PLAIN = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_./-]*")  # needs no quotes, between brackets neither
_NOWHERE = Where("")


@dataclass(frozen=True, slots=True)
class Edited:
    """The text of a profile from now on, and what it grants."""

    text: str
    profile: Profile


class EditError(Exception):
    """The text was not changed; the problem says where, why, and what to write by hand."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def allow(name: str, file: str, text: str, wanted: Grant, until: float | None, now: float) -> Edited:
    """The profile with this entry: for good, or up to `until`, in whole epoch seconds. It is there in one of the two
    ways afterwards; what was granted up to a moment before `now` is dropped. `text` may be empty.

    Raises EditError.
    """
    edit = _Edit(name, file, text, _by_hand(wanted, until))
    before = edit.before
    live = [each for each in before.temporary if each.until > now]
    others = [each for each in live if not same(each.grant, wanted)]
    if until is None:
        edit.keep(TEMPORARY, [each in others for each in before.temporary])
        if not _permanent(before, wanted):
            edit.add(_key(wanted), _quoted(wanted.text))
        return edit.done(_with(replace(before, temporary=tuple(others)), wanted))
    entry = Temporary(wanted, until)
    edit.keep(TEMPORARY, [each in live for each in before.temporary])
    if len(others) < len(live):
        edit.renew([same(each.grant, wanted) for each in live], f'"{_moment(until)}"')
        live = [entry if same(each.grant, wanted) else each for each in live]
    else:
        edit.add(TEMPORARY, _for_a_while(wanted, until))
        live.append(entry)
    return edit.done(replace(before, temporary=tuple(live)))


def revoke(name: str, file: str, text: str, wanted: Grant) -> Edited:
    """The profile without this entry, whether it was granted for good or for a while. Raises EditError."""
    edit = _Edit(name, file, text, f'remove "{wanted.text}"')
    before = edit.before
    for key in (DOMAINS, NETWORKS):
        edit.keep(key, [not _is_for(node, wanted) for node in edit.entries(key)])
    edit.keep(TEMPORARY, [not same(each.grant, wanted) for each in before.temporary])
    left = replace(
        before,
        domains=tuple(each for each in before.domains if not same(each, wanted)),
        networks=tuple(each for each in before.networks if not same(each, wanted)),
        temporary=tuple(each for each in before.temporary if not same(each.grant, wanted)),
    )
    return edit.done(left)


def _permanent(profile: Profile, wanted: Grant) -> bool:
    return any(same(each, wanted) for each in for_good(profile))


def _is_for(node: Node, wanted: Grant) -> bool:
    grant = parse_grant(node.value, _NOWHERE, "") if isinstance(node, ScalarNode) else None
    return isinstance(grant, Pattern | NetworkGrant) and same(grant, wanted)


def _with(profile: Profile, wanted: Grant) -> Profile:
    """The profile with a grant for good."""
    if _permanent(profile, wanted):
        return profile
    if isinstance(wanted, Pattern):
        return replace(profile, domains=(*profile.domains, wanted))
    return replace(profile, networks=(*profile.networks, wanted))


class _Edit:
    """The text of a profile on its way. Raises EditError wherever it cannot go on."""

    def __init__(self, name: str, file: str, text: str, by_hand: str) -> None:
        self._name, self._file, self._text, self._by_hand = name, file, text, by_hand
        self.before = self._read()
        if not text:
            self._text = HEADER

    def entries(self, key: str) -> list[Node]:
        """What is written under this key."""
        try:
            return yamledit.entries(self._text, key)
        except yamledit.UnclearError as error:
            raise self._error(str(error), error.line) from None

    def add(self, key: str, entry: str) -> None:
        """Puts an entry at the end of the list."""
        self._change(lambda text: yamledit.added(text, key, entry))

    def keep(self, key: str, wanted: Sequence[bool]) -> None:
        """Takes out the entries of the list that are not wanted."""
        for place in reversed(range(len(wanted))):
            if not wanted[place]:
                self._change(lambda text, place=place: yamledit.removed(text, key, place))  # type: ignore[misc]

    def renew(self, chosen: Sequence[bool], until: str) -> None:
        """Gives those of the temporary entries another end."""
        for place in reversed(range(len(chosen))):
            if chosen[place]:
                node = _value(self.entries(TEMPORARY)[place], "until")
                self._text = yamledit.replaced(self._text, node, until)

    def done(self, wanted: Profile) -> Edited:
        """What came of it, if it is the profile that is wanted."""
        found, _ = parse_profile(self._name, self._file, self._text)
        if found is None or _plain(found) != _plain(wanted):
            raise self._error("it cannot be edited without changing more than that")
        return Edited(self._text, found)

    def _change(self, change: Callable[[str], str]) -> None:
        try:
            self._text = change(self._text)
        except yamledit.UnclearError as error:
            raise self._error(str(error), error.line) from None

    def _read(self) -> Profile:
        profile, problems = parse_profile(self._name, self._file, self._text)
        if profile is None:
            wrong = next(problem for problem in problems if not problem.warning)
            raise self._error(wrong.message, wrong.where.line)
        return profile

    def _error(self, message: str, line: int = 0) -> EditError:
        return EditError(Problem(Where(self._file, line), message, f"write it by hand: {self._by_hand}"))


def _value(node: Node, key: str) -> Node:
    assert isinstance(node, MappingNode)
    value: Node = next(value for name, value in node.value if name.value == key)
    return value


def _plain(profile: Profile) -> tuple[object, ...]:
    """All that a profile says, wherever it says it."""
    return (
        profile.description,
        profile.private,
        profile.include,
        [replace(each, where=_NOWHERE) for each in profile.domains],
        [replace(each, where=_NOWHERE) for each in profile.networks],
        [replace(each, where=_NOWHERE) for each in profile.feeds],
        [(replace(each.grant, where=_NOWHERE), each.until) for each in profile.temporary],
    )


def _by_hand(wanted: Grant, until: float | None) -> str:
    if until is not None:
        return f"- {_for_a_while(wanted, until)} under {TEMPORARY}:"
    return f"- {_quoted(wanted.text)} under {_key(wanted)}:"


def _key(wanted: Grant) -> str:
    return DOMAINS if isinstance(wanted, Pattern) else NETWORKS


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else f'"{text}"'


def _for_a_while(wanted: Grant, until: float) -> str:
    return f'{{grant: "{wanted.text}", until: "{_moment(until)}"}}'


def _moment(until: float) -> str:
    return datetime.fromtimestamp(until, UTC).isoformat(timespec="seconds")
