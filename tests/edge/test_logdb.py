import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

import proxyfw.edge.logdb.reader as reading
import proxyfw.edge.logdb.writer as writing
from proxyfw.edge.logdb import LogError, LogReader, LogWriter, Row, query

DAY = 86400
GIB = 1 << 30


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "log.sqlite"


@pytest.fixture
def writer(path: Path) -> Iterator[LogWriter]:
    """A writer at work with a day's rows and room for them."""
    writer = LogWriter(path, keep=DAY, max_size=GIB)
    writer.start()
    yield writer
    writer.stop()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 10 seconds"


def write(path: Path, *rows: Row, clock: Clock | None = None, capacity: int = 50_000) -> LogWriter:
    """Write the rows through a writer's whole life; a row's `time`, where it has one, is the clock's then."""
    clock = clock or Clock()
    writer = LogWriter(path, keep=10 * DAY, max_size=GIB, clock=clock, capacity=capacity)
    for row in rows:
        clock.now = row.time or clock.now
        writer.open_row(row)
    writer.start()
    writer.stop()
    return writer


def settle(writer: LogWriter) -> None:
    """Write two rows, one after the other: then what the writer does at its start is behind it."""
    writer.open_row(Row(name="first.example"))
    until(lambda: writer.written == 1)
    writer.open_row(Row(name="second.example"))
    until(lambda: writer.written == 2)


def names(path: Path) -> list[str]:
    return [row.name for row in LogReader(path).rows()]


def test_the_constructor_opens_nothing(path: Path) -> None:
    LogWriter(path, keep=DAY, max_size=GIB).stop()
    assert not path.parent.exists()


def test_start_makes_a_file_and_a_folder_for_root_alone(path: Path, writer: LogWriter) -> None:
    modes = {file.name: file.stat().st_mode & 0o777 for file in (path.parent, *path.parent.iterdir())}
    assert modes == {"state": 0o700, "log.sqlite": 0o600, "log.sqlite-wal": 0o600, "log.sqlite-shm": 0o600}


def test_the_file_is_in_wal_mode_with_a_version_and_can_shrink(path: Path, writer: LogWriter) -> None:
    with closing(sqlite3.connect(path)) as db:
        settings = [
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "user_version", "auto_vacuum")
        ]
    assert settings == ["wal", 1, 2]


def test_a_row_is_read_back_as_it_was_given(path: Path) -> None:
    row = Row(
        client="programming",
        address="10.137.0.12",
        protocol="tls",
        name="evil.example",
        name_source="sni",
        destination="192.0.2.1",
        port=443,
        verdict="deny",
        reason="no-match",
        rule="none",
        detail="what was wrong",
    )
    write(path, row, clock=Clock(1_700_000_000.25))
    assert list(LogReader(path).rows()) == [row]
    assert (row.time, row.id) == (1_700_000_000.25, 1)


def test_a_row_is_there_for_readers_while_the_writer_runs(path: Path, writer: LogWriter) -> None:
    writer.open_row(Row(name="a.example"))
    until(lambda: names(path) == ["a.example"])
    until(lambda: writer.written == 1)


def test_a_row_closed_before_its_batch_is_written_once_and_complete(path: Path) -> None:
    writer = LogWriter(path, keep=DAY, max_size=GIB)
    row = writer.open_row(Row(name="a.example", verdict="allow"))
    writer.close_row(row, bytes_up=10, bytes_down=20, duration=1.5, closed_by="server")
    writer.start()
    writer.stop()
    [found] = LogReader(path).rows()
    assert (found.bytes_up, found.bytes_down, found.duration, found.closed_by) == (10, 20, 1.5, "server")
    assert writer.written == 1


def test_a_row_closed_after_its_batch_is_completed_where_it_stands(path: Path, writer: LogWriter) -> None:
    row = writer.open_row(Row(name="a.example", verdict="allow"))
    writer.open_row(Row(name="b.example"))
    until(lambda: writer.written == 2)
    writer.close_row(row, bytes_up=10, bytes_down=20, duration=1.5, closed_by="idle")
    writer.stop()
    closed, other = LogReader(path).rows()
    assert (closed.name, closed.bytes_up, closed.bytes_down, closed.closed_by) == ("a.example", 10, 20, "idle")
    assert (other.name, other.closed_by) == ("b.example", "")
    assert writer.written == 2


def test_many_rows_keep_their_order_and_all_arrive(path: Path) -> None:
    count = 5 * writing._PUT_ROWS + 1
    writer = write(path, *(Row(name=f"{number}.example") for number in range(count)))
    assert names(path) == [f"{number}.example" for number in range(count)]
    assert (writer.written, writer.dropped) == (count, 0)


def test_ids_go_on_after_a_restart(path: Path) -> None:
    write(path, Row(), Row())
    write(path, Row())
    assert [row.id for row in LogReader(path).rows()] == [1, 2, 3]


def test_text_that_utf8_cannot_hold_is_kept_escaped(path: Path) -> None:
    write(path, Row(name="a.example"), Row(name="\udcff\x00\x1b"))
    assert names(path) == ["a.example", "\\udcff\x00\x1b"]


# What cannot be written


def test_rows_beyond_the_capacity_are_counted_and_the_log_says_so(path: Path) -> None:
    writer = write(path, Row(name="a.example"), Row(name="b.example"), Row(name="c.example"), capacity=2)
    *rows, gap = LogReader(path).rows()
    assert [row.name for row in rows] == ["a.example", "b.example"]
    assert (gap.protocol, gap.verdict, gap.reason, gap.detail) == ("", "deny", "error", "1 log row was lost")
    assert writer.dropped == 1


def test_a_row_that_was_lost_is_not_written_when_it_closes(path: Path) -> None:
    writer = LogWriter(path, keep=DAY, max_size=GIB, capacity=0)
    row = writer.open_row(Row(name="a.example"))
    writer.close_row(row, 1, 2, 3.0, "client")
    writer.start()
    writer.stop()
    assert [row.detail for row in LogReader(path).rows()] == ["1 log row was lost"]


def test_a_closing_beyond_the_capacity_is_counted(path: Path) -> None:
    writer = LogWriter(path, keep=DAY, max_size=GIB, capacity=1)
    row = writer.open_row(Row(name="a.example"))
    writer.start()
    until(lambda: writer.written == 1)
    writer._capacity = 0
    writer.close_row(row, 1, 2, 3.0, "client")
    writer.stop()
    assert [(row.closed_by, row.detail) for row in LogReader(path).rows()] == [("", ""), ("", "1 log row was lost")]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "RETRY_AFTER", (0.001, 0.001))
    monkeypatch.setattr(writing, "_BUSY", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_batch_that_cannot_be_written_is_lost_and_the_log_says_so_by_itself(path: Path, writer: LogWriter) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        row = writer.open_row(Row(name="a.example"))
        writer.open_row(Row(name="b.example"))
        until(lambda: writer.dropped == 2)
        assert "locked" in writer.last_error
        writer.close_row(row, 1, 2, 3.0, "client")
    until(lambda: writer.written == 1)
    assert writer.last_error == ""
    writer.open_row(Row(name="c.example"))
    writer.stop()
    assert [(row.name, row.detail) for row in LogReader(path).rows()] == [
        ("", "2 log rows were lost"),
        ("c.example", ""),
    ]


def test_a_batch_that_is_written_at_a_later_attempt_is_not_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "RETRY_AFTER", (0.001,) * 10_000)
    monkeypatch.setattr(writing, "_BUSY", 0.0)
    writer = LogWriter(path, keep=DAY, max_size=GIB)
    writer.start()
    settle(writer)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        row = writer.open_row(Row(name="a.example"))
        until(lambda: row.id and "locked" in writer.last_error)
        writer.close_row(row, 1, 2, 3.0, "client")
    until(lambda: writer.written == 3)
    writer.stop()
    assert [(row.name, row.closed_by) for row in LogReader(path).rows()][2:] == [("a.example", "client")]
    assert (writer.written, writer.dropped) == (3, 0)


def test_stop_does_not_wait_for_a_file_that_cannot_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "RETRY_AFTER", (3600.0,))
    monkeypatch.setattr(writing, "_BUSY", 0.0)
    writer = LogWriter(path, keep=DAY, max_size=GIB)
    writer.start()
    settle(writer)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        row = writer.open_row(Row())
        until(lambda: row.id and "locked" in writer.last_error)
        writer.close_row(row, 1, 2, 3.0, "client")
        writer.stop()
    assert (writer.written, writer.dropped) == (2, 1), "a lost row is counted once, closed or not"


@pytest.mark.usefixtures("impatient")
def test_a_folder_that_cannot_be_made_is_reported_and_tried_again(path: Path) -> None:
    path.parent.write_text("a file where the folder should be")
    writer = LogWriter(path, keep=DAY, max_size=GIB)
    writer.start()
    assert "File exists" in writer.last_error
    path.parent.unlink()
    writer.open_row(Row(name="a.example"))
    writer.stop()
    assert names(path) == ["a.example"]


def test_a_file_removed_while_open_is_made_again_and_an_open_row_lands_in_it_whole(
    path: Path, writer: LogWriter
) -> None:
    row = writer.open_row(Row(name="a.example"))
    writer.open_row(Row(name="b.example"))
    until(lambda: writer.written == 2)
    path.unlink()
    writer.open_row(Row(name="c.example"))
    writer.close_row(row, 1, 2, 3.0, "client")
    writer.stop()
    assert [(row.id, row.name, row.closed_by) for row in LogReader(path).rows()] == [
        (1, "a.example", "client"),
        (3, "c.example", ""),
    ]


def index_page(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        page: int = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'flow_name'").fetchone()[0]
    return (page - 1) * 4096


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(lambda path: b"\x00\xffnot a database" * 1000, id="another file altogether"),
        pytest.param(lambda path: path.read_bytes()[:100] + b"\xff" * 20_000, id="garbage after a good header"),
        pytest.param(lambda path: path.read_bytes()[:5000], id="cut short"),
        pytest.param(
            lambda path: path.read_bytes()[: index_page(path)] + b"\xff" * 4096, id="one page, seen at the first write"
        ),
    ],
)
def test_a_corrupt_file_is_moved_aside_and_nothing_new_is_lost(path: Path, damaged: Callable[[Path], bytes]) -> None:
    write(path, Row(name="old.example"))
    damage = damaged(path)
    path.write_bytes(damage)
    writer = write(path, Row(name="new.example"), clock=Clock(1_700_000_000))
    assert names(path) == ["new.example"]
    assert (writer.written, writer.dropped, writer.last_error) == (1, 0, "")
    assert writer.moved_aside == path.with_name("log.sqlite.corrupt-20231114T221320Z")
    assert writer.moved_aside.stat().st_size == len(damage)


def test_a_log_of_a_later_version_is_left_alone(path: Path) -> None:
    write(path, Row(name="a.example"))
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    writer = write(path, Row())
    assert "later version" in writer.last_error
    assert (writer.written, writer.dropped, writer.moved_aside) == (0, 1, None)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT name FROM flow").fetchall() == [("a.example",)]


def child(path: Path, script: str) -> subprocess.Popen[str]:
    prelude = f"""
        import resource, sys, threading
        from pathlib import Path
        from proxyfw.edge.logdb import LogWriter, Row, writer as writing
        path = Path({str(path)!r})
        writer = LogWriter(path, keep=86400, max_size=1 << 30)
        writer.start()
    """
    command = [sys.executable, "-c", dedent(prelude) + dedent(script)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_written_row_survives_the_sudden_death_of_the_process(path: Path) -> None:
    script = """
        for number in range(500):
            writer.open_row(Row(name=f"{number}.example"))
        while writer.written < 500:
            pass
        print("written", flush=True)
        sys.stdin.read()
    """
    with child(path, script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert Path(f"{path}-wal").exists()
    assert names(path) == [f"{number}.example" for number in range(500)]


def test_writing_resumes_when_the_disk_has_room_again(path: Path) -> None:
    script = """
        writing.RETRY_AFTER = (0.001, 0.001)
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, most))
        for number in range(500):
            writer.open_row(Row(name="lost.example", detail="x" * 1000))
        while not writer.dropped:
            threading.Event().wait(0.001)
        assert writer.last_error, "the reason is known"
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        while not writer.written:
            threading.Event().wait(0.001)
        writer.open_row(Row(name="kept.example"))
        writer.stop()
        assert not writer.last_error, writer.last_error
        print(writer.written, writer.dropped, flush=True)
    """
    with child(path, script) as process:
        output, _ = process.communicate()
    assert process.returncode == 0
    rows = list(LogReader(path).rows())
    written, dropped = map(int, output.split())
    assert len(rows) == written
    assert sum(int(row.detail.split()[0]) for row in rows if row.reason == "error") == dropped
    assert sum(row.name == "lost.example" for row in rows) + dropped == 500
    assert rows[-1].name == "kept.example"


# Retention


def test_rows_older_than_keep_are_deleted_at_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "TRIM_ROWS", 2)
    write(path, *(Row(name=f"{hour}.example", time=1_700_000_000.0 + hour * 3600) for hour in range(10)))
    writer = LogWriter(path, keep=3 * 3600, max_size=GIB, clock=Clock(1_700_000_000.0 + 10 * 3600))
    writer.start()
    until(lambda: names(path) == ["7.example", "8.example", "9.example"])
    writer.stop()


def test_rows_grow_old_while_the_writer_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "TRIM_EVERY", 0.001)
    clock = Clock()
    writer = LogWriter(path, keep=DAY, max_size=GIB, clock=clock)
    writer.start()
    writer.open_row(Row(name="a.example"))
    until(lambda: names(path) == ["a.example"])
    clock.now += DAY + 1
    until(lambda: names(path) == [])
    writer.stop()


def test_a_file_beyond_its_size_loses_its_oldest_rows_and_shrinks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "TRIM_ROWS", 100)
    monkeypatch.setattr(writing, "_VACUUM_PAGES", 20)
    write(path, *(Row(name=f"{number}.example", detail="x" * 500) for number in range(3000)))
    size = path.stat().st_size
    writer = LogWriter(path, keep=10 * DAY, max_size=size // 2, clock=Clock())
    writer.start()
    until(lambda: size // 3 < path.stat().st_size <= size * 9 // 20)
    writer.stop()
    kept = names(path)
    assert 1000 < len(kept) < 1500
    assert kept == [f"{number}.example" for number in range(3000 - len(kept), 3000)]


def test_a_flood_of_rows_does_not_wait_for_the_hour(path: Path) -> None:
    limit = 1 << 20
    writer = LogWriter(path, keep=DAY, max_size=limit)
    writer.start()
    for _ in range(3000):
        writer.open_row(Row(detail="x" * 500))
    until(lambda: writer.written == 3000)
    until(lambda: path.stat().st_size + Path(f"{path}-wal").stat().st_size <= limit)
    writer.open_row(Row(name="last.example"))
    writer.stop()
    assert names(path)[-1] == "last.example"


# Reading

FLOWS = [
    Row(time=1_700_000_001.0, client="programming", verdict="allow", name="github.com"),
    Row(time=1_700_000_002.0, client="programming", verdict="deny", name="evil.example"),
    Row(time=1_700_000_003.0, client="studying", verdict="observe", name="api.github.com"),
    Row(time=1_700_000_004.0, client="studying", verdict="deny", name=""),
    Row(time=1_700_000_000.5, client="studying", verdict="allow", name="after-the-clock-was-set.example"),
]


@pytest.mark.parametrize("page", [pytest.param(1000, id="one page"), pytest.param(1, id="a page per row")])
@pytest.mark.parametrize(
    ("criteria", "ids"),
    [
        pytest.param({}, [5, 1, 2, 3, 4], id="everything, in the order of time"),
        pytest.param({"client": "programming"}, [1, 2], id="a client"),
        pytest.param({"client": "nobody"}, [], id="a client that has no rows"),
        pytest.param({"verdict": "deny"}, [2, 4], id="a verdict"),
        pytest.param({"verdict": "deny", "client": "studying"}, [4], id="a verdict of a client"),
        pytest.param({"name": "GitHub.com"}, [1], id="a name in any case, exactly"),
        pytest.param({"name": "*.github.com"}, [3], id="all names below one"),
        pytest.param({"name": "*git*"}, [1, 3], id="a part of a name"),
        pytest.param({"name": "*"}, [5, 1, 2, 3, 4], id="any name, or none"),
        pytest.param({"name": "gith?b.com*"}, [], id="a question mark stands for itself"),
        pytest.param({"name": "[g]ithub.com*"}, [], id="so does a bracket"),
        pytest.param({"name": ""}, [4], id="no name"),
        pytest.param({"since": 1_700_000_003.0}, [3, 4], id="since a moment, that moment included"),
        pytest.param({"limit": 2}, [3, 4], id="the last two"),
        pytest.param({"limit": 1, "verdict": "allow"}, [1], id="the last of a verdict"),
        pytest.param({"limit": 0}, [], id="the last none"),
        pytest.param({"after_id": 3}, [4, 5], id="after a row, in the order they were recorded"),
        pytest.param({"after_id": 3, "client": "programming"}, [], id="after a row, of a client"),
        pytest.param({"after_id": 1, "verdict": "deny", "limit": 1}, [4], id="after a row, the last of a verdict"),
        pytest.param({"after_id": 2, "since": 1_700_000_002.0}, [3, 4], id="after a row and since a moment"),
    ],
)
def test_rows_that_match(
    path: Path, criteria: dict[str, object], ids: list[int], page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAGE_OF_ROWS", page)
    write(path, *(Row(row.time, row.client, verdict=row.verdict, name=row.name) for row in FLOWS))
    assert [row.id for row in LogReader(path).rows(**criteria)] == ids  # type: ignore[arg-type]


def test_rows_of_one_moment_are_each_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PAGE_OF_ROWS", 3)
    write(path, *(Row() for _ in range(10)), clock=Clock())
    assert [row.id for row in LogReader(path).rows()] == list(range(1, 11))


def test_a_reader_that_pauses_holds_nothing_that_the_writer_needs(path: Path, writer: LogWriter) -> None:
    for _ in range(3):
        writer.open_row(Row(name="a.example"))
    until(lambda: writer.written == 3)
    rows = LogReader(path).rows()
    next(rows)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    assert len(list(rows)) == 2


@pytest.fixture(scope="module")
def some_names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.sqlite"
    alphabet = ["", "a", "b", ".", "*", "?", "[", "]", "[a]", "ab.a", "a.b", "a?b", "^a", "b-a"]
    write(path, *(Row(name=first + second) for first in alphabet for second in alphabet))
    return path


@given(pattern=st.text("abA.*?[]^-", max_size=6).filter(lambda text: "*" in text))
def test_a_star_is_the_only_wildcard(some_names: Path, pattern: str) -> None:
    expected = re.compile(".*".join(re.escape(part) for part in pattern.lower().split("*")))
    found = [row.name for row in LogReader(some_names).rows(name=pattern)]
    assert found == [name for name in names(some_names) if expected.fullmatch(name)]


def test_the_latest_id(path: Path) -> None:
    write(path)
    assert list(LogReader(path).rows()) == []
    assert LogReader(path).last_id() == 0
    write(path, *(Row(row.time, row.client, verdict=row.verdict, name=row.name) for row in FLOWS))
    assert LogReader(path).last_id() == 5


def _missing(path: Path) -> None:
    path.parent.mkdir()


def _empty(path: Path) -> None:
    path.parent.mkdir()
    path.touch()


def _garbage(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"garbage" * 1000)


def _folder(path: Path) -> None:
    path.mkdir(parents=True)


def _below_a_file(path: Path) -> None:
    path.parent.touch()


def _later_version(path: Path) -> None:
    write(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(_missing, "there is no log yet", id="no file"),
        pytest.param(_empty, "nothing has been written yet", id="an empty file"),
        pytest.param(_garbage, "the log is damaged", id="another file altogether"),
        pytest.param(_folder, "the log cannot be read", id="a folder"),
        pytest.param(_below_a_file, "Not a directory", id="a file where the folder should be"),
        pytest.param(_later_version, "later version", id="a log of a later version"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_the_path(path: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(path)
    reader = LogReader(path)
    for ask in (lambda: list(reader.rows()), lambda: list(reader.rows(limit=1)), reader.last_id):
        with pytest.raises(LogError, match=re.escape(str(path)) + ".*" + message):
            ask()


# The plans of the queries, on a log of 200,000 rows


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    path = tmp_path_factory.mktemp("log") / "log.sqlite"
    write(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            """WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 200000)
            INSERT INTO flow SELECT n, 'client' || n % 5, '10.137.0.9', 'tls', 'host' || n % 1000 || '.example', 'sni',
            '192.0.2.1', 443, iif(n % 10, 'allow', 'deny'), 'domain', '', '', 1, 2, 3.0, 'client', n FROM number"""
        )
        yield db


@pytest.mark.parametrize("last", [pytest.param(False, id="from the start"), pytest.param(True, id="the last ones")])
@pytest.mark.parametrize(
    ("criteria", "index"),
    [
        pytest.param({}, "flow_time", id="everything"),
        pytest.param({"since": 199_000.0}, "flow_time", id="since"),
        pytest.param({"client": "client1"}, "flow_client", id="client"),
        pytest.param({"client": "client1", "since": 199_000.0}, "flow_client", id="client since"),
        pytest.param({"verdict": "deny"}, "flow_verdict", id="verdict"),
        pytest.param({"verdict": "deny", "since": 199_000.0}, "flow_verdict", id="verdict since"),
        pytest.param({"name": "host1.example"}, "flow_name", id="name"),
        pytest.param({"name": "*.example"}, "flow_time", id="names below one"),
        pytest.param({"after_id": 199_990}, "INTEGER PRIMARY KEY", id="after a row"),
        pytest.param({"after_id": 199_990, "client": "client1"}, "INTEGER PRIMARY KEY", id="after a row, of a client"),
    ],
)
def test_each_query_searches_an_index_and_sorts_nothing(
    large: sqlite3.Connection, criteria: dict[str, str | float], index: str, last: bool
) -> None:
    everything = {"client": None, "verdict": None, "name": None, "since": None, "after_id": 0}
    sql, values, _ = query(**everything | criteria, last=last)  # type: ignore[arg-type]
    plan = [step[3] for step in large.execute(f"EXPLAIN QUERY PLAN {sql}", [*values, 20])]
    assert len(plan) == 1, "a second step would be a sort"
    assert re.match(rf"SEARCH flow USING (INDEX )?{index} ", plan[0])


def test_the_oldest_rows_are_found_by_their_index(large: sqlite3.Connection) -> None:
    sql = "DELETE FROM flow WHERE id IN (SELECT id FROM flow WHERE time < 9 ORDER BY time LIMIT 2000)"
    plan = [step[3] for step in large.execute(f"EXPLAIN QUERY PLAN {sql}")]
    assert "SEARCH flow USING COVERING INDEX flow_time (time<?)" in plan
    assert not any(step.startswith("SCAN") or "TEMP B-TREE" in step for step in plan)
