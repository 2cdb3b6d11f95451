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

from proxyfw import __version__
from proxyfw.core.config import Config, parse_state_dir
from proxyfw.core.policy import Policy
from proxyfw.core.target import TargetError, parse_target
from proxyfw.core.verdict import Allow, Deny, in_a_word, is_refused
from proxyfw.edge import files
from proxyfw.edge.control import ControlError, ask
from proxyfw.edge.logdb import LogError, LogReader, Row
from proxyfw.explain import client_report, explain
from proxyfw.load import Loaded, default_config, load, load_profiles
from proxyfw.logview import Table, as_json, parse_since, visible
from proxyfw.report import profile_report, profile_table, status_report
from proxyfw.service import CONTROL_SOCKET, LOG_FILE

_MAX_DIGITS = 9
_FOLLOW_PAUSE = 0.3  # seconds between two looks at a followed log

DESCRIPTION = """\
proxyfw permits or refuses each connection of a Qubes OS qube by name (TLS SNI, HTTP Host), against that
qube's profiles. Nothing is decrypted."""

EPILOG = """\
From a refusal to an allowance:
  proxyfw log --verdict deny --client work     what was refused, and why
  proxyfw explain work https://example.org     what the policy says of it, and which line says so
  ... add the name to a profile of the client, then:
  proxyfw check && proxyfw reload

Exit codes: 0 yes or done; 1 no (denied, errors found, not running); 2 the command could not be carried out."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (LogError, ControlError) as error:
        return _fail(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "proxyfw", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"proxyfw {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: object, text: str, more: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.set_defaults(run=run)
        return sub

    run = command("run", _run, "run the service in the foreground (root)", _RUN_MORE)
    check = command("check", _check, "validate the configuration and every profile, offline", _CHECK_MORE)
    explain = command("explain", _explain, "say what the policy decides, and which line decides it", _EXPLAIN_MORE)
    log = command("log", _log, "show the decisions", _LOG_MORE)
    status = command("status", _status, "show what the running service does")
    reload = command(
        "reload", _reload, "have the running service read its files anew (all of them, or nothing changes)"
    )
    profiles = command("profiles", _profiles, "list the profiles, or show what one grants")
    demo = command("demo", _demo, "show it at work in a network of namespaces (root)", _DEMO_MORE)

    for sub in (run, check, explain, log, status, reload, profiles):
        sub.add_argument(
            "-c",
            "--config",
            metavar="FILE",
            type=Path,
            help="proxyfw.yaml (default: /rw/config/proxyfw/, /etc/proxyfw/)",
        )
    for sub in (check, explain, log, status, reload, profiles):
        sub.add_argument("--json", action="store_true", help="for programs: JSON on standard output")
    explain.add_argument("client", metavar="CLIENT", type=_text, help="a client of the configuration")
    explain.add_argument(
        "target", metavar="TARGET", type=_text, help="a URL, host, host:port, address:port or [IPv6]:port"
    )
    log.add_argument("--client", metavar="NAME", type=_text, help="of this client only")
    log.add_argument("--verdict", choices=["allow", "deny", "observe"], help="of this verdict only")
    log.add_argument("--name", metavar="HOST", type=_text, help="of this host name; * stands for any characters")
    log.add_argument("--since", metavar="WHEN", type=_text, help="10m, 2h, 3d, today, or 2026-01-31 12:00")
    log.add_argument(
        "-n", "--limit", metavar="N", type=_count, help="the last N rows (default: 200, or all with --since; 0: all)"
    )
    log.add_argument("-f", "--follow", action="store_true", help="go on showing what is decided")
    profiles.add_argument("name", metavar="NAME", type=_text, nargs="?", help="a profile")
    demo.add_argument("--keep", action="store_true", help="leave it running, and say how to enter a client")
    return parser


_RUN_MORE = """\
Everything starts closed: before the files are read, a fail-safe ruleset refuses all clients, unless rules of
proxyfw are in force already. If the configuration has an error, the service ends with exit code 2, and
whatever was in force stays. SIGHUP reloads, SIGTERM stops. After a stop, the packet layer stays in force:
what addresses decide goes on, what names decide is refused."""

_CHECK_MORE = """\
The smallest configuration:
  clients:
    work:
      profiles: [github, pypi]
      address: [10.137.0.12]
Profiles are the shipped ones (proxyfw profiles) and NAME.yaml files in a folder `profiles` beside the
configuration; yours replaces a shipped one of the same name:
  description: what works with it
  domains:
    - example.org          # exactly this name, ports 80 and 443
    - "*.example.org"      # every name below it
    - .example.net         # both
  networks: ["192.0.2.0/24:22"]
Exit codes: 0 valid (warnings may be shown), 1 errors."""

_EXPLAIN_MORE = """\
Examples:
  proxyfw explain work https://api.github.com/meta
  proxyfw explain work example.org:8443
  proxyfw explain work github.com:22
  proxyfw explain work 0.pool.ntp.org:123/udp
  proxyfw explain work 192.0.2.7:22
It asks the same function that decides for the service, with the files as they are now. From a running service it
takes the pins: what this client was told of names and their addresses.
Exit codes: 0 allowed, 1 denied, 2 the question could not be answered."""

_LOG_MORE = """\
Examples:
  proxyfw log --verdict deny --since 10m
  proxyfw log --client work --name '*.example.org' --json
  proxyfw log -f"""

_DEMO_MORE = """\
Two clients, the netvm with proxyfw, and an internet with a resolver, TLS and HTTP servers, each in a network
namespace of its own: the machine's own network is not touched. Real curls are made from each client."""


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise argparse.ArgumentTypeError(f"a whole number of at most {_MAX_DIGITS} digits is wanted, 0 or more")
    return int(text)


def _text(text: str) -> str:
    if not text.isprintable():
        raise argparse.ArgumentTypeError("this has characters that no name has")
    return text


def _fail(message: str) -> int:
    print(f"proxyfw: {visible(message)}", file=sys.stderr)
    return 2


def _path(arguments: argparse.Namespace) -> Path:
    path: Path | None = arguments.config
    return path if path is not None else default_config()


def _run(arguments: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        return _fail("run: only root may set up the packet layer; try it with sudo")
    from proxyfw.service import Service, StartError

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
        print(f"{errors} error{'s' if errors > 1 else ''}; a running service keeps its last good policy")
        return 1
    assert loaded.policy is not None
    print(f"{visible(str(loaded.path))}: good: {len(loaded.policy.clients)} clients, {len(loaded.profiles)} profiles")
    return 0


def _good(path: Path) -> tuple[Loaded, Policy] | None:
    """The files, where they have no error; else the errors are printed."""
    loaded = load(path)
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
    good = _good(_path(arguments))
    if good is None:
        return _fail("explain: the configuration has errors")
    policy = good[1]
    if arguments.client not in policy.clients:
        known = ", ".join(policy.clients) or "none"
        return _fail(f"explain: no client {arguments.client!r} in {_path(arguments)} (there: {known})")
    found = explain(policy, arguments.client, target, _pins(arguments))
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
                "pins": found.pins,
            }
        )
    else:
        for line in client_report(arguments.client, target, found):
            print(line)
    return 0 if words != "deny" else 1


def _pins(arguments: argparse.Namespace) -> list[dict[str, Any]] | None:
    """What the running service has told the client; None where there is no such service."""
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


def _demo(arguments: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        return _fail("demo: only root may make network namespaces; try it with sudo")
    from proxyfw.demo.show import show

    return show(keep=arguments.keep)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
