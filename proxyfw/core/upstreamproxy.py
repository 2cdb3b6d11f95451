"""Another proxy by which a client's connections leave (`upstream_proxy:`), and what stands for names meanwhile.

Names are resolved at the far end: a client is told a *mapped address* of each, out of a range that is nobody's, and the
name that is pinned to it is what the proxy is asked for.
"""

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from urllib.parse import unquote

from proxyfw.core.address import IPAddress
from proxyfw.core.hostname import Hostname

MAPPED = IPv4Network("198.18.0.0/15")
"""The range of the mapped addresses: of benchmarks (RFC 2544, RFC 6890), and so in no network that is in use."""

MAPPED_TTL = 60
"""Seconds that a client is told to keep a mapped address."""

EXAMPLE = "socks5://10.137.0.5:9050"

_URL = re.compile(r"([a-z0-9+.-]+)://(?:(.*)@)?(\[[0-9A-Fa-f:.]+\]|[^\[\]@:/?#]*)(?::([0-9]*))?([/?#].*)?", re.DOTALL)
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_MAX_PORT = 65535
_MAX_FIELD = 255  # bytes of a user's name and of a password, RFC 1929 section 2


class Scheme(StrEnum):
    """What the proxy speaks."""

    SOCKS5 = "socks5"  # RFC 1928, with RFC 1929
    SOCKS4A = "socks4a"
    HTTP = "http"  # CONNECT, RFC 9110 section 9.3.6


@dataclass(frozen=True, slots=True)
class UpstreamProxy:
    """Where connections leave. As text it is without the password, which is in no message and no `repr` either.

    `user`, `password`: "" for none; ASCII, where it is SOCKS.
    """

    scheme: Scheme
    address: IPAddress
    port: int
    user: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else f"{self.address}"
        return f"{self.scheme}://{host}:{self.port}"


class UpstreamProxyError(ValueError):
    """It is no upstream proxy. The message and the fix have nothing of the text, as a password may be in it."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


def parse_upstream_proxy(text: str) -> UpstreamProxy:
    """The proxy that a URL names. Raises UpstreamProxyError."""
    match = _URL.fullmatch(text)
    if not match:
        raise UpstreamProxyError("this is not the URL of a proxy", f"write it as in {EXAMPLE}")
    scheme_text, login, host, port_text, rest = match.groups()
    scheme = _scheme(scheme_text)
    if rest:
        raise UpstreamProxyError("something follows the port", "end it with the port: no path, no query")
    address = _address(host)
    if not port_text or not _PORT.fullmatch(port_text) or int(port_text) > _MAX_PORT:
        raise UpstreamProxyError(
            "the port of the proxy is missing, or is none", "write a number from 1 to 65535 after it, as in :9050"
        )
    user, password = _login(scheme, login) if login is not None else ("", "")
    return UpstreamProxy(scheme, address, int(port_text), user, password)


def _scheme(text: str) -> Scheme:
    if text in tuple(Scheme):
        return Scheme(text)
    fixes = {
        "socks": "write socks5://",
        "socks5h": "write socks5://: names are always resolved at the far end",
        "socks4": "write socks4a://, which takes names: SOCKS 4 by itself takes addresses alone",
        "https": "write http://: TLS to the proxy itself is not spoken here",
    }
    fix = fixes.get(text, f"write one of {', '.join(f'{scheme}://' for scheme in Scheme)}")
    raise UpstreamProxyError("a proxy of this kind is not known", fix)


def _address(host: str) -> IPAddress:
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        raise UpstreamProxyError(
            "the proxy is not named by an address", "write its address: to look a name up would tell that it is used"
        ) from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        raise UpstreamProxyError("an IPv4 address in IPv6", f"write {address.ipv4_mapped}, without brackets")
    if (address.version == 6) != host.startswith("["):
        raise UpstreamProxyError("brackets are for IPv6 addresses", "write it as in 10.137.0.5:9050 or [fd09::5]:9050")
    if address.is_multicast or address.is_unspecified:
        raise UpstreamProxyError("nobody listens at this address", "write the address of the proxy")
    return address


def _login(scheme: Scheme, text: str) -> tuple[str, str]:
    """The user and the password, decoded (RFC 3986 section 2.1)."""
    if _ESCAPE.search(text):
        raise UpstreamProxyError("a % without two digits before the @", "write %25 for a % in a user or a password")
    user_text, colon, password_text = text.partition(":")
    try:
        user, password = (unquote(each, errors="strict") for each in (user_text, password_text))
    except UnicodeDecodeError:
        raise UpstreamProxyError(
            "the user or the password is not UTF-8", "write letters outside ASCII as their bytes in UTF-8, as in %C3%A9"
        ) from None
    if not user:
        raise UpstreamProxyError("there is no user before the @", "write user:password@, or remove the @")
    if scheme is Scheme.SOCKS4A and colon:
        raise UpstreamProxyError("SOCKS 4 knows no password", "write a user alone, or socks5://")
    if scheme is Scheme.SOCKS5 and not password:
        raise UpstreamProxyError("a user without a password", "write user:password@, as SOCKS 5 wants both")
    if scheme is Scheme.HTTP and ":" in user:
        raise UpstreamProxyError("a colon in the user", "take another user: HTTP ends it at the first colon")
    _check_login(scheme, user, password)
    return user, password


def _check_login(scheme: Scheme, user: str, password: str) -> None:
    for part in (user, password):
        if any(not each.isprintable() for each in part):
            raise UpstreamProxyError("a control character in the user or the password", "take it out")
        if scheme is not Scheme.HTTP and not part.isascii():
            raise UpstreamProxyError("the user or the password is not ASCII", "take others, as SOCKS names no encoding")
        if len(part.encode()) > _MAX_FIELD:
            raise UpstreamProxyError(
                "the user or the password is too long", f"take others of at most {_MAX_FIELD} bytes"
            )


def mapped(name: Hostname) -> IPv4Address:
    """The mapped address of a name: always the same, so that what is pinned outlives a restart.

    Two names may have one. What is asked of the proxy is a pinned name, which is granted whichever it is; and TLS and
    HTTP say which of them they are for.
    """
    number = int.from_bytes(hashlib.sha256(name.encode()).digest())
    return MAPPED.network_address + 1 + number % (MAPPED.num_addresses - 1)


def is_mapped(address: IPAddress | None) -> bool:
    """Whether the address is of the range: to a client with an upstream proxy, it stands for a name."""
    return isinstance(address, IPv4Address) and address in MAPPED
