"""Length-prefixed bytes, read with every length checked."""


class Short(ValueError):
    """A length field says more than there is."""


def typed_vectors(data: bytes, at: int) -> dict[int, bytes] | int:
    """From `at` on: a list of (16-bit type, 16-bit length, body), by type; or the first type that stands twice.

    TLS extensions (RFC 8446 section 4.2). Raises Short.
    """
    end = len(data)
    found: dict[int, bytes] = {}
    while at < end:
        if at + 4 > end:
            raise Short
        kind = data[at] << 8 | data[at + 1]
        begin = at + 4
        at = begin + (data[at + 2] << 8 | data[at + 3])
        if at > end:
            raise Short
        if kind in found:
            return kind
        found[kind] = data[begin:at]
    return found
