"""Where is an event kept? This file: who moves events from the queue in Redis into the archive.

Every node has an archivist; they share the partitions by claims that lapse. Two that both believe
to have a partition do no harm: both write the same events, which the archive takes once.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from pubsub.archive import Archive, Unarchived
from pubsub.archive_rota import Rota
from pubsub.errors import ArchiveUnavailable, PubSubError
from pubsub.redis_archive_queue import Collected, Reached, RedisArchiveQueue

_log = logging.getLogger(__name__)

_TELL_EVERY_S: Final = 60.0
# Claims are renewed this often while they last.
_BEATS: Final = 3
# What is due so soon goes along: calls of one turn travel together.
_TOGETHER_S: Final = 0.01
# Failures of writes in a row, by which the archive, not what is written, is known to be at fault.
_FAILURES: Final = 3
_FLUSH_POLL_S: Final = 0.02
# Between two tries to open the archive.
_OPEN_S: Final = (0.2, 10.0)


class Archivist:
    """Moves what is queued into the archive: reads, writes, and only then lets go of it.

    - `archive` is started here, again and again until it could be. A write that fails is tried
      again for ever, without holding other partitions up; nothing is dropped but junk.
    - `at_once`: how many batches are on their way at a time.
    - `monotonic`: a clock in s.

    `start` and `close` as of every part of a node; the broker must be closed later, and the archive
    is not closed here. Nothing waits for an archivist but `flush`.
    """

    def __init__(
        self,
        queue: RedisArchiveQueue,
        archive: Archive,
        *,
        at_once: int = 4,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.written = 0
        self.failures = 0
        self.junk = 0
        self.gaps = 0
        self._queue = queue
        self._archive = archive
        self._monotonic = monotonic
        self._rota = Rota()
        self._moving = asyncio.Semaphore(at_once)
        self._opening = asyncio.Lock()
        self._opened = False
        # By partition: entries in its queue, when the oldest came, channels that wait for room.
        self._seen: dict[int, tuple[int, float, int]] = {}
        # Partitions whose last write failed, and how many writes did in a row, of whichever.
        self._refused: set[int] = set()
        self._failed_in_row = 0
        self._tell_after = -math.inf
        self._tell_junk_after = -math.inf
        self._soon = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        queue.broker.on_queued = self._on_queued
        queue.broker.on_return.append(self._retry)

    # What an operator sees

    @property
    def partitions(self) -> int:
        """How many partitions this node has."""
        return len(self._rota.held)

    @property
    def backlog(self) -> int:
        """How many entries were in the queues of this node's partitions when it looked last."""
        return sum(backlog for backlog, _since, _waiting in self._seen.values())

    @property
    def lag_s(self) -> float:
        """How old the oldest of them is, in s; 0 if there is none."""
        times = [since for backlog, since, _waiting in self._seen.values() if backlog]
        return max(0.0, self._monotonic() - min(times)) if times else 0.0

    @property
    def waiting(self) -> int:
        """Of how many channels events are missing since the queue is full."""
        return sum(waiting for _backlog, _since, waiting in self._seen.values())

    def problem(self) -> str | None:
        """Return what keeps events from the archive, or None; the live path does not need it."""
        if self.waiting:
            return "the archive's queue is full: events are missing in the archive"
        if self._refused:
            return "the archive does not take events"
        return None

    # Life

    async def start(self) -> None:
        """Begin to archive, as soon as Redis and the archive can be reached; called once."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop, and leave the partitions to others; may be called twice."""
        if self._closed:
            return
        self._closed = True
        self._queue.broker.on_return.remove(self._retry)
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        try:
            await self._queue.share(leave=True)
        except PubSubError as error:
            _log.info("the partitions are left to the other nodes when they lapse: %s", error)

    async def flush(self, timeout_s: float) -> None:
        """Return when all that was queued by now, on any node, is archived; raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            self._retry()
            goals: dict[int, tuple[int, int]] = {}
            left = set(range(self._queue.partitions))
            while left:
                for partition in left:
                    self._wake(partition)
                with suppress(PubSubError):
                    left = _unreached(await self._queue.reached(), left, goals)
                if left:
                    await asyncio.sleep(_FLUSH_POLL_S)

    # ---- the task that owns all

    async def _run(self) -> None:
        try:
            await self._look_after()
        except Exception:
            _log.exception("the archivist has ended")

    async def _look_after(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._open_on())
            group.create_task(self._claim_on())
            while True:
                self._soon.clear()
                for partition in self._rota.take(self._monotonic() + _TOGETHER_S):
                    group.create_task(self._visit(partition))
                at = self._rota.next_at()
                wait_s = None if at is None else max(0.0, at - self._monotonic())
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._soon.wait()

    async def _open_on(self) -> None:
        """Open the archive as soon as it can be: it is read here, whoever writes to it."""
        pause = _OPEN_S[0]
        while not self._opened:
            try:
                await self.open()
            except Exception as error:
                self._tell(error)
                await asyncio.sleep(random.uniform(0.5, 1) * pause)  # noqa: S311
                pause = min(2 * pause, _OPEN_S[1])

    async def _claim_on(self) -> None:
        while True:
            try:
                self._hold(await self._queue.share())
            except PubSubError as error:
                # What this node has it keeps: nobody else can take it by the same Redis, and two
                # that have it do no harm.
                _log.info("claiming partitions waits: %s", error)
            except Exception:
                _log.exception("claiming partitions failed")
            await asyncio.sleep(random.uniform(0.5, 1) * self._queue.lease_s / _BEATS)  # noqa: S311

    def _hold(self, partitions: frozenset[int]) -> None:
        self._rota.hold(partitions, self._monotonic())
        for lost in self._seen.keys() - partitions:
            del self._seen[lost]
        self._refused &= partitions
        self._soon.set()

    async def _visit(self, partition: int) -> None:
        """Move all that a partition has, batch by batch."""
        back = self._rota.fail
        try:
            if await self._empty(partition):
                back = self._rota.rest
        except PubSubError as error:
            _log.info("the archive's queue waits for Redis: %s", error)
        except Exception:
            _log.exception("archiving failed")
        back(partition, self._monotonic())
        self._soon.set()

    async def _empty(self, partition: int) -> bool:
        """Move batches until none is left; False if a write failed. Raises BrokerUnavailable."""
        done: tuple[bytes, ...] = ()
        while True:
            # What is read is in memory until it is written.
            async with self._moving:
                found = await self._queue.collect(partition, done)
                if partition not in self._rota.held:
                    # What was handed out is handed out to the next one as well.
                    return True
                self._note(partition, found)
                if not found.ids:
                    return True
                if found.entries and not await self._write(partition, found):
                    return False
            self._count(found)
            self._rota.well(partition)
            done = found.ids

    async def _write(self, partition: int, found: Collected) -> bool:
        try:
            await self.open()
            await self._archive.write(found.entries)
        except Exception as error:
            # Whatever it is: nothing is dropped.
            self._refused.add(partition)
            self._on_failure(error)
            return False
        self._refused.discard(partition)
        if self._failed_in_row >= _FAILURES:
            # It was not for what was written, so the others need not wait.
            _log.info("the archive takes events again")
            self._retry()
        self._failed_in_row = 0
        return True

    async def open(self) -> None:
        """Start the archive unless that was done; whoever else needs it may call this too."""
        if not self._opened:
            async with self._opening:
                if not self._opened:
                    await self._archive.start()
                    self._opened = True

    # ---- what happens

    def _on_failure(self, error: Exception) -> None:
        self.failures += 1
        self._failed_in_row += 1
        self._tell(error)

    def _tell(self, error: Exception) -> None:
        now = self._monotonic()
        if now >= self._tell_after:
            self._tell_after = now + _TELL_EVERY_S
            expected = isinstance(error, ArchiveUnavailable)
            _log.warning(
                "the archive does not take events: %s", error, exc_info=None if expected else error
            )

    def _note(self, partition: int, found: Collected) -> None:
        since = self._monotonic() - found.age_s
        self._seen[partition] = (found.backlog, since, found.waiting)

    def _count(self, found: Collected) -> None:
        self.written += len(found.entries)
        self.gaps += sum(isinstance(entry, Unarchived) for entry in found.entries)
        if found.junk:
            self.junk += found.junk
            now = self._monotonic()
            if now >= self._tell_junk_after:
                self._tell_junk_after = now + _TELL_EVERY_S
                _log.warning("there is junk in the archive's queue; it is passed over")

    def _on_queued(self, channel: str) -> None:
        self._wake(self._queue.partition(channel))

    def _retry(self) -> None:
        self._rota.retry(self._monotonic())
        self._soon.set()

    def _wake(self, partition: int) -> None:
        if self._rota.wake(partition, self._monotonic()):
            self._soon.set()


def _unreached(
    queues: Sequence[Reached], left: set[int], goals: dict[int, tuple[int, int]]
) -> set[int]:
    """Return which of the queues have not come to their goal, setting it where there is none.

    A note that waits has no place in its queue yet, so the goal is set when none does.
    """
    unreached = set()
    for partition in left:
        queue = queues[partition]
        if partition not in goals and not queue.waiting:
            goals[partition] = queue.highest
        goal = goals.get(partition)
        if goal is None or (queue.lowest is not None and queue.lowest <= goal):
            unreached.add(partition)
    return unreached
