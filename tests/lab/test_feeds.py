"""Lists that their owner publishes: fetched over real HTTPS, forwarded by the kernel, gone when they are dropped."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from core.feedshapes import SHAPES

from lab import feed_server
from lab.conftest import Log
from lab.feed_server import (
    EVIL4,
    FIRST4,
    FIRST6,
    PORT,
    SECOND4,
    SECOND6,
    THIRD4,
    World,
    ok,
    profile,
    source,
    url,
    validated,
)
from lab.sockets import Server, UdpEcho, connect, echo, eventually, family_of, socket_in, udp
from proxyfw.core.addresslist import AddressList, parse_networks
from proxyfw.core.feed import Source
from proxyfw.core.feedbounds import objection
from proxyfw.core.ruleset import feed_set

LIST = "/list"
BOTH = f"# ours\n{FIRST4}\n{FIRST6}/128\n"
OTHERS = f"{SECOND4}\n{SECOND6}\n"


@pytest.fixture(scope="module")
def shared_world() -> Iterator[World]:
    with feed_server.make() as made, ExitStack() as stack:
        for address in (FIRST4, SECOND4, THIRD4, FIRST6, SECOND6, EVIL4):
            for port in (PORT, PORT + 1):
                stack.enter_context(Server(made.lab, address, port, echo))
                stack.enter_context(UdpEcho(made.lab, address, port))
        yield made


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    """The world that these tests share, without any list, and with a running service."""
    yield shared_world
    shared_world.clear()


@pytest.fixture
def rows(world: World) -> Log:
    """Its log from here on."""
    return Log(world.lab)


def restart(world: World, number: signal.Signals = signal.SIGTERM) -> None:
    world.lab.end_service(number)
    world.start()
    assert eventually(lambda: all(feed["networks"] for feed in world.feeds())), world.feeds()


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes; what came where the peer ended before."""
    data = bytearray()
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return bytes(data)


# What it is for


def test_a_program_without_any_name_reaches_what_the_list_has_and_nothing_else(world: World, rows: Log) -> None:
    world.server.lists[LIST] = ok(BOTH)
    world.use({"listed": profile(LIST)})

    for address in (FIRST4, FIRST6):
        assert world.reaches(address)
        assert world.reaches_by_udp(address)
        assert not world.reaches(address, client="other")
        rows.expect(client="other", destination=address, port=PORT, verdict="deny")

        assert not world.reaches(address, PORT + 1)
        rows.expect(client="work", destination=address, port=PORT + 1, protocol="tcp", verdict="deny")
        assert not world.reaches_by_udp(address, PORT + 1)
        rows.expect(client="work", destination=address, port=PORT + 1, protocol="udp", verdict="deny")
    assert not world.reaches(SECOND4)
    rows.expect(client="work", destination=SECOND4, port=PORT, verdict="deny")


@pytest.mark.parametrize("address", [FIRST4, FIRST6], ids=["IPv4", "IPv6"])
def test_with_the_service_dead_the_kernel_goes_on(world: World, address: str) -> None:
    world.server.lists[LIST] = ok(BOTH)
    world.use({"listed": profile(LIST, "[4444, '4321/udp', 4321]")})
    block, blocks = bytes(range(256)) * 4096, 96

    def send(sock: socket.socket) -> None:
        for _ in range(blocks):
            sock.sendall(block)

    def read_blocks(sock: socket.socket, count: int) -> None:
        for _ in range(count):
            assert read_exactly(sock, len(block)) == block

    with Server(world.lab, address, 4444, send), connect(world.lab, "work", address, 4444) as sock:
        read_blocks(sock, 8)
        world.lab.end_service(signal.SIGKILL)
        read_blocks(sock, blocks - 40)
        assert world.reaches(address)
        assert world.reaches_by_udp(address)
        assert not world.reaches(SECOND4)
        world.start()
        assert eventually(lambda: world.feed(LIST)["networks"] == 2)  # what is not permitted has been ended by now
        read_blocks(sock, 32)
        assert sock.recv(1) == b""
    assert world.reaches(address)


class Flow:
    """A client's open flow to an address; the other end of it is in the test's hands."""

    def __init__(self, stack: ExitStack, world: World, address: str, kind: socket.SocketKind, port: int) -> None:
        listening = stack.enter_context(socket_in(world.lab.network.internet, family_of(address), kind))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        if kind == socket.SOCK_STREAM:
            listening.listen()
            self.client = stack.enter_context(connect(world.lab, "work", address, port))
            self._far = stack.enter_context(listening.accept()[0])
            self._peer = None
        else:
            self.client = stack.enter_context(udp(world.lab, "work", address, port))
            self.client.send(b"hello")
            self._far, self._peer = listening, listening.recvfrom(100)[1]
        self.client.settimeout(0.1)
        assert self.works()

    def works(self) -> bool:
        """Whether what the other end sends arrives; the client says nothing to that."""
        try:
            if self._peer is None:
                self._far.sendall(b"x")
            else:
                self._far.sendto(b"x", self._peer)
            return self.client.recv(100) != b""
        except OSError:
            return False

    def is_refused(self) -> bool:
        """Whether the client is told when it says something."""
        self.client.settimeout(1.0)
        try:
            self.client.send(b"y")
            self.client.recv(100)
        except TimeoutError:
            return False
        except OSError:
            return True
        return False


def test_what_the_list_drops_is_lost_within_a_second_and_open_flows_end(world: World) -> None:
    world.server.lists[LIST] = ok(BOTH + OTHERS)
    world.use({"listed": profile(LIST, "[5000, '5000/udp', 4321, '4321/udp']")})
    with ExitStack() as stack:
        kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        ending, staying = (
            [Flow(stack, world, address, kind, 5000) for address in addresses for kind in kinds]
            for addresses in ((FIRST4, FIRST6), (SECOND4, SECOND6))
        )
        world.server.lists[LIST] = ok(OTHERS)

        world.refresh()

        end = time.monotonic() + 1.0
        for flow in ending:
            assert eventually(lambda flow=flow: not flow.works(), end - time.monotonic())
        for address in (FIRST4, FIRST6):
            assert not world.reaches(address)
            assert not world.reaches_by_udp(address)
        assert time.monotonic() < end
        assert not any(flow.works() for flow in ending)
        assert all(flow.is_refused() for flow in ending)
        assert all(flow.works() for flow in staying)


class Stream:
    """A download of a client that counts, and a flow of UDP in which each word is answered before the next."""

    def __init__(self, world: World, address: str) -> None:
        self.counted = self.answered = 0
        self.faults: list[str] = []
        self._stop = threading.Event()
        self._server = Server(world.lab, address, 5000, self._count)
        self._threads = [threading.Thread(target=each, args=(world, address)) for each in (self._read, self._ask)]

    def __enter__(self) -> "Stream":
        self._server.__enter__()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._server.__exit__()

    def goes_on(self) -> bool:
        """Whether both get on from here."""
        counted, answered = self.counted, self.answered
        return bool(eventually(lambda: self.counted > counted and self.answered > answered))

    def _count(self, sock: socket.socket) -> None:
        number = 0
        while not self._stop.is_set():
            sock.sendall(number.to_bytes(8) * 1024)
            number += 1

    def _read(self, world: World, address: str) -> None:
        try:
            with connect(world.lab, "work", address, 5000) as sock:
                while not self._stop.wait(0.0005):  # so that others have the processor too
                    whole = read_exactly(sock, 8192) == self.counted.to_bytes(8) * 1024
                    if not whole and not self._stop.is_set():
                        self.faults.append(f"after {self.counted} blocks")
                        return
                    self.counted += whole
        except OSError as error:
            self.faults.append(str(error))

    def _ask(self, world: World, address: str) -> None:
        with udp(world.lab, "work", address, PORT) as sock:
            while not self._stop.wait(0.0002):
                try:
                    sock.send(b"%d" % self.answered)
                    if sock.recv(100) != b"%d" % self.answered:
                        self.faults.append(f"after {self.answered} words")
                except OSError as error:
                    self.faults.append(str(error))
                self.answered += 1


AROUND = [
    ["203.0.113.1/32", "2001:db8:1::a1/128"],
    ["203.0.113.0/31", "2001:db8:1::a0/124"],
    ["203.0.113.0/24", "192.0.2.64/28", "2001:db8:1::/48"],
    ["203.0.113.0/29", "203.0.113.8/32", "2001:db8:1::a1/128", "2001:db8:1::a3/128"],
    ["203.0.113.1/32", "203.0.113.2/32", "203.0.113.4/32", "2001:db8:1::a0/123"],
]
"""The first addresses always, in networks that grow, shrink, touch and come and go."""


def test_a_download_goes_on_while_the_list_changes_fifty_times_around_it(world: World, rows: Log) -> None:
    world.server.lists[LIST] = ok("\n".join(AROUND[0]))
    world.use({"listed": profile(LIST, "[5000, '4321/udp']")})
    with Stream(world, FIRST4) as four, Stream(world, FIRST6) as six:
        for number in range(1, 26):  # the sets of both families each time
            networks = AROUND[number % len(AROUND)]
            world.server.lists[LIST] = ok("\n".join(networks))
            (told,) = world.refresh()
            assert (told["error"], told["networks"]) == ("", len(networks))
        assert four.goes_on()
        assert six.goes_on()
    assert (four.faults, six.faults) == ([], [])
    assert min(four.counted, six.counted, four.answered, six.answered) > 100
    assert [row for row in rows.rows() if row["verdict"] != "allow"] == []


def test_each_format_ends_in_the_packet_layer_as_the_document_has_it(world: World) -> None:
    wanted, profiles = {}, {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        path = f"/{number}/{shape.file}"
        world.server.lists[path] = ok(shape.document)
        wanted[name] = Source(url(path), shape.format, shape.select)
        select = f", select: {list(shape.select)!r}" if shape.select else ""
        profiles[f"p{number}"] = f'feeds:\n  - {{url: "{url(path)}", format: {shape.format}{select}}}\n'
    world.use(profiles)

    found, feeds = world.sets(), {feed["source"]: feed for feed in world.feeds()}

    for name, listed in wanted.items():
        networks = AddressList.of(parse_networks(SHAPES[name].networks))
        wrong = objection(None, networks)  # one of them has private addresses
        assert feeds[str(listed)]["error"] == (f"held back: {wrong}" if wrong else ""), name
        for version in (4, 6):
            ranges = () if wrong else networks.ranges(version)
            assert found[feed_set(listed, version)].ranges(version) == ranges, name


# Which lists are fetched


def test_with_feeds_off_none_is_fetched_and_none_grants_anything(world: World) -> None:
    world.server.lists[LIST] = ok(BOTH)
    world.use({"listed": profile(LIST)})
    assert world.reaches(FIRST4)
    asked = len(world.server.asked)

    world.use({"listed": profile(LIST)}, feeds="off")
    assert not world.reaches(FIRST4)
    assert not world.reaches_by_udp(FIRST6)
    assert (world.sets(), world.feeds(), world.refresh(), world.ask("status")["feeds_on"]) == ({}, [], [], False)
    restart(world)
    assert not world.reaches(FIRST4)
    assert world.sets() == {}
    assert len(world.server.asked) == asked

    world.use({"listed": profile(LIST)}, feeds="on")
    assert world.reaches(FIRST4)
    assert len(world.server.asked) == asked  # it is not due


def test_only_the_lists_of_profiles_that_a_client_has_are_fetched(world: World) -> None:
    world.server.lists |= {"/used": ok(f"{FIRST4}\n"), "/unused": ok(f"{SECOND4}\n"), "/included": ok(f"{THIRD4}\n")}
    world.use({"used": profile("/used") + "include: [included]\n", "included": profile("/included")})
    world.lab.write_profile("unused", profile("/unused"))
    world.server.asked.clear()
    world.reload()
    world.refresh()
    assert sorted(world.server.paths()) == ["/included", "/used"]
    assert not world.reaches(SECOND4)

    world.use({"unused": profile("/unused")})
    assert world.server.paths()[2:] == ["/unused"]
    assert world.reaches(SECOND4)
    assert not world.reaches(FIRST4)
    assert set(world.sets()) == {feed_set(source("/unused"), version) for version in (4, 6)}
    world.refresh()
    assert world.server.paths()[2:] == ["/unused"] * 2


def test_one_list_with_other_ports_is_fetched_once_and_another_part_of_a_document_is_another_list(world: World) -> None:
    world.server.lists |= {"/text": ok(f"{FIRST4}\n"), "/json": ok(f'{{"a": ["{SECOND4}"], "b": ["{THIRD4}"]}}')}
    one = f"  - {{url: '{url('/json')}', format: json, select: [%s], ports: [%d]}}\n"
    world.server.asked.clear()
    world.use(
        {
            "one": profile("/text", f"[{PORT}]"),
            "two": profile("/text", f"[{PORT + 1}]"),
            "three": "feeds:\n" + one % ("a", PORT) + one % ("b", PORT + 1),
        }
    )

    assert sorted(world.server.paths()) == ["/json", "/json", "/text"]
    reached = {(address, port) for address in (FIRST4, SECOND4, THIRD4) for port in (PORT, PORT + 1)}
    reached = {each for each in reached if world.reaches(*each)}
    assert reached == {(FIRST4, PORT), (FIRST4, PORT + 1), (SECOND4, PORT), (THIRD4, PORT + 1)}
    assert len(world.sets()) == 6


# After a restart, and after others


def test_without_network_the_list_of_the_last_run_is_in_force_at_once(world: World) -> None:
    world.server.lists[LIST] = ok(BOTH)
    world.use({"listed": profile(LIST)})
    world.lab.end_service()
    world.nft("delete", "table", "inet", "proxyfw")  # as after a boot
    world.close_server()
    try:
        world.start()
        assert eventually(lambda: world.reaches(FIRST4))
        assert world.reaches_by_udp(FIRST6)
        (told,) = world.refresh()
        assert (told["networks"], told["error"]) == (2, "connection refused")
        assert world.reaches(FIRST4)
    finally:
        world.open_server()
    assert world.refresh()[0]["error"] == ""


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified"])
def test_after_a_restart_it_asks_for_what_is_new_and_a_304_keeps_the_list(world: World, validator: str) -> None:
    value = '"v1"' if validator == "ETag" else "Mon, 02 Jan 2006 15:04:05 GMT"
    world.server.lists[LIST] = validated(BOTH, validator, value)
    world.use({"listed": profile(LIST)})
    restart(world)
    before = world.feed(LIST)["checked"]
    world.server.asked.clear()

    (told,) = world.refresh()

    asked = "If-None-Match" if validator == "ETag" else "If-Modified-Since"
    assert f"\r\n{asked}: {value}\r\n" in world.server.asked[0]
    assert (told["networks"], told["error"]) == (2, "")
    assert told["checked"] > before
    assert world.reaches(FIRST6)
    world.server.lists[LIST] = validated(OTHERS, validator, '"v2"')
    assert world.refresh()[0]["networks"] == 2
    assert world.holds(source(LIST)) == {f"{SECOND4}/32", f"{SECOND6}/128"}


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        pytest.param('"networks": [', '"networks": ', "this is not a list that proxyfw wrote", id="corrupt"),
        pytest.param(f'"{FIRST4}/32"', '"0.0.0.0/0"', "0.0.0.0/0 is wider than /8", id="with 0.0.0.0/0 in it"),
    ],
)
@pytest.mark.parametrize("booted", [False, True], ids=["the kernel has it still", "after a boot"])
def test_a_list_of_the_last_run_that_is_no_good_grants_nothing(
    world: World, before: str, after: str, why: str, booted: bool
) -> None:
    world.server.lists[LIST] = ok(BOTH)
    world.use({"listed": profile(LIST)})
    world.lab.end_service()
    file = world.cache(source(LIST))
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    if booted:
        world.nft("delete", "table", "inet", "proxyfw")
    world.server.lists.clear()
    world.start()

    assert eventually(lambda: world.feed(LIST)["error"]) == "HTTP status 404 (Not Found)"
    assert world.holds(source(LIST)) == set()
    assert not any(map(world.reaches, (FIRST4, FIRST6, EVIL4)))
    (line,) = (line for line in world.said if "cannot be used" in line)
    assert line.startswith(f"feed {url(LIST)}: the list of the last run cannot be used: ")
    assert line.endswith(why)


def test_when_somebody_flushes_the_ruleset_the_list_is_put_back(world: World) -> None:
    world.server.lists[LIST] = ok(BOTH)
    world.use({"listed": profile(LIST)})
    asked = len(world.server.asked)

    world.nft("flush", "ruleset")

    assert eventually(lambda: world.reaches(FIRST4) and world.reaches_by_udp(FIRST6))
    assert not world.reaches(SECOND4)
    assert len(world.server.asked) == asked


def test_what_somebody_takes_out_of_a_set_comes_back_by_reload_and_does_not_hold_up_the_next_list(world: World) -> None:
    world.server.lists[LIST] = ok(BOTH)
    world.use({"listed": profile(LIST)})
    four = feed_set(source(LIST), 4)
    for address, reachable in ((FIRST4, False), (EVIL4, True)):
        world.nft("delete" if not reachable else "add", "element", "inet", "proxyfw", four, f"{{ {address} }}")
        assert world.reaches_by_udp(address) is reachable  # TCP, the proxy would carry
    world.reload()
    assert eventually(lambda: world.holds(source(LIST)) == {f"{FIRST4}/32", f"{FIRST6}/128"})

    world.nft("flush", "set", "inet", "proxyfw", four)
    world.server.lists[LIST] = ok(OTHERS)
    assert world.refresh()[0]["error"] == ""
    assert world.holds(source(LIST)) == {f"{SECOND4}/32", f"{SECOND6}/128"}


def test_the_service_stops_at_once_while_a_list_is_fetched(world: World) -> None:
    asked = threading.Event()

    def silent(sock: Any, request: str) -> None:
        asked.set()
        sock.recv(1)

    world.server.lists[LIST] = silent
    world.configure({"listed": profile(LIST)})
    world.reload()
    assert asked.wait(10)
    begun = time.monotonic()
    assert world.lab.end_service() == 0
    assert time.monotonic() - begun < 5  # and not the minute that the list may take
