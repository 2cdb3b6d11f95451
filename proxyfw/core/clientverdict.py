"""What can be said of one client by itself: its queries, its closing rule, the words for what grants and refuses."""

from proxyfw.core.address import IPAddress
from proxyfw.core.clientpolicy import ClientPolicy
from proxyfw.core.feed import Feed
from proxyfw.core.flow import Flow
from proxyfw.core.hostname import Hostname
from proxyfw.core.pattern import Pattern
from proxyfw.core.profile import NetworkGrant
from proxyfw.core.qubes_rules import Action
from proxyfw.core.upstreamproxy import is_mapped
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict

CANARIES = frozenset({"use-application-dns.net", "mask.icloud.com", "mask-h2.icloud.com", "resolver.arpa"})
"""Names by which clients ask whether to use another resolver than the one they were given, and what is below them:
DNS over HTTPS in Firefox, iCloud Private Relay, and the discovery of designated resolvers (RFC 9462 section 4)."""

_BELOW_CANARIES = tuple(f".{canary}" for canary in CANARIES)


def decide_query(client: ClientPolicy, flow: Flow) -> Verdict:
    """A name resolves when any port of it is granted, whatever record type is asked for."""
    if flow.broken is not None:
        return Deny(flow.broken.reason, detail=flow.broken.detail)
    if flow.name is None:
        return Deny(Reason.NO_NAME)
    if not client.exact and (flow.name in CANARIES or flow.name.endswith(_BELOW_CANARIES)):
        return Deny(Reason.CANARY)
    named = [rule for rules in client.rules.values() if (rule := rules.of_name(flow.name)) is not None]
    accepted = next((rule for rule in named if rule.action is Action.ACCEPT), None)
    if accepted is not None:
        return Allow(Reason.QUBES_RULE, f"qubes {accepted}", private=client.exact)
    if named:
        return Deny(Reason.QUBES_RULE, f"qubes {named[0]}")
    found = client.patterns.find_all(flow.name)
    if found:
        private = any(pattern.profile in client.private for pattern in found)
        return Allow(Reason.DOMAIN, rule_of(found[0]), str(found[0].where), private)
    if client.dns_all or client.exact:
        return Allow(Reason.DNS_ALL)
    return Deny(Reason.NO_MATCH)


def unnamed(client: ClientPolicy, flow: Flow, name: Hostname) -> Deny:
    """What names no host itself, and is known to be for this name: no pattern names the port."""
    reason = Reason.NO_NAME if client.patterns.find(name, flow.protocol.transport, flow.port) else Reason.NO_MATCH
    return Deny(reason, detail=other_ports(client, name))


def stands_for_name(client: ClientPolicy, address: IPAddress | None) -> bool:
    """Whether the address stands for a name: then it is of no network, and in reach of whatever grants the name."""
    return client.upstream_proxy is not None and is_mapped(address)


def closed(client: ClientPolicy, destination: IPAddress | None) -> Deny | None:
    """Where the Qubes firewall rules cannot be read, nothing is permitted; nor at an address of a family for which the
    client has none, where it has any: no rule could drop anything there.
    """
    rules = client.rules_for(destination)
    if rules is None:
        version = 4 if destination is None else destination.version
        unknown = Deny(Reason.QUBES_RULE, detail=f"no IPv{version} firewall rules are known")
        return unknown if client.exact or client.rules else None
    return Deny(Reason.QUBES_RULE, detail=rules.broken) if rules.broken else None


def closing(client: ClientPolicy, destination: IPAddress | None) -> Verdict:
    """What the bare rule says that closes its Qubes firewall rules; none: drop."""
    rules = client.rules_for(destination)
    words = f"qubes: the closing {rules.closing.value if rules else Action.DROP.value}"
    accepts = rules is not None and rules.closing is Action.ACCEPT
    return Allow(Reason.QUBES_RULE, words) if accepts else Deny(Reason.QUBES_RULE, words)


def rule_of(grant: Pattern | NetworkGrant | Feed) -> str:
    """A grant as the log has it."""
    return f"{grant.profile}: {grant.text}"


def other_ports(client: ClientPolicy, name: Hostname) -> str:
    """What else is granted of this name; UDP 443 of a pattern without a port is QUIC's, which is refused as yet."""
    named = client.by_pin.ports_of(name)
    ports = [port for port in client.patterns.ports_of(name) if port.transport == "tcp" or port in named]
    return f"granted on {', '.join(f'{p.number}/{p.transport}' for p in ports)}" if ports else ""
