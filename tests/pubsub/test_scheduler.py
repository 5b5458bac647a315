"""Who publishes what is due: when it looks, what it counts, and what it does when things fail."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from archive_rig import started
from pubsub.errors import (
    ArchiveUnavailable,
    BrokerUnavailable,
    Cancelled,
    ClaimEnded,
    NotReplicated,
    PubSubError,
)
from pubsub.event import Published
from pubsub.firing import Fired
from pubsub.position import start
from pubsub.scheduler import Scheduler
from pubsub.schedules import Schedule
from pubsub.sqlite_archive import SqliteArchive
from pubsub.sqlite_schedules import SqliteSchedules
from redis_rig import until
from schedule_rig import schedule

LATE = pytest.mark.expect_log("pubsub.scheduler", "what is due could not be published")


class StandIn:
    """Publishes nowhere; `fails` says how each channel fails, if it does."""

    claim_ms = 1_000

    def __init__(self, store: SqliteSchedules) -> None:
        self.now = 1_000
        self.asked = 0
        self.store = store
        self.fails: dict[str, Exception] = {}
        self.raises: Exception | None = None
        self.fired: list[str] = []
        self.calls: list[int] = []

    async def now_ms(self) -> int:
        self.asked += 1
        return self.now

    async def settle(self) -> None:
        if self.raises is not None:
            raise self.raises

    async def fire(self, schedules: Sequence[Schedule], till_ms: int) -> Fired:
        assert till_ms == self.now + self.claim_ms
        self.calls.append(len(schedules))
        answers: Fired = []
        for each in schedules:
            error = self.fails.get(each.draft.channel)
            if isinstance(error, PubSubError):
                answers.append(error)
            elif error is not None:
                raise error
            else:
                self.fired.append(each.draft.id)
                answers.append(Published(each.draft.channel, start("0" * 16), each.draft.id))
        return answers

    async def done(self, schedules: Sequence[Schedule]) -> None:
        await self.store.remove(schedules)

    async def cancel(self, schedule: Schedule) -> bool:
        raise NotImplementedError


@asynccontextmanager
async def scheduling(folder: Path, **options: Any) -> AsyncIterator[tuple[Scheduler, StandIn]]:
    """A scheduler that is not started yet."""
    async with started(SqliteArchive(str(folder / "archive.db"))) as archive:
        firing = StandIn(archive.schedules)
        options = {"holder": "n1", "poll_s": 0.02, **options}
        scheduler = Scheduler(archive.schedules, firing, **options)
        try:
            yield scheduler, firing
        finally:
            await scheduler.close()
            await scheduler.close()


async def test_what_is_due_is_published_and_nothing_sooner(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as (scheduler, firing):
        await scheduler.store.add([schedule(f"x{n}", 998 + n) for n in range(6)], 0)
        scheduler.start()
        await until(lambda: scheduler.delivered == 3)
        looked = firing.asked
        await until(lambda: firing.asked > looked + 2)
        assert firing.fired == ["x0", "x1", "x2"]
        assert scheduler.late_s == 0
        firing.now = 1_002
        await until(lambda: scheduler.delivered == 5)
        assert firing.fired[3:] == ["x3", "x4"]


async def test_it_is_told_how_late_and_how_many(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as (scheduler, firing):
        await scheduler.store.add([schedule("x", 400), schedule("y", 5_000)], 0)
        firing.fails["a.b"] = ClaimEnded("it has")
        scheduler.start()
        await until(lambda: scheduler.pending == 2)
        assert scheduler.late_s == 0.6


async def test_it_wakes_for_what_is_due(tmp_path: Path) -> None:
    async with scheduling(tmp_path, poll_s=3_600.0) as (scheduler, firing):
        await scheduler.store.add([schedule("x", 1_050)], 0)
        scheduler.start()
        await until(lambda: firing.asked)
        firing.now = 1_050
        await until(lambda: scheduler.delivered)


async def test_it_wakes_for_what_is_added(tmp_path: Path) -> None:
    async with scheduling(tmp_path, poll_s=3_600.0) as (scheduler, firing):
        await scheduler.store.add([schedule("x", 900_000)], 0)
        scheduler.start()
        await until(lambda: scheduler._next_ms == 900_000)
        scheduler.expect(900_001)
        for _ in range(20):
            await asyncio.sleep(0)
        assert firing.asked == 1
        await scheduler.store.add([schedule("y", 1_000)], 0)
        scheduler.expect(1_000)
        await until(lambda: scheduler.delivered)


async def test_many_go_in_pieces_one_after_the_other(tmp_path: Path) -> None:
    async with scheduling(tmp_path, most=10, poll_s=3_600.0) as (scheduler, firing):
        found = [schedule(f"x{n:02}", 5, f"c{n % 7}") for n in range(35)]
        await scheduler.store.add(found, 0)
        scheduler.start()
        await until(lambda: scheduler.delivered == 35)
        assert firing.fired == [each.draft.id for each in found]
        assert firing.calls == [10, 10, 10, 5]


@LATE
@pytest.mark.parametrize("error", [BrokerUnavailable("away"), NotReplicated("too few")])
async def test_a_channel_that_fails_waits_and_others_do_not(
    tmp_path: Path, error: PubSubError
) -> None:
    async with scheduling(tmp_path, first_delay_s=10.0) as (scheduler, firing):
        firing.fails["bad"] = error
        await scheduler.store.add(
            [schedule("x", 5, "bad"), schedule("y", 6), schedule("z", 7, "bad")], 0
        )
        scheduler.start()
        await until(lambda: scheduler.delivered == 1)
        looked = firing.asked
        await until(lambda: firing.asked > looked + 3)
        assert len(firing.calls) == 1
        # The pause of 5 to 10 s is over.
        firing.now += 10_000
        await until(lambda: len(firing.calls) == 2)
        # Now it is up to 20 s.
        firing.now += 10_000
        looked = firing.asked
        await until(lambda: firing.asked > looked + 3)
        assert len(firing.calls) == 2
        del firing.fails["bad"]
        firing.now += 20_000
        await until(lambda: scheduler.delivered == 3)
        assert firing.fired == ["y", "x", "z"]
        assert scheduler.failures == 4
        await until(lambda: not scheduler._tries)


async def test_what_was_cancelled_or_claimed_by_another_is_left_alone(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as (scheduler, firing):
        firing.fails = {"gone": Cancelled("it was"), "late": ClaimEnded("it has")}
        await scheduler.store.add([schedule("x", 5, "gone"), schedule("y", 5, "late")], 0)
        scheduler.start()
        await until(lambda: len(firing.calls) > 1)
        assert await scheduler.store.find("gone", "x") is None
        assert await scheduler.store.find("late", "y") is not None
        assert (scheduler.delivered, scheduler.dropped, scheduler.failures) == (0, 0, 0)


@LATE
@pytest.mark.expect_log("pubsub.scheduler", "a schedule could not be published")
async def test_one_that_nobody_expected_does_not_hold_the_others_up(tmp_path: Path) -> None:
    async with scheduling(tmp_path, first_delay_s=10.0) as (scheduler, firing):
        firing.fails["bad"] = RuntimeError("a bug")
        await scheduler.store.add([schedule("x", 5, "bad"), schedule("y", 6)], 0)
        scheduler.start()
        await until(lambda: scheduler.delivered == 1)
        assert firing.fired == ["y"]
        assert await scheduler.store.find("bad", "x") is not None


@LATE
@pytest.mark.parametrize("error", [ArchiveUnavailable("away"), RuntimeError("a bug")])
async def test_it_goes_on_when_looking_fails(tmp_path: Path, error: Exception) -> None:
    async with scheduling(tmp_path) as (scheduler, firing):
        firing.raises = error
        await scheduler.store.add([schedule("x", 5)], 0)
        scheduler.start()
        await until(lambda: scheduler.failures > 2)
        firing.raises = None
        await until(lambda: scheduler.delivered)


async def test_closing_waits_for_what_is_under_way(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as (scheduler, firing):
        gate = asyncio.Event()
        fire = firing.fire

        async def slowly(schedules: Sequence[Schedule], till_ms: int) -> Fired:
            firing.asked = -1
            await gate.wait()
            return await fire(schedules, till_ms)

        firing.fire = slowly  # type: ignore[method-assign]
        await scheduler.store.add([schedule("x", 5), schedule("y", 6)], 0)
        scheduler.start()
        await until(lambda: firing.asked == -1)
        closing = asyncio.ensure_future(scheduler.close())
        await asyncio.sleep(0)
        gate.set()
        await closing
        assert scheduler.delivered == 2
        assert await scheduler.store.pending() == 0
