"""What the tests of reading stand on: a node over Redis that archives into a real database."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker_rig import Notes, accepted
from config.rules import ChannelRule, ChannelRules
from pubsub.archivist import Archivist
from pubsub.broker import History
from pubsub.chronicle import Chronicle
from pubsub.event import Draft, Event, Published
from pubsub.redis_archive_queue import RedisArchiveQueue
from pubsub.redis_broker import RedisBroker
from pubsub.sqlite_archive import SqliteArchive
from redis_cluster import RedisCluster
from redis_rig import open_broker
from redis_server import RedisServer

# The broker shows the last four events of a channel.
BRIEF = ChannelRule(match=">", archive=True, history_size=4)


@dataclass(slots=True)
class ReadingNode:
    """A broker, its archivist, the archive, and what reads all of it; `waits` counts its pauses."""

    broker: RedisBroker
    queue: RedisArchiveQueue
    archivist: Archivist
    archive: SqliteArchive
    chronicle: Chronicle
    waits: int = 0

    async def publish(self, *drafts: Draft) -> list[Published]:
        return [accepted(answer) for answer in await self.broker.publish(drafts)]

    async def flushed(self) -> None:
        await self.archivist.flush(20.0)

    async def history(self, **bounds: Any) -> History:
        found = await self.chronicle.history("a.b", **{"limit": 1_000} | bounds)
        assert found is not None
        return found

    async def forwards(self, size: int) -> list[Event]:
        """All events, read in pages from the first one on."""
        found: list[Event] = []
        while True:
            after = found[-1].position.offset if found else 0
            page = (await self.history(after=after, limit=size)).events
            found += page
            if len(page) < size:
                return found

    async def backwards(self, size: int) -> list[Event]:
        """All events, read in pages from the last one on."""
        found: list[Event] = []
        while True:
            before = found[0].position.offset if found else None
            page = (await self.history(before=before, limit=size, newest=True)).events
            found[:0] = page
            if len(page) < size:
                return found


@asynccontextmanager
async def open_reading_node(
    server: RedisServer | RedisCluster,
    folder: Path,
    *,
    rules: Sequence[ChannelRule] = (BRIEF,),
    archiving: bool = True,
    wait_s: float = 20.0,
    archive_queue_max: int = 100_000,
    **options: Any,
) -> AsyncIterator[ReadingNode]:
    """Open a node that archives (unless not `archiving`); `options` are those of the broker."""
    archive = SqliteArchive(str(folder / "archive.db"))
    async with open_broker(
        server, Notes(), rules, archive_queue_max=archive_queue_max, **options
    ) as broker:
        queue = RedisArchiveQueue(broker)
        archivist = Archivist(queue, archive)

        async def sleep(pause_s: float) -> None:
            node.waits += 1
            await asyncio.sleep(pause_s)

        chronicle = Chronicle(
            broker, archive, ChannelRules(rules), queue, wait_s=wait_s, sleep=sleep
        )
        node = ReadingNode(broker, queue, archivist, archive, chronicle)
        try:
            await archive.start()
            if archiving:
                await archivist.start()
            yield node
        finally:
            await archivist.close()
            await archive.close()
