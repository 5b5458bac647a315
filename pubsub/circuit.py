"""How does an event get its position? This file: when a broker that is away is let be (pure)."""

import random
from collections.abc import Callable
from typing import Final

# Failures in a row that open the circuit.
_FAILURES: Final = 3
_PAUSE_S: Final = (0.1, 3.0)


class Circuit:
    """Opens after some failures in a row; while open, calls fail at once.

    Somebody then tries now and then, after `pause()`, and says how it went; one success closes the
    circuit. `openings` counts; `monotonic` is a clock in s, `uniform` makes jitter.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.openings = 0
        self.opened_at: float | None = None
        self._failures = 0
        self._pause = _PAUSE_S[0]
        self._monotonic = monotonic
        self._uniform = uniform

    @property
    def open(self) -> bool:
        """Whether calls should fail at once."""
        return self.opened_at is not None

    def succeeded(self) -> None:
        """Take note that the broker answered."""
        self._failures = 0
        self._pause = _PAUSE_S[0]
        self.opened_at = None

    def failed(self) -> bool:
        """Take note that the broker did not answer; True if this opened the circuit."""
        self._failures += 1
        if self.open or self._failures < _FAILURES:
            return False
        self.opened_at = self._monotonic()
        self.openings += 1
        return True

    def pause(self) -> float:
        """Return how long to wait before the next try, in s; grows from try to try."""
        pause, self._pause = self._pause, min(self._pause * 2, _PAUSE_S[1])
        return self._uniform(0.5, 1) * pause
