"""Sending to all sessions of a feed: joined, self-paced, and fair to the loop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from delivery_rig import (
    CHANNEL,
    Client,
    DeliveryRig,
    HandLoop,
    LineWire,
    as_loop,
    open_delivery_rig,
    turns,
)
from pubsub.event import Event
from pubsub.position import Position, start
from server.connection import Wire
from server.fanout import Fanout, Turn
from server.feed import ResetNotice, encode_item
from server.subscription import Subscription

# As many as are sent between two looks at the clock.
SLICE = 128


def event(number: int, exclude: str | None = None) -> Event:
    position = Position("a" * 16, number, f"{number:016x}")
    return Event(CHANNEL, position, "", f"e{number}", "message", b"1", 1, {}, None, exclude)


@dataclass(slots=True)
class Bench:
    """A fan-out on a loop that is turned by hand."""

    rig: DeliveryRig
    loop: HandLoop = field(default_factory=HandLoop)
    begun: list[list[str]] = field(default_factory=list)
    counted: bool = True
    fanout: Fanout[Event | ResetNotice] = field(init=False)

    def __post_init__(self) -> None:
        self.fanout = Fanout(
            Turn(as_loop(self.loop)),
            self.rig.node.metrics,
            encode_item,
            self._on_begin,
            counted=self.counted,
        )

    def _on_begin(self, items: Sequence[Event | ResetNotice]) -> None:
        self.begun.append([item.id if type(item) is Event else "reset" for item in items])

    def listen(self, wire: LineWire | None = None) -> tuple[Client, Subscription]:
        client = self.rig.session(wire=wire)
        client.connection.sent.clear()
        subscription = Subscription(client.session, CHANNEL)
        subscription.live = True
        self.fanout.add(subscription)
        return client, subscription

    def crowd(self, count: int) -> list[Client]:
        return [self.listen()[0] for _ in range(count)]

    def slow_sends(self, client: Client, seconds: float) -> None:
        """Let each send to this client take a while."""

        def take() -> None:
            self.loop.now += seconds

        client.connection.on_send = take

    def go_on(self) -> None:
        """Let a flush that gave way go on: others come first, in a turn of their own."""
        self.loop.turn()
        self.loop.turn()

    def behind(self) -> bool:
        return self.fanout.behind

    def full(self) -> bool:
        return self.fanout.full

    def finish(self) -> None:
        self.loop.advance(60)


@asynccontextmanager
async def bench(*, counted: bool = True) -> AsyncIterator[Bench]:
    async with open_delivery_rig() as rig:
        yield Bench(rig, counted=counted)


async def test_an_idle_fanout_sends_at_once_with_one_call_per_session() -> None:
    async with bench() as on:
        clients = on.crowd(3)
        on.fanout.push([])
        on.fanout.push([event(1), event(2)])
        for client in clients:
            assert client.ids() == ["e1", "e2"]
            assert len(client.connection.sent) == 1
        assert on.begun == [["e1", "e2"]]
        on.loop.turn()
        assert on.loop.waiting() == 0


async def test_frames_are_built_once_for_each_wire() -> None:
    async with bench() as on:
        wires = [LineWire(), LineWire()]
        clients = [on.listen(wire)[0] for wire in wires for _ in range(5)]
        before = [wire.encoded for wire in wires]
        on.fanout.push([event(1), event(2)])
        assert [wire.encoded for wire in wires] == [count + 2 for count in before]
        assert all(client.ids() == ["e1", "e2"] for client in clients)
        assert clients[0].connection.sent[0] is clients[4].connection.sent[0]


async def test_what_comes_in_the_turn_of_a_flush_is_joined_at_its_end() -> None:
    async with bench() as on:
        (client,) = on.crowd(1)
        on.slow_sends(client, 0.004)
        on.fanout.push([event(1)])
        # Within a quarter of 4 ms after its end.
        on.loop.now += 0.0009
        on.fanout.push([event(2)])
        on.fanout.push([event(3)])
        assert on.begun == [["e1"]]
        on.loop.turn()
        assert on.begun == [["e1"], ["e2", "e3"]]
        assert client.ids() == ["e1", "e2", "e3"]
        assert len(client.connection.sent) == 2


async def test_under_full_load_items_wait_as_long_as_the_last_flush_took() -> None:
    async with bench() as on:
        (client,) = on.crowd(1)
        on.slow_sends(client, 0.004)
        # One item close behind the other; the load is a mean, so this takes a while to show.
        number = 0
        while on.loop.waiting() == 0 or number < 20:
            number += 1
            on.fanout.push([event(number)])
            on.loop.turn()
        begun = len(on.begun)
        on.loop.advance(0.0041)
        assert len(on.begun) == begun + 1
        on.loop.now += 0.0002
        on.fanout.push([event(100)])
        on.loop.advance(0.0035)
        on.fanout.push([event(101)])
        assert len(on.begun) == begun + 1
        on.loop.advance(0.0006)
        assert on.begun[-1] == ["e100", "e101"]


async def test_when_the_load_falls_items_wait_no_longer() -> None:
    """What waits is followed by the next item before it has left: that alone looked like full
    load, for as long as items came in less than two flushes."""
    async with bench() as on:
        (client,) = on.crowd(1)
        on.slow_sends(client, 0.006)
        for number in range(20):
            on.fanout.push([event(number)])
            on.loop.turn()
        assert len(on.begun) < 20, "they wait for each other"
        due = on.loop.now
        for number in range(100, 140):
            # Flushes of what comes now would fill six tenths of the time.
            due += 0.010
            on.loop.advance(max(0.0, due - on.loop.now))
            on.fanout.push([event(number)])
        on.loop.turn()
        assert on.begun[-5:] == [[f"e{number}"] for number in range(135, 140)]


async def test_a_few_items_that_come_closely_by_chance_do_not_wait() -> None:
    """Three quarters of the time are flushes: the earlier rule made every fifth event wait."""
    async with bench() as on:
        (client,) = on.crowd(1)
        on.slow_sends(client, 0.006)
        due = on.loop.now
        for number in range(40):
            # Every 8 ms, every fifth 2 ms late.
            due += 0.008
            on.loop.advance(max(0.0, due + 0.002 * (number % 5 == 4) - on.loop.now))
            on.fanout.push([event(number)])
            on.loop.turn()
            assert on.begun[-1] == [f"e{number}"]


async def test_a_machine_that_is_slow_for_a_while_makes_nobody_wait() -> None:
    """A few long flushes made the next items wait, which then took longer and waited on."""
    async with bench() as on:
        (client,) = on.crowd(1)
        due = on.loop.now
        for number in range(30):
            on.slow_sends(client, 0.0065 if number < 20 else 0.012)
            due += 0.010
            on.loop.advance(max(0.0, due - on.loop.now))
            on.fanout.push([event(number)])
            on.loop.turn()
        assert on.begun == [[f"e{number}"] for number in range(30)]


async def test_an_item_later_than_that_is_sent_at_once() -> None:
    async with bench() as on:
        (client,) = on.crowd(1)
        on.slow_sends(client, 0.004)
        on.fanout.push([event(1)])
        on.loop.now += 0.0011
        on.fanout.push([event(2)])
        assert on.begun == [["e1"], ["e2"]]


async def test_a_long_flush_gives_way_to_others_and_sends_everything() -> None:
    async with bench() as on:
        clients = on.crowd(SLICE * 3)
        on.slow_sends(clients[0], 0.006)
        on.slow_sends(clients[SLICE], 0.006)
        on.fanout.push([event(1)])
        got = [client for client in clients if client.ids()]
        assert got == clients[:SLICE]
        # What comes meanwhile waits and is joined, however often it comes.
        on.fanout.push([event(2)])
        on.fanout.push([event(3)])
        on.go_on()
        assert [client for client in clients if client.ids()] == clients[: 2 * SLICE]
        on.go_on()
        assert all(client.ids() == ["e1"] for client in clients)
        on.finish()
        assert all(client.ids() == ["e1", "e2", "e3"] for client in clients)
        assert on.begun == [["e1"], ["e2", "e3"]]
        assert on.loop.waiting() == 0


async def test_who_attaches_during_a_flush_takes_part_in_later_ones_only() -> None:
    async with bench() as on:
        clients = on.crowd(SLICE * 2)
        on.slow_sends(clients[0], 0.006)
        on.fanout.push([event(1)])
        newcomer, _ = on.listen()
        on.fanout.push([event(2)])
        on.finish()
        assert newcomer.ids() == ["e2"]
        assert clients[-1].ids() == ["e1", "e2"]


async def test_who_ended_during_a_flush_is_skipped_and_the_rest_is_served() -> None:
    async with bench() as on:
        clients = on.crowd(SLICE)
        on.slow_sends(clients[0], 0.006)
        gone, ended = on.listen()
        last, _ = on.listen()
        on.fanout.push([event(1)])
        ended.live = False
        on.fanout.remove(ended)
        on.finish()
        assert gone.ids() == []
        assert last.ids() == ["e1"]


async def test_a_wire_whose_last_session_leaves_during_a_flush_harms_nobody() -> None:
    async with bench() as on:
        clients = on.crowd(SLICE)
        on.slow_sends(clients[0], 0.006)
        other = LineWire()
        alone, subscription = on.listen(other)
        last, _ = on.listen(LineWire())
        on.fanout.push([event(1)])
        subscription.live = False
        on.fanout.remove(subscription)
        assert other not in on.fanout.audiences
        on.finish()
        assert alone.ids() == []
        assert last.ids() == ["e1"]
        on.fanout.push([event(2)])
        on.finish()
        assert other.encoded == 2, "the first event, and `connected` of its session"


async def test_removing_an_ended_subscription_leaves_the_sessions_newer_one() -> None:
    """Places are by session: a late removal took the newer subscription out, which then heard
    nothing."""
    async with bench() as on:
        client, old = on.listen()
        newer = Subscription(client.session, CHANNEL)
        newer.live = True
        on.fanout.add(newer)
        on.fanout.remove(old)
        on.fanout.push([event(1)])
        assert client.ids() == ["e1"]


async def test_hurry_begins_what_waits_and_says_whether_all_has_left() -> None:
    async with bench() as on:
        clients = on.crowd(SLICE * 2)
        on.slow_sends(clients[0], 0.006)
        assert on.fanout.hurry()
        on.fanout.push([event(1)])
        assert not on.fanout.hurry(), "a flush is under way"
        on.fanout.push([event(2)])
        on.go_on()
        assert on.begun == [["e1"]]
        assert not on.fanout.hurry(), "the next one is"
        assert on.begun == [["e1"], ["e2"]]
        on.go_on()
        assert on.fanout.hurry()
        on.finish()
        assert all(client.ids() == ["e1", "e2"] for client in clients)
        assert len(on.begun) == 2


async def test_flushed_waits_for_the_flush_under_way_and_may_be_cancelled() -> None:
    async with bench() as on:
        await on.fanout.flushed()
        clients = on.crowd(SLICE * 2)
        on.slow_sends(clients[0], 0.006)
        on.fanout.push([event(1)])
        waiting = asyncio.create_task(on.fanout.flushed())
        cancelled = asyncio.create_task(on.fanout.flushed())
        await turns()
        cancelled.cancel()
        assert not waiting.done()
        on.go_on()
        await waiting


async def test_close_during_a_flush_drops_the_rest_and_wakes_who_waits() -> None:
    async with bench() as on:
        clients = on.crowd(SLICE * 2)
        on.slow_sends(clients[0], 0.006)
        on.fanout.push([event(1)])
        on.fanout.push([event(2)])
        waiting = asyncio.create_task(on.fanout.flushed())
        await turns()
        on.fanout.close()
        on.fanout.close()
        await waiting
        on.finish()
        assert clients[0].ids() == ["e1"]
        assert clients[-1].ids() == []
        assert on.loop.waiting() == 0


async def test_close_from_within_a_send_ends_the_flush_quietly() -> None:
    async with bench() as on:
        clients = on.crowd(SLICE * 2)

        def close() -> None:
            on.loop.now += 0.006
            on.fanout.close()

        clients[0].connection.on_send = close
        on.fanout.push([event(1)])
        on.finish()
        assert clients[-1].ids() == []
        assert on.loop.waiting() == 0


async def test_close_forgets_what_waits_for_its_time() -> None:
    async with bench() as on:
        (client,) = on.crowd(1)
        on.slow_sends(client, 0.004)
        on.fanout.push([event(1)])
        on.loop.turn()
        on.fanout.push([event(2)])
        assert on.loop.waiting() == 1
        on.fanout.close()
        on.finish()
        assert client.ids() == ["e1"]
        assert on.loop.waiting() == 0


async def test_who_published_without_echo_gets_the_others_of_a_joined_flush() -> None:
    async with bench() as on:
        one, other, third = on.crowd(3)
        ids = [client.session.id for client in (one, other)]
        on.fanout.push([event(1, ids[0]), event(2), event(3, ids[1]), event(4, "elsewhere")])
        assert one.ids() == ["e2", "e3", "e4"]
        assert other.ids() == ["e1", "e2", "e4"]
        assert third.ids() == ["e1", "e2", "e3", "e4"]
        on.loop.advance(1)
        on.fanout.push([event(5, ids[0])])
        assert one.ids() == ["e2", "e3", "e4"]
        assert other.ids() == ["e1", "e2", "e4", "e5"]


async def test_who_published_without_echo_and_ended_is_skipped() -> None:
    async with bench() as on:
        client, subscription = on.listen()
        subscription.live = False
        on.fanout.push([event(1, client.session.id), event(2)])
        assert client.ids() == []


async def test_a_reset_stands_in_its_place_among_the_events() -> None:
    async with bench() as on:
        (client,) = on.crowd(1)
        notice = ResetNotice(CHANNEL, start("b" * 16, 1))
        on.fanout.push([event(1), notice, event(2)])
        assert [m["type"] for m in client.connection.messages()] == ["event", "reset", "event"]
        assert on.begun == [["e1", "reset", "e2"]]


async def test_an_individual_wire_gets_items_and_frames_to_compose_from() -> None:
    async with bench() as on:
        client, _ = on.listen(LineWire(individual=True))
        on.fanout.push([event(1), event(2)])
        assert client.ids() == ["e1", "e2"]


async def test_nobody_listening_costs_no_frame_and_still_moves_the_cut() -> None:
    async with bench() as on:
        encoded: list[object] = []

        def encode(_wire: Wire, item: object) -> bytes:
            encoded.append(item)
            return b""

        begun: list[object] = []
        fanout: Fanout[Event] = Fanout(
            Turn(as_loop(on.loop)), on.rig.node.metrics, encode, begun.extend
        )
        fanout.push([event(1)])
        assert encoded == []
        assert begun == [event(1)]


async def test_metrics_count_events_once_per_session_and_only_where_they_are_events() -> None:
    checks: list[tuple[bool, Callable[[int], bool]]] = [
        (True, lambda events: events == 6),
        (False, lambda events: events == 0),
    ]
    for counted, right in checks:
        async with bench(counted=counted) as on:
            on.crowd(3)
            metrics = on.rig.node.metrics
            on.fanout.push([event(1), event(2)])
            assert right(metrics.events_out)
            assert metrics.bytes_out > 0


async def test_a_flush_joins_no_more_than_a_session_may_have_unsent() -> None:
    """A burst of large events in one call would end every healthy session as slow."""
    async with bench() as on:
        (client,) = on.crowd(1)
        on.slow_sends(client, 0.001)
        large = [replace(event(n), data=b'"%s"' % (b"x" * 65_000)) for n in range(1, 11)]
        on.fanout.push(large)
        assert on.begun == [["e1", "e2", "e3", "e4"]]
        on.finish()
        assert [len(items) for items in on.begun] == [4, 4, 2]
        assert client.ids() == [f"e{n}" for n in range(1, 11)]
        # One that is larger than that alone is sent alone.
        on.fanout.push([replace(event(11), data=b'"%s"' % (b"x" * 300_000)), event(12)])
        on.finish()
        assert on.begun[3:] == [["e11"], ["e12"]]


async def test_a_frame_that_cannot_be_built_does_not_silence_the_feed() -> None:
    async with bench() as on:
        wire = BrokenWire()
        client, _subscription = on.listen(wire)
        with pytest.raises(RuntimeError):
            on.fanout.push([event(1)])
        on.loop.now += 1
        on.fanout.push([event(2)])
        assert client.ids() == ["e2"]


class BrokenWire(LineWire):
    """A wire with a bug that one event shows."""

    def event(self, event: Event, skipped: int = 0) -> bytes:
        if event.id == "e1":
            raise RuntimeError("a bug")
        return super().event(event, skipped)


async def test_publishers_are_to_wait_while_much_is_pending() -> None:
    async with bench() as on:
        clients = on.crowd(SLICE * 2)
        on.slow_sends(clients[0], 0.006)
        large = replace(event(1), data=b'"%s"' % (b"x" * 100_000))
        on.fanout.push([large])
        assert not on.behind(), "it is being sent"
        on.fanout.push([large])
        assert not on.behind(), "that leaves with the next flush"
        on.fanout.push([large, large])
        assert on.behind()
        assert not on.full()
        waiting = asyncio.create_task(on.fanout.eased())
        await turns()
        assert not waiting.done()
        on.go_on()
        await turns()
        assert waiting.done(), "what is pending now fits into one flush"
        on.finish()
        assert not on.behind()
        assert all(len(client.ids()) == 4 for client in clients)


async def test_for_very_many_sessions_publishers_wait_for_less() -> None:
    async with bench() as on:
        on.slow_sends(on.crowd(SLICE * 2)[0], 0.006)
        on.fanout.push([event(0)])
        on.fanout.push([replace(event(1), data=b'"%s"' % (b"x" * 30_000))])
        assert not on.behind()
        on.crowd(3_000)
        assert on.behind()


async def test_who_waits_for_a_fanout_that_closes_waits_no_longer() -> None:
    async with bench() as on:
        on.slow_sends(on.crowd(SLICE * 2)[0], 0.006)
        for _ in range(2):
            on.fanout.push([replace(event(1), data=b'"%s"' % (b"x" * 300_000))])
        waiting = asyncio.create_task(on.fanout.eased())
        await turns()
        assert not waiting.done()
        on.fanout.close()
        await turns()
        assert waiting.done()


async def test_what_is_pending_has_a_bound() -> None:
    async with bench() as on:
        on.slow_sends(on.crowd(SLICE * 2)[0], 0.006)
        on.fanout.push([event(1)])
        large = replace(event(1), data=b'"%s"' % (b"x" * 1_000_000))
        for _ in range(8):
            assert not on.full()
            on.fanout.push([large])
        on.fanout.push([large])
        assert on.full()
        on.finish()
        assert not on.full()


async def test_flushes_of_many_feeds_share_the_time_that_they_hold_the_loop() -> None:
    """Each held the loop for its own 5 ms: twenty channels that were published to in one array
    held it for 100 ms."""
    async with bench() as on:
        turn, begun = Turn(as_loop(on.loop)), list[str]()
        fanouts = []
        for _ in range(20):
            fanout: Fanout[Event | ResetNotice] = Fanout(
                turn, on.rig.node.metrics, encode_item, lambda items: begun.append("")
            )
            client = on.rig.session()
            subscription = Subscription(client.session, CHANNEL)
            subscription.live = True
            on.slow_sends(client, 0.002)
            fanout.add(subscription)
            fanouts.append((fanout, client))
        started = on.loop.now
        for fanout, _client in fanouts:
            fanout.push([event(1)])
        assert len(begun) == 20
        turns = 0
        while any("e1" not in client.ids() for _fanout, client in fanouts):
            # Looked at after each send: that of the third ends at 6 ms.
            assert on.loop.now - started <= 0.0061
            started = on.loop.now
            on.loop.turn()
            turns += 1
        assert turns == 12, "every second one is for others alone"
        on.finish()
        assert on.loop.waiting() == 0


async def test_others_come_first_who_are_read_in_the_turn_after_a_flush_gave_way() -> None:
    """The loop puts what it read behind what was due already: a ping that came while a flush held
    the loop was answered after the next piece of it, 13 ms later."""
    async with bench() as on:
        clients = on.crowd(SLICE * 2)
        on.slow_sends(clients[0], 0.006)
        on.fanout.push([event(1)])
        served: list[int] = []
        on.loop.call_soon(lambda: served.append(sum(bool(each.ids()) for each in clients)))
        on.loop.turn()
        assert served == [SLICE]
        on.loop.turn()
        assert all(each.ids() for each in clients)
