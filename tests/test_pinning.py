"""The pins in memory, packet layer and file, kept in step; the packet layer is a double that notes what it is told."""

import asyncio
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

import pytest

from proxyfw import pinning
from proxyfw.core.address import IPAddress
from proxyfw.core.clients import Member
from proxyfw.core.config import parse_config
from proxyfw.core.hostname import Hostname
from proxyfw.core.netlink import attributes
from proxyfw.core.nftbatch import Change
from proxyfw.core.pins import MIN_LIFE
from proxyfw.core.policy import Policy, build
from proxyfw.core.profile import link, parse_profile
from proxyfw.core.qubes_rules import parse_rules
from proxyfw.core.ruleset import FLOWTABLE, PinnedHost
from proxyfw.edge.conntrack import Tracked
from proxyfw.edge.nft import NftError
from proxyfw.edge.pinstore import PinStore
from proxyfw.pinning import PinKeeper, TooManyOpen

CONFIG = """\
clients:
  work: {profiles: [p], address: [10.137.0.11, "fd09::11"]}
  other: {profiles: [p], address: 10.137.0.12}
dns: {upstream: [10.139.1.1]}
"""
TIME, MAIL = Hostname("time.example"), Hostname("mail.example")
FOUR, SIX = ip_address("192.0.2.1"), ip_address("2001:db8::1")


def policy(profile: str = 'domains: ["time.example:123/udp", "mail.example:25"]\n') -> Policy:
    parsed, problems = parse_profile("p", "p.yaml", profile)
    assert parsed is not None, problems
    config, _ = parse_config("proxyfw.yaml", CONFIG)
    assert config is not None
    return build(config, link({"p": parsed})[0], ())


class Packets:
    """Stands in for Nft: `told` holds the elements that were opened, `used` what the kernel says is in use."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.used: list[tuple[IPAddress, IPAddress, int, int]] = []
        self.fails = False
        self.flowtable = False
        self.changed = asyncio.Event()

    def change(self, changes: Iterable[Change]) -> None:
        if self.fails:
            raise NftError("no")
        self.changed.set()
        self.told += [text for change in changes for text in map(_in_words, change.elements) if "timeout" in text]

    def elements(self, _: object) -> list[tuple[IPAddress, IPAddress, int, int]]:
        return self.used

    def tables(self) -> frozenset[str]:
        return frozenset({FLOWTABLE} if self.flowtable else ())


def _in_words(element: bytes) -> str:
    """An element, as nft writes it."""
    ((_, body),) = attributes(element)
    values = dict(attributes(body))
    key = dict(attributes(values[1]))[1]
    size = 16 if len(key) > 12 else 4
    fields = [str(ip_address(key[at : at + size])) for at in range(0, min(len(key), 2 * size), size)]
    fields += [str(int.from_bytes(key[2 * size :][:2]))] if len(key) > 2 * size else []
    timeout = f" timeout {int.from_bytes(values[4]) // 1000}s" if 4 in values else ""
    return " . ".join(fields) + timeout


class Time:
    """The loop's time, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self._loop = asyncio.get_running_loop()
        monkeypatch.setattr(self._loop, "time", lambda: self.now)


def keeper(folder: Path, packets: Packets, loop: asyncio.AbstractEventLoop) -> PinKeeper:
    store = PinStore(folder / "pins.sqlite", loop.time)
    return PinKeeper(policy(), packets, packets, store, loop)  # type: ignore[arg-type]


def test_an_answer_opens_its_udp_ports_in_the_packet_layer_first(tmp_path: Path) -> None:
    async def test() -> None:
        packets = Packets()
        pins = keeper(tmp_path, packets, asyncio.get_running_loop())
        pins.learn("work", TIME, (FOUR, SIX), 60)
        pins.learn("work", MAIL, (FOUR,), 60)  # a TCP port: the proxy asks the pins
        assert packets.told == [
            "10.137.0.11 . 192.0.2.1 . 123 timeout 360s",
            "fd09::11 . 2001:db8::1 . 123 timeout 360s",
        ]
        assert pins.names("work", FOUR) == (MAIL, TIME)
        assert pins.names("other", FOUR) == ()
        await pins.stop()

    asyncio.run(test())


def test_where_the_packet_layer_refuses_nothing_is_pinned(tmp_path: Path) -> None:
    async def test() -> None:
        packets = Packets()
        packets.fails = True
        pins = keeper(tmp_path, packets, asyncio.get_running_loop())
        with pytest.raises(NftError):
            pins.learn("work", TIME, (FOUR,), 60)
        assert pins.names("work", FOUR) == ()
        await pins.stop()

    asyncio.run(test())


def test_the_packet_layer_is_told_again_only_when_it_must_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        packets = Packets()
        pins = keeper(tmp_path, packets, asyncio.get_running_loop())
        with monkeypatch.context() as patch:
            clock = Time(patch)
            pins.learn("work", TIME, (FOUR,), 0)
            clock.now += 59
            pins.learn("work", TIME, (FOUR,), 0)
            assert len(packets.told) == 1
            clock.now += 2
            pins.learn("work", TIME, (FOUR,), 0)
            assert len(packets.told) == 2
            pins.learn("work", TIME, (FOUR,), 3600)  # a longer life than it has
            assert packets.told[-1] == "10.137.0.11 . 192.0.2.1 . 123 timeout 3660s"
            pins.learn("other", TIME, (FOUR,), 0)
            assert len(packets.told) == 4
        await pins.stop()

    asyncio.run(test())


def test_one_client_opens_only_so_many_ports_and_another_one_still_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning, "MAX_OPEN", 10)

    async def test() -> None:
        packets = Packets()
        pins = keeper(tmp_path, packets, asyncio.get_running_loop())
        with monkeypatch.context() as patch:
            clock = Time(patch)
            many = [ip_address(f"192.0.2.{number}") for number in range(11)]
            pins.learn("work", TIME, many[:10], 0)
            with pytest.raises(TooManyOpen):
                pins.learn("work", TIME, many[10:], 0)
            pins.learn("other", TIME, many[10:], 0)
            clock.now += MIN_LIFE + 61  # the first have closed by themselves
            pins.learn("work", TIME, many[10:], 0)
            assert len(packets.told) == 12
        await pins.stop()

    asyncio.run(test())


def test_a_new_ruleset_has_open_what_the_pins_say_and_what_the_kernel_still_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        packets = Packets()
        pins = keeper(tmp_path, packets, asyncio.get_running_loop())
        with monkeypatch.context() as patch:
            clock = Time(patch)
            pins.learn("work", TIME, (FOUR,), 0)
            pins.learn("work", MAIL, (FOUR,), 0)
            pins.learn("other", TIME, (FOUR,), 0)
            clock.now += 200
            packets.used = [
                (ip_address("10.137.0.11"), FOUR, 123, 3500),
                (ip_address("10.137.0.99"), FOUR, 123, 3500),
            ]
            ports = pins.ports(policy())
            assert {(str(port.client), port.port): seconds for port, seconds in ports.items()} == {
                ("10.137.0.11", 123): 3560,
                ("10.137.0.12", 123): 360,
            }
            clock.now += 1000  # without the kernel's word it would be gone
            assert pins.names("work", FOUR) != ()
            assert pins.names("other", FOUR) == ()
        await pins.stop()

    asyncio.run(test())


def test_after_a_reload_the_ports_that_are_open_count_and_renewing_them_is_no_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning, "MAX_OPEN", 10)

    async def test() -> None:
        pins = keeper(tmp_path, Packets(), asyncio.get_running_loop())
        many = [ip_address(f"192.0.2.{number}") for number in range(11)]
        pins.learn("work", TIME, many[:10], 0)
        pins.ports(policy())
        pins.replaced(policy())
        pins.learn("work", TIME, many[:10], 3600)
        with pytest.raises(TooManyOpen):
            pins.learn("work", TIME, many[10:], 0)
        await pins.stop()

    asyncio.run(test())


@pytest.mark.parametrize(
    ("profile", "address"),
    [
        pytest.param('domains: ["time.example:123/udp"]\nnetworks: ["192.168.1.5:22"]\n', "192.168.1.5",
                     id="a network grants the address, on another port"),
        pytest.param('domains: ["time.example:123/udp"]\n', "10.137.0.12", id="another client"),
    ],
)  # fmt: skip
def test_no_port_is_opened_that_the_policy_refuses(tmp_path: Path, profile: str, address: str) -> None:
    async def test() -> None:
        packets = Packets()
        pins = keeper(tmp_path, packets, asyncio.get_running_loop())
        pins.policy = policy(profile=profile)
        pins.learn("work", TIME, (ip_address(address),), 60)
        assert packets.told == []
        assert pins.ports(pins.policy) == {}
        await pins.stop()

    asyncio.run(test())


def test_what_a_new_policy_does_not_permit_is_forgotten(tmp_path: Path) -> None:
    async def test() -> None:
        pins = keeper(tmp_path, Packets(), asyncio.get_running_loop())
        pins.learn("work", TIME, (FOUR,), 0)
        pins.learn("work", MAIL, (FOUR,), 0)
        without = policy('domains: ["mail.example:25"]\n')
        assert pins.ports(without) == {}
        pins.replaced(without)
        assert pins.names("work", FOUR) == (MAIL,)
        await pins.stop()

    asyncio.run(test())


def test_the_next_run_takes_the_pins_up(tmp_path: Path) -> None:
    async def first() -> None:
        pins = keeper(tmp_path, Packets(), asyncio.get_running_loop())
        pins.learn("work", MAIL, (FOUR, SIX), 0)
        await pins.stop()

    async def second() -> None:
        pins = keeper(tmp_path, Packets(), asyncio.get_running_loop())
        pins.restore()
        assert pins.names("work", SIX) == (MAIL,)
        assert {pin.address for pin, left in pins.of("work") if MIN_LIFE - 5 < left <= MIN_LIFE} == {FOUR, SIX}
        await pins.stop()

    asyncio.run(first())
    asyncio.run(second())


def test_what_a_flowtable_carries_past_the_sets_stays_open_where_a_pin_opened_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, other = ip_address("10.137.0.11"), ip_address("10.137.0.12")
    tracked = [
        Tracked(work, FOUR, "udp", 123, None),
        Tracked(work, FOUR, "udp", 124, None),  # no pattern names it
        Tracked(work, FOUR, "tcp", 123, None),
        Tracked(other, FOUR, "udp", 123, None),  # it was not told the address
    ]

    async def flows(_: object) -> list[Tracked]:
        return tracked

    monkeypatch.setattr(pinning, "flows", flows)
    monkeypatch.setattr(pinning, "SWEEP", 0.0)

    async def test() -> None:
        packets = Packets()
        packets.flowtable = True
        pins = keeper(tmp_path, packets, asyncio.get_running_loop())
        pins.learn("work", TIME, (FOUR,), 60)
        packets.told.clear()
        packets.changed.clear()
        pins.start()
        await asyncio.wait_for(packets.changed.wait(), 5)
        assert packets.told[0] == "10.137.0.11 . 192.0.2.1 . 123 timeout 3600s"
        assert set(packets.told) == {packets.told[0]}
        assert [seconds > 3000 for _, seconds in pins.of("work")] == [True]
        await pins.stop()

    asyncio.run(test())


def test_the_addresses_of_a_host_that_a_qubes_rule_names_stay_open_while_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning, "SWEEP", 0.0)
    rules = parse_rules({"policy": "drop", "0000": "action=accept dsthost=vpn.example proto=udp"})
    member = Member("work", addresses=(ip_address("10.137.0.11"),), rules={4: rules})
    config, _ = parse_config("proxyfw.yaml", CONFIG)
    assert config is not None
    ruled = build(config, link({})[0], (), [member])

    async def test() -> None:
        packets = Packets()
        store = PinStore(tmp_path / "pins.sqlite", asyncio.get_running_loop().time)
        pins = PinKeeper(ruled, packets, packets, store, asyncio.get_running_loop())  # type: ignore[arg-type]
        pins.learn("work", Hostname("vpn.example"), (FOUR, SIX), 60)
        pins.learn("work", MAIL, (FOUR,), 60)
        assert packets.told == ["192.0.2.1 timeout 360s"]
        assert list(pins.ports(ruled)) == [PinnedHost("host-0-0a4", FOUR)]
        packets.told.clear()
        packets.changed.clear()
        packets.used = [(ip_address("10.137.0.11"), FOUR, 51820, 3590)]
        pins.start()
        await asyncio.wait_for(packets.changed.wait(), 5)
        assert [told.split()[0] for told in packets.told] == ["192.0.2.1"]
        assert 3600 < int(packets.told[0].rpartition(" ")[2].rstrip("s")) <= 3660
        await pins.stop()

    asyncio.run(test())
