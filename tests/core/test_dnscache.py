"""Which answers are held, how long, and which go when there is no room."""

from ipaddress import ip_address

import pytest
from dns.rcode import Rcode
from dns.rdatatype import AAAA, A
from hypothesis import given
from hypothesis import strategies as st

from proxyfw.core.dnsanswer import Answer
from proxyfw.core.dnscache import DnsCache
from proxyfw.core.dnsmsg import Question
from proxyfw.core.hostname import Hostname


def question(name: str, rdtype: int = A, dnssec_ok: bool = False, checking_disabled: bool = False) -> Question:
    return Question(Hostname(name), rdtype, dnssec_ok, checking_disabled)


def answer(ttl: int = 60, size: int = 100) -> Answer:
    return Answer(Rcode.NOERROR, ttl=ttl, addresses=(ip_address("192.0.2.1"),), size=size)


ONE, TWO, THREE = question("one.example"), question("two.example"), question("three.example")


@pytest.mark.parametrize(
    ("now", "age"),
    [
        pytest.param(1000.0, 0.0, id="at once"),
        pytest.param(1000.5, 0.5, id="half a second later"),
        pytest.param(1059.5, 59.5, id="before its TTL runs out"),
        pytest.param(1060.0, None, id="as its TTL runs out"),
        pytest.param(9999.0, None, id="long after"),
    ],
)
def test_an_answer_is_held_for_its_ttl(now: float, age: float | None) -> None:
    cache, held = DnsCache(), answer(ttl=60)
    cache.put(ONE, held, 1000.0)
    assert cache.get(ONE, now) == (None if age is None else (held, age))
    assert len(cache) == (age is not None)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(question("two.example"), id="another name"),
        pytest.param(question("one.example", AAAA), id="another type"),
        pytest.param(question("one.example", dnssec_ok=True), id="with signatures"),
        pytest.param(question("one.example", checking_disabled=True), id="not validated"),
    ],
)
def test_another_question_has_another_answer(other: Question) -> None:
    cache, held = DnsCache(), answer()
    cache.put(ONE, held, 0.0)
    assert cache.get(other, 0.0) is None
    cache.put(other, answer(), 0.0)
    assert cache.get(ONE, 0.0) == (held, 0.0)


def test_an_answer_without_a_ttl_is_not_held_and_ends_the_one_before() -> None:
    cache = DnsCache()
    cache.put(ONE, answer(), 0.0)
    cache.put(ONE, answer(ttl=0), 1.0)
    assert cache.get(ONE, 1.0) is None
    assert len(cache) == 0


def test_a_new_answer_is_held_from_when_it_came() -> None:
    cache, new = DnsCache(), answer(ttl=60)
    cache.put(ONE, answer(ttl=3600), 0.0)
    cache.put(ONE, new, 50.0)
    assert cache.get(ONE, 109.0) == (new, 59.0)
    assert cache.get(ONE, 110.0) is None


def test_what_was_used_longest_ago_goes_first() -> None:
    cache = DnsCache(max_answers=2)
    cache.put(ONE, answer(), 0.0)
    cache.put(TWO, answer(), 0.0)
    cache.get(ONE, 1.0)
    cache.put(THREE, answer(), 2.0)
    assert [cache.get(one, 2.0) is not None for one in (ONE, TWO, THREE)] == [True, False, True]


def test_large_answers_push_out_as_many_as_it_takes() -> None:
    cache = DnsCache(max_bytes=250)
    cache.put(ONE, answer(size=100), 0.0)
    cache.put(TWO, answer(size=100), 0.0)
    cache.put(THREE, answer(size=200), 0.0)
    assert [cache.get(one, 0.0) is not None for one in (ONE, TWO, THREE)] == [False, False, True]


def test_an_answer_that_is_larger_than_all_room_is_not_held() -> None:
    cache = DnsCache(max_bytes=250)
    cache.put(ONE, answer(size=251), 0.0)
    assert cache.get(ONE, 0.0) is None
    assert len(cache) == 0


def test_the_room_of_what_is_gone_is_free_again() -> None:
    cache = DnsCache(max_bytes=250)
    for now in range(10):
        cache.put(ONE, answer(size=250), now)  # in place of itself
    cache.put(ONE, answer(ttl=1, size=250), 10.0)
    assert cache.get(ONE, 11.0) is None  # run out
    cache.put(TWO, answer(size=250), 11.0)
    assert cache.get(TWO, 11.0) is not None


steps = st.tuples(
    st.sampled_from(["get", "put"]),
    st.sampled_from([ONE, TWO, THREE, question("one.example", AAAA)]),
    st.integers(0, 4),  # TTL
    st.integers(1, 6),  # size
    st.integers(0, 3),  # seconds later
)


@given(st.lists(steps, max_size=40), st.integers(1, 4), st.integers(1, 12))
def test_it_agrees_with_a_plain_list(found: list[tuple[str, Question, int, int, int]], most: int, room: int) -> None:
    cache = DnsCache(max_answers=most, max_bytes=room)
    model: list[tuple[Question, Answer, int]] = []  # used longest ago first
    now = 0
    for what, asked, ttl, size, later in found:
        now += later
        held = next((one for one in model if one[0] == asked), None)
        if held is not None:
            model.remove(held)
        if what == "put":
            new = answer(ttl, size)
            cache.put(asked, new, now)
            if ttl:
                model.append((asked, new, now))
            while len(model) > most or sum(one[1].size for one in model) > room:
                model.pop(0)
        elif held is not None and now - held[2] < held[1].ttl:
            model.append(held)
            assert cache.get(asked, now) == (held[1], now - held[2])
        else:
            assert cache.get(asked, now) is None
        assert len(cache) == len(model)
