"""What every rule rests on."""

import asyncio

import pytest

from delivery_rig import CHANNEL, open_delivery_rig
from pubsub.errors import BrokerUnavailable
from pubsub.event import Event
from pubsub.position import Position
from rule_rig import top


async def test_a_refused_subscription_holds_nothing() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        rig.broker.away = True
        reply = await client.ask("subscribe", channel=CHANNEL)
        assert (reply["type"], reply["code"]) == ("error", "unavailable")
        assert rig.hub.feeds == {}
        assert client.session.subscriptions == {}
        rig.broker.away = False
        await client.subscribe()
        rig.broker.away = True
        other = rig.session()
        beyond = Position((await top(rig)).epoch, 5, "f" * 16)
        reply = await other.ask("subscribe", channel=CHANNEL, since=str(beyond))
        assert reply["code"] == "unavailable"
        assert rig.feed().holds == 1
        with pytest.raises(BrokerUnavailable):
            await rig.broker.top(CHANNEL)


async def test_from_the_broker_to_the_socket_nothing_waits() -> None:
    """No task, future or timer: what the broker says is sent before it has said all."""
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        tasks = asyncio.all_tasks()
        before = Position((await top(rig)).epoch, 0, (await top(rig)).check)
        event = Event(
            CHANNEL, Position(before.epoch, 1, "e" * 16), before.check, "a", "message", b"1", 1
        )
        rig.hub.on_events(CHANNEL, [event])
        assert client.ids() == ["a"]
        assert asyncio.all_tasks() == tasks
