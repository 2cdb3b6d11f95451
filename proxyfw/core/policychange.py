"""What differs between two policies."""

from proxyfw.core.address import IPAddress
from proxyfw.core.policy import Policy


def addresses(policy: Policy) -> frozenset[IPAddress]:
    """Those of all clients."""
    return frozenset(address for client in policy.clients.values() for address in client.addresses)


def same(one: Policy, other: Policy) -> bool:
    """Whether the two decide the same, for the same clients."""
    return (one.clients, one.upstream, one.client_dns) == (other.clients, other.upstream, other.client_dns)


def changed(before: Policy, now: Policy) -> frozenset[IPAddress]:
    """The addresses that are another client's now, or of one to whom another policy applies."""
    other = [name for name in {**before.clients, **now.clients} if before.clients.get(name) != now.clients.get(name)]
    found = [policy.clients[name] for policy in (before, now) for name in other if name in policy.clients]
    return frozenset(address for client in found for address in client.addresses)
