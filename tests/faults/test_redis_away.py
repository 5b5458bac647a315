"""Redis dies, comes back with or without what it had, and is cut off, under load."""

import asyncio
import json
from collections.abc import Callable, Sequence

import pytest

from fleet import Fleet, await_true
from fleet_clients import KINDS, Follower, following, until
from fleet_publishers import Publisher, acknowledged, all_came, gaps, in_order, publishing
from muting_proxy import MutingProxy

CHANNELS = ("orders.eu", "orders.us")
# broker.call_timeout_s of the fleet, and what a busy machine may add.
DEADLINE_S = 3.0 + 5.0


async def every_node_is(fleet: Fleet, status: int) -> None:
    """Wait until the readiness of all nodes is that."""
    await asyncio.to_thread(
        await_true,
        lambda: all(node.readiness()[0] == status for node in fleet.nodes),
        lambda: f"{[node.readiness() for node in fleet.nodes]}",
    )


async def more(publishers: Sequence[Publisher], number: int = 5) -> None:
    """Wait until each publisher has had some more publishes acknowledged."""
    before = [len(each.acknowledged) for each in publishers]
    await until(
        lambda: all(
            len(each.acknowledged) >= was + number
            for each, was in zip(publishers, before, strict=True)
        )
    )


async def away(fleet: Fleet, publishers: Sequence[Publisher], back: Callable[[], None]) -> None:
    """Let Redis die until everyone has noticed, then bring it back until everyone has."""
    await more(publishers)
    await asyncio.to_thread(fleet.redis.kill)
    await every_node_is(fleet, 503)
    await until(lambda: all(each.failures for each in publishers))
    await asyncio.to_thread(back)
    await every_node_is(fleet, 200)
    await more(publishers)


def listening(fleet: Fleet) -> int:
    """Return how many connections listen to Redis."""
    said: bytes = fleet.redis.ask("CLIENT", "LIST", "TYPE", "pubsub")
    return len(said.splitlines())


def failed_fast(publishers: Sequence[Publisher]) -> None:
    """Check that each publish that failed said that it may be sent again, and in time."""
    for status, body, took_s in [failure for each in publishers for failure in each.failures]:
        assert status == 503, body
        problem = json.loads(body)
        assert (problem["code"], problem["retry"]) == ("unavailable", True)
        assert took_s < DEADLINE_S


def undisturbed(followers: Sequence[Follower]) -> None:
    """Check that no session ended."""
    assert [one.nodes for one in followers if one.lost or one.refused or len(one.nodes) > 1] == []


@pytest.mark.timeout(seconds=90)
async def test_redis_comes_back_with_what_it_had(fleet: Fleet) -> None:
    url, tls = fleet.nginx.url, fleet.nginx.tls()
    async with following(url, tls, CHANNELS, KINDS * 3) as followers:
        async with publishing(
            url, tls, CHANNELS, 12, hows=["key", "id"], patient=True
        ) as publishers:
            await away(fleet, publishers, fleet.redis.start)
        failed_fast(publishers)
        await all_came(followers, publishers)
        undisturbed(followers)


@pytest.mark.timeout(seconds=90)
async def test_redis_comes_back_empty_and_everyone_is_told(fleet: Fleet) -> None:
    url, tls = fleet.nginx.url, fleet.nginx.tls()
    async with following(url, tls, CHANNELS, KINDS * 3) as followers:
        async with publishing(url, tls, CHANNELS, 12, patient=True) as publishers:

            def back() -> None:
                fleet.redis.wipe()
                fleet.redis.start()

            await away(fleet, publishers, back)
            await until(
                lambda: all(each.cuts for one in followers for each in one.channels.values())
            )
            for each in publishers:
                each.acknowledged.clear()
            await more(publishers)
        failed_fast(publishers)
        for channel in CHANNELS:
            expected = acknowledged(publishers, channel)
            for one in followers:
                followed = one.channels[channel]
                await until(lambda e=expected, f=followed: e.keys() <= set(f.ids))  # type: ignore[misc]
                # Told once, and where something is missing it was told.
                assert len(followed.cuts) == 1
                assert len(gaps(followed)) <= 1
                after = followed.events[followed.cuts[0] :]
                offsets = [position.offset for position, _event_id in after]
                assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
                assert len({position.epoch for position, _event_id in after}) == 1
                in_order(publishers, channel, [event_id for _position, event_id in after])
        undisturbed(followers)


@pytest.mark.timeout(seconds=90)
async def test_what_nodes_listen_on_is_cut(fleet: Fleet) -> None:
    url, tls = fleet.nginx.url, fleet.nginx.tls()
    async with following(url, tls, CHANNELS, KINDS * 3) as followers:
        async with publishing(url, tls, CHANNELS, 12) as publishers:
            for _ in range(3):
                await more(publishers)
                # Who was cut off before may be on its way back still.
                await until(lambda: listening(fleet) >= len(fleet.nodes))
                assert fleet.redis.kill_clients() >= len(fleet.nodes)
            await more(publishers)
            await every_node_is(fleet, 200)
        assert [each.failures for each in publishers if each.failures] == []
        await all_came(followers, publishers)
        undisturbed(followers)


@pytest.mark.timeout(seconds=90)
async def test_one_node_hears_nothing_any_more() -> None:
    """Its connection stands, and Redis takes what it sends: only a probe can find this."""
    fleet = Fleet(tcp=True)
    async with MutingProxy(fleet.redis.port) as proxy:
        deaf = fleet.nodes[0]
        deaf.broker_url = proxy.url
        try:
            await asyncio.to_thread(fleet.__enter__)
            url, tls = fleet.nginx.url, fleet.nginx.tls()
            async with following(url, tls, CHANNELS, KINDS * 3) as followers:
                assert deaf.name in {one.node for one in followers}
                async with publishing(url, tls, CHANNELS, 12) as publishers:
                    await more(publishers)
                    proxy.mute = True
                    assert deaf.process is not None
                    await asyncio.to_thread(deaf.process.await_log, "Redis pub/sub is silent")
                    assert (await asyncio.to_thread(deaf.readiness))[0] == 503
                    await more(publishers)
                    proxy.mute = False
                    await every_node_is(fleet, 200)
                    await more(publishers)
                assert [each.failures for each in publishers if each.failures] == []
                await all_came(followers, publishers)
                undisturbed(followers)
        finally:
            await asyncio.to_thread(fleet.close)
