"""Delivery over Redis while Redis, its connections or its memory fail: nothing is lost unsaid."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from broker_rig import Clock, Notes, accepted, draft, drafts, ready
from pubsub.errors import BrokerUnavailable
from pubsub.event import Published
from pubsub.redis_broker import RedisBroker
from pubsub.redis_keys import RedisKeys
from redis_rig import AstrayKeys, open_broker, open_redis_node, until
from redis_server import RedisServer, shared_redis

AWAY = pytest.mark.expect_log("pubsub.redis_link", "Redis is away", required=False)
SILENT = pytest.mark.expect_log("pubsub.redis_watch", "Redis pub/sub is silent", required=False)
RESET = pytest.mark.expect_log("server.repair", "feed reset", required=False)


@pytest.fixture
def keys() -> RedisKeys:
    return RedisKeys("faults")


@pytest.fixture
def lasting() -> Iterator[RedisServer]:
    """A Redis whose writes are on disk."""
    with RedisServer(aof=True, tcp=True) as server:
        yield server


@pytest.fixture
def reachable() -> Iterator[RedisServer]:
    """A Redis that listens on a port."""
    with RedisServer(tcp=True) as server:
        yield server


async def back(broker: RedisBroker) -> None:
    """Wait until a broker has come back from a failure and published again."""
    await until(lambda: broker.problem() is None)


# ---- Redis goes and comes


@AWAY
async def test_a_restart_with_a_log_of_writes_loses_nothing(lasting: RedisServer) -> None:
    async with open_redis_node(lasting, interval_s=0.3) as node:
        client = await node.subscribe()
        first = await node.publish("x1", "x2")
        await asyncio.to_thread(lasting.restart)
        await back(node.broker)
        (third,) = await node.publish("x3")
        assert third.position.epoch == first[0].position.epoch
        assert third.position.offset == 3
        await until(lambda: client.ids() == ["x1", "x2", "x3"])
        assert not client.of("reset")
        assert (await node.publish("x2"))[0] == Published(
            first[1].channel, first[1].position, "x2", duplicate=True
        )


@AWAY
@RESET
async def test_a_restart_without_data_is_told_to_every_subscriber(reachable: RedisServer) -> None:
    async with (
        open_redis_node(reachable, interval_s=0.3, keys=RedisKeys("k")) as one,
        open_redis_node(reachable, interval_s=0.3, keys=RedisKeys("k")) as two,
    ):
        clients = [await one.subscribe(), await two.subscribe()]
        (before,) = await one.publish("x1")
        await asyncio.to_thread(reachable.restart, empty=True)
        await back(one.broker)
        await back(two.broker)
        await until(lambda: all(client.of("reset") for client in clients))
        for node in (one, two):
            await node.live()
        assert one.feed().top == two.feed().top
        assert one.feed().top.epoch != before.position.epoch
        (after,) = await two.publish("x2")
        await until(lambda: all(client.ids()[-1:] == ["x2"] for client in clients))
        for client in clients:
            assert client.of("event", "reset")[-1]["position"] == str(after.position)


@AWAY
async def test_the_open_circuit_fails_at_once_and_closes_by_itself(reachable: RedisServer) -> None:
    async with open_broker(reachable, Notes(), call_timeout_s=2.0) as broker:
        await asyncio.to_thread(reachable.kill)
        while broker.circuit_openings == 0:
            await broker.publish([draft("x")])
        # It waits for nothing at all.
        with pytest.raises(StopIteration) as at_once:
            broker.publish([draft("x")]).send(None)
        (answer,) = at_once.value.value
        assert isinstance(answer, BrokerUnavailable)
        await asyncio.to_thread(reachable.start)
        await back(broker)
        await broker.publish([draft("x")])
        assert broker.circuit_openings == 1


# ---- what was acknowledged is lost


def kept(server: RedisServer, keys: RedisKeys, channel: str) -> dict[str, bytes]:
    """Return all that Redis keeps of a channel."""
    names = [keys.record(channel), keys.stream(channel), *keys.ids(channel)]
    return {name: server.ask("DUMP", name) for name in names}


def give_back(server: RedisServer, dumps: dict[str, bytes]) -> None:
    """Do as a fail-over does: forget what came since."""
    for name, dump in dumps.items():
        server.ask("RESTORE", name, 0, dump, "REPLACE")


async def forked(broker: RedisBroker, channel: str, epoch: str) -> None:
    """Wait until a channel has another epoch."""
    async with asyncio.timeout(20.0):
        while (top := await broker.top(channel)) is None or top.epoch == epoch:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@AWAY
async def test_rule_6_a_lost_event_shows_though_another_has_its_offset(
    reachable: RedisServer, keys: RedisKeys
) -> None:
    """Publishing is back before pub/sub is, and what is published then hid what was lost.

    The highest acknowledged position was replaced by one of the new master, with which nothing was
    wrong. Nobody listened, so that no feed could tell either.
    """
    async with open_broker(reachable, Notes(), keys=keys) as broker:
        await broker.publish([draft("x1")])
        dumps = kept(reachable, keys, "a.b")
        lost = accepted((await broker.publish([draft("x2")]))[0]).position
        give_back(reachable, dumps)
        reachable.kill_clients()
        reachable.kill_clients("normal")
        others = await broker.publish([draft("y2"), draft("y3")])
        assert accepted(others[0]).position.offset == lost.offset
        assert accepted(others[0]).position.epoch == lost.epoch
        await forked(broker, "a.b", lost.epoch)


@AWAY
async def test_rule_6_what_counts_is_the_minute_before_redis_was_lost(
    reachable: RedisServer, keys: RedisKeys
) -> None:
    """A host took more than a minute to start again: by then nobody remembered what it had lost."""
    clock = Clock()
    async with open_broker(reachable, Notes(), keys=keys, monotonic=clock.monotonic) as broker:
        await broker.publish([draft("x1")])
        dumps = kept(reachable, keys, "a.b")
        lost = accepted((await broker.publish([draft("x2")]))[0]).position
        give_back(reachable, dumps)
        clock.advance(90.0)
        reachable.kill_clients()
        await forked(broker, "a.b", lost.epoch)


async def test_a_lost_record_for_which_there_is_no_room_keeps_no_other_from_being_compared(
    keys: RedisKeys,
) -> None:
    """One refusal ended the comparison of all channels, time after time."""
    server = shared_redis()
    async with (
        open_broker(server, notes := Notes(), keys=keys, max_channels=2) as broker,
        open_broker(server, Notes(), keys=AstrayKeys(keys.prefix)) as astray,
    ):
        await broker.subscribe("full.a")
        await broker.subscribe("full.b")
        server.ask("DEL", keys.record("full.b"))
        known = keys.lists(keys.partition("full.b"))[0]
        for number in range(3):
            server.ask("ZADD", known, 10**15, f"full.other{number}")
        # It is counted no more: others took its place.
        server.ask("ZREM", known, "full.b")
        await astray.publish([draft("x", "full.a")])
        await broker.compare()
        assert notes.kinds("full.a") == ["top"]
        assert notes.kinds("full.b") == []
        server.ask("DEL", known)


# ---- answers and connections are lost


async def test_a_command_connection_that_redis_closed_is_replaced(reachable: RedisServer) -> None:
    async with open_broker(reachable, Notes()) as broker:
        await broker.publish([draft("x")])
        assert reachable.kill_clients("normal") > 0
        (answer,) = await broker.publish([draft("y")])
        assert accepted(answer).position.offset == 2


async def test_killed_pubsub_connections_lose_nothing_under_load(reachable: RedisServer) -> None:
    keys = RedisKeys("load")
    async with (
        open_redis_node(reachable, keys=keys, interval_s=0.5) as node,
        open_broker(reachable, Notes(), keys=keys) as publisher,
    ):
        client = await node.subscribe()
        names: list[str] = []
        for turn in range(60):
            batch = drafts(f"{turn}-", 5)
            for answer in await publisher.publish(batch):
                accepted(answer)
            names += [each.id for each in batch]
            if turn in (10, 25, 40):
                await asyncio.to_thread(reachable.kill_clients)
        await until(lambda: len(client.ids()) >= len(names))
        assert client.ids() == names
        assert not client.of("reset")
        assert node.broker.reconnects > 0


async def test_tops_that_are_on_their_way_are_no_doubt(keys: RedisKeys) -> None:
    server = shared_redis()
    async with (
        open_redis_node(server, keys=keys) as node,
        open_broker(server, Notes(), keys=keys) as publisher,
    ):
        client = await node.subscribe("busy")
        names = []
        for turn in range(50):
            batch = drafts(f"{turn}-", 3, "busy")
            names += [each.id for each in batch]
            await asyncio.gather(publisher.publish(batch), node.broker.compare())
        await until(lambda: client.ids() == names)
        assert node.broker.doubts == 0


# ---- memory is lost


@AWAY
@RESET
async def test_a_lost_record_of_a_subscribed_channel_is_made_anew() -> None:
    server = shared_redis()
    async with open_redis_node(server) as node:
        client = await node.subscribe()
        await node.publish("x1")
        server.ask("DEL", node.broker.keys.record("a.b"))
        await node.broker.compare()
        await until(lambda: client.of("reset"))
        await node.live()
        await node.publish("x2")
        await until(lambda: client.ids() == ["x1", "x2"])


# ---- others write


async def test_two_nodes_hear_the_events_of_both_in_one_order(keys: RedisKeys) -> None:
    server = shared_redis()
    async with (
        open_broker(server, one_heard := Notes(), keys=keys) as one,
        open_broker(server, two_heard := Notes(), keys=keys) as two,
    ):
        assert await one.subscribe("both") == await two.subscribe("both")
        batches = [
            broker.publish(drafts(f"{number}-{turn}-", 2, "both"))
            for turn in range(20)
            for number, broker in enumerate((one, two))
        ]
        await asyncio.gather(*batches)
        assert await one.settled()
        assert await two.settled()
        heard = one_heard.events("both")
        assert len(heard) == 80
        assert heard == two_heard.events("both")
        await one.unsubscribe("both")
        # The other node still has its lease.
        states = await one.channels(prefix="both", after="", limit=10)
        assert [state.channel for state in states] == ["both"]


async def test_ready_is_what_has_proved_that_it_hears() -> None:
    server = shared_redis()
    async with open_broker(server, Notes()) as broker:
        await ready(broker)
        await broker.close()
        assert broker.problem() == "the broker is closed"
        await broker.close()


@AWAY
@pytest.mark.expect_log("pubsub.redis_link", "asking whether Redis is back failed")
@pytest.mark.expect_log("pubsub.redis_lane", "a pipeline failed", required=False)
async def test_a_strange_failure_does_not_leave_redis_away_for_ever(
    reachable: RedisServer,
) -> None:
    """The task that asks whether Redis is back ended with an error that nobody had thought of.

    A Sentinel that answers junk makes one. The circuit stayed open: no call was tried any more.
    """
    async with open_broker(reachable, Notes(), call_timeout_s=2.0) as broker:
        topology = broker.link.topology
        ask, failures = topology.ask, 0

        async def strange(commands: Any, **options: Any) -> Any:
            nonlocal failures
            if commands == [("PING",)] and not failures:
                failures += 1
                raise KeyError("ip")
            return await ask(commands, **options)

        topology.ask = strange  # type: ignore[method-assign]
        await asyncio.to_thread(reachable.kill)
        while broker.circuit_openings == 0:
            await broker.publish([draft("x")])
        await until(lambda: failures)
        broker.link.call_timeout_s = 5.0
        await asyncio.to_thread(reachable.start)
        await back(broker)
        accepted((await broker.publish([draft("y")]))[0])


async def test_a_pipeline_that_had_not_begun_fails_when_the_broker_closes() -> None:
    """Its callers waited until their deadlines: a task that has not begun tells nobody."""
    async with open_broker(shared_redis(), Notes()) as broker:
        lane = broker.link._lanes[0]
        call = lane.send(None, (), ("PING",))
        while not lane._tasks:  # noqa: ASYNC110
            await asyncio.sleep(0)
        # Whoever was woken in the same turn may come before the task does.
        for task in lane._tasks:
            task.cancel()
        with pytest.raises(BrokerUnavailable, match="closed"):
            async with asyncio.timeout(20.0):
                await call
