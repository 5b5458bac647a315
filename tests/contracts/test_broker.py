"""What any broker must do: the sentences of `Broker`, and the rules of delivery that it bears."""

import asyncio
from hashlib import sha1

import pytest

from broker_rig import RIG_PARAMS, OpenRig, Rig, accepted, draft, drafts, ids
from config.rules import ChannelRule
from pubsub.broker import History
from pubsub.errors import BrokerUnavailable, TooManyChannels
from pubsub.event import Draft, Event, Published
from pubsub.position import Position, start


@pytest.fixture(params=RIG_PARAMS)
def open_rig(request: pytest.FixtureRequest) -> OpenRig:
    rig: OpenRig = request.param
    return rig


def rule(match: str = ">", *, size: int = 500, ttl_s: float = 300.0) -> ChannelRule:
    return ChannelRule(match=match, history_size=size, history_ttl_s=ttl_s)


async def history(rig: Rig, channel: str = "a.b", limit: int = 1_000, after: int = 0) -> History:
    found = await rig.broker.history(channel, after=after, limit=limit)
    assert found is not None
    return found


def assert_chained(before: Position, events: list[Event]) -> None:
    """Assert that events follow each other and a position, in one epoch."""
    for event in events:
        assert event.before() == before
        assert event.prev == before.check
        before = event.position


# ---- publish


async def test_answers_stand_in_the_order_of_the_drafts(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        batch = [draft("1", "a"), draft("2", "b"), draft("3", "b"), draft("4", "a")]
        answers = await rig.publish(*batch)
        assert [(a.channel, a.id, a.position.offset) for a in answers] == [
            ("a", "1", 1),
            ("b", "2", 1),
            ("b", "3", 2),
            ("a", "4", 2),
        ]
        assert not any(answer.duplicate for answer in answers)


async def test_publishing_nothing_answers_nothing(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        assert await rig.publish() == []


async def test_an_event_keeps_all_that_its_draft_said(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        await rig.broker.subscribe("a.b")
        said = Draft("a.b", "id", "n", b'{"e":"\xc3\xa9"}', {"k": "v"}, "user", "session")
        plain = Draft("a.b", "id2", "n", b"null")
        await rig.publish(said, plain)
        stored = list((await history(rig)).events)
        assert stored == rig.notes.events("a.b")
        for event, asked in zip(stored, (said, plain), strict=True):
            assert (event.channel, event.id, event.name) == (asked.channel, asked.id, asked.name)
            assert (event.data, event.tags) == (asked.data, asked.tags)
            assert (event.user, event.exclude) == (asked.user, asked.exclude)


async def test_what_is_acknowledged_is_what_the_sink_hears(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        top = await rig.broker.subscribe("a.b")
        answers = await rig.publish(*drafts("x", 3))
        answers += await rig.publish(draft("x2"), draft("x4"))
        heard = rig.notes.events("a.b")
        told = [(a.position, a.id) for a in answers if not a.duplicate]
        assert [(event.position, event.id) for event in heard] == told
        assert_chained(top, heard)


async def test_consecutive_events_of_a_channel_reach_the_sink_together(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        for channel in ("a", "b"):
            await rig.broker.subscribe(channel)
        await rig.publish(*drafts("x", 3, "a"), draft("y", "b"), draft("z", "c"))
        heard = [
            (channel, ids(what)) for _, channel, what in rig.notes.calls if isinstance(what, list)
        ]
        assert heard == [("a", ["x1", "x2", "x3"]), ("b", ["y"])]


async def test_an_event_fails_alone(open_rig: OpenRig) -> None:
    async with open_rig(max_channels=1) as rig:
        answers = await rig.broker.publish(
            [draft("1", "a"), draft("2", "b"), draft("3", "b"), draft("4", "a")]
        )
        assert [isinstance(answer, TooManyChannels) for answer in answers] == [
            False,
            True,
            True,
            False,
        ]
        assert accepted(answers[3]).position.offset == 2
        assert await rig.broker.top("b") is None


async def test_concurrent_publishes_form_one_chain(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        top = await rig.broker.subscribe("a.b")
        async with rig.settle():
            rounds = [rig.broker.publish(drafts(f"{n}-", 3)) for n in range(5)]
            answers = await asyncio.gather(*rounds)
        heard = rig.notes.events("a.b")
        assert_chained(top, heard)
        given = {accepted(answer).position for each in answers for answer in each}
        assert given == {event.position for event in heard}
        for each in answers:
            offsets = [accepted(answer).position.offset for answer in each]
            assert offsets == sorted(offsets)


# ---- positions: rules 1, 5 and 7


async def test_rule_1_the_check_is_chained_over_all_ids(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        top = await rig.broker.subscribe("a.b")
        assert top == start(top.epoch)
        check = top.epoch
        for answer in await rig.publish(*drafts("x", 3)):
            check = sha1((check + answer.id).encode()).hexdigest()[:16]
            assert answer.position == Position(top.epoch, answer.position.offset, check)
        assert await rig.broker.top("a.b") == answer.position


async def test_rule_1_histories_that_differ_before_n_differ_at_n(open_rig: OpenRig) -> None:
    """A fail-over gave the same offsets to other events, and nobody could tell."""
    async with open_rig() as rig:
        one = (await rig.publish(draft("1", "a"), draft("2", "a"), draft("3", "a")))[-1]
        other = (await rig.publish(draft("1", "b"), draft("x", "b"), draft("3", "b")))[-1]
        assert one.position.offset == other.position.offset
        assert one.position.check != other.position.check


async def test_rule_1_every_stored_event_carries_its_check(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        top = await rig.broker.subscribe("a.b")
        await rig.publish(*drafts("x", 4))
        found = await history(rig)
        assert_chained(top, list(found.events))
        assert found.events[-1].position == found.top


async def test_rule_5_the_first_subscriber_makes_the_record(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        assert await rig.broker.top("a.b") is None
        top = await rig.broker.subscribe("a.b")
        assert top.offset == 0
        assert await rig.broker.top("a.b") == top
        (answer,) = await rig.publish(draft("x"))
        assert (answer.position.epoch, answer.position.offset) == (top.epoch, 1)


async def test_rule_7_times_are_the_clock_in_ms(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        before = int(rig.clock.wall() * 1000)
        await rig.publish(draft("x"))
        await rig.advance(1.5)
        await rig.publish(draft("y"))
        times = [event.time for event in (await history(rig)).events]
        assert times == [before, before + 1500]


async def test_rule_7_times_never_decrease_within_a_channel(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        await rig.publish(draft("x"))
        rig.clock.wall_s -= 3600
        await rig.publish(draft("y"), draft("z", "other"))
        x, y = (await history(rig)).events
        assert y.time == x.time
        (z,) = (await history(rig, "other")).events
        assert z.time < x.time


async def test_rule_7_a_step_of_the_wall_clock_expires_nothing(open_rig: OpenRig) -> None:
    """Nor does a step back make anything expire where there is no other clock, as in Redis."""
    async with open_rig() as rig:
        await rig.publish(draft("x"))
        rig.clock.wall_s += -86_400 if rig.one_clock else 86_400
        await rig.tidy()
        assert ids((await history(rig)).events) == ["x"]
        assert (await rig.publish(draft("x")))[0].duplicate


# ---- idempotency: rule 17


async def test_rule_17_a_duplicate_answers_the_first_position(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        await rig.broker.subscribe("a.b")
        (first,) = await rig.publish(draft("x"))
        await rig.publish(draft("y"))
        (again,) = await rig.publish(draft("x", data=b"2"))
        assert again == Published("a.b", first.position, "x", duplicate=True)


async def test_rule_17_a_duplicate_writes_nothing(open_rig: OpenRig) -> None:
    async with open_rig(rules=[rule(ttl_s=10)]) as rig:
        await rig.broker.subscribe("a.b")
        await rig.publish(*drafts("x", 2))
        before = await history(rig)
        await rig.advance(6)
        await rig.publish(draft("x1"), draft("x2"))
        assert await history(rig) == before
        assert ids(rig.notes.events("a.b")) == ["x1", "x2"]
        await rig.advance(6)
        assert (await history(rig)).events == ()


async def test_rule_17_a_duplicate_within_one_batch(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        await rig.broker.subscribe("a.b")
        batch = [draft("x"), draft("x"), draft("o", "other"), draft("x"), draft("y")]
        answers = await rig.publish(*batch)
        assert [answer.duplicate for answer in answers] == [False, True, False, True, False]
        assert answers[0].position == answers[1].position == answers[3].position
        assert ids(rig.notes.events("a.b")) == ["x", "y"]


async def test_rule_17_an_id_is_remembered_for_the_window(open_rig: OpenRig) -> None:
    """Whenever in the life of its generation the id came."""
    for wait_s in (0.0, 1.0, 150.0, 299.0, 301.0):
        async with open_rig(idempotency_window_s=300) as rig:
            await rig.publish(draft("early"))
            await rig.advance(wait_s)
            (first,) = await rig.publish(draft("x"))
            for step in range(3):
                await rig.advance(99.9)
                await rig.publish(draft(f"y{step}"))
                await rig.tidy()
                (again,) = await rig.publish(draft("x"))
                assert again == Published("a.b", first.position, "x", duplicate=True)


async def test_rule_17_an_id_is_free_after_two_windows(open_rig: OpenRig) -> None:
    async with open_rig(idempotency_window_s=300) as rig:
        await rig.publish(draft("x"))
        await rig.advance(601)
        (again,) = await rig.publish(draft("x"))
        assert (again.duplicate, again.position.offset) == (False, 2)


async def test_rule_17_an_id_outlives_its_event(open_rig: OpenRig) -> None:
    async with open_rig(rules=[rule(size=2)]) as rig:
        (first,) = await rig.publish(draft("x"))
        await rig.publish(*drafts("y", 5))
        await rig.broker.purge("a.b")
        await rig.broker.contradict("a.b", Position(first.position.epoch, 99, "0" * 16))
        (again,) = await rig.publish(draft("x"))
        assert again == Published("a.b", first.position, "x", duplicate=True)


async def test_rule_17_an_id_belongs_to_its_channel(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        answers = await rig.publish(draft("x", "a"), draft("x", "b"))
        assert [answer.duplicate for answer in answers] == [False, False]


async def test_rule_17_calling_again_with_the_same_drafts_is_safe(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        batch = [*drafts("x", 3, "a"), *drafts("x", 3, "b")]
        first = await rig.publish(*batch[:4])
        again = await rig.publish(*batch)
        assert [answer.position for answer in again[:4]] == [a.position for a in first]
        assert [answer.duplicate for answer in again] == [True] * 4 + [False] * 2


# ---- subscribe, unsubscribe, top


async def test_only_subscribed_channels_reach_the_sink(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        await rig.publish(draft("before"))
        top = await rig.broker.subscribe("a.b")
        (answer,) = await rig.publish(draft("x"))
        await rig.publish(draft("other", "a.c"))
        await rig.broker.unsubscribe("a.b")
        await rig.publish(draft("after"))
        await rig.broker.purge("a.b")
        await rig.broker.contradict("a.b", Position(top.epoch, 99, "0" * 16))
        assert [(kind, channel) for kind, channel, _ in rig.notes.calls] == [("events", "a.b")]
        (event,) = rig.notes.events("a.b")
        assert event.before() == top
        assert event.position == answer.position


async def test_subscribing_twice_delivers_once(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        top = await rig.broker.subscribe("a.b")
        assert await rig.broker.subscribe("a.b") == top
        await rig.publish(draft("x"))
        assert ids(rig.notes.events("a.b")) == ["x"]


async def test_unsubscribing_from_the_unknown_is_nothing(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        await rig.broker.unsubscribe("a.b")
        assert await rig.broker.top("a.b") is None


async def test_subscribe_raises_at_the_bound_of_channels(open_rig: OpenRig) -> None:
    async with open_rig(max_channels=1) as rig:
        await rig.broker.subscribe("a")
        with pytest.raises(TooManyChannels):
            await rig.broker.subscribe("b")
        with pytest.raises(TooManyChannels):
            await rig.broker.contradict("b", Position("0" * 16, 1, "1" * 16))
        assert (await rig.broker.subscribe("a")).offset == 0


# ---- history


async def test_history_of_the_unknown_is_none(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        assert await rig.broker.history("a.b", limit=10) is None


@pytest.mark.parametrize(
    ("after", "before", "limit", "newest", "expected"),
    [
        (0, None, 100, False, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (0, None, 3, False, [1, 2, 3]),
        (0, None, 3, True, [7, 8, 9]),
        (4, None, 3, False, [5, 6, 7]),
        (4, 8, 100, False, [5, 6, 7]),
        (4, 8, 2, False, [5, 6]),
        (4, 8, 2, True, [6, 7]),
        (9, None, 10, False, []),
        (0, 1, 10, True, []),
        (7, 3, 10, False, []),
        (50, 90, 10, False, []),
        (0, 90, 1, True, [9]),
        (0, None, 0, False, []),
        (0, None, 0, True, []),
    ],
)
async def test_history_shows_a_range(
    open_rig: OpenRig,
    after: int,
    before: int | None,
    limit: int,
    newest: bool,
    expected: list[int],
) -> None:
    async with open_rig() as rig:
        await rig.publish(*drafts("x", 9))
        found = await rig.broker.history(
            "a.b", after=after, before=before, limit=limit, newest=newest
        )
        assert found is not None
        assert [event.position.offset for event in found.events] == expected
        assert (found.top.offset, found.floor) == (9, 0)


async def test_history_keeps_as_many_as_the_rule_says(open_rig: OpenRig) -> None:
    async with open_rig(rules=[rule("small.*", size=3), rule("none.*", size=0)]) as rig:
        for number in range(1, 8):
            for channel in ("small.a", "none.a"):
                await rig.publish(draft(str(number), channel))
            kept = ids((await history(rig, "small.a")).events)
            assert kept == [str(n) for n in range(max(1, number - 2), number + 1)]
        found = await history(rig, "none.a")
        assert (found.events, found.top.offset) == ((), 7)
        await rig.publish(*drafts("y", 5, "small.a"))
        assert ids((await history(rig, "small.a")).events) == ["y3", "y4", "y5"]


async def test_history_ends_some_time_after_the_last_event(open_rig: OpenRig) -> None:
    async with open_rig(rules=[rule(ttl_s=10)]) as rig:
        await rig.publish(draft("x"))
        await rig.advance(9)
        await rig.publish(draft("y"))
        await rig.advance(9)
        assert ids((await history(rig)).events) == ["x", "y"]
        await rig.advance(1)
        found = await history(rig)
        assert (found.events, found.top.offset, found.floor) == ((), 2, 0)
        await rig.publish(draft("z"))
        assert ids((await history(rig)).events) == ["z"]


async def test_a_time_of_zero_keeps_nothing(open_rig: OpenRig) -> None:
    async with open_rig(rules=[rule(ttl_s=0)]) as rig:
        await rig.broker.subscribe("a.b")
        await rig.publish(draft("x"))
        assert (await history(rig)).events == ()
        assert ids(rig.notes.events("a.b")) == ["x"]


# ---- records: rule 4


async def test_rule_4_a_position_outlives_the_events(open_rig: OpenRig) -> None:
    async with open_rig(rules=[rule(ttl_s=10)], position_ttl_s=1_000) as rig:
        (answer,) = await rig.publish(draft("x"))
        await rig.advance(10 + 999)
        await rig.tidy()
        assert await rig.broker.top("a.b") == answer.position
        await rig.advance(1)
        await rig.tidy()
        assert await rig.broker.top("a.b") is None
        (later,) = await rig.publish(draft("y"))
        assert later.position.epoch != answer.position.epoch


async def test_rule_4_a_subscribed_channel_never_goes(open_rig: OpenRig) -> None:
    async with open_rig(rules=[rule(ttl_s=10)], position_ttl_s=1_000) as rig:
        top = await rig.broker.subscribe("a.b")
        for _ in range(3):
            await rig.advance(1_500)
            await rig.tidy()
        assert await rig.broker.top("a.b") == top
        await rig.broker.unsubscribe("a.b")
        await rig.advance(999)
        await rig.tidy()
        assert await rig.broker.top("a.b") == top
        await rig.advance(1)
        await rig.tidy()
        assert await rig.broker.top("a.b") is None


async def test_rule_4_a_purge_or_a_fork_begins_the_time_anew(open_rig: OpenRig) -> None:
    """Subscribers may just have been told of that position."""
    async with open_rig(rules=[rule(size=0)], position_ttl_s=1_000) as rig:
        top = (await rig.publish(draft("x")))[0].position
        await rig.advance(900)
        assert await rig.broker.purge("a.b") == top
        await rig.advance(900)
        await rig.tidy()
        fork = await rig.broker.contradict("a.b", Position(top.epoch, 5, "0" * 16))
        assert fork.offset == 5
        await rig.advance(900)
        await rig.tidy()
        assert await rig.broker.top("a.b") == fork
        await rig.advance(100)
        await rig.tidy()
        assert await rig.broker.top("a.b") is None


async def test_rule_4_evidence_makes_a_missing_record_anew_above_it(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        evidence = Position("0123456789abcdef", 41, "fedcba9876543210")
        top = await rig.broker.contradict("a.b", evidence)
        assert top == start(top.epoch, 41)
        assert top.epoch != evidence.epoch
        assert await rig.broker.top("a.b") == top
        (answer,) = await rig.publish(draft("x"))
        assert (answer.position.epoch, answer.position.offset) == (top.epoch, 42)


# ---- forks: rule 3


async def test_rule_3_another_check_at_an_offset_is_a_fork(open_rig: OpenRig) -> None:
    for offset in (1, 2, 3):
        async with open_rig() as rig:
            await rig.broker.subscribe("a.b")
            before = (await rig.publish(*drafts("x", 3)))[-1].position
            evidence = Position(before.epoch, offset, "0" * 16)
            async with rig.settle():
                top = await rig.broker.contradict("a.b", evidence)
            assert top == start(top.epoch, 3)
            assert top.epoch != before.epoch
            assert rig.notes.calls[-1] == ("fork", "a.b", top)


async def test_rule_3_a_top_below_the_evidence_is_a_fork(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        await rig.broker.subscribe("a.b")
        before = (await rig.publish(*drafts("x", 3)))[-1].position
        async with rig.settle():
            top = await rig.broker.contradict("a.b", Position(before.epoch, 8, "0" * 16))
        assert top == start(top.epoch, 8)
        assert top.epoch != before.epoch
        assert rig.notes.calls[-1] == ("fork", "a.b", top)


async def test_rule_3_only_the_current_epoch_can_be_contradicted(open_rig: OpenRig) -> None:
    """Two nodes that see the same fork report it both; the second must not make another."""
    async with open_rig() as rig:
        await rig.broker.subscribe("a.b")
        before = (await rig.publish(*drafts("x", 3)))[-1].position
        evidence = Position(before.epoch, 8, "0" * 16)
        async with rig.settle():
            top = await rig.broker.contradict("a.b", evidence)
            assert await rig.broker.contradict("a.b", evidence) == top
        assert rig.notes.kinds("a.b") == ["events", "fork"]


async def test_rule_3_evidence_that_agrees_changes_nothing(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        zero = await rig.broker.subscribe("a.b")
        assert await rig.broker.contradict("a.b", zero) == zero
        answers = await rig.publish(*drafts("x", 3))
        top = answers[-1].position
        for evidence in (zero, *(answer.position for answer in answers)):
            assert await rig.broker.contradict("a.b", evidence) == top
        assert rig.notes.kinds("a.b") == ["events"]


async def test_rule_3_evidence_where_nothing_is_kept_changes_nothing(open_rig: OpenRig) -> None:
    async with open_rig(rules=[rule(size=2)]) as rig:
        top = (await rig.publish(*drafts("x", 9)))[-1].position
        assert await rig.broker.contradict("a.b", Position(top.epoch, 2, "0" * 16)) == top


async def test_rule_3_offsets_go_on_and_earlier_history_stays(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        await rig.broker.subscribe("a.b")
        before = (await rig.publish(*drafts("x", 3)))[-1].position
        async with rig.settle():
            top = await rig.broker.contradict("a.b", Position(before.epoch, 5, "0" * 16))
        answers = await rig.publish(*drafts("y", 2))
        found = await history(rig)
        assert [event.position.offset for event in found.events] == [1, 2, 3, 6, 7]
        assert_chained(top, list(found.events[3:]))
        assert found.top == answers[-1].position
        assert rig.notes.kinds("a.b") == ["events", "fork", "events"]


async def test_rule_3_the_start_of_the_new_epoch_contradicts_nothing(open_rig: OpenRig) -> None:
    """It has the offset of the last event before it, which must not be taken for it."""
    async with open_rig() as rig:
        before = (await rig.publish(*drafts("x", 3)))[-1].position
        top = await rig.broker.contradict("a.b", Position(before.epoch, 1, "0" * 16))
        assert top.offset == before.offset
        assert await rig.broker.contradict("a.b", top) == top
        (answer,) = await rig.publish(draft("y"))
        assert await rig.broker.contradict("a.b", top) == answer.position
        wrong = Position(top.epoch, top.offset, "0" * 16)
        assert (await rig.broker.contradict("a.b", wrong)).epoch != top.epoch


# ---- purge: rule 20


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


# ---- the list of channels


async def names(rig: Rig, prefix: str = "", after: str = "", limit: int = 1_000) -> list[str]:
    states = await rig.broker.channels(prefix=prefix, after=after, limit=limit)
    for state in states:
        assert state.top == await rig.broker.top(state.channel)
    return [state.channel for state in states]


async def test_channels_are_listed_by_name_in_pages(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        every = ["Z", "a", "a.1", "a.10", "a.2", "a.b.c", "ab", "b"]
        await rig.publish(*[draft("x", channel) for channel in reversed(every)])
        assert await names(rig) == every
        inside = ["a.1", "a.10", "a.2", "a.b.c"]
        assert await names(rig, prefix="a.") == inside
        paged: list[str] = []
        while page := await names(rig, "a.", paged[-1] if paged else "", limit=3):
            assert len(page) == 3 or paged
            paged += page
        assert paged == inside
        assert await names(rig, prefix="a.", after="a.15") == ["a.2", "a.b.c"]
        assert await names(rig, prefix="a.", after="b") == []
        assert await names(rig, prefix="zz") == []
        assert await names(rig, limit=0) == []


async def test_active_is_what_keeps_events_or_is_subscribed(open_rig: OpenRig) -> None:
    async with open_rig(rules=[rule("none.*", size=0), rule(ttl_s=10)]) as rig:
        await rig.publish(draft("x", "kept"), draft("x", "none.a"), draft("x", "purged"))
        await rig.broker.subscribe("heard")
        await rig.broker.subscribe("left")
        await rig.broker.unsubscribe("left")
        await rig.broker.purge("purged")
        await rig.broker.contradict("forked", Position("0" * 16, 4, "1" * 16))
        assert await names(rig) == ["heard", "kept"]
        await rig.advance(10)
        assert await names(rig) == ["heard"]
        await rig.publish(draft("y", "kept"))
        assert await names(rig) == ["heard", "kept"]
        await rig.broker.unsubscribe("heard")
        assert await names(rig) == ["kept"]


# ---- close


async def test_close_may_be_called_twice_and_ends_all_calls(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        await rig.publish(draft("x"))
        await rig.broker.close()
        await rig.broker.close()
        with pytest.raises(BrokerUnavailable):
            await rig.broker.top("a.b")
        with pytest.raises(BrokerUnavailable):
            await rig.broker.publish([draft("y")])
