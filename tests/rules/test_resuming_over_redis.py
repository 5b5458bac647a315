"""Rules 8, 10 and 13, as nodes obey them over a real Redis."""

import asyncio

import pytest

from broker_rig import Notes, draft, ready, redis_broker
from muting_proxy import MutingProxy
from pubsub.errors import BrokerUnavailable
from pubsub.redis_keys import RedisKeys
from redis_rig import open_broker, open_redis_node, until
from redis_server import RedisServer


async def test_rule_08_subscriptions_that_come_and_go_are_each_confirmed(
    server: RedisServer,
) -> None:
    async with open_broker(server, notes := Notes()) as broker:
        for turn in range(10):
            await broker.subscribe("a.b")
            await broker.publish([draft(f"x{turn}")])
            assert await broker.settled()
            leaving = asyncio.create_task(broker.unsubscribe("a.b"))
            await asyncio.sleep(0)
            again = await broker.subscribe("a.b")
            await leaving
            await broker.publish([draft(f"y{turn}")])
            assert await broker.settled()
            assert again.offset == 2 * turn + 1
            await broker.unsubscribe("a.b")
        assert len(notes.events("a.b")) == 20
        assert broker.surprises == 0


async def test_rule_08_a_subscription_without_confirmation_fails_and_leaves_nothing() -> None:
    with RedisServer() as server:
        broker = redis_broker(server, call_timeout_s=0.2)
        broker.bind(Notes())
        with pytest.raises(BrokerUnavailable, match="did not confirm"):
            await broker.subscribe("a.b")
        assert broker.problem() is not None
        await broker.start()
        await ready(broker)
        assert server.ask("PUBSUB", "NUMSUB", broker.keys.address("a.b"))[1] == 0
        await broker.close()


async def test_rule_10_who_has_seen_more_on_another_node_waits_for_this_one(
    reachable: RedisServer, keys: RedisKeys
) -> None:
    async with (
        MutingProxy(reachable.port) as proxy,
        open_redis_node(reachable, keys=keys) as ahead,
        open_redis_node(reachable, url=proxy.url, keys=keys) as behind,
    ):
        other = await behind.subscribe()
        proxy.mute = True
        answers = await ahead.publish("x1", "x2", "x3")
        assert behind.feed().top.offset == 0
        client = await behind.subscribe(since=str(answers[1].position))
        assert client.of("subscribed")[0]["recovered"] is True
        await until(lambda: client.ids() == ["x3"])
        await until(lambda: other.ids() == ["x1", "x2", "x3"])
        proxy.mute = False


async def test_rule_13_a_wave_of_reconnects_reads_nothing_from_redis(server: RedisServer) -> None:
    async with open_redis_node(server) as node:
        first = await node.subscribe()
        since = first.of("subscribed")[0]["position"]
        names = [f"x{number}" for number in range(200)]
        await node.publish(*names)
        await until(lambda: first.ids() == names)
        read = node.broker.history_reads
        for client in [await node.subscribe(since=since) for _ in range(40)]:
            await until(lambda client=client: client.ids() == names)  # type: ignore[misc]
        assert node.broker.history_reads == read


async def test_rule_13_a_node_that_opens_the_feed_late_reads_redis_for_the_first_session_only(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with open_redis_node(server, keys=keys) as dead:
        since = (await dead.subscribe()).of("subscribed")[0]["position"]
        names = [f"x{number}" for number in range(250)]
        await dead.publish(*names)
    async with open_redis_node(server, keys=keys) as node:
        read = node.broker.history_reads
        for _ in range(20):
            client = await node.subscribe(since=since)
            await until(lambda client=client: client.ids() == names)  # type: ignore[misc]
        assert 1 <= node.broker.history_reads - read <= 4


async def test_rule_13_what_the_ring_lacks_is_read_from_redis_once_for_all(
    server: RedisServer,
) -> None:
    async with open_redis_node(server) as node:
        first = await node.subscribe()
        since = first.of("subscribed")[0]["position"]
        names = [f"x{number}" for number in range(450)]
        await node.publish(*names)
        await until(lambda: first.ids() == names)
        read = node.broker.history_reads
        clients = await asyncio.gather(*(node.subscribe(since=since) for _ in range(30)))
        await until(lambda: all(client.ids() == names for client in clients))
        assert node.broker.history_reads - read <= 10


async def test_rule_08_a_subscription_is_confirmed_by_its_own_confirmation(
    reachable: RedisServer,
) -> None:
    """That of one given up before may come late, and Redis has ended it meanwhile."""
    async with (
        MutingProxy(reachable.port) as proxy,
        open_broker(reachable, Notes(), url=proxy.url) as broker,
    ):
        listener, address = broker.listener, broker.keys.address("a.b")
        heard: list[bytes] = []
        marker = broker.keys.address("marker")
        await listener.subscribe(marker, heard.append)
        proxy.mute = True
        first = listener.subscribe(address, heard.append)
        await until(lambda: reachable.ask("PUBSUB", "NUMSUB", address)[1])
        listener.unsubscribe(address)
        second = listener.subscribe(address, heard.append)
        with pytest.raises(BrokerUnavailable):
            await first
        proxy.inject(told(b"subscribe", address) + told(b"message", marker))
        await until(lambda: heard)
        assert not second.done()
        proxy.inject(told(b"unsubscribe", address) + told(b"subscribe", address))
        await second
        proxy.mute = False


def told(kind: bytes, address: str) -> bytes:
    """What Redis sends of an address; a message says `1`."""
    name = address.encode()
    what = b"$1\r\n1" if kind == b"message" else b":1"
    return b"*3\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n%s\r\n" % (len(kind), kind, len(name), name, what)
