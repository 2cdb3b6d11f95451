"""What the packet layer has to do with a packet, told from `policy.decide` alone."""

from collections.abc import Iterable
from ipaddress import ip_network

from proxyfw.core.flow import Flow, NameSource, Protocol
from proxyfw.core.hostname import Hostname
from proxyfw.core.policy import Policy
from proxyfw.core.qubes_rules import Action, Attempt
from proxyfw.core.sniffed import Malformed
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict

# The packet layer knows no names: to it, all of these are no-name.
_UNSEEN = (Reason.NO_NAME, Reason.NO_MATCH, Reason.PRIVATE_ADDRESS)
_REFUSALS = {
    Reason.QUBES_RULE: "refuse-qubes",
    Reason.INTERNAL_ADDRESS: "refuse-internal",
    Reason.UNSUPPORTED: "refuse-unsupported",
}
_REFUSALS |= dict.fromkeys(_UNSEEN, "refuse-no-name")
_ANY = Allow(Reason.DOMAIN, private=True)  # it reaches whatever is not internal
FORWARDED = frozenset({"forward-it", "forward-within", "pinned4", "pinned6", "hosted4", "hosted6"})


def end_of(verdict: Verdict) -> str:
    """Where the packet layer ends if it decides this verdict itself: a chain, or "forward" for each that forwards."""
    if isinstance(verdict, Deny):
        if verdict.observed:
            return "observe-no-name" if verdict.reason in _UNSEEN else f"observed {verdict.reason}"
        return _REFUSALS.get(verdict.reason, f"refused {verdict.reason}")
    if verdict.reason is Reason.RELAY:
        return "to-relay"
    return "a name is dialled" if verdict.by_name else "forward"


def said_in(flow: Flow, pins: Iterable[Hostname], hosts: Iterable[Hostname]) -> list[Flow]:
    """All that a TCP connection may turn out to say, in the proxy: a name, none, or nothing that could be judged."""
    names = [*hosts, *pins, Hostname("z.example")]
    return [
        flow,
        *(flow._replace(protocol=Protocol.TLS, name=name, name_source=NameSource.SNI) for name in names),
        *(flow._replace(protocol=Protocol.HTTP, name=name, name_source=NameSource.HOST) for name in names),
        flow._replace(protocol=Protocol.TLS, broken=Malformed("two names", Reason.AMBIGUOUS)),
    ]


def wrong(policy: Policy, flow: Flow, pins: tuple[Hostname, ...], hosts: Iterable[Hostname], end: str) -> str:
    """What is wrong with this end of the flow's packets in the packet layer; "": nothing."""
    found = "forward" if end in FORWARDED else end
    if policy.upstream_proxy_of(flow.client) is not None:
        return _wrong_where_it_leaves(policy, flow, pins, hosts, found)
    internal = not policy.in_reach(_ANY, flow.destination)
    dnat = flow.destination in policy.client_dns and flow.port == 53  # Qubes' own takes it away from that address
    if (end == "forward-it" and internal and not dnat) or (end == "forward-within" and not internal):
        return f"{end}, and the address is {'internal' if internal else 'not internal'}"
    if found == "to-proxy":
        return _wrongly_to_proxy(policy, flow, said_in(flow, pins, hosts))
    if flow.protocol is not Protocol.TCP:
        wanted = end_of(policy.decide_pinned(flow, pins)[1])
        return "" if wanted == found else f"{end}, and decide_pinned says {wanted}"
    # What is decided by the address must not depend on anything that would be said.
    judged = [(said, policy.decide(said)) for said in said_in(flow, pins, hosts)]
    judged.append(policy.decide_pinned(flow, pins))
    return "; ".join(
        f"{end}, and decide says {end_of(verdict)} of {said}" for said, verdict in judged if end_of(verdict) != found
    )


def _wrong_where_it_leaves(
    policy: Policy, flow: Flow, pins: tuple[Hostname, ...], hosts: Iterable[Hostname], end: str
) -> str:
    """The same of a client with an upstream proxy: nothing is forwarded; TCP that may leave is for the proxy."""
    if end == "forward":
        return "forwarded, past the upstream proxy"
    ends = {end_of(policy.decide_pinned(flow, pins)[1])}
    if flow.protocol is Protocol.TCP:
        ends |= {end_of(policy.decide(said)) for said in said_in(flow, pins, hosts)}
        rules = policy.clients[flow.client].rules_for(flow.destination)
        closed = rules.broken if rules is not None else policy.clients[flow.client].exact
        if end == "to-proxy" and not closed and ends not in ({"refuse-internal"}, {"to-relay"}):
            return ""
    return "" if ends == {end} else f"{end}, and decide says {ends}"


def _wrongly_to_proxy(policy: Policy, flow: Flow, all_said: Iterable[Flow]) -> str:
    """TCP goes to the proxy only where the addresses alone decide nothing."""
    if flow.protocol is not Protocol.TCP:
        return "only TCP is for the proxy"
    ends = {end_of(policy.decide(said)) for said in all_said}
    if ends in ({"refuse-internal"}, {"to-relay"}):
        return f"to the proxy, and it is {ends.pop()} whatever is said there"
    rules = policy.clients[flow.client].rules_for(flow.destination)
    internal = not policy.in_reach(_ANY, flow.destination)
    for rule in rules.rules if rules is not None else ():
        if internal and rule.action is Action.ACCEPT and rule.network != ip_network(str(flow.destination)):
            continue
        if rule.host is not None and rule.covers("tcp", flow.port):
            return ""
        if rule.host is None and rule.matches(Attempt(flow.destination, "tcp", flow.port), policy.resolvers):
            return f"to the proxy, and rule {rule} decides"
    unheard = policy.decide(flow)
    if isinstance(unheard, Allow) or unheard.reason is not Reason.NO_NAME:
        return f"to the proxy, and the address alone is {unheard}"
    return ""
