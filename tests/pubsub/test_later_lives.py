"""Where a channel begins whose record Redis no longer has: above all that the archive holds."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from broker_rig import Clock, Notes, accepted, draft, drafts, ids
from config.rules import ChannelRule
from pubsub.archive import Entry, Kept, Purged
from pubsub.chain import begins_epoch, gaps
from pubsub.position import Position, start
from pubsub.redis_archive_queue import RedisArchiveQueue
from pubsub.redis_broker import RedisBroker
from pubsub.redis_keys import RedisKeys
from queue_rig import ARCHIVED
from reading_rig import open_reading_node
from redis_rig import open_broker
from redis_server import RedisServer

FOREIGN = "f" * 16


@dataclass(slots=True)
class Lives:
    """A Redis that loses a channel's record, in one way or another."""

    server: RedisServer
    lose: Callable[[RedisServer, RedisKeys, Clock], None]
    clock: Clock = field(default_factory=Clock)
    keys: RedisKeys = field(default_factory=lambda: RedisKeys("lives"))

    @asynccontextmanager
    async def open(
        self, rule: ChannelRule = ARCHIVED, queue_max: int | None = 1_000
    ) -> AsyncIterator[RedisBroker]:
        async with open_broker(
            self.server,
            Notes(),
            (rule,),
            keys=self.keys,
            archive_queue_max=queue_max,
            clock_ms=lambda: round(self.clock.wall_s * 1000),
        ) as broker:
            yield broker

    def end(self) -> None:
        """Let one life be over."""
        self.lose(self.server, self.keys, self.clock)


def lapse(server: RedisServer, keys: RedisKeys, clock: Clock) -> None:
    clock.advance(1_000_000)
    # Times to live are in real time, and the stream's is over long before the record lapses.
    server.ask("DEL", keys.stream("a.b"))


def come_back_empty(server: RedisServer, keys: RedisKeys, clock: Clock) -> None:
    clock.advance(2)
    server.restart(empty=True)


@pytest.fixture(params=[lapse, come_back_empty])
def lives(request: pytest.FixtureRequest) -> Iterator[Lives]:
    with RedisServer() as server:
        yield Lives(server, request.param)


# Each returns the position at which the channel begins.


async def publish_first(broker: RedisBroker, _last: Position) -> Position:
    (answer,) = await broker.publish([draft("later")])
    at = accepted(answer).position
    return start(at.epoch, at.offset - 1)


async def subscribe_first(broker: RedisBroker, _last: Position) -> Position:
    return await broker.subscribe("a.b")


async def contradict_first(broker: RedisBroker, last: Position) -> Position:
    return await broker.contradict("a.b", last)


async def contradict_with_less(broker: RedisBroker, _last: Position) -> Position:
    return await broker.contradict("a.b", Position(FOREIGN, 1, FOREIGN))


Begin = Callable[[RedisBroker, Position], Awaitable[Position]]
WAYS = [publish_first, subscribe_first, contradict_first, contradict_with_less]


@pytest.mark.parametrize("begin", WAYS)
async def test_an_archived_channel_begins_above_all_its_earlier_offsets(
    lives: Lives, begin: Begin
) -> None:
    lasts: list[Position] = []
    for turn in range(3):
        async with lives.open() as broker:
            if lasts:
                assert await broker.top("a.b") is None
                begun = await begin(broker, lasts[-1])
                assert begun.check == begun.epoch
                assert begun.offset > lasts[-1].offset
                assert begun.epoch not in {last.epoch for last in lasts}
            # Many at a time: as many as there may be in the time that they take.
            answers = await broker.publish(drafts(f"x{turn}-", 500))
            positions = [accepted(answer).position for answer in answers]
            if lasts:
                assert {at.epoch for at in positions} == {begun.epoch}
            lasts.append(positions[-1])
        lives.end()


@pytest.mark.parametrize(
    ("rule", "queue_max"),
    [(ChannelRule(match=">"), 1_000), (ARCHIVED, None)],
    ids=["by its rule", "without an archive"],
)
async def test_a_channel_that_is_not_archived_begins_at_0(
    lives: Lives, rule: ChannelRule, queue_max: int | None
) -> None:
    for begin in (publish_first, subscribe_first):
        async with lives.open(rule, queue_max) as broker:
            top = await begin(broker, start(FOREIGN))
            assert top == start(top.epoch, 0)
            await broker.publish(drafts("x", 3))
        lives.end()
    async with lives.open(rule, queue_max) as broker:
        top = await contradict_first(broker, Position(FOREIGN, 7, FOREIGN))
        assert top == start(top.epoch, 7)


async def taken(broker: RedisBroker) -> tuple[Entry, ...]:
    """Take all out of the channel's queue."""
    queue = RedisArchiveQueue(broker)
    found = await queue.collect(queue.partition("a.b"))
    await queue.collect(queue.partition("a.b"), found.ids)
    return found.entries


async def test_a_purge_of_what_redis_forgot_reaches_the_archive(lives: Lives) -> None:
    async with lives.open() as broker:
        answers = await broker.publish(drafts("x", 3))
        last = accepted(answers[-1]).position
        assert len(await taken(broker)) == 3
    lives.end()
    async with lives.open() as broker:
        floor = await broker.purge("a.b")
        assert floor is not None
        assert floor.offset > last.offset
        assert await taken(broker) == (Purged("a.b", floor),)
        # Again, and what comes later stays.
        assert await broker.purge("a.b") == floor
        (answer,) = await broker.publish([draft("y")])
        at = accepted(answer).position
        assert (at.epoch, at.offset) == (floor.epoch, floor.offset + 1)
        purged, kept = await taken(broker)
        assert purged == Purged("a.b", floor)
        assert isinstance(kept, Kept)


async def test_a_purge_of_a_channel_that_is_not_archived_makes_no_record(lives: Lives) -> None:
    async with lives.open(ChannelRule(match=">")) as broker:
        assert await broker.purge("a.b") is None
        assert await broker.top("a.b") is None
        assert await taken(broker) == ()


async def test_a_purge_of_what_redis_forgot_is_a_purge_of_the_archive(
    lives: Lives, tmp_path: Path
) -> None:
    """It was answered as if the channel were unknown, and all of it stayed readable."""

    def clock_ms() -> int:
        return round(lives.clock.wall_s * 1000)

    server, keys = lives.server, lives.keys
    async with open_reading_node(server, tmp_path, keys=keys, clock_ms=clock_ms) as node:
        await node.publish(*drafts("x", 10))
        await node.flushed()
    lives.end()
    async with open_reading_node(server, tmp_path, keys=keys, clock_ms=clock_ms) as node:
        assert ids((await node.history()).events) == [f"x{number}" for number in range(1, 11)]
        floor = await node.broker.purge("a.b")
        assert floor is not None
        await node.flushed()
        history = await node.history()
        assert (history.events, history.floor) == ((), floor.offset)
        await node.publish(*drafts("y", 6))
        await node.flushed()
        assert ids((await node.history()).events) == [f"y{number}" for number in range(1, 7)]


async def test_the_lives_of_a_channel_come_out_of_the_archive_as_one(
    lives: Lives, tmp_path: Path
) -> None:
    def clock_ms() -> int:
        return round(lives.clock.wall_s * 1000)

    server, keys = lives.server, lives.keys
    names: list[str] = []
    for turn in range(3):
        async with open_reading_node(server, tmp_path, keys=keys, clock_ms=clock_ms) as node:
            await node.publish(*drafts(f"x{turn}-", 9))
            names += [f"x{turn}-{number}" for number in range(1, 10)]
            await node.flushed()
            for size in (1, 4, 9, 10, 100):
                for found in (await node.forwards(size), await node.backwards(size)):
                    assert ids(found) == names
                    assert list(gaps(found)) == []
            begun = [event for event in found if begins_epoch(event)]
            assert ids(begun) == [f"x{number}-1" for number in range(turn + 1)]
            first = begun[-1]
            found_at, whole = await node.chronicle.first_since("a.b", first.time)
            assert (found_at, whole) == (first.before(), True)
            assert node.waits == 0
        lives.end()
