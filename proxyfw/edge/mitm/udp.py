"""What is not a TCP connection to a server: datagrams, and DNS, which goes to the relay whatever it is aimed at."""

from collections.abc import Awaitable, Callable, Generator

from mitmproxy.connection import Server
from mitmproxy.proxy.commands import Command
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.events import Event, Start

from proxyfw.edge.mitm.case import Case, ProxyfwAskHook, Question
from proxyfw.edge.mitm.wire import Gates, Steps, Wire

MAX_MESSAGE = 1 << 16  # bytes of a DNS message over TCP with its length, RFC 1035 section 4.2.2
_IDLE = 10.0  # seconds between two queries on a TCP connection, and for each part of one (RFC 7766 section 6.2.3)
_IDLE_UDP = 2.0  # seconds that a port of the client is remembered after its last query

Answer = Callable[[bytes, bool], Awaitable[bytes]]
"""The reply to one DNS message, b"" for none. `udp`: cut to what the client can take."""


class DatagramLayer(Wire):
    """Datagrams from one port of the client to one of a server."""

    def _handle_event(self, event: Event) -> Steps:
        data = self.is_from(self.client, event)
        if data:
            found, verdict = yield from self.reach_flow(self.case.flow())
            self.case.tell(found.flow, verdict, self.reached)
            if self.server is None:  # nothing is kept of it: the next one is refused as this one
                yield from self.hang_up("proxy")
                return
            self.begin_relay()
            yield from self.to_server(data)
        elif data == b"":
            yield from self.hang_up("client")


class DnsLayer(Wire):
    """Queries, over UDP or one after the other over TCP. `answer`: has them answered."""

    def __init__(
        self,
        context: Context,
        case: Case,
        permit: Callable[[Server], None],
        gates: Gates,
        answer: Answer,
    ) -> None:
        super().__init__(context, case, permit, gates)
        self._answer = answer
        self._udp = context.client.transport_protocol == "udp"
        self._data = b""

    def _handle_event(self, event: Event) -> Steps:
        data = self.is_from(self.client, event)
        if data == b"" or self.is_late(event):
            yield from self.hang_up("client")
            return
        if data and self._udp:
            yield from self.to_client((yield from self._ask(data)))
        elif data:
            self._data += data
            while len(self._data) >= 2 and len(self._data) >= (end := 2 + int.from_bytes(self._data[:2])):
                message, self._data = self._data[2:end], self._data[end:]
                reply = yield from self._ask(message)
                if not reply:  # who sends what is no query need not go on
                    yield from self.hang_up("client")
                    return
                yield from self.to_client(len(reply).to_bytes(2) + reply)
        if data or isinstance(event, Start):
            yield from self.arm(_IDLE_UDP if self._udp else _IDLE)

    def _ask(self, message: bytes) -> Generator[Command, object, bytes]:
        question = Question(lambda: self._answer(message, self._udp))
        yield ProxyfwAskHook(question)
        return question.answer if isinstance(question.answer, bytes) else b""
