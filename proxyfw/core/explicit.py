"""The first bytes on the port of the explicit proxy: SOCKS4, SOCKS5, CONNECT or an HTTP request with a URL.

They are told apart by the first byte, or by the request line, and nothing is asked for until the request is complete.
"""

from dataclasses import dataclass, replace
from http import HTTPStatus

import h11

from proxyfw.core.address import IPAddress
from proxyfw.core.flow import Protocol
from proxyfw.core.hostname import Hostname
from proxyfw.core.http1 import sniff
from proxyfw.core.http1_head import BadHead, HeadReader, parsed
from proxyfw.core.http1_judge import judge_connect
from proxyfw.core.refusal import page, page_fields, status_of
from proxyfw.core.sniffed import MAX_HELLO, Malformed, Named, Nameless, NeedMore, NotMine
from proxyfw.core.sniffer import Sniffer
from proxyfw.core.socks import Request, Socks4, Socks5
from proxyfw.core.verdict import Deny, Reason

_SOCKS: dict[bytes, type[Socks4 | Socks5]] = {b"\x04": Socks4, b"\x05": Socks5}
_TLS = b"\x16"  # a handshake record, RFC 8446 section 5.1


@dataclass(frozen=True, slots=True)
class Asked:
    """A tunnel is asked for. `rest`: the client's bytes after its request, which belong into the tunnel."""

    protocol: Protocol
    host: Hostname | IPAddress
    port: int
    rest: bytes

    def with_inside(self, deny: Deny) -> Deny:
        """The refusal of it, for the log: with the name that is spoken inside, where that has come already."""
        said = Sniffer().feed(self.rest) if self.rest else None
        inside = f"{said.name} is named inside" if isinstance(said, Named) else ""
        return replace(deny, detail="; ".join(filter(None, (deny.detail, inside))))


@dataclass(frozen=True, slots=True)
class Forward:
    """HTTP requests to be sent on: `data`, all bytes so far, and what follows go to a Session in proxy mode."""

    data: bytes


Answer = NeedMore | Asked | Forward | Malformed


class Opening:
    """Fed as the client's bytes come, until it answers with anything but NeedMore.

    `protocol`: what the client speaks, as far as it is known; TCP while it is not. A tunnel that was asked for, and
    whatever was Malformed, is then answered with `success` or `refusal`, once.
    """

    __slots__ = ("_data", "_head", "_said", "_socks", "protocol")

    def __init__(self) -> None:
        self.protocol = Protocol.TCP
        self._said = False
        self._data = b""  # while it is not known whether a method is CONNECT
        self._socks: Socks4 | Socks5 | None = None
        self._head: HeadReader | None = None  # of CONNECT

    def feed(self, piece: bytes) -> tuple[bytes, Answer]:
        """What to send to the client now, and the answer to all bytes so far."""
        self._said = True
        if self.protocol is Protocol.TCP:
            self._data += piece
            piece = self._data
            refused = self._recognise()
            if refused is not None:
                return b"", refused
            self._data = b""
        if self._socks is not None:
            reply, answer = self._socks.feed(piece)
            if isinstance(answer, Request):
                return reply, Asked(Protocol.SOCKS, answer.host, answer.port, answer.rest)
            return reply, answer
        if self._head is not None:
            return b"", _connect(self._head, piece)
        return b"", Forward(piece)

    def too_late(self) -> Malformed:
        """The answer where the deadline has come first."""
        return self._unheard("within the deadline", Reason.TIMEOUT)

    def ended_early(self) -> Malformed:
        """The answer where the client's end has."""
        return self._unheard("before the connection ended", Reason.MALFORMED)

    def _unheard(self, when: str, reason: Reason) -> Malformed:
        if self._said:
            return Malformed(f"the proxy request was not complete {when}", reason)
        return Malformed(f"nothing was asked of the proxy {when}", Reason.SILENT)

    def success(self) -> bytes:
        """The tunnel stands: what the client is told."""
        if self._socks is not None:
            return self._socks.success()
        return b"HTTP/1.1 200 Connection established\r\n\r\n"  # no length and no body: RFC 9110 section 9.3.6

    def refusal(self, deny: Deny, client: str, host: Hostname | IPAddress | None = None) -> bytes:
        """What the client is told of a refusal, which ends the connection. Nothing where its protocol is not known.

        `host`: what was asked for, if it came to that.
        """
        if self._socks is not None:
            return self._socks.refusal(deny)
        if self.protocol not in (Protocol.CONNECT, Protocol.HTTP):
            return b""
        status = HTTPStatus(status_of(deny))
        text = page(deny, client, host)
        lines = [f"HTTP/1.1 {status} {status.phrase}", *(f"{name}: {value}" for name, value in page_fields(text))]
        return "\r\n".join([*lines, "", ""]).encode() + text

    def _recognise(self) -> NeedMore | Malformed | None:
        """Finds out what the client speaks; None: it did."""
        first = self._data[:1]
        if first in _SOCKS:
            self.protocol = Protocol.SOCKS
            self._socks = _SOCKS[first]()
            return None
        if first == _TLS:
            self.protocol = Protocol.TLS
            return Malformed("TLS to the proxy itself")
        match sniff(self._data, no_connect=None):
            case Nameless() | Named():
                self._begin_http()
                return None
            case Malformed() as malformed:
                self._begin_http()
                return malformed
            case NotMine():
                return Malformed("neither SOCKS nor HTTP")
            case NeedMore() as answer:
                return answer

    def _begin_http(self) -> None:
        if self._data.removeprefix(b"\r\n").startswith(b"CONNECT "):
            self.protocol = Protocol.CONNECT
            self._head = HeadReader(no_connect=None)
        else:
            self.protocol = Protocol.HTTP


def _connect(reader: HeadReader, piece: bytes) -> NeedMore | Asked | Malformed:
    try:
        head = reader.feed(piece)
        if head is None:
            return NeedMore()
        host, port = judge_connect(parsed(head, h11.Connection(h11.SERVER, MAX_HELLO)))
    except BadHead as error:
        return error.malformed
    return Asked(Protocol.CONNECT, host, port, reader.rest)
