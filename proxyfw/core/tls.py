"""TLS as seen from outside: the name in a ClientHello, whether a server asks for a second one, and alerts.

RFC 8446 (TLS 1.3) sections 4.1.2, 5.1 and 6, RFC 5246 (TLS 1.2), RFC 6066 section 3 (server_name), RFC 7301 (ALPN),
RFC 9849 (ECH). Nothing is decrypted.
"""

from enum import Enum

from proxyfw.core.hostname import HostnameError, normalise
from proxyfw.core.sniffed import MAX_HELLO, Malformed, Named, Nameless, NeedMore, NotMine, Sniffed
from proxyfw.core.verdict import Reason
from proxyfw.core.wire import Short, typed_vectors

_CHANGE_CIPHER_SPEC, _ALERT, _HANDSHAKE, _APPLICATION_DATA = 20, 21, 22, 23
_CLIENT_HELLO, _SERVER_HELLO = 1, 2
_MAX_RECORD = 1 << 14
_EXT_SERVER_NAME, _EXT_ALPN, _EXT_ECH = 0, 16, 0xFE0D
_HOST_NAME = 0

# SHA-256 of "HelloRetryRequest", the random of a ServerHello that is one (RFC 8446 section 4.1.3)
_RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
_RANDOM_AT = 6  # handshake header 4, legacy_version 2

NEED_MORE = NeedMore()
NOT_MINE = NotMine()
NAMELESS = Nameless()
_TOO_LONG = Malformed("the ClientHello is longer than 64 KiB", Reason.OVERSIZED)


class ClientHello:
    """Sniffs one ClientHello, fed as the bytes come; each byte is looked at once, however small the pieces.

    `second`: the hello after a HelloRetryRequest; a change_cipher_spec and 0-RTT records may come before it
    (RFC 8446 sections 4.2.10 and D.4), or an alert instead of it.
    """

    __slots__ = ("_hello", "_pending", "_second", "consumed")

    def __init__(self, second: bool = False) -> None:
        self._hello = b""  # handshake bytes out of whole records
        self._pending = b""  # bytes of a record that is not whole
        self._second = second
        self.consumed = 0
        """Bytes of the records looked at so far; after an answer, where the hello's last record ends."""

    def feed(self, data: bytes) -> Sniffed:
        """The answer to all bytes so far. Not to be called again after anything but NeedMore."""
        data = self._pending + data if self._pending else data
        at = 0
        while True:
            answer = self._header(data, at)
            if answer is not None:
                return answer
            end = at + 5 + int.from_bytes(data[at + 3 : at + 5])
            if end > len(data):
                break
            self.consumed += end - at
            if self.consumed > MAX_HELLO:
                return _TOO_LONG
            if data[at] == _HANDSHAKE:
                self._hello += data[at + 5 : end]
                answer = self._message()
                if answer is not None:
                    return answer
            at = end
            if at == len(data):
                break
        self._pending = data[at:]
        if self.consumed + len(self._pending) > MAX_HELLO:
            return _TOO_LONG
        return NEED_MORE

    def _header(self, data: bytes, at: int) -> Sniffed | None:
        """What the record header at `at` says already; None where it is whole and right."""
        first = self.consumed == 0 and not self._second
        have = len(data) - at
        if have < 1:
            return NEED_MORE
        kind = data[at]
        early = self._second and not self._hello and kind in (_CHANGE_CIPHER_SPEC, _ALERT, _APPLICATION_DATA)
        if kind != _HANDSHAKE and not early:
            return NOT_MINE if first else Malformed(f"a record of type {kind} inside the ClientHello")
        if have >= 2 and data[at + 1] != 3:
            return NOT_MINE if first else Malformed("a record of another protocol version inside the ClientHello")
        if have >= 5:
            length = int.from_bytes(data[at + 3 : at + 5])
            if length == 0:
                return Malformed("an empty TLS record")
            if length > _MAX_RECORD + 256 * early:  # only encrypted records may be longer: RFC 8446 section 5.2
                return Malformed("a TLS record longer than 16 KiB")
            return None
        self._pending = data[at:]
        return NEED_MORE

    def _message(self) -> Sniffed | None:
        """The answer, once the handshake message is whole."""
        hello = self._hello
        if hello[0] != _CLIENT_HELLO:
            return Malformed(f"a handshake message of type {hello[0]} in place of a ClientHello")
        if len(hello) < 4:
            return None
        end = 4 + int.from_bytes(hello[1:4])
        if end > MAX_HELLO:
            return _TOO_LONG
        if len(hello) < end:
            return None
        if len(hello) > end:
            return Malformed("handshake bytes after the ClientHello")
        try:
            return _parse(hello)
        except Short:
            return Malformed("a length field inside the ClientHello is wrong")


def _parse(hello: bytes) -> Sniffed:
    """RFC 8446 section 4.1.2; the layout is the same since SSL 3.0.

    Each field is found by the length of those before it. Raises Short.
    """
    end = len(hello)
    if end < 39:
        raise Short
    if hello[4] != 3:
        return Malformed("the ClientHello is of an unknown protocol version")
    if hello[38] > 32:
        return Malformed("the session id is longer than 32 bytes")
    at = 39 + hello[38]
    suites = int.from_bytes(hello[at : at + 2])
    if suites == 0 or suites % 2:
        return Malformed("the list of cipher suites is broken")
    at += 2 + suites
    if at >= end:
        raise Short
    if hello[at] == 0:
        return Malformed("the list of compression methods is empty")
    at += 1 + hello[at]
    if at == end:  # TLS 1.0 and 1.1 without extensions
        return NAMELESS
    length = int.from_bytes(hello[at : at + 2])
    at += 2
    if at + length > end:
        raise Short
    if at + length < end:
        return Malformed("bytes after the extensions")
    bodies = typed_vectors(hello, at)
    if isinstance(bodies, int):
        return Malformed(f"extension {bodies} stands twice")
    alpn = _alpn(bodies[_EXT_ALPN]) if _EXT_ALPN in bodies else ()
    if _EXT_SERVER_NAME not in bodies:
        return NAMELESS
    return _server_name(bodies[_EXT_SERVER_NAME], alpn, _EXT_ECH in bodies)


def _server_name(body: bytes, alpn: tuple[bytes, ...], ech: bool) -> Sniffed:
    """RFC 6066 section 3: a list that may hold one name of each type, and host_name is the only type there is."""
    size = len(body)
    names, name = int.from_bytes(body[:2]), int.from_bytes(body[3:5])
    if size < 5 or names + 2 > size or name + 5 > names + 2:
        raise Short
    if names + 2 < size:
        return Malformed("bytes after the server names")
    if body[2] != _HOST_NAME:
        return Malformed("a server name that is not a host name")
    if name + 5 < size:
        return Malformed("more than one server name", Reason.AMBIGUOUS)
    try:
        return Named(normalise(body[5:].decode("ascii")), alpn, ech)
    except UnicodeDecodeError:
        return Malformed("the server name is not ASCII")
    except HostnameError as error:
        return Malformed(f"the server name is not a host name: {error}")


def _alpn(body: bytes) -> tuple[bytes, ...]:
    """RFC 7301 section 3.1. Raises Short."""
    if len(body) < 2 or int.from_bytes(body[:2]) != len(body) - 2:
        raise Short
    names, at = [], 2
    while at < len(body):
        end = at + 1 + body[at]
        if end > len(body):
            raise Short
        names.append(body[at + 1 : end])
        at = end
    return tuple(names)


class ServerFirst(Enum):
    """What the server's first bytes are."""

    NEED_MORE = "need more"
    RETRY = "a HelloRetryRequest: the client sends a second ClientHello, and in the clear"
    OTHER = "anything else: what the client sends from now on is encrypted or of no consequence"


def server_first(data: bytes) -> ServerFirst:
    """Tells a HelloRetryRequest (RFC 8446 section 4.1.4) from any other first bytes of a server."""
    wanted = _RANDOM_AT + len(_RETRY_RANDOM)
    hello, at = b"", 0
    while at < len(data) and len(hello) < wanted:  # it may be cut over records like any message
        if data[at] != _HANDSHAKE or at > _MAX_RECORD:
            return ServerFirst.OTHER
        end = at + 5 + int.from_bytes(data[at + 3 : at + 5])
        hello, at = hello + data[at + 5 : end], end
    if hello and hello[0] != _SERVER_HELLO:
        return ServerFirst.OTHER
    random = hello[_RANDOM_AT : _RANDOM_AT + len(_RETRY_RANDOM)]
    if random == _RETRY_RANDOM:
        return ServerFirst.RETRY
    return ServerFirst.NEED_MORE if _RETRY_RANDOM.startswith(random) else ServerFirst.OTHER


_ACCESS_DENIED, _DECODE_ERROR, _INTERNAL_ERROR = 49, 50, 80
_ALERTS = {
    Reason.MALFORMED: _DECODE_ERROR,
    Reason.AMBIGUOUS: _DECODE_ERROR,
    Reason.OVERSIZED: _DECODE_ERROR,
    Reason.UNRESOLVABLE: _INTERNAL_ERROR,
    Reason.DNS_FAILURE: _INTERNAL_ERROR,
    Reason.UNREACHABLE: _INTERNAL_ERROR,
    Reason.LIMIT: _INTERNAL_ERROR,
    Reason.ERROR: _INTERNAL_ERROR,
}


def alert(reason: Reason) -> bytes:
    """The fatal alert record (RFC 8446 section 6.2) that tells a refused client why, as far as TLS has words for it."""
    return bytes([_ALERT, 3, 3, 0, 2, 2, _ALERTS.get(reason, _ACCESS_DENIED)])
