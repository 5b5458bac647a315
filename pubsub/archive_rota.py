"""Where is an event kept? This file: when the archivist looks at which partition (pure)."""

import random
from collections.abc import Callable, Collection
from typing import Final

# Between two looks at a partition in which there was nothing, in s.
_IDLE_S: Final = (0.05, 1.0)
# Between two tries when something failed, in s.
_BACK_OFF_S: Final = (0.1, 30.0)


class _Turn:
    """When a partition is due, and the next pauses before it is."""

    __slots__ = ("at", "back_off", "idle")

    def __init__(self, at: float) -> None:
        self.at = at
        self.idle = _IDLE_S[0]
        self.back_off = 0.0


class Rota:
    """Says which partitions are due; times are in s, by a clock that the caller reads.

    Every partition that is due and taken must come back by one of `rest` and `fail`, and is not
    due in between. `uniform` makes jitter.
    """

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._turns: dict[int, _Turn] = {}
        self._busy: set[int] = set()
        # Woken while they were looked at.
        self._again: set[int] = set()

    @property
    def held(self) -> Collection[int]:
        """The partitions that there are."""
        return self._turns.keys()

    def hold(self, partitions: Collection[int], now: float) -> None:
        """Have these partitions from now on, and no others; new ones are due."""
        for lost in self._turns.keys() - partitions:
            del self._turns[lost]
        for partition in partitions:
            if partition not in self._turns:
                self._turns[partition] = _Turn(now)

    def take(self, now: float) -> list[int]:
        """Return what is due, the longest waiting first."""
        found = [
            (turn.at, partition)
            for partition, turn in self._turns.items()
            if turn.at <= now and partition not in self._busy
        ]
        due = [partition for _at, partition in sorted(found)]
        self._busy.update(due)
        return due

    def next_at(self) -> float | None:
        """Return when the next one is due, or None if that is not known."""
        times = (turn.at for each, turn in self._turns.items() if each not in self._busy)
        return min(times, default=None)

    def wake(self, partition: int, now: float) -> bool:
        """Make a partition due, since there is something in it; False if it is not now.

        One that failed waits for its time.
        """
        turn = self._turns.get(partition)
        if turn is None or turn.back_off:
            return False
        turn.idle = _IDLE_S[0]
        if partition in self._busy:
            self._again.add(partition)
            return False
        if turn.at <= now:
            return False
        turn.at = now
        return True

    def retry(self, now: float) -> None:
        """Make all due that failed, since what they failed by is there again."""
        for partition, turn in self._turns.items():
            if turn.back_off:
                turn.at = min(turn.at, now)
                if partition in self._busy:
                    self._again.add(partition)

    def rest(self, partition: int, now: float) -> None:
        """Take a partition back in which nothing is left."""
        turn = self._back(partition)
        if turn is not None:
            turn.back_off = 0.0
            turn.at = now + self._uniform(0.5, 1) * turn.idle
            turn.idle = min(turn.idle * 2, _IDLE_S[1])
            self._repeat(partition, turn, now)

    def well(self, partition: int) -> None:
        """Note that something of a partition was archived; it is not back yet."""
        turn = self._turns.get(partition)
        if turn is not None:
            turn.back_off = 0.0
            turn.idle = _IDLE_S[0]

    def fail(self, partition: int, now: float) -> None:
        """Take a partition back that failed; it is tried again after a growing while."""
        turn = self._back(partition)
        if turn is not None:
            turn.back_off = min(max(turn.back_off * 2, _BACK_OFF_S[0]), _BACK_OFF_S[1])
            turn.at = now + self._uniform(0.5, 1) * turn.back_off
            self._repeat(partition, turn, now)

    def _back(self, partition: int) -> _Turn | None:
        self._busy.discard(partition)
        turn = self._turns.get(partition)
        if turn is None:
            self._again.discard(partition)
        return turn

    def _repeat(self, partition: int, turn: _Turn, now: float) -> None:
        if partition in self._again:
            self._again.discard(partition)
            turn.at = now
