"""Who is connected here? This file: when a process that ended is started again."""

import random
from collections.abc import Callable
from typing import Final

_FIRST_S: Final = 0.5
_LONGEST_S: Final = 30.0
_HEALTHY_S: Final = 60.0


class BackOff:
    """How long to wait before something that ended is started again: from 0.5 s, doubling to 30 s.

    Each time is jittered, down to its half. What was well for 60 s begins anew.
    """

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._next_s = _FIRST_S

    def delay_s(self, healthy_s: float) -> float:
        """Return the delay, given for how long it was well."""
        delay_s = _FIRST_S if healthy_s >= _HEALTHY_S else self._next_s
        self._next_s = min(delay_s * 2, _LONGEST_S)
        return delay_s * (0.5 + self._jitter() / 2)
