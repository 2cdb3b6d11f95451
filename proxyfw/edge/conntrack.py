"""The flows that the kernel tracks, and ending them: ctnetlink (linux/netfilter/nfnetlink_conntrack.h).

Not through the tool `conntrack`: for each entry that it deletes it reads the whole table, 0.3 seconds of 120,000
entries, and a client decides how many there are. The kernel itself finds one at once.
"""

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from proxyfw.core.address import IPAddress
from proxyfw.core.netlink import attribute, attributes, error_code, message, messages, nested

_NETLINK_NETFILTER = 12
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 1, 4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_MSG_NEW, _MSG_GET, _MSG_DELETE = 0x100, 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK is 1
_TUPLE_ORIG, _ID, _ZONE = 1, 12, 18
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_SOURCES, _DESTINATIONS = (1, 3), (2, 4)  # CTA_IP_V4_..., CTA_IP_V6_...
_NUMBER, _PORT = 1, 3
_ICMP_TYPE = {1: 5, 58: 8}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
_PATIENCE = 5.0  # seconds for one answer; the kernel makes it while it is being asked


@dataclass(frozen=True, slots=True)
class Tracked:
    """What a client opened: the addresses and the port as its own packets have them, before NAT, whatever the source
    port. `port` is 0 where there is none, `icmp_type` None where it is not ICMP.
    """

    source: IPAddress
    destination: IPAddress
    protocol: str
    port: int
    icmp_type: int | None


class ConntrackError(Exception):
    """The kernel refused: the right to is missing (CAP_NET_ADMIN), or it has no nf_conntrack_netlink."""


async def flows(sources: Collection[IPAddress]) -> list[Tracked]:
    """What these addresses opened and the kernel tracks, each flow once. Raises ConntrackError."""
    return await asyncio.to_thread(_flows, frozenset(sources))


async def delete(ended: Collection[Tracked]) -> int:
    """Makes the kernel forget all entries of these flows, and tells of how many. What is gone already is no error.

    The next packet, of either side, is judged as the first of a flow, also where a flowtable had taken the flow over
    (since Linux 6.1.32 and 6.4; before, the kernel refuses to delete such an entry). Raises ConntrackError, after it
    has deleted what can be.
    """
    return await asyncio.to_thread(_delete, frozenset(ended))


def _flows(sources: frozenset[IPAddress]) -> list[Tracked]:
    with _Kernel() as kernel:
        return list(dict.fromkeys(flow for flow, _ in kernel.entries(sources)))


def _delete(ended: frozenset[Tracked]) -> int:
    deleted, refused = 0, 0
    with _Kernel() as kernel:
        entries = kernel.entries({flow.source for flow in ended})
        for body in [body for flow, body in entries if flow in ended]:
            code = kernel.delete(body)
            deleted += code == 0
            refused = code if code not in (0, errno.ENOENT) else refused
    if refused:
        raise ConntrackError(f"connection tracking: an entry cannot be deleted: {os.strerror(refused)}")
    return deleted


class _Kernel:
    """One conversation with ctnetlink."""

    def __enter__(self) -> "_Kernel":
        try:
            self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        except OSError as error:
            raise ConntrackError(f"connection tracking: {error.strerror}") from None
        self._sock.settimeout(_PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def entries(self, sources: Collection[IPAddress]) -> Iterator[tuple[Tracked, bytes]]:
        """The entries that these addresses opened, each with the request that deletes it. To be read to the end.

        The kernel could pick them out, but the filter of IPv6 addresses gives all the others (as of Linux 6.18,
        ctnetlink_filter_match_tuple), and the one of IPv4 goes through the whole table for each address too.
        """
        by_bytes = {source.packed: source for source in sources}
        for family in {_FAMILY[source.version] for source in sources}:
            for kind, body in self._ask(_MSG_GET, _NLM_F_DUMP, _head(family)):
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    if code := error_code(body):
                        raise ConntrackError(f"connection tracking: {os.strerror(code)}")
                    break
                if kind == _MSG_NEW and (found := parse(by_bytes, body)) is not None:
                    yield found

    def delete(self, body: bytes) -> int:
        """Deletes one entry; answers 0 or the error's number."""
        answers = self._ask(_MSG_DELETE, _NLM_F_ACK, body)
        return next(error_code(answer) for kind, answer in answers if kind == _NLMSG_ERROR)

    def _ask(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        try:
            self._sock.send(message(kind, _NLM_F_REQUEST | flags, body))
            while True:
                yield from messages(self._sock.recv(65536))
        except OSError as error:
            raise ConntrackError(f"connection tracking: {error.strerror or 'the kernel does not answer'}") from None


def parse(sources: Mapping[bytes, IPAddress], body: bytes) -> tuple[Tracked, bytes] | None:
    """The flow that an entry's message tells of, and the body of the request that deletes this very entry; None where
    none of the sources, by their bytes, opened it.
    """
    tuple_ = _first(attributes(body, 4), (_TUPLE_ORIG,))
    addresses = _first(attributes(tuple_), (_TUPLE_IP,))
    source = sources.get(_first(attributes(addresses), _SOURCES))
    if source is None:
        return None
    destination = type(source)(_first(attributes(addresses), _DESTINATIONS))
    fields = dict(attributes(_first(attributes(tuple_), (_TUPLE_PROTO,))))
    number = fields[_NUMBER][0]
    protocol = _PROTOCOLS.get(number, f"ip-{number}")
    port = int.from_bytes(fields.get(_PORT, b"")) if protocol in ("tcp", "udp") else 0
    icmp_type = fields[_ICMP_TYPE[number]][0] if _ICMP_TYPE.get(number) in fields else None
    # The same tuple may stand in several zones; and by its number an entry that took the place of this one is spared.
    again = b"".join(attribute(kind, value) for kind, value in attributes(body, 4) if kind in (_ZONE, _ID))
    request = _head(_FAMILY[source.version]) + nested(_TUPLE_ORIG, tuple_) + again
    return Tracked(source, destination, protocol, port, icmp_type), request


def _first(values: Iterator[tuple[int, bytes]], kinds: tuple[int, ...]) -> bytes:
    for kind, value in values:
        if kind in kinds:
            return value
    return b""


def _head(family: int) -> bytes:
    return struct.pack("!BBH", family, 0, 0)  # struct nfgenmsg
