"""Where is an event kept? This file: what lets a single node go on after a restart."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from pubsub.archive import Archive, Entry
from pubsub.position import Position
from pubsub.schedules import Schedule


class LedgerRecord(msgspec.Struct, frozen=True):
    """Where a channel stands: its top, the time of its last event in ms, its purge floor."""

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
    """

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

    async def published(self, since_ms: int) -> Sequence[PublishedId]:
        """Return the ids of all events of that time or later, also of purged ones, oldest first."""
        ...
