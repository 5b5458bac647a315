"""A single node whose archived events survive it: commits, their failures, and restarts."""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker_rig import Clock, Notes, accepted, draft, drafts, ids
from config.rules import ChannelRule, ChannelRules
from pubsub import commit_queue
from pubsub.archive import Entry, Query
from pubsub.durable_broker import DurableBroker
from pubsub.errors import ArchiveUnavailable, BrokerUnavailable, TooManyChannels
from pubsub.event import Published
from pubsub.ledger import LedgerRecord
from pubsub.position import Position
from pubsub.sqlite_archive import SqliteArchive

DAY_S = 86_400.0
RULES = (
    ChannelRule(match="plain.>"),
    ChannelRule(match="brief.>", archive=True, archive_ttl_s=1.0),
    ChannelRule(match=">", archive=True),
)


class FaultyLedger(SqliteArchive):
    """A real one whose writes fail or wait when they are told to."""

    def __init__(self, path: str, now: Callable[[], float]) -> None:
        super().__init__(path, clock_ms=lambda: round(now() * 1000))
        self.fails_before = False
        self.fails_after = False
        self.gate: asyncio.Event | None = None
        self.waits = False
        self.writes: list[int] = []

    async def write(self, entries: Sequence[Entry]) -> None:
        if self.gate is not None:
            self.waits = True
            await self.gate.wait()
        if self.fails_before:
            raise ArchiveUnavailable("told to fail")
        await super().write(entries)
        self.writes.append(len(entries))
        if self.fails_after:
            raise ArchiveUnavailable("told to fail, though it was done")

    async def begin(self, record: LedgerRecord) -> None:
        if self.gate is not None:
            self.waits = True
            await self.gate.wait()
        await super().begin(record)


class Rig:
    def __init__(self, path: str, **options: Any) -> None:
        self.ledger = FaultyLedger(path, options.get("now", time.time))
        self.broker = DurableBroker(ChannelRules(RULES), self.ledger, **options)
        self.notes = Notes()
        self.broker.bind(self.notes)

    def heard(self, channel: str = "a.b") -> list[str]:
        return ids(self.notes.events(channel))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "archive.db")


@asynccontextmanager
async def opened(path: str, **options: Any) -> AsyncIterator[Rig]:
    rig = Rig(path, **options)
    try:
        await rig.broker.start()
        yield rig
    finally:
        if rig.ledger.gate is not None:
            rig.ledger.gate.set()
        await rig.broker.close()
        await rig.broker.close()


async def under_way(rig: Rig, event_id: str) -> "asyncio.Future[Any]":
    """Publish an event, and return when its commit has begun."""
    assert rig.ledger.gate is not None
    asked = asyncio.ensure_future(rig.broker.publish([draft(event_id)]))
    while not rig.ledger.waits:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return asked


async def test_publishes_that_wait_go_into_one_commit(path: str) -> None:
    async with opened(path) as rig:
        await rig.broker.subscribe("a.b")
        rig.ledger.gate = asyncio.Event()
        first = await under_way(rig, "x0")
        more = [asyncio.ensure_future(rig.broker.publish([draft(f"x{n}")])) for n in range(1, 200)]
        asked = [first, *more]
        while rig.broker.waiting < 199:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert rig.heard() == []
        rig.ledger.gate.set()
        answers = await asyncio.gather(*asked)
        assert [accepted(answer[0]).position.offset for answer in answers] == list(range(1, 201))
        assert rig.heard() == [f"x{n}" for n in range(200)]
        assert rig.broker.commits == 2
        assert rig.broker.committed == 200


async def test_an_event_is_on_the_disk_before_anybody_gets_it(path: str) -> None:
    async with opened(path) as rig:
        await rig.broker.subscribe("a.b")
        seen: list[int] = []

        class Sink(Notes):
            def on_events(self, channel: str, events: Any) -> None:
                seen.append(sum(rig.ledger.writes))

        rig.broker.bind(Sink())
        for number in range(3):
            await rig.broker.publish([draft(f"x{number}")])
        assert seen == [1, 2, 3]


async def test_a_commit_that_fails_leaves_no_trace(path: str) -> None:
    async with opened(path) as rig:
        top = await rig.broker.subscribe("a.b")
        rig.ledger.fails_before = True
        with pytest.raises(ArchiveUnavailable):
            await rig.broker.publish(drafts("x", 3))
        assert rig.heard() == []
        assert await rig.broker.top("a.b") == top
        rig.ledger.fails_before = False
        answers = [accepted(answer) for answer in await rig.broker.publish(drafts("x", 3))]
        assert [(a.position.offset, a.duplicate) for a in answers] == [
            (n, False) for n in (1, 2, 3)
        ]
        assert rig.heard() == ["x1", "x2", "x3"]
        assert rig.broker.failures == 1


async def test_a_commit_that_was_done_though_it_failed_is_published_later(path: str) -> None:
    async with opened(path) as rig:
        await rig.broker.subscribe("a.b")
        rig.ledger.fails_after = True
        with pytest.raises(ArchiveUnavailable):
            await rig.broker.publish(drafts("x", 2))
        assert rig.heard() == []
        assert rig.broker.doubtful == 1
        rig.ledger.fails_after = False
        answers = [accepted(each) for each in await rig.broker.publish(drafts("x", 3))]
        assert [(a.position.offset, a.duplicate) for a in answers] == [
            (1, True),
            (2, True),
            (3, False),
        ]
        assert rig.heard() == ["x1", "x2", "x3"]
        assert rig.broker.doubtful == 0
        found = await rig.ledger.read(Query(channel="a.b", limit=10))
        assert ids(found) == ["x1", "x2", "x3"]


async def test_a_channel_in_doubt_that_left_memory_needs_room_like_any_other(path: str) -> None:
    clock = Clock()
    async with opened(path, now=clock.wall, monotonic=clock.monotonic, max_channels=1) as rig:
        rig.ledger.fails_after = True
        with pytest.raises(ArchiveUnavailable):
            await rig.broker.publish([draft("x")])
        rig.ledger.fails_after = False
        clock.advance(30 * DAY_S)
        rig.broker.sweep()
        (taken,) = await rig.broker.publish([draft("p", channel="plain.c")])
        assert isinstance(taken, Published)
        (answer,) = await rig.broker.publish([draft("y")])
        assert isinstance(answer, TooManyChannels)
        await rig.broker.in_turn(rig.broker.settle)
        assert rig.broker.doubtful == 1


async def test_what_expired_before_anybody_was_given_it_leaves_its_position_to_nobody(
    path: str,
) -> None:
    """A commit that was done though it failed stayed in doubt until its events had expired and
    were swept. The next event got the position of the first of them. The ledger's record kept the
    check of the one that was gone, so that after a restart the channel stood elsewhere than it
    had been told to."""
    clock = Clock()
    options = {"now": clock.wall, "monotonic": clock.monotonic}
    async with opened(path, **options) as rig:
        before = await rig.broker.subscribe("brief.b")
        rig.ledger.fails_after = True
        with pytest.raises(ArchiveUnavailable):
            await rig.broker.publish(drafts("x", 2, "brief.b"))
        rig.ledger.fails_after = False
        clock.advance(DAY_S)
        assert await rig.ledger.sweep(round(clock.wall_s * 1000), 100) == 2
        (answer,) = await rig.broker.publish([draft("y", "brief.b")])
        top = accepted(answer).position
        assert (top.epoch == before.epoch, top.offset) == (False, 3)
        assert rig.notes.kinds("brief.b") == ["fork", "events"]
        assert rig.heard("brief.b") == ["y"]
    async with opened(path, **options) as rig:
        assert await rig.broker.top("brief.b") == top


async def test_a_fork_waits_for_what_a_commit_that_failed_has_done(path: str) -> None:
    """A new epoch began below the events of that commit. They were never heard, and published a
    second time when their publisher asked again."""
    async with opened(path) as rig:
        top = await rig.broker.subscribe("a.b")
        rig.ledger.fails_after = True
        with pytest.raises(ArchiveUnavailable):
            await rig.broker.publish(drafts("x", 2))
        rig.ledger.fails_after = False
        fork = await rig.broker.contradict("a.b", Position(top.epoch, 1, "f" * 16))
        assert fork.offset == 2
        assert fork.epoch != top.epoch
        assert rig.notes.kinds("a.b") == ["events", "fork"]
        answers = [accepted(each) for each in await rig.broker.publish(drafts("x", 3))]
        assert [(a.position.offset, a.duplicate) for a in answers] == [
            (1, True),
            (2, True),
            (3, False),
        ]
        assert rig.heard() == ["x1", "x2", "x3"]
        assert ids(await rig.ledger.read(Query(channel="a.b", limit=10))) == ["x1", "x2", "x3"]


async def test_a_commit_that_nobody_waits_for_any_more_is_not_overtaken(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that stood still for longer than a write may take: the write was given up, and done
    later. The ledger was asked meanwhile, by another connection, and knew nothing of it. So other
    events got the same positions, and the archive held both."""
    begun, go_on = threading.Event(), threading.Event()
    write = SqliteArchive._write

    def wait(*args: Any, **options: Any) -> None:
        begun.set()
        go_on.wait(60)
        write(*args, **options)

    async with opened(path, call_timeout_s=50.0) as rig:
        await rig.broker.subscribe("a.b")
        monkeypatch.setattr(rig.ledger._writer, "_call_timeout_s", 0.1)
        monkeypatch.setattr(SqliteArchive, "_write", wait)
        # A write that was given up before its thread came to it is not done.
        while not begun.is_set():
            with pytest.raises(ArchiveUnavailable):
                await rig.broker.publish([draft("x1")])
        monkeypatch.setattr(rig.ledger._writer, "_call_timeout_s", 50.0)
        second = asyncio.ensure_future(rig.broker.publish([draft("x2")]))
        await asyncio.sleep(0.1)
        assert not second.done()
        go_on.set()
        (answer,) = await second
        assert accepted(answer).position.offset == 2
        assert rig.heard() == ["x1", "x2"]
        found = await rig.ledger.read(Query(channel="a.b", limit=10))
        assert [(each.id, each.position.offset) for each in found] == [("x1", 1), ("x2", 2)]


async def test_whoever_waits_too_long_is_told_and_may_ask_again(
    path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as rig:
        await rig.broker.subscribe("a.b")
        await rig.broker.publish([draft("x0")])
        rig.ledger.gate = asyncio.Event()
        # Only what cannot be answered has so little time.
        monkeypatch.setattr(rig.broker._queue, "_call_timeout_s", 0.05)
        begun = await under_way(rig, "x1")
        with pytest.raises(ArchiveUnavailable):
            await begun
        # This one was never begun, and is not published behind its publisher's back.
        with pytest.raises(ArchiveUnavailable):
            await rig.broker.publish([draft("x2")])
        monkeypatch.setattr(rig.broker._queue, "_call_timeout_s", 5.0)
        rig.ledger.gate.set()
        rig.ledger.gate = None
        await asyncio.sleep(0.02)
        assert "a commit failed" not in caplog.text, "nothing was left to commit"
        (again,) = await rig.broker.publish([draft("x1")])
        assert accepted(again).duplicate
        (later,) = await rig.broker.publish([draft("x3")])
        assert accepted(later).position.offset == 3
        assert rig.heard() == ["x0", "x1", "x3"]


async def test_what_waits_is_bounded(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_queue, "_MOST_WAITING", 10)
    async with opened(path) as rig:
        await rig.broker.subscribe("a.b")
        rig.ledger.gate = asyncio.Event()
        first = await under_way(rig, "first")
        waiting = asyncio.ensure_future(rig.broker.publish(drafts("x", 10)))
        await asyncio.sleep(0)
        with pytest.raises(BrokerUnavailable):
            await rig.broker.publish([draft("late")])
        rig.ledger.gate.set()
        assert len(await first) == 1
        assert all(isinstance(answer, Published) for answer in await waiting)


async def test_answers_of_both_kinds_of_channel_stand_in_order(path: str) -> None:
    async with opened(path) as rig:
        batch = [
            draft("1", "plain.a"),
            draft("2", "a.b"),
            draft("3", "plain.a"),
            draft("4", "a.c"),
            draft("5", "a.b"),
        ]
        answers = [accepted(answer) for answer in await rig.broker.publish(batch)]
        assert [(a.channel, a.id, a.position.offset) for a in answers] == [
            ("plain.a", "1", 1),
            ("a.b", "2", 1),
            ("plain.a", "3", 2),
            ("a.c", "4", 1),
            ("a.b", "5", 2),
        ]
        assert rig.ledger.writes == [3]


async def test_a_purge_takes_its_turn(path: str) -> None:
    async with opened(path) as rig:
        await rig.broker.subscribe("a.b")
        rig.ledger.gate = asyncio.Event()
        before = asyncio.ensure_future(rig.broker.publish([draft("before")]))
        await asyncio.sleep(0)
        purging = asyncio.ensure_future(rig.broker.purge("a.b"))
        await asyncio.sleep(0)
        after = asyncio.ensure_future(rig.broker.publish([draft("after")]))
        rig.ledger.gate.set()
        await asyncio.gather(before, purging, after)
        floor = purging.result()
        assert floor is not None and floor.offset == 1
        assert rig.notes.kinds("a.b") == ["events", "purge", "events"]
        assert ids(await rig.ledger.read(Query(channel="a.b", limit=10))) == ["after"]
        found = await rig.broker.history("a.b", limit=10)
        assert found is not None and ids(found.events) == ["after"]


async def test_a_purge_that_was_given_up_before_its_turn_is_not_done(path: str) -> None:
    async with opened(path) as rig:
        await rig.broker.subscribe("a.b")
        rig.ledger.gate = asyncio.Event()
        published = await under_way(rig, "x")
        purging = asyncio.ensure_future(rig.broker.purge("a.b"))
        await asyncio.sleep(0)
        purging.cancel()
        await asyncio.sleep(0)
        rig.ledger.gate.set()
        await published
        await rig.broker.publish([draft("y")])
        assert rig.notes.kinds("a.b") == ["events", "events"]
        assert ids(await rig.ledger.read(Query(channel="a.b", limit=10))) == ["x", "y"]


async def test_a_purge_waits_for_what_a_fork_that_failed_has_done(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The floor was of the epoch before, in which the ledger had the channel no longer. So its
    record kept none, and after a restart nobody knew that the channel had been purged."""
    async with opened(path) as rig:
        top = await rig.broker.subscribe("a.b")
        await rig.broker.publish(drafts("x", 3))
        begin = rig.ledger.begin

        async def fail(record: LedgerRecord) -> None:
            await begin(record)
            raise ArchiveUnavailable("told to fail, though it was done")

        with monkeypatch.context() as patch:
            patch.setattr(rig.ledger, "begin", fail)
            with pytest.raises(ArchiveUnavailable):
                await rig.broker.contradict("a.b", Position(top.epoch, 5, "f" * 16))
        floor = await rig.broker.purge("a.b")
        assert floor is not None
        assert (floor.epoch == top.epoch, floor.offset) == (False, 5)
        assert rig.notes.kinds("a.b") == ["events", "fork", "purge"]
    async with opened(path) as rig:
        found = await rig.broker.history("a.b", limit=10)
        assert found is not None and (found.top, found.floor) == (floor, 5)


async def test_a_restart_goes_on_where_it_was(path: str) -> None:
    async with opened(path, now=lambda: 2_000.0) as rig:
        answers = [accepted(each) for each in await rig.broker.publish(drafts("x", 3))]
        empty = await rig.broker.subscribe("a.empty")
        await rig.broker.publish([draft("p", "plain.a")])
    async with opened(path, now=lambda: 1_990.0) as rig:
        assert await rig.broker.top("a.b") == answers[-1].position
        assert await rig.broker.subscribe("a.empty") == empty
        assert await rig.broker.top("plain.a") is None
        (again,) = await rig.broker.publish([draft("x2")])
        assert again == Published("a.b", answers[1].position, "x2", True)
        (later,) = await rig.broker.publish([draft("x4")])
        assert accepted(later).position.offset == 4
        # The clock went back; the time of a channel does not.
        found = await rig.ledger.read(Query(channel="a.b", limit=10))
        assert [event.time for event in found] == [2_000_000] * 4


async def test_a_new_epoch_and_a_purge_survive_a_restart(path: str) -> None:
    async with opened(path) as rig:
        (first, *_), second = [
            [accepted(each) for each in await rig.broker.publish(drafts(name, 2))]
            for name in ("x", "y")
        ]
        await rig.broker.purge("a.b")
        top = await rig.broker.contradict("a.b", Position(first.position.epoch, 4, "f" * 16))
        assert top.epoch != second[-1].position.epoch
    async with opened(path) as rig:
        assert await rig.broker.top("a.b") == top
        found = await rig.broker.history("a.b", limit=10)
        assert found is not None and found.floor == 4
        (again,) = await rig.broker.publish([draft("x1")])
        assert accepted(again).duplicate


async def test_a_sweep_spares_what_is_in_memory(path: str) -> None:
    """A clock that was set forward made the records of living channels look lapsed.

    The sweep deleted them, the next publish wrote them anew without their purge floor, and a
    restart lost it.
    """
    clock = Clock()
    options = {"now": clock.wall, "monotonic": clock.monotonic}

    async def sweep(rig: Rig) -> None:
        await rig.ledger.sweep(round(clock.wall_s * 1000), 100)

    async with opened(path, **options) as rig:
        await rig.broker.publish(drafts("x", 3))
        floor = await rig.broker.purge("a.b")
        assert floor is not None and floor.offset == 3
        clock.wall_s += 30 * DAY_S
        await sweep(rig)
        assert await rig.broker.top("a.b") == floor
    async with opened(path, **options) as rig:
        # By the new time too it has not been idle for long.
        await sweep(rig)
        (answer,) = await rig.broker.publish([draft("y")])
        assert accepted(answer).position.epoch == floor.epoch
        found = await rig.broker.history("a.b", limit=10)
        assert found is not None and (ids(found.events), found.floor) == (["y"], 3)
        # Nobody has used it for the time that it outlives its use.
        await rig.broker.purge("a.b")
        clock.advance(30 * DAY_S)
        rig.broker.sweep()
        await sweep(rig)
        assert await rig.broker.top("a.b") is None


async def test_a_purge_begins_the_time_anew_on_the_disk_too(path: str) -> None:
    """Subscribers were told of that position. A node that was stopped then kept it for as long as
    the last event before it."""
    clock = Clock()
    options = {"now": clock.wall, "monotonic": clock.monotonic}
    async with opened(path, **options) as rig:
        await rig.broker.publish([draft("x")])
        clock.advance(6 * DAY_S)
        floor = await rig.broker.purge("a.b")
    clock.advance(6 * DAY_S)
    async with opened(path, **options) as rig:
        # The first one takes the row that remembers the id.
        for _ in range(2):
            await rig.ledger.sweep(round(clock.wall_s * 1000), 100)
        assert await rig.broker.top("a.b") == floor


async def test_a_clock_that_was_ahead_for_a_while_dates_no_later_event(path: str) -> None:
    """A sweep took down that a channel was in use at that time. After a restart its events had
    that time too, until the clock came there again."""
    clock = Clock()
    options = {"now": clock.wall, "monotonic": clock.monotonic}
    true_ms = round(clock.wall_s * 1000)
    async with opened(path, **options) as rig:
        for channel in ("a.used", "a.purged"):
            await rig.broker.publish([draft("x", channel)])
            await rig.broker.subscribe(channel)
        clock.wall_s += 30 * DAY_S
        await rig.broker.publish([draft("y", "a.purged")])
        await rig.broker.purge("a.purged")
        await rig.ledger.sweep(round(clock.wall_s * 1000), 100)
        clock.wall_s -= 30 * DAY_S
    async with opened(path, **options) as rig:
        await rig.broker.publish([draft("z", "a.used"), draft("z", "a.purged")])
        found = await rig.ledger.read(Query(channel="a.used", limit=10))
        assert [event.time for event in found] == [true_ms, true_ms]
        # Within a channel no time is before that of an earlier event, though it is gone.
        found = await rig.ledger.read(Query(channel="a.purged", limit=10))
        assert [event.time for event in found] == [round(true_ms + 30 * DAY_S * 1000)]


async def test_a_position_before_the_first_event_outlives_a_sweep(path: str) -> None:
    """A record without an event was as old as can be: the first sweep after a restart deleted it,
    and with it the positions that its subscribers had."""
    clock = Clock()
    options = {"now": clock.wall, "monotonic": clock.monotonic}
    async with opened(path, **options) as rig:
        empty = await rig.broker.subscribe("a.empty")
        assert await rig.broker.subscribe("a.forked") != empty
        forked = await rig.broker.contradict(
            "a.forked", Position((await rig.broker.subscribe("a.forked")).epoch, 5, "f" * 16)
        )
    clock.advance(6 * DAY_S)
    async with opened(path, **options) as rig:
        await rig.ledger.sweep(round(clock.wall_s * 1000), 100)
        assert await rig.broker.subscribe("a.empty") == empty
        assert await rig.broker.subscribe("a.forked") == forked


async def test_closing_finishes_what_waits_and_then_refuses(path: str) -> None:
    rig = Rig(path)
    await rig.broker.start()
    rig.ledger.gate = asyncio.Event()
    asked = [asyncio.ensure_future(rig.broker.publish([draft(f"x{n}")])) for n in range(5)]
    await asyncio.sleep(0)
    rig.ledger.gate.set()
    await rig.broker.close()
    assert [accepted((await each)[0]).position.offset for each in asked] == [1, 2, 3, 4, 5]
    with pytest.raises(BrokerUnavailable):
        await rig.broker.publish([draft("late")])


async def test_two_who_come_first_get_one_epoch(path: str) -> None:
    async with opened(path) as rig:
        tops = await asyncio.gather(*(rig.broker.subscribe("a.new") for _ in range(5)))
        assert len(set(tops)) == 1
    async with opened(path) as rig:
        again = await asyncio.gather(
            rig.broker.subscribe("a.new"), rig.broker.top("a.new"), rig.broker.publish([draft("x")])
        )
        assert again[0] == again[1] == tops[0]


async def test_nobody_gets_a_position_that_is_still_being_written(path: str) -> None:
    """Who came second got it at once, and could hold one that no disk ever had."""
    async with opened(path) as rig:
        rig.ledger.gate = asyncio.Event()
        asked = [asyncio.ensure_future(rig.broker.subscribe("a.new"))]
        while not rig.ledger.waits:  # noqa: ASYNC110
            await asyncio.sleep(0)
        asked.append(asyncio.ensure_future(rig.broker.subscribe("a.new")))
        done, _waiting = await asyncio.wait(asked, timeout=0.05)
        assert not done
        rig.ledger.gate.set()
        first, second = await asyncio.gather(*asked)
        assert first == second


async def test_who_looks_for_a_channel_does_not_keep_others_from_making_it(path: str) -> None:
    async with opened(path) as rig:
        looked, made, again = await asyncio.gather(
            rig.broker.top("a.b"), rig.broker.subscribe("a.b"), rig.broker.subscribe("a.b")
        )
        assert looked is None
        assert made == again == await rig.broker.top("a.b")


async def test_who_comes_as_another_has_just_looked_is_served(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who came in the very turn of the loop in which a look ended held up the node for ever."""
    async with opened(path) as rig:
        found, gate = asyncio.Event(), asyncio.get_running_loop().create_future()
        top = rig.ledger.top

        async def wait(channel: str) -> LedgerRecord | None:
            known = await top(channel)
            found.set()
            await gate
            return known

        monkeypatch.setattr(rig.ledger, "top", wait)
        looks = asyncio.ensure_future(rig.broker.top("a.b"))
        await found.wait()
        # The look ends in the next turn of the loop, and behind it begins who wants a place.
        gate.set_result(None)
        await asyncio.sleep(0)
        made = await rig.broker.subscribe("a.b")
        assert await looks is None
        assert made == await rig.broker.top("a.b")


async def test_a_look_that_fails_once_nobody_waits_for_it_is_no_error_in_the_log(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that left while the ledger was asked for its channel, which then failed, was an
    error in the log, with a traceback: an exception that was never retrieved."""
    unseen: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: unseen.append(context))
    async with opened(path) as rig:
        asked, fail = asyncio.Event(), asyncio.Event()

        async def top(_channel: str) -> LedgerRecord | None:
            asked.set()
            await fail.wait()
            raise ArchiveUnavailable("told to fail")

        with monkeypatch.context() as patch:
            patch.setattr(rig.ledger, "top", top)
            subscribing = asyncio.ensure_future(rig.broker.subscribe("a.b"))
            await asked.wait()
            subscribing.cancel()
            await asyncio.wait([subscribing])
            # It holds what it waited for.
            del subscribing
            fail.set()
            while rig.broker._recalls:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await asyncio.sleep(0)
        gc.collect()
        assert unseen == []
        assert (await rig.broker.subscribe("a.b")).offset == 0


async def test_channels_that_are_made_at_once_keep_the_bound(path: str) -> None:
    async with opened(path, max_channels=2) as rig:
        answers = await asyncio.gather(
            *(rig.broker.subscribe(f"a.{number}") for number in range(5)), return_exceptions=True
        )
        made = [answer for answer in answers if isinstance(answer, Position)]
        assert len(made) == 2
        assert sum(isinstance(answer, TooManyChannels) for answer in answers) == 3


async def test_an_archive_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    rig = Rig(str(tmp_path / "nowhere" / "archive.db"))
    with pytest.raises(ArchiveUnavailable):
        await rig.broker.start()
    await rig.broker.close()
