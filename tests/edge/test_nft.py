"""Transactions against the real kernel, in a network namespace of this test's own."""

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address
from typing import TypeVar

import pytest

from proxyfw.core.address import IPAddress
from proxyfw.core.addresslist import Range
from proxyfw.core.nftbatch import Change, element, ranges
from proxyfw.core.ruleset import TABLE
from proxyfw.edge.nft import Nft, NftError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CLONE_NEWNET = 0x40000000
RULESET = """
table inet proxyfw {
	set open4 { type ipv4_addr . ipv4_addr . inet_service; flags timeout; }
	set open6 { type ipv6_addr . ipv6_addr . inet_service; flags timeout; }
	set used4 { type ipv4_addr . ipv4_addr . inet_service; flags dynamic,timeout; timeout 1h; }
	set ports { type inet_service; elements = { 7 }; }
	counter refused { packets 7 bytes 700; }
}
"""
ONE = "10.137.0.11 . 192.0.2.1 . 123"
OTHER = "10.137.0.11 . 192.0.2.2 . 123"

FEEDS = """
	set feed-a-4 { type ipv4_addr; flags interval; }
	set feed-a-6 { type ipv6_addr; flags interval; }
"""
LISTED = [(int(ip_address("127.0.0.2")), int(ip_address("127.0.0.3")))]
FAR = [(0x0B000000 + 512 * at, 0x0B0000FF + 512 * at) for at in range(1000)]  # networks that no test is about

T = TypeVar("T")
Inside = Callable[[Callable[[], T]], T]


def _enter() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture
def inside() -> Iterator[Inside]:
    """Runs a test in a thread with a network namespace to itself (unshare(2) is for one thread), which goes with it."""
    with ThreadPoolExecutor(1, initializer=_enter) as thread:
        yield lambda test: thread.submit(test).result()


def prepared() -> Nft:
    nft = Nft()
    nft.apply(RULESET)
    return nft


def add(to: str, *elements: str) -> str:
    return "".join(f"add element {TABLE} {to} {{ {element} }}\n" for element in elements)


def opened(text: str, seconds: int = 60) -> Change:
    one, other, port = text.split(" . ")
    fields = (ip_address(one).packed, ip_address(other).packed, int(port).to_bytes(2))
    return Change("open4", True, [element(*fields, seconds=seconds)])


def held(nft: Nft, *names: str) -> list[tuple[IPAddress, IPAddress]]:
    """Without the seconds."""
    return [(one, other) for one, other, _, _ in nft.elements(names or ("open4",))]


def pair(text: str) -> tuple[IPAddress, IPAddress]:
    one, other, _ = text.split(" . ")
    return ip_address(one), ip_address(other)


def test_where_there_is_no_table(inside: Inside) -> None:
    def test() -> None:
        nft = Nft()
        assert nft.tables() == frozenset()
        assert nft.elements(("open4", "used4")) == []
        assert nft.counter("refused") == 0
        with pytest.raises(NftError, match="open4"):
            nft.apply(add("open4", f"{ONE} timeout 60s"))

    inside(test)


def test_a_ruleset_is_applied(inside: Inside) -> None:
    def test() -> None:
        nft = prepared()
        assert nft.tables() == {TABLE}
        assert nft.counter("refused") == 7
        assert nft.counter("unheard-of") == 0

    inside(test)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param("add element inet proxyfw unheard-of { 192.0.2.1 }", id="no such set"),
        pytest.param("add element inet proxyfw open4 { 192.0.2.1 }", id="another kind of element"),
        pytest.param("add element inet proxyfw open4 { $undefined }", id="an undefined variable"),
        pytest.param("delete element inet proxyfw open4 { 10.0.0.1 . 192.0.2.9 . 1 }", id="the kernel refuses"),
        pytest.param("add elephant {", id="no nftables at all"),
    ],
)
def test_a_bad_line_changes_nothing(bad: str, inside: Inside) -> None:
    def test() -> None:
        nft = prepared()
        nft.apply(add("open4", f"{ONE} timeout 60s"))
        with pytest.raises(NftError) as caught:
            nft.apply(f"delete element {TABLE} open4 {{ {ONE} }}\n{add('open4', f'{OTHER} timeout 60s')}{bad}\n")
        assert str(caught.value)
        assert held(nft) == [pair(ONE)]
        nft.apply(add("open4", f"{OTHER} timeout 60s"))  # and the next one is taken
        assert sorted(held(nft)) == sorted([pair(ONE), pair(OTHER)])

    inside(test)


def test_no_text_is_no_change(inside: Inside) -> None:
    def test() -> None:
        nft = prepared()
        nft.apply("")
        assert nft.tables() == {TABLE}

    inside(test)


def test_changes_to_a_table_that_was_replaced_meanwhile(inside: Inside) -> None:
    def test() -> None:
        nft = prepared()
        nft.apply(add("open4", f"{ONE} timeout 60s"))
        nft.apply(f"delete table {TABLE}\n{RULESET}")
        assert held(nft) == []
        nft.apply(add("open4", f"{OTHER} timeout 60s"))
        assert held(nft) == [pair(OTHER)]
        nft.apply(f"delete table {TABLE}")
        with pytest.raises(NftError):
            nft.apply(add("open4", f"{ONE} timeout 60s"))
        nft.apply(RULESET)
        nft.apply(add("open4", f"{ONE} timeout 60s"))
        assert held(nft) == [pair(ONE)]

    inside(test)


def test_what_sets_hold_and_for_how_long(inside: Inside) -> None:
    def test() -> None:
        nft = prepared()
        assert nft.elements(("open4", "open6", "used4")) == []
        six = "fd09:24ef:4179::a89:b . 2001:db8::1 . 123"
        nft.apply(add("open4", f"{ONE} timeout 60s") + add("open6", f"{six} timeout 2h") + add("used4", OTHER))
        found = nft.elements(("unheard-of", "open4", "open6", "used4"))
        assert [(one, other) for one, other, _, _ in found] == [pair(ONE), pair(six), pair(OTHER)]
        # A second begins to run at once; what the set says of a timeout goes for those that bring none.
        for (*_, seconds), most in zip(found, (60, 7200, 3600), strict=True):
            assert most - 3 < seconds <= most
        assert nft.elements(("refused", "unheard-of", "")) == []
        assert nft.elements(()) == []

    inside(test)


def test_an_element_of_less_than_a_second(inside: Inside) -> None:
    def test() -> None:
        nft = prepared()
        nft.apply(add("open4", f"{ONE} timeout 900ms"))
        assert nft.elements(("open4",)) == [(*pair(ONE), 123, 0)]

    inside(test)


def test_a_thousand_elements(inside: Inside) -> None:
    def test() -> None:
        nft = prepared()
        nft.apply(
            add("open4", *(f"10.137.0.11 . 192.0.{at // 250}.{at % 250} . 123 timeout 60s" for at in range(1000)))
        )
        # A listing may leave elements out while the kernel makes room for more of them.
        assert any(len(set(held(nft))) == 1000 for _ in range(1000))

    inside(test)


GENERATION = """
table inet proxyfw {
	map clients4 { type ipv4_addr : verdict; elements = { 127.0.0.2 : goto judge }; }
	set granted { type ipv4_addr; flags interval; elements = { 127.0.0.2/31, 127.0.0.8/31 }; }
	set open4 { type ipv4_addr . ipv4_addr . inet_service; flags timeout; }
	set told4 { type ipv4_addr; flags dynamic,timeout; timeout 1m; }
	counter granted { }
	counter refused { }
	chain output {
		type filter hook output priority filter; policy accept;
		ip daddr vmap @clients4
		ip daddr 127.0.0.2 counter name refused
	}
	chain judge {
		ip daddr @granted counter name granted accept
		counter name refused
	}
}
"""


def test_a_generation_takes_the_place_of_the_one_before(inside: Inside) -> None:
    def test() -> None:
        nft, reader = Nft(), None
        for _ in range(3):
            nft.replace(GENERATION + add("open4", f"{ONE} timeout 60s"))
            reader = reader or nft.another()
            assert nft.intact()
            assert held(nft) == held(reader) == [pair(ONE)]
            nft.change([opened(OTHER)])
            assert len(held(nft)) == len(held(reader)) == 2
        listed = nft_list(f"table {TABLE}")
        assert sorted(listed) == ["clients4.3", "granted", "granted.3", "judge.3", "open4.3", "output", "output.3",
                                  "refused", "told4"]  # fmt: skip
        assert held(Nft()) == held(nft)  # one that has made none finds it

    inside(test)


def nft_list(what: str) -> list[str]:
    """The names of all objects that are listed."""
    done = subprocess.run(["nft", "-j", "list", *what.split()], capture_output=True, text=True, check=True)
    objects = [item for each in json.loads(done.stdout)["nftables"] for item in each.items()]
    return [value["name"] for kind, value in objects if kind in ("set", "map", "chain", "counter")]


def test_one_that_is_refused_changes_nothing(inside: Inside) -> None:
    def test() -> None:
        nft = Nft()
        nft.replace(GENERATION)
        for text, also in (
            (GENERATION + "add rule inet proxyfw nowhere accept\n", ""),
            (GENERATION, "delete table ip x\n"),
        ):
            with pytest.raises(NftError):
                nft.replace(text, also)
            assert nft.intact()
            assert not [name for name in nft_list(f"table {TABLE}") if name.endswith((".2", ".3"))]  # nor leaves any
            nft.change([opened(ONE)])
        nft.replace(GENERATION, f"table ip x {{}}\n{add('told4', '192.0.2.1')}")
        assert nft.intact()
        assert not [name for name in nft_list(f"table {TABLE}") if name.endswith((".1", ".3"))]

    inside(test)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param("delete table inet proxyfw", id="the table is deleted"),
        pytest.param("flush ruleset", id="everything is deleted"),
        pytest.param("flush chain inet proxyfw output", id="a chain with a hook is emptied"),
        pytest.param("insert rule inet proxyfw output accept", id="something is put before it"),
    ],
)
def test_harm_by_others_is_seen_and_mended(harm: str, inside: Inside) -> None:
    def test() -> None:
        nft = Nft()
        nft.replace(GENERATION)
        subprocess.run(["nft", harm], check=True)
        assert not nft.intact()
        nft.replace(GENERATION)
        assert nft.intact()

    inside(test)


def test_no_packet_meets_a_ruleset_that_is_not_whole(inside: Inside) -> None:
    """In the transaction that makes them, interval sets and verdict maps may be empty to packets for a moment."""

    def test() -> None:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        nft = Nft()
        nft.replace(GENERATION)
        with Packets("127.0.0.2") as sent:
            for _ in range(200):
                nft.replace(GENERATION)
        assert sent.count > 200
        assert nft.counter("refused") == 0
        assert nft.counter("granted") >= sent.count

    inside(test)


def test_elements_are_added_and_deleted_by_netlink(inside: Inside) -> None:
    def test() -> None:
        nft = prepared()
        nft.change([opened(ONE, 7200), Change("open4", True, []), opened(OTHER)])
        assert sorted((str(other), seconds > 3600) for _, other, _, seconds in nft.elements(("open4",))) == [
            ("192.0.2.1", True),
            ("192.0.2.2", False),
        ]
        nft.change([opened(ONE)._replace(adds=False)])
        assert held(nft) == [pair(OTHER)]

    inside(test)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        pytest.param(opened(ONE)._replace(set="unheard-of"), "No such file", id="no such set"),
        pytest.param(Change("open4", True, [element(b"12")]), "Invalid argument", id="another kind of element"),
        pytest.param(opened("10.137.0.11 . 192.0.2.9 . 1")._replace(adds=False), "No such file", id="it is not there"),
    ],
)
def test_a_bad_change_changes_nothing(bad: Change, why: str, inside: Inside) -> None:
    def test() -> None:
        nft = prepared()
        nft.change([opened(ONE)])
        with pytest.raises(NftError, match=why):
            nft.change([opened(ONE)._replace(adds=False), opened(OTHER), bad])
        assert held(nft) == [pair(ONE)]

    inside(test)


@pytest.mark.parametrize(
    ("version", "found"),
    [
        (4, LISTED),
        (4, [(0x0B000000, 0x0B000000), (0x0B000002, 0x0B0000FE), (2**32 - 2, 2**32 - 1)]),
        (4, FAR),
        (6, [(0x20010DB8 << 96, (0x20010DB8 << 96) + 5), (2**128 - 16, 2**128 - 1)]),
        (6, []),
    ],
)
def test_ranges_are_held_as_they_were_given(version: int, found: list[Range], inside: Inside) -> None:
    def test() -> None:
        nft = Nft()
        name = f"feed-a-{version}"
        assert nft.ranges(name, version) == []
        assert nft.replace(with_feeds()) == {"feed-a-4", "feed-a-6"}
        nft.change([Change(name, True, ranges(found, version))])
        assert nft.ranges(name, version) == found
        assert nft.replace(with_feeds()) == frozenset()  # the same sets, with all that is in them
        assert nft.ranges(name, version) == found
        nft.replace(GENERATION)
        assert not [name for name in nft_list(f"table {TABLE}") if name.startswith("feed-")]

    inside(test)


def with_feeds() -> str:
    chain = "\t\tip daddr @granted counter name granted accept\n"
    assert chain in GENERATION
    text = GENERATION.replace(chain, "\t\tip daddr @feed-a-4 counter name granted accept\n")
    return text.replace("\tcounter granted { }", FEEDS + "\tcounter granted { }")


def test_no_packet_is_refused_while_ranges_change(inside: Inside) -> None:
    """Those of other addresses, and also the very range that the packet's is in."""

    def test() -> None:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        nft = Nft()
        nft.replace(with_feeds())
        nft.change([Change("feed-a-4", True, ranges(FAR + LISTED, 4))])
        wider = [(LISTED[0][0] - 1, LISTED[0][1] + 7)]
        with Packets("127.0.0.2") as sent:
            for at in range(200):
                others = [FAR[at], *FAR[500 : 500 + at]]
                for before, now in ((LISTED, wider), (wider, LISTED)):
                    nft.change(
                        [
                            Change("feed-a-4", False, ranges(others + before, 4)),
                            Change("feed-a-4", True, ranges(others + now, 4)),
                        ]
                    )
        assert sent.count > 200
        assert nft.counter("refused") == 0
        assert nft.counter("granted") >= sent.count

    inside(test)


class Packets:
    """Sends packets to an address for as long as it is open, in a thread; `count` of them."""

    def __init__(self, address: str) -> None:
        self.count = 0
        self._stop = threading.Event()
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # of this thread's network namespace
        self._sock.connect((address, 9))
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> "Packets":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sock.close()

    def _send(self) -> None:
        while not self._stop.is_set():
            with suppress(ConnectionRefusedError):
                self._sock.send(b"x")
                self.count += 1


MANY_DESCRIPTORS = """
import os, resource, sys
from proxyfw.edge.nft import Nft
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
nft = Nft()
nft.prepare()
while os.dup(0) < 1100:
    pass
nft.apply(sys.argv[1])
nft.apply("delete table inet proxyfw")
"""


def test_a_ruleset_is_applied_though_a_thousand_descriptors_are_open() -> None:
    """libnftables waits with select(2), which aborts the process for a new descriptor of 1024 or more."""
    command = ["unshare", "-n", sys.executable, "-c", MANY_DESCRIPTORS, RULESET]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
