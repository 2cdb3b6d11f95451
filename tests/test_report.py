"""What the commands print for people."""

from datetime import datetime
from typing import Any

import pytest

from proxyfw.report import feed_lines, status_report

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "since": 1000.0,
    "pid": 77,
    "config": "/etc/proxyfw/proxyfw.yaml",
    "reloaded": 0.0,
    "reload_failed": [],
    "notes": [],
    "resolvers": ["10.139.1.1", "10.139.1.2"],
    "explicit": "port 3128 of this netvm",
    "relay": {
        "queries": 20,
        "cached": 9,
        "looked_up": 4,
        "refused": 7,
        "limited": 0,
        "failed": 0,
        "unreadable": 0,
        "not_logged": 0,
        "dropped": 0,
        "resolver_failures": 0,
        "pins_not_kept": "",
    },
    "log": {
        "file": "/var/lib/proxyfw/log.sqlite",
        "written": 12,
        "lost": 0,
        "error": "",
        "packets_not_logged": 0,
        "kernel_overruns": 0,
    },
    "accepted": 9,
    "feeds": [],
    "feeds_on": True,
    "clients": [
        {
            "name": "work",
            "mode": "enforce",
            "dns": "profile",
            "connections": 3,
            "pins": 5,
            "lookups": 4,
            "rules": 3,
            "addresses": ["10.137.0.11"],
            "profiles": ["a", "b"],
            "upstream_proxy": "",
        },
        {
            "name": "study-long",
            "mode": "observe",
            "dns": "all",
            "connections": 0,
            "pins": 0,
            "lookups": 0,
            "rules": 0,
            "addresses": [],
            "profiles": [],
            "upstream_proxy": "socks5://10.137.0.5:9050",
        },
    ],
}


def test_status() -> None:
    assert status_report(STATUS, now=1000.0 + 3 * 3600) == [
        "proxyfw 0.1.0, running for 3 h, pid 77",
        "configuration: /etc/proxyfw/proxyfw.yaml",
        "resolvers: 10.139.1.1, 10.139.1.2",
        "explicit proxy: port 3128 of this netvm",
        "relay: 20 queries: 9 answered from the cache, 4 looked up, 7 refused",
        "log: /var/lib/proxyfw/log.sqlite, 12 rows written since the start, 0 lost",
        "connections accepted since the start: 9",
        "client      mode     dns      open  pins  look-ups  rules  address      profiles",
        "work        enforce  profile  3     5     4         3      10.137.0.11  a b",
        "study-long  observe  all      0     0     0         0      -            -",
        "study-long leaves through socks5://10.137.0.5:9050",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        pytest.param(0, "0 s", id="now"),
        pytest.param(59.9, "59 s", id="under a minute"),
        pytest.param(60, "1 min", id="a minute"),
        pytest.param(86399, "23 h", id="under a day"),
        pytest.param(10 * 86400, "10 d", id="days"),
        pytest.param(-5, "0 s", id="a clock that was set back"),
    ],
)
def test_for_how_long_it_runs(seconds: float, text: str) -> None:
    assert f"running for {text}," in status_report(STATUS, now=1000.0 + seconds)[0]


def test_status_says_what_is_wrong() -> None:
    log = STATUS["log"] | {"lost": 4, "error": "disk full", "packets_not_logged": 5, "kernel_overruns": 1}
    lines = status_report(STATUS | {"reload_failed": ["p.yaml:3: error: x"], "log": log}, now=1000.0)
    assert lines[2:4] == [
        "the latest reload was NOT taken; the last good policy is in force:",
        "  p.yaml:3: error: x",
    ]
    assert lines[7:10] == [
        "log: /var/lib/proxyfw/log.sqlite, 12 rows written since the start, 4 lost",
        "  the log cannot be written: disk full",
        "  refused packets not logged, as there were too many: 5 (and 1 overruns of the kernel's buffer)",
    ]


def test_status_says_what_the_relay_could_not_do() -> None:
    relay = STATUS["relay"] | {"limited": 1, "failed": 2, "unreadable": 3, "not_logged": 4, "dropped": 5}
    relay["pins_not_kept"] = "pins.sqlite: disk full"
    assert status_report(STATUS | {"relay": relay}, now=1000.0)[5:11] == [
        "  queries refused, as their client had too many names looked up: 1",
        "  packets dropped, as their client sent too many: 5",
        "  look-ups that no resolver answered: 2",
        "  messages that were no DNS query: 3",
        "  refusals and answers not logged, as there were too many: 4",
        "  pins will not survive a restart: pins.sqlite: disk full",
    ]


def test_status_says_when_it_was_reloaded() -> None:
    line = status_report(STATUS | {"reloaded": 1_700_000_000.0}, now=1_700_000_000.0)[1]
    before, _, moment = line.partition(", reloaded ")
    assert before == "configuration: /etc/proxyfw/proxyfw.yaml"
    assert datetime.fromisoformat(moment).timestamp() == 1_700_000_000.0


NOW = 1_700_000_000.0
FEED: dict[str, Any] = {
    "source": "https://api.github.com/meta git",
    "profiles": ["github", "work"],
    "networks": 44,
    "checked": NOW - 3 * 3600 - 60,
    "due": NOW + 21 * 3600 + 60,
    "error": "",
    "held_back": 0,
}
HEADER = "feed                             networks  checked  next     profiles     state"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        pytest.param({}, "https://api.github.com/meta git  44        3 h ago  in 21 h  github work  good", id="good"),
        pytest.param(
            {"checked": 0.0, "due": 0.0, "networks": 0},
            "https://api.github.com/meta git  0         never    now   github work  not fetched yet",
            id="not fetched yet",
        ),
        pytest.param(
            {"error": "timed out after 60 s", "due": NOW - 1},
            "https://api.github.com/meta git  44        3 h ago  now   github work  timed out after 60 s",
            id="an error",
        ),
        pytest.param(
            {"error": "held back: it grew from 44 to 4,000 IPv4 networks at once", "held_back": 4000},
            "https://api.github.com/meta git  44        3 h ago  in 21 h  github work  held back: it grew from 44 to "
            "4,000 IPv4 networks at once (its 4000 networks: proxyfw refresh --accept)",
            id="held back",
        ),
        pytest.param(
            {"error": "bad \x1b[31m\u202e"},
            r"https://api.github.com/meta git  44        3 h ago  in 21 h  github work  bad \x1b[31m\u202e",
            id="an error that would drive the terminal",
        ),
    ],
)
def test_a_feed(changes: dict[str, Any], line: str) -> None:
    header, told = feed_lines([FEED | changes], True, NOW)
    assert told == line
    assert header.split() == HEADER.split()


def test_feeds_of_status_stand_before_the_clients() -> None:
    lines = status_report(STATUS | {"feeds": [FEED]}, now=NOW)
    assert lines[7:10] == [
        HEADER,
        "https://api.github.com/meta git  44        3 h ago  in 21 h  github work  good",
        "client      mode     dns      open  pins  look-ups  rules  address      profiles",
    ]


def test_that_feeds_are_off_is_said() -> None:
    lines = status_report(STATUS | {"feeds_on": False}, now=NOW)
    assert lines[7] == "feeds: off: no list is fetched, and none grants anything"


def test_without_feeds_there_is_no_line_for_them() -> None:
    assert feed_lines([], True, NOW) == []
