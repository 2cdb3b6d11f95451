"""What the commands print for people."""

from datetime import datetime
from typing import Any

import pytest

from proxyfw.core.config import parse_config
from proxyfw.core.policy import Policy, build
from proxyfw.core.profile import Profile, link, parse_profile
from proxyfw.core.target import parse_target
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict
from proxyfw.report import client_report, profile_report, profile_table, status_report

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


def policy() -> Policy:
    config, problems = parse_config(
        "proxyfw.yaml",
        "clients: {work: {profiles: [github], address: 10.137.0.11}}\ndns: {upstream: [10.139.1.1]}",
    )
    assert config is not None, problems
    return build(config, link(profiles())[0], ())


@pytest.mark.parametrize(
    ("target", "words", "lines"),
    [
        pytest.param(
            "https://api.github.com/meta",
            "allow",
            [
                "allow: work -> api.github.com port 443/tcp",
                "  reason:  domain (a profile grants this name)",
                "  rule:    github: *.github.com (profiles/github.yaml:2)",
            ],
            id="a name that is granted",
        ),
        pytest.param(
            "140.82.112.3:22",
            "allow",
            [
                "allow: work -> 140.82.112.3 port 22/tcp",
                "  reason:  network (a profile grants this address; the kernel forwards it)",
                "  rule:    github: 140.82.112.0/20:22 (profiles/github.yaml:3)",
            ],
            id="an address that is granted",
        ),
        pytest.param(
            "10.139.1.1:53/udp",
            "allow",
            [
                "allow: work -> 10.139.1.1 port 53/udp",
                "  reason:  upstream-dns (DNS to the configured resolver)",
            ],
            id="the resolver",
        ),
        pytest.param(
            "evil.example",
            "deny",
            [
                "deny: work -> evil.example port 443/tcp",
                "  reason:  no-match (no profile of this client grants this name)",
                '  to allow it: add "evil.example" to domains: of a profile of this client, then proxyfw reload',
            ],
            id="a name that is not",
        ),
        pytest.param(
            "github.com:8443",
            "deny",
            [
                "deny: work -> github.com port 8443/tcp",
                "  reason:  no-match (no profile of this client grants this name)",
                "  detail:  granted on 80/tcp, 443/tcp",
                '  to allow it: add "github.com:8443" to domains: of a profile of this client, then proxyfw reload',
                "  (for TLS and plain HTTP; other protocols are allowed by address, under networks:)",
            ],
            id="another port of a granted name",
        ),
        pytest.param(
            "198.51.100.1:22",
            "deny",
            [
                "deny: work -> 198.51.100.1 port 22/tcp",
                "  reason:  no-name (no name can be read from it, and no profile of this client grants the address)",
            ],
            id="an address that is not granted",
        ),
        pytest.param(
            "10.137.0.1:22",
            "deny",
            [
                "deny: work -> 10.137.0.1 port 22/tcp",
                "  reason:  internal-address (the netvm, other clients and internal ranges are never reached)",
            ],
            id="an internal address",
        ),
    ],
)
def test_explain(target: str, words: str, lines: list[str]) -> None:
    found, asked = policy(), parse_target(target)
    verdict: Verdict = found.decide(asked.flow("work"))
    assert isinstance(verdict, Allow) == (words == "allow")
    detail = verdict.detail if isinstance(verdict, Deny) else ""
    assert client_report(found.clients["work"], asked, words, verdict, detail) == lines


def test_explain_of_what_observe_mode_lets_through() -> None:
    verdict = Deny(Reason.NO_MATCH, observed=True)
    lines = client_report(policy().clients["work"], parse_target("evil.example"), "observe", verdict, "")
    assert lines[0] == "observe: work -> evil.example port 443/tcp"
    assert "  mode:    observe: it is logged as refused, and let through" in lines
    assert lines[-1].startswith('  to allow it: add "evil.example"')


STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "since": 1000.0,
    "pid": 77,
    "config": "/etc/proxyfw/proxyfw.yaml",
    "reloaded": 0.0,
    "reload_failed": [],
    "resolvers": ["10.139.1.1", "10.139.1.2"],
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
        {"name": "work", "mode": "enforce", "connections": 3, "addresses": ["10.137.0.11"], "profiles": ["a", "b"]},
        {"name": "study-long", "mode": "observe", "connections": 0, "addresses": [], "profiles": []},
    ],
}


def test_status() -> None:
    assert status_report(STATUS, now=1000.0 + 3 * 3600) == [
        "proxyfw 0.1.0, running for 3 h, pid 77",
        "configuration: /etc/proxyfw/proxyfw.yaml",
        "resolvers: 10.139.1.1, 10.139.1.2",
        "log: /var/lib/proxyfw/log.sqlite, 12 rows written since the start, 0 lost",
        "connections accepted since the start: 9",
        "client      mode     open  address      profiles",
        "work        enforce  3     10.137.0.11  a b",
        "study-long  observe  0     -            -",
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
    assert lines[5:8] == [
        "log: /var/lib/proxyfw/log.sqlite, 12 rows written since the start, 4 lost",
        "  the log cannot be written: disk full",
        "  refused packets not logged, as there were too many: 5 (and 1 overruns of the kernel's buffer)",
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
