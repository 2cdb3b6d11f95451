"""What takes the clients' connections and queries: the proxy and the relay, on sockets of their own."""

import socket

from proxyfw.core.config import Config
from proxyfw.core.policy import Policy
from proxyfw.core.ruleset import EXPLICIT_PORT, PROXY_PORT, RELAY_PORT
from proxyfw.dnsrelay import DnsRelay
from proxyfw.dnsserve import DnsServer
from proxyfw.edge.dnssocket import DnsSocket
from proxyfw.proxy import Proxy
from proxyfw.shared import Shared
from proxyfw.startup import has, listening, listening_at, open_dns, raise_descriptors


class Plane:
    """`local`: there is no packet layer that hands anything over; the proxy is only asked."""

    def __init__(self, local: bool) -> None:
        self.local = local
        self._proxied: list[socket.socket] = []
        self._asked: list[socket.socket] = []
        self._relayed: list[socket.socket] = []
        self._datagrams: list[DnsSocket] = []

    def open(self, config: Config, policy: Policy) -> None:
        """Takes the sockets. Raises StartError."""
        if config.listen is not None:
            self._asked = [listening_at(*config.listen)]
        if not self.local:
            families = [family for family in (socket.AF_INET, socket.AF_INET6) if has(family)]
            ports = (PROXY_PORT, EXPLICIT_PORT, RELAY_PORT)
            self._proxied, self._asked, self._relayed = ([listening(f, port) for f in families] for port in ports)
            self._datagrams = [open_dns(family) for family in families]

    def make(self, shared: Shared) -> tuple[Proxy, DnsRelay]:
        """What the service has to do with; nothing is served yet."""
        self._proxy, relay = Proxy(shared, raise_descriptors()), DnsRelay(shared)
        self._dns = DnsServer(relay, shared.poller.loop)
        return self._proxy, relay

    async def start(self) -> None:
        """Begins to serve. Raises StartError."""
        self._proxy.start(self._proxied, self._asked)
        await self._dns.start(self._datagrams, self._relayed)

    async def stop(self) -> None:
        """Takes no further queries; the service stops the proxy."""
        await self._dns.stop()

    def in_words(self) -> list[str]:
        """What a person is to know of it, at the start and in `status`."""
        return []
