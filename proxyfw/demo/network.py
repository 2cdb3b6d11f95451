"""The namespaces of the demo: clients behind a netvm, wired as Qubes OS does it, and one that is the internet."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GATEWAY4, GATEWAY6 = "10.137.0.5", "fd09:24ef:4179::a89:5"
UPLINK4, UPLINK6 = "198.51.100.1", "2001:db8:1::1"
RESOLVER = "198.51.100.53"
CLIENT_DNS = ("10.139.1.1", "10.139.1.2")
ROUTER4, ROUTER6 = "198.51.100.254", "2001:db8:1::fe"
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
        for namespace in self._namespaces():
            _run("ip", "netns", "add", namespace)
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
        for namespace in (self.netvm, self.internet):
            for setting in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
                _run(*self.command(namespace, "sysctl", "-qw", setting))
        self._make_internet()
        for qube in self.clients.values():
            self._make_client(qube)

    def _make_internet(self) -> None:
        self._veth(self.netvm, "eth0", self.internet, "eth0")
        _run("ip", "-n", self.netvm, "link", "set", "eth0", "group", str(UPSTREAM_GROUP))
        self._address(self.netvm, "eth0", f"{UPLINK4}/24", f"{UPLINK6}/64")
        self._address(self.internet, "eth0", f"{ROUTER4}/24", f"{ROUTER6}/64", f"{RESOLVER}/24")
        for address in self._addresses:  # on the link, as neighbour discovery answers for no other interface's
            self._address(self.internet, "eth0", f"{address}/{128 if ':' in address else 32}")
        self._route(self.netvm, "default", "via", ROUTER4)
        self._route(self.netvm, "default", "via", ROUTER6)
        self._resolvers(self.netvm, (RESOLVER,))

    def _make_client(self, qube: Qube) -> None:
        namespace = self.namespace(qube.name)
        self._veth(self.netvm, qube.vif, namespace, "eth0")
        _run("ip", "-n", self.netvm, "link", "set", qube.vif, "group", str(DOWNSTREAM_GROUP))
        self._address(self.netvm, qube.vif, f"{GATEWAY4}/32", f"{GATEWAY6}/128")
        self._route(self.netvm, f"{qube.address4}/32", "dev", qube.vif)
        self._route(self.netvm, f"{qube.address6}/128", "dev", qube.vif)
        self._address(namespace, "eth0", f"{qube.address4}/32", f"{qube.address6}/128")
        for gateway in (GATEWAY4, GATEWAY6):
            self._route(namespace, gateway, "dev", "eth0")
            self._route(namespace, "default", "via", gateway, "dev", "eth0", "onlink")
        self._resolvers(namespace, CLIENT_DNS)  # which Qubes hands out

    def _resolvers(self, namespace: str, addresses: Sequence[str]) -> None:
        """What is asked for names in a namespace: `ip netns exec` lays these files over /etc."""
        files = _NETNS_FILES / namespace
        files.mkdir(parents=True, exist_ok=True)
        servers = "".join(f"nameserver {address}\n" for address in addresses)
        (files / "resolv.conf").write_text(f"{servers}options timeout:2 attempts:1\n")

    def _veth(self, left: str, left_name: str, right: str, right_name: str) -> None:
        _run("ip", "-n", left, "link", "add", left_name, "type", "veth", "peer", "name", right_name, "netns", right)
        for namespace, name in ((left, left_name), (right, right_name)):
            _run("ip", "-n", namespace, "link", "set", name, "up")

    def _address(self, namespace: str, interface: str, *addresses: str) -> None:
        for address in addresses:
            extra = ["nodad"] if ":" in address else []
            _run("ip", "-n", namespace, "address", "add", address, "dev", interface, *extra)

    def _route(self, namespace: str, *route: str) -> None:
        family = "-6" if any(":" in word for word in route) else "-4"
        _run("ip", "-n", namespace, family, "route", "add", *route)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
