"""The server's side of a SOCKS handshake: what a client asks for, and how it is answered.

SOCKS5 is RFC 1928; SOCKS4 and 4a are the notes "SOCKS: A protocol for TCP proxy across firewalls" and "SOCKS 4A".
Only CONNECT is done, and nobody is asked for a password: a client is who its source address says.
"""

import errno
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from proxyfw.core.address import IPAddress
from proxyfw.core.hostname import Hostname, HostnameError, normalise
from proxyfw.core.sniffed import Malformed, NeedMore
from proxyfw.core.verdict import Deny, Reason

MAX_TEXT = 255  # bytes of a user's or a host's name; SOCKS5 has one octet for the length, SOCKS4 sets no bound

_CONNECT = 1
_OTHER_COMMANDS = {4: {2: "BIND"}, 5: {2: "BIND", 3: "UDP ASSOCIATE"}}
_NO_PASSWORD, _PASSWORD, _NO_METHOD = 0x00, 0x02, 0xFF  # methods of SOCKS5
_IPV4, _NAME, _IPV6 = 0x01, 0x03, 0x04  # types of address of SOCKS5
_SUCCEEDED, _FAILED, _NOT_ALLOWED, _NET_UNREACHABLE, _HOST_UNREACHABLE, _CONN_REFUSED = range(6)  # replies of SOCKS5
_NO_SUCH_COMMAND, _NO_SUCH_ADDRESS = 7, 8

# RFC 1928 section 6. What is not here is a general failure.
_REPLY = {
    Reason.NO_MATCH: _NOT_ALLOWED,
    Reason.NO_NAME: _NOT_ALLOWED,
    Reason.QUBES_RULE: _NOT_ALLOWED,
    Reason.INTERNAL_ADDRESS: _NOT_ALLOWED,
    Reason.PRIVATE_ADDRESS: _NOT_ALLOWED,
    Reason.CANARY: _NOT_ALLOWED,
    Reason.UNKNOWN_CLIENT: _NOT_ALLOWED,
    Reason.UNRESOLVABLE: _HOST_UNREACHABLE,
    Reason.DNS_FAILURE: _HOST_UNREACHABLE,
    Reason.UNSUPPORTED: _NOT_ALLOWED,
}
_UNREACHABLE = {errno.ECONNREFUSED: _CONN_REFUSED, errno.ENETUNREACH: _NET_UNREACHABLE}


@dataclass(frozen=True, slots=True)
class Request:
    """Complete: a connection to `host` and `port` is asked for. `rest`: what the client sent after its request."""

    host: Hostname | IPAddress
    port: int
    rest: bytes


Answer = NeedMore | Request | Malformed


class _Refused(ValueError):
    """The request is not one that can be done. `reply`: of SOCKS5."""

    def __init__(self, detail: str, reason: Reason = Reason.MALFORMED, reply: int = _FAILED) -> None:
        super().__init__(detail)
        self.malformed = Malformed(detail, reason)
        self.reply = reply


class Socks4:
    """SOCKS4 and 4a, fed as the bytes come until it answers with anything but NeedMore. The first byte is a 4."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, piece: bytes) -> tuple[bytes, Answer]:
        """What to send now, which is nothing, and the answer to all bytes so far."""
        self._data += piece
        try:
            return b"", _read_4(bytes(self._data)) or NeedMore()
        except _Refused as error:
            return b"", error.malformed

    def success(self) -> bytes:
        """The connection stands: what the client is told."""
        return b"\x00\x5a" + bytes(6)

    def refusal(self, deny: Deny) -> bytes:
        """What the client is told of a refusal: that there is one."""
        return b"\x00\x5b" + bytes(6)


class _Awaits(Enum):
    GREETING = auto()
    REQUEST = auto()


class Socks5:
    """SOCKS5, fed as the bytes come until it answers with anything but NeedMore. The first byte is a 5."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._awaits = _Awaits.GREETING
        self._reply: int | None = None  # where the request itself is what is wrong

    def feed(self, piece: bytes) -> tuple[bytes, Answer]:
        """What to send now, and the answer to all bytes so far."""
        self._data += piece
        out = b""
        try:
            if self._awaits is _Awaits.GREETING:
                length = _read_greeting(bytes(self._data))
                if length is None:
                    return b"", NeedMore()
                del self._data[:length]
                self._awaits = _Awaits.REQUEST
                out = bytes([5, _NO_PASSWORD])
            return out, _read_5(bytes(self._data)) or NeedMore()
        except _Refused as error:
            self._reply = error.reply
            return out, error.malformed

    def success(self) -> bytes:
        """The connection stands: what the client is told."""
        return _reply_5(_SUCCEEDED)

    def refusal(self, deny: Deny) -> bytes:
        """What the client is told of a refusal, as far as the reply codes can say it."""
        if self._awaits is _Awaits.GREETING:
            return bytes([5, _NO_METHOD])
        if self._reply is not None:
            return _reply_5(self._reply)
        if deny.reason is Reason.UNREACHABLE:
            return _reply_5(_UNREACHABLE.get(deny.error, _HOST_UNREACHABLE))
        return _reply_5(_REPLY.get(deny.reason, _FAILED))


def _reply_5(code: int) -> bytes:
    """RFC 1928 section 6. BND.ADDR and BND.PORT are not told: they would be of no use to a client behind this netvm."""
    return bytes([5, code, 0, _IPV4]) + bytes(6)


def _read_greeting(data: bytes) -> int | None:
    """The length of the greeting, RFC 1928 section 3; None while it is not complete. Raises _Refused."""
    if len(data) < 2 or len(data) < 2 + data[1]:
        return None
    methods = data[2 : 2 + data[1]]
    if _NO_PASSWORD not in methods:
        if _PASSWORD in methods:
            raise _Refused("the client insists on a password: there is none, leave user and password out")
        raise _Refused("the client offers no way in without authentication")
    return 2 + len(methods)


def _read_5(data: bytes) -> Request | None:
    """RFC 1928 section 4. None while the request is not complete. Raises _Refused."""
    if len(data) < 5:  # with the length of a name, or the first byte of an address
        return None
    version, command, reserved, kind, length = data[:5]
    if version != 5:
        raise _Refused("the greeting was of SOCKS5, and the request is not")
    _check_command(5, command)
    if reserved:
        raise _Refused("the reserved byte of the request is not zero")
    if kind not in (_IPV4, _NAME, _IPV6):
        raise _Refused(f"an unknown type of address: {kind}", reply=_NO_SUCH_ADDRESS)
    begin, end = {_IPV4: (4, 8), _IPV6: (4, 20), _NAME: (5, 5 + length)}[kind]
    if len(data) < end + 2:
        return None
    raw = data[begin:end]
    host = _host(raw) if kind == _NAME else IPv4Address(raw) if kind == _IPV4 else IPv6Address(raw)
    return Request(host, _port(data[end : end + 2]), data[end + 2 :])


def _read_4(data: bytes) -> Request | None:
    """None while the request is not complete. Raises _Refused."""
    if len(data) < 8:
        return None
    _check_command(4, data[1])
    port = _port(data[2:4])
    address = IPv4Address(data[4:8])
    user_end = _end_of_text(data, 8, "the user's name")
    if user_end is None:
        return None
    if not 0 < int(address) <= 0xFF:
        return Request(address, port, data[user_end + 1 :])
    name_end = _end_of_text(data, user_end + 1, "the host's name")
    if name_end is None:
        return None
    return Request(_host(data[user_end + 1 : name_end]), port, data[name_end + 1 :])


def _end_of_text(data: bytes, begin: int, what: str) -> int | None:
    """Where the NUL after a text is; None while it has not come. Raises _Refused."""
    end = data.find(b"\0", begin, begin + MAX_TEXT + 1)
    if end >= 0:
        return end
    if len(data) > begin + MAX_TEXT:
        raise _Refused(f"{what} is longer than {MAX_TEXT} bytes", Reason.OVERSIZED)
    return None


def _check_command(version: int, command: int) -> None:
    if command == _CONNECT:
        return
    known = _OTHER_COMMANDS[version].get(command)
    if known:
        raise _Refused(f"SOCKS {known} is not done here, only CONNECT", Reason.UNSUPPORTED, _NO_SUCH_COMMAND)
    raise _Refused(f"an unknown SOCKS command: {command}", reply=_NO_SUCH_COMMAND)


def _port(raw: bytes) -> int:
    port = int.from_bytes(raw)
    if not port:
        raise _Refused("the port is 0")
    return port


def _host(raw: bytes) -> Hostname | IPAddress:
    """A host given as text: an address where it is one, else a name."""
    if not raw.isascii():
        raise _Refused("the host's name is not ASCII")
    text = raw.decode("ascii")
    try:
        return _literal(text) or normalise(text)
    except HostnameError as error:
        raise _Refused(f"the host's name is not a host name: {error}") from None


def _literal(text: str) -> IPAddress | None:
    """The address that the text is: a dotted quad, or IPv6 without brackets and without a zone."""
    try:
        return IPv6Address(text) if ":" in text and "%" not in text else IPv4Address(text)
    except AddressValueError:
        return None
