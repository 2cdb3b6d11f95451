"""Listening sockets that the packet layer hands flows to: TPROXY (Linux Documentation/networking/tproxy.rst).

TPROXY rather than REDIRECT: the accepted socket's own address is the destination that the client asked for, so it needs
neither conntrack nor NAT to tell, works for IPv6 on an interface without a routed address, and when nobody listens the
packet simply goes on to the next rule, which rejects it. Bound to loopback: the port cannot be reached directly.
"""

import socket

from proxyfw.core.address import IPAddress

_IP_TRANSPARENT = 19  # linux/in.h
_IPV6_TRANSPARENT = 75  # linux/in6.h
BACKLOG = 4096


def listen(family: socket.AddressFamily, port: int) -> socket.socket:
    """A non-blocking transparent listener on this family's loopback address. Needs CAP_NET_ADMIN. Raises OSError."""
    return _listen(family, "::1" if family == socket.AF_INET6 else "127.0.0.1", port, transparent=True)


def listen_at(address: IPAddress, port: int) -> socket.socket:
    """A non-blocking listener as any other. Raises OSError."""
    return _listen(socket.AF_INET if address.version == 4 else socket.AF_INET6, str(address), port, transparent=False)


def _listen(family: socket.AddressFamily, address: str, port: int, transparent: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by every accepted socket, which saves the call there.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if transparent and family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        elif transparent:
            sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
