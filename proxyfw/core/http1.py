"""Plain HTTP/1 between a client that may be hostile and the servers it may reach: request by request, nothing unjudged.

Every request is decided before a byte of it is sent, and sent as it was parsed, not as it came (RFC 9110, RFC 9112).
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus

import h11

from proxyfw.core.address import IPAddress
from proxyfw.core.hostname import Hostname
from proxyfw.core.http1_head import MAX_METHOD, NO_CONNECT, BadHead, HeadReader, check_request_line, in_words, parsed
from proxyfw.core.http1_judge import (
    Judged,
    allowed_trailers,
    has_forbidden_trailer,
    judge,
    judge_forward,
    list_of,
    response_fields,
)
from proxyfw.core.refusal import page_fields
from proxyfw.core.sniffed import MAX_HELLO, Malformed, Nameless, NeedMore, NotMine, Sniffed
from proxyfw.core.verdict import Reason

_METHOD_SO_FAR = re.compile(rb"[-!#$%%&'*+.^_`|~0-9A-Za-z]{0,%d}" % MAX_METHOD)
_SAYS_HTTP = re.compile(rb" HTTP/[0-9.]+[ \t]*\r?\Z|\AGET (?:/|http://)[^ ]*\r?\Z")
_LATE_CONNECT = "CONNECT on a connection that carries other requests: it needs one of its own"


def sniff(data: bytes, no_connect: str | None = NO_CONNECT) -> Sniffed:
    """Whether a client's first bytes are an HTTP/1 request. Nameless: they are, and a Session says which host is named.

    Malformed: HTTP without doubt, and broken in its first line (a Session fed with the same bytes answers with a page).
    `no_connect`: why CONNECT is refused; None: it is not.
    """
    if data == b"\r":
        return NeedMore()
    line, ended, _ = data.removeprefix(b"\r\n").partition(b"\n")
    method, space, _ = line.partition(b" ")
    if not _METHOD_SO_FAR.fullmatch(method):
        return NotMine()
    if len(line) >= MAX_HELLO:
        return Malformed(f"the request line is longer than {MAX_HELLO} bytes", Reason.OVERSIZED)
    if not ended:
        return NeedMore()
    if not method or not space or not _SAYS_HTTP.search(line):
        return NotMine()
    if not line.endswith(b"\r"):
        return Malformed("a line feed without a carriage return")
    try:
        check_request_line(line[:-1], no_connect)
    except BadHead as error:
        return error.malformed
    return Nameless()


@dataclass(frozen=True, slots=True)
class Decide:
    """Ask the policy, and answer with `permit` or `refuse`. None: no host is named, or an address.

    `address` and `port`: only in proxy mode, where the request leads to `port` of either `name` or `address`.
    """

    name: Hostname | None
    address: IPAddress | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class ToServer:
    """Send to the server."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ToClient:
    """Send to the client."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Broken:
    """What the client sent cannot be judged: for the log. The page for the client and Close follow."""

    malformed: Malformed


@dataclass(frozen=True, slots=True)
class ServerBroken:
    """What the server sent is not HTTP, or is cut short: for the log. Close follows."""

    detail: str


@dataclass(frozen=True, slots=True)
class Switch:
    """The server agreed to WebSocket: relay both directions raw from now on, these bytes first."""

    to_server: bytes
    to_client: bytes


@dataclass(frozen=True, slots=True)
class CloseServer:
    """Close the server connection; it carries no further request. The client's stays open."""


@dataclass(frozen=True, slots=True)
class Close:
    """Send what is still to be sent, then close both connections.

    The client may still be sending: drop what comes for a moment before the socket is closed, or the kernel's reset
    destroys what the client has not read yet (RFC 9112 section 9.6).
    """


Command = Decide | ToServer | ToClient | Broken | ServerBroken | Switch | CloseServer | Close


class _Awaits(Enum):
    REQUEST_HEAD = auto()
    VERDICT = auto()
    REQUEST_BODY = auto()  # and the response, which may come before the body has ended
    RESPONSE = auto()
    NOTHING = auto()  # closed, or relayed raw


class _Step(Enum):
    HEAD_JUDGED = auto()
    PERMITTED = auto()
    REQUEST_SENT = auto()
    RESPONSE_SENT = auto()
    ENDED = auto()


_NEXT = {
    _Awaits.REQUEST_HEAD: {_Step.HEAD_JUDGED: _Awaits.VERDICT, _Step.ENDED: _Awaits.NOTHING},
    _Awaits.VERDICT: {_Step.PERMITTED: _Awaits.REQUEST_BODY, _Step.ENDED: _Awaits.NOTHING},
    _Awaits.REQUEST_BODY: {_Step.REQUEST_SENT: _Awaits.RESPONSE, _Step.ENDED: _Awaits.NOTHING},
    _Awaits.RESPONSE: {_Step.RESPONSE_SENT: _Awaits.REQUEST_HEAD, _Step.ENDED: _Awaits.NOTHING},
    _Awaits.NOTHING: {},
}


class Session:
    """One client connection to `port`, and the server connections it leads to, one at a time.

    Without a port it is in proxy mode: each request names its host and port in a URL (RFC 9112 section 3.2.2).

    The protocol of calls:
    - Every byte from the client, the sniffed ones first, goes to `from_client`; b"" is its end, said once.
      Read the client only while `want_client` is true; one read that was under way is held.
    - Every byte from the current server connection goes to `from_server`, b"" is its end. A connection that was
      replaced or closed is not spoken of again.
    - Carry out the commands of each answer in order, and those of earlier calls first.
    - Decide is the last of its list. Answer it once: with `refuse`, or with `permit` as soon as there is a server
      connection for what it says. While `reusable` is true that may be the current one (fresh=False); else close the
      current one, dial, say fresh=True, and only then read the new one. The current one may end before the answer.
    - After Close or Switch the session has nothing more to say: every call but a wrong answer returns [].
    Calls out of turn raise RuntimeError.
    """

    def __init__(self, port: int | None) -> None:
        self._port = port
        self._awaits = _Awaits.REQUEST_HEAD
        self._held = bytearray()  # from the client, not yet looked at
        self._client_ended = False
        self._server: h11.Connection | None = None
        self._server_is_for: Decide | None = None
        self._reused = False
        self._await_request()

    @property
    def want_client(self) -> bool:
        """Whether the client is to be read. While its next request waits, the network holds the rest back."""
        if self._awaits is _Awaits.RESPONSE:
            return not self._held and not self._client_ended
        return self._awaits in (_Awaits.REQUEST_HEAD, _Awaits.REQUEST_BODY) and not self._client_ended

    @property
    def in_head(self) -> bool:
        """Whether a request has begun whose head is not whole."""
        return self._awaits is _Awaits.REQUEST_HEAD and not self._head.empty

    @property
    def reusable(self) -> bool:
        """Whether the current server connection can carry the request that awaits its verdict."""
        if self._awaits is not _Awaits.VERDICT or self._server is None:
            return False
        return self._judged is not None and _asked(self._judged) == self._server_is_for

    def from_client(self, data: bytes) -> list[Command]:
        """Take bytes from the client; b"" is its end."""
        if self._awaits is _Awaits.NOTHING:
            return []
        self._held += data
        self._client_ended = self._client_ended or not data
        if self._awaits is _Awaits.REQUEST_HEAD:
            return self._read_head()
        if self._awaits is _Awaits.REQUEST_BODY:
            return self._read_body()
        return []

    def permit(self, fresh: bool) -> list[Command]:
        """The request is allowed; `fresh`: a server connection was opened for it, else the current one is used."""
        judged = self._judged
        reused = self._server if self.reusable and not fresh else None
        if self._awaits is not _Awaits.VERDICT or judged is None or not (fresh or reused):
            raise RuntimeError("permit: no request awaits a verdict, or no server connection is there for it")
        self._step(_Step.PERMITTED)
        if reused:
            reused.start_next_cycle()
        self._server = server = reused or h11.Connection(h11.CLIENT, MAX_HELLO)
        self._reused = reused is not None
        self._server_is_for = _asked(judged)
        return [ToServer(server.send(judged.request)), *self._read_body()]

    def refuse(self, status: int, page: bytes) -> list[Command]:
        """The request is not allowed, or no server could be reached. `page` is plain text in UTF-8."""
        if self._awaits is not _Awaits.VERDICT:
            raise RuntimeError("refuse: no request awaits a verdict")
        return self._end([ToClient(self._page(status, page))])

    def from_server(self, data: bytes) -> list[Command]:
        """Take bytes from the server; b"" is its end."""
        if self._server is None or self._awaits is _Awaits.NOTHING:
            return []
        if self._awaits in (_Awaits.REQUEST_HEAD, _Awaits.VERDICT):
            self._server = None  # it ended, or spoke unasked: either way the next answer could not be trusted
            return [CloseServer()]
        self._server.receive_data(data)
        if self._server.their_state is h11.SEND_RESPONSE and self._server.trailing_data == (b"", True):
            # On a kept connection this is the ordinary race of keep-alive: the client repeats such a request by itself
            # when its own connection closes without an answer (RFC 9112 section 9.3.1), and not after a 502.
            return self._server_broken("the server closed the connection without an answer", tell=not self._reused)
        return self._read_response(self._server)

    def _step(self, step: _Step) -> None:
        self._awaits = _NEXT[self._awaits][step]

    def _end(self, commands: list[Command]) -> list[Command]:
        self._step(_Step.ENDED)
        return [*commands, Close()]

    def _await_request(self) -> None:
        # A new h11 connection for each request: bytes once given to h11 could not be checked before it parses them.
        self._client = h11.Connection(h11.SERVER, MAX_HELLO)
        self._head = HeadReader(_LATE_CONNECT if self._port is None else NO_CONNECT)
        self._judged: Judged | None = None
        self._without_body = False  # the client asked with HEAD

    def _read_head(self) -> list[Command]:
        data, self._held = bytes(self._held), bytearray()
        try:
            head = self._head.feed(data)
            if head is None:
                return self._await_more_head()
            self._held = bytearray(self._head.rest)
            request = parsed(head, self._client)
            self._without_body = request.method == b"HEAD"
            judged = self._judged = judge_forward(request) if self._port is None else judge(request, self._port)
        except BadHead as error:
            return self._broken(error.malformed)
        self._step(_Step.HEAD_JUDGED)
        return [_asked(judged)]

    def _await_more_head(self) -> list[Command]:
        if not self._client_ended:
            return []
        if self._head.empty:
            return self._end([])
        return self._broken(Malformed("the connection ended in the middle of a request head"))

    def _read_body(self) -> list[Command]:
        assert self._server is not None
        data, self._held = bytes(self._held), bytearray()
        if data:
            self._client.receive_data(data)
        if self._client_ended:
            self._client.receive_data(b"")
        out = bytearray()
        try:
            self._pass_body(self._server, out)
        except BadHead as error:
            return _sent(ToServer, out) + self._broken(error.malformed)
        except h11.RemoteProtocolError as error:
            return _sent(ToServer, out) + self._broken(Malformed(in_words("request body", error)))
        return _sent(ToServer, out)

    def _pass_body(self, server: h11.Connection, out: bytearray) -> None:
        while True:
            event = self._client.next_event()
            if isinstance(event, h11.Data):
                out += server.send(event)
            elif isinstance(event, h11.EndOfMessage):
                if has_forbidden_trailer(event):
                    raise BadHead("a trailer that names a host, a length or the connection")
                out += server.send(event)
                self._step(_Step.REQUEST_SENT)
                self._held = bytearray(self._client.trailing_data[0])
                return
            else:
                return

    def _read_response(self, server: h11.Connection) -> list[Command]:
        out = bytearray()
        then: list[Command] = []
        try:
            while not then:
                event = server.next_event()
                if isinstance(event, h11.InformationalResponse):
                    then = self._pass_informational(server, event, out)
                elif isinstance(event, h11.Response):
                    out += self._response_head(event)
                elif isinstance(event, h11.Data):
                    out += self._client.send(event)
                elif isinstance(event, h11.EndOfMessage):
                    out += self._client.send(self._response_end(event))
                    return _sent(ToClient, out) + self._response_ended(server)
                else:
                    break
        except h11.RemoteProtocolError as error:
            then = self._server_broken(in_words("response", error))
        return _sent(ToClient, out) + then

    def _pass_informational(
        self, server: h11.Connection, event: h11.InformationalResponse, out: bytearray
    ) -> list[Command]:
        """A 1xx response; what follows if it was 101. h11 has refused a 101 that the request did not ask for."""
        headers = response_fields(event)
        if event.status_code == 101:
            if list_of(event, b"upgrade") != [b"websocket"]:
                return self._server_broken("response: 101 to something else than WebSocket")
            headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        elif self._client_speaks_1_0:
            return []
        passed_on = h11.InformationalResponse(status_code=event.status_code, reason=event.reason, headers=headers)
        out += self._client.send(passed_on)
        if event.status_code != 101:
            return []
        self._step(_Step.ENDED)
        return [Switch(bytes(self._held), server.trailing_data[0])]

    @property
    def _client_speaks_1_0(self) -> bool:
        return self._client.their_http_version == b"1.0"

    def _response_head(self, event: h11.Response) -> bytes:
        headers = response_fields(event)
        if self._awaits is _Awaits.REQUEST_BODY:
            # Answered before it was asked to the end: what is left of the body cannot be told from a next request.
            headers.append((b"Connection", b"close"))
        return self._client.send(h11.Response(status_code=event.status_code, reason=event.reason, headers=headers))

    def _response_end(self, event: h11.EndOfMessage) -> h11.EndOfMessage:
        return h11.EndOfMessage(headers=[] if self._client_speaks_1_0 else allowed_trailers(event))

    def _response_ended(self, server: h11.Connection) -> list[Command]:
        if self._client.our_state is h11.MUST_CLOSE:
            return self._end([])
        self._step(_Step.RESPONSE_SENT)
        self._await_request()
        surplus, ended = server.trailing_data
        if server.our_state is h11.DONE and server.their_state is h11.DONE and not surplus and not ended:
            return self._read_head()
        self._server = None
        return [CloseServer(), *self._read_head()]

    def _broken(self, malformed: Malformed) -> list[Command]:
        """Fail closed: the client is told if nothing was answered yet, and the request is not finished."""
        commands: list[Command] = [Broken(malformed)]
        if self._client.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            status = 431 if malformed.reason is Reason.OVERSIZED else 400
            text = f"proxyfw refused this request.\n\nreason: {malformed.reason} ({malformed.detail})\n"
            commands.append(ToClient(self._page(status, text.encode())))
        return self._end(commands)

    def _server_broken(self, detail: str, tell: bool = True) -> list[Command]:
        commands: list[Command] = [ServerBroken(detail)]
        if tell and self._client.our_state is h11.SEND_RESPONSE:
            commands.append(ToClient(self._page(502, f"The server's answer could not be used: {detail}\n".encode())))
        return self._end(commands)

    def _page(self, status: int, text: bytes) -> bytes:
        reason = HTTPStatus(status).phrase.encode()
        page = self._client.send(h11.Response(status_code=status, reason=reason, headers=page_fields(text)))
        if not self._without_body:
            page += self._client.send(h11.Data(data=text))
        return page + self._client.send(h11.EndOfMessage())


def _sent(kind: type[ToServer] | type[ToClient], data: bytearray) -> list[Command]:
    return [kind(bytes(data))] if data else []


def _asked(judged: Judged) -> Decide:
    return Decide(judged.name, judged.address, judged.port)
