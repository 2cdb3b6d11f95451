"""A proxy on loopback that leads wherever it is asked for to one port, and tells what it was asked for."""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address

from proxyfw.core.upstreamproxy import Scheme, UpstreamProxy


class Far:
    """`asked`: host and port of each connection, as they were asked for. `refusal`: what it says in place of yes."""

    def __init__(self, scheme: Scheme, to: int, refusal: bytes) -> None:
        self._scheme, self._to, self._refusal = scheme, to, refusal
        self.asked: list[tuple[str, int]] = []
        self.proxy = UpstreamProxy(scheme, ip_address("127.0.0.1"), 1)

    def serve(self, sock: socket.socket) -> None:
        """One connection, to its end."""
        sock.settimeout(10)
        with sock, suppress(OSError, EOFError):
            yes = {Scheme.SOCKS5: self._socks5, Scheme.SOCKS4A: self._socks4a, Scheme.HTTP: self._http}[self._scheme](
                sock
            )
            for byte in self._refusal or yes:
                sock.sendall(bytes([byte]))
            if not self._refusal:
                with socket.create_connection(("127.0.0.1", self._to)) as target:
                    _relay(sock, target)

    def _socks5(self, sock: socket.socket) -> bytes:
        methods = _exactly(sock, _exactly(sock, 2)[1])
        sock.sendall(b"\5\0" if 0 in methods else b"\5\xff")
        kind = _exactly(sock, 4)[3]
        raw = _exactly(sock, {1: 4, 4: 16}.get(kind) or _exactly(sock, 1)[0])
        host = raw.decode() if kind == 3 else str(ip_address(raw))
        self.asked.append((host, int.from_bytes(_exactly(sock, 2))))
        return b"\5\0\0\1" + bytes(6)

    def _socks4a(self, sock: socket.socket) -> bytes:
        head = _exactly(sock, 8)
        _until(sock, b"\0")
        by_name = head[4:7] == bytes(3)
        host = _until(sock, b"\0")[:-1].decode() if by_name else str(ip_address(head[4:]))
        self.asked.append((host, int.from_bytes(head[2:4])))
        return b"\0\x5a" + bytes(6)

    def _http(self, sock: socket.socket) -> bytes:
        target = _until(sock, b"\r\n\r\n").split(b" ")[1].decode()
        host, _, port = target.rpartition(":")
        self.asked.append((host, int(port)))
        return b"HTTP/1.1 200 OK\r\n\r\n"


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        data += _exactly(sock, 1)
    return data


def _relay(one: socket.socket, other: socket.socket) -> None:
    while True:
        for sock in select.select([one, other], [], [], 10)[0]:
            data = sock.recv(1 << 16)
            if not data:
                return
            (other if sock is one else one).sendall(data)


@contextmanager
def far(scheme: Scheme, to: int, refusal: bytes = b"") -> Iterator[Far]:
    """The proxy, while it serves."""
    made = Far(scheme, to, refusal)
    threads: list[threading.Thread] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=made.serve, args=(listener.accept()[0],)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        made.proxy = UpstreamProxy(scheme, ip_address("127.0.0.1"), listener.getsockname()[1])
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield made
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for thread in (accepting, *threads):
                thread.join()
