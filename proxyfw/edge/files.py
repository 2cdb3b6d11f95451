"""Files that the user wrote, and the ones that proxyfw ships."""

import os
import stat
from ipaddress import ip_address
from pathlib import Path

import proxyfw
from proxyfw.core.address import IPAddress

RESOLV_CONF = Path("/etc/resolv.conf")
MAX_FILE = 1 << 20  # bytes of a configuration or profile file


class FileError(Exception):
    """The file cannot be read; the message says why, for after `file:line: error:`. Line 0: the file as a whole."""

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
