"""Which network grant covers an address: a longest-prefix table."""

from collections.abc import Iterable

from proxyfw.core.address import IPAddress
from proxyfw.core.profile import NetworkGrant


class NetworkTable:
    """Look-ups cost one dictionary access per distinct prefix length, whatever the number of grants."""

    def __init__(self, grants: Iterable[NetworkGrant]) -> None:
        self._tables: dict[tuple[int, int], dict[int, list[NetworkGrant]]] = {}
        for grant in grants:
            net = grant.network
            table = self._tables.setdefault((net.version, net.prefixlen), {})
            table.setdefault(int(net.network_address), []).append(grant)
        self._lengths = sorted(self._tables, reverse=True)

    def __contains__(self, address: IPAddress) -> bool:
        """Whether a grant covers this address, on any port."""
        value = int(address)
        return any(
            version == address.version
            and value >> (address.max_prefixlen - length) << (address.max_prefixlen - length) in table
            for (version, length), table in self._tables.items()
        )

    def find(self, address: IPAddress, transport: str, port: int) -> NetworkGrant | None:
        """The grant with the longest prefix that covers this address and port; a grant without a port covers every
        protocol. `transport` is tcp, udp or another protocol's name.
        """
        bits, value = address.max_prefixlen, int(address)
        for version, length in self._lengths:
            if version != address.version:
                continue
            network = value >> (bits - length) << (bits - length)
            for grant in self._tables[version, length].get(network, ()):
                if grant.port is None or (grant.port.transport == transport and grant.port.number == port):
                    return grant
        return None
