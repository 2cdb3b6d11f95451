"""What a person wants to allow: names, addresses and pasted URLs, and what grants them already."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.pattern import Pattern
from proxyfw.core.problem import Where
from proxyfw.core.profile import NetworkGrant, parse_grant
from proxyfw.core.wanted import Grant, WantedError, granted_by, parse_wanted, same


def grant(text: str) -> Grant:
    found = parse_grant(text, Where("other.yaml", 1), "other")
    assert isinstance(found, Pattern | NetworkGrant), found
    return found


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        pytest.param("example.org", "example.org", id="a name"),
        pytest.param("*.example.org", "*.example.org", id="all below a name"),
        pytest.param(".example.org", ".example.org", id="a name and all below"),
        pytest.param("r*.example.org", "r*.example.org", id="a star in a label"),
        pytest.param("example.org:22", "example.org:22", id="a name with a port"),
        pytest.param("x.example:123/udp", "x.example:123/udp", id="a name with a UDP port"),
        pytest.param("bücher.example", "bücher.example", id="an international name"),
        pytest.param("192.0.2.7", "192.0.2.7", id="an address"),
        pytest.param("192.0.2.7:22", "192.0.2.7:22", id="an address with a port"),
        pytest.param("192.0.2.0/24:123/udp", "192.0.2.0/24:123/udp", id="a network with a UDP port"),
        pytest.param("2001:db8::7", "2001:db8::7", id="an IPv6 address"),
        pytest.param("[2001:db8::7]:22", "[2001:db8::7]:22", id="an IPv6 address with a port"),
        pytest.param("https://example.org/a/b?c#d", "example.org", id="a URL"),
        pytest.param("HTTP://Example.ORG", "example.org", id="a URL in capitals"),
        pytest.param("https://example.org:443/", "example.org", id="a URL with the port of its scheme"),
        pytest.param("https://example.org:8443/", "example.org:8443", id="a URL with another port"),
        pytest.param("https://example.org:80/", "example.org:80", id="a URL with the port of the other scheme"),
        pytest.param("https://192.0.2.7/x", "192.0.2.7:443", id="a URL with an address"),
        pytest.param("http://[2001:db8::7]:8080/x", "[2001:db8::7]:8080", id="a URL with an IPv6 address and a port"),
    ],
)
def test_what_can_be_wanted(text: str, entry: str) -> None:
    found = parse_wanted(text, "allowed/work")
    assert (found.text, found.profile) == (entry, "allowed/work")
    assert isinstance(found, NetworkGrant) is (entry[0] in "12[")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("", 'the name is empty', id="nothing"),
        pytest.param("*", "this would grant every name", id="everything"),
        pytest.param("*.co.uk", 'the public suffix "co.uk"; write more of the name', id="a public suffix"),
        pytest.param("https://co.uk/", 'the public suffix "co.uk"', id="a URL of a public suffix"),
        pytest.param("example.org/path", 'a path is not judged, only the name; write "example.org"', id="a path"),
        pytest.param("example.org:99999", "is not a port", id="no port"),
        pytest.param("192.0.2.7/24", 'write "192.0.2.0/24"', id="an address with a length"),
        pytest.param("192.0.2.7/33", "is not an address or network", id="a length beyond"),
        pytest.param("ftp://example.org/", "only http and https say what to allow; write host:port", id="ftp"),
        pytest.param("https://u:p@example.org/", "a user name in the target", id="a password in a URL"),
        pytest.param("https://", "this is no host name", id="a URL without a host"),
        pytest.param("https://[::1", "this is no URL", id="a broken URL"),
        pytest.param("git hub", "only letters, digits, hyphens", id="two words"),
    ],
)  # fmt: skip
def test_what_cannot_be_wanted(text: str, why: str) -> None:
    with pytest.raises(WantedError, match=re.escape(why)):
        parse_wanted(text, "p")


@given(st.one_of(st.text(max_size=40), st.text("htps:/.*[]@0129a-", max_size=30).map("https://".__add__)))
def test_junk_is_refused_with_words_or_means_one_thing(text: str) -> None:
    found = attempted(text)
    assert found
    if not isinstance(found, str):
        assert same(found, parse_wanted(found.text, "p"))


def attempted(text: str) -> Grant | str:
    try:
        return parse_wanted(text, "p")
    except WantedError as error:
        return str(error)


@pytest.mark.parametrize(
    ("wanted", "grants", "by"),
    [
        pytest.param("a.example", ["b.example"], None, id="another name"),
        pytest.param("a.example", ["b.example", "a.example"], "a.example", id="the same name"),
        pytest.param("www.a.example", [".a.example"], ".a.example", id="a name below one granted with all below"),
        pytest.param("a.example", [".a.example"], ".a.example", id="that name itself"),
        pytest.param("a.example", ["*.a.example"], None, id="the name itself where only those below are granted"),
        pytest.param("*.a.example", [".a.example"], ".a.example", id="those below, of a name and all below"),
        pytest.param(".a.example", ["*.a.example"], None, id="a name and all below, of those below alone"),
        pytest.param(".b.a.example", ["*.a.example"], "*.a.example", id="a deeper name and all below it"),
        pytest.param("*.ba.example", [".a.example"], None, id="a name that only ends alike"),
        pytest.param("r1.a.example", ["r*.a.example"], "r*.a.example", id="a name that a star stands for"),
        pytest.param("*.a.example", ["r*.a.example"], None, id="more than a star stands for"),
        pytest.param("r*.a.example", ["*.a.example"], "*.a.example", id="a star in a label, of all below"),
        pytest.param("r*.a.example", ["r*.a.example"], "r*.a.example", id="the same star"),
        pytest.param("*.a.example", ["a.example"], None, id="those below, of the name alone"),
        pytest.param("a.example:22", ["a.example"], None, id="another port"),
        pytest.param("a.example:443", ["a.example"], "a.example", id="one of the ports of a name without a port"),
        pytest.param("a.example", ["a.example:443"], None, id="all ports of a name, of one"),
        pytest.param("a.example", ["a.example:443", "a.example:80"], None, id="QUIC is a port too"),
        pytest.param("a.example", [".example:443", ".example:80", ".example:443/udp"], ".example:80",
                     id="each of its ports by another entry"),
        pytest.param("a.example", ["192.0.2.0/24"], None, id="a name and a network"),
        pytest.param("192.0.2.7:22", ["a.example", "192.0.2.0/24"], "192.0.2.0/24", id="an address of a network"),
        pytest.param("192.0.2.7:22", ["192.0.2.0/24:22"], "192.0.2.0/24:22", id="with the same port"),
        pytest.param("192.0.2.7:23", ["192.0.2.0/24:22"], None, id="with another port"),
        pytest.param("192.0.2.7", ["192.0.2.0/24:22"], None, id="all ports of an address, of one"),
        pytest.param("192.0.2.0/23", ["192.0.2.0/24"], None, id="a wider network"),
        pytest.param("::c000:207", ["192.0.2.0/24"], None, id="another version"),
    ],
)  # fmt: skip
def test_what_grants_it_already(wanted: str, grants: list[str], by: str | None) -> None:
    found = granted_by(grant(wanted), [grant(each) for each in grants])
    assert (found.text if found else None) == by


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        pytest.param("Example.org.", "example.org", True, id="capitals and a dot at the end"),
        pytest.param("bücher.example", "xn--bcher-kva.example", True, id="both forms of an international name"),
        pytest.param("example.org", ".example.org", False, id="with and without those below"),
        pytest.param("example.org", "example.org:443", False, id="with and without a port"),
        pytest.param("192.0.2.1", "192.0.2.1/32", True, id="an address and its network"),
        pytest.param("[2001:DB8::1]:22", "[2001:db8:0::1]:22/tcp", True, id="an address written in two ways"),
        pytest.param("192.0.2.1", "example.org", False, id="an address and a name"),
    ],
)
def test_what_is_the_same(one: str, other: str, alike: bool) -> None:
    assert same(grant(one), grant(other)) is alike
