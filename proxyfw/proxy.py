"""The TCP proxy: takes what the packet layer hands over, within limits, and keeps track of what lives."""

import asyncio
import errno
import socket
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address

from proxyfw.connection import Connection, Ends, Entry, Request
from proxyfw.core.address import IPAddress
from proxyfw.core.hostname import Hostname
from proxyfw.core.policy import Policy
from proxyfw.core.verdict import Deny, Reason, is_by_name, is_refused
from proxyfw.edge.poller import Stream
from proxyfw.explicit import serve_explicit
from proxyfw.serve import serve
from proxyfw.shared import Shared

MAX_CONNECTIONS = 16384
MAX_PER_CLIENT = 4096  # and never more than half of those that there may be
MAX_UNDECIDED = 512  # of one client, without a verdict yet: each may hold 64 KiB of a hello in pieces
DESCRIPTORS_EACH = 6  # two sockets, and a pipe each way when both are stalled
IDLE = 3600.0  # seconds without a byte either way in a splice
HTTP_IDLE = 300.0  # the same between and inside plain HTTP requests
TOTAL = 7 * 86400.0  # seconds that one connection may last
SWEEP = 15.0  # seconds between two looks for these
TICK = 0.1  # seconds between two looks for deadlines, while there are connections that have one
_ACCEPTS = 64  # connections accepted before others get their turn
_PAUSE = 0.1  # seconds without accepting when descriptors run out


class Proxy:
    """Accepts connections from listeners and runs them. `accepted` counts them."""

    def __init__(self, shared: Shared, max_connections: int = MAX_CONNECTIONS) -> None:
        self._shared = shared
        self._max, self._max_per_client = max_connections, min(MAX_PER_CLIENT, max_connections // 2)
        self._listeners: list[socket.socket] = []
        self._explicit: frozenset[socket.socket] = frozenset()
        self._live: set[Connection] = set()
        self._per_client: Counter[str] = Counter()
        self._undecided: Counter[str] = Counter()
        self._young: set[Connection] = set()  # may hold some that are set up by now
        self._sweeper: asyncio.TimerHandle | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self.accepted = 0

    def start(self, listeners: list[socket.socket], explicit: list[socket.socket]) -> None:
        """Begins to accept. `explicit`: the listeners for clients that ask for a proxy."""
        self._listeners, self._explicit = [*listeners, *explicit], frozenset(explicit)
        for listener in self._listeners:
            self._shared.poller.loop.add_reader(listener.fileno(), self._accept, listener)
        self._sweep()

    def stop(self) -> None:
        """Stops accepting and closes every connection."""
        for listener in self._listeners:
            self._shared.poller.loop.remove_reader(listener.fileno())
            listener.close()
        for timer in (self._sweeper, self._ticker):
            if timer is not None:
                timer.cancel()
        for connection in tuple(self._live):
            connection.close("proxy")

    def open_connections(self) -> dict[str, int]:
        """How many connections each client has."""
        return dict(self._per_client)

    def rejudge(self, policy: Policy) -> int:
        """Puts a new policy in force and closes what it forbids; how many that were."""
        before, self._shared.policy = self._shared.policy, policy
        closed = 0
        for connection in tuple(self._live):
            if not _may_go_on(connection, before, policy):
                connection.close("policy")
                closed += 1
        return closed

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause(listener)
                    return
                continue  # that one connection is gone already
            self.accepted += 1
            try:
                sock.setblocking(False)
                self._admit(sock, peer[0], listener in self._explicit)
            except OSError:
                sock.close()

    def _admit(self, sock: socket.socket, address: str, explicit: bool) -> None:
        shared = self._shared
        text, port = sock.getsockname()[:2]
        name = shared.policy.client_at(address)
        ends = Ends(name or "", address, None if explicit else _address(text), "" if explicit else text, port)
        connection = Connection(Stream(sock, shared.poller), ends, shared, self._on_decided, self._done)
        deny = self._beyond_limit(name)
        self._undecided[ends.client] += 1
        if deny is not None:
            connection.record(connection.flow(), deny)
            connection.client.reset_on_close()
            connection.client.close()
            return
        self._live.add(connection)
        self._per_client[ends.client] += 1
        self._young.add(connection)
        connection.start(serve_explicit if explicit else serve)
        if self._ticker is None:
            self._ticker = shared.poller.loop.call_later(TICK, self._tick)

    def _beyond_limit(self, client: str | None) -> Deny | None:
        if client is None:
            return Deny(Reason.UNKNOWN_CLIENT)
        if len(self._live) >= self._max:
            return Deny(Reason.LIMIT, detail=f"{self._max} connections are open in all")
        if self._per_client[client] >= self._max_per_client:
            return Deny(Reason.LIMIT, detail=f"{self._max_per_client} connections of this client are open")
        if self._undecided[client] >= MAX_UNDECIDED:
            return Deny(Reason.LIMIT, detail=f"{MAX_UNDECIDED} connections of this client are being set up")
        return None

    def _on_decided(self, connection: Connection) -> bool:
        self._undecided[connection.ends.client] -= 1 if connection.decided else -1
        return connection.decided or self._undecided[connection.ends.client] <= MAX_UNDECIDED

    def _done(self, connection: Connection) -> None:
        if connection in self._live:
            self._live.remove(connection)
            connection.set_decided(True)
            self._per_client[connection.ends.client] -= 1
            if not self._per_client[connection.ends.client]:
                del self._per_client[connection.ends.client]

    def _pause(self, listener: socket.socket) -> None:
        """Out of descriptors: what waits in the backlog is accepted when some are free again; nothing gets through."""
        loop = self._shared.poller.loop
        loop.remove_reader(listener.fileno())
        loop.call_later(_PAUSE, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._shared.poller.loop.add_reader(listener.fileno(), self._accept, listener)

    def _tick(self) -> None:
        loop = self._shared.poller.loop
        now = loop.time()
        self._young = {connection for connection in self._young if connection.setting_up}
        for connection in self._young:
            connection.expire(now)
        self._ticker = loop.call_later(TICK, self._tick) if self._young else None

    def _sweep(self) -> None:
        loop = self._shared.poller.loop
        now = loop.time()
        for connection in tuple(self._live):
            splice = connection.splice
            if connection.entry is not None and now - connection.entry.since > TOTAL:
                connection.close("limit")
            elif now - (splice.active_at if splice else connection.active_at) > (IDLE if splice else HTTP_IDLE):
                connection.close("idle")
        self._sweeper = loop.call_later(SWEEP, self._sweep)


def _may_go_on(connection: Connection, before: Policy, policy: Policy) -> bool:
    ends, entry, request = connection.ends, connection.entry, connection.request
    if policy.client_at(ends.address) != ends.client:
        return False
    if policy.upstream_proxy_of(ends.client) != before.upstream_proxy_of(ends.client):
        return False
    if request is not None and not _may_still_ask(policy, request, connection.names(request.flow.destination)):
        return False
    if entry is None:
        return True
    reached = _address(entry.row.destination) if entry.row.destination else None
    return _still_permitted(policy, entry, connection.names(entry.flow.destination or reached))


def _may_still_ask(policy: Policy, request: Request, told: Iterable[Hostname]) -> bool:
    flow = request.flow
    as_aimed = flow.destination is not None and not is_by_name(request.verdict)
    if as_aimed and policy.dropped_as_aimed(flow, told) is not None:
        return False
    return not is_refused(policy.decide(flow))


def _still_permitted(policy: Policy, entry: Entry, told: Iterable[Hostname]) -> bool:
    """Whether it may go on. `told`: the names by which the address is known that the client aimed at."""
    flow = entry.flow
    if not entry.by_name and policy.dropped_as_aimed(flow, told) is not None:
        return False
    verdict = policy.decide(flow)
    if policy.upstream_proxy_of(flow.client) is not None:
        return not is_refused(verdict)  # where the far end went, is not known here
    if not entry.row.destination:  # it left by an upstream proxy, which is there no longer
        return False
    reached = _address(entry.row.destination)
    if is_by_name(verdict):
        # What was let through for another reason was dialled where the client aimed: that may be anybody's address.
        if entry.by_name and policy.reachable(flow, verdict, [reached]):
            return True
        return policy.observes(flow.client) and not is_refused(policy.decide(flow._replace(destination=reached)))
    if entry.by_name or flow.destination is None:
        # Where the client aimed may be granted by now, by its address: that is not where the connection goes.
        verdict = policy.decide(flow._replace(destination=reached))
    return not is_refused(verdict)


@lru_cache(maxsize=4096)
def _address(text: str) -> IPAddress:
    return ip_address(text.partition("%")[0])
