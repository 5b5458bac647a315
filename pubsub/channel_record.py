"""How does an event get its position? This file: what is known of one channel in memory (pure)."""

from bisect import bisect_left, bisect_right
from math import inf
from operator import attrgetter
from typing import Final

from pubsub.event import Event
from pubsub.idempotency import ChannelIds
from pubsub.position import Position

# Events beyond the rule's size are cut off in strokes: one at a time would move the rest each time.
_MOST_SLACK: Final = 1_024

_offset_of = attrgetter("position.offset")


class ChannelRecord:
    """A channel: its top, its kept events and when they go.

    `events` may hold a few more than `size`, the rule's bound at the last publish. `fades` is the
    time of the record's entry among the fading (inf: none), `lapsing` says whether it has one
    among the lapsing, `listed` whether it is among the active.
    """

    __slots__ = (
        "events",
        "expires",
        "fades",
        "floor",
        "ids",
        "lapsing",
        "listed",
        "name",
        "size",
        "subscribed",
        "time",
        "top",
        "touched",
    )

    def __init__(self, name: str, top: Position, now: float) -> None:
        self.name = name
        self.top = top
        self.time = 0
        self.floor = 0
        self.events: list[Event] = []
        self.size = 0
        self.expires = -inf
        self.fades = inf
        self.ids = ChannelIds()
        self.lapsing = False
        self.listed = False
        self.subscribed = False
        self.touched = now

    def first(self) -> int:
        """Return the index of the first event that the rule keeps."""
        return max(0, len(self.events) - self.size)

    def keep(self, fresh: list[Event], size: int) -> None:
        """Append events and cut off what is beyond `size`."""
        events = self.events
        if size != self.size:
            del events[: self.first()]
            self.size = size
        events += fresh
        if len(events) > size + min(size >> 3, _MOST_SLACK):
            del events[: len(events) - size]

    def run(self, after: int, before: int | None, limit: int, newest: bool) -> tuple[Event, ...]:
        """Return kept events with after < offset < before, the first or last `limit` of them."""
        events = self.events
        low = bisect_right(events, after, lo=self.first(), key=_offset_of)
        high = len(events)
        if before is not None:
            high = bisect_left(events, before, lo=low, key=_offset_of)
        if high - low > limit:
            low, high = (high - limit, high) if newest else (low, low + limit)
        return tuple(events[low:high])

    def check_at(self, offset: int) -> str | None:
        """Return the check at an offset of the current epoch, or None if it is not known."""
        top = self.top
        if offset == top.offset:
            return top.check
        # Where an epoch began, an event of the one before may have the same offset.
        at = bisect_left(self.events, offset, lo=self.first(), key=_offset_of)
        for event in self.events[at : at + 2]:
            if event.position.epoch == top.epoch:
                if event.position.offset == offset:
                    return event.position.check
                if event.position.offset == offset + 1:
                    return event.prev
        return None
