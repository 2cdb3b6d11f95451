"""One connection that mitmproxy has, as the proxy keeps its own: decided, looked up, and in the same log.

It dials itself, one address after the other, and knows no upstream proxies.
"""

from dataclasses import replace
from typing import NamedTuple, cast
from typing import Protocol as Interface

from proxyfw.connection import Connection, Ends
from proxyfw.core.address import IPAddress
from proxyfw.core.explicit import Asked
from proxyfw.core.flow import Flow, Protocol
from proxyfw.core.policy import Policy
from proxyfw.core.sniffed import Sniffed
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict, is_refused
from proxyfw.edge.dial import is_own
from proxyfw.edge.mitm.case import Found
from proxyfw.edge.poller import Stream
from proxyfw.explicit import wanted_by
from proxyfw.reach import Place, find
from proxyfw.shared import Shared


class Peer(NamedTuple):
    """Stands for a server connection in the log: all that is known of it is its address."""

    peer: str


class Keeper(Interface):
    """Who has the connections."""

    def decided(self, case: "MitmCase") -> bool:
        """Whether the connection is settled, or awaits the client's words, has changed; False: too many await them."""

    def close(self, case: "MitmCase") -> None:
        """Ends it at once."""

    def may_tell(self, case: "MitmCase", verdict: Verdict) -> bool:
        """Whether there is room in the log for it."""

    def show(self, case: "MitmCase", told: "Told") -> None:
        """For the view of flows."""


class Told(NamedTuple):
    """What there is to see of a connection: a verdict and the server's address, or the heads of HTTP messages."""

    flow: Flow | None = None
    verdict: Verdict | None = None
    reached: str = ""
    request: bytes = b""
    answer: bytes = b""
    ended: bool = False


class MitmCase(Connection):
    """One of mitmproxy's connections."""

    __slots__ = ("__weakref__", "_keeper")

    def __init__(self, ends: Ends, shared: Shared, keeper: Keeper) -> None:
        nobody = cast(Stream, None)  # the client's socket is mitmproxy's
        super().__init__(nobody, ends, shared, lambda _: keeper.decided(self), lambda _: None)
        self._keeper = keeper

    @property
    def client_name(self) -> str:
        """The client's."""
        return self.ends.client

    @property
    def port(self) -> int:
        """To which the client aims."""
        return self.ends.port

    @property
    def observes(self) -> bool:
        """Whether the client is in observe mode."""
        return self.shared.policy.observes(self.ends.client)

    def close(self, closed_by: str) -> None:
        """Ends the connection at once."""
        if self.request is not None and not self.decided:
            self.tell(self.request.flow, self.request.verdict)  # the server was reached, if for nothing
        self.closed_by = closed_by
        self._keeper.close(self)

    def flow(self, sniffed: Sniffed | None = None) -> Flow:
        """The connection as the policy sees it; datagrams name nothing."""
        if self.protocol is not Protocol.UDP:
            return super().flow(sniffed)
        bare = Flow(self.ends.client, Protocol.UDP, self.ends.destination, self.ends.port)
        return self.shared.policy.decide_pinned(bare, self.names(self.ends.destination))[0]

    def granted_unheard(self) -> bool:
        """Whether whatever is spoken here is permitted: there is no packet layer that forwards what networks grant."""
        return isinstance(self.decide(self.flow()), Allow)

    def is_in_force(self, found: Found) -> bool:
        """Whether the policy that found this still is."""
        return found.policy is self.shared.policy

    def goes_on(self, flow: Flow) -> bool:
        """Whether what was let through last was this very flow."""
        return self.entry is not None and self.entry.flow == flow

    def tell(self, flow: Flow, verdict: Verdict, reached: str = "") -> None:
        """Writes a verdict to the log. What a connection comes to that was ended from here, is none of its client's."""
        if self.closed_by or not self._keeper.may_tell(self, verdict):
            self.set_decided(True)
            return
        self._tell(flow, verdict, reached)

    def _tell(self, flow: Flow, verdict: Verdict, reached: str = "") -> None:
        self.record(flow, verdict, cast(Stream, Peer(reached)) if reached else None)
        self._keeper.show(self, Told(flow, verdict, reached))

    def tell_fault(self, error: Exception) -> None:
        """The same of a fault of proxyfw."""
        self.closed_by = "proxy"
        bare = Flow(self.ends.client, self.protocol, self.ends.destination, self.ends.port)
        self._tell(bare, Deny(Reason.ERROR, detail=repr(error)))

    def note(self, detail: str) -> None:
        """A word on what was let through last."""
        if self.entry is not None:
            self.entry.row.detail = detail

    def end(self, closed_by: str, up: int = 0, down: int = 0) -> None:
        """What was let through last has ended."""
        if self.entry is not None:
            self.end_entry(self.closed_by or closed_by, up, down)
            self._keeper.show(self, Told(ended=True))

    def show(self, request: bytes = b"", answer: bytes = b"") -> None:
        """The head of an HTTP request as it was sent on, or of the answer to it."""
        self._keeper.show(self, Told(request=request, answer=answer))

    async def ask(self, asked: Asked) -> Found:
        """What is asked of a proxy."""
        flow, wanted = wanted_by(self, asked)
        if isinstance(wanted, Deny):
            return Found(flow, wanted, policy=self.shared.policy)
        found = await self.find(wanted)
        return replace(found, flow=flow) if is_refused(found.verdict) else found

    async def find(self, flow: Flow) -> Found:
        """Decides a flow, and looks up where it may go."""
        while True:
            policy = self.shared.policy
            verdict, addresses = await self._find(policy, flow)
            if policy is self.shared.policy:
                return Found(flow, verdict, () if is_refused(verdict) else addresses, policy)

    async def _find(self, policy: Policy, flow: Flow) -> Place:
        if policy.upstream_proxy_of(flow.client) is not None:
            return Place(Deny(Reason.UPSTREAM_PROXY, detail="the mitmproxy engine leaves through no upstream proxy"))
        verdict, addresses = await find(self, policy, flow)
        now = self.shared.poller.loop.time()
        others = tuple(address for address in addresses if not _is_own(address, now))
        if not others and not is_refused(verdict):
            verdict = Deny(Reason.INTERNAL_ADDRESS, verdict.rule, "the address is this machine's own")
        return Place(verdict, others)


def _is_own(address: IPAddress, now: float) -> bool:
    try:
        return is_own(address, now)
    except OSError:  # no route: dialling it says so
        return False
