"""Who changes the ruleset, told by the real kernel, in a network namespace of this test's own."""

import ctypes
import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import nftables
import pytest

from proxyfw.edge.nftwatch import NftWatch

CLONE_NEWNET = 0x40000000
RULESET = """
table inet proxyfw {
	set pins { type ipv4_addr; flags timeout; size 65535; }
	set seen { type ipv4_addr; flags dynamic,timeout; timeout 1s; }
	chain output {
		type filter hook output priority 0; policy accept;
		update @seen { ip daddr }
	}
}
"""
QUBES = "table ip qubes-firewall { chain forward { type filter hook forward priority 0; policy drop; }; }"

Inside = Callable[[Callable[[NftWatch], None]], None]


def _enter() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture
def inside() -> Iterator[Inside]:
    """Runs a test in a thread with a network namespace to itself (unshare(2) is for one thread): the ruleset is there,
    and is watched from then on.
    """
    if os.geteuid() != 0:
        pytest.skip("network namespaces are made by root")
    made = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")

    def run(test: Callable[[NftWatch], None]) -> None:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        ours(RULESET)
        watch = NftWatch()
        watch.start()
        try:
            test(watch)
        finally:
            watch.stop()

    with ThreadPoolExecutor(1, initializer=_enter) as thread:
        yield lambda test: thread.submit(run, test).result()


def ours(text: str) -> None:
    """A transaction of this process."""
    status, _, error = nftables.Nftables().cmd(text)
    assert status == 0, error


def pin(at: int) -> None:
    """One more element, by this process."""
    ours(f"add element inet proxyfw pins {{ 192.0.2.{at} timeout 60s }}")


def theirs(text: str) -> None:
    """A transaction of another one."""
    subprocess.run(["nft", text], check=True)


def awake(watch: NftWatch) -> bool:
    return bool(select.select([watch], [], [], 0)[0])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("flush ruleset", id="the whole ruleset is flushed"),
        pytest.param("delete table inet proxyfw", id="our table is deleted"),
        pytest.param("flush chain inet proxyfw output", id="a chain of ours is flushed"),
        pytest.param(f"flush ruleset\n{RULESET}", id="our table is gone and back"),
        pytest.param("add element inet proxyfw pins { 192.0.2.1 timeout 60s }", id="one element more"),
        pytest.param(QUBES, id="qubes-firewall is started again"),
    ],
)
def test_another_process_changes_the_ruleset(change: str, inside: Inside) -> None:
    def test(watch: NftWatch) -> None:
        assert not awake(watch)
        theirs(change)
        assert awake(watch)
        assert watch.read()
        assert not watch.read()
        assert not awake(watch)

    inside(test)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(f"delete table inet proxyfw\n{RULESET}", id="our ruleset anew"),
        pytest.param("add element inet proxyfw pins { 192.0.2.1 timeout 60s }", id="an element"),
        pytest.param("flush chain inet proxyfw output", id="a chain is emptied"),
    ],
)
def test_our_own_changes_are_none(change: str, inside: Inside) -> None:
    def test(watch: NftWatch) -> None:
        ours(change)
        assert awake(watch)
        assert not watch.read()
        assert not awake(watch)

    inside(test)


def test_changes_of_another_thread_of_ours_are_none(inside: Inside) -> None:
    def test(watch: NftWatch) -> None:
        numbers: list[int] = []
        done, seen = threading.Event(), threading.Event()

        def change() -> None:
            numbers.append(threading.get_native_id())
            pin(1)
            done.set()
            seen.wait(10)

        thread = threading.Thread(target=change)
        thread.start()
        assert done.wait(10)
        assert numbers != [os.getpid()]
        assert awake(watch)
        assert not watch.read()
        seen.set()
        thread.join()

    inside(test)


def test_one_change_of_theirs_among_many_of_ours(inside: Inside) -> None:
    def test(watch: NftWatch) -> None:
        for at in range(100):
            pin(at)
            if at == 50:
                theirs("delete table inet proxyfw")
                ours(RULESET)
        assert watch.read()
        assert not watch.read()

    inside(test)


def test_a_change_of_ours_fills_no_buffer(inside: Inside) -> None:
    """Of each element there is a notice too."""

    def test(watch: NftWatch) -> None:
        elements = ", ".join(f"192.{at >> 8}.{at & 255}.1 timeout 60s" for at in range(20000))
        ours(f"add element inet proxyfw pins {{ {elements} }}")
        assert not watch.read()

    inside(test)


def test_a_transaction_that_was_refused_is_no_change(inside: Inside) -> None:
    def test(watch: NftWatch) -> None:
        refused = subprocess.run(["nft", "delete element inet proxyfw pins { 9.9.9.9 }"], capture_output=True)
        assert refused.returncode
        subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True)
        assert not awake(watch)

    inside(test)


def test_packets_and_timeouts_do_not_wake(inside: Inside) -> None:
    def test(watch: NftWatch) -> None:
        ours("add element inet proxyfw pins { 192.0.2.1 timeout 100ms }")
        assert not watch.read()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for at in range(200):
                sock.sendto(b"x", (f"127.0.0.{at + 1}", 9))
        # Longer than both timeouts, and than the kernel takes to clear what has run out.
        assert not select.select([watch], [], [], 2.5)[0]

    inside(test)


def test_lost_notices_count_as_a_change(inside: Inside) -> None:
    def test(watch: NftWatch) -> None:
        with socket.socket(fileno=os.dup(watch.fileno())) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # the least there is
        for at in range(20):
            pin(at)
        assert watch.read()
        pin(20)
        assert awake(watch)
        assert not watch.read()

    inside(test)


def test_no_more_notices_are_read_than_wanted(inside: Inside) -> None:
    def test(watch: NftWatch) -> None:
        pin(1)
        pin(2)
        theirs("flush ruleset")
        assert not watch.read(limit=2)
        assert awake(watch)
        assert watch.read(limit=2)

    inside(test)
