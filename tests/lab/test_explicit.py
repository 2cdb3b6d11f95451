"""The explicit proxy: the same table of cases by each way in, and what clients are told."""

import pytest

from lab.cases import CASES, CONNECT, FORWARD, SOCKS4A, SOCKS5, TRANSPARENT, options
from lab.world import EXPLICIT_PORT
from proxyfw.demo.lab import Lab
from proxyfw.demo.network import GATEWAY4

PROXY = f"{GATEWAY4}:{EXPLICIT_PORT}"
WAYS = (TRANSPARENT, SOCKS5, SOCKS4A, CONNECT, FORWARD)


@pytest.fixture(scope="module")
def lab(explicit_lab: Lab) -> Lab:
    """The lab's world, where clients find a proxy that they can ask."""
    return explicit_lab


TABLE = [
    pytest.param(way, case.otherwise.get(way, case), id=f"{way}: {case}")
    for way in WAYS
    for case in CASES
    if way not in case.not_by
]


@pytest.mark.parametrize(("way", "case"), TABLE)
def test_it_is_the_same_by_each_way_in(lab, log, way, case):
    done = lab.curl(case.client, *options(way, PROXY), *case.arguments)

    log.expect(**case.check(way, done.stdout, done.stderr))
