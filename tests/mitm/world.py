"""The lab's world with the mitmproxy engine in the netvm: asked as a proxy, by redirection, and through WireGuard.

There is no packet layer: what is redirected, and that nothing else is forwarded, is the test's own doing.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from lab import world
from lab.sockets import eventually

from proxyfw.demo.internet import SITES
from proxyfw.demo.lab import Lab
from proxyfw.demo.network import GATEWAY4, GATEWAY6, RESOLVER

EXPLICIT, TRANSPARENT, WIREGUARD = 3128, 8080, 51820
PHONE = "phone"  # the WireGuard peer: by its address in the tunnel it is the client `work`
WEB = ("127.0.0.1", 8081)
PEER, DNS = "10.0.0.1", "10.0.0.53"
MODES = (
    f"regular@{GATEWAY4}:{EXPLICIT}",
    f"socks5@{GATEWAY6}:{EXPLICIT}",
    f"transparent@{GATEWAY4}:{TRANSPARENT}",
    f"transparent@{GATEWAY6}:{TRANSPARENT}",
    f"wireguard@{GATEWAY4}:{WIREGUARD}",
)
CLIENTS: dict[str, dict[str, Any]] = {**world.CLIENTS}

_REDIRECT = f"""
table ip mitm
delete table ip mitm
table ip6 mitm
delete table ip6 mitm
table ip mitm {{
  chain nat {{
    type nat hook prerouting priority dstnat;
    iifname "vif*" ip daddr {GATEWAY4} return
    iifname "vif*" udp dport 53 dnat to {RESOLVER}
    iifname "vif*" meta l4proto tcp redirect to :{TRANSPARENT}
  }}
  chain out {{
    type nat hook postrouting priority srcnat;
    oifname "eth0" masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ip daddr {RESOLVER} accept
    ct state established accept
  }}
}}
table ip6 mitm {{
  chain nat {{
    type nat hook prerouting priority dstnat;
    iifname "vif*" ip6 daddr {GATEWAY6} return
    iifname "vif*" meta l4proto tcp redirect to :{TRANSPARENT}
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
  }}
}}
"""
_TUNNELLED = ("198.51.100.0/24", "203.0.113.0/24", "10.137.0.12/32", "10.20.30.0/24", f"{DNS}/32")


class MitmLab(Lab):
    """As the lab is, with another engine."""

    def __init__(self) -> None:
        super().__init__(CLIENTS, SITES, world.PROFILES, world.NAMES, world.ADDRESSES, (world.STRANGER, PHONE))

    def write_config(self, clients: dict[str, dict[str, Any]], **settings: Any) -> None:
        """As in the lab; the phone is `work` too."""
        work = self.network.clients["work"]
        own = {**clients}
        if "work" in own:
            own["work"] = {**own["work"], "address": [work.address4, work.address6, PEER]}
        super().write_config(own, **settings)

    def start_service(self, *before: str) -> None:
        """Starts the engine with every mode, and the redirection to it."""
        rules = self.network.command(self.network.netvm, "nft", "-f", "-")
        subprocess.run(rules, input=_REDIRECT, text=True, check=True)
        arguments = ["--engine", "mitmproxy", *(word for mode in MODES for word in ("--mode", mode))]
        arguments += ["--web", f"{WEB[0]}:{WEB[1]}"]
        self.said = self.folder / "said"
        command = self.network.command(
            self.network.netvm, *before, *self.proxyfw("run", "-c", str(self.config), *arguments)
        )
        self.service = self._spawn(["sh", "-c", f'exec "$@" 2>{self.said} >&2', "sh", *command])
        ready = eventually(lambda: "ready:" in self.said.read_text() if self.said.exists() else False, 20.0)
        assert ready, self.said.read_text()

    def faults(self) -> str:
        """What mitmproxy or Python complained of."""
        lines = self.said.read_text().splitlines()
        return "\n".join(line for line in lines if not line.startswith("proxyfw: "))


class Tunnel:
    """WireGuard in the phone's namespace, by the kernel or by wireguard-go, with the configuration that the engine
    wrote.
    """

    def __init__(self, lab: MitmLab) -> None:
        self._lab = lab
        self._namespace = lab.network.namespace(PHONE)
        self._process: subprocess.Popen[str] | None = None
        self.device = f"wg{os.getpid()}"  # wireguard-go has its socket outside the namespace

    def start(self) -> str:
        """Why there can be none, or ""."""
        if shutil.which("wg") is None:
            return "wireguard-tools is not installed"
        if not self._made_by_kernel() and not self._made_by_program():
            return "neither the kernel nor wireguard-go makes a WireGuard interface here"
        given = (self._lab.folder / "state" / "mitmproxy" / "wireguard-client.conf").read_text()
        wanted = [line for line in given.splitlines() if not line.startswith(("Address", "DNS"))]
        config = self._lab.folder / "wg.conf"
        config.write_text("\n".join(wanted) + "\n")
        config.chmod(0o600)
        self._run("wg", "setconf", self.device, str(config))
        self._run("ip", "address", "add", f"{PEER}/32", "dev", self.device)
        self._run("ip", "link", "set", self.device, "up")
        # Without IPv6 beside the tunnel, which some clients would prefer.
        self._run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        for network in _TUNNELLED:
            self._run("ip", "route", "add", network, "dev", self.device)
        resolv = Path("/etc/netns") / self._namespace / "resolv.conf"
        resolv.write_text(f"nameserver {DNS}\noptions timeout:2 attempts:1\n")
        return ""

    def _made_by_kernel(self) -> bool:
        command = self._lab.network.command(self._namespace, "ip", "link", "add", self.device, "type", "wireguard")
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _made_by_program(self) -> bool:
        if shutil.which("wireguard-go") is None or not os.path.exists("/dev/net/tun"):
            return False
        self._process = self._lab.spawn(self._namespace, "wireguard-go", "-f", self.device)
        return bool(eventually(lambda: self._has_interface()))

    def _has_interface(self) -> bool:
        command = self._lab.network.command(self._namespace, "ip", "link", "show", self.device)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            self._lab.network.command(self._namespace, *command), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
