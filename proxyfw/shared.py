"""What the proxy, its connections and the relay have in common."""

from dataclasses import dataclass, field

from proxyfw.core.policy import Policy
from proxyfw.core.ratelimit import RateLimit
from proxyfw.edge.logdb import LogWriter
from proxyfw.edge.poller import Poller
from proxyfw.edge.resolver import Resolver
from proxyfw.edge.splice import Pipes
from proxyfw.pinning import PinKeeper

LOOKUPS, LOOKUPS_AT_ONCE = 50.0, 500.0
"""Names that one client may have looked up, by a query or by a connection: a second, and after a rest. A page with a
hundred hosts takes three hundred; data hidden in the names of a permitted domain gets no more than this."""

MAX_WAITING = 128  # look-ups of one client under way


@dataclass(slots=True)
class Shared:
    """`policy` is replaced as a whole on reload, and `resolver` where the resolvers change; everything else stays."""

    policy: Policy
    resolver: Resolver
    poller: Poller
    log: LogWriter
    pins: PinKeeper
    pipes: Pipes = field(default_factory=Pipes)
    lookups: RateLimit = field(default_factory=lambda: RateLimit(LOOKUPS, LOOKUPS_AT_ONCE))

    def may_look_up(self, client: str) -> bool:
        """Whether the resolvers may be asked for one more name on behalf of this client; it counts as asked."""
        waiting = self.resolver.waiting[client]
        return waiting < MAX_WAITING and self.lookups.take(client, self.poller.loop.time())
