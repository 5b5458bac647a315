"""Rules 1 to 7, as nodes obey them over a real Redis."""

import asyncio
import shutil
import time

import pytest

from broker_rig import Clock, Notes, accepted, draft, drafts, ids
from pubsub.heard import Acknowledged
from pubsub.position import Position, start
from pubsub.redis_check import look_at
from pubsub.redis_client import connect
from pubsub.redis_keys import RedisKeys
from pubsub.redis_url import parse_redis_url
from redis_rig import AstrayKeys, open_broker, open_redis_node, until
from redis_server import RedisServer, shared_redis
from rule_rig import AWAY, MAYBE_RESET, Lagging, back, top_of


async def test_rule_04_a_record_that_redis_evicted_begins_above_its_stream() -> None:
    server = shared_redis()
    async with open_broker(server, notes := Notes()) as broker:
        keys = broker.keys
        top = await broker.subscribe("a.b")
        await broker.publish(drafts("x", 3))
        server.ask("DEL", keys.record("a.b"))
        (answer,) = await broker.publish([draft("y")])
        position = accepted(answer).position
        assert position.epoch != top.epoch
        assert position.offset == 4
        assert await broker.settled()
        assert notes.kinds("a.b") == ["events", "fork", "events"]
        (again,) = await broker.publish([draft("x1")])
        assert accepted(again).duplicate


async def test_rule_04_a_record_below_its_stream_begins_above_it() -> None:
    server = shared_redis()
    async with open_broker(server, notes := Notes()) as broker:
        keys = broker.keys
        top = await broker.subscribe("a.b")
        await broker.publish(drafts("x", 3))
        server.ask("HSET", keys.record("a.b"), "offset", 1)
        again = await broker.subscribe("a.b")
        assert again == start(again.epoch, 3)
        assert again.epoch != top.epoch
        (answer,) = await broker.publish([draft("y")])
        assert accepted(answer).position.offset == 4
        server.ask("HSET", keys.record("a.b"), "offset", 2)
        (answer,) = await broker.publish([draft("z")])
        assert accepted(answer).position.offset == 5
        assert await broker.settled()
        assert notes.kinds("a.b") == ["events", "fork", "events", "fork", "events"]


@AWAY
async def test_rule_06_an_acknowledged_event_that_died_is_a_fork(lasting: RedisServer) -> None:
    """The node had acknowledged it and nobody listened; then others got its offset."""
    async with open_broker(lasting, notes := Notes(), interval_s=0.1) as broker:
        top = await broker.subscribe("a.b")
        await broker.unsubscribe("a.b")
        await broker.publish(drafts("x", 3))
        saved = lasting.folder / "saved"
        log = lasting.folder / "appendonlydir"
        source = log if log.exists() else lasting.folder / "appendonly.aof"
        copy = shutil.copytree if log.exists() else shutil.copy
        copy(source, saved)
        (acknowledged,) = await broker.publish([draft("x4")])
        await asyncio.to_thread(lasting.kill)
        lasting.wipe()
        copy(saved, source)
        await asyncio.to_thread(lasting.start)
        await back(broker)

        async def forked() -> bool:
            now = await broker.top("a.b")
            return now is not None and now.epoch != top.epoch

        while not await forked():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        now = await broker.top("a.b")
        assert now is not None
        assert now.offset == accepted(acknowledged).position.offset
        found = await broker.history("a.b", limit=10)
        assert found is not None
        assert ids(found.events) == ["x1", "x2", "x3"]
        assert notes.events("a.b") == []


@MAYBE_RESET
async def test_rule_02_a_tail_that_died_with_its_master_is_a_fork(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with open_redis_node(server, keys=keys) as node:
        client = await node.subscribe()
        await node.publish("x1")
        replica = Lagging(server, keys)
        await node.publish("x2", "x3")
        await until(lambda: client.ids() == ["x1", "x2", "x3"])
        replica.take_over()
        await node.broker.compare()
        await until(lambda: client.of("reset"))
        await node.live()
        (answer,) = await node.publish("x4")
        assert answer.position.offset == 4
        await until(lambda: client.ids() == ["x1", "x2", "x3", "x4"])


@MAYBE_RESET
async def test_rule_01_other_events_at_the_same_offsets_are_a_fork(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with (
        open_redis_node(server, keys=keys) as node,
        open_broker(server, Notes(), keys=AstrayKeys(keys.prefix)) as astray,
    ):
        client = await node.subscribe()
        await node.publish("x1")
        replica = Lagging(server, keys)
        (answer,) = await node.publish("x2")
        await until(lambda: client.ids() == ["x1", "x2"])
        replica.take_over()
        await astray.publish([draft("y2")])
        await node.broker.compare()
        await until(lambda: client.of("reset"))
        await node.live()
        again = await node.subscribe(since=str(answer.position))
        assert again.of("subscribed")[0]["recovered"] is False


async def test_rule_03_every_feed_of_a_channel_is_told_of_a_fork(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with (
        open_redis_node(server, keys=keys) as one,
        open_redis_node(server, keys=keys) as two,
    ):
        clients = [await node.subscribe() for node in (one, one, two)]
        (answer,) = await one.publish("x1")
        old = answer.position
        new = await two.broker.contradict("a.b", Position(old.epoch, 1, "f" * 16))
        await until(lambda: all(client.of("reset") for client in clients))
        for client in clients:
            assert [each["position"] for each in client.of("reset")] == [str(new)]
        late = await two.subscribe(since=str(old))
        assert late.of("subscribed")[0]["recovered"] is False


async def test_rule_04_a_redis_that_may_evict_is_warned_of() -> None:
    with RedisServer("maxmemory-policy allkeys-lru", aof=True) as server:
        found = await look_at(connect(parse_redis_url(server.url), timeout_s=5.0), replicas=0)
    (text,) = (text for status, text in found if status == "warn")
    assert "maxmemory-policy is allkeys-lru" in text


async def test_rule_06_what_was_acknowledged_is_compared_for_a_minute(
    server: RedisServer, keys: RedisKeys, clock: Clock
) -> None:
    """Nobody here listens any more, and no other node has heard of it."""
    async with open_broker(server, Notes(), keys=keys, monotonic=clock.monotonic) as broker:
        top = await broker.subscribe("a.b")
        await broker.unsubscribe("a.b")
        replica = Lagging(server, keys)
        await broker.publish(drafts("x", 3))
        replica.take_over()
        clock.advance(59)
        # The minute ends with the last sign that all was well.
        watch = broker._watch
        watch._probe_soon.set()
        await until(lambda: watch._well == clock.monotonic())
        broker.listener.break_off()
        while (now := await top_of(broker)) == top:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert now == start(now.epoch, 3)


async def test_rule_07_time_stamps_are_those_of_redis(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    async with open_broker(server, notes := Notes()) as broker:
        await broker.subscribe("a.b")
        before, after = [int(server.ask("TIME")[0]) * 1000 for _ in range(2)]
        await broker.publish([draft("x")])
        assert await broker.settled()
        (event,) = notes.events("a.b")
        assert before <= event.time < after + 60_000


async def test_rule_06_what_was_acknowledged_as_a_duplicate_is_compared_too(
    server: RedisServer, keys: RedisKeys
) -> None:
    """Whoever published it died before it could answer; this node gave the acknowledgement."""
    async with open_broker(server, Notes(), keys=keys) as broker:
        async with open_broker(server, Notes(), keys=keys) as dying:
            await dying.publish([draft("x1")])
            top = await top_of(broker)
            replica = Lagging(server, keys)
            await dying.publish([draft("x2")])
        (answer,) = await broker.publish([draft("x2")])
        assert accepted(answer).duplicate
        replica.take_over()
        assert await top_of(broker) == top
        broker.listener.break_off()
        async with asyncio.timeout(10):
            while (now := await top_of(broker)) == top:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert now == start(now.epoch, 2)


def test_rule_06_a_hundred_thousand_channels_are_remembered_and_what_is_not_is_counted() -> None:
    """The bound was 10,000 and silent: beyond it a lost tail could pass unnoticed."""
    acknowledged = Acknowledged()
    for number in range(100_000):
        acknowledged.add(f"c{number}", start("a" * 16, number), number / 2_000)
    assert acknowledged.forgotten == 0
    assert len(acknowledged.recent(50.0)) == 100_000
    acknowledged.add("one more", start("a" * 16), 50.0)
    assert acknowledged.forgotten == 1


async def test_rule_06_probes_are_not_taken_for_what_was_acknowledged(
    server: RedisServer, keys: RedisKeys
) -> None:
    """Each took a place among the channels, whose number is bounded."""
    async with open_broker(server, Notes(), keys=keys, max_channels=1) as broker:
        assert await broker.settled()
        probes = server.ask("KEYS", f"{{{keys.prefix}:*:r:$probe.*")
        server.ask("DEL", *probes)
        # As after a reconnect, before a probe has made its record again.
        broker._watch._returned = True
        await broker._watch._check_acknowledged()
        accepted((await broker.publish([draft("x")]))[0])
        assert sum(server.ask("ZCARD", keys.lists(each)[0]) for each in range(keys.partitions)) == 1
