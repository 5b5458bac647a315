"""How do nodes act as one? This file: the notices that a node knows of (pure)."""

import heapq
from collections.abc import Iterable
from typing import Final

from pubsub.control_message import Notice

# Those that have ended go a few at a time.
_ENDED_AT_ONCE: Final = 64


class Notices:
    """The latest notice of each name in one topic.

    Bounded: of more than `most` the longest unchanged goes (`dropped` counts). Those that have
    ended go by and by. Times are in s since 1970.
    """

    __slots__ = ("_ends", "_kept", "_most", "dropped")

    def __init__(self, most: int) -> None:
        self.dropped = 0
        self._most = most
        # The longest unchanged first.
        self._kept: dict[str, Notice] = {}
        self._ends: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, notice: Notice, now_s: float) -> bool:
        """Take a notice; False if it says nothing new, or has ended."""
        self._forget_ended(now_s)
        if notice.until_s <= now_s or not notice.exceeds(self._kept.get(notice.name)):
            return False
        self._kept.pop(notice.name, None)
        self._kept[notice.name] = notice
        heapq.heappush(self._ends, (notice.until_s, notice.name))
        if len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]
            self.dropped += 1
        if len(self._ends) > 2 * self._most + _ENDED_AT_ONCE:
            # Most of them are of notices that were replaced or dropped.
            self._ends = [(kept.until_s, name) for name, kept in self._kept.items()]
            heapq.heapify(self._ends)
        return True

    def all(self) -> Iterable[Notice]:
        """Return what is known; some may have ended."""
        return self._kept.values()

    def _forget_ended(self, now_s: float) -> None:
        for _ in range(_ENDED_AT_ONCE):
            if not self._ends or self._ends[0][0] > now_s:
                return
            until_s, name = heapq.heappop(self._ends)
            kept = self._kept.get(name)
            if kept is not None and kept.until_s == until_s:
                del self._kept[name]
