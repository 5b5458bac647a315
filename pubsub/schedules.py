"""Where is an event kept? This file: events that are to be published at a time, and their claims.

A claim is of a channel, not of one event: who has it publishes all that is due there, so that a
channel's events keep their order although many nodes look for what is due.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Protocol

import msgspec

from pubsub.event import Draft

Key = tuple[str, str]


class Schedule(msgspec.Struct, frozen=True, gc=False):
    """An event that is to be published at `deliver_at`, in ms since 1970, with the draft's id.

    `serial`, 16 hexadecimal digits, tells it from an earlier one of the same channel and id.
    """

    draft: Draft
    deliver_at: int
    serial: str

    @property
    def key(self) -> Key:
        """Its channel and id."""
        return self.draft.channel, self.draft.id

    def is_same(self, other: "Schedule") -> bool:
        """Say whether both ask for the same."""
        return self.draft == other.draft and self.deliver_at == other.deliver_at


class Added(Enum):
    """What became of a schedule that was to be added."""

    NEW = "new"
    SAME = "the same stands already"
    OTHER = "another one of that channel and id stands already"
    FULL = "the channel has as many as it may"


class Claimed(msgspec.Struct, frozen=True):
    """What is due in channels that were claimed, by time; `dropped` counts what was unreadable."""

    schedules: tuple[Schedule, ...] = ()
    dropped: int = 0


class Schedules(Protocol):
    """Keeps schedules until they are done; times are in ms since 1970, by whatever clock.

    Every call may raise ArchiveUnavailable. What returns is durable, what raises may be.
    """

    async def add(self, schedules: Sequence[Schedule], most: int) -> list[Added]:
        """Add schedules; the answers stand in their order. Safe to repeat.

        A channel takes `most` (0: no bound); nodes may together pass it by what they add at once.
        """
        ...

    async def find(self, channel: str, event_id: str) -> Schedule | None:
        """Return a channel's schedule of that id."""
        ...

    async def page(
        self,
        channel: str,
        *,
        after: tuple[int, str] = (-1, ""),
        user: str | None = None,
        limit: int,
    ) -> list[Schedule]:
        """Return a channel's schedules, of one user or all, by (deliver_at, id), behind `after`."""
        ...

    async def earliest(self, after_ms: int = -1) -> int | None:
        """Return the earliest time behind `after_ms` for which there is a schedule."""
        ...

    async def pending(self) -> int:
        """Return how many there are."""
        ...

    async def claim(self, holder: str, now_ms: int, till_ms: int, limit: int) -> Claimed:
        """Claim channels that have something due, and return that, at most `limit`.

        Channels whose claim stands, whoever has it, are passed over. The new claims end at
        `till_ms`: from then on another one may claim the same. What is unreadable is deleted.
        """
        ...

    async def keep(self, holder: str, channels: Sequence[str], till_ms: int) -> None:
        """Let the holder's claims on channels end at another time."""
        ...

    async def release(self, holder: str, channels: Sequence[str]) -> None:
        """Give up the holder's claims on channels."""
        ...

    async def remove(self, schedules: Sequence[Schedule]) -> int:
        """Delete schedules, be they claimed or not; return how many were there."""
        ...


def sort_out(
    schedules: Sequence[Schedule],
    known: Mapping[Key, Schedule],
    counts: Mapping[str, int],
    most: int,
) -> tuple[list[Added], list[Schedule]]:
    """Return what becomes of schedules, and those that are new (pure).

    `known` are those that stand, `counts` how many there are by channel.
    """
    seen = dict(known)
    room = {channel: most - count for channel, count in counts.items()}
    answers: list[Added] = []
    fresh: list[Schedule] = []
    for schedule in schedules:
        channel = schedule.draft.channel
        other = seen.get(schedule.key)
        if other is not None:
            answers.append(Added.SAME if other.is_same(schedule) else Added.OTHER)
        elif most and room.get(channel, most) <= 0:
            answers.append(Added.FULL)
        else:
            room[channel] = room.get(channel, most) - 1
            seen[schedule.key] = schedule
            fresh.append(schedule)
            answers.append(Added.NEW)
    return answers, fresh
