"""QubesDB as a netvm reads it: a daemon that speaks the real one's messages, written to in the order of dom0."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "doubles"))

import qubesdb
from qubesdb.daemon import Daemon
from qubesdb.dom0 import Dom0
from qubesdb.wire import Message

from proxyfw.edge import qubesdb as edge
from proxyfw.edge.qubesdb import QubesDb, QubesDbError

DOUBLES = Path(__file__).parents[1] / "doubles"
IP, OTHER, IP6 = "10.137.0.11", "10.137.0.12", "fd09:24ef:4179::a89:b"
HTTPS = "action=accept dst4=192.0.2.7/32 proto=tcp dstports=443-443"
SSH = "action=accept dst4=192.0.2.7/32 proto=tcp dstports=22-22"


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    monkeypatch.setenv("QUBESDB_SOCKET", str(tmp_path / "qubesdb.sock"))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with Daemon(str(tmp_path / "qubesdb.sock")) as served:
        yield served
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def dom0(daemon: Daemon) -> Iterator[Dom0]:
    writer = Dom0(daemon.path)
    writer.netvm("sys-fw")
    yield writer
    writer.close()


class Told:
    """What the edge told, in order."""

    def __init__(self) -> None:
        self.changes: asyncio.Queue[tuple[dict[str, bytes], frozenset[str]]] = asyncio.Queue()
        self.troubles: asyncio.Queue[str] = asyncio.Queue()
        self.ends: asyncio.Queue[str] = asyncio.Queue()

    async def change(self) -> tuple[dict[str, bytes], frozenset[str]]:
        return await asyncio.wait_for(self.changes.get(), 10)

    async def trouble(self) -> str:
        return await asyncio.wait_for(self.troubles.get(), 10)

    async def until(self, path: str, value: bytes | None) -> dict[str, bytes]:
        """The first snapshot that says so."""
        while True:
            entries, _ = await self.change()
            if entries.get(path) == value:
                return entries


def followed(scenario: Callable[[dict[str, bytes], Told], Awaitable[None]], ended: bool = False) -> None:
    """Runs it beside an edge that follows the database, from the edge's first snapshot on. `ended`: it is to crash."""

    async def run() -> None:
        database, told = QubesDb(), Told()
        first = database.start()
        database.follow(
            asyncio.get_running_loop(),
            lambda entries, committed: told.changes.put_nowait((entries, committed)),
            told.troubles.put_nowait,
            told.ends.put_nowait,
        )
        try:
            await scenario(first, told)
        finally:
            database.stop()
        await asyncio.sleep(0)
        assert ended or told.ends.empty()
        assert "qubesdb" not in {thread.name for thread in threading.enumerate()}

    asyncio.run(run())


def once(database: QubesDb | None = None) -> dict[str, bytes]:
    """A first snapshot alone."""
    database = database or QubesDb()
    try:
        return database.start()
    finally:
        database.stop()


def test_the_first_snapshot_is_all_that_concerns_a_netvm_and_nothing_else(dom0: Dom0) -> None:
    dom0.dns("10.139.1.1", "10.139.1.2")
    dom0.connected([IP, IP6])
    dom0.mapped(IP, "192.168.7.2", "192.168.7.1")
    dom0.vm_config("proxyfw-work", "github pypi")
    dom0.firewall(IP, [HTTPS, None, "action=drop"], policy="accept")
    dom0.firewall(IP6, [])
    dom0.db.write("/qubes-mac", "00:16:3e:5e:6c:00")
    dom0.db.write("/vm-config-not", "a name that begins like a directory")
    assert once() == {
        "/name": b"sys-fw",
        "/qubes-primary-dns": b"10.139.1.1",
        "/qubes-secondary-dns": b"10.139.1.2",
        "/qubes-netvm-primary-dns": b"10.139.1.1",
        "/qubes-netvm-secondary-dns": b"10.139.1.2",
        "/connected-ips": IP.encode(),
        "/connected-ips6": IP6.encode(),
        f"/mapped-ip/{IP}/visible-ip": b"192.168.7.2",
        f"/mapped-ip/{IP}/visible-gateway": b"192.168.7.1",
        "/vm-config/proxyfw-work": b"github pypi",
        f"/qubes-firewall/{IP}": b"",
        f"/qubes-firewall/{IP}/policy": b"accept",
        f"/qubes-firewall/{IP}/0000": HTTPS.encode(),
        f"/qubes-firewall/{IP}/0002": b"action=drop",
        f"/qubes-firewall/{IP6}": b"",
        f"/qubes-firewall/{IP6}/policy": b"drop",
    }


def test_a_value_may_be_any_bytes(dom0: Dom0) -> None:
    dom0.db.write("/vm-config/odd", b"\xff\xfe\n")
    assert once()["/vm-config/odd"] == b"\xff\xfe\n"


def test_an_address_that_was_never_committed_is_left_out_of_the_first_snapshot(dom0: Dom0) -> None:
    dom0.begin(IP)
    dom0.db.write(f"/qubes-firewall/{IP}/policy", "accept")
    assert not [path for path in once() if path.startswith("/qubes-firewall/")]


@pytest.mark.parametrize("step", ["as soon as it is watched", "while it is read"])
def test_an_address_within_a_change_is_left_out_of_the_first_snapshot(step: str, daemon: Daemon, dom0: Dom0) -> None:
    dom0.firewall(IP, [HTTPS])
    dom0.firewall(OTHER, [SSH])
    watched = False

    def begin_a_change(kind: Message, path: str) -> None:
        nonlocal watched
        moment = watched if step == "as soon as it is watched" else path == f"/qubes-firewall/{IP}/"
        watched = watched or (kind is Message.WATCH and path == "/qubes-firewall/")
        if moment:
            daemon.before = lambda kind, path: None
            daemon.from_dom0(Message.RM, f"/qubes-firewall/{IP}/")
            daemon.from_dom0(Message.WRITE, f"/qubes-firewall/{IP}/policy", b"accept")

    daemon.before = begin_a_change
    entries = once()
    assert not [path for path in entries if path.startswith(f"/qubes-firewall/{IP}")]
    assert entries[f"/qubes-firewall/{OTHER}/0000"] == SSH.encode()


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        pytest.param(lambda d: d.connected([IP, OTHER]), "/connected-ips", f"{IP} {OTHER}".encode(), id="attached"),
        pytest.param(lambda d: d.connected([]), "/connected-ips", b"", id="detached"),
        pytest.param(lambda d: d.connected([IP6]), "/connected-ips6", IP6.encode(), id="attached, IPv6"),
        pytest.param(
            lambda d: d.mapped(IP, "192.168.7.2"), f"/mapped-ip/{IP}/visible-ip", b"192.168.7.2", id="shown another"
        ),
        pytest.param(lambda d: d.vm_config("proxyfw-work", "pypi"), "/vm-config/proxyfw-work", b"pypi", id="set"),
        pytest.param(lambda d: d.vm_config("before", None), "/vm-config/before", None, id="unset"),
        pytest.param(lambda d: d.db.rm("/vm-config/"), "/vm-config/before", None, id="a whole directory removed"),
        pytest.param(lambda d: d.dns("10.139.1.1", "192.0.2.53"), "/qubes-secondary-dns", b"192.0.2.53", id="resolver"),
        pytest.param(lambda d: d.db.write("/name", "sys-other"), "/name", b"sys-other", id="renamed"),
    ],
)
def test_each_change_is_told(change: Callable[[Dom0], None], path: str, value: bytes | None, dom0: Dom0) -> None:
    dom0.connected([OTHER])
    dom0.vm_config("before", "1")

    async def scenario(first: dict[str, bytes], told: Told) -> None:
        assert first.get(path) != value
        change(dom0)
        entries = await told.until(path, value)
        assert entries is not first

    followed(scenario)


def test_a_change_of_rules_is_told_once_and_whole(dom0: Dom0) -> None:
    dom0.firewall(IP, [HTTPS, SSH])
    rules = [f"action=accept dst4=192.0.2.{n}/32" for n in range(30)]

    async def scenario(first: dict[str, bytes], told: Told) -> None:
        dom0.firewall(IP, rules)
        entries, committed = await told.change()
        assert committed == {IP}
        assert [entries[f"/qubes-firewall/{IP}/{n:04}"].decode() for n in range(30)] == rules
        dom0.firewall(IP, [])
        entries, committed = await told.change()
        assert [path for path in entries if IP in path] == [f"/qubes-firewall/{IP}", f"/qubes-firewall/{IP}/policy"]

    followed(scenario)


def test_rules_stay_as_they_were_until_the_change_is_committed(dom0: Dom0) -> None:
    dom0.firewall(IP, [HTTPS])

    async def scenario(first: dict[str, bytes], told: Told) -> None:
        dom0.begin(IP)
        dom0.db.write(f"/qubes-firewall/{IP}/policy", "accept")
        dom0.vm_config("something", "else")
        entries, committed = await told.change()
        assert committed == frozenset()
        assert {path: value for path, value in entries.items() if path != "/vm-config/something"} == first
        dom0.commit(IP)
        entries, committed = await told.change()
        assert committed == {IP}
        assert entries[f"/qubes-firewall/{IP}/policy"] == b"accept"
        assert f"/qubes-firewall/{IP}/0000" not in entries

    followed(scenario)


def test_a_change_that_begins_while_the_last_one_is_read_is_not_seen_half(daemon: Daemon, dom0: Dom0) -> None:
    async def scenario(first: dict[str, bytes], told: Told) -> None:
        def begin_the_next(kind: Message, path: str) -> None:
            if kind is Message.MULTIREAD and path == f"/qubes-firewall/{IP}/":
                daemon.before = lambda kind, path: None
                daemon.from_dom0(Message.RM, f"/qubes-firewall/{IP}/")
                daemon.from_dom0(Message.WRITE, f"/qubes-firewall/{IP}/policy", b"accept")

        daemon.before = begin_the_next
        dom0.firewall(IP, [HTTPS])
        dom0.firewall(OTHER, [SSH])
        entries, committed = await told.change()
        assert committed == {OTHER}
        assert not [path for path in entries if IP in path]
        dom0.db.write(f"/qubes-firewall/{IP}/0000", SSH)
        dom0.commit(IP)
        entries, committed = await told.change()
        assert committed == {IP}
        assert entries[f"/qubes-firewall/{IP}/0000"] == SSH.encode()

    followed(scenario)


def test_a_change_that_is_followed_by_half_of_another_is_not_read(daemon: Daemon, dom0: Dom0) -> None:
    async def scenario(first: dict[str, bytes], told: Told) -> None:
        def one_and_a_half(kind: Message, path: str) -> None:
            if kind is Message.READ and path == f"/qubes-firewall/{OTHER}":
                daemon.before = lambda kind, path: None
                daemon.from_dom0(Message.WRITE, f"/qubes-firewall/{IP}/policy", b"drop")
                daemon.from_dom0(Message.WRITE, f"/qubes-firewall/{IP}")
                daemon.from_dom0(Message.RM, f"/qubes-firewall/{IP}/")
                daemon.from_dom0(Message.WRITE, f"/qubes-firewall/{IP}/policy", b"accept")

        daemon.before = one_and_a_half
        dom0.firewall(OTHER, [SSH])
        entries, committed = await told.change()
        assert committed == {OTHER}
        assert not [path for path in entries if IP in path]
        dom0.commit(IP)
        entries, committed = await told.change()
        assert committed == {IP}
        assert entries[f"/qubes-firewall/{IP}/policy"] == b"accept"

    followed(scenario)


def test_a_commit_without_change_is_told_as_well(dom0: Dom0) -> None:
    """A qube that starts with the address and the rules of another: all that QubesDB shows is the commit."""
    dom0.firewall(IP, [HTTPS])

    async def scenario(first: dict[str, bytes], told: Told) -> None:
        dom0.firewall(IP, [HTTPS])
        assert await told.change() == (first, {IP})

    followed(scenario)


def test_an_address_whose_empty_key_is_removed_has_no_rules(dom0: Dom0) -> None:
    dom0.firewall(IP, [HTTPS])

    async def scenario(first: dict[str, bytes], told: Told) -> None:
        dom0.db.rm(f"/qubes-firewall/{IP}")
        entries, committed = await told.change()
        assert committed == {IP}
        assert not [path for path in entries if IP in path]

    followed(scenario)


@pytest.mark.parametrize(
    ("before", "after"), [(None, 1), (b"1", 2), (b"41", 42), (b"", 1), (b"many", 1)], ids=lambda v: str(v)
)
def test_handled_counts_up(before: bytes | None, after: int, dom0: Dom0) -> None:
    if before is not None:
        dom0.db.write(f"/qubes-firewall-handled/{IP}", before)
    QubesDb().handled([IP, IP6])
    assert dom0.handled(IP) == after
    assert dom0.handled(IP6) == 1


def test_the_counter_is_not_a_change_of_the_rules(dom0: Dom0) -> None:
    async def scenario(first: dict[str, bytes], told: Told) -> None:
        QubesDb().handled([IP])
        dom0.vm_config("later", "1")
        assert await told.change() == ({**first, "/vm-config/later": b"1"}, frozenset())

    followed(scenario)


def test_a_daemon_that_goes_is_told_of_once_and_what_changed_meanwhile_when_it_is_back(
    daemon: Daemon, dom0: Dom0, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "_FIRST_PAUSE", 0.01)
    dom0.firewall(IP, [HTTPS])
    dom0.firewall(OTHER, [HTTPS])

    async def scenario(first: dict[str, bytes], told: Told) -> None:
        loop, attempts = asyncio.get_running_loop(), asyncio.Queue()
        module = edge._module

        def asked_for() -> object:
            loop.call_soon_threadsafe(attempts.put_nowait, None)
            return module()

        monkeypatch.setattr(edge, "_module", asked_for)
        daemon.stop()
        assert await told.trouble() == "QubesDB: QubesDB disconnected; what it said last stays in force"
        daemon.entries[f"/qubes-firewall/{IP}/0000"] = SSH.encode()
        for path in [path for path in daemon.entries if OTHER in path]:
            del daemon.entries[path]
        for _ in range(3):
            await asyncio.wait_for(attempts.get(), 10)
        daemon.start()
        entries, committed = await told.change()
        assert committed == {IP}
        expected = {path: value for path, value in first.items() if OTHER not in path}
        assert entries == {**expected, f"/qubes-firewall/{IP}/0000": SSH.encode()}
        dom0.vm_config("later", "1")
        await told.until("/vm-config/later", b"1")
        assert told.troubles.empty()
        daemon.stop()
        await told.trouble()
        daemon.start()

    followed(scenario)


def test_no_thread_ends_unseen(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda what: None)

    async def scenario(first: dict[str, bytes], told: Told) -> None:
        monkeypatch.setattr(QubesDb, "_sort_notices", lambda self: 1 / 0)
        qubesdb.QubesDB().write("/name", "sys-other")
        assert "no longer followed" in await asyncio.wait_for(told.ends.get(), 10)
        assert told.troubles.empty()

    followed(scenario, ended=True)


@pytest.mark.parametrize(
    "path",
    ["/qubes-firewall/" + "a" * 47, "/qubes-firewall/" + "a" * 46, "/qubes-firewall//x", "/mapped-ip//x", "/name/x"],
)
def test_a_path_that_dom0_would_not_write_does_not_hide_the_others(path: str, daemon: Daemon, dom0: Dom0) -> None:
    async def scenario(first: dict[str, bytes], told: Told) -> None:
        dom0.firewall(IP, [HTTPS])
        await told.change()
        qubesdb.QubesDB().write(path, "1")
        dom0.vm_config("later", "1")
        await told.until("/vm-config/later", b"1")
        assert told.troubles.empty()
        assert once()[f"/qubes-firewall/{IP}/0000"] == HTTPS.encode()

    followed(scenario)


def test_that_all_rules_are_removed_at_once_is_seen(dom0: Dom0) -> None:
    dom0.firewall(IP, [HTTPS])
    dom0.firewall(OTHER, [HTTPS])

    async def scenario(first: dict[str, bytes], told: Told) -> None:
        dom0.db.rm("/qubes-firewall/")
        entries, committed = await told.change()
        assert committed == {IP, OTHER}
        assert not [path for path in entries if path.startswith("/qubes-firewall/")]

    followed(scenario)


@pytest.mark.parametrize("method", ["read_watch", "multiread"])
@pytest.mark.parametrize(
    "error",
    [UnicodeDecodeError("utf-8", b"/\xff", 1, 2, "invalid start byte"), SystemError("an exception set")],
    ids=["no text", "no text in a list"],
)
def test_what_the_module_cannot_read_is_told_and_then_it_is_followed_again(
    method: str, error: Exception, dom0: Dom0, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "_FIRST_PAUSE", 0.01)

    async def scenario(first: dict[str, bytes], told: Told) -> None:
        def fails(*_: object) -> None:
            raise error

        with monkeypatch.context() as odd:
            odd.setattr(qubesdb.QubesDB, method, fails)
            dom0.vm_config("something", "1")
            assert (await told.trouble()).startswith("QubesDB: ")
        dom0.vm_config("later", "1")
        await told.until("/vm-config/later", b"1")
        assert told.troubles.empty()

    followed(scenario)


def test_stopping_while_the_daemon_is_away(daemon: Daemon) -> None:
    async def scenario(first: dict[str, bytes], told: Told) -> None:
        daemon.stop()
        await told.trouble()

    followed(scenario)
    daemon.start()


def test_without_a_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUBESDB_SOCKET", str(tmp_path / "none"))
    with pytest.raises(QubesDbError, match=r"^QubesDB: No such file or directory$"):
        once()
    with pytest.raises(QubesDbError, match=r"^QubesDB: No such file or directory$"):
        QubesDb().handled([IP])


def test_without_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    assert edge.available()
    monkeypatch.setitem(sys.modules, "qubesdb", None)
    assert not edge.available()
    with pytest.raises(QubesDbError, match="module qubesdb is not installed"):
        once()


class TestTheDaemon:
    """The double itself, where it must be as the real one."""

    def test_what_a_watch_tells(self, dom0: Dom0) -> None:
        told = qubesdb.QubesDB()
        for path in ("/a/b", "/a/", "/z"):
            told.watch(path)
        for path in ("/a/b", "/a/bc", "/ab", "/z", "/z/y"):
            dom0.db.write(path, "1")
        dom0.db.rm("/a/")
        dom0.db.rm("/a/")  # there is nothing any more
        dom0.db.write("/z", "end")
        # A directory's removal is one notice, and none for a watch on an exact path below it.
        assert [told.read_watch() for _ in range(6)] == ["/a/b", "/a/b", "/a/bc", "/z", "/a/", "/z"]

    def test_notices_inside_an_answer_wait_in_the_handle_the_newest_first(self, daemon: Daemon, dom0: Dom0) -> None:
        told = qubesdb.QubesDB()
        told.watch("/a/")
        dom0.db.write("/a/1", "one")
        dom0.db.write("/a/2", "two")
        assert told.multiread("/a/") == {"/a/1": b"one", "/a/2": b"two"}
        assert [told.read_watch(), told.read_watch()] == ["/a/2", "/a/1"]

    def test_what_is_refused(self, daemon: Daemon) -> None:
        for path, value in [(path, "1") for path in ("a", "/" + "a" * 63, "/caf\u00e9", "/a b", "/a/")] + [
            ("/a", b"\0")
        ]:
            with pytest.raises(qubesdb.Error):
                qubesdb.QubesDB().write(path, value)
        database = qubesdb.QubesDB()
        database.write("/" + "a" * 62, "1")
        assert (database.read("/none"), database.list("/none"), database.multiread("/none")) == (None, [], {})

    def test_as_a_program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = str(tmp_path / "qubesdb.sock")
        monkeypatch.setenv("QUBESDB_SOCKET", path)
        with subprocess.Popen(
            [sys.executable, "-m", "qubesdb.daemon", path],
            env={**os.environ, "PYTHONPATH": str(DOUBLES)},
            stdout=subprocess.PIPE,
        ) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == b"ready\n"
            writer = Dom0(path)
            writer.netvm("sys-fw")
            writer.close()
            assert once()["/name"] == b"sys-fw"
            program.terminate()
