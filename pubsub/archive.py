"""Where is an event kept? This file: the archive's interface."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from pubsub.event import Event
from pubsub.position import Position


class Kept(msgspec.Struct, frozen=True, gc=False):
    """An event on its way into the archive.

    `expires` is in ms since 1970 (0: never). It is kept until then at least, and is gone from
    reads some time after.
    """

    event: Event
    expires: int = 0


class Purged(msgspec.Struct, frozen=True):
    """The events of a channel up to and including `floor` are to be deleted.

    Those are all that were written before it, but for later ones of the floor's own epoch.
    """

    channel: str
    floor: Position


class Unarchived(msgspec.Struct, frozen=True):
    """Events of a channel that were acknowledged and never came into the archive.

    Their offsets are `first` to `last`, both included; `time` in ms since 1970 is of the last.
    """

    channel: str
    epoch: str
    first: int
    last: int
    time: int


Entry = Kept | Purged | Unarchived


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which events to read: after < offset < before, since_ms <= time < until_ms.

    At most `limit`: the oldest of them, or the newest when `newest`.
    """

    channel: str
    after: int = 0
    before: int | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    limit: int
    newest: bool = False


class Archive(Protocol):
    """Keeps events for good, or for a time. The key is channel, epoch, offset and check.

    Every call may raise ArchiveUnavailable, after `call_timeout_s` at the latest; only `start` may
    take longer, for as long as a migration does. Safe to cancel; a write that was cancelled may
    still be done.
    """

    async def start(self) -> None:
        """Open it, and make or migrate what it needs; may be called again after a failure."""
        ...

    async def write(self, entries: Sequence[Entry]) -> None:
        """Take entries in order; what returns is durable, what raises may be.

        Safe to repeat, also after later entries: an event that is there stays as it is, and one
        at or below the floor of a purge stays away. All of the entries or, where the database
        cannot, a part of them, which the same write again completes.
        """
        ...

    async def read(self, query: Query) -> list[Event]:
        """Return events, oldest first: by offset, of equal ones by time.

        They need not chain: where a fail-over lost a tail, two epochs, or even two events of one
        epoch, may have the same offset.
        """
        ...

    async def unarchived(
        self, channel: str, *, after: int = 0, before: int | None = None
    ) -> list[Unarchived]:
        """Return what is known to be missing between two offsets, by offset; 1,000 at most."""
        ...

    async def channels(self, *, prefix: str = "", after: str = "", limit: int) -> list[str]:
        """Return the names of channels that have events, by name; sorting behind `after`."""
        ...

    async def sweep(self, now_ms: int, limit: int) -> int:
        """Delete at most about `limit` events that have expired; return how many were deleted."""
        ...

    async def close(self) -> None:
        """Let go of all resources; may be called twice."""
        ...
