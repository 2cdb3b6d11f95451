"""One TCP connection of a client, stage by stage: what it asks of the proxy, whom it names, and then the relay.

Each stage is one method that takes the events; which one is next stands in `_handle_event`, as in mitmproxy's layers.
"""

from collections.abc import Callable
from ipaddress import ip_address

from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.events import Event, Start

from proxyfw.core import tls
from proxyfw.core.explicit import Asked, Forward, Opening
from proxyfw.core.flow import Protocol
from proxyfw.core.sniffed import MAX_HELLO, Malformed, Named, Nameless, NeedMore, NotMine, Sniffed
from proxyfw.core.sniffer import Sniffer
from proxyfw.core.verdict import Allow, Deny, Reason, is_refused
from proxyfw.edge.mitm.case import Case
from proxyfw.edge.mitm.http import Http
from proxyfw.edge.mitm.wire import Gates, Steps, Wire

SNIFF_DEADLINE = 5.0  # seconds for the client to say whom it wants
OBSERVE_DEADLINE = 1.0  # the same in observe mode, where a client that waits for the server is let through
SERVER_FIRST = 0.1  # seconds for the client to speak first: most do at once
SERVER_DEADLINE = 60.0  # seconds for the server's first byte
_TOO_MANY = "too many connections of this client are being set up"


class TcpLayer(Wire):
    """`explicit`: the client asks for a proxy; else it aims at the server itself."""

    def __init__(
        self,
        context: Context,
        case: Case,
        permit: Callable[[Server], None],
        gates: Gates,
        explicit: bool,
    ) -> None:
        super().__init__(context, case, permit, gates)
        self._opening = Opening()
        self._sniffer = Sniffer()
        self._http: Http | None = None
        self._second: tls.ClientHello | None = None
        self._named: Named | None = None
        self._from_client = self._from_server = b""  # held until they are judged
        self._handle_event = self._hear if explicit else self._aimed

    @property
    def want_client(self) -> bool:
        """Whether the client's bytes can be taken now."""
        return len(self._from_client) < MAX_HELLO and (self._http is None or self._http.want_client)

    # The client asks for a proxy.

    def _hear(self, event: Event) -> Steps:
        data = self.is_from(self.client, event)
        if isinstance(event, Start):
            yield from self.arm(SNIFF_DEADLINE)
        elif self.is_late(event):
            yield from self._refuse_request(self._opening.too_late())
        elif data == b"":
            yield from self._refuse_request(self._opening.ended_early())
        elif data:
            reply, heard = self._opening.feed(data)
            self.case.protocol = self._opening.protocol
            yield from self.to_client(reply)
            if isinstance(heard, Malformed):
                yield from self._refuse_request(heard)
            elif isinstance(heard, Forward):
                yield from self._begin_http(heard.data, forward=True)
            elif isinstance(heard, Asked):
                yield from self._ask(heard)

    def _refuse_request(self, malformed: Malformed) -> Steps:
        deny = Deny(malformed.reason, detail=malformed.detail)
        self.case.tell(self.case.flow(malformed), deny)
        yield from self._say_refused(deny)

    def _say_refused(self, deny: Deny, asked: Asked | None = None) -> Steps:
        page = self._opening.refusal(deny, self.case.client_name, asked.host if asked is not None else None)
        yield from self.to_client(page)
        yield from self.linger() if page else self.hang_up("proxy")

    def _ask(self, asked: Asked) -> Steps:
        self.disarm()
        found, verdict = yield from self.reach(lambda: self.case.ask(asked))
        if self.server is None:
            assert isinstance(verdict, Deny)
            self.case.tell(found.flow, asked.with_inside(verdict))
            yield from self._say_refused(verdict, asked)
            return
        at = next(address for address in found.addresses if str(address) == self.reached)
        self.case.begin(asked, found.flow, found.verdict, at)
        self.hold(at)
        yield from self.to_client(self._opening.success())
        self.up = self.down = 0
        yield from self._begin(asked.rest)

    # The client says whom it wants.

    def _aimed(self, event: Event) -> Steps:
        if isinstance(event, Start):
            yield from self._begin(b"")

    def _begin(self, first: bytes) -> Steps:
        """It is known where the client aims; `first`: what it has said already."""
        self.case.protocol = Protocol.TCP
        if not first and self.case.granted_unheard():
            self._handle_event = self._either
            if self.held is None:
                yield from self.arm(SERVER_FIRST)
            return
        yield from self._arm_sniff()
        self._handle_event = self._sniff
        if first:
            yield from self._sniff_on(first)

    def _arm_sniff(self) -> Steps:
        unheard = self.case.protocol is Protocol.TCP and self.case.observes
        yield from self.arm(OBSERVE_DEADLINE if unheard else SNIFF_DEADLINE)

    def _sniff(self, event: Event) -> Steps:
        data = self.is_from(self.client, event)
        if data:
            yield from self._sniff_on(data)
        elif data == b"":
            yield from self._judge(self._sniffer.ended_early())
        elif self.is_late(event):
            yield from self._judge(self._sniffer.too_late())
        else:
            yield from self._server_waits(event)

    def _server_waits(self, event: Event) -> Steps:
        """What a server that is held says goes to the client when it is known to be the right one."""
        data = self.is_from(self.held, event)
        if data is None:
            return
        self._from_server += data
        if not data or len(self._from_server) > MAX_HELLO:
            self._from_server = b""
            yield from self.drop_server()

    def _sniff_on(self, piece: bytes) -> Steps:
        answer = self._sniffer.feed(piece)
        self.case.protocol = self._sniffer.protocol
        if not isinstance(answer, NeedMore):
            yield from self._judge(answer)

    def _judge(self, sniffed: Sniffed) -> Steps:
        first = self._sniffer.data
        late = isinstance(sniffed, Malformed) and sniffed.reason is Reason.TIMEOUT
        if self.case.protocol is Protocol.HTTP and not late:
            yield from self._begin_http(first, forward=False)
            return
        self.disarm()
        held = self.held
        found, verdict = yield from self.reach_flow(self.case.flow(sniffed))
        self.case.tell(found.flow, verdict, self.reached)
        if self.server is None:
            assert isinstance(verdict, Deny)
            yield from self.refuse(verdict)
            return
        early, self._from_server = self._from_server if self.server is held else b"", b""
        if isinstance(sniffed, Named) and self.case.protocol is Protocol.TLS:
            yield from self._begin_tls(sniffed, first, early)
        else:
            self.begin_relay()
            yield from self.to_client(early)
            yield from self.to_server(first)
            yield from self.pass_end_on()

    def refuse(self, deny: Deny) -> Steps:
        """Tells a TLS client by an alert; a client of another protocol by the end of the connection."""
        if self.case.protocol is Protocol.TLS:
            yield from self.to_client(tls.alert(deny.reason))
            yield from self.linger()
        else:
            yield from self.hang_up("proxy")

    # TLS: until the server has spoken, it may ask for a second hello, which could name another host.

    def _begin_tls(self, named: Named, first: bytes, early: bytes) -> Steps:
        self._named = named
        end = self._sniffer.hello_end
        self._from_client = first[end:]
        self._handle_event = self._await_server
        yield from self.arm(SERVER_DEADLINE)
        yield from self.to_server(first[:end])
        if early:
            yield from self._server_answers(early)

    def _await_server(self, event: Event) -> Steps:
        data = self.is_from(self.client, event)
        if data:
            self._from_client += data
            if self._second is not None:
                yield from self._second_hello(data)
        elif data == b"":
            if self.client_is_gone or self._second is not None:
                yield from self.hang_up("client")
            elif not self._from_client:
                yield from self._ended("client", self.server)
        elif self.is_late(event):
            yield from self._too_late_second() if self._second is not None else self.hang_up("idle")
        elif data := self.is_from(self.server, event):
            yield from self._server_answers(data)
        elif data == b"":
            yield from self._server_leaves()

    def _server_answers(self, data: bytes) -> Steps:
        if self._second is not None:  # it may go on while it awaits the second hello
            yield from self.to_client(data)
            return
        self._from_server += data
        kind = tls.server_first(self._from_server)
        if kind is tls.ServerFirst.NEED_MORE:
            return
        answer, self._from_server = self._from_server, b""
        yield from self.to_client(answer)
        if kind is tls.ServerFirst.RETRY:
            self._second = tls.ClientHello(second=True)
            yield from self.arm(SNIFF_DEADLINE)
            if self._from_client:
                yield from self._second_hello(self._from_client)
        else:
            yield from self._open_up()

    def _server_leaves(self) -> Steps:
        answer, self._from_server = self._from_server, b""
        yield from self.to_client(answer)
        yield from self.hang_up("server")

    def _open_up(self) -> Steps:
        held, self._from_client = self._from_client, b""
        self.begin_relay()
        yield from self.to_server(held)
        yield from self.pass_end_on()

    def _second_hello(self, piece: bytes) -> Steps:
        assert self._second is not None
        answer = self._second.feed(piece)
        if isinstance(answer, NeedMore):
            return
        assert self._named is not None
        name = self._named.name
        if isinstance(answer, Named) and answer.name == name:
            yield from self._open_up()
            return
        words = f"the second ClientHello does not name {name} again"
        broken = answer if isinstance(answer, Malformed) else Malformed(words, Reason.AMBIGUOUS)
        yield from self._refuse_second(broken, answer)

    def _too_late_second(self) -> Steps:
        yield from self._refuse_second(Malformed("no second ClientHello within the deadline", Reason.TIMEOUT))

    def _refuse_second(self, broken: Malformed, answer: Sniffed | None = None) -> Steps:
        flow = self.case.flow(answer)._replace(broken=broken)
        verdict = self.case.decide(flow)
        self.end("proxy")
        self.case.tell(flow, verdict, self.reached)
        if is_refused(verdict):
            yield from self.refuse(verdict)
        else:
            yield from self._open_up()

    # Whatever is spoken here is permitted; a server may be the first to speak.

    def _either(self, event: Event) -> Steps:
        """Neither has spoken. What the client says first is judged as ever, also where it is to go."""
        said, answered = self.is_from(self.client, event), self.is_from(self.server or self.held, event)
        if said:
            if self.server is not None:
                self.end("client")
                if not self.case.set_decided(False):
                    yield from self._refuse_one_more()
                    return
                self.hold(ip_address(self.reached))
            yield from self._begin(said)
        elif said == b"" or self.is_late(event):  # it only wants to hear, or waits
            yield from self._dial_unheard()
        elif answered is not None:
            yield from self._dial_unheard()
            if self.server is not None:
                self._handle_event = self._gate
                yield from self._relay(event)

    def _dial_unheard(self) -> Steps:
        if self.server is not None:
            return
        self.disarm()
        found, verdict = yield from self.reach_flow(self.case.flow())
        self.case.tell(found.flow, verdict, self.reached)
        if self.server is None:
            assert isinstance(verdict, Deny)
            yield from self.refuse(verdict)
        elif not self.client.state & ConnectionState.CAN_READ:
            self.begin_relay()
            yield from self.pass_end_on()

    def _refuse_one_more(self) -> Steps:
        deny = Deny(Reason.LIMIT, detail=_TOO_MANY)
        self.case.tell(self.case.flow(), deny)
        yield from self.refuse(deny)

    def _gate(self, event: Event) -> Steps:
        """The server may speak; the client's first words are held until they are judged."""
        data = self.is_from(self.client, event)
        if data:
            self._from_client += data
            sniffed = self._sniffer.feed(data)
            self.case.protocol = self._sniffer.protocol
            if not isinstance(sniffed, NeedMore):
                yield from self._pass_gate(sniffed)
            elif not self.armed:
                if not self.case.set_decided(False):
                    yield from self._pass_gate(Malformed(_TOO_MANY, Reason.LIMIT))
                    return
                yield from self.arm(SNIFF_DEADLINE)
        elif data == b"":
            yield from self._pass_gate(self._sniffer.ended_early()) if self._from_client else self._open_up()
        elif self.is_late(event):
            yield from self._pass_gate(self._sniffer.too_late())
        else:
            yield from self._relay(event)

    def _pass_gate(self, sniffed: Sniffed) -> Steps:
        self.case.set_decided(True)
        if self.case.protocol is Protocol.HTTP and isinstance(sniffed, Nameless):
            sniffed = Malformed("an HTTP request to a server that spoke first")
        if not isinstance(sniffed, NotMine):
            flow = self.case.flow(sniffed)
            verdict = self.case.decide(flow)
            if not isinstance(verdict, Allow):
                self.end("proxy" if is_refused(verdict) else "client")
                self.case.tell(flow, verdict, self.reached)
            if is_refused(verdict):
                yield from self.refuse(verdict)
                return
        yield from self._open_up()

    # HTTP.

    def _begin_http(self, first: bytes, forward: bool) -> Steps:
        if self._from_server:  # nobody asked it yet
            yield from self.drop_server()
        self._http = http = Http(self, forward)
        self._handle_event = http.handle
        yield from http.begin(first)
