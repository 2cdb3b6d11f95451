"""What `status` tells of each client."""

from collections.abc import Mapping
from typing import Any

from proxyfw.core.policy import Policy


def clients_status(
    policy: Policy, open_now: Mapping[str, int], pins: Mapping[str, int], looked_up: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The clients in their order, with their open connections, pins and look-ups."""
    return [
        {
            "name": client.name,
            "addresses": [str(address) for address in client.addresses],
            "profiles": list(client.profiles),
            "mode": "qubes" if client.exact else "observe" if client.observe else "enforce",
            "dns": "all" if client.dns_all or client.exact else "profile",
            "upstream_proxy": str(client.upstream_proxy) if client.upstream_proxy is not None else "",
            "rules": sum(len(rules.rules) for rules in client.rules.values()),
            "connections": open_now.get(client.name, 0),
            "pins": pins.get(client.name, 0),
            "lookups": looked_up.get(client.name, 0),
        }
        for client in policy.clients.values()
    ]
