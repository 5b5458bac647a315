"""Rules 12 to 14: how a session catches up."""

import asyncio
from typing import Any

import pytest

from config.rules import ChannelRule
from delivery_rig import (
    CHANNEL,
    SERVICE,
    DeliveryRig,
    LineWire,
    NotedConnection,
    as_connection,
    open_delivery_rig,
    turns,
    until,
)
from pubsub.position import Position
from rule_rig import slices, types
from server.stream import StreamSession, Wanted


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
        since = (await rig.session().subscribe())["position"]
        names = await rig.publish_many(200)
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


@pytest.mark.parametrize(("missed", "reads"), [(40, 1), (100, 1), (250, 3)])
async def test_rule_13_who_comes_later_is_served_by_what_was_read_for_the_first(
    missed: int, reads: int
) -> None:
    """A node died, and its sessions came back one after another, as they are told to: each read
    history at the broker, since a feed that begins late began with an empty ring and kept it so.
    """
    async with open_delivery_rig() as rig:
        since = (await rig.publish("seen"))[-1]
        names = await rig.publish_many(missed)
        rig.broker.calls.clear()
        clients = [rig.session() for _ in range(30)]
        for client in clients:
            assert (await client.subscribe(since=str(since)))["recovered"] is True
            await until(lambda client=client: client.attached)  # type: ignore[misc]
            assert client.ids() == names
        assert 1 <= rig.broker.calls["history"] <= reads
        assert rig.broker.calls["subscribe"] == 1
        await rig.publish("live")
        await rig.live()
        assert all(client.ids() == [*names, "live"] for client in clients)


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


def make_stream(
    rig: DeliveryRig, connection: NotedConnection, wire: LineWire | None = None
) -> StreamSession:
    rig.node.occupancy.enter("127.0.0.1")
    return StreamSession(
        rig.node,
        wire or LineWire(individual=True),
        as_connection(connection),
        "127.0.0.1",
        SERVICE,
        proof=None,
    )


async def test_rule_14_a_cursor_tells_what_was_written_not_what_is_known() -> None:
    async with open_delivery_rig() as rig:
        connection = NotedConnection()
        stream = make_stream(rig, connection)
        stream.begin([Wanted("a.one"), Wanted("a.two")], 2_000)
        await until(lambda: len(connection.of("subscribed")) == 2)
        positions = await rig.publish("x", "y", channel="a.one")
        ids = [line for line in connection.text().splitlines() if line.startswith("id: ")]
        assert [line.partition(",")[0] for line in ids[-2:]] == [f"id: {at}" for at in positions]


async def test_rule_14_streams_of_one_channel_share_frames() -> None:
    async with open_delivery_rig() as rig:
        wire = LineWire()
        connections = [NotedConnection() for _ in range(3)]
        for connection in connections:
            make_stream(rig, connection, wire).begin([Wanted(CHANNEL)], 2_000)
        await until(lambda: all(connection.of("subscribed") for connection in connections))
        before = wire.encoded
        await rig.publish("x")
        assert [connection.ids() for connection in connections] == [["x"]] * 3
        assert wire.encoded == before + 1
