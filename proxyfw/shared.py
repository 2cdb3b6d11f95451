"""What the proxy, its connections and the relay have in common."""

from collections import Counter
from dataclasses import dataclass, field

from proxyfw.core.policy import Policy
from proxyfw.core.ratelimit import RateLimit
from proxyfw.edge.logdb import LogWriter
from proxyfw.edge.poller import Poller
from proxyfw.edge.resolver import Resolver
from proxyfw.edge.splice import Pipes
from proxyfw.pinning import PinKeeper

LOOKUPS, LOOKUPS_AT_ONCE = 50.0, 500.0
"""Questions that one client may have put to the resolvers, by queries and by connections: a second, and after a rest. A
page with a hundred hosts takes three hundred; data hidden in the names of a permitted domain gets no more than this."""

MAX_WAITING = 128  # look-ups of one client under way
BYTES_OF_ONE = 1024  # of a reply, that count as one more look-up


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

    looked_up: Counter[str] = field(default_factory=Counter)
    """Questions put to the resolvers on behalf of each client."""

    def may_look_up(self, client: str, questions: int = 1) -> bool:
        """Whether the resolvers may be asked one more name on behalf of this client; if so, it counts as asked."""
        now = self.poller.loop.time()
        if self.resolver.waiting[client] >= MAX_WAITING or self.lookups.left(client, now) < questions:
            return False
        self.lookups.spend(client, questions, now)
        self.looked_up[client] += questions
        return True

    def charge(self, client: str, cost: int) -> None:
        """For the bytes of what was found: a long reply takes the time of many."""
        self.lookups.spend(client, cost / BYTES_OF_ONE, self.poller.loop.time())
