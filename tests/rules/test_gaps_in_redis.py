"""Rules 15 and 16: what a real Redis loses is found and repaired."""

import asyncio

import pytest

from broker_rig import Notes, draft, drafts
from muting_proxy import MutingProxy
from pubsub.redis_keys import RedisKeys
from redis_rig import AstrayKeys, open_broker, open_redis_node, until
from redis_server import RedisServer, shared_redis
from rule_rig import SILENT, back, calls, kept, rule


async def test_rule_15_some_events_are_kept_for_repair_whatever_the_rule_shows(
    server: RedisServer,
) -> None:
    async with open_broker(server, Notes(), [rule(size=2)]) as broker:
        await broker.publish(drafts("x", 250))
        assert await kept(broker) == ["x249", "x250"]
        found = await kept(broker, hidden=True)
        assert found == [f"x{number}" for number in range(1, 251)]
        assert await kept(broker, hidden=True, after=248) == ["x249", "x250"]
        await broker.publish(drafts("y", 400))
        assert len(await kept(broker, hidden=True)) >= 256
        assert server.ask("XLEN", broker.keys.stream("a.b")) < 400
        await broker.purge("a.b")
        assert await kept(broker, hidden=True) == []


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


def _reply(kind: bytes, name: bytes) -> bytes:
    return b"*3\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n:1\r\n" % (len(kind), kind, len(name), name)


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
        await until(lambda: node.broker.reconnects)
        proxy.mute = False
        await until(lambda: client.ids() == ["x1", "x2", "x3"])
        await back(node.broker)


@SILENT
async def test_rule_16_a_link_cut_while_it_subscribes_is_replaced(reachable: RedisServer) -> None:
    """Redis had the subscriptions and said so, the node never heard it and waited for ever."""
    keys = RedisKeys("cut")
    async with (
        MutingProxy(reachable.port) as proxy,
        open_redis_node(reachable, url=proxy.url, keys=keys, interval_s=0.2) as node,
        open_broker(reachable, Notes(), keys=keys) as publisher,
    ):
        client = await node.subscribe()
        proxy.mute = True
        assert reachable.kill_clients() > 0
        await until(lambda: node.broker.reconnects == 1 and node.broker.listener.unconfirmed)
        await publisher.publish(drafts("x", 3))
        await until(lambda: node.broker.silences)
        proxy.mute = False
        await until(lambda: client.ids() == ["x1", "x2", "x3"])
        await back(node.broker)


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


async def test_rule_15_tops_are_compared_at_once_when_a_connection_is_there_again(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with (
        open_redis_node(server, keys=keys) as node,
        open_broker(server, Notes(), keys=AstrayKeys(keys.prefix)) as astray,
    ):
        client = await node.subscribe()
        await astray.publish([draft("x1")])
        await node.broker.settled()
        assert client.ids() == []
        node.broker.listener.break_off()
        await until(lambda: client.ids() == ["x1"])


async def test_rule_15_tops_are_compared_in_batches() -> None:
    with RedisServer() as server:
        async with open_broker(server, Notes()) as broker:
            await asyncio.gather(*(broker.subscribe(f"c{number}") for number in range(640)))
            # The first time Redis is told the script.
            await broker.compare()
            before = calls(server)
            await broker.compare()
            # One for each partition, and the probe.
            assert calls(server) - before <= broker.keys.partitions + 1


async def test_rule_15_events_are_kept_for_repair_though_the_rule_shows_none(
    server: RedisServer,
) -> None:
    async with open_broker(server, Notes(), [rule(ttl_s=0)]) as broker:
        await broker.publish(drafts("x", 5))
        assert await kept(broker) == []
        assert await kept(broker, hidden=True) == [f"x{number}" for number in range(1, 6)]
        assert server.ask("PTTL", broker.keys.stream("a.b")) > 30_000
