"""From the files on disk to a policy, with every problem on the way. Opens no network, changes nothing."""

import math
import os.path
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from proxyfw.core.address import IPAddress
from proxyfw.core.addresslist import AddressList
from proxyfw.core.clientpolicy import ClientPolicy
from proxyfw.core.clients import members
from proxyfw.core.clientsfile import parse_clients
from proxyfw.core.config import NAME_FIX, Config, check_addresses, check_profiles, is_client_name, parse_config
from proxyfw.core.feed import Source
from proxyfw.core.netvm import World
from proxyfw.core.policy import Policy, build
from proxyfw.core.problem import Problem, Where
from proxyfw.core.profile import ALLOWED, Library, Profile, link, parse_profile
from proxyfw.core.qubes_rules import DNS_PORT
from proxyfw.edge import files
from proxyfw.edge.qubesdb import on_qubes

DEFAULTS = (Path("/rw/config/proxyfw/proxyfw.yaml"), Path("/etc/proxyfw/proxyfw.yaml"))
"""Where the configuration is looked for, in this order: on Qubes only /rw lasts."""

FEEDS = "feeds"
"""The folder of Python feeds, beside the configuration."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files say. `policy` is None when any of the problems is an error; then the rest may be incomplete.

    `profiles`: as they are written; `library`: as they are now. `notes`: what a person should know of the clients as
    they are now.
    """

    path: Path
    config: Config | None
    library: Library | None
    profiles: dict[str, Profile]
    policy: Policy | None
    problems: list[Problem]
    notes: list[str] = field(default_factory=list)
    _grants: dict[tuple[str, ...], ClientPolicy] = field(default_factory=dict)

    expires: float = math.inf
    """When the next of the grants that are for a while ends, in epoch seconds."""

    def at(self, now: float) -> "Loaded":
        """The same files at this moment, in epoch seconds. Its policy is that of before; see `within`."""
        if self.library is None or now < self.expires:
            return self
        return replace(self, library=_library(self.profiles, now), expires=_expires(self.profiles, now), _grants={})

    def within(self, world: World, lists: Mapping[Source, AddressList] = MappingProxyType({})) -> "Loaded":
        """The same files, in another world. The policy stays None where the files have an error.

        `lists`: what the feeds hold.
        """
        if self.config is None or self.library is None or not all(problem.warning for problem in self.problems):
            return self
        found, notes = members(self.config, self.library.profiles, world)
        netvm = world.netvm
        told = () if netvm is None else netvm.client_dns
        upstream = self.config.upstream or _upstream(world)
        policy = build(self.config, self.library, upstream, found, told, self._grants, lists)
        if netvm is not None:
            notes = [*netvm.problems, *notes]
        return replace(self, policy=policy, notes=notes)


def default_config() -> Path:
    """The first configuration file that exists, else the last place of the list."""
    return next((path for path in DEFAULTS if path.exists()), DEFAULTS[-1])


def load(path: Path, world: World | None = None) -> Loaded:
    """Reads the configuration and every profile, shipped ones first, then the user's.

    `world`: what Qubes OS knows of the clients; None: nobody is there to tell.
    """
    problems: list[Problem] = []
    config = _config(path, problems)
    folders = [path.absolute().parent / "profiles"]
    folders = [folder for folder in folders if folder.is_dir()]
    folders += [Path(folder) for folder in config.profile_folders] if config else []
    profiles, broken = load_profiles([files.shipped("profiles"), *folders], problems)
    own, broken_own = _load_allowed(path.absolute().parent / ALLOWED.rstrip("/"), problems)
    profiles, broken = {**profiles, **own}, broken | broken_own
    linked = link(profiles, broken)[1]
    problems += linked
    problems += _missing_python(profiles.values(), path.absolute().parent / FEEDS)
    world, now = world or World(), time.time()
    if config is not None:
        problems += check_profiles(config, {name for name in (*profiles, *broken) if not name.startswith(ALLOWED)})
        if world.netvm is None and not on_qubes():
            problems += check_addresses(config)
        elif config.listen is not None:
            message = "explicit: listen: is for a machine that is nobody's netvm"
            problems.append(Problem(Where(str(path)), message, "write explicit: {port: 3128}"))
        if not config.upstream and not _upstream(world):
            message = "no resolver is known: /etc/resolv.conf names none"
            problems.append(Problem(Where(str(path)), message, "write dns: {upstream: [10.139.1.1]}"))
    library, expires = _library(profiles, now), _expires(profiles, now)
    return Loaded(path, config, library, profiles, None, problems, expires=expires).within(world)


def _library(profiles: Mapping[str, Profile], now: float) -> Library:
    return Library({name: profile.at(now) for name, profile in profiles.items()})


def _expires(profiles: Mapping[str, Profile], now: float) -> float:
    moments = (entry.until for profile in profiles.values() for entry in profile.temporary)
    return min((moment for moment in moments if moment > now), default=math.inf)


def _missing_python(profiles: Iterable[Profile], folder: Path) -> list[Problem]:
    """The Python feeds whose file does not exist, each an error at its line."""
    return [
        Problem(feed.where, f'"{feed.source.python}": there is no file {folder / feed.source.python}.py', "write it")
        for profile in profiles
        for feed in profile.feeds
        if feed.source.python and not (folder / f"{feed.source.python}.py").is_file()
    ]


def _upstream(world: World) -> tuple[tuple[IPAddress, int], ...]:
    """The netvm's own resolvers, as Qubes OS tells them, else as resolv.conf has them."""
    told = world.netvm.upstream if world.netvm is not None else ()
    return tuple((address, DNS_PORT) for address in told) or files.system_resolvers()


def load_profiles(folders: list[Path], problems: list[Problem]) -> tuple[dict[str, Profile], set[str]]:
    """Every profile of these folders, and the names of those that have an error.

    A later folder's file replaces an earlier one's of the same name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        found.update(_profile_files(folder, problems))
    return _parse_profiles(found, problems)


def _load_allowed(folder: Path, problems: list[Problem]) -> tuple[dict[str, Profile], set[str]]:
    """The profiles that `proxyfw allow` writes, one for each client, and the names of those that have an error."""
    found = {}
    for client, path in (_profile_files(folder, problems) if folder.is_dir() else {}).items():
        if is_client_name(client):
            found[ALLOWED + client] = path
        else:
            problems.append(Problem(Where(str(path)), f'"{client}" is not the name of a qube', NAME_FIX))
    return _parse_profiles(found, problems)


def _profile_files(folder: Path, problems: list[Problem]) -> dict[str, Path]:
    try:
        return files.profile_files(folder)
    except files.FileError as error:
        problems.append(Problem(Where(str(folder)), f"the folder of profiles cannot be read: {error}"))
        return {}


def _parse_profiles(found: Mapping[str, Path], problems: list[Problem]) -> tuple[dict[str, Profile], set[str]]:
    profiles = {}
    own = files.shipped("profiles")
    for name, path in sorted(found.items()):
        try:
            profile, noticed = parse_profile(name, str(path), files.read(path))
        except files.FileError as error:
            problems.append(Problem(Where(str(path), error.line), str(error)))
            continue
        # What we ship has been weighed; its warnings are not the user's to act on.
        problems += [problem for problem in noticed if not (problem.warning and path.parent == own)]
        if profile is not None:
            profiles[name] = profile
    return profiles, set(found) - set(profiles)


def _config(path: Path, problems: list[Problem]) -> Config | None:
    try:
        text = files.read(path)
    except files.FileError as error:
        fix = (
            ""
            if error.line or os.path.exists(path)
            else "write one (see `proxyfw check --help`), or give another with -c FILE"
        )
        problems.append(Problem(Where(str(path), error.line), str(error), fix))
        return None
    config, noticed = parse_config(str(path), text)
    problems += noticed
    return _with_clients_file(config, path, problems) if config is not None and config.clients_file else config


def _with_clients_file(config: Config, path: Path, problems: list[Problem]) -> Config:
    file = path.absolute().parent / config.clients_file
    try:
        more, noticed = parse_clients(str(file), files.read(file), config.clients)
    except files.FileError as error:
        fix = "" if error.line else "write one line for each qube, its name and its profiles; or remove clients_file:"
        problems.append(Problem(Where(str(file), error.line), str(error), fix))
        return config
    problems += noticed
    return replace(config, clients={**config.clients, **more})
