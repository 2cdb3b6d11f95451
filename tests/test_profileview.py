"""What `profiles` tells: the list, what one grants, and which have a word or grant a name or an address."""

from datetime import UTC, datetime

import pytest

from proxyfw.core.profile import Profile, parse_profile
from proxyfw.profileview import find, profile_list, profile_report, profile_table

NOW = 1_700_000_000.0


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(NOW + seconds, UTC).isoformat()


PROFILES = {
    "github": 'description: GitHub web\ndomains: [github.com, "*.github.com"]\nnetworks: ["140.82.112.0/20:22"]\n'
    "include: [fastly]\n",
    "fastly": "description: Fastly\ndomains: [.fastly.net]\n",
    "home": "domains: [nas.example]\nprivate: true\n",
    "lists": "description: by address\nfeeds:\n"
    "  - {url: https://api.github.com/meta, format: json, select: [git], ports: [22], every: 5d}\n"
    "  - {python: mine}\ninclude: [fastly]\n",
    "allowed/work": "domains: [b.example]\ntemporary:\n"
    f"  - {{grant: a.example, until: '{moment(500)}'}}\n"
    f"  - {{grant: 192.0.2.0/24, until: '{moment(7300)}'}}\n"
    f"  - {{grant: over.example, until: '{moment(-1)}'}}\n",
}


def profiles() -> dict[str, Profile]:
    found = {}
    for name, text in PROFILES.items():
        profile, problems = parse_profile(name, f"profiles/{name}.yaml", text)
        assert profile is not None, problems
        found[name] = profile
    return found


def test_the_list_of_profiles() -> None:
    assert profile_table(profiles(), NOW) == [
        "profile       domains  networks  feeds  description",
        "github        3        1         -      GitHub web",
        "fastly        1        -         -      Fastly",
        "home          1        -         -",
        "lists         1        -         2      by address",
        "allowed/work  1        -         -",
    ]
    assert profile_table({}, NOW) == []


def test_the_list_of_profiles_for_programs() -> None:
    assert profile_list(profiles(), NOW)[0] == {
        "name": "github",
        "description": "GitHub web",
        "file": "profiles/github.yaml",
        "domains": 3,
        "networks": 1,
        "feeds": 0,
        "temporary": 0,
    }


def test_a_description_cannot_drive_the_terminal() -> None:
    profile, _ = parse_profile("p", "p.yaml", "description: grün\ndomains: [a.example]\n")
    assert profile is not None
    assert profile_table({"p": profile}, NOW)[1] == r"p        1        -         -      gr\xfcn"


def test_a_profile_with_what_it_includes() -> None:
    report = profile_report("github", profiles(), NOW)
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
    assert found["domains"][2] == {"pattern": ".fastly.net", "profile": "fastly", "where": "profiles/fastly.yaml:2"}
    assert found["networks"] == [
        {"network": "140.82.112.0/20:22", "profile": "github", "where": "profiles/github.yaml:3"}
    ]


def test_a_profile_that_reaches_private_addresses_says_so() -> None:
    assert profile_report("home", profiles(), NOW).as_text()[1:] == [
        "  file: profiles/home.yaml",
        "  private: its names may lead to private addresses",
        "  1 domain, 0 networks",
        "    nas.example",
    ]


def test_a_profile_with_feeds() -> None:
    report = profile_report("lists", profiles(), NOW)
    assert report.as_text()[3:] == [
        "  1 domain, 0 networks, 2 feeds",
        "    .fastly.net   (from fastly)",
        "    https://api.github.com/meta (json; select git; every 5 d; ports 22)",
        "    feeds/mine.py (every 1 d; every port)",
    ]
    assert report.as_json()["feeds"][0] == {
        "url": "https://api.github.com/meta",
        "format": "json",
        "select": ["git"],
        "python": "",
        "ports": ["22"],
        "every": 5 * 86400,
        "profile": "lists",
        "where": "profiles/lists.yaml:3",
    }


def test_a_profile_with_what_is_granted_for_a_while() -> None:
    report = profile_report("allowed/work", profiles(), NOW)
    assert report.as_text()[1:] == [
        "  file: profiles/allowed/work.yaml",
        "  1 domain, 0 networks, 2 for a while",
        "    b.example",
        "    a.example   (for another 8 min)",
        "    192.0.2.0/24   (for another 2 h)",
    ]
    assert report.as_json()["temporary"][0] == {
        "grant": "a.example",
        "until": moment(500),
        "seconds": 500,
        "profile": "allowed/work",
        "where": "profiles/allowed/work.yaml:3",
    }


@pytest.mark.parametrize(
    ("word", "lines"),
    [
        pytest.param("www.GitHub.com", [
            "www.GitHub.com is granted by",
            "  github  *.github.com  profiles/github.yaml:2",
        ], id="a host name"),
        pytest.param("x.fastly.net", [
            "x.fastly.net is granted by",
            "  github  .fastly.net (from fastly)  profiles/fastly.yaml:2",
            "  fastly  .fastly.net                profiles/fastly.yaml:2",
            "  lists   .fastly.net (from fastly)  profiles/fastly.yaml:2",
        ], id="a host name of a profile that others include"),
        pytest.param("nas.example", [
            "nas.example is granted by",
            "  home  nas.example  profiles/home.yaml:1",
        ], id="a host name that is written so"),
        pytest.param("a.example", [
            "a.example is granted by",
            "  allowed/work  a.example  profiles/allowed/work.yaml:3",
        ], id="a host name that is granted for a while"),
        pytest.param("140.82.112.3", [
            "140.82.112.3 is granted by",
            "  github  140.82.112.0/20:22  profiles/github.yaml:3",
        ], id="an address"),
        pytest.param("192.0.2.9", [
            "192.0.2.9 is granted by",
            "  allowed/work  192.0.2.0/24  profiles/allowed/work.yaml:4",
        ], id="an address that is granted for a while"),
        pytest.param("EXAMPLE", [
            '"EXAMPLE" is in',
            "  home            nas.example",
            "  allowed/work    b.example",
        ], id="a word of domains, in capitals"),
        pytest.param("web", ['"web" is in', "  github  GitHub web"], id="a word of a description"),
        pytest.param("hub.c", [
            '"hub.c" is in',
            "  github  GitHub web  github.com, *.github.com",
        ], id="a part of a name"),
    ],
)  # fmt: skip
def test_a_search(word: str, lines: list[str]) -> None:
    found = find(word, profiles(), NOW)
    assert found is not None
    assert found.as_text() == lines
    told = found.as_json()
    assert told["word"] == word
    assert len(told["granting"]) + len(told["having"]) == len({line.split()[0] for line in lines[1:]})


@pytest.mark.parametrize("word", ["slack", "", "over.example", "2001:db8::1", "a b", "evil.example", "\\x"])
def test_what_no_profile_has(word: str) -> None:
    assert find(word, profiles(), NOW) is None
