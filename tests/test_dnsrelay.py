"""The relay for clients with an upstream proxy: nobody is asked, and what is told is pinned. All else: tests/lab."""

import asyncio
from collections.abc import Iterable
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import dns.message
import pytest
from dns.rcode import Rcode

from proxyfw.clientstatus import clients_status
from proxyfw.core.address import IPAddress
from proxyfw.core.clients import Member
from proxyfw.core.config import Config
from proxyfw.core.dnsanswer import Answer
from proxyfw.core.hostname import Hostname
from proxyfw.core.policy import Policy, build
from proxyfw.core.profile import link, parse_profile
from proxyfw.core.upstreamproxy import mapped, parse_upstream_proxy
from proxyfw.dnsrelay import Asked, DnsRelay
from proxyfw.edge.logdb import Row

PROXY = parse_upstream_proxy("socks5://me:secret@127.0.0.1:9050")
WEB, EVIL = Hostname("web.example"), Hostname("evil.example")
OWN, RESOLVER = "10.137.0.11", "10.139.1.1"


def policy(observe: bool = False, dns_all: bool = False, leaves: bool = True) -> Policy:
    profile, _ = parse_profile("p", "p.yaml", "domains: [web.example]\n")
    assert profile is not None
    proxy = PROXY if leaves else None
    member = Member("work", ("p",), observe, dns_all, (ip_address(OWN),), upstream_proxy=proxy)
    return build(Config({}), link({"p": profile})[0], (), [member])


class World:
    """What is around a relay. `pinned`: what clients were told; `rows`: what the log was; whoever is asked fails."""

    def __init__(self, own: Policy) -> None:
        self.pinned: list[tuple[str, Hostname, tuple[IPAddress, ...], float]] = []
        self.rows: list[Row] = []
        poller = SimpleNamespace(loop=SimpleNamespace(time=lambda: 0.0))
        pins = SimpleNamespace(learn=self._learn)
        log = SimpleNamespace(open_row=self.rows.append)
        shared: Any = SimpleNamespace(policy=own, resolver=self, poller=poller, pins=pins, log=log)
        shared.may_look_up = shared.charge = self.may_look_up
        self.shared = shared
        self.relay = DnsRelay(shared)
        self.asked: list[str] = []

    def _learn(self, client: str, name: Hostname, addresses: Iterable[IPAddress], ttl: float) -> None:
        self.pinned.append((client, name, tuple(addresses), ttl))

    def may_look_up(self, *_: object) -> bool:
        return True

    def known(self, _: object) -> None:
        self.asked.append("held?")

    async def find(self, question: Any, client: str) -> Answer:
        self.asked.append(question.name)
        return Answer(Rcode.NOERROR)

    def reply(self, name: str, kind: str = "A") -> dns.message.Message:
        query = dns.message.make_query(f"{name}.", kind)
        told = self.relay.reply(query.to_wire(), OWN, RESOLVER, udp=True)
        assert isinstance(told, bytes)
        return dns.message.from_wire(told)


@pytest.mark.parametrize(
    ("name", "own", "verdict"),
    [
        pytest.param(WEB, policy(), ("allow", "domain"), id="a name that is permitted"),
        pytest.param(EVIL, policy(dns_all=True), ("allow", "dns-all"), id="dns: all"),
        pytest.param(EVIL, policy(observe=True), ("observe", "no-match"), id="observe mode"),
    ],
)
def test_a_name_is_answered_by_its_mapped_address_and_nobody_is_asked(
    name: Hostname, own: Policy, verdict: tuple[str, str]
) -> None:
    world = World(own)
    reply = world.reply(name)
    assert reply.rcode() == Rcode.NOERROR
    assert [rrset.to_text() for rrset in reply.answer] == [f"{name}. 60 IN A {mapped(name)}"]
    assert world.pinned == [("work", name, (mapped(name),), 60)]
    assert world.asked == []
    assert [(row.verdict, row.reason) for row in world.rows] == [verdict]


@pytest.mark.parametrize("kind", ["AAAA", "HTTPS", "MX", "TXT", "SRV"])
def test_of_other_types_there_is_no_record(kind: str) -> None:
    world = World(policy())
    reply = world.reply(WEB, kind)
    assert (reply.rcode(), reply.answer, reply.authority) == (Rcode.NOERROR, [], [])
    assert (world.pinned, world.asked) == ([], [])


def test_a_name_that_is_refused_is_refused_as_ever() -> None:
    world = World(policy())
    assert world.reply(EVIL).rcode() == Rcode.NXDOMAIN
    assert (world.pinned, world.asked) == ([], [])
    assert [(row.verdict, row.reason) for row in world.rows] == [("deny", "no-match")]


def test_where_the_proxy_came_while_a_name_was_looked_up_its_addresses_are_not_told() -> None:
    world = World(policy(leaves=False))
    query = dns.message.make_query("web.example.", "A").to_wire()
    asked = world.relay.reply(query, OWN, RESOLVER, udp=True)
    assert isinstance(asked, Asked)
    world.shared.policy = policy()
    reply = dns.message.from_wire(asyncio.run(world.relay.look_up(asked)))
    assert [rrset.to_text() for rrset in reply.answer] == [f"web.example. 60 IN A {mapped(WEB)}"]


def test_status_tells_the_proxy_and_no_password() -> None:
    (told,) = clients_status(policy(), {}, {}, {})
    assert told["upstream_proxy"] == "socks5://127.0.0.1:9050"
    (told,) = clients_status(policy(leaves=False), {}, {}, {})
    assert told["upstream_proxy"] == ""
