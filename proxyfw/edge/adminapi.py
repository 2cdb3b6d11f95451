"""Asks dom0 for the qubes that are attached to this netvm, and hears when that changes: the Admin API of Qubes OS.

Two ways lead there: Qubes' library `qubesadmin` where it is installed, else the program `qrexec-client-vm` that every
qube has, and a few lines for its replies (qubes/api/__init__.py of qubes-core-admin). Neither remembers anything.

What dom0 lets a netvm see is for its policy to say: proxyfw.core.qubes_policy has the lines. A call that no line allows
is refused; a qube that none covers is not: the list and the events leave it out (qubes/ext/admin.py).
"""

import asyncio
import importlib
import re
import shutil
import threading
from asyncio import StreamReader
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Protocol

from proxyfw.core.address import IPAddress
from proxyfw.core.netvm import Attached, Qube

_PROGRAM = "qrexec-client-vm"
_REFUSED = 126  # its exit status: QREXEC_EXIT_REQUEST_REFUSED in libqrexec/qrexec.h of qubes-core-qrexec
_PATIENCE = 20.0  # seconds for one call
_AT_ONCE = 4  # calls; each is a process here and another in dom0
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds before events are asked for again
_REFUSED_PAUSE = 600.0  # seconds, where they were refused: dom0 shows its user each refusal

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,30}")  # qubes/vm/__init__.py
_TAG = re.compile(r"[a-zA-Z0-9_-]+")
_PROPERTY = re.compile(r"default=(?:True|False) type=([a-z]+) (.*)")
_EVENTS = re.compile(
    r"connection-established|domain-(?:add|delete|start|shutdown)|domain-tag-(?:add|delete):.+"
    r"|property-(?:set|reset):(?:name|netvm|ip|ip6)|domain-feature-(?:set|delete):ipv6"
)
"""Those after which the qubes or their addresses may be others. An ip6 that comes with the feature has no event."""
_GONE = frozenset({"QubesVMNotFoundError", "QubesNoSuchPropertyError"})


class AdminError(Exception):
    """dom0 could not be asked, or gave no answer that can be read."""


class Refused(AdminError):
    """The policy of dom0 forbids a call. `line`: the line that allows it."""

    def __init__(self, line: str) -> None:
        super().__init__(f"dom0 refuses; its policy lacks: {line}")
        self.line = line


class Declined(AdminError):
    """dom0 answered with an error. `kind`: the name of its type."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


def available() -> bool:
    """Whether a way to dom0 is installed. The library needs the program as well."""
    return shutil.which(_PROGRAM) is not None


class AdminApi:
    """What dom0 tells the netvm of this name."""

    def __init__(self, netvm: str) -> None:
        self._netvm = netvm
        self._refused: defaultdict[str, list[str]] = defaultdict(list)  # by qube
        self._odd: defaultdict[str, list[str]] = defaultdict(list)  # by qube; "": the list of them
        self._way: _Way | None = None
        self._heard_of: set[str] = set()  # since they were asked about last; "" stands for all
        self._slots = asyncio.Semaphore(_AT_ONCE)

    @property
    def refused(self) -> list[str]:
        """The lines that the policy of dom0 lacks for some of what `attached` answered last."""
        return sorted({line for lines in self._refused.values() for line in lines})

    @property
    def odd(self) -> list[str]:
        """What dom0 said to it that could not be read, or was an error."""
        return [text for name in sorted(self._odd) for text in self._odd[name]]

    async def attached(self, known: Attached | None = None) -> Attached:
        """The qubes whose netvm this is, running or not, by name; for one caller at a time.

        What is refused, or goes meanwhile, is left out, and the rest stays. Of two with one address, a halted one does
        not have it. Each call to dom0 takes its time: with `known`, the last answer, only the list is asked for, and
        those that are new in it or that `follow` heard of since. Raises AdminError.
        """
        heard_of, self._heard_of = self._heard_of, set()
        try:
            return await self._attached(None if "" in heard_of else known, heard_of)
        except BaseException:
            self._heard_of |= heard_of
            raise

    async def _attached(self, known: Attached | None, heard_of: set[str]) -> Attached:
        states = self._states(await self._ask("dom0", "admin.vm.List"))
        asked = [name for name in states if known is None or name in heard_of or name not in known.visible]
        for notes in (self._refused, self._odd):
            for name in notes.keys() - (states.keys() - asked) - {""}:
                del notes[name]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._qube(name)) for name in asked]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        qubes = [qube for task in tasks if (qube := task.result())]
        if known is not None:
            qubes += [qube for qube in known.qubes if qube.name in states.keys() - asked]
        qubes.sort(key=lambda qube: qube.name)
        taken = {address for qube in qubes if states[qube.name] != "Halted" for address in qube.addresses}
        for at, qube in enumerate(qubes):
            if states[qube.name] == "Halted":
                qubes[at] = replace(qube, addresses=tuple(a for a in qube.addresses if a not in taken))
        return Attached(tuple(qube for qube in qubes if qube.addresses), frozenset(states))

    async def follow(self, on_change: Callable[[], None], on_trouble: Callable[[str], None]) -> None:
        """Tells when `attached` may answer otherwise: at first, after each interruption, and at events that matter.
        Runs until it is cancelled. The same trouble is told once, until events come again.
        """
        told, pause = "", _FIRST_PAUSE

        def heard(about: str, event: str) -> None:
            nonlocal told, pause
            told, pause = "", _FIRST_PAUSE
            if _EVENTS.fullmatch(event):
                self._heard_of.add("" if event.endswith(":name") else about)
                on_change()

        while True:
            refused = False
            try:
                await self._chosen().listen(heard)
                trouble = "dom0 ended its stream of events"
            except _Refusal:
                refused = True
                trouble = str(Refused(self._line("dom0", "admin.Events")))
            except AdminError as error:
                trouble = str(error)
            if trouble != told:
                on_trouble(trouble)
                told = trouble
            await asyncio.sleep(_REFUSED_PAUSE if refused else pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _chosen(self) -> "_Way":
        if self._way is None:
            self._way = _best_way()
        return self._way

    def _line(self, target: str, method: str, argument: str = "") -> str:
        columns = (
            method,
            f"+{argument}",
            self._netvm,
            "@adminvm" if target == "dom0" else "@tag:proxyfw",
            "allow target=dom0",
        )
        return "  ".join(columns)

    async def _ask(self, target: str, method: str, argument: str = "") -> bytes:
        async with self._slots:
            try:
                async with asyncio.timeout(_PATIENCE):
                    return await self._chosen().call(target, method, argument)
            except TimeoutError:
                raise AdminError(f"dom0 does not answer: {method} for {target}, {_PATIENCE:g} seconds") from None
            except _Refusal:
                raise Refused(self._line(target, method, argument)) from None

    async def _value(self, name: str, method: str, argument: str = "") -> str | None:
        """The answer about one qube. None where there is none; why is noted, unless the qube has gone."""
        try:
            return (await self._ask(name, method, argument)).decode()
        except Refused as error:
            self._refused[name].append(error.line)
        except Declined as error:
            if error.kind not in _GONE:
                self._odd[name].append(f"{name}: {error}")
        except UnicodeDecodeError:
            self._odd[name].append(f"{name}: an answer to {method} that is not text")
        return None

    def _states(self, answer: bytes) -> dict[str, str]:
        """The listed qubes but dom0 and this one, and their states."""
        states = {}
        odd = self._odd[""] = []
        for line in answer.decode("utf-8", "replace").splitlines():
            name, *rest = line.split(" ")
            facts = dict(word.split("=", 1) for word in rest if "=" in word)
            if not _NAME.fullmatch(name) or "class" not in facts or "state" not in facts:
                odd.append(f"admin.vm.List: {line[:80]!r}")
            elif facts["class"] != "AdminVM" and name != self._netvm:
                states[name] = facts["state"]
        if not states:
            line = self._line("a qube", "admin.vm.List")
            odd.append(f"dom0 shows no qube: none has the tag proxyfw, or its policy lacks: {line}")
        return states

    async def _qube(self, name: str) -> Qube | None:
        if await self._property(name, "netvm", "vm") != self._netvm:
            return None
        found = (await self._address(name, "ip", 4), await self._address(name, "ip6", 6))
        tags = [tag for tag in (await self._value(name, "admin.vm.tag.List") or "").split("\n") if tag]
        self._odd[name] += [f"{name}: the tag {tag[:40]!r}" for tag in tags if not _TAG.fullmatch(tag)]
        return Qube(name, tuple(a for a in found if a), frozenset(filter(_TAG.fullmatch, tags)))

    async def _property(self, name: str, key: str, kind: str) -> str:
        value = await self._value(name, "admin.vm.property.Get", key)
        match = _PROPERTY.fullmatch(value) if value is not None else None
        if match and match[1] == kind:
            return match[2]
        if value is not None:
            self._odd[name].append(f"{name}: the property {key}, {value[:80]!r}")
        return ""

    async def _address(self, name: str, key: str, version: int) -> IPAddress | None:
        value = await self._property(name, key, "str")
        if not value:
            return None
        with suppress(ValueError):
            address = ip_address(value)
            if address.version == version and "%" not in value:
                return address
        self._odd[name].append(f"{name}: the property {key}, {value[:80]!r}, is not such an address")
        return None


_Heard = Callable[[str, str], None]
"""Takes the qube that an event is about, or "", and the name of the event."""


class _Refusal(Exception):
    """The policy of dom0 forbids what was asked."""


class _Way(Protocol):
    async def call(self, target: str, method: str, argument: str) -> bytes:
        """The value that dom0 answers. Raises AdminError, _Refusal."""

    async def listen(self, heard: _Heard) -> None:
        """Hands over events until dom0 ends the stream. Raises AdminError, _Refusal."""


def _best_way() -> _Way:
    try:
        return _Library()
    except ImportError:
        return _Program()


class _Program:
    """`qrexec-client-vm DEST METHOD[+ARG]`: the reply on its stdout, a refusal by its exit status."""

    async def call(self, target: str, method: str, argument: str) -> bytes:
        async with _running(target, f"{method}+{argument}" if argument else method, PIPE) as process:
            reply, said = await process.communicate()
        if process.returncode == 0:
            return _value_in(reply)
        raise _failure(process.returncode, said)

    async def listen(self, heard: _Heard) -> None:
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
        return _Refusal()
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


class _Library:
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
            return _Refusal() if "refused" in str(error) else AdminError(str(error).strip())
        except errors.QubesDaemonCommunicationError as error:
            return AdminError(str(error))
        except errors.QubesException as error:
            return Declined(type(error).__name__, str(error))
        except OSError as error:
            return AdminError(f"{_PROGRAM}: {error.strerror}")
        except _LIBRARY_ERRORS as error:
            return Declined(type(error).__name__, str(error))

    async def listen(self, heard: _Heard) -> None:
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
            await _Program().listen(heard)
