"""The decision, in the order of the design: internal addresses, networks by address, domains by name, refusal."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.addresslist import AddressList
from proxyfw.core.config import check_profiles, parse_config
from proxyfw.core.hostname import Hostname, normalise
from proxyfw.core.policy import Flow, NameSource, Policy, Protocol, build, is_quic
from proxyfw.core.policychange import addresses, changed, same
from proxyfw.core.profile import link, parse_profile
from proxyfw.core.sniffed import Malformed
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict, is_refused

CONFIG = """\
clients:
  work:
    profiles: [github, pypi, lab]
    address: [10.137.0.11, "fd09:24ef:4179::a89:b"]
  study:
    profiles: [github]
    mode: observe
    address: 10.137.0.12
  idle:
    profiles: []
    address: 172.16.3.4
dns: {upstream: [10.139.1.1, "192.0.2.53", "192.0.2.54:5353"]}
"""

PROFILES = {
    "github": """\
domains:
  - github.com
  - "*.github.com"
  - ssh.github.com:22
  - "stun.github.com:3478/udp"
networks:
  - "140.82.112.0/20:22"
  - 10.137.0.0/16
  - 127.0.0.0/8
  - "203.0.113.0/24:123/udp"
include: [fastly]
""",
    "fastly": 'domains: [.fastly.net]\nnetworks: ["151.101.0.0/16"]\n',
    "pypi": "domains: [pypi.org]\n",
    "lab": 'domains: ["*.lab.example"]\nnetworks: ["172.16.0.0/12", "2001:db8::/32"]\nprivate: true\n',
}


def policy(config: str = CONFIG, profiles: dict[str, str] = PROFILES) -> Policy:
    """The policy of these texts, as a user would write them, with the mistakes a test must not have."""
    parsed, problems = parse_config("proxyfw.yaml", config)
    assert parsed is not None, problems
    found = {}
    for name, text in profiles.items():
        profile, problems = parse_profile(name, f"{name}.yaml", text)
        assert profile is not None, problems
        found[name] = profile
    library, problems = link(found)
    assert problems == check_profiles(parsed, found) == []
    return build(parsed, library, upstream=((ip_address("198.51.100.53"), 53),))


POLICY = policy()


def flow(client: str, protocol: str, destination: str | None, port: int, name: str | None = None) -> Flow:
    address = ip_address(destination) if destination else None
    source = NameSource.NONE if name is None else NameSource.HOST if protocol == "http" else NameSource.SNI
    return Flow(client, Protocol(protocol), address, port, normalise(name) if name else None, source)


def domain(granted: str, private: bool = False, by_name: bool = True) -> Allow:
    """`granted`: the rule, and in brackets where it stands."""
    rule, _, where = granted.removesuffix(")").partition(" (")
    return Allow(Reason.DOMAIN, rule, where, private, by_name)


def network(granted: str) -> Allow:
    rule, _, where = granted.removesuffix(")").partition(" (")
    return Allow(Reason.NETWORK, rule, where)


GITHUB = domain("github: github.com (github.yaml:2)")
BELOW_GITHUB = domain("github: *.github.com (github.yaml:3)")
INTERNAL = Deny(Reason.INTERNAL_ADDRESS)
SOMEWHERE = "198.51.100.1"


@pytest.mark.parametrize(
    ("attempt", "verdict"),
    [
        # the client
        pytest.param(flow("nobody", "tls", SOMEWHERE, 443, "github.com"), Deny(Reason.UNKNOWN_CLIENT),
                     id="an unknown client may do nothing"),
        pytest.param(flow("nobody", "udp", "10.139.1.1", 53), Deny(Reason.UNKNOWN_CLIENT), id="not even ask the DNS"),
        pytest.param(flow("idle", "tls", SOMEWHERE, 443, "github.com"), Deny(Reason.NO_MATCH),
                     id="a client without profiles reaches no name"),
        # DNS: the relay takes it, and decides by the name asked
        pytest.param(flow("idle", "udp", "10.139.1.1", 53), Allow(Reason.RELAY), id="DNS over UDP"),
        pytest.param(flow("idle", "tcp", "192.0.2.53", 53), Allow(Reason.RELAY),
                     id="DNS over TCP, to whatever resolver"),
        pytest.param(flow("idle", "udp", "10.139.1.1", 54), INTERNAL, id="another port of a resolver"),
        pytest.param(flow("idle", "icmp", "10.139.1.1", 53), INTERNAL, id="another protocol to a resolver"),
        pytest.param(flow("idle", "udp", "192.0.2.54", 5353), Deny(Reason.NO_NAME),
                     id="a resolver on another port is not for clients"),
        pytest.param(flow("idle", "tls", "192.0.2.53", 853, "dns.example"), Deny(Reason.NO_MATCH),
                     id="DNS over TLS gets no special grant"),
        # internal addresses: nothing grants them
        pytest.param(flow("work", "tcp", "127.0.0.1", 22), INTERNAL, id="loopback, though a network grants it"),
        pytest.param(flow("work", "tcp", "10.137.0.99", 22), INTERNAL, id="a Qubes address, though granted"),
        pytest.param(flow("work", "tls", "10.137.0.12", 443, "github.com"), INTERNAL,
                     id="another client under a permitted name"),
        pytest.param(flow("work", "tcp", "172.16.3.4", 22), INTERNAL,
                     id="another client outside the Qubes ranges, though a network grants it"),
        pytest.param(flow("work", "tls", "169.254.169.254", 443, "github.com"), INTERNAL,
                     id="link-local under a permitted name"),
        pytest.param(flow("work", "tls", "::ffff:140.82.112.3", 443, "github.com"), INTERNAL,
                     id="an IPv4 address in IPv6"),
        # networks, by address
        pytest.param(flow("work", "tcp", "140.82.112.3", 22), network("github: 140.82.112.0/20:22 (github.yaml:7)"),
                     id="a network with a port"),
        pytest.param(flow("work", "tcp", "140.82.112.3", 23), Deny(Reason.NO_NAME), id="another port of the network"),
        pytest.param(flow("work", "udp", "140.82.112.3", 22), Deny(Reason.NO_NAME), id="the same port over UDP"),
        pytest.param(flow("work", "udp", "203.0.113.5", 123),
                     network("github: 203.0.113.0/24:123/udp (github.yaml:10)"), id="a network over UDP"),
        pytest.param(flow("work", "icmp", "151.101.1.1", 0), network("fastly: 151.101.0.0/16 (fastly.yaml:2)"),
                     id="ping to a network of an included profile"),
        pytest.param(flow("work", "tls", "151.101.1.1", 443, "evil.example"),
                     network("fastly: 151.101.0.0/16 (fastly.yaml:2)"),
                     id="a network goes before the name, whatever the name"),
        pytest.param(flow("work", "tls", "151.101.1.1", 443, "github.com"),
                     network("fastly: 151.101.0.0/16 (fastly.yaml:2)"), id="and before the domain that grants it too"),
        pytest.param(flow("work", "tcp", "172.16.0.9", 22), network("lab: 172.16.0.0/12 (lab.yaml:2)"),
                     id="a private network that is granted"),
        pytest.param(flow("work", "tcp", "2001:db8::7", 22), network("lab: 2001:db8::/32 (lab.yaml:2)"), id="IPv6"),
        pytest.param(flow("study", "tcp", "140.82.112.3", 22), network("github: 140.82.112.0/20:22 (github.yaml:7)"),
                     id="allowed is allowed in observe mode too"),
        # domains, by name
        pytest.param(flow("work", "tls", SOMEWHERE, 443, "github.com"), GITHUB, id="an SNI"),
        pytest.param(flow("work", "http", SOMEWHERE, 80, "GitHub.com."), GITHUB, id="a Host"),
        pytest.param(flow("work", "tls", None, 443, "github.com"), GITHUB, id="a name without a destination"),
        pytest.param(flow("work", "tls", SOMEWHERE, 443, "a.b.github.com"), BELOW_GITHUB, id="a name below"),
        pytest.param(flow("work", "tls", SOMEWHERE, 443, "fastly.net"), domain("fastly: .fastly.net (fastly.yaml:1)"),
                     id="a name of an included profile"),
        pytest.param(flow("work", "tls", SOMEWHERE, 443, "db.lab.example"),
                     domain("lab: *.lab.example (lab.yaml:1)", private=True), id="a name that may lead inside"),
        pytest.param(flow("work", "tls", "192.168.1.1", 443, "github.com"), GITHUB,
                     id="the client's own destination does not matter: the name is dialled"),
        pytest.param(flow("work", "tcp", SOMEWHERE, 22, "ssh.github.com"),
                     domain("github: ssh.github.com:22 (github.yaml:4)"), id="another port"),
        # refused
        pytest.param(flow("work", "tls", SOMEWHERE, 443, "evil.example"), Deny(Reason.NO_MATCH), id="another name"),
        pytest.param(flow("work", "tls", None, 443, "evil.example"), Deny(Reason.NO_MATCH),
                     id="another name without a destination"),
        pytest.param(flow("work", "tls", SOMEWHERE, 443, "github.com.evil.example"), Deny(Reason.NO_MATCH),
                     id="a permitted name in front of another"),
        pytest.param(flow("work", "tls", SOMEWHERE, 443, "notgithub.com"), Deny(Reason.NO_MATCH),
                     id="a permitted name at the end of another"),
        pytest.param(flow("work", "tls", SOMEWHERE, 8443, "github.com"),
                     Deny(Reason.NO_MATCH, detail="granted on 80/tcp, 443/tcp"), id="another port says which"),
        pytest.param(flow("work", "udp", SOMEWHERE, 443, "github.com"), Deny(Reason.NO_NAME),
                     id="a granted name over QUIC: no name is read from it in this version"),
        pytest.param(flow("work", "udp", SOMEWHERE, 3478, "stun.github.com"), Deny(Reason.NO_NAME),
                     id="a granted name and UDP port: the same"),
        pytest.param(flow("study", "udp", SOMEWHERE, 443), Deny(Reason.NO_NAME),
                     id="QUIC in observe mode, so that TCP is used, where names can be seen"),
        pytest.param(flow("study", "udp", SOMEWHERE, 444), Deny(Reason.NO_NAME, observed=True),
                     id="other UDP in observe mode"),
        pytest.param(flow("study", "tls", SOMEWHERE, 443, "pypi.org"), Deny(Reason.NO_MATCH, observed=True),
                     id="another client's name, in observe mode"),
        pytest.param(flow("work", "tls", SOMEWHERE, 443), Deny(Reason.NO_NAME), id="TLS without a name"),
        pytest.param(flow("work", "tcp", SOMEWHERE, 22), Deny(Reason.NO_NAME), id="TCP to some address"),
        pytest.param(flow("work", "udp", SOMEWHERE, 443), Deny(Reason.NO_NAME), id="UDP to some address"),
        pytest.param(flow("work", "icmp", SOMEWHERE, 0), Deny(Reason.NO_NAME), id="ping to some address"),
        pytest.param(flow("work", "tcp", None, 443), Deny(Reason.NO_NAME), id="neither name nor address"),
        # observe mode
        pytest.param(flow("study", "tls", SOMEWHERE, 443), Deny(Reason.NO_NAME, observed=True),
                     id="observe mode: no name"),
        pytest.param(flow("study", "tls", SOMEWHERE, 22, "github.com"),
                     Deny(Reason.NO_MATCH, detail="granted on 80/tcp, 443/tcp", observed=True),
                     id="observe mode: another port"),
        pytest.param(flow("study", "tcp", "10.137.0.11", 22), INTERNAL,
                     id="observe mode does not let anyone reach another client"),
    ],
)  # fmt: skip
def test_the_verdict(attempt: Flow, verdict: Verdict) -> None:
    assert POLICY.decide(attempt) == verdict


TWO_NAMES = Malformed("more than one server name", Reason.AMBIGUOUS)


@pytest.mark.parametrize(
    ("client", "destination", "verdict"),
    [
        pytest.param("work", SOMEWHERE, Deny(Reason.AMBIGUOUS, detail=TWO_NAMES.detail), id="is refused, and why"),
        pytest.param("study", SOMEWHERE, Deny(Reason.AMBIGUOUS, detail=TWO_NAMES.detail, observed=True),
                     id="is let through in observe mode, and recorded"),
        pytest.param("work", "10.137.0.12", INTERNAL, id="to an internal address is refused for that"),
        pytest.param("work", "151.101.1.1", network("fastly: 151.101.0.0/16 (fastly.yaml:2)"),
                     id="to a granted network is not judged at all"),
        pytest.param("nobody", SOMEWHERE, Deny(Reason.UNKNOWN_CLIENT), id="of an unknown client"),
    ],
)  # fmt: skip
def test_a_flow_that_says_nothing_clear(client: str, destination: str, verdict: Verdict) -> None:
    attempt = Flow(client, Protocol.TLS, ip_address(destination), 443, broken=TWO_NAMES)
    assert POLICY.decide(attempt) == verdict


def test_what_is_broken_is_refused_even_under_a_permitted_name() -> None:
    attempt = flow("work", "tls", SOMEWHERE, 443, "github.com")._replace(broken=TWO_NAMES)
    assert POLICY.decide(attempt) == Deny(Reason.AMBIGUOUS, detail=TWO_NAMES.detail)


@pytest.mark.parametrize(
    ("private", "addresses", "reached"),
    [
        pytest.param(False, "192.0.2.1 2001:db8::1", "192.0.2.1 2001:db8::1", id="global addresses"),
        pytest.param(False, "192.168.1.1 192.0.2.1 fd00::1", "192.0.2.1", id="private ones are left out"),
        pytest.param(False, "10.0.0.1", "", id="nothing is left"),
        pytest.param(True, "192.168.1.1 192.0.2.1 fd00::1", "192.168.1.1 192.0.2.1 fd00::1", id="private: true"),
        pytest.param(True, "127.0.0.1 ::1 169.254.169.254 10.137.0.9 10.139.1.1 ::ffff:192.0.2.1 0.0.0.0", "",
                     id="internal ones never"),
        pytest.param(True, "172.16.3.4 172.16.3.5", "172.16.3.5", id="another client never"),
        pytest.param(False, "", "", id="none"),
    ],
)  # fmt: skip
def test_the_addresses_that_a_name_may_lead_to(private: bool, addresses: str, reached: str) -> None:
    grant = Allow(Reason.DOMAIN, private=private)
    answer = POLICY.reachable(flow("work", "tls", None, 443), grant, map(ip_address, addresses.split()))
    assert answer == tuple(map(ip_address, reached.split()))


@pytest.mark.parametrize(
    ("address", "client"),
    [
        pytest.param("10.137.0.11", "work", id="IPv4"),
        pytest.param("fd09:24ef:4179::a89:b", "work", id="IPv6"),
        pytest.param("10.137.0.12", "study", id="another client"),
        pytest.param("10.137.0.13", None, id="nobody's"),
    ],
)
def test_the_client_of_an_address(address: str, client: str | None) -> None:
    assert POLICY.client_at(address) == client


def test_the_system_resolvers_stand_in_where_the_configuration_names_none() -> None:
    without = policy("clients: {work: {profiles: [], address: 10.137.0.11}}", {})
    assert without.upstream == ((ip_address("198.51.100.53"), 53),)


def query(client: str, name: str) -> Flow:
    return Flow(client, Protocol.DNS, None, 53, normalise(name), NameSource.DNS)


@pytest.mark.parametrize(
    ("asked", "verdict"),
    [
        pytest.param(query("work", "github.com"), GITHUB, id="a granted name"),
        pytest.param(query("work", "ssh.github.com"), BELOW_GITHUB, id="a name granted on two ports: the first"),
        pytest.param(query("work", "stun.github.com"), BELOW_GITHUB, id="a name granted on a UDP port too"),
        pytest.param(query("work", "db.lab.example"), domain("lab: *.lab.example (lab.yaml:1)", private=True),
                     id="a name that may lead inside"),
        pytest.param(query("ports", "only.example"), domain("ports: only.example:22 (ports.yaml:2)"),
                     id="a name granted on one other port alone"),
        pytest.param(query("ports", "time.example"), domain("ports: time.example:123/udp (ports.yaml:3)"),
                     id="a name granted on a UDP port alone"),
        pytest.param(query("work", "evil.example"), Deny(Reason.NO_MATCH), id="another name"),
        pytest.param(query("work", "1.2.0.192.in-addr.arpa"), Deny(Reason.NO_MATCH), id="the name of an address"),
        pytest.param(query("study", "evil.example"), Deny(Reason.NO_MATCH, observed=True), id="in observe mode"),
        pytest.param(query("all", "evil.example"), Allow(Reason.DNS_ALL), id="dns: all"),
        pytest.param(query("all", "only.example"), domain("ports: only.example:22 (ports.yaml:2)"),
                     id="dns: all, and granted"),
        pytest.param(query("nobody", "github.com"), Deny(Reason.UNKNOWN_CLIENT), id="an unknown client"),
        *[
            pytest.param(query(client, name), Deny(Reason.CANARY), id=f"{name}, {why}")
            for name in ("use-application-dns.net", "mask.icloud.com", "mask-h2.icloud.com", "_dns.resolver.arpa")
            for client, why in (("work", "refused"), ("all", "though all resolve"), ("study", "in observe mode"),
                                ("granted", "though a profile grants it"))
        ],
        pytest.param(Flow("all", Protocol.DNS, None, 53, broken=Malformed("?")), Deny(Reason.MALFORMED, detail="?"),
                     id="no readable name"),
    ],
)  # fmt: skip
def test_which_names_resolve(asked: Flow, verdict: Verdict) -> None:
    if isinstance(verdict, Allow):
        verdict = replace(verdict, by_name=False)  # nothing is dialled
    assert DNS_POLICY.decide(asked) == verdict
    assert not asked.name or DNS_POLICY.may_resolve(asked.client, asked.name) != is_refused(verdict)


DNS_POLICY = policy(
    CONFIG.replace(
        "dns: {up",
        """\
  ports: {profiles: [ports]}
  all: {profiles: [ports], dns: all}
  granted: {profiles: [canaries]}
dns: {up""",
    ),
    PROFILES
    | {
        "ports": "domains:\n  - only.example:22\n  - time.example:123/udp\n  - web.example\n  - web.example:443\n"
        "networks: [192.168.7.0/24]\n",
        "canaries": "domains: [use-application-dns.net, .icloud.com, .resolver.arpa]\n",
    },
)


FED = PROFILES | {
    "lab": "networks: ['203.0.113.0/24:123/udp']\nfeeds:\n"
    "- {url: 'https://a.example/', format: text, ports: [22]}\n- {url: 'https://b.example/', format: text}\n"
}


def fed(unfed: Policy) -> Policy:
    """With the lists of a.example and b.example, and a Qubes range in the latter, which no list should have."""
    lists = {}
    for feed, texts in zip(unfed.feeds(), (["203.0.113.0/24"], ["203.0.113.7", "10.137.0.0/16"]), strict=True):
        lists[feed.source] = AddressList.of(map(ip_network, texts))
    return unfed.with_lists(lists)


@pytest.mark.parametrize(
    ("attempt", "verdict"),
    [
        (flow("work", "tcp", "203.0.113.9", 22), Allow(Reason.FEED, "lab: feed https://a.example/", "lab.yaml:3")),
        (flow("work", "tcp", "203.0.113.9", 23), Deny(Reason.NO_NAME)),
        (flow("work", "udp", "203.0.113.9", 22), Deny(Reason.NO_NAME)),
        (flow("work", "udp", "203.0.113.9", 123), network("github: 203.0.113.0/24:123/udp (github.yaml:10)")),
        (flow("work", "icmp", "203.0.113.7", 0), Allow(Reason.FEED, "lab: feed https://b.example/", "lab.yaml:4")),
        (flow("work", "tls", "203.0.113.7", 443, "evil.example"),
         Allow(Reason.FEED, "lab: feed https://b.example/", "lab.yaml:4")),
        (flow("work", "tcp", "10.137.0.12", 22), INTERNAL),
        (flow("study", "udp", "203.0.113.9", 22), Deny(Reason.NO_NAME, observed=True)),
        (flow("idle", "tcp", "203.0.113.9", 22), Deny(Reason.NO_NAME)),
    ],
)  # fmt: skip
def test_what_a_feed_grants(attempt: Flow, verdict: Verdict) -> None:
    assert fed(policy(profiles=FED)).decide(attempt) == verdict


def test_without_its_list_a_feed_grants_nothing_and_without_feeds_there_is_none() -> None:
    attempt = flow("work", "tcp", "203.0.113.9", 22)
    assert policy(profiles=FED).decide(attempt) == Deny(Reason.NO_NAME)
    assert policy(CONFIG + "feeds: off\n", FED).feeds() == []
    assert fed(policy(profiles=FED)).with_lists({}).decide(attempt) == Deny(Reason.NO_NAME)


def test_what_differs_between_two_policies() -> None:
    one = policy(profiles=FED)
    other = fed(one)
    assert same(one, one.with_lists({}))
    assert not same(one, other)
    assert changed(one, other) == set(one.clients["work"].addresses)
    assert addresses(one) == one.never
    moved = Policy([replace(one.clients["idle"], addresses=(ip_address("172.16.3.5"),))], one.upstream)
    assert changed(one, moved) == {*addresses(one), ip_address("172.16.3.5")}


def pinned(client: str, protocol: str, destination: str, port: int, name: str) -> Flow:
    return Flow(client, Protocol(protocol), ip_address(destination), port, normalise(name), NameSource.PIN)


ONLY = Allow(Reason.PIN, "ports: only.example:22", "ports.yaml:2")


@pytest.mark.parametrize(
    ("attempt", "verdict"),
    [
        pytest.param(pinned("ports", "tcp", SOMEWHERE, 22, "only.example"), ONLY, id="the port that the pattern names"),
        pytest.param(pinned("ports", "tls", SOMEWHERE, 22, "only.example"), ONLY, id="TLS without a name on that port"),
        pytest.param(pinned("ports", "http", SOMEWHERE, 22, "only.example"), ONLY, id="HTTP without a Host there"),
        pytest.param(pinned("ports", "tcp", SOMEWHERE, 23, "only.example"),
                     Deny(Reason.NO_MATCH, detail="granted on 22/tcp"), id="another port"),
        pytest.param(pinned("ports", "udp", SOMEWHERE, 22, "only.example"),
                     Deny(Reason.NO_MATCH, detail="granted on 22/tcp"), id="the same number over UDP"),
        pytest.param(pinned("ports", "udp", SOMEWHERE, 123, "time.example"),
                     Allow(Reason.PIN, "ports: time.example:123/udp", "ports.yaml:3"), id="a UDP port"),
        pytest.param(pinned("work", "tcp", SOMEWHERE, 443, "github.com"),
                     Deny(Reason.NO_NAME, detail="granted on 80/tcp, 443/tcp"),
                     id="a port that no pattern names wants an SNI or a Host"),
        pytest.param(pinned("ports", "tcp", SOMEWHERE, 443, "web.example"),
                     Allow(Reason.PIN, "ports: web.example:443", "ports.yaml:5"), id="443, where a pattern names it"),
        pytest.param(pinned("work", "udp", SOMEWHERE, 443, "github.com"),
                     Deny(Reason.NO_NAME, detail="granted on 80/tcp, 443/tcp"), id="QUIC to a granted name"),
        pytest.param(pinned("work", "icmp", SOMEWHERE, 0, "github.com"),
                     Deny(Reason.NO_MATCH, detail="granted on 80/tcp, 443/tcp"), id="ping"),
        pytest.param(pinned("ports", "tcp", "192.168.1.1", 22, "only.example"),
                     Deny(Reason.PRIVATE_ADDRESS, "ports: only.example:22"), id="a private address"),
        pytest.param(pinned("ports", "tcp", "10.137.0.11", 22, "only.example"), INTERNAL, id="another client"),
        pytest.param(pinned("all", "tcp", SOMEWHERE, 22, "evil.example"), Deny(Reason.NO_MATCH),
                     id="a name that only resolves"),
        pytest.param(pinned("ports", "tcp", SOMEWHERE, 22, "only.example")._replace(broken=TWO_NAMES),
                     Deny(Reason.AMBIGUOUS, detail=TWO_NAMES.detail), id="what cannot be judged"),
    ],
)  # fmt: skip
def test_what_a_pin_grants(attempt: Flow, verdict: Verdict) -> None:
    assert DNS_POLICY.decide(attempt) == verdict


def test_of_several_pinned_names_the_granted_one_counts_and_else_the_latest_is_told() -> None:
    attempt = flow("ports", "tcp", SOMEWHERE, 22)
    names = [normalise(name) for name in ("evil.example", "web.example", "only.example")]
    assert DNS_POLICY.decide_pinned(attempt, names) == (pinned("ports", "tcp", SOMEWHERE, 22, "only.example"), ONLY)
    assert DNS_POLICY.decide_pinned(attempt, names[:2]) == (
        pinned("ports", "tcp", SOMEWHERE, 22, "evil.example"),
        Deny(Reason.NO_MATCH),
    )
    assert DNS_POLICY.decide_pinned(attempt, []) == (attempt, Deny(Reason.NO_NAME))


@pytest.mark.parametrize(
    ("client", "name", "addresses", "told"),
    [
        pytest.param("ports", "only.example", "192.0.2.1 10.0.0.1 127.0.0.1", "192.0.2.1", id="global ones"),
        pytest.param("ports", "only.example", "192.168.7.7 192.168.8.8", "192.168.7.7",
                     id="private ones that a network grants"),
        pytest.param("work", "db.lab.example", "10.0.0.1 10.137.0.12 ::1 fd00::1", "10.0.0.1 fd00::1",
                     id="private: true, but nothing internal"),
        pytest.param("all", "evil.example", "192.0.2.1 10.0.0.1 192.168.7.7", "192.0.2.1 192.168.7.7",
                     id="dns: all"),
        pytest.param("study", "evil.example", "192.0.2.1 10.0.0.1 127.0.0.1", "192.0.2.1 10.0.0.1",
                     id="observe mode, where the connection would be let through"),
    ],
)  # fmt: skip
def test_which_addresses_an_answer_may_give(client: str, name: str, addresses: str, told: str) -> None:
    verdict = DNS_POLICY.decide(query(client, name))
    kept = DNS_POLICY.answerable(client, verdict, map(ip_address, addresses.split()))
    assert kept == tuple(map(ip_address, told.split()))


def test_only_the_profile_itself_may_lead_to_private_addresses_not_what_it_includes() -> None:
    profiles = {
        "home": "domains: [nas.example]\ninclude: [web]\nprivate: true\n",
        "web": "domains: [web.example]\n",
    }
    both = policy("clients: {work: {profiles: [home], address: 10.137.0.11}}", profiles)
    assert both.decide(flow("work", "tls", None, 443, "nas.example")) == domain(
        "home: nas.example (home.yaml:1)", private=True
    )
    assert both.decide(flow("work", "tls", None, 443, "web.example")) == domain("web: web.example (web.yaml:1)")


clients = st.sampled_from(["work", "study", "idle", "nobody"])
protocols = st.sampled_from(list(Protocol))
names = st.none() | st.sampled_from(["github.com", "x.github.com", "evil.example", "db.lab.example"]).map(Hostname)
sources = st.sampled_from(list(NameSource))
ports = st.sampled_from([22, 53, 80, 123, 443, 8443])


@given(clients, protocols, st.none() | st.ip_addresses(), ports, names, sources, st.none() | st.just(TWO_NAMES))
def test_every_flow_gets_one_verdict_and_only_grants_allow(
    client: str,
    protocol: Protocol,
    destination: object,
    port: int,
    name: Hostname | None,
    source: NameSource,
    broken: Malformed | None,
) -> None:
    attempt = Flow(client, protocol, destination, port, name, source, broken)  # type: ignore[arg-type]
    verdict = POLICY.decide(attempt)
    if isinstance(verdict, Allow):
        assert verdict.rule or verdict.reason is Reason.RELAY
        assert client != "nobody"
    else:
        lifted = verdict.reason is not Reason.INTERNAL_ADDRESS and not is_quic(protocol.transport, port)
        assert verdict.observed == (client == "study" and lifted)
