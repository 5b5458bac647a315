"""What the tests of schedules stand on: schedules of drafts, and schedulers that are killed."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from msgspec.structs import replace

from archive_rig import started
from broker_rig import Notes, draft
from config.rules import ChannelRule
from pubsub.firing import Fired, Firing
from pubsub.redis_broker import RedisBroker
from pubsub.redis_firing import RedisFiring
from pubsub.scheduler import Scheduler
from pubsub.schedules import Schedule, Schedules
from pubsub.sqlite_archive import SqliteArchive
from redis_cluster import RedisCluster
from redis_rig import open_broker
from redis_server import RedisServer

Point = Literal["claimed", "published", "done", "never"]
POINTS: tuple[Point, ...] = ("claimed", "published", "done")


def schedule(
    event_id: str, at: int, channel: str = "a.b", *, serial: str = "", **parts: Any
) -> Schedule:
    """Return an event that is to be published at a time in ms."""
    return Schedule(replace(draft(event_id, channel), **parts), at, serial or secrets.token_hex(8))


def ids(found: Sequence[Schedule]) -> list[str]:
    """Return the ids of schedules."""
    return [each.draft.id for each in found]


class StoppingFiring:
    """Another firing, that stops for ever at a point, or until `go_on`."""

    def __init__(self, inner: Firing, point: Point) -> None:
        self.inner = inner
        self.claim_ms = inner.claim_ms
        self.point: Point = point
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.answers: Fired = []

    async def _stop(self, point: Point) -> None:
        if point == self.point:
            self.reached.set()
            await self.go_on.wait()

    async def now_ms(self) -> int:
        return await self.inner.now_ms()

    async def settle(self) -> None:
        await self.inner.settle()

    async def fire(self, schedules: Sequence[Schedule], till_ms: int) -> Fired:
        await self._stop("claimed")
        self.answers = answers = await self.inner.fire(schedules, till_ms)
        await self._stop("published")
        return answers

    async def done(self, schedules: Sequence[Schedule]) -> None:
        await self.inner.done(schedules)
        await self._stop("done")

    async def cancel(self, schedule: Schedule) -> bool:
        return await self.inner.cancel(schedule)


@dataclass(slots=True)
class SchedulingNode:
    """A broker, a scheduler over it, and the store that nodes share."""

    broker: RedisBroker
    store: Schedules
    firing: StoppingFiring
    scheduler: Scheduler

    def kill(self) -> None:
        """End its scheduler as a crash does: nothing is given up, nothing is said."""
        assert self.scheduler._task is not None
        self.scheduler._closed = True
        self.scheduler._task.cancel()


@asynccontextmanager
async def open_scheduling_node(
    server: RedisServer | RedisCluster,
    path: Path,
    *,
    point: Point = "never",
    claim_ms: int = 400,
    rules: Sequence[ChannelRule] = (),
    scheduling: bool = True,
    notes: Notes | None = None,
    first_delay_s: float = 0.1,
    **options: Any,
) -> AsyncIterator[SchedulingNode]:
    """Open a node whose schedules are in the SQLite at `path`; `options` are the broker's."""
    async with (
        started(SqliteArchive(str(path))) as archive,
        open_broker(server, notes or Notes(), rules, **options) as broker,
    ):
        store = archive.schedules
        firing = StoppingFiring(RedisFiring(broker, store, claim_ms=claim_ms), point)
        holder = secrets.token_hex(4)
        scheduler = Scheduler(store, firing, holder=holder, poll_s=0.1, first_delay_s=first_delay_s)
        try:
            if scheduling:
                scheduler.start()
            yield SchedulingNode(broker, store, firing, scheduler)
        finally:
            firing.go_on.set()
            await scheduler.close()
