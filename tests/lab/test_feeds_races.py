"""Lists that change while the service is killed, and while reloads take them away and bring them back."""

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from lab import feed_server
from lab.feed_server import EVIL4, FIRST4, PORT, SECOND4, World, ok, profile, source
from lab.sockets import UdpEcho, eventually, udp
from proxyfw.core.addresslist import AddressList, parse_networks
from proxyfw.core.ruleset import feed_set
from proxyfw.edge.control import ControlError
from proxyfw.edge.feedcache import FeedCache

LIST, STAYING = "/list", "/staying"
ODD = {f"20.{i}.{j}.0/25" for i in range(10) for j in range(100)} | {f"2a00:{i:x}::/33" for i in range(1, 500)}
EVEN = {f"20.{i}.{j}.128/25" for i in range(10) for j in range(100)} | {f"2a01:{i:x}::/33" for i in range(1, 500)}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with feed_server.make() as made:
        yield made


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.2, 0.3])
def test_a_service_that_is_killed_while_a_list_changes_leaves_the_old_one_or_the_new_one(
    world: World, seconds: float
) -> None:
    turns = iter([ODD, EVEN] * 100)
    world.server.lists[LIST] = lambda sock, request: ok("\n".join(next(turns)))(sock, request)
    world.use({"listed": profile(LIST)})

    def refresh() -> None:
        with suppress(ControlError):
            while True:
                world.refresh()

    refreshing = threading.Thread(target=refresh)
    refreshing.start()
    threading.Event().wait(seconds)
    world.lab.end_service(signal.SIGKILL)
    refreshing.join()

    assert world.holds(source(LIST)) in (ODD, EVEN)
    kept, why = FeedCache(world.folder).load(source(LIST).id, str(source(LIST)))
    assert kept is not None, why
    assert set(kept.networks) in (ODD, EVEN)
    world.start()
    assert eventually(lambda: world.holds(source(LIST)) == set(kept.networks))
    world.clear()


class Flood:
    """A client that sends to these addresses without a pause. `refused`: what of it was, by address."""

    def __init__(self, world: World, *addresses: str) -> None:
        self.sent = dict.fromkeys(addresses, 0)
        self.refused = dict.fromkeys(addresses, 0)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(world, address)) for address in addresses]

    def __enter__(self) -> "Flood":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, world: World, address: str) -> None:
        with udp(world.lab, "work", address, PORT) as sock:
            sock.setblocking(False)
            while not self._stop.wait(0.0005):
                try:
                    self.sent[address] += sock.send(b".")
                    sock.recv(100)
                except BlockingIOError:
                    pass
                except OSError:
                    self.refused[address] += 1


def test_reloads_and_new_lists_that_cross_open_nothing_and_lose_nothing_and_agree_in_the_end(world: World) -> None:
    draw = random.Random(5)
    document = [FIRST4]
    world.server.lists[LIST] = lambda sock, request: ok("\n".join(document))(sock, request)
    world.server.lists[STAYING] = ok(SECOND4)
    staying = {"staying": profile(STAYING)}
    both = {**staying, "listed": profile(LIST)}
    world.use(both)

    def reload() -> None:
        for number in range(10):
            world.configure(staying if number % 2 == 0 else both)
            world.reload()

    reloading = threading.Thread(target=reload)
    with UdpEcho(world.lab, EVIL4, PORT) as evil, UdpEcho(world.lab, SECOND4, PORT) as stays:
        with Flood(world, EVIL4, SECOND4) as flood:
            reloading.start()
            while reloading.is_alive():
                document[:] = [FIRST4, *(f"203.0.113.{draw.randrange(64, 96)}" for _ in range(9))]
                assert [feed["error"] for feed in world.refresh() if feed["error"]] == []
            reloading.join()
        assert (evil.seen, flood.refused[SECOND4]) == ([], 0)
        assert min(flood.sent.values()) > 100
        assert eventually(lambda: len(stays.seen) == flood.sent[SECOND4])
    world.refresh()

    wanted = set(map(str, AddressList.of(parse_networks(document)).networks()))
    assert world.holds(source(LIST)) == wanted
    assert world.feed(LIST)["networks"] == len(wanted)
    sets = {feed_set(source(path), version) for path in (LIST, STAYING) for version in (4, 6)}
    assert set(world.sets()) == sets
    world.clear()
    assert world.sets() == {}
