"""Tries, in a client, what is forbidden to it: again and again, by every protocol. `Prober` starts it and reads it.

As a program it answers each line of its standard input with one of JSON: for each kind, how often it was tried, and how
often anything came back that was no refusal.
"""

import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import dns.message

from lab.hellos import hello
from lab.qubes_world import FORBIDDEN4, FORBIDDEN6, GITHUB4, WITHIN4, ZONE, World
from lab.sockets import eventually, family_of
from proxyfw.demo.internet import ADDRESS_OF_EVIL
from proxyfw.demo.network import CLIENT_DNS

EVIL6 = "2001:db8:1::66"
PORT = 4321
NAME = "evil.example"
_PAUSE = 0.01  # seconds between two tries of one kind
_PATIENCE = 0.2  # seconds for an answer

_AIMS = (ADDRESS_OF_EVIL, EVIL6, FORBIDDEN4, FORBIDDEN6, WITHIN4)
_COUNTERS = "\n".join(
    [
        "table inet arrivals {",
        *(f"counter c{number} {{ }}" for number, _ in enumerate(_AIMS)),
        "chain prerouting { type filter hook prerouting priority raw; policy accept;",
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept",
        *(f"ip{'6' * (':' in aim)} daddr {aim} counter name c{number}" for number, aim in enumerate(_AIMS)),
        "}\n}\n",
    ]
)


class Prober:
    """Runs in one client of a world. `through` and `arrived` tell what has leaked since it began, or since `forget`."""

    def __init__(self, world: World, client: str) -> None:
        self._world = world
        self._client = client
        self._asked = 0
        self._packets: Counter[str] = Counter()
        self._back: Counter[str] = Counter()

    def __enter__(self) -> "Prober":
        lab = self._world.lab
        command = lab.network.command(lab.network.internet, "nft", "-f", "-")
        subprocess.run(command, input=_COUNTERS, text=True, check=True)
        module = ["env", f"PYTHONPATH={Path(__file__).parents[1]}", sys.executable, "-m", "lab.qubes_prober"]
        self._process = lab.spawn(lab.network.namespace(self._client), *module)
        self.tries()
        return self

    def __exit__(self, *_: object) -> None:
        lab = self._world.lab
        self.wake()
        lab.end(self._process)
        subprocess.run(lab.network.command(lab.network.internet, "nft", "delete table inet arrivals"), check=True)

    def rest(self) -> None:
        """Tries nothing until `wake`: it takes as much of the processor as the netvm does."""
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Goes on."""
        self._process.send_signal(signal.SIGCONT)

    def tries(self) -> Counter[str]:
        """How often each kind was tried."""
        return self._ask()[0]

    def goes_on(self, more: int = 1) -> bool:
        """Whether each kind gets this many more tries done now."""
        before = self.tries()
        return bool(eventually(lambda: all(n >= before[kind] + more for kind, n in self.tries().items()), 10.0))

    def leaked(self) -> dict[str, int]:
        """What reached the internet, or came back from there; nothing, if all is well."""
        _, back = self._ask()
        questions = Counter({f"questions for {NAME}": self._questions() - self._asked})
        return dict((self._count() - self._packets) + (back - self._back) + questions)

    def forget(self) -> None:
        """What has leaked so far was meant to."""
        self._packets, self._asked, self._back = self._count(), self._questions(), self._ask()[1]

    def _ask(self) -> tuple[Counter[str], Counter[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        tries, back = json.loads(self._process.stdout.readline())
        return Counter(tries), Counter(back)

    def _count(self) -> Counter[str]:
        lab = self._world.lab
        command = lab.network.command(lab.network.internet, "nft", "-j", "list counters table inet arrivals")
        shown = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["nftables"]
        counters = {item["counter"]["name"]: item["counter"]["packets"] for item in shown if "counter" in item}
        return Counter({f"packets to {aim}": counters[f"c{number}"] for number, aim in enumerate(_AIMS)})

    def _questions(self) -> int:
        return sum(name == NAME for name, _ in self._world.zone.asked)


def _tcp(address: str, port: int, words: bytes) -> bool:
    with socket.socket(family_of(address), socket.SOCK_STREAM) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect((address, port))
        sock.sendall(words)
        return sock.recv(100)[:1] not in (b"", b"\x15")  # what a refusal of the proxy is


def _udp(address: str) -> bool:
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect((address, PORT))
        sock.send(b"anyone?")
        return bool(sock.recv(100))


def _ping(address: str) -> bool:
    request = struct.pack("!BBHHH", 8, 0, 0xF7FE, 0, 1)  # its checksum is the complement of the rest
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(_PATIENCE)
        sock.sendto(request, (address, 0))
        return sock.recv(100)[20] == 0


def _query(resolver: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect((resolver, 53))
        sock.send(dns.message.make_query(NAME, "A").to_wire())
        return bool(dns.message.from_wire(sock.recv(2000)).answer)


KINDS: dict[str, Callable[[], bool]] = {
    "TLS": lambda: _tcp(ADDRESS_OF_EVIL, 443, hello(NAME)),
    "TLS over IPv6": lambda: _tcp(EVIL6, 443, hello(NAME)),
    "TLS to a permitted address": lambda: _tcp(GITHUB4, 443, hello(NAME)),
    "plain TCP": lambda: _tcp(FORBIDDEN4, PORT, b"no TLS\r\n"),
    "plain TCP over IPv6": lambda: _tcp(FORBIDDEN6, PORT, b"no TLS\r\n"),
    "UDP": lambda: _udp(FORBIDDEN4),
    "UDP over IPv6": lambda: _udp(FORBIDDEN6),
    "UDP to what is within": lambda: _udp(WITHIN4),
    "ping": lambda: _ping(FORBIDDEN4),
    "DNS": lambda: _query(CLIENT_DNS[0]),
    "DNS to the resolver itself": lambda: _query(ZONE),
}


def main() -> None:
    """Until its standard input ends."""
    tries: Counter[str] = Counter()
    back: Counter[str] = Counter()

    def run(kind: str, attempt: Callable[[], bool]) -> None:
        while True:
            with suppress(OSError):
                back[kind] += attempt()
            tries[kind] += 1
            time.sleep(_PAUSE)

    for kind, attempt in KINDS.items():
        threading.Thread(target=run, args=(kind, attempt), daemon=True).start()
    for _ in sys.stdin:
        print(json.dumps([tries, back]), flush=True)


if __name__ == "__main__":
    main()
