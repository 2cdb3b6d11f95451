"""The commands. Each is a function from parsed arguments to an exit code: 0 yes, 1 no, 2 could not."""

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxyfw.arguments import build
from proxyfw.core import qubes_policy
from proxyfw.core.config import Config, is_qube_name, parse_state_dir
from proxyfw.core.netvm import World, read_netvm, world_from_data
from proxyfw.core.policy import Policy
from proxyfw.core.target import TargetError, parse_target
from proxyfw.core.verdict import Allow, Deny, in_a_word, is_refused
from proxyfw.edge import files
from proxyfw.edge.control import ControlError, NotPermitted, ask
from proxyfw.edge.logdb import LogError, LogReader, Row
from proxyfw.edge.qubesdb import QubesDb, QubesDbError, available, own_name
from proxyfw.edge.rights import may_administer_network
from proxyfw.explain import client_report, explain
from proxyfw.load import Loaded, default_config, load, load_profiles
from proxyfw.logview import Table, as_json, parse_since, visible
from proxyfw.report import counted, profile_report, profile_table, status_report
from proxyfw.service import CONTROL_SOCKET, LOG_FILE

_FOLLOW_PAUSE = 0.3  # seconds between two looks at a followed log


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; the exit code."""
    parsed = build(_COMMANDS).parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (LogError, NotPermitted) as error:
        return _fail(str(error))


def _fail(message: str) -> int:
    print(f"proxyfw: {visible(message)}", file=sys.stderr)
    return 2


def _path(arguments: argparse.Namespace) -> Path:
    path: Path | None = arguments.config
    return path if path is not None else default_config()


def _run(arguments: argparse.Namespace) -> int:
    if not may_administer_network():
        return _fail("run: the packet layer needs root, or CAP_NET_ADMIN and CAP_NET_BIND_SERVICE; try it with sudo")
    from proxyfw.service import Service
    from proxyfw.startup import StartError

    try:
        asyncio.run(Service(_path(arguments)).run())
    except StartError as error:
        for line in str(error).splitlines():
            print(visible(line), file=sys.stderr)
        return _fail("not started; what was in force stays in force")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    loaded = load(_path(arguments))
    errors = sum(not problem.warning for problem in loaded.problems)
    if arguments.json:
        _print_json(
            {
                "ok": not errors,
                "problems": [
                    {
                        "file": problem.where.file,
                        "line": problem.where.line,
                        "warning": problem.warning,
                        "message": problem.message,
                        "fix": problem.fix,
                    }
                    for problem in loaded.problems
                ],
            }
        )
        return 1 if errors else 0
    for problem in loaded.problems:
        print(visible(str(problem)))
    if errors:
        print(f"{counted(errors, 'error')}; a running service keeps its last good policy")
        return 1
    assert loaded.config is not None
    found = [counted(len(loaded.config.clients), "client"), counted(len(loaded.profiles), "profile")]
    if loaded.config.tags:
        found.insert(1, counted(len(loaded.config.tags), "tag"))
    print(f"{visible(str(loaded.path))}: good: {', '.join(found)}")
    return 0


def _good(path: Path, world: World | None = None) -> tuple[Loaded, Policy] | None:
    """The files, where they have no error; else the errors are printed."""
    loaded = load(path, world)
    if loaded.policy is None:
        for problem in loaded.problems:
            print(visible(str(problem)), file=sys.stderr)
        return None
    return loaded, loaded.policy


def _explain(arguments: argparse.Namespace) -> int:
    try:
        target = parse_target(arguments.target)
    except TargetError as error:
        return _fail(f"explain: {error}")
    world = _world(arguments)
    good = _good(_path(arguments), world)
    if good is None:
        return _fail("explain: the configuration has errors")
    policy = good[1]
    if arguments.client not in policy.clients:
        known = ", ".join(policy.clients) or "none"
        return _fail(f"explain: no client {arguments.client!r} in {_path(arguments)} (there: {known})")
    on_qubes = world is not None and world.netvm is not None
    found = explain(policy, arguments.client, target, _pins(arguments), on_qubes)
    verdict, words = found.verdict, in_a_word(found.verdict)
    if arguments.json:
        _print_json(
            {
                "client": arguments.client,
                "target": arguments.target,
                "name": found.flow.name,
                "verdict": words,
                "reason": verdict.reason.value,
                "rule": verdict.rule,
                "where": verdict.where if isinstance(verdict, Allow) else "",
                "detail": verdict.detail if isinstance(verdict, Deny) else "",
                "resolves": found.query is not None and not is_refused(found.query),
                "by_address": list(found.by_address),
                "rules_known": found.rules_known,
                "pins": found.pins,
            }
        )
    else:
        for line in client_report(arguments.client, target, found):
            print(line)
    return 0 if words != "deny" else 1


def _world(arguments: argparse.Namespace) -> World | None:
    """What the running service knows of the clients from Qubes OS, else what QubesDB says; None outside Qubes OS.

    Raises NotPermitted: without what the service knows, an answer could be a wrong one.
    """
    try:
        data = ask(_state_dir(arguments) / CONTROL_SOCKET, "world")["world"]
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


def _pins(arguments: argparse.Namespace) -> list[dict[str, Any]] | None:
    """What the running service has told the client; None where there is no such service. Raises NotPermitted."""
    try:
        pins: list[dict[str, Any]] = ask(_state_dir(arguments) / CONTROL_SOCKET, f"pins {arguments.client}")["pins"]
    except (ControlError, KeyError):
        return None
    return pins


def _state_dir(arguments: argparse.Namespace) -> Path:
    """The state folder, even where the configuration has errors: they must not hide the service and its log."""
    path = _path(arguments)
    try:
        return Path(parse_state_dir(str(path), files.read(path)))
    except files.FileError:
        return Path(Config({}).state_dir)


def _log(arguments: argparse.Namespace) -> int:
    reader = LogReader(_state_dir(arguments) / LOG_FILE)
    try:
        since = parse_since(arguments.since, time.time()) if arguments.since else None
    except ValueError as error:
        return _fail(f"log: --since: {error}")
    limit = None if since is not None else 200
    if arguments.limit is not None:
        limit = arguments.limit or None
    name = arguments.name.lower().rstrip(".") if arguments.name else None
    chosen = {"client": arguments.client, "verdict": arguments.verdict, "name": name}
    last = reader.last_id()  # and where there is no log, that is said before anything is shown
    table = None if arguments.json else _table()
    if table is not None:
        print(table.header())
    for row in reader.rows(**chosen, since=since, limit=limit):
        _show(row, table)
        last = max(last, row.id)
    if arguments.follow:
        for row in _follow(reader, chosen, last):
            _show(row, table)
    return 0


def _follow(reader: LogReader, chosen: dict[str, str | None], last: int) -> Iterator[Row]:
    while True:
        sys.stdout.flush()
        time.sleep(_FOLLOW_PAUSE)
        for row in reader.rows(**chosen, after_id=last):  # type: ignore[arg-type]
            last = row.id
            yield row


def _table() -> Table:
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size((160, 24)).columns if terminal else 200
    return Table(width, terminal and not os.environ.get("NO_COLOR"))


def _show(row: Row, table: Table | None) -> None:
    print(as_json(row) if table is None else table.line(row))


def _ask(arguments: argparse.Namespace, command: str) -> dict[str, object] | None:
    path = _state_dir(arguments) / CONTROL_SOCKET
    try:
        return ask(path, command)
    except ControlError as error:
        _fail(str(error))
        return None


def _status(arguments: argparse.Namespace) -> int:
    answer = _ask(arguments, "status")
    if answer is None:
        return 1
    if arguments.json:
        _print_json(answer)
    else:
        for line in status_report(answer, time.time()):
            print(line)
    return 0


def _reload(arguments: argparse.Namespace) -> int:
    answer = _ask(arguments, "reload")
    if answer is None:
        return 1
    if arguments.json:
        _print_json(answer)
        return 0 if answer["ok"] else 1
    problems = answer["problems"]
    assert isinstance(problems, list)
    for problem in problems:
        print(visible(str(problem)))
    if not answer["ok"]:
        print("nothing was changed: the last good policy stays in force")
        return 1
    print(f"reloaded: {answer['clients']} clients; {answer['closed']} connections closed that are no longer permitted")
    return 0


def _profiles(arguments: argparse.Namespace) -> int:
    path = _path(arguments)
    if path.exists() or arguments.config is not None:
        loaded = load(path)
        profiles, library = loaded.profiles, loaded.library
    else:
        profiles, _ = load_profiles([files.shipped("profiles")], [])
        library = None
    if arguments.name is None:
        if arguments.json:
            _print_json(
                [{"name": p.name, "description": p.description, "file": p.where.file} for p in profiles.values()]
            )
        else:
            for line in profile_table(profiles.values()):
                print(line)
        return 0
    if arguments.name not in profiles:
        return _fail(f"profiles: there is no profile {arguments.name!r}; `proxyfw profiles` lists them")
    report = profile_report(arguments.name, profiles, library)
    if arguments.json:
        _print_json(report.as_json())
    else:
        for line in report.as_text():
            print(line)
    return 0


def _qubes_policy(arguments: argparse.Namespace) -> int:
    good = _good(_path(arguments), World())
    if good is None or good[0].config is None:
        return _fail("qubes-policy: the configuration has errors")
    netvm = arguments.netvm or own_name()
    if not is_qube_name(netvm):
        return _fail("qubes-policy: what is this netvm's name? write --netvm NAME")
    config = good[0].config
    if arguments.policy:
        text = qubes_policy.policy(netvm, list(config.tags))
    elif arguments.commands:
        text = qubes_policy.commands(netvm, list(config.clients), list(config.tags))
    else:
        text = qubes_policy.render(netvm, list(config.clients), list(config.tags))
    print(text, end="")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        return _fail("demo: only root may make network namespaces; try it with sudo")
    from proxyfw.demo.show import show

    return show(keep=arguments.keep)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


_COMMANDS = {
    "run": _run,
    "check": _check,
    "explain": _explain,
    "log": _log,
    "status": _status,
    "reload": _reload,
    "profiles": _profiles,
    "qubes-policy": _qubes_policy,
    "demo": _demo,
}
