"""Who is connected here? This file: durations as a histogram with logarithmic buckets (pure)."""

from collections.abc import Iterable
from math import exp, log
from typing import Final

_LEAST_S: Final = 1e-6
_MOST_S: Final = 1_000.0
# Buckets are so much wider than the one before: what is read is at most half of this wrong.
_STEP: Final = log(1.02)
_BASE: Final = log(_LEAST_S)
_LAST: Final = int((log(_MOST_S) - _BASE) / _STEP)


class Histogram:
    """Counts durations (s) from 1 us to 1,000 s; quantiles are within 1 %, the greatest exact.

    What lies outside counts in the first or the last bucket.
    """

    __slots__ = ("_counts", "greatest", "total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.total = 0
        self.greatest = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count a duration, `times` times."""
        if seconds <= _LEAST_S:
            place = 0
        else:
            place = min(_LAST, int((log(seconds) - _BASE) / _STEP))
        counts = self._counts
        counts[place] = counts.get(place, 0) + times
        self.total += times
        if seconds > self.greatest:
            self.greatest = seconds

    def merge(self, other: "Histogram") -> None:
        """Count all that another one has counted."""
        for place, times in other._counts.items():
            self._counts[place] = self._counts.get(place, 0) + times
        self.total += other.total
        self.greatest = max(self.greatest, other.greatest)

    def quantile(self, share: float) -> float:
        """Return the duration (s) that `share` of all do not exceed (0 to 1); 0 if there is none.

        The nearest-rank method: it is a duration that was counted, but for the bucket's width.
        """
        if not self.total:
            return 0.0
        rank = max(1, min(self.total, _ceil(share * self.total)))
        seen = 0
        for place in sorted(self._counts):
            seen += self._counts[place]
            if seen >= rank:
                middle = exp(_BASE + (place + 0.5) * _STEP)
                return min(middle, self.greatest)
        raise AssertionError("every rank is in a bucket")

    def quantiles_ms(self, shares: Iterable[float]) -> list[float]:
        """Return several quantiles in ms."""
        return [self.quantile(share) * 1000 for share in shares]


def _ceil(value: float) -> int:
    # 0.99 * 100 is a little over 99: without the rounding its rank would be 100.
    return -int(-round(value, 9) // 1)
