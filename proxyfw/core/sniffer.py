"""The first bytes of a TCP connection: which protocol they are, and which host they name."""

from proxyfw.core import http1, tls
from proxyfw.core.flow import Protocol
from proxyfw.core.sniffed import Malformed, NotMine, Sniffed
from proxyfw.core.verdict import Reason


class Sniffer:
    """Fed as the bytes come, until it answers with anything but NeedMore.

    `data`: all bytes so far. `hello_end`: where a ClientHello in them ends.
    """

    __slots__ = ("_hello", "data", "protocol")

    def __init__(self) -> None:
        self._hello = tls.ClientHello()
        self.data = b""
        self.protocol = Protocol.TCP

    @property
    def hello_end(self) -> int:
        """Bytes of the ClientHello's records, after an answer about TLS."""
        return self._hello.consumed

    def feed(self, piece: bytes) -> Sniffed:
        """The answer to all bytes so far. NotMine: neither TLS nor HTTP."""
        self.data += piece
        if self.protocol is not Protocol.HTTP:
            answer = self._hello.feed(piece)
            if not isinstance(answer, NotMine):
                self.protocol = Protocol.TLS
                return answer
        answer = http1.sniff(self.data)
        self.protocol = Protocol.TCP if isinstance(answer, NotMine) else Protocol.HTTP
        return answer

    def too_late(self) -> Malformed:
        """The answer where the deadline has come first."""
        if not self.data:
            return Malformed("nothing was sent within the deadline", Reason.SILENT)
        return Malformed("the name was not complete within the deadline", Reason.TIMEOUT)

    def ended_early(self) -> Malformed:
        """The answer where the client's end has."""
        if not self.data:
            return Malformed("the client closed the connection without a word", Reason.SILENT)
        return Malformed("the connection ended before the name was complete")
