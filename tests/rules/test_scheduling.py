"""Rule 30: what is scheduled is published once, over a real Redis and on a single node."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from archive_rig import started
from broker_rig import Clock, Notes, accepted, draft, ids
from config.rules import ChannelRule, ChannelRules
from muting_proxy import MutingProxy
from pubsub.archive import Query
from pubsub.durable_broker import DurableBroker
from pubsub.durable_firing import DurableFiring
from pubsub.errors import ArchiveUnavailable, Cancelled, ClaimEnded, PubSubError
from pubsub.event import Published
from pubsub.redis_firing import KEEP_MS, RedisFiring
from pubsub.redis_keys import RedisKeys
from pubsub.scheduler import Scheduler
from pubsub.schedules import Schedule, Schedules
from pubsub.sqlite_archive import SqliteArchive
from redis_cluster import ClusterServer
from redis_rig import open_broker, until
from redis_server import RedisServer
from schedule_rig import POINTS, Point, open_scheduling_node, schedule

DAY_S = 86_400.0
MAYBE_LATE = pytest.mark.expect_log("pubsub.scheduler", "what is due could not", required=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive.db"


def names(notes: Notes, channel: str = "a.b") -> list[str]:
    return ids(notes.events(channel))


@asynccontextmanager
async def firing_by(
    clock: Clock, server: RedisServer, keys: RedisKeys, path: Path
) -> AsyncIterator[tuple[RedisFiring, SqliteArchive]]:
    """What fires, by a clock that is turned by hand."""
    async with (
        started(SqliteArchive(str(path))) as archive,
        open_broker(
            server, Notes(), keys=keys, clock_ms=lambda: round(clock.wall_s * 1000)
        ) as broker,
    ):
        yield RedisFiring(broker, archive.schedules), archive


async def all_done(store: Schedules) -> None:
    while await store.pending():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def ask(server: RedisServer, *words: str | int) -> Any:
    return await asyncio.to_thread(lambda: server.ask(*words))


# ---- many nodes


@MAYBE_LATE
@pytest.mark.parametrize("point", POINTS)
async def test_rule_30_each_is_published_once_whoever_is_killed(
    server: RedisServer, keys: RedisKeys, path: Path, point: Point
) -> None:
    notes = Notes()
    async with (
        open_broker(server, notes, keys=keys) as listener,
        open_scheduling_node(server, path, keys=keys, point=point) as first,
        open_scheduling_node(server, path, keys=keys, scheduling=False) as second,
        open_scheduling_node(server, path, keys=keys, scheduling=False) as third,
    ):
        for channel in ("a.b", "c"):
            await listener.subscribe(channel)
        now = await first.firing.now_ms()
        expected = [f"x{number:02}" for number in range(20)]
        await first.store.add(
            [
                schedule(name, now + 5 * number, channel)
                for number, name in enumerate(expected)
                for channel in ("a.b", "c")
            ],
            0,
        )
        await asyncio.wait_for(first.firing.reached.wait(), 10)
        for node in (second, third):
            node.scheduler.start()
        first.kill()
        await until(lambda: len(names(notes)) >= 20 and len(names(notes, "c")) >= 20)
        await all_done(second.store)
        assert await listener.settled()
        assert names(notes) == names(notes, "c") == expected


@MAYBE_LATE
async def test_rule_30_many_nodes_share_the_work(
    server: RedisServer, keys: RedisKeys, path: Path
) -> None:
    notes = Notes()
    async with (
        open_broker(server, notes, keys=keys) as listener,
        open_scheduling_node(server, path, keys=keys) as first,
        open_scheduling_node(server, path, keys=keys) as second,
        open_scheduling_node(server, path, keys=keys) as third,
    ):
        await listener.subscribe("a.b")
        now = await first.firing.now_ms()
        expected = [f"x{number:03}" for number in range(300)]
        await first.store.add([schedule(name, now + n) for n, name in enumerate(expected)], 0)
        await until(lambda: len(names(notes)) >= 300)
        await all_done(second.store)
        assert await listener.settled()
        assert names(notes) == expected
        nodes = (first, second, third)
        assert sum(node.scheduler.delivered for node in nodes) == 300


@MAYBE_LATE
async def test_rule_30_who_wakes_after_its_claim_has_ended_publishes_nothing(
    server: RedisServer, keys: RedisKeys, path: Path
) -> None:
    """Also when nobody remembers the id any more."""
    async with (
        open_scheduling_node(server, path, keys=keys, point="claimed") as sleeper,
        open_scheduling_node(server, path, keys=keys, scheduling=False) as other,
    ):
        await sleeper.store.add([schedule("x", 5)], 0)
        await asyncio.wait_for(sleeper.firing.reached.wait(), 10)
        other.scheduler.start()
        await until(lambda: other.scheduler.delivered)
        forgotten = [*keys.fired("a.b"), *keys.ids("a.b")]
        assert await ask(server, "DEL", *forgotten) == 4
        sleeper.firing.go_on.set()
        await until(lambda: sleeper.firing.answers)
        (answer,) = sleeper.firing.answers
        assert isinstance(answer, ClaimEnded)
        history = await other.broker.history("a.b", limit=10)
        assert history is not None
        assert ids(history.events) == ["x"]


async def test_rule_30_time_is_that_of_redis(
    server: RedisServer, keys: RedisKeys, path: Path
) -> None:
    async with open_scheduling_node(server, path, keys=keys, scheduling=False) as node:
        seconds, micros = await ask(server, "TIME")
        ahead = await node.firing.now_ms() - (int(seconds) * 1000 + int(micros) // 1000)
        assert 0 <= ahead < 5_000
        due = schedule("x", 5)
        answers = await node.firing.fire([due], await node.firing.now_ms() - 1)
        assert isinstance(answers[0], ClaimEnded)
        answers = await node.firing.fire([due], await node.firing.now_ms() + 5_000)
        assert accepted(answers[0]).id == "x"


async def test_rule_30_the_claim_ends_to_the_millisecond(
    server: RedisServer, keys: RedisKeys, path: Path, clock: Clock
) -> None:
    async with firing_by(clock, server, keys, path) as (firing, _archive):
        now = await firing.now_ms()
        for name, till, kind in [("x", now, ClaimEnded), ("y", now + 1, Published)]:
            (answer,) = await firing.fire([schedule(name, 5)], till)
            assert isinstance(answer, kind)


async def test_rule_30_an_id_is_remembered_for_a_day(
    server: RedisServer, keys: RedisKeys, path: Path, clock: Clock
) -> None:
    async with firing_by(clock, server, keys, path) as (firing, _archive):

        async def fire(*names: str) -> list[bool]:
            till = await firing.now_ms() + 1_000
            answers = await firing.fire([schedule(name, 5) for name in names], till)
            return [accepted(answer).duplicate for answer in answers]

        assert await fire("x") == [False]
        clock.advance(DAY_S / 2)
        # The generation is not yet as old as to give way to the next.
        assert await fire("y", "x") == [False, True]
        clock.advance(DAY_S / 2 - 1)
        assert await fire("x", "y", "x") == [True, True, True]
        clock.advance(2)
        assert await fire("z", "x", "y") == [False, True, True]
        clock.advance(2 * DAY_S)
        assert await fire("x") == [False]


async def test_rule_30_what_was_fired_is_remembered_without_a_window_of_ids(
    server: RedisServer, keys: RedisKeys, path: Path
) -> None:
    async with (
        started(SqliteArchive(str(path))) as archive,
        open_broker(server, Notes(), keys=keys, idempotency_window_s=0) as broker,
    ):
        firing = RedisFiring(broker, archive.schedules)
        due, till = schedule("x", 5), await firing.now_ms() + 5_000
        for duplicate in (False, True):
            (answer,) = await firing.fire([due], till)
            assert accepted(answer).duplicate is duplicate


async def test_rule_30_a_firing_whose_answer_was_lost_is_not_a_second_event(
    reachable: RedisServer, path: Path
) -> None:
    """Also where no other ids are remembered."""
    async with (
        started(SqliteArchive(str(path))) as archive,
        MutingProxy(reachable.port) as proxy,
        open_broker(reachable, Notes(), url=proxy.url, idempotency_window_s=0.0) as broker,
    ):
        firing = RedisFiring(broker, archive.schedules)
        proxy.lose = b"lost-id"
        (answer,) = await firing.fire([schedule("lost-id", 5)], await firing.now_ms() + 9_000)
        assert proxy.lost == 1
        assert accepted(answer).duplicate
        assert accepted(answer).position.offset == 1


async def test_rule_30_a_claim_is_given_up_when_all_is_done(
    server: RedisServer, keys: RedisKeys, path: Path
) -> None:
    async with open_scheduling_node(server, path, keys=keys, claim_ms=600_000) as node:
        for number in range(3):
            await node.store.add([schedule(f"x{number}", 5)], 0)
            await until(lambda: node.scheduler.delivered > number)  # noqa: B023


async def test_rule_30_only_firings_declare_their_keys(
    server: RedisServer, keys: RedisKeys, path: Path
) -> None:
    """A script whose keys are there in part is refused while their slot migrates."""
    async with open_scheduling_node(server, path, keys=keys, scheduling=False) as node:
        declared: list[list[str]] = []
        send = node.broker.link.send_publish

        def noted(script: Any, names: Any, *rest: Any, **more: Any) -> Any:
            declared.append(list(names))
            return send(script, names, *rest, **more)

        node.broker.link.send_publish = noted  # type: ignore[method-assign,assignment]
        await node.broker.publish([draft("x")])
        await node.firing.fire([schedule("y", 5)], await node.firing.now_ms() + 5_000)
        plain, fired = declared
        assert fired == [*plain, *keys.fired("a.b")]


async def test_rule_30_its_keys_are_two_made_together_and_others_do_without(
    server: RedisServer, keys: RedisKeys, path: Path
) -> None:
    async with open_scheduling_node(server, path, keys=keys, scheduling=False) as node:
        await node.broker.publish([draft("x")])
        assert await ask(server, "EXISTS", *keys.fired("a.b")) == 0
        till = await node.firing.now_ms() + 60_000
        for number in range(300):
            (answer,) = await node.firing.fire([schedule(f"y{number}", 5)], till)
            accepted(answer)
        assert await ask(server, "EXISTS", *keys.fired("a.b")) == 2
        for key in keys.fired("a.b"):
            left = await ask(server, "PTTL", key)
            assert KEEP_MS < left <= 2 * KEEP_MS


async def test_rule_30_all_keys_of_a_firing_lie_in_one_slot(path: Path) -> None:
    """A server in cluster mode refuses calls whose declared keys do not."""
    with ClusterServer() as server:
        server.ask("CLUSTER", "ADDSLOTS", *range(16_384))
        await until(lambda: b"cluster_state:ok" in server.ask("CLUSTER", "INFO"))
        async with open_scheduling_node(server, path) as node:
            now = await node.firing.now_ms()
            found = [schedule("x", now + 10, f"c{number}") for number in range(20)]
            await node.store.add([*found, schedule("y", now + 600_000)], 0)
            node.scheduler.expect(now)
            await until(lambda: node.scheduler.delivered == 20)
            (left,) = await node.store.page("a.b", limit=2)
            assert await node.firing.cancel(left)


async def test_rule_30_it_is_cancelled_or_published(
    server: RedisServer, keys: RedisKeys, path: Path, clock: Clock
) -> None:
    async with firing_by(clock, server, keys, path) as (firing, archive):
        till = await firing.now_ms() + 1_000
        first, second = schedule("x", 5), schedule("y", 5)
        await archive.schedules.add([first, second], 0)
        assert await firing.cancel(first)
        # Whoever has claimed it already comes too late.
        answers = await firing.fire([first, second], till)
        assert isinstance(answers[0], Cancelled)
        assert accepted(answers[1]).position.offset == 1
        assert not await firing.cancel(second)
        assert await archive.schedules.pending() == 0
        # Cancelled and scheduled anew, for which the old one is nothing.
        again = schedule("x", 5)
        clock.advance(DAY_S + 1)
        till = await firing.now_ms() + 1_000
        (answer,) = await firing.fire([again], till)
        assert not accepted(answer).duplicate
        assert not await firing.cancel(again)
        assert accepted((await firing.fire([again], till))[0]).duplicate


async def test_rule_30_of_a_race_to_cancel_there_is_one_end(
    server: RedisServer, keys: RedisKeys, path: Path
) -> None:
    async with open_scheduling_node(server, path, keys=keys, scheduling=False) as node:
        ends = set()
        for number in range(60):
            due = schedule(f"x{number}", 5)
            await node.store.add([due], 0)
            till = await node.firing.now_ms() + 5_000
            fire, cancel = node.firing.fire([due], till), node.firing.cancel(due)
            if number % 2:
                answers, cancelled = await asyncio.gather(fire, cancel)
            else:
                cancelled, answers = await asyncio.gather(cancel, fire)
            assert cancelled is isinstance(answers[0], Cancelled)
            ends.add(cancelled)
        assert ends == {True, False}


# ---- a single node


ARCHIVED = ChannelRule(match="a.>", archive=True)


class Single:
    """One life of a single node."""

    def __init__(self, path: Path) -> None:
        self.archive = SqliteArchive(str(path))
        self.broker = DurableBroker(ChannelRules([ARCHIVED]), self.archive, max_channels=3)
        self.notes = Notes()
        self.broker.bind(self.notes)
        self.firing = DurableFiring(self.broker, self.archive.schedules)
        self.scheduler = Scheduler(
            self.archive.schedules, self.firing, holder="n", poll_s=0.05, first_delay_s=0.05
        )

    async def archived(self, channel: str) -> list[str]:
        return ids(await self.archive.read(Query(channel=channel, limit=100)))


@asynccontextmanager
async def single(path: Path, *, scheduling: bool = False) -> AsyncIterator[Single]:
    node = Single(path)
    try:
        await node.broker.start()
        for channel in ("a.b", "c"):
            await node.broker.subscribe(channel)
        if scheduling:
            node.scheduler.start()
        yield node
    finally:
        await node.scheduler.close()
        await node.broker.close()


async def test_rule_30_an_archived_event_and_the_end_of_its_schedule_are_one(path: Path) -> None:
    async with single(path) as node:
        due = [schedule("x", 5), schedule("y", 5)]
        await node.archive.schedules.add(due, 0)
        write = node.archive.fire
        failed: list[bool] = []

        async def fails_once(*arguments: object) -> None:
            if not failed:
                failed.append(True)
                raise ArchiveUnavailable("it is away")
            await write(*arguments)  # type: ignore[arg-type]

        node.archive.fire = fails_once  # type: ignore[method-assign,assignment]
        answers = await node.firing.fire(due, 0)
        assert all(isinstance(answer, ArchiveUnavailable) for answer in answers)
        assert await node.archive.schedules.pending() == 2
        assert names(node.notes) == []
        answers = await node.firing.fire(due, 0)
        assert [accepted(answer).id for answer in answers] == ["x", "y"]
        assert await node.archive.schedules.pending() == 0
        # Once more, as after a claim that was thought to be lost.
        answers = await node.firing.fire(due, 0)
        assert all(isinstance(answer, Cancelled) for answer in answers)
        assert names(node.notes) == ["x", "y"]


async def test_rule_30_a_commit_that_was_done_unseen_is_handed_out(path: Path) -> None:
    async with single(path) as node:
        await node.archive.schedules.add([schedule("x", 5)], 0)
        write = node.archive.fire

        async def unseen(*arguments: object) -> None:
            await write(*arguments)  # type: ignore[arg-type]
            raise ArchiveUnavailable("SQLite did not answer in time")

        node.archive.fire = unseen  # type: ignore[method-assign,assignment]
        (due,) = await node.archive.schedules.page("a.b", limit=1)
        (answer,) = await node.firing.fire([due], 0)
        assert isinstance(answer, ArchiveUnavailable)
        assert not await node.firing.cancel(due)
        assert names(node.notes) == []
        await node.firing.settle()
        assert names(node.notes) == ["x"]


async def test_rule_30_what_is_not_archived_is_deleted_before_it_is_handed_out(
    path: Path,
) -> None:
    async with single(path) as node:
        await node.archive.schedules.add([schedule("x", 5, "c")], 0)
        (due,) = await node.archive.schedules.page("c", limit=1)
        remove = node.archive.schedules.remove

        async def refused(*_: object) -> int:
            raise ArchiveUnavailable("it is away")

        node.archive.schedules.remove = refused  # type: ignore[method-assign,assignment]
        (answer,) = await node.firing.fire([due], 0)
        assert isinstance(answer, ArchiveUnavailable)
        assert names(node.notes, "c") == []
        node.archive.schedules.remove = remove  # type: ignore[method-assign]
        await node.firing.settle()
        assert names(node.notes, "c") == ["x"]
        assert await node.archive.schedules.pending() == 0
        await node.firing.settle()
        assert names(node.notes, "c") == ["x"]


@pytest.mark.parametrize("channel", ["a.b", "c"])
async def test_rule_30_on_a_single_node_a_race_to_cancel_has_one_end(
    path: Path, channel: str
) -> None:
    async with single(path) as node:
        ends = set()
        for number in range(40):
            due = schedule(f"x{number}", 5, channel)
            await node.archive.schedules.add([due], 0)
            calls = [node.firing.fire([due], 0), node.firing.cancel(due)]
            found = await asyncio.gather(*(calls if number % 2 else calls[::-1]))
            answers, cancelled = found if number % 2 else found[::-1]
            assert isinstance(answers, list)
            assert cancelled is isinstance(answers[0], Cancelled)
            assert (due.draft.id in names(node.notes, channel)) is not cancelled
            ends.add(cancelled)
        assert ends == {True, False}


async def test_rule_30_what_was_due_meanwhile_is_published_at_the_next_start(path: Path) -> None:
    async with single(path) as node:
        await node.archive.schedules.add(
            [schedule(name, at, "a.b") for name, at in [("y", 7), ("z", 9), ("x", 5)]], 0
        )
    async with single(path, scheduling=True) as node:
        await until(lambda: len(names(node.notes)) == 3)
        assert names(node.notes) == ["x", "y", "z"]
    async with single(path, scheduling=True) as node:
        assert await node.archived("a.b") == ["x", "y", "z"]
        assert await node.archive.schedules.pending() == 0


@pytest.mark.expect_log("pubsub.scheduler", "what is due could not be published")
async def test_rule_30_where_there_is_no_room_it_is_tried_again(path: Path) -> None:
    async with single(path) as node:
        accepted((await node.broker.publish([draft("f", "d")]))[0])
        store = node.archive.schedules
        await store.add([schedule("x", 5, "a.new"), schedule("y", 5, "new")], 0)
        await store.add([schedule("z", 6, "a.b")], 0)
        node.scheduler.start()
        # The others are not held up.
        await until(lambda: names(node.notes) == ["z"])
        await until(lambda: node.scheduler.failures > 4)
        assert await store.pending() == 2
        node.broker._max_channels = 10
        await until(lambda: node.scheduler.delivered == 3)
        assert await node.archived("a.new") == ["x"]
        history = await node.broker.history("new", limit=10)
        assert history is not None
        assert ids(history.events) == ["y"]


@pytest.mark.expect_log("pubsub.scheduler", "could not be read")
@pytest.mark.expect_log("pubsub.scheduler", "can never be published")
async def test_rule_30_what_can_never_be_published_is_dropped_and_told(path: Path) -> None:
    async with single(path) as node:
        store = node.archive.schedules
        await store.add([schedule("w", 5), schedule("x", 6), schedule("y", 7, "c")], 0)
        await node.archive._writer.run(
            lambda connection: connection.execute(
                "UPDATE schedules SET body = x'00' WHERE id = 'w'"
            )
        )

        async def never(schedules: Sequence[Schedule]) -> list[PubSubError]:
            return [PubSubError("it can never be")]

        node.broker.commit = never  # type: ignore[method-assign,assignment]
        node.scheduler.start()
        await until(lambda: node.scheduler.dropped == 2 and node.scheduler.delivered == 1)
        assert names(node.notes) == []
        assert names(node.notes, "c") == ["y"]
        await all_done(store)
        assert node.scheduler.dropped == 2
