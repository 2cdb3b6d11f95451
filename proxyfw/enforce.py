"""The packet layer, put in force and kept there: our own table, and our place beside those of a Qubes netvm."""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

from proxyfw.core.address import IPAddress
from proxyfw.core.flow import Flow, Protocol
from proxyfw.core.policy import Policy
from proxyfw.core.ruleset import INBOUND_SETS, OURS, TABLE, beside_qubes, render
from proxyfw.core.verdict import Reason, is_refused
from proxyfw.edge import files
from proxyfw.edge.conntrack import ConntrackError, Tracked, delete, flows
from proxyfw.edge.nft import Nft, NftError
from proxyfw.edge.nftwatch import NftWatch
from proxyfw.pinning import PinKeeper

UNLOGGED, UNASKED = "unlogged", "queries_dropped"  # the counters of the skeleton
_FAMILIES = ("ip", "ip6")
_REPLACED = tuple(f"{family} qubes-firewall" for family in _FAMILIES)
_GATHER = 0.2  # seconds between two looks at what others have changed


class EnforceError(Exception):
    """The packet layer could not be changed; what was in force stays."""


class Enforcer:
    """The only one who changes the ruleset, but for the pins. `say`: tells a person."""

    def __init__(self, nft: Nft, say: Callable[[str], None]) -> None:
        self._nft = nft
        self._say = say
        self._watch = NftWatch()
        self._own_rules = self._beside = False
        self._settled = (
            False  # what is beside our table is as it was left: `_tables`, and `_lacking` of our rules there
        )
        self._tables: frozenset[str] = frozenset()
        self._lacking: list[tuple[str, str]] = []
        self._before: dict[str, int] = {}  # what the counters said at the start
        self._policy: Policy | None = None
        self._unseen = False
        self._looking: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def close_first(self) -> None:
        """Fail closed: from here on nothing passes that neither a former nor the new policy allows.

        Raises EnforceError.
        """
        try:
            self._watch.start()  # before anything is there that could be lost unseen
        except OSError as error:
            raise EnforceError(f"changes of the ruleset cannot be watched: {error.strerror}") from None
        self._nft.prepare()
        self._close()

    def _close(self) -> None:
        try:
            if not self._nft.comments(f"{TABLE} forward"):  # which the fail-safe has too
                self._nft.apply(files.read(files.shipped("iptables") / "fail-safe.nft"))
        except (NftError, files.FileError) as error:
            raise EnforceError(f"the fail-safe ruleset could not be loaded: {error}") from None

    def apply(self, policy: Policy, group: int, pins: PinKeeper, own_rules: bool, explicit_port: int) -> frozenset[str]:
        """Puts a policy in force: all of it, or nothing. Answers which sets of feeds are new, and empty. Raises
        EnforceError.

        `own_rules`: the clients' Qubes firewall rules are in it, so that qubes-firewall has nothing left to do.
        `explicit_port`: see `render`.
        """
        now = self._policy
        try:
            skeleton = files.read(files.shipped("iptables") / "proxyfw.nft")
            if not self._settled:
                self._tables, self._lacking = self._nft.tables(), self._missing()
            beside = "ip qubes" in self._tables
            text = render(policy, skeleton, group, pins.ports(policy), beside, explicit_port)
            # Answers of a client that has gone, or of another one at its address, are let through no longer.
            inbound = self._nft.copy(INBOUND_SETS, lambda each: _same_owner(now, policy, str(each)))
            others = [table for table in _REPLACED if own_rules and table in self._tables]
            if not self._before:
                self._before = {name: self._nft.counter(name) for name in (UNLOGGED, UNASKED)}
            empty = self._nft.replace(text + inbound, beside_qubes(self._lacking, others, group))
        except (NftError, files.FileError) as error:
            self._settled = False
            raise EnforceError(f"the packet layer could not be set up: {error}") from None
        self._policy, self._own_rules, self._beside = policy, own_rules, beside
        self._settled, self._tables, self._lacking = True, self._tables - set(others), []
        return empty

    def count(self, name: str) -> int:
        """Packets of a counter, since the start; or since our table was made anew, where somebody took it away; 0 where
        it cannot be read just now.
        """
        try:
            now = self._nft.counter(name)
        except NftError:
            return 0
        return now - self._before[name] if now >= self._before[name] else now

    def start(self, loop: asyncio.AbstractEventLoop, on_lost: Callable[[], None]) -> None:
        """Watches over the ruleset. `on_lost`: another process has taken away some of ours."""

        def look() -> None:
            if not self._is_whole():
                self._settled = False
                with suppress(EnforceError):  # then the whole comes back all the same
                    self._close()
                on_lost()

        def again() -> None:
            self._looking = None
            if self._unseen:
                self._unseen = False
                changed_by_another()

        def changed_by_another() -> None:
            # At once; and then not again for a while, as whoever changes rules often changes many.
            if self._looking is None:
                look()
                self._looking = loop.call_later(_GATHER, again)
            else:
                self._unseen = True

        def changed() -> None:
            if self._watch.read():
                changed_by_another()

        loop.add_reader(self._watch.fileno(), changed)
        changed_by_another()  # who has been before

    def stop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stops watching; the ruleset stays."""
        loop.remove_reader(self._watch.fileno())
        self._watch.stop()
        if self._looking is not None:
            self._looking.cancel()
        for task in tuple(self._tasks):
            task.cancel()

    def _is_whole(self) -> bool:
        """Whether what was put in force is there, and nothing beside it that should not be."""
        try:
            tables = self._nft.tables()
            # Its tables without a chain are for it alone, to be deleted when it ends (qubes/proxyfw-takeover).
            back = self._own_rules and any(map(self._nft.judges, _REPLACED))
            beside = ("ip qubes" in tables) != self._beside
            return not back and not beside and self._nft.intact() and not self._missing()
        except NftError:
            return False  # in doubt, it is put in force again

    def _missing(self) -> list[tuple[str, str]]:
        """The families, and those of Qubes' chains for users, that do not have our rule."""
        found = []
        for place in ((family, chain) for family in _FAMILIES for chain in ("custom-input", "custom-forward")):
            comments = self._nft.comments(f"{place[0]} qubes {place[1]}")
            if comments is not None and OURS.strip('"') not in comments:
                found.append(place)
        return found

    def end_forwarded(self, addresses: Collection[IPAddress], policy: Policy, pins: PinKeeper) -> None:
        """Ends what the kernel forwards for these clients' addresses and the policy does not permit. Later: in a task.

        Their packets are judged anew already; those of the other side, and those of a flowtable (Qubes 4.3), only end
        with the kernel's entry of the connection.
        """
        if addresses:
            task = asyncio.get_running_loop().create_task(self._end_forwarded(addresses, policy, pins))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _end_forwarded(self, addresses: Collection[IPAddress], policy: Policy, pins: PinKeeper) -> None:
        try:
            found = await flows(addresses)
            await delete([flow for flow in found if not permitted(flow, policy, pins)])
        except (ConntrackError, OSError, ValueError, KeyError) as error:
            self._say(f"forwarded connections that are no longer permitted may live on: {error}")


class Unenforced(Enforcer):
    """Where there is no packet layer: nothing is forwarded, and so there is nothing to enforce."""

    def close_first(self) -> None:
        """Nothing is open."""

    def apply(self, policy: Policy, group: int, pins: PinKeeper, own_rules: bool, explicit_port: int) -> frozenset[str]:
        """There are no sets of feeds."""
        return frozenset()

    def count(self, name: str) -> int:
        """No packet is seen."""
        return 0

    def start(self, loop: asyncio.AbstractEventLoop, on_lost: Callable[[], None]) -> None:
        """There is nothing to watch."""

    def stop(self, loop: asyncio.AbstractEventLoop) -> None:
        """The same."""

    def end_forwarded(self, addresses: Collection[IPAddress], policy: Policy, pins: PinKeeper) -> None:
        """Nothing is forwarded."""


def _same_owner(before: Policy | None, now: Policy, address: str) -> bool:
    owner = now.client_at(address)
    return owner is not None and (before is None or owner == before.client_at(address))


def permitted(tracked: Tracked, policy: Policy, pins: PinKeeper) -> bool:
    """Whether the kernel may go on forwarding it. What belongs to the proxy is not forwarded."""
    client = policy.client_at(str(tracked.source))
    if client is None or policy.upstream_proxy_of(client) is not None:  # of which the kernel forwards nothing
        return False
    protocol = Protocol.OTHER
    with suppress(ValueError):
        protocol = Protocol(tracked.protocol)
    flow = Flow(client, protocol, tracked.destination, tracked.port, icmp_type=tracked.icmp_type)
    verdict = policy.decide_pinned(flow, pins.names(client, tracked.destination))[1]
    if protocol is Protocol.TCP and not is_refused(verdict):
        verdict = policy.decide(flow)  # what only a name permits is proxied
    return not is_refused(verdict) and verdict.reason is not Reason.RELAY
