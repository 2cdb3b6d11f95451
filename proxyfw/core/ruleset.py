"""The policy as nftables text: what addresses alone can decide, by the same order as `policy.decide`.

The result is our whole table: the static skeleton (iptables/proxyfw.nft), and chains and sets of each client. How it
takes the place of the one before is in generations.py.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import collapse_addresses, ip_network
from math import ceil
from types import MappingProxyType
from typing import NamedTuple

from proxyfw.core.address import EMBEDDING, INTERNAL, IPAddress, IPNetwork
from proxyfw.core.clientpolicy import ClientPolicy
from proxyfw.core.feed import Source
from proxyfw.core.flow import Flow, NameSource, Protocol
from proxyfw.core.hostname import Hostname
from proxyfw.core.nftbatch import Change, element
from proxyfw.core.pattern import Port
from proxyfw.core.policy import QUIC_PORT, Policy
from proxyfw.core.qubes_rules import DNS_PORT, Action, RuleSet
from proxyfw.core.rulechains import REFUSE, dns_lines, host_sets, rule_lines
from proxyfw.core.verdict import Allow, Reason

PROXY_PORT = 3129
"""Where the proxy listens, on loopback. Fixed: the rules outlive the service, and a restarted one takes over."""

RELAY4, RELAY6 = "127.0.53.53", "100::53"
"""Where the relay takes UDP, on port 53, as its answers come from that port. Addresses of its own, beside whatever
resolver the netvm has: one of loopback, and one that nobody has (RFC 6666), so that neither can be reached directly.
nft takes no variable there, so they also stand in the skeleton."""

RELAY_PORT = 3130
"""Where the relay takes TCP, on loopback."""

EXPLICIT_PORT = 3131
"""Where the proxy listens for clients that ask for one, on loopback."""

USED_SETS = ("used4", "used6", "hosts-used4", "hosts-used6")
"""The sets of what is pinned and by which a packet has gone lately: client, address, and of UDP ports the port."""

INBOUND_SETS = ("inbound4", "inbound6", "pinged4", "pinged6")
"""The sets of connections to clients, whose answers are let through."""

USED_LIFE = 3600
"""Seconds that these are held after the last packet; nft takes no variable there, so it also stands in the skeleton."""

FLOWTABLE = "inet qubes-nat-accel"
"""The table by which Qubes OS 4.3 lets the kernel forward flows past all rules, once they were let through."""

LOG_GROUP = 28774
"""The NFLOG group of the refusals ("pf" in ASCII); nft takes no variable there, so it also stands in the skeleton."""

MARK, MASK = 0x10000000, 0x30000000
"""The packet mark that says "to the proxy", and the bits that proxyfw uses of it."""

TABLE = "inet proxyfw"

FEED_SET = "feed-"
"""How the names of the sets of feeds begin."""

OURS = '"proxyfw"'
"""The comment by which our rules in Qubes' tables are found."""

_NEVER = ("ip daddr @never4 goto refuse-internal", "ip6 daddr @never6 goto refuse-internal")
_DNS_PACKET = f"meta l4proto {{ tcp, udp }} th dport {DNS_PORT}"


class PinnedPort(NamedTuple):
    """A UDP port that one client's address may reach at one address."""

    client: IPAddress
    address: IPAddress
    port: int

    @property
    def set(self) -> str:
        """The set that it is an element of."""
        return f"pins{self.address.version}"


class UsedPort(NamedTuple):
    """The same, of a port by which packets go."""

    client: IPAddress
    address: IPAddress
    port: int

    @property
    def set(self) -> str:
        """The set that it is an element of."""
        return f"used{self.address.version}"


class PinnedHost(NamedTuple):
    """An address that one client was told for a host of its Qubes firewall rules, and the set of that host."""

    set: str
    address: IPAddress


Pinned = PinnedPort | UsedPort | PinnedHost


def render(
    policy: Policy,
    skeleton: str,
    downstream_group: int,
    pinned: Mapping[Pinned, int] = MappingProxyType({}),
    beside_qubes: bool = False,
    explicit_port: int = 0,
) -> str:
    """The whole ruleset: our table with all that is in it.

    `pinned`: what is open by a pin, and for how many seconds still. `beside_qubes`: the tables of a Qubes netvm are in
    force as well, and judge connections from outside to clients. `explicit_port`: where clients find a proxy that they
    can ask, at this netvm's own addresses; 0: nowhere.
    """
    clients = list(policy.clients.values())
    chains = [_chains(number, client, policy) for number, client in enumerate(clients)]
    if not explicit_port:
        skeleton = "\n".join(line for line in skeleton.splitlines() if "$explicit_port" not in line)
    # Put in here, as a definition would stay in libnftables' memory, and clash with the next one.
    for variable, value in (
        ("downstream", downstream_group),
        ("proxy_port", PROXY_PORT),
        ("relay_port", RELAY_PORT),
        ("explicit_port", explicit_port),
        ("explicit_proxy_port", EXPLICIT_PORT),
        ("from_outside", "accept" if beside_qubes else "drop"),
    ):
        skeleton = skeleton.replace(f"${variable}", str(value))
    return "\n".join(
        [
            f"table {TABLE} {{",
            _set("never", (*INTERNAL, *EMBEDDING, *map(ip_network, policy.never))),
            "}",
            skeleton,
            f"table {TABLE} {{",
            *_feed_sets(clients),
            *chains,
            "}",
            *_elements(clients, explicit_port),
            *(f"add element {TABLE} {pin.set} {{ {_key(pin)} timeout {seconds}s }}" for pin, seconds in pinned.items()),
            "",
        ]
    )


def beside_qubes(missing: Iterable[tuple[str, str]], tables: Iterable[str], downstream_group: int) -> str:
    """The nftables text that makes room beside the tables of a Qubes netvm.

    `missing`: families (ip, ip6) and those of Qubes' `custom-input` and `custom-forward` that do not have our rule. The
    first accepts what is redirected here, and only that. The other refuses what was never judged here: should our table
    be taken away, Qubes' own forward everything. `tables`: those of qubes-firewall, whose work is done here now.
    """
    rules = {
        "custom-input": f"meta mark & {MASK:#x} == {MARK:#x} accept comment {OURS}",
        "custom-forward": f"iifgroup {downstream_group} meta mark & {MASK:#x} == 0 drop comment {OURS}",
    }
    return "".join(
        [
            *(f"insert rule {family} qubes {chain} {rules[chain]}\n" for family, chain in missing),
            *(f"add table {table}\ndelete table {table}\n" for table in tables),
        ]
    )


def _chains(number: int, client: ClientPolicy, policy: Policy) -> str:
    """One client's packets, in the order of decision, and what its chain needs."""
    texts = []
    for version, rules in client.rules.items():
        kind = "ipv4_addr" if version == 4 else "ipv6_addr"
        for name, _, _ in host_sets(number, rules, version) if client.upstream_proxy is None else ():
            texts.append(f"\tset {name} {{ type {kind}; size 65535; flags timeout; }}")
        for kind, lines in _rule_chains(number, client, policy, version, rules):
            texts.append(_text(f"{kind}-{number}-{version}", lines))
    texts.append(f"\t# {client.name}")
    texts.append(_text(f"client-{number}", _client_lines(number, client, policy)))
    return "\n".join(texts)


def _rule_chains(
    number: int, client: ClientPolicy, policy: Policy, version: int, rules: RuleSet
) -> Iterator[tuple[str, list[str]]]:
    """The chains that judge by Qubes firewall rules: all packets, those of DNS, and those to a named neighbour."""
    leaves = client.upstream_proxy is not None
    by_relay = leaves or not client.exact or bool(rules.hosts())
    accept = "goto forward-it" if rules.closing is Action.ACCEPT else REFUSE
    everything = list(rule_lines(number, rules, version, policy.resolvers, "goto forward-it"))
    dns = list(dns_lines(rules, version, policy.resolvers, "goto to-relay" if by_relay else "goto forward-it"))
    if client.exact:
        everything.append(accept)
        dns.append("goto to-relay" if by_relay and rules.closing is Action.ACCEPT else accept)
    if not leaves:
        yield "rules", everything
    yield "dns", dns
    if not leaves and _neighbours(policy, rules, version):
        yield "within", list(rule_lines(number, rules, version, policy.resolvers, "goto forward-within", within=True))


def _client_lines(number: int, client: ClientPolicy, policy: Policy) -> list[str]:
    lines = _first_lines(number, client, policy)
    if client.upstream_proxy is not None:
        # Nothing is forwarded: whatever may leave is TCP, and for the proxy to judge, also where the address decides.
        return [*lines, *_NEVER, "meta l4proto tcp goto to-proxy", "goto refuse-unsupported"]
    # Neighbours that a rule names go before rule 1; and after DNS, which no host rule takes past the relay.
    for version, rules in client.rules.items():
        neighbours = _neighbours(policy, rules, version)
        if neighbours:
            lines.append(f"{_ip(version)} daddr {{ {', '.join(map(str, neighbours))} }} jump within-{number}-{version}")
    lines += _NEVER
    for version, rules in client.rules.items():
        if rules.rules or client.exact:
            lines.append(f"meta nfproto ipv{version} {'goto' if client.exact else 'jump'} rules-{number}-{version}")
    return lines if client.exact else lines + _granted_lines(client)


def _first_lines(number: int, client: ClientPolicy, policy: Policy) -> list[str]:
    """What goes before rule 1: rules that cannot be read, or of one family alone, and DNS."""
    lines = []
    for version in (4, 6):
        rules = client.rules.get(version)
        if (rules is None and (client.exact or client.rules)) or (rules is not None and rules.broken):
            lines.append(f"meta nfproto ipv{version} {REFUSE}")
        elif rules is not None:
            lines += _dns_packets(number, client, policy, version, rules)
    if not client.exact:
        lines += [f"{protocol} dport {DNS_PORT} goto to-relay" for protocol in ("udp", "tcp")]
    return lines


def _dns_packets(number: int, client: ClientPolicy, policy: Policy, version: int, rules: RuleSet) -> Iterator[str]:
    told = ", ".join(str(address) for address in policy.client_dns if address.version == version)
    if client.exact and told:
        yield f"{_ip(version)} daddr {{ {told} }} {_DNS_PACKET} goto dns-{number}-{version}"
    elif not client.exact and rules.rules:
        yield f"meta nfproto ipv{version} {_DNS_PACKET} jump dns-{number}-{version}"


def _neighbours(policy: Policy, rules: RuleSet, version: int) -> list[IPAddress]:
    return [address for address in rules.named() if address.version == version and policy.is_internal(address)]


def _granted_lines(client: ClientPolicy) -> list[str]:
    """What the profiles grant, and the refusal of the rest."""
    lines: list[str] = []
    by_port: dict[tuple[Port | None, float | None], list[IPNetwork]] = {}
    for grant in client.grants:
        by_port.setdefault((grant.port, grant.until), []).append(grant.network)
    for (port, until), networks in by_port.items():
        match = f" {port.transport} dport {port.number}" if port else ""
        if until is not None:  # it ends where nobody is there to end it, too
            match += f" meta time < {ceil(until)}"
        for version, members in _families(networks):
            lines.append(f"{_ip(version)} daddr {{ {members} }}{match} goto forward-it")
    lines += [
        f"{_ip(version)} daddr @{feed_set(feed.source, version)}{match} goto forward-it"
        for feed in client.feeds
        for match in ([f" {port.transport} dport {port.number}" for port in feed.ports] or [""])
        for version in (4, 6)
    ]
    lines.append("meta l4proto tcp goto to-proxy")
    if any(port.transport == "udp" for port in client.by_pin.ports()):
        for ip, version in (("ip", 4), ("ip6", 6)):
            match = f"{ip} saddr . {ip} daddr . udp dport"
            lines += [f"{match} @{kind}{version} goto pinned{version}" for kind in ("pins", "used")]
    if client.observe:
        return [*lines, f"udp dport {QUIC_PORT} goto refuse-no-name", "goto observe-no-name"]
    return [*lines, "goto refuse-no-name"]


def _text(name: str, lines: Iterable[str]) -> str:
    body = "\n".join(f"\t\t{line}" for line in lines)
    return f"\tchain {name} {{\n{body}\n\t}}"


def pinned(policy: Policy, client: str, name: Hostname, addresses: Iterable[IPAddress]) -> Iterator[Pinned]:
    """What an answer opens at these addresses: the UDP ports that the client's patterns name for this host name, and
    what its Qubes firewall rules say of the host.

    Asked of the policy, as a port may be granted and this address of the name not.
    """
    own = policy.clients.get(client)
    if own is None or own.upstream_proxy is not None:
        return
    ports = policy.granted_udp(client, name)
    for address in addresses:
        for port in ports:
            flow = Flow(client, Protocol.UDP, address, port, name, NameSource.PIN)
            verdict = policy.decide(flow)
            if isinstance(verdict, Allow) and verdict.reason is Reason.PIN:
                same_family = (each for each in own.addresses if each.version == address.version)
                yield from (PinnedPort(each, address, port) for each in same_family)
        yield from _pinned_hosts(policy, own, name, address)


def _pinned_hosts(policy: Policy, client: ClientPolicy, name: Hostname, address: IPAddress) -> Iterator[PinnedHost]:
    rules = client.rules.get(address.version)
    if rules is None or name not in rules.hosts():
        return
    reached = policy.in_reach(Allow(Reason.QUBES_RULE, private=client.exact), address)
    for name_of_set, host, action in host_sets(policy.place_of(client.name), rules, address.version):
        if host == name and (reached or action is Action.DROP):
            yield PinnedHost(name_of_set, address)


def _key(pin: Pinned) -> str:
    return f"{pin.address}" if isinstance(pin, PinnedHost) else f"{pin.client} . {pin.address} . {pin.port}"


def open_pinned(pins: Iterable[Pinned], seconds: int) -> Iterator[Change]:
    """The changes that open them, or give them a new time-out. Added first, as none must be missing to be deleted;
    deleted, as a time-out cannot be changed."""
    for pin in pins:
        fields = [pin.address.packed]
        if not isinstance(pin, PinnedHost):
            fields = [pin.client.packed, pin.address.packed, pin.port.to_bytes(2)]
        for adds, life in ((True, None), (False, None), (True, seconds)):
            yield Change(pin.set, adds, [element(*fields, seconds=life)])


def _elements(clients: Sequence[ClientPolicy], explicit_port: int) -> list[str]:
    chains = {address: f"client-{number}" for number, client in enumerate(clients) for address in client.addresses}
    found = [f"add element {TABLE} clients{each.version} {{ {each} : goto {to} }}" for each, to in chains.items()]
    asking = chains if explicit_port else ()
    return found + [f"add element {TABLE} explicit{each.version} {{ {each} : goto to-explicit }}" for each in asking]


def _set(name: str, networks: Iterable[IPNetwork]) -> str:
    found = dict(_families(networks))
    return "\n".join(
        f"\tset {name}{suffix} {{ type {kind}; flags interval; elements = {{ {found[version]} }} }}"
        for version, suffix, kind in ((4, "4", "ipv4_addr"), (6, "6", "ipv6_addr"))
    )


def feed_set(source: Source, version: int) -> str:
    """The name of the set of a feed's addresses. It belongs to no generation of the ruleset: what is in it stays."""
    return f"{FEED_SET}{source.id}-{version}"


def _feed_sets(clients: Iterable[ClientPolicy]) -> list[str]:
    sources = {feed.source: None for client in clients for feed in client.feeds}
    return [
        f"\tset {feed_set(source, version)} {{ type {kind}; flags interval; }}"
        for source in sources
        for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr"))
    ]


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
