"""`allow` and `revoke`: one entry more or less in the profile that is a client's own, and the service told of it."""

import argparse
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from shlex import quote
from typing import Any

from proxyfw.asking import config_path, control_socket, fail, good, known_world, print_json
from proxyfw.core import profileedit
from proxyfw.core.duration import DURATION_FIX, parse_duration
from proxyfw.core.netvm import World
from proxyfw.core.pattern import Pattern
from proxyfw.core.policy import Policy
from proxyfw.core.profile import ALLOWED, Library, Profile, parse_profile
from proxyfw.core.profileedit import Edited, EditError
from proxyfw.core.wanted import Grant, WantedError, for_good, granted_by, parse_wanted, same
from proxyfw.edge import files
from proxyfw.edge.control import ControlError, ask
from proxyfw.explain import still_refused
from proxyfw.load import Loaded
from proxyfw.logview import visible
from proxyfw.report import counted, span

LONGEST = 30 * 86400  # seconds of a grant that is for a while


class _Refused(Exception):
    """The command cannot be carried out; nothing was written."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A client's own profile, and all that was read before it is edited."""

    client: str
    file: Path
    loaded: Loaded
    world: World
    profiles: tuple[str, ...]

    @property
    def own(self) -> Profile | None:
        return self.loaded.profiles.get(ALLOWED + self.client)

    def members(self) -> Iterable[Profile]:
        """The profiles of the client, with what they include, as they are written."""
        library = Library(self.loaded.profiles)
        return {each.name: each for name in self.profiles for each in library.expand(name)}.values()

    def permanent(self) -> list[Grant]:
        """What is granted to the client for good."""
        return [grant for each in self.members() for grant in for_good(each)]

    def passing(self, now: float) -> list[Grant]:
        """What is granted to the client for a while."""
        return [entry.grant for each in self.members() for entry in each.temporary if entry.until > now]

    def text(self) -> str:
        return files.read(self.file) if self.own is not None else ""

    def write(self, edited: Edited) -> Policy:
        """Writes the profile; the policy from then on."""
        files.replace(self.file, edited.text)
        profiles = {**self.loaded.profiles, edited.profile.name: edited.profile}
        policy = replace(self.loaded, profiles=profiles, expires=-math.inf).at(time.time()).within(self.world).policy
        assert policy is not None
        return policy


@dataclass(frozen=True, slots=True)
class _Told:
    """What the command has to say, for people and for programs. `words` begin with what was done; `notes` follow."""

    code: int
    words: str
    data: dict[str, Any]
    notes: tuple[str, ...] = ()


def allow(arguments: argparse.Namespace) -> int:
    """Grants a name or an address to a client, for good or for a while."""
    return _carry_out(arguments, "allow", _allow)


def revoke(arguments: argparse.Namespace) -> int:
    """Takes away what `allow` granted."""
    return _carry_out(arguments, "revoke", _revoke)


def _carry_out(
    arguments: argparse.Namespace, command: str, work: Callable[[argparse.Namespace, _Place, Grant], _Told]
) -> int:
    path = config_path(arguments)
    own = path.absolute().parent / ALLOWED / f"{arguments.client}.yaml"
    if not path.exists():
        return fail(f"{command}: {path}: there is no such file; write one, or give another with -c FILE")
    try:
        wanted = parse_wanted(arguments.name, ALLOWED + arguments.client)
        with files.locked(path.absolute().parent):
            told = work(arguments, _place(arguments, command, path, own), wanted)
    except (_Refused, WantedError, EditError) as error:
        return fail(f"{command}: {error}")
    except files.FileError as error:
        return fail(f"{command}: {own}: {error}; nothing was written")
    if told.data["changed"]:
        told = _in_force(arguments, command, told)
    if arguments.json:
        print_json(told.data)
    else:
        for line in (told.words, *told.notes):
            print(visible(line))
    return told.code


def _place(arguments: argparse.Namespace, command: str, path: Path, own: Path) -> _Place:
    """What there is to be edited. Raises _Refused, NotPermitted."""
    world = known_world(arguments)
    found = good(path, world)
    if found is None:
        raise _Refused("the configuration has errors; nothing was written")
    loaded, policy = found
    client = policy.clients.get(arguments.client)
    if client is not None and client.exact:
        raise _Refused(
            f'"{client.name}" is not listed: it gets what its Qubes firewall rules say, and no profile of it is looked '
            f"at; list it under clients: in {path} first"
        )
    if client is not None:
        return _Place(client.name, own, loaded, world or World(), client.profiles)
    if command == "revoke" and ALLOWED + arguments.client in loaded.profiles:  # it is not there just now
        return _Place(arguments.client, own, loaded, world or World(), ())
    known = ", ".join(policy.clients) or "none"
    raise _Refused(f'there is no client "{arguments.client}" in {path} (there: {known})')


def _allow(arguments: argparse.Namespace, place: _Place, wanted: Grant) -> _Told:
    seconds = _seconds(arguments.duration)
    there = granted_by(wanted, place.permanent())
    now = time.time()
    data = {"ok": True, "changed": False, "client": place.client, "grant": wanted.text, "where": "", "until": None}
    if there is not None:
        words = f"{place.client} -> {wanted.text} is granted already: {_by(there)}"
        return _Told(0, words, {**data, "where": str(there.where)})
    until = None if seconds is None else float(math.ceil(now + seconds))
    edited = profileedit.allow(ALLOWED + place.client, str(place.file), place.text(), wanted, until, now)
    where = _where(edited.profile, wanted)
    policy = place.write(edited)
    words = f"allowed: {place.client} -> {wanted.text} ({where})"
    if until is not None:
        words += f", until {_clock(until, now)} ({span(seconds or 0)})"
        data["until"] = datetime.fromtimestamp(until, UTC).isoformat()
    warnings = _doubts(edited.profile, wanted)
    refused = still_refused(policy, place.client, wanted)
    notes = [*(f"  warning: {each}" for each in warnings), *(f"  but: {each}" for each in refused)]
    data |= {"changed": True, "where": where, "warnings": warnings, "refused": refused}
    return _Told(0, words, data, tuple(notes))


def _revoke(arguments: argparse.Namespace, place: _Place, wanted: Grant) -> _Told:
    now, own = time.time(), place.own
    mine = [] if own is None else [*for_good(own), *(entry.grant for entry in own.temporary)]
    data = {"ok": True, "changed": False, "client": place.client, "grant": wanted.text}
    others = [each for each in (*place.permanent(), *place.passing(now)) if not (each in mine and same(each, wanted))]
    there = granted_by(wanted, others)
    if any(same(each, wanted) for each in mine):
        edited = profileedit.revoke(ALLOWED + place.client, str(place.file), place.text(), wanted)
        place.write(edited)
        data |= {"changed": True, "still": str(there.where) if there else ""}
        notes = (f"  but: it is granted still: {_by(there)}",) if there else ()
        return _Told(0, f"revoked: {place.client} -> {wanted.text} ({place.file})", data, notes)
    if there is not None:
        how = f"; proxyfw revoke {place.client} {quote(there.text)}" if there in mine else "; take it out there"
        words = f"{place.client} -> {wanted.text} is not a grant of {place.file}; it is granted by {_by(there)}{how}"
    else:
        near = get_close_matches(wanted.text, [each.text for each in mine])
        words = f"{place.client} -> {wanted.text} is not granted" + (f"; near it: {', '.join(near)}" if near else "")
    return _Told(1, words, {**data, "ok": False, "where": str(there.where) if there else "", "problems": [words]})


def _in_force(arguments: argparse.Namespace, command: str, told: _Told) -> _Told:
    """Has the running service take the files."""
    try:
        answer = ask(control_socket(arguments), "reload")
    except ControlError as error:
        why = "no proxyfw is running here" if not control_socket(arguments).exists() else str(error)
        notes = (*told.notes, f"  {why}: this takes effect when one starts")
        return replace(told, data={**told.data, "running": False, "closed": 0}, notes=notes)
    if not answer["ok"]:
        words = "the file is written, and NOT in force: the last good policy stays"
        notes = (*told.notes, *answer["problems"], words)
        data = {**told.data, "ok": False, "running": True, "closed": 0, "problems": answer["problems"]}
        return replace(told, code=1, data=data, notes=notes)
    closed = answer["closed"]
    words = f"{told.words}; {counted(closed, 'connection')} closed" if closed or command == "revoke" else told.words
    return replace(told, words=words, data={**told.data, "running": True, "closed": closed})


def _seconds(duration: str | None) -> int | None:
    if duration is None:
        return None
    seconds = parse_duration(duration)
    if seconds is None or seconds > LONGEST:
        raise _Refused(f'--for "{duration}": {DURATION_FIX}, at most {LONGEST // 86400}d')
    return seconds


def _by(grant: Grant) -> str:
    return f"{grant.profile}: {grant.text} ({grant.where})"


def _where(profile: Profile, wanted: Grant) -> str:
    grants = [*for_good(profile), *(entry.grant for entry in profile.temporary)]
    return str(next(each.where for each in grants if same(each, wanted)))


def _clock(until: float, now: float) -> str:
    """The time of day, with the date where that is another."""
    end, today = datetime.fromtimestamp(until), datetime.fromtimestamp(now).date()
    return f"{end:%H:%M:%S}" if end.date() == today else f"{end:%Y-%m-%d %H:%M:%S}"


def _doubts(profile: Profile, wanted: Grant) -> list[str]:
    """What the checks of a profile warn of at this entry, whether it is for good or for a while."""
    grants = (*profile.domains, *(entry.grant for entry in profile.temporary))
    others = [each.text for each in grants if isinstance(each, Pattern) and not same(each, wanted)]
    key = "domains" if isinstance(wanted, Pattern) else "networks"
    entries = [f'  - "{text}"' for text in ([*others, wanted.text] if key == "domains" else [wanted.text])]
    problems = parse_profile("x", "", "\n".join([f"{key}:", *entries]))[1]
    here = [problem for problem in problems if problem.where.line == len(entries) + 1]
    return [f"{problem.message}; {problem.fix}" for problem in here]
