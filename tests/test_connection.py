"""Where a connection is dialled, and what is asked of the policy before; and which ones outlive a new policy."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from proxyfw import reach as module
from proxyfw.connection import Connection, Ends, Entry, Request
from proxyfw.core.address import IPAddress
from proxyfw.core.clients import Member
from proxyfw.core.config import Config
from proxyfw.core.flow import Flow, NameSource, Protocol
from proxyfw.core.hostname import Hostname
from proxyfw.core.policy import Policy, build
from proxyfw.core.profile import link, parse_profile
from proxyfw.core.qubes_rules import parse_rules
from proxyfw.core.upstreamproxy import UpstreamProxy, parse_upstream_proxy
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict
from proxyfw.edge.logdb import Row
from proxyfw.edge.poller import Stream
from proxyfw.edge.resolver import Addresses
from proxyfw.proxy import _may_go_on, _still_permitted

AIMED, REAL, DEAD, SIX = map(ip_address, ("192.0.2.1", "192.0.9.1", "192.0.9.9", "2001:db8::1"))
GRANTED = ip_address("192.0.8.1")
WEB, DROPPED, OTHER = map(Hostname, ("web.example", "b.example", "z.example"))
B = "action=drop dsthost=b.example"


def policy(*rules: str, observe: bool = False, dns_all: bool = False, away: UpstreamProxy | None = None) -> Policy:
    profile, _ = parse_profile("web", "web", "domains: [web.example]\nnetworks: [192.0.8.1]\n")
    assert profile is not None
    library, _ = link({"web": profile})
    found = parse_rules({"policy": "drop", **{f"{number:04}": rule for number, rule in enumerate(rules)}})
    work = Member("work", ("web",), observe, dns_all, addresses=(ip_address("10.137.0.11"),), rules={4: found})
    return build(Config({}), library, (), [replace(work, upstream_proxy=away)])


def flow(name: Hostname) -> Flow:
    return Flow("work", Protocol.TLS, AIMED, 443, name, NameSource.SNI)


class Net:
    """Stands in for the network: who answers, what a name resolves to, and what the client was told of AIMED."""

    def __init__(self, told: Sequence[Hostname] = (), answer: Addresses = (REAL,)) -> None:
        self.told, self.answer = tuple(told), answer
        self.dialled: list[IPAddress] = []

    async def dial(self, addresses: Sequence[IPAddress], *_: object) -> Stream:
        self.dialled += addresses
        if DEAD in addresses:
            raise ConnectionRefusedError(111, "Connection refused")
        stream = Stream.__new__(Stream)
        stream.peer = str(addresses[0])
        return stream

    def may_look_up(self, *_: object, **__: object) -> bool:
        return True

    def names(self, *_: object) -> tuple[Hostname, ...]:
        return self.told

    def holds(self, _: str, address: IPAddress, name: Hostname) -> bool:
        return address == AIMED and name in self.told

    def cached(self, _: Hostname) -> Addresses:
        return self.answer


def asked(name: Hostname, port: int = 443) -> Flow:
    return Flow("work", Protocol.CONNECT, None, port, name, NameSource.CONNECT)


def connect(monkeypatch: pytest.MonkeyPatch, own: Policy, net: Net, to: Hostname | Flow) -> Verdict:
    """The verdict at the end of the connection's attempt to reach a server."""
    monkeypatch.setattr(module, "dial", net.dial)
    poller = SimpleNamespace(loop=SimpleNamespace(time=lambda: 0.0))
    shared: Any = SimpleNamespace(policy=own, pins=net, resolver=net, poller=poller, may_look_up=net.may_look_up)
    client: Any = None
    ends = Ends("work", "10.137.0.11", AIMED, str(AIMED), 443)
    made = Connection(client, ends, shared, lambda _: True, lambda _: None)
    verdict, server, _ = asyncio.run(module.reach(made, to if isinstance(to, Flow) else flow(to)))
    assert (server is None) == (isinstance(verdict, Deny) and not verdict.observed)
    return verdict


def test_in_observe_mode_a_false_name_does_not_lead_to_an_address_of_a_dropped_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net([DROPPED])
    verdict = connect(monkeypatch, policy(B, observe=True), net, OTHER)
    assert verdict == Deny(Reason.QUBES_RULE, f"qubes 0000: {B}")
    assert net.dialled == []


def test_in_observe_mode_what_no_rule_drops_is_dialled_where_the_client_aimed(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net([OTHER])
    assert connect(monkeypatch, policy(B, observe=True), net, OTHER) == Deny(Reason.NO_MATCH, observed=True)
    assert net.dialled == [AIMED]


def test_an_accepted_address_is_not_dialled_under_a_false_name_either(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net([DROPPED])
    verdict = connect(monkeypatch, policy(B, "action=accept dst4=192.0.2.1"), net, OTHER)
    assert (verdict.reason, verdict.rule) == (Reason.QUBES_RULE, f"qubes 0000: {B}")
    assert net.dialled == []


def test_a_granted_name_is_dialled_at_its_own_addresses_whatever_the_client_was_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net([DROPPED])
    assert isinstance(connect(monkeypatch, policy(B), net, WEB), Allow)
    assert net.dialled == [REAL]


def test_where_these_do_not_answer_observe_mode_turns_to_where_the_client_aimed_and_not_past_a_drop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net(answer=(DEAD,))
    assert connect(monkeypatch, policy(B, observe=True), net, WEB).reason is Reason.UNREACHABLE
    assert net.dialled == [DEAD, AIMED]
    net = Net([DROPPED], answer=(DEAD,))
    assert connect(monkeypatch, policy(B, observe=True), net, WEB) == Deny(Reason.QUBES_RULE, f"qubes 0000: {B}")
    assert net.dialled == [DEAD]


@pytest.mark.parametrize("observe", [False, True], ids=["enforced", "observed"])
def test_a_name_whose_addresses_are_all_dropped_is_refused_by_that_rule(
    monkeypatch: pytest.MonkeyPatch, observe: bool
) -> None:
    net = Net()
    drop = "action=drop dst4=192.0.9.0/24"
    assert connect(monkeypatch, policy(drop, observe=observe), net, WEB) == Deny(
        Reason.QUBES_RULE, f"qubes 0000: {drop}"
    )
    assert net.dialled == []


def test_a_family_without_rules_is_not_dialled_for_a_client_that_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(answer=(SIX, REAL))
    assert isinstance(connect(monkeypatch, policy(), net, WEB), Allow)
    assert net.dialled == [REAL]
    net = Net(answer=(SIX,))
    assert connect(monkeypatch, policy(), net, WEB).reason is Reason.QUBES_RULE
    assert net.dialled == []


PRIVATE = ip_address("10.1.2.3")


@pytest.mark.parametrize(
    ("own", "name", "answer", "verdict", "dialled"),
    [
        pytest.param(policy(), WEB, (REAL,), Reason.DOMAIN, [REAL], id="a granted name"),
        pytest.param(policy(), OTHER, (REAL,), Reason.NO_MATCH, [], id="a name that nothing grants is not looked up"),
        pytest.param(
            policy(dns_all=True),
            OTHER,
            (DEAD, GRANTED),
            Reason.NETWORK,
            [GRANTED],
            id="an address of it that is granted",
        ),
        pytest.param(policy(dns_all=True), OTHER, (DEAD,), Reason.NO_MATCH, [], id="no address of it that is granted"),
        pytest.param(policy(), WEB, (PRIVATE,), Reason.PRIVATE_ADDRESS, [], id="a granted name at a private address"),
        pytest.param(
            policy(dns_all=True), WEB, (PRIVATE,), Reason.PRIVATE_ADDRESS, [], id="the same where all names resolve"
        ),
        pytest.param(policy(B), DROPPED, (REAL,), Reason.QUBES_RULE, [], id="a name that a Qubes rule drops"),
        pytest.param(
            policy("action=drop dst4=192.0.9.0/24"), WEB, (REAL,), Reason.QUBES_RULE, [], id="its address is dropped"
        ),
        pytest.param(
            policy("action=accept dst4=192.0.9.9", dns_all=True),
            OTHER,
            (AIMED, DEAD),
            Reason.UNREACHABLE,
            [DEAD],
            id="an address of it that a Qubes rule accepts",
        ),
        pytest.param(
            policy("action=accept dst4=10.137.0.12/32", dns_all=True),
            OTHER,
            (ip_address("10.137.0.12"),),
            Reason.NO_MATCH,
            [],
            id="a neighbour that a Qubes rule names: only the kernel leads there",
        ),
        pytest.param(
            policy("action=accept proto=tcp dstports=443-443"),
            WEB,
            (SIX,),
            Reason.PRIVATE_ADDRESS,
            [],
            id="an accept by port alone, and only a family without rules",
        ),
        pytest.param(policy(observe=True), OTHER, (AIMED,), Reason.NO_MATCH, [AIMED], id="observed: any address of it"),
        pytest.param(
            policy(observe=True),
            OTHER,
            (ip_address("127.0.0.1"),),
            Reason.INTERNAL_ADDRESS,
            [],
            id="observed: not an internal address",
        ),
    ],
)
def test_where_a_name_is_asked_for_leads(
    monkeypatch: pytest.MonkeyPatch,
    own: Policy,
    name: Hostname,
    answer: tuple[IPAddress, ...],
    verdict: Reason,
    dialled: list[IPAddress],
) -> None:
    net = Net(answer=answer)
    monkeypatch.setattr(module, "dial", net.dial)
    poller = SimpleNamespace(loop=SimpleNamespace(time=lambda: 0.0))
    shared: Any = SimpleNamespace(policy=own, pins=net, resolver=net, poller=poller, may_look_up=net.may_look_up)
    client: Any = None
    made = Connection(client, Ends("work", "10.137.0.11", None, "", 3128), shared, lambda _: True, lambda _: None)
    reached = asyncio.run(module.reach(made, asked(name)))
    assert (reached.verdict.reason, net.dialled) == (verdict, dialled)
    assert reached.to == (dialled[0] if reached.server is not None else None)


def entry(name: Hostname, reached: IPAddress, by_name: bool) -> Entry:
    row = Row(destination=str(reached))
    return Entry(flow(name), row, 0.0, by_name)


DROP_REAL = "action=drop dst4=192.0.9.0/24"


@pytest.mark.parametrize(
    ("rules", "name", "reached", "by_name", "lives"),
    [
        pytest.param([], OTHER, AIMED, False, "observed", id="a name that nothing grants"),
        pytest.param([B], OTHER, AIMED, False, "", id="under it, the address of a name that is dropped now"),
        pytest.param([B, "action=accept dst4=192.0.2.1"], OTHER, AIMED, False, "", id="though the address is accepted"),
        pytest.param(["action=accept dst4=192.0.2.1", B], OTHER, AIMED, False, "both", id="accepted before that"),
        pytest.param([B], WEB, REAL, True, "both", id="a granted name at an address of its own"),
        pytest.param([DROP_REAL], WEB, REAL, True, "", id="which is dropped now"),
        pytest.param([], WEB, AIMED, False, "observed", id="a granted name where the client aimed"),
        pytest.param([], OTHER, REAL, True, "observed", id="at an address of its own, a name that nothing grants now"),
        pytest.param(["action=accept dst4=192.0.2.1"], OTHER, REAL, True, "observed",
                     id="nor does it go where the address is accepted by now"),
        pytest.param(["action=accept dst4=192.0.9.0/24"], OTHER, REAL, True, "both",
                     id="but where it goes, the address is accepted"),
    ],
)  # fmt: skip
def test_what_outlives_a_new_policy(
    rules: list[str], name: Hostname, reached: IPAddress, by_name: bool, lives: str
) -> None:
    found = entry(name, reached, by_name)
    assert _still_permitted(policy(*rules), found, [DROPPED]) is (lives == "both")
    assert _still_permitted(policy(*rules, observe=True), found, [DROPPED]) is (lives in ("both", "observed"))


def test_a_mapped_address_is_not_the_names_own_once_the_upstream_proxy_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net([WEB])
    mapped_to = ip_address("198.18.7.7")
    monkeypatch.setattr(net, "holds", lambda *_: True)
    monkeypatch.setattr(module, "dial", net.dial)
    poller = SimpleNamespace(loop=SimpleNamespace(time=lambda: 0.0))
    shared: Any = SimpleNamespace(policy=policy(), pins=net, resolver=net, poller=poller, may_look_up=net.may_look_up)
    client: Any = None
    ends = Ends("work", "10.137.0.11", mapped_to, str(mapped_to), 443)
    made = Connection(client, ends, shared, lambda _: True, lambda _: None)
    reached = asyncio.run(module.reach(made, flow(WEB)._replace(destination=mapped_to)))
    assert (reached.verdict.reason, net.dialled) == (Reason.DOMAIN, [REAL])


def test_an_address_that_was_told_for_a_dropped_name_is_not_reached_by_asking_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net([DROPPED], answer=(GRANTED,))
    verdict = connect(monkeypatch, policy(B, dns_all=True), net, asked(OTHER))
    assert (verdict, net.dialled) == (Deny(Reason.NO_MATCH), [])
    assert isinstance(connect(monkeypatch, policy(B, dns_all=True), Net(answer=(GRANTED,)), asked(OTHER)), Allow)


def test_a_neighbour_that_a_rule_names_is_not_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    neighbour, net = ip_address("10.137.0.12"), Net()
    to = Flow("work", Protocol.SOCKS, neighbour, 22)
    verdict = connect(monkeypatch, policy("action=accept dst4=10.137.0.12/32"), net, to)
    assert (verdict.reason, net.dialled) == (Reason.INTERNAL_ADDRESS, [])


AWAY = parse_upstream_proxy("socks5://192.0.2.9:1080")


def living(
    policy_then: Policy, request: Flow | None, entry: Entry | None, at: IPAddress | None, net: Net
) -> Connection:
    """A connection as it stands while a new policy comes."""
    poller = SimpleNamespace(loop=SimpleNamespace(time=lambda: 0.0))
    shared: Any = SimpleNamespace(policy=policy_then, pins=net, poller=poller)
    client: Any = None
    made = Connection(
        client, Ends("work", "10.137.0.11", at, str(at or ""), 443), shared, lambda _: True, lambda _: None
    )
    made.request = Request(request, "", policy_then.decide(request)) if request is not None else None
    made.entry = entry
    return made


def entry_of(to: Flow, reached: str, by_name: bool) -> Entry:
    return Entry(to, Row(destination=reached), 0.0, by_name)


TO_GRANTED = Flow("work", Protocol.CONNECT, GRANTED, 443, OTHER, NameSource.CONNECT)
BY_URL = Flow("work", Protocol.HTTP, GRANTED, 80)
BY_URL_NAME = Flow("work", Protocol.HTTP, None, 80, OTHER, NameSource.HOST)
WEB_ASKED = asked(WEB)


@pytest.mark.parametrize(
    ("then", "now", "request_", "entry", "at", "told", "goes_on"),
    [
        pytest.param(policy(), policy(), WEB_ASKED, None, REAL, [], True, id="nothing has changed"),
        pytest.param(policy(), Policy([], ()), WEB_ASKED, None, REAL, [], False, id="the client is gone"),
        pytest.param(policy(), policy(away=AWAY), WEB_ASKED, None, REAL, [], False, id="all leaves by a proxy now"),
        pytest.param(
            policy(away=AWAY), policy(), WEB_ASKED, entry_of(flow(WEB), "", True), None, [], False, id="none does now"
        ),
        pytest.param(
            policy(away=AWAY), Policy([], ()), WEB_ASKED, entry_of(flow(WEB), "", True), None, [], False,
            id="the client is gone, and what was reached is not known",
        ),
        pytest.param(
            policy(), policy("action=drop dsthost=web.example"), WEB_ASKED, None, REAL, [], False,
            id="the name asked for is dropped",
        ),
        pytest.param(policy(), policy(B), TO_GRANTED, None, GRANTED, [], True, id="an address that is granted"),
        pytest.param(policy(), policy(B), TO_GRANTED, None, GRANTED, [DROPPED], False, id="it is a dropped name's too"),
        pytest.param(
            policy(), policy(B), None, entry_of(BY_URL, str(GRANTED), False), None, [], True, id="by a URL's address"
        ),
        pytest.param(
            policy(), policy(B), None, entry_of(BY_URL, str(GRANTED), False), None, [DROPPED], False,
            id="by a URL's address, which is a dropped name's too",
        ),
        pytest.param(
            policy(), policy(B), None, entry_of(BY_URL_NAME, str(GRANTED), False), None, [DROPPED], False,
            id="by a URL's name that leads there",
        ),
    ],
)  # fmt: skip
def test_what_goes_on_under_a_new_policy(
    then: Policy,
    now: Policy,
    request_: Flow | None,
    entry: Entry | None,
    at: IPAddress | None,
    told: list[Hostname],
    goes_on: bool,
) -> None:
    made = living(then, request_, entry, at, Net(told))
    assert _may_go_on(made, then, now) is goes_on
