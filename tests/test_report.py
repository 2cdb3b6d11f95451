"""What the commands print for people."""

from datetime import datetime
from typing import Any

import pytest

from proxyfw.core.profile import Profile, parse_profile
from proxyfw.report import profile_report, profile_table, status_report

PROFILES = {
    "github": 'description: GitHub web\ndomains: [github.com, "*.github.com"]\nnetworks: ["140.82.112.0/20:22"]\n'
    "include: [fastly]\n",
    "fastly": "description: Fastly\ndomains: [.fastly.net]\n",
    "home": "domains: [nas.example]\nprivate: true\n",
}


def profiles() -> dict[str, Profile]:
    found = {}
    for name, text in PROFILES.items():
        profile, problems = parse_profile(name, f"profiles/{name}.yaml", text)
        assert profile is not None, problems
        found[name] = profile
    return found


STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "since": 1000.0,
    "pid": 77,
    "config": "/etc/proxyfw/proxyfw.yaml",
    "reloaded": 0.0,
    "reload_failed": [],
    "notes": [],
    "resolvers": ["10.139.1.1", "10.139.1.2"],
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
        },
    ],
}


def test_status() -> None:
    assert status_report(STATUS, now=1000.0 + 3 * 3600) == [
        "proxyfw 0.1.0, running for 3 h, pid 77",
        "configuration: /etc/proxyfw/proxyfw.yaml",
        "resolvers: 10.139.1.1, 10.139.1.2",
        "relay: 20 queries: 9 answered from the cache, 4 looked up, 7 refused",
        "log: /var/lib/proxyfw/log.sqlite, 12 rows written since the start, 0 lost",
        "connections accepted since the start: 9",
        "client      mode     dns      open  pins  look-ups  rules  address      profiles",
        "work        enforce  profile  3     5     4         3      10.137.0.11  a b",
        "study-long  observe  all      0     0     0         0      -            -",
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
    assert lines[6:9] == [
        "log: /var/lib/proxyfw/log.sqlite, 12 rows written since the start, 4 lost",
        "  the log cannot be written: disk full",
        "  refused packets not logged, as there were too many: 5 (and 1 overruns of the kernel's buffer)",
    ]


def test_status_says_what_the_relay_could_not_do() -> None:
    relay = STATUS["relay"] | {"limited": 1, "failed": 2, "unreadable": 3, "not_logged": 4, "dropped": 5}
    relay["pins_not_kept"] = "pins.sqlite: disk full"
    assert status_report(STATUS | {"relay": relay}, now=1000.0)[4:10] == [
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


def test_the_list_of_profiles() -> None:
    assert profile_table(profiles().values()) == ["github  GitHub web", "fastly  Fastly", "home"]
    assert profile_table([]) == []


def test_a_description_cannot_drive_the_terminal() -> None:
    profile, _ = parse_profile("p", "p.yaml", "description: grün\ndomains: [a.example]\n")
    assert profile is not None
    assert profile_table([profile]) == [r"p  gr\xfcn"]


def test_a_profile_with_what_it_includes() -> None:
    report = profile_report("github", profiles(), None)
    assert report.as_text() == [
        "github: GitHub web",
        "  file: profiles/github.yaml",
        "  includes: fastly",
        "  3 domains, 1 network",
        "    github.com",
        "    *.github.com",
        "    .fastly.net   (from fastly)",
        "    140.82.112.0/20:22",
    ]
    found = report.as_json()
    assert (found["name"], found["includes"]) == ("github", ["fastly"])
    assert found["domains"][2] == {
        "pattern": ".fastly.net",
        "profile": "fastly",
        "where": "profiles/fastly.yaml:2",
    }
    assert found["networks"] == [
        {"network": "140.82.112.0/20:22", "profile": "github", "where": "profiles/github.yaml:3"}
    ]


def test_a_profile_that_reaches_private_addresses_says_so() -> None:
    assert profile_report("home", profiles(), None).as_text()[1:] == [
        "  file: profiles/home.yaml",
        "  private: its names may lead to private addresses",
        "  1 domain, 0 networks",
        "    nas.example",
    ]
