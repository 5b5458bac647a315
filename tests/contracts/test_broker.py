"""What any broker must do: the sentences of `Broker`; rules of delivery stand in tests/rules."""

import asyncio

import pytest

from broker_rig import RIG_PARAMS, OpenRig, Rig, accepted, draft, drafts, ids
from pubsub.errors import BrokerUnavailable, TooManyChannels
from pubsub.event import Draft
from pubsub.position import Position
from rule_rig import assert_chained, history, rule


@pytest.fixture(params=RIG_PARAMS)
def open_rig(request: pytest.FixtureRequest) -> OpenRig:
    rig: OpenRig = request.param
    return rig


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
        # Channels are in no order among each other.
        assert sorted(heard) == [("a", ["x1", "x2", "x3"]), ("b", ["y"])]


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
