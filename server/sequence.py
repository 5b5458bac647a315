"""Who is connected here? This file: a channel's gap-free sequence, as one node has it (pure)."""

from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import islice

from pubsub.event import Event
from pubsub.position import Position


class Verdict(Enum):
    """What an event is to a sequence."""

    NEXT = "it chains to the top"
    KNOWN = "it was accepted before"
    GAP = "events are missing before it"
    FORK = "it contradicts what was accepted"


class ChannelSequence:
    """The top of a channel and its recent events, each chained to the one before.

    The ring holds the last `size` events without a gap, up to the top; never any at or below the
    floor, nor of an earlier epoch. `asked`: history was asked for all that the ring has room for.
    """

    __slots__ = ("asked", "floor", "ring", "top")

    def __init__(self, top: Position, size: int, floor: int = 0) -> None:
        self.top = top
        self.floor = floor
        self.asked = False
        self.ring: deque[Event] = deque(maxlen=size)

    def judge(self, event: Event) -> Verdict:
        """Say what `event` is; changes nothing."""
        at, top = event.position, self.top
        if at.epoch != top.epoch:
            return Verdict.FORK
        if at.offset > top.offset:
            if at.offset > top.offset + 1:
                return Verdict.GAP
            return Verdict.NEXT if event.prev == top.check else Verdict.FORK
        known = self.at(at.offset)
        return Verdict.KNOWN if known is not None and known.check == at.check else Verdict.FORK

    def accept(self, events: Sequence[Event]) -> None:
        """Take events that chain to the top (judged before) and to each other."""
        self.ring.extend(events)
        self.top = events[-1].position

    def backfill(self, events: Sequence[Event]) -> bool:
        """Put before the ring what was read from history, as far as it chains and fits.

        Returns whether `events` reach up to the ring. Each link is compared, so that a read which
        was overtaken by a fork, a purge or a new epoch adds nothing that is not of this sequence.
        """
        ring, floor = self.ring, self.floor
        bottom = self.bottom()
        reaches = bool(events) and events[-1].position.offset >= bottom.offset
        # A full ring would push out its newest event.
        room = self.room()
        for event in reversed(events):
            if event.position.offset > bottom.offset:
                continue
            if not room or event.position != bottom or bottom.offset <= floor:
                break
            ring.appendleft(event)
            bottom = event.before()
            room -= 1
        return reaches

    def room(self) -> int:
        """Return how many more events, of those before it, the ring can take."""
        above = self.bottom().offset - self.floor
        return max(0, min((self.ring.maxlen or 0) - len(self.ring), above))

    def bottom(self) -> Position:
        """Return the position before the first event of the ring; the top if that is empty."""
        return self.ring[0].before() if self.ring else self.top

    def at(self, offset: int) -> Position | None:
        """Return the position at `offset`, if the ring or the top tells it."""
        if offset == self.top.offset:
            return self.top
        ring = self.ring
        if not ring:
            return None
        place = offset - ring[0].position.offset
        if place == -1:
            return ring[0].before()
        return ring[place].position if 0 <= place < len(ring) else None

    def since(self, position: Position, limit: int) -> list[Event] | None:
        """Return the events that follow `position`, at most `limit`; None if the ring cannot tell.

        None too if the position is not one of this sequence.
        """
        if position.offset < self.floor or self.at(position.offset) != position:
            return None
        start = len(self.ring) - (self.top.offset - position.offset)
        return list(islice(self.ring, start, start + limit))

    def purge(self, floor: int) -> None:
        """Drop the events up to and including `floor`."""
        self.floor = max(self.floor, floor)
        while self.ring and self.ring[0].position.offset <= floor:
            self.ring.popleft()

    def restart(self, top: Position) -> None:
        """Begin anew at `top`: what was before cannot be continued from here."""
        self.top = top
        # What lies below is for the broker's history to tell, whatever was purged of it.
        self.floor = 0
        self.asked = False
        self.ring.clear()


def continued(after: Position, events: Sequence[Event], limit: int) -> Sequence[Event]:
    """Return those of `events`, given by offset, that continue `after` without a gap."""
    first = 0
    while first < len(events) and events[first].position.offset <= after.offset:
        first += 1
    last, at = first, after
    while last < len(events) and last - first < limit and chained(at, events[last : last + 1]):
        at = events[last].position
        last += 1
    return events[first:last]


def chained(after: Position, events: Iterable[Event]) -> bool:
    """Say whether `events` continue `after` without a gap."""
    epoch, offset, check = after.epoch, after.offset, after.check
    for event in events:
        at = event.position
        if at.epoch != epoch or at.offset != offset + 1 or event.prev != check:
            return False
        offset, check = at.offset, at.check
    return True
