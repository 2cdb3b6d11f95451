"""A connection at the explicit proxy: what is asked for by SOCKS or HTTP, then served as any other connection is.

The name that was asked for and the one that is spoken inside (SNI, Host) must both be permitted. The client is told of
success when the server connection stands.
"""

from contextlib import suppress

from proxyfw.connection import SNIFF_DEADLINE, Connection
from proxyfw.core.explicit import Asked, Forward, Opening
from proxyfw.core.flow import Flow, NameSource, Protocol
from proxyfw.core.sniffed import Malformed, NeedMore
from proxyfw.core.verdict import Deny, Reason, is_refused
from proxyfw.http_flow import HttpFlow
from proxyfw.reach import Reached, reach
from proxyfw.serve import serve

_CHUNK = 1 << 14
_LOOK_UP = "an address was asked for: let the proxy look the name up (curl: --socks5-hostname)"
_SOURCES = {Protocol.SOCKS: NameSource.SOCKS, Protocol.CONNECT: NameSource.CONNECT}


async def serve_explicit(connection: Connection) -> None:
    """Serves one connection until its splice begins, or it ends."""
    opening = Opening()
    connection.arm(SNIFF_DEADLINE, connection.client)
    heard = await _hear(connection, opening)
    connection.protocol = opening.protocol
    if isinstance(heard, Forward):
        await HttpFlow(connection, heard.data, forward=True).run()
        return
    connection.disarm()
    if isinstance(heard, Malformed):
        deny = Deny(heard.reason, detail=heard.detail)
        connection.record(connection.flow(heard), deny)
        await _refuse(connection, opening, deny)
        return
    flow, reached = await _ask(connection, heard)
    if reached.server is None:
        refused = reached.verdict
        assert isinstance(refused, Deny)
        connection.record(flow, heard.with_inside(refused))
        await _refuse(connection, opening, refused, heard)
        return
    _begin(connection, flow, reached, heard)
    await connection.client.send(opening.success())
    await serve(connection, heard.rest)


async def _hear(connection: Connection, opening: Opening) -> Asked | Forward | Malformed:
    """What the client wants of the proxy; answers its greetings on the way."""
    while True:
        try:
            piece = await connection.client.recv(_CHUNK)
        except TimeoutError:
            return opening.too_late()
        except ConnectionError:
            piece = b""
        if not piece:
            return opening.ended_early()
        reply, heard = opening.feed(piece)
        if reply:
            await connection.client.send(reply)
        if not isinstance(heard, NeedMore):
            return heard


async def _ask(connection: Connection, asked: Asked) -> tuple[Flow, Reached]:
    """What is to be logged, and what came of it."""
    flow, wanted = wanted_by(connection, asked)
    if isinstance(wanted, Deny):
        return flow, Reached(wanted)
    reached = await reach(connection, wanted)
    return flow if reached.server is None else wanted, reached


def wanted_by(connection: Connection, asked: Asked) -> tuple[Flow, Flow | Deny]:
    """The flow that was asked for; and the one to permit, or why there is none.

    They differ where an address was asked for that the client was told for a permitted name: it must then say the name.
    """
    client = connection.ends.client
    if isinstance(asked.host, str):
        flow = Flow(client, asked.protocol, None, asked.port, asked.host, _SOURCES[asked.protocol])
        return flow, flow
    policy, told = connection.shared.policy, connection.shared.pins.names(client, asked.host)
    flow, verdict = policy.decide_pinned(Flow(client, asked.protocol, asked.host, asked.port), told)
    if not is_refused(verdict) or verdict.reason not in (Reason.NO_NAME, Reason.NO_MATCH):
        return flow, flow
    for name in told:
        said = flow._replace(protocol=Protocol.TLS, name=name, name_source=NameSource.SNI)
        if not is_refused(policy.decide(said)):
            return flow, said
    return flow, verdict if told else Deny(Reason.NO_NAME, detail=_LOOK_UP)


def _begin(connection: Connection, flow: Flow, reached: Reached, asked: Asked) -> None:
    """The server is held until it is known that it is the one to use."""
    assert reached.server is not None
    assert reached.to is not None
    connection.begin(asked, flow, reached.verdict, flow.destination if isinstance(reached.to, str) else reached.to)
    connection.hold(reached.to, reached.server)
    connection.protocol = Protocol.TCP


async def _refuse(connection: Connection, opening: Opening, deny: Deny, asked: Asked | None = None) -> None:
    """Tells the client, as its protocol allows."""
    page = opening.refusal(deny, connection.ends.client, asked.host if asked is not None else None)
    if not page:
        connection.client.reset_on_close()
        return
    with suppress(OSError):
        await connection.client.send(page)
        await connection.linger()
