"""From a flow to a server connection: what is decided, looked up and dialled on the way."""

from ipaddress import ip_address
from typing import NamedTuple

from proxyfw.connection import Connection
from proxyfw.core.address import IPAddress, dial_order
from proxyfw.core.flow import Flow
from proxyfw.core.hostname import Hostname
from proxyfw.core.policy import Policy
from proxyfw.core.tunnel import LeaveError
from proxyfw.core.upstreamproxy import UpstreamProxy
from proxyfw.core.verdict import Allow, Deny, Reason, Verdict, is_by_name, is_refused
from proxyfw.edge.dial import OwnAddressError, dial
from proxyfw.edge.leave import leave
from proxyfw.edge.poller import Stream
from proxyfw.edge.resolver import Failure

MAX_TRIED = 8  # addresses of one name; each may hold a descriptor until the deadline

_DNS = Deny(Reason.UNSUPPORTED, detail="DNS belongs to the relay")
_REASON_OF = {Failure.UNRESOLVABLE: Reason.UNRESOLVABLE, Failure.NO_ANSWER: Reason.DNS_FAILURE}


class Place(NamedTuple):
    """Where a flow may go: the verdict, and the addresses in the order to try them, where it lets one through."""

    verdict: Verdict
    addresses: tuple[IPAddress, ...] = ()


class Reached(NamedTuple):
    """What came of it: the verdict, and the server connection where it lets one through.

    `to`: where that leads: an address, or what the far end of an upstream proxy was asked for.
    """

    verdict: Verdict
    server: Stream | None = None
    to: Hostname | IPAddress | None = None


async def reach(connection: Connection, flow: Flow) -> Reached:
    """Decides a flow, and opens the server connection where the verdict lets it through."""
    shared = connection.shared
    while True:
        policy = shared.policy
        reached = await _reach(connection, policy, flow)
        connection.disarm()
        if policy is shared.policy:
            return reached
        # The policy changed while we waited: what it says now is what counts.
        if reached.server is not None:
            reached.server.close()


async def _reach(connection: Connection, policy: Policy, flow: Flow) -> Reached:
    proxy = policy.upstream_proxy_of(flow.client)
    if proxy is not None:
        return await _through(connection, policy, proxy, flow)
    place = await find(connection, policy, flow)
    if is_refused(place.verdict):
        return Reached(place.verdict)
    reached = await _dial(connection, place, flow.port)
    if reached.server is None and is_by_name(place.verdict) and flow.destination is not None:
        assert isinstance(reached.verdict, Deny)
        place = await _elsewhere(connection, policy, flow, policy.observed(flow.client, reached.verdict))
        reached = Reached(place.verdict) if is_refused(place.verdict) else await _dial(connection, place, flow.port)
    return reached


async def find(connection: Connection, policy: Policy, flow: Flow) -> Place:
    """Decides a flow, and looks up where it may go."""
    verdict = policy.decide(flow)
    if verdict.reason is Reason.RELAY:
        return Place(_DNS)
    if is_by_name(verdict):
        found = await _by_name(connection, policy, flow, verdict)
        if not isinstance(found, Deny):
            return Place(verdict, found)
        verdict = policy.observed(flow.client, found)
        if is_refused(verdict):
            return Place(verdict)
    return await _elsewhere(connection, policy, flow, verdict)


async def _by_name(connection: Connection, policy: Policy, flow: Flow, verdict: Allow) -> tuple[IPAddress, ...] | Deny:
    """Some of the name's own addresses; that the client aims at another changes nothing."""
    assert flow.name is not None
    aimed_at = flow.destination
    if aimed_at is not None and connection.knows(aimed_at, flow.name):
        # Dialled as it is; others only where they are known, should it be dead.
        cached = connection.shared.resolver.cached(flow.name)
        known = cached if isinstance(cached, tuple) else ()
        answer: tuple[IPAddress, ...] = (aimed_at, *(address for address in known if address != aimed_at))
    else:
        found = await _look_up(connection, flow.client, flow.name, verdict)
        if isinstance(found, Deny):
            return found
        answer = found
    addresses = policy.reachable(flow, verdict, answer)
    if not addresses:
        return policy.unreached(flow, verdict, answer)
    return dial_order(addresses, aimed_at or addresses[0])[:MAX_TRIED]


async def _elsewhere(connection: Connection, policy: Policy, flow: Flow, verdict: Verdict) -> Place:
    """What is let through by anything but a name goes where the client aimed."""
    if flow.destination is None:
        return await _by_addresses(connection, policy, flow, verdict) if flow.name is not None else Place(verdict)
    if is_refused(verdict):
        return Place(verdict)
    return Place(_as_aimed(connection, policy, flow, flow.destination) or verdict, (flow.destination,))


def _as_aimed(connection: Connection, policy: Policy, flow: Flow, address: IPAddress) -> Deny | None:
    """Why the address is not dialled as it is, whatever permits it."""
    if policy.is_internal(address):
        return Deny(Reason.INTERNAL_ADDRESS, detail="between clients, only the kernel forwards")
    return policy.dropped_as_aimed(flow._replace(destination=address), connection.names(address))


async def _by_addresses(connection: Connection, policy: Policy, flow: Flow, verdict: Verdict) -> Place:
    """A name was asked for that no grant by name leads to: its addresses may be granted, or all is let through.

    As if the client had looked it up by the relay, and aimed at what it was told.
    """
    assert flow.name is not None
    refused = verdict if is_refused(verdict) else None
    if not policy.may_resolve(flow.client, flow.name):
        return Place(refused or Deny(Reason.NO_MATCH, detail="the name does not resolve"))
    found = await _look_up(connection, flow.client, flow.name, verdict)
    if isinstance(found, Deny):
        return Place(refused or found)
    observed = isinstance(verdict, Deny) and verdict.observed
    judged = {
        address: _as_aimed(connection, policy, flow, address) or policy.decide(flow._replace(destination=address))
        for address in policy.judgeable(flow, found)
    }
    granted = [a for a, each in judged.items() if not is_refused(each) and (observed or not is_by_name(each))]
    if not granted:
        refusals = [each for each in (verdict, *judged.values()) if is_refused(each)]
        only = f"it has only {', '.join(map(str, found))}"
        return Place(refusals[0] if refusals else Deny(Reason.PRIVATE_ADDRESS, verdict.rule, only))
    best = verdict if observed else judged[granted[0]]
    return Place(best, dial_order(tuple(granted), granted[0])[:MAX_TRIED])


async def _look_up(
    connection: Connection, client: str, name: Hostname, verdict: Verdict
) -> tuple[IPAddress, ...] | Deny:
    resolver = connection.shared.resolver
    answer = resolver.cached(name)
    if answer is None:
        if not resolver.is_asking(name) and not connection.shared.may_look_up(client, questions=2):  # IPv6 and IPv4
            return Deny(Reason.LIMIT, verdict.rule, "too many look-ups")
        answer = await resolver.resolve(name, client)
    return Deny(_REASON_OF[answer], verdict.rule) if isinstance(answer, Failure) else answer


async def _dial(connection: Connection, place: Place, port: int) -> Reached:
    try:
        held = connection.take_held(lambda to: to in place.addresses)
        server = held or await dial(place.addresses, port, connection.shared.poller, connection.arm)
        return Reached(place.verdict, server, ip_address(server.peer))
    except OSError as error:
        reason = Reason.INTERNAL_ADDRESS if isinstance(error, OwnAddressError) else Reason.UNREACHABLE
        detail = error.strerror or "no answer before the deadline"
        return Reached(Deny(reason, place.verdict.rule, detail, error=error.errno or 0))


async def _through(connection: Connection, policy: Policy, proxy: UpstreamProxy, flow: Flow) -> Reached:
    """Never another way: what the far end is to be asked for is a name where one is known, and looked up there."""
    verdict = policy.decide(flow)
    if verdict.reason is Reason.RELAY:
        return Reached(_DNS)
    if is_refused(verdict):
        return Reached(verdict)
    names = connection.names(flow.destination)
    if flow.destination is not None and not is_by_name(verdict):
        dropped = policy.dropped_as_aimed(flow, names)
        if dropped is not None:
            return Reached(dropped)
    host = policy.leaves_for(flow, names)
    if host is None:
        return Reached(Deny(Reason.NO_NAME, verdict.rule, "it is not known which host this address stands for"))
    try:
        held = connection.take_held(lambda to: to == host)
        server = held or await leave(proxy, host, flow.port, connection.shared.poller)
        return Reached(verdict, server, host)
    except LeaveError as error:
        return Reached(Deny(error.reason, verdict.rule, error.detail, error=error.error))
