"""What a person may ask about, and which flow it stands for."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.hostname import Hostname
from proxyfw.core.policy import Flow, NameSource, Protocol
from proxyfw.core.target import Target, TargetError, parse_target


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        pytest.param("github.com", "github.com port 443/tcp", id="a host"),
        pytest.param("GitHub.COM.", "github.com port 443/tcp", id="upper case and a trailing dot"),
        pytest.param("bücher.de", "xn--bcher-kva.de port 443/tcp", id="an international name"),
        pytest.param("github.com:22", "github.com port 22/tcp", id="a host and a port"),
        pytest.param("github.com:22/tcp", "github.com port 22/tcp", id="a port over TCP"),
        pytest.param("pool.ntp.org:123/udp", "pool.ntp.org port 123/udp", id="a port over UDP"),
        pytest.param("github.com/udp", "github.com port 443/udp", id="QUIC"),
        pytest.param("https://github.com/a/b?c#d", "github.com port 443/tcp", id="an HTTPS URL"),
        pytest.param("HTTPS://github.com", "github.com port 443/tcp", id="a scheme in upper case"),
        pytest.param("http://github.com", "github.com port 80/tcp", id="an HTTP URL"),
        pytest.param("https://github.com:8443/", "github.com port 8443/tcp", id="a URL with a port"),
        pytest.param("wss://github.com/x", "github.com port 443/tcp", id="a WebSocket over TLS"),
        pytest.param("ws://github.com/x", "github.com port 80/tcp", id="a WebSocket"),
        pytest.param("https://github.com/a/udp", "github.com port 443/tcp", id="a path that ends in udp"),
        pytest.param("192.0.2.7", "192.0.2.7 port 443/tcp", id="an address"),
        pytest.param("192.0.2.7:22", "192.0.2.7 port 22/tcp", id="an address and a port"),
        pytest.param("192.0.2.7:53/udp", "192.0.2.7 port 53/udp", id="an address and a UDP port"),
        pytest.param("2001:db8::7", "[2001:db8::7] port 443/tcp", id="an IPv6 address"),
        pytest.param("2001:db8::7/udp", "[2001:db8::7] port 443/udp", id="an IPv6 address over UDP"),
        pytest.param("[2001:db8::7]", "[2001:db8::7] port 443/tcp", id="an IPv6 address in brackets"),
        pytest.param("[2001:db8::7]:22", "[2001:db8::7] port 22/tcp", id="an IPv6 address and a port"),
        pytest.param("https://[2001:db8::7]/", "[2001:db8::7] port 443/tcp", id="an IPv6 address in a URL"),
    ],
)
def test_a_target_is_read(text: str, meaning: str) -> None:
    assert str(parse_target(text)) == meaning


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("", "this is no host name: the name is empty", id="nothing"),
        pytest.param("https://", "this is no host name: the name is empty", id="a scheme alone"),
        pytest.param("git hub.com", "this is no host name: only letters", id="a space"),
        pytest.param("*.github.com", "this is no host name: only letters", id="a pattern"),
        pytest.param(
            "192.0.2", "this is no host name: it is an address, not a name", id="three quarters of an address"
        ),
        pytest.param("ftp://github.com", "only https, wss, http, ws URLs", id="another scheme"),
        pytest.param("://github.com", "only https, wss, http, ws URLs", id="no scheme"),
        pytest.param("github.com:0", "a port is a number from 1 to 65535", id="port 0"),
        pytest.param("github.com:65536", "this is no URL, host or address", id="a port that is too high"),
        pytest.param("github.com:https", "this is no URL, host or address", id="a port that is no number"),
        pytest.param("[2001:db8::7", "this is no URL, host or address", id="half the brackets"),
        pytest.param("git@github.com", "a user name in the target", id="a user name"),
        pytest.param("https://github.com@evil.example/", "a user name in the target", id="a URL that lies"),
    ],
)
def test_what_is_no_target_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(TargetError, match=why.replace("(", r"\(")):
        parse_target(text)


@pytest.mark.parametrize(
    ("text", "flow"),
    [
        pytest.param(
            "https://github.com",
            Flow("work", Protocol.TLS, None, 443, Hostname("github.com"), NameSource.SNI),
            id="a name over TLS is an SNI",
        ),
        pytest.param(
            "http://github.com",
            Flow("work", Protocol.HTTP, None, 80, Hostname("github.com"), NameSource.HOST),
            id="a name over HTTP is a Host",
        ),
        pytest.param(
            "192.0.2.7:22", Flow("work", Protocol.TCP, ip_address("192.0.2.7"), 22), id="an address has no name"
        ),
        pytest.param(
            "http://192.0.2.7", Flow("work", Protocol.TCP, ip_address("192.0.2.7"), 80), id="nor has one in a URL"
        ),
        pytest.param(
            "192.0.2.7:53/udp", Flow("work", Protocol.UDP, ip_address("192.0.2.7"), 53), id="an address over UDP"
        ),
    ],
)
def test_the_flow_of_a_target(text: str, flow: Flow) -> None:
    assert parse_target(text).flow("work") == flow


@given(st.text(max_size=20) | st.text("[]:/@.%0123456789abfhtps", max_size=20) | st.from_regex(r"\S+://\S*(:\d+)?"))
def test_any_text_is_a_target_or_refused(text: str) -> None:
    try:
        target = parse_target(text)
    except TargetError:
        return
    assert isinstance(target, Target)
    assert 1 <= target.port <= 65535
