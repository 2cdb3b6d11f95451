"""The addon: mitmproxy's hooks. Each connection gets a layer of ours before a byte of it is read.

Everything fails closed: a hook that fails refuses, as mitmproxy itself only logs what goes wrong in an addon. Whatever
layer asks for it, no server connection is opened that was not permitted by its id and address.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Protocol

from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.proxy.commands import CloseConnection
from mitmproxy.proxy.layer import Layer, NextLayer
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.server import ConnectionHandler
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.tls import TlsData

from proxyfw.core.address import IPAddress
from proxyfw.edge.mitm.case import Case, Question
from proxyfw.edge.mitm.tcp import TcpLayer
from proxyfw.edge.mitm.udp import Answer, DatagramLayer, DnsLayer
from proxyfw.edge.mitm.wire import Wire

DNS_PORT = 53
ATTEMPT = 10.0  # seconds for a server to accept a connection
_REFUSED = "not permitted by proxyfw"


class Ways(Protocol):
    """Who decides."""

    def admit(self, address: str, mode: str, destination: IPAddress | None, port: int, udp: bool) -> Case | None:
        """A connection of a client: None where it is refused, which is in the log then.

        `address`: the client's; `mode`: of mitmproxy, by which it came. `destination`: to which it aims; None where it
        asks for a proxy.
        """

    def done(self, case: Case) -> None:
        """The connection is over."""

    def answer(self, case: Case) -> Answer:
        """Who answers the DNS queries of this connection."""

    def fault(self, error: Exception) -> None:
        """A fault of proxyfw that belongs to no connection that is known."""


class ProxyfwAddon:
    """`handlers`: mitmproxy's connections, by the id of their client."""

    name = "nextlayer"  # in place of mitmproxy's own addon of this name, which would choose its layers

    def __init__(self, ways: Ways, handlers: Callable[[], dict[Any, ConnectionHandler]]) -> None:
        self._ways = ways
        self._handlers = handlers
        self._cases: dict[str, Case] = {}
        self._permitted: dict[str, tuple[object, str]] = {}  # by the id of a server connection: its address, its client
        self._dialling: dict[str, asyncio.TimerHandle] = {}

    # Hooks.

    def client_connected(self, client: Client) -> None:
        """Somebody connects: refused at once, or its layer is ours from the first byte on."""
        client.error = _REFUSED
        try:
            if self._admit(client, self._handlers()[client.id]):
                client.error = None
        except Exception as error:  # noqa: BLE001 - mitmproxy would only log it, and go on
            self._ways.fault(error)

    def client_disconnected(self, client: Client) -> None:
        """It is over, whoever ended it."""
        case = self._cases.pop(client.id, None)
        if case is not None:
            self._ways.done(case)
        for server in [server for server, (_, owner) in self._permitted.items() if owner == client.id]:
            del self._permitted[server]

    async def proxyfw_ask(self, question: Question) -> None:
        """A layer of ours awaits an answer; without one it refuses."""
        try:
            question.answer = await question.find()
        except Exception as error:  # noqa: BLE001 - as above
            self._ways.fault(error)

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """The one door: what was not permitted, by exactly this connection object, is not opened."""
        if data.server.error:
            return
        data.server.error = _REFUSED
        address, owner = self._permitted.pop(data.server.id, (None, ""))
        if owner != data.client.id or owner not in self._cases or data.server.via is not None:
            return
        if address is None or address != data.server.address:
            return
        handler = self._handlers()[data.client.id]
        loop = asyncio.get_running_loop()
        self._dialling[data.server.id] = loop.call_later(ATTEMPT, self._give_up, handler, data.server)
        data.server.error = None

    def server_connected(self, data: ServerConnectionHookData) -> None:
        """The server accepted."""
        self._answered(data.server)

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        """It did not."""
        self._answered(data.server)

    def next_layer(self, nextlayer: NextLayer) -> None:
        """Never asked, as no layer of mitmproxy's is in use; if it were, nothing would follow."""
        nextlayer.layer = Closed(nextlayer.context)

    def tls_start_client(self, data: TlsData) -> None:
        """The same: nothing is decrypted. Without a TLS connection object, mitmproxy closes the connection."""
        data.ssl_conn = None

    tls_start_server = tls_start_client

    # What the service does with connections.

    def close(self, case: Case) -> None:
        """Ends a connection at once."""
        for client_id, each in self._cases.items():
            handler = self._handlers().get(client_id)
            if each is case and handler is not None and handler.client in handler.transports:
                handler.close_connection(handler.client)

    def close_all(self) -> None:
        """Ends every connection."""
        for case in tuple(self._cases.values()):
            self.close(case)

    def _admit(self, client: Client, handler: ConnectionHandler) -> bool:
        context = handler.layer.context
        explicit = isinstance(handler.layer, modes.HttpProxy)
        if not explicit and not isinstance(handler.layer, modes.TransparentProxy):
            raise TypeError(f"the mode {client.proxy_mode.full_spec} is not for a firewall")
        destination, port = (None, 0) if explicit else _place(context.server.address)
        address = str(client.peername[0]).partition("%")[0]
        udp = client.transport_protocol == "udp"
        case = self._ways.admit(address, client.proxy_mode.type_name, destination, port, udp)
        if case is None:
            return False
        self._cases[client.id] = case
        io = handler.transports[client]
        gate = Gate(io.reader)
        io.reader = gate
        handler.layer = self._layer(handler, case, gate, explicit, port)
        return True

    def _layer(self, handler: ConnectionHandler, case: Case, gate: "Gate", explicit: bool, port: int) -> Wire:
        context, client = handler.layer.context, handler.client

        def permit(server: Server) -> None:
            self._permitted[server.id] = (server.address, client.id)

        if not explicit and port == DNS_PORT:
            return DnsLayer(context, case, permit, gate.open, self._ways.answer(case))
        if client.transport_protocol == "udp":
            return DatagramLayer(context, case, permit, gate.open)
        return TcpLayer(context, case, permit, gate.open, explicit)

    def _give_up(self, handler: ConnectionHandler, server: Server) -> None:
        io = handler.transports.get(server)
        if io is not None and io.handler is not None and server.state is ConnectionState.CLOSED:
            io.handler.cancel("no answer before the deadline")

    def _answered(self, server: Server) -> None:
        timer = self._dialling.pop(server.id, None)
        if timer is not None:
            timer.cancel()


class Gate:
    """The client's stream, that is read only while the layer can take more: the network holds the rest back."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._wanted = asyncio.Event()
        self._wanted.set()

    def open(self, wanted: bool) -> None:
        """Whether to read on."""
        if wanted:
            self._wanted.set()
        else:
            self._wanted.clear()

    async def read(self, size: int) -> bytes:
        """As the stream has it."""
        await self._wanted.wait()
        data: bytes = await self._stream.read(size)
        return data


class Closed(Layer):
    """Takes nothing, and closes the connection."""

    def _handle_event(self, event: Any) -> Any:
        yield CloseConnection(self.context.client)


def _place(address: Any) -> tuple[IPAddress, int]:
    host, port = str(address[0]).partition("%")[0], int(address[1])
    with suppress(ValueError):
        return ip_address(host), port
    raise ValueError("the client aims at no address")
