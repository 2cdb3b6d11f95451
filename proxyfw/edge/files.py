"""Files that the user wrote, and the ones that proxyfw ships; and writing such a file whole or not at all."""

import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import proxyfw
from proxyfw.core.address import IPAddress

RESOLV_CONF = Path("/etc/resolv.conf")
MAX_FILE = 1 << 20  # bytes of a configuration or profile file
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
_LOOK = 0.05  # seconds between two looks at a lock


class FileError(Exception):
    """The file cannot be read or written; the message says why, for after `file:line: error:`. Line 0: the file as a
    whole.
    """

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def shipped(kind: str) -> Path:
    """The folder of shipped `profiles` or `iptables` rules: in the installed package, or beside it in a checkout."""
    package = Path(proxyfw.__file__).parent
    installed = package / "share" / kind
    return installed if installed.is_dir() else package.parent / kind


def read(path: Path) -> str:
    """The text of a file. Raises FileError."""
    try:
        # A pipe or a device would keep us waiting, or never end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileError("this is not a file")
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_FILE + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FileError(error.strerror or str(error)) from None
    if len(data) > MAX_FILE:
        raise FileError("the file is larger than 1 MiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FileError("this line is not UTF-8", line) from None


def profile_files(folder: Path) -> dict[str, Path]:
    """The profiles of a folder: name to file. Raises FileError when it cannot be read."""
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise FileError(error.strerror or str(error)) from None
    return {path.stem: path for path in found if path.suffix == ".yaml" and not path.name.startswith(".")}


def system_resolvers() -> tuple[tuple[IPAddress, int], ...]:
    """The resolvers of resolv.conf (resolv.conf(5)); none where it has none or cannot be read."""
    try:
        lines = RESOLV_CONF.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append((ip_address(words[1].partition("%")[0]), 53))
            except ValueError:
                continue
    return tuple(found)


@contextmanager
def locked(folder: Path, patience: float = 10.0) -> Iterator[None]:
    """One program at a time for each folder. Raises FileError where another has it for longer than that, in seconds."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FileError(error.strerror or str(error)) from None
    try:
        _lock(descriptor, time.monotonic() + patience)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, end: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise FileError("another program has locked this folder, and does not let it go") from None
        except OSError as error:
            raise FileError(f"it cannot be locked: {error.strerror or error}") from None
        time.sleep(_LOOK)


def replace(path: Path, text: str) -> None:
    """Writes a file, so that at any moment the old one is there or the new one, whole; its folder too, where it is not
    there. Owner and mode stay. Of a symbolic link, the file that it leads to is replaced, and the link stays.

    For one program at a time (`locked`): what a killed one left, the next one takes away. Raises FileError.
    """
    if len(text.encode()) > MAX_FILE:
        raise FileError("the file would be larger than 1 MiB")
    try:
        path = Path(os.path.realpath(path))
        _make_folder(path.parent, [])
        before = path.stat() if path.exists() else None
        unfinished = _unfinished(path)
        unfinished.unlink(missing_ok=True)
        try:
            _write(unfinished, text, before)
            os.replace(unfinished, path)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise
        _sync(path.parent)
    except OSError as error:
        raise FileError(error.strerror or str(error)) from None


def write_new(texts: Mapping[Path, str]) -> None:
    """Writes files that are not there yet, the last one last: all of them, or none. Their folders too.

    For one program at a time. Raises FileError, with the path; also where one of them is there.
    """
    there = [path for path in texts if os.path.lexists(path)]
    if there:
        raise FileError(f"{there[0]}: this file is there already, and is not overwritten")
    made: list[Path] = []
    try:
        for path, text in texts.items():
            _make_folder(path.parent, made)
            unfinished = _unfinished(path)
            unfinished.unlink(missing_ok=True)
            made.append(unfinished)
            _write(unfinished, text, None)
        for path in texts:
            os.link(_unfinished(path), path)  # unlike a rename, it overwrites nothing
            made.append(path)
            _unfinished(path).unlink()
            _sync(path.parent)
    except BaseException as error:
        _take_away(reversed(made))
        if isinstance(error, OSError):
            raise FileError(f"{path}: {error.strerror or error}") from None
        raise


def _take_away(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()


def _unfinished(path: Path) -> Path:
    """Where a file stands until it is whole: nobody takes a name with a dot in front for a profile."""
    return path.with_name(f".{path.name}.new")


def _write(path: Path, text: str, like: os.stat_result | None) -> None:
    """A new file on the disk, with owner and mode of another. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        here = os.fstat(descriptor)
        if like is not None and (here.st_uid, here.st_gid) != (like.st_uid, like.st_gid):
            os.fchown(descriptor, like.st_uid, like.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(like.st_mode) if like is not None else _FILE_MODE)
        file.write(text.encode())
        file.flush()
        os.fsync(descriptor)


def _make_folder(folder: Path, made: list[Path]) -> None:
    """Adds the folders that were made. Raises OSError."""
    if not folder.is_dir():
        _make_folder(folder.parent, made)
        folder.mkdir()
        made.append(folder)
        folder.chmod(_FOLDER_MODE)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Has it on the disk what a folder holds. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
