"""What the tests of archives stand on: events that chain, and archives over real databases."""

import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pymongo
import pytest

from mongo_server import MISSING, mongo_is_missing, shared_mongo_url
from pubsub.archive import Archive, Kept, Query
from pubsub.archive_url import parse_archive_url
from pubsub.event import Event
from pubsub.mongo_archive import MongoArchive
from pubsub.position import Position, chain, start
from pubsub.schedules import Schedules
from pubsub.sqlite_archive import SqliteArchive

A = TypeVar("A", bound=Archive)

EPOCH = "00000000000000e1"
LATER_EPOCH = "00000000000000e2"
# In ms since 1970; an event's time is this plus ten times its offset, unless said otherwise.
TIME = 1_789_000_000_000


@dataclass(slots=True)
class ArchiveRig:
    """An archive that is started, and a way to open further ones on the same database."""

    archive: Archive
    another: Callable[[], AbstractAsyncContextManager[Archive]]

    @property
    def schedules(self) -> Schedules:
        """What the archive keeps to be published later."""
        return schedules_of(self.archive)

    async def offsets(self, channel: str = "a.b", **query: Any) -> list[int]:
        """The offsets of what a query finds."""
        query.setdefault("limit", 1_000)
        found = await self.archive.read(Query(channel=channel, **query))
        return [event.position.offset for event in found]

    async def ids(self, channel: str = "a.b", **query: Any) -> list[str]:
        """The ids of what a query finds."""
        query.setdefault("limit", 1_000)
        return [event.id for event in await self.archive.read(Query(channel=channel, **query))]


class OpenArchive(Protocol):
    """Opens a rig over a new, empty database, and removes that again."""

    def __call__(self) -> AbstractAsyncContextManager[ArchiveRig]: ...


@asynccontextmanager
async def started(archive: A) -> AsyncIterator[A]:
    """Start an archive, and close it again."""
    try:
        await archive.start()
        yield archive
    finally:
        await archive.close()


def schedules_of(archive: Archive) -> Schedules:
    """Return the schedules in the database of an archive."""
    assert isinstance(archive, SqliteArchive | MongoArchive)
    return archive.schedules


@asynccontextmanager
async def _open_sqlite() -> AsyncIterator[ArchiveRig]:
    with tempfile.TemporaryDirectory(prefix="archive-") as folder:

        def another() -> AbstractAsyncContextManager[Archive]:
            path = str(Path(folder) / "archive.db")
            return started(SqliteArchive(path, keep_ids_s=0, clock_ms=lambda: TIME))

        async with another() as archive:
            yield ArchiveRig(archive, another)


@asynccontextmanager
async def _open_mongo() -> AsyncIterator[ArchiveRig]:
    url = shared_mongo_url()
    name = f"{parse_archive_url(url).database}_{secrets.token_hex(6)}"

    def another() -> AbstractAsyncContextManager[Archive]:
        return started(MongoArchive(url, name, call_timeout_s=30.0, clock_ms=lambda: TIME))

    try:
        async with another() as archive:
            yield ArchiveRig(archive, another)
    finally:
        with pymongo.MongoClient[dict[str, Any]](url) as client:
            client.drop_database(name)


# Every archive stands here, as parameters of a test that is skipped where a part is missing.
ARCHIVE_PARAMS = [
    pytest.param(_open_sqlite, id="sqlite"),
    pytest.param(
        _open_mongo, id="mongo", marks=pytest.mark.skipif(mongo_is_missing(), reason=MISSING)
    ),
]


def events(
    count: int,
    *,
    channel: str = "a.b",
    after: Position | None = None,
    prefix: str = "x",
    time: int | None = None,
    **parts: Any,
) -> list[Event]:
    """Return events that chain, by default the first of a channel."""
    before = after or start(EPOCH)
    found = []
    for offset in range(before.offset + 1, before.offset + count + 1):
        event_id = f"{prefix}{offset}"
        position = Position(before.epoch, offset, chain(before.check, event_id))
        at = TIME + 10 * offset if time is None else time
        rest = {"name": "message", "data": b'{"x":1}', **parts}
        found.append(Event(channel, position, before.check, event_id, time=at, **rest))
        before = position
    return found


def kept(found: Sequence[Event], expires: int = 0) -> list[Kept]:
    """Return events on their way into the archive."""
    return [Kept(event, expires) for event in found]
