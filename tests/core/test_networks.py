"""Network grants: which one covers an address and port."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.address import IPAddress
from proxyfw.core.networks import NetworkTable
from proxyfw.core.problem import Problem, Where
from proxyfw.core.profile import NetworkGrant, parse_network


def grant(text: str) -> NetworkGrant:
    parsed = parse_network(text, Where("p.yaml"), "p")
    assert not isinstance(parsed, Problem), parsed
    return parsed


TABLE = NetworkTable(
    map(
        grant,
        (
            "192.0.2.0/24",
            "192.0.2.64/26:22",
            "192.0.2.65:22",
            "192.0.2.65:53/udp",
            "198.51.100.0/24:22",
            "198.51.100.7:443",
            "198.51.100.7:80",
            "2001:db8::/32",
            "[2001:db8:5::/48]:123/udp",
            "203.0.113.5",
        ),
    )
)


@pytest.mark.parametrize(
    ("address", "transport", "port", "found"),
    [
        pytest.param("192.0.2.1", "tcp", 80, "192.0.2.0/24", id="a network without a port covers TCP"),
        pytest.param("192.0.2.1", "udp", 9, "192.0.2.0/24", id="and UDP"),
        pytest.param("192.0.2.1", "icmp", 0, "192.0.2.0/24", id="and ICMP"),
        pytest.param("192.0.2.0", "tcp", 80, "192.0.2.0/24", id="the first address"),
        pytest.param("192.0.2.255", "tcp", 80, "192.0.2.0/24", id="the last address"),
        pytest.param("192.0.3.0", "tcp", 80, None, id="the address after the last"),
        pytest.param("192.0.2.70", "tcp", 22, "192.0.2.64/26:22", id="the longer prefix"),
        pytest.param("192.0.2.65", "tcp", 22, "192.0.2.65:22", id="the longest prefix"),
        pytest.param("192.0.2.65", "udp", 53, "192.0.2.65:53/udp", id="another grant of the same address"),
        pytest.param("192.0.2.70", "tcp", 80, "192.0.2.0/24", id="the longer prefix does not cover the port"),
        pytest.param("192.0.2.65", "tcp", 53, "192.0.2.0/24", id="the longest prefix is for UDP"),
        pytest.param("198.51.100.1", "tcp", 22, "198.51.100.0/24:22", id="a port"),
        pytest.param("198.51.100.1", "tcp", 23, None, id="another port"),
        pytest.param("198.51.100.1", "udp", 22, None, id="the same port over UDP"),
        pytest.param("198.51.100.1", "icmp", 0, None, id="ICMP, where only a port is granted"),
        pytest.param("198.51.100.7", "tcp", 80, "198.51.100.7:80", id="the second grant of one address"),
        pytest.param("203.0.113.5", "tcp", 1, "203.0.113.5", id="a single address"),
        pytest.param("203.0.113.4", "tcp", 1, None, id="its neighbour"),
        pytest.param("2001:db8:ffff::1", "tcp", 443, "2001:db8::/32", id="IPv6"),
        pytest.param("2001:db8:5::1", "udp", 123, "[2001:db8:5::/48]:123/udp", id="IPv6, the longer prefix"),
        pytest.param("2001:db9::1", "tcp", 443, None, id="IPv6, outside"),
        pytest.param("::c000:201", "tcp", 80, None, id="an IPv6 address with the bits of a granted IPv4 one"),
    ],
)
def test_the_grant_of_an_address(address: str, transport: str, port: int, found: str | None) -> None:
    answer = TABLE.find(ip_address(address), transport, port)
    assert (answer.text if answer else None) == found


def test_all_addresses() -> None:
    table = NetworkTable([grant("0.0.0.0/0:22")])
    assert table.find(ip_address("255.255.255.255"), "tcp", 22) is not None
    assert table.find(ip_address("::1"), "tcp", 22) is None


def test_among_equals_the_first_given() -> None:
    first, second = grant("192.0.2.0/24"), grant("192.0.2.0/24:22")
    assert NetworkTable([first, second]).find(ip_address("192.0.2.1"), "tcp", 22) is first
    assert NetworkTable([second, first]).find(ip_address("192.0.2.1"), "tcp", 22) is second


# Few distinct bits, so that networks and addresses meet.
near = st.integers(0, 15).map(lambda low: 0xC0000200 + low) | st.integers(0, 2**32 - 1)
texts = st.builds(
    lambda value, length, port: f"{ip_address(value >> (32 - length) << (32 - length))}/{length}{port}",
    near,
    st.integers(0, 32),
    st.sampled_from(["", ":22", ":22/udp", ":80"]),
)


@given(st.lists(texts, max_size=8), near.map(ip_address), st.sampled_from(["tcp", "udp"]), st.sampled_from([22, 80]))
def test_it_agrees_with_looking_at_every_grant(found: list[str], address: IPAddress, transport: str, port: int) -> None:
    grants = [grant(text) for text in found]
    covering = [
        one
        for one in grants
        if address in one.network and (one.port is None or (one.port.transport, one.port.number) == (transport, port))
    ]
    answer = NetworkTable(grants).find(address, transport, port)
    longest = max((one.network.prefixlen for one in covering), default=None)
    assert answer == next((one for one in covering if one.network.prefixlen == longest), None)
