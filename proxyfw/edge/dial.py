"""Connecting to one of several addresses, given in order: Happy Eyeballs (RFC 8305 section 5)."""

import asyncio
import errno
import socket
from collections.abc import Sequence

from proxyfw.core.address import IPAddress
from proxyfw.edge.poller import Poller, Stream

ATTEMPT_DELAY = 0.25  # seconds before the next address is tried beside one that has not answered
DEADLINE = 10.0  # seconds for all of them together


async def dial(addresses: Sequence[IPAddress], port: int, poller: Poller) -> Stream:
    """The first connection that stands. Raises OSError: the last attempt's, or TimeoutError at the deadline."""
    async with asyncio.timeout(DEADLINE):
        if len(addresses) == 1:
            return await _connect(addresses[0], port, poller)
        return await _race(addresses, port, poller)


async def _connect(address: IPAddress, port: int, poller: Poller) -> Stream:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    stream = Stream(sock, poller)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        await stream.connect(str(address), port)
        # A machine that reaches an address from that very address is the one that has it: this netvm (DESIGN, rule 1).
        if sock.getsockname()[0] == str(address):
            raise OSError(errno.EADDRNOTAVAIL, "the address is this netvm's own")
    except BaseException:
        stream.close()
        raise
    return stream


async def _race(addresses: Sequence[IPAddress], port: int, poller: Poller) -> Stream:
    waiting = list(addresses)
    trying: set[asyncio.Task[Stream]] = set()
    error = OSError(errno.EHOSTUNREACH, "no address to try")
    try:
        while waiting or trying:
            if waiting:
                trying.add(asyncio.create_task(_connect(waiting.pop(0), port, poller)))
            done, trying = await asyncio.wait(
                trying, timeout=ATTEMPT_DELAY if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                failure = task.exception()
                if failure is None:
                    return task.result()
                if not isinstance(failure, OSError):
                    raise failure
                error = failure
        raise error
    finally:
        for task in trying:
            task.cancel()
            task.add_done_callback(_close_unwanted)


def _close_unwanted(task: asyncio.Task[Stream]) -> None:
    """Two attempts can stand at once; the one that lost is closed."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
