"""The head of an HTTP/1 request, line by line.

h11 parses; this module refuses beforehand what h11 lets through and servers disagree about: bare line feeds, folded
lines, repeated lengths (RFC 9112).
"""

import re

import h11

from proxyfw.core.sniffed import MAX_HELLO, Malformed
from proxyfw.core.verdict import Reason

NO_CONNECT = "CONNECT belongs to an explicit proxy"
MAX_FIELDS = 256  # of one head; servers commonly take 100, and each costs time before anything is decided
MAX_METHOD = 32  # characters; the longest registered one, UPDATEREDIRECTREF, has 17

_TOKEN = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_METHOD = re.compile(rb"[A-Z][A-Z0-9_-]*")
_VERSION = re.compile(rb"HTTP/([0-9]\.[0-9])")
_NOT_VISIBLE = re.compile(rb"[^\x20-\x7e]")
_LENGTH = re.compile(rb"[0-9]{1,19}")

FRAMING = frozenset({b"content-length", b"transfer-encoding"})
ONCE = FRAMING | {b"host"}


class BadHead(ValueError):
    """The request cannot be judged: `malformed` says why."""

    def __init__(self, detail: str, reason: Reason = Reason.MALFORMED) -> None:
        super().__init__(detail)
        self.malformed = Malformed(detail, reason)


class HeadReader:
    """Collects one request head, and checks each line as soon as it is complete.

    Line by line, so that the answer does not depend on how the bytes were cut into segments.
    """

    def __init__(self, no_connect: str | None = NO_CONNECT) -> None:
        """`no_connect`: why CONNECT is refused; None: it is not."""
        self._no_connect = no_connect
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
            self._version = check_request_line(line, self._no_connect)
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
        if name in ONCE:
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


def check_request_line(line: bytes, no_connect: str | None = NO_CONNECT) -> bytes:
    """The version, `1.0` or `1.1`, of a request line given without its line ending. Raises BadHead.

    `no_connect`: why CONNECT is refused; None: it is not.
    """
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
    if method == b"CONNECT" and no_connect is not None:
        raise BadHead(no_connect)
    return number[1]


def parsed(head: bytes, by: h11.Connection) -> h11.Request:
    """h11's reading of a head that a HeadReader has let through. Raises BadHead."""
    by.receive_data(head)
    try:
        request = by.next_event()
    except h11.RemoteProtocolError as error:
        raise BadHead(in_words("request head", error)) from None
    assert isinstance(request, h11.Request)
    return request


def in_words(where: str, error: h11.RemoteProtocolError) -> str:
    """What h11 found wrong."""
    return f"{where}: {error}"[:160]  # h11 may quote a whole line
