"""The demonstration: real clients, real servers, the real service; what each client saw, and what the log says."""

import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from proxyfw.demo.internet import ADDRESS_OF_EVIL, SITES
from proxyfw.demo.lab import Lab, LabError
from proxyfw.demo.network import NetworkError

CLIENTS = {"programming": {"profiles": ["github", "pypi"]}, "studying": {"profiles": ["wikipedia"]}}


@dataclass(frozen=True, slots=True)
class Act:
    """One curl: who makes it, what it shows, and words that its output must have."""

    client: str
    title: str
    arguments: tuple[str, ...]
    expected: str


_EVIL_BY_HAND = ("--resolve", f"evil.example:443:{ADDRESS_OF_EVIL}", "--resolve", f"evil.example:80:{ADDRESS_OF_EVIL}")

_LIE = ("--resolve", f"github.com:443:{ADDRESS_OF_EVIL}", "https://github.com/")

_TWO_REQUESTS = ("http://github.com/", "--next", "-sS", "-H", "Host: evil.example", "http://github.com/")

ACTS = (
    Act("programming", "a name of its profile, over TLS", ("https://github.com/",), "reached github.com"),
    Act("programming", "the same over IPv6", ("-6", "https://pypi.org/"), "reached pypi.org"),
    Act("programming", "a name of no profile does not resolve", ("https://evil.example/",), "Could not resolve"),
    Act(
        "programming",
        "its address known all the same: refused by SNI",
        (*_EVIL_BY_HAND, "https://evil.example/"),
        "access denied",
    ),
    Act("programming", "a permitted name at evil's address: github is dialled", _LIE, "reached github.com"),
    Act("programming", "an address without a name", ("-k", f"https://{ADDRESS_OF_EVIL}/"), "access denied"),
    Act("programming", "plain HTTP, permitted by Host", ("http://github.com/",), "reached github.com"),
    Act(
        "programming",
        "plain HTTP, refused by Host",
        (*_EVIL_BY_HAND, "http://evil.example/"),
        "reason: no-match",
    ),
    Act(
        "programming",
        "two requests on one connection, the second to a refused Host",
        _TWO_REQUESTS,
        "reason: no-match",
    ),
    Act("studying", "another client, another profile", ("https://en.wikipedia.org/",), "reached en.wiki"),
    Act("studying", "what the first client may, this one may not", ("https://github.com/",), "Could not resolve"),
)


def show(keep: bool) -> int:
    """Runs the demonstration; 0 when everything went as it must, 1 when not, 2 when it could not be made."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # takes everything away on its way out
    lab = Lab(CLIENTS, SITES)
    _say("making two clients, a netvm and an internet, each in a network namespace of its own ...")
    try:
        lab.start()
    except (LabError, NetworkError, OSError, subprocess.CalledProcessError) as error:
        print(f"proxyfw: demo: {error}", file=sys.stderr)
        return 2
    try:
        wrong = sum([not _perform(lab, act) for act in ACTS])
        _say("\nThe log (proxyfw log):\n")
        time.sleep(0.2)  # rows reach the file within 100 ms
        print(lab.ask("log").stdout)
        if wrong:
            _say(f"{wrong} of {len(ACTS)} did NOT go as they must")
        else:
            _say(f"all {len(ACTS)} went as they must: what is permitted arrived, and evil.example was never reached")
        if keep:
            _keep(lab)
    finally:
        lab.stop()
    return 1 if wrong else 0


def _perform(lab: Lab, act: Act) -> bool:
    evil_before = _reached_evil(lab)
    done = lab.curl(act.client, *act.arguments)
    seen = (done.stdout + done.stderr).strip()
    right = act.expected in seen and _reached_evil(lab) == evil_before
    print(f"\n{act.client}: {act.title}")
    print(f"  $ curl {shlex.join(act.arguments)}")
    for line in seen.splitlines():
        print(f"  {line}" if line else "")
    if not right:
        print(f"  WRONG: expected {act.expected!r}, and evil.example not reached")
    sys.stdout.flush()
    return right


def _reached_evil(lab: Lab) -> int:
    return sum(event.get("address") == ADDRESS_OF_EVIL for event in lab.arrived("request"))


def _keep(lab: Lab) -> None:
    network = lab.network
    _say("\nIt goes on running. In another terminal, as root:")
    for name in network.clients:
        print(f"  ip netns exec {network.namespace(name)} curl --cacert {lab.authority.ca} https://github.com/")
    print(f"  {' '.join(lab.proxyfw('log', '-f', '-c', str(lab.config)))}")
    print(f"  {' '.join(lab.proxyfw('status', '-c', str(lab.config)))}")
    print(f"  the configuration is {lab.config}; after an edit: proxyfw reload -c {lab.config}")
    _say("Ctrl-C ends it and takes everything away.")
    try:
        assert lab.service is not None
        lab.service.wait()
    except KeyboardInterrupt:
        print()


def _say(text: str) -> None:
    print(text, flush=True)
