"""ClientHellos made by hand: as real ones, and as no real client would send them."""

import os

SERVER_NAME, GROUPS, ALGORITHMS, VERSIONS, KEY_SHARE = 0, 10, 13, 43, 51
X25519, P384, X25519MLKEM768 = 0x001D, 0x0018, 0x11EC
# A valid X25519MLKEM768 key share of 1,216 bytes: a server that knows it looks at the numbers in it (FIPS 203, section
# 7.2). A hello with one has some 1,700 bytes in a browser.
_MLKEM_NUMBERS, _MLKEM_SEED = bytes(1152), bytes(range(32))

ACCESS_DENIED = bytes.fromhex("15030300020231")
DECODE_ERROR = bytes.fromhex("15030300020232")
INTERNAL_ERROR = bytes.fromhex("15030300020250")

_RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


def _vector(octets: int, body: bytes) -> bytes:
    return len(body).to_bytes(octets) + body


def _extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2) + _vector(2, body)


def server_names(*names: str) -> bytes:
    """One server_name extension with these names."""
    return _extension(SERVER_NAME, _vector(2, b"".join(b"\0" + _vector(2, name.encode()) for name in names)))


def message(*names: str, post_quantum: bool = False, more: bytes = b"") -> bytes:
    """A ClientHello as a handshake message; a TLS 1.3 server answers it. `more`: further extensions, last."""
    share = X25519.to_bytes(2) + _vector(2, os.urandom(32))
    groups = X25519.to_bytes(2) + P384.to_bytes(2)
    if post_quantum:
        share = X25519MLKEM768.to_bytes(2) + _vector(2, _MLKEM_NUMBERS + _MLKEM_SEED + os.urandom(32)) + share
        groups = X25519MLKEM768.to_bytes(2) + groups
    extensions = [
        server_names(*names) if names else b"",
        _extension(GROUPS, _vector(2, groups)),
        _extension(ALGORITHMS, _vector(2, bytes.fromhex("04030804"))),
        _extension(VERSIONS, _vector(1, bytes.fromhex("03040303"))),
        _extension(KEY_SHARE, _vector(2, share)),
        _extension(21, bytes(300)) if post_quantum else b"",  # padding, as browsers have other extensions there
        more,
    ]
    suites = bytes.fromhex("130113021303c02bc02f")
    body = b"\x03\x03" + os.urandom(32) + _vector(1, os.urandom(32)) + _vector(2, suites) + b"\x01\0"
    return b"\x01" + _vector(3, body + _vector(2, b"".join(extensions)))


def records(handshake: bytes, size: int = 1 << 14) -> bytes:
    """A handshake message in records of so many bytes."""
    pieces = [handshake[at : at + size] for at in range(0, len(handshake), size)]
    return b"".join(b"\x16\x03\x01" + _vector(2, piece) for piece in pieces)


def hello(*names: str, post_quantum: bool = False) -> bytes:
    """A whole ClientHello in one record."""
    return records(message(*names, post_quantum=post_quantum))


def retry_request(session: bytes) -> bytes:
    """A HelloRetryRequest that asks for a P-384 share (RFC 8446 section 4.1.4); `session`: the client's session id."""
    extensions = _extension(VERSIONS, b"\x03\x04") + _extension(KEY_SHARE, P384.to_bytes(2))
    body = b"\x03\x03" + _RETRY_RANDOM + _vector(1, session) + b"\x13\x01\0" + _vector(2, extensions)
    return b"\x16\x03\x03" + _vector(2, b"\x02" + _vector(3, body))


def session_of(record: bytes) -> bytes:
    """The session id in a ClientHello that `hello` made."""
    return record[44 : 44 + record[43]]
