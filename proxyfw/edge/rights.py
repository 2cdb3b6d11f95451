"""What this process may do to the network: capabilities(7)."""

from pathlib import Path

_STATUS = Path("/proc/self/status")
_NET_BIND_SERVICE, _NET_ADMIN = 10, 12


def may_administer_network() -> bool:
    """Whether it may change rules and routes, and take the DNS port: as root, or with these two capabilities alone."""
    lines = _STATUS.read_text().splitlines()
    effective = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return all(effective >> bit & 1 for bit in (_NET_BIND_SERVICE, _NET_ADMIN))
