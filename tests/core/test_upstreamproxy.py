"""Upstream proxies: their URLs, and the addresses that stand for names."""

from contextlib import suppress
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.hostname import Hostname, normalise
from proxyfw.core.upstreamproxy import (
    MAPPED,
    Scheme,
    UpstreamProxy,
    UpstreamProxyError,
    is_mapped,
    mapped,
    parse_upstream_proxy,
)

FIVE = ip_address("10.137.0.5")
SOCKS5, SOCKS4A, HTTP = Scheme.SOCKS5, Scheme.SOCKS4A, Scheme.HTTP
LONG = "x" * 256


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        pytest.param("socks5://10.137.0.5:9050", UpstreamProxy(SOCKS5, FIVE, 9050), id="SOCKS 5"),
        pytest.param("socks4a://10.137.0.5:9050", UpstreamProxy(SOCKS4A, FIVE, 9050), id="SOCKS 4a"),
        pytest.param("http://10.137.0.5:3128", UpstreamProxy(HTTP, FIVE, 3128), id="HTTP"),
        pytest.param("socks5://[fd09::5]:1", UpstreamProxy(SOCKS5, ip_address("fd09::5"), 1), id="an IPv6 address"),
        pytest.param("socks5://127.0.0.1:65535", UpstreamProxy(SOCKS5, ip_address("127.0.0.1"), 65535),
                     id="a proxy of this machine"),
        pytest.param("socks5://me:pass@10.137.0.5:9050", UpstreamProxy(SOCKS5, FIVE, 9050, "me", "pass"),
                     id="a user and a password"),
        pytest.param("socks4a://me@10.137.0.5:9050", UpstreamProxy(SOCKS4A, FIVE, 9050, "me"), id="a user of SOCKS 4a"),
        pytest.param("http://me@10.137.0.5:3128", UpstreamProxy(HTTP, FIVE, 3128, "me"), id="a user alone, for HTTP"),
        pytest.param("http://m%3Ae:p@10.137.0.5:3128", None, id="a colon in the user, for HTTP"),
        pytest.param("socks5://m%3Ae:p%40%2F%3a%25@10.137.0.5:9050", UpstreamProxy(SOCKS5, FIVE, 9050, "m:e", "p@/:%"),
                     id="percent-encoded"),
        pytest.param("socks5://me:p:a@ss@10.137.0.5:9050", UpstreamProxy(SOCKS5, FIVE, 9050, "me", "p:a@ss"),
                     id="the last @ counts, and the first colon"),
        pytest.param("http://me:p%C3%A9@10.137.0.5:3128", UpstreamProxy(HTTP, FIVE, 3128, "me", "pé"), id="UTF-8"),
    ],
)  # fmt: skip
def test_a_url(text: str, proxy: UpstreamProxy | None) -> None:
    if proxy is None:
        with pytest.raises(UpstreamProxyError, match="a colon in the user"):
            parse_upstream_proxy(text)
    else:
        assert parse_upstream_proxy(text) == proxy


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        pytest.param("", "not the URL of a proxy", "socks5://", id="nothing"),
        pytest.param("10.137.0.5:9050", "not the URL of a proxy", "socks5://", id="no scheme"),
        pytest.param("SOCKS5://10.137.0.5:9050", "not the URL of a proxy", "socks5://", id="a scheme in capitals"),
        pytest.param("socks://10.137.0.5:9050", "this kind is not known", "write socks5://", id="socks"),
        pytest.param("socks5h://10.137.0.5:9050", "this kind is not known", "always resolved at the far end",
                     id="socks5h"),
        pytest.param("socks4://10.137.0.5:9050", "this kind is not known", "write socks4a://", id="socks4"),
        pytest.param("https://10.137.0.5:443", "this kind is not known", "TLS to the proxy", id="https"),
        pytest.param("ftp://10.137.0.5:21", "this kind is not known", "socks5://, socks4a://, http://", id="ftp"),
        pytest.param("socks5://tor:9050", "not named by an address", "a name up would tell", id="a name"),
        pytest.param("socks5://localhost:9050", "not named by an address", "a name up would tell", id="localhost"),
        pytest.param("socks5://:9050", "not named by an address", "its address", id="no host"),
        pytest.param("socks5://[fe80::1%eth0]:9050", "not the URL of a proxy", "socks5://", id="a zone"),
        pytest.param("socks5://[10.137.0.5]:9050", "brackets are for IPv6", "[fd09::5]:9050", id="IPv4 in brackets"),
        pytest.param("socks5://fd09::5:9050", "not the URL of a proxy", "socks5://", id="IPv6 without brackets"),
        pytest.param("socks5://[::ffff:10.137.0.5]:9050", "an IPv4 address in IPv6", "write 10.137.0.5", id="mapped"),
        pytest.param("socks5://0.0.0.0:9050", "nobody listens", "the address of the proxy", id="no address"),
        pytest.param("socks5://224.0.0.1:9050", "nobody listens", "the address of the proxy", id="multicast"),
        pytest.param("socks5://10.137.0.5", "the port of the proxy is missing", ":9050", id="no port"),
        pytest.param("socks5://10.137.0.5:", "the port of the proxy is missing", ":9050", id="an empty port"),
        pytest.param("socks5://10.137.0.5:0", "the port of the proxy is missing", "1 to 65535", id="port 0"),
        pytest.param("socks5://10.137.0.5:65536", "the port of the proxy is missing", "1 to 65535", id="port 65536"),
        pytest.param("socks5://10.137.0.5:09050", "the port of the proxy is missing", "1 to 65535", id="a zero first"),
        pytest.param("socks5://10.137.0.5:9050/", "something follows the port", "no path", id="a slash"),
        pytest.param("http://10.137.0.5:3128/p", "something follows the port", "no path", id="a path"),
        pytest.param("http://10.137.0.5:3128?a=b", "something follows the port", "no query", id="a query"),
        pytest.param("http://10.137.0.5:3128#a", "something follows the port", "no path", id="a fragment"),
        pytest.param("http://10.137.0.5:3128 ", "not the URL of a proxy", "socks5://", id="a space after it"),
        pytest.param("http://10.137.0.5:3128\n", "not the URL of a proxy", "socks5://", id="a line end after it"),
        pytest.param("socks5://@10.137.0.5:9050", "no user before the @", "remove the @", id="an @ alone"),
        pytest.param("socks5://:secret@10.137.0.5:9050", "no user before the @", "user:password@", id="no user"),
        pytest.param("socks5://me@10.137.0.5:9050", "a user without a password", "user:password@", id="no password"),
        pytest.param("socks5://me:@10.137.0.5:9050", "a user without a password", "both", id="an empty password"),
        pytest.param("socks4a://me:secret@10.137.0.5:9050", "SOCKS 4 knows no password", "socks5://",
                     id="a password of SOCKS 4a"),
        pytest.param("socks5://me:secret%@10.137.0.5:9050", "a % without two digits", "%25", id="a bare %"),
        pytest.param("socks5://me:secret%zz@10.137.0.5:9050", "a % without two digits", "%25", id="no digits"),
        pytest.param("http://me:secret%FF@10.137.0.5:3128", "not UTF-8", "%C3%A9", id="no UTF-8"),
        pytest.param("socks5://me:secret%C3%A9@10.137.0.5:9050", "not ASCII", "names no encoding", id="not ASCII"),
        pytest.param("http://me:secret%00@10.137.0.5:3128", "a control character", "take it out", id="a NUL"),
        pytest.param("socks4a://m%0Ae@10.137.0.5:9050", "a control character", "take it out", id="a line end"),
        pytest.param(f"socks5://me:secret{LONG}@10.137.0.5:9050", "too long", "255 bytes", id="a long password"),
    ],
)  # fmt: skip
def test_what_is_no_upstream_proxy(text: str, message: str, fix: str) -> None:
    with pytest.raises(UpstreamProxyError) as refused:
        parse_upstream_proxy(text)
    assert message in str(refused.value)
    assert fix in refused.value.fix
    assert "secret" not in f"{refused.value} {refused.value.fix}"


@given(st.text())
def test_any_text_is_a_proxy_or_an_error(text: str) -> None:
    for written in (text, f"socks5://{text}@10.137.0.5:9050", f"http://10.137.0.5:{text}", f"socks5://{text}:1"):
        with suppress(UpstreamProxyError):
            parse_upstream_proxy(written)


def test_the_password_is_in_no_text() -> None:
    proxy = parse_upstream_proxy("socks5://me:secret@[fd09::5]:9050")
    assert str(proxy) == "socks5://[fd09::5]:9050"
    assert "secret" not in f"{proxy} {proxy!r}"


def test_a_name_has_the_same_mapped_address_each_time() -> None:
    assert [str(mapped(Hostname(name))) for name in ("github.com", "pypi.org")] == ["198.19.218.3", "198.18.110.204"]


@given(st.from_regex(r"[a-z0-9]{1,20}(\.[a-z]{2,9}){1,3}", fullmatch=True))
def test_every_name_has_a_mapped_address(text: str) -> None:
    address = mapped(normalise(text))
    assert is_mapped(address)
    assert address != MAPPED.network_address


@pytest.mark.parametrize(
    ("address", "is_one"),
    [
        ("198.18.0.0", True),
        ("198.19.255.255", True),
        ("198.17.255.255", False),
        ("198.20.0.0", False),
        ("::ffff:198.18.0.1", False),
    ],
)
def test_which_addresses_stand_for_names(address: str, is_one: bool) -> None:
    assert is_mapped(ip_address(address)) is is_one
    assert not is_mapped(None)
