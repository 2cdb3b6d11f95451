"""Profiles: what a file grants, every mistake with its line and what to write instead, and the includes."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.pattern import Form
from proxyfw.core.problem import Problem, Where
from proxyfw.core.profile import NetworkGrant, Profile, link, parse_network, parse_profile

GITHUB = """\
# profiles/github.yaml
description: GitHub web, git over HTTPS and SSH, API, raw files, releases
domains:
  - github.com                 # exactly this name; ports 80 and 443, TCP, and 443 UDP
  - "*.github.com"             # any name below it, any depth, not github.com itself
  - .githubusercontent.com     # both: the name and everything below it
  - "r*.example.com"           # * inside a label: any characters of that one label
  - github.com:22              # another port; :123/udp for UDP; needs a pin, as there is no SNI
networks: ["140.82.112.0/20:22"]
include: [fastly]
"""


TEXT = "url: 'https://a.example/x', format: text"


def feed(**changed: str) -> str:
    """A profile with one feed, and these of its keys."""
    keys = {"url": "https://a.example/x", "format": "text"} | changed
    return "feeds:\n- {" + ", ".join(f"{key}: {text}" for key, text in keys.items()) + "}\n"


def for_a_while(grant: str, until: str = "2026-01-31T12:00:00Z") -> str:
    return f'temporary: [{{grant: "{grant}", until: "{until}"}}]\n'


def profile(text: str, name: str = "p") -> Profile:
    parsed, problems = parse_profile(name, f"{name}.yaml", text)
    assert parsed is not None, problems
    return parsed


def problems_of(text: str) -> list[Problem]:
    return parse_profile("p", "p.yaml", text)[1]


def check_one_problem(text: str, line: int, message: str, fix: str, warning: bool) -> None:
    parsed, problems = parse_profile("p", "p.yaml", text)
    assert (parsed is not None) == warning
    assert len(problems) == 1, problems
    assert problems[0].where == Where("p.yaml", line)
    assert problems[0].warning == warning
    assert message in problems[0].message
    assert fix in problems[0].fix


def test_a_whole_profile() -> None:
    parsed, problems = parse_profile("github", "github.yaml", GITHUB)
    assert parsed is not None
    assert [str(problem) for problem in problems] == [
        'github.yaml:6: warning: ".githubusercontent.com": anyone can have a name under "githubusercontent.com"; '
        "write the names that are needed, as in some.githubusercontent.com"
    ]
    assert (parsed.name, parsed.where, parsed.private) == ("github", Where("github.yaml", 2), False)
    assert parsed.description == "GitHub web, git over HTTPS and SSH, API, raw files, releases"
    assert [(pattern.form, pattern.name, pattern.where.line) for pattern in parsed.domains] == [
        (Form.EXACT, "github.com", 4),
        (Form.BELOW, "github.com", 5),
        (Form.NAME_AND_BELOW, "githubusercontent.com", 6),
        (Form.IN_LABEL, "r*.example.com", 7),
        (Form.EXACT, "github.com", 8),
    ]
    assert [(str(grant.network), str(grant.port), grant.where.line) for grant in parsed.networks] == [
        ("140.82.112.0/20", "22", 9)
    ]
    assert {granted.profile for granted in (*parsed.domains, *parsed.networks)} == {"github"}
    assert (parsed.include, parsed.include_where) == (("fastly",), (Where("github.yaml", 10),))


FEEDS = """\
feeds:
  - url: https://api.github.com/meta
    format: json
    select: [git, "a.b"]
    ports: [22, 123/udp, "22"]
    every: 5d
  - {url: "https://www.cloudflare.com/ips-v4", format: text}
  - python: our_list
    every: 10m
"""


def test_feeds() -> None:
    parsed = profile(FEEDS)
    assert [(str(feed.source), [str(port) for port in feed.ports], feed.every) for feed in parsed.feeds] == [
        ("https://api.github.com/meta git a.b", ["22", "123/udp"], 5 * 86400),
        ("https://www.cloudflare.com/ips-v4", [], 86400),
        ("feeds/our_list.py", [], 600),
    ]
    assert [(feed.where, feed.profile) for feed in parsed.feeds] == [(Where("p.yaml", line), "p") for line in (2, 7, 8)]
    assert len({feed.source.id for feed in parsed.feeds}) == 3
    again = profile(FEEDS, "q").feeds[0]
    assert (again.source, again.source.id) == (parsed.feeds[0].source, parsed.feeds[0].source.id)  # one list, not two


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}", "domains: []\n"])
def test_what_was_allowed_to_a_client_may_be_nothing(text: str) -> None:
    parsed, problems = parse_profile("allowed/work", "allowed/work.yaml", text)
    assert parsed is not None
    assert (parsed.domains, problems) == ((), [])


TEMPORARY = """\
domains: [a.example]
temporary:
  - {grant: "*.b.example:22", until: "2026-01-31T12:00:00+00:00"}
  - grant: 192.0.2.0/24:22
    until: 2026-01-31T12:00:00+01:00
  - {grant: "2001:db8::1", until: 2026-01-31T12:00:10Z}
"""


def test_what_is_granted_for_a_while() -> None:
    parsed = profile(TEMPORARY)
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
    for now, granted in (
        (noon - 3601, ["a.example", "*.b.example:22", "192.0.2.0/24:22", "2001:db8::1"]),
        (noon - 3600, ["a.example", "*.b.example:22", "2001:db8::1"]),
        (noon, ["a.example", "2001:db8::1"]),
        (noon + 10, ["a.example"]),
    ):
        then = parsed.at(now)
        assert [grant.text for grant in (*then.domains, *then.networks)] == granted
    assert (parsed.domains[0].text, len(parsed.domains), parsed.networks) == ("a.example", 1, ())


@pytest.mark.parametrize(
    ("text", "line", "message", "fix"),
    [
        pytest.param("", 1, "the file is empty", "write at least one key", id="an empty file"),
        pytest.param("# nothing yet\n", 1, "the file is empty", "write at least one key", id="only comments"),
        pytest.param("domains:\n  - *.x.com\n", 2, "not valid YAML", '"*.example.com"', id="a star without quotes"),
        pytest.param("domains: [*.x.com]", 1, "not valid YAML", '"*.example.com"', id="the same in brackets"),
        pytest.param("domains:\n  - *x\n", 2, "undefined alias", '"*.example.com"', id="a star and a letter"),
        pytest.param("networks:\n  - [2001:db8::/32]:22\n", 2, "not valid YAML", "in quotes", id="IPv6 without quotes"),
        pytest.param("domains:\n\t- x.com\n", 2, "not valid YAML", "spaces in place of tabs", id="a tab"),
        pytest.param("domains: [x.com\n", 2, "begins on line 1", "the brackets", id="a bracket left open"),
        pytest.param("description: a: b\n", 1, "not valid YAML", "the quotes", id="a colon in a plain value"),
        pytest.param('description: "a\n', 2, "begins on line 1", "the quotes", id="a quote left open"),
        pytest.param(
            "domains: [x.com]\n---\n{}\n", 2, "a second YAML document", 'remove the "---"', id="two documents"
        ),
        pytest.param("# a\ndomains: [\x07]\n", 2, "control character (U+0007)", "remove it", id="a control character"),
        pytest.param('description: "\\e[31m"\n', 1, "a control character", "remove it", id="one by an escape"),
        pytest.param('description: "\\ud800"\n', 1, "a control character", "remove it", id="half a surrogate pair"),
        pytest.param('# a\n? "\\UFFFFFFFF"\n', 2, "out of range", "remove it", id="an escape beyond Unicode"),
        pytest.param("%YAML 1." + "9" * 5000 + "\n---\n{}", 1, "out of range", "remove it", id="a huge YAML version"),
        pytest.param("[" * 5000, 1, "nested too deeply", "remove", id="brackets without end"),
        pytest.param("domains: !!python/name:os.system x\n", 1, "a tag (!)", "in quotes", id="a tag"),
        pytest.param("domains: &a [*a]\n", 1, "a string is wanted, this is a list", "one value", id="a list in itself"),
        pytest.param("&a domains: [x.com]\n*a : [y.com]\n", 1, "stands twice", "line 1", id="a key twice by an alias"),
        pytest.param(
            "[x.com]", 1, "a mapping is wanted, this is a list", 'write "key: value"', id="a list as the file"
        ),
        pytest.param("x.com", 1, "a mapping is wanted, this is a string", 'write "key: value"', id="only a string"),
        pytest.param("? [a]\n: b\n", 1, "a string is wanted, this is a list", "one value", id="a list as a key"),
        pytest.param(
            "domains: [x.com]\ndomain: [y.com]", 2, 'unknown key "domain"', 'write "domains"', id="a near key"
        ),
        pytest.param("domains: [x.com]\nzzz: 1", 2, 'unknown key "zzz"', "known: description, domains", id="a far key"),
        pytest.param("<<: {domains: [x.com]}", 1, 'unknown key "<<"', "known:", id="a merge key"),
        pytest.param(
            "domains: [x.com]\nprivate: true\ndomains: [y.com]\n", 3, "stands twice", "line 1", id="a key twice"
        ),
        pytest.param("domains: x.com", 1, "a list is wanted, this is a string", "write [x.com]", id="one domain"),
        pytest.param('domains: "*.x.com"', 1, "a list is wanted", 'write ["*.x.com"]', id="one domain in quotes"),
        pytest.param("domains: {x.com: 22}", 1, "this is a mapping", "write [a, b]", id="domains as a mapping"),
        pytest.param(
            "domains:\nprivate: true", 1, "there is nothing here", "remove the key", id="domains with nothing"
        ),
        pytest.param("domains:\n- x.com\n-\n", 3, "there is nothing here", "one value", id="a dash with nothing"),
        pytest.param(
            "domains:\n- x.com: 22\n", 2, "this is a mapping", '": " with a space', id="a space before the port"
        ),
        pytest.param("domains:\n- [x.com]\n", 2, "this is a list", "one value", id="brackets in a list"),
        pytest.param("domains:\n- x.com\n- '*'\n", 3, "every name", "names that are needed", id="a bare star"),
        pytest.param("domains:\n- a.com\n- 1.2.3.4\n", 3, "an address", "under networks:", id="an address as a domain"),
        pytest.param("domains: ['']", 1, "the name is empty", "www.example.com", id="an empty domain"),
        pytest.param("networks:\n- 10.1.2.3/8\n", 2, "beyond /8", '"10.0.0.0/8", or "10.1.2.3"', id="host bits"),
        pytest.param("networks:\n- x.com\n", 2, "not an address", "under domains:", id="a name as a network"),
        pytest.param("domains: [x.com]\nprivate: yes\n", 2, "true or false is wanted", "true or false", id="yes"),
        pytest.param("domains: [x.com]\nprivate: no\n", 2, 'this is "no"', "true or false", id="no"),
        pytest.param("domains: [x.com]\nprivate: [true]\n", 2, "this is a list", "one value", id="private as a list"),
        pytest.param("domains: [x.com]\ndescription:\n", 2, "nothing here", "remove the key", id="no description"),
        pytest.param("domains: [x.com]\ninclude: a\n", 2, "a list is wanted", "write [a]", id="one include"),
        pytest.param("feeds: x\n", 1, "a list of feeds is wanted", "- url:", id="feeds that are no list"),
        pytest.param("feeds: [x]\n", 1, "a feed is a mapping", "url: and format:", id="a feed that is no mapping"),
        pytest.param(f"feeds:\n- {{{TEXT}, size: 1}}\n", 2, 'unknown key "size"', "known:", id="an unknown key"),
        pytest.param("feeds:\n- {url: 'https://a.example'}\n", 2, "without format:", "json or", id="no format"),
        pytest.param("feeds:\n- {format: text}\n", 2, "without url:", "https://", id="no URL"),
        pytest.param(feed(url="http://a.example"), 2, "not an https URL", "https://host/path", id="http"),
        pytest.param(feed(url="https://"), 2, "not an https URL", "https://host/path", id="a URL without a host"),
        pytest.param(feed(url="https://a.example:0/"), 2, "not an https URL", "https://host/path", id="port 0"),
        pytest.param(feed(url="https://a b.example"), 2, "not an https URL", "https://host/path", id="a blank"),
        pytest.param(feed(url="https://me:x@a.example/"), 2, "password in the URL", "without it", id="a password"),
        pytest.param(feed(url="https://a.example/#x"), 2, "never fetched", "remove it", id="a fragment"),
        pytest.param(feed(format="xml"), 2, 'format "xml" does not exist', "json or text", id="an unknown format"),
        pytest.param(feed(select="[git]"), 2, '"git": ', "README", id="a selection of a text"),
        pytest.param(feed(ports="[0]"), 2, '"0" is not a port', '[22, "123/udp"]', id="a port that is none"),
        pytest.param(feed(every="1m"), 2, 'every "1m"', "from 10m to 90d", id="too often"),
        pytest.param(feed(every="91d"), 2, 'every "91d"', "from 10m to 90d", id="too seldom"),
        pytest.param(feed(every="x"), 2, 'every "x"', "a number and", id="no duration"),
        pytest.param("feeds:\n- {python: ../x}\n", 2, "not the name of a Python feed", "feeds/NAME.py", id="a path"),
        pytest.param(
            feed(python="x").replace("format: text, ", ""), 2, "url: does not go with", "one", id="two in one"
        ),
        pytest.param("temporary: x\n", 1, "a list is wanted", "grant: and until:", id="temporary that is no list"),
        pytest.param("temporary: [{grant: x.com}]\n", 1, "grant: and until:", "write both", id="without an end"),
        pytest.param(for_a_while("x.com", "tomorrow"), 1, "is no moment", "2026-01-31T12:00", id="no moment"),
        pytest.param(for_a_while("x.com", "2026-01-31T12:00"), 1, "is no moment", "its offset", id="a moment nowhere"),
        pytest.param(for_a_while("*.com"), 1, "public suffix", "example.com", id="a public suffix for a while"),
        pytest.param(for_a_while("10.1.2.3/8"), 1, "beyond /8", "10.0.0.0/8", id="host bits for a while"),
    ],
)
def test_errors_name_the_line_and_the_fix(text: str, line: int, message: str, fix: str) -> None:
    check_one_problem(text, line, message, fix, warning=False)


@pytest.mark.parametrize(
    ("text", "line", "message", "fix"),
    [
        pytest.param("description: x\n", 1, "grants nothing", "under domains:", id="nothing granted, nothing included"),
        pytest.param("{}", 1, "grants nothing", "under domains:", id="an empty mapping"),
        pytest.param("domains: []", 1, "grants nothing", "under domains:", id="an empty list"),
        pytest.param("domains:\n- x.com\n- X.com.\n", 3, '"X.com." stands twice', "line 2", id="a domain twice"),
        pytest.param("domains:\n- x.com:22\n- x.com:22/tcp\n", 3, "stands twice", "line 2", id="a port twice"),
        pytest.param("domains:\n- '*.x.com'\n", 2, 'does not grant "x.com" itself', 'write ".x.com"', id="*.x alone"),
        pytest.param("domains: ['*.x.com:22']\n", 1, "itself", 'write ".x.com:22"', id="*.x alone, with a port"),
        pytest.param("domains:\n- .github.io\n", 2, "anyone can have a name", "some.github.io", id="a private suffix"),
        pytest.param(
            "networks:\n- 0.0.0.0/0\n", 2, "grants every address", "only the networks", id="every IPv4 address"
        ),
        pytest.param("networks: ['::/0']\n", 1, "grants every address", "only the networks", id="every IPv6 address"),
    ],
)
def test_warnings_name_the_line_and_the_fix_and_leave_the_profile_valid(
    text: str, line: int, message: str, fix: str
) -> None:
    check_one_problem(text, line, message, fix, warning=True)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("include: [a]", id="only an include"),
        pytest.param("networks: [10.0.0.0/8]", id="only a network"),
        pytest.param("domains: ['*.x.com', x.com]", id="*.x with x"),
        pytest.param("domains: ['*.x.com', .x.com]", id="*.x with .x"),
        pytest.param("domains: ['*.a.x.com', .x.com]", id="*.x below a granted name"),
        pytest.param("domains: [x.com, x.com:22]", id="the same name on another port"),
        pytest.param("---\ndomains: [x.com]\n...\n", id="YAML's own begin and end"),
        pytest.param("\ufeffdomains: [x.com]\n", id="a byte order mark"),
        pytest.param("domains: [x.com]\r\nprivate: true\r\n", id="line ends of Windows"),
        pytest.param("domains: &a [x.com]\ninclude: *a\n", id="an alias"),
    ],
)
def test_no_problem(text: str) -> None:
    assert problems_of(text) == []


@pytest.mark.parametrize(
    ("text", "name", "port"),
    [
        pytest.param("off", "off", "80", id="off is a name"),
        pytest.param("on", "on", "80", id="on is a name"),
        pytest.param("null", "null", "80", id="null is a name"),
        pytest.param("x.com:22", "x.com", "22", id="a port without quotes"),
        pytest.param("22.x.com:22", "22.x.com", "22", id="a name of digits"),
        pytest.param("1e3.x", "1e3.x", "80", id="a name like a number"),
    ],
)
def test_values_are_taken_as_written_and_not_as_yaml_types(text: str, name: str, port: str) -> None:
    granted = profile(f"domains:\n- {text}\n").domains[0]
    assert (granted.name, str(granted.ports[0])) == (name, port)


def test_all_mistakes_of_a_file_are_told_at_once_in_the_order_of_the_file() -> None:
    text = "networks: [x.com]\nprivate: on\ndomains: ['*']\nzzz: 1\n"
    assert [problem.where.line for problem in problems_of(text)] == [1, 2, 3, 4]


def test_a_description_over_several_lines_becomes_one() -> None:
    assert profile("description: |\n  one\n  two\ninclude: [a]\n").description == "one two"


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "..", "ä", "a\n"])
def test_names_that_no_profile_may_have(name: str) -> None:
    parsed, problems = parse_profile(name, "x.yaml", "include: [a]")
    assert parsed is None
    assert [(problem.where, problem.fix[:15]) for problem in problems] == [(Where("x.yaml"), "rename the file")]


@pytest.mark.parametrize("name", ["github", "docker-hub", "a_b.c", "7zip"])
def test_names_that_profiles_may_have(name: str) -> None:
    assert profile("include: [a]", name).name == name


@pytest.mark.parametrize(
    ("text", "network", "port"),
    [
        pytest.param("140.82.112.0/20", "140.82.112.0/20", "None", id="a network"),
        pytest.param("140.82.112.0/20:22", "140.82.112.0/20", "22", id="a network and port"),
        pytest.param("10.0.0.1", "10.0.0.1/32", "None", id="an address"),
        pytest.param("10.0.0.1:22/tcp", "10.0.0.1/32", "22", id="an address and TCP port"),
        pytest.param("10.0.0.0/8:123/udp", "10.0.0.0/8", "123/udp", id="a network and UDP port"),
        pytest.param("2001:db8::/32", "2001:db8::/32", "None", id="an IPv6 network"),
        pytest.param("2001:db8::1", "2001:db8::1/128", "None", id="an IPv6 address"),
        pytest.param("[2001:db8::/32]:22", "2001:db8::/32", "22", id="an IPv6 network and port"),
        pytest.param("[2001:db8::1]", "2001:db8::1/128", "None", id="an IPv6 address in brackets"),
        pytest.param("[10.0.0.0/8]:22", "10.0.0.0/8", "22", id="an IPv4 network in brackets"),
        pytest.param("0.0.0.0/0:443", "0.0.0.0/0", "443", id="every address on one port"),
    ],
)
def test_networks(text: str, network: str, port: str) -> None:
    grant = parse_network(text, Where("p.yaml", 3), "p")
    assert isinstance(grant, NetworkGrant)
    assert (str(grant.network), str(grant.port), grant.text) == (network, port, text)
    assert (grant.where, grant.profile) == (Where("p.yaml", 3), "p")


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        pytest.param("", "not an address", "192.0.2.0/24", id="nothing"),
        pytest.param("github.com", "not an address", "under domains:", id="a name"),
        pytest.param("github.com:22", "not an address", "under domains:", id="a name and port"),
        pytest.param("*.github.com", "not an address", "under domains:", id="a pattern"),
        pytest.param(".github.com", "not an address", "under domains:", id="a pattern with a dot"),
        pytest.param("10.0.0.256", "not an address", "192.0.2.0/24", id="an octet too large"),
        pytest.param("10.0.0.01", "not an address", "192.0.2.0/24", id="a leading zero"),
        pytest.param("10.0.0.0/33", "not an address", "192.0.2.0/24", id="a prefix too long"),
        pytest.param("10.0.0.0/", "not an address", "192.0.2.0/24", id="a slash and nothing"),
        pytest.param("10.0.0.0-10.0.0.9", "not an address", "192.0.2.0/24", id="a range"),
        pytest.param("10", "not an address", "192.0.2.0/24", id="a bare number"),
        pytest.param("2001:db8::/32:22", "not an address", "[2001:db8::/32]:22", id="IPv6 and port without brackets"),
        pytest.param("[2001:db8::1]22", "not an address", "[2001:db8::/32]:22", id="no colon after the bracket"),
        pytest.param("[2001:db8::1", "not an address", "[2001:db8::/32]:22", id="a bracket left open"),
        pytest.param("fe80::1%eth0", "a zone means nothing here", 'write "fe80::1"', id="a zone"),
        pytest.param("10.0.0.1/8:22", "bits beyond /8", '"10.0.0.0/8", or "10.0.0.1"', id="host bits"),
        pytest.param(
            "[2001:db8::1/32]", "bits beyond /32", '"2001:db8::/32", or "2001:db8::1"', id="host bits in IPv6"
        ),
        pytest.param("10.0.0.1:", '"" is not a port', "from 1 to 65535", id="a colon and nothing"),
        pytest.param("10.0.0.1:0", '"0" is not a port', "from 1 to 65535", id="port 0"),
        pytest.param("10.0.0.1:22/icmp", '"22/icmp" is not a port', ":123/udp", id="an unknown transport"),
        pytest.param("[::1]:x", '"x" is not a port', "from 1 to 65535", id="a port of letters"),
    ],
)
def test_what_is_no_network_and_what_to_write(text: str, message: str, fix: str) -> None:
    problem = parse_network(text, Where("p.yaml", 3), "p")
    assert isinstance(problem, Problem)
    assert (problem.where, problem.warning) == (Where("p.yaml", 3), False)
    assert message in problem.message
    assert fix in problem.fix


def library_of(**includes: str) -> dict[str, Profile]:
    """Profiles that include others: one line for each include, from line 2."""
    lines = {name: "".join(f"\n- {include}" for include in names.split()) for name, names in includes.items()}
    return {name: profile(f"include: {text or '[]'}", name) for name, text in lines.items()}


@pytest.mark.parametrize(
    ("includes", "order"),
    [
        pytest.param({"a": ""}, "a", id="no include"),
        pytest.param({"a": "b c", "b": "", "c": ""}, "a b c", id="in the order written"),
        pytest.param(
            {"a": "b c", "b": "d", "c": "", "d": ""}, "a b d c", id="what an include includes comes before the next"
        ),
        pytest.param({"a": "b c", "b": "d", "c": "d", "d": ""}, "a b d c", id="each once"),
        pytest.param({"a": "b b", "b": ""}, "a b", id="an include twice"),
    ],
)
def test_includes(includes: dict[str, str], order: str) -> None:
    library, problems = link(library_of(**includes))
    assert problems == []
    assert " ".join(member.name for member in library.expand("a")) == order


@pytest.mark.parametrize(
    ("includes", "problems", "order"),
    [
        pytest.param(
            {"a": "github", "githab": ""},
            ['a.yaml:2: error: profile "a" includes "github", which does not exist; write "githab"'],
            "a",
            id="an unknown include",
        ),
        pytest.param(
            {"a": "a"},
            ['a.yaml:2: error: the includes run in a circle: a -> a; remove "a" from the includes of "a"'],
            "a",
            id="a profile that includes itself",
        ),
        pytest.param(
            {"a": "b", "b": "c a", "c": ""},
            ['b.yaml:3: error: the includes run in a circle: a -> b -> a; remove "a" from the includes of "b"'],
            "a b c",
            id="two that include each other",
        ),
        pytest.param(
            {"a": "b", "b": "c", "c": "b", "d": "d"},
            [
                'c.yaml:2: error: the includes run in a circle: b -> c -> b; remove "b" from the includes of "c"',
                'd.yaml:2: error: the includes run in a circle: d -> d; remove "d" from the includes of "d"',
            ],
            "a b c",
            id="two circles, both named",
        ),
    ],
)
def test_includes_that_lead_nowhere(includes: dict[str, str], problems: list[str], order: str) -> None:
    library, found = link(library_of(**includes))
    assert sorted(map(str, found)) == problems
    assert " ".join(member.name for member in library.expand("a")) == order


def test_a_profile_that_does_not_exist_grants_nothing() -> None:
    assert link(library_of(a=""))[0].expand("b") == ()


def test_private_is_said_of_one_profile_and_not_of_what_it_includes_or_what_includes_it() -> None:
    profiles = {
        "home": profile("private: true\ndomains: [nas.lan]\ninclude: [web]\n", "home"),
        "web": profile("domains: [x.com]\n", "web"),
        "all": profile("include: [home]\n", "all"),
    }
    library, _ = link(profiles)
    assert [(member.name, member.private) for member in library.expand("all")] == [
        ("all", False),
        ("home", True),
        ("web", False),
    ]


@given(st.text(st.characters() | st.sampled_from("ab:-[]{}*&!\"'\n\t #|>%?,\\"), max_size=40))
def test_any_text_is_a_profile_or_errors_with_line_and_fix(text: str) -> None:
    parsed, problems = parse_profile("p", "p.yaml", text)
    assert (parsed is None) == any(not problem.warning for problem in problems)
    assert all(problem.where.line and problem.message and problem.fix for problem in problems)


@given(st.text(st.characters() | st.sampled_from("0123456789abf.:/[]%"), max_size=20))
def test_any_text_is_a_network_or_a_problem_with_a_fix(text: str) -> None:
    parsed = parse_network(text, Where("p.yaml", 1), "p")
    assert parsed.fix if isinstance(parsed, Problem) else parsed.network.prefixlen >= 0
