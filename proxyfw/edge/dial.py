"""Connecting to one of several addresses, given in order: Happy Eyeballs (RFC 8305 section 5)."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache

from proxyfw.core.address import IPAddress
from proxyfw.edge.poller import Poller, Stream

ATTEMPT_DELAY = 0.25  # seconds before the next address is tried beside one that has not answered
DEADLINE = 10.0  # seconds for all of them together
_REMEMBER = 10.0  # seconds that an address is remembered as not this netvm's own


class OwnAddressError(OSError):
    """The address is this netvm's own: nothing leads there."""


async def dial(
    addresses: Sequence[IPAddress], port: int, poller: Poller, arm: Callable[[float, Stream], None]
) -> Stream:
    """The first connection that stands. Raises OSError: the last attempt's, or TimeoutError at the deadline.

    `arm(seconds, stream)` is to have the stream interrupted by TimeoutError when so much time has gone by.
    """
    alone = len(addresses) == 1
    stream = None
    try:
        stream, connecting = _begin(addresses[0], port, poller)
        # The first address has its turn without the cost of a race: mostly it is all there is to do.
        arm(DEADLINE if alone else ATTEMPT_DELAY, stream)
        await connecting
        return stream
    except TimeoutError:
        if alone:
            _close(stream)
            raise
    except OSError:
        _close(stream)
        stream = None
        if alone:
            raise
    except BaseException:
        _close(stream)
        raise
    async with asyncio.timeout(DEADLINE):
        return await _race(stream, addresses[1:], port, poller)


def _begin(address: IPAddress, port: int, poller: Poller) -> tuple[Stream, Coroutine[None, None, None]]:
    """A stream, and what to await for it to be connected. Raises OSError."""
    if is_own(address, poller.loop.time()):
        raise OwnAddressError(errno.EADDRNOTAVAIL, "the address is this netvm's own")
    sock = socket.socket(_family(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # What the client said first follows at once: it carries the handshake's last ACK, and no packet of its own is sent.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    stream = Stream(sock, poller)
    return stream, stream.connect(str(address), port)


def _family(address: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def is_own(address: IPAddress, now: float) -> bool:
    """Whether the address is this netvm's own (DESIGN, rule 1). `now`: the loop's time, as the answer is kept for a
    while. Raises OSError where there is no route.
    """
    return _is_own(address, int(now / _REMEMBER))


@lru_cache(maxsize=1024)
def _is_own(address: IPAddress, _period: int) -> bool:
    """It alone is reached from that very address. Asked of the routing table, by a UDP socket that sends nothing."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), 9))
        return bool(probe.getsockname()[0] == str(address))


async def _race(first: Stream | None, addresses: Sequence[IPAddress], port: int, poller: Poller) -> Stream:
    """RFC 8305: the next address whenever one fails or is slow, without giving up those under way."""
    waiting = list(addresses)
    trying = {asyncio.create_task(_finish(first, first.connected()))} if first is not None else set()
    error = OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
    try:
        while waiting or trying:
            if waiting:
                try:
                    trying.add(asyncio.create_task(_finish(*_begin(waiting.pop(0), port, poller))))
                except OSError as failure:
                    error = failure
                    continue
            done, trying = await asyncio.wait(
                trying, timeout=ATTEMPT_DELAY if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                outcome = task.result()
                if isinstance(outcome, Stream):
                    trying |= done - {task}
                    return outcome
                error = outcome
        raise error
    finally:
        for task in trying:
            task.cancel()
            task.add_done_callback(_close_unwanted)


async def _finish(stream: Stream, connecting: Coroutine[None, None, None]) -> Stream | OSError:
    try:
        await connecting
    except OSError as error:
        stream.close()
        return error
    except BaseException:
        stream.close()
        raise
    return stream


def _close(stream: Stream | None) -> None:
    if stream is not None:
        stream.close()


def _close_unwanted(task: asyncio.Task[Stream | OSError]) -> None:
    """Two attempts can stand at once; the one that lost is closed."""
    if not task.cancelled():
        outcome = task.result()
        if isinstance(outcome, Stream):
            outcome.close()
