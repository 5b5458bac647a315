"""How does an event get its position? This file: a single node whose archived events survive it.

An event of an archived channel is committed to the ledger, then handed to the sink, then
acknowledged. Publishes that wait while a commit runs go into the next one together.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

from pubsub.archive import Entry, Kept, Purged, Query
from pubsub.broker import History, HistoryRules
from pubsub.channel_record import ChannelRecord
from pubsub.commit_queue import MOST_EVENTS, Answers, CommitQueue, Publish
from pubsub.errors import ArchiveUnavailable, PubSubError
from pubsub.event import Draft, Event, Published
from pubsub.ledger import Ledger, LedgerRecord
from pubsub.memory_broker import MemoryBroker, Run
from pubsub.position import Position, new_epoch, start
from pubsub.schedules import Schedule

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


class DurableBroker(MemoryBroker):
    """A `MemoryBroker` that keeps archived channels in a ledger, and goes on from there.

    For channels whose rule says `archive`: an acknowledged event is on the disk, and after a
    restart positions, history and idempotency go on. A commit that fails refuses its publishes
    and leaves no trace but where it cannot be known whether it was done; then the ledger is asked
    before the channel goes on. No position is in memory that was not on the disk before. Other
    channels are as with `MemoryBroker`.

    `call_timeout_s` is how long a publish waits for its commit; `wall_ms` is the time for events.
    """

    def __init__(
        self,
        rules: HistoryRules,
        ledger: Ledger,
        *,
        call_timeout_s: float = 5.0,
        idempotency_window_s: float = 300.0,
        **options: Any,
    ) -> None:
        super().__init__(rules, idempotency_window_s=idempotency_window_s, **options)
        self.commits = 0
        self.committed = 0
        self.failures = 0
        self._ledger = ledger
        ledger.idle_s = self._idle_s
        self._queue = CommitQueue(self._commit, call_timeout_s)
        self._window_ms = round(2 * idempotency_window_s * 1000)
        self._recalls: dict[str, asyncio.Task[ChannelRecord | None]] = {}
        # Channels of which a commit failed: it may have been done.
        self._doubtful: set[str] = set()

    @property
    def doubtful(self) -> int:
        """Of how many channels it is not known whether a commit that failed was done."""
        return len(self._doubtful)

    @property
    def waiting(self) -> int:
        """How many events wait for a commit."""
        return self._queue.events

    async def start(self) -> None:
        """Open the ledger and remember the ids of late; raises ArchiveUnavailable."""
        await self._ledger.start()
        since_ms = int(self._now() * 1000) - self._window_ms
        for each in await self._ledger.published(since_ms):
            record = self._records.get(each.channel) or await self._recall(each.channel)
            if record is not None:
                now = self._monotonic()
                recent, _older = self._ids.open(record.ids, now)
                recent[each.id] = each.position
                self._ids.added(1, now)
        self._queue.start()

    async def close(self) -> None:
        """Finish the commits that wait, a few seconds at most, and close the ledger."""
        self._closed = True
        await self._queue.close()
        for task in list(self._recalls.values()):
            await asyncio.wait([task])
        await self._ledger.close()
        await super().close()

    # ---- the broker

    async def publish(self, drafts: Sequence[Draft]) -> Answers:
        places = [n for n, draft in enumerate(drafts) if self.archives(draft.channel)]
        if not places:
            return await super().publish(drafts)
        self._begin()
        if len(places) == len(drafts):
            return await self._queue.publish(drafts)
        durable = await self._queue.publish([drafts[n] for n in places])
        others = set(range(len(drafts))).difference(places)
        plain = await super().publish([drafts[n] for n in sorted(others)])
        found = dict(zip(places, durable, strict=True))
        found.update(zip(sorted(others), plain, strict=True))
        return [found[n] for n in range(len(drafts))]

    async def subscribe(self, channel: str) -> Position:
        if self.archives(channel) and channel not in self._records:
            self._begin()
            if await self._recall(channel, make=True) is None:
                raise self._refusal()
        return await super().subscribe(channel)

    async def top(self, channel: str) -> Position | None:
        await self._remember(channel)
        return await super().top(channel)

    async def history(
        self,
        channel: str,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int,
        newest: bool = False,
        hidden: bool = False,
    ) -> History | None:
        await self._remember(channel)
        return await super().history(
            channel, after=after, before=before, limit=limit, newest=newest, hidden=hidden
        )

    async def contradict(self, channel: str, evidence: Position) -> Position:
        inner = super().contradict
        if not self.archives(channel):
            return await inner(channel, evidence)

        async def work() -> Position:
            record = await self._recall(channel, make=True, least=evidence.offset)
            if record is None:
                raise self._refusal()
            if channel in self._doubtful:
                await self._settle(channel)
            self._alive(channel, self._monotonic())
            if (top := self._refuted(record, evidence)) is not None:
                self._doubtful.add(channel)
                # First for good, then for all to see.
                await self._begin_epoch(channel, top, record.time, record.floor)
                self._doubtful.discard(channel)
                self._fork(record, top)
            return record.top

        return await self.in_turn(work)

    async def purge(self, channel: str) -> Position | None:
        inner = super().purge
        if not self.archives(channel):
            return await inner(channel)

        async def work() -> Position | None:
            record = await self._recall(channel)
            if record is None:
                return None
            if channel in self._doubtful:
                # The floor must be of the epoch in which the ledger has the channel.
                await self._settle(channel)
            # First for good, then for all to see.
            await self._ledger.write([Purged(channel, record.top)])
            return await inner(channel)

        return await self.in_turn(work)

    # ---- what is scheduled

    def archives(self, channel: str) -> bool:
        """Say whether events of a channel are archived."""
        return self._rules.rule(channel).archive

    async def in_turn(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do work between two commits, and return what it does; once begun, it is done."""
        self._begin()
        return await self._queue.in_turn(work)

    async def commit(self, schedules: Sequence[Schedule]) -> Answers:
        """Publish schedules of archived channels and delete them, in one; only `in_turn`."""
        job = Publish([schedule.draft for schedule in schedules])
        await self._commit([job], schedules)
        return await job.done

    async def hand_out(self, drafts: Sequence[Draft]) -> Answers:
        """Publish to channels that are not archived."""
        return await super().publish(drafts)

    def make_room(self, channel: str) -> bool:
        """Make the record of a channel that is not archived; False if there is no room."""
        now = self._begin()
        record = self._alive(channel, now) or self._make(channel, now)
        if record is not None:
            record.touched = now
        return record is not None

    async def settle(self) -> None:
        """Find out about commits that failed, and publish what they brought; only `in_turn`."""
        for channel in list(self._doubtful):
            if await self._recall(channel, make=True) is not None:
                await self._settle(channel)

    # ---- commits

    async def _commit(self, group: Sequence[Publish], schedules: Sequence[Schedule] = ()) -> None:
        """Give the events of a group their positions, commit them, and publish them.

        `schedules` are those of a group of one; they are deleted in the same commit.
        """
        runs: dict[str, Run] = {}
        try:
            for channel in dict.fromkeys(draft.channel for job in group for draft in job.drafts):
                record = await self._recall(channel, make=True)
                if record is None:
                    continue
                if channel in self._doubtful:
                    await self._settle(channel)
                runs[channel] = Run(record)
            now, wall = self._monotonic(), int(self._now() * 1000)
            answers = [self._draw_job(job, runs, now, wall) for job in group]
            entries = [self._entry(event) for run in runs.values() for event in run.fresh]
            fired = [
                schedule
                for schedule, answer in zip(schedules, answers[0], strict=False)
                if isinstance(answer, Published)
            ]
            if entries or fired:
                self._doubtful.update(channel for channel, run in runs.items() if run.fresh)
                if fired:
                    await self._ledger.fire(entries, fired)
                else:
                    await self._ledger.write(entries)
                self._doubtful.difference_update(runs)
                self.commits += 1
                self.committed += len(entries)
        except Exception as error:
            self.failures += 1
            if not isinstance(error, PubSubError):
                _log.exception("a commit failed")
                error = ArchiveUnavailable("something went wrong")
            for job in group:
                job.fail(error)
            return
        now = self._monotonic()
        for run in runs.values():
            self.enter(run, now)
        for job, answer in zip(group, answers, strict=True):
            job.answer(answer)

    def _draw_job(self, job: Publish, runs: dict[str, Run], now: float, wall: int) -> Answers:
        answers: Answers = []
        for draft in job.drafts:
            run = runs.get(draft.channel)
            if run is None:
                answers.append(self._refusal())
            else:
                self.draw(run, (draft,), answers, now, wall)
        return answers

    def _entry(self, event: Event) -> Entry:
        ttl_s = self._rules.rule(event.channel).archive_ttl_s
        return Kept(event, event.time + round(ttl_s * 1000) if ttl_s else 0)

    async def _settle(self, channel: str) -> None:
        """Find out whether a commit that failed was done, and publish what it brought."""
        record = self._records[channel]
        known = await self._ledger.top(channel)
        if known is not None and known.top.epoch != record.top.epoch:
            self._fork(record, known.top)
        while known is not None and known.top.offset > record.top.offset:
            query = Query(channel=channel, after=record.top.offset, limit=MOST_EVENTS)
            events = await self._ledger.read(query)
            if not events or events[0].before() != record.top:
                # They have expired unseen, and their positions must not be given to others.
                top = start(new_epoch(), known.top.offset)
                await self._begin_epoch(channel, top, known.time, known.floor)
                self._fork(record, top)
                break
            run = Run(record)
            run.fresh = events
            run.ids = {event.id: event.position for event in events}
            run.top, run.time = events[-1].position, events[-1].time
            self.enter(run, self._monotonic())
        self._doubtful.discard(channel)

    # ---- records

    async def _remember(self, channel: str) -> None:
        """Recall an archived channel that is not in memory, if the ledger knows it."""
        if channel not in self._records and self.archives(channel):
            self._begin()
            await self._recall(channel)

    async def _recall(
        self, channel: str, *, make: bool = False, least: int = 0
    ) -> ChannelRecord | None:
        """Return a channel's record, from the ledger if need be; None if there is none.

        With `make` one is made, at offset `least`, and None means that there is no room for it.
        """
        record = self._records.get(channel)
        joined = True
        while record is None and joined:
            # Once at a time: two who made one would make two epochs.
            task = self._recalls.get(channel)
            # Who is joined may not make one.
            joined = task is not None and make
            if task is None:
                task = asyncio.get_running_loop().create_task(self._bring(channel, make, least))
                self._recalls[channel] = task
                task.add_done_callback(_see_failure)
            record = await asyncio.shield(task) or self._records.get(channel)
        if record is not None:
            # It must not lapse while events are given positions behind it.
            record.touched = self._monotonic()
        return record

    async def _bring(self, channel: str, make: bool, least: int) -> ChannelRecord | None:
        """Put a record into memory, where everybody sees it, only once it is in the ledger."""
        try:
            known = await self._ledger.top(channel)
            if known is None and make and self._has_room():
                known = await self._begin_epoch(channel, start(new_epoch(), least))
            if known is not None and known.time > self._now() * 1000:
                # A clock that went back may have left a time of use, which no event has.
                known = replace(known, time=await self._ledger.last_time(channel))
            record = None if known is None else self._make(channel, self._monotonic())
            if known is not None and record is not None:
                record.top, record.time, record.floor = known.top, known.time, known.floor
            return record
        finally:
            # Here, not once the task is done: who joined a task that has ended would not wait, and
            # so would look again, and again, without ever letting its callbacks run.
            del self._recalls[channel]

    async def _begin_epoch(
        self, channel: str, top: Position, time: int = 0, floor: int = 0
    ) -> LedgerRecord:
        # It is in use now, event or not, and lapses from now on.
        record = LedgerRecord(channel, top, max(time, int(self._now() * 1000)), floor)
        await self._ledger.begin(record)
        return record

    def _idle_s(self, channel: str) -> float | None:
        """Return for how long a channel was of use to nobody, None if it is not in memory."""
        # In this order: who recalls it puts it into memory before the recall is over. The ledger
        # asks from its own thread, behind all reads of it that are done.
        if channel in self._recalls:
            return 0.0
        record = self._records.get(channel)
        if record is None:
            return None
        return 0.0 if record.listed else self._monotonic() - record.touched


def _see_failure(task: "asyncio.Task[ChannelRecord | None]") -> None:
    # Whoever waited for it may have given up; `shield` has forgotten it then.
    if not task.cancelled():
        task.exception()
