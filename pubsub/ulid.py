"""How does an event get its id when the publisher gives none? This file: ULIDs (pure).

A ULID is 26 characters of Crockford's base 32: 48 bits of time in ms, then 80 random bits
(https://github.com/ulid/spec). The code is our own, since the budget of a batch is 6 us per event
and the libraries take most of that for one id.
"""

import secrets
import time
from collections.abc import Callable
from typing import Final

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Two characters, 10 bits.
_PAIRS: Final = tuple(a + b for a in _ALPHABET for b in _ALPHABET)
# The last 20 bits count; the 108 before them are written once for all ids that share them.
_LOW_BITS: Final = 20
_LOW_END: Final = 1 << _LOW_BITS
_HEAD_SHIFTS: Final = tuple(range(100, -1, -10))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class UlidFactory:
    """Makes ULIDs; each sorts behind the one before it, as text and as number.

    Within a ms, and when the clock steps back, the next one is the last one plus 1. `now_ms` is the
    wall clock in ms, `randbits(n)` gives n random bits.
    """

    __slots__ = ("_head", "_high", "_low", "_ms", "_now_ms", "_randbits")

    def __init__(
        self,
        now_ms: Callable[[], int] = _now_ms,
        randbits: Callable[[int], int] = secrets.randbits,
    ) -> None:
        self._now_ms = now_ms
        self._randbits = randbits
        self._ms = -1
        self._high = 0
        self._low = 0
        self._head = ""

    def __call__(self) -> str:
        """Return the next id."""
        ms = self._now_ms()
        if ms > self._ms:
            value = ms << 80 | self._randbits(80)
            self._low = low = value & (_LOW_END - 1)
            self._set_high(value >> _LOW_BITS)
        else:
            self._low = low = self._low + 1
            if low == _LOW_END:
                # The carry may reach the time's bits: order counts for more than a ms.
                self._low = low = 0
                self._set_high(self._high + 1)
        return self._head + _PAIRS[low >> 10] + _PAIRS[low & 1023]

    def _set_high(self, high: int) -> None:
        self._high = high
        self._ms = high >> 60
        self._head = "".join([_PAIRS[high >> shift & 1023] for shift in _HEAD_SHIFTS])
