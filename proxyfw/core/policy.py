"""The decision, in one pure function: DESIGN section 2. The packet layer is rendered from the same data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from proxyfw.core.address import AddressKind, IPAddress, kind_of
from proxyfw.core.config import Config
from proxyfw.core.hostname import Hostname
from proxyfw.core.networks import NetworkTable
from proxyfw.core.pattern import Index, Pattern
from proxyfw.core.profile import Library, NetworkGrant
from proxyfw.core.sniffed import Malformed
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict, is_refused

DNS_PORT = 53
QUIC_PORT = 443

CANARIES = frozenset({"use-application-dns.net", "mask.icloud.com", "mask-h2.icloud.com", "resolver.arpa"})
"""Names by which clients ask whether to use another resolver than the one they were given, and what is below them:
DNS over HTTPS in Firefox, iCloud Private Relay, and the discovery of designated resolvers (RFC 9462 section 4)."""

_REMEMBERED = 2048  # verdicts kept; a policy never changes its mind

_BELOW_CANARIES = tuple(f".{canary}" for canary in CANARIES)


class Protocol(StrEnum):
    """What the flow speaks, as far as it is known."""

    TLS = "tls"
    HTTP = "http"
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    DNS = "dns"  # a query to the relay, over whatever it came

    @property
    def transport(self) -> str:
        """tcp, udp, icmp or dns."""
        return "tcp" if self in (Protocol.TLS, Protocol.HTTP) else self.value


class NameSource(StrEnum):
    """Where the name of a flow came from."""

    NONE = ""
    SNI = "sni"
    HOST = "host"
    DNS = "dns"  # the name of a query
    PIN = "pin"  # learnt from an answer that the relay gave this client for this destination


class Flow(NamedTuple):
    """One attempt of a client to reach something. `destination` is None where only a name is asked about.

    `broken`: what the client sent says nothing that could be judged.
    """

    client: str
    protocol: Protocol
    destination: IPAddress | None
    port: int
    name: Hostname | None = None
    name_source: NameSource = NameSource.NONE
    broken: Malformed | None = None


@dataclass(frozen=True, slots=True)
class ClientPolicy:
    """What one client may reach."""

    name: str
    addresses: tuple[IPAddress, ...]
    observe: bool
    patterns: Index
    grants: tuple[NetworkGrant, ...]
    networks: NetworkTable
    private: frozenset[str]
    """The profiles whose names may lead to private addresses."""
    by_pin: Index
    """Those of the patterns that name a port."""
    dns_all: bool = False
    """Every name resolves, whether a profile grants it or not."""


class Policy:
    """Everything needed to decide, immutable: a new configuration is a new Policy.

    `upstream`: the resolvers, address and port. The netvm's own addresses are not here, as they change without notice:
    the packet layer refuses them (fib), and so does `edge.dial`.
    """

    def __init__(
        self,
        clients: Iterable[ClientPolicy],
        upstream: tuple[tuple[IPAddress, int], ...],
    ) -> None:
        self.clients: Mapping[str, ClientPolicy] = {client.name: client for client in clients}
        self.upstream = upstream
        self._by_address = {str(a): client.name for client in self.clients.values() for a in client.addresses}
        self._remembered = lru_cache(maxsize=_REMEMBERED)(self._verdict)
        self._kind = lru_cache(maxsize=_REMEMBERED)(self._kind_here)
        self.never = frozenset(a for client in self.clients.values() for a in client.addresses)
        """The clients' own addresses: rule 1, with the internal ranges."""

    def client_at(self, address: str) -> str | None:
        """The client with this source address. On Qubes a source address cannot be spoofed between clients."""
        return self._by_address.get(address)

    def decide(self, flow: Flow) -> Verdict:
        """The verdict on a flow, by the order of DESIGN section 2. Fails closed: what nothing grants is denied."""
        return self._remembered(flow)

    def _verdict(self, flow: Flow) -> Verdict:
        client = self.clients.get(flow.client)
        if client is None:
            return Deny(Reason.UNKNOWN_CLIENT)
        verdict = self._decide(client, flow)
        if isinstance(verdict, Allow) or is_quic(flow.protocol.transport, flow.port):
            return verdict
        return self.observed(flow.client, verdict)

    def observed(self, client: str, deny: Deny) -> Deny:
        """The refusal as this client's mode has it. Rule 1 is the netvm's own safety: observe mode does not lift it.

        Nor does it let a client leave for another resolver, where its names would not be seen.
        """
        if self.observes(client) and deny.reason not in (Reason.INTERNAL_ADDRESS, Reason.CANARY):
            return replace(deny, observed=True)
        return deny

    def observes(self, client: str) -> bool:
        """Whether the client is in observe mode: its refusals are recorded and let through."""
        return client in self.clients and self.clients[client].observe

    def _decide(self, client: ClientPolicy, flow: Flow) -> Verdict:
        transport, destination = flow.protocol.transport, flow.destination
        if flow.protocol is Protocol.DNS:
            return _decide_query(client, flow)
        if flow.port == DNS_PORT and transport in ("tcp", "udp"):
            return Allow(Reason.RELAY)
        if destination is not None:
            if self._kind(destination) is AddressKind.INTERNAL:
                return Deny(Reason.INTERNAL_ADDRESS)
            grant = client.networks.find(destination, transport, flow.port)
            if grant is not None:
                return Allow(Reason.NETWORK, _rule(grant), str(grant.where))
        if flow.broken is not None:
            return Deny(flow.broken.reason, detail=flow.broken.detail)
        if flow.name is not None and flow.name_source is NameSource.PIN:
            return self._decide_pinned(client, flow, flow.name)
        if flow.name is None or transport != "tcp":  # no name is read from anything but TCP in this version
            return Deny(Reason.NO_NAME)
        pattern = client.patterns.find(flow.name, transport, flow.port)
        if pattern is not None:
            return Allow(Reason.DOMAIN, _rule(pattern), str(pattern.where), pattern.profile in client.private)
        return Deny(Reason.NO_MATCH, detail=_other_ports(client, flow.name))

    def _decide_pinned(self, client: ClientPolicy, flow: Flow, name: Hostname) -> Verdict:
        """The client was told that the destination is this name's: that grants the ports that a pattern names."""
        transport = flow.protocol.transport
        pattern = client.by_pin.find(name, transport, flow.port)
        if pattern is None:
            reason = Reason.NO_NAME if client.patterns.find(name, transport, flow.port) else Reason.NO_MATCH
            return Deny(reason, detail=_other_ports(client, name))
        allow = Allow(Reason.PIN, _rule(pattern), str(pattern.where), pattern.profile in client.private)
        if flow.destination is not None and not self.reachable(allow, (flow.destination,)):
            return Deny(Reason.PRIVATE_ADDRESS, allow.rule)
        return allow

    def decide_pinned(self, flow: Flow, names: Iterable[Hostname]) -> tuple[Flow, Verdict]:
        """The verdict on a flow that names no host itself, and the flow with the pinned name that it rests on.

        `names`: those pinned for its destination, the latest first. Where none of them is granted, the latest one is
        told, so that the log says what to allow.
        """
        told = [flow._replace(name=name, name_source=NameSource.PIN) for name in names] or [flow]
        verdicts = [(each, self.decide(each)) for each in told]
        return next((found for found in verdicts if isinstance(found[1], Allow)), verdicts[0])

    def names_port(self, client: str, transport: str, port: int) -> bool:
        """Whether any pattern of this client names this port, so that a pin may grant it."""
        return client in self.clients and self.clients[client].by_pin.covers(transport, port)

    def granted_udp(self, client: str, name: Hostname) -> list[int]:
        """The UDP ports that patterns of this client name for this host name."""
        ports = self.clients[client].by_pin.ports_of(name) if client in self.clients else ()
        return [port.number for port in ports if port.transport == "udp"]

    def may_resolve(self, client: str, name: Hostname) -> bool:
        """Whether the relay answers this client for this name."""
        verdict = self.decide(Flow(client, Protocol.DNS, None, DNS_PORT, name, NameSource.DNS))
        return not is_refused(verdict)

    def answerable(self, client: str, verdict: Verdict, addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
        """Those of a name's addresses that an answer may give: what this client could reach at all (rebinding)."""
        own = self.clients[client]
        private = own.observe or (isinstance(verdict, Allow) and verdict.private)
        kinds = [(address, self._kind(address)) for address in addresses]
        return tuple(
            address
            for address, kind in kinds
            if kind is AddressKind.GLOBAL or (kind is AddressKind.PRIVATE and (private or address in own.networks))
        )

    def reachable(self, grant: Allow, addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
        """Those of a name's addresses that the grant of this name reaches (rebinding, SSRF)."""
        kinds = (AddressKind.GLOBAL, AddressKind.PRIVATE) if grant.private else (AddressKind.GLOBAL,)
        return tuple([address for address in addresses if self._kind(address) in kinds])

    def _kind_here(self, address: IPAddress) -> AddressKind:
        """Rule 1: what is INTERNAL, nothing reaches, neither by a name nor by a network."""
        return AddressKind.INTERNAL if address in self.never else kind_of(address)


def _decide_query(client: ClientPolicy, flow: Flow) -> Verdict:
    """A name resolves when any port of it is granted, whatever record type is asked for."""
    if flow.broken is not None:
        return Deny(flow.broken.reason, detail=flow.broken.detail)
    if flow.name is None:
        return Deny(Reason.NO_NAME)
    if flow.name in CANARIES or flow.name.endswith(_BELOW_CANARIES):
        return Deny(Reason.CANARY)
    found = client.patterns.find_all(flow.name)
    if found:
        private = any(pattern.profile in client.private for pattern in found)
        return Allow(Reason.DOMAIN, _rule(found[0]), str(found[0].where), private)
    if client.dns_all:
        return Allow(Reason.DNS_ALL)
    return Deny(Reason.NO_MATCH)


def is_quic(transport: str, port: int) -> bool:
    """Refused in observe mode too: a browser then uses TCP, where the names that it wants can be seen."""
    return transport == "udp" and port == QUIC_PORT


def _rule(grant: Pattern | NetworkGrant) -> str:
    return f"{grant.profile}: {grant.text}"


def _other_ports(client: ClientPolicy, name: Hostname) -> str:
    """What else is granted of this name; UDP 443 of a pattern without a port is QUIC's, which is refused as yet."""
    named = client.by_pin.ports_of(name)
    ports = [port for port in client.patterns.ports_of(name) if port.transport == "tcp" or port in named]
    return f"granted on {', '.join(f'{p.number}/{p.transport}' for p in ports)}" if ports else ""


def build(config: Config, library: Library, upstream: tuple[tuple[IPAddress, int], ...]) -> Policy:
    """The policy of a checked configuration. `upstream` stands for `config.upstream` where that is empty."""
    shared: dict[tuple[str, ...], ClientPolicy] = {}
    clients = []
    for client in config.clients.values():
        base = shared.get(client.profiles)
        if base is None:
            base = shared[client.profiles] = _grants(client.profiles, library)
        clients.append(
            replace(
                base,
                name=client.name,
                addresses=client.addresses,
                observe=client.observe,
                dns_all=client.dns_all,
            )
        )
    return Policy(clients, config.upstream or upstream)


def _grants(profiles: tuple[str, ...], library: Library) -> ClientPolicy:
    members = {member.name: member for name in profiles for member in library.expand(name)}.values()
    grants = tuple(grant for member in members for grant in member.networks)
    patterns = [pattern for member in members for pattern in member.domains]
    return ClientPolicy(
        name="",
        addresses=(),
        observe=False,
        patterns=Index(patterns),
        by_pin=Index(pattern for pattern in patterns if pattern.names_port),
        grants=grants,
        networks=NetworkTable(grants),
        private=frozenset(member.name for member in members if member.private),
    )
