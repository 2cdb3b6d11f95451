"""The explicit proxy: the same table of cases by each way in, and what clients are told."""

import pytest

from lab.cases import CASES, CONNECT, FORWARD, REFUSED, SOCKS4A, SOCKS5, TRANSPARENT, TUNNELS, Case, options
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


def _is_asked(way: str, case: Case) -> bool:
    """Whether the refusal is of what was asked for: curl tunnels TLS through a proxy in any case."""
    tunnelled = way in TUNNELS or (way == FORWARD and any(word.startswith("https:") for word in case.arguments))
    return bool(case.asked) and tunnelled


@pytest.mark.parametrize(("way", "case"), TABLE)
def test_it_is_the_same_by_each_way_in(lab, log, way, case):
    done = lab.curl(case.client, *options(way, PROXY), *case.arguments)

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
