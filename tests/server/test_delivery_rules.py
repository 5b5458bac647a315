"""The rules of delivery, one by one, as far as they concern a node."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from config.rules import ChannelRule
from delivery_rig import (
    CHANNEL,
    SERVICE,
    Client,
    DeliveryRig,
    LineWire,
    NotedConnection,
    as_connection,
    faithful,
    lost,
    open_delivery_rig,
    turns,
    until,
)
from pubsub.errors import BrokerUnavailable
from pubsub.event import Event
from pubsub.position import Position
from server.feed import State
from server.stream import StreamSession, Wanted

RESET = pytest.mark.expect_log("server.repair", "feed reset")


def types(client: Client) -> list[str]:
    """What a client was told, in order, without what opened its session."""
    return [each["type"] for each in client.connection.messages() if each["type"] != "connected"]


async def top(rig: DeliveryRig) -> Position:
    found = await rig.broker.inner.top(CHANNEL)
    assert found is not None
    return found


@asynccontextmanager
async def slices() -> AsyncIterator[None]:
    """Each flush gives way after each send."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.fanout._LOOK_EVERY", 1)
        patch.setattr("server.fanout._HOLD_S", -1.0)
        yield


# ---- positions and epochs


async def test_rule_1_same_offsets_with_other_events_are_not_the_same_history() -> None:
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


async def test_rule_2_a_repeated_event_is_dropped_without_a_repair() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        rig.broker.way = lambda _channel, events: (events, events, events[-1:])
        await rig.publish("a", "b")
        await rig.publish("c")
        await rig.live()
        assert client.ids() == ["a", "b", "c"]
        assert rig.broker.calls["history"] == 0


async def test_rule_2_an_older_offset_with_another_check_is_a_fork() -> None:
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


async def test_rule_2_a_top_of_the_broker_below_the_feeds_is_a_fork_too() -> None:
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


async def test_rule_2_a_top_that_is_known_to_be_the_feeds_costs_nothing() -> None:
    async with open_delivery_rig() as rig:
        await rig.session().subscribe()
        await rig.publish("a")
        rig.feed().on_top(await top(rig))
        assert rig.feed().state is State.LIVE
        assert rig.broker.calls["history"] == 0


async def test_rule_3_a_fork_resets_every_session_and_refuses_older_positions() -> None:
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
async def test_rule_3_a_fork_announced_while_a_feed_opens_is_not_missed() -> None:
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


async def test_rule_5_the_first_subscriber_makes_a_position_that_can_be_resumed() -> None:
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


# ---- subscribing and resuming


async def test_rule_8_events_that_come_before_the_confirmation_are_not_lost() -> None:
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


async def test_rule_8_a_feed_that_was_given_up_is_never_taken_up_again() -> None:
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


async def test_rule_9_subscribed_tells_the_position_before_the_first_event_that_follows() -> None:
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
        rig.hub.end_user("nobody")
        crowd[2].session.on_slow()
        await rig.live()
        assert [client.ids() for client in crowd] == [["a"], [], [], ["a"]]
        assert types(crowd[2])[-1] == "closing"
        await rig.publish("b")
        await rig.live()
        assert types(crowd[2])[-1] == "closing"
        assert crowd[3].ids() == ["a", "b"]


async def test_rule_12_a_replay_goes_on_as_the_client_reads_outside_the_slow_rule() -> None:
    async with open_delivery_rig() as rig:
        since = (await rig.session().subscribe())["position"]
        names = await rig.publish_many(400)
        connection = NotedConnection(low_bytes=1_000)
        connection.stalled = True
        client = rig.session(connection=connection)
        await client.subscribe(since=since)
        await turns()
        first = len(client.ids())
        assert 0 < first < 200, "bounded while nothing is read"
        # Meanwhile other commands are carried out.
        assert (await client.ask("ping"))["type"] == "pong"
        while not client.attached:
            before = len(client.ids())
            connection.read()
            await turns()
            assert len(client.ids()) - before <= 100
        assert client.ids() == names
        await rig.publish("live")
        await rig.live()
        assert client.ids() == [*names, "live"]


async def test_rule_12_large_events_are_replayed_in_pieces_that_no_limit_ends() -> None:
    """A piece was bounded in events only: 100 large ones went over the limit of unsent bytes, the
    session was ended as slow, came back, and met the same piece again."""
    async with open_delivery_rig() as rig:
        since = (await rig.session().subscribe())["position"]
        for number in range(60):
            await rig.publish(f"large{number}", data=b'"%s"' % (b"x" * 60_000))
        await rig.live()
        connection = NotedConnection()
        connection.stalled = True
        client = rig.session(connection=connection)
        await client.subscribe(since=since)
        while not client.attached:
            await turns()
            connection.read()
        assert len(client.ids()) == 60
        assert connection.most_unsent < 256_000


async def test_rule_12_many_replays_of_one_session_share_what_may_be_unsent() -> None:
    async with open_delivery_rig(ChannelRule(match=">", history_size=1_000)) as rig:
        channels = [f"a.c{number}" for number in range(12)]
        sinces = []
        for channel in channels:
            sinces.append((await rig.session().subscribe(channel))["position"])
            for number in range(600):
                await rig.publish(f"n{number}", channel=channel, data=b'"%s"' % (b"x" * 300))
            await rig.live(channel)
        rig.broker.turns = lambda: 3
        connection = NotedConnection()
        connection.stalled = True
        client = rig.session(connection=connection)
        for channel, since in zip(channels, sinces, strict=True):
            await client.subscribe(channel, since=since)
        while not client.attached:
            await turns(20)
            connection.read()
        assert len(client.ids()) == 12 * 600
        # What may be unsent before a piece, one piece, and the replies.
        assert connection.most_unsent < 65_536 + 65_536 + 12 * 200


async def test_rule_12_a_replay_slower_than_the_traffic_chases_until_the_ring_has_the_rest() -> (
    None
):
    rule = ChannelRule(match=">", history_size=5_000)
    async with open_delivery_rig(rule) as rig:
        since = (await rig.session().subscribe())["position"]
        names = await rig.publish_many(1_000)
        rig.broker.turns = lambda: 2
        connection = NotedConnection(low_bytes=1_000)
        connection.stalled = True
        client = rig.session(connection=connection)
        await client.subscribe(since=since)
        for _ in range(100):
            # Faster than it reads, for a while.
            if len(names) < 3_000:
                names += await rig.publish_many(150)
            connection.read()
            await turns()
            if client.attached:
                break
        await until(lambda: client.attached)
        await rig.live()
        assert client.ids() == names


async def test_rule_12_a_replay_that_is_outrun_ends_in_a_reset_and_nothing_older() -> None:
    async with open_delivery_rig(ChannelRule(match=">", history_size=300)) as rig:
        since = (await rig.session().subscribe())["position"]
        names = await rig.publish_many(290)
        connection = NotedConnection(low_bytes=1_000)
        connection.stalled = True
        client = rig.session(connection=connection)
        assert (await client.subscribe(since=since))["recovered"] is True
        got = len(client.ids())
        names += await rig.publish_many(800)
        connection.stalled = False
        connection.read()
        await until(lambda: client.attached)
        assert types(client).count("reset") == 1
        assert types(client)[-1] == "reset"
        assert client.position() == str(rig.feed().top)
        assert client.ids() == names[:got]
        await rig.publish("live")
        await rig.live()
        assert client.ids() == [*names[:got], "live"]


@pytest.mark.parametrize("waits_for", ["client", "history"])
async def test_rule_12_an_epoch_that_ends_during_a_replay_ends_it_with_one_reset(
    waits_for: str,
) -> None:
    rule = ChannelRule(match=">", history_size=1_000)
    async with slices(), open_delivery_rig(rule) as rig:
        # Two, so that a flush is under way when the replay goes on.
        others = [rig.session(), rig.session()]
        since, _ = [(await other.subscribe())["position"] for other in others]
        await rig.publish_many(900)
        await rig.live()
        connection = NotedConnection(low_bytes=1_000)
        connection.stalled = waits_for == "client"
        client = rig.session(connection=connection)
        if waits_for == "history":
            rig.broker.gates["history"] = asyncio.Event()
            ref = client.say("subscribe", channel=CHANNEL, since=since)
            await turns()
            rig.broker.gates["history"].set()
            rig.broker.gates["history"] = asyncio.Event()
            await until(lambda: client.reply(ref))
        else:
            await client.subscribe(since=since)
        await turns()
        assert not client.attached
        got = client.ids()
        old = rig.feed().top
        await rig.publish("older")
        new = await rig.broker.contradict(CHANNEL, Position(old.epoch, old.offset, "f" * 16))
        if waits_for == "history":
            rig.broker.gates["history"].set()
        connection.stalled = False
        connection.read()
        await until(lambda: client.attached)
        await rig.live()
        await rig.publish("newer")
        await rig.live()
        kinds = types(client)
        assert kinds.count("reset") == 1
        assert client.connection.of("reset")[0]["position"] == str(new)
        assert client.ids() == [*got, "newer"]


async def test_rule_12_a_replay_outlasts_a_broker_that_is_away() -> None:
    """The task that read history died of it; the session stayed subscribed and heard nothing."""
    async with open_delivery_rig(ChannelRule(match=">", history_size=1_000)) as rig:
        since = (await rig.session().subscribe())["position"]
        names = await rig.publish_many(600)
        connection = NotedConnection(low_bytes=1_000)
        connection.stalled = True
        client = rig.session(connection=connection)
        await client.subscribe(since=since)
        rig.broker.away = True
        connection.stalled = False
        connection.read()
        await until(lambda: len(rig.sleeps.durations) > 3)
        assert not client.attached
        assert max(rig.sleeps.durations) <= 2
        rig.broker.away = False
        await until(lambda: client.attached)
        assert client.ids() == names


async def test_rule_13_a_wave_of_reconnects_is_served_from_memory() -> None:
    async with open_delivery_rig() as rig:
        await rig.session().subscribe()
        names = await rig.publish_many(200)
        since = str(rig.feed().sequence.ring[0].before())
        before = rig.broker.calls.copy()
        for _ in range(50):
            client = rig.session()
            assert (await client.subscribe(since=since))["recovered"] is True
            assert client.ids() == names
        assert rig.broker.calls == before


@pytest.mark.parametrize("how", ["since", "rewind"])
async def test_rule_13_what_has_to_be_read_is_read_once_for_all_who_wait_for_it(how: str) -> None:
    async with open_delivery_rig() as rig:
        since = (await rig.session().subscribe())["position"]
        names = await rig.publish_many(400)
        rig.broker.gates["history"] = asyncio.Event()
        clients = [rig.session() for _ in range(20)]
        wanted: dict[str, Any] = {"since": since} if how == "since" else {"rewind": 400}
        for client in clients:
            client.say("subscribe", channel=CHANNEL, **wanted)
        await turns()
        assert rig.broker.calls["history"] == 1
        rig.broker.gates["history"].set()
        await until(lambda: all(c.session.subscriptions and c.attached for c in clients))
        assert all(client.ids() == names for client in clients)
        assert rig.broker.calls["history"] <= 5


async def test_rule_14_a_stream_of_several_channels_composes_its_own_cursor() -> None:
    async with open_delivery_rig() as rig:
        channels = ["a.one", "a.two"]
        connection = NotedConnection()
        stream = make_stream(rig, connection)
        stream.begin([Wanted(channel) for channel in channels], 2_000)
        await until(lambda: len(connection.of("subscribed")) == 2)
        (one,) = await rig.publish("x", channel="a.one")
        (two,) = await rig.publish("y", channel="a.two")
        (one_again,) = await rig.publish("z", channel="a.one")
        ids = [line for line in connection.text().splitlines() if line.startswith("id: ")]
        start = ids[-4].removeprefix("id: ").split(",")
        assert ids[-3:] == [
            f"id: {one},{start[1]}",
            f"id: {one},{two}",
            f"id: {one_again},{two}",
        ]


def make_stream(rig: DeliveryRig, connection: NotedConnection) -> StreamSession:
    rig.node.occupancy.enter("127.0.0.1")
    return StreamSession(
        rig.node,
        LineWire(individual=True),
        as_connection(connection),
        "127.0.0.1",
        SERVICE,
        proof=None,
    )


# ---- the backplane


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


# ---- purge


async def test_rule_20_a_purge_resets_nobody_who_is_in_step() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        positions = await rig.publish("a", "b")
        await rig.broker.purge(CHANNEL)
        await rig.publish("c")
        assert client.ids() == ["a", "b", "c"]
        assert "reset" not in types(client)
        # The last position can be resumed, and nothing below it.
        again = rig.session()
        assert (await again.subscribe(since=str(positions[1])))["recovered"] is True
        assert again.ids() == ["c"]
        behind = rig.session()
        assert (await behind.subscribe(since=str(positions[0])))["recovered"] is False
        rewound = rig.session()
        await rewound.subscribe(rewind=10)
        assert rewound.ids() == ["c"]


async def test_rule_20_the_ring_tells_nothing_that_was_purged_not_even_after_a_repair() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        since = (await client.subscribe())["position"]
        rig.broker.way = lost
        await rig.publish("a")
        rig.broker.way = faithful
        rig.broker.gates["history"] = asyncio.Event()
        await rig.publish("b")
        await until(lambda: rig.broker.calls["history"] == 1)
        await turns()
        await rig.broker.purge(CHANNEL)
        rig.broker.gates["history"].set()
        await rig.live()
        assert client.ids() == ["a", "b"]
        late = rig.session()
        assert (await late.subscribe(since=since))["recovered"] is False
        assert late.ids() == []


@RESET
async def test_rule_20_a_purge_of_events_that_never_came_is_told() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        rig.broker.way = lost
        await rig.publish("a", "b")
        await rig.broker.purge(CHANNEL)
        await until(lambda: "reset" in types(client))
        assert client.position() == str(await top(rig))


async def test_rule_20_a_replay_below_the_floor_is_told() -> None:
    async with open_delivery_rig() as rig:
        since = (await rig.session().subscribe())["position"]
        await rig.publish_many(250)
        connection = NotedConnection(low_bytes=1_000)
        connection.stalled = True
        client = rig.session(connection=connection)
        await client.subscribe(since=since)
        got = len(client.ids())
        await rig.broker.purge(CHANNEL)
        connection.read()
        await until(lambda: client.attached)
        assert types(client)[-1] == "reset"
        assert len(client.ids()) == got


# ---- presence


async def test_rule_23_members_come_and_go_with_their_subscriptions() -> None:
    async with open_delivery_rig() as rig:
        watcher = rig.session()
        reply = await watcher.subscribe(presence=True)
        assert reply["members"] == []
        users = [rig.session(principal=rig.user(f"u{n}")) for n in range(3)]
        for user in users:
            await user.subscribe()
        await users[0].ask("unsubscribe", channel=CHANNEL)
        users[1].leave()
        users[2].session.on_slow()
        await until(lambda: len(watcher.connection.of("presence")) == 6)
        told = [(m["action"], m["member"]["user"]) for m in watcher.connection.of("presence")]
        assert told[:3] == [("join", "u0"), ("join", "u1"), ("join", "u2")]
        assert sorted(told[3:]) == [("leave", "u0"), ("leave", "u1"), ("leave", "u2")]
        assert (await rig.presence.members(CHANNEL, limit=10)).total == 0


async def test_rule_23_who_watches_is_told_the_set_and_then_each_change_once() -> None:
    async with open_delivery_rig() as rig:
        first = rig.session(principal=rig.user("u1"))
        reply = await first.subscribe(presence=True)
        assert [m["user"] for m in reply["members"]] == ["u1"]
        second = rig.session(principal=rig.user("u2"))
        reply = await second.subscribe(presence=True)
        assert sorted(m["user"] for m in reply["members"]) == ["u1", "u2"]
        await second.ask("presence", channel=CHANNEL, info={"a": 1})
        await until(lambda: rig.feed().presence.hurry())
        assert [(m["action"], m["member"]["user"]) for m in first.connection.of("presence")] == [
            ("join", "u2"),
            ("update", "u2"),
        ]
        assert [m["action"] for m in second.connection.of("presence")] == ["update"]


async def test_rule_23_a_session_that_unsubscribes_and_subscribes_at_once_is_present() -> None:
    """Its leave was told by a task, after it had entered anew: it was subscribed, and not there."""
    async with open_delivery_rig() as rig:
        user = rig.session(principal=rig.user("u1"))
        await user.subscribe()
        user.say("unsubscribe", channel=CHANNEL)
        await user.subscribe()
        await until(lambda: not rig.hub._tasks)
        page = await rig.presence.members(CHANNEL, limit=10)
        assert [member.user for member in page.members] == ["u1"]
        user.leave()
        await until(lambda: not rig.hub._tasks)
        assert (await rig.presence.members(CHANNEL, limit=10)).total == 0


async def test_rule_24_a_lost_change_is_made_up_for_by_the_whole_set() -> None:
    async with open_delivery_rig() as rig:
        watcher = rig.session()
        await watcher.subscribe(presence=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rig.presence.inner, "_sink", Deaf())
            await rig.session(principal=rig.user("u1")).subscribe()
        assert watcher.connection.of("presence") == []
        await rig.session(principal=rig.user("u2")).subscribe()
        await until(lambda: watcher.connection.of("presence"))
        (sync,) = watcher.connection.of("presence")
        assert sync["action"] == "sync"
        assert sorted(m["user"] for m in sync["members"]) == ["u1", "u2"]
        # From then on it is in step again.
        await rig.session(principal=rig.user("u3")).subscribe()
        await until(lambda: len(watcher.connection.of("presence")) == 2)
        assert watcher.connection.of("presence")[1]["member"]["user"] == "u3"


class Deaf:
    """A presence sink that hears nothing."""

    def on_presence(self, change: object) -> None:
        """Nothing comes."""


async def test_rule_24_a_sync_that_is_overtaken_by_changes_is_read_again() -> None:
    """It told the older set after the newer change; the set was wrong until the next change."""
    async with open_delivery_rig() as rig:
        watcher = rig.session()
        await watcher.subscribe(presence=True)
        rig.presence.gates["members"] = asyncio.Event()
        rig.hub.sync_presence(rig.feed())
        rig.hub.sync_presence(rig.feed())
        await until(lambda: rig.presence.calls["members"] == 2)
        await rig.session(principal=rig.user("u1")).subscribe()
        rig.presence.gates["members"].set()
        await until(lambda: len(watcher.connection.of("presence")) == 2)
        join, sync = watcher.connection.of("presence")
        assert (join["action"], sync["action"]) == ("join", "sync")
        assert [member["user"] for member in sync["members"]] == ["u1"]
        assert rig.presence.calls["members"] == 3


# ---- what every rule rests on


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
