"""The two ways by which a qube asks dom0 through the Admin API of Qubes OS.

Qubes' library `qubesadmin` where it is installed, else the program `qrexec-client-vm` that every qube has, and a few
lines for its replies (qubes/api/__init__.py of qubes-core-admin). Neither remembers anything.
"""

import asyncio
import importlib
import threading
from asyncio import StreamReader
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

_PROGRAM = "qrexec-client-vm"
_REFUSED = 126  # its exit status: QREXEC_EXIT_REQUEST_REFUSED in libqrexec/qrexec.h of qubes-core-qrexec

Heard = Callable[[str, str], None]
"""Takes the qube that an event is about, or "", and the name of the event."""


class AdminError(Exception):
    """dom0 could not be asked, or gave no answer that can be read."""


class Declined(AdminError):
    """dom0 answered with an error. `kind`: the name of its type."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Refusal(Exception):
    """The policy of dom0 forbids what was asked."""


class Way(Protocol):
    """How to ask dom0."""

    async def call(self, target: str, method: str, argument: str) -> bytes:
        """The value that dom0 answers. Raises AdminError, Refusal."""

    async def listen(self, heard: Heard) -> None:
        """Hands over events until dom0 ends the stream. Raises AdminError, Refusal."""


def best_way() -> Way:
    """The library where it can be imported."""
    try:
        return Library()
    except ImportError:
        return Program()


class Program:
    """`qrexec-client-vm DEST METHOD[+ARG]`: the reply on its stdout, a refusal by its exit status."""

    async def call(self, target: str, method: str, argument: str) -> bytes:
        async with _running(target, f"{method}+{argument}" if argument else method, PIPE) as process:
            reply, said = await process.communicate()
        if process.returncode == 0:
            return _value_in(reply)
        raise _failure(process.returncode, said)

    async def listen(self, heard: Heard) -> None:
        async with _running("dom0", "admin.Events", DEVNULL) as process:
            assert process.stdout is not None
            try:
                while True:
                    heard(*await _next_event(process.stdout))
            except asyncio.IncompleteReadError:
                pass
            except (asyncio.LimitOverrunError, ValueError):
                raise AdminError("dom0 sends events that cannot be read") from None
            await process.wait()
        if process.returncode:
            raise _failure(process.returncode)


@asynccontextmanager
async def _running(target: str, service: str, stderr: int) -> AsyncIterator[Process]:
    """The program, which does not outlive the block."""
    try:
        process = await asyncio.create_subprocess_exec(
            _PROGRAM, target, service, stdin=DEVNULL, stdout=PIPE, stderr=stderr
        )
    except OSError as error:
        raise AdminError(f"{_PROGRAM}: {error.strerror}") from None
    try:
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _failure(status: int | None, said: bytes = b"") -> Exception:
    if status == _REFUSED:
        return Refusal()
    return AdminError(f"{_PROGRAM} ended with status {status}: {said.decode('utf-8', 'replace').strip()[:200]}")


def _value_in(reply: bytes) -> bytes:
    """The value of a reply, `0 NUL value`. Raises Declined for `2 NUL type NUL traceback NUL text NUL arguments`."""
    if reply.startswith(b"0\0"):
        return reply[2:]
    fields = reply.split(b"\0")
    if fields[0] != b"2" or len(fields) < 5:
        raise AdminError(f"dom0 sends a reply that cannot be read: {reply[:80]!r}")
    kind, _, *text = (field.decode("utf-8", "replace") for field in fields[1:])
    raise Declined(kind, " ".join(text).strip())


async def _next_event(stream: StreamReader) -> tuple[str, str]:
    """The next event: `1 NUL subject NUL name NUL`, pairs of key and value, NUL. An event without a subject may name
    its qube as `vm`. Raises EOFError, LimitOverrunError, ValueError, and Declined for an error in its place.
    """
    kind = await stream.readuntil(b"\0")
    if kind != b"1\0":
        _value_in(kind + await stream.read(4096))
        raise ValueError
    about = (await stream.readuntil(b"\0"))[:-1].decode()
    name = (await stream.readuntil(b"\0"))[:-1].decode()
    while (key := await stream.readuntil(b"\0")) != b"\0":
        value = (await stream.readuntil(b"\0"))[:-1].decode()
        if key == b"vm\0" and not about:
            about = value
    return about, name


_LIBRARY_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError),
    *(ValueError, asyncio.LimitOverrunError),
)
"""What the library lets out beside its own errors: the built-in one that dom0 names, and its failures to read it."""


class Library:
    """qubesadmin, in its form for a qube. Each call has a new object: one that is kept would remember."""

    def __init__(self) -> None:
        """Raises ImportError."""
        self._app = importlib.import_module("qubesadmin.app")
        self._events = importlib.import_module("qubesadmin.events")
        self._errors = importlib.import_module("qubesadmin.exc")

    async def call(self, target: str, method: str, argument: str) -> bytes:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bytes | Exception] = loop.create_future()

        def give(answer: bytes | Exception) -> None:
            if not done.done():
                done.set_result(answer)

        def run() -> None:
            answer = self._call(target, method, argument)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(give, answer)

        # Not asyncio.to_thread: a call that hangs would keep the program from ending.
        threading.Thread(target=run, name="qubesadmin", daemon=True).start()
        answer = await done
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _call(self, target: str, method: str, argument: str) -> bytes | Exception:
        """The value, or what is to be raised."""
        errors = self._errors
        try:
            value: bytes = self._app.QubesRemote().qubesd_call(target, method, argument or None)
            return value
        except errors.QubesDaemonAccessError as error:
            return Refusal() if "refused" in str(error) else AdminError(str(error).strip())
        except errors.QubesDaemonCommunicationError as error:
            return AdminError(str(error))
        except errors.QubesException as error:
            return Declined(type(error).__name__, str(error))
        except OSError as error:
            return AdminError(f"{_PROGRAM}: {error.strerror}")
        except _LIBRARY_ERRORS as error:
            return Declined(type(error).__name__, str(error))

    async def listen(self, heard: Heard) -> None:
        came = False

        def handler(subject: Any, event: str, /, **arguments: Any) -> None:
            nonlocal came
            came = True
            heard(str(subject or arguments.get("vm", "")), event)

        dispatcher = self._events.EventsDispatcher(self._app.QubesRemote(), enable_cache=False)
        dispatcher.add_handler("*", handler)
        try:
            await dispatcher.listen_for_events(reconnect=False)
        except _LIBRARY_ERRORS as error:
            raise AdminError(f"dom0 sends events that cannot be read: {error}") from None
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # the library keeps that to itself
            raise asyncio.CancelledError
        if not came:  # it keeps the reason to itself too: the program tells it
            await Program().listen(heard)
