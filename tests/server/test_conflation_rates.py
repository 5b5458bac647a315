"""At most so many events a second, the newest ones: subscriptions with `max_rate_hz`."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.rules import ChannelRule, ChannelRules
from conflation_rig import CONFLATE, DISCONNECT, Bench, Reader, bench
from delivery_rig import CHANNEL, LineWire, open_delivery_rig, turns, until
from server.conflation import interval_s
from server.protocol import HIGHEST_RATE, LOWEST_RATE


async def test_the_first_goes_at_once_and_the_newest_when_its_time_has_come() -> None:
    async with bench(DISCONNECT) as on:
        reader, whole = on.listen(max_rate_hz=10), on.listen()
        on.publish()
        assert reader.seen() == ["e1"]
        for _ in range(5):
            on.loop.advance(0.015)
            on.publish()
        assert reader.seen() == ["e1"]
        on.loop.advance(0.0249)
        assert reader.seen() == ["e1"]
        on.loop.advance(0.0002)
        assert reader.seen() == ["e1", "e6+4"]
        assert whole.ids() == ["e1", "e2", "e3", "e4", "e5", "e6"]
        assert on.left_out == 4


async def test_after_a_pause_the_first_goes_at_once_again() -> None:
    async with bench(DISCONNECT) as on:
        reader = on.listen(max_rate_hz=10)
        on.publish()
        on.loop.advance(0.1001)
        assert on.timers() == 0, "who waits for nothing costs no timer"
        on.publish()
        assert reader.seen() == ["e1", "e2"]
        on.publish()
        assert reader.seen() == ["e1", "e2"]
        on.loop.advance(0.1001)
        assert reader.seen() == ["e1", "e2", "e3"]


async def test_of_one_flush_only_the_newest_goes_out() -> None:
    async with bench(DISCONNECT) as on:
        reader = on.listen(max_rate_hz=10)
        on.publish(5)
        assert reader.seen() == ["e5+4"]


async def test_only_what_came_since_it_subscribed_was_skipped() -> None:
    async with bench(DISCONNECT) as on:
        first = on.listen(max_rate_hz=1)
        on.publish(5)
        on.publish(5)
        second = on.listen(max_rate_hz=1)
        assert second.seen() == []
        on.publish(2)
        assert second.seen() == ["e12+1"]
        on.loop.advance(1.001)
        assert first.seen() == ["e5+4", "e12+6"]


async def test_each_has_its_own_time() -> None:
    async with bench(DISCONNECT) as on:
        first = on.listen(max_rate_hz=10)
        on.publish()
        on.loop.advance(0.05)
        second = on.listen(max_rate_hz=10)
        on.publish()
        assert (first.seen(), second.seen()) == (["e1"], ["e2"])
        on.loop.advance(0.0501)
        assert (first.seen(), second.seen()) == (["e1", "e2"], ["e2"])
        on.publish()
        on.loop.advance(0.05)
        assert (first.seen(), second.seen()) == (["e1", "e2"], ["e2", "e3"])
        on.loop.advance(0.05)
        assert first.seen() == ["e1", "e2", "e3"]


async def test_one_timer_serves_all_that_want_the_same_rate() -> None:
    async with bench(DISCONNECT) as on:
        readers = [on.listen(max_rate_hz=rate) for rate in (10, 2) for _ in range(600)]
        on.publish()
        assert on.timers() == 2
        on.publish()
        # More than one turn serves, and still all of them.
        on.loop.advance(0.501)
        assert all(reader.seen() == ["e1", "e2"] for reader in readers)
        on.loop.advance(1)
        assert on.timers() == 0


async def test_frames_are_built_once_for_all_that_skipped_as_many() -> None:
    async with bench(DISCONNECT) as on:
        for _ in range(100):
            on.listen(max_rate_hz=10)
        before = on.rig.wire.encoded
        on.publish(3)
        assert on.rig.wire.encoded == before + 1
        on.publish(3)
        on.loop.advance(0.1001)
        assert on.rig.wire.encoded == before + 2


@pytest.mark.parametrize(
    ("rate_hz", "seconds"),
    [(1000, 0.001), (144, 0.007), (60, 0.017), (30, 0.034), (10, 0.1), (3, 0.34), (0.01, 100.0)],
)
def test_the_interval_of_a_rate(rate_hz: float, seconds: float) -> None:
    assert interval_s(rate_hz) == pytest.approx(seconds)


@given(st.floats(LOWEST_RATE, HIGHEST_RATE))
def test_an_interval_is_never_shorter_than_the_rate_allows_nor_much_longer(rate_hz: float) -> None:
    assert 1 - 1e-6 <= interval_s(rate_hz) * rate_hz <= 1.1 + 1e-6


def test_intervals_are_few_whatever_is_asked_for() -> None:
    rates = [LOWEST_RATE + number / 100 for number in range(100_000)]
    assert len({interval_s(rate) for rate in rates}) <= 5 * 90 + 1


async def test_who_lags_gets_it_when_there_is_room_and_rests_from_then_on() -> None:
    async with bench(DISCONNECT) as on:
        reader = on.listen(max_rate_hz=10)
        on.publish()
        reader.stall()
        on.loop.advance(0.09)
        on.publish(2)
        on.loop.advance(0.05)
        # Its time has come, but there is no room.
        assert reader.seen() == ["e1"]
        assert on.feed.conflation.held() == 1
        on.publish()
        reader.read()
        assert reader.seen() == ["e1", "e4+2"]
        on.publish()
        on.loop.advance(0.0999)
        assert reader.seen() == ["e1", "e4+2"]
        on.loop.advance(0.0002)
        assert reader.seen() == ["e1", "e4+2", "e5"]


async def test_own_events_are_left_out() -> None:
    async with bench(DISCONNECT) as on:
        reader = on.listen(max_rate_hz=10)
        on.publish(1, [reader.id])
        assert reader.seen() == []
        on.publish()
        assert reader.seen() == ["e2"]
        on.publish(2, [None, reader.id])
        on.publish(1, [reader.id])
        on.loop.advance(0.1001)
        assert reader.seen() == ["e2", "e3"]


async def test_a_reset_waits_for_nothing() -> None:
    async with bench(DISCONNECT) as on:
        reader = on.listen(max_rate_hz=1)
        on.publish()
        on.publish(2)
        on.reset()
        on.flush()
        assert reader.seen() == ["e1", "e3+1", "reset"]
        on.publish()
        assert reader.seen() == ["e1", "e3+1", "reset"]
        on.loop.advance(1.001)
        assert reader.seen() == ["e1", "e3+1", "reset", "e4"]


async def test_what_comes_behind_a_reset_waits_for_its_time() -> None:
    async with bench(DISCONNECT) as on:
        reader = on.listen(max_rate_hz=1)
        on.publish()
        on.join()
        on.come()
        on.reset()
        on.come(2)
        on.flush()
        assert reader.seen() == ["e1", "e2", "reset"]
        on.loop.advance(1.001)
        assert reader.seen() == ["e1", "e2", "reset", "e4+1"]


async def test_a_changed_rule_does_not_concern_it() -> None:
    async with bench(CONFLATE) as on:
        reader = on.listen(max_rate_hz=10)
        on.publish()
        on.publish()
        on.rules.replace([DISCONNECT])
        on.publish()
        assert reader.seen() == ["e1"]
        on.loop.advance(0.1001)
        assert reader.seen() == ["e1", "e3+1"]


async def test_it_ends_in_whatever_state_it_is() -> None:
    async with bench(DISCONNECT) as on:
        ready, resting, behind = [on.listen(max_rate_hz=10) for _ in range(3)]
        behind.stall()
        on.publish()
        ready_late = on.listen(max_rate_hz=10)
        for each in (resting, behind, ready, ready_late):
            on.rig.node.subscribing.end(each.subscription)
            assert each.subscription.late is None
        assert behind.seen() == ["e1"]
        assert on.timers() == 0
        assert not on.feed.conflation._lanes
        on.publish()
        assert resting.seen() == ["e1"]


async def test_what_is_owed_leaves_when_the_session_is_ended() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        reply = await client.subscribe(max_rate_hz=0.01)
        assert reply["max_rate_hz"] == 0.01
        for name in "abc":
            await rig.publish(name)
        await turns()
        assert client.ids() == ["a"]
        assert rig.node.hub.held() == 1
        await client.ask("unsubscribe", channel=CHANNEL)
        assert client.ids() == ["a", "c"]
        assert client.connection.messages()[-1]["type"] == "unsubscribed"


async def test_what_is_replayed_is_whole() -> None:
    async with open_delivery_rig() as rig:
        await rig.session().subscribe()
        (since,) = await rig.publish("seen")
        missed = await rig.publish_many(120)
        client = rig.session()
        await client.subscribe(since=str(since), max_rate_hz=0.01)
        await until(lambda: client.attached)
        assert client.ids() == missed
        await rig.publish("a")
        await rig.publish("b")
        assert client.ids() == [*missed, "a"]


@pytest.mark.parametrize("rate", [0, 0.009, 1000.1, -1, "10", True, [1]])
async def test_a_rate_that_makes_no_sense_is_refused(rate: object) -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        reply = await client.ask("subscribe", channel=CHANNEL, max_rate_hz=rate)
        assert (reply["type"], reply["code"]) == ("error", "bad_request")
        assert "max_rate_hz" in reply["message"]
        assert not client.session.subscriptions


async def test_a_subscription_of_the_servers_is_taken_over_with_its_own_rate() -> None:
    async with open_delivery_rig(ChannelRule(match=">")) as rig:
        client = rig.session()
        await rig.node.commands.give(client.session, CHANNEL, max_rate_hz=0.01)
        assert client.session.subscriptions[CHANNEL].max_rate_hz == 0.01
        await rig.publish("a")
        await rig.publish("b")
        reply = await client.subscribe()
        assert "max_rate_hz" not in reply
        await rig.publish("c")
        await rig.publish("d")
        await turns()
        assert client.ids() == ["a", "b", "c", "d"]


# ---- whatever happens, in whatever order


class Model:
    """What one reader has to have been told: of the events between two resets all are accounted."""

    def __init__(self, reader: Reader, max_rate_hz: float | None) -> None:
        self.reader = reader
        self.max_rate_hz = max_rate_hz
        self.parts: list[list[str]] = [[]]

    def check(self, *, whole: bool) -> None:
        told: list[list[tuple[str, int]]] = [[]]
        for shown in self.reader.seen():
            if shown == "reset":
                told.append([])
            else:
                name, _, skipped = shown.partition("+")
                told[-1].append((name, int(skipped or 0)))
        assert len(told) == len(self.parts)
        for place, (events, due) in enumerate(zip(told, self.parts, strict=True)):
            at = 0
            for told_name, left_out in events:
                at += left_out + 1
                assert due[at - 1] == told_name, (self.reader.seen(), self.parts)
            if whole or place < len(told) - 1:
                assert at == len(due), (self.reader.seen(), self.parts)


Step = tuple[str, int]
steps: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(
        st.sampled_from(
            ["publish", "own", "stall", "read", "sip", "reset", "wait", "turn", "rule"]
        ),
        st.integers(0, 5),
    ),
    max_size=60,
)


@pytest.mark.parametrize("every", [1, 128])
async def test_all_events_are_accounted_for_whatever_happens(every: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.fanout._LOOK_EVERY", every)
        patch.setattr("server.fanout._HOLD_S", -1.0)
        async with open_delivery_rig() as rig:

            @given(steps)
            @settings(max_examples=300, deadline=None, database=None)
            def anything(given_steps: list[Step]) -> None:
                play(Bench(rig, ChannelRules([CONFLATE])), given_steps)

            anything()


def play(on: Bench, given_steps: list[Step]) -> None:
    individual = LineWire(individual=True)
    models = [
        Model(on.listen(rate, wire), rate)
        for rate, wire in (
            (None, None),
            (None, individual),
            (10, None),
            (100, None),
            (7, individual),
        )
    ]
    rules = [CONFLATE, DISCONNECT]

    def note(names: list[str], exclude: str | None) -> None:
        for model in models:
            if model.reader.id != exclude:
                model.parts[-1] += names

    for what, number in given_steps:
        reader = models[number % len(models)].reader
        match what:
            case "publish":
                on.come(number + 1)
                note([f"e{on.number - number + place}" for place in range(number + 1)], None)
            case "own":
                on.come(1, [reader.id])
                note([f"e{on.number}"], reader.id)
            case "stall":
                reader.stall()
            case "read":
                reader.read()
            case "sip":
                reader.sip()
            case "reset":
                on.reset()
                for model in models:
                    model.parts.append([])
            case "wait":
                on.loop.advance(number * 0.03)
            case "turn":
                on.loop.turn()
            case "rule":
                on.rules.replace([rules[number % 2]])
    on.flush()
    for model in models:
        model.check(whole=False)
        model.reader.read()
    on.flush()
    on.loop.advance(1)
    for model in models:
        model.check(whole=True)
        on.rig.node.subscribing.end(model.reader.subscription)
        model.reader.client.session.on_lost()
    assert on.timers() == 0
