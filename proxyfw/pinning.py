"""The pins, kept in step in three places: memory, the packet layer (the UDP ports that they open), and a file."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from proxyfw.core.address import IPAddress
from proxyfw.core.flow import Flow, Protocol
from proxyfw.core.hostname import Hostname
from proxyfw.core.pins import MIN_LIFE, Pin, Pins
from proxyfw.core.policy import Policy
from proxyfw.core.ruleset import FLOWTABLE, USED_LIFE, USED_SETS, Pinned, PinnedHost, UsedPort, open_pinned, pinned
from proxyfw.core.upstreamproxy import is_mapped, mapped
from proxyfw.core.verdict import Allow, Reason
from proxyfw.edge.conntrack import ConntrackError, Tracked, flows
from proxyfw.edge.nft import Nft, NftError
from proxyfw.edge.pinstore import PinStore

SWEEP = 30.0  # seconds between two looks at what the kernel still uses, and what has run out
SAVE = 1.0  # seconds that a change waits for others before it is written
MAX_OPEN = 4096  # UDP ports that one client has open
MAX_OPEN_IN_ALL = 60_000  # the sets of the packet layer take a few more
_SLACK = 60.0  # seconds that the kernel keeps one longer, so that not every answer has to tell it


class TooManyOpen(Exception):
    """The client has as many UDP ports open as it may."""


class PinKeeper:
    """What the relay teaches and the proxy asks. `policy`: the one in force."""

    def __init__(self, policy: Policy, nft: Nft, reader: Nft, store: PinStore, loop: asyncio.AbstractEventLoop) -> None:
        self.policy = policy
        self.pins = Pins()
        self._nft = nft
        self._reader = reader  # for another thread
        self._store = store
        self._loop = loop
        self._open: dict[str, dict[Pinned, float]] = {}  # by client; until when, on the loop's clock
        self._planned: dict[str, dict[Pinned, float]] = {}  # the same of the latest `ports`
        self._saving: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def store_error(self) -> str:
        """Why pins cannot be kept over a restart; "" while they can."""
        return self._store.last_error

    def restore(self) -> None:
        """Takes up the pins of the last run, with what the kernel has kept in use meanwhile."""
        self.pins.restore(self._store.load())
        self._hear(self._reader.elements(USED_SETS))

    def start(self) -> None:
        """Begins to sweep, once the ruleset is in force."""
        self.replaced(self.policy)
        self._sweeper = self._loop.create_task(self._sweep())

    async def stop(self) -> None:
        """Writes what is not written yet."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._stopping.set()
        if self._saving is not None:
            await self._saving
        self._store.save(*self.pins.changed())
        self._store.close()

    def learn(self, client: str, name: Hostname, addresses: Iterable[IPAddress], ttl: float) -> None:
        """The client is about to be told these addresses. Raises TooManyOpen, NftError: then it must not be."""
        addresses = tuple(addresses)
        now = self._loop.time()
        if self.policy.opens_by_pin(client, name):
            self._open_pinned(client, name, addresses, max(ttl, MIN_LIFE), now)
        self.pins.learn(client, name, addresses, ttl, now)
        self._save_soon()

    def _open_pinned(
        self, client: str, name: Hostname, addresses: tuple[IPAddress, ...], life: float, now: float
    ) -> None:
        opened = self._open.setdefault(client, {})
        ports = list(pinned(self.policy, client, name, addresses))
        wanted = [port for port in ports if opened.get(port, 0.0) < now + life]
        if not wanted:
            return
        if not self._has_room(opened, wanted):
            for held in self._open.values():
                for port in [port for port, until in held.items() if until <= now]:
                    del held[port]
            if not self._has_room(opened, wanted):
                raise TooManyOpen
        self._nft.change(open_pinned(wanted, int(life + _SLACK)))
        opened.update(dict.fromkeys(wanted, now + life + _SLACK))

    def _has_room(self, opened: dict[Pinned, float], wanted: list[Pinned]) -> bool:
        more = sum(port not in opened for port in wanted)
        in_all = sum(map(len, self._open.values()))
        return len(opened) + more <= MAX_OPEN and in_all + more <= MAX_OPEN_IN_ALL

    def names(self, client: str, address: IPAddress) -> tuple[Hostname, ...]:
        """The names that the client was told this address for, the latest first."""
        return self.pins.names(client, address, self._loop.time())

    def holds(self, client: str, address: IPAddress, name: Hostname) -> bool:
        """Whether the client was told this address for this name."""
        return self.pins.holds(client, address, name, self._loop.time())

    def use(self, client: str, address: IPAddress) -> None:
        """A connection to the address begins: its pins live on."""
        self.pins.use(client, address)

    def release(self, client: str, address: IPAddress) -> None:
        """That connection has ended."""
        self.pins.release(client, address, self._loop.time())

    def of(self, client: str) -> list[tuple[Pin, float]]:
        """The live pins of a client, and for how many seconds each still lives (0: while its connection does)."""
        now = self._loop.time()
        return [(pin, max(pin.until - now, 0.0)) for pin in self.pins.of(client, now)]

    def count(self) -> dict[str, int]:
        """How many live pins each client has."""
        return self.pins.count(self._loop.time())

    def ports(self, policy: Policy) -> dict[Pinned, int]:
        """What a new ruleset, for this policy, must have open from the start, and for how many seconds."""
        self._hear(self._nft.elements(USED_SETS))  # not the reader: the sweep's thread may be at it
        now = self._loop.time()
        self._planned = {}
        in_all = 0
        for pin in self.pins.all(now):
            opened = self._planned.setdefault(pin.client, {})
            until = max(pin.until, now + MIN_LIFE) + _SLACK
            for port in pinned(policy, pin.client, pin.name, (pin.address,)):
                if port in opened:
                    opened[port] = max(opened[port], until)
                elif len(opened) < MAX_OPEN and in_all < MAX_OPEN_IN_ALL:
                    opened[port] = until
                    in_all += 1
        return {port: int(until - now) for opened in self._planned.values() for port, until in opened.items()}

    def replaced(self, policy: Policy) -> None:
        """A new policy is in force, and its ruleset, with what `ports` gave: what it does not permit is forgotten.

        A client that is not there keeps its pins for when it is back: it has no other use of them, and who it is may
        only not be known yet. One that is known by its address alone does not: it may be another qube next time. What
        stood for a name, while there was an upstream proxy, is nothing without one.
        """
        before, self.policy = self.policy, policy
        exact = {client.name for client in before.clients.values() if client.exact}

        def keeps(client: str, name: Hostname) -> bool:
            if client not in policy.clients:
                return client not in exact
            # What a rule drops does not resolve any more: where it was, the rule must still be able to tell.
            return policy.rules_ask_for(client, name) or policy.may_resolve(client, name)

        def stands(client: str, name: Hostname, address: IPAddress) -> bool:
            return not is_mapped(address) or address != mapped(name) or policy.upstream_proxy_of(client) is not None

        self.pins.keep(keeps, stands)
        self._open = self._planned
        self._save_soon()

    def _hear(self, used: Iterable[tuple[IPAddress, IPAddress, int, int]]) -> None:
        """What the kernel says is used, without us, lives on here as well."""
        now = self._loop.time()
        for source, destination, _, seconds in used:
            client = self.policy.client_at(str(source))
            if client is not None:
                self.pins.extend(client, destination, now + seconds)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            try:
                await self._sweep_once()
            except (OSError, ValueError, KeyError, NftError, ConntrackError) as error:
                # What runs out early must not end the sweeping.
                context = {"message": "the sets of the packet layer could not be read", "exception": error}
                self._loop.call_exception_handler(context)
            self.pins.expire(self._loop.time())
            self._save_soon()

    async def _sweep_once(self) -> None:
        used, tables = await asyncio.to_thread(lambda: (self._reader.elements(USED_SETS), self._reader.tables()))
        self._hear(used)
        if FLOWTABLE in tables:
            self._hold_carried(used, await flows([a for c in self.policy.clients.values() for a in c.addresses]))
        self._renew_hosts()

    def _hold_carried(self, used: Iterable[tuple[IPAddress, IPAddress, int, int]], tracked: Iterable[Tracked]) -> None:
        """Packets in a flowtable pass by the sets: what the kernel tracks is in use, and what a pin opened stays so."""
        fresh = {(source, destination, port) for source, destination, port, left in used if left > USED_LIFE / 2}
        held, heard = [], []
        for flow in tracked:
            client = self.policy.client_at(str(flow.source))
            key = (flow.source, flow.destination, flow.port)
            if flow.protocol != "udp" or client is None or key in fresh:
                continue
            attempt = Flow(client, Protocol.UDP, flow.destination, flow.port)
            verdict = self.policy.decide_pinned(attempt, self.names(client, flow.destination))[1]
            if isinstance(verdict, Allow) and not isinstance(self.policy.decide(attempt), Allow):
                heard.append((*key, USED_LIFE))
                if verdict.reason is Reason.PIN:
                    held.append(UsedPort(*key))
        if held:
            self._nft.change(open_pinned(held, USED_LIFE))
        self._hear(heard)

    def _renew_hosts(self) -> None:
        """The addresses of hosts in Qubes firewall rules live on in the packet layer as long as their pins do here."""
        now = self._loop.time()
        for pin in self.pins.all(now):
            if self.policy.rules_ask_for(pin.client, pin.name):
                opened = self._open.setdefault(pin.client, {})
                found = pinned(self.policy, pin.client, pin.name, (pin.address,))
                late = [each for each in found if isinstance(each, PinnedHost) and opened.get(each, 0.0) < pin.until]
                if late:
                    self._nft.change(open_pinned(late, int(pin.until - now + _SLACK)))
                    opened.update(dict.fromkeys(late, pin.until + _SLACK))

    def _save_soon(self) -> None:
        if self._saving is None and not self._stopping.is_set():
            self._saving = self._loop.create_task(self._save())

    async def _save(self) -> None:
        try:
            while not self._stopping.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), SAVE)
                changed, deleted = self.pins.changed()
                if not changed and not deleted:
                    return
                await asyncio.to_thread(self._store.save, changed, deleted)
        finally:
            self._saving = None
