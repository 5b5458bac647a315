"""What any broker must do: compared, step by step, with a model that is too simple to be wrong."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from functools import partial
from itertools import pairwise
from math import inf
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker_model import Channel, Kept, Reading, Remembered, entries
from broker_rig import RIG_PARAMS, OpenRig, draft, open_durable_rig, open_memory_rig
from config.rules import ChannelRule
from pubsub.errors import TooManyChannels
from pubsub.event import Event, Published
from pubsub.position import Position, start

T = TypeVar("T")

WINDOW_S = 20.0
POSITION_TTL_S = 60.0
TTL_S = 10.0
# Of a node that is gone, or whose memory went back in time.
LEASE_S = 60.0
SIZES = {"a": 500, "a.b": 3, "few.x": 10, "none.x": 0, "one": 1}
MOST_CHANNELS = 4

channel_names = st.sampled_from(sorted(SIZES))
event_ids = st.sampled_from([f"id{n}" for n in range(12)])
offsets = st.integers(0, 14)
readings = st.builds(
    Reading,
    after=offsets,
    before=st.none() | offsets,
    limit=st.sampled_from([0, 1, 2, 5, 1_000]),
    newest=st.booleans(),
    hidden=st.booleans(),
)


class Machine(RuleBasedStateMachine):
    def __init__(self, open_rig: OpenRig) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        rules = [
            ChannelRule(match=match, history_size=size, history_ttl_s=TTL_S)
            for match, size in SIZES.items()
        ]
        # What a durable broker has in memory is no matter of its bound.
        self.most = inf if open_rig is open_durable_rig else MOST_CHANNELS
        opened = open_rig(
            rules=rules,
            max_channels=0 if self.most == inf else MOST_CHANNELS,
            idempotency_window_s=WINDOW_S,
            position_ttl_s=POSITION_TTL_S,
        )
        self.rig = self.run(self.stack.enter_async_context(opened))
        self.kept = Kept()
        self.copy: tuple[Kept, set[str], dict[str, bytes | None]] | None = None
        self.subscribed: set[str] = set()
        # Every event that was ever acknowledged, by position: there is one at each.
        self.ids: dict[tuple[str, Position], str] = {}
        # The highest offset that each channel ever had.
        self.highest: dict[str, int] = {}
        # What the sink must have heard, and what it heard last.
        self.heard: dict[str, list[tuple[str, Position]]] = {name: [] for name in SIZES}
        self.last_heard: dict[str, Position] = {}
        # Until when a lease may stand that is not the model's, or one be missing.
        self.leases: dict[str, float] = {}
        # Until when leases may stand that came back with a copy: of nodes that have gone since.
        self.ghosts: dict[str, float] = {}
        # Whether the clock on the wall was set since time last passed, with sweeps.
        self.stepped = False
        # Channels that may be counted, though they have lapsed (up to a sweep) or were lost.
        self.lapsed: set[str] = set()
        self.lost: set[str] = set()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    async def settled(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Let the sink hear what a call brings."""
        async with self.rig.settle():
            return await coroutine

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()

    @property
    def now(self) -> float:
        return self.rig.clock.monotonic()

    def adopt(self, name: str, top: Position, least: int = 0) -> Channel:
        """Take over a top that the broker made up: a new record starts with any epoch.

        It starts above every event of which there is a trace, and at no offset that never was.
        """
        assert top == start(top.epoch, top.offset)
        assert max(least, self.kept.last.get(name, 0)) <= top.offset
        assert top.offset <= max(least, self.highest.get(name, 0))
        assert self.kept.channels.keys() | {name} <= SIZES.keys()
        # Nor is it made where there is no room, as far as one node knows.
        assert len(self.kept.channels) < self.most or self.copy is not None
        self.highest[name] = max(top.offset, self.highest.get(name, 0))
        self.lapsed.discard(name)
        self.lost.discard(name)
        return self.kept.make(name, top, self.now)

    def full(self, name: str) -> bool:
        """Say whether a channel without a record may be refused: others fill all places."""
        return len({*self.kept.channels, *self.lapsed, *self.lost} - {name}) >= self.most

    def hear(self, name: str, kind: str, position: Position) -> None:
        if name in self.subscribed:
            self.heard[name].append((kind, position))
            self.last_heard[name] = position

    # ---- steps

    @rule(batch=st.lists(st.tuples(channel_names, event_ids), max_size=8))
    def publish(self, batch: list[tuple[str, str]]) -> None:
        drafts = [draft(event_id, name) for name, event_id in batch]
        answers = self.run(self.settled(self.rig.broker.publish(drafts)))
        assert len(answers) == len(batch)
        for (name, event_id), answer in zip(batch, answers, strict=True):
            if isinstance(answer, TooManyChannels):
                assert name not in self.kept.channels
                assert self.full(name)
                continue
            assert isinstance(answer, Published), answer
            assert (answer.channel, answer.id) == (name, event_id)
            known = self.kept.ids.get((name, event_id))
            if answer.duplicate:
                assert known is not None
                assert (known.position, self.now <= known.may) == (answer.position, True)
                continue
            assert known is None or self.now >= known.must
            self.take(name, event_id, answer.position)

    def take(self, name: str, event_id: str, given: Position) -> None:
        channel = self.kept.channels.get(name)
        if channel is None:
            channel = self.adopt(name, start(given.epoch, given.offset - 1))
            if name in self.leases:
                self.hear(name, "fork", channel.top)
        position = channel.add(event_id, SIZES[name], self.now, TTL_S)
        assert given == position
        assert self.ids.setdefault((name, position), event_id) == event_id
        self.highest[name] = max(position.offset, self.highest.get(name, 0))
        self.kept.last[name] = position.offset
        self.kept.ids[name, event_id] = Remembered(
            position, self.now + WINDOW_S, self.now + 2 * WINDOW_S, self.rig.clock.wall()
        )
        self.hear(name, event_id, position)

    @rule(name=channel_names)
    def subscribe(self, name: str) -> None:
        try:
            top = self.run(self.rig.broker.subscribe(name))
        except TooManyChannels:
            assert name not in self.kept.channels
            assert self.full(name)
            return
        channel = self.kept.channels.get(name) or self.adopt(name, top)
        assert top == channel.top
        last = self.last_heard.get(name)
        if last is None or last.epoch != top.epoch or last.offset < top.offset:
            self.last_heard[name] = top
        self.subscribed.add(name)
        self.leases.pop(name, None)

    @rule(name=channel_names)
    def unsubscribe(self, name: str) -> None:
        self.run(self.rig.broker.unsubscribe(name))
        channel = self.kept.channels.get(name)
        if name in self.subscribed and channel is not None and name not in self.leases:
            channel.touched = self.now
        self.subscribed.discard(name)
        self.last_heard.pop(name, None)
        if name in self.leases:
            self.leases[name] = self.now + LEASE_S
        elif self.ghosts.get(name, 0.0) > self.now:
            self.leases[name] = self.ghosts[name]

    @rule(name=channel_names)
    def purge(self, name: str) -> None:
        floor = self.run(self.settled(self.rig.broker.purge(name)))
        channel = self.kept.channels.get(name)
        assert floor == (channel and channel.top)
        if channel is not None:
            channel.purge(self.now)
            self.hear(name, "purge", channel.top)

    @rule(name=channel_names, below=st.integers(-3, 12), how=st.sampled_from(["true", "forged"]))
    def contradict(self, name: str, below: int, how: str) -> None:
        """Report a position that was true once, or never."""
        given = [position for channel, position in self.ids if channel == name]
        channel = self.kept.channels.get(name)
        if how == "true":
            if not 0 <= below < len(given):
                return
            evidence = given[-1 - below]
        else:
            top = channel.top if channel is not None else start("e" * 16)
            evidence = Position(top.epoch, max(0, top.offset - below), "f" * 16)
        try:
            top = self.run(self.settled(self.rig.broker.contradict(name, evidence)))
        except TooManyChannels:
            assert channel is None
            assert self.full(name)
            return
        if channel is None:
            self.adopt(name, top, evidence.offset)
        elif not channel.contradicted(evidence):
            assert top == channel.top
            return
        else:
            higher = max(evidence.offset, channel.top.offset)
            assert top.epoch != channel.top.epoch
            assert top == start(top.epoch, higher)
            channel.top, channel.touched = top, self.now
            self.highest[name] = max(higher, self.highest.get(name, 0))
        self.hear(name, "fork", top)

    @rule(name=channel_names, reading=readings)
    def read(self, name: str, reading: Reading) -> None:
        found = self.run(
            self.rig.broker.history(
                name,
                after=reading.after,
                before=reading.before,
                limit=reading.limit,
                newest=reading.newest,
                hidden=reading.hidden,
            )
        )
        channel = self.kept.channels.get(name)
        assert (found is None) == (channel is None)
        if found is not None and channel is not None:
            assert (found.top, found.floor) == (channel.top, channel.floor)
            assert channel.allows(entries(found.events), reading)

    @rule(prefix=st.sampled_from(["", "a", "a.", "few", "z"]), after=channel_names | st.just(""))
    def find(self, prefix: str, after: str) -> None:
        """A page of the list is a part of the whole."""
        channels = partial(self.rig.broker.channels, limit=100)
        everything = self.run(channels(prefix="", after=""))
        named = [
            each for each in everything if each.channel.startswith(prefix) and each.channel > after
        ]
        assert self.run(channels(prefix=prefix, after=after)) == named
        assert self.run(self.rig.broker.channels(prefix=prefix, after=after, limit=1)) == named[:1]

    # ---- time

    @rule(seconds=st.sampled_from([0.001, 1.0, 9.0, 11.0, 25.0, 41.0, 130.0]), tidy=st.booleans())
    def time_passes(self, seconds: float, tidy: bool) -> None:
        self.run(self.rig.advance(seconds))
        self.stepped = False
        self.compared()
        if tidy:
            self.run(self.rig.tidy())
            self.lapsed.clear()
        self.expire(must=tidy)

    def expire(self, *, must: bool) -> None:
        for name, till in list(self.leases.items()):
            if till <= self.now:
                del self.leases[name]
        for name, channel in list(self.kept.channels.items()):
            channel.expire(self.now)
            leased = name in self.subscribed and name not in self.leases
            if not channel.expires and not leased:
                self.may_lapse(name, channel, must=must)

    def may_lapse(self, name: str, channel: Channel, *, must: bool) -> None:
        if channel.touched + POSITION_TTL_S > self.now:
            return
        top = self.run(self.rig.broker.top(name))
        if top is None:
            del self.kept.channels[name]
            if not must:
                self.lapsed.add(name)
            if self.rig.loss is None:
                # Only a stream in Redis goes later than it must.
                self.kept.forget(name)
        else:
            assert not must or not self.rig.lapses or name in self.leases
            assert top == channel.top

    @precondition(lambda self: not self.rig.one_clock)
    @rule(wall_s=st.sampled_from([-5_000.0, 5_000.0]))
    def clock_steps(self, wall_s: float) -> None:
        self.rig.clock.wall_s += wall_s
        self.stepped = True

    @rule(tidy=st.booleans())
    def restart(self, tidy: bool) -> None:
        """The node goes, and another comes, which may sweep before anybody asks."""
        for name in sorted(self.subscribed):
            self.unsubscribe(name)
        self.run(self.rig.restart())
        if not self.rig.lasting:
            self.kept = Kept()
        elif not self.rig.one_clock:
            if tidy:
                self.run(self.rig.tidy())
            self.come_again()

    def come_again(self) -> None:
        """What was in memory only is gone; the rest stands on the disk."""
        for name, channel in list(self.kept.channels.items()):
            channel.hide()
            if self.run(self.rig.broker.top(name)) is None:
                # The disk goes by the clock on the wall, which may have been set since a sweep.
                assert not channel.stored
                assert self.stepped or channel.touched + POSITION_TTL_S <= self.now
                del self.kept.channels[name]
                self.kept.forget(name)
        age_s = 2 * WINDOW_S
        for key, known in self.kept.ids.items():
            recalled = self.rig.clock.wall() - known.wall < age_s
            self.kept.ids[key] = known._replace(
                must=known.must if recalled else 0.0, may=self.now + age_s
            )

    # ---- loss

    @precondition(lambda self: self.rig.loss is not None)
    @rule(
        what=st.sampled_from(["all", "record", "events"]), name=channel_names, compare=st.booleans()
    )
    def lose(self, what: str, name: str, compare: bool) -> None:
        loss, kept = self.rig.loss, self.kept
        assert loss is not None
        if what == "all":
            self.run(loss.lose_all(SIZES))
            self.miss(*kept.channels)
            # The lists by which they are counted went too.
            self.lapsed.clear()
            self.lost.clear()
            self.kept = Kept()
        elif what == "record":
            self.run(loss.lose_record(name))
            self.miss(name)
            kept.channels.pop(name, None)
        else:
            self.run(loss.lose_events(name))
            kept.lose_events(name)
        if compare:
            self.compare()

    def miss(self, *names: str) -> None:
        """Take note that channels have lost their leases with their records."""
        self.lost.update(names)
        self.leases.update((name, inf) for name in names if name in self.subscribed)

    @precondition(lambda self: self.rig.loss is not None)
    @rule()
    def replicate(self) -> None:
        loss = self.rig.loss
        assert loss is not None
        self.copy = self.kept.copy(), self.lapsed | self.lost, self.run(loss.copy(SIZES))

    @precondition(lambda self: self.copy is not None)
    @rule(compare=st.booleans())
    def fail_over(self, compare: bool) -> None:
        """Go back to what was replicated: all that came since is lost."""
        loss = self.rig.loss
        assert loss is not None
        assert self.copy is not None
        kept, counted, copy = self.copy
        self.run(loss.go_back(copy))
        self.kept = kept.copy()
        self.lapsed.clear()
        self.lost = set(counted)
        for name in SIZES:
            self.ghosts[name] = self.now + LEASE_S
            self.leases[name] = inf if name in self.subscribed else self.ghosts[name]
        self.expire(must=False)
        if compare:
            self.compare()

    def compare(self) -> None:
        broker = self.rig.broker
        self.run(broker.compare())  # type: ignore[attr-defined]
        self.compared()

    def compared(self) -> None:
        """A node that has compared knows where its channels stand, and has its leases."""
        refused: list[str] = []
        for name in sorted(self.subscribed):
            channel = self.kept.channels.get(name)
            if channel is None:
                top = self.run(self.rig.broker.top(name))
                if top is None:
                    refused.append(name)
                    continue
                channel = self.adopt(name, top)
            if self.last_heard[name] != channel.top:
                self.hear(name, "top", channel.top)
            self.leases.pop(name, None)
        assert all(map(self.full, refused))

    # ---- what must always be so

    @invariant()
    def history_is_the_models(self) -> None:
        for name in SIZES:
            found = self.run(self.rig.broker.history(name, limit=1_000))
            channel = self.kept.channels.get(name)
            assert self.run(self.rig.broker.top(name)) == (channel and channel.top)
            if channel is None:
                assert found is None
                continue
            assert found is not None
            assert (found.top, found.floor) == (channel.top, channel.floor)
            assert entries(found.events) == channel.shown
            times = [event.time for event in found.events]
            assert times == sorted(times)

    @invariant()
    def the_archive_has_all_that_was_not_purged(self) -> None:
        if self.rig.archived is not None:
            for name in SIZES:
                found = self.run(self.rig.archived(name))
                assert entries(found) == self.kept.stored.get(name, [])

    @invariant()
    def the_sink_heard_what_was_acknowledged(self) -> None:
        heard: dict[str, list[tuple[str, Position]]] = {name: [] for name in SIZES}
        for kind, name, what in self.rig.notes.calls:
            notes = heard[name]
            if isinstance(what, Position):
                notes.append((kind, what))
                continue
            self.assert_chained(what)
            notes += [(event.id, event.position) for event in what]
        assert heard == self.heard

    def assert_chained(self, events: list[Event]) -> None:
        for before, event in pairwise(events):
            assert event.before() == before.position

    @invariant()
    def the_list_shows_what_is_active(self) -> None:
        states = self.run(self.rig.broker.channels(prefix="", after="", limit=100))
        assert [(state.channel, state.top) for state in states if self.sure(state.channel)] == [
            (name, channel.top)
            for name, channel in sorted(self.kept.channels.items())
            if self.sure(name) and (channel.expires or name in self.subscribed)
        ]

    def sure(self, name: str) -> bool:
        return name not in self.leases


@pytest.mark.unmeasured
@pytest.mark.parametrize("open_rig", RIG_PARAMS)
def test_any_broker_behaves_like_the_model(open_rig: OpenRig) -> None:
    class MachineOfRig(Machine):
        def __init__(self) -> None:
            super().__init__(open_rig)

    run_state_machine_as_test(
        MachineOfRig,
        settings=settings(
            # Each step over Redis takes some ms.
            max_examples=60 if open_rig is open_memory_rig else 20,
            stateful_step_count=30,
            deadline=None,
            # To look for a simpler course over a real server takes longer than a test may.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
            suppress_health_check=list(HealthCheck),
        ),
    )
