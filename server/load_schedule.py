"""Who is connected here? This file: when the events of a load are due (pure).

Latency counts from these times. Were it counted from when an event was really sent, a server that
is slow would hold up the clock too, and look fast (coordinated omission).
"""

from typing import Final

# Messages that go out before what has come is read again.
_MOST_AT_ONCE: Final = 64


class Schedule:
    """Messages of `batch` events, evenly over time, so that `rate` events are due in a second."""

    __slots__ = ("_every_s", "_next", "_start")

    def __init__(self, rate: float, batch: int, start: float) -> None:
        if rate <= 0 or batch < 1:
            raise ValueError("a schedule needs a rate and a batch above zero")
        self._every_s = batch / rate
        self._start = start
        self._next = 0

    @property
    def next_due(self) -> float:
        """Return when the next message is due."""
        # By multiplication, so that the error does not grow.
        return self._start + self._next * self._every_s

    def due(self, now: float, until: float) -> list[float]:
        """Return when the messages were due that are by `now`, but not those from `until` on.

        Each is returned once. No more than some at once: the rest follow with the next call.
        """
        found: list[float] = []
        while len(found) < _MOST_AT_ONCE and (at := self.next_due) <= now and at < until:
            found.append(at)
            self._next += 1
        return found
