"""Clients with an upstream proxy: what leaves, what the proxy is asked for, what the packet layer and answers say."""

from ipaddress import ip_address

import pytest
from dns.rcode import Rcode
from dns.rdatatype import AAAA, HTTPS, MX, TXT, A

from proxyfw.core import dnsmsg, ruleset
from proxyfw.core.address import IPAddress
from proxyfw.core.clients import Member
from proxyfw.core.config import Config
from proxyfw.core.dnsanswer import of_mapped
from proxyfw.core.flow import Flow, NameSource, Protocol
from proxyfw.core.hostname import Hostname
from proxyfw.core.policy import Policy, build
from proxyfw.core.profile import link, parse_profile
from proxyfw.core.qubes_rules import parse_rules
from proxyfw.core.sniffed import Malformed
from proxyfw.core.upstreamproxy import mapped, parse_upstream_proxy
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict

PROXY = parse_upstream_proxy("socks5://127.0.0.1:9050")
PROFILE = """\
domains: [web.example, "git.example:22", "time.example:123/udp"]
networks: ["203.0.113.0/24:22", 198.18.0.0/15, 192.168.7.0/24]
feeds: [{url: "https://lists.example/", format: text}]
"""
WEB, GIT, TIME, EVIL = map(Hostname, ("web.example", "git.example", "time.example", "evil.example"))
SOMEWHERE, LISTED, HOME = map(ip_address, ("192.0.2.1", "203.0.113.7", "192.168.7.7"))
DNS = ip_address("10.139.1.1")
UNSUPPORTED = Deny(Reason.UNSUPPORTED, detail="only TCP leaves through the upstream proxy")
NAMELESS = Deny(Reason.NO_NAME, detail="the address stands for a name, and it is not known which")
INTERNAL = Deny(Reason.INTERNAL_ADDRESS)
BROKEN = Malformed("two names", Reason.AMBIGUOUS)


def policy(*rules: str, observe: bool = False, exact: bool = False, closing: str = "drop") -> Policy:
    """The client `far` with an upstream proxy, and `near` like it without one."""
    profile, problems = parse_profile("p", "p.yaml", PROFILE)
    assert profile is not None, problems
    library, _ = link({"p": profile})
    found = parse_rules({"policy": closing, **{f"{number:04}": rule for number, rule in enumerate(rules)}})
    profiles = () if exact else ("p",)
    members = [
        Member(name, profiles, observe, False, (ip_address(address),), {4: found}, exact, proxy)
        for name, address, proxy in (("far", "10.137.0.11", PROXY), ("near", "10.137.0.12", None))
    ]
    return build(Config({}), library, (), members, (DNS,))


def tcp(
    to: IPAddress | None, port: int = 22, name: Hostname | None = None, source: NameSource = NameSource.NONE
) -> Flow:
    kinds = {
        NameSource.SNI: Protocol.TLS,
        NameSource.HOST: Protocol.HTTP,
        NameSource.SOCKS: Protocol.SOCKS,
        NameSource.CONNECT: Protocol.CONNECT,
    }
    return Flow("far", kinds.get(source, Protocol.TCP), to, port, name, source)


def udp(to: IPAddress, port: int, name: Hostname | None = None) -> Flow:
    return Flow("far", Protocol.UDP, to, port, name, NameSource.PIN if name else NameSource.NONE)


def decided(verdict: Verdict) -> tuple[Reason, str]:
    return verdict.reason, verdict.rule


@pytest.mark.parametrize(
    ("flow", "told"),
    [
        pytest.param(tcp(mapped(WEB), 443, WEB, NameSource.SNI), (Reason.DOMAIN, "p: web.example"), id="an SNI"),
        pytest.param(tcp(SOMEWHERE, 80, WEB, NameSource.HOST), (Reason.DOMAIN, "p: web.example"), id="a Host"),
        pytest.param(tcp(None, 443, WEB, NameSource.SOCKS), (Reason.DOMAIN, "p: web.example"), id="asked for by SOCKS"),
        pytest.param(tcp(mapped(GIT), 22, GIT, NameSource.PIN), (Reason.PIN, "p: git.example:22"),
                     id="a pinned mapped address"),
        pytest.param(tcp(LISTED), (Reason.NETWORK, "p: 203.0.113.0/24:22"), id="a network"),
        pytest.param(tcp(HOME), (Reason.NETWORK, "p: 192.168.7.0/24"), id="a private network, of the far end"),
    ],
)  # fmt: skip
def test_what_leaves(flow: Flow, told: tuple[Reason, str]) -> None:
    verdict = policy().decide(flow)
    assert isinstance(verdict, Allow)
    assert decided(verdict) == told


@pytest.mark.parametrize("observe", [pytest.param(False, id="enforced"), pytest.param(True, id="observed")])
@pytest.mark.parametrize(
    ("flow", "deny"),
    [
        pytest.param(udp(LISTED, 123), UNSUPPORTED, id="UDP to a network"),
        pytest.param(udp(HOME, 9), UNSUPPORTED, id="UDP to a network without ports"),
        pytest.param(udp(SOMEWHERE, 9), UNSUPPORTED, id="UDP that nothing grants"),
        pytest.param(udp(mapped(TIME), 123, TIME), UNSUPPORTED, id="UDP that a pattern names"),
        pytest.param(udp(mapped(WEB), 443, WEB), UNSUPPORTED, id="QUIC"),
        pytest.param(Flow("far", Protocol.ICMP, HOME, 0, icmp_type=8), UNSUPPORTED, id="a ping"),
        pytest.param(Flow("far", Protocol.OTHER, HOME, 0), UNSUPPORTED, id="another protocol"),
        pytest.param(tcp(mapped(WEB)), NAMELESS, id="a mapped address that is not pinned, and a network that has it"),
        pytest.param(tcp(mapped(WEB))._replace(broken=BROKEN), NAMELESS, id="the same, and what cannot be judged"),
        pytest.param(tcp(ip_address("10.137.0.12")), INTERNAL, id="another client"),
        pytest.param(tcp(ip_address("127.0.0.1")), INTERNAL, id="loopback"),
        pytest.param(udp(ip_address("10.137.0.12"), 9), INTERNAL, id="UDP to another client"),
    ],
)  # fmt: skip
def test_what_never_leaves(flow: Flow, deny: Deny, observe: bool) -> None:
    assert policy(observe=observe).decide(flow) == deny


@pytest.mark.parametrize(
    ("rules", "flow", "told"),
    [
        pytest.param(("action=accept proto=udp",), udp(SOMEWHERE, 9), (Reason.UNSUPPORTED, ""),
                     id="UDP that a rule accepts"),
        pytest.param(("action=drop proto=udp",), udp(SOMEWHERE, 9), (Reason.UNSUPPORTED, ""),
                     id="UDP that a rule drops"),
        pytest.param(("action=accept dst4=10.137.0.12",), tcp(ip_address("10.137.0.12")), (Reason.INTERNAL_ADDRESS, ""),
                     id="a neighbour that a rule names: it is here, and not at the far end"),
        pytest.param(("action=drop dst4=198.18.0.0/15",), tcp(mapped(WEB), 443, WEB, NameSource.SNI),
                     (Reason.QUBES_RULE, "qubes 0000: action=drop dst4=198.18.0.0/15"),
                     id="a rule sees the address that the client aims at"),
        pytest.param(("action=accept dsthost=evil.example",), tcp(mapped(EVIL), 25, EVIL, NameSource.PIN),
                     (Reason.QUBES_RULE, "qubes 0000: action=accept dsthost=evil.example"), id="a host that is pinned"),
        pytest.param(("action=accept proto=tcp",), tcp(mapped(EVIL), 25), (Reason.NO_NAME, ""),
                     id="a mapped address without a pin, and a rule that accepts all TCP"),
        pytest.param(("action=drop specialtarget=dns",), udp(DNS, 53),
                     (Reason.QUBES_RULE, "qubes 0000: action=drop specialtarget=dns"), id="DNS that a rule drops"),
        pytest.param(("action=accept proto=udp",), udp(SOMEWHERE, 53), (Reason.RELAY, ""),
                     id="DNS, whatever it is aimed at"),
    ],
)  # fmt: skip
def test_qubes_rules(rules: tuple[str, ...], flow: Flow, told: tuple[Reason, str]) -> None:
    assert decided(policy(*rules).decide(flow)) == told


@pytest.mark.parametrize(
    ("flow", "told"),
    [
        pytest.param(udp(DNS, 53), (Reason.RELAY, ""), id="DNS goes to the relay, not to the netvm's resolver"),
        pytest.param(udp(SOMEWHERE, 53), (Reason.UNSUPPORTED, ""), id="DNS elsewhere"),
        pytest.param(tcp(SOMEWHERE, 25), (Reason.QUBES_RULE, "qubes: the closing accept"), id="TCP"),
        pytest.param(tcp(mapped(EVIL), 25, EVIL, NameSource.PIN), (Reason.QUBES_RULE, "qubes: the closing accept"),
                     id="a pinned mapped address"),
        pytest.param(tcp(mapped(EVIL), 25), (Reason.NO_NAME, ""), id="one that is not pinned"),
        pytest.param(udp(SOMEWHERE, 9), (Reason.UNSUPPORTED, ""), id="UDP"),
    ],
)  # fmt: skip
def test_a_client_that_is_not_listed(flow: Flow, told: tuple[Reason, str]) -> None:
    assert decided(policy(exact=True, closing="accept").decide(flow)) == told


def test_without_an_upstream_proxy_a_mapped_address_is_a_private_one_like_any_other() -> None:
    attempt = tcp(mapped(GIT), 22, GIT, NameSource.PIN)._replace(client="near")
    profile, _ = parse_profile("p", "p.yaml", PROFILE.replace("198.18.0.0/15, ", ""))
    assert profile is not None
    bare = build(
        Config({}), link({"p": profile})[0], (), [Member("near", ("p",), addresses=(ip_address("10.137.0.12"),))]
    )
    assert bare.decide(attempt) == Deny(Reason.PRIVATE_ADDRESS, "p: git.example:22")
    query = bare.decide(Flow("near", Protocol.DNS, None, 53, GIT, NameSource.DNS))
    assert bare.answerable("near", query, [mapped(GIT)]) == ()
    # With that network it is granted by address, as ever.
    assert decided(policy().decide(tcp(mapped(WEB))._replace(client="near"))) == (Reason.NETWORK, "p: 198.18.0.0/15")


@pytest.mark.parametrize(
    ("rules", "observe", "flow", "names", "asked"),
    [
        pytest.param((), False, tcp(mapped(WEB), 443, WEB, NameSource.SNI), (WEB,), WEB, id="an SNI"),
        pytest.param((), False, tcp(mapped(EVIL), 443, WEB, NameSource.SNI), (EVIL,), WEB,
                     id="a permitted SNI at another name's address: it ends at the permitted one"),
        pytest.param((), False, tcp(SOMEWHERE, 443, WEB, NameSource.SNI), (), WEB, id="an SNI, whatever the address"),
        pytest.param((), False, tcp(None, 443, WEB, NameSource.CONNECT), (), WEB, id="CONNECT"),
        pytest.param((), False, tcp(mapped(GIT), 22, GIT, NameSource.PIN), (GIT,), GIT, id="a pin"),
        pytest.param((), False, tcp(SOMEWHERE, 22, GIT, NameSource.PIN), (GIT,), GIT,
                     id="a pin of an address that was looked up before"),
        pytest.param((), False, tcp(LISTED, 22, EVIL, NameSource.PIN), (EVIL,), LISTED, id="a network"),
        pytest.param((), False, tcp(LISTED, 22, EVIL, NameSource.SNI), (), LISTED, id="a network, and any SNI"),
        pytest.param(("action=accept proto=tcp",), False, tcp(mapped(EVIL), 443, WEB, NameSource.SNI), (EVIL,), EVIL,
                     id="a rule by address, and what the client aims at is a name"),
        pytest.param(("action=accept dsthost=evil.example",), False, tcp(mapped(EVIL), 443, EVIL, NameSource.SNI),
                     (EVIL,), EVIL, id="a rule by host"),
        pytest.param(("action=accept dsthost=evil.example",), False, tcp(mapped(EVIL), 25, EVIL, NameSource.PIN),
                     (WEB, EVIL), EVIL, id="a rule by host, by the pin that it is about"),
        pytest.param((), True, tcp(mapped(EVIL), 443, WEB, NameSource.PIN), (EVIL, WEB), WEB, id="observed, by a pin"),
        pytest.param((), True, tcp(mapped(EVIL), 443, EVIL, NameSource.SNI), (GIT, EVIL), GIT,
                     id="observed: what the client aims at, by the latest of its names"),
        pytest.param((), True, tcp(mapped(EVIL), 443, EVIL, NameSource.SNI), (), EVIL,
                     id="observed, and no pin: all that is known is what it says"),
        pytest.param((), True, tcp(SOMEWHERE, 443, EVIL, NameSource.SNI), (), SOMEWHERE, id="observed, an address"),
        pytest.param((), True, tcp(None, 443, EVIL, NameSource.SOCKS), (), EVIL, id="observed, by SOCKS"),
        pytest.param((), True, tcp(mapped(EVIL)), (), None, id="nothing that could be asked for"),
    ],
)  # fmt: skip
def test_what_the_proxy_is_asked_for(
    rules: tuple[str, ...],
    observe: bool,
    flow: Flow,
    names: tuple[Hostname, ...],
    asked: Hostname | IPAddress | None,
) -> None:
    assert policy(*rules, observe=observe).leaves_for(flow, names) == asked


def test_no_pin_opens_anything() -> None:
    own = policy("action=accept dsthost=time.example")
    assert own.granted_udp("near", TIME) == [123]
    assert (own.granted_udp("far", TIME), own.opens_by_pin("far", TIME)) == ([], False)
    assert list(ruleset.pinned(own, "near", TIME, [SOMEWHERE]))
    assert list(ruleset.pinned(own, "far", TIME, [SOMEWHERE, mapped(TIME)])) == []
    assert own.may_resolve("far", TIME)


def test_what_addresses_grant_is_not_heard_out_first() -> None:
    own = policy()
    assert own.grants_unheard("far", "tcp", 2525)
    assert not own.grants_unheard("near", "tcp", 2525)


def test_feeds_are_fetched_through_the_proxy_of_all() -> None:
    own = policy()
    assert [feed.through for feed in own.feeds()] == [None]
    everybody = Policy(own.clients.values(), (), (), PROXY)
    assert [feed.through for feed in everybody.feeds()] == [PROXY]
    assert [feed.through for feed in everybody.with_lists({}).feeds()] == [PROXY]


def chains(text: str) -> dict[str, list[str]]:
    parts = text.split("\tchain ")[1:]
    return {
        part.partition(" {")[0]: [line.strip() for line in part.partition("{\n")[2].partition("\t}")[0].splitlines()]
        for part in parts
    }


def test_the_packet_layer_forwards_nothing() -> None:
    found = chains(ruleset.render(policy("action=accept dsthost=a.example", "action=accept dst4=192.0.2.0/24"), "", 2))
    assert found["client-0"] == [
        "meta nfproto ipv4 meta l4proto { tcp, udp } th dport 53 jump dns-0-4",
        "meta nfproto ipv6 goto refuse-qubes",
        "udp dport 53 goto to-relay",
        "tcp dport 53 goto to-relay",
        "ip daddr @never4 goto refuse-internal",
        "ip6 daddr @never6 goto refuse-internal",
        "meta l4proto tcp goto to-proxy",
        "goto refuse-unsupported",
    ]
    assert "rules-0-4" not in found
    assert "rules-1-4" in found


def query(labels: bytes, kind: int) -> bytes:
    return b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + labels + kind.to_bytes(2) + b"\0\1"


def test_the_answer_is_the_mapped_address_and_no_other_record() -> None:
    told = of_mapped(WEB, A)
    assert (told.rcode, told.ttl, told.addresses) == (Rcode.NOERROR, 60, (mapped(WEB),))
    data = query(b"\3wEb\7example\0", A)
    asked = dnsmsg.read(data)
    assert isinstance(asked, dnsmsg.Query)
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + mapped(WEB).packed
    assert dnsmsg.answer(data, asked, told, 0, udp=True) == (b"\x12\x34\x81\x80\0\1\0\1\0\0\0\0" + data[12:] + record)


@pytest.mark.parametrize("kind", [AAAA, HTTPS, MX, TXT])
def test_of_any_other_type_there_is_nothing(kind: int) -> None:
    data = query(b"\3web\7example\0", kind)
    asked = dnsmsg.read(data)
    assert isinstance(asked, dnsmsg.Query)
    told = of_mapped(WEB, kind)
    assert (told.rcode, told.ttl, told.addresses) == (Rcode.NOERROR, 0, ())
    assert dnsmsg.answer(data, asked, told, 0, udp=True) == b"\x12\x34\x81\x80\0\1\0\0\0\0\0\0" + data[12:]
