"""Questions to real DNS servers on loopback: what is believed, who is asked next, and what a question tells."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from dns.message import Message
from dns.rcode import Rcode
from dns.rdatatype import AAAA, A
from dns_server import Clock, Script, Server, run, serving, stream, truncated

from proxyfw.core.dnsmsg import MAX_UDP, Question
from proxyfw.core.hostname import normalise
from proxyfw.edge import upstream as module
from proxyfw.edge.upstream import SHUN, Upstream

NAME = "a-1.wide_name.example"
RIGHT, WRONG = "192.0.2.1", "203.0.113.66"
LOOPBACK = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPT", 0.1)
    monkeypatch.setattr(module, "LIFETIME", 0.5)


def question(name: str = NAME, rdtype: int = A, **bits: bool) -> Question:
    return Question(normalise(name), rdtype, **bits)


def reply(query: Message, address: str = RIGHT, rcode: Rcode = Rcode.NOERROR) -> Message:
    response = dns.message.make_response(query)
    response.set_rcode(rcode)
    if rcode == Rcode.NOERROR:
        response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", address))
    return response


def honest(query: Message, tcp: bool) -> list[bytes]:
    return [stream(reply(query)) if tcp else reply(query).to_wire()]


def silent(query: Message, tcp: bool) -> list[bytes]:
    return []


def saying(rcode: Rcode) -> Script:
    return lambda query, tcp: [reply(query, rcode=rcode).to_wire()]


def only_over_tcp(*pieces: Callable[[Message], bytes]) -> Script:
    return lambda query, tcp: [piece(query) for piece in pieces] if tcp else [truncated(query).to_wire()]


def stuck_over_tcp() -> Server:
    """A server that never answers over TCP."""

    def script(query: Message, tcp: bool) -> list[bytes]:
        server.held = server.held or asyncio.Event()
        return [] if tcp else [truncated(query).to_wire()]

    server = Server(script)
    return server


def upstream(*ports: int, clock: Clock | None = None) -> Upstream:
    """Of servers on the addresses of LOOPBACK, one after the other."""
    servers = [(ip_address(host), port) for host, port in zip(LOOPBACK, ports, strict=False)]
    return Upstream(servers, clock or Clock())


def addresses(answer: Message | None) -> list[str]:
    assert answer is not None
    return [rdata.address for rrset in answer.answer for rdata in rrset]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("script", [honest, only_over_tcp(lambda query: stream(reply(query)))], ids=["UDP", "TCP"])
def test_a_question_is_answered(host: str, script: Script) -> None:
    async def test() -> None:
        server = Server(script)
        async with serving(server, host) as port:
            found = Upstream([(ip_address(host), port)], Clock())
            assert addresses(await found.ask(question())) == [RIGHT]
            assert server.over_tcp == (script is not honest)
            assert found.failures == 0

    run(test())


def test_that_there_is_no_such_name_is_an_answer() -> None:
    async def test() -> None:
        first, second = Server(saying(Rcode.NXDOMAIN)), Server(honest)
        async with serving(first) as one, serving(second, "127.0.0.2") as two:
            found = upstream(one, two)
            answer = await found.ask(question())
            assert answer is not None
            assert answer.rcode() == Rcode.NXDOMAIN
            assert (second.queries, found.failures) == ([], 0)

    run(test())


def in_other_letters(message: Message) -> Message:
    name = dns.name.Name([label.swapcase() for label in message.question[0].name.labels])
    message.question = [dns.rrset.RRset(name, message.question[0].rdclass, message.question[0].rdtype)]
    return message


def test_another_letter_case_is_not_believed_over_udp() -> None:
    def script(query: Message, tcp: bool) -> list[bytes]:
        return honest(query, tcp) if tcp else [in_other_letters(reply(query, WRONG)).to_wire()]

    async def test() -> None:
        server = Server(script)
        async with serving(server) as port:
            assert addresses(await upstream(port).ask(question())) == [RIGHT]
            assert server.over_tcp == 1

    run(test())


def test_another_letter_case_is_believed_over_tcp() -> None:
    async def test() -> None:
        async with serving(Server(only_over_tcp(lambda query: stream(in_other_letters(reply(query)))))) as port:
            assert addresses(await upstream(port).ask(question())) == [RIGHT]

    run(test())


def with_another_id(query: Message) -> bytes:
    response = reply(query, WRONG)
    response.id ^= 1
    return response.to_wire()


def for_another_name(query: Message) -> bytes:
    other = dns.message.make_query("other.example", A, id=query.id)
    return reply(other, WRONG).to_wire()


def for_another_type(query: Message) -> bytes:
    other = dns.message.make_query(query.question[0].name, AAAA, id=query.id)
    return dns.message.make_response(other).to_wire()


def of_another_opcode(query: Message) -> bytes:
    response = reply(query, WRONG)
    response.set_opcode(dns.opcode.NOTIFY)
    return response.to_wire()


def a_query(query: Message) -> bytes:
    response = reply(query, WRONG)
    response.flags &= ~dns.flags.QR
    return response.to_wire()


def without_a_question(query: Message) -> bytes:
    response = reply(query, WRONG)
    response.question = []
    return response.to_wire()


def cut_off(query: Message) -> bytes:
    return reply(query, WRONG).to_wire()[:-3]


NOT_BELIEVED = [
    pytest.param(with_another_id, id="with another id"),
    pytest.param(for_another_name, id="for another name"),
    pytest.param(for_another_type, id="for another type"),
    pytest.param(of_another_opcode, id="of another opcode"),
    pytest.param(a_query, id="that is a query"),
    pytest.param(without_a_question, id="without a question"),
    pytest.param(cut_off, id="that is cut off"),
    pytest.param(lambda query: b"\xff" * 40, id="of rubbish"),
    pytest.param(lambda query: b"", id="of nothing"),
]


@pytest.mark.parametrize("forged", NOT_BELIEVED)
def test_a_reply_is_ignored_and_the_right_one_is_taken(forged: Callable[[Message], bytes]) -> None:
    async def test() -> None:
        server = Server(lambda query, tcp: [forged(query)] * 3 + honest(query, tcp))
        async with serving(server) as port:
            assert addresses(await upstream(port).ask(question())) == [RIGHT]
            assert (len(server.queries), server.over_tcp) == (1, 0)

    run(test())


def test_a_reply_from_another_port_is_ignored() -> None:
    async def test() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 0))

            def script(query: Message, tcp: bool) -> list[bytes]:
                other.sendto(reply(query, WRONG).to_wire(), server.senders[-1])
                return honest(query, tcp)

            server = Server(script)
            async with serving(server) as port:
                assert addresses(await upstream(port).ask(question())) == [RIGHT]

    run(test())


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("forged", NOT_BELIEVED)
def test_a_reply_that_is_all_there_is_and_not_believed(forged: Callable[[Message], bytes]) -> None:
    async def test() -> None:
        async with serving(Server(lambda query, tcp: [forged(query)])) as port:
            found = upstream(port)
            assert await found.ask(question()) is None
            assert found.failures == 1

    run(test())


def cut_within_a_record(query: Message) -> bytes:
    response = reply(query, WRONG)
    response.flags |= dns.flags.TC
    return response.to_wire()[:-3]


def with_some_records(query: Message) -> bytes:
    response = reply(query, WRONG)
    response.flags |= dns.flags.TC
    return response.to_wire()


@pytest.mark.parametrize(
    "short",
    [
        pytest.param(lambda query: truncated(query).to_wire(), id="without a record"),
        pytest.param(with_some_records, id="with some records"),
        pytest.param(cut_within_a_record, id="cut within a record"),
    ],
)
def test_a_truncated_reply_is_asked_for_over_tcp(short: Callable[[Message], bytes]) -> None:
    async def test() -> None:
        server = Server(lambda query, tcp: honest(query, tcp) if tcp else [short(query)])
        async with serving(server) as port:
            assert addresses(await upstream(port).ask(question())) == [RIGHT]
            assert (len(server.queries), server.over_tcp) == (2, 1)

    run(test())


@pytest.mark.parametrize("echo", [pytest.param(True, id="with the question"), pytest.param(False, id="a bare header")])
@pytest.mark.parametrize("rcode", [Rcode.FORMERR, Rcode.NOTIMP], ids=dns.rcode.to_text)
def test_a_server_that_does_not_know_edns_is_asked_without(rcode: Rcode, echo: bool) -> None:
    def script(query: Message, tcp: bool) -> list[bytes]:
        if query.edns < 0:
            return honest(query, tcp)
        response = reply(query, rcode=rcode)
        response.use_edns(False)
        if not echo:
            response.question = []
        return [stream(response) if tcp else response.to_wire()]

    async def test() -> None:
        server = Server(script)
        async with serving(server) as port:
            found = upstream(port)
            assert addresses(await found.ask(question(dnssec_ok=True, checking_disabled=True))) == [RIGHT]
            last = server.queries[-1]
            assert (last.edns, last.flags) == (-1, dns.flags.RD | dns.flags.CD)
            assert found.failures == 0

    run(test())


def test_a_server_that_knows_only_another_version_of_edns() -> None:
    async def test() -> None:
        server = Server(lambda query, tcp: saying(Rcode.BADVERS)(query, tcp) if query.edns >= 0 else honest(query, tcp))
        async with serving(server) as port:
            assert addresses(await upstream(port).ask(question())) == [RIGHT]
            assert [query.edns for query in server.queries] == [0, -1]

    run(test())


@pytest.mark.usefixtures("impatient")
def test_a_dead_server_is_asked_last_for_a_while() -> None:
    async def test() -> None:
        first, second, clock = Server(silent), Server(honest), Clock()
        async with serving(first) as one, serving(second, "127.0.0.2") as two:
            found = upstream(one, two, clock=clock)

            async def asked() -> tuple[int, int]:
                """How often each was."""
                before = len(first.queries), len(second.queries)
                assert addresses(await found.ask(question())) == [RIGHT]
                return len(first.queries) - before[0], len(second.queries) - before[1]

            assert await asked() == (1, 1)
            clock.now += SHUN - 0.1
            assert await asked() == (0, 1)
            clock.now += 0.2
            assert await asked() == (1, 1)  # it is tried again, and has not returned
            assert await asked() == (0, 1)
            clock.now += SHUN + 0.1
            first.script = honest
            assert await asked() == (1, 0)
            assert await asked() == (1, 0)
            assert found.failures == 0

    run(test())


@pytest.mark.usefixtures("impatient")
def test_a_server_that_answers_again_is_no_longer_asked_last() -> None:
    async def test() -> None:
        first, second = Server(silent), Server(silent)
        async with serving(first) as one, serving(second, "127.0.0.2") as two:
            found = upstream(one, two)
            assert await found.ask(question()) is None
            second.script = honest
            asked = len(first.queries)
            assert addresses(await found.ask(question())) == [RIGHT]  # both are shunned: the order is the one given
            assert len(first.queries) == asked + 1
            assert addresses(await found.ask(question())) == [RIGHT]
            assert len(first.queries) == asked + 1

    run(test())


@pytest.mark.usefixtures("impatient")
def test_a_silent_server_is_asked_again_as_the_datagram_may_have_been_lost() -> None:
    async def test() -> None:
        server = Server(lambda query, tcp: honest(query, tcp) if len(server.queries) > 1 else [])
        async with serving(server) as port:
            assert addresses(await upstream(port).ask(question())) == [RIGHT]
            assert len(server.queries) == 2

    run(test())


@pytest.mark.usefixtures("impatient")
def test_all_servers_dead() -> None:
    async def test() -> None:
        async with serving(Server(silent)) as one, serving(Server(silent), "127.0.0.2", tcp=False) as two:
            found = upstream(one, two, 1)  # nobody listens on the third
            now = asyncio.get_running_loop().time
            before = now()
            assert await asyncio.gather(*(found.ask(question()) for _ in range(5))) == [None] * 5
            assert module.LIFETIME - 0.01 < now() - before < module.LIFETIME + 0.5
            assert found.failures == 5

    run(test())


def test_a_server_that_cannot_be_reached_is_not_waited_for() -> None:
    async def test() -> None:
        async with serving(Server(honest), "127.0.0.2") as port:
            found = Upstream([(ip_address("255.255.255.255"), 53), (ip_address("127.0.0.2"), port)], Clock())
            assert addresses(await asyncio.wait_for(found.ask(question()), 1)) == [RIGHT]

    run(test())


@pytest.mark.usefixtures("impatient")
def test_no_server_at_all() -> None:
    async def test() -> None:
        found = upstream()
        assert await found.ask(question()) is None
        assert found.failures == 1

    run(test())


@pytest.mark.parametrize("rcode", [Rcode.SERVFAIL, Rcode.REFUSED, Rcode.NOTAUTH], ids=dns.rcode.to_text)
def test_the_next_server_is_asked_where_one_says(rcode: Rcode) -> None:
    async def test() -> None:
        first, second = Server(saying(rcode)), Server(honest)
        async with serving(first) as one, serving(second, "127.0.0.2") as two:
            found = upstream(one, two)
            for number in (1, 2):
                assert addresses(await found.ask(question())) == [RIGHT]
                # It did answer, and is not shunned: it may have been the name's fault.
                assert (len(first.queries), len(second.queries)) == (number, number)
            assert found.failures == 0

    run(test())


def test_an_error_of_all_servers_is_not_asked_for_again() -> None:
    async def test() -> None:
        servers = [Server(saying(rcode)) for rcode in (Rcode.SERVFAIL, Rcode.REFUSED, Rcode.SERVFAIL)]
        async with AsyncExitStack() as stack:
            ports = [await stack.enter_async_context(serving(s, LOOPBACK[at])) for at, s in enumerate(servers)]
            found = upstream(*ports)
            assert await asyncio.wait_for(found.ask(question()), 1) is None
            assert [len(server.queries) for server in servers] == [1, 1, 1]
            assert found.failures == 1

    run(test())


@pytest.mark.parametrize("cd", [False, True], ids=["", "CD"])
@pytest.mark.parametrize("do", [False, True], ids=["", "DO"])
def test_what_a_question_tells(do: bool, cd: bool) -> None:
    async def test() -> None:
        server = Server(honest)
        async with serving(server) as port:
            await upstream(port).ask(question(rdtype=AAAA, dnssec_ok=do, checking_disabled=cd))
            [query] = server.queries
            assert query.flags == dns.flags.RD | (dns.flags.CD if cd else 0)
            assert (query.edns, query.payload, query.ednsflags) == (0, MAX_UDP, dns.flags.DO if do else 0)
            assert query.options == ()
            assert [str(q.name).lower() for q in query.question] == [f"{NAME}."]
            assert query.question[0].rdtype == AAAA
            assert [query.answer, query.authority, query.additional] == [[], [], []]

    run(test())


def test_an_unknown_type_is_asked_for_by_its_number() -> None:
    async def test() -> None:
        server = Server(lambda query, tcp: [dns.message.make_response(query).to_wire()])
        async with serving(server) as port:
            answer = await upstream(port).ask(question(rdtype=65280))
            assert answer is not None
            assert [int(query.question[0].rdtype) for query in server.queries] == [65280]

    run(test())


def test_no_two_questions_are_alike() -> None:
    async def test() -> None:
        server = Server(honest)
        server.held = asyncio.Event()
        async with serving(server) as port:
            found = upstream(port)
            asking = [asyncio.create_task(found.ask(question())) for _ in range(64)]
            while len(server.queries) < 64:
                await asyncio.sleep(0)
            server.held.set()
            assert [addresses(answer) for answer in await asyncio.gather(*asking)] == [[RIGHT]] * 64
        names = [str(query.question[0].name) for query in server.queries]
        assert len(set(server.senders)) == 64
        # By chance two ids of 64 are the same once in thirty times, four hardly ever; the same goes for 16 letters.
        assert len({query.id for query in server.queries}) > 60
        assert len(set(names)) > 60
        assert {name.lower() for name in names} == {f"{NAME}."}
        for at, letter in enumerate(f"{NAME}."):
            assert {name[at] for name in names} == {letter.lower(), letter.upper()}

    run(test())


@pytest.mark.parametrize(
    "script",
    [honest, only_over_tcp(lambda query: stream(reply(query)))],
    ids=["UDP", "TCP"],
)
def test_the_questions_under_way_are_bounded(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)

    async def test() -> None:
        server = Server(script)
        server.held = asyncio.Event()
        async with serving(server) as port:
            found = upstream(port)
            before = sockets()
            asking = [asyncio.create_task(found.ask(question())) for _ in range(5)]
            await asyncio.wait_for(asyncio.gather(*asking[3:]), 1)
            assert [task.done() for task in asking] == [False] * 3 + [True] * 2
            while len(server.queries) < 3:
                await asyncio.sleep(0)
            assert sockets() == before + 3
            server.held.set()
            answers = await asyncio.gather(*asking)
            assert [answer is not None for answer in answers] == [True] * 3 + [False] * 2
            assert found.failures == 2
            # There is room again, also for as many as gave up.
            server.held.clear()
            asking = [asyncio.create_task(found.ask(question())) for _ in range(3)]
            await asyncio.sleep(0)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            server.held.set()
            answers = await asyncio.gather(*(found.ask(question()) for _ in range(3)))
            assert [addresses(answer) for answer in answers] == [[RIGHT]] * 3
            assert found.failures == 2

    run(test())


def sockets() -> int:
    return len(os.listdir("/proc/self/fd"))


async def until_asked(server: Server) -> None:
    await server.asked.wait()


async def until_asked_over_tcp(server: Server) -> None:
    while not server.over_tcp:
        await asyncio.sleep(0)


async def at_once(server: Server) -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("make", "moment"),
    [
        pytest.param(lambda: Server(silent), at_once, id="before it is sent"),
        pytest.param(lambda: Server(silent), until_asked, id="while it waits for a datagram"),
        pytest.param(lambda: Server(only_over_tcp()), until_asked, id="while it turns to TCP"),
        pytest.param(stuck_over_tcp, until_asked_over_tcp, id="while it waits over TCP"),
    ],
)
def test_a_cancelled_question_leaves_nothing_behind(
    make: Callable[[], Server], moment: Callable[[Server], Awaitable[None]]
) -> None:
    async def test() -> None:
        server = make()
        async with serving(server) as port:
            found = upstream(port)
            before = sockets()
            asking = asyncio.create_task(found.ask(question()))
            await moment(server)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            if server.held is not None:
                server.held.set()  # the server's own end of the connection is closed too
            while sockets() > before:  # a transport is closed in the loop's next turn
                await asyncio.sleep(0)
            assert found.failures == 0

    run(test())


def framed(forged: Callable[[Message], bytes]) -> Callable[[Message], bytes]:
    return lambda query: len(forged(query)).to_bytes(2) + forged(query)


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([], id="closes"),
        pytest.param([lambda query: b"\0"], id="closes within the length"),
        pytest.param([lambda query: stream(reply(query, WRONG))[:-1]], id="closes within the message"),
        pytest.param([lambda query: b"\x15\x03\x03\x00\x02\x02\x28"], id="speaks something else"),
        pytest.param([framed(lambda query: b"")], id="sends an empty message"),
        pytest.param([framed(lambda query: b"\xff" * 40)], id="sends rubbish"),
        pytest.param([framed(with_another_id)], id="sends another id"),
        pytest.param([framed(for_another_name)], id="answers for another name"),
        pytest.param([framed(without_a_question)], id="leaves the question out"),
        pytest.param([framed(a_query)], id="sends a query"),
        pytest.param([framed(cut_off)], id="sends a message that is cut off"),
    ],
)
def test_the_next_server_is_asked_where_one_over_tcp(pieces: Iterable[Callable[[Message], bytes]]) -> None:
    async def test() -> None:
        first, second = Server(only_over_tcp(*pieces)), Server(honest)
        async with serving(first) as one, serving(second, "127.0.0.2") as two:
            found = upstream(one, two)
            assert addresses(await asyncio.wait_for(found.ask(question()), 1)) == [RIGHT]
            assert first.over_tcp == 1
            assert addresses(await found.ask(question())) == [RIGHT]
            assert first.over_tcp == 1  # and is shunned

    run(test())


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("tcp", [pytest.param(True, id="is silent"), pytest.param(False, id="does not listen")])
def test_the_next_server_is_asked_where_tcp(tcp: bool) -> None:
    async def test() -> None:
        first, second = stuck_over_tcp(), Server(honest)
        async with serving(first, tcp=tcp) as one, serving(second, "127.0.0.2") as two:
            assert addresses(await upstream(one, two).ask(question())) == [RIGHT]
            assert first.over_tcp == tcp

    run(test())


def test_pieces_of_a_reply_over_tcp_are_put_together() -> None:
    async def test() -> None:
        pieces = [lambda query, at=at: stream(reply(query))[at : at + 1] for at in range(len(NAME) + 60)]
        async with serving(Server(only_over_tcp(*pieces))) as port:
            assert addresses(await upstream(port).ask(question())) == [RIGHT]

    run(test())


def test_a_reply_that_is_too_long_is_an_error_and_its_server_is_not_to_blame() -> None:
    async def test() -> None:
        server = Server(only_over_tcp(lambda query: (module.MAX_REPLY + 1).to_bytes(2) + bytes(module.MAX_REPLY + 1)))
        async with serving(server) as port:
            found = upstream(port)
            for asked in (1, 2):
                assert await asyncio.wait_for(found.ask(question()), 1) is None
                assert server.over_tcp == asked
            assert not found._shunned

    run(test())
