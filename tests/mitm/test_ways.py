"""The table of cases, by each way into the mitmproxy engine."""

import pytest
from lab.cases import CASES, CONNECT, FORWARD, REFUSED, SOCKS4A, SOCKS5, TRANSPARENT, TUNNELS, Case, options

from mitm.world import EXPLICIT, PHONE
from proxyfw.demo.network import GATEWAY4

PROXY = f"{GATEWAY4}:{EXPLICIT}"
WIREGUARD = "wireguard"
WAYS = (TRANSPARENT, WIREGUARD, SOCKS5, SOCKS4A, CONNECT, FORWARD)

TABLE = [
    pytest.param(way, case.otherwise.get(way, case), id=f"{way}: {case}")
    for way in WAYS
    for case in CASES
    if (TRANSPARENT if way == WIREGUARD else way) not in case.not_by and (way != WIREGUARD or case.client == "work")
]


def _is_asked(way: str, case: Case) -> bool:
    """Whether the refusal is of what was asked for: curl tunnels TLS through a proxy in any case."""
    tunnelled = way in TUNNELS or (way == FORWARD and any(word.startswith("https:") for word in case.arguments))
    return bool(case.asked) and tunnelled


@pytest.mark.parametrize(("way", "case"), TABLE)
def test_it_is_the_same_as_by_the_proxy(request, lab, log, way, case):
    client, given = case.client, options(way, PROXY) if way != WIREGUARD else []
    if way == WIREGUARD:
        request.getfixturevalue("tunnel")
        client = PHONE

    done = lab.curl(client, *given, *case.arguments)

    expected = dict(case.row)
    if _is_asked(way, case):
        word = "socks" if way in (SOCKS5, SOCKS4A) else "connect"
        expected = {"protocol": word, **case.asked}
        if expected.get("name"):
            expected["name_source"] = word
    elif case.page:
        assert case.page in done.stdout
    if case.reached == REFUSED:
        assert "reached" not in done.stdout
    else:
        assert case.reached in done.stdout, done.stderr
        assert done.stdout.count("reached") == 1
    log.expect(client=expected.pop("client", case.client), **expected)
