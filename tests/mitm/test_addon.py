"""The hooks: what fails refuses, and no server connection is opened that was not permitted."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lab import hellos
from mitmproxy.connection import Server
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from mitm.playback import EVIL, GOOD, Playback, World
from proxyfw.core.sniffer import Sniffer
from proxyfw.edge.mitm.running import MitmError, Mitmproxy, read_modes

GOOD_ADDRESS = (GOOD, 443)


@pytest.fixture
def world() -> World:
    return World()


async def connected(world: World) -> Playback:
    made = await Playback(world, "transparent", GOOD_ADDRESS).start()
    return await made.say(hellos.hello("good.example"))


def ask(made: Playback, server: Server) -> str | None:
    """What `server_connect` says of it."""
    data = ServerConnectionHookData(server=server, client=made.client)
    made.world.addon.server_connect(data)
    return data.server.error


def test_a_server_connection_that_nothing_permitted_is_not_opened(world):
    async def check() -> None:
        made = await connected(world)
        assert ask(made, Server(address=GOOD_ADDRESS)) == "not permitted by proxyfw"
        assert ask(made, Server(address=(EVIL, 443))) == "not permitted by proxyfw"

    asyncio.run(check())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda server: setattr(server, "address", (EVIL, 443)), id="another address"),
        pytest.param(lambda server: setattr(server, "address", (GOOD, 22)), id="another port"),
        pytest.param(lambda server: setattr(server, "via", ("http", (EVIL, 8080))), id="by another proxy"),
    ],
)
def test_a_permitted_server_connection_that_was_changed_is_not_opened(world, change):
    async def check() -> None:
        made = await connected(world)
        server = Server(address=GOOD_ADDRESS)
        made.handler.layer._permit(server)
        change(server)
        assert ask(made, server) == "not permitted by proxyfw"

    asyncio.run(check())


def test_a_permission_is_for_one_connection_of_one_client_once(world):
    async def check() -> None:
        made, other = await connected(world), await connected(world)
        server = Server(address=GOOD_ADDRESS)
        made.handler.layer._permit(server)
        assert ask(other, server)
        server = Server(address=GOOD_ADDRESS)
        made.handler.layer._permit(server)
        assert ask(made, server) is None
        assert ask(made, server)
        server = Server(address=GOOD_ADDRESS)
        made.handler.layer._permit(server)
        made.gone()
        assert ask(made, server)

    asyncio.run(check())


def test_no_layer_of_mitmproxy_follows(world):
    context = Context(Playback(world).client, Options())
    asked = layer.NextLayer(context)
    world.addon.next_layer(asked)

    assert asked.layer is not None
    found = list(asked.layer.handle_event(events.Start()))
    assert [type(command) for command in found] == [commands.CloseConnection]


def test_tls_is_not_begun(world):
    data: Any = SimpleNamespace(ssl_conn=object())
    world.addon.tls_start_client(data)

    assert data.ssl_conn is None


def test_a_fault_while_admitting_refuses(world, monkeypatch):
    monkeypatch.setattr(world.plane, "admit", lambda *_: 1 / 0)
    made = asyncio.run(Playback(world, "transparent", GOOD_ADDRESS).start())

    assert made.closed
    assert "division" in repr(world.faults)


def test_a_mode_that_is_not_for_a_firewall_refuses(world):
    async def check() -> None:
        made = Playback(world, "reverse:http://evil.example", GOOD_ADDRESS)
        made.handler.layer = modes.ReverseProxy(Context(made.client, Options()))
        await made.start()
        assert made.closed

    asyncio.run(check())
    assert "is not for a firewall" in repr(world.faults)


def test_a_fault_while_deciding_refuses(world, monkeypatch):
    world.on_look_up = lambda: 1 / 0
    made = asyncio.run(connected(world))

    assert made.opened == []
    assert made.heard == hellos.INTERNAL_ERROR
    assert [(row.reason, row.detail) for row in world.rows] == [("error", "it could not be decided")]
    assert "division" in repr(world.faults)


def test_a_fault_in_a_layer_closes_the_connection(world, monkeypatch):
    monkeypatch.setattr(Sniffer, "feed", lambda *_: 1 / 0)
    made = asyncio.run(connected(world))

    assert made.closed
    assert made.opened == []
    assert world.told == [("deny", "error")]
    assert "division" in world.rows[0].detail


def test_what_is_said_after_a_fault_goes_nowhere(world, monkeypatch):
    async def check() -> None:
        made = await connected(world)
        monkeypatch.setattr(type(made.handler.layer), "to_server", lambda *_: 1 / 0)
        await made.answer(b"\x15\x03\x03\0\x02\x02\x28")
        before = made.sent
        await made.say(b"more")
        assert made.sent == before
        assert made.closed
        assert not made.opened[0].open

    asyncio.run(check())


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        pytest.param("regular@127.0.0.1:3128", "regular@127.0.0.1:3128", id="a proxy"),
        pytest.param("socks5", "regular@127.0.0.1:1080", id="SOCKS, at its port"),
        pytest.param("socks5@10.137.0.5:1081", "regular@10.137.0.5:1081", id="SOCKS, at another"),
        pytest.param("transparent@10.137.0.5:8080", "transparent@10.137.0.5:8080", id="transparent"),
        pytest.param("wireguard@0.0.0.0:51820", "wireguard@0.0.0.0:51820", id="WireGuard"),
    ],
)
def test_modes_that_there_are(given, taken):
    assert read_modes([given]) == [taken]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param(["upstream:http://x"], "upstream is not done here", id="through another proxy"),
        pytest.param(["reverse:http://x"], "reverse is not done here", id="to one server"),
        pytest.param(["dns"], "dns is not done here", id="a resolver"),
        pytest.param(["regular@x:y"], "invalid port", id="no port"),
        pytest.param(["regulr"], "unknown mode", id="a typing error"),
        pytest.param(["wireguard@1", "wireguard@2"], "only once", id="two peers"),
    ],
)
def test_modes_that_there_are_not(given, words):
    with pytest.raises(MitmError, match=words):
        read_modes(given)


@pytest.mark.parametrize("web", [None, ("127.0.0.1", 8081)], ids=["without a view", "with its view"])
def test_nothing_that_could_decrypt_replay_or_run_scripts_is_loaded(world, web):
    async def loaded() -> set[str]:
        made = Mitmproxy(["regular@127.0.0.1:1"], web, Path("/nowhere"), world.plane)
        return set(made._master.addons.lookup)

    needed = {"core", "proxyserver", "nextlayer"}
    of_the_view = {"view", "eventstore", "webaddon", "webauth"} if web else set()
    assert needed <= asyncio.run(loaded()) <= {*needed, "termlog", *of_the_view}
