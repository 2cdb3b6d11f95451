"""Netlink (RFC 3549 section 2.2): messages, and the attributes that netfilter has in them (linux/netlink.h)."""

import struct
from collections.abc import Iterator

_KIND = 0x3FFF  # NLA_TYPE_MASK; above it: that attributes are in it, that its bytes are in network order
_NESTED = 0x8000
_DUMP_INTR = 0x10  # NLM_F_DUMP_INTR


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages of one datagram: type and body."""
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if length < 16 or at + length > len(data):
            return
        yield kind, data[at + 16 : at + length]
        at += (length + 3) & ~3


def interrupted(data: bytes) -> bool:
    """Whether the kernel says, in one of a datagram's messages, that what it lists was changed meanwhile."""
    at = 0
    while at + 16 <= len(data):
        length, _, flags = struct.unpack_from("=IHH", data, at)
        if flags & _DUMP_INTR:
            return True
        at += max((length + 3) & ~3, 16)
    return False


def error_code(body: bytes) -> int:
    """The error's number in an answer of the types NLMSG_ERROR and NLMSG_DONE, 0 for none."""
    return -int(struct.unpack_from("=i", body)[0])


def text_attribute(kind: int, value: str) -> bytes:
    """One attribute that is a text, as netfilter has them: a zero byte ends it."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes, at: int = 0) -> Iterator[tuple[int, bytes]]:
    """The attributes from `at` on, up to the first that is not whole: type and value."""
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            return
        yield kind & _KIND, data[at + 4 : at + length]
        at += (length + 3) & ~3


def message(kind: int, flags: int, body: bytes) -> bytes:
    """One message, with the sequence number 0."""
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (-length % 4)


def nested(kind: int, *values: bytes) -> bytes:
    """One attribute that holds others."""
    return attribute(kind | _NESTED, b"".join(values))
