"""A single node of a simulated world, from its start to its end; see `sim_ledger.py`."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from config.rules import ChannelRules
from pubsub.commit_queue import Publish
from pubsub.durable_broker import DurableBroker
from pubsub.durable_firing import DurableFiring
from pubsub.errors import PubSubError
from pubsub.event import Event
from pubsub.position import Position
from pubsub.scheduler import Scheduler as Firer
from pubsub.sqlite_archive import SqliteArchive
from sim_scheduler import Process
from sim_truth import TTL_S, WINDOW_S, Heard, Truth

CALL_TIMEOUT_S: Final = 2.0


class Life:
    """One life of the node, and the sink of its broker; `up` while it can be asked for anything."""

    def __init__(
        self, process: Process, truth: Truth, number: int, wall_ms: Callable[[], int]
    ) -> None:
        self.process = process
        self.heard = Heard(number)
        self.up = False
        self.over = False
        # What was asked of it, and has not begun.
        self.asked = 0
        self.archive: SqliteArchive
        self.broker: DurableBroker
        self.firing: DurableFiring
        self.firer: Firer
        self.truth = truth
        self.wall_ms = wall_ms

    async def open(self, rules: ChannelRules, most_channels: int) -> bool:
        """Start what the node has; say whether that could be done, else this life is over."""
        monotonic, wall_ms = self.truth.scheduler.clock.monotonic, self.wall_ms
        self.archive = archive = SqliteArchive(
            "ledger",
            keep_ids_s=2 * WINDOW_S,
            position_ttl_s=TTL_S,
            call_timeout_s=CALL_TIMEOUT_S,
            clock_ms=wall_ms,
        )
        self.broker = broker = DurableBroker(
            rules,
            archive,
            call_timeout_s=CALL_TIMEOUT_S,
            idempotency_window_s=WINDOW_S,
            position_ttl_s=TTL_S,
            max_channels=most_channels,
            now=lambda: wall_ms() / 1000,
            monotonic=monotonic,
        )
        broker.bind(self)
        broker._queue._commit = self._commit
        self.firing = DurableFiring(broker, archive.schedules, clock_ms=wall_ms)
        self.firer = Firer(
            archive.schedules,
            self.firing,
            holder=f"life{self.heard.number}",
            poll_s=3.0,
            monotonic=monotonic,
        )
        try:
            await broker.start()
        except PubSubError:
            await broker.close()
            self.over = True
        return not self.over

    async def close(self) -> None:
        await self.firer.close()
        await self.broker.close()
        self.over = True

    async def _commit(self, group: Sequence[Publish]) -> None:
        """What was given up before it was begun is not begun."""
        left = all(not job.done.cancelled() for job in group)
        self.truth.expect(left, "nobody waits any more for what is committed")
        await self.broker._commit(group)

    # ---- what the broker tells

    def on_events(self, channel: str, events: Sequence[Event]) -> None:
        self.truth.on_events(self.heard, channel, events)

    def on_purge(self, channel: str, floor: Position) -> None:
        self.truth.expect(self.heard.tops[channel] == floor, f"{channel} is purged out of order")
        self.truth.on_purged(channel, floor)

    def on_fork(self, channel: str, top: Position) -> None:
        self.truth.on_fork(self.heard, channel, top)

    def on_top(self, channel: str, top: Position) -> None:
        raise AssertionError("a node alone has nothing to compare")


@dataclass(slots=True)
class Call:
    """What somebody asked of a life, and when that must have ended."""

    life: Life
    task: "asyncio.Task[None]"
    until: float
