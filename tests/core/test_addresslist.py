"""Address lists: what is in one, its ranges and networks, what changes from one to the next, and the texts."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.address import IPAddress, IPNetwork
from proxyfw.core.addresslist import EMPTY, AddressList, HostBitsError, parse_network, parse_networks

BITS = {4: 32, 6: 128}


def a_list(*texts: str) -> AddressList:
    return AddressList.of(map(ip_network, texts))


def texts_of(found: AddressList) -> list[str]:
    return [str(network) for network in found.networks()]


def numbers(first: str, last: str) -> tuple[int, int]:
    return int(ip_address(first)), int(ip_address(last))


def network(version: int, value: int, length: int) -> IPNetwork:
    first = value >> (BITS[version] - length) << (BITS[version] - length)
    return IPv4Network((first, length)) if version == 4 else IPv6Network((first, length))


def _near(version: int) -> st.SearchStrategy[IPNetwork]:
    """Networks that often overlap and touch: most lie in the first or the last few addresses there are."""
    top = (1 << BITS[version]) - 1
    values = st.one_of(st.integers(0, 255), st.integers(top - 255, top), st.integers(0, top))
    return st.one_of(
        st.builds(lambda value, less: network(version, value, BITS[version] - less), values, st.integers(0, 8)),
        st.builds(lambda value, length: network(version, value, length), values, st.integers(0, BITS[version])),
    )


NETWORKS = st.lists(st.one_of(_near(4), _near(6)), max_size=20)


@pytest.mark.parametrize(
    ("networks", "four", "six"),
    [
        pytest.param([], [], [], id="nothing"),
        pytest.param(["192.0.2.0/24"], [("192.0.2.0", "192.0.2.255")], [], id="one network"),
        pytest.param(["192.0.2.7"], [("192.0.2.7", "192.0.2.7")], [], id="one address"),
        pytest.param(
            ["192.0.2.128/25", "192.0.2.0/25"], [("192.0.2.0", "192.0.2.255")], [], id="two that touch are one range"
        ),
        pytest.param(
            ["192.0.2.0/25", "192.0.2.129"],
            [("192.0.2.0", "192.0.2.127"), ("192.0.2.129", "192.0.2.129")],
            [],
            id="two with one address between them are not",
        ),
        pytest.param(
            ["192.0.2.0/24", "192.0.2.9", "192.0.2.0/24"],
            [("192.0.2.0", "192.0.2.255")],
            [],
            id="one in another, and one twice",
        ),
        pytest.param(
            ["192.0.2.0/25", "192.0.2.128/26"],
            [("192.0.2.0", "192.0.2.191")],
            [],
            id="a range that is no one network",
        ),
        pytest.param(["0.0.0.0/0"], [("0.0.0.0", "255.255.255.255")], [], id="everything"),
        pytest.param(["0.0.0.1", "::1"], [("0.0.0.1", "0.0.0.1")], [("::1", "::1")], id="the versions are kept apart"),
    ],
)
def test_ranges_neither_overlap_nor_touch(
    networks: list[str], four: list[tuple[str, str]], six: list[tuple[str, str]]
) -> None:
    found = a_list(*networks)
    assert found.ranges(4) == tuple(numbers(*each) for each in four)
    assert found.ranges(6) == tuple(numbers(*each) for each in six)


def test_networks_are_the_fewest_and_in_order() -> None:
    found = a_list(
        "2001:db8:8000::/33", "198.51.100.0/25", "192.0.2.192/26", "192.0.2.0/25", "2001:db8::/33", "192.0.2.128/26"
    )
    assert texts_of(found) == ["192.0.2.0/24", "198.51.100.0/25", "2001:db8::/32"]
    assert (found.prefixes, found.count(4), found.count(6)) == (3, 2, 1)
    assert (found.size(4), found.size(6)) == (256 + 128, 1 << 96)


def test_a_list_equals_itself_alone() -> None:
    one, other = a_list("192.0.2.0/24"), a_list("192.0.2.0/24")
    assert one == one
    assert one != other
    assert len({one, other, one}) == 2


def test_a_list_in_a_message_is_short() -> None:
    assert repr(a_list("192.0.2.0/24", "2001:db8::/32")) == "AddressList(2 networks)"


def test_nothing_is_in_the_empty_list() -> None:
    assert ip_address("0.0.0.0") not in EMPTY
    assert ip_address("::") not in EMPTY
    assert (EMPTY.prefixes, EMPTY.size(4), EMPTY.size(6), EMPTY.networks()) == (0, 0, 0, [])


@given(NETWORKS, st.lists(st.tuples(st.sampled_from([4, 6]), st.integers(0, (1 << 128) - 1)), max_size=5))
def test_membership_is_that_of_the_networks(networks: list[IPNetwork], others: list[tuple[int, int]]) -> None:
    found = AddressList.of(networks)
    asked: list[IPAddress] = []
    for each in networks:
        edges = (int(each.network_address), int(each.broadcast_address))
        asked += [_address(each.version, edge + step) for edge in edges for step in (-1, 0, 1)]
    asked += [_address(version, value) for version, value in others]
    for address in asked:
        assert (address in found) == any(address.version == each.version and address in each for each in networks)


def _address(version: int, value: int) -> IPAddress:
    value %= 1 << BITS[version]
    return IPv4Address(value) if version == 4 else IPv6Address(value)


@given(NETWORKS)
def test_its_networks_make_the_same_list(networks: list[IPNetwork]) -> None:
    found = AddressList.of(networks)
    again = found.networks()
    assert len(again) == found.prefixes
    assert [AddressList.of(again).ranges(version) for version in BITS] == [found.ranges(version) for version in BITS]
    for version in BITS:
        ranges = found.ranges(version)
        assert all(first <= last for first, last in ranges)
        assert all(one[1] + 1 < other[0] for one, other in pairwise(ranges))
        assert found.size(version) == sum(each.num_addresses for each in again if each.version == version)
    assert parse_networks(map(str, again)) == again or any(_is_mapped(each) for each in again)


def _is_mapped(network: IPNetwork) -> bool:
    return network.version == 6 and network.subnet_of(IPv6Network("::ffff:0:0/96"))


@pytest.mark.parametrize(
    ("text", "network"),
    [
        pytest.param("192.0.2.1", "192.0.2.1/32", id="an IPv4 address"),
        pytest.param("192.0.2.0/24", "192.0.2.0/24", id="an IPv4 network"),
        pytest.param("0.0.0.0/0", "0.0.0.0/0", id="all of IPv4: that is for feedbounds to refuse"),
        pytest.param("2001:db8::1", "2001:db8::1/128", id="an IPv6 address"),
        pytest.param("2001:DB8:0::/32", "2001:db8::/32", id="IPv6 written otherwise"),
        pytest.param("64:ff9b::192.0.2.1", "64:ff9b::c000:201/128", id="IPv6 that ends as IPv4"),
        pytest.param("::/0", "::/0", id="all of IPv6"),
    ],
)
def test_texts_of_networks(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param(" 192.0.2.1", id="a blank before it"),
        pytest.param("192.0.2.1\n", id="a line break after it"),
        pytest.param("192.0.2", id="three bytes"),
        pytest.param("192.0.2.256", id="a byte too large"),
        pytest.param("192.0.2.01", id="a leading zero"),
        pytest.param("3221225985", id="an address as one number"),
        pytest.param("0xc0.0.2.1", id="hexadecimal"),
        pytest.param("192.0.2.0/33", id="a prefix too long"),
        pytest.param("192.0.2.0/024", id="a leading zero in the prefix"),
        pytest.param("192.0.2.0/", id="no prefix after the slash"),
        pytest.param("192.0.2.0/-1", id="a negative prefix"),
        pytest.param("192.0.2.0/255.255.255.0", id="a mask"),
        pytest.param("192.0.2.0/0.0.0.255", id="a mask the other way round"),
        pytest.param("192.0.2.1-192.0.2.9", id="from and to"),
        pytest.param("192.0.2.1:443", id="a port"),
        pytest.param("[2001:db8::1]", id="brackets"),
        pytest.param("fe80::1%eth0", id="a zone"),
        pytest.param("fe80::%1/64", id="a zone in a network"),
        pytest.param("::ffff:192.0.2.1", id="an IPv4-mapped address"),
        pytest.param("::ffff:192.0.2.0/120", id="an IPv4-mapped network"),
        pytest.param("2001:db8::/129", id="a prefix too long, IPv6"),
        pytest.param("2001:db8:::1", id="three colons"),
        pytest.param("١٩٢.0.2.1", id="digits of another script"),
        pytest.param("dead:beef", id="a word with a colon"),
        pytest.param("face", id="a word of hexadecimal digits"),
        pytest.param("example.com", id="a name"),
        pytest.param("1" * 100_000, id="a text without end"),
    ],
)
def test_texts_that_are_no_networks(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address or network") as caught:
        parse_network(text)
    assert not isinstance(caught.value, HostBitsError)


@pytest.mark.parametrize("text", ["192.0.2.1/24", "2001:db8::1/32", "128.0.0.0/0"])
def test_bits_beyond_the_prefix(text: str) -> None:
    with pytest.raises(HostBitsError, match=f'"{text}" has bits beyond its prefix'):
        parse_network(text)


def test_one_bad_text_among_many_is_named() -> None:
    assert parse_networks(["192.0.2.0/24", "2001:db8::1"]) == [ip_network("192.0.2.0/24"), ip_network("2001:db8::1")]
    with pytest.raises(ValueError, match=r'^"192\.0\.2\.300" is not an address or network$'):
        parse_networks(["192.0.2.0/24", "192.0.2.300", "x"])


def test_a_text_in_a_message_is_short_and_printable() -> None:
    with pytest.raises(ValueError, match="not an address") as caught:
        parse_network("\x1b[31m\ud800" + "x" * 1000)
    assert str(caught.value) == '"?[31m?' + "x" * 54 + '..." is not an address or network'


@given(st.text(max_size=60) | st.text("0123456789abcdef:./%", max_size=50))
def test_texts_are_networks_or_a_value_error(text: str) -> None:
    try:
        found = parse_network(text)
    except ValueError:
        return
    assert found == ip_network(text)
