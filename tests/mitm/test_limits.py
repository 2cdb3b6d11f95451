"""What one client can take: memory, places, descriptors; and how a connection is ended at once."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lab import hellos, ways
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import events

from mitm.playback import CLIENT, GOOD, GRANTED, OTHER, Playback, World, policy, run
from proxyfw import proxy
from proxyfw.edge.mitm import addon
from proxyfw.edge.mitm.running import Mitmproxy

HALF_A_HELLO = hellos.hello("good.example")[:20]
NOTHING = "domains: [other.example]\n"


@pytest.fixture
def world() -> World:
    return World()


@asynccontextmanager
async def stuck() -> AsyncIterator[tuple[asyncio.StreamWriter, socket.socket]]:
    """A stream on which much has yet to be sent, and its other end, which has read nothing."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _, writer = await asyncio.open_connection(sock=ours)
    writer.write(bytes(1 << 22))
    yield writer, theirs
    writer.transport.abort()
    theirs.close()


# Memory.


@pytest.mark.parametrize("way", [ways.SOCKS5, ways.CONNECT], ids=str)
@run
async def test_nobody_is_read_while_an_answer_is_awaited(world, way):
    """mitmproxy would queue without bound what a server sends in the meantime."""
    made = await (await Playback(world).start()).say(way.request("good.example", 443))
    assert (made.reads, made.reads_server()) == (True, True)
    seen: list[tuple[bool, bool]] = []
    world.on_look_up = lambda: seen.append((made.reads, made.reads_server(0)))

    await made.say(hellos.hello("other.example"))

    assert seen == [(False, False)]
    assert (made.reads, made.reads_server()) == (True, True)


# Places.


@run
async def test_a_server_that_may_speak_first_is_no_way_past_the_limit_of_hellos(world, monkeypatch):
    monkeypatch.setattr(proxy, "MAX_UNDECIDED", 2)
    made = [await (await Playback(world, "transparent", (GRANTED, 9)).start()).late() for _ in range(3)]
    assert all(each.opened for each in made)
    for each in made:
        await each.say(HALF_A_HELLO)

    assert [each.closed or each.half_closed for each in made] == [False, False, True]
    assert [row.reason for row in world.rows] == ["network"] * 3 + ["limit"]


@run
async def test_nor_is_one_that_has_spoken(world, monkeypatch):
    monkeypatch.setattr(proxy, "MAX_UNDECIDED", 2)
    made = [await (await Playback(world, "transparent", (GRANTED, 9)).start()).late() for _ in range(3)]
    for each in made:
        await (await each.answer(b"220 hello\r\n")).say(HALF_A_HELLO)
    before = world.plane._undecided["work"]
    assert (made[2].closed or made[2].half_closed, made[2].sent) == (False, HALF_A_HELLO)  # what a network grants
    await made[0].say(hellos.hello("good.example")[20:])

    assert before == 2
    assert world.plane._undecided["work"] == 1


@run
async def test_datagrams_and_queries_take_no_place_of_connections(world, monkeypatch):
    monkeypatch.setattr(proxy, "MAX_UNDECIDED", 1)
    for aimed in ((GOOD, 443), (GOOD, 53), (GRANTED, 123)):
        assert not (await Playback(world, "wireguard", aimed, udp=True).start()).closed
    for aimed in ((GOOD, 53), (GOOD, 443)):
        assert not (await Playback(world, "transparent", aimed).start()).closed
    assert (await Playback(world, "transparent", (GOOD, 443)).start()).closed


@run
async def test_nothing_is_kept_of_a_refused_datagram(world):
    made = await (await Playback(world, "wireguard", (GOOD, 443), udp=True).start()).say(b"one")

    assert made.closed
    assert world.told == [("deny", "no-name")]


@run
async def test_a_port_that_asks_no_more_is_forgotten(world):
    made = await (await Playback(world, "wireguard", (GOOD, 53), udp=True).start()).say(b"one", b"two")
    begun = len(made.wakeups)
    await made.event(events.Wakeup(made.wakeups[0]))
    assert (made.closed, len(made.wakeups)) == (False, begun)  # the deadline is that of the latest query

    await made.late()
    assert made.closed


def test_dropped_packets_of_the_tunnel_are_not_told_one_by_one(world):
    async def check() -> None:
        Mitmproxy(["wireguard@127.0.0.1:1"], None, Path("/nowhere"), world.plane)

    asyncio.run(check())
    for each in ("mitmproxy.network.core", "mitmproxy.network.tcp", "mitmproxy.packet_sources.wireguard"):
        assert not logging.getLogger(each).isEnabledFor(logging.WARNING)


# Descriptors.


@run
async def test_a_connection_counts_until_all_is_sent(world):
    async with stuck() as (writer, theirs):
        made = Playback(world, "transparent", (GOOD, 443))
        made.io.writer = writer
        await made.start()
        writer.close()
        made.gone()
        assert world.plane.open_connections() == {"work": 1}

        world.addon._part(world.addon._counted[next(iter(world.plane._live))], before=-1)
        assert world.plane.open_connections() == {"work": 1}
        assert theirs.recv(1)


@run
async def test_who_takes_nothing_of_it_is_reset(world):
    async with stuck() as (writer, _):
        made = Playback(world, "transparent", (GOOD, 443))
        made.io.writer = writer
        await made.start()
        writer.close()
        made.gone()

        (opened,) = world.addon._counted.values()
        world.addon._part(opened, before=addon._unsent(writer))

        assert world.plane.open_connections() == {}
        assert addon._unsent(writer) == 0
        assert not world.addon._counted


@run
async def test_what_is_left_of_a_server_is_lost_when_the_next_one_is_dialled(world):
    async with stuck() as (writer, _):
        made = await Playback(world, "transparent", (GOOD, 80)).start()
        await made.say(b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n")
        (opened,) = world.addon._counted.values()
        opened.writers[1] = writer
        writer.close()
        await made.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await made.say(b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n")

        assert made.reached == [GOOD, OTHER]
        assert addon._unsent(writer) == 0
        assert writer not in opened.writers


# Ends.


@run
async def test_what_a_new_policy_forbids_is_not_even_sent_to_its_end(world):
    """Neither what waits in mitmproxy, nor what waits in the kernel."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _, writer = await asyncio.open_connection(*listener.getsockname())
        theirs, _ = listener.accept()
    theirs.settimeout(3.0)
    with theirs:
        made = await (await Playback(world, "transparent", (GOOD, 443)).start()).say(hellos.hello("good.example"))
        (opened,) = world.addon._counted.values()
        opened.writers[1] = writer
        writer.write(bytes(1 << 22))

        assert world.plane.rejudge(policy(profile=NOTHING)) == 1

        assert made.closed
        assert writer.is_closing()
        await writer.wait_closed()
        with pytest.raises(ConnectionResetError):
            list(iter(lambda: theirs.recv(1 << 16), b""))


@run
async def test_ending_one_connection_does_not_look_at_the_others(world, monkeypatch):
    made = await Playback(world, "transparent", (GOOD, 443)).start()
    monkeypatch.setattr(world.addon, "_handlers", lambda: 1 / 0)
    monkeypatch.setattr(world.addon, "_open", None)
    (case,) = world.plane._live

    case.close("policy")

    assert made.closed


@pytest.mark.parametrize("way", [ways.SOCKS5, ways.CONNECT], ids=str)
@run
async def test_a_tunnel_that_is_ended_before_its_first_byte_was_let_through(world, way):
    made = await (await Playback(world).start()).say(way.request("good.example", 443))
    world.plane.rejudge(policy(profile=NOTHING))
    await made.end()
    made.gone()

    (row,) = world.rows
    assert (row.verdict, row.reason, row.name, row.closed_by) == ("allow", "domain", "good.example", "policy")
    assert row.detail == f"asked by {row.protocol} for good.example"


@run
async def test_a_connection_lasts_no_longer_than_it_may(world):
    made = await (await Playback(world, "transparent", (GOOD, 443)).start()).say(hellos.hello("good.example"))
    world.now += proxy.TOTAL
    world.plane._sweep()
    assert not made.closed

    world.now += 1.0
    world.plane._sweep()
    made.gone()
    assert made.closed
    assert world.rows[0].closed_by == "limit"


@run
async def test_who_resets_takes_nothing_any_more():
    async def read(_: int) -> bytes:
        raise ConnectionResetError

    client: Any = SimpleNamespace(state=ConnectionState.OPEN)
    wanted = asyncio.Event()
    wanted.set()
    with pytest.raises(ConnectionResetError):
        await addon.Gate(SimpleNamespace(read=read), wanted, client).read(1)

    assert client.state is ConnectionState.CLOSED


@pytest.mark.parametrize("which", ["client", "server"])
@run
async def test_a_relay_of_which_one_side_is_gone_is_over(world, which):
    made = await (await Playback(world, "transparent", (GRANTED, 9)).start()).say(b"SSH-2.0-x\r\n")
    gone = made.client if which == "client" else made.opened[0].server
    gone.state = ConnectionState.CLOSED
    await made.event(events.ConnectionClosed(gone))

    assert (made.closed, made.opened[0].open) == (True, False)
    assert world.rows[0].closed_by == which


# DNS.


@pytest.mark.parametrize(
    ("rule", "heard"),
    [
        pytest.param("action=drop specialtarget=dns", b"", id="the resolver is forbidden"),
        pytest.param(f"action=drop dst4={GOOD} proto=udp dstports=53", b"", id="the address is forbidden"),
        pytest.param("action=accept specialtarget=dns", b"reply to one", id="permitted"),
    ],
)
@run
async def test_a_query_is_also_a_packet(world, rule, heard):
    world.shared.policy = policy(rules=rule)
    world.shared.policy.resolvers = frozenset({ip_address(GOOD)})
    made = await (await Playback(world, "wireguard", (GOOD, 53), CLIENT, udp=True).start()).say(b"one")

    assert made.heard == heard
    assert world.told == ([] if heard else [("deny", "qubes-rule")])
