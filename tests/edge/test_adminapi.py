"""The Admin API as a netvm meets it: a dom0 with qubes and a policy, and a qrexec-client-vm that speaks its bytes."""

import asyncio
import gc
import os
import shutil
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "doubles"))

from qubesd import POLICY, Qubesd, error

from proxyfw.core.netvm import Attached, Qube
from proxyfw.edge import adminapi as edge
from proxyfw.edge.adminapi import AdminApi, Refused
from proxyfw.edge.adminway import AdminError, Declined, Library, Program

DOUBLES = Path(__file__).parents[1] / "doubles"
PATH = f"{DOUBLES}:/usr/bin:/bin"  # without programs that only lead to the real ones, such as pyenv's
GET = "admin.vm.property.Get"


@pytest.fixture
def dom0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Qubesd]:
    monkeypatch.setenv("PATH", PATH)
    monkeypatch.setenv("QUBES_DOM0", str(tmp_path / "dom0"))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with Qubesd(str(tmp_path / "dom0")) as served:
        yield served
    for thread in threading.enumerate():
        if thread.name == "qubesadmin":  # a call that nobody waits for any more
            thread.join()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture(params=["program", "library"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "program":
        monkeypatch.setattr(edge, "best_way", Program)
    else:
        config = pytest.importorskip("qubesadmin.config", reason="Qubes' library qubesadmin is not installed")
        monkeypatch.setattr(config, "QREXEC_CLIENT_VM", str(DOUBLES / "qrexec-client-vm"))
    return str(request.param)


def run(scenario: Awaitable[None]) -> None:
    """Runs a test, which ends within twenty seconds."""

    async def limited() -> None:
        await asyncio.wait_for(scenario, 20)

    asyncio.run(limited())


def asked(api: AdminApi | None = None, known: Attached | None = None) -> Attached:
    answers = []

    async def ask() -> None:
        answers.append(await (api or AdminApi("sys-fw")).attached(known))

    run(ask())
    return answers[0]


def qube(name: str, *addresses: str, tags: tuple[str, ...] = ("proxyfw",), here: bool = True) -> Qube:
    return Qube(name, tuple(map(ip_address, addresses)), frozenset(tags), here)


@pytest.mark.usefixtures("way")
class TestAttached:
    @pytest.mark.parametrize("uuids", [True, False], ids=["Qubes 4.3", "Qubes 4.2"])
    def test_names_addresses_and_tags(self, uuids: bool, dom0: Qubesd) -> None:
        dom0.uuids = uuids
        dom0.add("work", "10.137.0.11", "fd09:24ef:4179::a89:b", tags=["proxyfw", "research"])
        dom0.add("study", "10.137.0.12")
        dom0.add("sys-fw", "10.137.0.5", netvm="sys-net", klass="AppVM")
        api = AdminApi("sys-fw")
        assert asked(api) == Attached(
            (
                qube("study", "10.137.0.12"),
                qube("work", "10.137.0.11", "fd09:24ef:4179::a89:b", tags=("proxyfw", "research")),
            )
        )
        assert (api.refused, api.odd) == ([], [])

    def test_a_qube_elsewhere_is_known_and_not_here(self, dom0: Qubesd) -> None:
        dom0.add("here", "10.137.0.11")
        dom0.add("elsewhere", "10.137.0.12", netvm="sys-whonix", tags=("proxyfw", "research"))
        dom0.add("offline", "10.137.0.13", netvm="")
        dom0.add("nowhere", netvm="")
        assert asked().qubes == (
            qube("elsewhere", "10.137.0.12", tags=("proxyfw", "research"), here=False),
            qube("here", "10.137.0.11"),
            qube("nowhere", here=False),
            qube("offline", "10.137.0.13", here=False),
        )

    def test_a_qube_that_the_policy_does_not_name_is_not_seen(self, dom0: Qubesd) -> None:
        dom0.add("work", "10.137.0.11")
        dom0.add("vault", "10.137.0.12", tags=[])
        assert asked().names == {"work"}

    def test_a_halted_qube_is_attached_before_it_starts(self, dom0: Qubesd) -> None:
        dom0.add("work", "10.137.0.11", state="Halted")
        assert asked().qubes == (qube("work", "10.137.0.11"),)

    def test_an_address_is_that_of_the_qube_that_runs(self, dom0: Qubesd) -> None:
        dom0.add("first", "10.137.0.11", "fd09:24ef:4179::a89:b", state="Halted")
        dom0.add("second", "10.137.0.11", state="Transient")
        dom0.add("third", "10.137.0.11", state="Halted")
        assert asked().qubes == (
            qube("first", "fd09:24ef:4179::a89:b"),
            qube("second", "10.137.0.11"),
            qube("third"),
        )

    @pytest.mark.parametrize(("netvm", "state"), [("sys-net", "Running"), ("sys-fw", "Halted")])
    def test_an_address_of_a_halted_qube_is_its_own_unless_another_runs_here(
        self, netvm: str, state: str, dom0: Qubesd
    ) -> None:
        dom0.add("first", "10.137.0.11", state="Halted")
        dom0.add("second", "10.137.0.11", state=state, netvm=netvm)
        assert [str(each) for found in asked().qubes for each in found.addresses] == ["10.137.0.11"] * 2

    def test_a_value_is_never_an_old_one(self, dom0: Qubesd) -> None:
        dom0.add("work", "10.137.0.11")
        api = AdminApi("sys-fw")
        assert asked(api).qubes == (qube("work", "10.137.0.11"),)
        dom0.set("work", "ip", "10.137.0.12")
        dom0.tag("work", "research")
        assert asked(api).qubes == (qube("work", "10.137.0.12", tags=("proxyfw", "research")),)
        dom0.set("work", "netvm", "sys-net")
        assert asked(api).qubes == (qube("work", "10.137.0.12", tags=("proxyfw", "research"), here=False),)

    @pytest.mark.parametrize("target", ["work", "*"])
    @pytest.mark.parametrize(
        ("call", "line"),
        [
            (f"{GET}+netvm", f"{GET}  +netvm  sys-fw  @tag:proxyfw  allow target=dom0"),
            (f"{GET}+ip", f"{GET}  +ip  sys-fw  @tag:proxyfw  allow target=dom0"),
            (f"{GET}+ip6", f"{GET}  +ip6  sys-fw  @tag:proxyfw  allow target=dom0"),
            ("admin.vm.tag.List", "admin.vm.tag.List  +  sys-fw  @tag:proxyfw  allow target=dom0"),
        ],
    )
    def test_a_qube_of_which_anything_is_refused_is_left_out_and_the_line_is_told(
        self, call: str, line: str, target: str, dom0: Qubesd
    ) -> None:
        dom0.add("work", "10.137.0.11", "fd09:24ef:4179::a89:b")
        dom0.add("study", "10.137.0.12")
        dom0.refuse(call, target)
        api = AdminApi("sys-fw")
        assert asked(api).qubes == ((qube("study", "10.137.0.12"),) if target == "work" else ())
        assert (api.refused, api.odd) == ([line], [])

    def test_without_any_policy(self, dom0: Qubesd) -> None:
        dom0.policy = ""
        with pytest.raises(Refused) as refused:
            asked()
        assert refused.value.line == "admin.vm.List  +  sys-fw  @adminvm  allow target=dom0"
        assert str(refused.value) == f"dom0 refuses; its policy lacks: {refused.value.line}"

    def test_with_a_policy_that_names_no_qube_the_list_is_empty_and_why_is_told(self, dom0: Qubesd) -> None:
        dom0.add("work", "10.137.0.11")
        dom0.policy = POLICY.splitlines()[0]
        api = AdminApi("sys-fw")
        assert asked(api) == Attached(())
        [said] = api.odd
        assert said.endswith("its policy lacks: admin.vm.List  +  sys-fw  @tag:proxyfw  allow target=dom0")

    @pytest.mark.parametrize("call", [f"{GET}+netvm", f"{GET}+ip", "admin.vm.tag.List"])
    def test_a_qube_that_goes_meanwhile_does_not_lose_the_others(self, call: str, dom0: Qubesd) -> None:
        dom0.add("work", "10.137.0.11")
        dom0.add("gone", "10.137.0.12")
        dom0.answer(call, "gone", error("QubesVMNotFoundError", "No such domain: 'gone'"))
        api = AdminApi("sys-fw")
        assert asked(api).qubes == (qube("work", "10.137.0.11"),)
        assert (api.refused, api.odd) == ([], [])

    def test_another_error_of_dom0_is_told(self, dom0: Qubesd) -> None:
        dom0.add("work", "10.137.0.11")
        dom0.answer(f"{GET}+ip", "work", error("QubesException", "the disk is full"))
        api = AdminApi("sys-fw")
        assert asked(api).qubes == ()
        assert api.odd == ["work: QubesException: the disk is full"]

    @pytest.mark.parametrize("kind", ["KeyError", "QubesUnheardOfError", "SystemExit", "print"])
    @pytest.mark.parametrize("text", ["", "100% of %s"], ids=["without a text", "with a text like a format"])
    def test_an_error_of_any_name_is_an_error_and_no_crash(self, kind: str, text: str, dom0: Qubesd) -> None:
        dom0.add("work", "10.137.0.11")
        dom0.answer("admin.vm.List", "dom0", error(kind, text))
        with pytest.raises(Declined):
            asked()

    @pytest.mark.parametrize(
        ("call", "value"),
        [
            (f"{GET}+ip", "10.137.0.11"),
            (f"{GET}+ip", "default=True type=int 10.137.0.11"),
            (f"{GET}+ip", "default=True type=str 10.137.0.11 "),
            (f"{GET}+ip", "default=True type=str 10.137.0.11\n"),
            (f"{GET}+ip", "default=True type=str fd09:24ef:4179::a89:b"),
            (f"{GET}+ip", "default=True type=str None"),
            (f"{GET}+ip6", "default=True type=str fe80::1%eth0"),
            (f"{GET}+netvm", "default=True type=str sys-fw"),
            (f"{GET}+netvm", ""),
            (f"{GET}+ip", ""),
            ("admin.vm.tag.List", "proxyfw\na b\n"),
            ("admin.vm.tag.List", "proxyfw\r\n"),
        ],
    )
    def test_an_odd_value_is_not_used_and_told(self, call: str, value: str, dom0: Qubesd) -> None:
        dom0.add("work", "10.137.0.11")
        dom0.answer(call, "work", b"0\0" + value.encode())
        api = AdminApi("sys-fw")
        assert asked(api).qubes == ()
        assert [said.split(":")[0] for said in api.odd] == ["work"]

    @pytest.mark.parametrize(
        "line",
        ["-work class=AppVM state=Running", "a b c", "", "work state=Running", "x" * 32 + " class=AppVM state=Running"],
    )
    def test_an_odd_line_of_the_list_is_told_and_the_others_stay(self, line: str, dom0: Qubesd) -> None:
        dom0.add("study", "10.137.0.12")
        dom0.answer("admin.vm.List", "dom0", f"0\0{line}\nstudy class=AppVM state=Running\n".encode())
        api = AdminApi("sys-fw")
        assert asked(api) == Attached((qube("study", "10.137.0.12"),))
        assert api.odd == [f"admin.vm.List: {line!r}"]

    @pytest.mark.parametrize("reply", [b"", b"1\0", b"work class=AppVM", b"2\0Half"], ids=repr)
    def test_a_reply_that_cannot_be_read(self, reply: bytes, dom0: Qubesd) -> None:
        dom0.answer("admin.vm.List", "dom0", reply)
        with pytest.raises(AdminError):
            asked()

    def test_with_a_known_answer_only_the_list_and_new_qubes_are_asked_for(self, dom0: Qubesd) -> None:
        dom0.add("work", "10.137.0.11")
        dom0.add("gone", "10.137.0.12")
        dom0.add("study", "10.137.0.13")
        dom0.refuse(f"{GET}+ip6", "work")
        dom0.refuse("admin.vm.tag.List", "gone")
        api = AdminApi("sys-fw")
        known = asked(api)
        assert [line.split()[1] for line in api.refused] == ["+ip6", "+"]
        dom0.calls.clear()
        dom0.remove("gone")
        dom0.add("new", "10.137.0.14")
        again = asked(api, known)
        assert [q.name for q in again.qubes] == ["new", "study"]
        assert {call.split()[0] for call in dom0.calls} == {"dom0", "new"}
        assert [line.split()[1] for line in api.refused] == ["+ip6"]  # that of a qube that stays, stays
        dom0.calls.clear()
        assert asked(api, Attached(again.qubes[:1])) == again
        assert {call.split()[0] for call in dom0.calls} == {"dom0", "study"}

    def test_many_qubes(self, dom0: Qubesd) -> None:
        for n in range(8):
            dom0.add(f"work-{n:02}", f"10.137.0.{n + 10}")
        assert [q.name for q in asked().qubes] == [f"work-{n:02}" for n in range(8)]

    def test_no_answer_in_time(self, dom0: Qubesd, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(edge, "_PATIENCE", 0.2)
        dom0.hold("admin.vm.List")
        api = AdminApi("sys-fw")

        async def scenario() -> None:
            with pytest.raises(AdminError, match=r"^dom0 does not answer: admin.vm.List for dom0, 0.2 seconds$"):
                await api.attached()
            dom0.release()

        asyncio.run(scenario())


@pytest.mark.usefixtures("way")
class TestFollow:
    """Events, and what is told of them."""

    @pytest.fixture(autouse=True)
    def _processes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes: list[asyncio.subprocess.Process] = []
        start = asyncio.create_subprocess_exec

        async def started(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
            self.processes.append(await start(*arguments, **options))
            return self.processes[-1]

        monkeypatch.setattr(asyncio, "create_subprocess_exec", started)

    def following(self, dom0: Qubesd, scenario: Callable[["Heard"], Awaitable[None]]) -> None:
        async def body() -> None:
            heard = Heard(AdminApi("sys-fw"))
            task = asyncio.create_task(heard.api.follow(heard.on_change, heard.troubles.put_nowait))
            try:
                await scenario(heard)
            finally:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                for process in self.processes:  # the library kills its own, and does not wait
                    await process.wait()
                await asyncio.sleep(0)

        run(body())

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda d: d.add("new", "10.137.0.20"), id="a qube is made, and tagged"),
            pytest.param(lambda d: d.remove("work"), id="a qube is deleted"),
            pytest.param(lambda d: d.set("work", "netvm", "sys-net"), id="it moves away"),
            pytest.param(lambda d: d.set("work", "ip", "10.137.0.20"), id="another address"),
            pytest.param(lambda d: d.set("work", "ip6", "fd09:24ef:4179::a89:b"), id="an IPv6 address"),
            pytest.param(
                lambda d: d.emit("work", "property-reset:netvm", name="netvm"), id="netvm is the default again"
            ),
            pytest.param(
                lambda d: d.emit("work", "domain-feature-set:ipv6", feature="ipv6", value="1"), id="IPv6 is on"
            ),
            pytest.param(lambda d: d.tag("work", "research"), id="it is tagged"),
            pytest.param(lambda d: d.untag("work", "research-not"), id="a tag is taken off"),
            pytest.param(lambda d: d.untag("work", "proxyfw"), id="the very tag that shows it is taken off"),
            pytest.param(lambda d: d.power("work", "Running"), id="it starts"),
            pytest.param(lambda d: d.power("work", "Halted"), id="it is shut down"),
        ],
    )
    def test_each_change_is_told(self, change: Callable[[Qubesd], None], dom0: Qubesd) -> None:
        dom0.add("work", "10.137.0.11", tags=["proxyfw", "research-not"])

        async def scenario(heard: Heard) -> None:
            await heard.change()
            await asyncio.to_thread(dom0.wait_for_streams, 1)
            change(dom0)
            await heard.change()
            assert heard.troubles.empty()

        self.following(dom0, scenario)

    def test_what_changes_nothing_is_not_told(self, dom0: Qubesd) -> None:
        dom0.add("work", "10.137.0.11")

        async def scenario(heard: Heard) -> None:
            await heard.change()
            await asyncio.to_thread(dom0.wait_for_streams, 1)
            for event in ("property-set:label", "device-attach:block", "domain-pre-start", "domain-tag-add"):
                dom0.emit("work", event)
            dom0.emit("work", "property-set:ip", name="ip", newvalue="10.137.0.12")
            await heard.change()
            assert heard.changes.empty()

        self.following(dom0, scenario)

    def test_an_interrupted_stream_is_told_once_and_then_it_is_a_change(
        self, dom0: Qubesd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(edge, "_FIRST_PAUSE", 0.01)

        async def scenario(heard: Heard) -> None:
            for _ in range(3):
                await heard.change()
                await asyncio.to_thread(dom0.wait_for_streams, 1)
                dom0.drop_events()
                assert await heard.trouble() == "dom0 ended its stream of events"
            await heard.change()
            assert heard.troubles.empty()

        self.following(dom0, scenario)

    def test_trouble_that_lasts_is_told_once(self, dom0: Qubesd, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(edge, "_FIRST_PAUSE", 0.01)
        dom0.answer("admin.Events", "dom0", error("QubesDaemonIsIll", "really"))

        async def scenario(heard: Heard) -> None:
            said = await heard.trouble()
            await asyncio.to_thread(dom0.wait_for_calls, "dom0 admin.Events", 6)
            assert "QubesDaemonIsIll: really" in said or "ended" in said
            assert heard.troubles.empty()
            assert heard.changes.empty()

        self.following(dom0, scenario)

    def test_a_refusal_says_its_line_and_is_tried_again_later(
        self, dom0: Qubesd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(edge, "_REFUSED_PAUSE", 0.01)
        monkeypatch.setattr(edge, "_FIRST_PAUSE", 1000)
        policy, dom0.policy = dom0.policy, ""

        async def scenario(heard: Heard) -> None:
            line = "admin.Events  +  sys-fw  @adminvm  allow target=dom0"
            assert await heard.trouble() == f"dom0 refuses; its policy lacks: {line}"
            dom0.policy = policy
            await heard.change()
            assert heard.troubles.empty()

        self.following(dom0, scenario)

    @pytest.mark.parametrize(
        "data",
        [b"3\0work\0domain-start\0\0", b"1\0work\0\xff\0\0", b"1\0" + b"x" * (1 << 17)],
        ids=["no event", "no text", "without an end"],
    )
    def test_events_that_cannot_be_read(self, data: bytes, dom0: Qubesd, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(edge, "_FIRST_PAUSE", 0.01)

        async def scenario(heard: Heard) -> None:
            await heard.change()
            await asyncio.to_thread(dom0.wait_for_streams, 1)
            dom0.emit_raw(data)
            await heard.trouble()
            await heard.change()

        self.following(dom0, scenario)

    def test_what_was_heard_of_is_asked_for_anew(self, dom0: Qubesd) -> None:
        dom0.add("work", "10.137.0.11")
        dom0.add("study", "10.137.0.12")

        async def scenario(heard: Heard) -> None:
            await heard.change()
            known = await heard.api.attached()
            dom0.calls.clear()
            dom0.set("work", "ip", "10.137.0.13")
            await heard.change()
            dom0.hold("admin.vm.List")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(heard.api.attached(known), 0.2)
            dom0.release()
            again = await heard.api.attached(known)  # what was given up is not forgotten
            assert again.qubes == (qube("study", "10.137.0.12"), qube("work", "10.137.0.13"))
            assert {call.split()[0] for call in dom0.calls} == {"dom0", "work"}
            dom0.calls.clear()
            assert await heard.api.attached(again) == again
            assert dom0.calls == ["dom0 admin.vm.List"]

        self.following(dom0, scenario)

    def test_an_event_in_pieces(self, dom0: Qubesd) -> None:
        async def scenario(heard: Heard) -> None:
            await heard.change()
            await asyncio.to_thread(dom0.wait_for_streams, 1)
            for byte in b"1\0work\0domain-tag-add:x\0tag\0x\0\0":
                dom0.emit_raw(bytes([byte]))
                await asyncio.sleep(0)
            await heard.change()

        self.following(dom0, scenario)


class Heard:
    """What `follow` told, in order."""

    def __init__(self, api: AdminApi) -> None:
        self.api = api
        self.changes: asyncio.Queue[None] = asyncio.Queue()
        self.troubles: asyncio.Queue[str] = asyncio.Queue()

    def on_change(self) -> None:
        self.changes.put_nowait(None)

    async def change(self) -> None:
        await asyncio.wait_for(self.changes.get(), 10)

    async def trouble(self) -> str:
        return await asyncio.wait_for(self.troubles.get(), 10)


def test_a_call_that_is_given_up_leaves_no_process(dom0: Qubesd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "best_way", Program)
    dom0.add("work", "10.137.0.11")
    dom0.hold(f"{GET}+netvm", "work")

    def children() -> set[str]:
        return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    before = children()

    async def scenario() -> None:
        task = asyncio.create_task(AdminApi("sys-fw").attached())
        await asyncio.to_thread(dom0.wait_for_calls, f"work {GET}+netvm", 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert children() <= before

    run(scenario())


def test_without_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(edge, "best_way", Program)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AdminError, match=r"^qrexec-client-vm: No such file or directory$"):
        asked()


@pytest.mark.usefixtures("way")
def test_without_dom0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", PATH)
    monkeypatch.setenv("QUBES_DOM0", str(tmp_path / "none"))
    with pytest.raises(AdminError, match="connect: No such file or directory") as failed:
        asked()
    assert not isinstance(failed.value, Refused)


def test_the_library_is_used_where_it_is_installed() -> None:
    pytest.importorskip("qubesadmin", reason="Qubes' library qubesadmin is not installed")
    assert isinstance(edge.best_way(), Library)


def test_the_double_is_a_program() -> None:
    assert shutil.which("qrexec-client-vm", path=str(DOUBLES))
