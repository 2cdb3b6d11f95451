"""What the service takes before it starts: its sockets, and as many descriptors as it may have."""

import resource
import socket
from pathlib import Path

from proxyfw.core.address import IPAddress
from proxyfw.core.config import is_for_listen
from proxyfw.core.qubes_rules import DNS_PORT
from proxyfw.core.ruleset import RELAY4, RELAY6
from proxyfw.edge import files
from proxyfw.edge.dnssocket import DnsSocket
from proxyfw.edge.listen import listen, listen_at
from proxyfw.edge.qubesdb import on_qubes
from proxyfw.edge.upstream import MAX_WAITING
from proxyfw.proxy import DESCRIPTORS_EACH, MAX_CONNECTIONS

SPARE_DESCRIPTORS = 256 + MAX_WAITING + 256  # our own, those of look-ups, and those of queries over TCP
_FEW = 16  # connections, however low the limit of open files


class StartError(Exception):
    """The service cannot start; the message says why and what to do. What was in force stays in force."""


def listening(family: socket.AddressFamily, port: int) -> socket.socket:
    """A listener of the proxy or the relay. Raises StartError."""
    try:
        return listen(family, port)
    except OSError as error:
        raise StartError(f"port {port} on loopback: {error.strerror}; is proxyfw running already?") from None


def listening_at(address: IPAddress, port: int) -> socket.socket:
    """The listener of `explicit: listen:`. Raises StartError."""
    try:
        return listen_at(address, port)
    except OSError as error:
        raise StartError(f"explicit: listen: {address} port {port}: {error.strerror}") from None


def is_local(path: Path) -> bool:
    """Whether the configuration is for programs of this machine alone (`explicit: listen:`): then there is no packet
    layer, and nothing to close. In doubt, and on Qubes OS, it is not.
    """
    try:
        return not on_qubes() and is_for_listen(files.read(path))
    except files.FileError:
        return False  # which is told when it is loaded


def open_dns(family: socket.AddressFamily) -> DnsSocket:
    """Where the relay takes UDP. Raises StartError."""
    sock, address = DnsSocket(family), RELAY6 if family == socket.AF_INET6 else RELAY4
    try:
        sock.open(address)
    except OSError as error:
        fix = f"`ss -lunp sport = {DNS_PORT}` tells who has it; a resolver there must not listen on every address"
        raise StartError(f"UDP port {DNS_PORT} at {address}: {error.strerror}; {fix}") from None
    return sock


def has(family: socket.AddressFamily) -> bool:
    """Whether the kernel has this family (IPv6 can be switched off)."""
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return family == socket.AF_INET or Path("/proc/net/if_inet6").exists()


def raise_descriptors() -> int:
    """Raises the limit of open files as far as it goes; how many connections that allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(min(MAX_CONNECTIONS, (hard - SPARE_DESCRIPTORS) // DESCRIPTORS_EACH), _FEW)
