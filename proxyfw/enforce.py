"""The packet layer, put in force and kept there: our own table, and our place beside those of a Qubes netvm."""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

from proxyfw.core.address import IPAddress
from proxyfw.core.flow import Flow, Protocol
from proxyfw.core.policy import Policy
from proxyfw.core.ruleset import INBOUND_SETS, OURS, TABLE, beside_qubes, render
from proxyfw.core.verdict import is_refused
from proxyfw.edge import files
from proxyfw.edge.conntrack import ConntrackError, Tracked, delete, flows
from proxyfw.edge.nft import Nft, NftError
from proxyfw.edge.nftwatch import NftWatch
from proxyfw.pinning import PinKeeper

UNLOGGED, UNASKED = "unlogged", "queries_dropped"  # the counters of the skeleton
_FAMILIES = ("ip", "ip6")
_REPLACED = tuple(f"{family} qubes-firewall" for family in _FAMILIES)
_GATHER = 0.05  # seconds in which several changes of others are looked at once


class EnforceError(Exception):
    """The packet layer could not be changed; what was in force stays."""


class Enforcer:
    """The only one who changes the ruleset, but for the pins. `say`: tells a person."""

    def __init__(self, nft: Nft, say: Callable[[str], None]) -> None:
        self._nft = nft
        self._say = say
        self._watch = NftWatch()
        self._counted = {UNLOGGED: 0, UNASKED: 0}  # of the tables before the present one
        self._looking: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def close_first(self) -> None:
        """Fail closed: from here on nothing passes that neither a former nor the new policy allows.

        Raises EnforceError.
        """
        try:
            if not self._nft.comments(f"{TABLE} forward"):  # which the fail-safe has too
                self._nft.apply(files.read(files.shipped("iptables") / "fail-safe.nft"))
        except (NftError, files.FileError) as error:
            raise EnforceError(f"the fail-safe ruleset could not be loaded: {error}") from None

    def apply(self, policy: Policy, group: int, pins: PinKeeper, own_rules: bool) -> None:
        """Puts a policy in force: all of it, or nothing. Raises EnforceError.

        `own_rules`: the clients' Qubes firewall rules are in it, so that qubes-firewall has nothing left to do.
        """
        try:
            skeleton = files.read(files.shipped("iptables") / "proxyfw.nft")
            counted = {name: self.count(name) for name in self._counted}  # the new table counts from 0 again
            tables = self._nft.tables()
            on_qubes = "ip qubes" in tables
            text = render(policy, skeleton, group, pins.ports(policy), on_qubes)
            others = [table for table in _REPLACED if own_rules and table in tables]
            inbound = self._nft.copy(INBOUND_SETS)
            self._nft.apply(text + inbound + beside_qubes(self._missing(), others))
        except (NftError, files.FileError) as error:
            raise EnforceError(f"the packet layer could not be set up: {error}") from None
        self._counted = counted

    def count(self, name: str) -> int:
        """Packets of a counter, since the start."""
        return self._counted[name] + self._nft.counter(name)

    def start(self, loop: asyncio.AbstractEventLoop, on_lost: Callable[[], None]) -> None:
        """Watches over the ruleset. `on_lost`: another process has taken away some of ours. Raises OSError."""
        self._watch.start()

        def look() -> None:
            self._looking = None
            if not self._intact() or self._missing():
                on_lost()

        def changed() -> None:
            if self._watch.read() and self._looking is None:
                self._looking = loop.call_later(_GATHER, look)

        loop.add_reader(self._watch.fileno(), changed)

    def stop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stops watching; the ruleset stays."""
        loop.remove_reader(self._watch.fileno())
        self._watch.stop()
        if self._looking is not None:
            self._looking.cancel()
        for task in tuple(self._tasks):
            task.cancel()

    def _intact(self) -> bool:
        return bool(self._nft.comments(f"{TABLE} prerouting"))  # which the fail-safe has not

    def _missing(self) -> list[str]:
        """The families whose `custom-input` does not have our rule."""
        found = ((family, self._nft.comments(f"{family} qubes custom-input")) for family in _FAMILIES)
        return [family for family, comments in found if comments is not None and OURS.strip('"') not in comments]

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
        except ConntrackError as error:
            self._say(f"forwarded connections that are no longer permitted may live on: {error}")


def permitted(tracked: Tracked, policy: Policy, pins: PinKeeper) -> bool:
    """Whether the kernel may go on forwarding it. What belongs to the proxy is not forwarded."""
    client = policy.client_at(str(tracked.source))
    if client is None:
        return False
    protocol = Protocol.OTHER
    with suppress(ValueError):
        protocol = Protocol(tracked.protocol)
    flow = Flow(client, protocol, tracked.destination, tracked.port, icmp_type=tracked.icmp_type)
    names = () if protocol is Protocol.TCP else pins.names(client, tracked.destination)  # TCP by a name is proxied
    return not is_refused(policy.decide_pinned(flow, names)[1])
