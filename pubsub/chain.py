"""Where is an event kept? This file: whether events from several places are one chain (pure)."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from pubsub.event import Event
from pubsub.position import Position

# As many events have the same offset, at most, but for a channel that forked ever so often.
_NEAR: Final = 16


class Gap(NamedTuple):
    """Events between two positions are missing; `after` is the last one known before them."""

    after: Position
    before: Position


def follows(first: Position, second: Event) -> bool:
    """Say whether nothing is missing between a position and an event.

    An event that begins an epoch follows whatever was before: its offset may leap.
    """
    at = second.position
    if at.epoch == first.epoch:
        return at.offset == first.offset + 1 and second.prev == first.check
    return begins_epoch(second) and at.offset > first.offset


def begins_epoch(event: Event) -> bool:
    """Say whether an event is the first of its epoch."""
    return event.prev == event.position.epoch


def gaps(events: Sequence[Event]) -> Iterator[Gap]:
    """Yield where neighbours do not follow each other."""
    for first, second in pairwise(events):
        if not follows(first.position, second):
            yield Gap(first.position, second.before())


def leaps(events: Sequence[Event]) -> Iterator[Gap]:
    """Yield where an epoch begins further on than one behind the event before it.

    It follows that one, and yet the end of the epoch before may be missing: nothing shows it.
    """
    for first, second in pairwise(events):
        start = second.before()
        if follows(first.position, second) and start.offset > first.position.offset:
            yield Gap(first.position, start)


def straighten(events: Sequence[Event], later: Sequence[Event] = ()) -> list[Event]:
    """Return `events`, given by offset, without those that a fail-over made untrue, and `later`.

    `later` are events behind them that are known to be true. What comes later decides: an event
    stays if the next one that stays follows it, or if events between them are missing. So of two
    events at one place stays the one that was continued. Where that does not show, the furthest
    goes on, unless there is a later one of another epoch that takes its place: an end that was
    lost may be longer than the whole epoch that began in its stead.
    """
    latest = _latest(events)
    kept = [*reversed(later)]
    for number in range(len(events) - 1, -1, -1):
        event = events[number]
        if not kept or _may_follow(event, kept[-1]):
            best = latest[number]
            if _joins(event, kept) or not _replaces(events, best, event):
                kept.append(event)
    return kept[::-1]


def _may_follow(event: Event, later: Event) -> bool:
    at, next_at = event.position, later.position
    if at.offset >= next_at.offset:
        return False
    if at.offset + 1 < next_at.offset:
        return True
    return begins_epoch(later) or _joins(event, [later])


def _joins(event: Event, kept: Sequence[Event]) -> bool:
    """Say whether the checks show that an event is the one before the last of `kept`."""
    return bool(kept) and kept[-1].before() == event.position


def _latest(events: Sequence[Event]) -> list[int]:
    """Return, for each event, which one up to it has the latest time."""
    found: list[int] = []
    for number, event in enumerate(events):
        best = found[-1] if found else number
        found.append(number if event.time >= events[best].time else best)
    return found


def _replaces(events: Sequence[Event], number: int, event: Event) -> bool:
    """Say whether one of the events began in another epoch, where that of `event` had events."""
    other, epoch = events[number].position, event.position.epoch
    return other.epoch != epoch and any(
        each.position.offset == other.offset and each.position.epoch == epoch
        for each in events[max(0, number - _NEAR) : number + _NEAR]
    )
