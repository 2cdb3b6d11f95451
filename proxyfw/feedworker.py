"""A process of its own that reads one feed: what foreign bytes or a user's Python file do to it, they do to it alone.

    python -I -m proxyfw.feedworker

One request comes on its stdin, one answer goes to its stdout, both JSON (proxyfw.edge.feedprocess is the other end):

    {"url": ..., "format": ..., "select": [...], "etag": ..., "modified": ..., "through": ..., "patience": seconds}
    {"python": "/path/feeds/NAME.py", "current": ["192.0.2.0/24", ...], "patience": seconds}

    {"status": "changed", "networks": ["192.0.2.0/24", ...], "etag": ..., "modified": ...}
    {"status": "same"}
    {"status": "failed", "error": ...}

`through`: the upstream proxy to take, as a list of its scheme, address, port, user and password; null: none.

Before it looks at anything foreign it gives up all its rights; what needs them, as a file that root alone may read, is
read before.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

from proxyfw.core.addresslist import AddressList, parse_networks
from proxyfw.core.feedformats import MAX_ADDRESSES, FeedError, Format, addresses
from proxyfw.core.upstreamproxy import Scheme, UpstreamProxy
from proxyfw.edge import files, rights
from proxyfw.edge.fetch import FetchError, get, trust

MEMORY = 1 << 30  # bytes of address space
MAX_ERROR = 300  # characters

Answer = dict[str, Any]
_AGAIN = "again"  # the argument of the second exec
_NO_MEMORY = f"it takes more than {MEMORY >> 30} GiB of memory"


def main() -> None:
    """Answers one request, and ends at once: no thread or exit handler of a feed keeps it."""
    if not rights.is_root():
        _give_up_capabilities()
    # What a feed prints, and what it starts prints, goes to stderr.
    stdout = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        answer = _answer(json.load(sys.stdin.buffer))
    except (FetchError, FeedError, files.FileError, rights.RightsError) as error:
        answer = _failed(str(error))
    except MemoryError:
        answer = _failed(_NO_MEMORY)
    with open(stdout, "wb") as file:
        file.write(json.dumps(answer, separators=(",", ":")).encode())
    os._exit(0)


def _give_up_capabilities() -> None:
    """Where a filter of system calls keeps it from doing so, they are gone after an exec."""
    try:
        given_up = rights.give_up_capabilities()
    except rights.RightsError:
        return  # it will come up again, where it can be told
    if not given_up and _AGAIN not in sys.argv:
        os.execv(sys.executable, [*sys.orig_argv, _AGAIN])


def _answer(request: dict[str, Any]) -> Answer:
    read = _python(request) if "python" in request else _web(request)
    rights.give_up(MEMORY, math.ceil(request["patience"]) + 1)
    return read()


def _web(request: dict[str, Any]) -> Callable[[], Answer]:
    context = trust()
    through = _through(request["through"])

    def read() -> Answer:
        fetched = get(request["url"], request["etag"], request["modified"], request["patience"], context, through)
        if fetched.status == "same":
            return {"status": "same"}
        found = addresses(Format(request["format"]), tuple(request["select"]), fetched.document)
        return _changed(AddressList.of(found), fetched.etag, fetched.modified)

    return read


def _through(told: list[Any] | None) -> UpstreamProxy | None:
    if told is None:
        return None
    scheme, address, port, user, password = told
    return UpstreamProxy(Scheme(scheme), ip_address(address), port, user, password)


def _python(request: dict[str, Any]) -> Callable[[], Answer]:
    path = Path(request["python"])
    try:
        source = files.read(path)
    except files.FileError as error:
        where = f"{path.name}:{error.line}" if error.line else path.name
        raise files.FileError(f"{where}: {error}") from None

    def read() -> Answer:
        found = run_python(path.name, source, list(request["current"]))
        return {"status": "same"} if found is None else _changed(found, "", "")

    return read


def _changed(found: AddressList, etag: str, modified: str) -> Answer:
    networks = [str(network) for network in found.networks()]
    return {"status": "changed", "networks": networks, "etag": etag, "modified": modified}


def _failed(error: str) -> Answer:
    printable = "".join(each if each.isprintable() else " " for each in error[: 2 * MAX_ERROR])
    return {"status": "failed", "error": " ".join(printable.split())[:MAX_ERROR]}


def run_python(name: str, source: str, current: list[str]) -> AddressList | None:
    """What `refresh(current)` of a user's file returns: addresses and networks, in any iterable; None for False, which
    says that nothing changed. `current`: what it returned the last time, or nothing. Raises FeedError, MemoryError.
    """
    try:
        texts = _refreshed(name, source, current)
    except (FeedError, MemoryError):
        raise
    except BaseException as error:  # noqa: BLE001 - it is somebody's program: it may raise anything, and call sys.exit
        raise FeedError(_told(name, error)) from None
    if texts is None:
        return None
    if len(texts) > MAX_ADDRESSES:
        raise FeedError(f"{name}: refresh returned more than {MAX_ADDRESSES:,} addresses")
    try:
        return AddressList.of(parse_networks(texts))
    except ValueError as error:
        raise FeedError(f"{name}: in what refresh returned, {error}") from None


def _refreshed(name: str, source: str, current: list[str]) -> list[str] | None:
    """Runs the file; one text more than is allowed shows that there are too many."""
    if "\0" in source:
        raise FeedError(f"{name}:{source.count(chr(10), 0, source.index(chr(0))) + 1}: there is a null byte")
    module = ModuleType("feed")
    module.__file__ = name
    sys.modules[module.__name__] = module  # where dataclasses, for one, look for it
    code: CodeType = compile(source, name, "exec", dont_inherit=True)
    exec(code, module.__dict__)
    refresh = getattr(module, "refresh", None)
    if not callable(refresh):
        raise FeedError(f"{name}: it has no function refresh(current)")
    returned = refresh(current)
    if returned is False:
        return None
    if isinstance(returned, str | bytes) or not isinstance(returned, Iterable):
        raise FeedError(
            f"{name}: refresh returned {_kind(returned)}; return a list of addresses, or False where nothing changed"
        )
    return [str(entry) for entry in islice(returned, MAX_ADDRESSES + 1)]


def _kind(value: object) -> str:
    return str(value) if value is None or value is True else f"one {type(value).__name__}"


def _told(name: str, error: BaseException) -> str:
    """Where in the file, and what."""
    if isinstance(error, SyntaxError) and error.filename == name:
        return f"{name}:{error.lineno or 0}: {error.msg}"
    line = _line(name, error.__traceback__)
    where = f"{name}:{line}" if line else name
    if isinstance(error, SystemExit):
        return f"{where}: it ended itself (sys.exit)"
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - its own error, with its own __str__
        text = ""
    return f"{where}: {type(error).__name__}" + (f": {text}" if text else "")


def _line(name: str, trace: TracebackType | None) -> int:
    """The last line of the file that was at work."""
    line = 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


if __name__ == "__main__":
    main()
