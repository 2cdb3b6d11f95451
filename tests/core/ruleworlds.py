"""Made-up clients with Qubes firewall rules, profiles and pins, and flows at the borders of what those say.

Whatever is drawn comes from the `Random` given: one with a seed, or one of hypothesis, which then finds a small case.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from random import Random

from proxyfw.core.address import AddressKind, IPAddress, IPNetwork, kind_of
from proxyfw.core.addresslist import AddressList
from proxyfw.core.clients import Member
from proxyfw.core.config import Config
from proxyfw.core.flow import Flow, Protocol
from proxyfw.core.hostname import Hostname
from proxyfw.core.policy import Policy, build
from proxyfw.core.profile import Library, link, parse_profile
from proxyfw.core.qubes_rules import RuleSet, parse_rules
from proxyfw.core.upstreamproxy import mapped, parse_upstream_proxy

CLIENT_DNS = (ip_address("10.139.1.1"), ip_address("10.139.1.2"))
UPSTREAM = ((ip_address("198.51.100.53"), 53), (ip_address("2001:db8:1::53"), 53))
HOSTS = tuple(map(Hostname, ("a.example", "b.example", "c.example")))
MAPPED = tuple(map(mapped, HOSTS))
"""What a client with an upstream proxy is told of these hosts."""

PROXY = parse_upstream_proxy("socks5://127.0.0.1:9050")

ADDRESSES: Mapping[str, tuple[IPAddress, ...]] = {
    "work": (ip_address("10.137.0.11"), ip_address("fd09:24ef:4179::a89:b")),
    "study": (ip_address("10.137.0.12"), ip_address("fd09:24ef:4179::a89:c")),
    "away": (ip_address("172.16.3.4"),),  # not in the ranges of Qubes OS
}
NETWORKS4 = tuple(
    map(
        ip_network,
        (
            "203.0.113.0/24",
            "203.0.113.16/28",
            "203.0.113.16/32",
            "198.51.100.53/32",
            "198.51.100.0/24",
            "192.0.2.7/32",
            "192.168.1.0/24",
            "192.168.1.9/32",
            "10.0.0.0/8",
            "10.139.1.1/32",
            "10.137.0.0/24",
            "10.137.0.12/32",
            "10.137.0.77/32",
            "172.16.3.4/32",
            "169.254.169.254/32",
            "198.18.0.0/15",
            "0.0.0.0/0",
        ),
    )
)
NETWORKS6 = tuple(
    map(
        ip_network,
        (
            "2001:db8:2::/48",
            "2001:db8:2::7/128",
            "2001:db8:1::53/128",
            "fd00:1::/64",
            "fd09:24ef:4179::/48",
            "fd09:24ef:4179::a89:c/128",
            "64:ff9b::/96",
            "::/0",
        ),
    )
)
NEIGHBOURS4 = tuple(
    map(ip_network, ("10.137.0.12/32", "10.137.0.77/32", "172.16.3.4/32", "169.254.169.254/32", "10.139.1.1/32"))
)
NEIGHBOURS6 = tuple(map(ip_network, ("fd09:24ef:4179::a89:c/128", "64:ff9b::c000:201/128", "fe80::1/128")))
"""Internal addresses: a rule that names one leads there, and one that merely includes it does not."""

PORTS = (22, 53, 80, 123, 443, 1000)
KINDS = ("net", "net", "net", "host", "host", "host", "dns", "any")
ICMP_TYPES = (0, 3, 8, 128, 129)

PROFILES = {
    "names": "domains: [a.example, '*.b.example']\n",
    "ports": "domains: ['a.example:22', 'b.example:123/udp', 'c.example:443/udp', 'c.example:1000/udp']\n",
    "nets": "networks: [203.0.113.0/28, '203.0.113.16/28:443', '192.0.2.0/24:123/udp', '[2001:db8:2::/64]:22',"
    " 192.168.1.0/24, 10.137.0.0/24, 198.18.0.0/16]\n",
    "lists": "feeds:\n- {url: 'https://a.example/', format: text, ports: [22, 123/udp]}\n"
    "- {url: 'https://b.example/', format: text}\n",
    "inside": "domains: ['b.example:123/udp', 'c.example:22']\nprivate: true\n",
}


def library() -> Library:
    """The profiles that clients have some of."""
    read = {name: parse_profile(name, f"{name}.yaml", text)[0] for name, text in PROFILES.items()}
    return link({name: profile for name, profile in read.items() if profile is not None})[0]


LIBRARY = library()

LISTED = ("203.0.113.16/32", "203.0.113.64/26", "192.0.2.0/25", "2001:db8:2::/49")
LISTS = {
    feed.source: AddressList.of(map(ip_network, LISTED[at:]))
    for profile in LIBRARY.profiles.values()
    for at, feed in enumerate(profile.feeds)
}
"""What the feeds hold."""


@dataclass(frozen=True)
class World:
    """A policy, and by client and address the names that the client was told it for, the latest first."""

    policy: Policy
    texts: Mapping[str, Sequence[str]]
    pins: Mapping[tuple[str, IPAddress], tuple[Hostname, ...]] = field(default_factory=dict)

    def names(self, flow: Flow) -> tuple[Hostname, ...]:
        """The names pinned for where the flow goes."""
        return self.pins.get((flow.client, flow.destination), ()) if flow.destination is not None else ()


def draw_world(random: Random, kinds: Sequence[str] = KINDS, clients: Sequence[str] = tuple(ADDRESSES)) -> World:
    """Clients with rules of these kinds; some listed, some not; some watched; with pins or without."""
    texts: dict[str, Sequence[str]] = {}
    found = []
    for name in clients:
        exact = random.random() < 0.25
        rules: dict[int, RuleSet] = {}
        for version in {address.version for address in ADDRESSES[name]}:
            if random.random() < 0.9:
                entries = draw_entries(random, version, kinds)
                texts[f"{name} IPv{version}"] = [f"{key}: {text}" for key, text in sorted(entries.items())]
                rules[version] = parse_rules(entries)
        profiles = () if exact else tuple(each for each in PROFILES if random.random() < 0.4)
        observe = not exact and random.random() < 0.25
        proxy = PROXY if random.random() < 0.25 else None
        dns_all = random.random() < 0.3
        found.append(Member(name, profiles, observe, dns_all, ADDRESSES[name], rules, exact, proxy))
    policy = build(Config({}), LIBRARY, UPSTREAM, found, CLIENT_DNS if random.random() < 0.8 else (), lists=LISTS)
    pins: dict[tuple[str, IPAddress], tuple[Hostname, ...]] = {}
    for _ in range(random.randint(0, 8)):
        address = draw_address(random, random.choice((4, 6)))
        if random.random() < 0.3:
            address = random.choice(MAPPED)
        if kind_of(address) is not AddressKind.INTERNAL:
            pins[random.choice(clients), address] = tuple(random.sample(HOSTS, random.randint(1, 3)))
    return World(policy, texts, pins)


def draw_entries(random: Random, version: int, kinds: Sequence[str]) -> dict[str, str]:
    """What QubesDB has of one address."""
    entries = {"policy": random.choice(("accept", "drop"))}
    if random.random() < 0.03:
        del entries["policy"]
    for number in sorted(random.sample(range(20), random.randint(0, 6))):
        entries[f"{number:04}"] = draw_rule(random, version, kinds)
    return entries


def draw_rule(random: Random, version: int, kinds: Sequence[str]) -> str:
    """The text of one rule; most are of this IP version, some are bare, few cannot be read."""
    if random.random() < 0.1:
        bare = ("action=accept", "action=drop", "action=accept comment=dst4=1.2.3.4 x")
        return random.choice((*bare, "action=accept a=b"))
    words = [f"action={random.choice(('accept', 'drop'))}"]
    kind = random.choice(kinds)
    other = random.random() < 0.1
    if kind in ("net", "neighbour"):
        of4 = (version == 4) != other
        networks4, networks6 = (NETWORKS4, NETWORKS6) if kind == "net" else (NEIGHBOURS4, NEIGHBOURS6)
        network = random.choice(networks4 if of4 else networks6)
        words.append(f"dst{4 if of4 else 6}={network}")
    elif kind == "host":
        words.append(f"dsthost={random.choice((*HOSTS, *HOSTS, '203.0.113.16', '2001:db8:2::7'))}")
    proto = random.choice((None, "tcp", "udp", "icmp"))
    literal = kind == "host"
    if kind == "dns":
        words.append("specialtarget=dns")
        proto = random.choice((None, "tcp", "udp"))
        if random.random() < 0.2:
            words.append(random.choice(("dst4=10.139.1.1/32", "dst6=2001:db8:1::/64")))
    if proto is not None:
        words.append(f"proto={proto}")
    if proto == "icmp" or (proto is None and kind != "dns" and not literal and random.random() < 0.2):
        if random.random() < 0.6:
            words.append(f"icmptype={random.choice(ICMP_TYPES)}")
    elif random.random() < 0.5:
        first, last = sorted(random.choice(PORTS) for _ in range(2))
        words.append(f"dstports={first}-{last}")
    random.shuffle(words)
    return " ".join(words)


def draw_flow(random: Random, world: World) -> Flow:
    """An attempt of one of the clients, at something that rules, profiles or pins may speak of."""
    client = random.choice(tuple(world.policy.clients))
    version = random.choice([address.version for address in ADDRESSES[client]])
    return _attempt(random, client, draw_address(random, version))


def draw_pinned_flow(random: Random, world: World) -> Flow:
    """An attempt at an address that the client was told for some name, where there is one."""
    versions = {client: {address.version for address in found} for client, found in ADDRESSES.items()}
    pins = [(client, address) for client, address in world.pins if address.version in versions[client]]
    return _attempt(random, *random.choice(pins)) if pins else draw_flow(random, world)


def draw_neighbour_flow(random: Random, world: World) -> Flow:
    """An attempt at an internal address that some rule may name."""
    client = random.choice(tuple(world.policy.clients))
    versions = {address.version for address in ADDRESSES[client]}
    network = random.choice([each for each in (*NEIGHBOURS4, *NEIGHBOURS6) if each.version in versions])
    return _attempt(random, client, network.network_address)


def _attempt(random: Random, client: str, destination: IPAddress) -> Flow:
    protocol = random.choice((*[Protocol.TCP] * 3, *[Protocol.UDP] * 4, *[Protocol.ICMP] * 2, Protocol.OTHER))
    if protocol is Protocol.ICMP:
        return Flow(client, protocol, destination, 0, icmp_type=random.choice(ICMP_TYPES))
    if protocol is Protocol.OTHER:
        return Flow(client, protocol, destination, 0)
    port = min(max(random.choice(PORTS) + random.choice((-1, 0, 0, 0, 1)), 1), 65535)
    return Flow(client, protocol, destination, port)


def draw_address(random: Random, version: int) -> IPAddress:
    """An address inside one of the networks, at its border, or just beyond."""
    networks = NETWORKS4 if version == 4 else NETWORKS6
    network: IPNetwork = random.choice(networks[: len(networks) // 2] if random.random() < 0.6 else networks)
    last = int(network.broadcast_address)
    number = random.choice((int(network.network_address), last, int(network.network_address) - 1, last + 1))
    number = min(max(number, 1), 2**network.max_prefixlen - 1)
    return ip_address(number) if version == 4 else type(network.network_address)(number)
