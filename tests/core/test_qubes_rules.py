"""Qubes firewall rules as text: both notations, every key, every order, and what becomes of what cannot be read."""

from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.hostname import Hostname
from proxyfw.core.qubes_rules import Action, Attempt, Rule, RuleError, RuleSet, parse_rule, parse_rules

ACCEPT, DROP = Action.ACCEPT, Action.DROP
HOST = Hostname("www.example.com")


def read(text: str) -> Rule:
    """The rule, with its text checked and left out."""
    rule = parse_rule(text, "0007")
    assert (rule.number, str(rule)) == ("0007", f"0007: {rule.text}")
    return parse_rule(rule.text, "")


def rule(action: Action, text: str, **asked: object) -> Rule:
    return Rule(action, text=text, **asked)  # type: ignore[arg-type]


NET = ip_network("1.2.3.4/32")


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        pytest.param("action=accept", {}, id="nothing asked for"),
        pytest.param("action=accept dst4=1.2.3.4/32", {"network": NET}, id="an IPv4 address"),
        pytest.param("action=accept dst4=1.2.3.4", {"network": NET}, id="an IPv4 address without its length"),
        pytest.param("action=accept dst4=10.0.0.0/8", {"network": ip_network("10.0.0.0/8")}, id="an IPv4 network"),
        pytest.param("action=accept dst4=10.9.8.7/8", {"network": ip_network("10.0.0.0/8")},
                     id="a network written by an address in it"),
        pytest.param("action=accept dst4=0.0.0.0/0", {"network": ip_network("0.0.0.0/0")}, id="every IPv4 address"),
        pytest.param("action=accept dst6=2001:DB8::/32", {"network": ip_network("2001:db8::/32")}, id="IPv6"),
        pytest.param("action=accept dst6=::/0", {"network": ip_network("::/0")},
                     id="every IPv6 address: it keeps its destination"),
        pytest.param("action=accept dsthost=WWW.example.com.", {"host": HOST}, id="a host name"),
        pytest.param("action=accept dsthost=bücher.example", {"host": Hostname("xn--bcher-kva.example")}, id="an IDN"),
        pytest.param("action=accept dsthost=1.2.3.4", {"network": NET}, id="an address as the host"),
        pytest.param("action=accept dsthost=::1", {"network": ip_network("::1/128")}, id="an IPv6 address as the host"),
        pytest.param("action=accept proto=tcp", {"proto": "tcp"}, id="TCP"),
        pytest.param("action=accept proto=udp", {"proto": "udp"}, id="UDP"),
        pytest.param("action=accept proto=icmp", {"proto": "icmp"}, id="ICMP"),
        pytest.param("action=accept proto=icmp icmptype=0", {"proto": "icmp", "icmp_type": 0}, id="the first type"),
        pytest.param("action=accept icmptype=255", {"icmp_type": 255}, id="the last type, without a protocol"),
        pytest.param("action=accept dstports=443-443", {"ports": (443, 443)}, id="one port"),
        pytest.param("action=accept dstports=443", {"ports": (443, 443)}, id="one port, written once"),
        pytest.param("action=accept dstports=0-65535", {"ports": (0, 65535)}, id="every port"),
        pytest.param("action=accept dstports=80-1024", {"ports": (80, 1024)}, id="a range that is none as text"),
        pytest.param("action=accept specialtarget=dns", {"dns": True}, id="the resolvers"),
        pytest.param("action=accept specialtarget=dns proto=udp dstports=53-53",
                     {"dns": True, "proto": "udp", "ports": (53, 53)}, id="the resolvers, said in full"),
        pytest.param("action=accept dst4=1.2.3.4 expire=1700000000", {"network": NET, "expires": 1700000000},
                     id="an end"),
        pytest.param("action=accept dst4=1.2.3.4/32 proto=tcp dstports=443-443",
                     {"network": NET, "proto": "tcp", "ports": (443, 443)}, id="all together"),
    ],
)  # fmt: skip
def test_what_a_rule_says(text: str, asked: dict[str, object]) -> None:
    for action in Action:
        written = text.replace("action=accept", f"action={action}")
        assert read(written) == rule(action, written, **asked)
        assert read(f"\t {written}\n ").action is action


@pytest.mark.parametrize(
    "comment",
    [
        pytest.param("comment=work", id="a word"),
        pytest.param("comment=", id="none"),
        pytest.param("comment=for the office, until May", id="spaces"),
        pytest.param("comment=a=b == c", id="equals signs"),
        pytest.param("comment=action=drop dst4=0.0.0.0/0 proto=icmp", id="keys inside"),
        pytest.param("comment=one comment=two", id="a comment inside"),
        pytest.param("comment=two\nlines dst4=1", id="a line inside"),
    ],
)
def test_a_comment_is_the_rest_of_the_rule(comment: str) -> None:
    text = f"action=accept dst4=1.2.3.4/32 expire=99 {comment}"
    assert read(text) == rule(ACCEPT, "action=accept dst4=1.2.3.4/32 expire=99", network=NET, expires=99)


def test_a_rule_that_begins_with_its_comment_has_no_action() -> None:
    with pytest.raises(RuleError, match="no action=accept or action=drop"):
        parse_rule("comment=x action=accept")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "no action", id="nothing"),
        pytest.param("dst4=1.2.3.4", "no action", id="no action"),
        pytest.param("action=reject", "no action", id="another action"),
        pytest.param("action=Accept", "no action", id="an action in another case"),
        pytest.param("action=", '"action=" is not key=value', id="an action without a value"),
        pytest.param("action=accept dst4", '"dst4" is not key=value', id="a key alone"),
        pytest.param("action=accept =x", 'the key "" is not known', id="a value alone"),
        pytest.param("action=accept dst=1.2.3.4", 'the key "dst" is not known', id="an unknown key"),
        pytest.param("action=accept Dst4=1.2.3.4", 'the key "Dst4" is not known', id="a key in another case"),
        pytest.param("action=accept action=accept", '"action" stands twice', id="a key twice"),
        pytest.param("action=accept dst4=1.2.3.4 dst4=1.2.3.5", '"dst4" stands twice', id="two addresses"),
        pytest.param("action=accept dst4=1.2.3.4 dsthost=a.example", "two destinations", id="address and host"),
        pytest.param("action=accept dst4=1.2.3.4 dst6=::1", "two destinations", id="both families"),
        pytest.param("action=accept dst4=a.example", '"a.example" is not an address', id="a host as an address"),
        pytest.param("action=accept dst4=1.2.3", "is not an address or network", id="a short address"),
        pytest.param("action=accept dst4=1.2.3.04", "is not an address or network", id="a zero in front"),
        pytest.param("action=accept dst4=1.2.3.4/33", "is not an address or network", id="a length too long"),
        pytest.param("action=accept dst4=1.2.3.4/", "is not an", id="no length"),
        pytest.param("action=accept dst4=10.0.0.0/255.0.0.0", "is not an IPv4", id="a mask"),
        pytest.param("action=accept dst4=::1", "is not an IPv4 address or network", id="IPv6 as IPv4"),
        pytest.param("action=accept dst6=1.2.3.4", "is not an IPv6 address or network", id="IPv4 as IPv6"),
        pytest.param("action=accept dst6=fe80::1%eth0", "is not an IPv6 address", id="a zone"),
        pytest.param("action=accept dsthost=a..b", "a label is empty", id="a bad host name"),
        pytest.param("action=accept dsthost=127.1", "an address, not a name", id="half an address as the host"),
        pytest.param("action=accept dsthost=10.0.0.0/8", "only letters", id="a network as the host"),
        pytest.param("action=accept proto=sctp", 'proto "sctp" is none of tcp, udp, icmp', id="another protocol"),
        pytest.param("action=accept proto=6", 'proto "6" is none of', id="a protocol's number"),
        pytest.param("action=accept specialtarget=ntp", 'specialtarget "ntp" is none of dns', id="another target"),
        pytest.param("action=accept dstports=http", "is not a port or a range", id="a service's name"),
        pytest.param("action=accept dstports=443-80", "is not a port or a range", id="a range backwards"),
        pytest.param("action=accept dstports=1-65536", "is not a port or a range", id="a port too large"),
        pytest.param("action=accept dstports=1-2-3", "is not a port or a range", id="three ports"),
        pytest.param("action=accept dstports=-80", "is not a port or a range", id="no first port"),
        pytest.param("action=accept dstports=80,443", "is not a port or a range", id="a list of ports"),
        pytest.param("action=accept dstports=٨٠", "is not a port or a range", id="digits of another script"),
        pytest.param("action=accept proto=icmp dstports=80-80", "ports are of TCP and UDP", id="ports of ICMP"),
        pytest.param("action=accept icmptype=8 dstports=80-80", "ports are of TCP and UDP", id="ports of a type"),
        pytest.param("action=accept proto=tcp icmptype=8", "tcp has no icmptype", id="a type of TCP"),
        pytest.param("action=accept icmptype=256", "not a number up to 255", id="a type too large"),
        pytest.param("action=accept icmptype=echo-request", "not a number up to 255", id="a type's name"),
        pytest.param("action=accept icmptype=-1", "not a number up to 255", id="a type below zero"),
        pytest.param("action=accept expire=tomorrow", "not a number", id="an end in words"),
        pytest.param("action=accept specialtarget=dns proto=icmp", "specialtarget=dns goes with", id="DNS of ICMP"),
        pytest.param("action=accept specialtarget=dns icmptype=8", "specialtarget=dns goes with", id="DNS of a type"),
        pytest.param("action=accept specialtarget=dns dsthost=a.example", "without a host name", id="DNS of a host"),
    ],
)  # fmt: skip
def test_what_is_no_rule_says_why(text: str, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse_rule(text)
    assert message in str(caught.value)


def test_a_long_text_is_told_in_part() -> None:
    with pytest.raises(RuleError) as caught:
        parse_rule(f"action=accept {'x' * 5000}")
    assert len(str(caught.value)) < 200


words = st.fixed_dictionaries(
    {"action": st.sampled_from(list(Action))},
    optional={
        "proto": st.sampled_from(["tcp", "udp"]),
        "dstports": st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(
            lambda ports: f"{min(ports)}-{max(ports)}"
        ),
        "dst": st.one_of(
            st.ip_addresses(v=4).map(lambda address: f"dst4={address}/32"),
            st.ip_addresses(v=6).map(lambda address: f"dst6={address}/128"),
            st.sampled_from(["dsthost=a.example", "dst4=10.0.0.0/8", "dst6=::/0"]),
        ),
        "expire": st.integers(0, 10**11),
    },
).map(lambda fields: [value if key == "dst" else f"{key}={value}" for key, value in fields.items()])


@given(words.flatmap(lambda written: st.tuples(st.just(written), st.permutations(written))))
def test_the_keys_may_stand_in_any_order(both: tuple[list[str], list[str]]) -> None:
    written, shuffled = both
    first, second = parse_rule(" ".join(written)), parse_rule("  ".join([*shuffled, "comment=action=drop a b"]))
    for each in (first, second):
        assert set(each.text.split()) == set(written)
    assert read_fields(first) == read_fields(second)


def read_fields(each: Rule) -> Sequence[object]:
    return each.action, each.network, each.host, each.dns, each.proto, each.ports, each.icmp_type, each.expires


PIECES = [
    *("action=", "accept", "drop", "dst4=", "dst6=", "dsthost=", "1.2.3.4", "::", "/0", "/32", "proto=", "tcp", "udp"),
    *("icmp", "dstports=", "1-2", "-", "99999", "icmptype=", "specialtarget=", "dns", "expire=", "comment=", "%", "="),
    *("é", "٣", "\0", "\u2028"),
]
pieces = st.lists(st.sampled_from(PIECES), max_size=12)
hostile = st.text(max_size=60) | pieces.map("".join) | pieces.map(" ".join)


@given(hostile)
def test_any_text_is_a_rule_or_no_rule(text: str) -> None:
    try:
        found = parse_rule(text)
    except RuleError:
        return
    assert read_fields(parse_rule(found.text)) == read_fields(found)


entries = st.dictionaries(
    st.sampled_from(["policy", "0000", "0001", "0010", "9999"]) | st.text(max_size=5),
    hostile | st.sampled_from(["accept", "drop", "action=accept", "action=drop dst4=1.2.3.4", "action=accept x"]),
    max_size=6,
)


@given(entries)
def test_any_entries_are_rules_or_close(given_entries: dict[str, str]) -> None:
    found = parse_rules(given_entries)
    if found.broken:
        assert found == RuleSet(broken=found.broken)
        assert found.closing is DROP
    else:
        assert given_entries["policy"] in ("accept", "drop")
        assert not any(each.bare for each in found.rules)
        read_or_not = len(found.rules) + len(found.skipped)
        assert read_or_not <= len(given_entries) - 1


@given(st.lists(hostile, min_size=1, max_size=4))
def test_no_drop_is_ever_left_out_alone(texts: list[str]) -> None:
    written = {f"{place:04}": f"action=drop {text}" for place, text in enumerate(texts)}
    found = parse_rules({"policy": "accept", **written})
    assert found.broken or found.closing is DROP or len(found.rules) == len(texts)
    assert not found.skipped


A4, A6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")


def rules(text: str, policy: str | None = "accept", now: float = 0.0) -> RuleSet:
    """`text`: the rules, one a line, each with its number in front or numbered in order."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    written = {f"{place * 10:04}": line for place, line in enumerate(lines)}
    return parse_rules(written | ({"policy": policy} if policy is not None else {}), now)


def test_rules_go_by_number_and_numbers_have_gaps() -> None:
    found = parse_rules(
        {
            "0100": "action=drop proto=udp",
            "policy": "drop",
            "0020": "action=accept dst4=192.0.2.1",
            "0003": "action=drop proto=icmp",
        }
    )
    assert [str(each) for each in found.rules] == [
        "0003: action=drop proto=icmp",
        "0020: action=accept dst4=192.0.2.1",
        "0100: action=drop proto=udp",
    ]
    assert (found.closing, found.broken, found.skipped) == (DROP, "", ())


@pytest.mark.parametrize(
    ("text", "policy", "closing"),
    [
        pytest.param("", "accept", ACCEPT, id="no rule: the policy"),
        pytest.param("", "drop", DROP, id="no rule: the other policy"),
        pytest.param("action=accept", "drop", ACCEPT, id="a bare accept before the policy"),
        pytest.param("action=drop", "accept", DROP, id="a bare drop before the policy"),
        pytest.param("action=drop comment=the end", "accept", DROP, id="a bare drop with a comment"),
        pytest.param("action=accept expire=1000", "drop", ACCEPT, id="a bare accept that still holds"),
        pytest.param("action=accept expire=50", "drop", DROP, id="a bare accept that has run out"),
        pytest.param("action=accept\naction=drop", "drop", ACCEPT, id="what stands behind it does not count"),
        pytest.param("action=accept\naction=drop dst4=192.0.2.1\nnot readable", "drop", ACCEPT,
                     id="nor whether it could be read"),
    ],
)  # fmt: skip
def test_a_bare_rule_ends_the_list(text: str, policy: str, closing: Action) -> None:
    assert rules(text, policy, now=100.0) == RuleSet((), closing)


@pytest.mark.parametrize(
    "text",
    [
        "action=accept dst4=0.0.0.0/0", "action=accept dst6=::/0", "action=accept proto=tcp", "action=drop proto=icmp",
        "action=accept dstports=0-65535", "action=drop dsthost=a.example", "action=accept specialtarget=dns",
        "action=drop icmptype=8",
    ],
)  # fmt: skip
def test_what_asks_for_anything_is_not_bare(text: str) -> None:
    found = rules(f"{text}\naction=drop")
    assert len(found.rules) == 1
    assert found.closing is DROP


def test_a_rule_counts_until_its_end() -> None:
    text = "action=accept dst4=192.0.2.1 expire=100\naction=drop dst4=192.0.2.0/24 expire=200"
    assert [len(rules(text, now=now).rules) for now in (0.0, 99.9, 100.0, 199.0, 200.0)] == [2, 2, 1, 1, 0]


def test_an_accept_that_cannot_be_read_is_left_out_and_told() -> None:
    found = rules(
        """
        action=accept dsthost=bad..name
        action=accept dst4=192.0.2.1
        color=red action=accept comment=action=drop
        """
    )
    assert [str(each) for each in found.rules] == ["0010: action=accept dst4=192.0.2.1"]
    assert found.skipped == (
        'rule 0000 is left out ("action=accept dsthost=bad..name"): "bad..name": a label is empty '
        "(two dots in a row, or a dot at the start)",
        'rule 0020 is left out ("color=red action=accept comment=action=drop"): the key "color" is not known',
    )
    assert not found.broken


@pytest.mark.parametrize(
    ("found", "broken"),
    [
        pytest.param(rules("action=accept dst4=192.0.2.1", policy=None), "there is no policy", id="no policy"),
        pytest.param(rules("", policy="Accept"), 'the policy is "Accept"', id="an unknown policy"),
        pytest.param(rules("", policy=""), 'the policy is ""', id="an empty policy"),
        pytest.param(rules("action=accept proto=tcp\naction=drop dst4=bad"),
                     'rule 0010 cannot be read ("action=drop dst4=bad"): "bad" is not an address or network',
                     id="a drop that cannot be read"),
        pytest.param(rules("dst4=192.0.2.1"),
                     'rule 0000 cannot be read ("dst4=192.0.2.1"): there is no action=accept or action=drop',
                     id="no action"),
        pytest.param(rules("action=allow"),
                     'rule 0000 cannot be read ("action=allow"): there is no action=accept or action=drop',
                     id="an unknown action"),
        pytest.param(rules("action=accept action=drop"),
                     'rule 0000 cannot be read ("action=accept action=drop"): "action" stands twice',
                     id="both actions"),
        pytest.param(rules(""" comment=action=accept """),
                     'rule 0000 cannot be read ("comment=action=accept"): there is no action=accept or action=drop',
                     id="an action in the comment alone"),
        pytest.param(parse_rules({"policy": "accept", "1": "action=accept"}), '"1" is not the number of a rule',
                     id="a short number"),
        pytest.param(parse_rules({"policy": "accept", "00001": "action=accept"}), '"00001" is not the number of a rule',
                     id="a long number"),
        pytest.param(parse_rules({"policy": "accept", "٠٠٠١": "action=accept"}), '"٠٠٠١" is not the number of a rule',
                     id="digits of another script"),
        pytest.param(parse_rules({}), "there is no policy", id="nothing at all"),
    ],
)  # fmt: skip
def test_what_else_cannot_be_read_closes(found: RuleSet, broken: str) -> None:
    assert found == RuleSet(broken=broken)


RESOLVERS = frozenset({ip_address("10.139.1.1"), ip_address("198.51.100.53")})


@pytest.mark.parametrize(
    ("text", "attempt", "matches"),
    [
        pytest.param("dst4=192.0.2.0/24", Attempt(A4, "tcp", 1), True, id="an address of the network"),
        pytest.param("dst4=192.0.2.0/24", Attempt(A4, "icmp", 0, (), 8), True, id="whatever the protocol"),
        pytest.param("dst4=192.0.2.0/24", Attempt(A4, "other", 0), True, id="also one without a name here"),
        pytest.param("dst4=192.0.2.0/31", Attempt(ip_address("192.0.2.2"), "tcp", 1), False, id="the next address"),
        pytest.param("dst4=0.0.0.0/0", Attempt(A6, "tcp", 1), False, id="the other family"),
        pytest.param("dst6=::/0", Attempt(A4, "tcp", 1), False, id="the other family, IPv6"),
        pytest.param("dst4=192.0.2.0/24", Attempt(None, "tcp", 1), False, id="no address is known"),
        pytest.param("dstports=80-1024", Attempt(A4, "tcp", 443), True, id="443 is between 80 and 1024"),
        pytest.param("dstports=80-1024", Attempt(A4, "udp", 1024), True, id="the last port, over UDP"),
        pytest.param("dstports=80-1024", Attempt(A4, "tcp", 80), True, id="the first port"),
        pytest.param("dstports=80-1024", Attempt(A4, "tcp", 79), False, id="before the first port"),
        pytest.param("dstports=80-1024", Attempt(A4, "tcp", 1025), False, id="after the last port"),
        pytest.param("dstports=9-10", Attempt(A4, "tcp", 9), True, id="9 is between 9 and 10"),
        pytest.param("dstports=0-65535", Attempt(A4, "icmp", 0), False, id="ports are not of ICMP"),
        pytest.param("dstports=0-65535", Attempt(A4, "other", 0), False, id="nor of other protocols"),
        pytest.param("proto=tcp", Attempt(A6, "tcp", 1), True, id="TCP over IPv6"),
        pytest.param("proto=tcp", Attempt(A4, "udp", 1), False, id="another protocol"),
        pytest.param("proto=icmp", Attempt(A6, "icmp", 0, (), 128), True, id="ICMPv6"),
        pytest.param("proto=icmp icmptype=8", Attempt(A4, "icmp", 0, (), 8), True, id="that type"),
        pytest.param("icmptype=8", Attempt(A4, "icmp", 0, (), 8), True, id="that type without a protocol"),
        pytest.param("icmptype=8", Attempt(A4, "icmp", 0, (), 0), False, id="another type"),
        pytest.param("icmptype=0", Attempt(A4, "icmp", 0), False, id="no type is known"),
        pytest.param("icmptype=8", Attempt(A4, "tcp", 8), False, id="a port is no type"),
        pytest.param("dsthost=www.example.com", Attempt(A4, "tcp", 443, (HOST,)), True, id="the name"),
        pytest.param("dsthost=www.example.com", Attempt(None, "tcp", 443, (HOST,)), True, id="the name alone"),
        pytest.param("dsthost=www.example.com", Attempt(A4, "tcp", 443, (Hostname("example.com"), HOST)), True,
                     id="one of the names"),
        pytest.param("dsthost=example.com", Attempt(A4, "tcp", 443, (HOST,)), False, id="a name above"),
        pytest.param("dsthost=www.example.com", Attempt(A4, "tcp", 443), False, id="no name"),
        pytest.param("dsthost=www.example.com dstports=80-80", Attempt(A4, "tcp", 443, (HOST,)), False,
                     id="the name on another port"),
        pytest.param("dsthost=www.example.com", Attempt(A4, "icmp", 0, (HOST,), 8), True, id="the name, pinged"),
        pytest.param("specialtarget=dns", Attempt(ip_address("10.139.1.1"), "udp", 53), True, id="a resolver"),
        pytest.param("specialtarget=dns", Attempt(ip_address("198.51.100.53"), "tcp", 53), True,
                     id="another one, over TCP"),
        pytest.param("specialtarget=dns", Attempt(A4, "udp", 53), False, id="whoever else has port 53"),
        pytest.param("specialtarget=dns", Attempt(ip_address("10.139.1.1"), "tcp", 853), False,
                     id="a resolver on another port"),
        pytest.param("specialtarget=dns", Attempt(ip_address("10.139.1.1"), "icmp", 0), False, id="a resolver, pinged"),
        pytest.param("specialtarget=dns proto=tcp", Attempt(ip_address("10.139.1.1"), "udp", 53), False,
                     id="over the other protocol"),
        pytest.param("specialtarget=dns dstports=53-54", Attempt(ip_address("10.139.1.1"), "udp", 53), False,
                     id="more ports than 53 never match"),
        pytest.param("specialtarget=dns dst4=10.139.1.2", Attempt(ip_address("10.139.1.1"), "udp", 53), False,
                     id="a resolver that is not in the network"),
    ],
)  # fmt: skip
def test_what_a_rule_matches(text: str, attempt: Attempt, matches: bool) -> None:
    for action in Action:
        assert parse_rule(f"action={action} {text}").matches(attempt, RESOLVERS) is matches


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        pytest.param("action=accept dsthost=www.example.com", False, id="a host alone does not mean QUIC"),
        pytest.param("action=accept dsthost=www.example.com dstports=443-443", False, id="nor does its port"),
        pytest.param("action=accept dsthost=www.example.com proto=udp", True, id="UDP is said"),
        pytest.param("action=drop dsthost=www.example.com", True, id="a drop holds for QUIC too"),
        pytest.param("action=accept dst4=192.0.2.1", True, id="an address needs no name"),
    ],
)
def test_quic_under_a_host_rule(text: str, matches: bool) -> None:
    assert parse_rule(text).matches(Attempt(A4, "udp", 443, (HOST,)), ()) is matches


def test_the_first_rule_that_matches_is_found() -> None:
    found = rules(
        """
        action=accept dst4=192.0.2.1
        action=drop dst4=192.0.2.0/24
        action=accept dsthost=www.example.com
        action=drop dsthost=www.example.com
        """
    )
    attempts = {
        "the address": Attempt(A4, "tcp", 1, (HOST,)),
        "its network": Attempt(ip_address("192.0.2.2"), "tcp", 1, (HOST,)),
        "the name": Attempt(A6, "tcp", 1, (HOST,)),
        "QUIC, which the accept is not for": Attempt(A6, "udp", 443, (HOST,)),
        "nothing": Attempt(A6, "tcp", 1),
    }
    told = {what: rule and rule.number for what, rule in ((w, found.find(a, ())) for w, a in attempts.items())}
    assert told == {
        "the address": "0000",
        "its network": "0010",
        "the name": "0020",
        "QUIC, which the accept is not for": "0030",
        "nothing": None,
    }


@pytest.mark.parametrize(
    ("text", "number"),
    [
        pytest.param("action=accept dsthost=www.example.com dstports=443-443", "0000", id="one port is enough"),
        pytest.param("action=drop dsthost=www.example.com", "0000", id="a drop of everything"),
        pytest.param("action=drop dsthost=www.example.com proto=tcp", None, id="a drop of TCP leaves UDP"),
        pytest.param("action=drop dsthost=www.example.com proto=tcp\naction=accept dsthost=www.example.com", "0010",
                     id="and the next rule says of it"),
        pytest.param("action=drop dsthost=www.example.com\naction=accept dsthost=www.example.com", "0000",
                     id="the first of two"),
        pytest.param("action=accept dsthost=example.com\naction=drop dst4=0.0.0.0/0", None, id="no rule of this name"),
    ],
)  # fmt: skip
def test_the_rule_of_a_query(text: str, number: str | None) -> None:
    found = rules(text).of_name(HOST)
    assert (found and found.number) == number


def test_the_hosts_and_the_single_addresses_that_rules_name() -> None:
    found = rules(
        """
        action=accept dsthost=b.example
        action=drop dsthost=a.example
        action=accept dsthost=b.example proto=udp
        action=accept dsthost=10.137.0.12
        action=accept dst4=10.137.0.12/32 proto=tcp
        action=accept dst6=fd09:24ef:4179::a89:c/128
        action=accept dst4=10.137.0.0/31
        action=drop dst4=10.137.0.13/32
        """
    )
    assert found.hosts() == ("b.example", "a.example")
    assert found.named() == (ip_address("10.137.0.12"), ip_address("fd09:24ef:4179::a89:c"))
