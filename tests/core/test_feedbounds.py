"""Lists that are held back, each with its reason, and what owners do with their lists every day."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.address import AddressKind, IPNetwork, kind_of
from proxyfw.core.addresslist import EMPTY, AddressList
from proxyfw.core.feedbounds import MAX_PREFIXES, objection


def a_list(*texts: str) -> AddressList:
    return AddressList.of(map(ip_network, texts))


def hosts(many: int, first: str = "20.0.0.0", step: int = 2) -> AddressList:
    """So many addresses, none of which touches another."""
    value = int(ip_address(first))
    return AddressList.of(IPv4Network((value + step * number, 32)) for number in range(many))


def sites(many: int, length: int = 64) -> AddressList:
    """So many IPv6 networks, none of which touches another."""
    value = int(ip_address("2600::"))
    return AddressList.of(IPv6Network((value + (2 * number << 128 - length), length)) for number in range(many))


def both(*lists: AddressList) -> AddressList:
    return AddressList.of(network for each in lists for network in each.networks())


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        pytest.param(EMPTY, "the list is empty", id="nothing"),
        pytest.param(a_list("0.0.0.0/0"), "0.0.0.0/0 is wider than /8", id="everything"),
        pytest.param(a_list("::/0"), "::/0 is wider than /19", id="everything, IPv6"),
        pytest.param(a_list("0.0.0.0/1", "128.0.0.0/1"), "0.0.0.0/0 is wider than /8", id="everything, in two halves"),
        pytest.param(a_list("192.0.2.0/24", "20.0.0.0/7"), "20.0.0.0/7 is wider than /8", id="a /7"),
        pytest.param(a_list("20.0.0.0/8", "21.0.0.0/8"), "20.0.0.0/7 is wider than /8", id="two that make a /7"),
        pytest.param(a_list("20.0.0.0/8"), "", id="a /8"),
        pytest.param(a_list("21.0.0.0/8", "22.0.0.0/8"), "", id="two that touch and make no /7"),
        pytest.param(a_list("2600::/18"), "2600::/18 is wider than /19", id="an IPv6 /18"),
        pytest.param(a_list("2600::/19"), "", id="an IPv6 /19"),
        pytest.param(hosts(MAX_PREFIXES + 1), "it has 131,073 networks, and 131,072 are the most", id="one too many"),
        pytest.param(
            AddressList.of(ip_network(f"{first}.0.0.0/8") for first in range(21, 55, 2)),
            "it has 285,212,672 IPv4 addresses, and 268,435,456 are the most",
            id="17 networks /8",
        ),
        pytest.param(
            AddressList.of(ip_network(f"{first}.0.0.0/8") for first in range(21, 53, 2)), "", id="16 networks /8"
        ),
        pytest.param(sites(17, 19), "it has 1.10e+34 IPv6 addresses, and 1.04e+34 are the most", id="17 of /19"),
        pytest.param(sites(16, 19), "", id="16 networks /19"),
        pytest.param(a_list("10.0.0.0/8"), "10.0.0.0/8 overlaps 10.0.0.0/8", id="a private range"),
        pytest.param(a_list("1.1.1.0/24", "192.168.1.0/24"), "192.168.1.0/24 overlaps 192.168.0.0/16", id="a part"),
        pytest.param(a_list("192.0.0.0/16"), "192.0.0.0/16 overlaps 192.0.0.0/24", id="a network around one"),
        pytest.param(a_list("100.127.255.255"), "overlaps 100.64.0.0/10", id="the last address of one"),
        pytest.param(a_list("100.63.255.255", "100.128.0.0"), "", id="the addresses before and after one"),
        pytest.param(a_list("127.0.0.1"), "127.0.0.1/32 overlaps 127.0.0.0/8", id="loopback"),
        pytest.param(a_list("169.254.169.254"), "169.254.169.254/32 overlaps 169.254.0.0/16", id="link-local"),
        pytest.param(a_list("224.0.0.1"), "overlaps 224.0.0.0/4", id="multicast"),
        pytest.param(a_list("255.255.255.255"), "overlaps 240.0.0.0/4", id="broadcast"),
        pytest.param(a_list("10.137.0.5"), "10.137.0.5/32 overlaps 10.0.0.0/8", id="another qube"),
        pytest.param(a_list("fd09:24ef:4179::a89:5"), "overlaps fc00::/7", id="another qube, IPv6"),
        pytest.param(a_list("::1"), "overlaps ::1/128", id="loopback, IPv6"),
        pytest.param(a_list("fe80::/64"), "overlaps fe80::/10", id="link-local, IPv6"),
        pytest.param(a_list("fc00::/48"), "overlaps fc00::/7", id="private, IPv6"),
        pytest.param(a_list("64:ff9b::808:808"), "overlaps 64:ff9b::/96", id="IPv4 by NAT64"),
        pytest.param(a_list("2002:a00::/24"), "overlaps 2002::/16", id="IPv4 by 6to4"),
        pytest.param(a_list("2001::/23"), "2001::/23 overlaps 2001::/32", id="a network around Teredo"),
        pytest.param(a_list("192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"), "", id="documentation ranges"),
    ],
)
def test_the_first_list(now: AddressList, reason: str) -> None:
    found = objection(None, now)
    assert reason in found
    assert bool(reason) == bool(found)


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        pytest.param(hosts(100), hosts(100), "", id="the same"),
        pytest.param(hosts(100), hosts(999), "", id="less than ten times as many"),
        pytest.param(hosts(100), hosts(1000), "it grew from 100 to 1,000 IPv4 networks at once", id="ten times"),
        pytest.param(sites(100), sites(1000), "it grew from 100 to 1,000 IPv6 networks at once", id="ten times, IPv6"),
        pytest.param(hosts(6), hosts(64), "", id="a very small list may grow"),
        pytest.param(hosts(6), hosts(65), "it grew from 6 to 65 IPv4 networks", id="up to a limit"),
        pytest.param(a_list("20.0.0.0/22"), a_list("20.0.0.0/19"), "", id="eight times the addresses"),
        pytest.param(
            a_list("20.0.0.0/22"),
            a_list("20.0.0.0/18"),
            "it grew from 1,024 to 16,384 IPv4 addresses at once",
            id="sixteen times the addresses",
        ),
        pytest.param(a_list("20.0.0.1"), a_list("20.0.0.0/20"), "", id="one host became a /20"),
        pytest.param(
            a_list("20.0.0.1"),
            a_list("20.0.0.0/20", "21.0.0.0"),
            "it grew from 1 to 4,097 IPv4 addresses",
            id="and one more",
        ),
        pytest.param(a_list("2600::1"), a_list("2600::/48"), "", id="one IPv6 host became a /48"),
        pytest.param(a_list("2600::1"), a_list("2600::/47"), "it grew from 1 to 2.42e+24 IPv6", id="or a /47"),
        pytest.param(hosts(70), both(hosts(70), sites(5000)), "", id="IPv6 appears, and is far more than IPv4"),
        pytest.param(both(hosts(70), sites(70)), both(hosts(700), sites(70)), "70 to 700 IPv4", id="one version grows"),
        pytest.param(hosts(5000), hosts(1), "", id="it shrinks"),
        pytest.param(both(hosts(70), sites(70)), sites(70), "", id="a version goes"),
        pytest.param(hosts(5000), EMPTY, "the list is empty", id="it shrinks to nothing"),
        pytest.param(EMPTY, hosts(5000), "", id="there was nothing before"),
        pytest.param(hosts(1), a_list("10.0.0.1"), "overlaps 10.0.0.0/8", id="it moves into a private range"),
    ],
)
def test_the_next_list(before: AddressList, now: AddressList, reason: str) -> None:
    found = objection(before, now)
    assert reason in found
    assert bool(reason) == bool(found)


def test_the_reason_is_a_whole_sentence() -> None:
    assert objection(None, a_list("192.168.1.0/24")) == (
        "192.168.1.0/24 overlaps 192.168.0.0/16, which is no network of the Internet"
    )


SPECIAL = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "10.137.0.0/16",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/3",
    "::/96",
    "::ffff:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/32",
    "2002::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]


@st.composite
def _around_an_edge(draw: st.DrawFn) -> IPNetwork:
    """A small network before, after or inside a special range, or anywhere."""
    network = ip_network(draw(st.sampled_from(SPECIAL)))
    bits = network.max_prefixlen
    edge = draw(st.sampled_from([int(network.network_address), int(network.broadcast_address) + 1]))
    edge = draw(st.one_of(st.just(edge), st.integers(0, (1 << bits) - 1)))
    value = (edge + draw(st.integers(-4, 4))) % (1 << bits)
    less = draw(st.integers(0, 3))
    text = f"{type(network.network_address)(value >> less << less)}/{bits - less}"
    return ip_network(text)


@given(st.lists(_around_an_edge(), min_size=1, max_size=4))
def test_a_list_is_taken_only_where_all_of_it_is_on_the_internet(networks: list[IPNetwork]) -> None:
    kinds = {kind_of(address) for network in networks for address in network}
    assert (objection(None, AddressList.of(networks)) == "") == (kinds == {AddressKind.GLOBAL})
