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
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict

DNS_PORT = 53
QUIC_PORT = 443
_REMEMBERED = 2048  # verdicts kept; a policy never changes its mind


class Protocol(StrEnum):
    """What the flow speaks, as far as it is known."""

    TLS = "tls"
    HTTP = "http"
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"

    @property
    def transport(self) -> str:
        """tcp, udp or icmp."""
        return "tcp" if self in (Protocol.TLS, Protocol.HTTP) else self.value


class NameSource(StrEnum):
    """Where the name of a flow came from."""

    NONE = ""
    SNI = "sni"
    HOST = "host"


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
        self.resolvers = frozenset(a for a, port in upstream if port == DNS_PORT and not a.is_loopback)
        """The resolvers that clients may ask directly (on port 53), until there is a relay."""
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
        """The refusal as this client's mode has it. Rule 1 is the netvm's own safety: observe mode does not lift it."""
        if self.observes(client) and deny.reason is not Reason.INTERNAL_ADDRESS:
            return replace(deny, observed=True)
        return deny

    def observes(self, client: str) -> bool:
        """Whether the client is in observe mode: its refusals are recorded and let through."""
        return client in self.clients and self.clients[client].observe

    def _decide(self, client: ClientPolicy, flow: Flow) -> Verdict:
        transport, destination = flow.protocol.transport, flow.destination
        if destination is not None:
            if destination in self.resolvers and flow.port == DNS_PORT and transport in ("tcp", "udp"):
                return Allow(Reason.UPSTREAM_DNS)
            if self._kind(destination) is AddressKind.INTERNAL:
                return Deny(Reason.INTERNAL_ADDRESS)
            grant = client.networks.find(destination, transport, flow.port)
            if grant is not None:
                return Allow(Reason.NETWORK, _rule(grant), str(grant.where))
        if flow.broken is not None:
            return Deny(flow.broken.reason, detail=flow.broken.detail)
        if flow.name is None or transport != "tcp":  # no name is read from anything but TCP in this version
            return Deny(Reason.NO_NAME)
        pattern = client.patterns.find(flow.name, transport, flow.port)
        if pattern is not None:
            return Allow(Reason.DOMAIN, _rule(pattern), str(pattern.where), pattern.profile in client.private)
        return Deny(Reason.NO_MATCH, detail=_other_ports(client, flow.name))

    def reachable(self, grant: Allow, addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
        """Those of a name's addresses that the grant of this name reaches (rebinding, SSRF)."""
        kinds = (AddressKind.GLOBAL, AddressKind.PRIVATE) if grant.private else (AddressKind.GLOBAL,)
        return tuple([address for address in addresses if self._kind(address) in kinds])

    def _kind_here(self, address: IPAddress) -> AddressKind:
        """Rule 1: what is INTERNAL, nothing reaches, neither by a name nor by a network."""
        return AddressKind.INTERNAL if address in self.never else kind_of(address)


def is_quic(transport: str, port: int) -> bool:
    """Refused in observe mode too: a browser then uses TCP, where the names that it wants can be seen."""
    return transport == "udp" and port == QUIC_PORT


def _rule(grant: Pattern | NetworkGrant) -> str:
    return f"{grant.profile}: {grant.text}"


def _other_ports(client: ClientPolicy, name: Hostname) -> str:
    ports = [port for port in client.patterns.ports_of(name) if port.transport == "tcp"]
    return f"granted on {', '.join(f'{p.number}/{p.transport}' for p in ports)}" if ports else ""


def build(config: Config, library: Library, upstream: tuple[tuple[IPAddress, int], ...]) -> Policy:
    """The policy of a checked configuration. `upstream` stands for `config.upstream` where that is empty."""
    shared: dict[tuple[str, ...], ClientPolicy] = {}
    clients = []
    for client in config.clients.values():
        base = shared.get(client.profiles)
        if base is None:
            base = shared[client.profiles] = _grants(client.profiles, library)
        clients.append(replace(base, name=client.name, addresses=client.addresses, observe=client.observe))
    return Policy(clients, config.upstream or upstream)


def _grants(profiles: tuple[str, ...], library: Library) -> ClientPolicy:
    members = {member.name: member for name in profiles for member in library.expand(name)}.values()
    grants = tuple(grant for member in members for grant in member.networks)
    return ClientPolicy(
        name="",
        addresses=(),
        observe=False,
        patterns=Index(pattern for member in members for pattern in member.domains),
        grants=grants,
        networks=NetworkTable(grants),
        private=frozenset(member.name for member in members if member.private),
    )
