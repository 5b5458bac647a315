"""The memory broker: its bounds, what expires and how it is freed, and rules that change."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker_rig import Clock, Notes, accepted, draft, drafts, ids
from config.rules import ChannelRule, ChannelRules
from pubsub.errors import TooManyChannels
from pubsub.event import Event
from pubsub.memory_broker import MemoryBroker
from pubsub.position import Position

TTL_S = 10.0
POSITION_TTL_S = 100.0


def rules(size: int = 500, ttl_s: float = TTL_S) -> list[ChannelRule]:
    return [ChannelRule(match=">", history_size=size, history_ttl_s=ttl_s)]


class Bench:
    """A broker with short times, and all it stands on."""

    def __init__(
        self, *, size: int = 500, max_channels: int = 0, max_ids: int = 0, window_s: float = 20.0
    ) -> None:
        self.clock = Clock()
        self.rules = ChannelRules(rules(size))
        self.notes = Notes()
        self.broker = MemoryBroker(
            self.rules,
            max_channels=max_channels,
            idempotency_window_s=window_s,
            idempotency_max_ids=max_ids,
            position_ttl_s=POSITION_TTL_S,
            now=self.clock.wall,
            monotonic=self.clock.monotonic,
        )
        self.broker.bind(self.notes)

    async def publish(self, *names: str, channel: str = "a") -> list[Position]:
        answers = await self.broker.publish([draft(name, channel) for name in names])
        return [accepted(answer).position for answer in answers]

    async def kept(self, channel: str = "a") -> list[str]:
        found = await self.broker.history(channel, limit=200_000)
        return [] if found is None else ids(found.events)

    def sweep_all(self, limit: int = 50) -> None:
        while self.broker.sweep(limit) >= limit:
            pass


# ---- bounds


async def test_room_is_made_when_channels_lapse() -> None:
    bench = Bench(max_channels=2)
    await bench.publish("x", channel="a")
    await bench.publish("x", channel="b")
    (refused,) = await bench.broker.publish([draft("x", "c")])
    assert isinstance(refused, TooManyChannels)
    assert str(refused) == "2 channels are kept, as many as allowed"
    bench.clock.advance(TTL_S + POSITION_TTL_S)
    bench.sweep_all()
    await bench.publish("x", channel="c")


async def test_a_bound_of_zero_is_none() -> None:
    bench = Bench(max_channels=0, max_ids=0)
    for number in range(50):
        await bench.publish("x", "y", channel=f"a{number}")
    assert len(await bench.broker.channels(prefix="", after="", limit=100)) == 50
    assert bench.broker.forgotten_early == 0
    assert (await bench.publish("x", channel="a0"))[0].offset == 1


@pytest.mark.expect_log("pubsub.idempotency", "more than 80 event ids")
async def test_the_bound_of_ids_holds_over_all_channels() -> None:
    bench = Bench(max_ids=80)
    for number in range(10):
        await bench.publish(*[f"x{n}" for n in range(10)], channel=f"a{number}")
    assert bench.broker.forgotten_early == 20
    assert (await bench.publish("x0", channel="a9"))[0].offset == 1
    assert (await bench.publish("x0", channel="a0"))[0].offset == 11


# ---- expiry


async def test_one_sweep_does_a_bounded_piece_of_work() -> None:
    bench = Bench()
    for number in range(100):
        await bench.publish("x", channel=f"a{number}")
    assert bench.broker.sweep(10) == 0
    bench.clock.advance(TTL_S)
    # A channel and its event count one each.
    assert [bench.broker.sweep(40) for _ in range(6)] == [40, 40, 40, 40, 40, 0]
    bench.clock.advance(2 * 20.0)
    assert [bench.broker.sweep(60) for _ in range(3)] == [60, 40, 0]
    bench.clock.advance(POSITION_TTL_S)
    assert [bench.broker.sweep(60) for _ in range(3)] == [60, 40, 0]
    assert await bench.broker.top("a0") is None


async def test_a_busy_channel_is_looked_at_once_per_time_to_live() -> None:
    bench = Bench()
    for number in range(int(TTL_S)):
        await bench.publish(f"x{number}")
        assert bench.broker.sweep(10) == 0
        bench.clock.advance(1)
    assert bench.broker.sweep(10) == 1
    assert bench.broker.sweep(10) == 0
    assert len(await bench.kept()) == 10
    bench.clock.advance(TTL_S - 1)
    assert bench.broker.sweep(100) == 11
    assert await bench.kept() == []


async def test_a_big_history_is_freed_in_pieces() -> None:
    bench = Bench(size=100_000, window_s=0.0)
    await bench.broker.publish(drafts("x", 5_000, "a"))
    bench.clock.advance(TTL_S)
    assert await bench.kept() == []
    assert [bench.broker.sweep(2_000) for _ in range(4)] == [2_000, 2_000, 2_000, 2_000]
    bench.sweep_all()
    await bench.publish("y")
    assert await bench.kept() == ["y"]


async def test_a_position_outlives_its_events_from_when_they_expired() -> None:
    """Also if nobody looked for long: the time does not count from when they were found."""
    bench = Bench()
    await bench.publish("x")
    bench.clock.advance(TTL_S + POSITION_TTL_S - 1)
    bench.sweep_all()
    assert await bench.broker.top("a") is not None
    bench.clock.advance(1)
    bench.sweep_all()
    assert await bench.broker.top("a") is None


async def test_use_keeps_a_channel_from_lapsing() -> None:
    bench = Bench()
    await bench.publish("x")
    for number in range(5):
        bench.clock.advance(POSITION_TTL_S)
        bench.sweep_all()
        assert (await bench.publish(f"y{number}"))[0].offset == number + 2


async def test_a_position_lives_as_long_as_the_ids_of_its_channel() -> None:
    """A record that went first took the ids along, and a retry was published again."""
    bench = Bench(window_s=500.0)
    (first,) = await bench.publish("x")
    bench.clock.advance(499)
    bench.sweep_all()
    assert await bench.publish("x") == [first]


async def test_a_listing_hides_what_has_expired_and_cleans_up() -> None:
    bench = Bench()
    for number in range(20):
        await bench.publish("x", channel=f"a{number:02}")
    bench.clock.advance(TTL_S / 2)
    for number in range(10, 20, 2):
        await bench.publish("y", channel=f"a{number:02}")
    bench.clock.advance(TTL_S / 2)
    page = await bench.broker.channels(prefix="", after="", limit=4)
    assert [state.channel for state in page] == ["a10", "a12", "a14", "a16"]
    rest = await bench.broker.channels(prefix="", after="a16", limit=4)
    assert [state.channel for state in rest] == ["a18"]


async def test_a_listing_holds_the_loop_no_longer_than_it_must() -> None:
    """Beyond a thousand expired channels it leaves the rest to the sweep, and shows them."""
    bench = Bench()
    for number in range(1_010):
        await bench.publish("x", channel=f"a{number:04}")
    bench.clock.advance(TTL_S)
    first = await bench.broker.channels(prefix="", after="", limit=4)
    assert [state.channel for state in first] == ["a1000", "a1001", "a1002", "a1003"]
    bench.sweep_all()
    assert await bench.broker.channels(prefix="", after="", limit=4) == []


# ---- rules that change


async def test_a_smaller_history_applies_at_the_next_publish() -> None:
    bench = Bench(size=10)
    await bench.publish(*"abcdefghij")
    bench.rules.replace(rules(3))
    assert len(await bench.kept()) == 10
    await bench.publish("k")
    assert await bench.kept() == ["i", "j", "k"]


async def test_a_history_of_none_after_a_reload_leaves_the_list() -> None:
    bench = Bench()
    await bench.publish("x")
    bench.rules.replace(rules(0))
    assert (await bench.publish("y"))[0].offset == 2
    assert await bench.kept() == []
    assert await bench.broker.channels(prefix="", after="", limit=10) == []
    bench.rules.replace(rules(5))
    await bench.publish("z")
    assert await bench.kept() == ["z"]


async def test_a_shorter_time_applies_at_the_next_publish() -> None:
    bench = Bench()
    await bench.publish("x")
    bench.rules.replace(rules(ttl_s=2))
    await bench.publish("y")
    bench.clock.advance(2)
    # By the sweep alone, without anybody looking: the channel and its two events.
    assert bench.broker.sweep(3) == 3
    bench.rules.replace(rules())
    await bench.publish("z")
    # The entry that the first publish made comes due, and must not be made anew beside the other.
    bench.clock.advance(TTL_S - 2)
    assert bench.broker.sweep(10) == 1
    assert await bench.kept() == ["z"]
    bench.clock.advance(2)
    assert bench.broker.sweep(10) == 2
    assert await bench.kept() == []


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 5, 8, 20, 100]), st.integers(0, 40)),
        min_size=1,
        max_size=12,
    )
)
@example([(20, 21), (100, 1)])
def test_a_reader_sees_no_more_than_the_rule_keeps(steps: list[tuple[int, int]]) -> None:
    """More are held than shown, since they are cut off in strokes."""
    bench, model, count = Bench(), list[str](), 0

    async def body() -> None:
        nonlocal model, count
        for size, events in steps:
            bench.rules.replace(rules(size))
            for batch in ([1] * events, [events])[events % 2]:
                names = [f"x{count + number}" for number in range(batch)]
                count += batch
                await bench.publish(*names)
                if names:
                    model = [*model, *names][-size:] if size else []
                assert await bench.kept() == model

    # A memory broker never waits, so a coroutine of it needs no loop.
    with pytest.raises(StopIteration):
        body().send(None)


async def test_what_is_held_but_not_shown_contradicts_nothing() -> None:
    bench = Bench(size=16)
    top = (await bench.publish(*[f"x{number}" for number in range(18)]))[-1]
    assert len(await bench.kept()) == 16
    assert await bench.broker.contradict("a", Position(top.epoch, 1, "0" * 16)) == top
    assert await bench.broker.contradict("a", Position(top.epoch, 2, "0" * 16)) != top


async def test_a_time_of_zero_holds_nothing_that_had_to_be_freed() -> None:
    bench = Bench()
    bench.rules.replace(rules(ttl_s=0))
    await bench.publish("x", "y")
    assert bench.broker.sweep(10) == 0
    assert await bench.kept() == []


# ---- delivery


async def test_the_sink_is_called_before_the_acknowledgement() -> None:
    bench = Bench()
    await bench.broker.subscribe("a")
    with pytest.raises(StopIteration):
        bench.broker.publish(drafts("x", 2, "a")).send(None)
    assert ids(bench.notes.events("a")) == ["x1", "x2"]


async def test_what_the_sink_was_given_does_not_change() -> None:
    """A feed may keep the very sequence; later events and cuts must not show in it."""
    given: list[Sequence[Event]] = []

    class Keeper(Notes):
        def on_events(self, channel: str, events: Sequence[Event]) -> None:
            given.append(events)

    bench = Bench(size=2)
    bench.broker.bind(Keeper())
    await bench.broker.subscribe("a")
    for name in "xyz":
        await bench.publish(name)
    assert [ids(events) for events in given] == [["x"], ["y"], ["z"]]
    assert await bench.kept() == ["y", "z"]
