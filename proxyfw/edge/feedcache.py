"""The last good list of each feed, on disk: a start without network begins with it."""

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

MAX_FILE = 16 << 20  # bytes

_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_UNFINISHED = re.compile(r"\.[0-9A-Za-z_-]+\.json\.[^.]*")
_TYPES = {"id": str, "source": str, "etag": str, "modified": str, "checked": float | int, "networks": list}


class CacheError(Exception):
    """The folder cannot be written; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Cached:
    """A list as it was fetched. `id`: of the feed, and of the file. `source`: the URL and what is selected, or the
    Python file. `checked`: when it was last known to be what the owner says, in seconds since the epoch.
    """

    id: str
    source: str
    etag: str
    modified: str
    checked: float
    networks: list[str]


class FeedCache:
    """A folder with a file, `ID.json`, for each list. The methods block; from any thread, one at a time for each id."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._clock = clock

    def save(self, cached: Cached) -> None:
        """The list is on the disk when this returns, or the one before is still there whole. Raises CacheError."""
        path = self._path(cached.id)
        words = json.dumps(asdict(cached)).encode()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(path, words)
        except OSError as error:
            raise CacheError(f"{path}: {error.strerror or error}") from None

    def load(self, id: str, source: str) -> tuple[Cached | None, str]:
        """The list of this feed; or None, and why, which is "" where there is no file. It is text that was good once:
        its networks are still to be parsed and judged.
        """
        path = self._path(id)
        try:
            with open(path, "rb") as file:
                words = file.read(MAX_FILE + 1)
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, f"{path}: {error.strerror or error}"
        cached = _read(words) if len(words) <= MAX_FILE else None
        if cached is None:
            return None, f"{path}: this is not a list that proxyfw wrote"
        if (cached.id, cached.source) != (id, source):
            return None, f"{path}: this is the list of another feed"
        # A clock that was wrong: what is yet to come would keep the list from being fetched.
        return replace(cached, checked=max(0.0, min(cached.checked, self._clock()))), ""

    def prune(self, keep: Collection[str], before: float) -> None:
        """Deletes the lists whose id is not in `keep` and whose file was last written before that time, in seconds
        since the epoch; and what an interrupted `save` left. Other files are left alone. Raises CacheError.
        """
        try:
            for path in list(self.folder.iterdir()):
                ours = path.suffix == ".json" and _ID.fullmatch(path.stem) and path.stem not in keep
                if (ours or _UNFINISHED.fullmatch(path.name)) and path.lstat().st_mtime < before:
                    path.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise CacheError(f"{self.folder}: {error.strerror or error}") from None

    def _path(self, id: str) -> Path:
        if not _ID.fullmatch(id):
            raise ValueError(f"{id!r} cannot be the name of a file")
        return self.folder / f"{id}.json"


def _replace(path: Path, words: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # for its owner alone
    try:
        with open(descriptor, "wb") as file:
            file.write(words)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(words: bytes) -> Cached | None:
    try:
        told: Any = json.loads(words)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or told.keys() != _TYPES.keys():
        return None
    if not all(isinstance(told[name], kind) for name, kind in _TYPES.items()):
        return None
    return Cached(**told) if all(isinstance(network, str) for network in told["networks"]) else None
