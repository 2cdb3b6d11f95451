"""Patterns: what each form grants, what is refused and what to write instead; the lookup against an obvious one."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.hostname import MAX_LABEL, normalise
from proxyfw.core.pattern import DEFAULT_PORTS, Form, Index, Pattern, Port, caution, parse_pattern
from proxyfw.core.problem import Problem, Where

HERE = Where("p.yaml", 7)
USUAL = "80 443 443/udp"


def pattern(text: str, line: int = 7) -> Pattern:
    parsed = parse_pattern(text, Where("p.yaml", line), "p")
    assert isinstance(parsed, Pattern), parsed
    return parsed


def ports(found: Sequence[Port]) -> str:
    return " ".join(map(str, found))


@pytest.mark.parametrize(
    ("text", "form", "name", "fixed", "where_open"),
    [
        pytest.param("github.com", Form.EXACT, "github.com", "github.com", USUAL, id="a name"),
        pytest.param("GitHub.com.", Form.EXACT, "github.com", "github.com", USUAL, id="upper case and a trailing dot"),
        pytest.param("*.github.com", Form.BELOW, "github.com", "github.com", USUAL, id="any name below"),
        pytest.param(".github.com", Form.NAME_AND_BELOW, "github.com", "github.com", USUAL, id="the name and below"),
        pytest.param("r*.x.com", Form.IN_LABEL, "r*.x.com", "x.com", USUAL, id="a star in a label"),
        pytest.param("*.R*.x.com.", Form.IN_LABEL, "*.r*.x.com", "x.com", USUAL, id="and any name below that"),
        pytest.param("a.*b*.c.x.com", Form.IN_LABEL, "a.*b*.c.x.com", "c.x.com", USUAL, id="stars in a middle label"),
        pytest.param("a.*.x.com", Form.IN_LABEL, "a.*.x.com", "x.com", USUAL, id="one whole label in the middle"),
        pytest.param("*.*.x.com", Form.IN_LABEL, "*.*.x.com", "x.com", USUAL, id="two labels or more below"),
        pytest.param("*.Bücher.de", Form.BELOW, "xn--bcher-kva.de", "xn--bcher-kva.de", USUAL, id="international"),
        pytest.param(
            "r*.bücher.de", Form.IN_LABEL, "r*.xn--bcher-kva.de", "xn--bcher-kva.de", USUAL, id="star and international"
        ),
        pytest.param("*。bücher。de", Form.BELOW, "xn--bcher-kva.de", "xn--bcher-kva.de", USUAL, id="other dots"),
        pytest.param("github.com:22", Form.EXACT, "github.com", "github.com", "22", id="a port is TCP"),
        pytest.param("github.com:22/tcp", Form.EXACT, "github.com", "github.com", "22", id="TCP in so many words"),
        pytest.param(".ntp.org:123/udp", Form.NAME_AND_BELOW, "ntp.org", "ntp.org", "123/udp", id="a UDP port"),
        pytest.param("x.com:65535", Form.EXACT, "x.com", "x.com", "65535", id="the last port"),
        pytest.param("github.io", Form.EXACT, "github.io", "github.io", USUAL, id="a private suffix itself is a site"),
        pytest.param("printer", Form.EXACT, "printer", "printer", USUAL, id="a single label that is no public suffix"),
        pytest.param("*.www.ck", Form.BELOW, "www.ck", "www.ck", USUAL, id="an exception in the suffix list"),
    ],
)
def test_the_forms(text: str, form: Form, name: str, fixed: str, where_open: str) -> None:
    parsed = pattern(text)
    assert (parsed.form, parsed.name, parsed.fixed, ports(parsed.ports)) == (form, name, fixed, where_open)
    assert (parsed.text, parsed.where, parsed.profile) == (text, HERE, "p")


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        pytest.param("*", "this would grant every name", "write the names that are needed", id="a bare star"),
        pytest.param("*.", "this would grant every name", "write the names that are needed", id="a star and a dot"),
        pytest.param("*.*", "this would grant every name", "write the names that are needed", id="only stars"),
        pytest.param("*:22", "this would grant every name", "write the names that are needed", id="a star with a port"),
        pytest.param("", "the name is empty", "www.example.com", id="nothing"),
        pytest.param(":22", "the name is empty", "www.example.com", id="only a port"),
        pytest.param("com", 'is the public suffix "com"', "example.com", id="a public suffix"),
        pytest.param("*.com", 'everything under the public suffix "com"', "example.com", id="a star over one"),
        pytest.param(".co.uk", 'everything under the public suffix "co.uk"', "example.co.uk", id="a dot before one"),
        pytest.param("*.kawasaki.jp", 'public suffix "kawasaki.jp"', "example.kawasaki.jp", id="a star rule's root"),
        pytest.param("*.x.ck", 'public suffix "x.ck"', "example.x.ck", id="a suffix by a star rule"),
        pytest.param("*.xn--p1ai", 'public suffix "xn--p1ai"', "example.xn--p1ai", id="an A-label suffix"),
        pytest.param("*.рф", 'public suffix "xn--p1ai"', "example.xn--p1ai", id="an international suffix"),
        pytest.param("r*.com", 'everything under the public suffix "com"', "example.com", id="star in a label over it"),
        pytest.param(
            "*a.co.uk", 'everything under the public suffix "co.uk"', "example.co.uk", id="star first, over it"
        ),
        pytest.param("*.*.com", 'everything under the public suffix "com"', "example.com", id="two stars over it"),
        pytest.param(
            "r*.com.\u00ad", 'everything under the public suffix "com"', "example.com", id="a hidden last label"
        ),
        pytest.param("example.*", "no fixed name right of the *", "in full", id="a star for the top level"),
        pytest.param("github.c*", "no fixed name right of the *", "in full", id="a star in the top level"),
        pytest.param(".r*.x.com", "a dot in front does not go", 'both "r*.x.com" and "*.r*.x.com"', id="dot and star"),
        pytest.param(
            "ü*.x.com", "must be ASCII", "write * in place of the whole label", id="half a label international"
        ),
        pytest.param("1.2.3.4", "an address", "under networks:", id="an IPv4 address"),
        pytest.param("1.2.3.4:22", "an address", "under networks:", id="an IPv4 address and port"),
        pytest.param("1.2.3.0/24", "an address", "under networks:", id="an IPv4 network"),
        pytest.param("1.2.3.4/24", "an address", "under networks:", id="an IPv4 network with host bits"),
        pytest.param("::1", "an address", "under networks:", id="an IPv6 address"),
        pytest.param("[::1]", "an address", "under networks:", id="an IPv6 address in brackets"),
        pytest.param("[2001:db8::/32]:22", "an address", "under networks:", id="an IPv6 network and port"),
        pytest.param("127.1", "it is an address", "under networks:", id="a short IPv4 address"),
        pytest.param("*.2.3.4", "it is an address", "under networks:", id="a star in an IPv4 address"),
        pytest.param("https://github.com/x", "a URL", 'the host in it: "github.com"', id="a URL"),
        pytest.param("ssh://git@github.com:22", "a URL", '"github.com:22"', id="a URL with a user and port"),
        pytest.param("https://", "a URL", "write a host name", id="a URL without a host"),
        pytest.param("github.com/x", "a path is not judged", 'write "github.com"', id="a path"),
        pytest.param("x.com:0", '"0" is not a port', "from 1 to 65535", id="port 0"),
        pytest.param("x.com:65536", '"65536" is not a port', "from 1 to 65535", id="port 65536"),
        pytest.param("x.com:abc", '"abc" is not a port', "from 1 to 65535", id="port of letters"),
        pytest.param("x.com:", '"" is not a port', "from 1 to 65535", id="an empty port"),
        pytest.param("x.com:022", '"022" is not a port', "from 1 to 65535", id="a leading zero"),
        pytest.param("x.com:٢٢", '"٢٢" is not a port', "from 1 to 65535", id="digits of another script"),
        pytest.param("x.com:53/icmp", '"53/icmp" is not a port', ":123/udp", id="an unknown transport"),
        pytest.param("a..x.com", "a label is empty", "www.example.com", id="two dots in a row"),
        pytest.param("*.-a.com", "begins or ends with a hyphen", "www.example.com", id="a hyphen first"),
        pytest.param("a b.com", "only letters", "www.example.com", id="a space"),
        pytest.param("r*" + "a" * MAX_LABEL + ".x.com", "longer than 63", "www.example.com", id="a label too long"),
        pytest.param("r*." + "a.b." * 63 + "com", "longer than 253", "www.example.com", id="a name too long"),
    ],
)
def test_what_is_refused_and_what_to_write(text: str, message: str, fix: str) -> None:
    problem = parse_pattern(text, HERE, "p")
    assert isinstance(problem, Problem)
    assert problem.where == HERE
    assert not problem.warning
    assert problem.message.startswith(f'"{text}": ')
    assert message in problem.message
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        pytest.param("*.github.io", 'anyone can have a name under "github.io"', "some.github.io", id="star"),
        pytest.param(".github.io", 'anyone can have a name under "github.io"', "some.github.io", id="dot"),
        pytest.param(
            "r*.github.io", 'anyone can have a name under "github.io"', "some.github.io", id="star in a label"
        ),
        pytest.param("*.lan", 'every name that ends in ".lan"', "*.some.lan", id="a top level that is not public"),
    ],
)
def test_names_that_strangers_can_have_are_warned_of(text: str, message: str, fix: str) -> None:
    problem = caution(pattern(text))
    assert problem is not None
    assert (problem.where, problem.warning) == (HERE, True)
    assert message in problem.message
    assert fix in problem.fix


@pytest.mark.parametrize("text", ["github.io", "*.github.com", ".me.github.io", "*.nas.lan", "r*.example.com"])
def test_no_warning_where_the_name_is_ones_own(text: str) -> None:
    assert caution(pattern(text)) is None


@pytest.mark.parametrize(
    ("text", "granted", "refused"),
    [
        pytest.param(
            "github.com", "github.com", "www.github.com evilgithub.com github.com.evil.example hub.com com", id="exact"
        ),
        pytest.param(
            "*.github.com", "a.github.com a.b.c.github.com", "github.com evilgithub.com a.evilgithub.com", id="below"
        ),
        pytest.param(
            ".github.com", "github.com a.github.com a.b.github.com", "evilgithub.com agithub.com com", id="both"
        ),
        pytest.param(
            "r*.x.com",
            "r.x.com r1.x.com r-2.x.com",
            "a.x.com ar.x.com r1.a.x.com a.r1.x.com x.com r1.ax.com",
            id="in-label",
        ),
        pytest.param("*r*.x.com", "r.x.com ara.x.com", "a.x.com a.r.x.com x.com", id="two stars in a label"),
        pytest.param(
            "a*b*c.x.com", "abc.x.com a1b2c.x.com abbcc.x.com", "acb.x.com ab.x.com abcd.x.com", id="in order"
        ),
        pytest.param("a*a.x.com", "aa.x.com aba.x.com", "a.x.com", id="the two ends do not share a letter"),
        pytest.param("s.*.x.com", "s.a.x.com s.bc.x.com", "s.x.com s.a.b.x.com t.a.x.com a.x.com", id="a whole label"),
        pytest.param(
            "*.r*.x.com",
            "a.r.x.com a.b.r1.x.com",
            "r1.x.com r1.a.x.com a.ar.x.com a.x.com",
            id="below an in-label form",
        ),
        pytest.param("a.r*.b.x.com", "a.r1.b.x.com", "a.r1.x.com r1.b.x.com c.r1.b.x.com", id="in a middle label"),
    ],
)
def test_which_names_a_form_grants(text: str, granted: str, refused: str) -> None:
    only = pattern(text)
    index = Index([only])
    assert [name for name in granted.split() if index.find(normalise(name), "tcp", 443) is not only] == []
    assert [name for name in refused.split() if index.find(normalise(name), "tcp", 443)] == []


@pytest.mark.parametrize(
    ("texts", "name", "winner"),
    [
        pytest.param(["*.x.com", "r*.x.com", ".a.x.com", "a.x.com"], "a.x.com", "a.x.com", id="exact before all"),
        pytest.param(["*.x.com", ".a.x.com"], "a.x.com", ".a.x.com", id="the name itself before what is above"),
        pytest.param(["*.x.com", "*.b.x.com"], "a.b.x.com", "*.b.x.com", id="the longest first"),
        pytest.param(["r*.b.x.com", ".x.com"], "r1.b.x.com", ".x.com", id="below before in-label"),
        pytest.param(["*.r*.x.com", "a*.r1.x.com"], "a.r1.x.com", "a*.r1.x.com", id="in-label by its fixed part"),
        pytest.param(["*.x.com", ".x.com"], "a.x.com", "*.x.com", id="the first written of star and dot"),
        pytest.param([".x.com", "*.x.com"], "a.x.com", ".x.com", id="the first written of dot and star"),
        pytest.param(["*a.x.com", "a*.x.com"], "a.x.com", "*a.x.com", id="the first written of two in-label forms"),
    ],
)
def test_which_pattern_goes_first(texts: list[str], name: str, winner: str) -> None:
    found = Index(map(pattern, texts)).find(normalise(name), "tcp", 443)
    assert found is not None
    assert found.text == winner


def test_of_the_same_pattern_twice_the_first_is_found() -> None:
    found = Index([pattern("x.com", line=1), pattern("x.com", line=2)]).find(normalise("x.com"), "tcp", 443)
    assert found is not None
    assert found.where.line == 1


@pytest.mark.parametrize(
    ("text", "granted"),
    [
        pytest.param("x.com", [("tcp", 80), ("tcp", 443), ("udp", 443)], id="no port: the web's"),
        pytest.param("x.com:22", [("tcp", 22)], id="a port replaces the web's"),
        pytest.param("x.com:123/udp", [("udp", 123)], id="UDP is not TCP"),
        pytest.param("x.com:443", [("tcp", 443)], id="TCP 443 alone"),
    ],
)
def test_which_ports_a_pattern_grants(text: str, granted: list[tuple[str, int]]) -> None:
    index = Index([pattern(text)])
    asked = [
        ("tcp", 22),
        ("tcp", 80),
        ("tcp", 123),
        ("tcp", 443),
        ("udp", 22),
        ("udp", 123),
        ("udp", 443),
        ("icmp", 443),
    ]
    assert [port for port in asked if index.find(normalise("x.com"), *port)] == granted


def test_a_name_refused_on_one_port_tells_the_ports_it_is_granted_on() -> None:
    index = Index([pattern("x.com:22"), pattern(".x.com"), pattern("other.com:8443")])
    assert index.find(normalise("x.com"), "tcp", 8443) is None
    assert ports(index.ports_of(normalise("x.com"))) == "22 80 443 443/udp"
    assert index.ports_of(normalise("a.x.com")) == DEFAULT_PORTS
    assert index.ports_of(normalise("y.com")) == ()


def test_an_empty_index_grants_nothing() -> None:
    assert Index([]).find(normalise("x.com"), "tcp", 443) is None
    assert Index([]).ports_of(normalise("x.com")) == ()


def test_many_stars_against_a_name_made_to_nearly_match_end_at_once() -> None:
    index = Index([pattern("*a" * 30 + "*.x.com"), pattern("*." + "*a*." * 8 + "x.com")])
    assert index.find(normalise("a" * 29 + "b" * 34 + ".x.com"), "tcp", 443) is None
    assert index.find(normalise("a" * 30 + "b" * 33 + ".x.com"), "tcp", 443) is not None
    assert index.find(normalise("b." * 100 + "x.com"), "tcp", 443) is None


# The slow, obvious matcher.


def label_matches(star: str, label: str) -> bool:
    if not star:
        return not label
    if star[0] == "*":
        return any(label_matches(star[1:], label[cut:]) for cut in range(len(label) + 1))
    return label[:1] == star[0] and label_matches(star[1:], label[1:])


def grants(one: Pattern, name: str) -> bool:
    labels = name.split(".")
    written = one.name.split(".")
    if one.form is Form.EXACT:
        return labels == written
    if one.form is Form.BELOW:
        return len(labels) > len(written) and labels[-len(written) :] == written
    if one.form is Form.NAME_AND_BELOW:
        return labels[-len(written) :] == written
    if written[0] == "*":
        written = written[1:]
        labels = labels[-len(written) :] if len(labels) > len(written) else []
    return len(labels) == len(written) and all(map(label_matches, written, labels))


def rank(one: Pattern, name: str) -> tuple[int, int]:
    kind = 0 if one.form is Form.EXACT else 2 if one.form is Form.IN_LABEL else 1
    return kind, -one.fixed.count(".")


def obvious(patterns: Sequence[Pattern], name: str, port: Port) -> Pattern | None:
    found = [one for one in patterns if port in one.ports and grants(one, name)]
    return min(found, key=lambda one: rank(one, name), default=None)


few_letters = st.text("ab", min_size=1, max_size=3)
names = st.builds(lambda labels: ".".join([*labels, "b", "org"]), st.lists(few_letters, max_size=3))
starred = st.lists(few_letters | st.text("ab*", min_size=1, max_size=4), max_size=3)
patterns = st.builds(
    lambda front, labels, port: pattern(f"{front}{'.'.join([*labels, 'b.org'])}{port}"),
    st.sampled_from(["", "*."]),
    starred,
    st.sampled_from(["", ":443", ":22"]),
) | st.builds(lambda name: pattern(f".{name}"), names)


@given(st.lists(patterns, max_size=8), names, st.sampled_from([Port("tcp", 443), Port("tcp", 22), Port("udp", 443)]))
def test_the_index_agrees_with_the_obvious_matcher(some: list[Pattern], name: str, port: Port) -> None:
    found = Index(some).find(normalise(name), port.transport, port.number)
    assert found is obvious(some, name, port)


@given(names, st.text("ab1-", min_size=1, max_size=4), st.sampled_from(["", "*.", "."]))
def test_letters_glued_to_the_front_of_a_label_never_match(name: str, glued: str, front: str) -> None:
    index = Index([pattern(front + name)])
    assert index.find(normalise(f"x{glued}{name}"), "tcp", 443) is None


@given(patterns)
def test_case_and_a_trailing_dot_change_nothing(one: Pattern) -> None:
    host, colon, port = one.text.partition(":")
    other = pattern(f"{host.upper()}.{colon}{port}")
    assert (other.form, other.name, other.ports) == (one.form, one.name, one.ports)


@given(st.text(st.characters() | st.sampled_from("aB1-_.*:/[]ü。"), max_size=25))
def test_any_text_is_a_pattern_or_a_problem_with_a_fix(text: str) -> None:
    parsed = parse_pattern(text, HERE, "p")
    if isinstance(parsed, Problem):
        assert parsed.fix
    else:
        assert parsed.ports
        assert normalise(parsed.fixed) == parsed.fixed
        Index([parsed])
