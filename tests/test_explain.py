"""What `explain` says of a target, with and without a running service to tell of pins."""

from dataclasses import replace
from typing import Any

import pytest

from proxyfw.core.addresslist import AddressList, parse_networks
from proxyfw.core.clients import members
from proxyfw.core.config import parse_config
from proxyfw.core.netvm import World, read_netvm
from proxyfw.core.policy import Policy, build
from proxyfw.core.profile import link, parse_profile
from proxyfw.core.target import parse_target
from proxyfw.core.wanted import parse_wanted
from proxyfw.explain import client_report, explain, still_refused

PROFILES = {
    "github": 'domains: [github.com, "*.github.com", "github.com:22", ".pool.example:123/udp"]\n'
    'networks: ["140.82.112.0/20:22"]\n',
    "home": "domains: [nas.example:22]\n",
}
CONFIG = """\
clients:
  work: {profiles: [github, home], address: 10.137.0.11}
  seen: {profiles: [github], mode: observe, address: 10.137.0.12}
  away: {profiles: [github], address: 10.137.0.13, upstream_proxy: "socks5://10.137.0.5:9050"}
dns: {upstream: [10.139.1.1]}
"""
PINS: list[dict[str, Any]] = [
    {"name": "github.com", "address": "198.51.100.10", "seconds": 299},
    {"name": "pages.example", "address": "198.51.100.10", "seconds": 60},
    {"name": "0.pool.example", "address": "198.51.100.61", "seconds": 0},
    {"name": "nas.example", "address": "192.168.1.1", "seconds": 30},
]
DNS_GITHUB = "  dns:     resolves: domain (a profile grants this name)"
DNS_REFUSED = "  dns:     does not resolve: no-match (no profile of this client grants this name)"
NO_PINS = "  pins:    none: the client was told no address for it lately"


def policy() -> Policy:
    found = {}
    for name, text in PROFILES.items():
        profile, problems = parse_profile(name, f"{name}.yaml", text)
        assert profile is not None, problems
        found[name] = profile
    config, problems = parse_config("proxyfw.yaml", CONFIG)
    assert config is not None, problems
    return build(config, link(found)[0], ())


def told(client: str, target: str, pins: list[dict[str, Any]] | None) -> list[str]:
    asked = parse_target(target)
    return client_report(client, asked, explain(policy(), client, asked, pins))


@pytest.mark.parametrize(
    ("target", "lines"),
    [
        pytest.param("https://api.github.com/meta", [
            "allow: work -> api.github.com port 443/tcp",
            "  reason:  domain (a profile grants this name)",
            "  rule:    github: *.github.com (github.yaml:1)",
            DNS_GITHUB,
            NO_PINS,
        ], id="a name that is granted"),
        pytest.param("github.com:22", [
            "allow: work -> github.com port 22/tcp",
            "  reason:  domain (a profile grants this name)",
            "  rule:    github: github.com:22 (github.yaml:1)",
            DNS_GITHUB,
            "  pins:    github.com = 198.51.100.10 (for 4 min)",
        ], id="a port that a pattern names, by name"),
        pytest.param("198.51.100.10:22", [
            "allow: work -> 198.51.100.10 port 22/tcp",
            "  reason:  pin (a profile grants this port of the name, at the addresses that the client was told for it)",
            "  rule:    github: github.com:22 (github.yaml:1)",
            "  pins:    github.com = 198.51.100.10 (for 4 min), pages.example = 198.51.100.10 (for 1 min)",
        ], id="the same by an address that was told for it"),
        pytest.param("198.51.100.10:2222", [
            "deny: work -> 198.51.100.10 port 2222/tcp",
            "  reason:  no-match (no profile of this client grants this name)",
            "  detail:  granted on 80/tcp, 443/tcp, 22/tcp",
            "  pins:    github.com = 198.51.100.10 (for 4 min), pages.example = 198.51.100.10 (for 1 min)",
            '  to allow it: sudo proxyfw allow work github.com:2222',
        ], id="another port of that address"),
        pytest.param("0.pool.example:123/udp", [
            "allow: work -> 0.pool.example port 123/udp",
            "  reason:  pin (a profile grants this port of the name, at the addresses that the client was told for it)",
            "  rule:    github: .pool.example:123/udp (github.yaml:1)",
            DNS_GITHUB,
            "  pins:    0.pool.example = 198.51.100.61 (in use)",
        ], id="a UDP port"),
        pytest.param("github.com:123/udp", [
            "deny: work -> github.com port 123/udp",
            "  reason:  no-match (no profile of this client grants this name)",
            "  detail:  granted on 80/tcp, 443/tcp, 22/tcp",
            DNS_GITHUB,
            "  pins:    github.com = 198.51.100.10 (for 4 min)",
            '  to allow it: sudo proxyfw allow work github.com:123/udp',
        ], id="a UDP port that is not granted"),
        pytest.param("192.168.1.1:22", [
            "deny: work -> 192.168.1.1 port 22/tcp",
            "  reason:  private-address (the name is granted, but not at private addresses)",
            "  rule:    home: nas.example:22",
            "  pins:    nas.example = 192.168.1.1 (for 30 s)",
        ], id="a private address"),
        pytest.param("140.82.112.3:22", [
            "allow: work -> 140.82.112.3 port 22/tcp",
            "  reason:  network (a profile grants this address)",
            "  rule:    github: 140.82.112.0/20:22 (github.yaml:2)",
            NO_PINS,
        ], id="an address that is granted"),
        pytest.param("10.139.1.1:53/udp", [
            "allow: work -> 10.139.1.1 port 53/udp",
            "  reason:  relay (DNS is answered by the relay, whatever resolver it is aimed at)",
            NO_PINS,
        ], id="a resolver"),
        pytest.param("evil.example", [
            "deny: work -> evil.example port 443/tcp",
            "  reason:  no-match (no profile of this client grants this name)",
            DNS_REFUSED,
            NO_PINS,
            '  to allow it: sudo proxyfw allow work evil.example',
        ], id="a name that is not"),
        pytest.param("198.51.100.1:22", [
            "deny: work -> 198.51.100.1 port 22/tcp",
            "  reason:  no-name (no name can be read from it, and no profile of this client grants the address)",
            NO_PINS,
            "  to allow it: sudo proxyfw allow work 198.51.100.1:22",
        ], id="an address that is not granted"),
        pytest.param("[2001:db8::7]:123/udp", [
            "deny: work -> [2001:db8::7] port 123/udp",
            "  reason:  no-name (no name can be read from it, and no profile of this client grants the address)",
            NO_PINS,
            "  to allow it: sudo proxyfw allow work '[2001:db8::7]:123/udp'",
        ], id="an IPv6 address that is not granted"),
        pytest.param("198.51.100.10:443", [
            "deny: work -> 198.51.100.10 port 443/tcp",
            "  reason:  no-name (no name can be read from it, and no profile of this client grants the address)",
            "  detail:  granted on 80/tcp, 443/tcp, 22/tcp",
            "  pins:    github.com = 198.51.100.10 (for 4 min), pages.example = 198.51.100.10 (for 1 min)",
            "  to allow it: sudo proxyfw allow work github.com:443",
        ], id="an address that was told for a name, on a port that needs the name to be said"),
        pytest.param("10.137.0.1:22", [
            "deny: work -> 10.137.0.1 port 22/tcp",
            "  reason:  internal-address (the netvm, other clients and internal ranges are never reached)",
            NO_PINS,
        ], id="an internal address"),
        pytest.param("mask.icloud.com", [
            "deny: work -> mask.icloud.com port 443/tcp",
            "  reason:  no-match (no profile of this client grants this name)",
            "  dns:     does not resolve: canary (a name by which clients ask whether to use another resolver: "
            "always refused)",
            NO_PINS,
            '  to allow it: sudo proxyfw allow work mask.icloud.com',
        ], id="a canary"),
    ],
)  # fmt: skip
def test_explain(target: str, lines: list[str]) -> None:
    assert told("work", target, PINS) == lines


def test_without_a_service_the_pins_are_not_known() -> None:
    lines = told("work", "198.51.100.10:22", None)
    assert lines[0] == "deny: work -> 198.51.100.10 port 22/tcp"
    assert "  pins:    not known, as no service is running here" in lines


def test_explain_of_what_observe_mode_lets_through() -> None:
    lines = told("seen", "evil.example", [])
    assert lines[0] == "observe: seen -> evil.example port 443/tcp"
    assert "  mode:    observe: it is logged as refused, and let through" in lines
    assert lines[-1] == "  to allow it: sudo proxyfw allow seen evil.example"


RULED = """\
clients:
  work: {profiles: [github], address: 10.137.0.11}
dns: {upstream: [10.139.1.1]}
"""
RULES = ["action=drop dst4=192.0.2.0/24", "action=accept dsthost=mail.example proto=tcp dstports=25-25",
         "action=drop dsthost=gist.github.com", "action=drop dst4=198.51.100.0/24 proto=udp"]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "lines"),
    [
        pytest.param("192.0.2.9:22", [
            "deny: work -> 192.0.2.9 port 22/tcp",
            "  reason:  qubes-rule (a Qubes firewall rule of this client says so)",
            "  rule:    qubes 0000: action=drop dst4=192.0.2.0/24",
            "  pins:    not known, as no service is running here",
            "  to allow it: change the rule in dom0 (qvm-firewall work list)",
        ], id="dropped by address"),
        pytest.param("https://gist.github.com", [
            "deny: work -> gist.github.com port 443/tcp",
            "  reason:  qubes-rule (a Qubes firewall rule of this client says so)",
            "  rule:    qubes 0002: action=drop dsthost=gist.github.com",
            "  but:     by its address, these decide first: qubes 0000: action=drop dst4=192.0.2.0/24",
            "  dns:     does not resolve: qubes-rule (a Qubes firewall rule of this client says so)",
            "  pins:    not known, as no service is running here",
            "  to allow it: change the rule in dom0 (qvm-firewall work list)",
        ], id="a name that is dropped"),
        pytest.param("mail.example:25", [
            "allow: work -> mail.example port 25/tcp",
            "  reason:  qubes-rule (a Qubes firewall rule of this client says so)",
            "  rule:    qubes 0001: action=accept dsthost=mail.example proto=tcp dstports=25-25",
            "  but:     by its address, these decide first: qubes 0000: action=drop dst4=192.0.2.0/24",
            "  dns:     resolves: qubes-rule (a Qubes firewall rule of this client says so)",
            "  pins:    not known, as no service is running here",
        ], id="a name that is accepted"),
    ],
)  # fmt: skip
def test_qubes_firewall_rules(target: str, lines: list[str]) -> None:
    asked = parse_target(target)
    found = explain(on_qubes(RULED, "10.137.0.11"), "work", asked, None, on_qubes=True)
    assert client_report("work", asked, found) == lines
    assert found.rules_known


def on_qubes(text: str, *attached: str) -> Policy:
    """The policy where these addresses are attached, and have the rules."""
    entries = {"/connected-ips": " ".join(attached).encode()}
    for address in attached:
        entries |= {f"/qubes-firewall/{address}": b"", f"/qubes-firewall/{address}/policy": b"drop"}
        entries |= {f"/qubes-firewall/{address}/{n:04}": rule.encode() for n, rule in enumerate(RULES)}
    profile, config = parse_profile("github", "github.yaml", PROFILES["github"])[0], parse_config("c", text)[0]
    assert profile is not None
    assert config is not None
    library, _ = link({"github": profile})
    return build(config, library, (), members(config, library.profiles, World(read_netvm(entries)))[0])


NOTE = "  note: its Qubes firewall rules are not known (it is not attached, or its name is not known)"


@pytest.mark.parametrize(
    ("text", "attached"),
    [
        pytest.param("clients: {work: [github]}\n", "10.137.0.11", id="nobody tells whose address it is"),
        pytest.param("clients: {work: {profiles: [github], address: 10.137.0.11}}\n", "10.137.0.12",
                     id="it is not attached"),
    ],
)  # fmt: skip
def test_where_the_rules_of_a_client_are_not_known_that_is_said(text: str, attached: str) -> None:
    asked = parse_target("https://gist.github.com")
    found = explain(on_qubes(text, attached), "work", asked, None, on_qubes=True)
    lines = client_report("work", asked, found)
    assert lines[0] == "allow: work -> gist.github.com port 443/tcp"
    assert NOTE in lines
    assert not found.rules_known
    outside = explain(on_qubes(text), "work", asked, None)
    assert NOTE not in client_report("work", asked, outside)


def test_a_qube_that_is_known_by_its_address_alone_has_no_name_for_a_command() -> None:
    asked = parse_target("192.0.2.9:22")
    unlisted = on_qubes("unlisted: qubes\n", "10.137.0.11")
    lines = client_report("10.137.0.11", asked, explain(unlisted, "10.137.0.11", asked, None, on_qubes=True))
    assert lines[0] == "deny: 10.137.0.11 -> 192.0.2.9 port 22/tcp"
    hint = "  to allow it: change the rule in dom0, in the firewall tab of the qube that has this address"
    assert lines[-1] == hint


@pytest.mark.parametrize("target", ["192.0.2.1:443/udp", "github.com:123/udp"])
def test_of_a_client_with_an_upstream_proxy_only_tcp_leaves(target: str) -> None:
    lines = told("away", target, [])
    assert lines[0].startswith("deny: away -> ")
    assert lines[1] == "  reason:  unsupported (nothing but TCP leaves through the upstream proxy of this client)"


LISTED = "feeds: [{url: 'https://lists.example/a', format: text, ports: [22]}]\n"


def listed(networks: list[str] | None) -> Policy:
    profile, config = parse_profile("lists", "lists.yaml", LISTED)[0], parse_config("c", RULED)[0]
    assert profile is not None
    assert config is not None
    source = profile.feeds[0].source
    lists = {} if networks is None else {source: AddressList.of(parse_networks(networks))}
    return build(config, link({"github": profile})[0], (), lists=lists)


def test_an_address_of_a_list() -> None:
    asked = parse_target("203.0.113.9:22")
    assert client_report("work", asked, explain(listed(["203.0.113.0/24"]), "work", asked, [])) == [
        "allow: work -> 203.0.113.9 port 22/tcp",
        "  reason:  feed (a list of a profile has this address)",
        "  rule:    lists: feed https://lists.example/a (lists.yaml:1)",
        NO_PINS,
    ]
    other = parse_target("203.0.113.9:23")
    assert client_report("work", other, explain(listed(["203.0.113.0/24"]), "work", other, []))[0].startswith("deny:")


def test_a_list_that_is_not_known_here_is_named_where_it_could_permit() -> None:
    asked = parse_target("203.0.113.9:22")
    found = replace(explain(listed(None), "work", asked, []), unknown_lists=["https://lists.example/a: not yet"])
    note = "  note: not known here: what the list https://lists.example/a: not yet"
    assert note in client_report("work", asked, found)
    name = parse_target("evil.example")
    by_name = replace(explain(listed(None), "work", name, []), unknown_lists=found.unknown_lists)
    assert note not in client_report("work", name, by_name)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        pytest.param("github.com", [
            "by its address, these decide first: qubes 0000: action=drop dst4=192.0.2.0/24",
        ], id="a name whose addresses may be dropped"),
        pytest.param("gist.github.com", [
            "it is refused all the same: qubes-rule (a Qubes firewall rule of this client says so); "
            "qubes 0002: action=drop dsthost=gist.github.com",
            "change the rule in dom0 (qvm-firewall work list)",
        ], id="a name that a rule drops"),
        pytest.param("192.0.2.7:22", [
            "it is refused all the same: qubes-rule (a Qubes firewall rule of this client says so); "
            "qubes 0000: action=drop dst4=192.0.2.0/24",
            "change the rule in dom0 (qvm-firewall work list)",
        ], id="an address that a rule drops"),
        pytest.param("140.82.112.0/20:22", [], id="a network that is granted"),
        pytest.param("10.137.0.9:22", [
            "it is refused all the same: internal-address "
            "(the netvm, other clients and internal ranges are never reached)",
        ], id="an internal address"),
    ],
)  # fmt: skip
def test_what_stands_against_a_grant(wanted: str, said: list[str]) -> None:
    assert still_refused(on_qubes(RULED, "10.137.0.11"), "work", parse_wanted(wanted, "github")) == said


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        pytest.param("mask.icloud.com", [
            "its name does not resolve: canary (a name by which clients ask whether to use another resolver: "
            "always refused)",
        ], id="a canary"),
        pytest.param(".example.org", [], id="a name and all below"),
        pytest.param("*.example.org:8443", [], id="all below, on a port"),
        pytest.param("r*.example.org", [], id="a star in a label"),
        pytest.param("ntp.example:123/udp", [], id="a UDP port"),
    ],
)  # fmt: skip
def test_what_stands_against_the_grant_of_a_name(entry: str, said: list[str]) -> None:
    profile, config = parse_profile("github", "p.yaml", f'domains: ["{entry}"]\n')[0], parse_config("c", RULED)[0]
    assert profile is not None
    assert config is not None
    policy = build(config, link({"github": profile})[0], ())
    assert still_refused(policy, "work", profile.domains[0]) == said
