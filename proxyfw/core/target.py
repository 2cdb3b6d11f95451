"""What a person asks about: a URL, a host, a host with a port, or an address with a port."""

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from proxyfw.core.address import IPAddress
from proxyfw.core.flow import Flow, NameSource, Protocol
from proxyfw.core.hostname import Hostname, HostnameError, normalise

_SCHEMES = {
    "https": (443, Protocol.TLS),
    "wss": (443, Protocol.TLS),
    "http": (80, Protocol.HTTP),
    "ws": (80, Protocol.HTTP),
}


class TargetError(ValueError):
    """The text is no target; the message says what one looks like."""


@dataclass(frozen=True, slots=True)
class Target:
    """A host name or an address, and a port."""

    host: Hostname | IPAddress
    port: int
    protocol: Protocol

    def flow(self, client: str) -> Flow:
        """The attempt of this client to reach it."""
        if isinstance(self.host, str):
            sources = {Protocol.HTTP: NameSource.HOST, Protocol.UDP: NameSource.PIN}
            source = sources.get(self.protocol, NameSource.SNI)
            return Flow(client, self.protocol, None, self.port, self.host, source)
        protocol = Protocol.UDP if self.protocol is Protocol.UDP else Protocol.TCP
        return Flow(client, protocol, self.host, self.port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in str(self.host) else str(self.host)
        return f"{host} port {self.port}/{self.protocol.transport}"


def parse_target(text: str) -> Target:
    """Reads a target. Without a port or a scheme it is port 443 over TLS; `/udp` after the port means UDP.

    Raises TargetError.
    """
    if "://" in text:
        scheme = text.partition("://")[0].lower()
        if scheme not in _SCHEMES:
            raise TargetError(f"only {', '.join(_SCHEMES)} URLs can be asked about; for the rest write host:port")
        port, protocol = _SCHEMES[scheme]
    else:
        port, protocol = 443, Protocol.TLS
    rest, slash, last = text.rpartition("/")
    if "://" not in text and slash and last in ("udp", "tcp"):
        text, protocol = rest, Protocol.UDP if last == "udp" else Protocol.TLS
    if "://" not in text and text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"  # a bare IPv6 address
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        given = parts.port
        host = parts.hostname or ""
    except ValueError as error:
        raise TargetError(f"this is no URL, host or address with a port ({error})") from None
    if parts.username is not None:
        raise TargetError("a user name in the target says nothing about where it leads: leave it out")
    if given == 0:
        raise TargetError("a port is a number from 1 to 65535")
    return Target(_host(host), given or port, protocol)


def _host(text: str) -> Hostname | IPAddress:
    try:
        return ip_address(text)
    except ValueError:
        pass
    try:
        return normalise(text)
    except HostnameError as error:
        raise TargetError(f"this is no host name: {error}") from None
