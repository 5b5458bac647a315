"""The hub: which feeds there are, for how long, and who is told what."""

import asyncio

import pytest

from config.rules import ChannelRule
from delivery_rig import CHANNEL, open_delivery_rig, turns, until
from pubsub.errors import BrokerUnavailable, TooManyChannels
from pubsub.event import Event
from pubsub.position import start
from pubsub.presence import Member, PresenceChange
from server.closing import Closing
from server.feed import State
from server.timetable import Timetable

PRESENCE = ChannelRule(match=">", presence=True)


def entries(timetable: Timetable) -> int:
    """How many deadlines are kept."""
    return sum(map(len, timetable._buckets.values()))


# ---- sessions


async def test_sessions_are_known_by_user_while_they_are_open() -> None:
    async with open_delivery_rig() as rig:
        mine = [rig.session(principal=rig.user("u1")) for _ in range(2)]
        other = rig.session(principal=rig.user("u2"))
        nobody = rig.session()
        assert rig.hub.sessions_of("u1") == [client.session for client in mine]
        assert len(rig.hub.sessions) == 4
        mine[0].leave()
        assert rig.hub.sessions_of("u1") == [mine[1].session]
        issued_at = mine[1].session.principal.issued_at
        assert issued_at is not None
        assert rig.hub.end_user("u1", issued_at - 1) == 0
        assert rig.hub.end_user("u1", issued_at) == 1
        assert rig.hub.end_user("u1", issued_at) == 0
        assert mine[1].connection.closed is Closing.ENDED
        assert other.connection.closed is None
        nobody.leave()
        assert list(rig.hub.sessions.values()) == [other.session]
        rig.hub.remove(other.session)
        rig.hub.remove(other.session)
        assert rig.hub._users == {}


async def test_subscriptions_are_counted() -> None:
    async with open_delivery_rig() as rig:
        clients = [rig.session() for _ in range(3)]
        for client in clients:
            await client.subscribe()
        await clients[0].subscribe("a.c")
        assert rig.hub.subscribers(CHANNEL) == 3
        assert rig.hub.subscribers("a.c") == 1
        assert rig.hub.subscribers("a.d") == 0
        assert rig.hub.subscriptions() == 4
        clients[0].leave()
        assert rig.hub.subscriptions() == 2


# ---- feeds


async def test_all_who_want_a_channel_share_its_feed_and_its_opening() -> None:
    async with open_delivery_rig() as rig:
        rig.broker.gates["subscribe"] = asyncio.Event()
        holding = [asyncio.create_task(rig.hub.hold(CHANNEL)) for _ in range(5)]
        await turns()
        rig.broker.gates["subscribe"].set()
        feeds = await asyncio.gather(*holding)
        assert len({id(feed) for feed in feeds}) == 1
        assert feeds[0].holds == 5
        assert rig.broker.calls["subscribe"] == 1


async def test_an_opening_that_fails_is_told_to_all_and_the_next_one_tries_anew() -> None:
    async with open_delivery_rig() as rig:
        rig.broker.away = True
        answers = await asyncio.gather(
            *(rig.hub.hold(CHANNEL) for _ in range(3)), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [BrokerUnavailable] * 3
        assert rig.hub.feeds == {}
        rig.broker.away = False
        feed = await rig.hub.hold(CHANNEL)
        assert feed.holds == 1
        assert feed.state is State.LIVE


async def test_a_bound_of_channels_is_told() -> None:
    async with open_delivery_rig(max_channels=1) as rig:
        await rig.hub.hold(CHANNEL)
        with pytest.raises(TooManyChannels):
            await rig.hub.hold("a.c")


async def test_who_gives_up_while_a_feed_opens_holds_nothing() -> None:
    async with open_delivery_rig() as rig:
        rig.broker.gates["subscribe"] = asyncio.Event()
        first, second = (asyncio.create_task(rig.hub.hold(CHANNEL)) for _ in range(2))
        await turns()
        first.cancel()
        await turns()
        assert rig.feed().holds == 1
        rig.broker.gates["subscribe"].set()
        assert (await second).holds == 1


async def test_a_feed_that_nobody_waits_for_when_it_opens_is_given_up_too() -> None:
    """Its lingering was counted from before it was open, and it was never given up."""
    async with open_delivery_rig(linger_s=0.0, tick_s=0.001) as rig:
        rig.broker.gates["subscribe"] = asyncio.Event()
        only = asyncio.create_task(rig.hub.hold(CHANNEL))
        await turns()
        only.cancel()
        await asyncio.gather(only, return_exceptions=True)
        assert entries(rig.node.timetable) == 0
        rig.broker.gates["subscribe"].set()
        await until(lambda: CHANNEL not in rig.hub.feeds, most=2_000_000)
        await until(lambda: rig.broker.calls["unsubscribe"])


async def test_a_feed_lingers_and_is_found_warm() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        await rig.publish("a")
        feed = rig.feed()
        client.leave()
        assert feed.holds == 0
        await rig.publish("b")
        again = rig.session()
        await again.subscribe(since=client.position())
        assert rig.feed() is feed
        assert again.ids() == ["b"]
        assert rig.broker.calls["subscribe"] == 1
        assert rig.broker.calls["history"] == 0


async def test_one_deadline_at_most_waits_for_each_feed() -> None:
    """Each release left one behind, and the first of them gave up a feed released just now."""
    async with open_delivery_rig() as rig:
        before = entries(rig.node.timetable)
        for _ in range(50):
            rig.hub.release(await rig.hub.hold(CHANNEL))
        assert entries(rig.node.timetable) == before + 1
        await rig.hub.hold(CHANNEL)
        assert entries(rig.node.timetable) == before


async def test_a_held_feed_is_never_given_up() -> None:
    async with open_delivery_rig(linger_s=0.01, tick_s=0.001) as rig:
        feed = await rig.hub.hold(CHANNEL)
        other = await rig.hub.hold("a.c")
        rig.hub.release(feed)
        assert await rig.hub.hold(CHANNEL) is feed
        rig.hub.release(other)
        await until(lambda: "a.c" not in rig.hub.feeds, most=2_000_000)
        assert rig.feed() is feed
        assert feed.state is State.LIVE


async def test_an_unsubscribe_that_fails_hinders_nobody() -> None:
    async with open_delivery_rig(linger_s=0.0, tick_s=0.001) as rig:
        feed = await rig.hub.hold(CHANNEL)
        rig.broker.away = True
        rig.hub.release(feed)
        await until(lambda: rig.broker.calls["unsubscribe"], most=2_000_000)
        rig.broker.away = False
        again = await rig.hub.hold(CHANNEL)
        assert again is not feed
        assert rig.hub._leaving == {}


async def test_what_the_broker_says_of_a_channel_without_a_feed_is_passed_over() -> None:
    async with open_delivery_rig() as rig:
        top = start("a" * 16)
        rig.hub.on_events(CHANNEL, [Event(CHANNEL, top, "", "a", "message", b"1", 1)])
        rig.hub.on_purge(CHANNEL, top)
        rig.hub.on_fork(CHANNEL, top)
        rig.hub.on_presence(PresenceChange(CHANNEL, "join", Member("s", None), 1))
        assert rig.hub.feeds == {}


# ---- presence


async def test_a_sync_outlasts_a_store_that_is_away_and_runs_once_at_a_time() -> None:
    async with open_delivery_rig(PRESENCE) as rig:
        watcher = rig.session()
        await watcher.subscribe(presence=True)
        rig.presence.away.add("members")
        for _ in range(3):
            rig.hub.sync_presence(rig.feed())
        await until(lambda: len(rig.sleeps.durations) > 2)
        assert len(rig.hub._tasks) == 1
        rig.presence.away.clear()
        await until(lambda: watcher.connection.of("presence"))
        await until(lambda: not rig.hub._tasks)
        assert len(watcher.connection.of("presence")) == 1


async def test_a_sync_ends_with_its_feed() -> None:
    async with open_delivery_rig(PRESENCE) as rig:
        watcher = rig.session()
        await watcher.subscribe(presence=True)
        rig.presence.away.add("members")
        rig.hub.sync_presence(rig.feed())
        await until(lambda: rig.sleeps.durations)
        rig.feed().close()
        await until(lambda: not rig.hub._tasks)


@pytest.mark.expect_log("server.hub", "presence leave failed")
async def test_a_leave_that_fails_does_not_keep_the_others_in() -> None:
    async with open_delivery_rig(PRESENCE) as rig:
        user = rig.session(principal=rig.user("u1"))
        await user.subscribe()
        await user.subscribe("a.c")
        subscriptions = list(user.session.subscriptions.values())
        user.session.subscriptions.clear()
        leave = rig.presence.inner.leave

        async def failing(channel: str, session: str) -> None:
            if channel == CHANNEL:
                raise BrokerUnavailable("away")
            await leave(channel, session)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rig.presence, "leave", failing)
            rig.hub.leave(subscriptions)
            rig.hub.leave(subscriptions)
            await until(lambda: not rig.hub._tasks)
        assert (await rig.presence.members("a.c", limit=9)).total == 0


# ---- the end


async def test_close_awaits_its_tasks_and_ends_those_that_wait_for_a_feed() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        await client.subscribe()
        feed = rig.feed()
        rig.broker.away = True
        feed.on_top(start("f" * 16))
        await until(lambda: rig.sleeps.durations)
        await rig.hub.close()
        assert feed.state is State.CLOSED
        assert rig.hub.feeds == {}
        assert not rig.hub._tasks
        await rig.hub.close()
        client.leave()
        assert entries(rig.node.timetable) == 0


async def test_close_gives_up_feeds_that_linger_and_their_deadlines() -> None:
    """A node that ended while a feed lingered, and waited for a task meanwhile, met the deadline of
    a feed that it had given up: a KeyError in the log.
    """
    async with open_delivery_rig() as rig:
        before = entries(rig.node.timetable)
        rig.hub.release(await rig.hub.hold(CHANNEL))
        assert entries(rig.node.timetable) == before + 1
        await rig.hub.close()
        assert entries(rig.node.timetable) == before


async def test_close_while_a_feed_opens_tells_those_who_wait() -> None:
    async with open_delivery_rig() as rig:
        rig.broker.gates["subscribe"] = asyncio.Event()
        waiting = asyncio.create_task(rig.hub.hold(CHANNEL))
        await turns()
        closing = asyncio.create_task(rig.hub.close())
        await turns()
        rig.broker.gates["subscribe"].set()
        await closing
        with pytest.raises(BrokerUnavailable):
            await waiting


async def test_close_cuts_off_what_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.hub._CLOSE_S", 0.0)
    async with open_delivery_rig() as rig:
        task = rig.hub.spawn(asyncio.Event().wait())
        await rig.hub.close()
        assert task.cancelled()


@pytest.mark.expect_log("server.hub", "task failed")
async def test_a_task_that_fails_is_logged() -> None:
    async with open_delivery_rig() as rig:

        async def fail() -> None:
            raise KeyError

        rig.hub.spawn(fail())
        await until(lambda: not rig.hub._tasks)
