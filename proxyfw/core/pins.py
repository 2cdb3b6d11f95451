"""Pins: which names a client was told that an address has; by them a connection without a name of its own is judged.

Times are seconds on one steady clock. What a client can make grow is bounded by PER_CLIENT and its open connections.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from proxyfw.core.address import IPAddress
from proxyfw.core.hostname import Hostname

MIN_LIFE = 300.0  # seconds that a pin lives at least after the last answer, and after the last connection
PER_CLIENT = 4096  # pins of one client; then the oldest goes, one in use only when all are in use
NAMES = 64  # of one address that are asked about: more than that, only who means harm has resolved lately
STORE_STEP = 30.0  # seconds by which the life of a stored pin must grow before it is stored again


@dataclass(frozen=True, slots=True)
class Pin:
    """This client was told that this name has this address. It is live before `until`, and while it is in use."""

    client: str
    address: IPAddress
    name: Hostname
    until: float


@dataclass(eq=False, slots=True)  # a key by its identity: the hash of an address costs more than all else here
class _Held:
    client: str
    address: IPAddress
    name: Hostname
    until: float
    stored: float | None  # `until` in the store; None: it is not there

    def pin(self) -> Pin:
        return Pin(self.client, self.address, self.name, self.until)


class _Client:
    """The pins of one client, and the order in which they make room for others."""

    def __init__(self) -> None:
        self.by_address: dict[IPAddress, dict[Hostname, _Held]] = {}  # the name answered last is last
        self.by_name: dict[Hostname, dict[IPAddress, _Held]] = {}
        self.uses: dict[IPAddress, int] = {}  # open connections, also to addresses without a pin
        self.waiting: OrderedDict[_Held, None] = OrderedDict()  # in the order of their answers
        self.passed: OrderedDict[_Held, None] = OrderedDict()  # in use when due: passed over once, not each time

    def is_live(self, held: _Held, now: float) -> bool:
        return now < held.until or held.address in self.uses

    def answered(self, held: _Held) -> None:
        names = self.by_address.setdefault(held.address, {})
        names.pop(held.name, None)
        names[held.name] = held
        self.by_name.setdefault(held.name, {})[held.address] = held
        self.to_newest(held)

    def to_newest(self, held: _Held) -> None:
        self.passed.pop(held, None)
        self.waiting[held] = self.waiting.pop(held, None)

    def due(self) -> _Held:  # there must be one
        while self.waiting:
            held = next(iter(self.waiting))
            if held.address not in self.uses:
                return held
            self.passed[held] = self.waiting.pop(held)
        return next(iter(self.passed))


class Pins:
    """The pins of all clients."""

    def __init__(self) -> None:
        self._clients: defaultdict[str, _Client] = defaultdict(_Client)  # the configuration bounds their number
        self._nobody = _Client()  # stays empty
        self._unstored: dict[_Held, None] = {}
        self._gone: dict[tuple[str, IPAddress, Hostname], float] = {}  # still in the store, and until when there

    def learn(self, client: str, name: Hostname, addresses: Iterable[IPAddress], ttl: float, now: float) -> None:
        """The client gets this answer, good for `ttl` seconds: pinned that long, at least MIN_LIFE; never shortened."""
        until = now + max(ttl, MIN_LIFE)
        own = self._clients[client]
        for address in addresses:
            if held := own.by_address.get(address, {}).get(name):
                own.answered(held)
                self._prolong(held, until)
            else:
                self._unstored[self._add(own, Pin(client, address, name, until))] = None

    def names(self, client: str, address: IPAddress, now: float) -> tuple[Hostname, ...]:
        """The live names of an address, the latest answered first; at most NAMES of them."""
        own = self._clients.get(client, self._nobody)
        found = reversed(own.by_address.get(address, {}).items())
        return tuple(islice((name for name, held in found if own.is_live(held, now)), NAMES))

    def holds(self, client: str, address: IPAddress, name: Hostname, now: float) -> bool:
        """Whether there is such a live pin."""
        own = self._clients.get(client, self._nobody)
        held = own.by_address.get(address, {}).get(name)
        return held is not None and own.is_live(held, now)

    def of(self, client: str, now: float) -> tuple[Pin, ...]:
        """All live pins of a client."""
        own = self._clients.get(client, self._nobody)
        return tuple(held.pin() for held in (*own.waiting, *own.passed) if own.is_live(held, now))

    def all(self, now: float) -> tuple[Pin, ...]:
        """All live pins."""
        return tuple(pin for client in self._clients for pin in self.of(client, now))

    def count(self, now: float) -> dict[str, int]:
        """The number of live pins of each client that has any."""
        return {client: number for client in self._clients if (number := len(self.of(client, now)))}

    def use(self, client: str, address: IPAddress) -> None:
        """A connection to the address began: its pins, also later ones, live until it is released as often."""
        own = self._clients[client]
        own.uses[address] = own.uses.get(address, 0) + 1

    def release(self, client: str, address: IPAddress, now: float) -> None:
        """A connection ended. Its pins live MIN_LIFE at least, for the next one. Without a use it has no effect."""
        own = self._clients.get(client, self._nobody)
        count = own.uses.pop(address, 0)
        if count > 1:
            own.uses[address] = count - 1
        elif count == 1:
            for held in own.by_address.get(address, {}).values():
                self._prolong(held, now + MIN_LIFE)
                if held in own.passed:
                    own.to_newest(held)

    def extend(self, client: str, address: IPAddress, until: float) -> None:
        """Something outside still uses the address: its pins, also those run out, live at least until then."""
        for held in self._clients.get(client, self._nobody).by_address.get(address, {}).values():
            self._prolong(held, until)

    def keep(
        self,
        permitted: Callable[[str, Hostname], bool],
        stands: Callable[[str, Hostname, IPAddress], bool] = lambda *_: True,
    ) -> None:
        """A new policy: forget what it does not permit, and addresses that stand for their names no longer; in use or
        not.
        """
        for client, own in self._clients.items():
            kept = {name: permitted(client, name) for name in own.by_name}
            every = [held for pins in own.by_name.values() for held in pins.values()]
            for held in every:
                if not kept[held.name] or not stands(client, held.name, held.address):
                    self._forget(own, held)

    def expire(self, now: float) -> None:
        """Forget what has run out and is not in use; what is in use lives on, in the store too, should we be killed."""
        for client, own in list(self._clients.items()):
            for held in [held for address in own.uses for held in own.by_address.get(address, {}).values()]:
                self._prolong(held, now + MIN_LIFE)
            for held in [held for held in (*own.waiting, *own.passed) if not own.is_live(held, now)]:
                self._forget(own, held)
            if not own.by_address and not own.uses:
                del self._clients[client]

    def changed(self) -> tuple[list[Pin], list[Pin]]:
        """What to store, and what to delete from the store, since the last call."""
        unstored, self._unstored = self._unstored, {}
        gone, self._gone = self._gone, {}
        for held in unstored:
            held.stored = held.until
        return [held.pin() for held in unstored], [Pin(*key, until) for key, until in gone.items()]

    def restore(self, pins: Iterable[Pin]) -> None:
        """Pins of an earlier run, as the store has them: the oldest first, and before this run's first answer."""
        for pin in pins:
            own = self._clients[pin.client]
            held = own.by_address.get(pin.address, {}).get(pin.name) or self._add(own, pin)
            held.until, held.stored = max(held.until, pin.until), pin.until

    def _add(self, own: _Client, pin: Pin) -> _Held:
        while len(own.waiting) + len(own.passed) >= PER_CLIENT:
            self._forget(own, own.due())
        stored = self._gone.pop((pin.client, pin.address, pin.name), None)
        held = _Held(pin.client, pin.address, pin.name, pin.until, stored)
        own.answered(held)
        return held

    def _prolong(self, held: _Held, until: float) -> None:
        held.until = max(held.until, until)
        if held.stored is None or held.until - held.stored >= STORE_STEP:
            self._unstored[held] = None

    def _forget(self, own: _Client, held: _Held) -> None:
        own.waiting.pop(held, None)
        own.passed.pop(held, None)
        names, addresses = own.by_address[held.address], own.by_name[held.name]
        del names[held.name], addresses[held.address]
        if not names:
            del own.by_address[held.address]
        if not addresses:
            del own.by_name[held.name]
        self._unstored.pop(held, None)
        if held.stored is not None:
            self._gone[held.client, held.address, held.name] = held.stored
