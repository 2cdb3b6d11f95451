"""Qubes firewall rules as nftables chains: for each, what addresses and pins can decide, in the order of the rules.

A rule with a host name judges TCP in the proxy, by the name that is read there: whatever TCP it could match goes there.
The rest it judges by pins: a set of its own holds the addresses that the client was told for the name.
"""

from collections.abc import Collection, Iterator, Sequence

from proxyfw.core.address import IPAddress, IPNetwork
from proxyfw.core.hostname import Hostname
from proxyfw.core.qubes_rules import DNS_PORT, QUIC, Action, Rule, RuleSet

REFUSE = "goto refuse-qubes"
_OTHERS = "meta l4proto != { tcp, udp }"


def host_set(client: int, host: int, action: Action, version: int) -> str:
    """The name of the set of addresses of one host of one client's rules. `client`, `host`: by their place."""
    return f"host-{client}-{host}{action.value[0]}{version}"


def host_sets(client: int, rules: RuleSet, version: int) -> Iterator[tuple[str, Hostname, Action]]:
    """The sets that these rules need, and whose addresses each holds: of names that rules accept, or drop."""
    for place, host in enumerate(rules.hosts()):
        for action in dict.fromkeys(rule.action for rule in rules.rules if rule.host == host):
            yield host_set(client, place, action, version), host, action


def rule_lines(
    client: int, rules: RuleSet, version: int, resolvers: Collection[IPAddress], accept: str, within: bool = False
) -> Iterator[str]:
    """The rules of one chain, for packets of one IP version. `accept`: the verdict of an accept rule.

    `within`: for internal addresses, where an accept counts only if it names a single one.
    """
    places = {host: place for place, host in enumerate(rules.hosts())}
    for rule in rules.rules:
        if within and rule.action is Action.ACCEPT and rule.single is None:
            continue
        verdict = accept if rule.action is Action.ACCEPT else REFUSE
        if rule.host is not None:
            yield from _host_lines(rule, version, host_set(client, places[rule.host], rule.action, version), verdict)
            continue
        where = _destination(rule, version, resolvers)
        if where is not None:
            for what in _protocols(rule, version):
                yield _line(where, what, verdict)


def dns_lines(rules: RuleSet, version: int, resolvers: Collection[IPAddress], accept: str) -> Iterator[str]:
    """The same for packets to port 53 alone: names play no part, as the relay judges those."""
    for rule in rules.rules:
        where = _destination(rule, version, resolvers) if rule.host is None else None
        for transport in ("udp", "tcp"):
            if where is not None and rule.covers(transport, DNS_PORT):
                verdict = accept if rule.action is Action.ACCEPT else REFUSE
                yield _line(where, f"{transport} dport {DNS_PORT}", verdict)


def _destination(rule: Rule, version: int, resolvers: Collection[IPAddress]) -> str | None:
    """The match of the destination's address; "" for every one, None where it can match none."""
    network = rule.network
    if rule.dns:
        known = [each for each in sorted(resolvers, key=str) if each.version == version and _holds(network, each)]
        return f"{_ip(version)} daddr {{ {', '.join(map(str, known))} }}" if known else None
    if network is None:
        return ""
    return f"{_ip(version)} daddr {network}" if network.version == version else None


def _holds(network: IPNetwork | None, address: IPAddress) -> bool:
    return network is None or (network.version == address.version and address in network)


def _protocols(rule: Rule, version: int) -> Sequence[str]:
    """The matches of protocol and port, one of which is to hold; [""]: every protocol."""
    transports = rule.transports()
    if transports is None:
        return ("",)
    if "icmp" in transports:
        icmp = "icmp" if version == 4 else "icmpv6"
        number = rule.icmp_type
        return (f"{icmp} type {number}" if number is not None else f"meta l4proto {_icmp_protocol(version)}",)
    first, last = (DNS_PORT, DNS_PORT) if rule.dns else rule.ports or (0, 0)
    if rule.dns and not rule.covers("udp" if "udp" in transports else "tcp", DNS_PORT):
        return ()
    ports = f"dport {first}-{last}" if first != last else f"dport {first}"
    bare = not rule.dns and rule.ports is None
    return [f"meta l4proto {each}" if bare else f"{each} {ports}" for each in sorted(transports)]


def _host_lines(rule: Rule, version: int, addresses: str, verdict: str) -> Iterator[str]:
    transports = rule.transports()
    ports = f" dport {rule.ports[0]}-{rule.ports[1]}" if rule.ports is not None else ""
    if transports is None or "tcp" in transports:
        yield f"tcp{ports} goto to-proxy" if ports else "meta l4proto tcp goto to-proxy"
    where = f"{_ip(version)} daddr @{addresses}"
    if transports is None or "udp" in transports:
        if rule.action is Action.DROP:
            yield _line(where, f"udp{ports}" if ports else "meta l4proto udp", verdict)
        else:
            yield _accepted_udp(rule, version, where, ports)
    if transports is None:
        yield _line(where, _OTHERS, verdict)
    elif "icmp" in transports:
        yield _line(where, next(iter(_protocols(rule, version))), verdict)


def _accepted_udp(rule: Rule, version: int, where: str, ports: str) -> str:
    """Forwarded, and told to the log. QUIC only where the rule says UDP."""
    if not rule.covers(*QUIC) and (rule.ports is None or rule.ports[0] <= QUIC[1] <= rule.ports[1]):
        ports += f" udp dport != {QUIC[1]}" if ports else f" dport != {QUIC[1]}"
    return _line(where, f"udp{ports}" if ports else "meta l4proto udp", f"goto hosted{version}")


def _line(where: str, what: str, verdict: str) -> str:
    return " ".join(part for part in (where, what, verdict) if part)


def _icmp_protocol(version: int) -> str:
    return "icmp" if version == 4 else "ipv6-icmp"


def _ip(version: int) -> str:
    return "ip" if version == 4 else "ip6"
