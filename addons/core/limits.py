"""
More than its share: token buckets and counts of what is open, by key. The clock comes in as `now`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MAX_KEYS = 50_000  # distinct callers remembered; 200 bytes each. Beyond, full buckets are forgotten first


class Buckets:
    """One token bucket per key: `rate` tokens a second, at most `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._levels: dict[str, tuple[float, float]] = {}  # key -> (tokens, seconds when counted)

    def take(self, key: str, now: float) -> bool:
        """Take one token; False when there is none. A rate of 0 means no limit."""
        if self.rate <= 0:
            return True
        tokens, then = self._levels.get(key, (self.burst, now))
        tokens = min(self.burst, tokens + max(0.0, now - then) * self.rate)
        allowed = tokens >= 1
        if key not in self._levels and len(self._levels) >= MAX_KEYS:
            self._forget(now)
        self._levels[key] = (tokens - 1 if allowed else tokens, now)
        return allowed

    def _forget(self, now: float) -> None:
        # Buckets that are full again say nothing. If all are in use, the longest idle half goes:
        # direction: memory is bounded and a returning caller gets a full bucket.
        filled = [k for k, (tokens, then) in self._levels.items() if tokens + (now - then) * self.rate >= self.burst]
        if not filled:
            filled = sorted(self._levels, key=lambda k: self._levels[k][1])[: MAX_KEYS // 2]
        for key in filled:
            del self._levels[key]


class Allowance:
    """One bucket of which more can be earned than time gives: `rate` a second, at most `most` at once."""

    __slots__ = ("_left", "_then", "most", "rate")

    def __init__(self, rate: float, most: float, now: float) -> None:
        self.rate = rate
        self.most = most
        self._left = most
        self._then = now

    def earn(self, more: float) -> None:
        self._left = min(self.most, self._left + more)

    def spend(self, now: float, cost: float = 1) -> bool:
        """Spend so much; False, and nothing spent, when there is less."""
        self.earn(max(0.0, now - self._then) * self.rate)
        self._then = now
        if self._left < cost:
            return False
        self._left -= cost
        return True


class Shares:
    """How many things each key has open, at most `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: dict[str, int] = {}

    def borrow(self, key: str) -> bool:
        """Count one more; False, and nothing counted, when there are `most`. 0 means no limit."""
        count = self._open.get(key, 0)
        if 0 < self.most <= count:
            return False
        self._open[key] = count + 1
        return True

    def give_back(self, key: str) -> None:
        count = self._open.get(key, 0) - 1
        if count > 0:
            self._open[key] = count
        else:
            self._open.pop(key, None)

    def of(self, key: str) -> int:
        return self._open.get(key, 0)


def fits(held: Iterable[tuple[str, int]], key: str, size: int, most: int) -> bool:
    """
    Whether `size` more bytes of this key fit beside what is held, as (key, bytes). Of all room one key gets
    half, so that one caller does not take it from all others.
    """
    total = own = size
    for other, count in held:
        total += count
        own += count if other == key else 0
    return total <= most and own <= most // 2


@dataclass(slots=True)
class _Line:
    since: float
    count: int = 0


class Digest:
    """At most one log line a second for each subject, with how many it stands for."""

    def __init__(self, every: float = 1.0) -> None:
        self.every = every  # seconds
        self._lines: dict[str, _Line] = {}

    def note(self, subject: str, now: float) -> int:
        """Count one; returns how many to log now, 0 for none yet."""
        line = self._lines.get(subject)
        # Also when the clock was put back: nobody is to hear nothing for as long.
        if line is None or not 0 <= now - line.since < self.every:
            count = 1 + (line.count if line else 0)
            if len(self._lines) >= MAX_KEYS:
                self._lines.clear()
            self._lines[subject] = _Line(now)
            return count
        line.count += 1
        return 0
