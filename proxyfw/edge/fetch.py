"""Gets one document over HTTPS (RFC 9110, RFC 9112), from a server that is trusted no further than its certificate
goes: bounded in size and in time, no cookie, no password, and nothing but HTTPS after a redirect either.

Through an upstream proxy, where there is one, and never past it: then it is the far end that looks names up.
"""

import encodings.idna  # noqa: F401 - for getaddrinfo, which may come when no file can be read any more
import http.client
import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urldefrag, urljoin, urlsplit

from proxyfw.core.address import AddressKind, kind_of
from proxyfw.core.feedformats import MAX_DOCUMENT
from proxyfw.core.hostname import HostnameError, normalise
from proxyfw.core.tunnel import LeaveError
from proxyfw.core.upstreamproxy import UpstreamProxy
from proxyfw.edge.leaveblocking import leave_blocking

MAX_REDIRECTS = 3

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_URL = re.compile(r"[!-~]{1,8192}")
_VALIDATOR = re.compile(r"[ -~]{1,1024}")
_TOO_LARGE = f"the document is larger than {MAX_DOCUMENT >> 20} MiB"
_OVERHEAD = 4 << 20  # bytes that come with a document and are none of it: heads, chunk sizes
_NOT_PUBLIC = "a redirect to an address that is not public"
_CUT = "the connection ended early"
_TIMED_OUT = "timed out"
_PIECE = 1 << 16


class FetchError(Exception):
    """There is no document; the message says why, for a person."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """`same`: the server has what was known already, and sent no document. `etag` and `modified`: what to ask with the
    next time, "" where the server gives none that can be sent back.
    """

    status: Literal["same", "changed"]
    document: bytes
    etag: str
    modified: str


def trust() -> ssl.SSLContext:
    """The authorities of this system, or those of SSL_CERT_FILE and SSL_CERT_DIR. Reads files."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # An end that TLS does not announce may be anybody's doing (RFC 8446 section 6.1): Python lets it pass otherwise.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.set_alpn_protocols(["http/1.1"])
    context.sslsocket_class = _Bounded
    return context


def get(
    url: str,
    etag: str,
    modified: str,
    patience: float,
    context: ssl.SSLContext | None = None,
    through: UpstreamProxy | None = None,
) -> Fetched:
    """`etag`, `modified`: what came with the document that is known, or "". `patience`: seconds for all of it, but for
    the look-up of a name, which the system's resolver bounds. `context`: what `trust` gave. `through`: the proxy to
    take; None: none. Raises FetchError.
    """
    context = trust() if context is None else context
    deadline = time.monotonic() + patience
    known = {"If-None-Match": etag, "If-Modified-Since": modified}
    known = {name: value for name, value in known.items() if _VALIDATOR.fullmatch(value)}
    asked: list[str] = []
    while True:
        asked.append(url)
        dial = _Dial(deadline, _place(url) != _place(asked[0]), through)
        with _in_words(), closing(_Connection(*_place(url), context, dial)) as connection:
            connection.request("GET", _target(url), headers=_HEADERS | known)
            with closing(connection.getresponse()) as response:
                if response.status not in _REDIRECTS:
                    return _fetched(response, known)
                url = _next(asked, response.getheader("Location"))


_HEADERS = {"User-Agent": "proxyfw", "Accept-Encoding": "identity", "Connection": "close"}


class _Bounded(ssl.SSLSocket):
    """A socket from which no more than `allowance` bytes can be read, and none after `deadline`. http.client by itself
    would wait for each byte anew, and takes trailers, interim answers and odd chunks of any size.
    """

    deadline = float("inf")
    allowance = MAX_DOCUMENT + _OVERHEAD

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        self.settimeout(_left(self.deadline))
        count = super().recv_into(buffer, nbytes, flags)
        self.allowance -= count
        if self.allowance < 0:
            raise FetchError(_TOO_LARGE)
        return count


class _Connection(http.client.HTTPConnection):
    default_port = 443

    def __init__(self, host: str, port: int, context: ssl.SSLContext, dial: "_Dial") -> None:
        super().__init__(host, port)
        self._context = context
        self._dial = dial

    def connect(self) -> None:
        dialled = self._dial.to(self.host, self.port)
        dialled.settimeout(_left(self._dial.deadline))
        sock = self._context.wrap_socket(dialled, server_hostname=self.host, suppress_ragged_eofs=False)
        assert isinstance(sock, _Bounded)
        sock.deadline = self._dial.deadline
        self.sock = sock


@dataclass(frozen=True, slots=True)
class _Dial:
    """How a host is reached. `led_away`: a redirect has named it, and not the user: it must not lead to what only this
    netvm can reach; where names are looked up at the far end, that can be told of addresses alone.
    """

    deadline: float
    led_away: bool
    through: UpstreamProxy | None

    def to(self, host: str, port: int) -> socket.socket:
        """A connection. Raises OSError, FetchError."""
        if self.through is None:
            return _dial(host, port, self.deadline, self.led_away)
        try:
            place = ip_address(host)
        except ValueError:
            place = None
        if self.led_away and place is not None and kind_of(place) is not AddressKind.GLOBAL:
            raise FetchError(_NOT_PUBLIC)
        try:
            return leave_blocking(self.through, place or normalise(host), port, lambda: _left(self.deadline))
        except LeaveError as error:
            raise FetchError(error.detail) from None
        except HostnameError:
            raise FetchError("the name does not resolve") from None


def _dial(host: str, port: int, deadline: float, led_away: bool) -> socket.socket:
    """One address after the other; each may take its share of the time that is left."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if led_away:
        found = [each for each in found if kind_of(ip_address(each[4][0])) is AddressKind.GLOBAL]
        if not found:
            raise FetchError(_NOT_PUBLIC)
    failure: OSError = TimeoutError()
    for at, (family, kind, protocol, _name, address) in enumerate(found):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(deadline) / (len(found) - at))
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def _left(deadline: float) -> float:
    """Seconds. Raises TimeoutError when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _place(url: str) -> tuple[str, int]:
    """The host and the port of a URL."""
    try:
        parts = urlsplit(url) if _URL.fullmatch(url) else None
        port = parts.port if parts else None
    except ValueError:
        parts, port = None, None
    if parts is None or parts.scheme != "https" or not parts.hostname or port == 0:
        raise FetchError("this is not an https URL")
    if "@" in parts.netloc:
        raise FetchError("a user name or password in the URL")
    return parts.hostname, port or 443


def _target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _next(asked: list[str], location: str | None) -> str:
    """The URL that a redirect leads to. `asked`: the URLs so far."""
    if location is None:
        raise FetchError("a redirect that leads nowhere")
    try:
        url = urldefrag(urljoin(asked[-1], location.strip())).url
        scheme = urlsplit(url).scheme
    except ValueError:
        raise FetchError("a redirect to what is no URL") from None
    if scheme != "https":
        raise FetchError(f"redirect to {scheme[:20]}:// refused")
    if url in asked:
        raise FetchError("the redirects lead in a circle")
    if len(asked) > MAX_REDIRECTS:
        raise FetchError(f"more than {MAX_REDIRECTS} redirects")
    return url


def _fetched(response: http.client.HTTPResponse, known: dict[str, str]) -> Fetched:
    etag, modified = (_validator(response.getheader(name)) for name in ("ETag", "Last-Modified"))
    if response.status == HTTPStatus.NOT_MODIFIED and known:
        etag, modified = etag or known.get("If-None-Match", ""), modified or known.get("If-Modified-Since", "")
        return Fetched("same", b"", etag, modified)
    if response.status != HTTPStatus.OK:
        raise FetchError(_status(response.status))
    return Fetched("changed", _document(response), etag, modified)


def _status(status: int) -> str:
    try:
        return f"HTTP status {status} ({HTTPStatus(status).phrase})"
    except ValueError:
        return f"HTTP status {status}"


def _document(response: http.client.HTTPResponse) -> bytes:
    coding = response.getheader("Content-Encoding", "identity").strip().lower()
    if coding != "identity":
        raise FetchError("the document is compressed, which was not asked for")
    if not response.chunked and response.getheader("Transfer-Encoding") is not None:
        raise FetchError("the document comes in an unknown transfer coding")
    if response.length is not None and response.length > MAX_DOCUMENT:
        raise FetchError(_TOO_LARGE)
    document = bytearray()
    while piece := response.read(_PIECE):
        document += piece
        if len(document) > MAX_DOCUMENT:
            raise FetchError(_TOO_LARGE)
    if response.length:  # of what was announced, what did not come: http.client does not mind
        raise FetchError(_CUT)
    return bytes(document)


def _validator(header: str | None) -> str:
    return header if header is not None and _VALIDATOR.fullmatch(header) else ""


@contextmanager
def _in_words() -> Iterator[None]:
    """Raises FetchError for everything that a server or the network can do to us."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise FetchError(f"certificate verify failed: {error.verify_message}") from None
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError, BrokenPipeError):
        raise FetchError(_CUT) from None
    except (http.client.IncompleteRead, http.client.RemoteDisconnected):
        raise FetchError(_CUT) from None
    except ssl.SSLError as error:
        reason = (error.reason or "unknown").lower().replace("_", " ")
        raise FetchError(_CUT if reason.startswith("unexpected eof") else f"TLS failed: {reason}") from None
    except (socket.gaierror, UnicodeError):
        raise FetchError("the name does not resolve") from None
    except TimeoutError:
        raise FetchError(_TIMED_OUT) from None
    except OSError as error:
        raise FetchError((error.strerror or "the network failed").lower()) from None
    except (http.client.HTTPException, ValueError):
        raise FetchError("the answer is not HTTP") from None
