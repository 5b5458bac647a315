"""Who is connected here, and what may they do? This file: how durations are distributed.

The library's own histogram locks for each bucket and for the sum, since it may be used by several
threads; ours is used by one, for each publish and for each flush. What a scrape shows is the same.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Histogram(Collector):
    """Counts observations by buckets; each bucket ends with its bound, the last has none.

    Not safe for several threads.
    """

    __slots__ = ("_bounds", "_counts", "_created", "_name", "_sum", "_text")

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._created = time.time()

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        """Return the family as it is now."""
        bounds = [str(float(bound)) for bound in self._bounds]
        buckets = list(zip([*bounds, "+Inf"], accumulate(self._counts), strict=True))
        family = HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)
        family.add_sample(f"{self._name}_created", {}, self._created)
        yield family
