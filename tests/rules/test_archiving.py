"""Rules 26 and 27, and what 17 and 21 say of the archive's queue, over a real Redis."""

import asyncio

import pytest

from broker_rig import Notes, draft, drafts
from config.rules import ChannelRule
from pubsub.archive import Unarchived
from pubsub.errors import BrokerUnavailable
from pubsub.redis_archive_queue import RedisArchiveQueue
from pubsub.redis_keys import RedisKeys
from queue_rig import ARCHIVED, StandIn, open_archiving_node
from redis_rig import open_broker, until
from redis_server import RedisServer

REFUSED = pytest.mark.expect_log("pubsub.archivist", "the archive does not take events")
LEASE_S = 0.5


def stored(archive: StandIn) -> list[str]:
    return [f"{event.id}@{event.position}" for event in archive.events()]


async def test_rule_26_what_is_published_is_archived_with_its_position(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with open_archiving_node(server, archive := StandIn(), keys=keys) as node:
        await node.publish(*drafts("x", 3))
        answers = await node.publish(draft("x2"), draft("y"))
        assert answers[0].duplicate
        await node.flushed()
        history = await node.broker.history("a.b", limit=10)
        assert history is not None
        assert archive.events() == list(history.events)
        await node.broker.purge("a.b")
        await node.flushed()
        assert archive.events() == []
        assert archive.floors == {"a.b": answers[1].position.offset}


@REFUSED
async def test_rule_26_what_could_not_be_written_is_not_acknowledged(
    server: RedisServer, keys: RedisKeys
) -> None:
    archive = StandIn(poison="x2")
    async with open_archiving_node(server, archive, keys=keys, lease_s=LEASE_S) as node:
        await node.publish(*drafts("x", 3))
        await until(lambda: node.archivist.failures)
        archive.poison = ""
        await node.flushed()
        assert archive.ids() == ["x1", "x2", "x3"]


async def test_rule_26_who_dies_before_it_acknowledges_loses_nothing(
    server: RedisServer, keys: RedisKeys
) -> None:
    """Before it has written, and after: the next one writes it, and it is there once."""
    archive = StandIn(gate=asyncio.Event())
    async with open_archiving_node(server, archive, keys=keys, lease_s=LEASE_S) as first:
        await first.shares(64)
        await first.publish(*drafts("x", 3))
        await until(lambda: first.archivist.backlog == 3)
        await first.kill()
        archive.gate, archive.hold = None, asyncio.Event()
        async with open_archiving_node(server, archive, keys=keys, lease_s=LEASE_S) as second:
            await until(lambda: len(archive.log) == 3)
            await second.kill()
            archive.hold = None
            async with open_archiving_node(server, archive, keys=keys, lease_s=LEASE_S) as third:
                await third.flushed()
                assert archive.ids() == ["x1", "x2", "x3"]
                assert len(archive.log) == 6


async def test_rule_26_a_partition_has_one_consumer_at_a_time(
    server: RedisServer, keys: RedisKeys
) -> None:
    now = 1_000_000
    async with (
        open_broker(server, Notes(), keys=keys, node="one") as first,
        open_broker(server, Notes(), keys=keys, node="two") as second,
    ):
        one, two = (RedisArchiveQueue(each, clock_ms=lambda: now) for each in (first, second))
        mine = await one.share()
        for _ in range(4):
            theirs = await two.share()
            assert not mine & theirs
            mine = await one.share()
            assert not mine & theirs
            now += 5_000
        assert len(mine) == len(theirs) == keys.partitions / 2
        now += 20_000
        assert len(await two.share()) == keys.partitions


async def test_rule_26_a_slow_but_living_consumer_does_no_harm(
    server: RedisServer, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(**_options: bool) -> frozenset[int]:
        raise BrokerUnavailable("not now")

    slow, archive = StandIn(gate=asyncio.Event()), StandIn()
    async with open_archiving_node(server, slow, keys=keys, lease_s=LEASE_S) as sleeper:
        await sleeper.shares(64)
        await sleeper.publish(*drafts("x", 3))
        await until(lambda: sleeper.archivist.backlog == 3)
        await sleeper.queue.share(leave=True)
        # As one that is not heard of for so long that others take what it has.
        monkeypatch.setattr(sleeper.queue, "share", refuse)
        async with open_archiving_node(server, archive, keys=keys, lease_s=LEASE_S) as other:
            await other.publish(draft("y"))
            await until(lambda: archive.ids() == ["x1", "x2", "x3", "y"])
            # It wakes, and both are the same archive.
            slow.kept, slow.log = archive.kept, archive.log
            before = stored(archive)
            assert slow.gate is not None
            slow.gate.set()
            await until(lambda: slow.writes)
            await other.publish(draft("z"))
            await other.flushed()
            assert stored(archive)[:4] == before
            assert archive.ids() == ["x1", "x2", "x3", "y", "z"]


async def test_rule_27_nothing_is_trimmed_above_the_lowest_that_is_not_acknowledged(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with open_broker(server, Notes(), [ARCHIVED], keys=keys, archive_queue_max=100) as broker:
        queue = RedisArchiveQueue(broker)
        partition = queue.partition("a.b")
        await broker.publish(drafts("x", 4))
        found = await queue.collect(partition)
        left = await queue.collect(partition, [found.ids[0], *found.ids[2:]])
        assert left.ids == found.ids[1:2]
        assert left.entries == found.entries[1:2]
        rest = server.ask("XRANGE", keys.queue(partition)[0], "-", "+")
        assert [each for each, _fields in rest] == list(found.ids[1:])
        assert (await queue.collect(partition, left.ids)).backlog == 0


async def test_rule_27_a_full_queue_tells_what_it_did_not_take(
    server: RedisServer, keys: RedisKeys
) -> None:
    archive = StandIn()
    async with open_archiving_node(
        server, archive, keys=keys, archive_queue_max=3, archiving=False
    ) as node:
        answers = await node.publish(*drafts("x", 5))
        assert server.ask("XLEN", keys.queue(node.queue.partition("a.b"))[0]) == 3
        await node.archivist.start()
        # Nothing more is published, and it is told.
        await node.flushed()
        assert archive.ids() == ["x1", "x2", "x3"]
        start = answers[0].position.offset - 1
        assert [(gap.first, gap.last) for gap in archive.gaps] == [(start + 4, start + 5)]


async def test_rule_27_a_gap_is_told_before_later_events(
    server: RedisServer, keys: RedisKeys
) -> None:
    archive = StandIn()
    async with open_archiving_node(
        server, archive, keys=keys, archive_queue_max=3, archiving=False
    ) as node:
        queue = keys.queue(node.queue.partition("a.b"))[0]
        answers = await node.publish(*drafts("x", 4))
        start = answers[0].position.offset - 1
        server.ask("XTRIM", queue, "MAXLEN", 2)
        # Room for one entry, and that is not the gap's and this event's.
        await node.publish(draft("y"))
        server.ask("XTRIM", queue, "MAXLEN", 0)
        await node.publish(*drafts("z", 4))
        await node.archivist.start()
        await node.flushed()
        gaps = [each for each in archive.log if isinstance(each, Unarchived)]
        told = [(gap.first - start, gap.last - start) for gap in gaps]
        assert told == [(4, 5), (8, 9)]
        assert archive.ids() == ["z1", "z2"]
        assert isinstance(archive.log[0], Unarchived)


async def test_rule_17_the_keys_of_the_archives_queue_are_there_and_stay(
    server: RedisServer, keys: RedisKeys
) -> None:
    """Without an archive too: a script whose keys are there in part is refused while they move."""
    async with open_broker(server, Notes(), keys=keys) as broker:
        await broker.publish([draft("x")])
        assert server.ask("EXISTS", *keys.queue(keys.partition("a.b"))) == 2
    async with open_archiving_node(server, StandIn(), keys=keys, archive_queue_max=1) as node:
        await node.publish(*drafts("y", 3))
        await node.flushed()
        assert server.ask("EXISTS", *keys.queue(keys.partition("a.b"))) == 2


async def test_rule_21_the_archive_settings_of_the_highest_revision_apply(
    server: RedisServer, keys: RedisKeys
) -> None:
    options = {"keys": keys, "archive_queue_max": 100}
    async with (
        open_broker(server, Notes(), [ARCHIVED], revision=lambda: 2, **options) as newer,
        open_broker(server, Notes(), [ChannelRule(match=">")], **options) as older,
    ):
        for name, broker in [("x", newer), ("y", older), ("z", newer)]:
            await broker.publish([draft(name)])
        queue = RedisArchiveQueue(newer)
        assert len((await queue.collect(queue.partition("a.b"))).entries) == 3
