"""Delivery over Redis while Redis, its connections or its memory fail: nothing is lost unsaid."""

import asyncio
import shutil
from collections.abc import Iterator

import pytest

from broker_rig import Notes, accepted, draft, drafts, ids, ready
from muting_proxy import MutingProxy
from pubsub.errors import BrokerUnavailable
from pubsub.event import Published
from pubsub.redis_broker import RedisBroker
from pubsub.redis_keys import RedisKeys
from pubsub.redis_scripts import RedisScripts
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
async def test_a_publish_while_redis_is_away_fails_in_time(lasting: RedisServer) -> None:
    async with open_broker(lasting, Notes(), call_timeout_s=1.0) as broker:
        await asyncio.to_thread(lasting.kill)
        loop = asyncio.get_running_loop()
        for _ in range(5):
            began = loop.time()
            (answer,) = await broker.publish([draft("x")])
            assert isinstance(answer, BrokerUnavailable)
            assert loop.time() - began < 2.0
        assert broker.problem() is not None
        assert broker.circuit_openings == 1
        with pytest.raises(BrokerUnavailable):
            await broker.history("a.b", limit=1)
        await asyncio.to_thread(lasting.start)
        await back(broker)
        assert not accepted((await broker.publish([draft("x")]))[0]).duplicate


@AWAY
async def test_a_frozen_redis_gives_no_false_acknowledgement(lasting: RedisServer) -> None:
    """What it did when it woke shows as a duplicate, so the event stands in the channel once."""
    async with open_broker(lasting, Notes(), call_timeout_s=0.6, timeout_s=0.2) as broker:
        lasting.stop()
        (answer,) = await broker.publish([draft("x")])
        assert isinstance(answer, BrokerUnavailable)
        with pytest.raises(BrokerUnavailable):
            await broker.subscribe("a.b")
        lasting.go_on()
        await back(broker)
        assert accepted((await broker.publish([draft("x")]))[0]).position.offset == 1
        found = await broker.history("a.b", limit=10)
        assert found is not None
        assert ids(found.events) == ["x"]


@AWAY
async def test_the_open_circuit_fails_at_once_and_closes_by_itself(reachable: RedisServer) -> None:
    async with open_broker(reachable, Notes(), call_timeout_s=2.0) as broker:
        await asyncio.to_thread(reachable.kill)
        while broker.circuit_openings == 0:
            await broker.publish([draft("x")])
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(100):
            (answer,) = await broker.publish([draft("x")])
            assert isinstance(answer, BrokerUnavailable)
        assert loop.time() - began < 0.5
        await asyncio.to_thread(reachable.start)
        await back(broker)
        await broker.publish([draft("x")])
        assert broker.circuit_openings == 1


# ---- answers and connections are lost


async def test_a_publish_whose_answer_was_lost_is_not_a_second_event(
    reachable: RedisServer,
) -> None:
    async with (
        MutingProxy(reachable.port) as proxy,
        open_broker(reachable, notes := Notes(), url=proxy.url) as broker,
    ):
        await broker.subscribe("a.b")
        proxy.lose = b"lost-id"
        (answer,) = await broker.publish([draft("lost-id")])
        assert proxy.lost == 1
        assert accepted(answer).duplicate
        assert accepted(answer).position.offset == 1
        assert await broker.settled()
        assert ids(notes.events("a.b")) == ["lost-id"]


async def test_a_purge_whose_answer_was_lost_is_not_repeated(reachable: RedisServer) -> None:
    """The second one would take what was published between them."""
    async with (
        MutingProxy(reachable.port) as proxy,
        open_broker(reachable, notes := Notes(), url=proxy.url) as broker,
    ):
        await broker.subscribe("a.b")
        await broker.publish([draft("x")])
        # Redis knows the script from here on.
        assert await broker.purge("other") is None
        proxy.lose = RedisScripts().purge.digest.encode()
        with pytest.raises(BrokerUnavailable):
            await broker.purge("a.b")
        assert await broker.settled()
        assert notes.kinds("a.b") == ["events", "purge"]


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


@SILENT
async def test_rule_16_a_link_cut_one_way_is_noticed_and_replaced(reachable: RedisServer) -> None:
    """Commands were answered and the node looked healthy, but nothing was delivered."""
    keys = RedisKeys("cut")
    async with (
        MutingProxy(reachable.port) as proxy,
        open_redis_node(reachable, url=proxy.url, keys=keys, interval_s=0.4) as node,
        open_broker(reachable, Notes(), keys=keys) as publisher,
    ):
        client = await node.subscribe()
        proxy.mute = True
        await publisher.publish(drafts("x", 3))
        await until(lambda: node.broker.silences)
        assert node.broker.problem() is not None
        proxy.mute = False
        await until(lambda: client.ids() == ["x1", "x2", "x3"])
        await back(node.broker)


async def test_rule_15_a_lost_last_message_is_found_by_its_top(keys: RedisKeys) -> None:
    server = shared_redis()
    async with (
        open_redis_node(server, keys=keys) as node,
        open_broker(server, Notes(), keys=AstrayKeys(keys.prefix)) as astray,
    ):
        client = await node.subscribe("lost.last")
        await node.publish("x1", channel="lost.last")
        await astray.publish([draft("x2", "lost.last")])
        await node.broker.settled()
        assert client.ids() == ["x1"]
        await node.broker.compare()
        await until(lambda: client.ids() == ["x1", "x2"])
        assert node.broker.doubts == 1
        await node.broker.compare()
        assert node.broker.doubts == 1


async def test_rule_15_tops_are_compared_every_few_seconds(keys: RedisKeys) -> None:
    server = shared_redis()
    async with (
        open_redis_node(server, keys=keys, interval_s=0.05) as node,
        open_broker(server, Notes(), keys=AstrayKeys(keys.prefix)) as astray,
    ):
        client = await node.subscribe("lost.some")
        await astray.publish([draft("x1", "lost.some")])
        await until(lambda: client.ids() == ["x1"])


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


def _reply(kind: bytes, name: bytes) -> bytes:
    return b"*3\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n:1\r\n" % (len(kind), kind, len(name), name)


@pytest.mark.parametrize("kind", [b"subscribe", b"unsubscribe"])
async def test_rule_16_what_redis_says_unasked_is_a_possible_gap(
    reachable: RedisServer, kind: bytes
) -> None:
    keys = RedisKeys("unasked")
    async with (
        MutingProxy(reachable.port) as proxy,
        open_redis_node(reachable, url=proxy.url, keys=keys) as node,
        open_broker(reachable, Notes(), keys=AstrayKeys(keys.prefix)) as astray,
    ):
        client = await node.subscribe()
        await astray.publish([draft("x1")])
        proxy.inject(_reply(kind, keys.address("a.b").encode()))
        await until(lambda: client.ids() == ["x1"])
        assert node.broker.surprises == 1
        proxy.inject(_reply(kind, b"nobody"))
        await node.broker.settled()
        assert node.broker.surprises == 1


# ---- memory is lost


@AWAY
@RESET
async def test_rule_6_an_acknowledged_event_that_died_is_a_fork(lasting: RedisServer) -> None:
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


async def test_rule_4_a_record_that_redis_evicted_begins_above_its_stream() -> None:
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


async def test_rule_4_a_record_below_its_stream_begins_above_it() -> None:
    server = shared_redis()
    async with open_broker(server, notes := Notes()) as broker:
        keys = broker.keys
        top = await broker.subscribe("a.b")
        await broker.publish(drafts("x", 3))
        server.ask("HSET", keys.record("a.b"), "offset", 1)
        assert (await broker.subscribe("a.b")) != top
        (answer,) = await broker.publish([draft("y")])
        assert accepted(answer).position.offset == 4
        server.ask("HSET", keys.record("a.b"), "offset", 2)
        (answer,) = await broker.publish([draft("z")])
        assert accepted(answer).position.offset == 5
        assert await broker.settled()
        assert notes.kinds("a.b") == ["events", "fork", "events", "fork", "events"]


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


async def test_rule_22_junk_on_our_channels_is_counted_and_dropped() -> None:
    server = shared_redis()
    async with open_broker(server, notes := Notes()) as broker:
        keys = broker.keys
        await broker.subscribe("a.b")
        junk = [
            b"",
            b"junk",
            b"\x92\x02\x91\xa4fork",
            b"\xdd\xff\xff\xff\xff" * 50,
            b"\x93" * 5_000,
        ]
        for payload in junk:
            server.ask("PUBLISH", keys.address("a.b"), payload)
            server.ask("PUBLISH", keys.address("$probe.x"), payload)
        await broker.publish([draft("x")])
        assert await broker.settled()
        assert broker.junk == len(junk)
        assert ids(notes.events("a.b")) == ["x"]


async def test_rule_22_junk_in_a_stream_is_counted_and_dropped() -> None:
    server = shared_redis()
    async with open_broker(server, Notes()) as broker:
        keys = broker.keys
        await broker.publish(drafts("x", 2))
        server.ask("XADD", keys.stream("a.b"), "3-0", "e", b"junk")
        (answer,) = await broker.publish([draft("y")])
        assert accepted(answer).position.offset == 4
        found = await broker.history("a.b", limit=10)
        assert found is not None
        assert ids(found.events) == ["x1", "x2", "y"]
        assert broker.junk == 1


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
