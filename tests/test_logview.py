import json
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.edge.logdb import Row
from proxyfw.logview import Table, as_json, human_bytes, parse_since, printable

NOON = datetime(2025, 1, 31, 12, 0, 0, tzinfo=UTC).timestamp()
ALLOWED = Row(
    time=NOON + 0.25,
    client="programming",
    address="10.137.0.12",
    protocol="tls",
    name="github.com",
    name_source="sni",
    destination="140.82.121.4",
    port=443,
    verdict="allow",
    reason="domain",
    rule="profile github: github.com (github.yaml:3)",
    bytes_up=1500,
    bytes_down=2_000_000_000,
    duration=1.5,
    closed_by="client",
    id=7,
)
NAMELESS = Row(
    time=NOON, client="studying", verdict="deny", reason="no-name", destination="2001:db8::1", port=22, detail="plain"
)


@pytest.fixture(autouse=True)
def _two_hours_east_of_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "XXX-2")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_json_has_every_field_with_the_time_in_utc_and_null_for_what_is_unknown() -> None:
    assert json.loads(as_json(ALLOWED)) == {
        "time": "2025-01-31T12:00:00.250Z",
        "client": "programming",
        "address": "10.137.0.12",
        "protocol": "tls",
        "name": "github.com",
        "name_source": "sni",
        "destination": "140.82.121.4",
        "port": 443,
        "verdict": "allow",
        "reason": "domain",
        "rule": "profile github: github.com (github.yaml:3)",
        "detail": None,
        "bytes_up": 1500,
        "bytes_down": 2_000_000_000,
        "duration": 1.5,
        "closed_by": "client",
        "id": 7,
    }


@given(st.text(st.characters(exclude_categories=[]), min_size=1, max_size=400))
def test_json_is_one_printable_line_that_gives_back_any_name_whole(name: str) -> None:
    line = as_json(Row(name=name))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["name"] == name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("github.com", "github.com", id="a plain name stays"),
        pytest.param("\x1b[31m", r"\x1b[31m", id="an escape sequence"),
        pytest.param("a\r\nb\tc\x00\x7f", r"a\x0d\x0ab\x09c\x00\x7f", id="line ends, tab, NUL, DEL"),
        pytest.param("\x9b31m", r"\x9b31m", id="the 8-bit control sequence introducer"),
        pytest.param("moc.\u202egithub", r"moc.\u202egithub", id="a bidi override"),
        pytest.param("\u2066a\u200f", r"\u2066a\u200f", id="a bidi isolate and a mark"),
        pytest.param("g\u0456thub", r"g\u0456thub", id="a letter that looks like another"),
        pytest.param("\udcff\U0001f600", r"\udcff\U0001f600", id="half a surrogate pair, an emoji"),
    ],
)
def test_what_is_not_printable_ascii_is_shown_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


WIDTHS = [
    pytest.param(80, "TIME CLIENT VERDICT REASON PROTO TARGET", id="80 columns: the decision"),
    pytest.param(100, "TIME CLIENT VERDICT REASON PROTO TARGET UP DOWN", id="100 columns: bytes too"),
    pytest.param(120, "TIME CLIENT VERDICT REASON PROTO TARGET UP DOWN RULE, DETAIL", id="120 columns: the rule too"),
    pytest.param(
        160,
        "TIME CLIENT VERDICT REASON PROTO TARGET DESTINATION UP DOWN RULE, DETAIL",
        id="160 columns: the destination too",
    ),
]


@pytest.mark.parametrize(("width", "titles"), WIDTHS)
def test_a_wider_terminal_gets_more_columns(width: int, titles: str) -> None:
    assert " ".join(Table(width, colour=False).header().split()) == titles


def test_a_line_is_aligned_with_the_header() -> None:
    table = Table(190, colour=False)
    header, line = table.header(), table.line(ALLOWED)
    expected = {
        "TIME": "01-31 14:00:00",
        "CLIENT": "programming",
        "VERDICT": "allow",
        "REASON": "domain",
        "PROTO": "tls",
        "TARGET": "github.com",
        "DESTINATION": "140.82.121.4:443",
        "   UP": " 1.5k",
        " DOWN": " 2.0G",
        "RULE, DETAIL": "profile github: github.com (github.yaml:3)",
    }
    for title, cell in expected.items():
        assert line[header.index(title) :].startswith(cell + " " * (title != "RULE, DETAIL"))


def test_a_nameless_flow_is_shown_by_its_destination() -> None:
    assert Table(80, colour=False).line(NAMELESS).endswith("[2001:db8::1]:22")


def test_an_unknown_client_is_shown_by_its_address() -> None:
    assert "10.137.0.99" in Table(80, colour=False).line(Row(address="10.137.0.99"))


def test_a_lost_row_shows_what_is_known() -> None:
    detail = "3 log rows were lost"
    lost = Row(time=NOON, verdict="deny", reason="error", detail=detail)
    assert Table(140, colour=False).line(lost).split(maxsplit=6)[2:] == ["deny", "error", "0", "0", detail]


def test_an_over_long_name_loses_its_front_in_the_table_because_its_end_says_whose_it_is() -> None:
    row = Row(time=NOON, name="github.com." + "a" * 100 + ".evil.example")
    assert Table(80, colour=False).line(row).endswith(" …" + "a" * 11 + ".evil.example")


def test_an_over_long_detail_loses_its_end() -> None:
    assert Table(120, colour=False).line(Row(time=NOON, detail="x" * 300)).endswith(" " + "x" * 22 + "…")


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        pytest.param("allow", "\x1b[32m", id="allow is green"),
        pytest.param("deny", "\x1b[31m", id="deny is red"),
        pytest.param("observe", "\x1b[33m", id="observe is yellow"),
    ],
)
def test_the_verdict_has_a_colour_that_does_not_move_the_columns(verdict: str, code: str) -> None:
    row = Row(time=NOON, verdict=verdict)
    coloured, plain = Table(120, colour=True).line(row), Table(120, colour=False).line(row)
    assert f"{code}{verdict.ljust(7)}\x1b[0m" in coloured
    assert coloured.replace(code, "").replace("\x1b[0m", "") == plain


HOSTILE = st.text(st.characters(exclude_categories=[]), max_size=80)


@given(HOSTILE, HOSTILE, HOSTILE, st.sampled_from([80, 100, 120, 160, 250]))
def test_no_row_reaches_the_terminal_with_a_control_or_beyond_its_width(
    name: str, client: str, detail: str, width: int
) -> None:
    row = Row(time=NOON, name=name, client=client, protocol=client, verdict=name, reason=detail, detail=detail)
    line = Table(width, colour=False).line(row)
    assert line.replace("…", "").isascii()
    assert line.isprintable()
    assert len(line) <= width


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        pytest.param(0, "0", id="nothing"),
        pytest.param(999, "999", id="the last without a unit"),
        pytest.param(1000, "1.0k", id="the first with a unit"),
        pytest.param(9_949, "9.9k", id="one decimal below ten"),
        pytest.param(9_950, "10k", id="rounded to ten: no decimal"),
        pytest.param(999_499, "999k", id="the last k"),
        pytest.param(999_500, "1.0M", id="rounded to a thousand: the next unit"),
        pytest.param(2 * 10**9, "2.0G", id="two gigabytes"),
        pytest.param(2**60, "1153P", id="beyond the last unit"),
    ],
)
def test_bytes_are_short(count: int, shown: str) -> None:
    assert human_bytes(count) == shown


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        pytest.param("45s", NOON - 45, id="seconds ago"),
        pytest.param("10m", NOON - 600, id="minutes ago"),
        pytest.param("2h", NOON - 7200, id="hours ago"),
        pytest.param(" 3d ", NOON - 3 * 86400, id="days ago, with blanks around"),
        pytest.param("today", NOON - 14 * 3600, id="today begins at the local midnight"),
        pytest.param("2025-01-31", NOON - 14 * 3600, id="a date begins at the local midnight"),
        pytest.param("2025-01-31T14:00", NOON, id="a date and time are local"),
        pytest.param("2025-01-31 14:00:00", NOON, id="with a blank between them"),
        pytest.param("2025-01-31T12:00Z", NOON, id="unless they say UTC"),
        pytest.param("2025-01-31T15:00+03:00", NOON, id="or another offset"),
    ],
)
def test_since_speaks_of_a_moment(text: str, moment: float) -> None:
    assert parse_since(text, NOON) == moment


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("10", id="no unit"),
        pytest.param("10 minutes", id="a unit spelt out"),
        pytest.param("-5m", id="a negative time"),
        pytest.param("٣m", id="digits of another script"),
        pytest.param("9" * 400 + "d", id="a number without end"),
        pytest.param("2025-02-30", id="a day that does not exist"),
        pytest.param("0001-01-01", id="a year before the epoch that no clock can hold"),
        pytest.param("yesterday\x1b[2J", id="a word that is not known, with an escape sequence"),
    ],
)
def test_since_teaches_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match=r"write how long ago \(45s, 10m, 2h, 3d\), today, a date") as caught:
        parse_since(text, NOON)
    assert str(caught.value).isprintable()


@given(st.text(max_size=30))
def test_since_takes_any_text_without_any_other_error(text: str) -> None:
    with suppress(ValueError):
        assert isinstance(parse_since(text, NOON), float)
