"""Whatever the owner of a list says, or whoever stands in its place: what was in force stays, and it is told."""

import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import pytest

from lab import feed_server
from lab.feed_server import (
    EVIL4,
    EVIL6,
    HOST,
    NO_NAME,
    NOBODY,
    OTHER_CA,
    PORT,
    TOO_OLD,
    WRONG_NAME,
    Answer,
    World,
    answer,
    ok,
    redirect,
    url,
)
from lab.sockets import Server, echo, eventually
from proxyfw.core.feed import Source
from proxyfw.core.feedformats import Format
from proxyfw.edge.feedcache import Cached

PATIENCE = 3.0  # seconds
LONG_AGO = 1_000_000_000.0
OPENING = ok(f"{EVIL4}\n{EVIL6}\n")
_HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
_EIGHTS = "\n".join(f"{number}.0.0.0/8" for number in range(128))
_GROWN = "\n".join(f"192.0.2.{number}" for number in range(2, 256, 2))


def endless(sock: ssl.SSLSocket, request: str) -> None:
    sock.sendall(_HEAD)
    with suppress(OSError):
        while True:
            sock.sendall(b"192.0.2.66\n" * 6000)


def trickle(sock: ssl.SSLSocket, request: str) -> None:
    sock.sendall(_HEAD)
    with suppress(OSError):
        while True:
            sock.sendall(b"#")
            time.sleep(0.05)


def cut(sock: ssl.SSLSocket, request: str) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n192.0.2.66\n")


class Hostile(NamedTuple):
    """`error`: in full. `format`, `select`: of the list."""

    answer: Answer
    error: str
    host: str = HOST
    format: Format = Format.TEXT
    select: tuple[str, ...] = ()


_NOT_GLOBAL = "which is no network of the Internet"
CASES = {
    "endless": Hostile(endless, "the document is larger than 16 MiB"),
    "announced as huge": Hostile(ok(b"", Content_Length=str(1 << 40)), "the document is larger than 16 MiB"),
    "a trickle": Hostile(trickle, "timed out"),
    "cut short": Hostile(cut, "the connection ended early"),
    "compressed": Hostile(
        ok(b"\x1f\x8b", Content_Encoding="gzip"), "the document is compressed, which was not asked for"
    ),
    "a redirect to itself": Hostile(redirect("#again"), "the redirects lead in a circle"),
    "redirects in a circle": Hostile(redirect("/circle"), "the redirects lead in a circle"),
    "a redirect to another after the other": Hostile(redirect("/hop/1"), "more than 3 redirects"),
    "a redirect to http": Hostile(redirect(f"http://{HOST}/opening"), "redirect to http:// refused"),
    "a redirect to a file": Hostile(redirect("file:///etc/passwd"), "redirect to file:// refused"),
    "a redirect to whom nobody vouches for": Hostile(
        redirect(url("/opening", OTHER_CA)), "certificate verify failed: unable to get local issuer certificate"
    ),
    "all of IPv4": Hostile(ok("0.0.0.0/0"), "held back: 0.0.0.0/0 is wider than /8"),
    "all of IPv6": Hostile(ok("::/0"), "held back: ::/0 is wider than /19"),
    "half of IPv4, as 128 networks": Hostile(ok(_EIGHTS), "held back: 0.0.0.0/1 is wider than /8"),
    "no UTF-8": Hostile(ok(b"192.0.2.66\n\xff\xfe"), "the document is not UTF-8 (byte 11)"),
    "private": Hostile(ok("192.168.7.0/24"), f"held back: 192.168.7.0/24 overlaps 192.168.0.0/16, {_NOT_GLOBAL}"),
    "of Qubes OS": Hostile(ok("10.137.0.0/24"), f"held back: 10.137.0.0/24 overlaps 10.0.0.0/8, {_NOT_GLOBAL}"),
    "of Qubes OS, IPv6": Hostile(
        ok("fd09:24ef:4179::/64"), f"held back: fd09:24ef:4179::/64 overlaps fc00::/7, {_NOT_GLOBAL}"
    ),
    "loopback": Hostile(ok("127.0.0.1"), f"held back: 127.0.0.1/32 overlaps 127.0.0.0/8, {_NOT_GLOBAL}"),
    "IPv4 in IPv6": Hostile(ok("::ffff:0:0/96"), 'line 1: "::ffff:0:0/96" is not an address or network'),
    "another authority": Hostile(
        OPENING, "certificate verify failed: unable to get local issuer certificate", OTHER_CA
    ),
    "another name": Hostile(
        OPENING,
        f"certificate verify failed: Hostname mismatch, certificate is not valid for '{WRONG_NAME}'.",
        WRONG_NAME,
    ),
    "too old": Hostile(OPENING, "certificate verify failed: certificate has expired", TOO_OLD),
    "empty": Hostile(ok(""), "there is no address in it"),
    "a page that says sorry": Hostile(
        ok("<html><h1>Sorry</h1> 192.0.2.66"),
        'line 1: "<html><h1>Sorry</h1> 192.0.2.66" is not an address or network',
    ),
    "not modified since we did not ask": Hostile(answer("304 Not Modified"), "HTTP status 304 (Not Modified)"),
    "another key": Hostile(
        ok('{"hosts": ["192.0.2.66"]}'), 'there is no address at "git"', HOST, Format.JSON, ("git",)
    ),
    "a key with nothing in it": Hostile(ok('{"git": []}'), 'there is no address at "git"', HOST, Format.JSON, ("git",)),
    "deep": Hostile(ok("[" * 1_000_000), "not JSON that can be read: it is nested too deeply", HOST, Format.JSON),
    "tables in tables": Hostile(ok("<table>" * 1_500_000), "tables are nested too deeply", HOST, Format.HTML_TABLE),
    "status 500": Hostile(answer("500 Oops", "192.0.2.66"), "HTTP status 500 (Internal Server Error)"),
    "nobody listens": Hostile(OPENING, "connection refused", NOBODY),
    "no such name": Hostile(OPENING, "the name does not resolve", NO_NAME),
    "tenfold": Hostile(ok(_GROWN), "held back: it grew from 1 to 127 IPv4 networks at once"),
}


def good(name: str) -> str:
    """What is on the list that was in force before."""
    return f"203.0.113.{64 + list(CASES).index(name)}"


def source_of(name: str) -> Source:
    case = CASES[name]
    return Source(url(f"/{name.replace(' ', '-')}", case.host), case.format, case.select)


class Met(NamedTuple):
    """What was left when all lists had been asked for twice."""

    world: World
    feeds: dict[str, dict[str, Any]]
    said: list[str]


@pytest.fixture(scope="module")
def met() -> Iterator[Met]:
    with feed_server.make(PATIENCE, [good(name) for name in CASES]) as world, ExitStack() as stack:
        for address in ("0.0.0.0", EVIL6):
            stack.enter_context(Server(world.lab, address, PORT, echo))
        world.lab.end_service()
        profiles = {}
        for number, (name, case) in enumerate(CASES.items()):
            source = source_of(name)
            world.keep(Cached(source.id, str(source), "", "", LONG_AGO, [f"{good(name)}/32"]))
            world.server.lists[f"/{name.replace(' ', '-')}"] = case.answer
            select = f", select: {list(case.select)}" if case.select else ""
            profiles[f"p{number}"] = f"feeds: [{{url: '{source.url}', format: {case.format}{select}}}]\n"
        world.server.lists |= {"/circle": redirect("/redirects-in-a-circle"), "/opening": OPENING}
        world.server.lists |= {f"/hop/{number}": redirect(f"/hop/{number + 1}") for number in range(1, 9)}
        world.configure(profiles)
        world.start()
        assert eventually(lambda: all(feed["error"] for feed in world.feeds()), 60)
        feeds = {feed["source"]: feed for feed in world.refresh()}
        yield Met(world, feeds, list(world.said))


@pytest.mark.parametrize("name", CASES)
def test_what_was_in_force_stays_and_nothing_else_opens_and_it_is_told(met: Met, name: str) -> None:
    source, told = source_of(name), met.feeds[str(source_of(name))]
    assert (told["error"], told["networks"], told["checked"]) == (CASES[name].error, 1, LONG_AGO)
    assert met.world.holds(source) == {f"{good(name)}/32"}
    assert met.world.reaches(good(name))
    assert [line for line in met.said if line.startswith(f"feed {source}: ")] == [
        f"feed {source}: {CASES[name].error}; the last good list stays"
    ]


def test_nothing_that_was_offered_is_open(met: Met) -> None:
    assert not met.world.reaches(EVIL4)
    assert not met.world.reaches(EVIL6)
    assert not met.world.reaches_by_udp(EVIL4)


def test_the_command_shows_them_all(met: Met) -> None:
    shown = met.world.lab.ask("status").stdout
    for name, case in CASES.items():
        (line,) = (line for line in shown.splitlines() if line.split()[:1] == [source_of(name).url])
        assert case.error in line


def test_a_list_that_grew_tenfold_is_in_force_once_it_is_accepted_and_no_other(met: Met) -> None:
    assert {feed["source"]: feed["held_back"] for feed in met.feeds.values() if feed["held_back"]} == {
        str(source_of("tenfold")): 127
    }
    feeds = {feed["source"]: feed for feed in met.world.refresh(accept=True)}
    told = feeds.pop(str(source_of("tenfold")))
    assert (told["error"], told["networks"], told["held_back"]) == ("", 127, 0)
    assert met.world.reaches(EVIL4)
    assert all(feed["networks"] == 1 for feed in feeds.values())
