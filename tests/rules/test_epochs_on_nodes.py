"""Rules 1 to 5, as far as they concern a node."""

import asyncio

from config.rules import ChannelRule
from delivery_rig import CHANNEL, faithful, lost, open_delivery_rig, turns, until
from pubsub.position import Position
from rule_rig import RESET, top, types
from server.feed import State


async def test_rule_01_same_offsets_with_other_events_are_not_the_same_history() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        await rig.publish("a", "b", "c")
        since = client.position()
        client.leave()
        await rig.lose_tail(2)
        await rig.publish("other")
        # As high as before, by the same epoch and offset: only the check tells.
        assert (await top(rig)).offset == 3
        again = rig.session()
        reply = await again.subscribe(since=since)
        assert reply["recovered"] is False
        assert again.ids() == []


async def test_rule_02_a_repeated_event_is_dropped_without_a_repair() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        rig.broker.way = lambda _channel, events: (events, events, events[-1:])
        await rig.publish("a", "b")
        await rig.publish("c")
        await rig.live()
        assert client.ids() == ["a", "b", "c"]
        assert rig.broker.calls["history"] == 0


async def test_rule_02_an_older_offset_with_another_check_is_a_fork() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        await rig.publish("a", "b", "c")
        await rig.lose_tail(1)
        await rig.publish("other")
        await until(lambda: "reset" in types(client))
        await rig.live()
        assert client.ids() == ["a", "b", "c"]
        assert rig.feed().top == await top(rig)
        assert rig.feed().top.offset == 3


async def test_rule_02_a_top_of_the_broker_below_the_feeds_is_a_fork_too() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        await rig.publish("a", "b", "c")
        await rig.lose_tail(2)
        rig.feed().on_top(await top(rig))
        await until(lambda: "reset" in types(client))
        await rig.live()
        assert rig.feed().top.offset == 3, "offsets go on above the higher one"
        await rig.publish("d")
        assert client.ids() == ["a", "b", "c", "d"]
        assert client.connection.of("event")[-1]["position"].split("-")[1] == "4"


async def test_rule_02_a_top_that_is_known_to_be_the_feeds_costs_nothing() -> None:
    async with open_delivery_rig() as rig:
        await rig.session().subscribe()
        await rig.publish("a")
        rig.feed().on_top(await top(rig))
        assert rig.feed().state is State.LIVE
        assert rig.broker.calls["history"] == 0


async def test_rule_03_a_fork_resets_every_session_and_refuses_older_positions() -> None:
    async with open_delivery_rig() as rig:
        clients = [rig.session() for _ in range(3)]
        for client in clients:
            await client.subscribe()
        (position,) = await rig.publish("a")
        forged = Position(position.epoch, 1, "f" * 16)
        begun = await rig.broker.contradict(CHANNEL, forged)
        await rig.publish("b")
        await rig.live()
        for client in clients:
            assert types(client) == ["subscribed", "event", "reset", "event"]
            assert client.connection.of("reset")[0]["position"] == str(begun)
        late = rig.session()
        assert (await late.subscribe(since=str(position)))["recovered"] is False
        # What has come behind the reset can be resumed.
        again = rig.session()
        reply = await again.subscribe(since=str(begun))
        assert reply["recovered"] is True
        assert again.ids() == ["b"]


@RESET
async def test_rule_03_a_fork_announced_while_a_feed_opens_is_not_missed() -> None:
    """The confirmation carried the top from before the fork; the feed then stood in an epoch that
    was over, and nobody was told before the next event."""
    async with open_delivery_rig() as rig:
        rig.broker.gates["subscribe"] = asyncio.Event()
        client = rig.session()
        ref = client.say("subscribe", channel=CHANNEL)
        await until(lambda: rig.broker.calls["subscribe"])
        await turns()
        old = await top(rig)
        new = await rig.broker.contradict(CHANNEL, Position(old.epoch, 0, "f" * 16))
        rig.broker.gates["subscribe"].set()
        await until(lambda: client.reply(ref))
        await until(lambda: rig.feed().top == new)
        await rig.live()
        assert client.position() == str(new)


async def test_rule_05_the_first_subscriber_makes_a_position_that_can_be_resumed() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        reply = await client.subscribe()
        assert reply["position"].split("-")[1] == "0"
        client.leave()
        await rig.publish("a", "b")
        again = rig.session()
        reply = await again.subscribe(since=client.position())
        assert reply["recovered"] is True
        assert again.ids() == ["a", "b"]


async def test_rule_01_a_feed_that_opens_later_tells_histories_apart() -> None:
    async with open_delivery_rig(linger_s=0.0, tick_s=0.001) as rig:
        client = rig.session()
        await client.subscribe()
        await rig.publish("a", "b", "c")
        since = client.position()
        client.leave()
        await until(lambda: CHANNEL not in rig.hub.feeds, most=2_000_000)
        await rig.lose_tail(2)
        await rig.publish("other")
        again = rig.session()
        assert (await again.subscribe(since=since))["recovered"] is False
        assert (again.ids(), rig.feed().top.offset) == ([], 3)


async def test_rule_02_an_event_that_does_not_chain_to_the_top_is_a_fork() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        await rig.publish("a", "b", "c")
        await rig.lose_tail(2)
        rig.broker.way = lost
        await rig.publish("other")
        rig.broker.way = faithful
        # The next offset, and yet it does not follow on what was heard.
        await rig.publish("d")
        await until(lambda: "reset" in types(client))
        await rig.live()
        assert client.ids() == ["a", "b", "c"]
        assert client.position() == str(await top(rig))


async def test_rule_04_the_top_can_be_resumed_though_nothing_is_kept() -> None:
    async with open_delivery_rig(ChannelRule(match=">", history_size=0)) as rig:
        client = rig.session()
        await client.subscribe()
        await rig.publish("a", "b")
        again = rig.session()
        assert (await again.subscribe(since=client.position()))["recovered"] is True
        await rig.publish("c")
        assert again.ids() == ["c"]
