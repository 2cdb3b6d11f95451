"""Who the clients are just now: the configuration and what Qubes OS tells, put together, with every doubt refused."""

from ipaddress import ip_address

import pytest

from proxyfw.core.address import IPAddress
from proxyfw.core.clients import Member, members
from proxyfw.core.config import Config, parse_config
from proxyfw.core.netvm import Attached, Netvm, Qube, World, read_netvm
from proxyfw.core.qubes_rules import RuleSet, parse_rules

PROFILES = ("a", "b", "c")
ACCEPT, DROP = parse_rules({"policy": "accept"}), parse_rules({"policy": "drop"})


def addresses(text: str) -> tuple[IPAddress, ...]:
    return tuple(map(ip_address, text.split()))


def config(text: str) -> Config:
    parsed, problems = parse_config("proxyfw.yaml", text)
    assert parsed is not None, problems
    return parsed


def netvm(connected: str, held: dict[str, str] | None = None, rules: str | None = None) -> Netvm:
    """Addresses that are connected, each with rules that drop; `rules`: those that have rules, where not all have."""
    return Netvm(
        rules=dict.fromkeys(addresses(connected if rules is None else rules), DROP),
        connected=frozenset(addresses(connected)),
        profiles={name: tuple(text.split()) for name, text in (held or {}).items()},
    )


def attached(*qubes: str) -> Attached:
    """Each `name addresses... tag:x... elsewhere`, the last where its netvm is another."""
    found = []
    for text in qubes:
        name, *words = text.split()
        tags = frozenset(word.removeprefix("tag:") for word in words if word.startswith("tag:"))
        own = addresses(" ".join(word for word in words if not word.startswith("tag:") and word != "elsewhere"))
        found.append(Qube(name, own, tags, here="elsewhere" not in words))
    return Attached(tuple(found))


def found(text: str, world: World) -> tuple[dict[str, Member], list[str]]:
    clients, notes = members(config(text), PROFILES, world)
    by_name = {client.name: client for client in clients}
    assert len(by_name) == len(clients)
    held = [address for client in clients for address in client.addresses]
    assert len(set(held)) == len(held), "an address is two clients'"
    return by_name, notes


def where(clients: dict[str, Member]) -> dict[str, str]:
    return {name: " ".join(map(str, client.addresses)) for name, client in clients.items()}


WORK = "clients: {work: [a]}"
TAGGED = "clients: {'tag:x': [a]}"
FIXED = "clients: {work: {profiles: [a], address: [10.137.0.11]}}"


@pytest.mark.parametrize(
    ("text", "world", "wanted"),
    [
        pytest.param(FIXED, World(), {"work": "10.137.0.11"}, id="not on Qubes: the configured address"),
        pytest.param(WORK, World(), {"work": ""}, id="not on Qubes, and none is configured"),
        pytest.param(FIXED, World(netvm("10.137.0.11")), {"work": "10.137.0.11"}, id="a configured address, connected"),
        pytest.param(FIXED, World(netvm("10.137.0.12")), {"work": ""}, id="a configured address, not connected"),
        pytest.param(FIXED, World(netvm("10.137.0.11", rules="")), {"work": ""}, id="connected, and without rules yet"),
        pytest.param(FIXED, World(netvm("", rules="10.137.0.11")), {"work": ""}, id="rules, and not connected yet"),
        pytest.param(WORK, World(netvm("10.137.0.11"), attached("work 10.137.0.11")), {"work": "10.137.0.11"},
                     id="an address that dom0 tells"),
        pytest.param(WORK, World(netvm("10.137.0.11"), attached("work 10.137.0.11 elsewhere")), {"work": ""},
                     id="dom0 shows it, and it is not attached"),
        pytest.param(FIXED, World(netvm("10.137.0.11"), attached("work 10.137.0.11 elsewhere")),
                     {"work": "10.137.0.11"}, id="a configured address, connected before dom0 was asked again"),
        pytest.param(TAGGED, World(netvm("10.137.0.11"), attached("new 10.137.0.11 tag:x elsewhere")),
                     {}, id="one with a listed tag that is not attached"),
        pytest.param(WORK, World(netvm("10.137.0.12"), attached("work 10.137.0.12", "a 10.137.0.11", "b 10.137.0.11")),
                     {"work": "10.137.0.12"}, id="two others have one address, and it is not connected"),
        pytest.param(WORK, World(netvm("10.137.0.11")), {"work": ""}, id="nobody told its address yet"),
        pytest.param(WORK, World(netvm("10.137.0.11 fd09::b"), attached("work 10.137.0.11 fd09::b")),
                     {"work": "10.137.0.11 fd09::b"}, id="both families"),
        pytest.param(WORK, World(netvm("10.137.0.11"), attached("work 10.137.0.11 fd09::b")),
                     {"work": "10.137.0.11"}, id="one of two connected"),
        pytest.param(WORK, World(None, attached("work 10.137.0.11")), {"work": "10.137.0.11"},
                     id="names without QubesDB"),
        pytest.param("clients: {work: [a], play: [b]}",
                     World(netvm("10.137.0.11 10.137.0.12"), attached("play 10.137.0.11", "work 10.137.0.12")),
                     {"work": "10.137.0.12", "play": "10.137.0.11"}, id="two clients"),
        pytest.param("clients: {}", World(netvm("10.137.0.11"), attached("work 10.137.0.11")), {},
                     id="who is not listed is no client"),
    ],
)  # fmt: skip
def test_where_the_clients_are(text: str, world: World, wanted: dict[str, str]) -> None:
    clients, notes = found(text, world)
    assert where(clients) == wanted
    assert notes == []


def test_a_client_that_is_shown_another_address_comes_from_the_real_one() -> None:
    snapshot = read_netvm(
        {
            "/connected-ips": b"192.168.7.9",
            "/mapped-ip/10.137.0.11/visible-ip": b"192.168.7.9",
            "/qubes-firewall/10.137.0.11/policy": b"accept",
        }
    )
    clients, _ = found(WORK, World(snapshot, attached("work 10.137.0.11")))
    assert where(clients) == {"work": "10.137.0.11"}
    assert clients["work"].rules == {4: ACCEPT}


@pytest.mark.parametrize(
    ("text", "qubes", "wanted", "note"),
    [
        pytest.param(FIXED, ["play 10.137.0.11"], {"work": ""},
                     '"work": 10.137.0.11 is the address of "play", as dom0 says: refused',
                     id="the configured address is another one's"),
        pytest.param(FIXED, ["work 10.137.0.12", "play 10.137.0.11"], {"work": ""},
                     '"work": 10.137.0.11 is the address of "play", as dom0 says: refused',
                     id="though it is attached elsewhere"),
        pytest.param("clients: {play: {profiles: [a], address: 10.137.0.11}, work: [b]}", ["work 10.137.0.11"],
                     {"play": "", "work": "10.137.0.11"},
                     '"play": 10.137.0.11 is the address of "work", as dom0 says: refused',
                     id="both are listed: dom0 knows better"),
        pytest.param("clients: {work: [a], play: [b]}", ["work 10.137.0.11", "play 10.137.0.11"],
                     {"work": "", "play": ""}, "10.137.0.11 is the address of work and play, as dom0 says: refused",
                     id="dom0 tells one address of two"),
        pytest.param(FIXED, ["work 10.137.0.12"], {"work": ""},
                     '"work": 10.137.0.11 is not its address, as dom0 says: refused', id="dom0 tells another address"),
        pytest.param(FIXED, ["play 10.137.0.11 elsewhere"], {"work": ""},
                     '"work": 10.137.0.11 is the address of "play", as dom0 says: refused',
                     id="the configured address is one's that is not attached"),
        pytest.param(WORK, ["work 10.137.0.11", "play 10.137.0.11 elsewhere"], {"work": ""},
                     "10.137.0.11 is the address of work and play, as dom0 says: refused",
                     id="dom0 tells one address of two, one of them not attached"),
        pytest.param(FIXED, ["play 10.137.0.12"], {"work": "10.137.0.11"}, None,
                     id="dom0 does not show it: the configuration is believed"),
    ],
)  # fmt: skip
def test_an_address_in_doubt_is_refused_and_told(
    text: str, qubes: list[str], wanted: dict[str, str], note: str | None
) -> None:
    clients, notes = found(text, World(netvm("10.137.0.11 10.137.0.12"), attached(*qubes)))
    assert where(clients) == wanted
    assert notes == ([note] if note else [])


TAGS = """\
clients:
  work: {profiles: [a]}
  "tag:x": {profiles: [b, a]}
  "tag:y": {profiles: [c], mode: observe, dns: all}
  "tag:z": {profiles: [], mode: observe, dns: all}
"""


@pytest.mark.parametrize(
    ("qube", "profiles", "observe", "dns_all"),
    [
        pytest.param("new tag:x", "b a", False, False, id="one tag"),
        pytest.param("new tag:y", "c", True, True, id="one tag in observe mode"),
        pytest.param("new tag:y tag:x", "b a c", False, False, id="two tags: profiles add up, the strictest mode"),
        pytest.param("new tag:y tag:z", "c", True, True, id="two tags in observe mode"),
        pytest.param("work tag:y", "a c", False, False, id="listed by name as well: its own mode"),
        pytest.param("work tag:x", "a b", False, False, id="each profile once"),
        pytest.param("work tag:other", "a", False, False, id="a tag that is not listed"),
    ],
)
def test_clients_by_tag(qube: str, profiles: str, observe: bool, dns_all: bool) -> None:
    name, *tags = qube.split()
    world = World(netvm("10.137.0.11"), attached(" ".join([name, "10.137.0.11", *tags])))
    clients, notes = found(TAGS, world)
    client = clients[name]
    assert (client.profiles, client.observe, client.dns_all) == (tuple(profiles.split()), observe, dns_all)
    assert where(clients) == {"work": "", name: "10.137.0.11"}
    assert (client.exact, notes) == (False, [])


def test_observe_mode_by_name_is_not_lifted_by_a_tag() -> None:
    text = 'clients: {work: {profiles: [a], mode: observe, dns: all}, "tag:x": [b]}'
    clients, _ = found(text, World(netvm("10.137.0.11"), attached("work 10.137.0.11 tag:x")))
    assert (clients["work"].profiles, clients["work"].observe, clients["work"].dns_all) == (("a", "b"), True, True)


def test_a_qube_with_no_listed_tag_is_no_client() -> None:
    clients, _ = found(TAGS, World(netvm("10.137.0.11"), attached("new 10.137.0.11 tag:other")))
    assert where(clients) == {"work": ""}


@pytest.mark.parametrize(
    ("text", "held", "qubes", "wanted", "profiles"),
    [
        pytest.param(WORK, {"work": "b c"}, ["work 10.137.0.11"], {"work": "10.137.0.11"}, "b c",
                     id="in place of the file's"),
        pytest.param(WORK, {"work": ""}, ["work 10.137.0.11"], {"work": "10.137.0.11"}, "", id="none at all"),
        pytest.param("clients: {}", {"work": "b"}, ["work 10.137.0.11"], {"work": "10.137.0.11"}, "b",
                     id="a client that the file does not list"),
        pytest.param("clients: {}", {"work": "b"}, [], {"work": ""}, "b", id="whose address nobody tells"),
        pytest.param("clients: {}", {"10.137.0.11": "b"}, [], {"10.137.0.11": "10.137.0.11"}, "b",
                     id="by its address, which needs no Admin API"),
        pytest.param("clients: {}", {"10.137.0.11": "b"}, ["work 10.137.0.11"], {"10.137.0.11": "10.137.0.11"}, "b",
                     id="by its address, whatever its name"),
        pytest.param("clients: {}", {"10.137.0.12": "b"}, [], {"10.137.0.12": ""}, "b",
                     id="by an address that is not connected"),
        pytest.param(TAGS, {"work": "c"}, ["work 10.137.0.11 tag:x"], {"work": "10.137.0.11"}, "c",
                     id="in place of what tags add"),
    ],
)  # fmt: skip
def test_profiles_that_dom0_holds(
    text: str, held: dict[str, str], qubes: list[str], wanted: dict[str, str], profiles: str
) -> None:
    clients, notes = found(text, World(netvm("10.137.0.11", held), attached(*qubes)))
    assert where(clients) == wanted
    assert next(iter(clients.values())).profiles == tuple(profiles.split())
    assert notes == []


def test_profiles_that_dom0_holds_do_not_attach_a_client() -> None:
    clients, _ = found(
        "clients: {}", World(netvm("10.137.0.11", {"work": "b"}), attached("work 10.137.0.11 elsewhere"))
    )
    assert where(clients) == {"work": ""}


def test_a_profile_that_dom0_holds_and_that_does_not_exist_is_left_out_and_told() -> None:
    clients, notes = found(WORK, World(netvm("10.137.0.11", {"work": "b zzz"}), attached("work 10.137.0.11")))
    assert clients["work"].profiles == ("b",)
    assert notes == ['"work": dom0 names the profile "zzz", which does not exist']


def test_a_client_that_dom0_holds_by_name_and_by_address_is_the_one_with_the_name() -> None:
    world = World(netvm("10.137.0.11", {"10.137.0.11": "b"}), attached("work 10.137.0.11"))
    clients, notes = found(WORK, world)
    assert where(clients) == {"work": "10.137.0.11", "10.137.0.11": ""}
    assert notes == ['"10.137.0.11": 10.137.0.11 is "work" already: refused']


def test_rules_go_with_the_address_of_each_family() -> None:
    world = World(
        Netvm(
            rules=dict(zip(addresses("10.137.0.11 fd09::b 10.137.0.12"), (DROP, ACCEPT, ACCEPT), strict=True)),
            connected=frozenset(addresses("10.137.0.11 fd09::b 10.137.0.12")),
        ),
        attached("work 10.137.0.11 fd09::b"),
    )
    assert found(WORK, world)[0]["work"].rules == {4: DROP, 6: ACCEPT}
    assert found(FIXED, World())[0]["work"].rules == {}


def test_two_addresses_of_one_family_with_different_rules_close_it() -> None:
    both = addresses("10.137.0.11 10.137.0.12")
    text = "clients: {work: {profiles: [a], address: [10.137.0.11, 10.137.0.12]}}"
    different = World(Netvm(rules=dict(zip(both, (DROP, ACCEPT), strict=True)), connected=frozenset(both)))
    broken = RuleSet(broken="two IPv4 addresses have different firewall rules")
    assert found(text, different)[0]["work"].rules == {4: broken}
    same = World(Netvm(rules=dict.fromkeys(both, ACCEPT), connected=frozenset(both)))
    assert found(text, same)[0]["work"].rules == {4: ACCEPT}


UNLISTED = "unlisted: qubes\n"


@pytest.mark.parametrize(
    ("text", "world", "wanted"),
    [
        pytest.param("", World(netvm("10.137.0.11")), {"10.137.0.11": "10.137.0.11"}, id="without a name"),
        pytest.param("", World(netvm("10.137.0.11 fd09::b"), attached("new 10.137.0.11 fd09::b")),
                     {"new": "10.137.0.11 fd09::b"}, id="with a name: both addresses are one client"),
        pytest.param("", World(netvm("10.137.0.11 10.137.0.12")),
                     {"10.137.0.11": "10.137.0.11", "10.137.0.12": "10.137.0.12"}, id="two"),
        pytest.param("", World(netvm("10.137.0.11", rules="")), {}, id="without rules: not attached yet"),
        pytest.param("", World(netvm("", rules="10.137.0.11")), {}, id="not connected"),
        pytest.param("", World(None, attached("new 10.137.0.11")), {}, id="without QubesDB there are no rules"),
        pytest.param(FIXED, World(netvm("10.137.0.11 10.137.0.12")),
                     {"work": "10.137.0.11", "10.137.0.12": "10.137.0.12"}, id="beside a listed one with an address"),
        pytest.param(WORK, World(netvm("10.137.0.11 10.137.0.12"), attached("work 10.137.0.11", "new 10.137.0.12")),
                     {"work": "10.137.0.11", "new": "10.137.0.12"}, id="beside a listed one that dom0 tells of"),
        pytest.param(WORK, World(netvm("10.137.0.12"), attached("work 10.137.0.11 elsewhere")),
                     {"work": "", "10.137.0.12": "10.137.0.12"}, id="the listed one is shown, and not attached"),
        pytest.param(WORK, World(netvm("10.137.0.12"), attached("work elsewhere", "new 10.137.0.12 elsewhere")),
                     {"work": "", "10.137.0.12": "10.137.0.12"}, id="with a name that is not known to be here"),
        pytest.param(WORK, World(netvm("10.137.0.11"), attached("work 10.137.0.11 elsewhere")), {"work": ""},
                     id="a listed one that is not known to be here is not unlisted"),
        pytest.param(TAGGED, World(netvm("10.137.0.11"), attached("new 10.137.0.11 tag:x elsewhere")),
                     {}, id="nor is one with a listed tag"),
        pytest.param("", World(netvm("10.137.0.11", {"new": "b"}), attached("new 10.137.0.11 elsewhere")), {"new": ""},
                     id="nor one that dom0 holds profiles for"),
        pytest.param("", World(netvm("10.137.0.11 fd09::b", {"10.137.0.11": "b"}), attached("new 10.137.0.11 fd09::b")),
                     {"10.137.0.11": "10.137.0.11"}, id="nor the other address of one that dom0 calls by its address"),
        pytest.param("", World(netvm("10.137.0.11 10.137.0.12", {"10.137.0.11": "b"})),
                     {"10.137.0.11": "10.137.0.11", "10.137.0.12": "10.137.0.12"},
                     id="beside one that dom0 calls by its address"),
        pytest.param("", World(netvm("10.137.0.11 fd09::c", {"10.137.0.11": "b"}), attached("new 10.137.0.11")),
                     {"10.137.0.11": "10.137.0.11", "fd09::c": "fd09::c"},
                     id="of another version, beside one that dom0 calls by its address and shows"),
        pytest.param(WORK, World(netvm("10.137.0.12"), attached("new 10.137.0.12")),
                     {"work": "", "new": "10.137.0.12"}, id="with a name, while the listed one is not shown"),
        pytest.param(FIXED, World(netvm("10.137.0.12"), attached("work 10.137.0.12")), {"work": ""},
                     id="a listed one at another address than the configured one is not unlisted"),
    ],
)  # fmt: skip
def test_who_is_not_listed_gets_what_sys_firewall_gives(text: str, world: World, wanted: dict[str, str]) -> None:
    clients, notes = found(UNLISTED + text, world)
    assert where(clients) == wanted
    assert notes == []
    for name, client in clients.items():
        assert client.exact == (name != "work" and not client.profiles and bool(client.addresses))
        if client.exact:
            assert (client.profiles, client.observe, client.dns_all) == ((), False, False)
            assert client.rules.keys() == {address.version for address in client.addresses}


@pytest.mark.parametrize(
    ("text", "world", "wanted"),
    [
        pytest.param(WORK, World(netvm("10.137.0.11")), {"work": ""}, id="a listed client without an address"),
        pytest.param(WORK, World(netvm("10.137.0.11"), attached("other elsewhere")), {"work": ""},
                     id="that dom0 does not show"),
        pytest.param(WORK, World(netvm("10.137.0.11"), attached("other 10.137.0.11 elsewhere")), {"work": ""},
                     id="that dom0 does not show, where the address was another's that is not here"),
        pytest.param(TAGGED, World(netvm("10.137.0.11"), attached("other 10.137.0.11 elsewhere")), {},
                     id="a listed tag, where the address was another's that is not here"),
        pytest.param("", World(netvm("10.137.0.11", {"new": "b"})), {"new": ""}, id="one that dom0 holds profiles for"),
        pytest.param("", World(netvm("10.137.0.11", {"new": "b"}), attached("other elsewhere")), {"new": ""},
                     id="that it does not show"),
        pytest.param("clients: {work: {profiles: [a], address: 'fd09::b'}}", World(netvm("10.137.0.11 fd09::b")),
                     {"work": "fd09::b"}, id="a listed client whose IPv4 address nobody gives"),
        pytest.param("", World(netvm("10.137.0.11 fd09::b", {"fd09::b": "b"})), {"fd09::b": "fd09::b"},
                     id="one that dom0 calls by its other address"),
        pytest.param(TAGGED, World(netvm("10.137.0.11"), attached()), {}, id="a listed tag"),
        pytest.param(TAGGED, World(netvm("10.137.0.11 10.137.0.12"), attached("new 10.137.0.12")),
                     {"new": "10.137.0.12"}, id="a listed tag, beside one whose tags are known"),
    ],
)  # fmt: skip
def test_who_may_be_a_listed_client_is_refused_and_told(text: str, world: World, wanted: dict[str, str]) -> None:
    clients, notes = found(UNLISTED + text, world)
    assert where(clients) == wanted
    assert notes == [
        "10.137.0.11 is attached; it may be a listed qube whose name is not known: refused (tag it in dom0: "
        "qvm-tags QUBE add proxyfw, or give the listed qubes their addresses)"
    ]


def test_nobody_who_is_not_listed_is_a_client_where_the_configuration_denies_them() -> None:
    assert found(FIXED, World(netvm("10.137.0.11 10.137.0.12")))[0].keys() == {"work"}


def test_what_was_allowed_to_a_client_is_added_to_whatever_else_it_has() -> None:
    world = World(netvm("10.137.0.11 10.137.0.12 10.137.0.13", {"work": "b"}), attached(
        "work 10.137.0.11", "study 10.137.0.12 tag:x", "other 10.137.0.13"
    ))  # fmt: skip
    text = "clients: {work: [a], 'tag:x': [c]}\nunlisted: qubes\n"
    names = (*PROFILES, "allowed/work", "allowed/study", "allowed/other", "allowed/away")
    profiles = {client.name: client.profiles for client in members(config(text), names, world)[0]}
    assert profiles == {"work": ("b", "allowed/work"), "study": ("c", "allowed/study"), "other": ()}


ALL, OWN, FAR, FARTHER = (f"socks5://127.0.0.1:{port}" for port in (9050, 9051, 9052, 9053))
TAGGED = f"""\
clients:
  work: [a]
  own: {{profiles: [a], upstream_proxy: '{OWN}'}}
  "tag:far": {{profiles: [b], upstream_proxy: '{FAR}'}}
  "tag:farther": {{profiles: [c], upstream_proxy: '{FARTHER}'}}
  "tag:plain": [b]
unlisted: qubes
"""


def upstream(text: str, *qubes: str) -> tuple[dict[str, str], list[str]]:
    """By which proxy each leaves, and what is noted."""
    told = attached(*qubes)
    connected = " ".join(str(address) for qube in told.qubes for address in qube.addresses)
    clients, notes = found(text, World(netvm=netvm(connected), attached=told))
    proxies = {name: str(client.upstream_proxy or "") for name, client in clients.items()}
    return {name: proxies[name] for name in sorted(proxies)}, notes


@pytest.mark.parametrize(
    ("qube", "proxy"),
    [
        pytest.param("work 10.137.0.1", "", id="a client without one"),
        pytest.param("own 10.137.0.1", OWN, id="its own"),
        pytest.param("own 10.137.0.1 tag:far", OWN, id="its own, before a tag's"),
        pytest.param("work 10.137.0.1 tag:far", FAR, id="a tag's, of a client that is listed without one"),
        pytest.param("guest 10.137.0.1 tag:far", FAR, id="a tag's"),
        pytest.param("guest 10.137.0.1 tag:plain tag:far", FAR, id="one of two tags has one: it is not done without"),
        pytest.param("guest 10.137.0.1 tag:plain", "", id="a tag without one"),
    ],
)
def test_by_which_upstream_proxy_a_client_leaves(qube: str, proxy: str) -> None:
    name = qube.split()[0]
    proxies, notes = upstream(TAGGED, qube)
    assert (proxies[name], notes) == (proxy, [])
    proxies, notes = upstream(f"{TAGGED}upstream_proxy: {ALL}\n", qube)
    assert (proxies[name], notes) == (proxy or ALL, [])


def test_the_proxy_of_all_is_for_those_that_are_not_listed_too() -> None:
    proxies, _ = upstream(f"clients: {{work: {{profiles: [a], address: 10.137.0.1}}}}\nunlisted: qubes\n"
                          f"upstream_proxy: {ALL}\n", "guest 10.137.0.2")  # fmt: skip
    assert proxies["guest"] == ALL


def test_of_two_tags_with_different_proxies_the_first_counts_and_it_is_told() -> None:
    proxies, notes = upstream(TAGGED, "guest 10.137.0.1 tag:farther tag:far")
    assert proxies["guest"] == FAR
    assert notes == [f'"guest": its tags have several upstream proxies, {FAR} and {FARTHER}: it leaves by the first']
