"""The addon: mitmproxy's hooks. Each connection gets a layer of ours before a byte of it is read.

Everything fails closed: a hook that fails refuses, as mitmproxy itself only logs what goes wrong in an addon. Whatever
layer asks for it, no server connection is opened that was not permitted by its id and address.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Protocol

from mitmproxy.connection import Client, Connection, ConnectionState, Server
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
from proxyfw.edge.mitm.wire import Gates, Wire

DNS_PORT = 53
ATTEMPT = 10.0  # seconds for a server to accept a connection
UNREAD = 10.0  # seconds in which who is told the last of it must have taken something
_REFUSED = "not permitted by proxyfw"
_RESET = struct.pack("ii", 1, 0)


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


@dataclass(eq=False, slots=True)
class Open:
    """A connection of a client, as mitmproxy has it. `writers`: the client's, and those of its servers."""

    case: Case
    handler: ConnectionHandler
    gates: Gates
    writers: list[Any]


class ProxyfwAddon:
    """`handlers`: mitmproxy's connections, by the id of their client."""

    name = "nextlayer"  # in place of mitmproxy's own addon of this name, which would choose its layers

    def __init__(self, ways: Ways, handlers: Callable[[], dict[Any, ConnectionHandler]]) -> None:
        self._ways = ways
        self._handlers = handlers
        self._open: dict[str, Open] = {}  # by the id of the client, until that has left
        self._counted: dict[Case, Open] = {}  # until both sides are closed
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
        opened = self._open.pop(client.id, None)
        if opened is not None:
            self._part(opened)
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
        if owner != data.client.id or owner not in self._open or data.server.via is not None:
            return
        if address is None or address != data.server.address:
            return
        handler = self._handlers()[data.client.id]
        loop = asyncio.get_running_loop()
        self._dialling[data.server.id] = loop.call_later(ATTEMPT, self._give_up, handler, data.server)
        data.server.error = None

    def server_connected(self, data: ServerConnectionHookData) -> None:
        """The server accepted. It is read through a gate; what is left of one before it is lost."""
        self._answered(data.server)
        opened = self._open.get(data.client.id)
        if opened is None:
            return
        io = opened.handler.transports[data.server]
        io.reader = Gate(io.reader, opened.gates.servers, data.server)
        for earlier in [writer for writer in opened.writers[1:] if writer.is_closing()]:
            _reset(earlier)
            opened.writers.remove(earlier)
        opened.writers.append(io.writer)

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
        """Ends a connection at once: what has yet to be sent to either side is lost."""
        opened = self._counted.get(case)
        if opened is None:
            return
        for writer in opened.writers:
            _reset(writer)
        if opened.handler.client in opened.handler.transports:
            opened.handler.close_connection(opened.handler.client)

    def close_all(self) -> None:
        """Ends every connection."""
        for case in tuple(self._counted):
            self.close(case)

    def _part(self, opened: Open, before: int = 0) -> None:
        """The client has left: it counts until all that it and its servers were told is sent, or nobody takes it."""
        left = sum(map(_unsent, opened.writers))
        if left and left != before:
            asyncio.get_running_loop().call_later(UNREAD, self._part, opened, left)
            return
        for writer in opened.writers:
            if _unsent(writer):
                _reset(writer)
        del self._counted[opened.case]
        self._ways.done(opened.case)

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
        io, gates = handler.transports[client], Gates()
        self._open[client.id] = self._counted[case] = Open(case, handler, gates, [io.writer])
        io.reader = Gate(io.reader, gates.client, client)
        handler.layer = self._layer(handler, case, gates, explicit, port)
        return True

    def _layer(self, handler: ConnectionHandler, case: Case, gates: Gates, explicit: bool, port: int) -> Wire:
        context, client = handler.layer.context, handler.client

        def permit(server: Server) -> None:
            self._permitted[server.id] = (server.address, client.id)

        if not explicit and port == DNS_PORT:
            return DnsLayer(context, case, permit, gates, self._ways.answer(case))
        if client.transport_protocol == "udp":
            return DatagramLayer(context, case, permit, gates)
        return TcpLayer(context, case, permit, gates, explicit)

    def _give_up(self, handler: ConnectionHandler, server: Server) -> None:
        io = handler.transports.get(server)
        if io is not None and io.handler is not None and server.state is ConnectionState.CLOSED:
            io.handler.cancel("no answer before the deadline")

    def _answered(self, server: Server) -> None:
        timer = self._dialling.pop(server.id, None)
        if timer is not None:
            timer.cancel()


class Gate:
    """The stream of a connection, that is read only while it is wanted."""

    def __init__(self, stream: Any, wanted: asyncio.Event, connection: Connection) -> None:
        self._stream, self._wanted, self._connection = stream, wanted, connection

    async def read(self, size: int) -> bytes:
        """As the stream has it. Who resets takes nothing any more either: mitmproxy would take it for the end of one
        direction.
        """
        await self._wanted.wait()
        try:
            data: bytes = await self._stream.read(size)
        except OSError:
            self._connection.state = ConnectionState.CLOSED
            raise
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


def _unsent(writer: Any) -> int:
    """How many bytes have yet to be sent; of what comes through the tunnel, it is not known."""
    return int(writer.transport.get_write_buffer_size()) if isinstance(writer, asyncio.StreamWriter) else 0


def _reset(writer: Any) -> None:
    """Closes it at once; what the kernel has yet to send is lost too."""
    if isinstance(writer, asyncio.StreamWriter):
        with suppress(OSError):  # it is closed already
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
