"""What was read once is kept in the feed's ring for all others."""

import asyncio

import pytest

from config.rules import ChannelRule
from delivery_rig import CHANNEL, DeliveryRig, open_delivery_rig, turns, until
from pubsub.position import Position


async def resume(rig: DeliveryRig, since: Position) -> list[str]:
    """Resume in a session of its own, and return what that gets."""
    client = rig.session()
    assert (await client.subscribe(since=str(since)))["recovered"] is True
    await until(lambda: client.attached)
    return client.ids()


async def test_a_tail_longer_than_the_ring_costs_a_few_pieces_and_then_memory() -> None:
    async with open_delivery_rig() as rig:
        (since,) = await rig.publish("seen")
        names = await rig.publish_many(450)
        assert await resume(rig, since) == names
        rig.broker.calls.clear()
        assert await resume(rig, since) == names
        # 194 are older than what the ring has room for.
        assert rig.broker.calls["history"] == 2


async def test_an_older_position_is_read_and_kept_too() -> None:
    async with open_delivery_rig() as rig:
        (oldest,) = await rig.publish("seen")
        await rig.publish("a", "b")
        newer = (await rig.publish("c"))[0]
        await rig.publish("d")
        assert await resume(rig, newer) == ["d"]
        assert await resume(rig, oldest) == ["a", "b", "c", "d"]
        assert rig.broker.calls["history"] == 2
        assert await resume(rig, oldest) == ["a", "b", "c", "d"]
        assert rig.broker.calls["history"] == 2


@pytest.mark.expect_log("server.hub", "broker refused", required=False)
async def test_what_could_not_be_read_for_all_is_tried_again() -> None:
    async with open_delivery_rig() as rig:
        (since,) = await rig.publish("seen")
        names = await rig.publish_many(200)
        early = rig.broker.early["history"] = asyncio.Event()
        client = rig.session()
        client.say("subscribe", channel=CHANNEL, since=str(since))
        await until(lambda: rig.broker.calls["history"] == 1)
        early.set()
        rig.broker.early["history"] = asyncio.Event()
        await until(lambda: rig.broker.calls["history"] >= 2)
        rig.broker.away = True
        rig.broker.early["history"].set()
        await turns()
        rig.broker.away = False
        await until(lambda: client.attached)
        assert client.ids() == names
        rig.broker.calls.clear()
        assert [await resume(rig, since) for _ in range(4)] == [names] * 4
        assert rig.broker.calls["history"] <= 3


async def test_a_read_that_a_purge_overtakes_is_not_kept() -> None:
    async with open_delivery_rig() as rig:
        await rig.session().subscribe()
        (since,) = await rig.publish("seen")
        feed = rig.feed()
        await rig.publish("a", "b")
        feed.sequence.restart(feed.top)
        rig.broker.gates["history"] = asyncio.Event()
        client = rig.session()
        client.say("subscribe", channel=CHANNEL, since=str(since))
        await until(lambda: rig.broker.calls["history"] == 1)
        await turns()
        await rig.broker.purge(CHANNEL)
        rig.broker.gates["history"].set()
        await turns()
        assert not feed.sequence.ring
        await rig.publish("c")
        assert [event.id for event in feed.sequence.ring] == ["c"]


async def test_a_read_for_a_feed_that_was_given_up_is_nobodys() -> None:
    async with open_delivery_rig(linger_s=0.0, tick_s=0.001) as rig:
        (since,) = await rig.publish("seen")
        await rig.publish("a")
        rig.broker.gates["history"] = asyncio.Event()
        client = rig.session()
        client.say("subscribe", channel=CHANNEL, since=str(since))
        await until(lambda: rig.broker.calls["history"] == 1)
        feed = rig.feed()
        client.leave()
        feed.close()
        rig.broker.gates["history"].set()
        await turns()
        assert not feed.sequence.ring


async def test_a_channel_whose_rule_keeps_nothing_has_no_ring_to_fill() -> None:
    async with open_delivery_rig(ChannelRule(match=">", history_size=0)) as rig:
        (since,) = await rig.publish("seen")
        await rig.publish("a")
        client = rig.session()
        assert (await client.subscribe(since=str(since)))["recovered"] is False
        assert rig.broker.calls["history"] == 1
