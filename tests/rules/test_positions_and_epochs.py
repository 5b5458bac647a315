"""Rules 1 to 7, as far as any broker must obey them."""

from hashlib import sha1

from broker_rig import OpenRig, draft, drafts, ids
from pubsub.position import Position, start
from rule_rig import assert_chained, history, rule


async def test_rule_01_the_check_is_chained_over_all_ids(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        top = await rig.broker.subscribe("a.b")
        assert top == start(top.epoch)
        check = top.epoch
        for answer in await rig.publish(*drafts("x", 3)):
            check = sha1((check + answer.id).encode()).hexdigest()[:16]
            assert answer.position == Position(top.epoch, answer.position.offset, check)
        assert await rig.broker.top("a.b") == answer.position


async def test_rule_01_histories_that_differ_before_n_differ_at_n(open_rig: OpenRig) -> None:
    """A fail-over gave the same offsets to other events, and nobody could tell."""
    async with open_rig() as rig:
        one = (await rig.publish(draft("1", "a"), draft("2", "a"), draft("3", "a")))[-1]
        other = (await rig.publish(draft("1", "b"), draft("x", "b"), draft("3", "b")))[-1]
        assert one.position.offset == other.position.offset
        assert one.position.check != other.position.check


async def test_rule_01_every_stored_event_carries_its_check(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        top = await rig.broker.subscribe("a.b")
        await rig.publish(*drafts("x", 4))
        found = await history(rig)
        assert_chained(top, list(found.events))
        assert found.events[-1].position == found.top


async def test_rule_03_another_check_at_an_offset_is_a_fork(open_rig: OpenRig) -> None:
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


async def test_rule_03_a_top_below_the_evidence_is_a_fork(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        await rig.broker.subscribe("a.b")
        before = (await rig.publish(*drafts("x", 3)))[-1].position
        async with rig.settle():
            top = await rig.broker.contradict("a.b", Position(before.epoch, 8, "0" * 16))
        assert top == start(top.epoch, 8)
        assert top.epoch != before.epoch
        assert rig.notes.calls[-1] == ("fork", "a.b", top)


async def test_rule_03_only_the_current_epoch_can_be_contradicted(open_rig: OpenRig) -> None:
    """Two nodes that see the same fork report it both; the second must not make another."""
    async with open_rig() as rig:
        await rig.broker.subscribe("a.b")
        before = (await rig.publish(*drafts("x", 3)))[-1].position
        evidence = Position(before.epoch, 8, "0" * 16)
        async with rig.settle():
            top = await rig.broker.contradict("a.b", evidence)
            assert await rig.broker.contradict("a.b", evidence) == top
        assert rig.notes.kinds("a.b") == ["events", "fork"]


async def test_rule_03_evidence_that_agrees_changes_nothing(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        zero = await rig.broker.subscribe("a.b")
        assert await rig.broker.contradict("a.b", zero) == zero
        answers = await rig.publish(*drafts("x", 3))
        top = answers[-1].position
        for evidence in (zero, *(answer.position for answer in answers)):
            assert await rig.broker.contradict("a.b", evidence) == top
        assert rig.notes.kinds("a.b") == ["events"]


async def test_rule_03_evidence_where_nothing_is_kept_changes_nothing(open_rig: OpenRig) -> None:
    async with open_rig(rules=[rule(size=2)]) as rig:
        top = (await rig.publish(*drafts("x", 9)))[-1].position
        assert await rig.broker.contradict("a.b", Position(top.epoch, 2, "0" * 16)) == top


async def test_rule_03_offsets_go_on_and_earlier_history_stays(open_rig: OpenRig) -> None:
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


async def test_rule_03_the_start_of_the_new_epoch_contradicts_nothing(open_rig: OpenRig) -> None:
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


async def test_rule_04_a_position_outlives_the_events(open_rig: OpenRig) -> None:
    async with open_rig(rules=[rule(ttl_s=10)], position_ttl_s=1_000) as rig:
        (answer,) = await rig.publish(draft("x"))
        await rig.advance(10 + 999)
        await rig.tidy()
        assert await rig.broker.top("a.b") == answer.position
        await rig.advance(1)
        await rig.tidy()
        # Where it is archived for good, so is where it stands.
        top = None if rig.lapses else answer.position
        assert await rig.broker.top("a.b") == top
        (later,) = await rig.publish(draft("y"))
        assert (later.position.epoch != answer.position.epoch) == rig.lapses


async def test_rule_04_a_subscribed_channel_never_goes(open_rig: OpenRig) -> None:
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
        await rig.advance(1 + rig.late_s)
        await rig.tidy()
        assert await rig.broker.top("a.b") is None


async def test_rule_04_a_purge_or_a_fork_begins_the_time_anew(open_rig: OpenRig) -> None:
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
        await rig.advance(100 + rig.late_s)
        await rig.tidy()
        assert await rig.broker.top("a.b") is None


async def test_rule_04_evidence_makes_a_missing_record_anew_above_it(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        evidence = Position("0123456789abcdef", 41, "fedcba9876543210")
        top = await rig.broker.contradict("a.b", evidence)
        assert top == start(top.epoch, 41)
        assert top.epoch != evidence.epoch
        assert await rig.broker.top("a.b") == top
        (answer,) = await rig.publish(draft("x"))
        assert (answer.position.epoch, answer.position.offset) == (top.epoch, 42)


async def test_rule_05_the_first_subscriber_makes_the_record(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        assert await rig.broker.top("a.b") is None
        top = await rig.broker.subscribe("a.b")
        assert top.offset == 0
        assert await rig.broker.top("a.b") == top
        (answer,) = await rig.publish(draft("x"))
        assert (answer.position.epoch, answer.position.offset) == (top.epoch, 1)


async def test_rule_07_times_are_the_clock_in_ms(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        before = int(rig.clock.wall() * 1000)
        await rig.publish(draft("x"))
        await rig.advance(1.5)
        await rig.publish(draft("y"))
        times = [event.time for event in (await history(rig)).events]
        assert times == [before, before + 1500]


async def test_rule_07_times_never_decrease_within_a_channel(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        await rig.publish(draft("x"))
        rig.clock.wall_s -= 3600
        await rig.publish(draft("y"), draft("z", "other"))
        x, y = (await history(rig)).events
        assert y.time == x.time
        (z,) = (await history(rig, "other")).events
        assert z.time < x.time


async def test_rule_07_a_step_of_the_wall_clock_expires_nothing(open_rig: OpenRig) -> None:
    """Nor does a step back make anything expire where there is no other clock, as in Redis."""
    async with open_rig() as rig:
        await rig.publish(draft("x"))
        rig.clock.wall_s += -86_400 if rig.one_clock else 86_400
        await rig.tidy()
        assert ids((await history(rig)).events) == ["x"]
        assert (await rig.publish(draft("x")))[0].duplicate
