"""Pins: what is live and for how long, what makes room, what the store is told. Times are seconds."""

import pickle
from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import proxyfw.core.pins as module
from proxyfw.core.address import IPAddress
from proxyfw.core.hostname import Hostname, normalise
from proxyfw.core.pins import MIN_LIFE, PER_CLIENT, Pin, Pins

A, B, C = map(ip_address, ("192.0.2.1", "192.0.2.2", "2001:db8::3"))
ONE, TWO, THREE = map(normalise, ("one.example", "two.example", "three.example"))


def pins(*answers: tuple[Hostname, IPAddress, float]) -> Pins:
    """Pins of the client `work`: each name had this address in an answer at this time, with a TTL below MIN_LIFE."""
    made = Pins()
    for name, address, now in answers:
        made.learn("work", name, [address], 60, now)
    return made


@pytest.fixture
def room_for_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PER_CLIENT", 3)


@pytest.mark.parametrize(
    ("ttl", "now", "live"),
    [
        pytest.param(60, 1299.9, True, id="a short TTL is raised to the least life"),
        pytest.param(60, 1300, False, id="which ends"),
        pytest.param(0, 1299, True, id="no TTL as well"),
        pytest.param(900, 1899, True, id="a longer TTL counts"),
        pytest.param(900, 1900, False, id="and ends"),
    ],
)
def test_how_long_an_answer_is_pinned(ttl: float, now: float, live: bool) -> None:
    made = Pins()
    made.learn("work", ONE, [A], ttl, 1000)
    assert made.holds("work", A, ONE, now) is live
    assert made.names("work", A, now) == ((ONE,) if live else ())
    assert len(made.of("work", now)) == len(made.all(now)) == made.count(now).get("work", 0) == live


@pytest.mark.parametrize(
    ("client", "address", "name"),
    [
        pytest.param("other", A, ONE, id="another client"),
        pytest.param("work", B, ONE, id="another address"),
        pytest.param("work", A, TWO, id="another name"),
        pytest.param("work", ip_address("::ffff:192.0.2.1"), ONE, id="an IPv6 address that stands for the IPv4 one"),
    ],
)
def test_what_is_not_pinned(client: str, address: IPAddress, name: Hostname) -> None:
    assert not pins((ONE, A, 0)).holds(client, address, name, 1)


def test_one_answer_with_several_addresses_and_two_names_of_one_address() -> None:
    made = Pins()
    made.learn("work", ONE, iter([A, C, A]), 60, 0)
    made.learn("work", TWO, [A], 60, 1)
    assert [pin.address for pin in made.of("work", 2) if pin.name == ONE] == [C, A]
    assert made.names("work", A, 2) == (TWO, ONE)
    assert set(made.of("work", 2)) == {Pin("work", A, ONE, 300), Pin("work", C, ONE, 300), Pin("work", A, TWO, 301)}


def test_an_answer_without_addresses_pins_nothing() -> None:
    made = Pins()
    made.learn("work", ONE, [], 60, 0)
    assert (made.all(0), made.count(0), made.changed()) == ((), {}, ([], []))


def test_the_name_answered_last_is_first() -> None:
    made = pins((ONE, A, 0), (TWO, A, 1), (THREE, A, 2), (ONE, A, 3))
    assert made.names("work", A, 4) == (ONE, THREE, TWO)


def test_a_later_answer_never_shortens_a_life() -> None:
    made = Pins()
    made.learn("work", ONE, [A], 9000, 0)
    made.learn("work", ONE, [A], 60, 1)
    assert made.of("work", 2) == (Pin("work", A, ONE, 9000),)


def test_clients_are_told_apart() -> None:
    made = pins((ONE, A, 0))
    made.learn("play", TWO, [A, B], 60, 0)
    assert (made.names("work", A, 1), made.names("play", A, 1)) == ((ONE,), (TWO,))
    assert made.count(1) == {"work": 1, "play": 2}
    assert {pin.client for pin in made.all(1)} == {"work", "play"}


# Connections


def test_a_pin_in_use_lives_and_then_for_the_least_life_after_the_last_connection() -> None:
    made = pins((ONE, A, 0), (ONE, B, 0))
    made.use("work", A)
    made.use("work", A)
    made.release("work", A, 900)
    made.expire(1000)
    assert made.holds("work", A, ONE, 1000)
    made.release("work", A, 1000)
    assert made.of("work", 1299) == (Pin("work", A, ONE, 1300),)
    assert made.of("work", 1300) == ()


def test_the_end_of_a_connection_never_shortens_a_life() -> None:
    made = Pins()
    made.learn("work", ONE, [A], 9000, 0)
    made.use("work", A)
    made.release("work", A, 1)
    assert made.of("work", 2) == (Pin("work", A, ONE, 9000),)


def test_a_name_learnt_during_a_connection_is_in_use_too() -> None:
    made = Pins()
    made.use("work", A)
    made.learn("work", ONE, [A], 60, 0)
    made.expire(1000)
    assert made.names("work", A, 1000) == (ONE,)


@pytest.mark.parametrize("client", [pytest.param("work", id="known"), pytest.param("other", id="unknown")])
def test_a_release_without_a_use_is_ignored(client: str) -> None:
    made = pins((ONE, A, 0))
    made.release(client, A, 200)
    made.use(client, A)
    made.release(client, A, 0)
    made.release(client, A, 200)
    assert made.of("work", 299) == (Pin("work", A, ONE, 300),)


def test_what_the_kernel_still_uses_is_extended_also_when_it_has_run_out() -> None:
    made = pins((ONE, A, 0), (TWO, A, 0), (ONE, B, 0))
    made.extend("work", A, 500)
    made.extend("work", A, 400)
    made.extend("work", C, 500)
    made.extend("other", A, 500)
    assert set(made.all(350)) == {Pin("work", A, ONE, 500), Pin("work", A, TWO, 500)}
    made.extend("work", A, 700)
    assert made.names("work", A, 600) == (TWO, ONE)
    made.expire(800)
    made.extend("work", A, 2000)
    assert made.all(800) == ()


def test_a_new_policy_ends_pins_also_those_in_use() -> None:
    made = pins((ONE, A, 0), (TWO, A, 0), (ONE, B, 0))
    made.learn("play", ONE, [A], 60, 0)
    made.use("work", A)
    asked: list[tuple[str, Hostname]] = []

    def permitted(client: str, name: Hostname) -> bool:
        asked.append((client, name))
        return (client, name) != ("work", ONE)

    made.keep(permitted)
    assert {(pin.client, pin.address, pin.name) for pin in made.all(1)} == {("work", A, TWO), ("play", A, ONE)}
    assert sorted(asked) == [("play", ONE), ("work", ONE), ("work", TWO)], "each name is asked for once"


# What makes room


def test_the_bound() -> None:
    made = Pins()
    addresses = [IPv4Address(0x01000000 + low) for low in range(PER_CLIENT + 1)]
    made.learn("work", ONE, addresses, 60, 0)
    made.learn("play", ONE, [A], 60, 0)
    assert made.count(1) == {"work": PER_CLIENT, "play": 1}
    assert not made.holds("work", addresses[0], ONE, 1)
    assert made.holds("work", addresses[1], ONE, 1)


@pytest.mark.usefixtures("room_for_three")
@pytest.mark.parametrize(
    ("again", "used", "released", "left"),
    [
        pytest.param([], [], [], [TWO, THREE], id="the oldest answer goes"),
        pytest.param([ONE], [], [], [ONE, THREE], id="an answer again makes it the newest"),
        pytest.param([], [A], [], [ONE, THREE], id="but not one in use"),
        pytest.param([], [A, B], [], [ONE, TWO], id="nor the second in use"),
        pytest.param([], [A, B, C], [], [TWO, THREE], id="unless all are in use"),
        pytest.param([], [A], [A], [TWO, THREE], id="use alone does not make it newer"),
    ],
)
def test_what_makes_room(
    again: list[Hostname], used: list[IPAddress], released: list[IPAddress], left: list[Hostname]
) -> None:
    made = pins((ONE, A, 0), (TWO, B, 1), (THREE, C, 2))
    for name in again:
        made.learn("work", name, [A], 60, 3)
    for address in used:
        made.use("work", address)
    for address in released:
        made.release("work", address, 3)
    made.learn("work", normalise("four.example"), [ip_address("192.0.2.4")], 60, 4)
    assert sorted(pin.name for pin in made.of("work", 5)) == sorted([*left, "four.example"])


@pytest.mark.usefixtures("room_for_three")
def test_one_passed_over_in_use_is_as_new_as_an_answer_once_it_is_released() -> None:
    made = pins((ONE, A, 0), (TWO, B, 1), (THREE, C, 2))
    made.use("work", A)
    made.learn("work", normalise("four.example"), [B], 60, 3)
    made.release("work", A, 4)
    held = []
    for name in ("five.example", "six.example", "seven.example"):
        made.learn("work", normalise(name), [B], 60, 5)
        held.append({pin.name.removesuffix(".example") for pin in made.of("work", 6)})
    assert held == [{"four", "one", "five"}, {"one", "five", "six"}, {"five", "six", "seven"}]


@pytest.mark.usefixtures("room_for_three")
def test_what_is_gone_takes_no_memory() -> None:
    made = Pins()
    sizes = []
    for number in range(1000, 1300):
        address, name = ip_address(f"192.0.2.{number % 100 + 100}"), normalise(f"{number}.example")
        made.learn("work", name, [address], 60, 0)
        made.use("work", address)
        made.release("work", address, 0)
        sizes.append(len(pickle.dumps(made)))
    assert sizes[-1] < sizes[2] + 20, "but for the length of numbers"
    made.expire(1000)
    assert len(pickle.dumps(made)) == len(pickle.dumps(Pins()))


# The store


def test_the_store_is_told_what_is_new_and_what_lives_half_a_minute_longer() -> None:
    made = pins((ONE, A, 0))
    assert made.changed() == ([Pin("work", A, ONE, 300)], [])
    assert made.changed() == ([], [])
    made.learn("work", ONE, [A], 60, 20)
    assert made.changed() == ([], [])
    made.learn("work", ONE, [A], 60, 29.9)
    assert made.changed() == ([], [])
    made.learn("work", ONE, [A], 60, 30)
    assert made.changed() == ([Pin("work", A, ONE, 330)], [])
    made.extend("work", A, 370)
    made.extend("work", A, 400)
    assert made.changed() == ([Pin("work", A, ONE, 400)], []), "once, as it is now"
    made.use("work", A)
    made.release("work", A, 200)
    assert made.changed() == ([Pin("work", A, ONE, 500)], [])


def test_the_store_is_told_what_is_gone_if_it_has_it() -> None:
    made = pins((ONE, A, 0))
    made.changed()
    made.learn("work", TWO, [A], 60, 0)
    made.keep(lambda client, name: False)
    assert made.changed() == ([], [Pin("work", A, ONE, 300)])
    assert made.changed() == ([], [])


def test_a_pin_that_went_and_came_back_is_stored_anew_and_not_deleted() -> None:
    made = Pins()
    made.learn("work", ONE, [A], 9000, 0)
    made.changed()
    made.keep(lambda client, name: False)
    made.learn("work", ONE, [A], 60, 1)
    assert made.changed() == ([Pin("work", A, ONE, 301)], [])


def test_and_when_it_goes_once_more_it_is_deleted() -> None:
    made = pins((ONE, A, 0))
    made.changed()
    for now in (1, 2):
        made.keep(lambda client, name: False)
        made.learn("work", ONE, [A], 60, now)
    made.keep(lambda client, name: False)
    store, delete = made.changed()
    assert (store, [(pin.client, pin.address, pin.name) for pin in delete]) == ([], [("work", A, ONE)])


@pytest.mark.usefixtures("room_for_three")
def test_what_the_store_never_had_takes_no_memory_once_it_is_gone() -> None:
    made = Pins()
    for number in range(50):
        made.learn("work", normalise(f"{number}.example"), [A], 60, 0)
    store, delete = made.changed()
    assert (len(store), delete) == (3, [])


def test_restored_pins_are_no_change() -> None:
    made = Pins()
    made.restore([Pin("work", A, ONE, 300), Pin("play", A, TWO, -5)])
    assert made.all(0) == (Pin("work", A, ONE, 300),)
    assert made.changed() == ([], [])
    made.extend("play", A, 100)
    assert made.names("play", A, 0) == (TWO,)
    assert made.changed() == ([Pin("play", A, TWO, 100)], [])
    made.expire(400)
    assert len(made.changed()[1]) == 2


def test_a_restored_pin_that_ran_out_is_forgotten() -> None:
    made = Pins()
    made.restore([Pin("work", A, ONE, -5)])
    made.expire(0)
    made.extend("work", A, 100)
    assert (made.all(0), made.changed()) == ((), ([], [Pin("work", A, ONE, -5)]))


def test_a_pin_restored_after_its_answer_keeps_the_longer_life() -> None:
    made = pins((ONE, A, 0), (TWO, A, 0))
    made.restore([Pin("work", A, ONE, 100), Pin("work", A, TWO, 900)])
    assert set(made.of("work", 1)) == {Pin("work", A, ONE, 300), Pin("work", A, TWO, 900)}


@pytest.mark.usefixtures("room_for_three")
def test_restoring_keeps_the_bound_and_the_newest() -> None:
    made = Pins()
    made.restore(Pin("work", A, normalise(f"{number}.example"), 300 + number) for number in range(5))
    assert made.names("work", A, 0) == ("4.example", "3.example", "2.example")
    store, delete = made.changed()
    assert (store, [pin.name for pin in delete]) == ([], ["0.example", "1.example"])


# Against a model

CLIENTS = ("work", "play")
ADDRESSES = (A, B, C)
NAMES = tuple(normalise(f"{number}.example") for number in range(4))
BOUND = 5
Key = tuple[str, IPAddress, Hostname]

clients = st.sampled_from(CLIENTS)
addresses = st.sampled_from(ADDRESSES)
names = st.sampled_from(NAMES)
ttls = st.sampled_from([0, 60, 310, 345, 1000])


class AgainstAList(RuleBasedStateMachine):
    """The model: a list of all clients' pins, the next to make room first, and what a store would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.pins = Pins()
        self.now = 0.0
        self.list: list[tuple[Key, float]] = []
        self.uses: list[tuple[str, IPAddress]] = []
        self.passed: list[Key] = []  # in use when they were due
        self.answers: list[Key] = []  # the latest of each key last
        self.store: dict[Key, float] = {}
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "PER_CLIENT", BOUND)

    def teardown(self) -> None:
        self.patch.undo()

    def in_use(self, key: Key) -> bool:
        return key[:2] in self.uses

    def put(self, key: Key, until: float) -> None:
        """To the newest place, with room made for it."""
        old = next((found for found in self.list if found[0] == key), None)
        if old is None:
            self.make_room(key[0])
        else:
            self.list.remove(old)
            until = max(until, old[1])
        self.passed = [passed for passed in self.passed if passed != key]
        self.list.append((key, until))
        self.answers = [*(answer for answer in self.answers if answer != key), key]

    def make_room(self, client: str) -> None:
        held = [key for key, _ in self.list if key[0] == client]
        if len(held) < BOUND:
            return
        waiting = [key for key in held if key not in self.passed]
        going = next((key for key in waiting if not self.in_use(key)), None)
        self.passed += waiting if going is None else waiting[: waiting.index(going)]
        going = going or next(key for key in self.passed if key[0] == client)
        self.drop({going})

    def drop(self, going: Iterable[Key]) -> None:
        self.list = [(key, until) for key, until in self.list if key not in going]
        self.passed = [key for key in self.passed if key not in going]

    def at_least(self, client: str, address: IPAddress, until: float) -> None:
        self.list = [(key, max(old, until) if key[:2] == (client, address) else old) for key, old in self.list]

    @initialize(
        stored=st.dictionaries(st.tuples(clients, addresses, names), st.floats(-100, 400, allow_nan=False), max_size=14)
    )
    def restore(self, stored: dict[Key, float]) -> None:
        self.store = dict(stored)
        self.pins.restore(Pin(*key, until) for key, until in stored.items())
        for key, until in stored.items():
            self.put(key, until)

    @rule(seconds=st.sampled_from([1, 29, 31, 150, 301, 2000]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(client=clients, name=names, found=st.lists(addresses, max_size=3), ttl=ttls)
    def learn(self, client: str, name: Hostname, found: list[IPAddress], ttl: float) -> None:
        self.pins.learn(client, name, found, ttl, self.now)
        for address in found:
            self.put((client, address, name), self.now + max(ttl, MIN_LIFE))

    @rule(client=clients, address=addresses)
    def use(self, client: str, address: IPAddress) -> None:
        self.pins.use(client, address)
        self.uses.append((client, address))

    @rule(client=clients, address=addresses)
    def release(self, client: str, address: IPAddress) -> None:
        self.pins.release(client, address, self.now)
        if (client, address) not in self.uses:
            return
        self.uses.remove((client, address))
        if (client, address) in self.uses:
            return
        self.at_least(client, address, self.now + MIN_LIFE)
        for key in [key for key in self.answers if key in self.passed and key[:2] == (client, address)]:
            self.passed.remove(key)
            self.list.append(self.list.pop([held for held, _ in self.list].index(key)))

    @precondition(lambda self: self.uses)
    @rule(data=st.data())
    def release_one_in_use(self, data: st.DataObject) -> None:
        self.release(*data.draw(st.sampled_from(self.uses)))

    @rule(client=clients, address=addresses, seconds=st.sampled_from([-10, 100, 500]))
    def extend(self, client: str, address: IPAddress, seconds: float) -> None:
        self.pins.extend(client, address, self.now + seconds)
        self.at_least(client, address, self.now + seconds)

    @rule(kept=st.sets(st.tuples(clients, names), min_size=4))
    def keep(self, kept: set[tuple[str, Hostname]]) -> None:
        self.pins.keep(lambda client, name: (client, name) in kept)
        self.drop({key for key, _ in self.list if (key[0], key[2]) not in kept})

    @rule()
    def expire(self) -> None:
        self.pins.expire(self.now)
        for client, address in set(self.uses):
            self.at_least(client, address, self.now + MIN_LIFE)
        self.drop({key for key, until in self.list if until <= self.now and not self.in_use(key)})

    @rule()
    def changed(self) -> None:
        store, delete = self.pins.changed()
        for pin in delete:
            assert (pin.client, pin.address, pin.name) in self.store, "only what is stored is deleted"
            del self.store[pin.client, pin.address, pin.name]
        held = dict(self.list)
        for pin in store:
            key = (pin.client, pin.address, pin.name)
            assert pin.until == held[key]
            self.store[key] = pin.until
        assert self.store.keys() == held.keys()
        assert all(held[key] - until < module.STORE_STEP for key, until in self.store.items())

    @invariant()
    def what_is_live(self) -> None:
        live = {key: until for key, until in self.list if until > self.now or self.in_use(key)}
        assert set(self.pins.all(self.now)) == {Pin(*key, until) for key, until in live.items()}
        for client in CLIENTS:
            own = {key: until for key, until in live.items() if key[0] == client}
            assert set(self.pins.of(client, self.now)) == {Pin(*key, until) for key, until in own.items()}
            assert self.pins.count(self.now).get(client, 0) == len(own) <= BOUND
            for address in ADDRESSES:
                latest_first = tuple(key[2] for key in reversed(self.answers) if key in own and key[1] == address)
                assert self.pins.names(client, address, self.now) == latest_first
                assert all(
                    self.pins.holds(client, address, name, self.now) == ((client, address, name) in live)
                    for name in NAMES
                )


AgainstAList.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_it_agrees_with_a_list = AgainstAList.TestCase
