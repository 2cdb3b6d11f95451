"""Names to addresses, against real DNS servers on loopback: answers, failures, and the cache."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from proxyfw.edge import resolver as module
from proxyfw.edge.resolver import Answer, Failure, Resolver

ZONE = [
    "both.example. 60 A 192.0.2.1",
    "both.example. 60 A 192.0.2.2",
    "both.example. 60 AAAA 2001:db8::1",
    "four.example. 60 A 192.0.2.4",
    "six.example. 60 AAAA 2001:db8::6",
    "alias.example. 300 CNAME middle.example.",
    "middle.example. 7 CNAME four.example.",
    "brief.example. 0 A 192.0.2.5",
    "lasting.example. 90000 A 192.0.2.6",
    "mail.example. 60 MX 10 both.example.",
    "dangling.example. 60 CNAME absent.example.",
    *(f"n{number}.example. 60 A 192.0.2.100" for number in range(9)),
]


def run(coroutine: Coroutine[None, None, None]) -> None:
    """Runs a test, which ends within ten seconds and leaves no descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(asyncio.wait_for(coroutine, 10))
    assert len(os.listdir("/proc/self/fd")) == before


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Server(asyncio.DatagramProtocol):
    """A DNS server over UDP and TCP, and what it was asked. `says` is how it answers."""

    def __init__(self, says: str = "the zone") -> None:
        self.says = says
        self.questions: list[str] = []
        self.over_tcp = 0
        self.held: asyncio.Event | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        if self.says == "nonsense":
            self._transport.sendto(b"\xff" * 40, address)
        elif self.says != "nothing":
            asyncio.get_running_loop().create_task(self._reply(data, address))

    async def _reply(self, data: bytes, address: Any) -> None:
        if self.held is not None:
            await self.held.wait()
        response = self._answer(dns.message.from_wire(data))
        if self.says == "truncated":
            response.answer.clear()
            response.flags |= dns.flags.TC
        self._transport.sendto(response.to_wire(), address)

    async def serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        query = dns.message.from_wire(await reader.readexactly(int.from_bytes(await reader.readexactly(2))))
        self.over_tcp += 1
        wire = self._answer(query).to_wire()
        writer.write(len(wire).to_bytes(2) + wire)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        question = query.question[0]
        kind = dns.rdatatype.to_text(question.rdtype)
        self.questions.append(f"{question.name} {kind}")
        response = dns.message.make_response(query)
        if self.says == "failure" or self.says == f"failure for {kind}":
            response.set_rcode(dns.rcode.SERVFAIL)
            return response
        name = str(question.name)
        while True:
            lines = [line for line in ZONE if line.split()[0] == name]
            if not lines:
                response.set_rcode(dns.rcode.NXDOMAIN)
                return response
            chosen = [line for line in lines if line.split()[2] in (kind, "CNAME")]
            for line in chosen:
                owner, ttl, rdtype, *data = line.split()
                response.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", rdtype, " ".join(data)))
            if not chosen or chosen[0].split()[2] != "CNAME":
                return response
            name = chosen[0].split()[3]


@asynccontextmanager
async def serving(server: Server, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """The port on which it serves."""
    tcp = await asyncio.start_server(server.serve_tcp, host, 0, family=socket.AF_INET)
    port: int = tcp.sockets[0].getsockname()[1]
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: server, (host, port))
    try:
        yield port
    finally:
        transport.close()
        tcp.close()
        await tcp.wait_closed()


def resolver(clock: Clock, *upstream: tuple[str, int]) -> Resolver:
    return Resolver([(ip_address(host), port) for host, port in upstream], clock)


def addresses(text: str) -> Answer:
    return tuple(map(ip_address, text.split()))


async def ask(found: Resolver, name: str) -> Answer:
    return await found.resolve(name)  # type: ignore[arg-type]


def cached(found: Resolver, name: str) -> Answer | None:
    return found.cached(name)  # type: ignore[arg-type]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ATTEMPT", 0.05)
    monkeypatch.setattr(module, "LIFETIME", 0.3)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        pytest.param("both.example", addresses("2001:db8::1 192.0.2.1 192.0.2.2"), id="IPv6 and IPv4"),
        pytest.param("four.example", addresses("192.0.2.4"), id="IPv4 only"),
        pytest.param("six.example", addresses("2001:db8::6"), id="IPv6 only"),
        pytest.param("alias.example", addresses("192.0.2.4"), id="a chain of CNAMEs"),
        pytest.param("absent.example", Failure.UNRESOLVABLE, id="no such name"),
        pytest.param("mail.example", Failure.UNRESOLVABLE, id="a name without addresses"),
        pytest.param("dangling.example", Failure.UNRESOLVABLE, id="a CNAME to no such name"),
    ],
)
def test_a_name_is_resolved(name: str, answer: Answer) -> None:
    async def test() -> None:
        server = Server()
        async with serving(server) as port:
            assert await ask(resolver(Clock(), ("127.0.0.1", port)), name) == answer
            assert sorted(server.questions) == [f"{name}. A", f"{name}. AAAA"]

    run(test())


def test_a_truncated_answer_is_asked_for_over_tcp() -> None:
    async def test() -> None:
        server = Server("truncated")
        async with serving(server) as port:
            answer = await ask(resolver(Clock(), ("127.0.0.1", port)), "both.example")
            assert answer == addresses("2001:db8::1 192.0.2.1 192.0.2.2")
            assert server.over_tcp == 2

    run(test())


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "says",
    [
        pytest.param("nothing", id="is silent"),
        pytest.param("failure", id="fails"),
        pytest.param("nonsense", id="answers nonsense"),
    ],
)
def test_the_next_resolver_is_asked_where_the_first(says: str) -> None:
    async def test() -> None:
        good, bad = Server(), Server(says)
        async with serving(bad) as bad_port, serving(good, "127.0.0.2") as good_port:
            found = resolver(Clock(), ("127.0.0.1", bad_port), ("127.0.0.2", good_port))
            assert await ask(found, "four.example") == addresses("192.0.2.4")
            assert len(good.questions) == 2

    run(test())


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("says", "answer"),
    [
        pytest.param("nothing", Failure.NO_ANSWER, id="all silent"),
        pytest.param("failure", Failure.NO_ANSWER, id="all fail"),
        pytest.param("nonsense", Failure.NO_ANSWER, id="all answer nonsense"),
        pytest.param("failure for AAAA", addresses("192.0.2.1 192.0.2.2"), id="one question of the two fails"),
    ],
)
def test_what_the_resolvers_fail_to_answer(says: str, answer: Answer) -> None:
    async def test() -> None:
        async with serving(Server(says)) as one, serving(Server(says), "127.0.0.2") as other:
            clock = Clock()
            found = resolver(clock, ("127.0.0.1", one), ("127.0.0.2", other))
            assert await ask(found, "both.example") == answer
            # It is not asked for again with every connection, but soon.
            clock.now += module.FAILURE_TTL - 0.1
            assert cached(found, "both.example") == answer
            clock.now += 0.2
            assert cached(found, "both.example") is None

    run(test())


@pytest.mark.usefixtures("impatient")
def test_a_failure_of_the_question_that_has_no_answer_anyway() -> None:
    async def test() -> None:
        async with serving(Server("failure for A")) as port:
            # IPv4 addresses may exist: nobody has said that they do not.
            assert await ask(resolver(Clock(), ("127.0.0.1", port)), "four.example") is Failure.NO_ANSWER

    run(test())


@pytest.mark.usefixtures("impatient")
def test_two_resolvers_on_two_ports_of_one_address() -> None:
    async def test() -> None:
        good, silent = Server(), Server("nothing")
        async with serving(good) as good_port, serving(silent) as silent_port:
            found = resolver(Clock(), ("127.0.0.1", good_port), ("127.0.0.1", silent_port))
            assert await ask(found, "four.example") == addresses("192.0.2.4")

    run(test())


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        pytest.param("four.example", 60, id="the TTL"),
        pytest.param("alias.example", 7, id="the smallest TTL of a chain"),
        pytest.param("brief.example", 5, id="a TTL of zero: the least"),
        pytest.param("lasting.example", 3600, id="a day: the most"),
        pytest.param("absent.example", 10, id="no such name"),
        pytest.param("mail.example", 10, id="a name without addresses"),
    ],
)
def test_an_answer_is_kept_for(name: str, seconds: float) -> None:
    async def test() -> None:
        server, clock = Server(), Clock()
        async with serving(server) as port:
            found = resolver(clock, ("127.0.0.1", port))
            assert cached(found, name) is None
            answer = await ask(found, name)
            asked = len(server.questions)
            clock.now += seconds - 0.1
            assert cached(found, name) == answer
            assert await ask(found, name) == answer
            assert len(server.questions) == asked
            clock.now += 0.2
            assert cached(found, name) is None
            assert await ask(found, name) == answer
            assert len(server.questions) == 2 * asked

    run(test())


def test_fifty_who_wait_for_one_name_ask_once() -> None:
    async def test() -> None:
        server = Server()
        async with serving(server) as port:
            found = resolver(Clock(), ("127.0.0.1", port))
            answers = await asyncio.gather(*(ask(found, "four.example") for _ in range(50)))
            assert answers == [addresses("192.0.2.4")] * 50
            assert len(server.questions) == 2

    run(test())


def test_one_who_gives_up_does_not_take_the_answer_from_the_others() -> None:
    async def test() -> None:
        server = Server()
        server.held = asyncio.Event()
        async with serving(server) as port:
            found = resolver(Clock(), ("127.0.0.1", port))
            impatient, patient = (asyncio.create_task(ask(found, "four.example")) for _ in range(2))
            await asyncio.sleep(0)
            impatient.cancel()
            server.held.set()
            assert await patient == addresses("192.0.2.4")
            assert impatient.cancelled()

    run(test())


def test_the_cache_is_bounded_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NAMES", 3)

    async def test() -> None:
        async with serving(Server()) as port:
            found = resolver(Clock(), ("127.0.0.1", port))
            names = [f"n{number}.example" for number in range(5)]
            for name in names:
                await ask(found, name)
            assert [name for name in names if cached(found, name) is not None] == names[2:]

    run(test())
