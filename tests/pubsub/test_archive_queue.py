"""The archive's queue in Redis: what is put into it, what is handed out, and whose it is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

import pytest

from broker_rig import Notes, accepted, draft, drafts
from config.rules import ChannelRule
from pubsub.archive import Entry, Kept, Purged, Unarchived
from pubsub.errors import PubSubError
from pubsub.event import Published
from pubsub.position import Position
from pubsub.redis_archive_queue import Collected, RedisArchiveQueue
from pubsub.redis_broker import RedisBroker
from pubsub.redis_keys import RedisKeys
from queue_rig import ARCHIVED
from redis_cluster import RedisCluster
from redis_kinds import redis_params
from redis_rig import open_broker
from redis_server import RedisServer, shared_redis

OpenBroker = Callable[..., AbstractAsyncContextManager[RedisBroker]]


def _open(server: RedisServer, **options: object) -> AbstractAsyncContextManager[RedisBroker]:
    options = {"rules": (ARCHIVED,), "archive_queue_max": 100_000} | options
    return open_broker(server, Notes(), **options)  # type: ignore[arg-type]


@pytest.fixture(params=redis_params(_open))
def each_redis(request: pytest.FixtureRequest) -> OpenBroker:
    opened: OpenBroker = request.param
    return opened


@pytest.fixture
def server() -> RedisServer:
    return shared_redis()


@pytest.fixture
def open_one(server: RedisServer) -> OpenBroker:
    return partial(_open, server)


async def collect(
    broker: RedisBroker, *done: bytes, channel: str = "a.b", most: int = 500
) -> Collected:
    queue = RedisArchiveQueue(broker, most_entries=most)
    return await queue.collect(queue.partition(channel), done)


def starts(answers: Sequence[Published | PubSubError]) -> dict[str, int]:
    """Where channels began that these were the first events of."""
    found: dict[str, int] = {}
    for answer in map(accepted, answers):
        found.setdefault(answer.channel, answer.position.offset - 1)
    return found


def told(entries: tuple[Entry, ...], begun: Mapping[str, int] | None = None) -> list[str]:
    """What entries say, in short: offsets count from where their channel began."""
    words = []
    for entry in entries:
        if isinstance(entry, Kept):
            words.append(entry.event.id)
        elif isinstance(entry, Purged):
            words.append(f"purged to {entry.floor.offset - (begun or {})[entry.channel]}")
        else:
            start = (begun or {})[entry.channel]
            words.append(f"without {entry.first - start} to {entry.last - start}")
    return words


async def drained(
    broker: RedisBroker, channel: str = "a.b", begun: Mapping[str, int] | None = None
) -> list[str]:
    """Let go of all that is queued in a channel's partition, and return what it said."""
    words: list[str] = []
    found = await collect(broker, channel=channel)
    while found.ids:
        words += told(found.entries, begun)
        found = await collect(broker, *found.ids, channel=channel)
    assert (found.backlog, found.waiting) == (0, 0)
    return words


# ---- what is put into it


async def test_published_events_are_queued_as_they_are(each_redis: OpenBroker) -> None:
    async with each_redis() as broker:
        answers = await broker.publish([*drafts("x", 3), draft("other", "c.d")])
        found = await collect(broker)
        history = await broker.history("a.b", limit=10)
        assert history is not None
        assert found.entries == tuple(Kept(event) for event in history.events)
        assert found.entries[0].event.position == accepted(answers[0]).position  # type: ignore[union-attr]
        assert (found.backlog, found.waiting, found.junk) == (3, 0, 0)
        assert 0 <= found.age_s < 60
        assert await drained(broker) == ["x1", "x2", "x3"]
        assert await drained(broker, "c.d") == ["other"]


async def test_they_expire_as_the_rule_says(open_one: OpenBroker) -> None:
    rule = ChannelRule(match=">", archive=True, archive_ttl_s=10.5)
    async with open_one(rules=(rule,)) as broker:
        await broker.publish([draft("x")])
        (kept,) = (await collect(broker)).entries
        assert isinstance(kept, Kept)
        assert kept.expires == kept.event.time + 10_500


async def test_a_known_event_is_not_queued_again(open_one: OpenBroker) -> None:
    async with open_one() as broker:
        await broker.publish([draft("x"), draft("y"), draft("x")])
        await broker.publish([draft("y"), draft("z"), draft("x")])
        assert await drained(broker) == ["x", "y", "z"]


async def test_what_no_rule_archives_is_not_queued(open_one: OpenBroker) -> None:
    async with open_one(rules=(ChannelRule(match=">"),)) as broker:
        await broker.publish([draft("x")])
        assert await broker.purge("a.b") is not None
        assert await broker.settled()
        assert await drained(broker) == []
    async with open_one(archive_queue_max=None) as broker:
        await broker.publish([draft("x")])
        await broker.purge("a.b")
        assert await drained(broker) == []


async def test_probes_are_not_archived(open_one: OpenBroker) -> None:
    async with open_one() as broker:
        assert await broker.settled()
        queue = RedisArchiveQueue(broker)
        assert {each.lowest for each in await queue.reached()} == {None}


async def test_a_purge_is_queued_in_its_place(each_redis: OpenBroker) -> None:
    async with each_redis() as broker:
        begun = starts(await broker.publish(drafts("x", 2)))
        await broker.purge("a.b")
        await broker.publish([draft("y")])
        assert await drained(broker, begun=begun) == ["x1", "x2", "purged to 2", "y"]


async def test_a_purge_is_queued_though_the_rule_archives_no_more(server: RedisServer) -> None:
    keys = RedisKeys("rule-gone")
    async with _open(server, keys=keys) as broker:
        begun = starts(await broker.publish([draft("x")]))
        assert await drained(broker) == ["x"]
    async with _open(server, keys=keys, rules=(ChannelRule(match=">"),)) as broker:
        for name in ("y", "z"):
            await broker.publish([draft(name)])
        await broker.purge("a.b")
        assert await drained(broker, begun=begun) == ["purged to 3"]


async def test_the_settings_of_the_highest_revision_apply(server: RedisServer) -> None:
    keys = RedisKeys("archive-revisions")
    off = (ChannelRule(match=">"),)
    async with (
        _open(server, keys=keys, revision=lambda: 2) as newer,
        _open(server, keys=keys, revision=lambda: 1, rules=off) as older,
    ):
        for name, broker in [("x", newer), ("y", older), ("z", newer)]:
            await broker.publish([draft(name)])
        assert await drained(newer) == ["x", "y", "z"]


async def test_a_record_of_a_version_without_archive_is_read(open_one: OpenBroker) -> None:
    """Else a rolling update would begin a new epoch of every channel."""
    async with open_one() as broker:
        (first,) = await broker.publish([draft("x")])
        server = shared_redis()
        server.ask("HDEL", broker.keys.record("a.b"), "archive", "archive_ttl")
        (second,) = await broker.publish([draft("y")])
        assert accepted(second).position.epoch == accepted(first).position.epoch
        assert await drained(broker) == ["x", "y"]


async def test_a_key_that_is_no_queue_refuses_before_anything_is_written(
    open_one: OpenBroker, expect_log: Callable[..., object]
) -> None:
    expect_log("pubsub.redis_link", "Redis refused a call")
    async with open_one() as broker:
        (first,) = await broker.publish([draft("x")])
        queue = broker.keys.queue(broker.keys.partition("a.b"))[0]
        server = shared_redis()
        server.ask("SET", queue, "occupied")
        (answer,) = await broker.publish([draft("y")])
        assert isinstance(answer, Exception)
        assert server.ask("XLEN", broker.keys.stream("a.b")) == 1
        assert await broker.top("a.b") == accepted(first).position


# ---- its bound


async def test_at_its_bound_what_is_missing_is_told_before_later_events(
    each_redis: OpenBroker,
) -> None:
    async with each_redis(archive_queue_max=4) as broker:
        begun = starts(await broker.publish(drafts("x", 3)))
        start = begun["a.b"]
        await broker.publish(drafts("y", 3))
        await broker.publish([draft("z")])
        found = await collect(broker)
        assert told(found.entries) == ["x1", "x2", "x3", "y1"]
        assert found.waiting == 1
        last = await broker.history("a.b", limit=1, newest=True)
        assert last is not None
        found = await collect(broker, *found.ids)
        await broker.publish([draft("later")])
        (gap,) = found.entries
        time = last.events[0].time
        assert gap == Unarchived("a.b", last.top.epoch, start + 5, start + 7, time)
        assert await drained(broker, begun=begun) == ["without 5 to 7", "later"]


async def test_a_publish_lets_the_note_go_first(open_one: OpenBroker) -> None:
    async with open_one(archive_queue_max=3) as broker:
        keys = broker.keys
        queue = keys.queue(keys.partition("a.b"))[0]
        server = shared_redis()
        begun = starts(await broker.publish(drafts("x", 4)))
        server.ask("XTRIM", queue, "MAXLEN", 0)
        await broker.publish(drafts("y", 4))
        words = await drained(broker, begun=begun)
        assert words == ["without 4 to 4", "y1", "y2", "without 7 to 8"]


async def test_gaps_of_several_epochs_are_told_apart(open_one: OpenBroker) -> None:
    async with open_one(archive_queue_max=1) as broker:
        answers = await broker.publish(drafts("x", 3))
        begun = starts(answers)
        for _ in range(2):
            old = accepted(answers[-1]).position
            evidence = Position(old.epoch, old.offset, "f" * 16)
            assert (await broker.contradict("a.b", evidence)).epoch != old.epoch
            answers = await broker.publish(drafts(old.epoch, 2))
        words = await drained(broker, begun=begun)
        assert words == ["x1", "without 2 to 3", "without 4 to 5", "without 6 to 7"]


async def test_the_note_of_a_channel_is_bounded(open_one: OpenBroker) -> None:
    async with open_one(archive_queue_max=1) as broker:
        answers = await broker.publish(drafts("x", 2))
        begun = starts(answers)
        for _ in range(20):
            old = accepted(answers[-1]).position
            await broker.contradict("a.b", Position(old.epoch, old.offset, "f" * 16))
            answers = await broker.publish([draft(old.epoch)])
        found = await drained(broker, begun=begun)
        assert found[:2] == ["x1", "without 2 to 2"]
        assert found[-1] == "without 17 to 22"
        assert len(found) == 17


async def test_each_channel_has_its_own_gap(open_one: OpenBroker) -> None:
    keys = RedisKeys("one-partition", partitions=1)
    async with open_one(archive_queue_max=2, keys=keys) as broker:
        names = [f"c.{number}" for number in range(100)]
        begun = starts(await broker.publish([draft("x", "full"), draft("y", "full")]))
        for _ in range(2):
            answers = await broker.publish([draft(f"{name}-{_}", name) for name in names])
            begun = starts(answers) | begun
        await broker.purge("full")
        words = await drained(broker, begun=begun)
        assert words[:2] == ["x", "y"]
        assert sorted(words[2:]) == ["purged to 2", *["without 1 to 2"] * 100]
        server = shared_redis()
        assert server.ask("HGETALL", keys.queue(0)[1]) == {b"": b"0"}


async def test_a_purge_at_the_bound_waits_and_takes_the_gap_below_it(open_one: OpenBroker) -> None:
    async with open_one(archive_queue_max=2) as broker:
        begun = starts(await broker.publish(drafts("x", 4)))
        await broker.purge("a.b")
        await broker.publish(drafts("y", 2))
        words = await drained(broker, begun=begun)
        assert words == ["x1", "x2", "purged to 4", "without 5 to 6"]


async def test_without_a_bound_all_is_queued(open_one: OpenBroker) -> None:
    async with open_one(archive_queue_max=0) as broker:
        await broker.publish(drafts("x", 700))
        assert len(await drained(broker)) == 700


# ---- what is handed out


async def test_what_is_handed_out_is_handed_out_until_it_is_acknowledged(
    each_redis: OpenBroker,
) -> None:
    async with each_redis() as broker:
        await broker.publish(drafts("x", 5))
        first = await collect(broker, most=2)
        assert told(first.entries) == ["x1", "x2"]
        again = await collect(broker, most=3)
        assert told(again.entries) == ["x1", "x2", "x3"]
        rest = await collect(broker, *first.ids)
        assert told(rest.entries) == ["x3", "x4", "x5"]
        assert rest.backlog == 3


async def test_nothing_is_trimmed_above_the_lowest_that_is_not_acknowledged(
    open_one: OpenBroker,
) -> None:
    """Two nodes each believed to have the partition, and the slower one had read more."""
    async with open_one() as broker:
        server = shared_redis()
        await broker.publish(drafts("x", 4))
        queue = broker.keys.queue(broker.keys.partition("a.b"))[0]
        found = await collect(broker)
        assert len(found.ids) == 4
        left = await collect(broker, found.ids[0], *found.ids[2:])
        assert told(left.entries) == ["x2"]
        assert [each for each, _ in server.ask("XRANGE", queue, "-", "+")] == list(found.ids[1:])
        end = await collect(broker, *left.ids)
        assert (end.ids, end.backlog) == ((), 0)
        assert server.ask("EXISTS", queue) == 1


async def test_batches_are_bounded_in_bytes(open_one: OpenBroker) -> None:
    async with open_one() as broker:
        large = b'"' + b"x" * 50_000 + b'"'
        await broker.publish([draft(f"x{n}", data=large) for n in range(100)])
        queue = RedisArchiveQueue(broker, most_bytes=1_000_000)
        found = await queue.collect(queue.partition("a.b"))
        assert 16 <= len(found.ids) <= 21
        assert found.backlog == 100


async def test_junk_is_counted_and_let_go_of(open_one: OpenBroker) -> None:
    async with open_one() as broker:
        server = shared_redis()
        await broker.publish([draft("x")])
        queue = broker.keys.queue(broker.keys.partition("a.b"))[0]
        server.ask("XADD", queue, "*", "c", "a.b", "e", "\x93")
        server.ask("XADD", queue, "*", "odd", b"\xff")
        await broker.publish([draft("y")])
        found = await collect(broker)
        assert (told(found.entries), found.junk, len(found.ids)) == (["x", "y"], 2, 4)
        # Somebody deletes what was handed out.
        server.ask("XDEL", queue, found.ids[0])
        found = await collect(broker)
        assert (told(found.entries), found.junk, len(found.ids)) == (["y"], 3, 4)
        assert (await collect(broker, *found.ids)).backlog == 0


async def test_a_group_that_is_gone_is_made_again(open_one: OpenBroker) -> None:
    async with open_one() as broker:
        server = shared_redis()
        queue = broker.keys.queue(broker.keys.partition("a.b"))[0]
        await broker.publish(drafts("x", 2))
        found = await collect(broker, most=1)
        server.ask("XGROUP", "DESTROY", queue, "archive")
        assert told((await collect(broker)).entries) == ["x1", "x2"]
        server.ask("DEL", *broker.keys.queue(broker.keys.partition("a.b")))
        assert (await collect(broker, *found.ids)).ids == ()
        await broker.publish([draft("y")])
        assert await drained(broker) == ["y"]


# ---- whose it is


async def test_partitions_are_shared_evenly_and_taken_over(
    each_redis: OpenBroker,
) -> None:
    keys, now = RedisKeys(f"shares{id(each_redis)}"), 1_000_000

    def queue(broker: RedisBroker) -> RedisArchiveQueue:
        return RedisArchiveQueue(broker, lease_s=10.0, clock_ms=lambda: now)

    async with (
        each_redis(keys=keys, node="one") as first,
        each_redis(keys=keys, node="two two") as second,
    ):
        one, two = queue(first), queue(second)
        assert await one.share() == frozenset(range(64))
        # What the other has is not taken, but given up by who has too much.
        assert await two.share() == frozenset()
        mine = await one.share()
        theirs = await two.share()
        assert (len(mine), len(theirs), mine & theirs) == (32, 32, frozenset())
        now += 9_000
        assert await one.share() == mine
        now += 9_000
        # The second is heard of no more.
        assert await one.share() == frozenset(range(64))
        assert await two.share() == frozenset()
        assert len(await one.share()) == 32
        assert await one.share(leave=True) == frozenset()
        assert await two.share() == frozenset(range(64))
        assert await two.share(leave=True) == frozenset()


# ---- a cluster whose slots move


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    """A cluster that the test may break."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.mark.expect_log("pubsub.redis_link", "Redis refused a call", required=False)
async def test_publishing_and_archiving_go_on_while_a_slot_moves(cluster: RedisCluster) -> None:
    async with open_broker(cluster, Notes(), (ARCHIVED,), archive_queue_max=1_000) as broker:
        await broker.publish(drafts("x", 3))
        found = await collect(broker)
        assert (await collect(broker, *found.ids)).backlog == 0
        record = broker.keys.record("a.b")
        target = cluster.another(cluster.owner(record))
        source = cluster.begin_migration(record, target)
        # All keys are there, though nothing is queued: no publish has to wait.
        accepted((await broker.publish([draft("y")]))[0])
        assert told((await collect(broker)).entries) == ["y"]
        cluster.move_keys(record, source, target)
        cluster.end_migration(record, source, target)
        accepted((await broker.publish([draft("z")]))[0])
        assert await drained(broker) == ["y", "z"]
