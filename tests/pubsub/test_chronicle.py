"""The archive and the recent past, read as one: whole, in order, or not at all."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from archive_rig import started
from broker_rig import Clock, Notes, drafts, ids
from config.rules import ChannelRule, ChannelRules
from pubsub.archive import Entry, Kept, Purged, Query, Unarchived
from pubsub.broker import History
from pubsub.chain import gaps
from pubsub.chronicle import Chronicle
from pubsub.durable_broker import DurableBroker
from pubsub.errors import ArchiveBehind, ArchiveUnavailable
from pubsub.event import Event
from pubsub.memory_broker import MemoryBroker
from pubsub.position import Position
from pubsub.sqlite_archive import SqliteArchive

RULES = ChannelRules(
    [ChannelRule(match="off.>", history_size=4)],
    ChannelRule(match=">", history_size=4, archive=True),
)


class Noted(SqliteArchive):
    """An archive that counts what it is asked, and is away on demand."""

    away = False
    asked = 0

    async def read(self, query: Query) -> list[Event]:
        self.asked += 1
        if self.away:
            raise ArchiveUnavailable("it is away")
        return await super().read(query)

    async def unarchived(
        self, channel: str, *, after: int = 0, before: int | None = None
    ) -> list[Unarchived]:
        self.asked += 1
        return await super().unarchived(channel, after=after, before=before)


@dataclass(slots=True)
class Past:
    """A broker that shows four events of a channel, and a queue into an archive.

    What is published waits in `queue` until `archive` takes so many of it; `work` is done each time
    that the chronicle waits.
    """

    broker: MemoryBroker
    notes: Notes
    clock: Clock
    kept: Noted
    chronicle: Chronicle = field(init=False)
    queue: list[Entry] = field(default_factory=list)
    archived: int = 0
    waits: int = 0
    work: Callable[[], object] | None = None
    _seen: int = 0

    async def publish(self, prefix: str, count: int) -> None:
        await self.broker.subscribe("a.b")
        await self.broker.publish(drafts(prefix, count))
        found = self.notes.events("a.b")
        self.queue += [Kept(event) for event in found[self._seen :]]
        self._seen = len(found)

    async def fork(self) -> Position:
        top = await self.broker.top("a.b")
        assert top is not None
        return await self.broker.contradict("a.b", Position(top.epoch, top.offset, "f" * 16))

    async def purge(self) -> None:
        floor = await self.broker.purge("a.b")
        assert floor is not None
        self.queue.append(Purged("a.b", floor))

    async def archive(self, count: int | None = None) -> None:
        left = self.queue[self.archived :]
        taken = left if count is None else left[:count]
        await self.kept.write(taken)
        self.archived += len(taken)

    async def forget(self) -> None:
        """Let the broker have no record of any channel."""
        await self.broker.unsubscribe("a.b")
        for _ in range(2):
            self.clock.advance(1_000_000)
            self.broker.sweep()
        assert await self.broker.top("a.b") is None

    async def read(self, **bounds: int | bool) -> list[str]:
        return ids((await self.history(**bounds)).events)

    async def history(self, **bounds: int | bool) -> History:
        found = await self.chronicle.history("a.b", **{"limit": 100} | bounds)  # type: ignore[arg-type]
        assert found is not None
        return found

    # What is told of its queue

    async def mark(self, channel: str) -> tuple[int, int]:
        return len(self.queue), 0

    async def passed(self, channel: str, mark: tuple[int, int]) -> bool:
        return self.archived >= mark[0]

    async def sleep(self, pause_s: float) -> None:
        self.waits += 1
        if self.work is not None:
            result = self.work()
            if hasattr(result, "__await__"):
                await result


@asynccontextmanager
async def open_past(
    folder: Path, *, coming: bool = True, wait_s: float = 60.0
) -> AsyncIterator[Past]:
    clock, notes = Clock(), Notes()
    broker = MemoryBroker(RULES, now=clock.wall, monotonic=clock.monotonic)
    broker.bind(notes)
    async with started(Noted(str(folder / "archive.db"))) as archive:
        past = Past(broker, notes, clock, archive)
        past.chronicle = Chronicle(
            broker,
            archive,
            RULES,
            past if coming else None,
            wait_s=wait_s,
            sleep=past.sleep,
        )
        yield past
        await broker.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def names(first: int, last: int, prefix: str = "x") -> list[str]:
    return [f"{prefix}{number}" for number in range(first, last + 1)]


# ---- ranges


async def test_what_is_kept_in_both_is_read_as_one(folder: Path) -> None:
    async with open_past(folder) as past:
        await past.publish("x", 10)
        await past.archive()
        history = await past.history()
        assert ids(history.events) == names(1, 10)
        assert list(gaps(history.events)) == []
        assert history.top == history.events[-1].position
        assert past.waits == 0


async def test_the_ranges_of_a_query_hold_across_the_seam(folder: Path) -> None:
    """The broker shows 7 to 10, the archive has all, or all that the broker does not show."""
    for archived in (10, 6, 8):
        path = folder / str(archived)
        path.mkdir()
        async with open_past(path) as past:
            await past.publish("x", 10)
            await past.archive(archived)
            for after in range(12):
                for before in (None, *range(12)):
                    end = 11 if before is None else before
                    whole = names(after + 1, min(10, end - 1))
                    for limit in (1, 2, 3, 4, 5, 20):
                        bounds = {"after": after, "limit": limit}
                        bounds |= {} if before is None else {"before": before}
                        assert await past.read(**bounds) == whole[:limit]
                        assert await past.read(newest=True, **bounds) == whole[-limit:]
            assert past.waits == 0


async def test_pages_join(folder: Path) -> None:
    async with open_past(folder) as past:
        await past.publish("x", 10)
        await past.archive()
        for size in range(1, 11):
            forwards: list[Event] = []
            while page := await past.history(
                after=forwards[-1].position.offset if forwards else 0, limit=size
            ):
                if not page.events:
                    break
                forwards += page.events
            assert ids(forwards) == names(1, 10)
            backwards: list[Event] = []
            while page := await past.history(
                before=backwards[0].position.offset if backwards else 100, limit=size, newest=True
            ):
                if not page.events:
                    break
                backwards[:0] = page.events
            assert backwards == forwards


async def test_a_channel_that_is_in_the_archive_only(folder: Path) -> None:
    """Where it ends is its top, also where there are no events in what is asked for."""
    async with open_past(folder) as past:
        await past.publish("x", 10)
        await past.archive()
        top = (await past.history()).top
        await past.forget()
        assert await past.read() == names(1, 10)
        for bounds in ({}, {"after": 10}, {"before": 1}, {"after": 3, "before": 4}):
            assert (await past.history(**bounds)).top == top


async def test_what_nobody_knows_is_none(folder: Path) -> None:
    async with open_past(folder) as past:
        assert await past.chronicle.history("no.one", limit=5) is None
        assert await past.chronicle.first_since("no.one", 0) == (None, True)


# ---- purges, epochs and forks


async def test_a_purge_hides_what_is_still_in_the_archive(folder: Path) -> None:
    async with open_past(folder) as past:
        await past.publish("x", 10)
        await past.archive()
        await past.purge()
        await past.publish("y", 6)
        await past.archive(0)
        past.work = past.archive
        history = await past.history()
        assert ids(history.events) == names(1, 6, "y")
        assert history.floor == 10
        await past.archive()
        for bounds in ({}, {"newest": True}, {"after": 3}, {"after": 10}):
            assert await past.read(**bounds) == names(1, 6, "y")


async def test_a_purge_of_all_is_waited_for_by_nobody(folder: Path) -> None:
    async with open_past(folder) as past:
        await past.publish("x", 10)
        await past.purge()
        assert await past.read() == []
        assert (past.kept.asked, past.waits) == (0, 0)


async def test_epochs_are_read_as_one(folder: Path) -> None:
    async with open_past(folder) as past:
        await past.publish("x", 7)
        await past.fork()
        await past.publish("y", 7)
        await past.archive()
        history = await past.history()
        assert ids(history.events) == names(1, 7) + names(1, 7, "y")
        assert len({event.position.epoch for event in history.events}) == 2
        assert list(gaps(history.events)) == []
        assert await past.read(newest=True, limit=9) == names(6, 7) + names(1, 7, "y")
        assert past.waits == 0


async def dead_branch(past: Past, at: int, count: int) -> None:
    """Let the archive have events behind an offset that a fail-over took back."""
    found = past.notes.events("a.b")
    before = found[at - 1]
    other = MemoryBroker(RULES, now=past.clock.wall, monotonic=past.clock.monotonic)
    notes = Notes()
    other.bind(notes)
    top = await other.subscribe("a.b")
    record = other._records["a.b"]
    record.top = before.position
    assert top != record.top
    await other.publish(drafts("dead", count))
    await past.kept.write([Kept(event) for event in notes.events("a.b")])
    await other.close()


async def test_pages_are_full_though_a_fail_over_made_events_untrue(folder: Path) -> None:
    """A page of fewer events than asked for is taken for the last one.

    Dead branches were counted among them, so whoever paged through a channel that had lived through
    a fail-over was told that it ended there, or was shown a dead event at the end of a page and
    never the true one.
    """
    async with open_past(folder) as past:
        await past.publish("x", 20)
        await dead_branch(past, 2, 5)
        await dead_branch(past, 3, 6)
        await dead_branch(past, 9, 3)
        await past.archive()
        for after in range(21):
            for limit in (1, 2, 3, 4, 7, 30):
                whole = names(after + 1, 20)[:limit]
                assert await past.read(after=after, limit=limit) == whole
                whole = names(1, after)[-limit:]
                assert await past.read(before=after + 1, limit=limit, newest=True) == whole
        assert past.waits == 0


# ---- what is on its way


async def test_what_is_on_its_way_is_waited_for(folder: Path) -> None:
    for bounds in ({}, {"newest": True}, {"after": 2}, {"after": 2, "before": 9}, {"limit": 5}):
        path = folder / str(bounds)
        path.mkdir()
        async with open_past(path) as past:
            await past.publish("x", 10)
            await past.archive(3)
            past.work = lambda past=past: past.archive(1)
            found = await past.read(**bounds)
            last = min(bounds.get("before", 11) - 1, bounds.get("limit", 10))
            assert found == names(bounds.get("after", 0) + 1, last)
            assert past.waits >= 3


async def test_a_start_that_is_on_its_way_is_waited_for(folder: Path) -> None:
    """From the beginning: nothing lay before it, so nothing seemed to be missing."""
    async with open_past(folder) as past:
        await past.publish("x", 10)
        past.work = past.archive
        assert await past.read() == names(1, 10)
        assert past.waits == 1


async def test_an_end_that_is_on_its_way_is_waited_for(folder: Path) -> None:
    """The broker shows nothing any more, and the archive has the epoch before only."""
    async with open_past(folder) as past:
        await past.publish("x", 7)
        await past.archive()
        await past.fork()
        await past.publish("y", 3)
        past.clock.advance(100_000)
        past.work = past.archive
        assert await past.read() == names(1, 7) + names(1, 3, "y")
        assert past.waits == 1


async def test_the_end_of_an_epoch_that_is_on_its_way_is_waited_for(folder: Path) -> None:
    """The next one begins with an event that follows all that is below it."""
    for bounds in ({}, {"after": 3}, {"newest": True}):
        path = folder / str(bounds)
        path.mkdir()
        async with open_past(path) as past:
            await past.publish("x", 7)
            await past.archive(5)
            await past.fork()
            await past.publish("y", 4)
            past.work = past.archive
            found = await past.read(**bounds)
            assert found == names(bounds.get("after", 0) + 1, 7) + names(1, 4, "y")
            assert past.waits == 1


async def test_what_does_not_come_in_time_is_told(folder: Path) -> None:
    async with open_past(folder, wait_s=0.0) as past:
        await past.publish("x", 10)
        await past.archive(3)
        for bounds in ({}, {"newest": True}, {"after": 5, "before": 7}, {"before": 5}):
            with pytest.raises(ArchiveBehind):
                await past.history(**bounds)
        # What is there is there.
        assert await past.read(limit=3) == names(1, 3)
        assert await past.read(before=4) == names(1, 3)
        assert await past.read(newest=True, limit=4) == names(7, 10)
        assert await past.read(after=6) == names(7, 10)


async def test_nothing_is_waited_for_where_nothing_was_asked_for(folder: Path) -> None:
    """No offset lies between, and yet the top seemed to be missing."""
    async with open_past(folder, wait_s=0.0) as past:
        await past.publish("x", 10)
        for bounds in ({"after": 4, "before": 5}, {"before": 1}, {"after": 10}, {"after": 50}):
            assert await past.read(**bounds) == []
        assert past.kept.asked == 0


async def test_what_is_published_meanwhile_leaves_no_gap(folder: Path) -> None:
    """The recent past goes on while an event is waited for, and leaves others behind.

    They were on their way by then, and were passed over: only the first ones had been waited for.
    """
    async with open_past(folder) as past:
        await past.publish("x", 10)
        top = await past.broker.top("a.b")

        async def work() -> None:
            if past.waits == 1:
                await past.publish("y", 10)
            await past.archive(5)

        past.work = work
        history = await past.history()
        assert ids(history.events) == names(1, 10)
        assert history.top == top
        assert past.waits == 2


async def test_who_was_away_for_a_moment_does_not_need_the_archive(folder: Path) -> None:
    async with open_past(folder, wait_s=0.0) as past:
        await past.publish("x", 10)
        past.kept.away = True
        assert await past.read(after=6) == names(7, 10)
        assert await past.read(after=8, limit=1) == ["x9"]
        assert await past.read(after=10) == []
        assert await past.read(newest=True, limit=4) == names(7, 10)
        assert past.kept.asked == 0
        for bounds in ({"after": 5}, {"newest": True, "limit": 5}):
            with pytest.raises(ArchiveUnavailable):
                await past.history(**bounds)


# ---- what is missing for good


async def unarchived(past: Past, *ranges: tuple[int, int]) -> None:
    """Let the queue have been full when these were published."""
    events = past.notes.events("a.b")
    for first, last in ranges:
        entries = [e.event.position.offset if isinstance(e, Kept) else 0 for e in past.queue]
        past.queue = [
            entry
            for entry, offset in zip(past.queue, entries, strict=True)
            if not first <= offset <= last
        ]
        at = events[last - 1]
        past.queue.append(Unarchived("a.b", at.position.epoch, first, last, at.time))


async def test_a_gap_that_is_for_good_shows(folder: Path) -> None:
    async with open_past(folder) as past:
        await past.publish("x", 12)
        await unarchived(past, (4, 6))
        await past.archive()
        history = await past.history()
        assert ids(history.events) == [*names(1, 3), *names(7, 12)]
        (gap,) = gaps(history.events)
        assert (gap.after.offset, gap.before.offset) == (3, 6)
        assert past.waits == 0
        assert await past.read(newest=True, limit=7) == ["x3", *names(7, 12)]


async def test_a_gap_that_is_for_good_is_not_waited_for(folder: Path) -> None:
    """Though the queue is behind; and several notes may tell of one gap."""
    async with open_past(folder, wait_s=0.0) as past:
        await past.publish("x", 12)
        await unarchived(past, (4, 5), (6, 6))
        entries = [e for e in past.queue if isinstance(e, Unarchived)]
        await past.kept.write([*past.queue[:4], *entries])
        with pytest.raises(ArchiveBehind):
            await past.history()
        await past.kept.write([e for e in past.queue if isinstance(e, Kept)])
        assert past.archived == 0
        assert await past.read() == [*names(1, 3), *names(7, 12)]


async def test_what_never_came_is_given_up_when_all_has_come(folder: Path) -> None:
    async with open_past(folder, wait_s=0.0) as past:
        await past.publish("x", 12)
        await past.kept.write(past.queue[2:])
        past.archived = len(past.queue)
        assert await past.read() == names(3, 12)


# ---- since a time


async def timed(past: Past, count: int) -> Sequence[int]:
    """Publish events a second apart; return their times."""
    for number in range(1, count + 1):
        past.clock.advance(1)
        await past.publish(f"t{past.clock.wall_s}-{number}-", 1)
    return [event.time for event in past.notes.events("a.b")]


async def test_the_first_since_a_time_at_every_edge(folder: Path) -> None:
    for archived in (10, 6):
        path = folder / str(archived)
        path.mkdir()
        async with open_past(path) as past:
            times = await timed(past, 10)
            await past.archive(archived)
            events = past.notes.events("a.b")
            for since in (0, times[0] - 1, times[0]):
                assert await past.chronicle.first_since("a.b", since) == (events[0].before(), True)
            for time, event in zip(times, events, strict=True):
                for since in (time, time - 999):
                    found = await past.chronicle.first_since("a.b", since)
                    assert found == (event.before(), True)
            found = await past.chronicle.first_since("a.b", times[-1] + 1)
            assert found == (None, True)
            assert past.waits == 0


async def test_the_first_since_a_time_of_what_came_at_once(folder: Path) -> None:
    async with open_past(folder) as past:
        await past.publish("x", 5)
        past.clock.advance(1)
        await past.publish("y", 5)
        await past.archive()
        first = past.notes.events("a.b")[5]
        assert await past.chronicle.first_since("a.b", first.time) == (first.before(), True)


async def test_the_first_since_a_time_is_not_known_whole_behind_a_gap(folder: Path) -> None:
    async with open_past(folder) as past:
        times = await timed(past, 12)
        await unarchived(past, (1, 2), (5, 6))
        await past.archive()
        events = past.notes.events("a.b")
        first_since = past.chronicle.first_since
        assert await first_since("a.b", times[4]) == (events[6].before(), False)
        assert await first_since("a.b", times[6]) == (events[6].before(), False)
        assert await first_since("a.b", times[7]) == (events[7].before(), True)
        assert await first_since("a.b", times[0]) == (events[2].before(), False)


async def test_the_first_since_a_time_behind_a_purge(folder: Path) -> None:
    async with open_past(folder) as past:
        times = await timed(past, 6)
        await past.purge()
        await past.archive()
        assert await past.chronicle.first_since("a.b", times[0]) == (None, True)
        await timed(past, 2)
        first = past.notes.events("a.b")[6]
        assert await past.chronicle.first_since("a.b", times[0]) == (first.before(), True)


async def test_the_first_since_a_time_over_epochs(folder: Path) -> None:
    async with open_past(folder) as past:
        await timed(past, 6)
        await past.fork()
        past.clock.advance(100)
        await past.publish("y", 6)
        await past.archive()
        first = past.notes.events("a.b")[6]
        for since in (first.time, first.time - 50_000):
            assert await past.chronicle.first_since("a.b", since) == (first.before(), True)


async def test_the_first_since_a_time_where_an_epoch_leapt(folder: Path) -> None:
    """A new record of an archived channel begins far above 0, and is whole nonetheless."""
    async with open_past(folder) as past:
        evidence = Position("f" * 16, 1_000_000, "f" * 16)
        begun = await past.broker.contradict("a.b", evidence)
        assert begun.offset == 1_000_000
        assert await past.chronicle.first_since("a.b", 0) == (None, True)
        times = await timed(past, 6)
        await past.archive()
        assert await past.chronicle.first_since("a.b", 0) == (begun, True)
        second = past.notes.events("a.b")[1]
        assert await past.chronicle.first_since("a.b", times[1]) == (second.before(), True)


async def test_the_first_since_a_time_looks_at_little(folder: Path) -> None:
    """An archive that is behind has nothing of that time: all of it was looked through."""
    async with open_past(folder) as past:
        await past.publish("x", 2_000)
        await past.archive()
        past.clock.advance(1)
        await past.publish("y", 2)
        first = past.notes.events("a.b")[2_000]
        assert await past.chronicle.first_since("a.b", first.time) == (first.before(), True)
        assert past.kept.asked <= 4


# ---- other channels and other brokers


async def test_a_channel_whose_rule_does_not_archive_is_never_looked_up(folder: Path) -> None:
    async with open_past(folder) as past:
        past.kept.away = True
        await past.broker.publish(drafts("x", 6, "off.b"))
        history = await past.chronicle.history("off.b", limit=10)
        assert history is not None
        assert ids(history.events) == names(3, 6)
        start, whole = await past.chronicle.first_since("off.b", 0)
        assert start is not None
        assert (start.offset, whole) == (2, False)
        assert await past.chronicle.history("off.c", limit=10) is None
        assert past.kept.asked == 0


async def test_without_an_archive_the_broker_says_all(folder: Path) -> None:
    async with open_past(folder) as past:
        await past.publish("x", 6)
        chronicle = Chronicle(past.broker, None, RULES)
        history = await chronicle.history("a.b", limit=10)
        assert history is not None
        assert ids(history.events) == names(3, 6)


async def test_a_single_node_reads_its_ledger(folder: Path) -> None:
    """Also after a restart, when it has nothing in memory."""
    clock = Clock()
    for turn in range(2):
        ledger = SqliteArchive(str(folder / "archive.db"))
        broker = DurableBroker(RULES, ledger, now=clock.wall, monotonic=clock.monotonic)
        broker.bind(Notes())
        await broker.start()
        try:
            if turn == 0:
                await broker.publish(drafts("x", 10))
            chronicle = Chronicle(broker, ledger, RULES)
            for bounds in ({}, {"newest": True}):
                history = await chronicle.history("a.b", limit=100, **bounds)
                assert history is not None
                assert ids(history.events) == names(1, 10)
                assert history.top == history.events[-1].position
        finally:
            await broker.close()
