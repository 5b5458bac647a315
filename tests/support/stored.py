"""What an archive has of a channel, as the checker wants it."""

from typing import NamedTuple

from pubsub.archive import Archive, Query
from pubsub.errors import ArchiveUnavailable

_PAGE = 1_000


class Stored(NamedTuple):
    """Events as position, id and data; what is told to be missing, from behind up to."""

    events: list[tuple[str, str, str]]
    missing: list[tuple[str, str]]


async def read_stored(archive: Archive, channel: str) -> Stored:
    """Read all that an archive has, which is closed then; nothing where it does not answer."""
    found = Stored([], [])
    try:
        await archive.start()
        after = 0
        while page := await archive.read(Query(channel=channel, after=after, limit=_PAGE)):
            found.events.extend((str(e.position), e.id, e.data.decode().strip('"')) for e in page)
            after = page[-1].position.offset
        for gap in await archive.unarchived(channel):
            ends = (f"{gap.epoch}-{offset}-{'0' * 16}" for offset in (gap.first - 1, gap.last))
            found.missing.append((next(ends), next(ends)))
    except ArchiveUnavailable:
        return Stored([], [])
    finally:
        await archive.close()
    return found
