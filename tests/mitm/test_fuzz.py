"""Whatever a client says, and however it is cut: nothing fails, and nothing reaches a server that is not for it."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st
from lab import hellos, ways

from mitm.playback import EVIL, GOOD, GRANTED, OTHER, Playback, World

PERMITTED = {GOOD: b"good.example", OTHER: b"other.example"}
HOSTS = ("good.example", "other.example", "evil.example", GOOD, GRANTED)
_REQUESTS = [
    request
    for host in HOSTS
    for request in (
        f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(),
        f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(),
        f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\n\r\nabc".encode(),
    )
]
_TUNNELS = (ways.SOCKS5, ways.SOCKS4A, ways.CONNECT)
_OPENINGS = [way.request(host, port) for way in _TUNNELS for host in HOSTS for port in (443, 80)]
_HELLOS = [hellos.hello(name) for name in HOSTS[:3]] + [hellos.hello()]
_ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    hellos.retry_request(bytes(32)),
    b"220 hello\r\n",
    b"",
]

said = st.lists(st.sampled_from([*_REQUESTS, *_OPENINGS, *_HELLOS]) | st.binary(max_size=40), min_size=1, max_size=4)
changes = st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=4), st.booleans()), max_size=3)
cuts = st.lists(st.integers(1, 600), max_size=8)
modes = st.sampled_from(
    [("regular", None), ("transparent", (GOOD, 443)), ("transparent", (GOOD, 80)), ("wireguard", (EVIL, 80))]
)


def _changed(data: bytes, edits: list[tuple[int, bytes, bool]]) -> bytes:
    for at, piece, over in edits:
        at %= len(data) + 1
        data = data[:at] + piece + data[at + (len(piece) if over else 0) :]
    return data


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [piece for piece in [*pieces, data] if piece]


def _head(sent: bytes) -> bytes:
    """What names the host: a ClientHello's record, or the first head of HTTP."""
    return sent[: 5 + int.from_bytes(sent[3:5])] if sent[:1] == b"\x16" else sent.partition(b"\r\n\r\n")[0]


async def _play(mode, pieces, answers, ends) -> tuple[World, Playback]:
    world = World(wireguard=True)
    made = await Playback(world, *mode, address="10.0.0.1" if mode[0] == "wireguard" else "10.137.0.11").start()
    for number, piece in enumerate(pieces):
        if made.closed:
            break
        await made.say(piece)
        if made.opened and made.opened[-1].open and answers:
            answer = answers[number % len(answers)]
            await (made.answer(answer) if answer else made.server_ends())
    if ends and not made.closed:
        await made.end()
    if made.wakeups and not made.closed:
        await made.late()
    return world, made.gone()


@settings(max_examples=400, deadline=None)
@given(modes, said, changes, cuts, st.lists(st.sampled_from(_ANSWERS), max_size=3), st.booleans())
def test_nothing_that_is_said_fails_or_reaches_another_server(mode, messages, edits, sizes, answers, ends):
    world, made = asyncio.run(_play(mode, _cut(_changed(b"".join(messages), edits), sizes), answers, ends))

    assert not world.faults
    assert "error" not in [row.reason for row in world.rows]
    for opened in made.opened:
        assert opened.address[0] in (*PERMITTED, GRANTED)
        head = _head(opened.sent).lower()
        if opened.address[0] in PERMITTED and head:
            assert b"evil" not in head
            assert PERMITTED[opened.address[0]] in head
