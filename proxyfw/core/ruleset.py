"""The policy as nftables text: what addresses alone can decide, by the same order as `policy.decide`.

The result is one transaction: the definitions, the static skeleton (iptables/proxyfw.nft), and a chain per client.
"""

from collections.abc import Iterable
from ipaddress import collapse_addresses, ip_network

from proxyfw.core.address import EMBEDDING, INTERNAL, IPNetwork
from proxyfw.core.pattern import Port
from proxyfw.core.policy import DNS_PORT, QUIC_PORT, ClientPolicy, Policy

PROXY_PORT = 3129
"""Where the proxy listens, on loopback. Fixed: the rules outlive the service, and a restarted one takes over."""

LOG_GROUP = 28774
"""The NFLOG group of the refusals ("pf" in ASCII); nft takes no variable there, so it also stands in the skeleton."""

MARK, MASK = 0x10000000, 0x30000000
"""The packet mark that says "to the proxy", and the bits that proxyfw uses of it."""

TABLE = "inet proxyfw"


def render(policy: Policy, skeleton: str, downstream_group: int) -> str:
    """The whole ruleset as one transaction that replaces the former one."""
    clients = list(policy.clients.values())
    chains = [_chain(f"client-{number}", client, policy) for number, client in enumerate(clients)]
    return "\n".join(
        [
            f"define downstream = {downstream_group}",
            f"define proxy_port = {PROXY_PORT}",
            f"table {TABLE}",
            f"delete table {TABLE}",
            skeleton,
            f"table {TABLE} {{",
            _set("never", (*INTERNAL, *EMBEDDING, *map(ip_network, policy.never))),
            *chains,
            "}",
            *_elements(clients),
            "",
        ]
    )


def _chain(name: str, client: ClientPolicy, policy: Policy) -> str:
    """One client's packets, in the order of decision."""
    lines = []
    for resolver in sorted(policy.resolvers, key=str):
        match = f"{_ip(resolver.version)} daddr {resolver} meta l4proto {{ tcp, udp }} th dport {DNS_PORT}"
        lines.append(f"{match} goto forward-it")
    lines += ["ip daddr @never4 goto refuse-internal", "ip6 daddr @never6 goto refuse-internal"]
    by_port: dict[Port | None, list[IPNetwork]] = {}
    for grant in client.grants:
        by_port.setdefault(grant.port, []).append(grant.network)
    for port, networks in by_port.items():
        match = f" {port.transport} dport {port.number}" if port else ""
        for version, members in _families(networks):
            lines.append(f"{_ip(version)} daddr {{ {members} }}{match} goto forward-it")
    lines.append("meta l4proto tcp goto to-proxy")
    if client.observe:
        lines += [f"udp dport {QUIC_PORT} goto refuse-no-name", "goto observe-no-name"]
    else:
        lines.append("goto refuse-no-name")
    body = "\n".join(f"\t\t{line}" for line in lines)
    return f"\t# {client.name}\n\tchain {name} {{\n{body}\n\t}}"


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
