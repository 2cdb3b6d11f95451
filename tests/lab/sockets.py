"""Sockets inside the lab's namespaces, for clients and servers that a test makes by hand."""

import ctypes
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from proxyfw.demo.lab import Lab

PATIENCE = 8.0  # seconds for anything to arrive
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def socket_in(namespace: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that lives in a network namespace: made by a thread that has entered it (setns(2) is for one thread)."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_make, namespace, family, kind, protocol).result()


def _make(namespace: str, family: int, kind: int, protocol: int) -> socket.socket:
    with open(f"/run/netns/{namespace}") as handle:
        if _libc.setns(handle.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    sock = socket.socket(family, kind, protocol)
    sock.settimeout(PATIENCE)
    return sock


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def connect(lab: Lab, client: str, address: str, port: int) -> socket.socket:
    """A TCP connection of a client; what it sends goes out at once."""
    sock = socket_in(lab.network.namespace(client), family_of(address), socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect((address, port))
    except OSError:
        sock.close()
        raise
    return sock


def udp(lab: Lab, client: str, address: str, port: int) -> socket.socket:
    """A connected UDP socket of a client: it is told of ICMP errors."""
    sock = socket_in(lab.network.namespace(client), family_of(address), socket.SOCK_DGRAM)
    sock.connect((address, port))
    return sock


def read_all(sock: socket.socket) -> bytes:
    """Everything until the peer's end or reset."""
    data = b""
    with suppress(ConnectionError):
        while piece := sock.recv(65536):
            data += piece
    return data


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """Bytes up to and with `end`; what came where the peer ended before."""
    data = b""
    while end not in data and (piece := sock.recv(65536)):
        data += piece
    return data


class Server:
    """A TCP server in the lab's internet: every connection is given to `handle`, in a thread of its own.

    What `handle` returns, or the OSError it raises, is the next `result()`.
    """

    def __init__(self, lab: Lab, address: str, port: int, handle: Callable[[socket.socket], Any]) -> None:
        self._handle = handle
        self._results: queue.Queue[Any] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._accepted: list[socket.socket] = []
        self._listener = socket_in(lab.network.internet, family_of(address), socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.settimeout(None)
        self._listener.bind((address, port))
        self._listener.listen()

    def __enter__(self) -> "Server":
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self._accepted):  # which ends whoever waits for them
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(2 * PATIENCE)
        self._listener.close()

    def result(self) -> Any:
        """What came of the next connection that has ended."""
        return self._results.get(timeout=PATIENCE)

    @property
    def untouched(self) -> bool:
        """Whether no connection has come."""
        return len(self._threads) == 1

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._accepted.append(self._listener.accept()[0])
                self._start(self._serve, self._accepted[-1])

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(PATIENCE)
            try:
                self._results.put(self._handle(sock))
            except OSError as error:
                self._results.put(error)


class UdpEcho:
    """Sends every datagram back, in the lab's internet. `seen`: what came."""

    def __init__(self, lab: Lab, address: str, port: int) -> None:
        self.seen: list[bytes] = []
        self._sock = socket_in(lab.network.internet, family_of(address), socket.SOCK_DGRAM)
        self._sock.settimeout(None)
        self._sock.bind((address, port))
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "UdpEcho":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # an unconnected socket says so, and its reader is woken all the same
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._sock.close()

    def _serve(self) -> None:
        while True:
            data, sender = self._sock.recvfrom(2048)
            if not sender:
                return
            self.seen.append(data)
            with suppress(BrokenPipeError):  # it is being ended just now
                self._sock.sendto(data, sender)


def echo(sock: socket.socket) -> bytes:
    """A handler: sends everything back, and says what it was."""
    data = b""
    while piece := sock.recv(65536):
        data += piece
        sock.sendall(piece)
    return data


def eventually(check: Callable[[], Any], patience: float = 3.0) -> Any:
    """The first true answer of `check`; its last answer where none comes in time."""
    end = time.monotonic() + patience
    while not (answer := check()) and time.monotonic() < end:
        time.sleep(0.02)
    return answer
