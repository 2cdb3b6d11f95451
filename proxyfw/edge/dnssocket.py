"""UDP sockets for queries that the packet layer hands over, whatever address they were sent to (TPROXY).

The answer must come from the very address that was asked, which is not ours: a transparent socket may name it for each
datagram (ip(7) and ipv6(7), PKTINFO). The port is the socket's own, and so it is bound to 53.
"""

import socket
import struct
from typing import NamedTuple

from proxyfw.core.qubes_rules import DNS_PORT

_IP_TRANSPARENT = 19  # linux/in.h
_IPV6_TRANSPARENT = 75  # linux/in6.h
_IP_PKTINFO = 8
_PKTINFO4 = struct.Struct("=i4s4s")  # interface, the address to send from, the destination of the packet
_PKTINFO6 = struct.Struct("=16si")  # the destination of the packet or the address to send from, interface
_MAX_DATAGRAM = 4096
_BUFFER = 1 << 20

PeerAddress = tuple[str, int] | tuple[str, int, int, int]


class Datagram(NamedTuple):
    """One query: its bytes, who sent it, and the address that it was sent to, packed."""

    data: bytes
    peer: PeerAddress
    destination: bytes


class DnsSocket:
    """A non-blocking socket of one family."""

    def __init__(self, family: socket.AddressFamily) -> None:
        self._family = family

    def open(self, address: str) -> None:
        """Binds it, to an address of its own. Needs CAP_NET_ADMIN and CAP_NET_BIND_SERVICE. Raises OSError."""
        self._sock = sock = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            if self._family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
                sock.setsockopt(socket.SOL_IP, _IP_PKTINFO, 1)
            sock.bind((address, DNS_PORT))
        except OSError:
            sock.close()
            raise

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._sock.fileno()

    def close(self) -> None:
        """Closes it."""
        self._sock.close()

    def receive(self) -> Datagram | None:
        """The next query; None where none waits. Raises OSError for one that is lost."""
        try:
            data, ancillary, _, peer = self._sock.recvmsg(_MAX_DATAGRAM, 64)
        except BlockingIOError:
            return None
        for level, kind, value in ancillary:
            if level == socket.SOL_IP and kind == _IP_PKTINFO:
                return Datagram(data, peer, _PKTINFO4.unpack(value)[2])
            if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                return Datagram(data, peer, _PKTINFO6.unpack(value)[0])
        raise OSError("a datagram without its destination")

    def send(self, reply: bytes, to: Datagram) -> None:
        """Answers a query from the address that it was sent to. Raises OSError when that cannot be done now."""
        if self._family == socket.AF_INET6:
            note = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(to.destination, 0))
        else:
            note = (socket.SOL_IP, _IP_PKTINFO, _PKTINFO4.pack(0, to.destination, bytes(4)))
        self._sock.sendmsg([reply], [note], 0, to.peer)
