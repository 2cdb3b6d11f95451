"""mitmproxy itself: its options, those of its addons that are of use here, and its listeners.

What can read files, run scripts, replay or change what is relayed, or make certificates, is not loaded.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from mitmproxy.addons.core import Core
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.exceptions import OptionsError
from mitmproxy.master import Master
from mitmproxy.net.local_ip import get_local_ip
from mitmproxy.options import Options
from mitmproxy.proxy.mode_servers import WireGuardServerInstance
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.version import VERSION

from proxyfw.edge.mitm.addon import ProxyfwAddon, Ways

LOOPBACK = "127.0.0.1"
IDLE = 3600  # seconds without a byte either way
CLIENT_CONFIG = "wireguard-client.conf"

_MODES = ("regular", "socks5", "transparent", "wireguard")
_SOCKS_PORT = 1080
_EVERYWHERE = "0.0.0.0"
_PATIENCE, _PAUSE = 100, 0.01  # how often to look whether every connection has ended, and seconds between two looks
_TOO_LOUD = ("mitmproxy.network", "mitmproxy.packet_sources")  # a line for each packet of the tunnel that is dropped
_KEPT = ("core", "proxyserver", "view", "eventstore", "webaddon", "webauth", "termlog")  # of addons


class MitmError(Exception):
    """mitmproxy does not start; the message says why."""


def read_modes(specs: Sequence[str]) -> list[str]:
    """The modes as mitmproxy takes them. Raises MitmError.

    At one port, our layer takes HTTP and SOCKS alike: that is mitmproxy's mode `regular`. Its own `socks5` would tell
    clients of success before anything is decided.
    """
    modes = []
    for spec in specs:
        try:
            mode = ProxyMode.parse(spec)
        except ValueError as error:
            raise MitmError(
                f'--mode "{spec}": {error}; write one of {", ".join(_MODES)}, as in regular@{LOOPBACK}:3128'
            ) from None
        if mode.type_name not in _MODES:
            raise MitmError(f'--mode "{spec}": {mode.type_name} is not done here; write one of {", ".join(_MODES)}')
        if mode.type_name == "socks5":
            host, port = mode.listen_host(LOOPBACK), mode.listen_port(None) or _SOCKS_PORT
            spec = f"regular@{host}:{port}"
        modes.append(spec)
    if sum(map(is_wireguard, modes)) > 1:
        raise MitmError("--mode wireguard: only once, as its peers all have the same address")
    return modes


def is_wireguard(mode: str) -> bool:
    """Whether this mode has a WireGuard peer."""
    return bool(ProxyMode.parse(mode).type_name == "wireguard")


class Mitmproxy:
    """`modes`: of `read_modes`. `web`: host and port of the web view; None: there is none. `folder`: for mitmproxy's
    keys; made with rights for its owner alone. To be made where the event loop runs.
    """

    def __init__(self, modes: Sequence[str], web: tuple[str, int] | None, folder: Path, ways: Ways) -> None:
        self._modes, self._web, self._folder = list(modes), web, folder
        logging.getLogger().setLevel(logging.WARNING)
        for each in _TOO_LOUD:
            logging.getLogger(each).setLevel(logging.ERROR)
        self._options = options = Options()
        self._master = _web_master(options) if web else _plain_master(options)
        self._proxyserver: Proxyserver = self._master.addons.get("proxyserver")
        self.addon = ProxyfwAddon(ways, lambda: self._proxyserver.connections)
        _only(self._master)
        self._master.addons.add(self.addon)

    async def start(self) -> None:
        """Begins to listen. Raises MitmError, and OSError where the folder cannot be made."""
        if self._web and "web_password" not in self._options and not _is_loopback(self._web[0]):
            raise MitmError(f"--web {self._web[0]}: the view of mitmproxy {VERSION} has no password: write {LOOPBACK}")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        given: dict[str, Any] = {
            "mode": self._modes,
            "confdir": str(self._folder),
            "listen_host": LOOPBACK,
            "connection_strategy": "lazy",
            "termlog_verbosity": "warn",
        }
        if "tcp_timeout" in self._options:  # not in mitmproxy 11, where it is ten minutes
            given["tcp_timeout"] = IDLE
        if self._web:
            given |= {"web_host": self._web[0], "web_port": self._web[1], "web_open_browser": False}
        before = os.umask(0o077)
        try:
            self._options.update(**given)
            if not await self._proxyserver.setup_servers():
                raise MitmError("; ".join(str(server.last_exception) for server in self._failed()))
            await self._master.running()
            self._write_client_config()
        except OptionsError as error:
            raise MitmError(str(error)) from None
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Takes no more, and ends what there is."""
        await self._proxyserver.servers.update([])
        self.addon.close_all()
        for _ in range(_PATIENCE):
            if not self._proxyserver.connections:
                break
            await asyncio.sleep(_PAUSE)
        await self._master.done()

    @property
    def view(self) -> Any:
        """The flows of the web view; None where there is none."""
        return self._master.addons.get("view")

    def in_words(self) -> list[str]:
        """What runs where."""
        told = []
        for server in self._proxyserver.servers:
            places = " and ".join(f"{host} port {port}" for host, port, *_ in server.listen_addrs)
            told.append(f"mitmproxy {VERSION}: {server.mode.description} at {places}")
            if isinstance(server, WireGuardServerInstance):
                told.append(f"the WireGuard peer's configuration, with its key: {self._folder / CLIENT_CONFIG}")
        if self._web:
            url = getattr(self._master, "web_url", f"http://{self._web[0]}:{self._web[1]}/")
            told.append(f"web view: {url}")
        return told

    def _failed(self) -> list[Any]:
        return [server for server in self._proxyserver.servers if server.last_exception]

    def _write_client_config(self) -> None:
        """It has a key in it: the web view, which would show it, is not told."""
        for server in self._proxyserver.servers:
            if isinstance(server, WireGuardServerInstance):
                text = str(server.client_conf())
                text = text.replace(f"{_EVERYWHERE}:", f"{get_local_ip() or _EVERYWHERE}:")
                (self._folder / CLIENT_CONFIG).write_text(f"{text}\n")
                server.client_conf = lambda: None


def _plain_master(options: Options) -> Master:
    master = Master(options, with_termlog=True)
    master.addons.add(Core(), Proxyserver())
    return master


def _web_master(options: Options) -> Master:
    from proxyfw.edge.mitm.webview import web_master  # and its packages, where somebody wants it

    return web_master(options)


def _only(master: Master) -> None:
    """Takes away every addon that is not wanted, before any of them has begun anything."""
    addons = master.addons
    addons.chain = [addon for addon in addons.chain if _name(addon) in _KEPT]
    addons.lookup = {name: addon for name, addon in addons.lookup.items() if name in _KEPT}


def _name(addon: object) -> str:
    return str(getattr(addon, "name", type(addon).__name__.lower()))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
