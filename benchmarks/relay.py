#!/usr/bin/env python3
"""The DNS relay beside dnsmasq and unbound: queries per second, losses, latency and CPU, in one run on one machine."""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from command import interrupt, positive
from lab import SERVER_ADDRESS, Lab, LabError, Side
from measure import PeerError, running, settled_cpu
from peers import Peer, find_program, write_configurations
from report import table

HERE = Path(__file__).parent
ROUNDS = 3
SECONDS = 5
QUICK_ROUNDS = 1
QUICK_SECONDS = 1

ZONE = "bench.example"
ADDRESSES = (SERVER_ADDRESS, "2001:db8:1::10")  # what every name below ZONE has
RESOLVER_AIMED_AT = "10.139.1.1"  # where every qube sends its queries
QUERIES = "meta l4proto { tcp, udp } th dport 53"
NAMES = 100  # permitted ones, each asked for A and for AAAA; fewer than the relay lets a client look up at once
REFUSED_NAMES = 100_000  # more than any cache of the relay holds
WARM_UP_RATE = 500
RATE = 2000  # a second: what the relay must answer without loss
SOCKETS = 8  # of the client, over UDP and over TCP
AT_ONCE = 100  # unanswered queries, dnsperf's own default
TIMEOUT = 2  # seconds after which a query counts as lost
SPARE_SECONDS = 30.0  # beyond its time limit, no run of dnsperf takes this long

LIMITED_CHAIN, LIMITING = "to-relay", "queries_dropped"  # the rule that holds a client back, by the counter it names

PEERS = (
    Peer("proxyfw", ("proxyfw", "run", "-c", "{dir}/dns/proxyfw.yaml"), None),
    Peer("dnsmasq", ("dnsmasq", "-k", "-C", "{dir}/dns/dnsmasq.conf", "--log-facility=-"), 9053),
    Peer("unbound", ("unbound", "-d", "-p", "-c", "{dir}/dns/unbound.conf"), 9054),
)

EPILOG = f"""\
what happens:
  For each round and each program in turn, three network namespaces are built: a client, a firewall with the program,
  and an internet with a resolver. The client's dnsperf sends its queries to {RESOLVER_AIMED_AT}, first {RATE} a second,
  then as many as get answered. For the latter, the rule that drops what exceeds 3,000 a second from one client is
  taken out of proxyfw's packet layer. Everything is removed at the end, also after Ctrl-C.
  What each figure means: benchmarks/README.md.

examples:
  sudo .venv/bin/python benchmarks/relay.py             the whole run, about seven minutes
  sudo .venv/bin/python benchmarks/relay.py --quick     does everything work?
  sudo .venv/bin/python benchmarks/relay.py --edns      queries with EDNS, as systemd-resolved sends them

needs: apt install dnsperf nftables iproute2 procps; beside proxyfw: apt install dnsmasq-base unbound

exit status: 0 every program that is installed was measured, 1 one of them failed, 2 nothing could be measured
"""


@dataclass(frozen=True, slots=True)
class Load:
    """One run of dnsperf. `rate`: queries a second, 0 for as many as get answered; `rcode`: the right reply."""

    name: str
    names: str
    transport: str
    rate: int
    rcode: str


LOADS = (
    Load("cached, UDP", "cached", "udp", RATE, "NOERROR"),
    Load("refused, UDP", "refused", "udp", RATE, "NXDOMAIN"),
    Load("cached, TCP", "cached", "tcp", RATE, "NOERROR"),
    Load("cached, UDP", "cached", "udp", 0, "NOERROR"),
    Load("refused, UDP", "refused-too", "udp", 0, "NXDOMAIN"),  # others: a verdict is logged once a minute
    Load("cached, TCP", "cached", "tcp", 0, "NOERROR"),
)


@dataclass(frozen=True, slots=True)
class Answered:
    """What dnsperf counted. Seconds. `right`: replies with the wanted code."""

    sent: int
    completed: int
    lost: int
    right: int
    per_second: float
    average: float
    worst: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What one load gave in one round."""

    answered: Answered
    cpu_per_query: float


Results = dict[tuple[str, Load], list[Figures]]
"""By program and load, one entry a round."""


def main() -> int:
    options = _options()
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    _check_machine()
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    seconds = QUICK_SECONDS if options.quick else SECONDS
    found = {peer: find_program(peer, HERE / ".venv-peers") for peer in PEERS}
    programs = {peer: program for peer, program in found.items() if program}
    failures = {peer.name: f"skipped, `{peer.program}` is not installed" for peer in PEERS if peer not in programs}
    try:
        with tempfile.TemporaryDirectory(prefix="proxyfw-bench-") as name:
            directory = Path(name)
            write_configurations(directory, 1)
            write_queries(directory)
            results = _rounds(programs, failures, rounds, directory, seconds, options.edns)
    except (LabError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted; the namespaces are removed", file=sys.stderr)
        return 130
    if not results:
        return _fail("nothing was measured:\n" + "\n".join(f"{name}: {why}" for name, why in failures.items()))
    _print(results, failures, rounds, seconds, options.edns)
    return 1 if failures.keys() & {peer.name for peer in programs} else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/relay.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=positive, help=f"the tables show medians; default: {ROUNDS}")
    parser.add_argument("--edns", action="store_true", help="queries with EDNS: the relay then says why it refuses")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one short round")
    return parser.parse_args()


def _check_machine() -> None:
    if os.geteuid() != 0:
        sys.exit(_fail("network namespaces need root: sudo .venv/bin/python benchmarks/relay.py"))
    for program, package in (("ip", "iproute2"), ("nft", "nftables"), ("sysctl", "procps"), ("dnsperf", "dnsperf")):
        if not shutil.which(program):
            sys.exit(_fail(f"`{program}` is missing: install {package}"))


def write_queries(directory: Path) -> None:
    """The files that dnsperf reads."""
    cached = [f"host{number}.{ZONE} {rdtype}" for number in range(NAMES) for rdtype in ("A", "AAAA")]
    (directory / "one.queries").write_text(f"{cached[0]}\n")
    (directory / "cached.queries").write_text("\n".join(cached) + "\n")
    for name in ("refused", "refused-too"):
        names = (f"host{number}.{name}.example {('A', 'AAAA')[number % 2]}\n" for number in range(REFUSED_NAMES))
        (directory / f"{name}.queries").write_text("".join(names))


def _rounds(
    programs: dict[Peer, str], failures: dict[str, str], rounds: int, directory: Path, seconds: int, edns: bool
) -> Results:
    """The programs in turn, again and again; one that fails is in `failures` and has no further turn."""
    results: Results = {}
    for number in range(1, rounds + 1):
        for peer, program in programs.items():
            if peer.name in failures:
                continue
            try:
                figures = measure(peer, program, directory, seconds, edns)
            except PeerError as error:
                failures[peer.name] = f"failed in round {number}: {error}"
                print(f"round {number} {peer.name}: {error}", file=sys.stderr)
                continue
            for load, one in figures.items():
                results.setdefault((peer.name, load), []).append(one)
                print(f"round {number} {peer.name}: {', '.join(_cells(load, [one]))}", file=sys.stderr)
    return results


def measure(peer: Peer, program: str, directory: Path, seconds: int, edns: bool) -> dict[Load, Figures]:
    """One round in a fresh process. Raises PeerError."""

    def answers(network: Lab) -> bool:
        return _dnsperf(network, directory, Load("", "one", "udp", 0, "NOERROR"), ("-n", "1")).right == 1

    figures = {}
    zone = (f"*.{ZONE}", *ADDRESSES)
    with running(peer, program, directory, zone, QUERIES, answers) as network:
        warm_up = _dnsperf(network, directory, Load("", "cached", "udp", WARM_UP_RATE, "NOERROR"), ("-n", "1"))
        if warm_up.right != 2 * NAMES:
            raise PeerError(f"only {warm_up.right} of {2 * NAMES} names were looked up")
        limited = peer.port is None
        for load in LOADS:
            if limited and not load.rate:
                lift_limit(network)
                limited = False
            before = settled_cpu(network)
            answered = _dnsperf(network, directory, load, ("-l", str(seconds), *(["-e"] if edns else [])), seconds)
            used = settled_cpu(network) - before
            if not answered.completed or answered.right != answered.completed:
                raise PeerError(f"{load.name}: {answered.right} of {answered.completed} replies were {load.rcode}")
            figures[load] = Figures(answered, used / answered.completed)
    return figures


def lift_limit(network: Lab) -> None:
    """Take the rule that drops what one client has too much out of the packet layer."""
    handles = re.findall(rf"{LIMITING}.* # handle (\d+)", network.chain(LIMITED_CHAIN))
    if len(handles) != 1:
        raise PeerError(f"the chain {LIMITED_CHAIN} has {len(handles)} rules with {LIMITING}, not one")
    network.delete_rule(LIMITED_CHAIN, handles[0])


def _dnsperf(network: Lab, directory: Path, load: Load, more: Sequence[str], seconds: float = 0) -> Answered:
    words = ["-s", RESOLVER_AIMED_AT, "-m", load.transport, "-d", str(directory / f"{load.names}.queries")]
    words += ["-c", str(SOCKETS), "-q", str(AT_ONCE), "-t", str(TIMEOUT), *more]
    if load.rate:
        words += ["-Q", str(load.rate)]
    command = network.command(Side.CLIENT, "dnsperf", *words)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + SPARE_SECONDS)
    except subprocess.TimeoutExpired:
        raise PeerError("a run of dnsperf did not end") from None
    if done.returncode:
        raise PeerError(f"dnsperf: {done.stderr.strip() or done.stdout.strip()}")
    return Answered(
        sent=int(_told(done.stdout, r"Queries sent: +(\d+)")),
        completed=int(_told(done.stdout, r"Queries completed: +(\d+)")),
        lost=int(_told(done.stdout, r"Queries lost: +(\d+)")),
        right=int(_told(done.stdout, rf"Response codes: .*\b{load.rcode} (\d+)", "0")),
        per_second=_told(done.stdout, r"Queries per second: +([\d.]+)"),
        average=_told(done.stdout, r"Average Latency \(s\): +([\d.]+)"),
        worst=_told(done.stdout, r"Average Latency .* max ([\d.]+)"),
    )


def _told(text: str, pattern: str, default: str | None = None) -> float:
    match = re.search(pattern, text)
    if match is None and default is None:
        raise PeerError(f"dnsperf told nothing like {pattern!r}")
    return float(match[1] if match else default or "")


def _print(results: Results, failures: dict[str, str], rounds: int, seconds: int, edns: bool) -> None:
    print(f"Medians of {rounds} round(s) of {seconds} s, {'with' if edns else 'without'} EDNS; lost: in all rounds.")
    heading = ["queries/s", "lost", "average ms", "worst ms", "CPU ms/query"]
    for title, loads in (
        (f"At most {RATE:,} queries/s, the packet layer as it is in use", [load for load in LOADS if load.rate]),
        (
            f"As fast as it goes ({AT_ONCE} queries unanswered at once), proxyfw without its packet layer's limit of "
            "3,000 queries/s for each client",
            [load for load in LOADS if not load.rate],
        ),
    ):
        rows = [
            _cells(load, results[name, load], f"{name}: ")
            for load in loads
            for name in dict.fromkeys(name for name, _ in results)
        ]
        print(f"\n{title}:\n\n{table(['load', *heading], rows)}")
    if failures:
        print("\n" + "\n".join(f"- {name}: {why}" for name, why in failures.items()))


def _cells(load: Load, rounds: Sequence[Figures], prefix: str = "") -> list[str]:
    answered = [figures.answered for figures in rounds]
    lost, sent = sum(one.lost for one in answered), sum(one.sent for one in answered)
    return [
        f"{prefix}{load.name}",
        f"{median(one.per_second for one in answered):,.0f}",
        f"{lost:,} of {sent:,}",
        f"{median(one.average for one in answered) * 1e3:.2f}",
        f"{median(one.worst for one in answered) * 1e3:.1f}",
        f"{median(figures.cpu_per_query for figures in rounds) * 1e3:.3f}",
    ]


def _fail(message: str) -> int:
    print(f"benchmarks/relay.py: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
