"""What mitmproxy's connections are to the service: admitted within limits, and judged again by each new policy."""

import time
from collections.abc import Callable

from proxyfw.connection import Ends
from proxyfw.core.address import IPAddress
from proxyfw.core.flow import Flow, Protocol
from proxyfw.core.ratelimit import RateLimit
from proxyfw.core.verdict import Deny, Reason, Verdict, is_refused
from proxyfw.dnsrelay import Asked, DnsRelay
from proxyfw.dnsserve import BURST, RATE, SHARE, SHARE_AT_ONCE
from proxyfw.edge.mitm.addon import DNS_PORT
from proxyfw.edge.mitm.case import Case
from proxyfw.edge.mitm.udp import Answer
from proxyfw.mitmcase import MitmCase, Told
from proxyfw.proxy import SWEEP, TOTAL, Proxy
from proxyfw.shared import Shared

WIREGUARD_PEER = "10.0.0.1"
"""The address in the tunnel that mitmproxy gives its WireGuard peer."""

_ROWS, _ROWS_AT_ONCE = 50.0, 200.0  # rows about refused datagrams of one client: as for packets of the packet layer


class MitmProxy(Proxy):
    """Stands where the proxy stands in the service. `on_close(case)`: ends a connection. `on_show(case, told)`: for the
    view of flows. Both are set when mitmproxy is there.
    """

    def __init__(self, shared: Shared, relay: DnsRelay, wireguard: bool, max_connections: int) -> None:
        """`wireguard`: there is a WireGuard peer."""
        super().__init__(shared, max_connections)
        self.on_close: Callable[[MitmCase], None] = lambda _: None
        self.on_show: Callable[[MitmCase, Told], None] = lambda *_: None
        self._relay = relay
        self._wireguard = wireguard
        self._rows = RateLimit(_ROWS, _ROWS_AT_ONCE)
        self._queries = RateLimit(RATE, BURST)
        self._share = RateLimit(SHARE, SHARE_AT_ONCE)

    def admit(self, address: str, mode: str, destination: IPAddress | None, port: int, udp: bool) -> MitmCase | None:
        """A connection of a client; None where it is refused."""
        self.accepted += 1
        shared = self._shared
        name, why = self._who(address, mode)
        ends = Ends(name or "", address, destination, str(destination or ""), port)
        case = MitmCase(ends, shared, self)
        case.protocol = Protocol.UDP if udp else Protocol.TCP
        deny = Deny(Reason.UNKNOWN_CLIENT, detail=why) if why else self._beyond_limit(name)
        if udp or (destination is not None and port == DNS_PORT):
            case.decided = True  # there is nothing to wait for: a burst of them takes no place of connections
        else:
            self._undecided[ends.client] += 1
        if deny is not None:
            case.tell(Flow(ends.client, case.protocol, destination, port), deny)
            return None
        self._live.add(case)
        self._per_client[ends.client] += 1
        return case

    def _who(self, address: str, mode: str) -> tuple[str | None, str]:
        """Whose connection it is, and what is wrong with its address.

        What comes through the tunnel says itself from which address it comes: only the peer's own is believed, and from
        nowhere else.
        """
        if self._wireguard and (mode == "wireguard") != (address == WIREGUARD_PEER):
            return None, f"only the WireGuard peer has {WIREGUARD_PEER}, and no other address"
        return self._shared.policy.client_at(address), ""

    def done(self, case: Case) -> None:
        """The connection is over."""
        assert isinstance(case, MitmCase)
        case.end("client")
        self._done(case)

    def answer(self, case: Case) -> Answer:
        """Who answers the DNS queries of this connection."""
        assert isinstance(case, MitmCase)
        ends = case.ends
        bare = Flow(ends.client, case.protocol, ends.destination, ends.port)

        async def reply(message: bytes, udp: bool) -> bytes:
            now = self._now()
            if self._share.left(ends.client, now) <= 0 or not self._queries.take(ends.client, now):
                self._relay.counts.dropped += 1
                return b""
            try:
                verdict = self._shared.policy.decide(bare)  # as the packet layer would
                if is_refused(verdict):
                    case.tell(bare, verdict)
                    return b""
                found = self._reply(message, ends, udp)
                return await self._relay.look_up(found) if isinstance(found, Asked) else found
            except Exception as error:  # noqa: BLE001 - a fault of ours refuses one query, and is logged
                return self._relay.fault(message, ends.address, ends.destination_text, error)

        return reply

    def fault(self, error: Exception) -> None:
        """A fault of proxyfw that belongs to no connection that is known."""
        self._shared.poller.loop.call_exception_handler({"message": "a fault of proxyfw", "exception": error})

    # What a connection asks for.

    def decided(self, case: MitmCase) -> bool:
        """Counts those that await their client's words; False: too many do."""
        return self._on_decided(case)

    def close(self, case: MitmCase) -> None:
        """Ends a connection at once."""
        self.on_close(case)

    def show(self, case: MitmCase, told: Told) -> None:
        """For the view of flows."""
        self.on_show(case, told)

    def may_tell(self, case: MitmCase, verdict: Verdict) -> bool:
        """Whether there is room in the log: datagrams to many ports are as many refusals."""
        refused = is_refused(verdict) and case.protocol is Protocol.UDP
        return not refused or self._rows.take(case.ends.client, self._now())

    def _sweep(self) -> None:
        """Of what is idle, mitmproxy takes care."""
        now = self._now()
        for connection in tuple(self._live):
            if connection.entry is not None and now - connection.entry.since > TOTAL:
                connection.close("limit")
        self._sweeper = self._shared.poller.loop.call_later(SWEEP, self._sweep)

    def _reply(self, message: bytes, ends: Ends, udp: bool) -> bytes | Asked:
        begun = time.thread_time()
        try:
            return self._relay.reply(message, ends.address, ends.destination_text, udp)
        finally:
            self._share.spend(ends.client, time.thread_time() - begun, self._now())

    def _now(self) -> float:
        return self._shared.poller.loop.time()
