"""The head of an HTTP/1 request: checked strictly, judged for the host it names, and written anew.

h11 parses; this module refuses beforehand what h11 lets through and servers disagree about (bare line feeds, folded
lines, repeated lengths), and decides afterwards which host the request names (RFC 9112 section 3, RFC 9110 section 7).
"""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import h11

from proxyfw.core.hostname import Hostname, HostnameError, normalise
from proxyfw.core.sniffed import MAX_HELLO, Malformed
from proxyfw.core.verdict import Reason

DEFAULT_PORT = 80
MAX_FIELDS = 256  # of one head; servers commonly take 100, and each costs time before anything is decided
MAX_METHOD = 32  # characters; the longest registered one, UPDATEREDIRECTREF, has 17

_TOKEN = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_METHOD = re.compile(rb"[A-Z][A-Z0-9_-]*")
_VERSION = re.compile(rb"HTTP/([0-9]\.[0-9])")
_NOT_VISIBLE = re.compile(rb"[^\x20-\x7e]")
_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://")
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:]+))(?::(?P<port>[^:]*))?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_LENGTH = re.compile(rb"[0-9]{1,19}")

FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_ONCE = FRAMING | {b"host"}
# Fields for one hop only (RFC 9110 section 7.6.1). Without HTTP2-Settings and Upgrade an offer of h2c is declined.
_ONE_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"http2-settings"})
_TRAILER_NEVER = _ONCE | _ONE_HOP

Head = h11.Request | h11.InformationalResponse | h11.Response


class BadHead(ValueError):
    """The request cannot be judged: `malformed` says why."""

    def __init__(self, detail: str, reason: Reason = Reason.MALFORMED) -> None:
        super().__init__(detail)
        self.malformed = Malformed(detail, reason)


@dataclass(frozen=True, slots=True)
class Judged:
    """A request that may be asked about: the host it names, and the request as it will be sent if permitted.

    `name` is None where the client named no host, or an address.
    """

    name: Hostname | None
    request: h11.Request
    websocket: bool


class HeadReader:
    """Collects one request head, and checks each line as soon as it is complete.

    Line by line, so that the answer does not depend on how the bytes were cut into segments.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._start = 0  # where the request line begins
        self._line = 0  # where the line being read begins
        self._searched = 0  # how far there is no line feed
        self._once: dict[bytes, bytes] = {}
        self._fields = 0
        self._version: bytes | None = None

    @property
    def empty(self) -> bool:
        """No byte of a request has come (an empty line before it is not a part of it)."""
        return len(self._bytes) == self._start

    @property
    def rest(self) -> bytes:
        """The bytes after the head."""
        return bytes(self._bytes[self._line :])

    def feed(self, data: bytes) -> bytes | None:
        """The whole head with its closing empty line; None while there is more to come. Raises BadHead."""
        self._bytes += data
        while 0 <= (end := self._bytes.find(b"\n", self._searched)) < MAX_HELLO:
            line = bytes(self._bytes[self._line : end])
            self._line = self._searched = end + 1
            if self._take(line):
                return bytes(self._bytes[self._start : self._line])
        if len(self._bytes) >= MAX_HELLO:
            raise BadHead(f"the header section is longer than {MAX_HELLO} bytes", Reason.OVERSIZED)
        self._searched = len(self._bytes)
        return None

    def _take(self, ended_line: bytes) -> bool:
        """Whether this line was the last of the head."""
        line = _without_cr(ended_line)
        if self._version is not None:
            if line:
                self._field(line)
                return False
            self._check_framing()
            return True
        if line:
            self._version = check_request_line(line)
        elif self._start:
            raise BadHead("more than one empty line before the request")
        else:
            self._start = self._line  # RFC 9112 section 2.2: one is to be ignored
        return False

    def _field(self, line: bytes) -> None:
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise BadHead(f"more than {MAX_FIELDS} header fields", Reason.OVERSIZED)
        if line[:1] in (b" ", b"\t"):
            raise BadHead("a header line is folded (obs-fold)")
        if b"\0" in line:
            raise BadHead("a NUL in a header line")
        name, colon, value = line.partition(b":")
        if not colon:
            raise BadHead("a header line without a colon")
        if name.endswith((b" ", b"\t")):
            raise BadHead("whitespace between a field name and its colon")
        if not _TOKEN.fullmatch(name):
            raise BadHead("a field name is not a token")
        name = name.lower()
        if name in _ONCE:
            if name in self._once:
                reason = Reason.AMBIGUOUS if name == b"host" else Reason.MALFORMED
                raise BadHead(f"two {name.decode().title()} fields", reason)
            self._once[name] = value.strip(b" \t")

    def _check_framing(self) -> None:
        """RFC 9112 sections 6.1 and 6.3: whatever leaves two readings of where the body ends is refused."""
        length = self._once.get(b"content-length")
        coding = self._once.get(b"transfer-encoding")
        if length is not None and coding is not None:
            raise BadHead("Content-Length together with Transfer-Encoding")
        if length is not None and not _LENGTH.fullmatch(length):
            raise BadHead("Content-Length is not one number")
        if coding is not None and coding.lower() != b"chunked":
            raise BadHead("Transfer-Encoding is not exactly chunked")
        if coding is not None and self._version == b"1.0":
            raise BadHead("Transfer-Encoding in an HTTP/1.0 request")


def _without_cr(line: bytes) -> bytes:
    """The line without its carriage return. Raises BadHead where carriage return and line feed are not a pair."""
    if not line.endswith(b"\r"):
        raise BadHead("a line feed without a carriage return")
    if b"\r" in line[:-1]:
        raise BadHead("a carriage return without a line feed")
    return line[:-1]


def check_request_line(line: bytes) -> bytes:
    """The version, `1.0` or `1.1`, of a request line given without its line ending. Raises BadHead."""
    words = line.split(b" ")
    if _NOT_VISIBLE.search(line):
        raise BadHead("a control character or a non-ASCII byte in the request line")
    if line == b"PRI * HTTP/2.0":
        raise BadHead("HTTP/2 without TLS")
    if len(words) == 2 and words[0] == b"GET" and words[1]:
        raise BadHead("the request line has no version (HTTP/0.9)")
    if len(words) != 3 or not all(words):
        raise BadHead("the request line is not method, target and version with one space between them")
    method, _, version = words
    number = _VERSION.fullmatch(version)
    if number is None or number[1] not in (b"1.0", b"1.1"):
        raise BadHead("the version is neither HTTP/1.0 nor HTTP/1.1")
    if len(method) > MAX_METHOD:
        raise BadHead(f"the method is longer than {MAX_METHOD} characters")
    if not _METHOD.fullmatch(method):
        raise BadHead("the method is not in upper-case letters")
    if method == b"CONNECT":
        raise BadHead("CONNECT belongs to an explicit proxy")
    return number[1]


@dataclass(frozen=True, slots=True)
class _Authority:
    """A host and a port, as Host or a URL gave them. `host` None: an empty Host field."""

    host: Hostname | IPv4Address | IPv6Address | None = None
    port: int | None = None


def judge(request: h11.Request, port: int) -> Judged:
    """What host the request names, on a connection to `port`. Raises BadHead."""
    in_host = next((_authority(value, "Host") for name, value in request.headers if name == b"host"), None)
    target, in_url = _target(request)
    if in_url is not None and (in_url.port or DEFAULT_PORT) != port:
        raise BadHead(f"the URL names another port than {port}, where the connection goes", Reason.AMBIGUOUS)
    if in_host is not None and in_host.port not in (None, port):
        raise BadHead(f"Host names another port than {port}, where the connection goes", Reason.AMBIGUOUS)
    if in_url is not None and in_host is not None and in_url.host != in_host.host:
        raise BadHead("Host and the URL name different hosts", Reason.AMBIGUOUS)
    given = [authority for authority in (in_url, in_host) if authority is not None]
    host = given[0].host if given else None
    with_port = port != DEFAULT_PORT or any(authority.port for authority in given)
    websocket = _asks_for_websocket(request)
    headers = [(b"Host", _host_field(host, port if with_port else None)), *_sent_on(request)]
    if websocket:
        headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    written = h11.Request(method=request.method, target=target, headers=headers)
    return Judged(Hostname(host) if isinstance(host, str) else None, written, websocket)


def _target(request: h11.Request) -> tuple[bytes, _Authority | None]:
    """The target in origin-form (or `*`), and the authority if it was a URL. RFC 9112 section 3.2."""
    target = request.target
    if b"#" in target:
        raise BadHead("a fragment in the request target")
    if target.startswith(b"/"):
        return target, None
    options = request.method == b"OPTIONS"
    if target == b"*":
        if not options:
            raise BadHead("the target * belongs to OPTIONS")
        return target, None
    scheme = _SCHEME.match(target)
    if scheme is None:
        raise BadHead("the request target is neither a path nor a URL")
    if scheme[1].lower() != b"http":
        raise BadHead("the URL has a scheme other than http")
    authority, path = _split(target[scheme.end() :])
    if not authority:
        raise BadHead("the URL names no host")
    if not path and options:
        path = b"*"
    elif not path.startswith(b"/"):
        path = b"/" + path
    return path, _authority(authority, "the URL")


def _split(after_scheme: bytes) -> tuple[bytes, bytes]:
    cut = min((at for at in map(after_scheme.find, (b"/", b"?")) if at >= 0), default=len(after_scheme))
    return after_scheme[:cut], after_scheme[cut:]


def _authority(raw: bytes, where: str) -> _Authority:
    if not raw:
        return _Authority()
    text = raw.decode("latin-1")
    if not text.isascii():
        raise BadHead(f"{where} has a non-ASCII byte in it")
    if "@" in text:
        raise BadHead(f"userinfo in {where}")
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise BadHead(f"{where} is not one host with at most one port")
    port = match["port"]
    if port is not None and not (_PORT.fullmatch(port) and int(port) <= 0xFFFF):
        raise BadHead(f"the port in {where} is not a number from 1 to 65535")
    try:
        host = IPv6Address(match["v6"]) if match["v6"] else _name_or_v4(match["host"])
    except (HostnameError, AddressValueError) as error:
        raise BadHead(f"{where} is not a host: {error}") from None
    return _Authority(host, int(port) if port else None)


def _name_or_v4(text: str) -> Hostname | IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError:
        return normalise(text)


def _host_field(host: Hostname | IPv4Address | IPv6Address | None, port: int | None) -> bytes:
    if host is None:
        return b""  # RFC 9110 section 7.2: an empty value where there is no authority
    text = f"[{host}]" if isinstance(host, IPv6Address) else str(host)
    return (text if port is None else f"{text}:{port}").encode()


def list_of(message: Head, name: bytes) -> list[bytes]:
    """The members, in lower case, of a field that is a comma-separated list of tokens."""
    members = (part.strip().lower() for key, value in message.headers if key == name for part in value.split(b","))
    return [member for member in members if member]


def _asks_for_websocket(request: h11.Request) -> bool:
    """RFC 6455 section 4.1. One with a body is not taken for an upgrade."""
    return (
        request.method == b"GET"
        and request.http_version == b"1.1"
        and b"upgrade" in list_of(request, b"connection")
        and list_of(request, b"upgrade") == [b"websocket"]
        and not any(name in FRAMING for name, _ in request.headers)
    )


def _sent_on(request: h11.Request) -> list[tuple[bytes, bytes]]:
    """The fields of the request but Host. HTTP/1.0 knows no Expect (RFC 9110 section 10.1.1)."""
    without = {b"host", b"expect"} if request.http_version == b"1.0" else {b"host"}
    return [item for item in end_to_end(request) if item[0].lower() not in without]


def end_to_end(message: Head) -> list[tuple[bytes, bytes]]:
    """The fields, in their own case, that go past this hop: without Connection and what it names.

    What Connection names can never be Host or a framing field.
    """
    dropped = _ONE_HOP | (frozenset(list_of(message, b"connection")) - _ONCE)
    return [item for item in message.headers.raw_items() if item[0].lower() not in dropped]


def response_fields(response: h11.Response | h11.InformationalResponse) -> list[tuple[bytes, bytes]]:
    """The fields of a response to pass on. Framing is left to h11, save a Content-Length that alone says it."""
    coded = any(name == b"transfer-encoding" for name, _ in response.headers)
    without = FRAMING if coded or response.status_code < 200 or response.status_code == 204 else frozenset()
    return [item for item in end_to_end(response) if item[0].lower() not in without]


def has_forbidden_trailer(end: h11.EndOfMessage) -> bool:
    """Whether a trailer would name a host, frame the message or steer the connection (RFC 9110 section 6.5.1)."""
    return any(name in _TRAILER_NEVER for name, _ in end.headers)


def allowed_trailers(end: h11.EndOfMessage) -> list[tuple[bytes, bytes]]:
    """The trailers without those that are forbidden there."""
    return [item for item in end.headers.raw_items() if item[0].lower() not in _TRAILER_NEVER]
