"""Plain HTTP on one client connection: carries out what a `http1.Session` says, request by request."""

from mitmproxy.connection import ConnectionState
from mitmproxy.proxy.commands import CloseTcpConnection
from mitmproxy.proxy.events import Event

from proxyfw.core import http1, refusal
from proxyfw.core.sniffed import Malformed
from proxyfw.core.verdict import Deny, Reason, is_refused
from proxyfw.edge.mitm.wire import Steps, Told, Wire

SNIFF_DEADLINE = 5.0  # seconds for a head that has begun

_HEAD_END = b"\r\n\r\n"


class Http:
    """Serves one client connection until it ends, or is relayed as it is (WebSocket). `handle` takes the events."""

    def __init__(self, wire: Wire, forward: bool) -> None:
        """`forward`: the client knows that it speaks to a proxy: each request says by its URL where it is to go."""
        self._wire = wire
        self._case = wire.case
        self._forward = forward
        self._session = http1.Session(None if forward else wire.case.port)
        self._unjudged: bytearray | None = bytearray()  # the client's bytes until the first decision
        self._waiting = bytearray()  # the client's bytes that the session does not want as yet
        self._client_left = False  # it has said all, and the session knows
        self._client_ended = False
        self._done = False
        self._new_request = self._new_answer = False  # what is sent next begins with a head

    @property
    def want_client(self) -> bool:
        """Whether the client is to be read."""
        return self._done or (self._session.want_client and not self._waiting)

    def begin(self, first: bytes) -> Steps:
        """`first`: the bytes that were sniffed."""
        if not self._wire.client.state & ConnectionState.CAN_READ:
            self._client_ended = True
        yield from self._take(first)

    def handle(self, event: Event) -> Steps:
        """An event of either connection, or the deadline."""
        wire = self._wire
        data = wire.is_from(wire.client, event)
        if data is not None:
            self._client_ended = self._client_ended or not data
            if not data and wire.client_is_gone:
                yield from wire.hang_up("client")
                return
            yield from self._take(data)
        elif wire.is_late(event):
            yield from self._broken(Malformed("the request was not complete within the deadline", Reason.TIMEOUT))
        elif (data := wire.is_from(wire.held, event)) is not None:
            yield from wire.drop_server()  # nobody asked it yet
        elif (data := wire.is_from(wire.server, event)) is not None:
            yield from self._do(self._session.from_server(data))
            yield from self._take(b"")

    def _take(self, data: bytes) -> Steps:
        """Gives the session what the client has sent, as far as it wants it."""
        self._waiting += data
        if self._unjudged is not None:
            self._unjudged += data
        while not self._done and self._session.want_client:
            if self._waiting:
                piece, self._waiting = bytes(self._waiting), bytearray()
            elif self._client_ended and not self._client_left:
                piece, self._client_left = b"", True
            else:
                break
            yield from self._do(self._session.from_client(piece))
        if not self._done and self._session.in_head and not self._wire.armed:
            yield from self._wire.arm(SNIFF_DEADLINE)
        if not self._done and self._client_left and self._wire.server is not None:
            yield CloseTcpConnection(self._wire.server, half_close=True)

    def _do(self, commands: list[http1.Command]) -> Steps:
        """Carries out commands in order; a decision brings further ones."""
        wire = self._wire
        for command in commands:
            match command:
                case http1.ToServer(data):
                    if self._new_request and wire.server is not None:
                        self._new_request, self._new_answer = False, True
                        self._case.show(request=data.partition(_HEAD_END)[0] + _HEAD_END)
                    yield from wire.to_server(data)
                case http1.ToClient(data):
                    if self._new_answer:
                        self._new_answer = data.startswith(b"HTTP/1.1 1")  # not the last one
                        self._case.show(answer=data.partition(_HEAD_END)[0] + _HEAD_END)
                    yield from wire.to_client(data)
                case http1.Decide() as asked:
                    yield from self._decide(asked)
                case http1.Broken(malformed):
                    if (yield from self._broken(malformed)):
                        return
                case http1.ServerBroken(detail):
                    if not self._client_left:
                        self._case.note(f"the server: {detail}")
                    wire.end("client" if self._client_left else "server")
                case http1.CloseServer():
                    yield from wire.drop_server()
                case http1.Switch(to_server, to_client):
                    self._done = True
                    waiting, self._waiting = bytes(self._waiting), bytearray()
                    wire.begin_relay()
                    yield from wire.to_client(to_client)
                    yield from wire.to_server(to_server + waiting)
                    yield from wire.pass_end_on()
                    return
                case http1.Close():
                    self._done = True
                    wire.end("client")
                    yield from wire.linger()
                    return

    def _decide(self, asked: http1.Decide) -> Steps:
        wire, case = self._wire, self._case
        wire.disarm()
        self._unjudged = None
        flow = case.http_flow(asked, self._forward)
        same = case.goes_on(flow) and wire.server is not None and self._session.reusable
        if same and not is_refused(case.decide(flow)):
            self._new_request = True
            yield from self._do(self._session.permit(fresh=False))
            return
        if wire.server is not None:
            yield from wire.drop_server()
        wire.end("client")
        found, verdict = yield from wire.reach_flow(flow)
        case.tell(found.flow, verdict, wire.reached)
        if wire.server is None:
            assert isinstance(verdict, Deny)
            page = refusal.page(verdict, case.client_name, asked.name or asked.address)
            yield from self._do(self._session.refuse(refusal.status_of(verdict), page))
            return
        self._new_request = True
        yield from self._do(self._session.permit(fresh=True))

    def _broken(self, malformed: Malformed) -> Told:
        """Logs what cannot be judged; in observe mode, relays it raw if nothing was judged yet, and answers True."""
        wire, case = self._wire, self._case
        wire.disarm()
        wire.end("client")
        flow = case.flow()._replace(broken=malformed)
        if self._unjudged is None or self._forward:  # where it would go, its URL alone says
            case.tell(flow, Deny(malformed.reason, detail=malformed.detail))
            yield from self._given_up()
            return False
        found, verdict = yield from wire.reach_flow(flow)
        case.tell(found.flow, verdict, wire.reached)
        if wire.server is None:
            yield from self._given_up()
            return False
        self._done = True
        wire.begin_relay()
        yield from wire.to_server(bytes(self._unjudged))
        yield from wire.pass_end_on()
        return True

    def _given_up(self) -> Steps:
        """A page may follow, and then Close; where it was the deadline, nothing does."""
        if self._session.in_head:
            self._done = True
            yield from self._wire.hang_up("proxy")
