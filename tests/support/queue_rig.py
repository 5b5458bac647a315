"""What the tests of archiving over Redis stand on: an archive in memory that fails on demand."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from broker_rig import Notes, accepted
from config.rules import ChannelRule
from kept_entries import KeptEntries, NotRead
from pubsub.archive import Entry, Kept
from pubsub.archivist import Archivist
from pubsub.errors import ArchiveUnavailable
from pubsub.event import Draft, Event, Published
from pubsub.redis_archive_queue import RedisArchiveQueue
from pubsub.redis_broker import RedisBroker
from redis_cluster import RedisCluster
from redis_rig import open_broker, until
from redis_server import RedisServer

ARCHIVED = ChannelRule(match=">", archive=True)
PATIENCE_S = 45.0


@dataclass(slots=True)
class StandIn(KeptEntries, NotRead):
    """An archive in memory; see `Archive` for what it promises.

    - `away`: all writes, and `start`, fail.
    - `poison`: writes fail that hold an event of such an id.
    - `gate`: writes wait for it before they write; `hold`: after they have written.
    """

    away: bool = False
    poison: str = ""
    gate: asyncio.Event | None = None
    hold: asyncio.Event | None = None
    starts: int = 0
    writes: int = 0
    log: list[Entry] = field(default_factory=list)

    async def start(self) -> None:
        self._check()
        self.starts += 1

    async def write(self, entries: Sequence[Entry]) -> None:
        if self.gate is not None:
            await self.gate.wait()
        self._check()
        assert self.starts
        if self.poison and any(isinstance(e, Kept) and e.event.id == self.poison for e in entries):
            raise ArchiveUnavailable("it does not take this one")
        self.writes += 1
        for entry in entries:
            self.log.append(entry)
            self.take(entry)
        if self.hold is not None:
            await self.hold.wait()

    def _check(self) -> None:
        if self.away:
            raise ArchiveUnavailable("it is away")

    # What a test looks at

    def events(self, channel: str = "a.b") -> list[Event]:
        """The events of a channel, by offset."""
        found = [kept.event for key, kept in self.kept.items() if key[0] == channel]
        return sorted(found, key=lambda event: event.position.offset)

    def ids(self, channel: str = "a.b") -> list[str]:
        return [event.id for event in self.events(channel)]


@dataclass(slots=True)
class ArchivingNode:
    """A broker and its archivist."""

    broker: RedisBroker
    queue: RedisArchiveQueue
    archivist: Archivist
    archive: StandIn

    async def publish(self, *drafts: Draft) -> list[Published]:
        return [accepted(answer) for answer in await self.broker.publish(drafts)]

    async def flushed(self) -> None:
        await self.archivist.flush(PATIENCE_S)

    async def shares(self, count: int) -> None:
        """Wait until this node has so many partitions."""
        await until(lambda: self.archivist.partitions == count)

    async def kill(self) -> None:
        """End its archivist as a crash does: nothing is given back, nothing is said."""
        self.archivist._closed = True
        assert self.archivist._task is not None
        self.archivist._task.cancel()
        await asyncio.wait([self.archivist._task])


@asynccontextmanager
async def open_archiving_node(
    server: RedisServer | RedisCluster,
    archive: StandIn,
    *,
    rules: Sequence[ChannelRule] = (ARCHIVED,),
    lease_s: float = 1.0,
    most_entries: int = 500,
    archive_queue_max: int | None = 100_000,
    archiving: bool = True,
    alter: Callable[[RedisArchiveQueue], None] = lambda queue: None,
    **options: Any,
) -> AsyncIterator[ArchivingNode]:
    """Open a node that archives (unless not `archiving`); `options` are those of the broker."""
    async with open_broker(
        server, Notes(), rules, archive_queue_max=archive_queue_max, **options
    ) as broker:
        queue = RedisArchiveQueue(broker, lease_s=lease_s, most_entries=most_entries)
        alter(queue)
        archivist = Archivist(queue, archive)
        try:
            if archiving:
                await archivist.start()
            yield ArchivingNode(broker, queue, archivist, archive)
        finally:
            await archivist.close()
