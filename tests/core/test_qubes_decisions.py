"""Decisions with Qubes firewall rules: rule sets and flows, each with its verdict and the reason."""

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruleworlds import draw_address, draw_rule

from proxyfw.core.clients import Member
from proxyfw.core.config import Config
from proxyfw.core.flow import Flow, NameSource, Protocol
from proxyfw.core.hostname import Hostname, normalise
from proxyfw.core.policy import Policy, build
from proxyfw.core.profile import link, parse_profile
from proxyfw.core.qubes_rules import RuleSet, parse_rules
from proxyfw.core.sniffed import Malformed
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict

PROFILES = {
    "web": "domains: [web.example, 'ports.example:22', 'ports.example:123/udp']\n",
    "net": "networks: [203.0.113.0/24, 192.168.7.0/24, 10.137.0.0/16]\n",
    "home": "private: true\ndomains: [nas.example]\n",
}
LIBRARY = link({name: profile for name, text in PROFILES.items() if (profile := parse_profile(name, name, text)[0])})[0]
CLIENT_DNS = (ip_address("10.139.1.1"), ip_address("10.139.1.2"))
UPSTREAM = ((ip_address("198.51.100.53"), 53),)
SOMEWHERE, GRANTED, NEIGHBOUR = "192.0.2.1", "203.0.113.1", "10.137.0.12"
SIX = "2001:db8::1"


def rule_set(text: str, policy: str = "drop") -> RuleSet:
    """One rule a line; the closing policy is the one that Qubes Manager writes where anything is limited."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return parse_rules({"policy": policy, **{f"{place:04}": line for place, line in enumerate(lines)}})


def policy(
    four: str | RuleSet | None,
    six: str | RuleSet | None = None,
    *,
    profiles: str = "web net",
    exact: bool = False,
    observe: bool = False,
    dns_all: bool = False,
    close: str = "drop",
) -> Policy:
    """The client "work" with these rules, and a neighbour without any."""
    given_rules = {4: four, 6: six}
    rules: Mapping[int, RuleSet] = {
        version: rule_set(text, close) if isinstance(text, str) else text
        for version, text in given_rules.items()
        if text is not None
    }
    work = Member(
        "work",
        () if exact else tuple(profiles.split()),
        observe,
        dns_all,
        (ip_address("10.137.0.11"), ip_address("fd09:24ef:4179::a89:b")),
        rules,
        exact,
    )
    neighbour = Member("neighbour", ("web", "net"), addresses=(ip_address(NEIGHBOUR),))
    return build(Config({}), LIBRARY, UPSTREAM, [work, neighbour], CLIENT_DNS)


def flow(text: str) -> Flow:
    """`protocol destination port [name]`; a dash where there is no destination. ICMP: its type in place of a port."""
    protocol, destination, port, *name = text.split()
    source = {"tls": NameSource.SNI, "http": NameSource.HOST}.get(protocol, NameSource.PIN)
    return Flow(
        "work",
        Protocol(protocol),
        None if destination == "-" else ip_address(destination),
        0 if protocol == "icmp" else int(port),
        normalise(name[0]) if name else None,
        source if name else NameSource.NONE,
        icmp_type=int(port) if protocol == "icmp" else None,
    )


def qubes(rule: str, private: bool = False, by_name: bool = False) -> Allow:
    return Allow(Reason.QUBES_RULE, f"qubes {rule}", private=private, by_name=by_name)


def dropped(rule: str) -> Deny:
    return Deny(Reason.QUBES_RULE, f"qubes {rule}")


NET = Allow(Reason.NETWORK, "net: 203.0.113.0/24", "net:1")
WEB = Allow(Reason.DOMAIN, "web: web.example", "web:1", by_name=True)
NO_NAME, NO_MATCH, INTERNAL = Deny(Reason.NO_NAME), Deny(Reason.NO_MATCH), Deny(Reason.INTERNAL_ADDRESS)
RELAY = Allow(Reason.RELAY)

A, B24 = "action=accept dst4=192.0.2.1/32", "action=drop dst4=192.0.2.0/24"
H443 = "action=accept dsthost=h.example proto=tcp dstports=443-443"
ISSUE = f"{A}\n{B24}\n{H443}\naction=drop"


@pytest.mark.parametrize(
    ("rules", "attempt", "verdict"),
    [
        # by address
        pytest.param(A, f"tcp {SOMEWHERE} 22", qubes(f"0000: {A}"), id="an accepted address"),
        pytest.param(A, f"udp {SOMEWHERE} 443", qubes(f"0000: {A}"), id="an accepted address, QUIC"),
        pytest.param(A, f"icmp {SOMEWHERE} 8", qubes(f"0000: {A}"), id="an accepted address, ping"),
        pytest.param(A, f"tls {SOMEWHERE} 443 evil.example", qubes(f"0000: {A}"),
                     id="an accepted address under whatever name"),
        pytest.param("action=drop dst4=203.0.113.0/25", f"tcp {GRANTED} 22",
                     dropped("0000: action=drop dst4=203.0.113.0/25"), id="a drop goes before a profile's network"),
        pytest.param("action=drop dst4=192.0.2.0/24", f"tls {SOMEWHERE} 443 web.example",
                     dropped("0000: action=drop dst4=192.0.2.0/24"), id="and before a profile's domain"),
        pytest.param(ISSUE, f"udp {SOMEWHERE} 9", qubes(f"0000: {A}"), id="the first of two that match: accept"),
        pytest.param(f"{B24}\n{A}", f"udp {SOMEWHERE} 9", dropped(f"0000: {B24}"), id="the other way round: drop"),
        pytest.param(ISSUE, "icmp 192.0.2.2 8", dropped(f"0001: {B24}"), id="the second matches"),
        pytest.param("action=drop proto=udp dstports=80-1024", f"udp {GRANTED} 443",
                     dropped("0000: action=drop proto=udp dstports=80-1024"), id="443 is in 80-1024"),
        pytest.param("action=drop proto=udp dstports=80-1024", f"udp {GRANTED} 1025", NET, id="1025 is not"),
        pytest.param("action=drop dst6=::/0", f"tcp {GRANTED} 22", NET, id="the other family's network"),
        pytest.param("action=accept proto=icmp icmptype=8", f"icmp {SOMEWHERE} 8",
                     qubes("0000: action=accept proto=icmp icmptype=8"), id="a type of ICMP"),
        pytest.param("action=accept proto=icmp icmptype=8", f"icmp {SOMEWHERE} 0", NO_NAME, id="another type"),
        pytest.param("action=drop proto=icmp", f"icmp {GRANTED} 8", dropped("0000: action=drop proto=icmp"),
                     id="every type"),
        pytest.param(A, f"other {SOMEWHERE} 0", qubes(f"0000: {A}"), id="another protocol of IP"),
        pytest.param("action=accept dst4=192.168.1.0/24", "tcp 192.168.1.1 22",
                     qubes("0000: action=accept dst4=192.168.1.0/24"), id="a private address by its network"),
        # the bare rule falls through
        pytest.param("action=drop", f"tcp {GRANTED} 22", NET, id="a bare drop is no match: a network"),
        pytest.param("action=drop", f"tls {SOMEWHERE} 443 web.example", WEB, id="a bare drop: a domain"),
        pytest.param("action=accept", f"tcp {SOMEWHERE} 22", NO_NAME, id="nor is a bare accept: no name"),
        pytest.param("action=accept", f"tls {SOMEWHERE} 443 evil.example", NO_MATCH, id="a bare accept: another name"),
        pytest.param(ISSUE, f"tcp {GRANTED} 22", NET, id="behind rules that do not match"),
        pytest.param("", f"tls {SOMEWHERE} 443 web.example", WEB, id="no rule at all"),
        # by name
        pytest.param(ISSUE, "tls 192.0.9.1 443 h.example", qubes(f"0002: {H443}", by_name=True), id="a host by SNI"),
        pytest.param(ISSUE, "tls 192.0.9.1 444 h.example", NO_MATCH, id="on another port"),
        pytest.param(ISSUE, "tls 192.0.2.9 443 h.example", dropped(f"0001: {B24}"),
                     id="where a drop by address stands before it"),
        pytest.param(ISSUE, "http 192.0.9.1 443 H.Example.", qubes(f"0002: {H443}", by_name=True), id="by Host"),
        pytest.param(ISSUE, "tcp 192.0.9.1 443 h.example", qubes(f"0002: {H443}"), id="by a pin: nothing is dialled"),
        pytest.param(ISSUE, "udp 192.0.9.1 443 h.example", NO_MATCH, id="QUIC: the rule is of TCP"),
        pytest.param(ISSUE, "tls - 443 h.example", qubes(f"0002: {H443}", by_name=True), id="the name alone"),
        pytest.param(ISSUE, "tls 192.0.9.1 443 x.h.example", NO_MATCH, id="a name below"),
        pytest.param("action=drop dsthost=web.example", f"tls {SOMEWHERE} 443 web.example",
                     dropped("0000: action=drop dsthost=web.example"), id="a drop by name, before the profile"),
        pytest.param("action=drop dsthost=web.example proto=tcp dstports=80-80", f"tls {SOMEWHERE} 443 web.example",
                     WEB, id="a drop by name of another port"),
        pytest.param("action=accept dsthost=h.example", f"udp {SOMEWHERE} 443 h.example", NO_MATCH,
                     id="QUIC under a host rule without proto=udp"),
        pytest.param("action=accept dsthost=h.example proto=udp", f"udp {SOMEWHERE} 443 h.example",
                     qubes("0000: action=accept dsthost=h.example proto=udp"), id="QUIC where the rule says UDP"),
        pytest.param("action=accept dsthost=h.example", f"udp {SOMEWHERE} 444 h.example",
                     qubes("0000: action=accept dsthost=h.example"), id="other UDP, by a pin"),
        pytest.param("action=drop dsthost=h.example\naction=accept proto=udp", f"udp {SOMEWHERE} 443 h.example",
                     dropped("0000: action=drop dsthost=h.example"), id="a drop by name is of QUIC too, by a pin"),
        pytest.param("action=accept dsthost=h.example", f"icmp {SOMEWHERE} 8 h.example",
                     qubes("0000: action=accept dsthost=h.example"), id="ping, by a pin"),
        pytest.param("action=accept dsthost=h.example", "tcp 192.168.1.1 22 h.example", NO_MATCH,
                     id="a pin at a private address"),
        pytest.param("action=drop dsthost=h.example", "tcp 192.168.7.1 22 h.example",
                     dropped("0000: action=drop dsthost=h.example"), id="a drop holds at a private address too"),
        pytest.param("action=accept dsthost=192.0.2.1", f"tls {SOMEWHERE} 443 evil.example",
                     qubes("0000: action=accept dsthost=192.0.2.1"), id="an address in place of a host"),
        # DNS goes to the relay, where no rule drops it
        pytest.param("action=drop", "udp 10.139.1.1 53", RELAY, id="DNS with nothing but a bare drop"),
        pytest.param("action=accept specialtarget=dns", "udp 10.139.1.1 53", RELAY, id="DNS that is accepted"),
        pytest.param("action=drop specialtarget=dns", "udp 10.139.1.1 53",
                     dropped("0000: action=drop specialtarget=dns"), id="DNS that is dropped"),
        pytest.param("action=drop specialtarget=dns", "tcp 198.51.100.53 53",
                     dropped("0000: action=drop specialtarget=dns"), id="the netvm's resolver, dropped"),
        pytest.param("action=drop specialtarget=dns", f"udp {SOMEWHERE} 53", RELAY,
                     id="to another resolver: the relay takes it"),
        pytest.param("action=drop dst4=192.0.2.0/24", f"udp {SOMEWHERE} 53",
                     dropped("0000: action=drop dst4=192.0.2.0/24"), id="to a resolver that is dropped"),
        pytest.param("action=drop dsthost=web.example", f"udp {SOMEWHERE} 53 web.example", RELAY,
                     id="names play no part in it"),
        pytest.param("action=accept dst4=192.0.2.1", f"tls {SOMEWHERE} 53 h.example", RELAY,
                     id="an accepted address: DNS still goes to the relay"),
        # rule 1
        pytest.param("action=accept dst4=10.0.0.0/8", f"tcp {NEIGHBOUR} 22", INTERNAL,
                     id="a neighbour that a network merely includes"),
        pytest.param(f"action=accept dst4={NEIGHBOUR}/32", f"tcp {NEIGHBOUR} 22",
                     qubes(f"0000: action=accept dst4={NEIGHBOUR}/32"), id="a neighbour that a rule names"),
        pytest.param(f"action=accept dsthost={NEIGHBOUR} proto=tcp dstports=22-22", f"tcp {NEIGHBOUR} 23", INTERNAL,
                     id="another port of it"),
        pytest.param(f"action=drop dst4={NEIGHBOUR}/32", f"tcp {NEIGHBOUR} 22", INTERNAL,
                     id="a drop names nobody: refused as ever"),
        pytest.param(f"action=drop proto=udp\naction=accept dst4={NEIGHBOUR}/32", f"udp {NEIGHBOUR} 22",
                     dropped("0000: action=drop proto=udp"), id="a drop before the rule that names it"),
        pytest.param(f"action=accept dst4=10.0.0.0/8 proto=udp\naction=accept dst4={NEIGHBOUR}/32 proto=tcp",
                     f"udp {NEIGHBOUR} 22", INTERNAL, id="named for TCP, and merely included for UDP"),
        pytest.param(f"action=accept proto=udp\naction=accept dst4={NEIGHBOUR}/32 proto=tcp", f"udp {NEIGHBOUR} 22",
                     INTERNAL, id="the same without any network"),
        pytest.param(f"action=accept dst4=10.0.0.0/8\naction=drop dst4=10.137.0.0/16\n"
                     f"action=accept dst4={NEIGHBOUR}/32", f"tcp {NEIGHBOUR} 22",
                     dropped("0001: action=drop dst4=10.137.0.0/16"), id="what includes it hides no drop"),
        pytest.param(f"action=accept dst4=10.0.0.0/8\naction=accept dst4={NEIGHBOUR}/32", f"tcp {NEIGHBOUR} 22",
                     qubes(f"0001: action=accept dst4={NEIGHBOUR}/32"), id="the rule that names it is what counts"),
        pytest.param(f"action=accept dsthost=h.example\naction=accept dst4={NEIGHBOUR}/32 proto=tcp dstports=22-22",
                     f"tls {NEIGHBOUR} 443 h.example", INTERNAL, id="named on a port, and under an accepted name"),
        pytest.param(f"action=drop dsthost=h.example\naction=accept dst4={NEIGHBOUR}/32",
                     f"tls {NEIGHBOUR} 443 h.example", dropped("0000: action=drop dsthost=h.example"),
                     id="named, and under a dropped name"),
        pytest.param("action=accept dst4=192.168.1.1/32 proto=tcp\naction=accept dst4=192.168.0.0/16",
                     "udp 192.168.1.1 22", qubes("0001: action=accept dst4=192.168.0.0/16"),
                     id="a single address that is not internal: all rules count"),
        pytest.param("action=accept dst4=169.254.169.254/32", "tcp 169.254.169.254 80",
                     qubes("0000: action=accept dst4=169.254.169.254/32"), id="link-local that a rule names"),
        pytest.param("action=accept dst4=0.0.0.0/0", "tcp 127.0.0.1 80", INTERNAL, id="loopback in every address"),
        pytest.param("action=accept dsthost=h.example", f"tls {NEIGHBOUR} 443 h.example", INTERNAL,
                     id="a neighbour under a name that is accepted"),
        pytest.param("action=accept dsthost=h.example", f"udp {NEIGHBOUR} 444 h.example", INTERNAL,
                     id="a neighbour that the name is pinned to"),
    ],
)  # fmt: skip
def test_the_verdict_on_a_listed_client(rules: str, attempt: str, verdict: Verdict) -> None:
    assert policy(rules).decide(flow(attempt)) == verdict


@pytest.mark.parametrize(
    ("four", "six", "attempt", "verdict"),
    [
        pytest.param("action=drop proto=tcp", "action=accept proto=tcp", f"tcp {SIX} 22",
                     qubes("0000: action=accept proto=tcp"), id="IPv6 by its own rules"),
        pytest.param("action=drop proto=tcp", "action=accept proto=tcp", f"tcp {GRANTED} 22",
                     dropped("0000: action=drop proto=tcp"), id="IPv4 by its own"),
        pytest.param("action=drop proto=tcp", None, f"tcp {SIX} 22",
                     Deny(Reason.QUBES_RULE, detail="no IPv6 firewall rules are known"), id="no rules for IPv6"),
        pytest.param(None, "action=accept proto=icmp icmptype=128", f"icmp {SIX} 128",
                     qubes("0000: action=accept proto=icmp icmptype=128"), id="a type of ICMPv6"),
        pytest.param(parse_rules({}), "action=accept proto=tcp", f"tcp {GRANTED} 22",
                     Deny(Reason.QUBES_RULE, detail="there is no policy"), id="broken rules of IPv4 close IPv4"),
        pytest.param(parse_rules({}), "action=accept proto=tcp", f"tcp {SIX} 22",
                     qubes("0000: action=accept proto=tcp"), id="and not IPv6"),
        pytest.param(parse_rules({}), None, "udp 10.139.1.1 53", Deny(Reason.QUBES_RULE, detail="there is no policy"),
                     id="broken rules close DNS"),
        pytest.param(parse_rules({}), None, f"tcp {NEIGHBOUR} 22", Deny(Reason.QUBES_RULE, detail="there is no policy"),
                     id="and say so whatever the address"),
    ],
)  # fmt: skip
def test_each_family_is_judged_by_its_own_rules(
    four: str | RuleSet | None, six: str | RuleSet | None, attempt: str, verdict: Verdict
) -> None:
    assert policy(four, six).decide(flow(attempt)) == verdict


def test_broken_rules_touch_no_other_client() -> None:
    with_it = policy(parse_rules({"policy": "accept", "0000": "action=drop dst4=bad"}))
    attempts = [f"tcp {GRANTED} 22", f"tls {SOMEWHERE} 443 web.example", f"tcp {SOMEWHERE} 22", "udp 10.139.1.1 53"]
    for each in map(flow, attempts):
        assert with_it.decide(each).reason is Reason.QUBES_RULE
    others = [with_it.decide(flow(each)._replace(client="neighbour")) for each in attempts]
    assert others == [NET, WEB, NO_NAME, RELAY]


BROKEN = Malformed("two names", Reason.AMBIGUOUS)


@pytest.mark.parametrize(
    ("rules", "port", "verdict"),
    [
        pytest.param("action=drop dsthost=h.example", 443, "it may name this host: two names", id="a drop by name"),
        pytest.param("action=drop dsthost=h.example proto=tcp dstports=80-80", 443, BROKEN, id="of another port"),
        pytest.param("action=drop dsthost=h.example proto=udp", 443, BROKEN, id="of another protocol"),
        pytest.param("action=accept dsthost=h.example", 443, BROKEN, id="an accept by name grants it nothing"),
        pytest.param(f"{A}\naction=drop dsthost=h.example", 443, qubes(f"0000: {A}"),
                     id="an accept by address before it"),
        pytest.param(f"action=drop dsthost=h.example\n{A}", 443, "it may name this host: two names",
                     id="an accept by address behind it"),
        pytest.param(f"action=accept dsthost=h.example\n{A}", 443, qubes(f"0001: {A}"),
                     id="an accept by address behind an accept by name"),
    ],
)  # fmt: skip
def test_a_hello_that_cannot_be_judged(rules: str, port: int, verdict: str | Malformed | Verdict) -> None:
    found = policy(rules).decide(flow(f"tls {SOMEWHERE} {port}")._replace(broken=BROKEN))
    if isinstance(verdict, str):
        assert found == Deny(Reason.QUBES_RULE, f"qubes 0000: {rules.splitlines()[0]}", verdict)
    elif isinstance(verdict, Malformed):
        assert found == Deny(verdict.reason, detail=verdict.detail)
    else:
        assert found == verdict


@pytest.mark.parametrize(
    ("rules", "attempt", "verdict"),
    [
        pytest.param("action=drop proto=udp", f"udp {SOMEWHERE} 444", dropped("0000: action=drop proto=udp"),
                     id="a drop by address holds"),
        pytest.param("action=drop dsthost=h.example", f"tls {SOMEWHERE} 443 h.example",
                     dropped("0000: action=drop dsthost=h.example"), id="a drop by name holds"),
        pytest.param("action=drop dsthost=h.example", f"tls {SOMEWHERE} 443 z.example",
                     Deny(Reason.NO_MATCH, observed=True), id="what no rule drops is let through"),
        pytest.param("action=drop", f"udp {SOMEWHERE} 444", Deny(Reason.NO_NAME, observed=True),
                     id="a bare drop is no rule"),
        pytest.param("action=accept dst4=10.0.0.0/8", f"tcp {NEIGHBOUR} 22", INTERNAL, id="a neighbour is not reached"),
        pytest.param(parse_rules({}), f"tcp {SOMEWHERE} 22", Deny(Reason.QUBES_RULE, detail="there is no policy"),
                     id="broken rules hold"),
    ],
)  # fmt: skip
def test_observe_mode_lifts_no_drop_of_the_qubes_firewall(rules: str | RuleSet, attempt: str, verdict: Verdict) -> None:
    assert policy(rules, observe=True).decide(flow(attempt)) == verdict


# Several names are pinned to one address: it is the order of the rules that counts.


def names(text: str) -> list[Hostname]:
    return [normalise(name) for name in text.split()]


@pytest.mark.parametrize(
    ("rules", "pinned", "name", "verdict"),
    [
        pytest.param("action=accept dsthost=a.example\naction=drop dsthost=b.example", "b.example a.example",
                     "a.example", qubes("0000: action=accept dsthost=a.example"), id="the accept stands first"),
        pytest.param("action=drop dsthost=b.example\naction=accept dsthost=a.example", "a.example b.example",
                     "b.example", dropped("0000: action=drop dsthost=b.example"), id="the drop stands first"),
        pytest.param("action=drop dsthost=b.example", "ports.example b.example", "b.example",
                     dropped("0000: action=drop dsthost=b.example"), id="a drop goes before a pattern with a port"),
        pytest.param("action=accept dsthost=z.example", "b.example ports.example", "ports.example",
                     Allow(Reason.PIN, "web: ports.example:22", "web:1"), id="no rule: the pattern with a port"),
        pytest.param("action=accept dsthost=z.example", "b.example a.example", "b.example", NO_MATCH,
                     id="nothing grants it: the latest is told"),
        pytest.param("action=drop dst4=192.0.2.0/24", "b.example ports.example", "b.example",
                     dropped("0000: action=drop dst4=192.0.2.0/24"), id="a drop by address"),
        pytest.param("action=accept dsthost=a.example", "", None, NO_NAME, id="nothing is pinned"),
    ],
)  # fmt: skip
def test_several_pinned_names(rules: str, pinned: str, name: str | None, verdict: Verdict) -> None:
    attempt = flow(f"tcp {SOMEWHERE} 22")
    told, found = policy(rules).decide_pinned(attempt, names(pinned))
    assert (told.name, found) == (name, verdict)
    assert told.name_source is (NameSource.PIN if name else NameSource.NONE)


# Names: what resolves, and where a grant by name may lead.


@pytest.mark.parametrize(
    ("rules", "name", "verdict"),
    [
        pytest.param("action=accept dsthost=h.example", "h.example", qubes("0000: action=accept dsthost=h.example"),
                     id="a host that is accepted"),
        pytest.param(H443, "h.example", qubes(f"0000: {H443}"), id="a host that is accepted on one port"),
        pytest.param("action=drop dsthost=web.example", "web.example",
                     dropped("0000: action=drop dsthost=web.example"), id="a host that is dropped, though granted"),
        pytest.param("action=drop dsthost=web.example proto=tcp dstports=80-80", "web.example",
                     Allow(Reason.DOMAIN, "web: web.example", "web:1"), id="a drop of one port leaves the grant"),
        pytest.param(f"{H443}\naction=drop dsthost=h.example", "h.example", qubes(f"0000: {H443}"),
                     id="accepted on a port, the rest dropped"),
        pytest.param(f"action=drop dsthost=h.example\n{H443}", "h.example",
                     dropped("0000: action=drop dsthost=h.example"), id="dropped first"),
        pytest.param("action=drop dst4=0.0.0.0/0", "web.example", Allow(Reason.DOMAIN, "web: web.example", "web:1"),
                     id="addresses play no part"),
        pytest.param("action=accept", "z.example", NO_MATCH, id="a bare accept grants no name"),
        pytest.param("action=accept dsthost=use-application-dns.net", "use-application-dns.net", Deny(Reason.CANARY),
                     id="a canary, though a rule accepts it"),
    ],
)  # fmt: skip
def test_which_names_resolve(rules: str, name: str, verdict: Verdict) -> None:
    asked = Flow("work", Protocol.DNS, None, 53, normalise(name), NameSource.DNS)
    assert policy(rules).decide(asked) == verdict
    assert policy(rules).may_resolve("work", normalise(name)) == isinstance(verdict, Allow)


def test_a_name_that_one_family_accepts_resolves() -> None:
    both = policy("action=drop dsthost=h.example", "action=accept dsthost=h.example")
    assert both.may_resolve("work", Hostname("h.example"))
    neither = policy("action=drop dsthost=h.example", "action=drop dsthost=h.example")
    assert not neither.may_resolve("work", Hostname("h.example"))


@pytest.mark.parametrize(
    ("rules", "attempt", "addresses", "reached"),
    [
        pytest.param("", "tls - 443 web.example", "192.0.2.1 192.0.9.1", "192.0.2.1 192.0.9.1", id="no rule"),
        pytest.param("action=drop dst4=192.0.2.0/24", "tls - 443 web.example", "192.0.2.1 192.0.9.1", "192.0.9.1",
                     id="what a rule drops is not dialled"),
        pytest.param("action=drop dst4=192.0.2.0/24 proto=udp", "tls - 443 web.example", "192.0.2.1", "192.0.2.1",
                     id="a drop of another protocol"),
        pytest.param("action=drop dst4=192.0.2.0/24 proto=tcp dstports=80-80", "tls - 443 web.example", "192.0.2.1",
                     "192.0.2.1", id="a drop of another port"),
        pytest.param("action=drop dst4=192.0.2.0/24\naction=accept dsthost=h.example", "tls - 443 h.example",
                     "192.0.2.1 192.0.9.1", "192.0.9.1", id="a host rule behind the drop"),
        pytest.param("action=accept dsthost=h.example\naction=drop dst4=192.0.2.0/24", "tls - 443 h.example",
                     "192.0.2.1 192.0.9.1", "192.0.2.1 192.0.9.1", id="a host rule before the drop"),
        pytest.param("action=accept dsthost=h.example", "tls - 443 h.example",
                     f"192.168.1.1 10.137.0.99 {NEIGHBOUR} 127.0.0.1 ::1 192.0.2.1", "192.0.2.1",
                     id="a host rule leads to nothing private"),
        pytest.param("action=accept dsthost=h.example", "tls - 443 h.example", f"192.0.2.1 {SIX}", "192.0.2.1",
                     id="nor to a family without rules"),
        pytest.param("", "tls - 443 web.example", f"{SIX} 192.0.2.1", "192.0.2.1",
                     id="nor does a profile's grant"),
    ],
)  # fmt: skip
def test_where_a_grant_by_name_leads(rules: str, attempt: str, addresses: str, reached: str) -> None:
    own = policy(rules)
    asked = flow(attempt)
    grant = own.decide(asked)
    assert isinstance(grant, Allow)
    assert own.reachable(asked, grant, map(ip_address, addresses.split())) == tuple(map(ip_address, reached.split()))


def test_a_family_without_rules_is_reached_where_the_client_has_none_at_all() -> None:
    asked, addresses = flow("tls - 443 web.example"), (ip_address(SIX), ip_address("192.0.2.1"))
    outside_qubes = policy(None)
    assert outside_qubes.reachable(asked, WEB, addresses) == addresses
    assert policy("", "").reachable(asked, WEB, addresses) == addresses
    assert policy(None, "action=accept dsthost=z.example").reachable(asked, WEB, addresses) == addresses[:1]


def test_a_name_that_only_the_other_familys_rules_accept_leads_nowhere_there() -> None:
    own, asked = policy("action=accept dsthost=h.example", "action=drop proto=icmp"), flow("tls - 443 h.example")
    grant = own.decide(asked)
    assert isinstance(grant, Allow)
    assert own.reachable(asked, grant, [ip_address(SIX)]) == ()


# unlisted: qubes: exactly what sys-firewall would do.

CLOSING_ACCEPT = Allow(Reason.QUBES_RULE, "qubes: the closing accept")
CLOSING_DROP = Deny(Reason.QUBES_RULE, "qubes: the closing drop")


@pytest.mark.parametrize(
    ("rules", "attempt", "verdict"),
    [
        pytest.param("action=accept", f"tcp {SOMEWHERE} 22", CLOSING_ACCEPT, id="the closing accept counts"),
        pytest.param("action=accept", f"udp {SOMEWHERE} 443", CLOSING_ACCEPT, id="for QUIC"),
        pytest.param("action=accept", f"icmp {SOMEWHERE} 8", CLOSING_ACCEPT, id="for ping"),
        pytest.param("action=accept", "tcp 192.168.1.1 22", CLOSING_ACCEPT, id="for private addresses"),
        pytest.param("action=accept", f"tls {SOMEWHERE} 443 evil.example", CLOSING_ACCEPT, id="whatever the name"),
        pytest.param("action=accept", f"tcp {NEIGHBOUR} 22", INTERNAL, id="a neighbour is not reached"),
        pytest.param("action=accept dst4=0.0.0.0/0", f"tcp {NEIGHBOUR} 22", INTERNAL, id="nor by every address"),
        pytest.param(f"action=accept dst4={NEIGHBOUR}/32", f"tcp {NEIGHBOUR} 22",
                     qubes(f"0000: action=accept dst4={NEIGHBOUR}/32", private=True), id="unless a rule names it"),
        pytest.param("action=drop", f"tcp {SOMEWHERE} 22", CLOSING_DROP, id="the closing drop counts"),
        pytest.param("action=drop", f"tls {SOMEWHERE} 443 web.example", CLOSING_DROP, id="no profile grants a name"),
        pytest.param("action=drop", f"tcp {GRANTED} 22", CLOSING_DROP, id="nor an address"),
        pytest.param(ISSUE, "tls 192.0.9.1 443 h.example", qubes(f"0002: {H443}", private=True, by_name=True),
                     id="a host"),
        pytest.param(ISSUE, "tcp 192.0.9.1 443 h.example", qubes(f"0002: {H443}", private=True), id="a host by a pin"),
        pytest.param("action=accept dsthost=h.example", "tcp 192.168.1.1 22 h.example",
                     qubes("0000: action=accept dsthost=h.example", private=True), id="a host at a private address"),
        # DNS
        pytest.param("action=accept", "udp 10.139.1.1 53", CLOSING_ACCEPT,
                     id="no rule asks for a name: DNS passes by the netvm's own way"),
        pytest.param("action=drop", "udp 10.139.1.1 53", CLOSING_DROP, id="DNS is refused like anything else"),
        pytest.param("action=accept specialtarget=dns", "udp 10.139.1.2 53",
                     qubes("0000: action=accept specialtarget=dns", private=True), id="DNS that a rule accepts"),
        pytest.param("action=accept specialtarget=dns\naction=drop dsthost=h.example", "udp 10.139.1.1 53", RELAY,
                     id="a rule asks for a name: through the relay, which pins"),
        pytest.param("action=drop specialtarget=dns\naction=accept", "udp 10.139.1.1 53",
                     dropped("0000: action=drop specialtarget=dns"), id="DNS that a rule drops"),
        pytest.param("action=accept", f"udp {SOMEWHERE} 53", CLOSING_ACCEPT,
                     id="another resolver, as sys-firewall lets it"),
        pytest.param("action=accept specialtarget=dns", f"udp {SOMEWHERE} 53", CLOSING_DROP,
                     id="another resolver is none of specialtarget=dns"),
    ],
)  # fmt: skip
def test_the_verdict_on_a_client_that_is_not_listed(rules: str, attempt: str, verdict: Verdict) -> None:
    assert policy(rules, exact=True).decide(flow(attempt)) == verdict


def test_a_client_that_is_not_listed_and_has_no_rules_reaches_nothing() -> None:
    unknown = Deny(Reason.QUBES_RULE, detail="no IPv4 firewall rules are known")
    only_six = policy(None, "action=accept", exact=True)
    assert only_six.decide(flow(f"tcp {SOMEWHERE} 22")) == unknown
    assert only_six.decide(flow("udp 10.139.1.1 53")) == unknown
    assert only_six.decide(flow(f"tcp {SIX} 22")) == CLOSING_ACCEPT


@pytest.mark.parametrize(
    ("rules", "name", "resolves"),
    [
        pytest.param("action=drop", "z.example", True, id="names are not judged: that is of its packets"),
        pytest.param("action=drop", "use-application-dns.net", True, id="nor does proxyfw tell it anything"),
        pytest.param("action=accept dsthost=h.example", "h.example", True, id="an accepted host"),
        pytest.param("action=drop dsthost=h.example", "h.example", False, id="a dropped host"),
    ],
)
def test_which_names_resolve_for_a_client_that_is_not_listed(rules: str, name: str, resolves: bool) -> None:
    assert policy(rules, exact=True).may_resolve("work", normalise(name)) == resolves


def sys_firewall(texts: list[str], closing: str, attempt: Flow) -> str:
    """What Qubes' own agent does with a packet that is not DNS, told from the texts alone; host names are left out.

    NftablesWorker.prepare_rules, qubes-core-agent-linux, qubesagent/firewall.py: a line for each rule, in order; ports
    without a protocol are of TCP and UDP; what matches nothing meets the policy.
    """
    destination = attempt.destination
    assert destination is not None
    for text in texts:
        asked = dict(word.split("=") for word in text.partition(" comment=")[0].split())
        network = asked.get(f"dst{destination.version}")
        first, last = map(int, asked.get("dstports", "0-65535").split("-"))
        if (
            (f"dst{10 - destination.version}" in asked)
            or "specialtarget" in asked
            or (network is not None and destination not in ip_network(network))
            or asked.get("proto", attempt.protocol) != attempt.protocol
            or ("dstports" in asked and not (attempt.protocol in ("tcp", "udp") and first <= attempt.port <= last))
            or ("icmptype" in asked and int(asked["icmptype"]) != attempt.icmp_type)
        ):
            continue
        return asked["action"]
    return closing


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32))
def test_a_client_that_is_not_listed_gets_what_sys_firewall_gives(seed: int) -> None:
    random = Random(seed)
    version = random.choice((4, 6))
    texts = [draw_rule(random, version, ("net", "net", "any", "dns")) for _ in range(random.randint(0, 6))]
    texts = [text for text in texts if "a=b" not in text]
    closing = random.choice(("accept", "drop"))
    rules = parse_rules({"policy": closing, **{f"{place:04}": text for place, text in enumerate(texts)}})
    assert not rules.broken
    own = policy(rules if version == 4 else None, rules if version == 6 else None, exact=True)
    for _ in range(8):
        protocol = random.choice((Protocol.TCP, Protocol.UDP, Protocol.ICMP))
        attempt = Flow("work", protocol, draw_address(random, version), random.choice((1, 22, 80, 443, 1000, 1001)))
        if protocol is Protocol.ICMP:
            attempt = attempt._replace(port=0, icmp_type=random.choice((0, 3, 8, 128)))
        verdict = own.decide(attempt)
        if attempt.destination is None or own.is_internal(attempt.destination):
            continue  # rule 1 goes further than sys-firewall does
        wanted = sys_firewall(texts, closing, attempt)
        assert isinstance(verdict, Allow) == (wanted == "accept"), (texts, closing, attempt, verdict)


# What is dialled where the client aimed: what it says of its host does not hide what it was told of the address.

B = "action=drop dsthost=b.example"


@pytest.mark.parametrize(
    ("rules", "attempt", "dropped_by"),
    [
        pytest.param(f"{B}\n{A}", f"tls {SOMEWHERE} 443 z.example", f"0000: {B}", id="a lie about the host"),
        pytest.param(f"{B}\n{A}", f"http {SOMEWHERE} 80 z.example", f"0000: {B}", id="the same in HTTP"),
        pytest.param(f"{B}\n{A}", f"tcp {SOMEWHERE} 22", f"0000: {B}", id="nothing said at all"),
        pytest.param(B, "tls 203.0.113.9 443 z.example", f"0000: {B}", id="where a network would grant the address"),
        pytest.param(B, f"tls {SOMEWHERE} 443 web.example", f"0000: {B}", id="a granted name is a word as well"),
        pytest.param(f"action=accept dsthost=z.example\n{B}", f"tls {SOMEWHERE} 443 z.example", f"0001: {B}",
                     id="and so is one that a rule before it accepts"),
        pytest.param(f"{A}\n{B}", f"tls {SOMEWHERE} 443 z.example", None, id="the address is accepted before it"),
        pytest.param(f"action=drop dsthost=c.example\n{A}", f"tls {SOMEWHERE} 443 z.example", None,
                     id="another name is dropped"),
        pytest.param(f"{B} proto=tcp dstports=25-25\n{A}", f"tls {SOMEWHERE} 443 z.example", None,
                     id="another port is dropped"),
        pytest.param("", f"tls {SOMEWHERE} 443 z.example", None, id="no rule"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("observe", [False, True], ids=["enforced", "observed"])
def test_a_drop_of_a_name_holds_for_the_addresses_that_the_client_was_told_for_it(
    rules: str, attempt: str, dropped_by: str | None, observe: bool
) -> None:
    own, told = policy(rules, observe=observe), [normalise("b.example")]
    wanted = dropped(dropped_by) if dropped_by else None
    assert own.dropped_as_aimed(flow(attempt), told) == wanted
    assert own.dropped_as_aimed(flow(attempt), [normalise("other.example"), *told]) == wanted


def test_where_the_client_was_told_the_accepted_name_as_well_the_order_of_the_rules_counts() -> None:
    attempt, told = flow(f"tls {SOMEWHERE} 443 z.example"), [normalise("b.example"), normalise("z.example")]
    z = "action=accept dsthost=z.example"
    assert policy(f"{z}\n{B}").dropped_as_aimed(attempt, told) is None
    assert policy(f"{B}\n{z}").dropped_as_aimed(attempt, told) == dropped(f"0000: {B}")


def test_nothing_is_dropped_where_the_client_was_told_nothing() -> None:
    assert policy(f"{B}\n{A}").dropped_as_aimed(flow(f"tls {SOMEWHERE} 443 z.example"), []) is None


@pytest.mark.parametrize(
    ("rules", "attempt", "addresses", "reason"),
    [
        pytest.param("action=drop dst4=192.0.2.0/24", "tls - 443 web.example", "192.168.1.1 192.0.2.1 192.0.2.2",
                     dropped("0000: action=drop dst4=192.0.2.0/24"), id="a rule dropped those that the grant reaches"),
        pytest.param("", "tls - 443 web.example", "192.168.1.1 10.0.0.1",
                     Deny(Reason.PRIVATE_ADDRESS, "web: web.example", "it has only 192.168.1.1, 10.0.0.1"),
                     id="the grant reaches none"),
        pytest.param("action=drop dst4=192.168.0.0/16", "tls - 443 web.example", "192.168.1.1",
                     Deny(Reason.PRIVATE_ADDRESS, "web: web.example", "it has only 192.168.1.1"),
                     id="nor would it without the rule"),
        pytest.param("", "tls - 443 web.example", SIX,
                     Deny(Reason.QUBES_RULE, detail="no IPv6 firewall rules are known"),
                     id="a family that the client has no rules for"),
    ],
)  # fmt: skip
def test_why_no_address_of_a_name_is_reached(rules: str, attempt: str, addresses: str, reason: Deny) -> None:
    own, asked, found = policy(rules), flow(attempt), tuple(map(ip_address, addresses.split()))
    grant = own.decide(asked)
    assert isinstance(grant, Allow)
    assert own.reachable(asked, grant, found) == ()
    assert own.unreached(asked, grant, found) == reason
