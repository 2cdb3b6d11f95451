"""From the files on disk to a policy, with every problem on the way. Opens no network, changes nothing."""

import os.path
from dataclasses import dataclass
from pathlib import Path

from proxyfw.core.config import Config, check_profiles, parse_config
from proxyfw.core.policy import Policy, build
from proxyfw.core.problem import Problem, Where
from proxyfw.core.profile import Library, Profile, link, parse_profile
from proxyfw.edge import files

DEFAULTS = (Path("/rw/config/proxyfw/proxyfw.yaml"), Path("/etc/proxyfw/proxyfw.yaml"))
"""Where the configuration is looked for, in this order: on Qubes only /rw lasts."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files say. `policy` is None when any of the problems is an error; then the rest may be incomplete."""

    path: Path
    config: Config | None
    library: Library | None
    profiles: dict[str, Profile]
    policy: Policy | None
    problems: list[Problem]


def default_config() -> Path:
    """The first configuration file that exists, else the last place of the list."""
    return next((path for path in DEFAULTS if path.exists()), DEFAULTS[-1])


def load(path: Path) -> Loaded:
    """Reads the configuration and every profile, shipped ones first, then the user's."""
    problems: list[Problem] = []
    config = _config(path, problems)
    folders = [path.absolute().parent / "profiles"]
    folders = [folder for folder in folders if folder.is_dir()]
    folders += [Path(folder) for folder in config.profile_folders] if config else []
    profiles, broken = load_profiles([files.shipped("profiles"), *folders], problems)
    library, linked = link(profiles, broken)
    problems += linked
    policy = None
    if config is not None:
        problems += check_profiles(config, {*profiles, *broken})
        upstream = config.upstream or files.system_resolvers()
        if not upstream:
            message = "no resolver is known: /etc/resolv.conf names none"
            problems.append(Problem(Where(str(path)), message, "write dns: {upstream: [10.139.1.1]}"))
        if all(problem.warning for problem in problems):
            policy = build(config, library, upstream)
    return Loaded(path, config, library, profiles, policy, problems)


def load_profiles(folders: list[Path], problems: list[Problem]) -> tuple[dict[str, Profile], set[str]]:
    """Every profile of these folders, and the names of those that have an error.

    A later folder's file replaces an earlier one's of the same name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        try:
            found.update(files.profile_files(folder))
        except files.FileError as error:
            problems.append(Problem(Where(str(folder)), f"the folder of profiles cannot be read: {error}"))
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
    return config
