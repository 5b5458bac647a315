"""From the queue into the archive: in order, none lost and none twice, whoever fails."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest

from broker_rig import draft, drafts
from config.rules import ChannelRule
from pubsub.archive import Unarchived
from pubsub.errors import PubSubError
from pubsub.event import Event, Published
from pubsub.redis_archive_queue import RedisArchiveQueue
from pubsub.redis_keys import RedisKeys
from queue_rig import ARCHIVED, ArchivingNode, StandIn, open_archiving_node
from redis_cluster import shared_cluster
from redis_rig import until
from redis_server import RedisServer, shared_redis

AWAY = pytest.mark.expect_log("pubsub.redis_link", "Redis is away", required=False)
REFUSED = pytest.mark.expect_log("pubsub.archivist", "the archive does not take events")


@pytest.fixture
def server() -> RedisServer:
    return shared_redis()


@pytest.fixture
def keys(request: pytest.FixtureRequest) -> RedisKeys:
    """Names that no other test uses, for nodes that share channels."""
    return RedisKeys("archivist-" + re.sub("[^a-z_]", "", request.node.name)[:50])


@pytest.fixture
def lasting() -> Iterator[RedisServer]:
    """A Redis whose writes are on disk."""
    with RedisServer(tcp=True, aof=True) as server:
        yield server


def assert_chained(events: Sequence[Event]) -> None:
    for before, after in pairwise(events):
        assert after.before() == before.position


class Publishers:
    """Publish one event after another, each until it is acknowledged, and note which were."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, list[str]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._over = False

    def start(self, nodes: Sequence[ArchivingNode], count: int) -> None:
        for number in range(count):
            node = nodes[number % len(nodes)]
            task = asyncio.create_task(self._publish(node, f"load.{number % 7}", number))
            self._tasks.append(task)

    async def stop(self) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    @property
    def count(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    async def _publish(self, node: ArchivingNode, channel: str, number: int) -> None:
        taken = self.acknowledged.setdefault(channel, [])
        turn = 0
        while not self._over:
            name = f"{number}-{turn}"
            (answer,) = await node.broker.publish([draft(name, channel)])
            if isinstance(answer, Published):
                taken.append(name)
                turn += 1
            else:
                assert isinstance(answer, PubSubError)
                await asyncio.sleep(0.01)

    def assert_archived(self, archive: StandIn) -> None:
        for channel, names in self.acknowledged.items():
            events = archive.events(channel)
            assert sorted(event.id for event in events) == sorted(names)
            assert_chained(events)


# ---- all is well


async def test_what_is_published_is_archived_in_order(server: RedisServer) -> None:
    async with open_archiving_node(server, archive := StandIn()) as node:
        await node.shares(64)
        answers = await node.publish(*drafts("x", 3), draft("other", "c.d"))
        await node.broker.purge("c.d")
        await node.flushed()
        assert archive.ids() == ["x1", "x2", "x3"]
        assert_chained(archive.events())
        assert archive.floors == {"c.d": answers[-1].position.offset}
        archivist = node.archivist
        # Redis may have told that nothing is left before it told the archivist.
        await until(lambda: archivist.backlog == 0)
        assert (archivist.written, archivist.lag_s) == (5, 0.0)
        assert archivist.problem() is None
        # Without a flush too, and at once.
        await node.publish(draft("y"))
        await until(lambda: archive.ids()[-1] == "y", 5.0)


async def test_more_than_a_batch_is_archived_in_order(server: RedisServer) -> None:
    async with open_archiving_node(server, archive := StandIn(), most_entries=7) as node:
        await node.publish(*drafts("x", 500))
        await node.flushed()
        assert archive.ids() == [f"x{number}" for number in range(1, 501)]
        assert len(archive.log) == 500


async def test_a_flush_on_any_node_waits_for_all(server: RedisServer, keys: RedisKeys) -> None:
    archive = StandIn(gate=asyncio.Event())
    async with (
        open_archiving_node(server, archive, keys=keys) as one,
        open_archiving_node(server, archive, keys=keys, archiving=False) as other,
    ):
        await other.publish(draft("x"))
        with pytest.raises(TimeoutError):
            await other.archivist.flush(0.2)
        assert archive.gate is not None
        archive.gate.set()
        await other.flushed()
        assert archive.ids() == ["x"]
        assert one.archivist.written == 1


async def test_over_a_cluster(keys: RedisKeys) -> None:
    archive = StandIn()
    async with (
        open_archiving_node(shared_cluster(), archive, keys=keys) as one,
        open_archiving_node(shared_cluster(), archive, keys=keys) as two,
    ):
        names = [f"c.{number}" for number in range(50)]
        for node in (one, two):
            await node.publish(*[draft(f"{node.broker.node}{name}", name) for name in names])
        await two.flushed()
        for name in names:
            assert len(archive.ids(name)) == 2
            assert_chained(archive.events(name))
        await asyncio.gather(one.shares(32), two.shares(32))


async def test_partitions_are_shared_and_given_back(server: RedisServer, keys: RedisKeys) -> None:
    async with open_archiving_node(server, StandIn(), keys=keys) as one:
        await one.shares(64)
        async with open_archiving_node(server, StandIn(), keys=keys) as two:
            await asyncio.gather(one.shares(32), two.shares(32))
            await two.archivist.close()
            await two.archivist.close()
            await one.shares(64)


# ---- the archive fails


@REFUSED
async def test_an_archive_that_is_away_is_caught_up_with(server: RedisServer) -> None:
    archive = StandIn(away=True)
    async with open_archiving_node(server, archive) as node:
        await node.shares(64)
        names = [f"c.{number}" for number in range(20)]
        for turn in range(5):
            await node.publish(*[draft(f"{turn}", name) for name in names])
        archivist = node.archivist
        await until(lambda: archivist.failures > 3)
        await until(lambda: archivist.backlog == 100)
        assert archivist.problem() == "the archive does not take events"
        assert node.broker.problem() is None
        assert archivist.lag_s > 0
        archive.away = False
        # One partition sees it, and the others do not wait for their time.
        await until(lambda: archivist.backlog == 0)
        assert archivist.problem() is None
        for name in names:
            assert archive.ids(name) == list("01234")
        assert archivist.written == 100
        assert archive.starts == 1


@REFUSED
async def test_what_one_partition_cannot_write_holds_no_other_up(server: RedisServer) -> None:
    archive = StandIn(poison="bad")
    async with open_archiving_node(server, archive) as node:
        await node.shares(64)
        await node.publish(draft("bad"), draft("behind"))
        await until(lambda: node.archivist.failures > 1)
        for number in range(20):
            await node.publish(draft(f"{number}", "c.d"))
        await until(lambda: len(archive.ids("c.d")) == 20)
        assert archive.ids() == []
        assert node.archivist.problem() == "the archive does not take events"
        archive.poison = ""
        await node.flushed()
        assert archive.ids() == ["bad", "behind"]
        assert node.archivist.problem() is None


@pytest.mark.expect_log("pubsub.archivist", "the archive does not take events: odd")
async def test_an_unexpected_error_of_the_archive_drops_nothing(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = StandIn()
    async with open_archiving_node(server, archive) as node:
        with monkeypatch.context() as patch:

            async def write(self: StandIn, entries: object) -> None:
                raise ValueError("odd")

            patch.setattr(StandIn, "write", write)
            await node.publish(draft("x"))
            await until(lambda: node.archivist.failures)
        await node.flushed()
        assert archive.ids() == ["x"]


async def test_a_write_that_hangs_holds_no_publish_up(server: RedisServer) -> None:
    archive = StandIn(gate=asyncio.Event())
    async with open_archiving_node(server, archive) as node:
        await node.shares(64)
        for number in range(50):
            async with asyncio.timeout(5):
                await node.publish(draft(f"{number}"))
        assert archive.ids() == []
        await until(lambda: node.archivist.lag_s > 0)
        assert archive.gate is not None
        archive.gate.set()
        await node.flushed()
        assert archive.ids() == [f"{number}" for number in range(50)]


@REFUSED
async def test_at_the_bound_the_gap_is_told_though_nothing_more_is_published(
    server: RedisServer,
) -> None:
    archive = StandIn(away=True)
    async with open_archiving_node(server, archive, archive_queue_max=10) as node:
        await node.shares(64)
        answers = await node.publish(*drafts("x", 15))
        await until(lambda: node.archivist.waiting == 1)
        problem = "the archive's queue is full: events are missing in the archive"
        assert node.archivist.problem() == problem
        archive.away = False
        await node.flushed()
        assert archive.ids() == [f"x{number}" for number in range(1, 11)]
        (gap,) = archive.gaps
        first, last = answers[10].position, answers[14].position
        assert (gap.epoch, gap.first, gap.last) == (first.epoch, first.offset, last.offset)
        assert (node.archivist.gaps, node.archivist.waiting) == (1, 0)
        await node.publish(draft("y"))
        await node.flushed()
        assert archive.ids()[-1] == "y"
        assert node.archivist.problem() is None


@pytest.mark.expect_log("pubsub.archivist", "there is junk in the archive's queue")
async def test_junk_is_told_once_in_a_while_and_passed_over(server: RedisServer) -> None:
    async with open_archiving_node(server, archive := StandIn()) as node:
        queue = node.broker.keys.queue(node.queue.partition("a.b"))[0]
        for _ in range(3):
            server.ask("XADD", queue, "*", "odd", "x")
            await node.publish(draft(f"{_}"))
            await node.flushed()
        assert archive.ids() == ["0", "1", "2"]
        assert node.archivist.junk == 3


# ---- nodes fail


async def test_who_dies_between_write_and_acknowledgement_loses_nothing(
    server: RedisServer, keys: RedisKeys
) -> None:
    archive = StandIn(hold=asyncio.Event())
    async with open_archiving_node(server, archive, keys=keys, lease_s=0.5) as dying:
        await dying.shares(64)
        await dying.publish(*drafts("x", 5))
        await until(lambda: len(archive.log) > 0)
        await dying.kill()
        archive.hold = None
        await dying.publish(*drafts("y", 5))
        async with open_archiving_node(server, archive, keys=keys, lease_s=0.5) as heir:
            await heir.flushed()
            written = [f"x{n}" for n in range(1, 6)] + [f"y{n}" for n in range(1, 6)]
            assert archive.ids() == written
            assert_chained(archive.events())
            # What was written and not acknowledged was written again, and kept once.
            assert len(archive.log) > 10


@pytest.mark.timeout(seconds=60)
async def test_one_of_two_nodes_killed_under_load_loses_nothing(
    server: RedisServer, keys: RedisKeys
) -> None:
    archive = StandIn()
    async with (
        open_archiving_node(server, archive, keys=keys, lease_s=0.5) as dying,
        open_archiving_node(server, archive, keys=keys, lease_s=0.5) as left,
    ):
        await asyncio.gather(dying.shares(32), left.shares(32))
        publishers = Publishers()
        publishers.start([dying, left], 20)
        await until(lambda: publishers.count > 500)
        # In the midst of a write.
        archive.hold = asyncio.Event()
        count = len(archive.log)
        await until(lambda: len(archive.log) > count)
        await dying.kill()
        archive.hold.set()
        archive.hold = None
        await until(lambda: publishers.count > 2_000)
        await publishers.stop()
        await left.shares(64)
        await left.flushed()
        publishers.assert_archived(archive)


async def test_two_that_both_believe_to_have_a_partition_do_no_harm(
    server: RedisServer, keys: RedisKeys
) -> None:
    async def all_of_them(*, leave: bool = False) -> frozenset[int]:
        return frozenset(range(64))

    def believe(queue: RedisArchiveQueue) -> None:
        queue.share = all_of_them  # type: ignore[method-assign]

    archive = StandIn()
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                open_archiving_node(server, archive, keys=keys, most_entries=5, alter=believe)
            )
            for _ in range(2)
        ]
        publishers = Publishers()
        publishers.start(nodes, 20)
        await until(lambda: publishers.count > 1_500)
        await publishers.stop()
        for node in nodes:
            await node.flushed()
        publishers.assert_archived(archive)
        await until(lambda: sum(node.archivist.backlog for node in nodes) == 0)


# ---- Redis fails


@AWAY
@pytest.mark.timeout(seconds=60)
async def test_redis_killed_and_restarted_loses_nothing(
    lasting: RedisServer, keys: RedisKeys
) -> None:
    archive = StandIn()
    async with (
        open_archiving_node(lasting, archive, keys=keys, lease_s=0.5) as one,
        open_archiving_node(lasting, archive, keys=keys, lease_s=0.5) as two,
    ):
        publishers = Publishers()
        publishers.start([one, two], 20)
        await until(lambda: publishers.count > 300)
        await asyncio.to_thread(lasting.restart)
        count = publishers.count
        await until(lambda: publishers.count > count + 300)
        await publishers.stop()
        await one.flushed()
        publishers.assert_archived(archive)


@AWAY
async def test_a_redis_that_comes_back_empty_is_archived_from_again(keys: RedisKeys) -> None:
    with RedisServer(tcp=True) as server:
        async with open_archiving_node(server, archive := StandIn(), keys=keys) as node:
            await node.publish(draft("x"))
            await node.flushed()
            await asyncio.to_thread(server.restart, empty=True)
            await until(lambda: node.broker.problem() is None)
            await node.publish(draft("y"))
            await node.flushed()
            assert sorted(archive.ids()) == ["x", "y"]
            assert not archive.gaps


async def test_what_expires_is_said(server: RedisServer) -> None:
    rule = ChannelRule(match=">", archive=True, archive_ttl_s=60.0)
    async with open_archiving_node(server, archive := StandIn(), rules=(rule,)) as node:
        await node.publish(draft("x"))
        await node.flushed()
        (kept,) = archive.kept.values()
        assert kept.expires == kept.event.time + 60_000


def test_the_stand_in_takes_things_as_an_archive_does() -> None:
    assert ARCHIVED.archive
    gap = Unarchived("a.b", "a" * 16, 1, 2, 3)
    archive = StandIn()
    archive.take(gap)
    archive.take(gap)
    assert archive.gaps == [gap]
