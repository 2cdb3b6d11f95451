"""Length-prefixed bytes: every length is checked, and no byte past the end is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.wire import Short, typed_vectors


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        pytest.param(b"", {}, id="none"),
        pytest.param(b"\x00\x07\x00\x00", {7: b""}, id="an empty body"),
        pytest.param(b"\x00\x07\x00\x02ab\xfe\x0d\x00\x01c", {7: b"ab", 0xFE0D: b"c"}, id="two types"),
        pytest.param(b"\x00\x07\x00\x01a\x00\x07\x00\x01b", 7, id="a type that stands twice"),
        pytest.param(b"\x00\x00\x00\x00\x00\x00\x00\x00", 0, id="type 0 twice"),
    ],
)
def test_bodies_are_found_by_type(data: bytes, answer: dict[int, bytes] | int) -> None:
    assert typed_vectors(data, 0) == answer
    assert typed_vectors(b"what stands before" + data, len(b"what stands before")) == answer


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x00", id="half a type"),
        pytest.param(b"\x00\x07\x00", id="half a length"),
        pytest.param(b"\x00\x07\x00\x02a", id="a body one byte short"),
        pytest.param(b"\x00\x07\x00\x01a\x00", id="half a type after a whole body"),
        pytest.param(b"\x00\x07\xff\xffa", id="the longest length"),
    ],
)
def test_nothing_is_read_past_the_end(data: bytes) -> None:
    with pytest.raises(Short):
        typed_vectors(data, 0)


@given(st.dictionaries(st.integers(0, 65535), st.binary(max_size=10)), st.binary(max_size=3))
def test_what_is_written_is_read_back(found: dict[int, bytes], extra: bytes) -> None:
    data = b"".join(kind.to_bytes(2) + len(body).to_bytes(2) + body for kind, body in found.items())
    assert typed_vectors(data, 0) == found
    if extra:
        with pytest.raises(Short):
            typed_vectors(data + extra, 0)


@given(st.binary(max_size=40), st.integers(0, 40))
def test_any_bytes_are_read_or_refused(data: bytes, at: int) -> None:
    try:
        found = typed_vectors(data, at)
    except Short:
        return
    if isinstance(found, dict) and at <= len(data):
        assert sum(4 + len(body) for body in found.values()) == len(data) - at
