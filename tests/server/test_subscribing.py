"""How a subscription begins and ends, whatever comes between; see the delivery rules too."""

import asyncio
from typing import Any

import pytest

from config.rules import ChannelRule
from delivery_rig import (
    CHANNEL,
    NotedConnection,
    as_connection,
    lost,
    open_delivery_rig,
    turns,
    until,
)
from pubsub.errors import BrokerUnavailable
from pubsub.position import Position
from server.closing import Closing
from server.session import Session
from server.subscription import Subscription


@pytest.mark.parametrize("count", [1, 7, 100, 101, 250, 10_000])
async def test_a_rewind_gives_the_last_events_however_many_the_ring_holds(count: int) -> None:
    async with open_delivery_rig(ChannelRule(match=">", history_size=400)) as rig:
        await rig.session().subscribe()
        names = await rig.publish_many(500)
        client = rig.session()
        reply = await client.subscribe(rewind=count)
        await until(lambda: client.attached)
        expected = names[-min(count, 400) :]
        assert client.ids() == expected
        assert "recovered" not in reply
        assert reply["position"].split("-")[1] == str(500 - len(expected))
        await rig.publish("live")
        assert client.ids() == [*expected, "live"]


async def test_a_rewind_of_an_empty_channel_begins_live() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe(rewind=5)
        await rig.publish("a")
        assert client.ids() == ["a"]


@pytest.mark.parametrize("fields", [{"rewind": 5}, {"since": "top"}], ids=["rewind", "since"])
async def test_more_than_the_ring_holds_may_come_before_a_replay_begins(
    fields: dict[str, Any],
) -> None:
    """Nothing had been read since nothing was missed yet; when the ring had been outrun by the time
    of the answer, the session was told of a loss, though history had it all.
    """
    rule = ChannelRule(match=">", history_size=1_000, presence=True)
    async with open_delivery_rig(rule) as rig:
        client = rig.session()
        top = (await rig.session().subscribe())["position"]
        if "since" in fields:
            fields = {"since": top}
        gate = rig.presence.gates["members"] = asyncio.Event()
        asking = asyncio.ensure_future(client.subscribe(presence=True, **fields))
        await until(lambda: rig.presence.calls["members"])
        names = await rig.publish_many(300)
        gate.set()
        assert (await asking)["position"] == top
        await until(lambda: client.attached)
        assert client.ids() == names
        assert not client.connection.of("reset")


async def test_what_is_published_while_an_empty_rewind_is_read_belongs_to_it() -> None:
    """The subscription began at the cut, which was taken after the read: an event that came in
    between was neither replayed nor live.
    """
    async with open_delivery_rig() as rig:
        client = rig.session()
        gate = rig.broker.gates["history"] = asyncio.Event()
        asking = asyncio.ensure_future(client.subscribe(rewind=5))
        await until(lambda: rig.broker.calls["history"])
        await turns(3)
        await rig.publish("a")
        gate.set()
        await asking
        await until(lambda: client.attached)
        assert client.ids() == ["a"]
        await rig.publish("b")
        assert client.ids() == ["a", "b"]


async def test_a_rewind_does_not_reach_into_an_earlier_epoch() -> None:
    async with open_delivery_rig() as rig:
        await rig.session().subscribe()
        await rig.publish_many(150)
        old = rig.feed().top
        await rig.broker.contradict(CHANNEL, Position(old.epoch, 150, "f" * 16))
        first = rig.session()
        await first.subscribe(rewind=150)
        assert first.ids() == []
        names = await rig.publish_many(10)
        second = rig.session()
        await second.subscribe(rewind=150)
        assert second.ids() == names


async def test_a_rewind_of_a_feed_that_is_behind_what_is_kept_begins_at_its_cut() -> None:
    async with open_delivery_rig(ChannelRule(match=">", history_size=5)) as rig:
        other = rig.session()
        await other.subscribe()
        await rig.publish("a")
        rig.broker.way = lost
        await rig.publish_many(30)
        client = rig.session()
        reply = await client.subscribe(rewind=3)
        assert reply["position"] == other.position()
        assert client.ids() == []


async def test_a_rewind_takes_the_place_of_a_position_that_cannot_be_continued() -> None:
    async with open_delivery_rig() as rig:
        await rig.session().subscribe()
        positions = await rig.publish("a", "b", "c")
        forged = Position(positions[0].epoch, 1, "f" * 16)
        client = rig.session()
        reply = await client.subscribe(since=str(forged), rewind=2)
        assert reply["recovered"] is False
        assert client.ids() == ["b", "c"]
        resumed = rig.session()
        reply = await resumed.subscribe(since=str(positions[1]), rewind=3)
        assert reply["recovered"] is True
        assert resumed.ids() == ["c"]


async def test_a_position_that_history_no_longer_reaches_is_refused() -> None:
    async with open_delivery_rig(ChannelRule(match=">", history_size=20)) as rig:
        client = rig.session()
        since = (await client.subscribe())["position"]
        await rig.publish_many(50)
        late = rig.session()
        assert (await late.subscribe(since=since))["recovered"] is False
        assert late.ids() == []


async def test_a_channel_without_history_can_be_resumed_from_its_top_only() -> None:
    for rule in (
        ChannelRule(match=">", history_size=0),
        ChannelRule(match=">", history_ttl_s=0),
    ):
        async with open_delivery_rig(rule) as rig:
            await rig.session().subscribe()
            positions = await rig.publish("a", "b")
            client = rig.session()
            assert (await client.subscribe(since=str(positions[1])))["recovered"] is True
            behind = rig.session()
            assert (await behind.subscribe(since=str(positions[0])))["recovered"] is False
            rewound = rig.session()
            await rewound.subscribe(rewind=2)
            await rig.publish("c")
            assert client.ids() == behind.ids() == rewound.ids() == ["c"]


async def test_what_a_session_published_without_echo_is_not_replayed_to_it() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        since = (await client.subscribe())["position"]
        await rig.publish("a")
        await rig.publish("own", exclude=client.session.id)
        await client.ask("unsubscribe", channel=CHANNEL)
        await rig.publish("own too", exclude=client.session.id)
        await client.subscribe(since=since)
        await rig.publish("b")
        assert client.ids() == ["a", "a", "b"]


async def test_a_position_waited_for_is_refused_when_the_feed_begins_anew_elsewhere() -> None:
    async with open_delivery_rig() as rig:
        await rig.session().subscribe()
        rig.broker.way = lost
        (position,) = await rig.publish("a")
        rig.broker.gates["history"] = asyncio.Event()
        client = rig.session()
        ref = client.say("subscribe", channel=CHANNEL, since=str(position))
        await until(lambda: rig.broker.calls["history"])
        await turns()
        assert client.reply(ref) is None
        await rig.broker.contradict(CHANNEL, Position(position.epoch, 1, "f" * 16))
        await until(lambda: client.reply(ref))
        rig.broker.gates["history"].set()
        reply = client.reply(ref)
        assert reply is not None
        assert reply["recovered"] is False
        assert client.position() == str(rig.feed().top)


# ---- ends


@pytest.mark.parametrize("waits_at", ["subscribe", "top", "history", "enter", "members"])
@pytest.mark.parametrize("how", ["gone", "dropped", "cancelled", "failed"])
async def test_a_subscription_that_ends_while_it_begins_leaves_nothing_behind(
    waits_at: str, how: str
) -> None:
    async with open_delivery_rig(ChannelRule(match=">", presence=True)) as rig:
        positions = []
        if waits_at in ("top", "history"):
            await rig.session().subscribe()
            await rig.publish_many(300)
            positions = [rig.feed().sequence.ring[0].position]
        holds = rig.hub.subscriptions()
        gate = asyncio.Event()
        stage = rig.presence if waits_at in ("enter", "members") else rig.broker
        stage.gates[waits_at] = gate
        since = None
        if waits_at == "top":
            since = Position(positions[0].epoch, 900, "f" * 16)
        elif waits_at == "history":
            since = Position(positions[0].epoch, 10, "f" * 16)
        client = rig.session(principal=rig.user("u1"))
        before = stage.calls[waits_at]
        subscribe = asyncio.create_task(
            rig.node.commands.subscribe(client.session, CHANNEL, ref=1, since=since, presence=True)
        )
        await until(lambda: stage.calls[waits_at] > before)
        await turns()
        if how == "gone":
            client.leave()
        elif how == "dropped":
            rig.node.subscribing.end(client.session.subscriptions[CHANNEL])
        elif how == "cancelled":
            subscribe.cancel()
        elif stage is rig.broker:
            rig.broker.fails = True
        else:
            rig.presence.away.add(waits_at)
        await turns()
        gate.set()
        (outcome,) = await asyncio.gather(subscribe, return_exceptions=True)
        assert (type(outcome).__name__) == {
            "gone": "NoneType",
            "dropped": "Forbidden",
            "cancelled": "CancelledError",
            "failed": "BrokerUnavailable",
        }[how]
        rig.broker.fails = False
        rig.presence.away.clear()
        await until(lambda: not rig.hub._tasks)
        assert rig.hub.subscriptions() == holds
        assert client.session.subscriptions == {}
        assert (await rig.presence.members(CHANNEL, limit=9)).total == 0
        assert client.connection.of("subscribed") == []
        if how == "dropped":
            await client.subscribe()
            assert rig.hub.subscriptions() == holds + 1


async def test_a_drop_while_it_begins_is_answered() -> None:
    """The command had no reply at all."""
    async with open_delivery_rig() as rig:
        rig.broker.gates["subscribe"] = asyncio.Event()
        client = rig.session()
        ref = client.say("subscribe", channel=CHANNEL)
        await until(lambda: rig.broker.calls["subscribe"])
        rig.node.subscribing.end(client.session.subscriptions[CHANNEL])
        rig.broker.gates["subscribe"].set()
        await until(lambda: client.reply(ref))
        reply = client.reply(ref)
        assert reply is not None
        assert (reply["type"], reply["code"]) == ("error", "forbidden")


async def test_an_end_during_a_replay_ends_it() -> None:
    async with open_delivery_rig() as rig:
        since = (await rig.session().subscribe())["position"]
        await rig.publish_many(300)
        for how in ("unsubscribe", "close"):
            connection = NotedConnection(low_bytes=1_000)
            connection.stalled = True
            client = rig.session(connection=connection)
            await client.subscribe(since=since)
            got = len(client.ids())
            if how == "unsubscribe":
                await client.ask("unsubscribe", channel=CHANNEL)
            else:
                client.session.on_slow()
            connection.read()
            await until(lambda: not rig.hub._tasks)
            assert len(client.ids()) == got
        assert rig.feed().holds == 1


async def test_an_end_while_a_replay_reads_ends_it() -> None:
    async with open_delivery_rig(ChannelRule(match=">", history_size=2_000)) as rig:
        since = (await rig.session().subscribe())["position"]
        await rig.publish_many(900)
        client = rig.session()
        rig.broker.turns = lambda: 5
        await client.subscribe(since=since)
        await until(lambda: rig.hub._tasks)
        got = len(client.ids())
        await client.ask("unsubscribe", channel=CHANNEL)
        await until(lambda: not rig.hub._tasks)
        assert got <= len(client.ids()) < 900


@pytest.mark.expect_log("server.subscribing", "replay failed")
async def test_a_replay_that_fails_ends_its_session_which_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_delivery_rig() as rig:
        since = (await rig.session().subscribe())["position"]
        await rig.publish_many(300)
        connection = NotedConnection(low_bytes=1_000)
        connection.stalled = True
        client = rig.session(connection=connection)
        await client.subscribe(since=since)

        def broken(_events: object, _frames: object) -> None:
            raise KeyError

        monkeypatch.setattr(Session, "send_events", lambda *_args: broken(*_args[:2]))
        connection.read()
        await until(lambda: connection.closed)
        assert connection.closed is Closing.UNAVAILABLE
        assert rig.feed().holds == 1


async def test_ending_twice_releases_once() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        await rig.session().subscribe()
        subscription = client.session.subscriptions[CHANNEL]
        rig.node.subscribing.end(subscription)
        rig.node.subscribing.end(subscription)
        assert rig.feed().holds == 1


async def test_ending_an_older_subscription_leaves_the_newer_one() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        older = Subscription(client.session, CHANNEL)
        await client.subscribe()
        rig.node.subscribing.end(older)
        await rig.publish("a")
        assert client.ids() == ["a"]


async def test_members_are_cut_at_the_limit_and_say_so() -> None:
    async with open_delivery_rig(ChannelRule(match=">", presence=True), members_per_reply=2) as rig:
        users = [rig.session(principal=rig.user(f"u{number}")) for number in range(3)]
        for user in users:
            await user.subscribe()
        reply = await rig.session().subscribe(presence=True)
        assert len(reply["members"]) == 2
        assert reply["more"] is True


async def test_presence_that_changed_while_it_waited_is_told_by_a_sync() -> None:
    async with open_delivery_rig(ChannelRule(match=">", presence=True)) as rig:
        other = rig.session(principal=rig.user("u1"))
        await other.subscribe()
        rig.presence.gates["members"] = asyncio.Event()
        watcher = rig.session()
        ref = watcher.say("subscribe", channel=CHANNEL, presence=True)
        await until(lambda: rig.presence.calls["members"])
        await turns()
        other.leave()
        await until(lambda: rig.presence.calls["leave"])
        await turns()
        rig.presence.gates["members"].set()
        await until(lambda: watcher.reply(ref))
        reply = watcher.reply(ref)
        assert reply is not None
        assert [member["user"] for member in reply["members"]] == ["u1"]
        await until(lambda: watcher.connection.of("presence"))
        (sync,) = watcher.connection.of("presence")
        assert (sync["action"], sync.get("members", [])) == ("sync", [])


async def test_metrics_tell_recoveries_replays_and_resets() -> None:
    async with open_delivery_rig() as rig:
        since = (await rig.session().subscribe())["position"]
        await rig.publish("a", "b")
        await rig.session().subscribe(since=since)
        await rig.session().subscribe(since=f"{'f' * 16}-1-{'f' * 16}")
        text = rig.node.metrics.exposition(None)[0].decode()
        assert 'galecast_recoveries_total{recovered="true"} 1.0' in text
        assert 'galecast_recoveries_total{recovered="false"} 1.0' in text
        assert "galecast_events_replayed_total 2.0" in text


async def test_a_connection_that_is_over_before_its_replay_goes_on_ends_it() -> None:
    async with open_delivery_rig() as rig:
        since = (await rig.session().subscribe())["position"]
        await rig.publish_many(300)
        connection = NotedConnection(low_bytes=1_000)
        connection.stalled = True
        client = rig.session(connection=connection)
        await client.subscribe(since=since)
        connection.close(Closing.NO_PONG)
        await until(lambda: not rig.hub._tasks)
        assert not client.attached
        assert as_connection(connection).unsent > 0


async def test_a_closed_hub_takes_no_subscriptions() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await rig.hub.close()
        with pytest.raises(BrokerUnavailable):
            await rig.node.commands.subscribe(client.session, CHANNEL)
        assert client.session.subscriptions == {}
