"""The feed: what it does with what it hears, and what it tells those who wait."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from delivery_rig import (
    CHANNEL,
    EPOCH,
    Client,
    DeliveryRig,
    HandLoop,
    as_loop,
    open_delivery_rig,
    run,
    turns,
)
from pubsub.event import Event
from pubsub.position import Position, start
from pubsub.presence import Member, Members, PresenceChange
from server.fanout import Turn
from server.feed import Feed, State
from server.subscription import Subscription


@dataclass(slots=True)
class Bench:
    """A feed on a loop that is turned by hand, and how often it was in doubt."""

    rig: DeliveryRig
    loop: HandLoop = field(default_factory=HandLoop)
    doubts: int = 0
    feed: Feed = field(init=False)

    def __post_init__(self) -> None:
        self.feed = Feed(
            CHANNEL, Turn(as_loop(self.loop)), self.rig.node.metrics, 10, self._on_doubt
        )

    def _on_doubt(self, feed: Feed) -> None:
        assert feed is self.feed
        self.doubts += 1

    def listen(self, *, watching: bool = False) -> tuple[Client, Subscription]:
        client = self.rig.session()
        client.connection.sent.clear()
        subscription = Subscription(client.session, CHANNEL, watching=watching)
        subscription.live = True
        self.feed.attach(subscription)
        return client, subscription

    def told(self, client: Client) -> list[str]:
        return [
            each.get("id") or f"{each['type']} {each.get('action', '')}".strip()
            for each in client.connection.messages()
        ]


@asynccontextmanager
async def bench(*, opened: bool = True) -> AsyncIterator[Bench]:
    async with open_delivery_rig() as rig:
        on = Bench(rig)
        if opened:
            on.feed.open(start(EPOCH))
        yield on


def join(version: int, name: str = "s1") -> PresenceChange:
    return PresenceChange(CHANNEL, "join", Member(name, name), version)


def page(version: int, *names: str) -> Members:
    return Members(tuple(Member(name, name) for name in names), len(names), version)


def names(events: Sequence[Event]) -> list[str]:
    return [event.id for event in events]


async def test_events_that_chain_are_sent_and_repeated_ones_are_not() -> None:
    async with bench() as on:
        client, _ = on.listen()
        events = run(start(EPOCH), 4)
        on.feed.on_events(events[:2])
        on.feed.on_events(events[1:3])
        on.loop.advance(1)
        on.feed.on_events(events)
        on.loop.advance(1)
        assert client.ids() == names(events)
        assert on.doubts == 0
        assert on.feed.top == on.feed.cut == events[-1].position


async def test_a_gap_begins_one_repair_and_what_comes_then_is_only_heard() -> None:
    async with bench() as on:
        client, _ = on.listen()
        events = run(start(EPOCH), 9)
        on.feed.on_events([events[0], events[2]])
        assert on.feed.state is State.REPAIRING
        on.feed.on_events(events[3:8])
        on.feed.on_events(events[1:2])
        assert client.ids() == names(events[:1])
        assert on.feed.heard == 8
        assert on.doubts == 1
        on.feed.accept(events[1:8])
        on.feed.repaired()
        on.loop.advance(1)
        on.feed.on_events(events[8:])
        on.loop.advance(1)
        assert client.ids() == names(events)
        assert on.doubts == 1


async def test_before_it_is_open_it_only_remembers_how_far_the_channel_has_come() -> None:
    events = run(start(EPOCH), 5)
    async with bench(opened=False) as on:
        on.feed.on_events(events[3:])
        on.feed.open(events[4].position)
        assert on.feed.state is State.LIVE
        assert on.doubts == 0
    async with bench(opened=False) as on:
        on.feed.on_events(events[3:])
        on.feed.open(events[2].position)
        assert on.feed.state is State.REPAIRING
        assert on.doubts == 1


async def test_a_fork_told_twice_resets_once() -> None:
    async with bench() as on:
        client, _ = on.listen()
        top = start("b" * 16, 3)
        on.feed.on_fork(top)
        on.feed.on_fork(top)
        on.loop.advance(1)
        assert on.told(client) == ["reset"]
        assert on.rig.node.metrics.resets == 1
        on.feed.on_events(run(top, 1))
        on.loop.advance(1)
        assert len(client.ids()) == 1


async def test_a_closed_feed_accepts_nothing() -> None:
    async with bench() as on:
        client, _ = on.listen()
        on.feed.close()
        on.feed.close()
        on.feed.on_events(run(start(EPOCH), 2))
        on.feed.on_fork(start("b" * 16, 3))
        on.feed.on_top(start("b" * 16, 3))
        on.feed.repaired()
        on.loop.advance(1)
        assert on.told(client) == []
        assert on.feed.state is State.CLOSED
        assert on.doubts == 0
        await on.feed.settled(start(EPOCH))
        assert not await on.feed.reach(start(EPOCH, 0))


async def test_a_purge_known_to_the_feed_forgets_and_doubts_nothing() -> None:
    async with bench() as on:
        events = run(start(EPOCH), 6)
        on.feed.on_events(events)
        on.feed.on_purge(events[3].position)
        assert on.feed.sequence.since(events[2].position, 10) is None
        assert on.feed.sequence.since(events[3].position, 10) == events[4:]
        assert on.doubts == 0


async def test_a_purge_at_a_position_that_the_feed_contradicts_is_doubted() -> None:
    async with bench() as on:
        on.feed.on_events(run(start(EPOCH), 6))
        on.feed.on_purge(Position(EPOCH, 4, "f" * 16))
        assert on.doubts == 1


async def test_a_purge_of_another_epoch_is_doubted_only_if_it_is_ahead() -> None:
    async with bench() as on:
        events = run(start(EPOCH), 6)
        on.feed.on_events(events)
        on.feed.on_purge(start("b" * 16, 3))
        assert on.doubts == 0
        assert on.feed.sequence.since(events[1].position, 10) == events[2:]
        on.feed.on_purge(start("b" * 16, 9))
        assert on.doubts == 1


# ---- waiting for a top


async def test_reach_waits_for_the_position() -> None:
    async with bench() as on:
        events = run(start(EPOCH), 5)
        far = asyncio.create_task(on.feed.reach(events[3].position))
        near = asyncio.create_task(on.feed.reach(events[1].position))
        gone = asyncio.create_task(on.feed.reach(events[1].position))
        await turns()
        gone.cancel()
        await turns()
        on.feed.on_events(events[:2])
        await turns()
        assert near.done() and near.result() and not far.done()
        on.feed.on_events(events[2:])
        assert await far
        assert await on.feed.reach(events[0].position)


async def test_reach_gives_up_when_the_feed_begins_anew_elsewhere() -> None:
    """It waited for an offset of the epoch before, without end."""
    async with bench() as on:
        waiting = asyncio.create_task(on.feed.reach(run(start(EPOCH), 9)[8].position))
        await turns()
        on.feed.on_fork(start("b" * 16, 2))
        assert not await waiting


async def test_reach_waits_for_the_epoch_of_its_position() -> None:
    async with bench() as on:
        events = run(start(EPOCH), 9)
        top = start("b" * 16, 3)
        later = run(top, 2)
        waiting = asyncio.create_task(on.feed.reach(later[1].position))
        await turns()
        on.feed.on_events(events)
        await turns()
        assert not waiting.done(), "as far, but of another epoch"
        on.feed.on_fork(top)
        await turns()
        assert not waiting.done()
        on.feed.on_events(later)
        assert await waiting


async def test_reach_ends_with_the_feed() -> None:
    async with bench() as on:
        waiting = asyncio.create_task(on.feed.reach(run(start(EPOCH), 9)[8].position))
        await turns()
        on.feed.close()
        assert not await waiting


# ---- settling


async def test_settled_hurries_what_waits_for_its_time() -> None:
    async with bench() as on:
        client, _ = on.listen()

        def take() -> None:
            on.loop.now += 0.004

        client.connection.on_send = take
        events = run(start(EPOCH), 3)
        on.feed.on_events(events[:1])
        on.feed.on_events(events[1:])
        assert on.feed.cut == events[0].position
        await on.feed.settled()
        assert on.feed.cut == events[0].position, "without a position there is nothing to wait for"
        await on.feed.settled(events[1].position)
        assert on.feed.cut == events[2].position


async def test_settled_waits_for_a_flush_under_way_and_for_a_reset_behind_it() -> None:
    async with bench() as on:
        clients = [on.listen()[0] for _ in range(200)]

        def take() -> None:
            on.loop.now += 0.006

        clients[0].connection.on_send = take
        on.feed.on_events(run(start(EPOCH), 1))
        top = start("b" * 16, 4)
        on.feed.on_fork(top)
        waiting = asyncio.create_task(on.feed.settled())
        await turns()
        assert not waiting.done()
        on.loop.turn()
        on.loop.turn()
        await waiting
        assert on.feed.cut == top


async def test_settled_does_not_wait_for_what_is_beyond_the_top() -> None:
    async with bench() as on:
        await on.feed.settled(run(start(EPOCH), 3)[2].position)


async def test_settled_ends_with_the_feed() -> None:
    async with bench() as on:
        clients = [on.listen()[0] for _ in range(200)]

        def take() -> None:
            on.loop.now += 0.006

        clients[0].connection.on_send = take
        events = run(start(EPOCH), 2)
        on.feed.on_events(events[:1])
        on.feed.on_events(events[1:])
        waiting = asyncio.create_task(on.feed.settled(events[1].position))
        await turns()
        on.feed.close()
        await waiting


# ---- presence


async def test_presence_changes_pass_in_order_and_repeated_ones_do_not() -> None:
    """A repeated change set the version back, and the next one looked like a gap."""
    async with bench() as on:
        client, subscription = on.listen(watching=True)
        assert on.feed.watch(subscription, 1)
        assert on.feed.on_presence(join(2))
        assert on.feed.on_presence(join(3, "s2"))
        assert on.feed.on_presence(join(2))
        assert on.feed.on_presence(join(4, "s3"))
        on.loop.advance(1)
        assert on.told(client) == ["presence join"] * 3
        assert on.feed.presence_version == 4


async def test_a_gap_in_presence_asks_for_a_sync_until_there_is_one() -> None:
    async with bench() as on:
        client, subscription = on.listen(watching=True)
        on.feed.watch(subscription, 1)
        assert not on.feed.on_presence(join(3))
        assert not on.feed.on_presence(join(4))
        on.loop.advance(1)
        assert on.told(client) == []
        assert on.feed.sync(page(4, "s1", "s2"))
        assert on.feed.on_presence(join(5, "s5"))
        on.loop.advance(1)
        assert on.told(client) == ["presence sync", "presence join"]


async def test_without_watchers_versions_are_followed_and_nothing_is_asked_for() -> None:
    async with bench() as on:
        assert on.feed.on_presence(join(3))
        assert on.feed.on_presence(join(9))
        assert on.feed.presence_version == 9


async def test_a_watcher_told_an_older_set_needs_a_sync_one_told_a_newer_does_not() -> None:
    async with bench() as on:
        on.feed.on_presence(join(3))
        assert not on.feed.watch(on.listen(watching=True)[1], 2)
        assert on.feed.watch(on.listen(watching=True)[1], 3)
        assert on.feed.watch(on.listen(watching=True)[1], 4)


async def test_changes_that_wait_to_be_sent_are_not_told_to_a_newcomer_who_knows_them() -> None:
    async with bench() as on:
        client, subscription = on.listen(watching=True)

        def take() -> None:
            on.loop.now += 0.004

        client.connection.on_send = take
        on.feed.watch(subscription, 0)
        on.feed.on_presence(join(1))
        on.feed.on_presence(join(2, "s2"))
        newcomer, watching = on.listen(watching=True)
        assert on.feed.watch(watching, 2)
        on.feed.on_presence(join(3, "s3"))
        on.loop.advance(1)
        assert on.told(client) == ["presence join"] * 3
        assert on.told(newcomer) == ["presence join"]


async def test_a_detached_watcher_hears_nothing_more() -> None:
    async with bench() as on:
        client, subscription = on.listen(watching=True)
        on.feed.watch(subscription, 0)
        on.feed.detach(subscription)
        on.feed.on_presence(join(1))
        on.feed.on_events(run(start(EPOCH), 1))
        on.loop.advance(1)
        assert on.told(client) == []
        assert not on.feed.fanout.audiences
        assert not on.feed.presence.audiences


async def test_a_sync_tells_when_it_is_not_the_whole_set() -> None:
    async with bench() as on:
        client, subscription = on.listen(watching=True)
        on.feed.watch(subscription, 0)
        on.feed.sync(Members((Member("s1", "u1"),), 2, 5, "cursor"))
        on.loop.advance(1)
        (sync,) = client.connection.messages()
        assert sync["more"] is True
        assert [member["user"] for member in sync["members"]] == ["u1"]
