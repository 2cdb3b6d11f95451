"""The status and the page of an HTTP client that is refused."""

import errno
from ipaddress import IPv6Address

import pytest

from proxyfw.core.hostname import Hostname
from proxyfw.core.refusal import page, status_of
from proxyfw.core.verdict import Deny, Reason


@pytest.mark.parametrize(
    ("deny", "status"),
    [
        (Deny(Reason.NO_MATCH), 403),
        (Deny(Reason.NO_NAME), 403),
        (Deny(Reason.QUBES_RULE), 403),
        (Deny(Reason.INTERNAL_ADDRESS), 403),
        (Deny(Reason.PRIVATE_ADDRESS), 403),
        (Deny(Reason.UNKNOWN_CLIENT), 403),
        (Deny(Reason.MALFORMED), 400),
        (Deny(Reason.AMBIGUOUS), 400),
        (Deny(Reason.TIMEOUT), 408),
        (Deny(Reason.OVERSIZED), 431),
        (Deny(Reason.ERROR), 500),
        (Deny(Reason.UNSUPPORTED), 403),
        (Deny(Reason.UNRESOLVABLE), 502),
        (Deny(Reason.UNREACHABLE), 502),
        (Deny(Reason.UNREACHABLE, error=errno.ECONNREFUSED), 502),
        (Deny(Reason.UNREACHABLE, error=errno.ETIMEDOUT), 504),
        (Deny(Reason.UPSTREAM_PROXY), 502),
        (Deny(Reason.UPSTREAM_PROXY, error=errno.ETIMEDOUT), 504),
        (Deny(Reason.NO_MATCH, error=errno.ETIMEDOUT), 403),
        (Deny(Reason.DNS_FAILURE), 504),
        (Deny(Reason.LIMIT), 503),
        (Deny(Reason.PROXY_DOWN), 503),
    ],
    ids=str,
)
def test_the_status_says_why(deny: Deny, status: int) -> None:
    assert status_of(deny) == status


@pytest.mark.parametrize(
    ("deny", "host", "lines"),
    [
        pytest.param(
            Deny(Reason.NO_MATCH), Hostname("evil.example"), ["host:   evil.example", "reason: no-match"], id="a name"
        ),
        pytest.param(
            Deny(Reason.NO_NAME),
            IPv6Address("2001:db8::1"),
            ["host:   2001:db8::1", "reason: no-name"],
            id="an address",
        ),
        pytest.param(
            Deny(Reason.MALFORMED, detail="the port is 0"),
            None,
            ["host:   none named", "reason: malformed (the port is 0)"],
            id="nothing, and a detail",
        ),
    ],
)
def test_the_page_says_who_what_and_why(deny: Deny, host: Hostname | IPv6Address | None, lines: list[str]) -> None:
    told = page(deny, "wörk", host).decode().split("\n")
    assert told == ["proxyfw refused this connection.", "", "client: wörk", *lines, ""]
