"""Rule 15, as far as it concerns a node."""

import asyncio

import pytest

from config.rules import ChannelRule
from delivery_rig import faithful, lost, open_delivery_rig, turns, until
from rule_rig import RESET, top, types


@pytest.mark.parametrize("size", [1, 700])
async def test_rule_15_a_gap_is_repaired_once_and_nobody_notices(size: int) -> None:
    async with open_delivery_rig(ChannelRule(match=">", history_size=1_000)) as rig:
        clients = [rig.session() for _ in range(3)]
        for client in clients:
            await client.subscribe()
        names = await rig.publish_many(3)
        rig.broker.way = lost
        names += await rig.publish_many(size)
        rig.broker.way = faithful
        rig.broker.turns = lambda: 2
        names += await rig.publish_many(5)
        await rig.live()
        for client in clients:
            assert client.ids() == names
            assert "reset" not in types(client)
        assert rig.broker.calls["history"] <= size // 256 + 3
        assert rig.sleeps.durations == []


async def test_rule_15_a_lost_last_message_shows_by_comparing_tops() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        rig.broker.way = lost
        await rig.publish("a")
        rig.feed().on_top(await top(rig))
        await rig.live()
        assert client.ids() == ["a"]


@RESET
async def test_rule_15_a_gap_that_is_trimmed_away_resets_the_feed() -> None:
    async with open_delivery_rig(ChannelRule(match=">", history_size=10)) as rig:
        client = rig.session()
        await client.subscribe()
        rig.broker.way = lost
        await rig.publish_many(50)
        rig.broker.way = faithful
        await rig.publish("a")
        await until(lambda: "reset" in types(client))
        await rig.live()
        assert client.position() == str(await top(rig))
        await rig.publish("b")
        assert client.ids() == ["b"]


async def test_rule_15_what_comes_during_a_repair_is_not_lost_however_it_comes() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        rig.broker.way = lost
        names = await rig.publish_many(3)
        rig.broker.way = faithful
        rig.broker.gates["history"] = asyncio.Event()
        names += await rig.publish_many(1)
        await until(lambda: rig.broker.calls["history"] == 1)
        await turns()
        # Heard after the answer was made, and before it came.
        names += await rig.publish_many(2)
        assert client.ids() == []
        rig.broker.gates["history"].set()
        await rig.live()
        assert client.ids() == names
        assert rig.sleeps.durations == [], "nothing speaks against what was heard just now"


async def test_rule_15_a_repair_outlasts_a_broker_that_is_away() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        rig.broker.way = lost
        await rig.publish("a")
        rig.broker.way = faithful
        rig.broker.away = True
        await rig.publish("b")
        await until(lambda: len(rig.sleeps.durations) > 5)
        assert client.ids() == []
        rig.broker.away = False
        await rig.live()
        assert client.ids() == ["a", "b"]


async def test_rule_15_a_channel_is_repaired_by_one_however_often_a_gap_shows() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        rig.broker.way = lost
        names = await rig.publish_many(3)
        rig.broker.gates["history"] = asyncio.Event()
        for _ in range(5):
            rig.feed().on_top(await top(rig))
        await turns()
        assert rig.broker.calls["history"] == 1
        rig.broker.gates["history"].set()
        await rig.live()
        assert client.ids() == names
