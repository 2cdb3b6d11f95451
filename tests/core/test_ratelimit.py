"""How often something is let through: so many a second after a burst, and once in a while."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.ratelimit import Once, RateLimit


def first(once: Once, key: object, now: float) -> bool:
    """Whether it was not seen lately; then it is noted."""
    seen = once.seen(key, now)  # type: ignore[arg-type]
    if not seen:
        once.note(key, now)  # type: ignore[arg-type]
    return not seen


def taken(limit: RateLimit, key: str, now: float, tries: int) -> int:
    return sum(limit.take(key, now) for _ in range(tries))


@pytest.mark.parametrize(
    ("later", "allowed"),
    [
        pytest.param(0.0, 0, id="at once: nothing is left"),
        pytest.param(0.25, 0, id="half of the time that one takes"),
        pytest.param(0.5, 1, id="the time that one takes"),
        pytest.param(1.0, 2, id="a second: the rate"),
        pytest.param(2.5, 5, id="as long as the burst takes"),
        pytest.param(1000.0, 5, id="a long rest: the burst, and no more"),
    ],
)
def test_what_is_allowed_after_a_burst(later: float, allowed: int) -> None:
    limit = RateLimit(rate=2.0, burst=5.0)
    assert taken(limit, "work", 100.0, 9) == 5
    assert taken(limit, "work", 100.0 + later, 9) == allowed


def test_a_steady_rate_is_let_through_for_ever() -> None:
    limit = RateLimit(rate=2.0, burst=1.0)
    assert all(limit.take("work", at * 0.5) for at in range(1000))


def test_trying_in_vain_costs_nothing() -> None:
    limit = RateLimit(rate=1.0, burst=1.0)
    assert limit.take("work", 0.0)
    assert not any(limit.take("work", at / 16) for at in range(16))
    assert limit.take("work", 1.0)


def test_one_client_does_not_use_up_what_another_has() -> None:
    limit = RateLimit(rate=1.0, burst=3.0)
    assert taken(limit, "work", 0.0, 9) == 3
    assert taken(limit, "personal", 0.0, 9) == 3


# Quarters of a second, which are exact.
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 8)), max_size=60), st.integers(1, 4), st.integers(1, 5))
def test_it_agrees_with_counting_in_every_interval(found: list[tuple[str, int]], rate: int, burst: int) -> None:
    limit = RateLimit(float(rate), float(burst))
    let_through: dict[str, list[float]] = {"a": [], "b": []}
    now = 0.0
    for key, quarters in found:
        now += quarters / 4
        earlier = let_through[key]
        # One more must not make more than the burst and the rate allow, since any of those let through earlier.
        allowed = all(len(earlier) - at + 1 <= burst + (now - since) * rate for at, since in enumerate(earlier))
        assert limit.take(key, now) == allowed
        if allowed:
            earlier.append(now)


@pytest.mark.parametrize(
    ("later", "again"),
    [
        pytest.param(0.0, False, id="at once"),
        pytest.param(59.9, False, id="within the time"),
        pytest.param(60.0, True, id="when it is over"),
    ],
)
def test_once_in_a_while(later: float, again: bool) -> None:
    once = Once(seconds=60.0, most=10)
    assert first(once, ("work", "github.com"), 100.0)
    assert first(once, ("work", "github.com"), 100.0 + later) is again


def test_another_key_is_another_matter() -> None:
    once = Once(seconds=60.0, most=10)
    assert first(once, ("work", "github.com", "allow"), 0.0)
    assert first(once, ("work", "github.com", "deny"), 0.0)
    assert not first(once, ("work", "github.com", "allow"), 0.0)


def test_asking_again_does_not_make_it_longer() -> None:
    once = Once(seconds=60.0, most=10)
    assert [first(once, "a", now) for now in (0.0, 30.0, 59.0, 60.0, 61.0)] == [True, False, False, True, False]


def test_a_key_that_was_pushed_out_is_let_through_again() -> None:
    once = Once(seconds=60.0, most=2)
    assert [first(once, key, 0.0) for key in "abcbca"] == [True, True, True, False, False, True]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3)), max_size=60), st.integers(1, 6))
def test_once_agrees_with_a_plain_list(found: list[tuple[str, int]], most: int) -> None:
    once = Once(seconds=4.0, most=most)
    model: list[tuple[str, int]] = []  # let through last, at the end; a key stands in it once
    now = 0
    for key, later in found:
        now += later
        is_first = not any(one == key and now - since < 4 for one, since in model)
        assert first(once, key, now) == is_first
        if is_first:
            model = [*(one for one in model if one[0] != key), (key, now)][-most:]
