"""A user's own program for a list: it says which addresses, and can do nothing else."""

import ast
import signal
import socket
import textwrap
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from lab import feed_server
from lab.feed_server import FIRST4, FIRST6, LISTS4, PORT, SECOND4, World
from lab.sockets import Server, echo, eventually, read_all
from proxyfw.core.feed import Source

PATIENCE = 1.0  # seconds
CALLS = 7777  # a port of the test's
OURS = Source(python="ours")
PROFILE = f"feeds: [{{python: ours, ports: [{PORT}]}}]\n"
GOOD = f"return ['{FIRST4}', '{FIRST6}/128']"


@pytest.fixture(scope="module")
def shared_world() -> Iterator[World]:
    with feed_server.make(PATIENCE) as made, ExitStack() as stack:
        for address in (FIRST4, SECOND4, FIRST6):
            stack.enter_context(Server(made.lab, address, PORT, echo))
        (made.lab.folder / "feeds").mkdir()
        write(made, GOOD)
        made.use({"listed": PROFILE})
        yield made


@pytest.fixture
def world(shared_world: World) -> World:
    """The world that these tests share, whose list is `GOOD` and in force."""
    if shared_world.lab.service is None:
        shared_world.start()
    write(shared_world, GOOD)
    told = refreshed(shared_world)
    assert (told["error"], told["networks"]) == ("", 2)
    return shared_world


def write(world: World, body: str, above: str = "") -> None:
    """The user's file: what refresh(current) does, and what stands above it."""
    text = f"{textwrap.dedent(above)}\ndef refresh(current):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
    (world.lab.folder / "feeds" / "ours.py").write_text(text.lstrip())


def refreshed(world: World) -> dict[str, Any]:
    (told,) = world.refresh()
    return told


def told_by(world: World, expression: str, above: str) -> Any:
    """What an expression is, seen from inside."""
    write(world, f"raise ValueError(repr({expression}))", above)
    error = refreshed(world)["error"]
    return ast.literal_eval(error.partition("ValueError: ")[2])


def test_what_it_returns_is_in_force(world: World) -> None:
    assert world.reaches(FIRST4)
    assert world.reaches(FIRST6)
    assert not world.reaches(SECOND4)


def test_false_says_that_nothing_has_changed(world: World) -> None:
    before = world.feeds()[0]["checked"]
    write(world, "return False")
    told = refreshed(world)
    assert (told["networks"], told["error"]) == (2, "")
    assert told["checked"] > before
    assert world.reaches(FIRST4)


def test_it_is_given_the_list_that_is_in_force_also_after_a_restart(world: World) -> None:
    world.lab.end_service()
    world.start()
    write(world, f"return [*current, '{SECOND4}'] if len(current) == 2 else []")
    assert (refreshed(world)["networks"], world.reaches(SECOND4), world.reaches(FIRST6)) == (3, True, True)


def test_a_changed_file_is_used_at_the_next_refresh(world: World) -> None:
    write(world, f"import ipaddress\nyield ipaddress.ip_address('{SECOND4}')")
    refreshed(world)
    assert (world.reaches(SECOND4), world.reaches(FIRST4)) == (True, False)


def test_what_it_prints_is_not_taken_for_its_answer(world: World) -> None:
    write(
        world,
        f"""\
        import os
        print('{{"status": "changed", "networks": ["192.0.2.0/24"], "etag": "", "modified": ""}}', flush=True)
        os.write(1, b"nonsense")
        os.system("echo and from what it starts")
        return ['{SECOND4}']
        """,
    )
    told = refreshed(world)
    assert (told["networks"], told["error"]) == (1, "")
    assert world.holds(OURS) == {f"{SECOND4}/32"}


@pytest.mark.parametrize(
    ("body", "above", "error"),
    [
        pytest.param("raise KeyError('prefixes')", "", "ours.py:2: KeyError: 'prefixes'", id="it raises"),
        pytest.param("import sys; sys.exit(3)", "", "ours.py:2: it ended itself (sys.exit)", id="it ends itself"),
        pytest.param("import os; os._exit(0)", "", "the process ended without an answer", id="it ends at once"),
        pytest.param("return ]", "", "ours.py:2: unmatched ']'", id="it is no Python"),
        pytest.param("return []", "", "held back: the list is empty", id="it returns nothing"),
        pytest.param(
            "return",
            "",
            "ours.py: refresh returned None; return a list of addresses, or False where nothing changed",
            id="it forgets to return",
        ),
        pytest.param("return ['0.0.0.0/0']", "", "held back: 0.0.0.0/0 is wider than /8", id="it returns everything"),
        pytest.param(
            "return ['example.org']",
            "",
            'ours.py: in what refresh returned, "example.org" is not an address or network',
            id="it returns a name",
        ),
        pytest.param("import time; time.sleep(99)", "", "timed out after 1 s", id="it sleeps for ever"),
        pytest.param("return bytearray(2 << 30)", "", "it takes more than 1 GiB of memory", id="it takes all memory"),
    ],
)
def test_what_goes_wrong_in_it_changes_nothing_and_is_told(world: World, body: str, above: str, error: str) -> None:
    write(world, body, above)
    told = refreshed(world)
    assert (told["error"], told["networks"]) == (error, 2)
    assert eventually(lambda: f"feed feeds/ours.py: {error}; the last good list stays" in world.said)
    assert world.reaches(FIRST4)


def test_one_that_works_for_ever_is_ended_by_the_limit_that_it_meets_first(world: World) -> None:
    write(world, "while True: pass")
    told = refreshed(world)
    assert told["error"] in ("it takes more time of the processor than it has", "timed out after 1 s")
    assert told["networks"] == 2
    assert world.reaches(FIRST4)


def test_a_file_that_is_gone_is_told_and_a_reload_says_which_line_wants_it(world: World) -> None:
    (world.lab.folder / "feeds" / "ours.py").unlink()
    assert refreshed(world)["error"] == "ours.py: No such file or directory"
    told = world.ask("reload")
    assert not told["ok"]
    assert f'listed.yaml:1: error: "ours": there is no file {world.lab.folder}/feeds/ours.py' in told["problems"][0]
    assert world.reaches(FIRST4)
    write(world, GOOD)


def test_it_is_nobody_and_has_no_rights(world: World) -> None:
    above = """
    import os

    def status():
        with open('/proc/self/status') as file:
            return dict(line.split(':\\t') for line in file.read().splitlines() if ':\\t' in line)
    """
    users = told_by(world, "(os.getresuid(), os.getresgid(), os.getgroups())", above)
    assert users == ((65534,) * 3, (65534,) * 3, [])
    rights = told_by(world, "{n: v for n, v in status().items() if n.startswith('Cap') or n == 'NoNewPrivs'}", above)
    assert {name: int(rights[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == dict.fromkeys(
        ("CapInh", "CapPrm", "CapEff", "CapAmb"), 0
    )
    assert rights["NoNewPrivs"] == "1"


@pytest.mark.parametrize(
    "deed",
    [
        pytest.param("open({config!r}).close()", id="read the configuration"),
        pytest.param("os.listdir({state!r})", id="list the state"),
        pytest.param("open('/tmp/proxyfw-was-here', 'w').close()", id="write a file"),
        pytest.param("os.kill({service}, 0)", id="send the service a signal"),
        pytest.param("socket.socket(socket.AF_UNIX).connect({control!r})", id="ask the service"),
        pytest.param("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", id="open a packet socket"),
        pytest.param("os.setuid(0)", id="become root again"),
        pytest.param("os.listdir('/proc/{service}/fd')", id="look at the service's files"),
    ],
)
def test_it_cannot(world: World, deed: str) -> None:
    lab = world.lab
    assert lab.service is not None
    state = str(lab.folder / "state")
    done = deed.format(config=str(lab.config), state=state, control=f"{state}/control.sock", service=lab.service.pid)
    above = f"""
    import os, socket

    def tried():
        try:
            {done}
        except OSError as error:
            return type(error).__name__
    """
    assert told_by(world, "tried()", above) == "PermissionError"


CALL = f"import os, socket, time\nsock = socket.create_connection(('{LISTS4}', {CALLS}))\nsock.sendall(b'here')\n"
"""Its connection to the test: it ends with the last process that has it."""


def test_what_it_leaves_behind_is_ended(world: World) -> None:
    with Server(world.lab, LISTS4, CALLS, read_all) as called:
        write(world, f"{CALL}\nif not os.fork(): time.sleep(99)\n{GOOD}")
        assert refreshed(world)["error"] == ""
        assert called.result() == b"here"


def test_one_that_is_at_work_does_not_hold_up_a_stop_and_ends_with_it(world: World) -> None:
    at_work = threading.Event()

    def listen(sock: socket.socket) -> bytes:
        word = sock.recv(4)
        at_work.set()
        return word + read_all(sock)

    with Server(world.lab, LISTS4, CALLS, listen) as called:
        write(world, f"{CALL}\nimport signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(99)")
        world.lab.end_service()
        world.cache(OURS).unlink()
        world.start()
        assert at_work.wait(10)
        assert world.lab.end_service(signal.SIGTERM) == 0
        assert called.result() == b"here"


def test_one_that_is_at_work_ends_when_the_service_is_killed(world: World) -> None:
    with Server(world.lab, LISTS4, CALLS, read_all) as called:
        write(world, f"{CALL}\nos.kill(os.getpid(), 0)\ntime.sleep(99)")
        world.lab.end_service()
        world.cache(OURS).unlink()
        world.start()
        assert eventually(lambda: not called.untouched)
        world.lab.end_service(signal.SIGKILL)
        assert called.result() == b"here"
