"""The compiled chains: the packet layer and `policy.decide` agree, whatever the rules and whatever the packet.

The rendered text is read by a model of nftables (`nftmodel`); what it does with real packets is tested in the lab.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from random import Random

import nftmodel
import pytest
from agreement import wrong
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nftmodel import Packet, UnknownSyntax
from ruleworlds import (
    ADDRESSES,
    CLIENT_DNS,
    HOSTS,
    KINDS,
    LIBRARY,
    LISTS,
    UPSTREAM,
    World,
    draw_flow,
    draw_neighbour_flow,
    draw_pinned_flow,
    draw_world,
)

from proxyfw.core import ruleset
from proxyfw.core.clients import Member
from proxyfw.core.config import Config
from proxyfw.core.flow import Flow, Protocol
from proxyfw.core.hostname import Hostname
from proxyfw.core.policy import Policy, build
from proxyfw.core.qubes_rules import parse_rules

SKELETON = Path(__file__).parents[2] / "iptables" / "proxyfw.nft"
WORLDS, FLOWS = 400, 12  # the worlds of each property, and the flows of each world


def tables_of(world: World) -> nftmodel.Tables:
    """The rendered chains, with what the pins open and the feeds hold."""
    tables = nftmodel.read(ruleset.render(world.policy, "", 2, dict.fromkeys(opened(world), 300)))
    for feed in world.policy.feeds():
        for network in LISTS[feed.source].networks():
            tables.sets[ruleset.feed_set(feed.source, network.version)].append(str(network))
    return tables


def opened(world: World) -> Iterable[ruleset.Pinned]:
    for (client, address), names in world.pins.items():
        for name in names:
            yield from ruleset.pinned(world.policy, client, name, [address])


def packet_of(flow: Flow) -> Packet:
    assert flow.destination is not None
    source = next(each for each in ADDRESSES[flow.client] if each.version == flow.destination.version)
    return Packet(source, flow.destination, flow.protocol.transport, flow.port, flow.icmp_type)


def check(world: World, flows: Iterable[Flow]) -> None:
    tables = tables_of(world)
    for flow in flows:
        end = tables.judge(packet_of(flow))
        problem = wrong(world.policy, flow, world.names(flow), HOSTS, end)
        assert not problem, f"{flow}\n{problem}\n{world.texts}\n{world.pins}"


many = settings(max_examples=WORLDS, deadline=None, suppress_health_check=list(HealthCheck))


@many
@given(st.integers(0, 2**32))
def test_the_packet_layer_decides_as_the_policy_does(seed: int) -> None:
    random = Random(seed)
    world = draw_world(random)
    check(world, [draw_flow(random, world) for _ in range(FLOWS)])


@many
@given(st.integers(0, 2**32))
def test_the_packet_layer_decides_as_the_policy_does_where_names_are_pinned(seed: int) -> None:
    random = Random(seed)
    world = draw_world(random, kinds=("host", "host", "host", "net"))
    check(world, [draw_pinned_flow(random, world) for _ in range(FLOWS)])


@many
@given(st.integers(0, 2**32))
def test_the_packet_layer_decides_as_the_policy_does_between_clients(seed: int) -> None:
    random = Random(seed)
    world = draw_world(random, kinds=("neighbour", "neighbour", "neighbour", "net", "host", "dns", "any"))
    check(world, [draw_neighbour_flow(random, world) for _ in range(FLOWS)])


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_the_same_with_choices_that_hypothesis_makes_small(random: Random) -> None:
    world = draw_world(random, kinds=(*KINDS, "neighbour"))
    draws = (draw_flow, draw_pinned_flow, draw_neighbour_flow)
    check(world, [draw(random, world) for draw in draws for _ in range(FLOWS)])


def policy(rules: str, profiles: tuple[str, ...] = (), *, exact: bool = False, observe: bool = False) -> Policy:
    """One client, at an IPv4 address, with these rules, one a line, and a closing drop."""
    entries = {f"{number:04}": line.strip() for number, line in enumerate(rules.strip().splitlines())}
    found = parse_rules({"policy": "drop", **entries})
    assert not found.broken
    assert not found.skipped
    member = Member("work", profiles, observe, addresses=ADDRESSES["work"][:1], rules={4: found}, exact=exact)
    return build(Config({}), LIBRARY, UPSTREAM, [member], CLIENT_DNS)


@pytest.mark.parametrize(
    ("rule", "lines"),
    [
        pytest.param("action=accept dst4=192.0.2.0/24", ["ip daddr 192.0.2.0/24 goto forward-it"], id="a network"),
        pytest.param("action=drop dst4=192.0.2.1", ["ip daddr 192.0.2.1/32 goto refuse-qubes"], id="a drop"),
        pytest.param("action=drop dst6=2001:db8::/32", [], id="a network of the other family matches nothing"),
        pytest.param("action=accept proto=tcp", ["meta l4proto tcp goto forward-it"], id="a protocol"),
        pytest.param("action=accept dstports=80-443",
                     ["tcp dport 80-443 goto forward-it", "udp dport 80-443 goto forward-it"],
                     id="ports without a protocol are of both"),
        pytest.param("action=accept proto=udp dstports=53-53", ["udp dport 53 goto forward-it"], id="one port"),
        pytest.param("action=drop proto=icmp", ["meta l4proto icmp goto refuse-qubes"], id="every ICMP"),
        pytest.param("action=accept proto=icmp icmptype=8 dst4=192.0.2.1",
                     ["ip daddr 192.0.2.1/32 icmp type 8 goto forward-it"], id="one ICMP type"),
        pytest.param("action=accept specialtarget=dns", [
            "ip daddr { 198.51.100.53, 10.139.1.1, 10.139.1.2 } tcp dport 53 goto forward-it",
            "ip daddr { 198.51.100.53, 10.139.1.1, 10.139.1.2 } udp dport 53 goto forward-it",
        ], id="the resolvers"),
        pytest.param("action=accept specialtarget=dns proto=udp dst4=198.51.100.0/24",
                     ["ip daddr { 198.51.100.53 } udp dport 53 goto forward-it"], id="the resolvers in a network"),
        pytest.param("action=accept specialtarget=dns dst4=192.0.2.1", [], id="no resolver in the network"),
        pytest.param("action=accept specialtarget=dns dstports=54-54", [], id="the resolvers on another port"),
        pytest.param("action=accept dsthost=a.example proto=tcp dstports=443-443",
                     ["tcp dport 443-443 goto to-proxy"], id="a host over TCP"),
        pytest.param("action=drop dsthost=a.example proto=udp dstports=123-123",
                     ["ip daddr @host-0-0d4 udp dport 123-123 goto refuse-qubes"], id="a host over UDP, refused"),
        pytest.param("action=accept dsthost=a.example proto=udp dstports=123-123", [
            "ip daddr @host-0-0a4 udp dport 123-123 goto hosted4",
        ], id="a host over UDP"),
        pytest.param("action=accept dsthost=a.example", [
            "meta l4proto tcp goto to-proxy",
            "ip daddr @host-0-0a4 udp dport != 443 goto hosted4",
            "ip daddr @host-0-0a4 meta l4proto != { tcp, udp } goto forward-it",
        ], id="a host over everything, less QUIC"),
        pytest.param("action=drop dsthost=a.example", [
            "meta l4proto tcp goto to-proxy",
            "ip daddr @host-0-0d4 meta l4proto udp goto refuse-qubes",
            "ip daddr @host-0-0d4 meta l4proto != { tcp, udp } goto refuse-qubes",
        ], id="a host over everything, refused"),
        pytest.param("action=accept dsthost=a.example proto=icmp icmptype=8",
                     ["ip daddr @host-0-0a4 icmp type 8 goto forward-it"], id="a host, pinged"),
        pytest.param("action=accept dsthost=192.0.2.1", ["ip daddr 192.0.2.1/32 goto forward-it"],
                     id="an address in place of a host"),
    ],
)  # fmt: skip
def test_what_a_rule_becomes(rule: str, lines: list[str]) -> None:
    text = ruleset.render(policy(rule), "", 2)
    found = [" ".join(words) for words in nftmodel.read(text).chains["rules-0-4"]]
    assert [_sorted(line) for line in found] == [_sorted(line) for line in lines]


def _sorted(line: str) -> str:
    """With the elements of a set in order: the resolvers have none."""
    return re.sub(r"\{ (.*?) \}", lambda match: str(sorted(match[1].split(", "))), line)


def test_the_order_of_a_listed_clients_chain() -> None:
    rules = "action=accept dst4=10.137.0.12/32 proto=tcp\naction=drop dsthost=a.example"
    chains = nftmodel.read(ruleset.render(policy(rules), "", 2)).chains
    lines = [" ".join(words) for words in chains["client-0"]]
    neighbour, internal = "ip daddr { 10.137.0.12 } jump within-0-4", "ip daddr @never4 goto refuse-internal"
    assert lines.index(neighbour) < lines.index(internal)
    assert lines[-3:] == [
        "meta nfproto ipv4 jump rules-0-4",
        "meta l4proto tcp goto to-proxy",
        "goto refuse-no-name",
    ]


def test_the_chain_to_neighbours_has_every_drop_and_the_accepts_that_name_one_address() -> None:
    rules = """
        action=accept dst4=10.0.0.0/8
        action=drop dst4=10.137.0.0/24 proto=udp
        action=accept proto=tcp
        action=accept dsthost=a.example
        action=drop dsthost=b.example proto=udp
        action=accept dst4=10.137.0.12/32
        action=accept specialtarget=dns
    """
    chains = nftmodel.read(ruleset.render(policy(rules), "", 2)).chains
    assert [" ".join(words) for words in chains["within-0-4"]] == [
        "ip daddr 10.137.0.0/24 meta l4proto udp goto refuse-qubes",
        "ip daddr @host-0-1d4 meta l4proto udp goto refuse-qubes",
        "ip daddr 10.137.0.12/32 goto forward-within",
    ]


def test_only_internal_addresses_are_neighbours() -> None:
    rules = "action=accept dst4=192.0.2.1/32 proto=tcp\naction=accept dst4=192.168.1.1/32"
    assert "within-0-4" not in nftmodel.read(ruleset.render(policy(rules), "", 2)).chains
    both = policy(f"{rules}\naction=accept dst4=10.137.0.12/32")
    lines = [" ".join(words) for words in nftmodel.read(ruleset.render(both, "", 2)).chains["client-0"]]
    assert [line for line in lines if "within" in line] == ["ip daddr { 10.137.0.12 } jump within-0-4"]


@pytest.mark.parametrize(
    ("policies", "last"),
    [
        pytest.param({"policy": "accept"}, "goto forward-it", id="the policy accepts"),
        pytest.param({"policy": "drop"}, "goto refuse-qubes", id="the policy drops"),
        pytest.param({"policy": "drop", "0000": "action=accept"}, "goto forward-it", id="a bare accept"),
        pytest.param({"policy": "accept", "0000": "action=drop"}, "goto refuse-qubes", id="a bare drop"),
    ],
)
def test_the_closing_rule_ends_the_chain_of_a_client_that_is_not_listed(policies: Mapping[str, str], last: str) -> None:
    member = Member("10.137.0.11", addresses=ADDRESSES["work"][:1], rules={4: parse_rules(policies)}, exact=True)
    built = build(Config({}), LIBRARY, UPSTREAM, [member], CLIENT_DNS)
    chains = nftmodel.read(ruleset.render(built, "", 2)).chains
    assert " ".join(chains["rules-0-4"][-1]) == last
    assert " ".join(chains["client-0"][-1]) == "meta nfproto ipv4 goto rules-0-4"
    assert ["meta", "nfproto", "ipv6", "goto", "refuse-qubes"] in chains["client-0"]  # of that, no rules are known


def test_broken_rules_close_their_own_client_alone() -> None:
    six = parse_rules({"policy": "drop"})
    broken = Member("work", ("nets",), addresses=ADDRESSES["work"], rules={4: parse_rules({"policy": "no"}), 6: six})
    whole = Member("study", ("nets",), addresses=ADDRESSES["study"], rules={4: parse_rules({"policy": "drop"})})
    with_it = build(Config({}), LIBRARY, UPSTREAM, [broken, whole])
    tables = nftmodel.read(ruleset.render(with_it, "", 2))
    granted = ip_address("203.0.113.1")
    for protocol in ("tcp", "udp", "icmp"):
        assert tables.judge(Packet(ADDRESSES["work"][0], granted, protocol, 53)) == "refuse-qubes"
        assert tables.judge(Packet(ADDRESSES["study"][0], granted, protocol)) == "forward-it"
    assert tables.judge(Packet(ADDRESSES["work"][1], ip_address("2001:db8:2::1"), "tcp", 22)) == "forward-it"
    # A family without any rules is one of which nobody has said what it may.
    assert tables.judge(Packet(ADDRESSES["study"][1], ip_address("2001:db8:2::1"), "tcp", 22)) == "refuse-qubes"


def test_the_sets_of_a_host_hold_what_it_was_told_for() -> None:
    work = policy("action=accept dsthost=a.example\naction=drop dsthost=b.example\naction=drop dsthost=a.example")
    told = [ip_address(text) for text in ("192.0.2.1", "192.168.1.1", "2001:db8::1")]
    assert [(pin.set, str(pin.address)) for pin in ruleset.pinned(work, "work", HOSTS[0], told)] == [
        ("host-0-0a4", "192.0.2.1"),
        ("host-0-0d4", "192.0.2.1"),
        ("host-0-0d4", "192.168.1.1"),  # a name grant reaches no private address; a drop holds there too
    ]
    assert list(ruleset.pinned(work, "work", HOSTS[1], told[:1])) == [("host-0-1d4", told[0])]
    assert list(ruleset.pinned(work, "work", Hostname("z.example"), told)) == []
    exact = policy("action=accept dsthost=a.example", exact=True)
    assert list(ruleset.pinned(exact, "work", HOSTS[0], told)) == [("host-0-0a4", told[0]), ("host-0-0a4", told[1])]


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a network namespace")
def test_nft_takes_what_is_rendered(tmp_path: Path) -> None:
    files = []
    for seed in range(60):
        random = Random(seed)
        world = draw_world(random)
        text = ruleset.render(
            world.policy, SKELETON.read_text(), 2, dict.fromkeys(opened(world), 300), random.random() < 0.5
        )
        files.append(tmp_path / f"{seed}.nft")
        files[-1].write_text(text)
    check = 'for file; do nft -c -f "$file" || exit; done'
    done = subprocess.run(["unshare", "-n", "sh", "-c", check, "sh", *files], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# The model itself.


def model(*lines: str, sets: str = "") -> nftmodel.Tables:
    rules = "\n".join(f"\t\t{line}" for line in lines)
    return nftmodel.read(
        f"table inet proxyfw\ndelete table inet proxyfw\ntable inet proxyfw {{\n{sets}"
        f"\tchain client-0 {{\n{rules}\n\t}}\n"
        "\tchain other {\n\t\tudp dport 53 goto to-relay\n\t}\n}\n"
        "add element inet proxyfw clients4 { 10.0.0.1 : goto client-0 }\n"
        "add element inet proxyfw clients6 { fd00::1 : goto client-0 }\n"
        "add element inet proxyfw pins4 { 10.0.0.1 . 192.0.2.1 . 123 timeout 300s }\n"
    )


A, B = ip_address("10.0.0.1"), ip_address("192.0.2.1")
A6, B6 = ip_address("fd00::1"), ip_address("2001:db8::1")


@pytest.mark.parametrize(
    ("line", "packet", "held"),
    [
        ("ip daddr 192.0.2.0/24", Packet(A, B, "tcp", 80), True),
        ("ip daddr { 192.0.2.2, 192.0.2.1 }", Packet(A, B, "icmp"), True),
        ("ip daddr 192.0.3.0/24", Packet(A, B, "tcp", 80), False),
        ("ip daddr 0.0.0.0/0", Packet(A6, B6, "tcp", 80), False),
        ("ip6 daddr ::/0", Packet(A6, B6, "udp", 80), True),
        ("ip daddr @some4", Packet(A, B, "udp", 80), True),
        ("meta nfproto ipv4", Packet(A6, B6, "udp", 80), False),
        ("meta l4proto tcp", Packet(A6, B6, "tcp", 80), True),
        ("meta l4proto != { tcp, udp }", Packet(A, B, "tcp", 80), False),
        ("meta l4proto != { tcp, udp }", Packet(A, B, "other"), True),
        ("meta l4proto icmp", Packet(A6, B6, "icmp"), False),
        ("meta l4proto ipv6-icmp", Packet(A6, B6, "icmp"), True),
        ("tcp dport 80-443", Packet(A, B, "tcp", 443), True),
        ("tcp dport 80-443", Packet(A, B, "tcp", 444), False),
        ("tcp dport 80-443", Packet(A, B, "udp", 100), False),
        ("udp dport 1-1000 udp dport != 443", Packet(A, B, "udp", 442), True),
        ("udp dport 1-1000 udp dport != 443", Packet(A, B, "udp", 443), False),
        ("meta l4proto { tcp, udp } th dport 53", Packet(A, B, "tcp", 53), True),
        ("th dport 53", Packet(A, B, "icmp"), False),
        ("icmp type 8", Packet(A, B, "icmp", 0, 8), True),
        ("icmp type 8", Packet(A, B, "icmp", 0, 0), False),
        ("icmp type 8", Packet(A6, B6, "icmp", 0, 8), False),
        ("icmpv6 type 128", Packet(A6, B6, "icmp", 0, 128), True),
        ("ip saddr . ip daddr . udp dport @pins4", Packet(A, B, "udp", 123), True),
        ("ip saddr . ip daddr . udp dport @pins4", Packet(A, B, "udp", 124), False),
        ("ip saddr . ip daddr . udp dport @pins4", Packet(A, B, "tcp", 123), False),
    ],
)
def test_the_model_matches_as_nft_does(line: str, packet: Packet, held: bool) -> None:
    some = "\tset some4 { type ipv4_addr; flags interval; elements = { 198.51.100.0/24, 192.0.2.0/30 } }\n"
    tables = model(f"{line} goto forward-it", "goto refuse-no-name", sets=some)
    assert tables.judge(packet) == ("forward-it" if held else "refuse-no-name")


def test_the_model_comes_back_from_a_jump_and_not_from_a_goto() -> None:
    assert model("jump other", "goto forward-it").judge(Packet(A, B, "udp", 54)) == "forward-it"
    assert model("jump other", "goto forward-it").judge(Packet(A, B, "udp", 53)) == "to-relay"
    assert model("goto other", "goto forward-it").judge(Packet(A, B, "udp", 54)) == "nowhere"
    assert model("goto forward-it").judge(Packet(B, A, "udp", 54)) == ""


@pytest.mark.parametrize(
    "line",
    [
        "ip ttl 5 goto forward-it",
        "ip daddr @nothing goto forward-it",
        "ip daddr 192.0.2.1 accept",
        "tcp dport http goto forward-it",
        "meta l4proto sctp goto forward-it",
        "tcp dport { 80, 443 } goto forward-it",
        "goto nowhere-known",
    ],
)
def test_the_model_does_not_guess(line: str) -> None:
    with pytest.raises((UnknownSyntax, ValueError)):
        model(line).judge(Packet(A, B, "tcp", 80))


def test_another_protocol_is_for_addresses_alone() -> None:
    work = policy("action=accept dst4=192.0.2.0/25\naction=drop dst4=192.0.2.0/24")
    tables = nftmodel.read(ruleset.render(work, "", 2))
    ends = {
        str(each): tables.judge(packet_of(Flow("work", Protocol.OTHER, ip_address(each), 0)))
        for each in ("192.0.2.1", "192.0.2.200", "192.0.3.1")
    }
    assert ends == {"192.0.2.1": "forward-it", "192.0.2.200": "refuse-qubes", "192.0.3.1": "refuse-no-name"}
