"""Answers kept until their TTL runs out, within bounds of number and size."""

from collections import OrderedDict

from proxyfw.core.dnsanswer import Answer
from proxyfw.core.dnsmsg import Question

MAX_ANSWERS = 8192
MAX_BYTES = 32 << 20  # clients choose the names, and whoever owns one chooses what it answers


class DnsCache:
    """What was used longest ago goes first."""

    def __init__(self, max_answers: int = MAX_ANSWERS, max_bytes: int = MAX_BYTES) -> None:
        self._max_answers, self._max_bytes = max_answers, max_bytes
        self._held: OrderedDict[Question, tuple[Answer, float]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, question: Question, now: float) -> tuple[Answer, float] | None:
        """The answer, and how many seconds ago it came; None where none is held that has not run out."""
        held = self._held.get(question)
        if held is None:
            return None
        answer, since = held
        age = now - since
        if age >= answer.ttl:
            self._drop(question)
            return None
        self._held.move_to_end(question)
        return answer, age

    def put(self, question: Question, answer: Answer, now: float) -> None:
        """Keeps an answer; one with a TTL of 0 is for those who wait for it, and no others."""
        self._drop(question)
        if answer.ttl <= 0:
            return
        self._held[question] = answer, now
        self._bytes += answer.size
        while len(self._held) > self._max_answers or self._bytes > self._max_bytes:
            self._drop(next(iter(self._held)))

    def _drop(self, question: Question) -> None:
        held = self._held.pop(question, None)
        if held is not None:
            self._bytes -= held[0].size
