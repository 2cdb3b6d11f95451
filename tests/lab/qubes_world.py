"""The lab as a netvm of Qubes OS: the tables of a stock netvm, QubesDB, and dom0 behind the Admin API."""

import json
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from lab.hellos import hello
from lab.sockets import connect, eventually, family_of, socket_in, udp
from lab.world import lift_icmp_limit
from lab.zone import Zone
from proxyfw.demo.internet import SITES
from proxyfw.demo.lab import Lab
from proxyfw.demo.network import CLIENT_DNS
from proxyfw.edge.control import ask
from proxyfw.statefiles import CONTROL_SOCKET

DOUBLES = Path(__file__).parents[1] / "doubles"
sys.path.insert(0, str(DOUBLES))

from qubesd import POLICY, Qubesd  # noqa: E402
from qubesdb.daemon import Daemon  # noqa: E402
from qubesdb.dom0 import Dom0  # noqa: E402

AT_MOST = 1.0  # seconds from what dom0 writes until it is in force
SHIPPED = Path(__file__).parents[2] / "iptables"
_HERE = Path(__file__).parent
_NOBODY = "10.137.0.250"  # no qube has it

ZONE, ZONE_TOO = "198.51.100.54", "198.51.100.55"  # the netvm's resolvers
GITHUB4, GITHUB6 = "198.51.100.10", "2001:db8:1::10"
HOST4 = ("198.51.100.71", "198.51.100.72", "198.51.100.73")  # host.example is at one of them at a time
HOST6 = ("2001:db8:1::71", "2001:db8:1::72", "2001:db8:1::73")
OUTSIDE4, OUTSIDE6 = "198.51.100.81", "2001:db8:1::81"
PLAIN4, PLAIN6 = "198.51.100.85", "2001:db8:1::85"  # hand-made servers
A4, INSIDE4, NET4, B4 = "203.0.113.9", "203.0.113.20", "203.0.113.200", "203.0.113.0/24"  # the first three are in B
A6, INSIDE6, NET6, B6 = "2001:db8:b::9", "2001:db8:b::20", "2001:db8:b::200", "2001:db8:b::/64"
FREE4, FREE6 = "192.0.2.9", "2001:db8:f::9"  # granted as networks, as NET4 and NET6
FORBIDDEN4, FORBIDDEN6 = "198.51.100.99", "2001:db8:1::99"  # granted to nobody
WITHIN4 = "10.139.5.5"  # of Qubes' internal ranges: granted as part of a network, which does not count

PROFILES = {
    "tools": """\
description: names inside and outside of B
domains:
  - github.com
  - inside.example
  - outside.example
  - both.example
  - plain.example
  - ssh.example:22
  - time.example:123/udp
""",
    "wide": "description: more than what is outside\nnetworks: ['10.0.0.0/8:4321/udp']\n",
    "nets": f"description: by address\nnetworks: [{NET4}, {NET6}, {FREE4}, {FREE6}]\n",
}

CLIENTS: dict[str, dict[str, Any]] = {
    "dev": {"profiles": ["tools", "nets", "wide"]},
    "twin": {"profiles": ["tools", "nets"]},  # whom no test touches
    "ruled": {"profiles": ["tools", "nets"]},
    "seen": {"profiles": [], "mode": "observe"},
    "named": {"profiles": ["tools"], "address": []},
}
TAGS = {"tag:research": {"profiles": ["tools"]}}
LISTED = {**CLIENTS, **TAGS}
UNLISTED = ("tagged", "guest")

UNTOUCHED = ("action=accept",)  # a qube whose firewall tab was never opened
RULES = (
    f"action=accept dst4={A4}/32",
    f"action=accept dst6={A6}/128",
    f"action=drop dst4={B4}",
    f"action=drop dst6={B6}",
    "action=accept dsthost=host.example proto=tcp dstports=443-443",
    "action=drop",
)

WEB = {
    **SITES,
    ("inside.example", "both.example"): (INSIDE4, INSIDE6),
    ("outside.example", "both.example", "unheard.example"): (OUTSIDE4, OUTSIDE6),
    ("host.example", "other.example"): (*HOST4, *HOST6),
}
ADDRESSES = (ZONE, ZONE_TOO, PLAIN4, PLAIN6, A4, A6, NET4, NET6, FREE4, FREE6, FORBIDDEN4, FORBIDDEN6)

RECORDS: dict[str, list[str]] = {
    "github.com": [f"60 A {GITHUB4}", f"60 AAAA {GITHUB6}"],
    "en.wikipedia.org": ["60 A 198.51.100.30"],
    "inside.example": [f"60 A {INSIDE4}", f"60 AAAA {INSIDE6}"],
    "outside.example": [f"60 A {OUTSIDE4}", f"60 AAAA {OUTSIDE6}"],
    "both.example": [f"60 A {INSIDE4}", f"60 A {OUTSIDE4}", f"60 AAAA {INSIDE6}", f"60 AAAA {OUTSIDE6}"],
    "unheard.example": [f"60 A {OUTSIDE4}", f"60 AAAA {OUTSIDE6}"],
    "host.example": [f"1 A {HOST4[0]}", f"1 AAAA {HOST6[0]}"],
    "other.example": [f"1 A {HOST4[0]}", f"1 AAAA {HOST6[0]}"],
    "plain.example": [f"60 A {PLAIN4}", f"60 AAAA {PLAIN6}"],
    "ssh.example": [f"60 A {PLAIN4}", f"60 AAAA {PLAIN6}"],
    "time.example": [f"60 A {PLAIN4}", f"60 AAAA {PLAIN6}"],
}


class QubesLab(Lab):
    """`environment`: what the service needs to find the doubles. `console`: all that it has said."""

    def __init__(self, environment: dict[str, str]) -> None:
        super().__init__(CLIENTS, WEB, PROFILES, {}, ADDRESSES, UNLISTED)
        self._clients = LISTED
        self._environment = environment
        self._booted = False

    @property
    def console(self) -> str:
        """What the service has said so far, over all its starts."""
        return (self.folder / "console").read_text()

    def write_config(self, clients: dict[str, dict[str, Any]], **settings: Any) -> None:
        """As the Lab's, with tags and without resolvers: QubesDB has those."""
        known = self.network.clients
        listed = {
            name: {"address": [known[name].address4, known[name].address6], **part} if name in known else part
            for name, part in clients.items()
        }
        config = {"clients": listed, "state_dir": str(self.folder / "state"), **settings}
        self.config.write_text(json.dumps(config, indent=2))

    def start_service(self, *before: str) -> None:
        """The first time, in a netvm that has just booted."""
        if not self._booted:
            self._booted = True
            self.boot()
        super().start_service(*self.around(), *before)

    def begin_service(self) -> subprocess.Popen[str]:
        """Starts the service, and does not wait for it. `kill` ends it."""
        command = [*self.around(), *self.proxyfw("run", "-c", str(self.config))]
        return self.spawn(self.network.netvm, *command)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Ends it as it is."""
        process.send_signal(signal.SIGKILL)
        self.end(process)

    def around(self) -> list[str]:
        """What starts the service: with the doubles, and its words also in a file."""
        words = [f"{key}={value}" for key, value in self._environment.items()]
        console = self.folder / "console"
        return ["env", *words, "bash", "-c", f'exec "$@" 2> >(exec tee -a {console} >&2)', "netvm"]

    def boot(self) -> None:
        """The tables of a stock netvm, and a vif for every client."""
        self.nft((_HERE / "qubes.nft").read_text())
        self.stock_dns(ZONE, ZONE_TOO)
        self.stock_firewall()
        for name in self.network.clients:
            self.vif(name, online=True)

    def nft(self, text: str) -> str:
        """Runs nft in the netvm; what it prints. Raises CalledProcessError."""
        command = self.network.command(self.network.netvm, "nft", "-f", "-")
        return subprocess.run(command, input=text, text=True, check=True, stdout=subprocess.PIPE).stdout

    def tables(self) -> set[str]:
        """Family and name of every table in the netvm."""
        return {line.removeprefix("table ").strip() for line in self.nft("list tables").splitlines()}

    def stock_dns(self, *resolvers: str) -> None:
        """The chain of network/qubes-setup-dnat-to-ns, which makes it anew whenever the netvm's resolvers change."""
        rules = [
            f"ip daddr {told} {transport} dport 53 dnat to {real}"
            for told, real in zip(CLIENT_DNS, resolvers, strict=True)
            for transport in ("udp", "tcp")
        ]
        self.nft(
            "add table ip qubes\nadd chain ip qubes dnat-dns\ndelete chain ip qubes dnat-dns\n"
            "table ip qubes { chain dnat-dns { type nat hook prerouting priority dstnat; policy accept;\n"
            + "\n".join(rules)
            + "\n}\n}\n"
        )

    def stock_firewall(self, *rules: tuple[str, str]) -> None:
        """The tables of the service qubes-firewall. `rules`: what it makes of a client's rules, by the address."""
        text = (_HERE / "qubes-firewall.nft").read_text()
        for version in (4, 6):
            addresses = [str(getattr(qube, f"address{version}")) for qube in self.network.clients.values()]
            text = text.replace(f"$clients{version}", ", ".join(addresses))
        for address, rule in rules:
            family = "ip6" if ":" in address else "ip"
            chain = "qbs-" + address.replace(".", "-").replace(":", "-")
            text += (
                f"table {family} qubes-firewall {{ chain {chain} {{ {rule}; }}\n"
                f"chain qubes-forward {{ {family} saddr {address} jump {chain}; }}; }}\n"
            )
        self.nft(text)

    def vif(self, name: str, online: bool) -> None:
        """What vif-route-qubes does with the tables and neighbours when a client's interface comes or goes."""
        qube, netvm = self.network.clients[name], self.network.netvm
        verb = "add" if online else "delete"
        lines = []
        for address in (qube.address4, qube.address6):
            family = "ip6" if ":" in address else "ip"
            lines.append(f'{verb} element {family} qubes allowed {{ "{qube.vif}" . {address} }}')
            lines.append(f"{verb} element {family} qubes downstream {{ {address} }}")
        self.nft("\n".join(lines) + "\n")
        if online:
            mac = self._mac(self.network.namespace(name), "eth0")
            for address in (qube.address4, qube.address6):
                self._neighbour(netvm, address, qube.vif, mac)
            # As network/setup-ip does it in the client.
            for gateway in ("10.137.0.5", "fd09:24ef:4179::a89:5"):
                self._neighbour(self.network.namespace(name), gateway, "eth0", self._mac(netvm, qube.vif))

    def _mac(self, namespace: str, interface: str) -> str:
        command = ["ip", "-n", namespace, "-j", "link", "show", interface]
        shown = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        return str(json.loads(shown)[0]["address"])

    def _neighbour(self, namespace: str, address: str, interface: str, mac: str) -> None:
        words = ["to", address, "dev", interface, "lladdr", mac, "nud", "permanent"]
        subprocess.run(["ip", "-n", namespace, "neighbour", "replace", *words], check=True)


class World:
    """The lab, and dom0 beside it. What a test changes by the methods here is undone after it, by `undo`."""

    zone: Zone

    def __init__(self, lab: QubesLab, daemon: Daemon, dom0: Dom0, qubesd: Qubesd) -> None:
        self.lab, self.daemon, self.dom0, self.qubesd = lab, daemon, dom0, qubesd
        self._rules: dict[str, tuple[str, ...]] = dict.fromkeys(lab.network.clients, UNTOUCHED)
        self._connected = list(lab.network.clients)
        self._undo = ExitStack()
        self._changed = False

    def addresses(self, name: str) -> tuple[str, str]:
        """A client's own."""
        qube = self.lab.network.clients[name]
        return qube.address4, qube.address6

    # dom0

    def boot(self) -> None:
        """What dom0 knows and has written when the netvm starts: all clients are attached."""
        for name in ("named", "tagged", "guest"):
            self.qubesd.add(name, *self.addresses(name))
        for name in self._connected:
            self._write_rules(name, UNTOUCHED)
        self._write_connected(self._connected)

    def rules(self, name: str, *rules: str, policy: str = "drop") -> None:
        """What a click on OK in Qubes Manager writes: the rules of each of a client's addresses, without those that
        are for the other family (qubes/firewall.py of qubes-core-admin).
        """
        self.later(self._write_rules, name, self._rules[name])
        self._write_rules(name, rules, policy)

    def _write_rules(self, name: str, rules: tuple[str, ...], policy: str = "drop") -> None:
        self._rules[name] = rules
        for address, other in zip(self.addresses(name), ("dst6=", "dst4="), strict=True):
            self.dom0.firewall(address, [None if other in rule else rule for rule in rules], policy)

    def detach(self, *names: str) -> None:
        """These clients get another netvm."""
        self._connect([name for name in self._connected if name not in names])

    def attach(self, *names: str) -> None:
        """These clients get this netvm: dom0 writes their rules first."""
        for name in names:
            self._write_rules(name, self._rules[name])
        self._connect([*self._connected, *names])

    def _connect(self, names: Collection[str]) -> None:
        self.later(self._write_connected, self._connected)
        self._write_connected(names)

    def _write_connected(self, names: Collection[str]) -> None:
        self._connected = list(names)
        self.dom0.connected(address for name in self._connected for address in self.addresses(name))

    def vm_config(self, key: str, value: str) -> None:
        """`qvm-features sys-fw vm-config.KEY VALUE`."""
        self.later(self.dom0.vm_config, key, None)
        self.dom0.vm_config(key, value)

    def undo(self) -> None:
        """Everything as it was."""
        self._undo.close()
        if self._changed:
            self._changed = False
            self.settle()

    def later(self, callback: Callable[..., Any], *arguments: Any) -> None:
        """To be called by `undo`."""
        self._changed = True
        self._undo.callback(callback, *arguments)

    def settle(self) -> None:
        """Waits until all that dom0 has written to QubesDB is in force."""
        before, end = self.dom0.handled(_NOBODY), time.monotonic() + 10.0
        with closing(Dom0(self.daemon.path)) as hearer:
            hearer.db.watch(f"/qubes-firewall-handled/{_NOBODY}")
            self.dom0.firewall(_NOBODY, [])
            while self.dom0.handled(_NOBODY) <= before:
                heard, _, _ = select.select([hearer.db.watch_fd()], [], [], max(end - time.monotonic(), 0.0))
                assert heard, self.lab.console
                hearer.db.read_watch()

    # The user

    def configure(self, clients: dict[str, dict[str, Any]], **settings: Any) -> None:
        """Another configuration, in force."""
        self.later(self._configure, LISTED)
        self._configure(clients, **settings)

    def _configure(self, clients: dict[str, dict[str, Any]], **settings: Any) -> None:
        self.lab.write_config(clients, **settings)
        done = self.ask("reload")
        assert done["ok"], done

    def ask(self, command: str) -> dict[str, Any]:
        """What the service answers to a command; `proxyfw status` and the others show it."""
        return ask(self.lab.folder / "state" / CONTROL_SOCKET, command)

    def client(self, name: str) -> dict[str, Any] | None:
        """A client as `proxyfw status` shows it."""
        return next((client for client in self.ask("status")["clients"] if client["name"] == name), None)

    # What clients can reach

    def tls(self, client: str, address: str, name: str, source: str = "") -> bool:
        """Whether a TLS server answers a hello with this name. `source`: the address that it comes from."""
        try:
            with socket_in(self.lab.network.namespace(client), family_of(address), socket.SOCK_STREAM) as sock:
                if source:
                    sock.bind((source, 0))
                sock.connect((address, 443))
                sock.sendall(hello(name))
                return sock.recv(1) == b"\x16"
        except OSError:
            return False

    def looked_up(self, client: str, name: str, *options: str) -> list[str]:
        """The addresses that a client is given; by the resolver that Qubes told it, unless `options` of dig say so."""
        found = self.lab.inside(client, "dig", "+short", "+timeout=1", "+tries=1", *options, name)
        return sorted(line for line in found.stdout.splitlines() if not line.startswith(";"))

    def echoes(self, client: str, address: str, port: int, patience: float = 0.3) -> bool:
        """Whether a datagram comes back."""
        try:
            with udp(self.lab, client, address, port) as sock:
                sock.settimeout(patience)
                sock.send(b"anyone?")
                return sock.recv(100) == b"anyone?"
        except OSError:
            return False

    def speaks(self, client: str, address: str, port: int) -> bool:
        """Whether a TCP server sends back what is no TLS."""
        try:
            with connect(self.lab, client, address, port) as sock:
                sock.sendall(b"no TLS\r\n")
                return sock.recv(100) == b"no TLS\r\n"
        except OSError:
            return False


def soon(check: Callable[[], Any]) -> Any:
    """Whether it is so within the time that dom0's word may take."""
    return eventually(check, AT_MOST)


def never(check: Callable[[], Any], seconds: float = 0.3) -> bool:
    """Whether it is not so, again and again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return False
    return True


@contextmanager
def make() -> Iterator[World]:
    """The whole world, started."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="proxyfw-dom0-"))
        daemon = stack.enter_context(Daemon(f"{folder}/qubesdb.sock"))
        qubesd = stack.enter_context(Qubesd(f"{folder}/qubesd.sock", policy=POLICY))
        dom0 = Dom0(daemon.path)
        lab = QubesLab(
            {
                "PYTHONPATH": str(DOUBLES),
                "QUBESDB_SOCKET": daemon.path,
                "QUBES_DOM0": qubesd.path,
                "PATH": f"{DOUBLES}:/usr/sbin:/usr/bin:/sbin:/bin",
            }
        )
        dom0.netvm("sys-fw", CLIENT_DNS)
        dom0.dns(ZONE, ZONE_TOO)
        world = World(lab, daemon, dom0, qubesd)
        stack.callback(lambda: world.dom0.close())  # it may be another by then
        world.boot()
        lab.start()
        stack.callback(lab.stop)
        lift_icmp_limit(lab)
        assert eventually(lambda: (world.client("named") or {})["addresses"]), lab.console
        world.zone = stack.enter_context(Zone(lab, ZONE, {name: list(lines) for name, lines in RECORDS.items()}))
        yield world
