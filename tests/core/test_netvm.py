"""A snapshot of QubesDB, read: whose rules, who is connected, which resolvers, what dom0 holds."""

import json
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.netvm import Attached, Netvm, Qube, World, read_netvm, world_as_data, world_from_data
from proxyfw.core.qubes_rules import Action, RuleSet

WORK, STUDY, SIX = (ip_address(text) for text in ("10.137.0.11", "10.137.0.12", "fd09:24ef:4179::a89:b"))

STOCK = {
    "/name": b"sys-firewall",
    "/connected-ips": b"10.137.0.11 10.137.0.12",
    "/connected-ips6": b"fd09:24ef:4179::a89:b",
    "/qubes-primary-dns": b"10.139.1.1",
    "/qubes-secondary-dns": b"10.139.1.2",
    "/qubes-netvm-primary-dns": b"10.139.1.1",
    "/qubes-netvm-secondary-dns": b"10.139.1.2",
    "/qubes-firewall/10.137.0.11": b"",
    "/qubes-firewall/10.137.0.11/policy": b"drop",
    "/qubes-firewall/10.137.0.11/0000": b"action=accept dst4=192.0.2.1/32 proto=tcp dstports=443-443",
    "/qubes-firewall/10.137.0.11/0002": b"action=drop",
    "/qubes-firewall/10.137.0.12/policy": b"accept",
    "/qubes-firewall/fd09:24ef:4179::a89:b/policy": b"accept",
    "/vm-config/proxyfw-work": b"github  pypi\n",
    "/vm-config/proxyfw-10.137.0.12": b"",
    "/vm-config/other": b"x",
    "/qubes-gateway": b"10.137.0.5",
}


def test_a_snapshot_as_a_stock_netvm_has_it() -> None:
    found = read_netvm(STOCK)
    assert found.name == "sys-firewall"
    assert found.connected == {WORK, STUDY, SIX}
    assert found.rules.keys() == {WORK, STUDY, SIX}
    assert [str(rule) for rule in found.rules[WORK].rules] == [
        "0000: action=accept dst4=192.0.2.1/32 proto=tcp dstports=443-443"
    ]
    assert [found.rules[address].closing for address in (WORK, STUDY, SIX)] == [
        Action.DROP, Action.ACCEPT, Action.ACCEPT,
    ]  # fmt: skip
    assert found.upstream == found.client_dns == (ip_address("10.139.1.1"), ip_address("10.139.1.2"))
    assert found.profiles == {"work": ("github", "pypi"), "10.137.0.12": ()}
    assert found.problems == ()


def test_an_empty_snapshot_is_of_nobody() -> None:
    assert read_netvm({}) == Netvm()


@pytest.mark.parametrize(
    ("entries", "connected"),
    [
        pytest.param({"/connected-ips": b""}, "", id="nobody"),
        pytest.param({"/connected-ips": b"10.137.0.11"}, "10.137.0.11", id="one"),
        pytest.param({"/connected-ips": b" 10.137.0.11\n10.137.0.12 "}, "10.137.0.11 10.137.0.12", id="white space"),
        pytest.param({"/qubes-firewall/10.137.0.11/policy": b"accept"}, "", id="rules alone do not connect"),
        pytest.param({"/mapped-ip/10.137.0.11/visible-ip": b"192.168.7.9"}, "", id="nor does a mapping alone"),
        pytest.param({"/mapped-ip/10.137.0.11/visible-ip": b"192.168.7.9", "/connected-ips": b"192.168.7.9"},
                     "192.168.7.9 10.137.0.11", id="who is shown another address comes from the real one"),
        pytest.param({"/mapped-ip/10.137.0.11/visible-ip": b"192.168.7.9", "/connected-ips": b"10.137.0.12"},
                     "10.137.0.12", id="somebody else is connected"),
        pytest.param({"/mapped-ip/10.137.0.11/visible-gateway": b"10.137.0.12", "/connected-ips": b"10.137.0.12"},
                     "10.137.0.12", id="the gateway that it is shown is none of it"),
        pytest.param({"/mapped-ip/x/visible-ip": b"10.137.0.12", "/connected-ips": b"10.137.0.12"},
                     "10.137.0.12", id="a mapping of no address"),
        pytest.param({"/mapped-ip/10.137.0.11/visible-ip": b"x", "/connected-ips": b"10.137.0.12"},
                     "10.137.0.12", id="a mapping to no address"),
    ],
)  # fmt: skip
def test_who_is_connected(entries: dict[str, bytes], connected: str) -> None:
    found = read_netvm(entries)
    assert found.connected == set(map(ip_address, connected.split()))
    assert found.problems == ()


def test_rules_of_a_mapped_address_are_under_the_real_one() -> None:
    found = read_netvm(
        {
            "/connected-ips": b"192.168.7.9",
            "/mapped-ip/10.137.0.11/visible-ip": b"192.168.7.9",
            "/qubes-firewall/10.137.0.11/policy": b"accept",
        }
    )
    assert found.rules == {WORK: RuleSet((), Action.ACCEPT)}
    assert WORK in found.connected


def test_an_address_without_rules_has_none_and_one_without_a_policy_is_closed() -> None:
    found = read_netvm({"/connected-ips": b"10.137.0.11 10.137.0.12", "/qubes-firewall/10.137.0.12": b""})
    assert found.rules == {STUDY: RuleSet(broken="there is no policy")}
    assert found.problems == ("firewall rules of 10.137.0.12: there is no policy",)


def test_rules_count_without_the_empty_key_that_commits_them() -> None:
    entries = {path: value for path, value in STOCK.items() if path != "/qubes-firewall/10.137.0.11"}
    assert read_netvm(entries) == read_netvm(STOCK)


def test_what_cannot_be_read_is_told_of_who_is_connected() -> None:
    bad = {
        "/connected-ips": b"10.137.0.11 10.137.0.300",
        "/qubes-firewall/10.137.0.11/policy": b"drop",
        "/qubes-firewall/10.137.0.11/0000": b"action=accept dsthost=bad..name",
        "/qubes-firewall/10.137.0.12/policy": b"drop",
        "/qubes-firewall/10.137.0.12/0000": b"action=drop dst4=bad",
        "/qubes-firewall/work/policy": b"accept",
        "/qubes-firewall/fe80::1%eth0/policy": b"accept",
    }
    found = read_netvm(bad)
    assert found.connected == {WORK}
    assert found.rules.keys() == {WORK, STUDY}
    assert not found.rules[WORK].broken
    assert found.rules[STUDY].broken  # closed, and it is nobody's: not told
    assert found.problems == (
        'connected addresses: "10.137.0.300" is not an address',
        "/qubes-firewall/work/policy: this is not the path of an address",
        "/qubes-firewall/fe80::1%eth0/policy: this is not the path of an address",
        'firewall rules of 10.137.0.11: rule 0000 is left out ("action=accept dsthost=bad..name"): "bad..name": '
        "a label is empty (two dots in a row, or a dot at the start)",
    )


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("work", True),
        ("work-2.a_b", True),
        ("10.137.0.12", True),
        ("fd09:24ef:4179::a89:b", True),
        ("fd09:24ef:4179::a89:b%eth0", False),
        ("fd09:24ef:4179:0::a89:b", False),
        ("FD09:24ef:4179::a89:b", False),
        ("10.137.0.300", False),
        ("", False),
        ("-work", False),
        ("a/b", False),
        ("a@b", False),
        ("a:b", False),
        ("tag:x", False),
        ('a"; accept', False),
        ("work\n", False),
        ("x" * 32, False),
    ],
)
def test_only_a_name_or_an_address_is_one_that_dom0_holds_profiles_for(name: str, counts: bool) -> None:
    found = read_netvm({f"/vm-config/proxyfw-{name}": b"github"})
    problem = f'/vm-config/proxyfw-{name}: "{name}" is neither the name of a qube nor an address at its shortest'
    assert (found.profiles, found.problems) == (({name: ("github",)}, ()) if counts else ({}, (problem,)))


@pytest.mark.parametrize(
    "attached",
    [
        None,
        Attached(()),
        Attached((Qube("a", (WORK, SIX), frozenset({"x", "y"}), True), Qube("b", (), frozenset(), False))),
    ],
    ids=["nothing told", "nobody", "two"],
)
def test_the_world_that_a_command_is_told_is_the_same(attached: Attached | None) -> None:
    entries = {**STOCK, "/vm-config/odd": b"\xff\0"}
    told = json.loads(json.dumps(world_as_data(entries, attached)))
    assert world_from_data(told, 0.0) == World(read_netvm(entries), attached)
    assert attached is None or attached.names == {qube.name for qube in attached.qubes}


def test_bytes_that_are_no_text_close() -> None:
    found = read_netvm({"/qubes-firewall/10.137.0.11/policy": b"drop", "/qubes-firewall/10.137.0.11/0000": b"\xff\xfe"})
    assert found.rules[WORK].broken


def test_rules_run_out_by_the_clock_that_is_given() -> None:
    entries = {
        "/qubes-firewall/10.137.0.11/policy": b"drop",
        "/qubes-firewall/10.137.0.11/0000": b"action=accept dst4=192.0.2.1 expire=1000 comment=for now",
    }
    assert [len(read_netvm(entries, now).rules[WORK].rules) for now in (999.0, 1000.0)] == [1, 0]


@pytest.mark.parametrize(
    ("entries", "upstream"),
    [
        pytest.param({}, "", id="none"),
        pytest.param({"/qubes-primary-dns": b"10.139.1.1"}, "10.139.1.1", id="one"),
        pytest.param({"/qubes-secondary-dns": b"10.139.1.2"}, "10.139.1.2", id="the second alone"),
        pytest.param({"/qubes-primary-dns": b"10.139.1.1", "/qubes-secondary-dns": b"10.139.1.1"}, "10.139.1.1",
                     id="the same twice"),
        pytest.param({"/qubes-primary-dns": b"", "/qubes-secondary-dns": b"dns.example"}, "", id="no addresses"),
        pytest.param({"/qubes-primary-dns": b"fd00::53"}, "fd00::53", id="IPv6"),
    ],
)  # fmt: skip
def test_the_resolvers(entries: dict[str, bytes], upstream: str) -> None:
    wanted = tuple(map(ip_address, upstream.split()))
    found = read_netvm(entries)
    assert (found.upstream, found.client_dns) == (wanted, ())
    of_clients = read_netvm({path.replace("/qubes-", "/qubes-netvm-"): value for path, value in entries.items()})
    assert (of_clients.upstream, of_clients.client_dns) == ((), wanted)


odd = "/qubes-firewall/ /qubes-firewall// /qubes-firewall/10.137.0.11/0000/x /vm-config/proxyfw- /mapped-ip/"
paths = st.sampled_from([*STOCK, *odd.split(), "/mapped-ip//visible-ip", "/mapped-ip/visible-ip"])


@given(st.dictionaries(paths | st.text(max_size=20), st.binary(max_size=40) | st.sampled_from([*STOCK.values()])))
def test_any_snapshot_is_read(entries: dict[str, bytes]) -> None:
    found = read_netvm(entries)
    for address, rules in found.rules.items():
        policy = entries.get(f"/qubes-firewall/{address}/policy")
        assert rules.broken or policy in (b"accept", b"drop")
