"""The rendered ruleset: in the order of decision, and text that nft takes. What packets do is tested in the lab."""

import os
import re
import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest

from proxyfw.core import ruleset
from proxyfw.core.clients import Member
from proxyfw.core.config import Config, parse_config
from proxyfw.core.hostname import Hostname
from proxyfw.core.nftbatch import element
from proxyfw.core.policy import Policy, build
from proxyfw.core.profile import Library, link, parse_profile
from proxyfw.core.qubes_rules import DNS_PORT

SKELETON = Path(__file__).parents[2] / "iptables" / "proxyfw.nft"

WORK = """\
clients:
  work:
    profiles: [p]
    address: [10.137.0.11, "fd09:24ef:4179::a89:b"]
dns: {upstream: [10.139.1.1, "2001:db8::53"]}
"""
STUDY = """\
clients:
  study: {profiles: [p], mode: observe, address: 10.137.0.12}
dns: {upstream: [10.139.1.1]}
"""
OVERLAPPING = """\
networks:
  - 192.0.2.0/24
  - 192.0.2.0/25
  - 192.0.2.7
  - "192.0.2.8:22"
  - "192.0.2.0/28:22"
  - "198.51.100.0/25:123/udp"
  - "198.51.100.128/25:123/udp"
  - 2001:db8::/32
  - 2001:db8:1::/48
  - "[2001:db8::/48]:22"
"""
EVERYTHING = 'networks: [0.0.0.0/0, "::/0"]\n'
NOTHING = "domains: [github.com]\n"


def policy(config: str, profile: str = NOTHING) -> Policy:
    parsed, problems = parse_config("proxyfw.yaml", config)
    assert parsed is not None, problems
    read, problems = parse_profile("p", "p.yaml", profile)
    assert read is not None, problems
    library, _ = link({"p": read})
    return build(parsed, library, upstream=((ip_address("198.51.100.53"), 53),))


def chain(text: str, name: str) -> list[str]:
    """The rules of one chain of rendered text."""
    body = text.partition(f"chain {name} {{\n")[2].partition("\n\t}")[0]
    return [line.strip() for line in body.splitlines()]


def test_a_chain_follows_the_order_of_decision() -> None:
    rules = chain(ruleset.render(policy(WORK, OVERLAPPING), "", 2), "client-0")
    assert rules == [
        "udp dport 53 goto to-relay",
        "tcp dport 53 goto to-relay",
        "ip daddr @never4 goto refuse-internal",
        "ip6 daddr @never6 goto refuse-internal",
        "ip daddr { 192.0.2.0/24 } goto forward-it",
        "ip6 daddr { 2001:db8::/32 } goto forward-it",
        "ip daddr { 192.0.2.0/28 } tcp dport 22 goto forward-it",
        "ip6 daddr { 2001:db8::/48 } tcp dport 22 goto forward-it",
        "ip daddr { 198.51.100.0/24 } udp dport 123 goto forward-it",
        "meta l4proto tcp goto to-proxy",
        "goto refuse-no-name",
    ]


def test_pinned_udp_ports_go_before_the_refusal_where_a_pattern_names_one() -> None:
    named = policy(WORK, 'domains: [".ntp.example:123/udp", "git.example:22"]\n')
    rules = chain(ruleset.render(named, "", 2), "client-0")
    assert rules[-6:] == [
        "meta l4proto tcp goto to-proxy",
        "ip saddr . ip daddr . udp dport @pins4 goto pinned4",
        "ip saddr . ip daddr . udp dport @used4 goto pinned4",
        "ip6 saddr . ip6 daddr . udp dport @pins6 goto pinned6",
        "ip6 saddr . ip6 daddr . udp dport @used6 goto pinned6",
        "goto refuse-no-name",
    ]


def test_an_answer_opens_the_udp_ports_of_its_name_for_each_address_of_the_client() -> None:
    work = policy(WORK, 'domains: [".ntp.example:123/udp", ".ntp.example:124/udp", "git.example:22", .example]\n')
    told = [ip_address(text) for text in ("192.0.2.1", "2001:db8::1")]
    ports = list(ruleset.pinned(work, "work", Hostname("a.ntp.example"), told))
    four, six = ip_address("10.137.0.11"), ip_address("fd09:24ef:4179::a89:b")
    assert ports == [
        (four, told[0], 123),
        (four, told[0], 124),
        (six, told[1], 123),
        (six, told[1], 124),
    ]
    assert list(ruleset.pinned(work, "work", Hostname("git.example"), told)) == []
    assert list(ruleset.pinned(work, "work", Hostname("a.ntp.example"), [ip_address("10.1.2.3")])) == []
    key = (four.packed, told[0].packed, b"\0\x7b")
    assert list(ruleset.open_pinned(ports[:1], 300)) == [
        ("pins4", True, [element(*key)]),
        ("pins4", False, [element(*key)]),
        ("pins4", True, [element(*key, seconds=300)]),
    ]
    rendered = ruleset.render(work, "", 2, dict.fromkeys(ports, 300)).splitlines()
    assert "add element inet proxyfw pins6 { fd09:24ef:4179::a89:b . 2001:db8::1 . 124 timeout 300s }" in rendered


def test_a_feed_is_a_set_that_is_filled_by_others() -> None:
    feeds = (
        "feeds:\n- {url: 'https://a.example/', format: json, select: [git], ports: [22, 123/udp]}\n"
        "- {url: 'https://a.example/', format: json}\n"
    )
    work = policy(WORK, feeds)
    one, other = (ruleset.feed_set(feed.source, 4).removesuffix("-4") for feed in work.feeds())
    text = ruleset.render(work, "", 2)
    assert chain(text, "client-0")[-8:] == [
        f"ip daddr @{one}-4 tcp dport 22 goto forward-it",
        f"ip6 daddr @{one}-6 tcp dport 22 goto forward-it",
        f"ip daddr @{one}-4 udp dport 123 goto forward-it",
        f"ip6 daddr @{one}-6 udp dport 123 goto forward-it",
        f"ip daddr @{other}-4 goto forward-it",
        f"ip6 daddr @{other}-6 goto forward-it",
        "meta l4proto tcp goto to-proxy",
        "goto refuse-no-name",
    ]
    assert [line.strip() for line in text.splitlines() if "feed-" in line and "set" in line.split()] == [
        f"set {name}-{version} {{ type {kind}; flags interval; }}"
        for name in (one, other)
        for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr"))
    ]


def test_the_skeleton_hands_queries_to_where_the_relay_takes_them() -> None:
    text = SKELETON.read_text()
    assert f"tproxy ip to {ruleset.RELAY4}:{DNS_PORT} " in text
    assert f"tproxy ip6 to [{ruleset.RELAY6}]:{DNS_PORT} " in text
    assert set(re.findall(r"set ((?:hosts-)?used\d)", text)) == set(ruleset.USED_SETS)


def test_an_observed_client_is_let_through_where_others_are_refused() -> None:
    assert chain(ruleset.render(policy(STUDY), "", 2), "client-0")[-3:] == [
        "meta l4proto tcp goto to-proxy",
        "udp dport 443 goto refuse-no-name",
        "goto observe-no-name",
    ]


def test_every_address_of_a_client_leads_to_its_chain() -> None:
    lines = ruleset.render(policy(WORK), "", 2).splitlines()
    assert "add element inet proxyfw clients4 { 10.137.0.11 : goto client-0 }" in lines
    assert "add element inet proxyfw clients6 { fd09:24ef:4179::a89:b : goto client-0 }" in lines


def test_clients_find_a_proxy_where_there_is_a_port_for_it() -> None:
    skeleton = SKELETON.read_text()
    on = [line.strip() for line in ruleset.render(policy(WORK), skeleton, 2, explicit_port=3128).splitlines()]
    assert "fib daddr type local tcp dport 3128 goto explicit" in on
    assert "add element inet proxyfw explicit4 { 10.137.0.11 : goto to-explicit }" in on
    off = ruleset.render(policy(WORK), skeleton, 2)
    assert "goto explicit\n" not in off
    assert "goto to-explicit" not in off


def test_a_client_outside_the_qubes_ranges_is_out_of_reach_for_the_others() -> None:
    text = ruleset.render(policy("clients: {work: {profiles: [p], address: 192.168.7.9}}"), "", 2)
    never = next(line for line in text.splitlines() if "set never4" in line)
    assert "192.168.7.9/32" in never


MANY = "clients:\n" + "".join(
    f"  qube-{n}: {{profiles: [p], address: [10.137.{n // 250}.{n % 250 + 1}]}}\n" for n in range(600)
)


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a network namespace")
@pytest.mark.parametrize(
    ("config", "profile"),
    [
        pytest.param(WORK, NOTHING, id="one client without networks"),
        pytest.param(WORK, OVERLAPPING, id="overlapping networks, ports, IPv6"),
        pytest.param(STUDY, OVERLAPPING, id="observe mode"),
        pytest.param(STUDY, 'domains: [".ntp.example:123/udp"]\n', id="a UDP port by name"),
        pytest.param(WORK, EVERYTHING, id="every address"),
        pytest.param(MANY, OVERLAPPING, id="600 clients"),
        pytest.param("clients: {}", NOTHING, id="no client"),
        pytest.param("clients: {work: {profiles: [p]}}", NOTHING, id="a client without an address"),
        pytest.param("clients: {a: {profiles: [p], address: 10.0.0.1}, b: {profiles: [p], address: 10.0.0.2}}",
                     NOTHING, id="neighbours outside the Qubes ranges"),
    ],
)  # fmt: skip
def test_nft_takes_it(config: str, profile: str, tmp_path: Path) -> None:
    file = tmp_path / "ruleset.nft"
    file.write_text(ruleset.render(policy(config, profile), SKELETON.read_text(), 2))
    checked = subprocess.run(["unshare", "-n", "nft", "-c", "-f", str(file)], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a network namespace")
def test_nft_takes_the_fail_safe_ruleset() -> None:
    file = SKELETON.with_name("fail-safe.nft")
    checked = subprocess.run(["unshare", "-n", "nft", "-c", "-f", str(file)], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_skeleton_logs_to_the_group_that_the_service_listens_to() -> None:
    groups = set(re.findall(r'log prefix "[^"]*" group (\S+)', SKELETON.read_text()))
    assert groups == {str(ruleset.LOG_GROUP)}


@pytest.mark.parametrize(("beside_qubes", "from_outside"), [(False, "drop"), (True, "accept")])
def test_the_skeleton_gets_its_values(beside_qubes: bool, from_outside: str) -> None:
    skeleton = "# $downstream, $proxy_port, $relay_port, $from_outside"
    text = ruleset.render(policy(WORK), skeleton, 7, beside_qubes=beside_qubes)
    assert f"# 7, {ruleset.PROXY_PORT}, {ruleset.RELAY_PORT}, {from_outside}\n" in text


def test_a_network_for_a_while_ends_in_the_kernel_too() -> None:
    parsed, _ = parse_profile("p", "p.yaml", 'temporary: [{grant: "192.0.2.7:22", until: "2026-01-31T12:00:00.5Z"}]')
    assert parsed is not None
    noon = 1769860800
    member = Member("work", ("p",), addresses=(ip_address("10.137.0.11"),))
    made = build(Config({}), Library({"p": parsed.at(noon - 60)}), (), [member])
    lines = chain(ruleset.render(made, "", 2), "client-0")
    assert f"ip daddr {{ 192.0.2.7/32 }} tcp dport 22 meta time < {noon + 1} goto forward-it" in lines
