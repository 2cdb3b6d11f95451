"""Leaving through another proxy: a connection that it makes for us, and from whose first byte on all is the target's.

SOCKS is spoken by python-socks, which takes its replies byte for byte. HTTP CONNECT is read here: there the library
takes whatever has come as one answer, and with it the first bytes of a target that speaks first.
"""

import asyncio
import socket

from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError, ProxyType
from python_socks.async_.asyncio import Proxy

from proxyfw.core.address import IPAddress
from proxyfw.core.hostname import Hostname
from proxyfw.core.tunnel import MAX_HEAD, Connect, broken_off, not_connected, of_proxy, of_socks, too_late
from proxyfw.core.upstreamproxy import Scheme, UpstreamProxy
from proxyfw.edge.poller import Poller, Stream

DEADLINE = 15.0
"""Seconds for all of it, the proxy and the target behind it: more than to dial, as Tor may build a circuit first, and
less than most clients wait."""

_SOCKS = {Scheme.SOCKS5: ProxyType.SOCKS5, Scheme.SOCKS4A: ProxyType.SOCKS4}


async def leave(proxy: UpstreamProxy, host: Hostname | IPAddress, port: int, poller: Poller) -> Stream:
    """A connection to the host, which is looked up at the far end. Raises LeaveError."""
    try:
        async with asyncio.timeout(DEADLINE):
            stream = await (_by_http if proxy.scheme is Scheme.HTTP else _by_socks)(proxy, host, port, poller)
    except TimeoutError:
        raise too_late() from None
    stream.peer = ""  # what was reached, the far end knows
    return stream


async def _by_socks(proxy: UpstreamProxy, host: Hostname | IPAddress, port: int, poller: Poller) -> Stream:
    if proxy.scheme is Scheme.SOCKS4A and not isinstance(host, str) and host.version == 6:
        raise of_proxy("SOCKS 4 takes no IPv6 address")
    login = (proxy.user or None, proxy.password or None)
    way = Proxy(_SOCKS[proxy.scheme], str(proxy.address), proxy.port, *login, rdns=True)
    try:
        sock = await way.connect(str(host), port, timeout=2 * DEADLINE)  # ours comes first
    except ProxyConnectionError as error:
        raise not_connected(error) from None
    except ProxyError as error:
        raise of_socks(proxy.scheme, error.error_code, str(error)) from None
    except ProxyTimeoutError:
        raise too_late() from None
    except OSError as error:
        raise broken_off(error) from None
    except ValueError:  # of what is no text, in an answer
        raise of_proxy("what it answers is not SOCKS") from None
    return _stream(sock, poller)


async def _by_http(proxy: UpstreamProxy, host: Hostname | IPAddress, port: int, poller: Poller) -> Stream:
    family = socket.AF_INET if proxy.address.version == 4 else socket.AF_INET6
    try:
        stream = _stream(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK), poller)
    except OSError as error:
        raise not_connected(error) from None
    try:
        try:
            await stream.connect(str(proxy.address), proxy.port)
        except OSError as error:
            raise not_connected(error) from None
        asked = Connect(proxy, host, port)
        try:
            await stream.send(asked.request)
            while not asked.stands:
                await _read_on(asked, stream)
        except OSError as error:
            raise broken_off(error) from None
    except BaseException:
        stream.close()
        raise
    return stream


async def _read_on(asked: Connect, stream: Stream) -> None:
    """One byte is awaited; of what has come with it, no more is taken than is the proxy's."""
    asked.take(await stream.recv(1))
    try:
        there = b"" if asked.stands else stream.sock.recv(MAX_HEAD, socket.MSG_PEEK)
    except BlockingIOError:
        return
    if there:
        stream.sock.recv(asked.take(there))


def _stream(sock: socket.socket, poller: Poller) -> Stream:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Stream(sock, poller)
