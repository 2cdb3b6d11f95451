"""What a connection through the engine comes to, without a network: whole, byte by byte, and with bytes after it."""

import re

import pytest
from lab import hellos, ways

from mitm.playback import (
    CLIENT,
    DEAD,
    EVIL,
    GOOD,
    GRANTED,
    NAMES,
    OTHER,
    PROFILE,
    Playback,
    World,
    pieces,
    policy,
    run,
)

GET = b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n"
GET_URL = b"GET http://%s/ HTTP/1.1\r\nHost: %s\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TWO_NAMES = hellos.hello("good.example", "evil.example")
TUNNELS = [ways.SOCKS5, ways.SOCKS4A, ways.CONNECT]
SIZES = [pytest.param(1 << 20, id="whole"), pytest.param(1, id="byte by byte")]


@pytest.fixture
def world() -> World:
    return World()


def http(name: str) -> bytes:
    return GET % name.encode()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("first", "aimed", "reached", "verdict", "heard"),
    [
        pytest.param(hellos.hello("good.example"), GOOD, [GOOD], "allow domain", b"", id="TLS, permitted"),
        pytest.param(hellos.hello("good.example"), EVIL, [GOOD], "allow domain", b"", id="TLS, at evil's address"),
        pytest.param(hellos.hello("two.example"), EVIL, [GOOD], "allow domain", b"", id="TLS, the first address dead"),
        pytest.param(hellos.hello("evil.example"), GOOD, [], "deny no-match", hellos.ACCESS_DENIED, id="TLS, refused"),
        pytest.param(hellos.hello(), GOOD, [], "deny no-name", hellos.ACCESS_DENIED, id="TLS without a name"),
        pytest.param(
            hellos.hello("private.example"), GOOD, [], "deny private-address", hellos.ACCESS_DENIED, id="TLS, private"
        ),
        pytest.param(
            hellos.hello("none.example"), GOOD, [], "deny unresolvable", hellos.INTERNAL_ERROR, id="TLS, no address"
        ),
        pytest.param(
            hellos.hello("dead.example"), GOOD, [], "deny unreachable", hellos.INTERNAL_ERROR, id="TLS, nobody there"
        ),
        pytest.param(TWO_NAMES, GOOD, [], "deny ambiguous", hellos.DECODE_ERROR, id="TLS, two names"),
        pytest.param(hellos.hello("evil.example"), GRANTED, [GRANTED], "allow network", b"", id="TLS, by address"),
        pytest.param(b"SSH-2.0-x\r\n", GOOD, [], "deny no-name", b"", id="neither TLS nor HTTP"),
        pytest.param(b"SSH-2.0-x\r\n", GRANTED, [GRANTED], "allow network", b"", id="anything, by address"),
        pytest.param(b"\x16\x03\x01\0\0", GOOD, [], "deny malformed", hellos.DECODE_ERROR, id="an empty record"),
    ],
)
@run
async def test_what_is_said_first(world, size, first, aimed, reached, verdict, heard):
    made = await Playback(world, "transparent", (aimed, 443)).start()
    await made.say(*pieces(first, size))

    assert made.reached == reached
    assert made.sent == (first if reached else b"")
    assert made.heard == heard
    assert " ".join(world.told[-1]) == verdict
    assert len(world.rows) == 1
    assert not world.faults


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("requests", "reached", "told", "statuses"),
    [
        pytest.param(["good"], [GOOD], ["allow domain"], [200], id="permitted"),
        pytest.param(["evil"], [], ["deny no-match"], [403], id="refused"),
        pytest.param(["good", "good"], [GOOD], ["allow domain"], [200, 200], id="twice the same"),
        pytest.param(
            ["good", "evil", "good"], [GOOD], ["allow domain", "deny no-match"], [200, 403], id="then refused"
        ),
        pytest.param(["good", "other"], [GOOD, OTHER], ["allow domain", "allow domain"], [200, 200], id="then another"),
        pytest.param(["private"], [], ["deny private-address"], [403], id="private"),
        pytest.param(["none"], [], ["deny unresolvable"], [502], id="no address"),
        pytest.param(["dead"], [], ["deny unreachable"], [502], id="nobody there"),
    ],
)
@pytest.mark.parametrize("forward", [False, True], ids=["aimed", "by URL"])
@run
async def test_http_request_by_request(world, size, requests, reached, told, statuses, forward):
    """All requests at once, and each server answers what it has got."""
    made = await Playback(world, *([] if forward else ["transparent", (EVIL, 80)])).start()
    names = [f"{name}.example".encode() for name in requests]
    await made.say(*pieces(b"".join(GET_URL % (name, name) if forward else GET % name for name in names), size))
    for _ in requests:
        if made.opened and made.opened[-1].open and made.sent.count(b"GET ") > made.heard.count(b"200 OK"):
            await made.answer(OK)

    assert made.reached == reached
    assert [" ".join(each) for each in world.told] == told
    assert [int(status) for status in re.findall(rb"HTTP/1.1 ([0-9]+) ", made.heard)] == statuses
    assert b"evil" not in made.sent
    assert b"http://" not in made.sent


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", TUNNELS, ids=str)
@pytest.mark.parametrize(
    ("asked", "inside", "reached", "told"),
    [
        pytest.param("good.example", "good.example", [GOOD], ["allow domain"], id="the same"),
        pytest.param("good.example", "other.example", [GOOD, OTHER], ["allow domain"], id="two that are permitted"),
        pytest.param("good.example", "evil.example", [GOOD], ["deny no-match"], id="refused inside"),
        pytest.param("evil.example", "good.example", [], ["deny no-match"], id="refused outside"),
        pytest.param("private.example", "good.example", [], ["deny private-address"], id="private"),
        pytest.param("none.example", "good.example", [], ["deny unresolvable"], id="no address"),
        pytest.param("dead.example", "good.example", [], ["deny unreachable"], id="nobody there"),
        pytest.param(GOOD, "good.example", [], ["deny no-name"], id="an address"),
        pytest.param(GRANTED, "evil.example", [GRANTED], ["allow network"], id="a granted address"),
    ],
)
@run
async def test_a_tunnel_that_is_asked_for(world, size, way, asked, inside, reached, told):
    """Its name and the one inside must both be permitted; all is said at once."""
    hello = hellos.hello(inside)
    made = await Playback(world).start()
    await made.say(*pieces(way.request(asked, 443) + hello, size))

    assert made.reached == reached
    assert [" ".join(each) for each in world.told] == told
    permitted = told == ["allow domain"] or told == ["allow network"]
    assert made.opened[-1].sent == hello if permitted else made.sent == b""
    assert made.heard.startswith(way.success) == bool(reached)
    if reached and not permitted:
        assert made.heard == way.success + hellos.ACCESS_DENIED
    assert all(opened.open == (opened is made.opened[-1] and permitted) for opened in made.opened)


@pytest.mark.parametrize("way", TUNNELS, ids=str)
@run
async def test_dns_by_a_tunnel_would_pass_the_relay_by(world, way):
    made = await (await Playback(world).start()).say(way.request("good.example", 53))

    assert not made.opened
    assert world.told == [("deny", "unsupported")]


@run
async def test_more_connections_than_there_may_be_are_refused_at_once(world):
    made = [await Playback(world, "transparent", (GOOD, 443)).start() for _ in range(9)]

    assert [each.closed for each in made] == [False] * 8 + [True]
    assert world.told == [("deny", "limit")]
    made[0].gone()
    assert not (await Playback(world, "transparent", (GOOD, 443)).start()).closed


@run
async def test_a_second_hello_for_another_host_is_refused(world):
    first = hellos.hello("good.example")
    made = await (await Playback(world, "transparent", (GOOD, 443)).start()).say(first)

    retry = hellos.retry_request(hellos.session_of(first))
    await made.answer(retry)
    await made.say(hellos.hello("evil.example"))

    assert made.sent == first
    assert world.told == [("allow", "domain"), ("deny", "ambiguous")]
    assert made.heard == retry + hellos.DECODE_ERROR


@run
async def test_what_follows_the_hello_waits_until_the_server_has_spoken(world):
    first, second = hellos.hello("good.example"), hellos.hello("good.example")
    made = await (await Playback(world, "transparent", (GOOD, 443)).start()).say(first + second)
    assert made.sent == first

    retry = hellos.retry_request(hellos.session_of(first))
    await made.answer(retry)
    assert made.sent == first + second

    await made.answer(b"secret")
    await made.say(b"more")
    assert (made.sent, made.heard) == (first + second + b"more", retry + b"secret")


@run
async def test_much_after_the_hello_is_not_read_before_the_server_has_spoken(world):
    made = await Playback(world, "transparent", (GOOD, 443)).start()
    await made.say(hellos.hello("good.example"), *[bytes(1 << 15)] * 8)

    assert len(made.waiting) == 6
    await made.answer(b"\x15\x03\x03\0\x02\x02\x28")
    assert not made.waiting


@pytest.mark.parametrize("way", TUNNELS, ids=str)
@run
async def test_a_server_that_speaks_first_where_the_port_is_named(world, way):
    made = await (await Playback(world).start()).say(way.request("good.example", 7000))
    assert made.heard == way.success

    await made.answer(b"220 hello\r\n")
    assert made.heard == way.success + b"220 hello\r\n"
    await made.say(b"HELO\r\n")

    assert made.sent == b"HELO\r\n"
    assert world.told == [("allow", "domain")]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        pytest.param(hellos.hello("evil.example"), "no-match", id="a refused SNI"),
        pytest.param(http("good.example"), "malformed", id="HTTP"),
    ],
)
@run
async def test_a_client_of_a_server_that_spoke_first_is_still_judged(world, said, reason):
    made = await (await Playback(world).start()).say(ways.CONNECT.request("good.example", 7000))
    await made.answer(b"220 hello\r\n")
    await made.say(said)

    assert made.sent == b""
    assert world.told[-1] == ("deny", reason)


@run
async def test_a_server_that_speaks_first_elsewhere_is_not_heard(world):
    made = await (await Playback(world).start()).say(ways.CONNECT.request("good.example", 443))
    await made.answer(b"220 hello\r\n")
    await made.say(b"HELO\r\n")

    assert made.heard == ways.CONNECT.success
    assert made.sent == b""
    assert world.told == [("deny", "no-name")]


@pytest.mark.parametrize(
    ("mode", "aimed", "said", "reason"),
    [
        pytest.param("transparent", (GOOD, 443), [], "silent", id="nothing"),
        pytest.param("transparent", (GOOD, 443), [b"\x16\x03\x01"], "timeout", id="half a hello"),
        pytest.param("transparent", (GOOD, 80), [b"GET / HTTP/1.1\r\nHo"], "timeout", id="half a request"),
        pytest.param("regular", None, [], "silent", id="nothing asked"),
        pytest.param("regular", None, [b"CONNECT good"], "timeout", id="half a proxy request"),
        pytest.param("regular", None, [ways.CONNECT.request("good.example", 443)], "silent", id="nothing inside"),
    ],
)
@run
async def test_a_client_that_does_not_say_whom_it_wants(world, mode, aimed, said, reason):
    made = await (await Playback(world, mode, aimed).start()).say(*said)
    await made.late()

    assert world.told == [("deny", reason)]
    assert made.sent == b""
    assert made.closed or made.half_closed


@run
async def test_observe_mode_lets_through_and_tells(world):
    world.shared.policy = policy(observe=True)
    made = await (await Playback(world, "transparent", (EVIL, 443)).start()).say(hellos.hello("evil.example"))

    assert made.reached == [EVIL]
    assert world.told == [("observe", "no-match")]


@run
async def test_a_policy_that_comes_while_the_name_is_looked_up_decides(world):
    def take_away():
        world.plane.rejudge(policy(profile="domains: [other.example]\n"))

    world.on_look_up = take_away
    made = await (await Playback(world, "transparent", (GOOD, 443)).start()).say(hellos.hello("good.example"))

    assert made.reached == []
    assert world.told == [("deny", "no-match")]


@run
async def test_what_a_new_policy_forbids_is_ended(world):
    made = await (await Playback(world, "transparent", (GOOD, 443)).start()).say(hellos.hello("good.example"))
    stays = await (await Playback(world, "transparent", (OTHER, 443)).start()).say(hellos.hello("other.example"))

    assert world.plane.rejudge(policy(profile="domains: [other.example]\n")) == 1

    assert (made.closed, stays.closed) == (True, False)
    assert [row.closed_by for row in world.rows] == ["", ""]
    made.gone()
    assert world.rows[0].closed_by == "policy"
    assert world.plane.open_connections() == {"work": 1}


@run
async def test_both_sides_may_end_one_after_the_other(world):
    made = await (await Playback(world, "transparent", (GRANTED, 9)).start()).say(b"question")
    await made.end()
    assert made.opened[0].ended
    await made.answer(b"answer")
    await made.server_ends()
    made.gone()

    assert made.heard == b"answer"
    row = world.rows[0]
    assert (row.bytes_up, row.bytes_down, row.closed_by) == (8, 6, "client")


@pytest.mark.parametrize(
    ("mode", "address", "known"),
    [
        pytest.param("regular", CLIENT, True, id="a client"),
        pytest.param("regular", "10.137.0.99", False, id="nobody's address"),
        pytest.param("wireguard", "10.0.0.1", True, id="the peer"),
        pytest.param("wireguard", CLIENT, False, id="the peer as somebody else"),
        pytest.param("regular", "10.0.0.1", False, id="somebody as the peer"),
    ],
)
@run
async def test_who_a_connection_is(mode, address, known):
    world = World(wireguard=True)
    aimed = (GOOD, 443) if mode == "wireguard" else None
    made = await Playback(world, mode, aimed, address).start()

    assert made.closed != known
    assert world.told == ([] if known else [("deny", "unknown-client")])


@pytest.mark.parametrize(
    ("aimed", "sent", "told"),
    [
        pytest.param((GRANTED, 123), b"onetwo", ["allow network"], id="a granted address"),
        pytest.param((GOOD, 123), b"", ["deny no-name"], id="another address"),
        pytest.param((GOOD, 443), b"", ["deny no-name"], id="QUIC"),
    ],
)
@run
async def test_datagrams_go_by_address(world, aimed, sent, told):
    made = await Playback(world, "wireguard", aimed, udp=True).start()
    await made.say(b"one", b"two")

    assert made.sent == sent
    assert [" ".join(each) for each in world.told] == told


@run
async def test_queries_go_to_the_relay_whatever_they_are_aimed_at(world):
    made = await Playback(world, "wireguard", (EVIL, 53), udp=True).start()
    await made.say(b"one", b"two")
    assert made.heard == b"reply to onereply to two"

    stream = await Playback(world, "transparent", (EVIL, 53)).start()
    await stream.say(*pieces(b"\0\3one\0\3two\0", 1))
    assert stream.heard == b"\0\x0creply to one\0\x0creply to two"
    assert not made.opened
    assert not stream.opened


@pytest.mark.parametrize("name", sorted(NAMES))
@run
async def test_an_upstream_proxy_is_never_passed_by(world, name, monkeypatch):
    """The engine has none: who is to leave by one does not leave at all."""
    monkeypatch.setattr(type(world.shared.policy), "upstream_proxy_of", lambda *_: object())
    made = await (await Playback(world, "transparent", (GRANTED, 443)).start()).say(hellos.hello(name))

    assert not made.opened
    assert world.told == [("deny", "upstream-proxy")]


def test_the_profile_names_what_the_cases_say():
    assert "evil" not in PROFILE
    assert DEAD in NAMES["dead.example"]
