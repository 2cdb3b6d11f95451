"""Leaving through another proxy: hand-made ones that say anything in any pieces, and pproxy as an independent peer."""

import asyncio
import errno
import importlib.util
import os
import socket
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import ip_address

import pytest

from proxyfw.core.address import IPAddress
from proxyfw.core.hostname import Hostname
from proxyfw.core.tunnel import MAX_HEAD, LeaveError
from proxyfw.core.upstreamproxy import Scheme, UpstreamProxy
from proxyfw.core.verdict import Reason
from proxyfw.edge import leave as module
from proxyfw.edge.leave import leave
from proxyfw.edge.poller import Poller

LOCAL = ip_address("127.0.0.1")
FAR, PORT = Hostname("far.example"), 22
BANNER = b"SSH-2.0-far\r\n"
SOCKS5, SOCKS4A, HTTP = Scheme.SOCKS5, Scheme.SOCKS4A, Scheme.HTTP
UPSTREAM, UNREACHABLE = Reason.UPSTREAM_PROXY, Reason.UNREACHABLE

GREETING = b"\5\1\0"
ASKED5 = b"\5\1\0\3\x0bfar.example\0\x16"
ASKED4 = b"\4\1\0\x16\0\0\0\1\0far.example\0"
ASKED_HTTP = b"CONNECT far.example:22 HTTP/1.1\r\nHost: far.example:22\r\n\r\n"
STANDS5 = b"\5\0\0\1\0\0\0\0\0\0"
STANDS4 = b"\0\x5a\0\0\0\0\0\0"
STANDS_HTTP = b"HTTP/1.1 200 Connection established\r\n\r\n"

Steps = Sequence[bytes]
"""What a proxy awaits, word for word, and what it says then, in turns."""

WHOLE5 = (GREETING, b"\5\0", ASKED5)
"""What comes before the reply of a SOCKS 5 proxy."""


def run(coroutine: Coroutine[None, None, None]) -> None:
    """Runs a test, which ends within twenty seconds and leaves no descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(asyncio.wait_for(coroutine, 20))
    assert len(os.listdir("/proc/self/fd")) == before


@contextmanager
def polling() -> Iterator[Poller]:
    poller = Poller()
    poller.start(asyncio.get_running_loop())
    yield poller
    assert poller._callbacks == {}
    poller.stop()


class Far:
    """A proxy that awaits and says what it was told. `left`: it was left by whoever came."""

    def __init__(self, scheme: Scheme, steps: Steps, bytewise: bool = False, then: str = "") -> None:
        self._scheme, self._steps, self._bytewise, self._then = scheme, steps, bytewise, then
        self.wrong = ""
        self.done, self.left = asyncio.Event(), asyncio.Event()

    async def __aenter__(self) -> "Far":
        self._server = await asyncio.start_server(self._serve, str(LOCAL), 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()
        assert self.wrong == ""

    def proxy(self, user: str = "", password: str = "") -> UpstreamProxy:
        return UpstreamProxy(self._scheme, LOCAL, self.port, user, password)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            for place, words in enumerate(self._steps):
                if place % 2 == 0:
                    heard = await reader.readexactly(len(words))
                    self.wrong = self.wrong or ("" if heard == words else f"{heard!r} and not {words!r}")
                else:
                    await self._say(writer, words)
            self.done.set()
            if self._then == "closes":
                writer.close()
            elif self._then == "resets":
                writer.transport.abort()
            await reader.read()
        self.left.set()
        writer.close()

    async def _say(self, writer: asyncio.StreamWriter, words: bytes) -> None:
        for piece in [words[at : at + 1] for at in range(len(words))] if self._bytewise else [words]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
            await asyncio.sleep(0)


@pytest.fixture
def _no_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks a name up here gets an error."""

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"a look-up of {arguments}")

    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        monkeypatch.setattr(socket, name, refuse)


LOGIN = b"Proxy-Authorization: Basic " + b64encode(b"me:p@ss") + b"\r\n"
STANDS = [
    pytest.param(SOCKS5, ("", ""), FAR, (*WHOLE5, STANDS5), id="SOCKS 5"),
    pytest.param(SOCKS5, ("", ""), FAR, (*WHOLE5, b"\5\0\0\3\3abc\0\0"), id="SOCKS 5 that tells a name"),
    pytest.param(SOCKS5, ("", ""), FAR, (*WHOLE5, b"\5\0\0\4" + bytes(18)), id="SOCKS 5 that tells an IPv6 address"),
    pytest.param(SOCKS5, ("me", "p@ss"), FAR,
                 (b"\5\2\0\2", b"\5\2", b"\1\2me\4p@ss", b"\1\0", ASKED5, STANDS5), id="SOCKS 5 with a password"),
    pytest.param(SOCKS5, ("me", "p@ss"), FAR,
                 (b"\5\2\0\2", b"\5\0", ASKED5, STANDS5), id="SOCKS 5 that does not want the password"),
    pytest.param(SOCKS5, ("", ""), ip_address("192.0.2.7"),
                 (GREETING, b"\5\0", b"\5\1\0\1\xc0\0\2\7\0\x16", STANDS5), id="SOCKS 5, an IPv4 address"),
    pytest.param(SOCKS5, ("", ""), ip_address("2001:db8::7"),
                 (GREETING, b"\5\0", b"\5\1\0\4" + ip_address("2001:db8::7").packed + b"\0\x16", STANDS5),
                 id="SOCKS 5, an IPv6 address"),
    pytest.param(SOCKS4A, ("", ""), FAR, (ASKED4, STANDS4), id="SOCKS 4a"),
    pytest.param(SOCKS4A, ("me", ""), FAR,
                 (b"\4\1\0\x16\0\0\0\1me\0far.example\0", STANDS4), id="SOCKS 4a with a user"),
    pytest.param(SOCKS4A, ("", ""), ip_address("192.0.2.7"),
                 (b"\4\1\0\x16\xc0\0\2\7\0", STANDS4), id="SOCKS 4a, an IPv4 address"),
    pytest.param(HTTP, ("", ""), FAR, (ASKED_HTTP, STANDS_HTTP), id="HTTP"),
    pytest.param(HTTP, ("", ""), FAR, (ASKED_HTTP, b"HTTP/1.0 204\n\n"), id="HTTP 1.0, bare line ends, no phrase"),
    pytest.param(HTTP, ("", ""), FAR, (ASKED_HTTP, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b\r\n\r\n"),
                 id="HTTP with a length that does not count"),
    pytest.param(HTTP, ("", ""), FAR, (ASKED_HTTP, b"HTTP/1.1 102 Wait\r\n\r\n" + STANDS_HTTP),
                 id="HTTP with an interim answer"),
    pytest.param(HTTP, ("me", "p@ss"), FAR, (ASKED_HTTP[:-2] + LOGIN + b"\r\n", STANDS_HTTP),
                 id="HTTP with a password"),
    pytest.param(HTTP, ("", ""), ip_address("2001:db8::7"),
                 (ASKED_HTTP.replace(b"far.example", b"[2001:db8::7]"), STANDS_HTTP), id="HTTP, an IPv6 address"),
]  # fmt: skip


@pytest.mark.usefixtures("_no_look_up")
@pytest.mark.parametrize("after", [pytest.param(b"", id="alone"), pytest.param(BANNER, id="with the target's words")])
@pytest.mark.parametrize("bytewise", [pytest.param(False, id="whole"), pytest.param(True, id="byte by byte")])
@pytest.mark.parametrize(("scheme", "login", "host", "steps"), STANDS)
def test_a_connection_that_stands(
    scheme: Scheme, login: tuple[str, str], host: Hostname | IPAddress, steps: Steps, bytewise: bool, after: bytes
) -> None:
    async def test() -> None:
        words = (*steps[:-1], steps[-1] + after)
        async with Far(scheme, words, bytewise) as far:
            with polling() as poller:
                stream = await leave(far.proxy(*login), host, PORT, poller)
                assert stream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert not stream.sock.getblocking()
                heard = b""
                while len(heard) < len(after):
                    heard += await stream.recv(100)
                assert heard == after
                await stream.send(b"x")
                stream.close()
            await far.left.wait()

    run(test())


def http(status: str, headers: bytes = b"") -> tuple[bytes, bytes]:
    return ASKED_HTTP, b"HTTP/1.1 " + status.encode() + b"\r\n" + headers + b"Content-Length: 2\r\n\r\nno"


SAYS = "the upstream proxy says: "
IT = "the upstream proxy: "
FAILS = [
    *(
        pytest.param(SOCKS5, (*WHOLE5, bytes((5, code, 0, 1)) + bytes(6)), (reason, SAYS + detail, error),
                     id=f"SOCKS 5, reply {code}")
        for code, reason, detail, error in (
            (1, UPSTREAM, "general failure", 0),
            (2, UPSTREAM, "not allowed by its rules", 0),
            (3, UNREACHABLE, "network unreachable", errno.ENETUNREACH),
            (4, UNREACHABLE, "host unreachable", errno.EHOSTUNREACH),
            (5, UNREACHABLE, "connection refused", errno.ECONNREFUSED),
            (6, UNREACHABLE, "no answer in time (TTL expired)", errno.ETIMEDOUT),
            (7, UPSTREAM, "it makes no connections", 0),
            (8, UPSTREAM, "it takes no address of this kind", 0),
        )
    ),
    *(
        pytest.param(SOCKS4A, (ASKED4, bytes((0, code)) + bytes(6)), (UPSTREAM, SAYS + detail, 0),
                     id=f"SOCKS 4a, reply {code}")
        for code, detail in (
            (91, "refused, or not reached: SOCKS 4 does not tell which"),
            (92, "it asks for identd, which is not here"),
            (93, "it does not take this user"),
        )
    ),
    *(
        pytest.param(HTTP, http(status, headers), (reason, f"{SAYS}{detail} (HTTP status {status})", error),
                     id=f"HTTP {status} {headers.decode().strip()}")
        for status, headers, reason, detail, error in (
            ("403", b"", UPSTREAM, "not allowed by its rules", 0),
            ("407", b"", UPSTREAM, "it wants another user and password", 0),
            ("404", b"", UPSTREAM, "refused", 0),
            ("302", b"Location: http://b.example/\r\n", UPSTREAM, "refused", 0),
            ("500", b"", UPSTREAM, "refused", 0),
            ("502", b"", UNREACHABLE, "not reached", errno.EHOSTUNREACH),
            ("503", b"", UNREACHABLE, "not reached", errno.EHOSTUNREACH),
            ("504", b"", UNREACHABLE, "no answer in time", errno.ETIMEDOUT),
            ("502", b"Proxy-Status: a; error=dns_error\r\n", Reason.UNRESOLVABLE, "the name does not resolve", 0),
            ("503", b"X-Squid-Error: ERR_DNS_FAIL 0\r\n", Reason.UNRESOLVABLE, "the name does not resolve", 0),
            ("403", b"Proxy-Status: a; error=dns_error\r\n", UPSTREAM, "not allowed by its rules", 0),
        )
    ),
    pytest.param(SOCKS5, (GREETING, b"\5\xff"),
                 (UPSTREAM, f"{IT}No acceptable authentication methods were offered", 0), id="SOCKS 5, no way in"),
    pytest.param(SOCKS5, (GREETING, b"\5\2"), (UPSTREAM, f"{IT}Unexpected SOCKS authentication method: 2", 0),
                 id="SOCKS 5 that wants a password"),
    pytest.param(SOCKS5, (*WHOLE5, b"\5\xf0\0\1" + bytes(6)), (UPSTREAM, f"{IT}Invalid reply code: 0XF0", 0),
                 id="SOCKS 5, a reply of Tor's own"),
    pytest.param(SOCKS5, (GREETING, b"HTTP/1.1 400 Bad\r\n\r\n"),
                 (UPSTREAM, f"{IT}Unexpected SOCKS version number: 72", 0), id="SOCKS 5, and it is HTTP"),
    pytest.param(SOCKS5, (*WHOLE5, b"\5\0\0\3\2\xff\xfe\0\0"), (UPSTREAM, f"{IT}what it answers is not SOCKS", 0),
                 id="SOCKS 5, a bound name that is no text"),
    pytest.param(SOCKS5, (*WHOLE5, b"\5\0\0\7" + bytes(6)), (UPSTREAM, f"{IT}Invalid address type: 0X7", 0),
                 id="SOCKS 5, an address of no kind"),
    pytest.param(SOCKS4A, (ASKED4, STANDS5), (UPSTREAM, f"{IT}Unexpected reply version: 0X5", 0),
                 id="SOCKS 4a, and it is SOCKS 5"),
    pytest.param(HTTP, (ASKED_HTTP, b"\5\0\r\n\r\n"), (UPSTREAM, f"{IT}what it answers is not HTTP", 0),
                 id="HTTP, and it is not"),
    pytest.param(HTTP, (ASKED_HTTP, b"\n\r\n" + STANDS_HTTP), (UPSTREAM, f"{IT}what it answers is not HTTP", 0),
                 id="HTTP, an empty line first"),
    pytest.param(HTTP, (ASKED_HTTP, b"HTTP/1.1 101 Go\r\nUpgrade: x\r\n\r\n"),
                 (UPSTREAM, f"{IT}what it answers is not HTTP", 0), id="HTTP, another protocol"),
    pytest.param(HTTP, (ASKED_HTTP, b"HTTP/1.1 102 Wait\r\n\r\n" * 1000),
                 (UPSTREAM, f"{IT}an answer of more than {MAX_HEAD >> 10} KiB", 0), id="HTTP, it never ends"),
    pytest.param(HTTP, (ASKED_HTTP, b"HTTP/1.1 200 OK\r\nA: " + b"a" * MAX_HEAD + b"\r\n\r\n"),
                 (UPSTREAM, f"{IT}an answer of more than {MAX_HEAD >> 10} KiB", 0), id="HTTP, a long head"),
]  # fmt: skip


@pytest.mark.usefixtures("_no_look_up")
@pytest.mark.parametrize("bytewise", [pytest.param(False, id="whole"), pytest.param(True, id="byte by byte")])
@pytest.mark.parametrize(("scheme", "steps", "told"), FAILS)
def test_a_connection_that_does_not_come(
    scheme: Scheme, steps: Steps, told: tuple[Reason, str, int], bytewise: bool
) -> None:
    async def test() -> None:
        async with Far(scheme, steps, bytewise) as far:
            with polling() as poller, pytest.raises(LeaveError) as failed:
                await leave(far.proxy(), FAR, PORT, poller)
            assert (failed.value.reason, failed.value.detail, failed.value.error) == told
            await far.left.wait()

    run(test())


CUTS = [
    *((SOCKS5, (GREETING, b"\5\0", ASKED5, STANDS5[:cut])) for cut in range(len(STANDS5))),
    *((SOCKS5, (GREETING, b"\5\0"[:cut])) for cut in range(2)),
    *((SOCKS4A, (ASKED4, STANDS4[:cut])) for cut in range(len(STANDS4))),
    *((HTTP, (ASKED_HTTP, STANDS_HTTP[:cut])) for cut in range(len(STANDS_HTTP))),
]


@pytest.mark.parametrize("then", ["closes", "resets"])
def test_an_answer_that_is_cut_off_anywhere(then: str) -> None:
    async def test() -> None:
        for scheme, steps in CUTS:
            async with Far(scheme, steps, then=then) as far:
                with polling() as poller, pytest.raises(LeaveError) as failed:
                    await leave(far.proxy(), FAR, PORT, poller)
                assert failed.value.reason is UPSTREAM, steps
                assert failed.value.detail in (
                    f"{IT}it broke off: connection reset by peer",
                    f"{IT}it closed the connection without an answer",
                    f"{IT}Connection closed unexpectedly",
                ), steps

    run(test())


@pytest.mark.parametrize("scheme", Scheme)
def test_nobody_is_there(scheme: Scheme) -> None:
    async def test() -> None:
        with socket.socket() as taken:
            taken.bind((str(LOCAL), 0))
            proxy = UpstreamProxy(scheme, LOCAL, taken.getsockname()[1])
            with polling() as poller, pytest.raises(LeaveError) as failed:
                await leave(proxy, FAR, PORT, poller)
        assert (failed.value.reason, failed.value.error) == (UPSTREAM, 0)
        assert failed.value.detail == f"{IT}not reached: connection refused"

    run(test())


@pytest.mark.parametrize(
    ("scheme", "steps"),
    [
        pytest.param(SOCKS5, (), id="SOCKS 5, from the start"),
        pytest.param(SOCKS5, WHOLE5, id="SOCKS 5, after the request"),
        pytest.param(SOCKS5, (*WHOLE5, STANDS5[:-1]), id="SOCKS 5, before the last byte"),
        pytest.param(SOCKS4A, (ASKED4, STANDS4[:-1]), id="SOCKS 4a, before the last byte"),
        pytest.param(HTTP, (), id="HTTP, from the start"),
        pytest.param(HTTP, (ASKED_HTTP, STANDS_HTTP[:-1]), id="HTTP, before the last byte"),
    ],
)
def test_silence_ends_at_the_deadline(scheme: Scheme, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEADLINE", 0.1)

    async def test() -> None:
        async with Far(scheme, steps) as far:
            with polling() as poller, pytest.raises(LeaveError) as failed:
                await leave(far.proxy(), FAR, PORT, poller)
            assert (failed.value.reason, failed.value.error) == (UPSTREAM, errno.ETIMEDOUT)
            assert failed.value.detail == f"{IT}no answer before the deadline"
            await far.left.wait()

    run(test())


@pytest.mark.parametrize(
    ("scheme", "steps"),
    [
        pytest.param(SOCKS5, (*WHOLE5, STANDS5[:-1]), id="SOCKS 5"),
        pytest.param(SOCKS4A, (ASKED4, STANDS4[:-1]), id="SOCKS 4a"),
        pytest.param(HTTP, (ASKED_HTTP, STANDS_HTTP[:-1]), id="HTTP"),
    ],
)
def test_cancelled_it_leaves_nothing_behind(scheme: Scheme, steps: Steps) -> None:
    async def test() -> None:
        async with Far(scheme, steps) as far:
            with polling() as poller:
                leaving = asyncio.create_task(leave(far.proxy(), FAR, PORT, poller))
                await far.done.wait()
                leaving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await leaving
                await far.left.wait()

    run(test())


def test_socks_4a_is_not_asked_for_an_ipv6_address() -> None:
    async def test() -> None:
        proxy = UpstreamProxy(SOCKS4A, LOCAL, 9)
        with polling() as poller, pytest.raises(LeaveError) as failed:
            await leave(proxy, ip_address("2001:db8::7"), PORT, poller)
        assert (failed.value.reason, failed.value.detail) == (UPSTREAM, f"{IT}SOCKS 4 takes no IPv6 address")

    run(test())


@asynccontextmanager
async def peer(scheme: str, login: str = "") -> AsyncIterator[int]:
    """pproxy, as a program of its own: as a module it changes asyncio's streams. Its port."""
    with socket.socket() as free:
        free.bind((str(LOCAL), 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pproxy", "-l", f"{scheme}://{LOCAL}:{port}{login}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        assert b"Serving on" in await process.stdout.readline()
        yield port
    finally:
        process.kill()
        await process.communicate()


needs_pproxy = pytest.mark.skipif(importlib.util.find_spec("pproxy") is None, reason="pproxy is not installed")


@needs_pproxy
@pytest.mark.parametrize(
    ("scheme", "theirs", "login", "host"),
    [
        pytest.param(SOCKS5, "socks5", "", Hostname("localhost"), id="SOCKS 5"),
        pytest.param(SOCKS5, "socks5", "", LOCAL, id="SOCKS 5, an address"),
        pytest.param(SOCKS5, "socks5", "#me:pass", Hostname("localhost"), id="SOCKS 5 with a password"),
        pytest.param(SOCKS4A, "socks4", "", LOCAL, id="SOCKS 4, an address"),
        pytest.param(HTTP, "http", "", Hostname("localhost"), id="HTTP"),
        pytest.param(HTTP, "http", "#me:pass", Hostname("localhost"), id="HTTP with a password"),
    ],
)
def test_pproxy_makes_the_connection(scheme: Scheme, theirs: str, login: str, host: Hostname | IPAddress) -> None:
    async def test() -> None:
        async with Far(scheme, (b"hello", BANNER)) as target, peer(theirs, login) as port:
            user, _, password = login.removeprefix("#").partition(":")
            with polling() as poller:
                stream = await leave(UpstreamProxy(scheme, LOCAL, port, user, password), host, target.port, poller)
                await stream.send(b"hello")
                assert await stream.recv(100) == BANNER
                stream.close()

    run(test())


@needs_pproxy
def test_pproxy_refuses_another_password() -> None:
    async def test() -> None:
        async with peer("http", "#me:pass") as port:
            with polling() as poller, pytest.raises(LeaveError) as failed:
                await leave(UpstreamProxy(HTTP, LOCAL, port, "me", "s3cret"), FAR, PORT, poller)
        assert failed.value.reason is UPSTREAM
        assert "s3cret" not in failed.value.detail

    run(test())
