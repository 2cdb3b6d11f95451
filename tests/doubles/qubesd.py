"""dom0, as far as a netvm meets it through the Admin API: its qubes, its qrexec policy, its answers and events.

The bytes are those of qubes-core-admin (qubes/api/__init__.py, admin.py), what a policy hides is hidden as there
(qubes/ext/admin.py, and qrexec/policy/parser.py of qubes-core-qrexec): a call that no line allows is refused, a list
and the events leave out the qubes that no line names. `qrexec-client-vm` of this folder leads here.
"""

import os
import select
import socket
import threading
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

POLICY = """\
admin.vm.List         *     sys-fw  @adminvm      allow target=dom0
admin.vm.List         *     sys-fw  @tag:proxyfw  allow target=dom0
admin.vm.property.Get +ip   sys-fw  @tag:proxyfw  allow target=dom0
admin.vm.property.Get +ip6  sys-fw  @tag:proxyfw  allow target=dom0
admin.vm.property.Get +netvm sys-fw @tag:proxyfw  allow target=dom0
admin.vm.tag.List     *     sys-fw  @tag:proxyfw  allow target=dom0
admin.Events          *     sys-fw  @adminvm      allow target=dom0
admin.Events          *     sys-fw  @tag:proxyfw  allow target=dom0
admin.Events +domain-delete             sys-fw @anyvm allow target=dom0
admin.Events +domain-tag-delete_proxyfw sys-fw @anyvm allow target=dom0
"""
_TYPES = {"netvm": "vm"}


@dataclass
class _Qube:
    klass: str
    state: str
    properties: dict[str, str]
    tags: set[str] = field(default_factory=set)
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))


class Qubesd:
    """Serves one dom0 on a socket. Its methods are what a user does in dom0; each fires the events that qubesd would.

    `policy`: the lines of /etc/qubes/policy.d/, may be replaced at any time. `calls`: what was asked, and allowed.
    `uuids`: as Qubes 4.3 lists qubes.
    """

    def __init__(self, path: str, netvm: str = "sys-fw", policy: str = POLICY) -> None:
        self.path = path
        self.netvm = netvm
        self.policy = policy
        self.uuids = True
        self.calls: list[str] = []
        self._qubes: dict[str, _Qube] = {}
        self._canned: dict[str, bytes] = {}
        self._held: set[str] = set()
        self._streams: list[socket.socket] = []
        self._changed = threading.Condition(threading.RLock())

    def __enter__(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._threads = [threading.Thread(target=self._accept, name="qubesd", daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.release()
        self.drop_events()
        for thread in self._threads:
            thread.join()
        os.unlink(self.path)

    # What a user does

    def add(
        self,
        name: str,
        ip: str = "",
        ip6: str = "",
        netvm: str = "sys-fw",
        tags: Iterable[str] = ("proxyfw",),
        state: str = "Running",
        klass: str = "AppVM",
    ) -> None:
        """A new qube, then its tags."""
        with self._changed:
            self._qubes[name] = _Qube(klass, state, {"netvm": netvm, "ip": ip, "ip6": ip6})
            self.emit("", "domain-add", vm=name)
            for tag in tags:
                self.tag(name, tag)

    def remove(self, name: str) -> None:
        """A qube is deleted."""
        with self._changed:
            del self._qubes[name]
            self.emit("", "domain-delete", vm=name)

    def set(self, name: str, key: str, value: str) -> None:
        """`qvm-prefs NAME KEY VALUE`."""
        with self._changed:
            old = self._qubes[name].properties[key]
            self._qubes[name].properties[key] = value
            self.emit(name, f"property-set:{key}", name=key, newvalue=value, oldvalue=old)

    def tag(self, name: str, tag: str) -> None:
        """`qvm-tags NAME add TAG`."""
        with self._changed:
            self._qubes[name].tags.add(tag)
            self.emit(name, f"domain-tag-add:{tag}", tag=tag)

    def untag(self, name: str, tag: str) -> None:
        """`qvm-tags NAME del TAG`."""
        with self._changed:
            self._qubes[name].tags.remove(tag)
            self.emit(name, f"domain-tag-delete:{tag}", tag=tag)

    def power(self, name: str, state: str) -> None:
        """A qube starts (Running) or is shut down (Halted)."""
        with self._changed:
            self._qubes[name].state = state
            self.emit(name, "domain-start" if state == "Running" else "domain-shutdown")

    # What goes wrong

    def refuse(self, call: str, target: str = "*") -> None:
        """From now on, METHOD or METHOD+ARG is refused, for one target or all."""
        method, _, argument = call.partition("+")
        self.policy = f"{method} {'+' + argument if argument else '*'} * {target} deny\n{self.policy}"

    def answer(self, call: str, target: str, raw: bytes) -> None:
        """From now on, this call is answered with these bytes."""
        self._canned[f"{target} {call}"] = raw

    def hold(self, call: str, target: str = "dom0") -> None:
        """From now on, this call is not answered."""
        self._held.add(f"{target} {call}")

    def release(self) -> None:
        """Answers what was held."""
        with self._changed:
            self._held.clear()
            self._changed.notify_all()

    def drop_events(self) -> None:
        """Ends the streams of events that are open."""
        with self._changed:
            for stream in self._streams:
                with suppress(OSError):
                    stream.shutdown(socket.SHUT_RDWR)
            self._streams.clear()

    def emit(self, subject: str, event: str, **arguments: str) -> None:
        """Fires an event; who has no policy line for the qube it is about does not hear it."""
        with self._changed:
            about = subject or arguments.get("vm") or "@adminvm"
            if self._allows("admin.Events", "+" + event.replace(":", "_"), about):
                self.emit_raw(_event(subject, event, arguments))

    def emit_raw(self, data: bytes) -> None:
        """Sends bytes down the streams of events."""
        with self._changed:
            for stream in self._streams:
                with suppress(OSError):
                    stream.sendall(data)

    def wait_for_streams(self, count: int) -> None:
        """Until so many streams of events are open. Raises TimeoutError after ten seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._streams) == count, 10):
                raise TimeoutError(f"{len(self._streams)} streams of events")

    def wait_for_calls(self, call: str, count: int) -> None:
        """Until this call, "TARGET METHOD+ARG", was made that often. Raises TimeoutError after ten seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.calls.count(call) >= count, 10):
                raise TimeoutError(call)

    # The daemon

    def _accept(self) -> None:
        with self._listener:
            while True:
                try:
                    sock, _ = self._listener.accept()
                except OSError:
                    return
                thread = threading.Thread(target=self._serve, args=(sock,), name="qubesd-call", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, suppress(ConnectionError):
            request = b""
            while data := sock.recv(1 << 16):
                request += data
            if b"\0" not in request:
                return
            call = request.split(b"\0", 1)[0].decode()
            target, service = call.split(" ")
            method, _, argument = service.partition("+")
            with self._changed:
                if not self._allows(method, f"+{argument}", target):
                    return
                self.calls.append(call)
                self._changed.notify_all()
                sock.sendall(b"+")
                self._changed.wait_for(lambda: call not in self._held)
                if call in self._canned or method != "admin.Events":
                    canned = self._canned.get(call)
                    sock.sendall(self._value(target, method, argument) if canned is None else canned)
                    return
                sock.sendall(_event("", "connection-established", {}))
                self._streams.append(sock)
                self._changed.notify_all()
            hangup = select.poll()  # until it is dropped, or qrexec-client-vm has gone
            hangup.register(sock, 0)
            hangup.poll()
            with self._changed:
                if sock in self._streams:
                    self._streams.remove(sock)
                self._changed.notify_all()

    def _value(self, target: str, method: str, argument: str) -> bytes:
        if method == "admin.vm.List" and target == "dom0":
            lines = []
            for name, qube in sorted({"dom0": _Qube("AdminVM", "Running", {}), **self._qubes}.items()):
                if self._allows(method, "+", name):
                    ending = f" uuid={qube.uuid}" if self.uuids else ""
                    lines.append(f"{name} class={qube.klass} state={qube.state}{ending}\n")
            return _reply("".join(lines))
        found = self._qubes.get(target)
        if found is None:
            return error("QubesVMNotFoundError", f"No such domain: '{target}'")
        if method == "admin.vm.tag.List":
            return _reply("".join(f"{tag}\n" for tag in sorted(found.tags)))
        if method == "admin.vm.property.Get" and argument in found.properties:
            return _reply(f"default=False type={_TYPES.get(argument, 'str')} {found.properties[argument]}")
        return error("QubesNoSuchPropertyError", f"Invalid property '{argument}' of {target}")

    def _allows(self, service: str, argument: str, target: str) -> bool:
        """The first line that matches decides; none denies. A target that does not exist is @default."""
        qube = self._qubes.get(target)
        dom0 = target in ("dom0", "@adminvm")
        if qube is None and not dom0:
            target = "@default"
        for line in self.policy.splitlines():
            columns = line.split("#")[0].split()
            if len(columns) < 5:
                continue
            if columns[0] not in ("*", service) or columns[1] not in ("*", argument):
                continue
            if columns[2] not in ("*", "@anyvm", self.netvm):
                continue
            for_tag = columns[3].startswith("@tag:") and qube and columns[3].removeprefix("@tag:") in qube.tags
            for_dom0 = dom0 and columns[3] in ("@adminvm", "dom0")
            if for_tag or for_dom0 or columns[3] in ("*", target) or (columns[3] == "@anyvm" and not dom0):
                return columns[4] == "allow"
        return False


def error(kind: str, text: str) -> bytes:
    """An error as qubesd sends it: without traceback, the text already formatted."""
    return b"2\0%s\0\0%s\0" % (kind.encode(), text.encode())


def _reply(text: str) -> bytes:
    return b"0\0" + text.encode()


def _event(subject: str, event: str, arguments: dict[str, str]) -> bytes:
    pairs = "".join(f"{key}\0{value}\0" for key, value in arguments.items())
    return f"1\0{subject}\0{event}\0{pairs}\0".encode()
