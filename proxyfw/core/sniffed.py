"""What a sniffer answers: exactly one of these types, never "" and never None for two meanings."""

from dataclasses import dataclass

from proxyfw.core.hostname import Hostname
from proxyfw.core.verdict import Reason

MAX_HELLO = 64 * 1024
"""Bytes that a client may send before its name must be known."""


@dataclass(frozen=True, slots=True)
class NeedMore:
    """So far it is this protocol; more bytes are needed."""


@dataclass(frozen=True, slots=True)
class NotMine:
    """These bytes are not this protocol."""


@dataclass(frozen=True, slots=True)
class Nameless:
    """Complete and well-formed, and it names no host."""


@dataclass(frozen=True, slots=True)
class Named:
    """Complete and well-formed, and it names `name`."""

    name: Hostname
    alpn: tuple[bytes, ...] = ()
    ech: bool = False


@dataclass(frozen=True, slots=True)
class Malformed:
    """What cannot be judged: `reason` is one of those for what the client sent, or failed to send."""

    detail: str
    reason: Reason = Reason.MALFORMED


Sniffed = NeedMore | NotMine | Nameless | Named | Malformed
