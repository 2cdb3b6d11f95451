#!/usr/bin/env python3
"""proxyfw beside other proxies: connections per second, throughput, CPU and memory, in one run on one machine."""

import argparse
import os
import resource
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

import report
from command import interrupt, positive
from lab import LabError
from measure import NAME, Figures, PeerError, Scale, Tools, measure
from peers import PEERS, Peer, find_program, write_configurations

HERE = Path(__file__).parent
ROUNDS = 3
IDLE = 3000
FULL_SECONDS = 5.0
FULL_STREAM = 512 * 1024 * 1024
QUICK_ROUNDS = 1
QUICK_IDLE = 200
QUICK_SECONDS = 1.0
QUICK_STREAM = 32 * 1024 * 1024
SPARE_CONNECTIONS = 1000  # beside the idle ones: a proxy must be able to carry a few more
FILES_PER_CONNECTION = 3  # two sockets, and HAProxy keeps a pipe for every fourth connection

EPILOG = f"""\
what happens:
  For each round and each proxy in turn, three network namespaces are built: a client, a firewall with the proxy, and
  an internet with a server. The client opens connections to {NAME}:443 with a real ClientHello; the server
  answers fixed bytes. Everything is removed at the end, also after Ctrl-C.
  What each figure means: benchmarks/README.md.

proxies:
  {", ".join(peer.name for peer in PEERS)}; each is skipped when it is not installed.
  Debian: apt install nginx libnginx-mod-stream haproxy sniproxy gcc libc6-dev nftables iproute2
  Python: python3 -m venv benchmarks/.venv-peers && benchmarks/.venv-peers/bin/pip install mitmproxy pproxy

examples:
  sudo .venv/bin/python benchmarks/run.py                          the whole run, about ten minutes
  sudo .venv/bin/python benchmarks/run.py --quick                  does everything work? half a minute a proxy at most
  sudo .venv/bin/python benchmarks/run.py --peers proxyfw,nginx    two of them

exit status: 0 every proxy that is installed was measured, 1 one of them failed, 2 nothing could be measured
"""


def main() -> int:
    options = _options()
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    _check_machine()
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    scale = Scale(
        seconds=QUICK_SECONDS if options.quick else FULL_SECONDS,
        stream_bytes=QUICK_STREAM if options.quick else FULL_STREAM,
        idle=options.idle or (QUICK_IDLE if options.quick else IDLE),
    )
    _raise_file_limit(scale.idle)
    programs, failures = _find(options.peers, options.peer_venv)
    try:
        with tempfile.TemporaryDirectory(prefix="proxyfw-bench-") as name:
            directory = Path(name)
            directory.chmod(0o755)  # a proxy may give up root after its start
            tools = _prepare(directory)
            write_configurations(directory, scale.idle + SPARE_CONNECTIONS)
            results = _rounds(programs, failures, rounds, tools, scale)
    except (LabError, subprocess.CalledProcessError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted; the namespaces are removed", file=sys.stderr)
        return 130
    if not results:
        return _fail("nothing was measured:\n" + "\n".join(report.notes({}, failures)))
    _print(results, failures, rounds, scale)
    return 1 if set(failures) & set(programs) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ",".join(peer.name for peer in PEERS)
    parser.add_argument("--peers", type=_peers, default=PEERS, metavar="A,B", help=f"which proxies; default: {known}")
    parser.add_argument("--rounds", type=positive, help=f"the table shows medians; default: {ROUNDS}")
    parser.add_argument("--idle", type=positive, help=f"idle connections to hold open; default: {IDLE}")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one short round, few idle connections")
    parser.add_argument(
        "--peer-venv",
        type=Path,
        default=HERE / ".venv-peers",
        metavar="DIR",
        help="where mitmproxy and pproxy are installed; default: benchmarks/.venv-peers, then PATH",
    )
    return parser.parse_args()


def _peers(text: str) -> tuple[Peer, ...]:
    known = {peer.name: peer for peer in PEERS}
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return tuple(known[name] for name in names)


def _check_machine() -> None:
    if os.geteuid() != 0:
        sys.exit(_fail("network namespaces need root: sudo .venv/bin/python benchmarks/run.py"))
    for program, package in (
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("cc", "gcc and libc6-dev"),
        ("sysctl", "procps"),
    ):
        if not shutil.which(program):
            sys.exit(_fail(f"`{program}` is missing: install {package}"))


def _raise_file_limit(idle: int) -> None:
    """Up to the hard limit; the proxies inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = FILES_PER_CONNECTION * (idle + SPARE_CONNECTIONS)
    if hard < needed:
        sys.exit(_fail(f"{idle} idle connections need {needed} open files, the hard limit is {hard}: see `ulimit -Hn`"))


def _find(wanted: tuple[Peer, ...], peer_venv: Path) -> tuple[dict[str, tuple[Peer, str]], dict[str, str]]:
    """The peers that are installed, by name with their program; and why the others are not measured."""
    found, missing = {}, {}
    for peer in wanted:
        if program := find_program(peer, peer_venv.absolute()):
            found[peer.name] = (peer, program)
        else:
            missing[peer.name] = f"skipped, `{peer.program}` is not installed"
    return found, missing


def _prepare(directory: Path) -> Tools:
    """Compile the load and the server, and make the ClientHello."""
    tools = Tools(directory)
    for program in (tools.load, tools.server):
        subprocess.run(["cc", "-O2", "-Wall", "-o", program, HERE / f"{program.name}.c"], check=True)
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=NAME)
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        tools.hello.write_bytes(outgoing.read())
    return tools


def _rounds(
    programs: dict[str, tuple[Peer, str]], failures: dict[str, str], rounds: int, tools: Tools, scale: Scale
) -> dict[str, list[Figures]]:
    """The peers in turn, again and again; one that fails is in `failures` and has no further turn."""
    results: dict[str, list[Figures]] = {}
    for number in range(1, rounds + 1):
        for name, (peer, program) in programs.items():
            if name in failures:
                continue
            try:
                figures = measure(peer, program, tools, scale)
            except PeerError as error:
                failures[name] = f"failed in round {number}: {error}"
                print(f"round {number} {name}: {error}", file=sys.stderr)
                continue
            results.setdefault(name, []).append(figures)
            shown = ", ".join(f"{column.heading} {report.shown(figures, column)}" for column in report.COLUMNS)
            print(f"round {number} {name}: {shown}", file=sys.stderr)
    return results


def _print(results: dict[str, list[Figures]], failures: dict[str, str], rounds: int, scale: Scale) -> None:
    print(f"Medians of {rounds} round(s) of {scale.seconds:.0f} s; {scale.idle} idle connections.\n")
    print(report.figures_table(results))
    for reference in report.REFERENCES:
        if reference in results:
            print(f"\n{report.ratios_table(results, reference)}")
    if lines := report.notes(results, failures):
        print("\n" + "\n".join(lines))


def _fail(message: str) -> int:
    print(f"benchmarks/run.py: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
