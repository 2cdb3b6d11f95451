"""One TCP connection of a client: what every protocol on it needs to be decided, dialled, logged, refused and relayed.

What happens in which order is in serve.py. A refusal is a verdict like any other: it is logged, the client is told as
its protocol allows, and the connection is closed.
"""

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from proxyfw.core import tls
from proxyfw.core.address import IPAddress
from proxyfw.core.explicit import Asked
from proxyfw.core.flow import Flow, NameSource, Protocol
from proxyfw.core.hostname import Hostname
from proxyfw.core.http1 import Decide
from proxyfw.core.policy import ASKED
from proxyfw.core.sniffed import Malformed, Named, Sniffed
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict, in_a_word, is_by_name
from proxyfw.edge.logdb import Row
from proxyfw.edge.poller import Stream
from proxyfw.edge.splice import Splice
from proxyfw.shared import Shared

SNIFF_DEADLINE = 5.0  # seconds for the client to say whom it wants
OBSERVE_DEADLINE = 1.0  # the same in observe mode, where a client that waits for the server is let through
LINGER = 1.0  # seconds that a refused client has to read its refusal
_CHUNK = 1 << 14


@dataclass(slots=True)
class Entry:
    """A verdict in the log, and the flow that it was given on. `by_name`: an address of the name itself was dialled."""

    flow: Flow
    row: Row
    since: float
    by_name: bool


class Ends(NamedTuple):
    """Who connects to what: the client, its address, and the destination, also as the text that the kernel gave.

    At the explicit proxy the destination is None ("") until the client has said what it wants, and where only the far
    end of an upstream proxy knows it.
    """

    client: str
    address: str
    destination: IPAddress | None
    destination_text: str
    port: int


class Request(NamedTuple):
    """What the client asked the explicit proxy for: it must be permitted as well, as long as the connection lasts.

    `words`: for the log. `verdict`: what it was let through by.
    """

    flow: Flow
    words: str
    verdict: Verdict

    @property
    def name(self) -> Hostname | None:
        """The name that was asked for; None: an address was."""
        return self.flow.name if self.flow.name_source in ASKED else None


class Connection:
    """Runs as one task until its splice begins, and lives on without a task until that ends."""

    __slots__ = (
        "_deadline",
        "_held",
        "_late",
        "_on_decided",
        "_on_done",
        "_task",
        "active_at",
        "client",
        "closed_by",
        "decided",
        "ends",
        "entry",
        "protocol",
        "request",
        "shared",
        "splice",
    )

    def __init__(
        self,
        client: Stream,
        ends: Ends,
        shared: Shared,
        on_decided: Callable[["Connection"], bool],
        on_done: Callable[["Connection"], None],
    ) -> None:
        self.client = client
        self.shared = shared
        self._on_decided = on_decided
        self._on_done = on_done
        self._task: asyncio.Task[None] | None = None
        self._deadline = 0.0
        self._late: Stream | None = None
        self._held: tuple[Hostname | IPAddress, Stream] | None = None
        self.request: Request | None = None
        self.protocol = Protocol.TCP
        self.ends = ends
        self.entry: Entry | None = None
        self.splice: Splice | None = None
        self.closed_by = ""
        self.decided = False
        self.active_at = shared.poller.loop.time()

    def start(self, serve: Callable[["Connection"], Coroutine[None, None, None]]) -> None:
        """Begins the task: `serve(self)`, until it has begun a splice or ends."""
        self._task = self.shared.poller.loop.create_task(self._run(serve))

    @property
    def setting_up(self) -> bool:
        """Whether its task still runs."""
        return self._task is not None

    def close(self, closed_by: str) -> None:
        """Ends the connection at once, whatever it awaits. By `policy`, what the kernel has yet to send is lost too."""
        self.closed_by = closed_by
        if closed_by == "policy":
            self.client.reset_on_close()
            if self.splice is not None:
                self.splice.reset_on_close()
        if self.splice is not None:
            self.splice.close(closed_by)
        elif self._task is not None:
            self._task.cancel()

    async def _run(self, serve: Callable[["Connection"], Coroutine[None, None, None]]) -> None:
        try:
            await serve(self)
        except asyncio.CancelledError:
            pass  # by `close`, which has said why
        except OSError:
            pass  # one side broke off; the row says what was relayed until then
        except Exception as error:  # noqa: BLE001 - the one broad catch: a fault of ours ends one flow, and is logged
            self.closed_by = "proxy"
            bare = Flow(self.ends.client, self.protocol, self.ends.destination, self.ends.port)
            self.record(bare, Deny(Reason.ERROR, detail=repr(error)))
        finally:
            self._task = None
            self._late = None
            self.take_held(lambda _: False)
            if self.splice is None:
                if self.request is not None and not self.decided:
                    self.record(self.request.flow, self.request.verdict)  # the server was reached, if for nothing
                self.end_entry(self.closed_by or "client")
                self.client.close()
                self._on_done(self)

    def flow(self, sniffed: Sniffed | None = None) -> Flow:
        """This connection as the policy sees it: where it names no host, by what its client was told of the address."""
        ends = self.ends
        name, source = (sniffed.name, NameSource.SNI) if isinstance(sniffed, Named) else (None, NameSource.NONE)
        broken = sniffed if isinstance(sniffed, Malformed) else None
        flow = Flow(ends.client, self.protocol, ends.destination, ends.port, name, source, broken)
        if name is not None:
            return flow
        if self.request is not None and self.request.name is not None:
            return flow._replace(name=self.request.name, name_source=self.request.flow.name_source)
        return self.shared.policy.decide_pinned(flow, self.names(ends.destination))[0]

    def http_flow(self, asked: Decide, forward: bool) -> Flow:
        """The same for one HTTP request. `forward`: it says by its URL where it is to go."""
        flow = self.flow()
        if forward:
            assert asked.port is not None
            flow = flow._replace(destination=asked.address, port=asked.port)
        if asked.name is not None:
            return flow._replace(name=asked.name, name_source=NameSource.HOST)
        if forward and asked.address is not None:
            return self.shared.policy.decide_pinned(flow, self.names(asked.address))[0]
        return flow

    def begin(self, asked: Asked, flow: Flow, verdict: Verdict, at: IPAddress | None) -> None:
        """From here on it is as if the client had connected to this address, by the name that it asked for.

        `flow`, `verdict`: what was permitted. `at`: None where only the far end of an upstream proxy knows it.
        """
        self.ends = self.ends._replace(destination=at, destination_text=str(at or ""), port=asked.port)
        words = f"asked by {asked.protocol.value} for {asked.host}"
        self.request = Request(flow._replace(destination=at), words, verdict)

    def granted_unheard(self) -> bool:
        """Whether a pin or a rule by address grants whatever is spoken here, before anything is known of it."""
        ends = self.ends
        # What an address grants is proxied only where a proxy was asked for.
        may_be = self.request is not None or self.shared.policy.grants_unheard(ends.client, "tcp", ends.port)
        return may_be and isinstance(self.decide(self.flow()), Allow)

    def names(self, address: IPAddress | None) -> tuple[Hostname, ...]:
        """By which an address is known: the name that the client asked for, and those that it was told it for.

        Of an address that was looked up because the name asked for is granted, only that name counts.
        """
        told = self.shared.pins.names(self.ends.client, address) if address is not None else ()
        request = self.request
        if request is None or request.name is None or address != self.ends.destination:
            return told
        return (request.name,) if is_by_name(request.verdict) else (request.name, *told)

    def knows(self, address: IPAddress, name: Hostname) -> bool:
        """Whether the address is the name's: its client was told so, or it was looked up for this very connection."""
        if self.request is not None and self.request.name is not None:
            return self.request.name == name and address == self.ends.destination
        return self.shared.pins.holds(self.ends.client, address, name)

    def hold(self, to: Hostname | IPAddress, server: Stream) -> None:
        """Keeps a server connection that stands until it is known whether it is the one to use."""
        self._held = (to, server)

    def take_held(self, fits: Callable[[Hostname | IPAddress], bool]) -> Stream | None:
        """The server connection that is held, where it leads to what is wanted; else it is closed."""
        if self._held is None:
            return None
        (to, server), self._held = self._held, None
        if fits(to):
            return server
        server.close()
        return None

    def begin_splice(
        self,
        server: Stream,
        to_server: bytes,
        to_client: bytes,
        sent: int = 0,
        received: int = 0,
        gate: Callable[[bytes], bool | None] | None = None,
    ) -> None:
        """Hands both sockets to the kernel's care; the task may end. `sent`, `received`: bytes gone before."""
        assert self.entry is not None
        self.splice = Splice(
            self.client,
            server,
            self.shared.poller,
            self.shared.pipes,
            self._spliced,
            to_server,
            to_client,
            sent,
            received,
            gate,
        )
        self.splice.start()

    def _spliced(self, splice: Splice, closed_by: str) -> None:
        self.end_entry(closed_by, splice.bytes_up, splice.bytes_down)
        self._on_done(self)

    async def refuse(self, deny: Deny) -> None:
        """Tells a TLS client by an alert; a client of another protocol by a reset."""
        if self.protocol is Protocol.TLS:
            with suppress(OSError):
                await self.client.send(tls.alert(deny.reason))
                await self.linger()
        else:
            self.client.reset_on_close()

    async def linger(self) -> None:
        """Lets the client read what it was told: a socket closed with unread bytes would reset it away."""
        self.client.finish()
        self.arm(LINGER, self.client)
        loop = self.shared.poller.loop
        until = loop.time() + LINGER
        with suppress(OSError):
            while await self.client.recv(_CHUNK) and loop.time() < until:
                pass

    def decide(self, flow: Flow) -> Verdict:
        """What the policy in force says."""
        return self.shared.policy.decide(flow)

    def touch(self) -> None:
        """Bytes came: the connection is not idle."""
        self.active_at = self.shared.poller.now

    def record(self, flow: Flow, verdict: Verdict, server: Stream | None = None) -> None:
        """Writes a verdict to the log; for what is let through, the row is completed when the flow ends.

        The row's destination is what was reached (`server`), else what the client aimed at.
        """
        self.set_decided(True)
        asked = self.request.verdict if self.request is not None else verdict
        if isinstance(verdict, Allow) and isinstance(asked, Deny):
            verdict = asked  # observed: what the client asked for would have been refused
        word = in_a_word(verdict)
        aimed_at = str(flow.destination or "")
        if flow.destination == self.ends.destination:
            aimed_at = self.ends.destination_text
        destination, told = aimed_at, [verdict.detail] if isinstance(verdict, Deny) else []
        if server is not None and server.peer and server.peer != aimed_at:
            destination = server.peer
            told += [f"the client aimed at {aimed_at}"] if aimed_at and not any(told) else []
        told += [self.request.words] if self.request is not None else []
        proxy = self.shared.policy.upstream_proxy_of(flow.client)
        told += [f"through {proxy}"] if server is not None and proxy is not None else []
        row = Row(
            client=self.ends.client,
            address=self.ends.address,
            protocol=flow.protocol.value,
            name=flow.name or "",
            name_source=flow.name_source.value,
            destination=destination,
            port=flow.port,
            verdict=word,
            reason=verdict.reason.value,
            rule=verdict.rule,
            detail="; ".join(filter(None, told)),
        )
        self.shared.log.open_row(row)
        if word != "deny":
            self.entry = Entry(flow, row, self.shared.poller.loop.time(), is_by_name(verdict))
            if self.ends.destination is not None:
                self.shared.pins.use(self.ends.client, self.ends.destination)

    def set_decided(self, decided: bool) -> bool:
        """Whether what it will be is settled, or (again) awaits the client's words; False: too many await them."""
        if self.decided == decided:
            return True
        self.decided = decided
        return self._on_decided(self)

    def end_entry(self, closed_by: str, up: int = 0, down: int = 0) -> None:
        """Completes the row of what was let through, if there is one."""
        if self.entry is None:
            return
        entry, self.entry = self.entry, None
        duration = self.shared.poller.loop.time() - entry.since
        self.shared.log.close_row(entry.row, up, down, duration, closed_by)
        if self.ends.destination is not None:
            self.shared.pins.release(self.ends.client, self.ends.destination)

    @property
    def armed(self) -> bool:
        """Whether a deadline runs."""
        return self._late is not None

    def arm_sniff(self) -> None:
        """Gives the client the time it has to say whom it wants."""
        unheard = self.protocol is Protocol.TCP and self.shared.policy.observes(self.ends.client)
        self.arm(OBSERVE_DEADLINE if unheard else SNIFF_DEADLINE, self.client)

    def arm(self, seconds: float, stream: Stream) -> None:
        """From now on, so many seconds: then whoever reads this stream gets TimeoutError."""
        self._deadline = self.shared.poller.loop.time() + seconds
        self._late = stream

    def disarm(self) -> None:
        """Takes the deadline back."""
        self._late = None

    def expire(self, now: float) -> None:
        """Called again and again while the connection is being set up: interrupts what is past its deadline."""
        if self._late is None or now < self._deadline:
            return
        if self._late.interrupt(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))):
            self._late = None  # else bytes came at this very moment: again at the next look
