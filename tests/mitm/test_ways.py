"""The table of cases, by each way into the mitmproxy engine."""

import pytest
from lab.cases import CASES, CONNECT, FORWARD, SOCKS4A, SOCKS5, TRANSPARENT, options

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


@pytest.mark.parametrize(("way", "case"), TABLE)
def test_it_is_the_same_as_by_the_proxy(request, lab, log, way, case):
    client, given = case.client, options(way, PROXY) if way != WIREGUARD else []
    if way == WIREGUARD:
        request.getfixturevalue("tunnel")
        client = PHONE

    done = lab.curl(client, *given, *case.arguments)

    log.expect(**case.check(way, done.stdout, done.stderr))
