"""The newest event instead of every one: for sessions that lag on a channel that conflates."""

import asyncio

import pytest

from config.rules import ChannelRule, ChannelRules
from conflation_rig import CONFLATE, DISCONNECT, bench
from delivery_rig import CHANNEL, LineWire, open_delivery_rig, turns, until
from server.closing import Closing


async def test_who_reads_gets_every_event_in_one_call() -> None:
    async with bench() as on:
        readers = [on.listen() for _ in range(3)]
        on.publish(3)
        for reader in readers:
            assert reader.seen() == ["e1", "e2", "e3"]
            assert len(reader.client.connection.sent) == 1
        assert on.left_out == 0
        assert on.rig.node.metrics.events_out == 9


async def test_who_lags_gets_the_newest_when_there_is_room() -> None:
    async with bench() as on:
        slow, quick = on.listen(), on.listen()
        on.publish()
        slow.stall()
        on.publish(2)
        on.publish(3)
        assert slow.seen() == ["e1"]
        assert on.feed.conflation.held() == 1
        slow.read()
        assert slow.seen() == ["e1", "e6+4"]
        assert quick.seen() == ["e1", "e2", "e3", "e4", "e5", "e6"]
        assert on.feed.conflation.held() == 0
        assert on.left_out == 4
        assert on.rig.node.metrics.events_out == 8
        # It is in step again.
        on.publish(2)
        assert slow.seen() == ["e1", "e6+4", "e7", "e8"]


async def test_one_that_was_held_alone_is_not_marked() -> None:
    async with bench() as on:
        slow = on.listen()
        slow.stall()
        on.publish()
        slow.read()
        assert slow.seen() == ["e1"]
        assert "skipped" not in slow.client.connection.text()


async def test_who_sips_gets_one_event_for_each_time_that_there_is_room() -> None:
    async with bench() as on:
        slow = on.listen()
        slow.stall()
        for _ in range(3):
            on.publish(10)
            slow.sip()
        assert slow.seen() == ["e10+9", "e20+9", "e30+9"]
        assert on.feed.conflation.held() == 0


async def test_what_waits_is_bounded_however_much_comes() -> None:
    async with bench() as on:
        slow = on.listen()
        slow.stall()
        before = slow.client.connection.unsent
        on.publish(1_000)
        for _ in range(100):
            on.publish(10)
        assert slow.client.connection.unsent == before
        assert slow.client.session.behind == {slow.subscription: None}
        slow.read()
        assert slow.seen() == ["e2000+1999"]


async def test_an_event_costs_nothing_for_those_that_are_late() -> None:
    """The audience is whom a flush walks: who lags long since is not in it."""
    async with bench() as on:
        slow = on.listen()
        slow.stall()
        on.publish()
        assert not on.feed.fanout.audiences
        quick = on.listen()
        wire = on.rig.wire
        before = wire.encoded
        on.publish()
        assert wire.encoded == before + 1
        assert quick.seen() == ["e2"]


async def test_one_that_became_late_within_a_flush_is_passed_by_no_part_of_it() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.fanout._LOOK_EVERY", 1)
        patch.setattr("server.fanout._HOLD_S", -1.0)
        async with bench() as on:
            slow, other = on.listen(), on.listen()
            slow.stall()
            on.come(2)
            # The flush has given way: it has been with `slow` only.
            slow.read()
            assert slow.seen() == ["e2+1"]
            assert other.seen() == []
            on.come()
            on.flush()
            assert slow.seen() == ["e2+1", "e3"]
            assert other.seen() == ["e1", "e2", "e3"]


async def test_one_that_is_relieved_while_a_flush_is_on_its_way_gets_nothing_twice() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.fanout._LOOK_EVERY", 1)
        patch.setattr("server.fanout._HOLD_S", -1.0)
        async with bench() as on:
            first, slow = on.listen(), on.listen()
            slow.stall()
            on.publish()
            on.come()
            # It stood outside when this flush began, and gets the newest of it.
            slow.read()
            assert slow.seen() == ["e2+1"]
            on.flush()
            on.publish()
            assert slow.seen() == ["e2+1", "e3"]
            assert first.seen() == ["e1", "e2", "e3"]


# ---- resets


async def test_a_reset_is_sent_at_once_behind_what_is_owed() -> None:
    async with bench() as on:
        slow, quick = on.listen(), on.listen()
        slow.stall()
        on.publish(3)
        on.reset()
        on.flush()
        assert slow.seen() == ["e3+2", "reset"]
        on.publish(2)
        slow.read()
        assert slow.seen() == ["e3+2", "reset", "e5+1"]
        assert quick.seen() == ["e1", "e2", "e3", "reset", "e4", "e5"]


async def test_resets_joined_with_events_keep_their_places() -> None:
    async with bench() as on:
        old, new, quick = on.listen(), on.listen(), on.listen()
        old.stall()
        on.publish(2)
        new.stall()
        # All of this is one flush.
        on.join()
        on.come(2)
        on.reset()
        on.reset()
        on.come(3)
        on.reset()
        on.come(2)
        on.flush()
        assert old.seen() == ["e4+3", "reset", "reset", "e7+2", "reset"]
        assert new.seen() == ["e1", "e2", "e4+1", "reset", "reset", "e7+2", "reset"]
        old.read()
        new.read()
        assert old.seen()[-1] == new.seen()[-1] == "e9+1"
        assert [each for each in quick.seen() if each != "reset"] == [f"e{n}" for n in range(1, 10)]


async def test_a_reset_is_sent_in_slices_and_nobody_overtakes_it() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.fanout._LOOK_EVERY", 1)
        patch.setattr("server.fanout._HOLD_S", -1.0)
        async with bench() as on:
            slow = [on.listen() for _ in range(3)]
            for each in slow:
                each.stall()
            on.publish()
            on.join()
            on.reset()
            on.come()
            on.feed.fanout.hurry()
            # The flush has not come to the last one yet, which reads on.
            slow[-1].read()
            assert slow[-1].seen() == ["e1", "reset", "e2"]
            on.flush()
            for each in slow:
                each.read()
            assert [each.seen() for each in slow] == [["e1", "reset", "e2"]] * 3


# ---- leaving out


async def test_own_events_are_neither_sent_nor_counted() -> None:
    async with bench() as on:
        slow = on.listen()
        slow.stall()
        on.publish(4, [None, slow.id, None, slow.id])
        slow.read()
        assert slow.seen() == ["e3+1"]
        on.publish(2, [slow.id])
        assert slow.seen() == ["e3+1", "e6"]


async def test_own_events_alone_make_nobody_late_for_anything() -> None:
    async with bench() as on:
        slow = on.listen()
        slow.stall()
        on.publish(2, [slow.id, slow.id])
        assert on.feed.conflation.held() == 0
        slow.read()
        assert slow.seen() == []
        on.publish()
        assert slow.seen() == ["e3"]


async def test_the_newest_before_ones_own_is_kept_over_several_flushes() -> None:
    async with bench() as on:
        slow = on.listen()
        slow.stall()
        on.publish(2)
        on.publish(1, [slow.id])
        on.publish(1, [slow.id])
        assert on.feed.conflation.held() == 1
        slow.read()
        assert slow.seen() == ["e2+1"]


async def test_own_events_around_a_reset() -> None:
    async with bench() as on:
        slow = on.listen()
        slow.stall()
        on.join()
        on.come(2, [None, slow.id])
        on.reset()
        on.come(3, [slow.id, None, slow.id])
        on.flush()
        assert slow.seen() == ["e1", "reset"]
        slow.read()
        assert slow.seen() == ["e1", "reset", "e4"]


# ---- rules


async def test_a_changed_rule_holds_from_the_next_flush_on() -> None:
    async with bench(DISCONNECT) as on:
        slow = on.listen()
        slow.stall()
        on.publish(2)
        assert slow.seen() == ["e1", "e2"]
        on.rules.replace([CONFLATE])
        on.publish(2)
        assert slow.seen() == ["e1", "e2"]
        on.rules.replace([DISCONNECT])
        # Not before: what is held waits for room as it did.
        assert slow.seen() == ["e1", "e2"]
        on.publish(2)
        assert slow.seen() == ["e1", "e2", "e4+1", "e5", "e6"]
        assert slow.client.session.behind is None


async def test_a_channel_that_disconnects_knows_nothing_of_all_this() -> None:
    async with bench(DISCONNECT) as on:
        slow = on.listen()
        slow.stall()
        on.publish(2)
        on.publish(1, [slow.id])
        assert slow.seen() == ["e1", "e2"]
        assert slow.subscription.late is None


# ---- the end


async def test_what_is_owed_leaves_before_the_end() -> None:
    async with open_delivery_rig(CONFLATE) as rig:
        client = rig.session()
        await client.subscribe()
        connection = client.connection
        connection.stalled, connection.unsent = True, 1
        await rig.publish("a", "b")
        await client.ask("unsubscribe", channel=CHANNEL)
        assert [each["type"] for each in connection.messages()][-2:] == ["event", "unsubscribed"]
        assert connection.of("event")[-1]["skipped"] == 1
        await client.subscribe()
        await rig.publish("c")
        client.session.end(Closing.DRAINING)
        assert [each["type"] for each in connection.messages()][-2:] == ["event", "closing"]
        assert client.ids() == ["b", "c"]
        assert rig.node.metrics.events_conflated == 1


async def test_what_is_owed_at_the_end_is_bounded_as_what_is_unsent_is() -> None:
    async with open_delivery_rig(CONFLATE) as rig:
        client = rig.session()
        names = [f"a.{number}" for number in range(40)]
        for name in names:
            await client.subscribe(name)
        client.connection.stalled, client.connection.unsent = True, 1
        for name in names:
            await rig.publish(channel=name, data=b'"%s"' % (b"x" * 60_000))
        await until(lambda: rig.node.hub.held() == 40)
        client.session.end(Closing.DRAINING)
        limit = rig.node.settings.limits.unsent_bytes
        assert limit < client.connection.unsent < limit + 70_000
        assert client.connection.messages()[-1]["type"] == "closing"
        assert rig.node.hub.held() == 0


async def test_who_is_too_slow_is_sent_nothing_more() -> None:
    async with open_delivery_rig(CONFLATE) as rig:
        client = rig.session()
        await client.subscribe()
        client.connection.stalled, client.connection.unsent = True, 1
        await rig.publish("a")
        client.session.on_slow()
        assert client.ids() == []
        assert client.session.behind is None


async def test_a_client_that_leaves_takes_everything_along() -> None:
    async with bench() as on:
        slow = on.listen()
        slow.stall()
        on.publish(3)
        on.rig.node.subscribing.end(slow.subscription)
        assert slow.seen() == ["e3+2"]
        slow = on.listen()
        slow.stall()
        on.publish(3)
        slow.client.connection.closed = Closing.GOING_AWAY
        slow.client.session.on_lost()
        assert on.feed.conflation.held() == 0
        assert slow.client.session.behind is None
        assert on.left_out == 2, "what nobody was told of is not counted"


async def test_a_feed_that_is_given_up_lets_go_of_everybody() -> None:
    async with bench() as on:
        slow, sampled = on.listen(), on.listen(max_rate_hz=10)
        slow.stall()
        on.publish()
        on.publish()
        on.feed.close()
        assert on.timers() == 0
        assert slow.client.session.behind is None
        slow.read()
        assert slow.seen() == []
        assert sampled.seen() == ["e1"]


async def test_a_purge_takes_nothing_back_that_is_held() -> None:
    async with open_delivery_rig(CONFLATE) as rig:
        client = rig.session()
        await client.subscribe()
        client.connection.stalled, client.connection.unsent = True, 1
        await rig.publish("a", "b")
        await rig.broker.purge(CHANNEL)
        assert client.ids() == []
        client.connection.stalled = False
        client.connection.read()
        await rig.publish("c")
        assert client.ids() == ["b", "c"]
        assert not client.connection.of("reset")


# ---- several channels, several subscriptions


async def test_channels_that_disconnect_are_sent_all_the_same() -> None:
    rules = (ChannelRule(match="new.*", slow="conflate"), ChannelRule(match=">"))
    async with open_delivery_rig(*rules) as rig:
        client = rig.session()
        await client.subscribe("new.a")
        await client.subscribe("all.a")
        connection = client.connection
        connection.stalled, connection.unsent = True, 1
        for number in range(3):
            await rig.publish(f"n{number}", channel="new.a")
            await rig.publish(f"a{number}", channel="all.a")
        await turns()
        assert client.ids() == ["a0", "a1", "a2"]
        connection.read()
        assert client.ids() == ["a0", "a1", "a2", "n2"]


async def test_many_channels_take_turns() -> None:
    async with open_delivery_rig(CONFLATE) as rig:
        client = rig.session()
        names = [f"a.{number}" for number in range(5)]
        for name in names:
            await client.subscribe(name)
        connection = client.connection
        connection.stalled, connection.unsent = True, 1
        for _ in range(6):
            for name in names:
                await rig.publish(channel=name)
            await turns()
            connection.read()
        # One for each time that there was room, and who waited longest first.
        assert [each["channel"] for each in connection.of("event")] == [*names, names[0]]
        connection.stalled = False
        connection.read()
        assert rig.node.hub.held() == 0


async def test_very_many_that_are_owed_something_give_way_to_others() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.lagging._RELIEVED", 3)
        async with open_delivery_rig(CONFLATE) as rig:
            client = rig.session()
            names = [f"a.{number}" for number in range(10)]
            for name in names:
                await client.subscribe(name)
            connection = client.connection
            connection.stalled, connection.unsent = True, 1
            for name in names:
                await rig.publish(channel=name)
            await until(lambda: rig.node.hub.held() == 10)
            connection.stalled = False
            connection.read()
            assert len(client.ids()) == 3
            # One that has not had its turn is not overtaken by what is newer.
            await rig.publish("late", channel=names[9])
            assert "late" not in client.ids()
            await until(lambda: len(client.ids()) == 10)
            assert client.ids()[-1] == "late"
            assert connection.of("event")[-1]["skipped"] == 1


async def test_a_stream_of_several_channels_keeps_its_cursor() -> None:
    async with bench() as on:
        slow = on.listen(wire=LineWire(individual=True))
        slow.stall()
        on.publish(3)
        slow.read()
        on.publish()
        assert slow.seen() == ["e3+2", "e4"]


# ---- replays


async def test_a_replay_is_whole_and_what_comes_meanwhile_is_conflated() -> None:
    async with open_delivery_rig(CONFLATE) as rig:
        holder = rig.session()
        await holder.subscribe()
        (since,) = await rig.publish("seen")
        missed = await rig.publish_many(250)
        client = rig.session()
        client.connection._low_bytes = 0
        client.connection.stalled = True
        await client.subscribe(since=str(since))
        live = await rig.publish_many(5)
        reads = 0
        while not client.attached:
            reads += 1
            client.connection.read()
            await asyncio.sleep(0)
        assert reads > 1, "it was under way"
        # What came while the replay was under way belongs to it.
        assert client.ids() == missed + live
        more = await rig.publish_many(3)
        client.connection.read()
        assert client.ids() == [*missed, *live, more[-1]]
        assert client.connection.of("event")[-1]["skipped"] == 2


async def test_it_resumes_behind_what_it_was_given() -> None:
    async with open_delivery_rig(CONFLATE) as rig:
        client = rig.session()
        await client.subscribe()
        client.connection.stalled, client.connection.unsent = True, 1
        await rig.publish("a", "b", "c")
        client.connection.read()
        await rig.publish("d", "e")
        client.leave()
        again = rig.session()
        reply = await again.subscribe(since=client.position())
        assert reply["recovered"] is True
        assert client.ids() == ["c"]
        assert again.ids() == ["d", "e"]


def test_rules_count_their_changes() -> None:
    rules = ChannelRules([CONFLATE])
    before = rules.revision
    rules.replace([DISCONNECT])
    assert rules.revision > before
