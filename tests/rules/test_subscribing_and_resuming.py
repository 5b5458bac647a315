"""Rules 8 to 11: how a subscription begins, and goes on elsewhere."""

import asyncio

from delivery_rig import CHANNEL, faithful, lost, open_delivery_rig, turns, until
from pubsub.position import Position
from rule_rig import MAYBE_RESET, RESET, slices, top, types
from server.feed import State


async def test_rule_08_events_that_come_before_the_confirmation_are_not_lost() -> None:
    async with open_delivery_rig() as rig:
        (since,) = await rig.publish("seen")
        rig.broker.gates["subscribe"] = asyncio.Event()
        client = rig.session()
        ref = client.say("subscribe", channel=CHANNEL, since=str(since))
        await until(lambda: rig.broker.calls["subscribe"])
        await turns()
        # The broker has confirmed, but its answer is on its way.
        await rig.publish("a", "b")
        assert client.reply(ref) is None, "not before the confirmation"
        rig.broker.gates["subscribe"].set()
        await until(lambda: client.ids() == ["a", "b"])
        reply = client.reply(ref)
        assert reply is not None
        assert reply["recovered"] is True


async def test_rule_08_a_feed_that_was_given_up_is_never_taken_up_again() -> None:
    async with open_delivery_rig(linger_s=0.0, tick_s=0.001) as rig:
        rig.broker.gates["unsubscribe"] = asyncio.Event()
        client = rig.session()
        await client.subscribe()
        await rig.publish("a")
        old = rig.feed()
        client.leave()
        await until(lambda: CHANNEL not in rig.hub.feeds, most=2_000_000)
        # The broker still sends: to nobody. A new feed waits for its own confirmation.
        await rig.publish("b")
        again = rig.session()
        ref = again.say("subscribe", channel=CHANNEL, since=client.position())
        await turns()
        assert again.reply(ref) is None
        assert rig.broker.calls["subscribe"] == 1
        rig.broker.gates["unsubscribe"].set()
        await until(lambda: again.reply(ref))
        assert rig.broker.calls["subscribe"] == 2
        assert rig.feed() is not old
        assert old.state is State.CLOSED
        await rig.publish("c")
        assert again.ids() == ["b", "c"]


async def test_rule_09_subscribed_tells_the_position_before_the_first_event_that_follows() -> None:
    async with open_delivery_rig() as rig:
        await rig.session().subscribe()
        positions = await rig.publish("a", "b", "c")
        live = rig.session()
        assert (await live.subscribe())["position"] == str(positions[2])
        resumed = rig.session()
        assert (await resumed.subscribe(since=str(positions[0])))["position"] == str(positions[0])
        rewound = rig.session()
        assert (await rewound.subscribe(rewind=2))["position"] == str(positions[0])
        await rig.publish("d")
        assert live.ids() == ["d"]
        assert resumed.ids() == rewound.ids() == ["b", "c", "d"]


@MAYBE_RESET
async def test_rule_09_whoever_was_reset_resumes_from_where_that_says() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        await rig.publish("a", "b", "c")
        await rig.lose_tail(1)
        await rig.publish("other")
        await until(lambda: "reset" in types(client))
        assert client.position() == client.connection.of("reset")[0]["position"]
        client.leave()
        await rig.publish("d", "e")
        again = rig.session()
        reply = await again.subscribe(since=client.position())
        assert reply["recovered"] is True
        assert again.ids() == ["d", "e"]


async def test_rule_10_a_position_beyond_the_feeds_top_waits_for_the_feed() -> None:
    async with open_delivery_rig() as rig:
        other = rig.session()
        await other.subscribe()
        rig.broker.way = lost
        positions = await rig.publish("a", "b", "c")
        rig.broker.way = faithful
        # It has seen two of them on another node; this one has heard of none.
        assert rig.feed().top.offset == 0
        client = rig.session()
        reply = await client.subscribe(since=str(positions[1]))
        assert reply["recovered"] is True
        await rig.live()
        await rig.publish("d")
        assert client.ids() == ["c", "d"]
        assert other.ids() == ["a", "b", "c", "d"]
        assert "reset" not in types(client) + types(other)


async def test_rule_10_also_when_the_repair_that_runs_has_looked_already() -> None:
    async with open_delivery_rig() as rig:
        await rig.session().subscribe()
        rig.broker.way = lost
        await rig.publish("a")
        rig.broker.gates["history"] = asyncio.Event()
        rig.feed().on_top(await top(rig))
        await until(lambda: rig.broker.calls["history"] == 1)
        await turns()
        # The repair's answer does not know of this one, and no message will come.
        (position,) = await rig.publish("b")
        client = rig.session()
        ref = client.say("subscribe", channel=CHANNEL, since=str(position))
        await until(lambda: rig.broker.calls["top"])
        await turns()
        rig.broker.gates["history"].set()
        await until(lambda: client.reply(ref))
        reply = client.reply(ref)
        assert reply is not None
        assert reply["recovered"] is True


@RESET
async def test_rule_10_a_position_of_a_newer_epoch_than_the_feeds_waits_too() -> None:
    """It was refused, though nothing was lost: the other node had heard of the fork before."""
    async with open_delivery_rig() as rig:
        other = rig.session()
        await other.subscribe()
        (position,) = await rig.publish("a")
        rig.broker.forks = False
        rig.broker.way = lost
        await rig.broker.contradict(CHANNEL, Position(position.epoch, 1, "f" * 16))
        positions = await rig.publish("b", "c")
        client = rig.session()
        reply = await client.subscribe(since=str(positions[0]))
        assert reply["recovered"] is True
        await rig.live()
        assert client.ids() == ["c"]
        assert types(other) == ["subscribed", "event", "reset"]


async def test_rule_10_a_position_beyond_the_brokers_top_is_refused() -> None:
    async with open_delivery_rig() as rig:
        await rig.session().subscribe()
        (position,) = await rig.publish("a")
        client = rig.session()
        beyond = Position(position.epoch, 7, "f" * 16)
        assert (await client.subscribe(since=str(beyond)))["recovered"] is False
        elsewhere = Position("f" * 16, 1, position.check)
        other = rig.session()
        assert (await other.subscribe(since=str(elsewhere)))["recovered"] is False
        await rig.publish("b")
        assert client.ids() == other.ids() == ["b"]


async def test_rule_11_replay_ends_at_the_cut() -> None:
    """While a flush is under way the feed's top is ahead of what was handed to it."""
    async with slices(), open_delivery_rig() as rig:
        crowd = [rig.session() for _ in range(3)]
        for client in crowd:
            await client.subscribe()
        since = crowd[0].position()
        await rig.publish("a")
        await rig.publish("b")
        await rig.publish("c")
        feed = rig.feed()
        assert (feed.cut.offset, feed.top.offset) == (1, 3)
        late = rig.session()
        late.say("subscribe", channel=CHANNEL, since=since)
        await until(lambda: late.session.subscriptions and late.attached)
        assert late.ids()[:1] == ["a"]
        await rig.live()
        for client in (*crowd, late):
            assert client.ids() == ["a", "b", "c"]
            assert "reset" not in types(client)


async def test_rule_11_a_position_between_cut_and_top_attaches_when_the_cut_is_there() -> None:
    async with slices(), open_delivery_rig() as rig:
        crowd = [rig.session() for _ in range(3)]
        for client in crowd:
            await client.subscribe()
        await rig.publish("a")
        (position,) = await rig.publish("b")
        await rig.publish("c")
        assert rig.feed().cut.offset == 1
        late = rig.session()
        reply = await late.subscribe(since=str(position))
        assert reply["recovered"] is True
        await rig.live()
        assert late.ids() == ["c"]
        assert "reset" not in types(late)


async def test_rule_11_a_live_start_during_a_flush_gets_only_what_is_behind_its_position() -> None:
    async with slices(), open_delivery_rig() as rig:
        crowd = [rig.session() for _ in range(3)]
        for client in crowd:
            await client.subscribe()
        (first,) = await rig.publish("a")
        await rig.publish("b")
        late = rig.session()
        late.say("subscribe", channel=CHANNEL)
        await until(lambda: late.connection.of("subscribed"))
        await rig.live()
        assert late.position() != ""
        told = late.connection.of("subscribed")[0]["position"]
        assert (told == str(first)) == (late.ids() == ["b"])


async def test_rule_11_who_ends_during_a_flush_gets_no_more_and_nothing_behind_its_close() -> None:
    async with slices(), open_delivery_rig() as rig:
        crowd = [rig.session() for _ in range(4)]
        for client in crowd:
            await client.subscribe()
        await rig.publish("a")
        assert [client.ids() for client in crowd] == [["a"], [], [], []]
        crowd[1].leave()
        crowd[2].session.on_slow()
        await rig.live()
        assert [client.ids() for client in crowd] == [["a"], [], [], ["a"]]
        assert types(crowd[2])[-1] == "closing"
        await rig.publish("b")
        await rig.live()
        assert types(crowd[2])[-1] == "closing"
        assert crowd[3].ids() == ["a", "b"]


async def test_rule_11_who_unsubscribes_during_a_flush_gets_nothing_of_the_rest_of_it() -> None:
    async with slices(), open_delivery_rig() as rig:
        crowd = [rig.session() for _ in range(4)]
        for client in crowd:
            await client.subscribe()
        await rig.publish("a")
        assert [client.ids() for client in crowd] == [["a"], [], [], []]
        crowd[2].say("unsubscribe", channel=CHANNEL)
        await rig.live()
        assert [client.ids() for client in crowd] == [["a"], ["a"], [], ["a"]]
        assert types(crowd[2]) == ["subscribed", "unsubscribed"]


async def test_rule_11_nothing_comes_behind_the_close_of_a_session() -> None:
    async with slices(), open_delivery_rig() as rig:
        crowd = [rig.session() for _ in range(3)]
        for client in crowd:
            await client.subscribe()
        # Whoever is closed is out of all feeds by then: a flush may be under way.
        attached: list[bool] = []
        last = crowd[2]
        subscription = last.session.subscriptions[CHANNEL]
        last.connection.on_send = lambda: attached.append(subscription.live)
        await rig.publish("a")
        last.session.on_slow()
        await rig.live()
        assert attached == [False]
        assert types(last) == ["subscribed", "closing"]
