"""The text of a profile, with one entry more or less: what changes, and that nothing else does."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.pattern import Pattern
from proxyfw.core.profile import Profile, parse_profile
from proxyfw.core.profileedit import HEADER, Edited, EditError, allow, revoke
from proxyfw.core.wanted import Grant, parse_wanted, same

NAME, FILE = "allowed/work", "allowed/work.yaml"
NOW = 1_700_000_000.0  # 2023-11-14T22:13:20+00:00
LATER, LONG_AGO = "2023-11-14T22:23:20+00:00", "2020-01-01T00:00:00+00:00"
UNTIL = NOW + 600

COMMENTED = """\
# what work needs
description: mine   # to be kept

domains:  # names
  # the tracker
  - "tracker.example"   # since May

  - .other.example
  # - not.this.example

# addresses
networks:
- 192.0.2.0/24:22
include: [fastly]
"""


def granted(text: str, name: str, until: float | None = None) -> str:
    return allow(NAME, FILE, text, parse_wanted(name, NAME), until, NOW).text


def revoked(text: str, name: str) -> str:
    return revoke(NAME, FILE, text, parse_wanted(name, NAME)).text


def read(text: str) -> Profile:
    profile, problems = parse_profile(NAME, FILE, text)
    assert profile is not None, problems
    return profile


@pytest.mark.parametrize(
    ("before", "name", "after"),
    [
        pytest.param("", "a.example", HEADER + "domains:\n  - a.example\n", id="no file yet"),
        pytest.param("# mine\n", "a.example", "# mine\ndomains:\n  - a.example\n", id="nothing but a comment"),
        pytest.param("domains:\n  - a.example\n", "*.b.example", 'domains:\n  - a.example\n  - "*.b.example"\n',
                     id="a star is quoted"),
        pytest.param("domains:\n  - a.example\n", "b.example:22", 'domains:\n  - a.example\n  - "b.example:22"\n',
                     id="a port is quoted"),
        pytest.param("domains:\n  - a.example\n", "192.0.2.7:22",
                     'domains:\n  - a.example\nnetworks:\n  - "192.0.2.7:22"\n', id="the first network"),
        pytest.param("domains:\n  - a.example\n", "[2001:db8::7]:22",
                     'domains:\n  - a.example\nnetworks:\n  - "[2001:db8::7]:22"\n', id="an IPv6 address"),
        pytest.param("domains:\n  - a.example", "b.example", "domains:\n  - a.example\n  - b.example\n",
                     id="no newline at the end"),
        pytest.param("description: x", "b.example", "description: x\ndomains:\n  - b.example\n",
                     id="no newline at the end of another key"),
        pytest.param("domains:\r\n  - a.example\r\n# end\r\n", "b.example",
                     "domains:\r\n  - a.example\r\n  - b.example\r\n# end\r\n", id="CRLF"),
        pytest.param("domains:\n- a.example\ndescription: x\n", "b.example",
                     "domains:\n- a.example\n- b.example\ndescription: x\n", id="dashes that are not indented"),
        pytest.param("domains:\n      - a.example # c\n", "b.example",
                     "domains:\n      - a.example # c\n      - b.example\n", id="dashes that are indented far"),
        pytest.param("  domains:\n    - a.example\n", "192.0.2.7",
                     "  domains:\n    - a.example\n  networks:\n    - 192.0.2.7\n", id="keys that are indented"),
        pytest.param("domains: [a.example, 'b.example']  # c\n", "c.example",
                     "domains: [a.example, 'b.example', c.example]  # c\n", id="a list between brackets"),
        pytest.param("domains: [\n  a.example, # one\n  b.example, # two\n]\n", "c.example",
                     "domains: [\n  a.example, # one\n  b.example, c.example, # two\n]\n", id="brackets over lines"),
        pytest.param("domains: [] # none\n", "c.example", "domains: # none\n  - c.example\n", id="an empty list"),
        pytest.param("domains: [ ]\n", "c.example", "domains: [c.example ]\n", id="an empty list with a blank"),
        pytest.param("{domains: [a.example]}\n", "c.example", "{domains: [a.example, c.example]}\n",
                     id="all between braces"),
        pytest.param("domains:\n  - >-\n    a.example\n  # c\n", "b.example",
                     "domains:\n  - >-\n    a.example\n  - b.example\n  # c\n", id="a folded entry"),
        pytest.param("domains:\n  -\n    a.example # c\n\n\n", "b.example",
                     "domains:\n  -\n    a.example # c\n  - b.example\n\n\n", id="an entry below its dash"),
        pytest.param("\ufeffdomains:\n  - a.example\n", "b.example", "\ufeffdomains:\n  - a.example\n  - b.example\n",
                     id="a byte order mark"),
        pytest.param("---\ndomains:\n  - a.example\n", "b.example", "---\ndomains:\n  - a.example\n  - b.example\n",
                     id="a document start"),
        pytest.param(f'temporary:\n  - {{grant: "a.example", until: "{LATER}"}} # c\n', "a.example",
                     "temporary: []\ndomains:\n  - a.example\n", id="for good, what was for a while"),
        pytest.param(f"temporary:\n  # over\n  - grant: old.example\n    until: {LONG_AGO}\n  # and\n"
                     f'  - {{grant: "a.example", until: "{LATER}"}}\n', "b.example",
                     f'temporary:\n  # over\n  # and\n  - {{grant: "a.example", until: "{LATER}"}}\n'
                     "domains:\n  - b.example\n", id="what is over is dropped"),
        pytest.param("domains: [a.example]\n", "A.Example.", "domains: [a.example]\n", id="what is there already"),
    ],
)  # fmt: skip
def test_a_grant_for_good(before: str, name: str, after: str) -> None:
    assert granted(before, name) == after


@pytest.mark.parametrize(
    ("before", "name", "after"),
    [
        pytest.param("", "a.example", f'{HEADER}temporary:\n  - {{grant: "a.example", until: "{LATER}"}}\n',
                     id="no file yet"),
        pytest.param("domains:\n  - x.example\n", "192.0.2.7:22",
                     f'domains:\n  - x.example\ntemporary:\n  - {{grant: "192.0.2.7:22", until: "{LATER}"}}\n',
                     id="an address"),
        pytest.param(f"temporary: [{{grant: x.example, until: '{LATER}'}}]\n", "*.a.example",
                     f"temporary: [{{grant: x.example, until: '{LATER}'}}, "
                     f'{{grant: "*.a.example", until: "{LATER}"}}]\n', id="between brackets"),
        pytest.param("temporary:\n  - grant: a.example # for Jo\n    until: '2023-11-14T22:14:00+00:00' # soon\n"
                     f"  - {{grant: x.example, until: '{LATER}'}}\n", "a.example",
                     f'temporary:\n  - grant: a.example # for Jo\n    until: "{LATER}" # soon\n'
                     f"  - {{grant: x.example, until: '{LATER}'}}\n", id="an entry that is renewed"),
        pytest.param(f"temporary:\n  - {{grant: a.example, until: '{LONG_AGO}'}}\n", "a.example",
                     f'temporary:\n  - {{grant: "a.example", until: "{LATER}"}}\n', id="an entry that is over"),
        pytest.param(f"temporary: [{{grant: a.example, until: '{LONG_AGO}'}}, "
                     f"{{grant: b.example, until: '{LONG_AGO}'}}]\n", "c.example",
                     f'temporary:\n  - {{grant: "c.example", until: "{LATER}"}}\n', id="all are over"),
    ],
)  # fmt: skip
def test_a_grant_for_a_while(before: str, name: str, after: str) -> None:
    assert granted(before, name, UNTIL) == after
    assert UNTIL in [each.until for each in read(after).temporary]


@pytest.mark.parametrize(
    ("before", "name", "after"),
    [
        pytest.param("domains:\n  - a.example\n  # c\n  - b.example # two\n", "b.example",
                     "domains:\n  - a.example\n  # c\n", id="the last of two"),
        pytest.param("domains:\n  - a.example # one\n\n  # c\n  - b.example\n", "a.example",
                     "domains:\n\n  # c\n  - b.example\n", id="the first of two"),
        pytest.param("domains: # names\n  # c\n  - a.example\ninclude: [x]\n", "a.example",
                     "domains: [] # names\n  # c\ninclude: [x]\n", id="the only one"),
        pytest.param("domains:\n  - a.example", "a.example", "domains: []\n", id="the only one, without a newline"),
        pytest.param("domains: [a.example, b.example, c.example]\n", "a.example", "domains: [b.example, c.example]\n",
                     id="the first between brackets"),
        pytest.param("domains: [a.example, b.example, c.example]\n", "b.example", "domains: [a.example, c.example]\n",
                     id="one between brackets"),
        pytest.param("domains: [a.example, b.example]\n", "b.example", "domains: [a.example]\n",
                     id="the last between brackets"),
        pytest.param("domains: [\n  a.example,\n  b.example,\n]\n", "b.example", "domains: [\n  a.example,\n]\n",
                     id="the last between brackets over lines"),
        pytest.param("domains: ['a.example',] # c\n", "a.example", "domains: [] # c\n",
                     id="the only one between brackets"),
        pytest.param("domains:\r\n  - a.example\r\n  - b.example\r\n", "a.example", "domains:\r\n  - b.example\r\n",
                     id="CRLF"),
        pytest.param("domains:\n  -\n    a.example\n  - b.example\n", "a.example", "domains:\n  - b.example\n",
                     id="an entry below its dash"),
        pytest.param("domains:\n  - a.example\n  - A.example\n  - b.example\n", "a.example",
                     "domains:\n  - b.example\n", id="one that stands twice"),
        pytest.param('networks: ["192.0.2.7:22", "192.0.2.7"]\n', "192.0.2.7/32:22/tcp", 'networks: ["192.0.2.7"]\n',
                     id="a network, written otherwise"),
        pytest.param(f"temporary:\n  - grant: a.example\n    # for Jo\n    until: {LATER}\ndomains: [x.example]\n",
                     "a.example", "temporary: []\ndomains: [x.example]\n", id="for a while"),
        pytest.param(f"domains: [a.example]\ntemporary:\n  - {{grant: a.example, until: '{LATER}'}}\n", "a.example",
                     "domains: []\ntemporary: []\n", id="for good and for a while"),
    ],
)  # fmt: skip
def test_a_grant_that_is_revoked(before: str, name: str, after: str) -> None:
    assert revoked(before, name) == after


def test_all_else_stays_as_it_is() -> None:
    more = granted(COMMENTED, "new.example")
    assert more == COMMENTED.replace("  - .other.example\n", "  - .other.example\n  - new.example\n")
    assert revoked(more, "new.example") == COMMENTED
    assert revoked(COMMENTED, "tracker.example") == COMMENTED.replace('  - "tracker.example"   # since May\n', "")
    assert granted(COMMENTED, "192.0.2.7") == COMMENTED.replace(":22\n", ":22\n- 192.0.2.7\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("description: x\ndomains: [a.example\n", f"{FILE}:3: error: not valid YAML", id="no YAML"),
        pytest.param("domain: [a.example]\n", f'{FILE}:1: error: unknown key "domain"', id="a profile with an error"),
        pytest.param("{description: x}\n", f"{FILE}:1: error: domains: is not there", id="all between braces"),
        pytest.param("description: x\ndomains: &a\n  - a.example\n", f"{FILE}:2: error: write each entry of domains:",
                     id="a list with an anchor"),
        pytest.param("domains: &a [a.example]\ninclude: *a\n", f"{FILE}: error: it cannot be edited without changing",
                     id="a list that another key uses"),
        pytest.param("description: x\n...\n", f"{FILE}: error: it cannot be edited without", id="a document end"),
    ],
)  # fmt: skip
def test_what_cannot_be_edited_is_left_to_the_user(text: str, problem: str) -> None:
    with pytest.raises(EditError) as refused:
        granted(text, "b.example:22")
    assert str(refused.value).startswith(problem)
    assert str(refused.value).endswith('; write it by hand: - "b.example:22" under domains:')


def test_where_it_is_to_be_written_by_hand_for_a_while() -> None:
    with pytest.raises(EditError) as refused:
        granted("{description: x}\n", "b.example", UNTIL)
    assert str(refused.value).endswith(f'by hand: - {{grant: "b.example", until: "{LATER}"}} under temporary:')


def test_a_comment_between_brackets_is_not_taken_away() -> None:
    with pytest.raises(
        EditError, match=r'^allowed/work.yaml:2: .* a comment .*; write it by hand: remove "a.example"$'
    ):
        revoked("domains: [\n  a.example, # why\n  b.example]\n", "a.example")


GRANTS = ["a.example", "*.a.example", "b.example:22", "192.0.2.7", "192.0.2.0/24:22", "[2001:db8::7]:22"]
texts = st.lists(
    st.sampled_from(
        [
            *("domains:", "networks:", "temporary:", "description: x", "domains: []", "", "# c", "  # c", "---", "..."),
            *("  - a.example", "- a.example", "  - 'b.example:22' # c", "  - 192.0.2.7", "- 192.0.2.0/24:22"),
            *(f"  - {{grant: a.example, until: '{LATER}'}}", f"  - grant: 192.0.2.7\n    until: {LONG_AGO}"),
            *("domains: [a.example, 'b.example:22', # c\n 'c.example']", "networks: ['192.0.2.7' ,]", "  -\n    x.y"),
            *("domains: &a", "networks: *a", "  - >\n    a.example", "include: [x, y]", "feeds: []", "{domains: []}"),
        ]
    ),
    max_size=9,
)


@given(texts, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.sampled_from(GRANTS), st.sampled_from([None, UNTIL]))
def test_an_edit_is_what_it_says_or_refused(
    lines: list[str], end: str, ends: bool, name: str, until: float | None
) -> None:
    text = "\n".join(lines).replace("\n", end) + (end if ends else "")
    edited = attempted(text, name, until)
    if isinstance(edited, str):
        assert re.match(r"(?s)allowed/work\.yaml(:\d+)?: error: .+; write it by hand: - ", edited)
        return
    wanted, found = parse_wanted(name, NAME), read(edited.text)
    assert found == edited.profile
    assert all(each.until > NOW for each in found.temporary)
    assert any(same(each, wanted) for each in (*found.domains, *found.networks)) or until is not None
    assert {each.until for each in found.temporary if same(each.grant, wanted)} == ({until} - {None})
    comments = [line for line in text.splitlines() if line.lstrip().startswith("#")]
    assert [line for line in edited.text.splitlines() if line in comments] == comments
    without = taken_back(edited.text, name)
    if isinstance(without, Edited):
        assert plain(read(without.text)) == [each for each in plain(found) if each != plain_of(wanted)]


def taken_back(text: str, name: str) -> Edited | str:
    try:
        return revoke(NAME, FILE, text, parse_wanted(name, NAME))
    except EditError as error:
        return str(error)


def attempted(text: str, name: str, until: float | None) -> Edited | str:
    try:
        return allow(NAME, FILE, text, parse_wanted(name, NAME), until, NOW)
    except EditError as error:
        return str(error)


def plain(profile: Profile) -> list[object]:
    temporary = [each.grant for each in profile.temporary]
    return [plain_of(each) for each in (*profile.domains, *profile.networks, *temporary)]


def plain_of(grant: Grant) -> object:
    if isinstance(grant, Pattern):
        return grant.form, grant.name, grant.ports
    return grant.network, grant.port


@given(st.text(st.sampled_from("domains:\n -[]{}'\"#&*.exmpl,|>\r\t"), max_size=60))
def test_junk_is_refused_or_edited_to_what_it_says(text: str) -> None:
    edited = attempted(text, "new.example", None)
    assert isinstance(edited, str) or "new.example" in [each.name for each in read(edited.text).domains]
