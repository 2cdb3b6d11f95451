"""The commands. Each is a function from parsed arguments to an exit code: 0 yes, 1 no, 2 could not."""

import argparse
import asyncio
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from proxyfw.arguments import build
from proxyfw.asking import (
    ask_service,
    cached_lists,
    config_path,
    control_socket,
    fail,
    good,
    known_world,
    print_json,
    state_dir,
)
from proxyfw.core import qubes_policy
from proxyfw.core.config import is_qube_name
from proxyfw.core.netvm import World
from proxyfw.core.target import TargetError, parse_target
from proxyfw.core.verdict import Allow, Deny, in_a_word, is_refused
from proxyfw.edge import files
from proxyfw.edge.control import ControlError, NotPermitted, ask
from proxyfw.edge.logdb import LogError, LogReader, Row
from proxyfw.edge.qubesdb import own_name
from proxyfw.edge.rights import may_administer_network
from proxyfw.explain import client_report, explain
from proxyfw.load import load, load_profiles
from proxyfw.logview import Table, as_json, parse_since, visible
from proxyfw.profileview import find, profile_list, profile_report, profile_table
from proxyfw.report import counted, feed_lines, status_report
from proxyfw.statefiles import FEED_FOLDER, LOG_FILE

if TYPE_CHECKING:
    from proxyfw.mitmengine import MitmPlane

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
        return fail(str(error))


def _run(arguments: argparse.Namespace) -> int:
    from proxyfw.service import Service
    from proxyfw.startup import StartError, is_local

    path = config_path(arguments)
    try:
        if arguments.engine == "mitmproxy":
            asyncio.run(Service(path, _mitm_plane(arguments)).run())
            return 0
        if arguments.mode or arguments.web:
            return fail("run: --mode and --web are for --engine mitmproxy")
        if not is_local(path) and not may_administer_network():
            return fail("run: the packet layer needs root, or CAP_NET_ADMIN and CAP_NET_BIND_SERVICE; try it with sudo")
        asyncio.run(Service(path).run())
    except StartError as error:
        for line in str(error).splitlines():
            print(visible(line), file=sys.stderr)
        return fail("not started; what was in force stays in force")
    return 0


def _mitm_plane(arguments: argparse.Namespace) -> "MitmPlane":
    """mitmproxy, which need not be installed. Raises StartError."""
    from proxyfw.startup import StartError

    try:
        from proxyfw.mitmengine import MitmPlane
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("proxyfw", ""):
            raise
        fix = "in a clone of proxyfw: ./setup.sh mitmproxy; elsewhere: pip install 'proxyfw[mitmproxy]'"
        raise StartError(f"--engine mitmproxy: Python has no module {error.name!r}; {fix}") from None
    return MitmPlane(arguments.mode or [], arguments.web)


def _check(arguments: argparse.Namespace) -> int:
    loaded = load(config_path(arguments))
    errors = sum(not problem.warning for problem in loaded.problems)
    if arguments.json:
        print_json(
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


def _explain(arguments: argparse.Namespace) -> int:
    try:
        target = parse_target(arguments.target)
    except TargetError as error:
        return fail(f"explain: {error}")
    world = known_world(arguments)
    read = good(config_path(arguments), world)
    if read is None:
        return fail("explain: the configuration has errors")
    policy = read[1]
    if arguments.client not in policy.clients:
        known = ", ".join(policy.clients) or "none"
        return fail(f"explain: no client {arguments.client!r} in {config_path(arguments)} (there: {known})")
    feeds = () if isinstance(target.host, str) else policy.clients[arguments.client].feeds
    lists, unknown = cached_lists(feeds, state_dir(arguments) / FEED_FOLDER)
    on_qubes = world is not None and world.netvm is not None
    told = explain(policy.with_lists(lists), arguments.client, target, _pins(arguments), on_qubes)
    found = replace(told, unknown_lists=unknown)
    verdict, words = found.verdict, in_a_word(found.verdict)
    if arguments.json:
        print_json(
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
                "unknown_lists": list(found.unknown_lists),
            }
        )
    else:
        for line in client_report(arguments.client, target, found):
            print(line)
    return 0 if words != "deny" else 1


def _pins(arguments: argparse.Namespace) -> list[dict[str, Any]] | None:
    """What the running service has told the client; None where there is no such service. Raises NotPermitted."""
    try:
        pins: list[dict[str, Any]] = ask(control_socket(arguments), f"pins {arguments.client}")["pins"]
    except (ControlError, KeyError):
        return None
    return pins


def _log(arguments: argparse.Namespace) -> int:
    reader = LogReader(state_dir(arguments) / LOG_FILE)
    try:
        since = parse_since(arguments.since, time.time()) if arguments.since else None
    except ValueError as error:
        return fail(f"log: --since: {error}")
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


def _status(arguments: argparse.Namespace) -> int:
    answer = ask_service(arguments, "status")
    if answer is None:
        return 1
    if arguments.json:
        print_json(answer)
    else:
        for line in status_report(answer, time.time()):
            print(line)
    return 0


def _reload(arguments: argparse.Namespace) -> int:
    answer = ask_service(arguments, "reload")
    if answer is None:
        return 1
    if arguments.json:
        print_json(answer)
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


def _refresh(arguments: argparse.Namespace) -> int:
    answer = ask_service(arguments, "refresh accept" if arguments.accept else "refresh")
    if answer is None:
        return 1
    if arguments.json:
        print_json(answer)
    else:
        for line in feed_lines(answer["feeds"], True, time.time()) or ["no profile of any client has a feed"]:
            print(line)
    return 1 if any(feed["error"] for feed in answer["feeds"]) else 0


def _profiles(arguments: argparse.Namespace) -> int:
    path, now, word = config_path(arguments), time.time(), arguments.name
    if path.exists() or arguments.config is not None:
        profiles = load(path).profiles
    else:
        profiles, _ = load_profiles([files.shipped("profiles")], [])
    if word is None:
        if arguments.json:
            print_json(profile_list(profiles, now))
        else:
            print("\n".join(profile_table(profiles, now)))
        return 0
    found = profile_report(word, profiles, now) if word in profiles else find(word, profiles, now)
    if found is None:
        return fail(
            f"profiles: there is no profile {word!r}, and none that grants such a name or has this word in it; "
            "`proxyfw profiles` lists them"
        )
    if arguments.json:
        print_json(found.as_json())
    else:
        print("\n".join(found.as_text()))
    return 0


def _allow(arguments: argparse.Namespace) -> int:
    from proxyfw.editing import allow

    return allow(arguments)


def _revoke(arguments: argparse.Namespace) -> int:
    from proxyfw.editing import revoke

    return revoke(arguments)


def _import(arguments: argparse.Namespace) -> int:
    from proxyfw.importing import take_over

    return take_over(arguments)


def _qubes_policy(arguments: argparse.Namespace) -> int:
    read = good(config_path(arguments), World())
    if read is None or read[0].config is None:
        return fail("qubes-policy: the configuration has errors")
    netvm = arguments.netvm or own_name()
    if not is_qube_name(netvm):
        return fail("qubes-policy: what is this netvm's name? write --netvm NAME")
    config = read[0].config
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
        return fail("demo: only root may make network namespaces; try it with sudo")
    from proxyfw.demo.show import show

    return show(keep=arguments.keep)


_COMMANDS = {
    "run": _run,
    "check": _check,
    "explain": _explain,
    "log": _log,
    "status": _status,
    "reload": _reload,
    "refresh": _refresh,
    "allow": _allow,
    "revoke": _revoke,
    "import": _import,
    "profiles": _profiles,
    "qubes-policy": _qubes_policy,
    "demo": _demo,
}
