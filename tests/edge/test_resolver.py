"""Names to addresses, against real DNS servers on loopback: answers, failures, and the cache."""

import asyncio
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns_server
import pytest
from dns.message import Message
from dns.rdatatype import AAAA, A
from dns_server import Clock, run, serving, stream, truncated

from proxyfw.core.dnsanswer import Answer
from proxyfw.core.dnsmsg import Question
from proxyfw.core.hostname import normalise
from proxyfw.edge import resolver as module
from proxyfw.edge import upstream
from proxyfw.edge.resolver import FAILED, Addresses, Failure, Resolver
from proxyfw.edge.upstream import Upstream

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
    *(f"n{number}.example. 0 A 192.0.2.100" for number in range(9)),
    *(f"link{number}.example. 60 CNAME link{number + 1}.example." for number in range(1, 20)),
    "link20.example. 30 A 192.0.2.20",
    "round.example. 60 CNAME about.example.",
    "about.example. 60 CNAME round.example.",
    "to-failure.example. 60 CNAME failing.example.",
    "to-address.example. 60 CNAME 192.0.2.1.",
]
SOA = "example. 60 SOA . . 1 2 3 4 5"


class Server(dns_server.Server):
    """Serves the zone. `says` is how it answers, `soa` what it adds where there is nothing to answer."""

    def __init__(self, says: str = "the zone", soa: str = SOA) -> None:
        super().__init__(self._reply)
        self.says = says
        self.soa = soa
        self.questions: list[str] = []

    def _reply(self, query: Message, tcp: bool) -> list[bytes]:
        response = self._answer(query)
        if tcp:
            return [stream(response)]
        if self.says == "truncated":
            response = truncated(query)
        return {"nothing": [], "nonsense": [b"\xff" * 40]}.get(self.says, [response.to_wire()])

    def _answer(self, query: Message) -> Message:
        question = query.question[0]
        kind = dns.rdatatype.to_text(question.rdtype)
        name = str(question.name).lower()
        self.questions.append(f"{name} {kind}")
        response = dns.message.make_response(query)
        if self.says in ("failure", f"failure for {kind}") or name.startswith("failing"):
            response.set_rcode(dns.rcode.SERVFAIL)
            return response
        while True:
            lines = [line for line in ZONE if line.split()[0] == name]
            chosen = [line for line in lines if line.split()[2] in (kind, "CNAME")]
            response.answer += [rrset(line) for line in chosen]
            alias = bool(chosen) and chosen[0].split()[2] == "CNAME"
            if alias and self.says != "one link":
                name = chosen[0].split()[3]
                continue
            if not chosen and self.soa:
                response.authority.append(rrset(self.soa))
            if not lines:
                response.set_rcode(dns.rcode.NXDOMAIN)
            return response


def rrset(line: str) -> dns.rrset.RRset:
    owner, ttl, rdtype, *data = line.split()
    return dns.rrset.from_text(owner, int(ttl), "IN", rdtype, " ".join(data))


def resolver(clock: Clock, *servers: tuple[str, int]) -> Resolver:
    return Resolver(Upstream([(ip_address(host), port) for host, port in servers], clock).ask, clock)


def addresses(text: str) -> Addresses:
    return tuple(map(ip_address, text.split()))


async def ask(found: Resolver, name: str) -> Addresses:
    return await found.resolve(name)  # type: ignore[arg-type]


def cached(found: Resolver, name: str) -> Addresses | None:
    return found.cached(name)  # type: ignore[arg-type]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "ATTEMPT", 0.1)
    monkeypatch.setattr(upstream, "LIFETIME", 0.5)


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
def test_a_name_is_resolved(name: str, answer: Addresses) -> None:
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
def test_what_the_resolvers_fail_to_answer(says: str, answer: Addresses) -> None:
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


def question(name: str, rdtype: int = A, **bits: bool) -> Question:
    return Question(normalise(name), rdtype, **bits)


def told(answer: Answer) -> list[str]:
    """The records, as text."""
    return [f"{rrset.ttl} {rdata}".lower() for rrset in answer.answer for rdata in rrset]


@pytest.mark.parametrize(
    ("name", "soa", "seconds"),
    [
        pytest.param("four.example", SOA, 60, id="the TTL"),
        pytest.param("alias.example", SOA, 7, id="the smallest TTL of a chain"),
        pytest.param("lasting.example", SOA, 3600, id="a day: the most"),
        pytest.param("absent.example", SOA, 5, id="no such name: the SOA's minimum"),
        pytest.param("mail.example", SOA, 5, id="no such record: the SOA's minimum"),
        pytest.param("absent.example", "example. 4 SOA . . 1 2 3 4 50", 4, id="no such name: the SOA's own TTL"),
        pytest.param("absent.example", "example. 9999 SOA . . 1 2 3 4 9999", 300, id="no such name: the most"),
        pytest.param("failing.example", SOA, module.FAILURE_TTL, id="a failure"),
    ],
)
def test_what_was_found_is_held_for_exactly(name: str, soa: str, seconds: float) -> None:
    async def test() -> None:
        server, clock = Server(soa=soa), Clock()
        async with serving(server) as port:
            found = resolver(clock, ("127.0.0.1", port))
            assert found.known(question(name)) is None
            answer = await found.find(question(name))
            assert (answer is FAILED) == (name == "failing.example")
            clock.now += seconds - 0.25
            assert found.known(question(name)) == (answer, seconds - 0.25)
            assert await found.find(question(name)) is answer
            assert len(server.questions) == 1
            clock.now += 0.25
            assert found.known(question(name)) is None
            assert await found.find(question(name)) is not answer or answer is FAILED
            assert len(server.questions) == 2

    run(test())


@pytest.mark.parametrize(
    ("name", "soa"),
    [
        pytest.param("brief.example", SOA, id="a TTL of zero"),
        pytest.param("absent.example", "", id="no such name, without an SOA"),
        pytest.param("mail.example", "", id="no such record, without an SOA"),
    ],
)
def test_what_must_not_be_kept_is_shared_by_those_who_wait(name: str, soa: str) -> None:
    async def test() -> None:
        server = Server(soa=soa)
        async with serving(server) as port:
            found = resolver(Clock(), ("127.0.0.1", port))
            answers = await asyncio.gather(*(found.find(question(name)) for _ in range(50)))
            assert set(answers) == {answers[0]}
            assert len(server.questions) == 1
            assert found.known(question(name)) is None
            assert await found.find(question(name)) is not answers[0]
            assert len(server.questions) == 2

    run(test())


def test_the_same_name_with_other_bits_is_another_question() -> None:
    async def test() -> None:
        server = Server()
        async with serving(server) as port:
            found = resolver(Clock(), ("127.0.0.1", port))
            bits = [{"dnssec_ok": do, "checking_disabled": cd} for do in (False, True) for cd in (False, True)]
            for _ in range(2):
                for each in bits:
                    assert told(await found.find(question("four.example", **each))) == ["60 192.0.2.4"]
            seen = [(bool(q.ednsflags & dns.flags.DO), bool(q.flags & dns.flags.CD)) for q in server.queries]
            assert seen == [(False, False), (False, True), (True, False), (True, True)]

    run(test())


def test_a_chain_that_the_resolver_did_not_follow_is_followed() -> None:
    async def test() -> None:
        server, clock = Server("one link"), Clock()
        async with serving(server) as port:
            found = resolver(clock, ("127.0.0.1", port))
            answer = await found.find(question("alias.example"))
            assert told(answer) == ["300 middle.example.", "7 four.example.", "60 192.0.2.4"]
            assert answer.addresses == addresses("192.0.2.4")
            assert server.questions == ["alias.example. A", "middle.example. A", "four.example. A"]

    run(test())


def test_a_chain_that_was_followed_is_held_for_its_smallest_ttl() -> None:
    async def test() -> None:
        clock = Clock()
        async with serving(Server("one link")) as port:
            found = resolver(clock, ("127.0.0.1", port))
            answer = await found.find(question("alias.example"))
            assert answer.ttl == 7
            clock.now += 6.75
            assert found.known(question("alias.example")) == (answer, 6.75)
            clock.now += 0.25
            assert found.known(question("alias.example")) is None

    run(test())


@pytest.mark.parametrize(
    ("name", "rcode", "questions"),
    [
        pytest.param("dangling.example", dns.rcode.NXDOMAIN, 2, id="no such name"),
        pytest.param("round.example", dns.rcode.NOERROR, 1 + module.MAX_LINKS, id="itself"),
        pytest.param("link1.example", dns.rcode.NOERROR, 1 + module.MAX_LINKS, id="too far away"),
        pytest.param("to-address.example", dns.rcode.NOERROR, 1, id="what is no host name"),
        pytest.param("to-failure.example", dns.rcode.SERVFAIL, 2, id="a failure"),
    ],
)
def test_a_chain_that_leads_to(name: str, rcode: dns.rcode.Rcode, questions: int) -> None:
    async def test() -> None:
        server = Server("one link")
        async with serving(server) as port:
            found = resolver(Clock(), ("127.0.0.1", port))
            answer = await found.find(question(name))
            assert answer.rcode == rcode
            assert answer.addresses == ()
            assert (answer is FAILED) == (rcode == dns.rcode.SERVFAIL)
            assert len(server.questions) == questions

    run(test())


def test_the_longest_chain_that_is_followed() -> None:
    async def test() -> None:
        async with serving(Server("one link")) as port:
            found = resolver(Clock(), ("127.0.0.1", port))
            answer = await found.find(question(f"link{20 - module.MAX_LINKS}.example"))
            assert answer.addresses == addresses("192.0.2.20")
            assert len(answer.answer) == module.MAX_LINKS + 1

    run(test())


def test_what_was_found_for_a_client_serves_the_proxy() -> None:
    async def test() -> None:
        server, clock = Server(), Clock()
        async with serving(server) as port:
            found = resolver(clock, ("127.0.0.1", port))
            await found.find(question("both.example"))
            assert cached(found, "both.example") is None  # half of it may be the half that leads nowhere
            await found.find(question("both.example", AAAA))
            assert cached(found, "both.example") == addresses("2001:db8::1 192.0.2.1 192.0.2.2")
            assert await ask(found, "both.example") == addresses("2001:db8::1 192.0.2.1 192.0.2.2")
            assert len(server.questions) == 2
            clock.now += 60
            assert cached(found, "both.example") is None

    run(test())


def test_that_a_client_found_no_address_does_not_serve_the_proxy() -> None:
    async def test() -> None:
        async with serving(Server()) as port:
            found = resolver(Clock(), ("127.0.0.1", port))
            for name in ("absent.example", "failing.example", "six.example"):
                await found.find(question(name))
                assert cached(found, name) is None  # of the other kind there may be one
            assert await ask(found, "six.example") == addresses("2001:db8::6")

    run(test())


def test_a_question_that_nobody_waits_for_any_more_is_still_answered_for_the_next() -> None:
    async def test() -> None:
        server = Server()
        server.held = asyncio.Event()
        async with serving(server) as port:
            found = resolver(Clock(), ("127.0.0.1", port))
            impatient, patient = (asyncio.create_task(found.find(question("four.example"))) for _ in range(2))
            await server.asked.wait()
            impatient.cancel()
            server.held.set()
            assert (await patient).addresses == addresses("192.0.2.4")
            assert impatient.cancelled()
            server.held.clear()
            alone = asyncio.create_task(found.find(question("both.example")))
            server.asked.clear()
            await server.asked.wait()
            alone.cancel()
            server.held.set()
            assert (await found.find(question("both.example"))).addresses == addresses("192.0.2.1 192.0.2.2")
            assert server.questions == ["four.example. A", "both.example. A"]

    run(test())
