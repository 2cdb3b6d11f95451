"""The world of the lab tests: who is there, under which names, and what each client is granted."""

import subprocess
from typing import Any

from proxyfw.demo.internet import SITES
from proxyfw.demo.lab import Lab

RAW4, RAW6 = "198.51.100.50", "2001:db8:1::50"  # hand-made servers: raw.lab.example
FILES4, FILES6 = "198.51.100.40", "2001:db8:1::40"  # nginx: files.lab.example
NOBODY = "198.51.100.77"  # an address where nobody listens
NOT_THERE = "198.51.100.200"  # an address that nobody has
AT_HOME = "10.20.30.40"  # a private address with a server
OPEN4, OPEN6 = "203.0.113.1", "2001:db8:1::203"  # granted as networks, with every port
ONE_PORT = "203.0.113.17"  # granted with TCP port 2222
ONE_UDP_PORT = "203.0.113.33"  # granted with UDP port 123
EXPLICIT_PORT = 3128  # of the netvm, where clients are to find a proxy that they can ask

CLIENTS: dict[str, dict[str, Any]] = {
    "work": {"profiles": ["github", "pypi", "lab", "nets"], "dns": "all"},
    "study": {"profiles": ["wikipedia"], "dns": "all"},
    "watched": {"profiles": ["wikipedia"], "mode": "observe"},
    "home": {"profiles": ["home"], "dns": "all"},
    "noisy": {"profiles": [], "dns": "all"},
    "quiet": {"profiles": ["github", "lab"]},  # it asks for no name: nothing is pinned for it
}
STRANGER = "stranger"

PROFILES = {
    "lab": 'description: the lab\'s own servers\ndomains: [.lab.example, "raw.lab.example:7000"]\n',
    "home": "description: a server at home\nprivate: true\ndomains: [.home.example]\n",
    "nets": f"""\
description: by address
networks:
  - 203.0.113.0/28
  - "203.0.113.16/28:2222"
  - "203.0.113.32/28:123/udp"
  - {OPEN6}
""",
}

NAMES: dict[str, tuple[str, ...]] = {
    "raw.lab.example": (RAW4, RAW6),
    "files.lab.example": (FILES4, FILES6),
    "shared.example": ("198.51.100.10",),  # which is github.com's too
    "dead.lab.example": (NOBODY,),
    "half-dead.lab.example": (NOT_THERE, "198.51.100.10"),
    "private.lab.example": (AT_HOME,),
    "loopback.lab.example": ("127.0.0.1", "::1"),
    "link-local.lab.example": ("169.254.7.7",),
    "neighbour.lab.example": ("10.137.0.12",),
    "netvm.lab.example": ("10.137.0.5",),
    "uplink.lab.example": ("198.51.100.1",),
    "mixed.lab.example": (AT_HOME, "198.51.100.10"),
    "server.home.example": (AT_HOME,),
    "loopback.home.example": ("127.0.0.1",),
    "neighbour.home.example": ("10.137.0.12",),
    "netvm.home.example": ("10.137.0.5",),
}

ADDRESSES = (RAW4, RAW6, FILES4, FILES6, NOBODY, AT_HOME, OPEN4, OPEN6, ONE_PORT, ONE_UDP_PORT)


def lift_icmp_limit(lab: Lab) -> None:
    """The kernel answers a client with few ICMP errors a second (icmp(7), icmp_ratelimit); tests provoke many."""
    settings = ("net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
    subprocess.run(lab.network.command(lab.network.netvm, "sysctl", "-qw", *settings), check=True)


def make() -> Lab:
    """The whole world, not started."""
    return Lab(CLIENTS, SITES, PROFILES, NAMES, ADDRESSES, (STRANGER,))
