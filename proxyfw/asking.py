"""What the commands ask before they answer: where the files are, what they say, and what the running service knows."""

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from proxyfw.core.addresslist import AddressList
from proxyfw.core.config import Config, parse_state_dir
from proxyfw.core.feed import Feed, Source
from proxyfw.core.feedbounds import judged
from proxyfw.core.netvm import World, read_netvm, world_from_data
from proxyfw.core.policy import Policy
from proxyfw.edge import files
from proxyfw.edge.control import ControlError, ask
from proxyfw.edge.feedcache import FeedCache
from proxyfw.edge.qubesdb import QubesDb, QubesDbError, available
from proxyfw.load import Loaded, default_config, load
from proxyfw.logview import visible
from proxyfw.statefiles import CONTROL_SOCKET


def fail(message: str) -> int:
    """Says why the command could not be carried out; its exit code."""
    print(f"proxyfw: {visible(message)}", file=sys.stderr)
    return 2


def print_json(value: object) -> None:
    """For programs."""
    print(json.dumps(value, indent=2))


def config_path(arguments: argparse.Namespace) -> Path:
    """The configuration file that is meant."""
    path: Path | None = arguments.config
    return path if path is not None else default_config()


def state_dir(arguments: argparse.Namespace) -> Path:
    """The state folder, even where the configuration has errors: they must not hide the service and its log."""
    path = config_path(arguments)
    try:
        return Path(parse_state_dir(str(path), files.read(path)))
    except files.FileError:
        return Path(Config({}).state_dir)


def control_socket(arguments: argparse.Namespace) -> Path:
    """Where the running service answers."""
    return state_dir(arguments) / CONTROL_SOCKET


def ask_service(arguments: argparse.Namespace, command: str) -> dict[str, Any] | None:
    """What the running service answers; None where there is none, which is said. Raises NotPermitted."""
    try:
        return ask(control_socket(arguments), command)
    except ControlError as error:
        fail(str(error))
        return None


def good(path: Path, world: World | None = None) -> tuple[Loaded, Policy] | None:
    """The files, where they have no error; else the errors are printed."""
    loaded = load(path, world)
    if loaded.policy is None:
        for problem in loaded.problems:
            print(visible(str(problem)), file=sys.stderr)
        return None
    return loaded, loaded.policy


def known_world(arguments: argparse.Namespace) -> World | None:
    """What the running service knows of the clients from Qubes OS, else what QubesDB says; None outside Qubes OS.

    Raises NotPermitted: without what the service knows, an answer could be a wrong one.
    """
    try:
        data = ask(control_socket(arguments), "world")["world"]
        return world_from_data(data, time.time()) if data is not None else None
    except (ControlError, KeyError, TypeError, ValueError):
        pass
    if not available():
        return None
    database = QubesDb()
    try:
        return World(read_netvm(database.start(), time.time()))
    except QubesDbError as error:
        print(f"proxyfw: firewall rules are not known: {visible(str(error))}", file=sys.stderr)
        return None
    finally:
        database.stop()


def cached_lists(feeds: Iterable[Feed], folder: Path) -> tuple[dict[Source, AddressList], list[str]]:
    """What the lists of these feeds hold, as a service that starts would have them; and why not, of each other one."""
    cache, lists, unknown = FeedCache(folder), {}, []
    for source in dict.fromkeys(feed.source for feed in feeds):
        cached, why = cache.load(source.id, str(source))
        if cached is None:
            unknown.append(f"{source}: {why or 'it was not fetched yet'}")
            continue
        found, why = judged(None, cached.networks)
        if why:
            unknown.append(f"{source}: {why}")
        else:
            lists[source] = found
    return lists, unknown
