"""The decision, in one pure function: DESIGN section 2. The packet layer is rendered from the same data."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType

from proxyfw.core.address import AddressKind, IPAddress, kind_of
from proxyfw.core.addresslist import AddressList
from proxyfw.core.clientpolicy import ClientPolicy, lists_of, of_profiles
from proxyfw.core.clients import Member, members
from proxyfw.core.clientverdict import closed, closing, decide_query, other_ports, rule_of, stands_for_name, unnamed
from proxyfw.core.config import Config
from proxyfw.core.feed import Feed, Source
from proxyfw.core.flow import Flow, NameSource, Protocol
from proxyfw.core.hostname import Hostname
from proxyfw.core.netvm import World
from proxyfw.core.profile import Library
from proxyfw.core.qubes_rules import DNS_PORT, Action, Attempt, Rule
from proxyfw.core.upstreamproxy import UpstreamProxy, is_mapped
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict, is_refused

QUIC_PORT = 443

ASKED = frozenset({NameSource.SOCKS, NameSource.CONNECT})
"""Where the name was asked for, of a connection that is to be made. What is spoken on it then must name a host too, as
on any connection, unless a pattern names the port."""

_REMEMBERED = 2048  # verdicts kept; a policy never changes its mind
_SHOWN = 4  # addresses of a name, in a detail

_NEVER_LIFTED = (Reason.INTERNAL_ADDRESS, Reason.CANARY, Reason.QUBES_RULE, Reason.UNSUPPORTED)
_ONLY_TCP = Deny(Reason.UNSUPPORTED, detail="only TCP leaves through the upstream proxy")
_NAMELESS = Deny(Reason.NO_NAME, detail="the address stands for a name, and it is not known which")


class Policy:
    """Everything needed to decide, immutable: a new configuration is a new Policy.

    `upstream`: the resolvers, address and port. The netvm's own addresses are not here, as they change without notice:
    the packet layer refuses them (fib), and so does `edge.dial`. `client_dns`: the resolvers that Qubes tells clients.
    `upstream_proxy`: by which lists are fetched; the clients have theirs with them.

    Of a client with an upstream proxy, nothing leaves but TCP, through that proxy. Its rules, networks and feeds are
    about the address that it aims at: what address a name has at the far end is not known here.
    """

    def __init__(
        self,
        clients: Iterable[ClientPolicy],
        upstream: tuple[tuple[IPAddress, int], ...],
        client_dns: tuple[IPAddress, ...] = (),
        upstream_proxy: UpstreamProxy | None = None,
    ) -> None:
        self.clients: Mapping[str, ClientPolicy] = {client.name: client for client in clients}
        self.upstream = upstream
        self.client_dns = client_dns
        self.upstream_proxy = upstream_proxy
        self.resolvers = frozenset({*client_dns, *(address for address, _ in upstream)})
        """What `specialtarget=dns` of a Qubes firewall rule stands for."""
        self._places = {name: place for place, name in enumerate(self.clients)}
        self._by_address = {str(a): client.name for client in self.clients.values() for a in client.addresses}
        self._remembered = lru_cache(maxsize=_REMEMBERED)(self._verdict)
        self._kind = lru_cache(maxsize=_REMEMBERED)(self._kind_here)
        self.never = frozenset(a for client in self.clients.values() for a in client.addresses)
        """The clients' own addresses: rule 1, with the internal ranges."""

    def with_lists(self, lists: Mapping[Source, AddressList]) -> "Policy":
        """The same policy, where the feeds hold this."""
        clients = [replace(client, lists=lists_of(client.feeds, lists)) for client in self.clients.values()]
        return Policy(clients, self.upstream, self.client_dns, self.upstream_proxy)

    def feeds(self) -> list[Feed]:
        """The feeds of all clients, and through what to fetch them."""
        feeds = {feed: None for client in self.clients.values() for feed in client.feeds}
        return [replace(feed, through=self.upstream_proxy) for feed in feeds] if self.upstream_proxy else list(feeds)

    def client_at(self, address: str) -> str | None:
        """The client with this source address. On Qubes a source address cannot be spoofed between clients."""
        return self._by_address.get(address)

    def place_of(self, client: str) -> int:
        """Where this client stands among the clients, from 0."""
        return self._places[client]

    def decide(self, flow: Flow) -> Verdict:
        """The verdict on a flow, by the order of DESIGN section 2. Fails closed: what nothing grants is denied."""
        return self._remembered(flow)

    def _verdict(self, flow: Flow) -> Verdict:
        client = self.clients.get(flow.client)
        if client is None:
            return Deny(Reason.UNKNOWN_CLIENT)
        verdict = self._decide(client, flow)
        if isinstance(verdict, Allow) or verdict == _NAMELESS or is_quic(flow.protocol.transport, flow.port):
            return verdict
        return self.observed(flow.client, verdict)

    def observed(self, client: str, deny: Deny) -> Deny:
        """The refusal as this client's mode has it. Rule 1 is the netvm's own safety: observe mode does not lift it.

        Nor does it let a client leave for another resolver, where its names would not be seen, or past the Qubes
        firewall, which knows no such mode, or by anything but TCP where it has an upstream proxy.
        """
        return replace(deny, observed=True) if deny.reason not in _NEVER_LIFTED and self.observes(client) else deny

    def observes(self, client: str) -> bool:
        """Whether the client is in observe mode: its refusals are recorded and let through."""
        return client in self.clients and self.clients[client].observe

    def _decide(self, client: ClientPolicy, flow: Flow) -> Verdict:
        transport, destination = flow.protocol.transport, flow.destination
        shut = closed(client, destination)
        if shut is not None:
            return shut
        if flow.protocol is Protocol.DNS:
            return decide_query(client, flow)
        if self._is_for_relay(client, flow):
            return self._decide_dns_packet(client, flow)
        denied = self._cannot_leave(flow) if client.upstream_proxy is not None else None
        if denied is not None:
            return denied
        by_rule = self._decide_by_rules(client, flow)
        if destination is not None and self.is_internal(destination):
            rules = client.rules_for(destination)
            named = rules is not None and destination in rules.named()
            return by_rule if named and by_rule is not None else Deny(Reason.INTERNAL_ADDRESS)
        if by_rule is None and client.exact:
            by_rule = closing(client, destination)
        if by_rule is not None:
            return by_rule
        if destination is not None and not stands_for_name(client, destination):
            grant = client.networks.find(destination, transport, flow.port)
            if grant is not None:
                return Allow(Reason.NETWORK, rule_of(grant), str(grant.where))
            feed = client.find_feed(destination, transport, flow.port)
            if feed is not None:
                return Allow(Reason.FEED, rule_of(feed), str(feed.where))
        return self._decide_by_name(client, flow)

    def _cannot_leave(self, flow: Flow) -> Deny | None:
        """Why its upstream proxy cannot be asked for it. What is internal is here, not there, whatever rule names it;
        and a mapped address is nothing without its name.
        """
        if flow.destination is not None and self.is_internal(flow.destination):
            return Deny(Reason.INTERNAL_ADDRESS)
        if flow.protocol.transport != "tcp":
            return _ONLY_TCP
        return _NAMELESS if flow.name is None and is_mapped(flow.destination) else None

    def _decide_by_name(self, client: ClientPolicy, flow: Flow) -> Verdict:
        transport = flow.protocol.transport
        if flow.broken is not None:
            return Deny(flow.broken.reason, detail=flow.broken.detail)
        if flow.name is not None and flow.name_source is NameSource.PIN:
            return self._decide_pinned(client, flow, flow.name)
        if flow.name is None or transport != "tcp":  # no name is read from anything but TCP in this version
            return Deny(Reason.NO_NAME)
        inside = flow.name_source in ASKED and flow.protocol not in (Protocol.SOCKS, Protocol.CONNECT)
        if inside and client.by_pin.find(flow.name, transport, flow.port) is None:
            return unnamed(client, flow, flow.name)
        pattern = client.patterns.find(flow.name, transport, flow.port)
        if pattern is not None:
            private = pattern.profile in client.private
            return Allow(Reason.DOMAIN, rule_of(pattern), str(pattern.where), private, by_name=True)
        return Deny(Reason.NO_MATCH, detail=other_ports(client, flow.name))

    def _decide_by_rules(self, client: ClientPolicy, flow: Flow) -> Verdict | None:
        """What the client's Qubes firewall rules say, less the closing one; None: none of them matches."""
        rule = self._first_rule(client, flow, (flow.name,) if flow.name is not None else ())
        if rule is None:
            return None
        words = f"qubes {rule}"
        if rule.action is Action.DROP:
            hidden = flow.broken if rule.host is not None else None
            return Deny(Reason.QUBES_RULE, words, f"it may name this host: {hidden.detail}" if hidden else "")
        # sys-firewall knows no private addresses: who is to have just its rules has them too.
        by_name = rule.host is not None and _says_name(flow)
        return Allow(Reason.QUBES_RULE, words, private=client.exact, by_name=by_name)

    def _first_rule(self, client: ClientPolicy, flow: Flow, names: Collection[Hostname]) -> Rule | None:
        """The first rule that decides. `names`: by which the flow is known; its pins, where it says none itself.

        At an internal address, an accept counts only where it names that address and no other.
        """
        rules, to = client.rules_for(flow.destination), flow.destination
        neighbour = to is not None and self.is_internal(to) and not self._is_for_relay(client, flow)
        attempt = Attempt(flow.destination, flow.protocol.transport, flow.port, names, flow.icmp_type)
        grant = Allow(Reason.QUBES_RULE, private=client.exact)
        reached = _says_name(flow) or stands_for_name(client, to) or self.in_reach(grant, to)
        for rule in rules.rules if rules is not None else ():
            if neighbour and rule.action is Action.ACCEPT and rule.single != to:
                continue
            if flow.broken is not None and rule.host is not None:
                # It may name that host, for all that can be read of it: a drop holds, an accept does not.
                if rule.action is Action.DROP and rule.covers(attempt.transport, flow.port):
                    return rule
            elif rule.matches(attempt, self.resolvers) and (rule.host is None or rule.action is Action.DROP or reached):
                return rule
        return None

    def _is_for_relay(self, client: ClientPolicy, flow: Flow) -> bool:
        """Whether it is DNS that the relay takes, or Qubes' own DNAT, whatever address it is aimed at."""
        dns = flow.port == DNS_PORT and flow.protocol.transport in ("tcp", "udp")
        return dns and (not client.exact or flow.destination in self.client_dns)

    def _decide_dns_packet(self, client: ClientPolicy, flow: Flow) -> Verdict:
        """Where a packet to port 53 goes, whatever it asks for: rules by address may forbid it."""
        rules = client.rules_for(flow.destination)
        by_rule = self._decide_by_rules(client, flow._replace(name=None, broken=None))
        if by_rule is None and client.exact:
            by_rule = closing(client, flow.destination)
        if isinstance(by_rule, Deny):
            return by_rule
        away = client.exact and client.upstream_proxy is None and rules is not None and not rules.hosts()
        if by_rule is not None and away:
            return by_rule  # the netvm's own DNAT takes it to the resolver, as there is no name to pin
        return Allow(Reason.RELAY)

    def _decide_pinned(self, client: ClientPolicy, flow: Flow, name: Hostname) -> Verdict:
        """The client was told that the destination is this name's: that grants the ports that a pattern names."""
        transport = flow.protocol.transport
        pattern = client.by_pin.find(name, transport, flow.port)
        if pattern is None:
            return unnamed(client, flow, name)
        allow = Allow(Reason.PIN, rule_of(pattern), str(pattern.where), pattern.profile in client.private)
        if not stands_for_name(client, flow.destination) and not self.in_reach(allow, flow.destination):
            return Deny(Reason.PRIVATE_ADDRESS, allow.rule)
        return allow

    def decide_pinned(self, flow: Flow, names: Iterable[Hostname]) -> tuple[Flow, Verdict]:
        """The verdict on a flow that names no host itself, and the flow with the pinned name that it rests on.

        `names`: those pinned for its destination, the latest first. Where none of them is granted, the latest one is
        told, so that the log says what to allow.
        """
        told = [flow._replace(name=name, name_source=NameSource.PIN) for name in names] or [flow]
        client = self.clients.get(flow.client)
        known = [each.name for each in told if each.name is not None]
        rule = self._first_rule(client, flow, known) if client is not None else None
        if rule is not None:
            # Rules go in their own order, whatever the pins'. With the name that it asks for, decide finds it again.
            named = next((each for each in told if each.name == rule.host), told[0])
            return named, self.decide(named)
        verdicts = [(each, self.decide(each)) for each in told]
        return next((found for found in verdicts if isinstance(found[1], Allow)), verdicts[0])

    def dropped_as_aimed(self, flow: Flow, names: Iterable[Hostname]) -> Deny | None:
        """The refusal of a flow that is to be dialled where the client aimed, by a Qubes rule; None: there is none.

        `names`: those pinned for that address. They count, and not the name that the flow itself says: that is only a
        word, as it is not one of that name's own addresses that is dialled.
        """
        client = self.clients.get(flow.client)
        if client is None or not client.rules:
            return None
        told = self.decide_pinned(flow._replace(name=None, name_source=NameSource.NONE), names)[1]
        return told if isinstance(told, Deny) and told.reason is Reason.QUBES_RULE else None

    def grants_unheard(self, client: str, transport: str, port: int) -> bool:
        """Whether anything may grant this port to this client before a word of it is heard: a pin, or a rule."""
        own = self.clients.get(client)
        if own is None:
            return False
        by_address = own.upstream_proxy is not None and bool(own.grants or own.feeds)  # else the kernel forwards that
        by_rule = any(rules.rules or own.exact for rules in own.rules.values())
        return by_address or by_rule or own.by_pin.covers(transport, port)

    def granted_udp(self, client: str, name: Hostname) -> list[int]:
        """The UDP ports that an answer for this host name opens to this client: those that its patterns name."""
        own = self.clients.get(client)
        ports = own.by_pin.ports_of(name) if own is not None and own.upstream_proxy is None else ()
        return [port.number for port in ports if port.transport == "udp"]

    def opens_by_pin(self, client: str, name: Hostname) -> bool:
        """Whether an answer for this name opens anything in the packet layer."""
        by_rule = self.upstream_proxy_of(client) is None and self.rules_ask_for(client, name)
        return by_rule or bool(self.granted_udp(client, name))

    def rules_ask_for(self, client: str, name: Hostname) -> bool:
        """Whether a Qubes firewall rule of this client is about this host name."""
        own = self.clients.get(client)
        return own is not None and any(name in rules.hosts() for rules in own.rules.values())

    def upstream_proxy_of(self, client: str) -> UpstreamProxy | None:
        """By which the client leaves; then the kernel forwards nothing of it, and the relay asks nobody for it."""
        return self.clients[client].upstream_proxy if client in self.clients else None

    def leaves_for(self, flow: Flow, names: Iterable[Hostname]) -> Hostname | IPAddress | None:
        """What to ask the client's upstream proxy for, of a flow that is let through; None: nothing can be asked.

        `names`: those pinned for its destination, the latest first. It is the flow's name where the verdict rests on
        that; else what the client aims at, and so, of a mapped address, the name that it stands for.
        """
        verdict, aimed_at = self.decide(flow), flow.destination
        by_name = isinstance(verdict, Allow) and (verdict.by_name or verdict.reason is Reason.PIN)
        if by_name or aimed_at is None or (is_mapped(aimed_at) and flow.name_source is NameSource.PIN):
            return flow.name
        return next(iter(names), flow.name) if is_mapped(aimed_at) else aimed_at

    def may_resolve(self, client: str, name: Hostname) -> bool:
        """Whether the relay answers this client for this name."""
        verdict = self.decide(Flow(client, Protocol.DNS, None, DNS_PORT, name, NameSource.DNS))
        return not is_refused(verdict)

    def answerable(self, client: str, verdict: Verdict, addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
        """Those of a name's addresses that an answer may give: what this client could reach at all (rebinding)."""
        own = self.clients[client]
        private = own.observe or own.exact or (isinstance(verdict, Allow) and verdict.private)
        kinds = [(address, self._kind(address)) for address in addresses]
        return tuple(
            address
            for address, kind in kinds
            if kind is AddressKind.GLOBAL
            or stands_for_name(own, address)
            or (kind is AddressKind.PRIVATE and (private or address in own.networks))
        )

    def reachable(self, flow: Flow, grant: Allow, addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
        """Those of a name's addresses that its grant reaches (rebinding, SSRF), and that no Qubes rule drops.

        Where the client has rules, a family without any is not reached: no rule could drop anything there.
        """
        found = [address for address in addresses if self.in_reach(grant, address)]
        if self.clients[flow.client].rules:
            found = [each for each in self.judgeable(flow, found) if self._dropped(flow, each) is None]
        return tuple(found)

    def judgeable(self, flow: Flow, addresses: Iterable[IPAddress]) -> list[IPAddress]:
        """Those of a name's addresses that the client's Qubes rules could drop, where it has any."""
        rules = self.clients[flow.client].rules
        return [each for each in addresses if not rules or each.version in rules]

    def unreached(self, flow: Flow, grant: Allow, addresses: Sequence[IPAddress]) -> Deny:
        """Why none of a name's addresses is `reachable`."""
        dropped = (self._dropped(flow, each) for each in addresses if self.in_reach(grant, each))
        by_rule = next((deny for deny in dropped if deny is not None and deny.reason is Reason.QUBES_RULE), None)
        only = ", ".join(map(str, addresses[:_SHOWN]))
        return by_rule or Deny(Reason.PRIVATE_ADDRESS, grant.rule, f"it has only {only}")

    def _dropped(self, flow: Flow, address: IPAddress) -> Deny | None:
        verdict = self.decide(flow._replace(destination=address))
        return verdict if is_refused(verdict) else None

    def is_internal(self, address: IPAddress) -> bool:
        """Whether it is of rule 1: only a Qubes firewall rule that names it leads there."""
        return self._kind(address) is AddressKind.INTERNAL

    def in_reach(self, grant: Allow, address: IPAddress | None) -> bool:
        """Whether a grant by name reaches this address of the name."""
        kind = self._kind(address) if address is not None else AddressKind.GLOBAL
        return kind is AddressKind.GLOBAL or (grant.private and kind is AddressKind.PRIVATE)

    def _kind_here(self, address: IPAddress) -> AddressKind:
        """Rule 1: what is INTERNAL, nothing reaches, neither by a name nor by a network."""
        return AddressKind.INTERNAL if address in self.never else kind_of(address)


def _says_name(flow: Flow) -> bool:
    """Whether the flow itself names a host."""
    return flow.name is not None and flow.name_source is not NameSource.PIN


def is_quic(transport: str, port: int) -> bool:
    """Refused in observe mode too: a browser then uses TCP, where the names that it wants can be seen."""
    return transport == "udp" and port == QUIC_PORT


def build(
    config: Config,
    library: Library,
    upstream: tuple[tuple[IPAddress, int], ...],
    found: Iterable[Member] | None = None,
    client_dns: tuple[IPAddress, ...] = (),
    shared: dict[tuple[str, ...], ClientPolicy] | None = None,
    lists: Mapping[Source, AddressList] = MappingProxyType({}),
) -> Policy:
    """The policy of a checked configuration. `upstream` stands for `config.upstream` where that is empty.

    `found`: the clients as they are now; None: those of the configuration, outside Qubes OS. `shared`: what profiles
    grant together, kept by the caller from one policy of the same library to the next, and added to. `lists`: what the
    feeds hold, as the packet layer has it.
    """
    shared = {} if shared is None else shared
    clients = []
    for client in members(config, library.profiles, World())[0] if found is None else found:
        base = shared.get(client.profiles)
        if base is None:
            base = shared[client.profiles] = of_profiles(client.profiles, library)
        clients.append(
            replace(
                base,
                name=client.name,
                addresses=client.addresses,
                observe=client.observe,
                dns_all=client.dns_all,
                rules=client.rules,
                exact=client.exact,
                profiles=client.profiles,
                upstream_proxy=client.upstream_proxy,
                feeds=base.feeds if config.feeds else (),
                lists=lists_of(base.feeds, lists) if config.feeds else (),
            )
        )
    return Policy(clients, config.upstream or upstream, client_dns, config.upstream_proxy)
