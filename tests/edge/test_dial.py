"""Dialling several addresses: refused, silent, the netvm's own. On loopback 127.0.0.2 is reached from 127.0.0.1."""

import asyncio
import errno
import os
import socket
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

import pytest

from proxyfw.edge import dial as module
from proxyfw.edge.dial import dial
from proxyfw.edge.poller import Poller, Stream

A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
OWN = "127.0.0.1"


def run(coroutine: Coroutine[None, None, None]) -> None:
    """Runs a test, which ends within ten seconds and leaves no descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(asyncio.wait_for(coroutine, 10))
    assert len(os.listdir("/proc/self/fd")) == before


@contextmanager
def polling(poller: Poller | None = None) -> Iterator[Poller]:
    poller = poller or Poller()
    poller.start(asyncio.get_running_loop())
    yield poller
    poller.stop()


class Net:
    """One port, on which some addresses accept, some are silent, and the rest refuse."""

    def __init__(self, *accepting: str, silent: tuple[str, ...] = ()) -> None:
        self.listeners: dict[str, socket.socket] = {}
        self.port = 0
        self._stack = ExitStack()
        for host in (*accepting, *silent):
            listener = self._stack.enter_context(socket.socket())
            listener.bind((host, self.port))
            self.port = listener.getsockname()[1]
            listener.listen(0 if host in silent else 8)
            self.listeners[host] = listener
        for host in silent:
            # A queue of one is full now: what comes next is dropped, neither accepted nor refused.
            self._stack.enter_context(socket.create_connection((host, self.port)))

    def accept(self, host: str) -> socket.socket:
        self.listeners[host].settimeout(5)
        return self._stack.enter_context(self.listeners[host].accept()[0])

    def __enter__(self) -> "Net":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def arm(seconds: float, stream: Stream) -> None:
    asyncio.get_running_loop().call_later(seconds, stream.interrupt, TimeoutError(errno.ETIMEDOUT, "late"))


def test_a_socket_that_is_not_connected_yet_is_not_taken_for_hung_up() -> None:
    async def connects() -> None:
        with Net(A) as net, polling() as poller:
            stream = Stream(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK), poller)
            poller._ready()  # the kernel says HUP of it, as nobody is at the other end
            await stream.connect(A, net.port)
            stream.close()

    run(connects())


async def reach(net: Net, poller: Poller, *hosts: str) -> str:
    """The address that was reached, by the connection that was made and that really carries bytes."""
    stream = await dial(tuple(map(ip_address, hosts)), net.port, poller, arm)
    try:
        host, port = stream.sock.getpeername()
        assert (stream.peer, port) == (host, net.port)
        await stream.send(b"x")
        assert net.accept(host).recv(1) == b"x"
        return str(host)
    finally:
        stream.close()


@pytest.mark.parametrize(
    ("accepting", "hosts", "reached"),
    [
        pytest.param((A,), (A,), A, id="the only address"),
        pytest.param((A, B), (A, B), A, id="the first of two"),
        pytest.param((A, B), (B, A), B, id="the order given is kept"),
        pytest.param((B,), (A, B), B, id="the first refuses"),
        pytest.param((C,), (A, B, C), C, id="the first two refuse"),
        pytest.param((A, OWN), (OWN, A), A, id="the first is this netvm's own, and is passed over"),
        pytest.param((A, OWN), (B, OWN, A), A, id="the second is this netvm's own"),
    ],
)
def test_the_first_address_that_accepts(accepting: tuple[str, ...], hosts: tuple[str, ...], reached: str) -> None:
    async def test() -> None:
        with Net(*accepting) as net, polling() as poller:
            assert await reach(net, poller, *hosts) == reached

    run(test())


@pytest.mark.parametrize(
    ("hosts", "error"),
    [
        pytest.param((A,), errno.ECONNREFUSED, id="the only address refuses"),
        pytest.param((A, B, C), errno.ECONNREFUSED, id="all refuse"),
        pytest.param((OWN,), errno.EADDRNOTAVAIL, id="the only address is this netvm's own"),
        pytest.param(("::1",), errno.EADDRNOTAVAIL, id="so is its IPv6 one"),
        pytest.param((A, OWN), errno.EADDRNOTAVAIL, id="the last failure is told"),
        pytest.param((OWN, A), errno.ECONNREFUSED, id="the last failure is told, the other way round"),
        pytest.param(("255.255.255.255",), errno.EACCES, id="what the kernel itself does not allow"),
    ],
)
def test_no_address_accepts(hosts: tuple[str, ...], error: int) -> None:
    async def test() -> None:
        with Net(OWN) as net, polling() as poller, pytest.raises(OSError, match=rf"^\[Errno {error}\]"):
            await dial(tuple(map(ip_address, hosts)), net.port, poller, arm)

    run(test())


def test_the_next_address_is_tried_beside_one_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPT_DELAY", 0.01)

    async def test() -> None:
        with Net(C, silent=(A, B)) as net, polling() as poller:
            assert await reach(net, poller, A, B, C) == C

    run(test())


def test_a_silent_address_is_not_given_up_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPT_DELAY", 0.01)

    async def test() -> None:
        with Net(silent=(A,)) as net, polling() as poller:
            reaching = asyncio.create_task(dial((ip_address(A), ip_address(B)), net.port, poller, arm))
            asyncio.get_running_loop().call_later(0.1, net.accept, A)  # B has refused by then; A has room again
            stream = await reaching  # when the kernel sends its SYN again, a second after the first
            assert stream.sock.getpeername()[0] == A
            stream.close()

    run(test())


@pytest.mark.parametrize("hosts", [pytest.param((A,), id="one address"), pytest.param((A, B), id="two addresses")])
def test_silence_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...]) -> None:
    monkeypatch.setattr(module, "ATTEMPT_DELAY", 0.01)
    monkeypatch.setattr(module, "DEADLINE", 0.03)

    async def test() -> None:
        with Net(silent=(A, B)) as net, polling() as poller, pytest.raises(TimeoutError):
            await dial(tuple(map(ip_address, hosts)), net.port, poller, arm)

    run(test())


@pytest.mark.parametrize("hosts", [pytest.param((A,), id="one address"), pytest.param((A, B), id="two addresses")])
def test_cancelled_it_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...]) -> None:
    monkeypatch.setattr(module, "ATTEMPT_DELAY", 0.0)

    async def test() -> None:
        with Net(silent=(A, B)) as net, polling() as poller:
            dialling = asyncio.create_task(dial(tuple(map(ip_address, hosts)), net.port, poller, arm))
            while len(poller._callbacks) < len(hosts):
                await asyncio.sleep(0)
            dialling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialling
            while poller._callbacks:
                await asyncio.sleep(0)

    run(test())


def test_of_two_connections_that_stand_at_once_one_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPT_DELAY", 0.0)

    class Late(Poller):
        """Tells of nothing before it may, and then of everything at once."""

        may = False

        def _ready(self) -> None:
            if self.may:
                super()._ready()

    async def test() -> None:
        with Net(A, B) as net, polling(Late()) as poller:
            hosts = (ip_address(OWN), ip_address(A), ip_address(B))
            dialling = asyncio.create_task(dial(hosts, net.port, poller, arm))
            accepted: list[socket.socket] = []
            for host in (A, B):
                while len(poller._callbacks) < len(accepted) + 1:
                    await asyncio.sleep(0)
                await asyncio.sleep(0)  # the task that connects has its turn
                accepted.append(net.accept(host))
            poller.may = True  # type: ignore[attr-defined]
            stream = await dialling
            reached = stream.sock.getpeername()[0]
            stream.close()
            assert reached in (A, B)
            for peer in accepted:
                peer.settimeout(5)
                assert peer.recv(1) == b""

    run(test())
