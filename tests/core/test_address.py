"""Addresses: what a name may lead to, and in which order addresses are tried."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.address import AddressKind, IPAddress, dial_order, kind_of


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        pytest.param("140.82.112.3", "global", id="GitHub"),
        pytest.param("2606:50c0:8000::153", "global", id="GitHub over IPv6"),
        pytest.param("192.0.2.1", "global", id="documentation"),
        pytest.param("2001:db8::1", "global", id="documentation over IPv6"),
        pytest.param("172.15.255.255", "global", id="just below 172.16.0.0/12"),
        pytest.param("172.32.0.0", "global", id="just above 172.16.0.0/12"),
        pytest.param("223.255.255.255", "global", id="just below multicast"),
        pytest.param("10.0.0.1", "private", id="ten"),
        pytest.param("10.136.255.255", "private", id="just below the Qubes ranges"),
        pytest.param("10.140.0.0", "private", id="just above the Qubes ranges"),
        pytest.param("172.16.0.1", "private", id="172.16.0.0/12"),
        pytest.param("192.168.1.1", "private", id="a home router"),
        pytest.param("100.64.0.1", "private", id="carrier-grade NAT"),
        pytest.param("192.0.0.170", "private", id="IETF protocol assignments"),
        pytest.param("198.18.0.1", "private", id="benchmarking"),
        pytest.param("fd00::1", "private", id="unique local"),
        pytest.param("100::1", "private", id="discard-only"),
        pytest.param("10.137.0.12", "internal", id="a qube"),
        pytest.param("10.138.5.6", "internal", id="a disposable"),
        pytest.param("10.139.1.1", "internal", id="the virtual DNS address"),
        pytest.param("fd09:24ef:4179::a89:c", "internal", id="a qube over IPv6"),
        pytest.param("127.0.0.1", "internal", id="loopback"),
        pytest.param("127.255.255.254", "internal", id="the end of loopback"),
        pytest.param("::1", "internal", id="loopback over IPv6"),
        pytest.param("0.0.0.0", "internal", id="this network"),
        pytest.param("::", "internal", id="the unspecified address"),
        pytest.param("169.254.169.254", "internal", id="link-local: cloud metadata"),
        pytest.param("fe80::1", "internal", id="link-local over IPv6"),
        pytest.param("fe80::1%eth0", "internal", id="link-local with a zone"),
        pytest.param("fec0::1", "internal", id="site-local"),
        pytest.param("224.0.0.251", "internal", id="multicast"),
        pytest.param("ff02::fb", "internal", id="multicast over IPv6"),
        pytest.param("240.0.0.1", "internal", id="reserved"),
        pytest.param("255.255.255.255", "internal", id="broadcast"),
        pytest.param("::ffff:140.82.112.3", "internal", id="IPv4-mapped"),
        pytest.param("::140.82.112.3", "internal", id="IPv4-compatible"),
        pytest.param("64:ff9b::127.0.0.1", "internal", id="NAT64"),
        pytest.param("64:ff9b:1::1", "internal", id="local NAT64"),
        pytest.param("2001:0:53aa:64c::1", "internal", id="Teredo"),
        pytest.param("2002:7f00:1::1", "internal", id="6to4"),
    ],
)
def test_the_kind_of_an_address(text: str, kind: str) -> None:
    assert kind_of(ip_address(text)) is AddressKind(kind)


def addresses(text: str) -> tuple[IPAddress, ...]:
    return tuple(map(ip_address, text.split()))


@pytest.mark.parametrize(
    ("found", "wanted", "order"),
    [
        pytest.param("192.0.2.1", "192.0.2.1", "192.0.2.1", id="the client's own and only one"),
        pytest.param("192.0.2.1", "192.0.2.9", "192.0.2.1", id="the client aims elsewhere"),
        pytest.param("192.0.2.1 192.0.2.2 192.0.2.3", "192.0.2.2", "192.0.2.2 192.0.2.1 192.0.2.3", id="its own first"),
        pytest.param("192.0.2.1 192.0.2.2", "192.0.2.9", "192.0.2.1 192.0.2.2", id="else the order of the answer"),
        pytest.param(
            "2001:db8::1 2001:db8::2 192.0.2.1 192.0.2.2",
            "192.0.2.2",
            "192.0.2.2 2001:db8::1 192.0.2.1 2001:db8::2",
            id="its own, then the families in turn, the other one next",
        ),
        pytest.param(
            "2001:db8::1 2001:db8::2 192.0.2.1 192.0.2.2",
            "192.0.2.9",
            "192.0.2.1 2001:db8::1 192.0.2.2 2001:db8::2",
            id="the client's family first where it aims elsewhere",
        ),
        pytest.param("2001:db8::1", "192.0.2.9", "2001:db8::1", id="only the other family"),
        pytest.param("2001:db8::1 192.0.2.1 192.0.2.2 192.0.2.3", "2001:db8::1",
                     "2001:db8::1 192.0.2.1 192.0.2.2 192.0.2.3", id="one family runs out"),
    ],
)  # fmt: skip
def test_the_order_of_dialling(found: str, wanted: str, order: str) -> None:
    assert dial_order(addresses(found), ip_address(wanted)) == addresses(order)


any_address = st.ip_addresses()


@given(st.lists(any_address, unique=True, max_size=8).map(tuple), any_address, st.integers(0, 7))
def test_every_address_is_tried_once(found: tuple[IPAddress, ...], wanted: IPAddress, at: int) -> None:
    wanted = found[at] if at < len(found) else wanted
    order = dial_order(found, wanted)
    assert sorted(map(str, order)) == sorted(map(str, found))
    if wanted in found:
        assert order[0] == wanted
