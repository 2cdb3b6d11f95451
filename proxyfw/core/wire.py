"""A bounded reader over bytes: every read is checked, nothing reads past the end."""


class Short(ValueError):
    """A length field says more than there is."""


class Reader:
    """Reads big-endian numbers and length-prefixed vectors (RFC 8446 section 3) from `data`. Raises Short."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self._data = data
        self._at = start
        self._end = len(data) if end is None else end

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return self._end - self._at

    def number(self, octets: int) -> int:
        """An unsigned number of so many octets."""
        return int.from_bytes(self.take(octets))

    def take(self, octets: int) -> bytes:
        """The next so many bytes."""
        at = self._at
        if at + octets > self._end:
            raise Short
        self._at = at + octets
        return self._data[at : at + octets]

    def vector(self, octets: int) -> "Reader":
        """A reader over the next vector, whose length stands before it in so many octets."""
        length = self.number(octets)
        at = self._at
        if at + length > self._end:
            raise Short
        self._at = at + length
        return Reader(self._data, at, at + length)
