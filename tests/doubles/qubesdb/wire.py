"""The messages between QubesDB's daemon and its clients: include/qubesdb.h of qubes-core-qubesdb."""

import struct
from enum import IntEnum, auto

MAX_DATA, MAX_PATH = 3072, 64
HEADER = struct.Struct(f"=B{MAX_PATH}s3xI")
"""`struct qdb_hdr`: type, path, (padding), length of the data that follows."""


class Message(IntEnum):
    """`enum qdb_msg`."""

    READ = 0
    WRITE = auto()
    MULTIREAD = auto()
    LIST = auto()
    RM = auto()
    WATCH = auto()
    UNWATCH = auto()
    RESP_OK = auto()
    ERROR_NOENT = auto()
    RESP_ERROR = auto()
    RESP_READ = auto()
    RESP_MULTIREAD = auto()
    RESP_LIST = auto()
    RESP_WATCH = auto()


def pack(kind: Message, path: str, data: bytes = b"") -> bytes:
    """One message."""
    return HEADER.pack(kind, path.encode(), len(data)) + data


def unpack(header: bytes) -> tuple[Message, str, int]:
    """Type, path and length of data of a message."""
    kind, path, length = HEADER.unpack(header)
    return Message(kind), path.split(b"\0", 1)[0].decode(), length
