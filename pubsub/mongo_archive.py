"""Where is an event kept? This file: the archive in a MongoDB. The only one that knows Motor."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import groupby
from typing import Any, Final

from bson.datetime_ms import DatetimeMS
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import ASCENDING, DESCENDING
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError

from pubsub.archive import Entry, Kept, Purged, Query, Unarchived
from pubsub.errors import ArchiveUnavailable
from pubsub.event import Event
from pubsub.mongo_documents import (
    BLANK,
    EVENT_PARTS,
    Document,
    event_document,
    event_filter,
    floor_id,
    only_duplicates,
    read_event,
    read_unarchived,
    unarchived_document,
)
from pubsub.mongo_schedules import MongoSchedules
from pubsub.position import Position

_SELECTION_MS: Final = 2_000
_MOST_UNARCHIVED: Final = 1_000
# Motor's threads are five for each core; those that read leave some to whoever writes.
_MOST_READING: Final = 4

_OTHER_OPTIONS: Final = 85
_NOT_IMPLEMENTED: Final = 238

_LAST: Final = "\U0010ffff"

Floors = dict[tuple[str, str], int]


class MongoArchive:
    """Keeps events in a MongoDB; see `Archive` for what it promises.

    - `url`, `database`: as in an `ArchiveTarget`.
    - `call_timeout_s`: see `Archive`. A server that is away is given up after 2 s already.
    - `keep_purged_s`: how long the key of a purged event stays, so that a slow writer cannot bring
      the event back. What it held goes at once.
    - `clock_ms`: the time in ms since 1970.

    Writes wait for a majority and its journals, reads show what a majority has. A server with TTL
    indexes deletes what has expired by itself, within about a minute; `sweep` does so on any.
    """

    def __init__(
        self,
        url: str,
        database: str,
        *,
        call_timeout_s: float = 5.0,
        keep_purged_s: float = 86_400.0,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._url = url
        self._name = database
        self._call_timeout_s = call_timeout_s
        self._keep_purged_ms = round(keep_purged_s * 1000)
        self._clock_ms = clock_ms
        self._client: Any = None
        self._events: Any = None
        self._floors: Any = None
        self._unarchived: Any = None
        self._reading = asyncio.Semaphore(_MOST_READING)
        self._writing = asyncio.Lock()
        self.schedules = MongoSchedules(partial(self._calling, started=True))

    # ---- start and end

    async def start(self) -> None:
        async with self._calling():
            database = (await self._connected())[self._name]
            events = database["events"]
            await events.create_index(_ascending("channel", "offset", "time"))
            await events.create_index(_ascending("channel", "time", "offset"))
            await _expire(events)
            await database["floors"].create_index(_ascending("channel"))
            await database["unarchived"].create_index(_ascending("channel", "first"))
            await self.schedules.open(database)
            self._floors, self._unarchived = database["floors"], database["unarchived"]
            self._events = events

    async def close(self) -> None:
        client, self._client, self._events = self._client, None, None
        if client is not None:
            # It says goodbye to the server.
            await asyncio.to_thread(client.close)

    async def look(self) -> tuple[int, bool]:
        """Return about how many events there are, and whether the server is a replica set.

        Changes nothing and needs no `start`. Raises ArchiveUnavailable.
        """
        async with self._calling():
            client = await self._connected()
            hello = await client.admin.command("hello")
            events = await client[self._name]["events"].estimated_document_count()
        return int(events), "setName" in hello or hello.get("msg") == "isdbgrid"

    async def _connected(self) -> Any:
        if self._client is None:
            # In a thread, since an address with `+srv` may be looked up at once.
            self._client = await asyncio.to_thread(self._connect, asyncio.get_running_loop())
        return self._client

    def _connect(self, loop: asyncio.AbstractEventLoop) -> Any:
        return AsyncIOMotorClient(
            self._url,
            io_loop=loop,
            appname="galecast",
            w="majority",
            journal=True,
            readConcernLevel="majority",
            readPreference="primary",
            serverSelectionTimeoutMS=_SELECTION_MS,
            connectTimeoutMS=_SELECTION_MS,
            timeoutMS=round(self._call_timeout_s * 1000),
        )

    # ---- writing

    async def write(self, entries: Sequence[Entry]) -> None:
        async with self._calling(started=True), self._writing:
            for kind, run in groupby(entries, type):
                if kind is Purged:
                    for entry in run:
                        assert isinstance(entry, Purged)  # noqa: S101
                        await self._purge(entry.channel, entry.floor)
                else:
                    await self._add([entry for entry in run if not isinstance(entry, Purged)])

    async def _add(self, entries: Sequence[Kept | Unarchived]) -> None:
        floors = await self._read_floors({_channel(entry) for entry in entries})
        events = [
            event_document(entry)
            for entry in entries
            if isinstance(entry, Kept)
            and _is_above(entry.event.channel, entry.event.position, floors)
        ]
        missing = [
            unarchived_document(entry)
            for entry in entries
            if isinstance(entry, Unarchived)
            and entry.last > floors.get((entry.channel, entry.epoch), 0)
        ]
        await _insert(self._events, events)
        await _insert(self._unarchived, missing)

    async def _purge(self, channel: str, floor: Position) -> None:
        others = await self._other_epochs(channel, floor.epoch)
        # Only now: who finds epochs that began after this purge also finds its floor, which was
        # there before them, and must not touch them.
        floors = await self._read_floors([channel])
        if floors.get((channel, floor.epoch), 0) >= floor.offset:
            return
        for other in others:
            await self._raise_floor(channel, other)
            await self._blank(channel, other)
        await self._blank(channel, floor)
        # Last, so that a purge that was broken off is done again.
        await self._raise_floor(channel, floor)

    async def _other_epochs(self, channel: str, epoch: str) -> list[Position]:
        seen = [epoch]
        found: list[Position] = []
        while True:
            document = await self._events.find_one(
                {"channel": channel, "epoch": {"$nin": seen}},
                sort=[("offset", DESCENDING)],
            )
            if document is None:
                return found
            top = Position(document["epoch"], document["offset"], document["check"])
            seen.append(top.epoch)
            found.append(top)

    async def _blank(self, channel: str, floor: Position) -> None:
        # The keys stay for a while: a writer that looked for floors before this cannot bring the
        # events back.
        gone = DatetimeMS(self._clock_ms() + self._keep_purged_ms)
        where = {"channel": channel, "epoch": floor.epoch}
        await self._events.update_many(
            {**where, "offset": {"$lte": floor.offset}},
            {"$unset": BLANK, "$set": {"expires": gone}},
        )
        await self._unarchived.delete_many({**where, "last": {"$lte": floor.offset}})

    async def _raise_floor(self, channel: str, floor: Position) -> None:
        await self._floors.update_one(
            {"_id": floor_id(channel, floor)},
            {
                "$max": {"offset": floor.offset},
                "$set": {"channel": channel, "epoch": floor.epoch},
            },
            upsert=True,
        )

    async def _read_floors(self, channels: Collection[str]) -> Floors:
        found = await self._floors.find({"channel": {"$in": list(channels)}}).to_list(None)
        return {(each["channel"], each["epoch"]): each["offset"] for each in found}

    async def sweep(self, now_ms: int, limit: int) -> int:
        if limit <= 0:
            return 0
        async with self._calling(started=True), self._writing:
            expired = {"expires": {"$lte": DatetimeMS(now_ms)}}
            found = await self._events.find(expired, {"_id": True}).limit(limit).to_list(None)
            if not found:
                return 0
            keys = [document["_id"] for document in found]
            result = await self._events.delete_many({"_id": {"$in": keys}})
            return int(result.deleted_count)

    # ---- reading

    async def read(self, query: Query) -> list[Event]:
        if query.limit <= 0:
            return []
        direction = DESCENDING if query.newest else ASCENDING
        async with self._calling(started=True), self._reading:
            found = self._events.find(event_filter(query), EVENT_PARTS)
            found = found.sort([("offset", direction), ("time", direction)]).limit(query.limit)
            documents: list[Document] = await found.to_list(None)
        if query.newest:
            documents.reverse()
        return [read_event(query.channel, document) for document in documents]

    async def unarchived(
        self, channel: str, *, after: int = 0, before: int | None = None
    ) -> list[Unarchived]:
        where: Document = {"channel": channel, "last": {"$gt": after}}
        if before is not None:
            where["first"] = {"$lt": before}
        async with self._calling(started=True), self._reading:
            found = self._unarchived.find(where).sort(_ascending("first", "last"))
            documents = await found.limit(_MOST_UNARCHIVED).to_list(None)
        return [read_unarchived(document) for document in documents]

    async def channels(self, *, prefix: str = "", after: str = "", limit: int) -> list[str]:
        names: list[str] = []
        async with self._calling(started=True), self._reading:
            # From name to name by the index; grouping would read every event.
            where = {"$gte": prefix, "$lte": prefix + _LAST}
            while len(names) < limit:
                document = await self._events.find_one(
                    {"channel": {**where, "$gt": after}},
                    {"channel": True},
                    sort=_ascending("channel", "offset", "time"),
                )
                if document is None:
                    break
                after = document["channel"]
                names.append(after)
        return names

    # ---- every call

    @asynccontextmanager
    async def _calling(self, *, started: bool = False) -> AsyncIterator[None]:
        """Bound a call in time, and say no more of an error than its kind.

        The texts of PyMongo name the servers, and documents with all that is in them.
        """
        if started and self._events is None:
            raise ArchiveUnavailable("the archive is not open")
        try:
            async with asyncio.timeout(self._call_timeout_s):
                yield
        except TimeoutError:
            raise ArchiveUnavailable("MongoDB did not answer in time") from None
        except (PyMongoError, OSError) as error:
            raise ArchiveUnavailable(f"MongoDB: {_kind(error)}") from None


def _channel(entry: Kept | Unarchived) -> str:
    return entry.event.channel if isinstance(entry, Kept) else entry.channel


def _is_above(channel: str, position: Position, floors: Floors) -> bool:
    return position.offset > floors.get((channel, position.epoch), 0)


def _ascending(*names: str) -> list[tuple[str, int]]:
    return [(name, ASCENDING) for name in names]


async def _expire(events: Any) -> None:
    try:
        await events.create_index(_ascending("expires"), expireAfterSeconds=0)
    except OperationFailure as error:
        if error.code == _OTHER_OPTIONS:
            # Made before the server learned of TTL indexes.
            return
        if error.code != _NOT_IMPLEMENTED:
            raise
        # FerretDB 1.24 has none, and says so; sweeping is enough.
        await events.create_index(_ascending("expires"))


async def _insert(collection: Any, documents: list[Document]) -> None:
    """Insert what is not there yet."""
    if not documents:
        return
    try:
        await collection.insert_many(documents, ordered=False)
    except BulkWriteError as error:
        if not only_duplicates(error):
            raise


def _kind(error: Exception) -> str:
    if isinstance(error, OperationFailure):
        details = error.details or {}
        return str(details.get("codeName") or f"{type(error).__name__} {error.code or ''}").strip()
    return type(error).__name__
