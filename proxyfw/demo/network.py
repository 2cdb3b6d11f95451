"""The namespaces of the demo: clients behind a netvm, wired as Qubes OS does it, and one that is the internet."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GATEWAY4, GATEWAY6 = "10.137.0.5", "fd09:24ef:4179::a89:5"
UPLINK4, UPLINK6 = "198.51.100.1", "2001:db8:1::1"
RESOLVER = "198.51.100.53"
CLIENT_DNS = ("10.139.1.1", "10.139.1.2")
ROUTER4, ROUTER6 = "198.51.100.254", "2001:db8:1::fe"
ALL4, ALL6 = "0.0.0.0/0", "::/0"
DOWNSTREAM_GROUP, UPSTREAM_GROUP = 2, 1  # the interface groups of Qubes OS
_NETNS_FILES = Path("/etc/netns")


class NetworkError(Exception):
    """A command that makes the network failed; the message has its words."""


@dataclass(frozen=True, slots=True)
class Qube:
    """A client: its name, its addresses, and its interface in the netvm."""

    name: str
    number: int

    @property
    def address4(self) -> str:
        """Its IPv4 address."""
        return f"10.137.0.{10 + self.number}"

    @property
    def address6(self) -> str:
        """Its IPv6 address."""
        return f"fd09:24ef:4179::a89:{10 + self.number:x}"

    @property
    def vif(self) -> str:
        """Its interface in the netvm, named as Qubes names it."""
        return f"vif{self.number}.0"


class Network:
    """Made by `start`, gone after `stop`, whatever happened in between. `label` keeps two networks apart."""

    def __init__(self, label: str, clients: Sequence[str], addresses: Sequence[str]) -> None:
        self.clients = {name: Qube(name, number) for number, name in enumerate(clients, start=1)}
        self.netvm = f"{label}-netvm"
        self.internet = f"{label}-internet"
        self._label = label
        self._addresses = tuple(addresses)

    def namespace(self, client: str) -> str:
        """The network namespace of a client."""
        return f"{self._label}-{client}"

    def start(self) -> None:
        """Makes everything. Raises NetworkError, after taking away what was made."""
        try:
            self._make()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Takes every namespace away; what still ran in them has to be stopped before."""
        for namespace in self._namespaces():
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)
            shutil.rmtree(_NETNS_FILES / namespace, ignore_errors=True)
        with suppress(OSError):
            _NETNS_FILES.rmdir()

    def command(self, namespace: str, *arguments: str) -> list[str]:
        """The command line that runs something inside a namespace."""
        return ["ip", "netns", "exec", namespace, *arguments]

    def _namespaces(self) -> list[str]:
        return [*(self.namespace(name) for name in self.clients), self.netvm, self.internet]

    def _make(self) -> None:
        _ip(None, *(f"netns add {namespace}" for namespace in self._namespaces()))
        _ip(self.netvm, *self._inside_netvm())
        _ip(self.internet, *self._inside_internet())
        for qube in self.clients.values():
            _ip(self.namespace(qube.name), *_inside_client(qube))
        for namespace in (self.netvm, self.internet):
            _run(*self.command(namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"))
        self._resolvers(self.netvm, (RESOLVER,))
        for name in self.clients:
            self._resolvers(self.namespace(name), CLIENT_DNS)  # which Qubes hands out

    def _inside_netvm(self) -> Iterator[str]:
        """What `ip` does in the netvm; its links reach the others."""
        yield "link set lo up"
        yield f"link add eth0 group {UPSTREAM_GROUP} type veth peer name eth0 netns {self.internet}"
        yield "link set eth0 up"
        yield from _addresses("eth0", f"{UPLINK4}/24", f"{UPLINK6}/64")
        for qube in self.clients.values():
            namespace = self.namespace(qube.name)
            yield f"link add {qube.vif} group {DOWNSTREAM_GROUP} type veth peer name eth0 netns {namespace}"
            yield f"link set {qube.vif} up"
            yield from _addresses(qube.vif, f"{GATEWAY4}/32", f"{GATEWAY6}/128")
            yield f"route add {qube.address4}/32 dev {qube.vif}"
            yield f"route add {qube.address6}/128 dev {qube.vif}"
        yield f"route add {ALL4} via {ROUTER4}"
        yield f"route add {ALL6} via {ROUTER6}"

    def _inside_internet(self) -> Iterator[str]:
        yield "link set lo up"
        yield "link set eth0 up"
        yield from _addresses("eth0", f"{ROUTER4}/24", f"{ROUTER6}/64", f"{RESOLVER}/24")
        # On the link, as neighbour discovery answers for no other interface's.
        yield from _addresses("eth0", *(f"{each}/{128 if ':' in each else 32}" for each in self._addresses))

    def _resolvers(self, namespace: str, addresses: Sequence[str]) -> None:
        """What is asked for names in a namespace: `ip netns exec` lays these files over /etc."""
        files = _NETNS_FILES / namespace
        files.mkdir(parents=True, exist_ok=True)
        servers = "".join(f"nameserver {address}\n" for address in addresses)
        (files / "resolv.conf").write_text(f"{servers}options timeout:2 attempts:1\n")


def _inside_client(qube: Qube) -> Iterator[str]:
    yield "link set lo up"
    yield "link set eth0 up"
    yield from _addresses("eth0", f"{qube.address4}/32", f"{qube.address6}/128")
    for everywhere, gateway in ((ALL4, GATEWAY4), (ALL6, GATEWAY6)):
        yield f"route add {gateway} dev eth0"
        yield f"route add {everywhere} via {gateway} dev eth0 onlink"


def _addresses(interface: str, *addresses: str) -> Iterator[str]:
    for address in addresses:
        yield f"address add {address} dev {interface}{' nodad' if ':' in address else ''}"


def _ip(namespace: str | None, *lines: str) -> None:
    """Has one `ip` do all of these, one after the other, up to the first that fails."""
    where = ["-n", namespace] if namespace else []
    _run("ip", *where, "-batch", "-", text="".join(f"{line}\n" for line in lines))


def _run(*command: str, text: str = "") -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        failed = re.search(r"^Command failed -:(\d+)$", said, re.MULTILINE)
        line = f" ({text.splitlines()[int(failed[1]) - 1]})" if failed else ""
        raise NetworkError(f"{' '.join(command)}{line}: {said}")
