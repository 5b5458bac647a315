"""Where is an event kept? This file: what lets a single node go on after a restart."""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from pubsub.archive import Archive, Entry
from pubsub.position import Position
from pubsub.schedules import Schedule


class LedgerRecord(msgspec.Struct, frozen=True):
    """Where a channel stands: its top, a time in ms, its purge floor.

    The time is that of its last event, or later: one at which the channel was in use.
    """

    channel: str
    top: Position
    time: int
    floor: int


class PublishedId(msgspec.Struct, frozen=True, gc=False):
    """The id of an event and where it was published."""

    channel: str
    id: str
    position: Position


class Ledger(Archive, Protocol):
    """An archive that also keeps where each channel stands, in step with its events.

    `published` is for the start and may take longer than `call_timeout_s`.

    `idle_s` is set by the broker, and called from any thread: for how long, in s, a channel was of
    use to nobody, or None if the broker does not hold it. A record that is held is not swept, and
    a sweep takes down how long it has been idle.
    """

    idle_s: Callable[[str], float | None]

    async def fire(self, entries: Sequence[Entry], fired: Sequence[Schedule]) -> None:
        """Write entries and delete the schedules that are done with them: both or neither."""
        ...

    async def begin(self, record: LedgerRecord) -> None:
        """Keep where a channel stands that has no event yet, or began a new epoch.

        Safe to repeat, also after events: within an epoch a channel never goes back.
        """
        ...

    async def top(self, channel: str) -> LedgerRecord | None:
        """Return where a channel stands, or None if it is not known.

        Answers behind every write that was begun before, those too that were given up meanwhile.
        """
        ...

    async def last_time(self, channel: str) -> int:
        """Return the time of a channel's latest event, also of a purged one, 0 if there is none."""
        ...

    async def published(self, since_ms: int) -> Sequence[PublishedId]:
        """Return the ids of all events of that time or later, also of purged ones, oldest first."""
        ...
