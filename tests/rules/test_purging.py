"""Rule 20: a purge keeps epoch and offset, and travels in order."""

import asyncio

from broker_rig import OpenRig, draft, drafts, ids
from delivery_rig import CHANNEL, NotedConnection, faithful, lost, open_delivery_rig, turns, until
from pubsub.broker import History
from pubsub.position import Position
from rule_rig import RESET, history, top, types


async def test_rule_20_purge_keeps_epoch_and_offset_and_stores_a_floor(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        before = (await rig.publish(*drafts("x", 3)))[-1].position
        assert await rig.broker.purge("a.b") == before
        assert await history(rig) == History((), before, 3)
        (answer,) = await rig.publish(draft("y"))
        assert (answer.position.epoch, answer.position.offset) == (before.epoch, 4)
        found = await history(rig)
        assert (ids(found.events), found.floor) == (["y"], 3)
        assert found.events[0].before() == before


async def test_rule_20_purge_travels_in_order_with_events_and_forks(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        await rig.broker.subscribe("a.b")
        first = (await rig.publish(*drafts("x", 2)))[-1].position
        async with rig.settle():
            assert await rig.broker.purge("a.b") == first
        await rig.publish(draft("y"))
        async with rig.settle():
            top = await rig.broker.contradict("a.b", Position(first.epoch, 3, "0" * 16))
            assert await rig.broker.purge("a.b") == top
        await rig.publish(draft("z"))
        heard = [
            (kind, ids(what) if isinstance(what, list) else what)
            for kind, _, what in rig.notes.calls
        ]
        assert heard == [
            ("events", ["x1", "x2"]),
            ("purge", first),
            ("events", ["y"]),
            ("fork", top),
            ("purge", top),
            ("events", ["z"]),
        ]


async def test_rule_20_purging_the_unknown_answers_none(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        assert await rig.broker.purge("a.b") is None
        assert await rig.broker.top("a.b") is None


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
