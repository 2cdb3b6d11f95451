"""Which forwarded connections may live on under a policy."""

from ipaddress import ip_address

import pytest

from proxyfw.core.clients import members
from proxyfw.core.config import parse_config
from proxyfw.core.hostname import Hostname
from proxyfw.core.netvm import World, read_netvm
from proxyfw.core.policy import Policy, build
from proxyfw.core.profile import link, parse_profile
from proxyfw.edge.conntrack import Tracked
from proxyfw.enforce import permitted

CONFIG = """\
clients:
  work: {profiles: [p], address: 10.137.0.11}
  seen: {mode: observe, address: 10.137.0.12}
  away: {profiles: [p], address: 10.137.0.13, upstream_proxy: "socks5://10.137.0.5:9050"}
"""
PROFILE = 'domains: [github.com, "time.example:123/udp"]\nnetworks: ["203.0.113.0/24"]\n'
RULES = ["action=drop dst4=203.0.113.7/32", "action=accept dst4=192.0.2.0/24 proto=tcp", "action=accept proto=icmp"]
TOLD = {"198.51.100.1": "time.example", "198.51.100.2": "github.com"}


def policy() -> Policy:
    entries = {"/connected-ips": b"10.137.0.11 10.137.0.12 10.137.0.13"}
    for address, rules in (("10.137.0.11", RULES), ("10.137.0.12", RULES[:1]), ("10.137.0.13", RULES)):
        entries |= {f"/qubes-firewall/{address}": b"", f"/qubes-firewall/{address}/policy": b"drop"}
        entries |= {f"/qubes-firewall/{address}/{n:04}": rule.encode() for n, rule in enumerate(rules)}
    profile, config = parse_profile("p", "p.yaml", PROFILE)[0], parse_config("proxyfw.yaml", CONFIG)[0]
    assert profile is not None
    assert config is not None
    library, _ = link({"p": profile})
    return build(config, library, (), members(config, library.profiles, World(read_netvm(entries)))[0])


class Pins:
    """Stands in for PinKeeper: the clients were told these addresses."""

    def names(self, _: str, address: object) -> tuple[Hostname, ...]:
        name = TOLD.get(str(address))
        return (Hostname(name),) if name else ()


@pytest.mark.parametrize(
    ("source", "protocol", "destination", "port", "lives"),
    [
        pytest.param("10.137.0.11", "tcp", "192.0.2.1", 22, True, id="a rule accepts it"),
        pytest.param("10.137.0.11", "udp", "192.0.2.1", 22, False, id="of another protocol"),
        pytest.param("10.137.0.11", "tcp", "203.0.113.1", 22, True, id="a network grants it"),
        pytest.param("10.137.0.11", "tcp", "203.0.113.7", 22, False, id="a rule drops it"),
        pytest.param("10.137.0.11", "icmp", "198.51.100.9", 0, True, id="ping"),
        pytest.param("10.137.0.11", "ip-47", "203.0.113.1", 0, True, id="another protocol to a granted network"),
        pytest.param("10.137.0.11", "ip-47", "198.51.100.9", 0, False, id="another protocol"),
        pytest.param("10.137.0.11", "udp", "198.51.100.1", 123, True, id="a pinned port"),
        pytest.param("10.137.0.11", "udp", "198.51.100.1", 124, False, id="a port that is not pinned"),
        pytest.param("10.137.0.11", "tcp", "198.51.100.2", 443, False, id="TCP by a name belongs to the proxy"),
        pytest.param("10.137.0.12", "udp", "198.51.100.9", 99, True, id="observe mode lets it through"),
        pytest.param("10.137.0.12", "udp", "203.0.113.7", 99, False, id="but not past a rule"),
        pytest.param("10.137.0.13", "tcp", "192.0.2.1", 22, False, id="past an upstream proxy, by a rule"),
        pytest.param("10.137.0.13", "tcp", "203.0.113.1", 22, False, id="past an upstream proxy, by a network"),
        pytest.param("10.137.0.99", "tcp", "192.0.2.1", 22, False, id="of nobody"),
    ],
)
def test_what_may_live_on(source: str, protocol: str, destination: str, port: int, lives: bool) -> None:
    tracked = Tracked(ip_address(source), ip_address(destination), protocol, port, 8 if protocol == "icmp" else None)
    assert permitted(tracked, policy(), Pins()) is lives  # type: ignore[arg-type]
