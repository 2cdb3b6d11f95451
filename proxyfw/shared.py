"""What the proxy, its connections and the relay have in common."""

from dataclasses import dataclass, field

from proxyfw.core.policy import Policy
from proxyfw.edge.logdb import LogWriter
from proxyfw.edge.poller import Poller
from proxyfw.edge.resolver import Resolver
from proxyfw.edge.splice import Pipes
from proxyfw.pinning import PinKeeper


@dataclass(slots=True)
class Shared:
    """`policy` is replaced as a whole on reload, and `resolver` where the resolvers change; everything else stays."""

    policy: Policy
    resolver: Resolver
    poller: Poller
    log: LogWriter
    pins: PinKeeper
    pipes: Pipes = field(default_factory=Pipes)
