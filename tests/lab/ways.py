"""A tunnel asked for by hand, by each protocol of the explicit proxy: the bytes that are said and heard."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

GREETING, WELCOME = b"\5\1\0", b"\5\0"


def reply(code: int) -> bytes:
    """A reply of SOCKS5, RFC 1928 section 6."""
    return bytes([5, code, 0, 1]) + bytes(6)


def request5(host: str, port: int, command: int = 1) -> bytes:
    """A request of SOCKS5: for a name, or for an address where the host is one."""
    try:
        address = ip_address(host)
        where = bytes([1 if address.version == 4 else 4]) + address.packed
    except ValueError:
        where = bytes([3, len(host)]) + host.encode()
    return bytes([5, command, 0]) + where + port.to_bytes(2)


def request4(host: str, port: int, command: int = 1) -> bytes:
    """A request of SOCKS 4a for a name, of SOCKS4 where the host is an address."""
    begin = bytes([4, command]) + port.to_bytes(2)
    try:
        return begin + ip_address(host).packed + b"user\0"
    except ValueError:
        return begin + b"\0\0\0\1user\0" + host.encode() + b"\0"


def connect_request(host: str, port: int) -> bytes:
    """A request of HTTP, RFC 9110 section 9.3.6."""
    return f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()


@dataclass(frozen=True)
class Way:
    """How a tunnel is asked for. `request(host, port)`: all that is said; `success`: all that is heard."""

    word: str
    request: Callable[[str, int], bytes]
    success: bytes
    source: str

    def __str__(self) -> str:
        return self.word


SOCKS5 = Way("SOCKS5", lambda host, port: GREETING + request5(host, port), WELCOME + reply(0), "socks")
SOCKS4A = Way("SOCKS4a", request4, b"\0\x5a" + bytes(6), "socks")
CONNECT = Way("CONNECT", connect_request, b"HTTP/1.1 200 Connection established\r\n\r\n", "connect")
