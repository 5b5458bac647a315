"""Where is an event kept? This file: who publishes what is due.

Every node has a scheduler; a claim, which lapses, says which of them publishes what is due in a
channel. Two that both believe to have a claim do no harm: see `Firing`.
"""

import asyncio
import logging
import math
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from pubsub.errors import (
    ArchiveUnavailable,
    BrokerUnavailable,
    Cancelled,
    ClaimEnded,
    NotReplicated,
    PubSubError,
    TooManyChannels,
)
from pubsub.event import Published
from pubsub.firing import Fired, Firing
from pubsub.schedules import Schedule, Schedules

_log = logging.getLogger(__name__)

_POLL_S: Final = 1.0
_COUNT_EVERY_S: Final = 15.0
_TELL_EVERY_S: Final = 60.0
_CLOSE_S: Final = 5.0
# What is claimed at once.
_MOST: Final = 256
_FIRST_DELAY_S: Final = 1.0
_MOST_DELAY_S: Final = 60.0
# Channels whose failures are remembered; of others the delays begin anew.
_MOST_TRIES: Final = 10_000

# These pass, or may: nothing is given up for them.
_PASSING: Final = (ArchiveUnavailable, BrokerUnavailable, NotReplicated, TooManyChannels)


class Scheduler:
    """Looks for what is due, claims it, publishes it, and only then lets go of it.

    - `holder`: who has the claims: no two lives of nodes have the same.
    - `prepare` is called before each look, and opens what `store` is in; without it that is open.
    - `poll_s`: how often it looks at least, jittered; and it wakes for what it knows to be due.

    What could not be published is tried again with growing delays, and holds up only what is later
    in its channel. `start` and `close` as of every part of a node; broker and archive must be
    closed later.
    """

    def __init__(
        self,
        store: Schedules,
        firing: Firing,
        *,
        holder: str,
        prepare: Callable[[], Awaitable[None]] | None = None,
        poll_s: float = _POLL_S,
        most: int = _MOST,
        first_delay_s: float = _FIRST_DELAY_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.delivered = 0
        self.dropped = 0
        self.failures = 0
        # How many there were when they were counted last.
        self.pending = 0
        # By how much the earliest that is due is late.
        self.late_s = 0.0
        self.store = store
        self.firing = firing
        self._holder = holder
        self._prepare = prepare
        self._poll_s = poll_s
        self._most = most
        self._first_delay_s = first_delay_s
        self._monotonic = monotonic
        self._tries: dict[str, int] = {}
        self._next_ms = math.inf
        self._count_after = -math.inf
        self._tell_after = -math.inf
        self._soon = asyncio.Event()
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; called once, on the node's loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Finish what is under way, a few seconds at most; may be called twice."""
        task, self._task = self._task, None
        self._closed = True
        self._soon.set()
        if task is not None:
            _done, late = await asyncio.wait([task], timeout=_CLOSE_S)
            if late:
                task.cancel()
                await asyncio.wait([task])

    def expect(self, deliver_at: int) -> None:
        """Something was added for that time: do not sleep beyond it."""
        if deliver_at < self._next_ms:
            self._soon.set()

    # ---- the task

    async def _run(self) -> None:
        while not self._closed:
            # What is added from now on is seen by this round, or wakes the next.
            self._soon.clear()
            wait_s = self._poll_s * random.uniform(0.5, 1)  # noqa: S311
            try:
                wait_s = min(wait_s, await self._round())
            except PubSubError as error:
                self._fail(error)
            except Exception as error:
                self._fail(error, exc_info=error)
            if wait_s > 0 and not self._closed:
                await self._sleep(wait_s)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._soon.wait()
        except TimeoutError:
            pass

    async def _round(self) -> float:
        """Publish some of what is due; return how long until there is more, in s."""
        if self._prepare is not None:
            await self._prepare()
        await self.firing.settle()
        now = await self.firing.now_ms()
        first = await self.store.earliest()
        self.late_s = max(0.0, (now - first) / 1000) if first is not None else 0.0
        await self._count()
        if first is not None and first <= now:
            till = now + self.firing.claim_ms
            claimed = await self.store.claim(self._holder, now, till, self._most)
            if claimed.dropped:
                self.dropped += claimed.dropped
                _log.error("%d schedules could not be read; they are dropped", claimed.dropped)
            if claimed.schedules:
                await self._fire(claimed.schedules, now, till)
                return 0.0
        following = await self.store.earliest(now)
        self._next_ms = math.inf if following is None else following
        return math.inf if following is None else (following - now) / 1000

    async def _count(self) -> None:
        now = self._monotonic()
        if now >= self._count_after:
            self._count_after = now + _COUNT_EVERY_S * random.uniform(0.5, 1)  # noqa: S311
            self.pending = await self.store.pending()

    # ---- firing

    async def _fire(self, schedules: Sequence[Schedule], now: int, till: int) -> None:
        answers = await self._answers(schedules, till)
        done: list[Schedule] = []
        # Their claims are given up, or kept while they wait.
        free: dict[str, None] = {}
        waiting: dict[str, None] = {}
        for schedule, answer in zip(schedules, answers, strict=True):
            channel = schedule.draft.channel
            free[channel] = None
            if isinstance(answer, Published):
                self.delivered += not answer.duplicate
                done.append(schedule)
            elif isinstance(answer, Cancelled):
                done.append(schedule)
            elif isinstance(answer, _PASSING):
                self._fail(answer)
                waiting[channel] = None
            elif not isinstance(answer, ClaimEnded):
                self.dropped += 1
                _log.error("a schedule can never be published; it is dropped: %s", answer)
                done.append(schedule)
        if done:
            await self.firing.done(done)
        await self._put_off(waiting, now)
        for channel in free.keys() - waiting.keys():
            self._tries.pop(channel, None)
        if self.firing.claim_ms and (left := list(free.keys() - waiting.keys())):
            await self.store.release(self._holder, left)

    async def _answers(self, schedules: Sequence[Schedule], till: int) -> Fired:
        try:
            return await self.firing.fire(schedules, till)
        except PubSubError as error:
            return [error] * len(schedules)
        except Exception as error:
            if len(schedules) > 1:
                # One of them must not hold the others up.
                return [
                    answer for each in schedules for answer in await self._answers([each], till)
                ]
            _log.exception("a schedule could not be published")
            return [BrokerUnavailable(type(error).__name__)]

    async def _put_off(self, channels: dict[str, None], now: int) -> None:
        """Keep claims for a while; nobody, this node included, tries before they end."""
        if len(self._tries) > _MOST_TRIES:
            self._tries.clear()
        by_tries: dict[int, list[str]] = defaultdict(list)
        for channel in channels:
            tries = self._tries.get(channel, 0)
            self._tries[channel] = tries + 1
            by_tries[tries].append(channel)
        for tries, some in by_tries.items():
            longest = min(self._first_delay_s * 2 ** min(tries, 16), _MOST_DELAY_S)
            delay_s = longest * random.uniform(0.5, 1)  # noqa: S311
            await self.store.keep(self._holder, some, now + round(delay_s * 1000))

    def _fail(self, error: Exception, exc_info: Exception | None = None) -> None:
        self.failures += 1
        now = self._monotonic()
        if now >= self._tell_after:
            self._tell_after = now + _TELL_EVERY_S
            _log.warning("what is due could not be published: %s", error, exc_info=exc_info)
