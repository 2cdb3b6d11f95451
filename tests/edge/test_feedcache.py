"""The lists on disk: what is written is found again, whole, and what nobody wrote is not believed."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.edge import feedcache
from proxyfw.edge.feedcache import MAX_FILE, Cached, CacheError, FeedCache

NOW = 1_700_000_000.0
LIST = Cached("1f", "https://lists.example/a git", '"etag"', "a date", NOW - 60, ["192.0.2.0/24", "2001:db8::/32"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "feeds"


@pytest.fixture
def cache(folder: Path) -> FeedCache:
    return FeedCache(folder, lambda: NOW)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def put(folder: Path, text: str | bytes, name: str = "1f.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def told(**changes: object) -> str:
    fields: dict[str, Any] = {name: getattr(LIST, name) for name in Cached.__slots__}
    return json.dumps(fields | changes)


def test_the_constructor_opens_nothing(cache: FeedCache, folder: Path) -> None:
    assert not folder.exists()


def test_a_list_is_found_again(cache: FeedCache, folder: Path) -> None:
    cache.save(LIST)
    assert cache.load(LIST.id, LIST.source) == (LIST, "")
    assert names(folder) == ["1f.json"]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "1f.json").stat().st_mode & 0o777 == 0o600


def test_a_later_list_takes_its_place(cache: FeedCache, folder: Path) -> None:
    cache.save(LIST)
    later = Cached(LIST.id, LIST.source, "", "", NOW, ["198.51.100.0/24"])
    cache.save(later)
    assert cache.load(LIST.id, LIST.source) == (later, "")
    assert names(folder) == ["1f.json"]


def test_there_is_none(cache: FeedCache) -> None:
    assert cache.load("1f", LIST.source) == (None, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "this is not a list that proxyfw wrote", id="an empty file"),
        pytest.param(told()[:-9], "this is not a list that proxyfw wrote", id="half a file"),
        pytest.param("[]", "this is not a list that proxyfw wrote", id="no object"),
        pytest.param("[" * 100_000, "this is not a list that proxyfw wrote", id="very deep"),
        pytest.param("9" * 5000, "this is not a list that proxyfw wrote", id="a very long number"),
        pytest.param(b"\xff\xfe\x00", "this is not a list that proxyfw wrote", id="no text"),
        pytest.param("{}", "this is not a list that proxyfw wrote", id="nothing in it"),
        pytest.param(told(more=1), "this is not a list that proxyfw wrote", id="a field of a later version"),
        pytest.param(told(etag=None), "this is not a list that proxyfw wrote", id="a field of another type"),
        pytest.param(told(checked="now"), "this is not a list that proxyfw wrote", id="a time that is none"),
        pytest.param(told(networks={}), "this is not a list that proxyfw wrote", id="networks that are no list"),
        pytest.param(told(networks=[1]), "this is not a list that proxyfw wrote", id="a network that is no text"),
        pytest.param(b" " * (MAX_FILE + 1), "this is not a list that proxyfw wrote", id="too long"),
        pytest.param(told(id="2f"), "this is the list of another feed", id="a file that was renamed"),
        pytest.param(told(source="https://x/"), "this is the list of another feed", id="another source by the same id"),
    ],
)
def test_what_is_not_believed(cache: FeedCache, folder: Path, text: str | bytes, reason: str) -> None:
    path = put(folder, text)
    assert cache.load(LIST.id, LIST.source) == (None, f"{path}: {reason}")
    cache.save(LIST)
    assert cache.load(LIST.id, LIST.source) == (LIST, ""), "a good one takes its place"


@given(st.binary(max_size=64) | st.tuples(st.integers(0, 150), st.binary(min_size=1, max_size=3)))
def test_a_damaged_file_is_a_list_or_none(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes | tuple[int, bytes]
) -> None:
    text = told().encode()
    if isinstance(damage, tuple):
        at, other = damage
        damage = text[:at] + other + text[at + len(other) :]
    folder = tmp_path_factory.getbasetemp()
    put(folder, damage)
    cached, reason = FeedCache(folder).load(LIST.id, LIST.source)
    assert (cached is None) == bool(reason)


@pytest.mark.parametrize(
    ("checked", "found"),
    [
        pytest.param(NOW + 1e6, NOW, id="the clock was ahead"),
        pytest.param(-5, 0.0, id="before there was time"),
        pytest.param(5, 5, id="a whole number"),
        pytest.param(float("inf"), NOW, id="never"),
        pytest.param(float("nan"), 0.0, id="no number"),
    ],
)
def test_a_time_that_cannot_be(cache: FeedCache, folder: Path, checked: float, found: float) -> None:
    put(folder, told(checked=checked))
    loaded, reason = cache.load(LIST.id, LIST.source)
    assert loaded is not None, reason
    assert loaded.checked == found


def test_a_folder_in_its_place(cache: FeedCache, folder: Path) -> None:
    (folder / "1f.json").mkdir(parents=True)
    assert cache.load(LIST.id, LIST.source) == (None, f"{folder / '1f.json'}: Is a directory")


@pytest.mark.parametrize("id", ["", "../passwd", "a/b", ".", "a.b", "x" * 65, "a\0"])
def test_an_id_that_is_no_name_of_a_file(cache: FeedCache, id: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a file"):
        cache.load(id, "")
    with pytest.raises(ValueError, match="cannot be the name of a file"):
        cache.save(Cached(id, "", "", "", 0.0, []))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    put(tmp_path, "", "state")
    cache = FeedCache(tmp_path / "state" / "feeds")
    with pytest.raises(CacheError) as failed:
        cache.save(LIST)
    assert str(failed.value) == f"{tmp_path}/state/feeds/1f.json: Not a directory"


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 64 KiB."""
    made = tmp_path / "disk"
    made.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(made)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield made
    subprocess.run(["umount", str(made)], check=True)


def test_a_full_disk_leaves_the_list_before(full: Path) -> None:
    cache = FeedCache(full / "feeds", lambda: NOW)
    cache.save(LIST)
    with pytest.raises(CacheError) as failed:
        cache.save(Cached(LIST.id, LIST.source, "", "", NOW, ["192.0.2.0/24"] * 10_000))
    assert str(failed.value) == f"{full}/feeds/1f.json: No space left on device"
    assert cache.load(LIST.id, LIST.source) == (LIST, "")
    assert names(full / "feeds") == ["1f.json"], "and nothing of the one that failed"


def test_an_interrupted_save_leaves_the_list_before(
    cache: FeedCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.save(LIST)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(feedcache.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        cache.save(Cached(LIST.id, LIST.source, "", "", NOW, []))
    assert cache.load(LIST.id, LIST.source) == (LIST, "")
    assert names(folder) == ["1f.json"]


def test_old_lists_of_feeds_that_nobody_has_any_more_are_deleted(cache: FeedCache, folder: Path) -> None:
    for name in ("kept", "old", "new"):
        cache.save(Cached(name, "", "", "", NOW, []))
    for name in ("notes.txt", "other.name.json", ".hidden", ".old.json.x1y2", ".new.json.x1y2"):
        put(folder, "", name)
    for path in folder.iterdir():
        os.utime(path, (0, NOW if "new" in path.name else NOW - 1000))
    (folder / "folder.json").mkdir()
    cache.prune(["kept"], NOW - 500)
    assert names(folder) == [
        *(".hidden", ".new.json.x1y2", "folder.json", "kept.json", "new.json", "notes.txt", "other.name.json")
    ]


def test_pruning_where_there_is_nothing(cache: FeedCache, folder: Path) -> None:
    cache.prune([], NOW)
    assert not folder.exists()


def test_pruning_what_is_no_folder(tmp_path: Path) -> None:
    path = put(tmp_path, "", "feeds")
    with pytest.raises(CacheError) as failed:
        FeedCache(path).prune([], NOW)
    assert str(failed.value) == f"{path}: Not a directory"
