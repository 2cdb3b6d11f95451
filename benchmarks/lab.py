"""Three network namespaces in a row: a client qube, the firewall with the proxy under test, and the internet."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

CLIENT_ADDRESS = "10.137.0.11"
SERVER_ADDRESS = "198.51.100.10"
RESOLVER_ADDRESS = "198.51.100.53"

# Without these the second round meets the ports and conntrack entries of the first.
SYSCTLS = (
    "net.ipv4.ip_forward=1",
    "net.ipv4.ip_local_port_range=1024 65535",
    "net.ipv4.tcp_max_tw_buckets=200",
    "net.netfilter.nf_conntrack_tcp_timeout_time_wait=1",
)

# Nothing reaches the server but through a proxy: a figure can never be that of the kernel's own forwarding.
RULES = """
table inet bench {
    chain forward {
        type filter hook forward priority filter; policy accept;
        meta l4proto tcp reject with tcp reset
    }
}
"""

REDIRECT = """
table ip bench_redirect {{
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname "vif1.0" {match} redirect to :{port}
    }}
}}
"""

STOP_SECONDS = 10.0


class LabError(Exception):
    """A namespace could not be set up; the message is the failing command's own."""


class Side(StrEnum):
    """Which of the three namespaces."""

    CLIENT = "client"
    FIREWALL = "firewall"
    INTERNET = "internet"


class Lab:
    """The namespaces while they exist. Made by `lab`, which also removes them."""

    def __init__(self, tag: str) -> None:
        self._tag = tag

    def name(self, side: Side) -> str:
        """The namespace's name for `ip netns`."""
        return f"{self._tag}-{side}"

    def command(self, side: Side, *argv: str | Path) -> list[str]:
        """The command line that runs `argv` inside; the process started is `argv` itself, not a wrapper."""
        return ["ip", "netns", "exec", self.name(side), *map(str, argv)]

    def redirect(self, match: str, port: int) -> None:
        """Send what of the client's packets `match` says (in nft's words) to `port` of the firewall."""
        _run(self.command(Side.FIREWALL, "nft", "-f", "-"), REDIRECT.format(match=match, port=port))

    def chain(self, name: str) -> str:
        """A chain of proxyfw's packet layer as nft lists it, each rule with its handle."""
        return _run(self.command(Side.FIREWALL, "nft", "-a", "list", "chain", "inet", "proxyfw", name))

    def delete_rule(self, chain: str, handle: str) -> None:
        """Take one rule out of proxyfw's packet layer."""
        _run(self.command(Side.FIREWALL, "nft", "delete", "rule", "inet", "proxyfw", chain, "handle", handle))

    def processes(self, side: Side) -> list[int]:
        """Every process inside, however it was started: nothing else uses this namespace."""
        try:
            wanted = os.stat(f"/run/netns/{self.name(side)}").st_ino
        except FileNotFoundError:
            return []
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                inside = os.stat(entry / "ns/net").st_ino == wanted
            except OSError:  # it has ended
                continue
            if inside:
                found.append(int(entry.name))
        return found

    def stop(self, side: Side) -> None:
        """End every process inside: asked first, killed after STOP_SECONDS."""
        _signal(self.processes(side), signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while (left := self.processes(side)) and time.monotonic() < deadline:
            time.sleep(0.05)
        _signal(left, signal.SIGKILL)


@contextmanager
def lab(number: int) -> Iterator[Lab]:
    """Build the namespaces, and remove them with every process in them. Raises LabError."""
    this = Lab(f"bench{os.getpid()}-{number}")
    try:
        _build(this)
        yield this
    finally:
        for side in Side:
            this.stop(side)
            subprocess.run(["ip", "netns", "delete", this.name(side)], stderr=subprocess.DEVNULL, check=False)


def _build(this: Lab) -> None:
    for side in Side:
        _run(["ip", "netns", "add", this.name(side)])
        _run(this.command(side, "sysctl", "-q", "-w", *SYSCTLS))
    client, firewall, internet = (this.name(side) for side in Side)
    _ip(client, "link set lo up")
    _ip(internet, "link set lo up")
    _ip(
        firewall,
        "link set lo up",
        f"link add vif1.0 type veth peer name eth0 netns {client}",
        f"link add eth0 type veth peer name eth0 netns {internet}",
        "address add 10.137.0.1/32 dev vif1.0",
        "link set vif1.0 group 2 up",
        f"route add {CLIENT_ADDRESS}/32 dev vif1.0",
        "address add 198.51.100.1/24 dev eth0",
        "link set eth0 up",
    )
    _ip(
        client,
        f"address add {CLIENT_ADDRESS}/32 dev eth0",
        "link set eth0 up",
        "route add 10.137.0.1/32 dev eth0",
        "route add default via 10.137.0.1",
    )
    _ip(
        internet,
        f"address add {SERVER_ADDRESS}/24 dev eth0",
        f"address add {RESOLVER_ADDRESS}/24 dev eth0",
        "link set eth0 up",
        "route add default via 198.51.100.1",
    )
    _ip(firewall, f"route add default via {SERVER_ADDRESS}")
    _run(this.command(Side.FIREWALL, "nft", "-f", "-"), RULES)


def _ip(namespace: str, *lines: str) -> None:
    _run(["ip", "-netns", namespace, "-batch", "-"], "\n".join(lines))


def _run(argv: Sequence[str], text: str = "") -> str:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _signal(processes: Sequence[int], number: signal.Signals) -> None:
    for pid in processes:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
