"""How a feed finds back to its channel's true sequence; see the delivery rules 2, 3 and 15 too."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from config.rules import ChannelRule
from delivery_rig import CHANNEL, DeliveryRig, faithful, lost, open_delivery_rig, run, turns, until
from pubsub.broker import History
from pubsub.errors import TooManyChannels
from pubsub.position import Position, start
from server.feed import State

RESET = pytest.mark.expect_log("server.repair", "feed reset")


async def doubting(rig: DeliveryRig, heard: int) -> None:
    """Make the feed hear of an offset that nobody published."""
    feed = rig.feed()
    beyond = run(Position(feed.top.epoch, heard - 1, "f" * 16), 1)
    rig.hub.on_events(CHANNEL, beyond)


async def test_what_was_heard_and_is_in_no_history_is_looked_for_a_few_times() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        await rig.publish("a")
        await doubting(rig, 9)
        assert rig.feed().state is State.REPAIRING
        await rig.live()
        assert rig.broker.calls["history"] == 4
        assert rig.sleeps.durations == [0.05] * 3
        assert rig.feed().heard == 1
        await rig.publish("b")
        assert client.ids() == ["a", "b"]
        assert rig.broker.calls["history"] == 4


async def test_what_was_heard_early_is_found_when_it_has_come() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        await rig.publish("a")
        await doubting(rig, 3)
        await until(lambda: rig.sleeps.durations)
        rig.broker.way = lost
        await rig.publish("b", "c")
        rig.broker.way = faithful
        await rig.live()
        assert client.ids() == ["a", "b", "c"]


async def test_a_repair_ends_with_its_feed() -> None:
    async with open_delivery_rig() as rig:
        await rig.session().subscribe()
        rig.broker.away = True
        await doubting(rig, 3)
        await until(lambda: len(rig.sleeps.durations) > 2)
        rig.feed().close()
        await until(lambda: not rig.hub._tasks)


async def test_pauses_grow_and_are_bounded_and_jittered() -> None:
    async with open_delivery_rig() as rig:
        await rig.session().subscribe()
        rig.broker.away = True
        await doubting(rig, 3)
        await until(lambda: len(rig.sleeps.durations) > 20)
        pauses = rig.sleeps.durations
        assert 0.025 <= pauses[0] <= 0.05
        assert all(1 <= pause <= 2 for pause in pauses[8:])
        assert len(set(pauses)) > 10


def failing(error: Exception, times: int, call: Callable[..., Awaitable[Any]]) -> Any:
    left = [times]

    async def fail(*args: Any, **kwargs: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return await call(*args, **kwargs)

    return fail


async def test_a_broker_that_refuses_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an absent broker was expected: any other refusal left the feed repairing for good."""
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        rig.broker.way = lost
        await rig.publish("a")
        rig.broker.way = faithful
        refusing = failing(TooManyChannels("full"), 2, rig.broker.history)
        monkeypatch.setattr(rig.broker, "history", refusing)
        await rig.publish("b")
        await rig.live()
        assert client.ids() == ["a", "b"]


@pytest.mark.expect_log("server.repair", "repair failed")
async def test_an_unexpected_error_is_logged_and_does_not_silence_the_feed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        rig.broker.way = lost
        await rig.publish("a")
        rig.broker.way = faithful
        monkeypatch.setattr(rig.broker, "history", failing(KeyError(), 1, rig.broker.history))
        await rig.publish("b")
        await rig.live()
        assert client.ids() == ["a", "b"]


@RESET
async def test_a_record_that_is_gone_begins_a_new_epoch() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        await rig.publish("a", "b")
        old = rig.feed().top
        del rig.broker.inner._records[CHANNEL]
        rig.feed().on_top(start("f" * 16))
        await rig.live()
        top = rig.feed().top
        assert top.epoch != old.epoch
        assert top.offset == old.offset
        assert client.position() == str(top)
        assert len(client.connection.of("reset")) == 1


@RESET
async def test_a_contradiction_is_reported_and_resets_without_an_announcement_too() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        await rig.publish("a", "b", "c")
        await rig.lose_tail(2)
        rig.broker.forks = False
        await rig.publish("other", "next")
        await rig.live()
        assert rig.broker.calls["contradict"] == 1
        assert len(client.connection.of("reset")) == 1
        assert client.ids() == ["a", "b", "c"]
        assert rig.feed().top == await rig.broker.inner.top(CHANNEL)


@RESET
async def test_a_contradiction_that_the_broker_no_longer_remembers_resets_to_its_top() -> None:
    async with open_delivery_rig(ChannelRule(match=">", history_size=5)) as rig:
        client = rig.session()
        await client.subscribe()
        await rig.publish("a", "b", "c")
        await rig.lose_tail(2)
        rig.broker.way = lost
        await rig.publish_many(30)
        rig.broker.way = faithful
        await rig.publish("last")
        await rig.live()
        assert client.position() == str(await rig.broker.inner.top(CHANNEL))
        assert rig.broker.calls["contradict"] <= 1


async def test_a_broker_that_contradicts_itself_does_not_make_the_repair_spin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_delivery_rig() as rig:
        await rig.session().subscribe()
        await rig.publish("a", "b")
        top = rig.feed().top
        stale = History((), rig.feed().sequence.ring[0].position, 0)

        async def history(*_args: Any, **_options: Any) -> History:
            rig.broker.calls["history"] += 1
            return stale

        monkeypatch.setattr(rig.broker, "history", history)
        rig.feed().on_top(start("f" * 16))
        await rig.live()
        assert rig.feed().top == top
        assert rig.broker.calls["history"] < 5


async def test_an_answer_that_is_overtaken_by_a_fork_is_not_used() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        rig.broker.way = lost
        await rig.publish("a")
        rig.broker.way = faithful
        rig.broker.turns = lambda: 5
        await rig.publish("b")
        await turns(3)
        old = rig.feed().top
        new = await rig.broker.contradict(CHANNEL, Position(old.epoch, 2, "f" * 16))
        await rig.live()
        assert rig.feed().top == new
        assert len(client.connection.of("reset")) == 1
        assert client.ids() in ([], ["a", "b"])


async def test_a_feed_with_too_much_to_send_reads_the_rest_when_that_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What other nodes publish waits for nobody: more than can be sent piled up without a bound."""
    monkeypatch.setattr("server.fanout._MOST_BYTES", 400_000)
    async with open_delivery_rig(ChannelRule(match=">", history_size=1_000)) as rig:
        clients = [rig.session() for _ in range(150)]
        for client in clients:
            await client.subscribe()
        # Of a flush that gives way, the rest takes part in later turns: meanwhile all is pending.
        clients[0].connection.on_send = lambda: time.sleep(0.006)
        feed, data = rig.feed(), b'"%s"' % (b"x" * 3_000)
        ids: list[str] = []
        held = 0
        while not feed.fanout.full:
            ids += (batch := [f"e{len(ids) + n}" for n in range(50)])
            await rig.publish(*batch, data=data, hurry=False)
            assert feed.fanout._bytes < 1_000_000
        for _ in range(3):
            ids += (batch := [f"e{len(ids) + n}" for n in range(50)])
            await rig.publish(*batch, data=data, hurry=False)
            held += feed.state is State.REPAIRING
        assert held == 3
        await rig.live()
        assert all(client.ids() == ids for client in clients)
        assert rig.node.metrics.resets == 0


async def test_publishers_wait_for_a_feed_that_has_much_to_send() -> None:
    """A session that publishes as fast as it can was served at once, and all of it piled up."""
    async with open_delivery_rig() as rig:
        clients = [rig.session() for _ in range(150)]
        for client in clients:
            await client.subscribe()
        clients[0].connection.on_send = lambda: time.sleep(0.006)
        data = "x" * 20_000
        most = 0
        for number in range(100):
            clients[1].say("publish", channel=CHANNEL, data=data, id=f"e{number}", echo=True)
        while len(clients[1].connection.of("published")) < 100:
            most = max(most, rig.feed().fanout._bytes)
            await turns(1)
        assert 0 < most < 600_000
        assert rig.node.metrics.publishes_slowed > 0
        await rig.live()
        assert all(client.ids() == [f"e{n}" for n in range(100)] for client in clients)
