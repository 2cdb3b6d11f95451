"""How often something may happen: token buckets, and once in a while."""

import math
from collections import OrderedDict
from collections.abc import Hashable


class RateLimit:
    """`rate` times a second, and `burst` at once after a rest. The keys are clients, of which there are few."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when there were so many

    def take(self, key: str, now: float) -> bool:
        """Whether it may happen once more now."""
        allowed = self.left(key, now) >= 1.0
        self.spend(key, 1.0 if allowed else 0.0, now)
        return allowed

    def left(self, key: str, now: float) -> float:
        """How often it may happen at once now; below 0 where more was spent than there was."""
        tokens, since = self._buckets.get(key, (self._burst, now))
        return min(tokens + (now - since) * self._rate, self._burst)

    def spend(self, key: str, amount: float, now: float) -> None:
        """It has happened so often, whether it might or not."""
        self._buckets[key] = self.left(key, now) - amount, now


class Once:
    """Remembers each key for so many seconds, and no more than `most` of them."""

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds, self._most = seconds, most
        self._seen: OrderedDict[Hashable, float] = OrderedDict()

    def seen(self, key: Hashable, now: float) -> bool:
        """Whether the key was noted lately."""
        return self._seen.get(key, -math.inf) > now - self._seconds

    def note(self, key: Hashable, now: float) -> None:
        """From now on it counts as seen."""
        self._seen[key] = now
        self._seen.move_to_end(key)
        if len(self._seen) > self._most:
            self._seen.popitem(last=False)
