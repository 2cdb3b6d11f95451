"""The store of pins: what a later run finds, after a restart, a kill, a jump of the clock, or damage."""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from textwrap import dedent

import pytest

from proxyfw.core.hostname import normalise
from proxyfw.core.pins import Pin
from proxyfw.edge.pinstore import KEEP_PAST, MAX_LIFE, PinStore

EPOCH = 1_700_000_000.0  # now, on the clock on the wall
A, B = ip_address("192.0.2.1"), ip_address("2001:db8::2")
ONE, TWO = normalise("one.example"), normalise("two.example")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "pins.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Callable[..., PinStore]]:
    """Makes stores for runs whose steady clock says `steady` while the clock on the wall says `clock`."""
    made: list[PinStore] = []

    def make(steady: float = 0.0, clock: float = EPOCH, at: Path = path) -> PinStore:
        made.append(PinStore(at, lambda: steady, lambda: clock))
        return made[-1]

    yield make
    for one in made:
        one.close()


def rows(path: Path) -> list[tuple[str, str, str, float]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT client, address, name, until FROM pin ORDER BY client, address, name").fetchall()


def write(path: Path, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(sql, values)


def test_the_constructor_opens_nothing(store: Callable[..., PinStore], path: Path) -> None:
    store().close()
    assert not path.parent.exists()


def test_the_first_load_makes_the_file_for_its_owner_only(store: Callable[..., PinStore], path: Path) -> None:
    one = store()
    assert (one.load(), one.last_error) == ([], "")
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {
        "pins.sqlite": 0o600,
        "pins.sqlite-wal": 0o600,
        "pins.sqlite-shm": 0o600,
    }


def test_a_later_run_finds_the_pins_on_its_own_clock(store: Callable[..., PinStore], path: Path) -> None:
    first = store(steady=1000, clock=EPOCH)
    first.save([Pin("work", A, ONE, 1300), Pin("play", B, TWO, 1200)], [])
    first.close()
    assert rows(path) == [("play", str(B), TWO, EPOCH + 200), ("work", str(A), ONE, EPOCH + 300)]
    # 100 seconds later, after a reboot: the steady clock has begun anew.
    second = store(steady=5, clock=EPOCH + 100)
    assert second.load() == [Pin("play", B, TWO, 105), Pin("work", A, ONE, 205)], "the first to run out first"
    assert (first.last_error, second.last_error) == ("", "")


def test_pins_are_changed_and_deleted(store: Callable[..., PinStore]) -> None:
    one = store()
    one.save([Pin("work", A, ONE, 300), Pin("work", A, TWO, 300), Pin("work", B, ONE, 300)], [])
    one.save([Pin("work", A, ONE, 400)], [Pin("work", A, TWO, 0), Pin("play", A, TWO, 0)])
    assert store().load() == [Pin("work", B, ONE, 300), Pin("work", A, ONE, 400)]


def test_many_at_once(store: Callable[..., PinStore]) -> None:
    many = [Pin("work", A, normalise(f"{number}.example"), 300 + number) for number in range(1000)]
    one = store()
    one.save(many, [])
    one.save([], many[:999])
    assert (one.last_error, store().load()) == ("", many[999:])


def test_saving_in_another_thread(store: Callable[..., PinStore]) -> None:
    one = store()
    one.load()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(one.save, [Pin("work", A, ONE, 300)], []).result()
    assert (one.last_error, one.load()) == ("", [Pin("work", A, ONE, 300)])


def test_nothing_to_save(store: Callable[..., PinStore]) -> None:
    one = store()
    one.save([], [])
    assert (one.last_error, one.load()) == ("", [])


@pytest.mark.parametrize(
    ("until", "given", "left"),
    [
        pytest.param(60.0, 60.0, 60.0, id="live"),
        pytest.param(-60.0, -60.0, -60.0, id="it ran out a minute ago"),
        pytest.param(-KEEP_PAST, -KEEP_PAST, -KEEP_PAST, id="an hour ago"),
        pytest.param(-KEEP_PAST - 1, None, None, id="longer ago: deleted"),
        pytest.param(MAX_LIFE, MAX_LIFE, MAX_LIFE, id="the longest life"),
        pytest.param(MAX_LIFE + 1, MAX_LIFE, MAX_LIFE, id="a longer one is cut, in the file as well"),
        pytest.param(1e12, MAX_LIFE, MAX_LIFE, id="the clock was far ahead"),
        pytest.param(float("inf"), MAX_LIFE, MAX_LIFE, id="for ever"),
        pytest.param(float("-inf"), None, None, id="never"),
    ],
)
def test_what_a_life_in_the_file_may_be(
    store: Callable[..., PinStore], path: Path, until: float, given: float | None, left: float | None
) -> None:
    one = store()
    one.save([Pin("work", A, ONE, until)], [])
    one.close()
    assert store().load() == ([] if given is None else [Pin("work", A, ONE, given)])
    assert [row[3] - EPOCH for row in rows(path)] == ([] if left is None else [left])


def test_the_clock_was_set_back_between_two_runs(store: Callable[..., PinStore]) -> None:
    store(steady=0, clock=EPOCH).save([Pin("work", A, ONE, 300)], [])
    assert store(steady=10, clock=EPOCH - 10 * 86400).load() == [Pin("work", A, ONE, 10 + MAX_LIFE)]


def test_the_clock_was_set_while_it_runs(path: Path) -> None:
    wall = EPOCH
    one = PinStore(path, lambda: 50.0, lambda: wall)
    one.save([Pin("work", A, ONE, 350)], [])
    wall += 1000
    one.save([Pin("work", A, TWO, 350)], [])
    one.close()
    assert [row[3] for row in rows(path)] == [EPOCH + 300, EPOCH + 1300]


@pytest.mark.parametrize(
    ("client", "address", "name", "until"),
    [
        pytest.param("play", "192.0.2.256", "one.example", EPOCH, id="no address"),
        pytest.param("play", "2001:DB8::1", "one.example", EPOCH, id="an address written otherwise"),
        pytest.param("play", 3221225985, "one.example", EPOCH, id="a number as the address"),
        pytest.param("play", "192.0.2.1", "-.example", EPOCH, id="no name"),
        pytest.param("play", "192.0.2.1", "One.example", EPOCH, id="a name that is not normalised"),
        pytest.param("play", "192.0.2.1", "", EPOCH, id="an empty name"),
        pytest.param("play", "192.0.2.1", b"\xff.example", EPOCH, id="a name that is not UTF-8"),
        pytest.param(b"\xff", "192.0.2.1", "one.example", EPOCH, id="a client that is not UTF-8"),
        pytest.param("play", "192.0.2.1", "one.example", "later", id="words as the time"),
        pytest.param("play", "192.0.2.1", "one.example", b"\x00", id="bytes as the time"),
    ],
)
def test_a_bad_row_is_passed_over(
    store: Callable[..., PinStore], path: Path, client: object, address: object, name: object, until: object
) -> None:
    one = store()
    one.save([Pin("work", A, ONE, 300)], [])
    one.close()
    insert = "INSERT INTO pin VALUES (CAST(? AS TEXT), ?, CAST(? AS TEXT), ?)"
    write(path, insert, client, address, name, until)
    two = store()
    assert (two.load(), two.last_error) == ([Pin("work", A, ONE, 300)], "")


def test_a_table_of_another_shape(store: Callable[..., PinStore], path: Path) -> None:
    path.parent.mkdir()
    write(path, "CREATE TABLE pin (client, address, name, until)")
    write(path, "PRAGMA user_version = 1")
    write(path, "INSERT INTO pin VALUES (1, NULL, 2.5, 1e10), ('work', '192.0.2.1', 'one.example', ?)", EPOCH)
    assert store().load() == [Pin("work", A, ONE, 0)]


# Damage


def test_pins_survive_a_kill(store: Callable[..., PinStore], path: Path) -> None:
    script = """
        import sys, time
        from ipaddress import ip_address
        from pathlib import Path
        from proxyfw.core.pins import Pin
        from proxyfw.edge.pinstore import PinStore
        store = PinStore(Path(sys.argv[1]), lambda: 1000.0, lambda: float(sys.argv[2]))
        store.load()
        store.save([Pin("work", ip_address("192.0.2.1"), "one.example", 1300.0)], [])
        print("saved", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", dedent(script), str(path), str(EPOCH)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    one = store()
    assert (one.load(), one.last_error) == ([Pin("work", A, ONE, 300)], "")


def test_a_corrupt_file_is_moved_aside(store: Callable[..., PinStore], path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database" * 100)
    one = store()
    assert one.load() == []
    assert one.last_error == f"{path}: file is not a database; it was moved aside"
    assert Path(f"{path}.corrupt").read_bytes() == b"this is no database" * 100
    one.save([Pin("work", A, ONE, 300)], [])
    assert (one.last_error, store().load()) == ("", [Pin("work", A, ONE, 300)])


def test_only_the_latest_corrupt_file_is_left(store: Callable[..., PinStore], path: Path) -> None:
    path.parent.mkdir()
    for text in (b"first" * 1000, b"second" * 1000):
        path.write_bytes(text)
        Path(f"{path}-wal").write_bytes(text)
        assert store().load() == []
    assert {file.name for file in path.parent.iterdir()} == {"pins.sqlite.corrupt"}
    assert Path(f"{path}.corrupt").read_bytes() == b"second" * 1000


def test_a_file_with_a_damaged_page(store: Callable[..., PinStore], path: Path) -> None:
    one = store()
    one.save([Pin("work", A, normalise(f"{number}.example"), 300) for number in range(1000)], [])
    one.close()
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    two = store()
    assert two.load() == []
    assert two.last_error == f"{path}: database disk image is malformed; it was moved aside"
    assert two.load() == []
    assert two.last_error == ""


def test_a_file_cut_short(store: Callable[..., PinStore], path: Path) -> None:
    one = store()
    one.save([Pin("work", A, normalise(f"{number}.example"), 300) for number in range(1000)], [])
    one.close()
    path.write_bytes(path.read_bytes()[:5000])
    two = store()
    assert two.load() == []
    assert two.last_error != ""
    two.save([Pin("work", A, ONE, 300)], [])
    assert (two.last_error, two.load()) == ("", [Pin("work", A, ONE, 300)])


def test_an_empty_file_is_a_new_one(store: Callable[..., PinStore], path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    one = store()
    one.save([Pin("work", A, ONE, 300)], [])
    assert (one.last_error, one.load()) == ("", [Pin("work", A, ONE, 300)])


def test_a_folder_that_cannot_be_made_and_then_can(store: Callable[..., PinStore], path: Path) -> None:
    path.parent.touch()
    one = store()
    one.save([Pin("work", A, ONE, 300)], [])
    assert one.last_error.startswith(f"{path}: [Errno ")
    assert one.load() == []
    assert one.last_error.startswith(f"{path}: [Errno ")
    path.parent.unlink()
    one.save([Pin("work", A, TWO, 300)], [])
    assert (one.last_error, one.load()) == ("", [Pin("work", A, TWO, 300)])


def test_a_folder_in_place_of_the_file(store: Callable[..., PinStore], path: Path) -> None:
    path.mkdir(parents=True)
    one = store()
    assert one.load() == []
    one.save([Pin("work", A, ONE, 300)], [])
    assert one.last_error == f"{path}: unable to open database file"


def test_a_file_locked_by_another_program(store: Callable[..., PinStore], path: Path) -> None:
    one = store()
    one.save([Pin("work", A, ONE, 300)], [])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        one.save([Pin("work", A, TWO, 300)], [])
        assert one.last_error == f"{path}: database is locked"
    one.save([], [Pin("work", A, ONE, 300)])
    assert (one.last_error, one.load()) == ("", []), "the pin that could not be saved is not tried again"


def test_a_file_of_a_later_version_is_not_touched(store: Callable[..., PinStore], path: Path) -> None:
    path.parent.mkdir()
    write(path, "CREATE TABLE pin (client, address, name, until, colour)")
    write(path, "PRAGMA user_version = 2")
    before = path.read_bytes()
    one = store()
    assert one.load() == []
    assert one.last_error == f"{path}: the pins were written by a later version of proxyfw"
    one.save([Pin("work", A, ONE, 300)], [Pin("work", A, TWO, 300)])
    assert one.last_error == f"{path}: the pins were written by a later version of proxyfw"
    one.close()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
