"""`import`: a folder of dynamic-firewall becomes a proxyfw.yaml, its own profiles Python feeds."""

import argparse
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from proxyfw.asking import config_path, fail
from proxyfw.core.clientsfile import parse_clients
from proxyfw.core.config import Client, Config, check_profiles
from proxyfw.core.feed import DAY, MAX_EVERY, MIN_EVERY
from proxyfw.core.oldfirewall import OldFirewall, OldProfile, read_old, used_modules
from proxyfw.core.problem import Problem, Where
from proxyfw.core.profile import is_profile_name
from proxyfw.edge import files
from proxyfw.edge.qubesdb import on_qubes
from proxyfw.load import DEFAULTS, FEEDS, load
from proxyfw.logview import visible
from proxyfw.report import counted

_NETWORKS = "-networks"  # how a shipped profile is called that has the addresses which an owner publishes


@dataclass(frozen=True, slots=True)
class _Taken:
    """What is to be written, by path from the folder on, proxyfw.yaml as the last; and what is to be said of it."""

    texts: Mapping[str, str]
    problems: list[Problem]
    notes: list[str]


def take_over(arguments: argparse.Namespace) -> int:
    """Reads the folder, writes the new files, all or none, and checks what came of it."""
    source, path = Path(arguments.folder), _target(arguments)
    try:
        if not source.is_dir():
            return fail(f"import: {source}: there is no such folder")
        taken = _take(source, path.name)
    except files.FileError as error:
        return fail(f"import: {error}")
    for problem in taken.problems:
        print(visible(str(problem)))
    errors = sum(not problem.warning for problem in taken.problems)
    if errors:
        return fail(f"import: {counted(errors, 'error')}; nothing was written")
    folder = path.absolute().parent
    try:
        files.write_new({folder / name: text for name, text in taken.texts.items()})
    except files.FileError as error:
        return fail(f"import: {error}; nothing was written")
    for name in taken.texts:
        print(visible(f"written: {folder / name}"))
    for note in taken.notes:
        print(visible(note))
    return _checked(path)


def _target(arguments: argparse.Namespace) -> Path:
    if arguments.output is not None:
        return Path(arguments.output) / "proxyfw.yaml"
    path = config_path(arguments)
    return DEFAULTS[0] if arguments.config is None and not path.exists() and on_qubes() else path


def _checked(path: Path) -> int:
    """Says what `check` would, and what comes next."""
    loaded = load(path)
    for problem in loaded.problems:
        print(visible(str(problem)))
    errors = sum(not problem.warning for problem in loaded.problems)
    if errors:
        print(visible(f"{counted(errors, 'error')}: correct this, and then: proxyfw check -c {path}"))
        return 1
    for line in _NEXT.splitlines():
        print(visible(line.format(path=path)))
    return 0


_NEXT = """\
next:
  proxyfw check -c {path}
  proxyfw qubes-policy -c {path}     what to do in dom0; the policy of dynamic-firewall is no longer needed
  take what starts dynamic-firewall out of /rw/config/rc.local and of /rw/config/qubes-firewall.d, restart the netvm
  sudo proxyfw status                what the feeds hold, and what is wrong with them
"""


def _take(source: Path, config: str) -> _Taken:
    """Raises FileError, with the path."""
    old = _read_program(source)
    listed = source / old.clients_file
    text = _read(listed)
    clients, problems = parse_clients(str(listed), text, {})
    shipped = set(files.profile_files(files.shipped("profiles")))
    own = {name: profile for name, profile in old.profiles.items() if name not in shipped}
    aliases = {
        alias: profile.name
        for profile in old.profiles.values()
        for alias in profile.aliases
        if alias not in shipped and alias not in old.profiles
    }
    problems = [*old.problems, *problems, *_unnameable(own, aliases, old)]
    problems += check_profiles(Config(clients), {*shipped, *own, *aliases})
    texts: dict[str, str] = {}
    for name, profile in own.items():
        feed = _feed_name(name)
        texts[f"profiles/{name}.yaml"] = _profile_text(profile, feed)
        texts[f"{FEEDS}/{feed}.py"] = _feed_text(profile, feed)
        problems += _about(profile, feed)
    for alias, name in aliases.items():
        texts[f"profiles/{alias}.yaml"] = f"description: another name of {name}\ninclude: [{name}]\n"
    texts[config] = _config_text(source, text, clients)
    return _Taken(texts, problems, _notes(clients, shipped, old, own, aliases))


def _read_program(source: Path) -> OldFirewall:
    def read(module: str) -> str | None:
        path = source / f"{module}.py"
        return _read(path) if path.is_file() else None

    with warnings.catch_warnings(action="ignore"):  # what Python has to say of the user's program
        return read_old(read, lambda module: str(source / f"{module}.py"))


def _read(path: Path) -> str:
    try:
        return files.read(path)
    except files.FileError as error:
        raise files.FileError(f"{Where(str(path), error.line)}: {error}") from None


def _unnameable(own: Iterable[str], aliases: Mapping[str, str], old: OldFirewall) -> list[Problem]:
    fix = "rename it there and in the clients file: letters, digits, -, _ and ., a letter or digit first"
    names = [(name, name) for name in own] + [(alias, name) for alias, name in aliases.items()]
    return [
        Problem(old.profiles[name].where, f'"{each}" cannot be the name of a profile', fix)
        for each, name in names
        if not is_profile_name(each)
    ]


def _feed_name(profile: str) -> str:
    name = profile.replace(".", "_")
    return f"_{name}" if name[:1].isdigit() else name


def _about(profile: OldProfile, feed: str) -> list[Problem]:
    """What the user has to see to."""
    if not profile.program:
        message = f'the refresh of "{profile.name}" cannot be taken over: {profile.why}'
        return [Problem(profile.where, message, f"write it into {FEEDS}/{feed}.py", warning=True)]
    missing = [name for name in dict.fromkeys(used_modules(profile.program)) if not _is_there(name)]
    message = f'the refresh of "{profile.name}" imports {", ".join(missing)}, which is not installed here'
    fix = "install it where proxyfw runs, or write the feed without it"
    return [Problem(profile.where, message, fix, warning=True)] if missing else []


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _every(profile: OldProfile) -> str:
    """In the largest unit that says it whole."""
    minutes = profile.minutes
    wanted = minutes * 60 if minutes is not None and minutes > 0 else DAY
    seconds = round(min(max(wanted, MIN_EVERY), MAX_EVERY))
    for size, unit in ((DAY, "d"), (3600, "h"), (60, "m")):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _profile_text(profile: OldProfile, feed: str) -> str:
    return (
        f"# Taken over from dynamic-firewall: {profile.where}\n"
        f"description: the addresses that {FEEDS}/{feed}.py returns\n"
        f"feeds:\n  - {{python: {feed}, every: {_every(profile)}}}\n"
    )


def _feed_text(profile: OldProfile, feed: str) -> str:
    about = f"The addresses of {profile.name}, taken over from dynamic-firewall."
    if profile.program:
        return f'"""{about}"""\n\n{profile.program}'
    why = f"{FEEDS}/{feed}.py is still to be written: {profile.why}"
    return (
        f"# {about}\n"
        f"# TODO: {profile.why}\n"
        "# Write refresh(current): it returns a list of addresses and networks, or False where nothing changed.\n"
        "# `current` is what it returned the last time. Until it is written, the feed has an error, and no address.\n"
        "\n\ndef refresh(current):\n"
        f"    raise NotImplementedError({why!r})\n"
    )


def _config_text(source: Path, text: str, clients: Mapping[str, Client]) -> str:
    """The clients in their order, with the comments that have a line of their own."""
    lines = [
        f"# Taken over from {source} (dynamic-firewall) by `proxyfw import`.",
        "clients:" if clients else "clients: {}",
    ]
    for line in text.splitlines():
        name = next(iter(line.split()), "")
        comment = line.strip().expandtabs()
        if name.startswith("#") and comment.isprintable():
            lines.append(f"  {comment}")
        elif name in clients:
            lines.append(f"  {name}: [{', '.join(clients[name].profiles)}]")
    return "\n".join(lines) + "\n"


def _notes(
    clients: Mapping[str, Client], shipped: set[str], old: OldFirewall, own: Iterable[str], aliases: Mapping[str, str]
) -> list[str]:
    used = dict.fromkeys(name for client in clients.values() for name in client.profiles)
    named = [name for name in used if name in shipped]
    notes = [f"taken over: {counted(len(clients), 'client')}"]
    if named:
        notes.append(f"by name, with the profiles of proxyfw: {', '.join(named)}")
    if own:
        notes.append(f"as Python feeds, to be read before they run: {', '.join(own)}")
    if aliases:
        notes.append(f"as other names: {', '.join(f'{alias} of {name}' for alias, name in aliases.items())}")
    owners = {alias: profile.name for profile in old.profiles.values() for alias in profile.aliases}
    by_address = dict.fromkeys(owners.get(name, name) + _NETWORKS for name in named)
    known = [name for name in by_address if name in shipped]
    if known:
        notes.append(
            "dynamic-firewall permitted all addresses that their owners publish; for programs that give no name, those "
            f"are in the profiles {', '.join(known)}"
        )
    return notes
