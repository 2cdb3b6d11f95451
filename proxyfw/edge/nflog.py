"""What the packet layer tells of packets: NFLOG over netlink (linux/netfilter/nfnetlink_log.h).

No maintained Python binding of libnetfilter_log exists; what is needed of the protocol is one request and one message.
"""

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from proxyfw.core.address import IPAddress
from proxyfw.core.netlink import attribute, attributes, message, messages

_NETLINK_NETFILTER = 12
_NFNL_SUBSYS_ULOG = 4
_MSG_PACKET, _MSG_CONFIG = 0, 1
_CFG_CMD, _CFG_MODE, _CFG_TIMEOUT = 1, 2, 4
_CMD_BIND = 1
_COPY_PACKET = 2
_ATTR_PAYLOAD, _ATTR_PREFIX = 9, 10
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_NLMSG_ERROR = 2
_SNAP = 128  # bytes of each packet: its headers
_GATHER = 3  # hundredths of a second that the kernel collects packets for one message; its default is a whole second
_BUFFER = 1 << 20
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
_IPV6_EXTENSIONS = frozenset({0, 43, 60})  # hop-by-hop, routing, destination options: RFC 8200 section 4


@dataclass(frozen=True, slots=True)
class Reported:
    """One packet, refused or let through. `port` is 0, `icmp_type` None, where it has none or is too broken to tell."""

    prefix: str
    source: IPAddress
    destination: IPAddress
    protocol: str
    port: int
    icmp_type: int | None = None


class NflogError(Exception):
    """The kernel refused the group: another process listens to it, or the right to is missing."""


class Nflog:
    """Listens to one NFLOG group. `lost` counts the times that the kernel had to drop reports."""

    def __init__(self, group: int) -> None:
        self._group = group
        self.lost = 0

    def start(self) -> None:
        """Binds the group. Needs CAP_NET_ADMIN. Raises NflogError."""
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._sock.bind((0, 0))
        self._configure(attribute(_CFG_CMD, bytes([_CMD_BIND])))
        self._configure(attribute(_CFG_MODE, struct.pack("!IBx", _SNAP, _COPY_PACKET)))
        self._configure(attribute(_CFG_TIMEOUT, struct.pack("!I", _GATHER)))

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._sock.fileno()

    def stop(self) -> None:
        """Closes the socket, and with it the group."""
        self._sock.close()

    def read(self, limit: int = 256) -> Iterator[Reported]:
        """The packets reported since the last call, at most so many messages."""
        for _ in range(limit):
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1
                continue
            for kind, body in messages(data):
                if kind == _NFNL_SUBSYS_ULOG << 8 | _MSG_PACKET:
                    refused = parse(body)
                    if refused is not None:
                        yield refused

    def _configure(self, attribute: bytes) -> None:
        body = struct.pack("!BBH", socket.AF_UNSPEC, 0, self._group) + attribute
        self._sock.send(message(_NFNL_SUBSYS_ULOG << 8 | _MSG_CONFIG, _NLM_F_REQUEST | _NLM_F_ACK, body))
        # The kernel answers a request while it is being sent.
        for kind, answer in messages(self._sock.recv(65536)):
            if kind == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", answer)[0]
                if code:
                    raise NflogError(f"NFLOG group {self._group}: {errno.errorcode.get(code, code)}")


def parse(body: bytes) -> Reported | None:
    """The packet that a NFLOG message tells of; None where its IP header is not whole."""
    prefix, payload = "", b""
    for kind, value in attributes(body, 4):
        if kind == _ATTR_PREFIX:
            prefix = value.rstrip(b"\0").decode("ascii", "replace")
        elif kind == _ATTR_PAYLOAD:
            payload = value
    return _packet(prefix, payload)


def _packet(prefix: str, packet: bytes) -> Reported | None:
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        number, transport = packet[9], packet[(packet[0] & 15) * 4 :]
        if int.from_bytes(packet[6:8]) & 0x1FFF:  # not the first fragment: no ports
            transport = b""
        source, destination = packet[12:16], packet[16:20]
    elif version == 6 and len(packet) >= 40:
        number, transport = _skip_extensions(packet[6], packet[40:])
        source, destination = packet[8:24], packet[24:40]
    else:
        return None
    protocol = _PROTOCOLS.get(number, f"ip-{number}")
    port = int.from_bytes(transport[2:4]) if protocol in ("tcp", "udp") and len(transport) >= 4 else 0
    icmp_type = transport[0] if protocol == "icmp" and transport else None
    return Reported(prefix, ipaddress.ip_address(source), ipaddress.ip_address(destination), protocol, port, icmp_type)


def _skip_extensions(number: int, rest: bytes) -> tuple[int, bytes]:
    while number in _IPV6_EXTENSIONS and len(rest) >= 2:
        number, rest = rest[0], rest[(rest[1] + 1) * 8 :]
    return number, rest
