"""An archive in memory that is written and not read; see `pubsub.archive.Archive`."""

from dataclasses import dataclass, field

from pubsub.archive import Entry, Kept, Purged, Query, Unarchived
from pubsub.event import Event

Key = tuple[str, str, int, str]


@dataclass(slots=True)
class KeptEntries:
    """What was written. Writing is idempotent, and nothing comes back that was purged."""

    kept: dict[Key, Kept] = field(default_factory=dict)
    floors: dict[str, int] = field(default_factory=dict)
    gaps: list[Unarchived] = field(default_factory=list)

    def gaps_of(self, channel: str) -> list[Unarchived]:
        return [gap for gap in self.gaps if gap.channel == channel]

    def take(self, entry: Entry) -> bool:
        """Write an entry; say whether it is one to keep that was not there."""
        if isinstance(entry, Purged):
            floor = max(self.floors.get(entry.channel, 0), entry.floor.offset)
            self.floors[entry.channel] = floor
            for key in [k for k in self.kept if k[0] == entry.channel and k[2] <= floor]:
                del self.kept[key]
            return False
        if isinstance(entry, Unarchived):
            new = entry not in self.gaps
            if new:
                self.gaps.append(entry)
            return new
        channel, at = entry.event.channel, entry.event.position
        key = (channel, at.epoch, at.offset, at.check)
        new = at.offset > self.floors.get(channel, 0) and key not in self.kept
        if new:
            self.kept[key] = entry
        return new


class NotRead:
    """The rest of an archive, for tests of what writes to it."""

    __slots__ = ()

    async def read(self, query: Query) -> list[Event]:
        raise NotImplementedError

    async def unarchived(
        self, channel: str, *, after: int = 0, before: int | None = None
    ) -> list[Unarchived]:
        raise NotImplementedError

    async def channels(self, *, prefix: str = "", after: str = "", limit: int) -> list[str]:
        raise NotImplementedError

    async def sweep(self, now_ms: int, limit: int) -> int:
        raise NotImplementedError

    async def close(self) -> None:
        pass
