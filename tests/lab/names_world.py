"""The world of the relay's tests: clients as they are by default (only their profiles' names resolve), and a zone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lab.world import lift_icmp_limit
from lab.zone import Zone
from proxyfw.demo.internet import ADDRESS_OF_EVIL, SITES
from proxyfw.demo.lab import Lab
from proxyfw.edge.control import ask
from proxyfw.statefiles import CONTROL_SOCKET

ZONE, ZONE_TOO = "198.51.100.54", "198.51.100.55"  # the resolvers
GITHUB4, GITHUB6 = "198.51.100.10", "2001:db8:1::10"
POOL4, POOL6 = "198.51.100.61", "2001:db8:1::61"  # time servers
POOL4_TOO = "198.51.100.62"
MAIL4 = "198.51.100.63"  # speaks first
SHARED4 = "198.51.100.64"  # two names
AT_HOME = "192.168.44.1"

CLIENTS = {
    "dev": {"profiles": ["tools"]},
    "same": {"profiles": ["tools"]},  # as dev; for what must not have been asked before
    "none": {"profiles": []},
    "seen": {"profiles": [], "mode": "observe"},
    "all": {"profiles": ["home"], "dns": "all"},
}

PROFILES = {
    "tools": """\
description: ports by name
domains:
  - github.com
  - github.com:22
  - ".pool.example:123/udp"
  - mail.example:25
  - shared.example:22
  - shared.example
  - .wild.example
  - alias.example:22
  - changing.example:22
  - home.example
  - many.example
  - svc.example
  - .icloud.com
""",
    "home": "description: at home\ndomains: [nas.example]\nprivate: true\n",
}

RECORDS: dict[str, list[str]] = {
    "github.com": [f"60 A {GITHUB4}", f"60 AAAA {GITHUB6}", '60 TXT "v=spf1 -all"', "60 MX 10 mail.github.com."],
    "evil.example": [f"60 A {ADDRESS_OF_EVIL}"],
    "0.pool.example": [f"60 A {POOL4}", f"60 AAAA {POOL6}"],
    "brief.pool.example": [f"0 A {POOL4}"],
    "mail.example": [f"60 A {MAIL4}"],
    "shared.example": [f"60 A {SHARED4}"],
    "other.example": [f"60 A {SHARED4}"],
    "*.wild.example": [f"60 A {GITHUB4}", '60 TXT "anything"'],
    "alias.example": ["60 CNAME first.other.example."],
    "first.other.example": ["30 CNAME second.other.example."],
    "second.other.example": [f"20 A {GITHUB4}"],
    "changing.example": [f"1 A {MAIL4}"],
    "home.example": [f"60 A {AT_HOME}", "60 A 127.0.0.1", f"60 A {GITHUB4}"],
    "nas.example": [f"60 A {AT_HOME}"],
    "many.example": [f"60 A 192.0.2.{number}" for number in range(1, 101)],
    "svc.example": ["60 HTTPS 1 . alpn=h2 ech=AAj+DQAEAAAAAA== ipv4hint=198.51.100.10", f"60 A {GITHUB4}"],
    "mask.icloud.com": [f"60 A {GITHUB4}"],
}


class NamesLab(Lab):
    """The lab, asking the zone."""

    def write_config(self, clients: dict[str, dict[str, Any]], **settings: Any) -> None:
        """As the Lab's, with another resolver."""
        super().write_config(clients, **{"dns": {"upstream": [ZONE]}, **settings})


@dataclass
class World:
    """The lab and its zone."""

    lab: Lab
    zone: Zone

    def configure(self, clients: dict[str, dict[str, object]] | None = None, **settings: object) -> None:
        """Another configuration, in force."""
        self.lab.write_config(CLIENTS if clients is None else clients, **settings)
        done = ask(self.lab.folder / "state" / CONTROL_SOCKET, "reload")
        assert done["ok"], done

    def put_back(self) -> None:
        """The zone and the configuration, as they were."""
        self.zone.records = records()
        self.zone.silent = self.zone.turn = False
        for name, text in PROFILES.items():
            self.lab.write_profile(name, text)
        self.configure()


def records() -> dict[str, list[str]]:
    """What is in the zone at first."""
    return {name: list(lines) for name, lines in RECORDS.items()}


@contextmanager
def make() -> Iterator[World]:
    """The whole world, started."""
    addresses = (AT_HOME, ZONE, ZONE_TOO, POOL4, POOL6, POOL4_TOO, MAIL4, SHARED4)
    lab = NamesLab(CLIENTS, SITES, PROFILES, {}, addresses)
    lab.start()
    try:
        lift_icmp_limit(lab)
        with Zone(lab, ZONE, records()) as zone:
            yield World(lab, zone)
    finally:
        lab.stop()
