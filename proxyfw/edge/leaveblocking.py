"""Leaving through another proxy, for a process that does nothing else meanwhile; see leave.py."""

import socket
from collections.abc import Callable

from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError, ProxyType
from python_socks.sync import Proxy

from proxyfw.core.address import IPAddress
from proxyfw.core.hostname import Hostname
from proxyfw.core.tunnel import MAX_HEAD, Connect, broken_off, not_connected, of_proxy, of_socks, too_late
from proxyfw.core.upstreamproxy import Scheme, UpstreamProxy

_SOCKS = {Scheme.SOCKS5: ProxyType.SOCKS5, Scheme.SOCKS4A: ProxyType.SOCKS4}


def leave_blocking(
    proxy: UpstreamProxy, host: Hostname | IPAddress, port: int, left: Callable[[], float]
) -> socket.socket:
    """A connection to the host, which is looked up at the far end. `left()`: the seconds that there are still, for each
    thing that is awaited; it raises TimeoutError. Raises LeaveError.
    """
    if proxy.scheme is Scheme.SOCKS4A and not isinstance(host, str) and host.version == 6:
        raise of_proxy("SOCKS 4 takes no IPv6 address")
    try:
        return (_by_http if proxy.scheme is Scheme.HTTP else _by_socks)(proxy, host, port, left)
    except TimeoutError:
        raise too_late() from None


def _by_socks(proxy: UpstreamProxy, host: Hostname | IPAddress, port: int, left: Callable[[], float]) -> socket.socket:
    login = (proxy.user or None, proxy.password or None)
    way = Proxy(_SOCKS[proxy.scheme], str(proxy.address), proxy.port, *login, rdns=True)
    try:
        return way.connect(str(host), port, timeout=left())
    except ProxyTimeoutError:
        raise too_late() from None
    except ProxyConnectionError as error:
        raise not_connected(error) from None
    except ProxyError as error:
        raise of_socks(proxy.scheme, error.error_code, str(error)) from None
    except TimeoutError:
        raise
    except OSError as error:
        raise broken_off(error) from None
    except ValueError:  # of what is no text, in an answer
        raise of_proxy("what it answers is not SOCKS") from None


def _by_http(proxy: UpstreamProxy, host: Hostname | IPAddress, port: int, left: Callable[[], float]) -> socket.socket:
    sock = socket.socket(socket.AF_INET if proxy.address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        try:
            sock.settimeout(left())
            sock.connect((str(proxy.address), proxy.port))
        except TimeoutError:
            raise
        except OSError as error:
            raise not_connected(error) from None
        try:
            _ask(Connect(proxy, host, port), sock, left)
        except TimeoutError:
            raise
        except OSError as error:
            raise broken_off(error) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _ask(asked: Connect, sock: socket.socket, left: Callable[[], float]) -> None:
    sock.sendall(asked.request)
    while not asked.stands:
        sock.settimeout(left())
        # No more is taken than is the proxy's: what follows is the target's.
        sock.recv(asked.take(sock.recv(MAX_HEAD, socket.MSG_PEEK)))
