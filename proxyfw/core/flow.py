"""A flow, as everything that decides sees it."""

from enum import StrEnum
from typing import NamedTuple

from proxyfw.core.address import IPAddress
from proxyfw.core.hostname import Hostname
from proxyfw.core.sniffed import Malformed


class Protocol(StrEnum):
    """What the flow speaks, as far as it is known."""

    TLS = "tls"
    HTTP = "http"
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    OTHER = "other"  # another protocol of IP: only addresses decide
    SOCKS = "socks"  # a SOCKS client asks for a connection: nothing of what it will speak there is known yet
    CONNECT = "connect"  # an HTTP client does, by CONNECT
    DNS = "dns"  # a query to the relay, over whatever it came

    @property
    def transport(self) -> str:
        """tcp, udp, icmp, other or dns."""
        return "tcp" if self in _OVER_TCP else self.value


_OVER_TCP = frozenset({Protocol.TLS, Protocol.HTTP, Protocol.SOCKS, Protocol.CONNECT})


class NameSource(StrEnum):
    """Where the name of a flow came from."""

    NONE = ""
    SNI = "sni"
    HOST = "host"
    DNS = "dns"  # the name of a query
    PIN = "pin"  # learnt from an answer that the relay gave this client for this destination
    SOCKS = "socks"  # the client asked for it by SOCKS
    CONNECT = "connect"  # the client asked for it by HTTP CONNECT


class Flow(NamedTuple):
    """One attempt of a client to reach something. `destination` is None where only a name is asked about.

    `broken`: what the client sent says nothing that could be judged. `icmp_type`: of ICMP, where it is known.
    """

    client: str
    protocol: Protocol
    destination: IPAddress | None
    port: int
    name: Hostname | None = None
    name_source: NameSource = NameSource.NONE
    broken: Malformed | None = None
    icmp_type: int | None = None
