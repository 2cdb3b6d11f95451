"""Which host an HTTP/1 request names, and how the request is written anew for it.

RFC 9112 section 3, RFC 9110 section 7.
"""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import h11

from proxyfw.core.address import IPAddress
from proxyfw.core.hostname import Hostname, HostnameError, normalise
from proxyfw.core.http1_head import FRAMING, ONCE, BadHead
from proxyfw.core.verdict import Reason

DEFAULT_PORT = 80

_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://")
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:]+))(?::(?P<port>[^:]*))?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")

# Fields for one hop only (RFC 9110 section 7.6.1). Without HTTP2-Settings and Upgrade an offer of h2c is declined.
_ONE_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"te",
        b"upgrade",
        b"http2-settings",
    }
)
_TRAILER_NEVER = ONCE | _ONE_HOP

Head = h11.Request | h11.InformationalResponse | h11.Response


@dataclass(frozen=True, slots=True)
class Judged:
    """A request that may be asked about: the host it names, and the request as it will be sent if permitted.

    `name` is None where the client named no host, or an address. `address` and `port`: only in proxy mode.
    """

    name: Hostname | None
    request: h11.Request
    address: IPAddress | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class _Authority:
    """A host and a port, as Host or a URL gave them. `host` None: an empty Host field."""

    host: Hostname | IPAddress | None = None
    port: int | None = None


def judge_connect(request: h11.Request) -> tuple[Hostname | IPAddress, int]:
    """The host and the port to which CONNECT asks for a tunnel. Raises BadHead.

    RFC 9110 section 9.3.6; RFC 9112 section 3.2.3 for the target.
    """
    asked = _authority(request.target, "the target")
    if asked.host is None or asked.port is None:
        raise BadHead("the target of CONNECT is not a host and a port")
    in_host = _host_of(request)
    if in_host is not None and in_host.host != asked.host:
        raise BadHead("Host and the target name different hosts", Reason.AMBIGUOUS)
    if in_host is not None and in_host.port not in (None, asked.port):
        raise BadHead("Host and the target name different ports", Reason.AMBIGUOUS)
    # A body would be read as the tunnel's first bytes by one, and not by another.
    if any(name in FRAMING and (name != b"content-length" or int(value)) for name, value in request.headers):
        raise BadHead("CONNECT with a body")
    return asked.host, asked.port


def judge_forward(request: h11.Request) -> Judged:
    """To what host and port a proxy is to send the request on: it names them in a URL. Raises BadHead.

    RFC 9112 section 3.2.2.
    """
    if request.target == b"*" or request.target.startswith(b"/"):
        raise BadHead("the request names no URL, and this is a proxy")
    in_host = _host_of(request)
    target, in_url = _target(request, elsewhere=", for which a proxy is asked by CONNECT")
    assert in_url is not None
    assert in_url.host is not None
    port = in_url.port or DEFAULT_PORT
    if in_host is not None and in_host.host != in_url.host:
        raise BadHead("Host and the URL name different hosts", Reason.AMBIGUOUS)
    if in_host is not None and in_host.port not in (None, port):
        raise BadHead("Host and the URL name different ports", Reason.AMBIGUOUS)
    name, address = (in_url.host, None) if isinstance(in_url.host, str) else (None, in_url.host)
    return Judged(name, _written(request, target, in_url.host, in_url.port), address, port)


def judge(request: h11.Request, port: int) -> Judged:
    """What host the request names, on a connection to `port`. Raises BadHead."""
    in_host = _host_of(request)
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
    written = _written(request, target, host, port if with_port else None)
    return Judged(host if isinstance(host, str) else None, written)


def _written(request: h11.Request, target: bytes, host: Hostname | IPAddress | None, port: int | None) -> h11.Request:
    """The request as it is sent on."""
    headers = [(b"Host", _host_field(host, port)), *_sent_on(request)]
    if _asks_for_websocket(request):
        headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    return h11.Request(method=request.method, target=target, headers=headers)


def _target(request: h11.Request, elsewhere: str = "") -> tuple[bytes, _Authority | None]:
    """The target in origin-form (or `*`), and the authority if it was a URL. RFC 9112 section 3.2.

    `elsewhere`: what is said of an https URL.
    """
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
        secure = scheme[1].lower() == b"https"
        raise BadHead("the URL has a scheme other than http" + (elsewhere if secure else ""))
    authority, path = _split(target[scheme.end() :])
    if not authority:
        raise BadHead("the URL names no host")
    if not path and options:
        path = b"*"
    elif not path.startswith(b"/"):
        path = b"/" + path
    return path, _authority(authority, "the URL")


def _host_of(request: h11.Request) -> _Authority | None:
    return next((_authority(value, "Host") for name, value in request.headers if name == b"host"), None)


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


def _host_field(host: Hostname | IPAddress | None, port: int | None) -> bytes:
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
    dropped = _ONE_HOP | (frozenset(list_of(message, b"connection")) - ONCE)
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
