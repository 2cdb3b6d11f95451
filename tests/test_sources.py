"""Who has which policy while Qubes OS tells, tells late, or tells nothing: the sources between stub edges.

Each test says what dom0 does, step by step, and who is which client after it. An address that is nobody's is refused.
"""

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

import pytest

from proxyfw import sources as module
from proxyfw.core.clients import members
from proxyfw.core.config import parse_config
from proxyfw.core.netvm import Attached, Qube, read_netvm
from proxyfw.edge.adminapi import AdminError, Refused
from proxyfw.edge.qubesdb import QubesDbError
from proxyfw.sources import Sources, SourcesError, needs_names

WORK = "clients: {work: [a]}"
FIXED = "clients: {work: {profiles: [a], address: [10.137.0.11]}}"
TAGGED = "clients: {'tag:x': [a]}"
UNLISTED = "unlisted: qubes\n"

A, B = "10.137.0.11", "10.137.0.12"


def qube(name: str, address: str, *tags: str, here: bool = True) -> Qube:
    return Qube(name, (ip_address(address),), frozenset(tags), here)


class StubQubesDb:
    """QubesDB, as the edge tells of it."""

    latest: "StubQubesDb"
    first: dict[str, bytes] | None = None  # None: it cannot be read

    def __init__(self) -> None:
        StubQubesDb.latest = self
        self.stopped = False
        self.told_handled: list[str] = []

    def start(self) -> dict[str, bytes]:
        if self.first is None:
            raise QubesDbError("QubesDB: no daemon")
        return self.first

    def follow(self, loop: object, on_change: Callable, on_trouble: Callable, on_end: Callable) -> None:
        self.on_change, self.on_trouble, self.on_end = on_change, on_trouble, on_end

    def handled(self, addresses: frozenset[str]) -> None:
        if "fails" in addresses:
            raise QubesDbError("QubesDB: no daemon")
        self.told_handled += addresses

    def stop(self) -> None:
        self.stopped = True


class StubAdminApi:
    """dom0. Each question waits in `questions` until the test answers it."""

    latest: "StubAdminApi"
    made = 0

    def __init__(self, netvm: str) -> None:
        assert netvm == "sys-fw"
        StubAdminApi.latest = self
        StubAdminApi.made += 1
        self.refused: list[str] = []
        self.odd: list[str] = []
        self.questions: asyncio.Queue[tuple[Attached | None, asyncio.Future[Attached]]] = asyncio.Queue()
        self.crash: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def follow(self, on_change: Callable[[], None], on_trouble: Callable[[str], None]) -> None:
        self.event, self.trouble = on_change, on_trouble
        await self.crash

    async def attached(self, known: Attached | None = None) -> Attached:
        answer: asyncio.Future[Attached] = asyncio.get_running_loop().create_future()
        self.questions.put_nowait((known, answer))
        try:
            return await answer
        finally:
            await self.may_end.wait()  # a call that is given up takes its time


class Netvm:
    """One netvm, what happens to it, and who is which client in it."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.faults: list[str] = []
        self.changes: list[frozenset[str]] = []
        self.sources = Sources(self.said.append, self.faults.append)
        self._entries = dict(StubQubesDb.first or {})

    @property
    def dom0(self) -> StubAdminApi:
        return StubAdminApi.latest

    @property
    def qubesdb(self) -> StubQubesDb:
        return StubQubesDb.latest

    async def begin(self, text: str) -> None:
        self.sources.start()
        self.sources.follow(asyncio.get_running_loop(), self.changes.append)
        await self.want(text)

    async def want(self, text: str) -> None:
        self._config, problems = parse_config("proxyfw.yaml", text)
        assert self._config is not None, problems
        self.sources.want_names(self._config)
        await settled()

    async def tell(self, connected: str | None = None, committed: str = "", **profiles: str) -> None:
        """QubesDB has other entries. `committed`: the addresses whose rules were written, here with new ones."""
        if connected is not None:
            self._entries["/connected-ips"] = connected.encode()
        for address in committed.split():
            self._entries[f"/qubes-firewall/{address}/policy"] = b"accept"
        for name, value in profiles.items():
            self._entries[f"/vm-config/proxyfw-{name}"] = value.encode()
        self.qubesdb.on_change(dict(self._entries), frozenset(committed.split()))
        await settled()

    async def event(self) -> None:
        self.dom0.event()
        await settled()

    async def question(self) -> tuple[Attached | None, asyncio.Future[Attached]]:
        return await asyncio.wait_for(self.dom0.questions.get(), 5)

    async def answer(self, *qubes: Qube) -> Attached | None:
        """dom0 answers one question; what was known to the one who asked."""
        known, answer = await self.question()
        answer.set_result(Attached(qubes))
        await settled()
        return known

    async def answer_all(self, *qubes: Qube) -> None:
        """dom0 answers until nobody asks."""
        await self.answer(*qubes)
        while not self.dom0.questions.empty():
            await self.answer(*qubes)

    async def fail(self, error: AdminError | None = None) -> None:
        _, answer = await self.question()
        answer.set_exception(error or AdminError("dom0 does not answer"))
        await settled()

    def asks(self) -> bool:
        return not self.dom0.questions.empty()

    def who(self) -> dict[str, str]:
        """By address: "work" has the profiles of a client, "work exact" what sys-firewall gives."""
        assert self._config is not None
        found, _ = members(self._config, ("a", "b"), self.sources.world)
        return {
            str(address): f"{member.name} exact" if member.exact else f"{member.name} {' '.join(member.profiles)}"
            for member in found
            for address in member.addresses
        }


async def settled() -> None:
    """Everything that can happen without anything from outside has happened."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _edges(monkeypatch: pytest.MonkeyPatch) -> None:
    first = {"/name": b"sys-fw", f"/qubes-firewall/{A}/policy": b"drop", f"/qubes-firewall/{B}/policy": b"drop"}
    monkeypatch.setattr(StubQubesDb, "first", first)
    monkeypatch.setattr(StubAdminApi, "made", 0)
    monkeypatch.setattr(module, "QubesDb", StubQubesDb)
    monkeypatch.setattr(module, "AdminApi", StubAdminApi)
    monkeypatch.setattr(module, "available", lambda: True)


def running(scenario: Callable[[Netvm], Awaitable[None]], faults: int = 0) -> Netvm:
    """Runs a test; the sources have then ended, and nothing of them is left."""

    async def run() -> Netvm:
        netvm = Netvm()
        try:
            await asyncio.wait_for(scenario(netvm), 20)
        finally:
            await netvm.sources.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert len(netvm.faults) == faults, netvm.faults
        return netvm

    return asyncio.run(run())


def test_a_client_that_is_attached_before_dom0_answers_is_refused_until_it_did() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(WORK)
        await netvm.event()
        await netvm.tell(A, committed=A)
        assert netvm.who() == {}
        await netvm.answer_all(qube("work", A))
        assert netvm.who() == {A: "work a"}
        assert netvm.sources.trouble == netvm.said == []

    running(scenario)


def test_where_dom0_is_not_needed_it_is_not_asked() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(FIXED)
        await netvm.tell(A, committed=A)
        assert netvm.who() == {A: "work a"}
        assert netvm.changes == [{A}]
        assert StubAdminApi.made == 0

    running(scenario)


def test_a_client_that_is_detached_and_attached_again() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(UNLISTED + WORK)
        await netvm.tell(A, committed=A)
        await netvm.answer_all(qube("work", A))
        assert netvm.who() == {A: "work a"}
        await netvm.tell("")
        assert netvm.who() == {}
        await netvm.tell(A, committed=A)
        assert netvm.who() == {}  # and not what sys-firewall gives to those that are not listed
        await netvm.answer_all(qube("work", A))
        assert netvm.who() == {A: "work a"}

    running(scenario)


def test_who_was_forgotten_is_asked_about_first() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(WORK)
        await netvm.tell(f"{A} {B}", committed=f"{A} {B}")
        await netvm.answer_all(qube("work", A), qube("play", B))
        await netvm.tell(B)
        await netvm.tell(f"{A} {B}")
        known = await netvm.answer(qube("work", A), qube("play", B))
        assert known == Attached((qube("play", B),))
        assert netvm.who() == {A: "work a"}

    running(scenario)


def test_an_address_that_an_unseen_qube_gets_is_not_the_last_owners() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(UNLISTED + WORK)
        await netvm.tell(A, committed=A)
        await netvm.answer_all(qube("work", A))
        await netvm.tell("")  # work is deleted
        await netvm.tell(A, committed=A)  # and another qube, without the tag proxyfw, has its number now
        assert netvm.who() == {}
        await netvm.answer_all()
        assert netvm.who() == {}  # it may be work, which dom0 does not show

    running(scenario)


def test_an_address_that_another_qube_gets_at_once() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(UNLISTED + WORK)
        await netvm.tell(A, committed=A)
        await netvm.answer_all(qube("work", A))
        await netvm.tell(committed=A)  # one snapshot: work is deleted, and another has its number
        assert netvm.asks()
        await netvm.answer_all(qube("new", A))
        assert netvm.who() == {A: "new exact"}

    running(scenario)


def test_dom0_refuses_later_and_a_name_is_not_kept_beyond_the_next_start_of_a_qube() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(WORK)
        await netvm.tell(f"{A} {B}", committed=f"{A} {B}")
        await netvm.answer_all(qube("work", A), qube("play", B))
        await netvm.event()
        await netvm.fail(Refused("admin.vm.List"))
        assert netvm.who() == {A: "work a"}
        assert netvm.sources.trouble == ["dom0 refuses; its policy lacks: admin.vm.List"]
        await netvm.tell(committed=B)
        assert netvm.who() == {A: "work a"}  # nobody else is touched
        await netvm.tell(committed=A)
        assert netvm.who() == {}
        assert not netvm.asks()  # each refusal is shown to the user
        await netvm.event()
        await netvm.answer_all(qube("work", A), qube("play", B))
        assert netvm.who() == {A: "work a"}
        assert netvm.sources.trouble == []

    running(scenario)


@pytest.mark.parametrize("error", [AdminError("no answer"), Refused("admin.vm.List")], ids=["no answer", "refused"])
def test_an_address_that_was_written_before_dom0_failed_is_forgotten(error: AdminError) -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(UNLISTED + WORK)
        await netvm.tell(f"{A} {B}", committed=f"{A} {B}")
        await netvm.answer_all(qube("work", A), qube("play", B))
        assert netvm.who() == {A: "work a", B: "play exact"}
        changes = len(netvm.changes)
        await netvm.tell(committed=A)
        assert netvm.who() == {A: "work a", B: "play exact"}  # while dom0 is being asked
        await netvm.fail(error)
        assert netvm.who() == {B: "play exact"}
        assert netvm.changes[changes:] == [{A}, frozenset()]

    running(scenario)


def test_an_address_that_was_written_before_the_question_for_all_failed_is_forgotten() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(WORK)
        await netvm.tell(A, committed=A)
        await netvm.answer_all(qube("work", A))
        await netvm.tell(committed=A)
        assert await netvm.answer(qube("work", A)) is not None
        assert netvm.who() == {A: "work a"}
        await netvm.fail()
        assert netvm.who() == {}

    running(scenario)


def test_what_was_written_while_all_was_asked_for_is_forgotten_when_the_next_question_fails() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(WORK)
        await netvm.tell(A, committed=A)
        await netvm.answer_all(qube("work", A))
        await netvm.tell(committed=B)
        await netvm.answer(qube("work", A))
        known, full = await netvm.question()
        assert known is None
        await netvm.tell(committed=A)
        full.set_result(Attached((qube("work", A),)))
        await settled()
        assert netvm.who() == {A: "work a"}
        await netvm.fail()
        assert netvm.who() == {}

    running(scenario)


def test_dom0_is_asked_again_after_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def scenario(netvm: Netvm) -> None:
        loop = asyncio.get_running_loop()
        later = loop.call_later

        def at_once(delay: float, callback: Callable[..., object], *arguments: object) -> asyncio.TimerHandle:
            if getattr(callback, "__name__", "") != "_ask":
                return later(delay, callback, *arguments)
            pauses.append(delay)
            return later(0, callback, *arguments)

        monkeypatch.setattr(loop, "call_later", at_once)
        await netvm.begin(WORK)
        await netvm.tell(A, committed=A)
        for _ in range(5):
            await netvm.fail()
        await netvm.answer_all(qube("work", A))
        assert netvm.who() == {A: "work a"}
        assert netvm.said == ["names and tags of qubes: dom0 does not answer"]
        await netvm.event()
        await netvm.fail()

    running(scenario)
    assert pauses == [10.0, 20.0, 40.0, 60.0, 60.0, 10.0]


def test_an_address_that_is_forgotten_during_a_question_stays_so_until_it_is_asked_about_again() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(UNLISTED + WORK)
        await netvm.tell(A, committed=A)
        await netvm.answer_all(qube("work", A))
        await netvm.event()
        _, under_way = await netvm.question()
        await netvm.tell("")
        await netvm.tell(A, committed=A)
        under_way.set_result(Attached((qube("work", A),)))  # as it was before
        await settled()
        assert netvm.who() == {}
        known = await netvm.answer(qube("work", A))
        assert known == Attached(())
        assert netvm.who() == {A: "work a"}

    running(scenario)


def test_a_new_qube_with_an_address_that_is_forgotten_during_a_question() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(WORK)
        await netvm.tell(A)
        _, under_way = await netvm.question()
        await netvm.tell("")
        await netvm.tell(A)
        under_way.set_result(Attached((qube("work", A),)))  # dom0 told nothing before
        await settled()
        assert netvm.who() == {}
        await netvm.answer_all(qube("work", A))
        assert netvm.who() == {A: "work a"}

    running(scenario)


def test_a_question_that_fails_leaves_what_is_forgotten_to_be_asked_about() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(WORK)
        await netvm.tell(A)
        await netvm.answer_all(qube("work", A))
        await netvm.tell("")
        await netvm.tell(A)
        await netvm.fail()
        await netvm.event()
        assert await netvm.answer(qube("work", A)) == Attached(())
        assert netvm.who() == {A: "work a"}

    running(scenario)


def test_profiles_that_dom0_holds_for_a_name_need_names_and_so_long_as_they_are_there() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(UNLISTED)
        await netvm.tell(f"{A} {B}", committed=f"{A} {B}", **{B: "a"})
        assert netvm.who() == {A: f"{A} exact", B: f"{B} a"}
        assert StubAdminApi.made == 0  # an address needs none
        await netvm.tell(work="b")
        assert netvm.who() == {B: f"{B} a"}  # A may be work
        await netvm.event()
        await netvm.answer_all(qube("work", A))
        assert netvm.who() == {A: "work b", B: f"{B} a"}
        del netvm._entries["/vm-config/proxyfw-work"]
        await netvm.tell()
        assert netvm.who() == {A: f"{A} exact", B: f"{B} a"}
        await netvm.tell(committed=A)
        assert not netvm.asks()

    running(scenario)


def test_profiles_that_dom0_holds_for_a_name_with_an_address_in_the_file_need_no_names() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(FIXED)
        await netvm.tell(A, work="b")
        assert netvm.who() == {A: "work b"}
        assert StubAdminApi.made == 0

    running(scenario)


@pytest.mark.parametrize("text", [WORK, TAGGED], ids=["by name", "by tag"])
def test_who_may_be_listed_is_refused_until_dom0_shows_it(text: str) -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(UNLISTED + text)
        await netvm.tell(f"{A} {B}", committed=f"{A} {B}")
        assert netvm.who() == {}
        await netvm.answer_all(qube("guest", B))
        assert netvm.who() == {B: "guest exact"}
        await netvm.event()
        await netvm.answer_all(qube("guest", B), qube("work", A, "x"))
        assert netvm.who() == {A: "work a", B: "guest exact"}

    running(scenario)


def test_a_tag_comes_and_goes() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(UNLISTED + TAGGED)
        await netvm.tell(A, committed=A)
        for tags, wanted in (((), "new exact"), (("x",), "new a"), ((), "new exact")):
            await netvm.answer_all(qube("new", A, *tags))
            assert netvm.who() == {A: wanted}
            await netvm.event()

    running(scenario)


def test_an_event_after_an_answer_that_lacked_something_tells_it_no_more() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(WORK)
        netvm.dom0.refused, netvm.dom0.odd = ["a line"], ["work: odd"]
        await netvm.event()
        await netvm.answer_all()
        assert netvm.sources.trouble == ["dom0 refuses; its policy lacks: a line", "work: odd"]
        netvm.dom0.refused, netvm.dom0.odd = [], ["work: odd"]
        await netvm.event()
        await netvm.answer_all()
        assert netvm.sources.trouble == ["work: odd"]
        assert len(netvm.said) == 2

    running(scenario)


def test_where_events_are_refused_dom0_is_asked_all_the_same() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(WORK)
        await netvm.tell(A, committed=A)
        await netvm.answer_all(qube("work", A))
        netvm.dom0.trouble("refused")
        await settled()
        assert not netvm.asks()
        assert netvm.sources.trouble == ["changes of names and tags are not heard of: refused"]
        await netvm.want(WORK)  # a reload asks again
        assert StubAdminApi.made == 2
        netvm.dom0.trouble("refused")
        await netvm.answer_all(qube("work", B))
        assert netvm.who() == {}
        await netvm.tell(B)
        assert netvm.who() == {B: "work a"}

    running(scenario)


def test_a_reload_ends_a_question_that_was_under_way_where_dom0_refuses_events() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(WORK)
        await netvm.tell(A, committed=A)
        netvm.dom0.trouble("refused")
        _, under_way = await netvm.question()
        await netvm.want(WORK)
        assert under_way.cancelled()
        await netvm.event()
        await netvm.answer_all(qube("work", A))
        assert netvm.who() == {A: "work a"}

    running(scenario)


def test_what_a_question_was_to_learn_that_a_reload_ended_is_learnt_by_another() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(WORK)
        await netvm.event()
        await netvm.fail(Refused("admin.vm.List"))
        await netvm.tell(A)
        await netvm.tell("")
        await netvm.tell(A)
        await netvm.event()
        await netvm.question()
        netvm.dom0.trouble("refused")
        before = netvm.dom0
        before.may_end.clear()
        await netvm.want(WORK)
        await netvm.event()
        _, answer = await netvm.question()
        before.may_end.set()
        await settled()
        answer.set_result(Attached((qube("work", A),)))
        await settled()
        assert netvm.who() == {}
        await netvm.answer_all(qube("work", A))
        assert netvm.who() == {A: "work a"}

    running(scenario)


def test_a_configuration_without_names_forgets_them() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(UNLISTED + WORK)
        await netvm.tell(A, committed=A)
        await netvm.answer(qube("work", A))
        await netvm.want(UNLISTED)
        assert netvm.who() == {A: f"{A} exact"}
        assert netvm.sources.world.attached is None
        assert netvm.changes[-1] == frozenset()
        await netvm.want(WORK)
        await netvm.event()
        await netvm.answer_all(qube("work", A))
        assert netvm.who() == {A: "work a"}

    running(scenario)


def test_that_qubesdb_is_away_is_told_until_it_is_back() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(FIXED)
        await netvm.tell(A)
        netvm.qubesdb.on_trouble("QubesDB: away")
        assert (netvm.sources.trouble, netvm.said) == (["QubesDB: away"], ["QubesDB: away"])
        assert netvm.who() == {A: "work a"}
        await netvm.tell(A, committed=A)
        assert netvm.sources.trouble == []

    running(scenario)


class TestFaults:
    """Whatever ends and must not is told, so that the service does not go on with what it knew last."""

    def running(self, scenario: Callable[[Netvm], Awaitable[None]]) -> list[str]:
        async def quiet(netvm: Netvm) -> None:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
            await scenario(netvm)

        return running(quiet, faults=1).faults

    @pytest.mark.parametrize(
        ("end", "text"),
        [
            (lambda crash: crash.set_exception(KeyError("x")), "names are no longer followed: KeyError('x')"),
            (lambda crash: crash.set_result(None), "names are no longer followed"),
            (lambda crash: crash.cancel(), "names are no longer followed: CancelledError()"),
        ],
        ids=["an error", "a return", "a cancellation"],
    )
    def test_the_events(self, end: Callable[[asyncio.Future[None]], object], text: str) -> None:
        async def scenario(netvm: Netvm) -> None:
            await netvm.begin(WORK)
            end(netvm.dom0.crash)
            await settled()

        assert self.running(scenario) == [text]

    def test_a_question(self) -> None:
        async def scenario(netvm: Netvm) -> None:
            await netvm.begin(WORK)
            await netvm.event()
            _, answer = await netvm.question()
            answer.set_exception(KeyError("x"))
            await settled()

        assert self.running(scenario) == ["dom0 is no longer asked for names: KeyError('x')"]

    def test_the_one_who_is_told(self) -> None:
        async def scenario(netvm: Netvm) -> None:
            await netvm.begin(WORK)
            await netvm.event()
            netvm.sources.follow(asyncio.get_running_loop(), lambda _: {}["x"])
            await netvm.answer(qube("work", A))

        assert self.running(scenario) == ["dom0 is no longer asked for names: KeyError('x')"]

    def test_qubesdb(self) -> None:
        async def scenario(netvm: Netvm) -> None:
            await netvm.begin(FIXED)
            netvm.qubesdb.on_end("QubesDB is no longer followed")

        assert self.running(scenario) == ["QubesDB is no longer followed"]


def test_stopping_in_the_middle_of_everything_is_no_fault() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(WORK)
        await netvm.event()
        await netvm.fail()  # a pause is under way
        await netvm.event()
        await netvm.question()  # and a question
        await netvm.sources.stop()
        await netvm.tell(A, committed=A)
        assert StubAdminApi.made == 1
        assert netvm.qubesdb.stopped

    running(scenario)


def test_what_is_handled_is_told() -> None:
    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(FIXED)
        await netvm.sources.handled(frozenset({A}))
        await netvm.sources.handled(frozenset())
        assert netvm.qubesdb.told_handled == [A]
        await netvm.sources.handled(frozenset({"fails"}))
        assert netvm.said == ["/qubes-firewall-handled could not be written: QubesDB: no daemon"]

    running(scenario)


def test_without_qubesdb_in_a_qube_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StubQubesDb, "first", None)
    with pytest.raises(SourcesError, match="its firewall rules cannot be read: QubesDB: no daemon"):
        Sources(print, print).start()


def test_outside_qubes_the_configuration_alone_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available", lambda: False)
    monkeypatch.setattr(module, "on_qubes", lambda: False)

    async def scenario(netvm: Netvm) -> None:
        await netvm.begin(FIXED)
        assert netvm.who() == {A: "work a"}
        await netvm.want(WORK)
        assert (netvm.who(), StubAdminApi.made, netvm.sources.as_data()) == ({}, 0, None)

    running(scenario)


@pytest.mark.parametrize(
    ("text", "held", "needed"),
    [
        (UNLISTED, "", False),
        (FIXED, "", False),
        (FIXED, "work", False),
        (FIXED, A, False),
        (WORK, "", True),
        (TAGGED, "", True),
        (UNLISTED, "work", True),
        (FIXED, "play", True),
        (FIXED, "not-a-name!", False),
    ],
)
def test_when_names_are_needed(text: str, held: str, needed: bool) -> None:
    config, _ = parse_config("proxyfw.yaml", text)
    assert config is not None
    assert needs_names(config, read_netvm({f"/vm-config/proxyfw-{held}": b"a"} if held else {})) == needed
