"""The policy as nftables text: what addresses alone can decide, by the same order as `policy.decide`.

The result is one transaction: the definitions, the static skeleton (iptables/proxyfw.nft), and a chain per client.
"""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import collapse_addresses, ip_network
from types import MappingProxyType
from typing import NamedTuple

from proxyfw.core.address import EMBEDDING, INTERNAL, IPAddress, IPNetwork
from proxyfw.core.hostname import Hostname
from proxyfw.core.pattern import Port
from proxyfw.core.policy import DNS_PORT, QUIC_PORT, ClientPolicy, Flow, NameSource, Policy, Protocol
from proxyfw.core.verdict import Allow

PROXY_PORT = 3129
"""Where the proxy listens, on loopback. Fixed: the rules outlive the service, and a restarted one takes over."""

RELAY4, RELAY6 = "127.0.53.53", "100::53"
"""Where the relay takes UDP, on port 53, as its answers come from that port. Addresses of its own, beside whatever
resolver the netvm has: one of loopback, and one that nobody has (RFC 6666), so that neither can be reached directly.
nft takes no variable there, so they also stand in the skeleton."""

RELAY_PORT = 3130
"""Where the relay takes TCP, on loopback."""

USED_SETS = ("used4", "used6")
"""The sets of pinned UDP ports by which a packet has gone lately: client, address, port."""

LOG_GROUP = 28774
"""The NFLOG group of the refusals ("pf" in ASCII); nft takes no variable there, so it also stands in the skeleton."""

MARK, MASK = 0x10000000, 0x30000000
"""The packet mark that says "to the proxy", and the bits that proxyfw uses of it."""

TABLE = "inet proxyfw"


class PinnedPort(NamedTuple):
    """A UDP port that one client's address may reach at one address."""

    client: IPAddress
    address: IPAddress
    port: int


def render(
    policy: Policy, skeleton: str, downstream_group: int, pinned: Mapping[PinnedPort, int] = MappingProxyType({})
) -> str:
    """The whole ruleset as one transaction that replaces the former one.

    `pinned`: what is open by a pin, and for how many seconds still.
    """
    clients = list(policy.clients.values())
    chains = [_chain(f"client-{number}", client, policy) for number, client in enumerate(clients)]
    # Put in here, as a definition would stay in libnftables' memory, and clash with the next one.
    for variable, value in (("downstream", downstream_group), ("proxy_port", PROXY_PORT), ("relay_port", RELAY_PORT)):
        skeleton = skeleton.replace(f"${variable}", str(value))
    return "\n".join(
        [
            f"table {TABLE}",
            f"delete table {TABLE}",
            skeleton,
            f"table {TABLE} {{",
            _set("never", (*INTERNAL, *EMBEDDING, *map(ip_network, policy.never))),
            *chains,
            "}",
            *_elements(clients),
            *(f"add element {TABLE} {_pin_element(port, seconds)}" for port, seconds in pinned.items()),
            "",
        ]
    )


def _chain(name: str, client: ClientPolicy, policy: Policy) -> str:
    """One client's packets, in the order of decision."""
    lines = [f"{protocol} dport {DNS_PORT} goto to-relay" for protocol in ("udp", "tcp")]
    lines += ["ip daddr @never4 goto refuse-internal", "ip6 daddr @never6 goto refuse-internal"]
    by_port: dict[Port | None, list[IPNetwork]] = {}
    for grant in client.grants:
        by_port.setdefault(grant.port, []).append(grant.network)
    for port, networks in by_port.items():
        match = f" {port.transport} dport {port.number}" if port else ""
        for version, members in _families(networks):
            lines.append(f"{_ip(version)} daddr {{ {members} }}{match} goto forward-it")
    lines.append("meta l4proto tcp goto to-proxy")
    if any(port.transport == "udp" for port in client.by_pin.ports()):
        for ip, version in (("ip", 4), ("ip6", 6)):
            match = f"{ip} saddr . {ip} daddr . udp dport"
            lines += [f"{match} @{kind}{version} goto pinned{version}" for kind in ("pins", "used")]
    if client.observe:
        lines += [f"udp dport {QUIC_PORT} goto refuse-no-name", "goto observe-no-name"]
    else:
        lines.append("goto refuse-no-name")
    body = "\n".join(f"\t\t{line}" for line in lines)
    return f"\t# {client.name}\n\tchain {name} {{\n{body}\n\t}}"


def pinned_ports(policy: Policy, client: str, name: Hostname, addresses: Iterable[IPAddress]) -> Iterator[PinnedPort]:
    """What an answer opens: the UDP ports that the client's patterns name for this host name, at these addresses.

    Asked of `policy.decide`, as a port may be granted and this address of the name not.
    """
    ports = policy.granted_udp(client, name)
    for address in addresses if ports else ():
        for port in ports:
            flow = Flow(client, Protocol.UDP, address, port, name, NameSource.PIN)
            if isinstance(policy.decide(flow), Allow):
                same_family = (own for own in policy.clients[client].addresses if own.version == address.version)
                yield from (PinnedPort(own, address, port) for own in same_family)


def open_ports(ports: Iterable[PinnedPort], seconds: int) -> str:
    """The nftables text that opens them, or gives them a new time-out. Added first, as none must be missing to be
    deleted; deleted, as a time-out cannot be changed."""
    lines = []
    for port in ports:
        bare = _pin_element(port)
        lines += [f"add element {TABLE} {bare}", f"delete element {TABLE} {bare}"]
        lines.append(f"add element {TABLE} {_pin_element(port, seconds)}")
    return "\n".join(lines)


def _pin_element(port: PinnedPort, seconds: int | None = None) -> str:
    timeout = f" timeout {seconds}s" if seconds is not None else ""
    return f"pins{port.address.version} {{ {port.client} . {port.address} . {port.port}{timeout} }}"


def _elements(clients: Iterable[ClientPolicy]) -> list[str]:
    return [
        f"add element {TABLE} clients{4 if address.version == 4 else 6} {{ {address} : goto client-{number} }}"
        for number, client in enumerate(clients)
        for address in client.addresses
    ]


def _set(name: str, networks: Iterable[IPNetwork]) -> str:
    found = dict(_families(networks))
    return "\n".join(
        f"\tset {name}{suffix} {{ type {kind}; flags interval; elements = {{ {found[version]} }} }}"
        for version, suffix, kind in ((4, "4", "ipv4_addr"), (6, "6", "ipv6_addr"))
    )


def _families(networks: Iterable[IPNetwork]) -> list[tuple[int, str]]:
    """The networks of each family that has any, without overlaps (nftables refuses those), ready for a set."""
    given = list(networks)
    found = []
    for version in (4, 6):
        family = collapse_addresses(n for n in given if n.version == version)  # type: ignore[type-var]
        members = ", ".join(str(n) for n in family)
        if members:
            found.append((version, members))
    return found


def _ip(version: int) -> str:
    return "ip" if version == 4 else "ip6"
