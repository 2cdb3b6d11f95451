"""The mitmproxy engine: mitmproxy in place of the proxy's own sockets, and no packet layer."""

from collections.abc import Sequence
from pathlib import Path

from proxyfw.core.config import Config
from proxyfw.core.policy import Policy
from proxyfw.dnsrelay import DnsRelay
from proxyfw.edge.mitm.running import MitmError, Mitmproxy, is_wireguard, read_modes
from proxyfw.mitmproxying import MitmProxy
from proxyfw.mitmview import FlowView
from proxyfw.plane import Plane
from proxyfw.proxy import Proxy
from proxyfw.shared import Shared
from proxyfw.startup import StartError, raise_descriptors

FOLDER = "mitmproxy"
"""Of mitmproxy's keys, in the state folder."""


class MitmPlane(Plane):
    """`modes`: of mitmproxy; none: a proxy, where the configuration has it. `web`: host and port of the view."""

    def __init__(self, modes: Sequence[str], web: tuple[str, int] | None) -> None:
        super().__init__(local=True)
        self._texts, self._web = modes, web

    def open(self, config: Config, policy: Policy) -> None:
        """Reads the modes; mitmproxy takes its sockets when it starts. Raises StartError."""
        away = [client for client in policy.clients if policy.upstream_proxy_of(client) is not None]
        if away:
            raise StartError(f"upstream_proxy: the mitmproxy engine has none (clients: {', '.join(away)})")
        try:
            self._modes = read_modes(self._texts or _default_modes(config))
        except MitmError as error:
            raise StartError(str(error)) from None
        self._folder = Path(config.state_dir) / FOLDER

    def make(self, shared: Shared) -> tuple[Proxy, DnsRelay]:
        """What stands for the proxy, and the relay, which mitmproxy asks."""
        relay = DnsRelay(shared)
        proxy = MitmProxy(shared, relay, any(map(is_wireguard, self._modes)), raise_descriptors())
        self._mitmproxy = Mitmproxy(self._modes, self._web, self._folder, proxy)
        self._proxy = proxy
        proxy.on_close = self._mitmproxy.addon.close
        if self._web is not None:
            proxy.on_show = FlowView(self._mitmproxy.view).show
        return proxy, relay

    async def start(self) -> None:
        """Starts mitmproxy. Raises StartError."""
        try:
            await self._mitmproxy.start()
        except (MitmError, OSError) as error:
            raise StartError(f"mitmproxy: {error}") from None
        self._proxy.start([], [])

    async def stop(self) -> None:
        """Ends mitmproxy."""
        self._proxy.stop()
        await self._mitmproxy.stop()

    def in_words(self) -> list[str]:
        """Where it listens, and the token of the web view."""
        return self._mitmproxy.in_words()


def _default_modes(config: Config) -> list[str]:
    if config.listen is None:
        raise StartError("write --mode, or in the configuration explicit: {listen: 127.0.0.1:3128}")
    address, port = config.listen
    return [f"regular@{address}:{port}"]
