"""A machine that is a netvm: with a client behind it, and something to reach in front of it."""

from collections.abc import Mapping
from pathlib import Path

from install import stock
from install.machine import Machine

APP = {"/qubes-vm-persistence": "rw-only", "/type": "AppVM", "/name": "sys-proxyfw"}
TEMPLATE = {"/qubes-vm-persistence": "full", "/type": "TemplateVM", "/name": "debian-12-proxyfw"}

GRANTED, OTHER = "203.0.113.1", "203.0.113.17"
"""Two hosts: the client's profile grants the network of the first."""

REFUSED = "ECONNREFUSED"
"""What the client gets while the fail-safe ruleset is in force, whatever it tries."""

CONFIG = """\
clients:
  work:
    profiles: [nets]
    address: [10.137.0.11]
"""
PROFILE = "description: by address\nnetworks: [203.0.113.0/28]\n"

_ATTACH = f"""
set -e
ip netns add client
ip netns add internet
ip link set lo up
ip link add vif1.0 type veth peer name eth0 netns client
ip link set vif1.0 group 2 up
ip address add 10.137.0.5/32 dev vif1.0
ip route add 10.137.0.11/32 dev vif1.0
ip -n client link set lo up
ip -n client link set eth0 up
ip -n client address add 10.137.0.11/32 dev eth0
ip -n client route add default via 10.137.0.5 dev eth0 onlink
ip link add eth0 type veth peer name eth0 netns internet
ip link set eth0 group 1 up
ip address add 198.51.100.1/24 dev eth0
ip -n internet link set lo up
ip -n internet link set eth0 up
ip -n internet address add 198.51.100.254/24 dev eth0
ip -n internet address add {GRANTED}/32 dev eth0
ip -n internet address add {OTHER}/32 dev eth0
ip route add default via 198.51.100.254
ip -n internet route add 10.137.0.0/16 via 198.51.100.1
"""
_SERVE = """
import socket
with socket.create_server(("", 4321)) as listening:
    while True:
        with listening.accept()[0] as connection:
            connection.sendall(b"hello")
"""
_TRY = """
import concurrent.futures, errno, socket, sys

def tried(address):
    try:
        with socket.create_connection((address, 4321), 1) as connection:
            connection.sendall(b"no protocol that proxyfw knows\\r\\n")
            return connection.recv(5).decode()
    except TimeoutError:
        return "nothing"
    except OSError as error:
        return errno.errorcode[error.errno]

with concurrent.futures.ThreadPoolExecutor() as threads:
    print(*threads.map(tried, sys.argv[1:]), sep="\\n")
"""


class Netvm:
    """The machine, and what a netvm is asked."""

    def __init__(self, machine: Machine, values: Mapping[str, str], services: tuple[str, ...] = stock.NETVM) -> None:
        self.machine = machine
        self.run, self.ok, self.journal = machine.run, machine.ok, machine.journal
        self.eventually, self.stop = machine.eventually, machine.stop
        self.told = ""  # by an installation
        stock.settings(machine.upper, values, services)

    def start(self) -> None:
        """Boots, and attaches the client."""
        self.machine.start()
        self.run("sh", "-c", _ATTACH)
        server = ("--property=NetworkNamespacePath=/run/netns/internet", "python3", "-c", _SERVE)
        self.run("systemd-run", "--quiet", "--unit=server", *server)
        listens = ("nsenter", "--net=/run/netns/internet", "sh", "-c", "ss -Hltn sport = 4321 | grep -q LISTEN")
        assert self.eventually(lambda: self.ok(*listens)), self.journal("server")

    def setup(self, word: str, check: bool = True) -> str:
        """./setup.sh, in the checkout of the qube's user; what it says."""
        packages = ("env", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/home/user/wheels", "PIP_CONFIG_FILE=/dev/null")
        return self.run(*packages, "/home/user/proxyfw/setup.sh", word, check=check).stderr

    def reaches(self, address: str) -> str:
        """What the client gets of a host: its `hello`, `nothing`, or the name of an error."""
        return self._tries(address)[0]

    def reaches_both(self) -> list[str]:
        """The same of GRANTED and OTHER, tried at once."""
        return self._tries(GRANTED, OTHER)

    def _tries(self, *addresses: str) -> list[str]:
        inside = ("nsenter", "--net=/run/netns/client", "python3", "-c", _TRY)
        return self.run(*inside, *addresses).stdout.splitlines()

    def forwards(self) -> bool:
        """Whether the kernel forwards at all."""
        return self.read("/proc/sys/net/ipv4/ip_forward") == "1"

    def read(self, path: str) -> str:
        """A file's text, without the newline at its end."""
        return self.run("cat", path).stdout.rstrip("\n")

    def state(self, unit: str, what: str = "ActiveState") -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", what, unit).stdout.strip()

    def tables(self) -> set[str]:
        """The tables of nftables: family and name."""
        return {line.removeprefix("table ") for line in self.run("nft", "list", "tables").stdout.splitlines()}

    def said(self, *units: str) -> str:
        """The journal of these units, or the whole."""
        return "\n".join(self.journal(*units))

    def files(self, *folders: str) -> set[str]:
        """All files and links below."""
        found = self.run("find", *folders, "!", "-type", "d", check=False).stdout
        return set(found.splitlines())


def configure(rw: Path) -> None:
    """One client, with one network."""
    folder = rw / "config/proxyfw"
    (folder / "profiles").mkdir(exist_ok=True)
    (folder / "proxyfw.yaml").write_text(CONFIG)
    (folder / "profiles/nets.yaml").write_text(PROFILE)
