"""What `explain` says: the verdict on one attempt, why, and what the client was told of the name. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any

from proxyfw.core.address import IPAddress
from proxyfw.core.config import is_qube_name
from proxyfw.core.flow import Flow, NameSource, Protocol
from proxyfw.core.hostname import Hostname
from proxyfw.core.pattern import Form, Pattern, Port
from proxyfw.core.policy import Policy
from proxyfw.core.profile import NetworkGrant
from proxyfw.core.qubes_rules import DNS_PORT
from proxyfw.core.target import Target
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict, in_a_word, is_refused
from proxyfw.report import span

_SHOWN = 6  # pins

_IN_WORDS = {
    Reason.RELAY: "DNS is answered by the relay, whatever resolver it is aimed at",
    Reason.DOMAIN: "a profile grants this name",
    Reason.NETWORK: "a profile grants this address",
    Reason.FEED: "a list of a profile has this address",
    Reason.QUBES_RULE: "a Qubes firewall rule of this client says so",
    Reason.DNS_ALL: "dns: all of this client lets every name resolve",
    Reason.PIN: "a profile grants this port of the name, at the addresses that the client was told for it",
    Reason.NO_MATCH: "no profile of this client grants this name",
    Reason.NO_NAME: "no name can be read from it, and no profile of this client grants the address",
    Reason.CANARY: "a name by which clients ask whether to use another resolver: always refused",
    Reason.UNSUPPORTED: "nothing but TCP leaves through the upstream proxy of this client",
    Reason.PRIVATE_ADDRESS: "the name is granted, but not at private addresses",
    Reason.INTERNAL_ADDRESS: "the netvm, other clients and internal ranges are never reached",
}


@dataclass(frozen=True, slots=True)
class Explained:
    """What `explain` found: the verdict on the flow, on a query for its name (None: it has none), and the pins.

    `pins`: name, address and remaining seconds of those that concern the target; None: no service runs that has any.
    `by_address`: Qubes firewall rules that may decide it otherwise, by the address that a name leads to.
    `rules_known`: False where the client has Qubes firewall rules that nobody here can tell. `unknown_lists`: the feeds
    of the client of which it cannot be told here what they hold, and why.
    """

    flow: Flow
    verdict: Verdict
    query: Verdict | None
    pins: Sequence[Mapping[str, Any]] | None
    by_address: Sequence[str] = ()
    rules_known: bool = True
    unknown_lists: Sequence[str] = ()


def explain(
    policy: Policy, client: str, target: Target, pins: Sequence[Mapping[str, Any]] | None, on_qubes: bool = False
) -> Explained:
    """What the policy says of the target, with what the running service has told the client (`pins`, all of them).

    `on_qubes`: every client that is attached has Qubes firewall rules.
    """
    flow, query = target.flow(client), None
    wanted = "name" if flow.name else "address"
    known = None if pins is None else [pin for pin in pins if pin[wanted] == str(target.host)]
    if flow.name is None:
        flow, verdict = policy.decide_pinned(flow, [Hostname(pin["name"]) for pin in known or ()])
    else:
        verdict = policy.decide(flow)
        query = policy.decide(Flow(client, Protocol.DNS, None, DNS_PORT, flow.name, NameSource.DNS))
    by_address = _rules_by_address(policy, flow) if flow.destination is None else ()
    return Explained(flow, verdict, query, known, by_address, bool(policy.clients[client].rules) or not on_qubes)


def _rules_by_address(policy: Policy, flow: Flow) -> list[str]:
    client = policy.clients[flow.client]
    rules = [rule for found in client.rules.values() for rule in found.rules if rule.by_address]
    return list(dict.fromkeys(f"qubes {rule}" for rule in rules if rule.covers(flow.protocol.transport, flow.port)))


def client_report(client: str, target: Target, found: Explained) -> list[str]:
    """The answer of `explain`."""
    verdict, words = found.verdict, in_a_word(found.verdict)
    lines = [f"{words}: {client} -> {target}", f"  reason:  {_with_reason(verdict)}"]
    if verdict.rule:
        where = f" ({verdict.where})" if isinstance(verdict, Allow) and verdict.where else ""
        lines.append(f"  rule:    {verdict.rule}{where}")
    if isinstance(verdict, Deny) and verdict.detail:
        lines.append(f"  detail:  {verdict.detail}")
    if words == "observe":
        lines.append("  mode:    observe: it is logged as refused, and let through")
    if found.by_address:
        more = ", ..." if len(found.by_address) > _SHOWN else ""
        lines.append(f"  but:     by its address, these decide first: {'; '.join(found.by_address[:_SHOWN])}{more}")
    lines += _dns_lines(found)
    if not found.rules_known:
        lines.append("  note: its Qubes firewall rules are not known (it is not attached, or its name is not known)")
    if words != "allow" and found.flow.destination is not None:
        lines += [f"  note: not known here: what the list {each}" for each in found.unknown_lists]
    if words != "allow" and verdict.reason is Reason.QUBES_RULE:
        lines.append(f"  to allow it: {_where_the_rules_are(client)}")
    what = _to_allow(target, found) if words != "allow" else ""
    if what:
        lines.append(f"  to allow it: sudo proxyfw allow {client} {quote(what)}")
    return lines


def _to_allow(target: Target, found: Explained) -> str:
    """What `proxyfw allow` is to be told; "" where that is not what it lacks."""
    transport = "/udp" if target.protocol.transport == "udp" else ""
    port = f":{target.port}{transport}"
    if found.verdict.reason is Reason.NO_MATCH and found.flow.name is not None:
        return str(found.flow.name) + ("" if port in (":80", ":443") else port)
    if found.verdict.reason is not Reason.NO_NAME:
        return ""
    if found.flow.name is not None:  # known by a pin alone: that grants ports which are named
        return f"{found.flow.name}{port}"
    return f"[{target.host}]{port}" if ":" in str(target.host) else f"{target.host}{port}"


def still_refused(policy: Policy, client: str, grant: Pattern | NetworkGrant) -> list[str]:
    """What stands against this grant of the client all the same: for the first or any of its names and addresses."""
    found = [explain(policy, client, target, ()) for target in _targets(grant)]
    refused = [each for each in found if isinstance(each.verdict, Deny)]
    if len(refused) == len(found):
        said = [f"it is refused all the same: {_whole_reason(refused[0].verdict)}"]
        return said + ([_where_the_rules_are(client)] if refused[0].verdict.reason is Reason.QUBES_RULE else [])
    query = found[0].query
    said = [f"its name does not resolve: {_whole_reason(query)}"] if query is not None and is_refused(query) else []
    drops = [rule for rule in found[0].by_address if "action=drop" in rule]
    return said + ([f"by its address, these decide first: {'; '.join(drops[:_SHOWN])}"] if drops else [])


def _targets(grant: Pattern | NetworkGrant) -> list[Target]:
    if isinstance(grant, Pattern):
        some = {Form.BELOW: f"x.{grant.name}", Form.IN_LABEL: grant.name.replace("*", "x")}
        hosts: list[Hostname | IPAddress] = [Hostname(some.get(grant.form, grant.name))]
        port = grant.ports[0] if grant.names_port else Port("tcp", 443)
    else:
        hosts = [grant.network[0], grant.network[-1]]
        port = grant.port or Port("tcp", 443)
    protocol = Protocol.UDP if port.transport == "udp" else Protocol.TLS
    return [Target(host, port.number, protocol) for host in hosts]


def _whole_reason(verdict: Verdict) -> str:
    detail = verdict.detail if isinstance(verdict, Deny) else ""
    return "; ".join(text for text in (_with_reason(verdict), verdict.rule, detail) if text)


def _where_the_rules_are(client: str) -> str:
    if is_qube_name(client):
        return f"change the rule in dom0 (qvm-firewall {client} list)"
    return "change the rule in dom0, in the firewall tab of the qube that has this address"


def _with_reason(verdict: Verdict) -> str:
    return f"{verdict.reason.value} ({_IN_WORDS[verdict.reason]})"


def _dns_lines(found: Explained) -> list[str]:
    """Whether the name resolves, and what the client was told of it."""
    lines = []
    if found.query is not None:
        word = "does not resolve" if is_refused(found.query) else "resolves"
        lines.append(f"  dns:     {word}: {_with_reason(found.query)}")
    pins = found.pins
    if pins is None:
        lines.append("  pins:    not known, as no service is running here")
    elif pins:
        told = [f"{pin['name']} = {pin['address']} ({_life(pin['seconds'])})" for pin in pins[:_SHOWN]]
        more = f", and {len(pins) - _SHOWN} more" if len(pins) > _SHOWN else ""
        lines.append(f"  pins:    {', '.join(told)}{more}")
    else:
        lines.append("  pins:    none: the client was told no address for it lately")
    return lines


def _life(seconds: float) -> str:
    return f"for {span(seconds)}" if seconds > 0 else "in use"
