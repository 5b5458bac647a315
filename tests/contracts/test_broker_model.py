"""What any broker must do: compared, step by step, with a model that is too simple to be wrong."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker_rig import RIG_PARAMS, OpenRig, draft, open_memory_rig
from config.rules import ChannelRule
from pubsub.event import Event
from pubsub.position import Position, chain, start

T = TypeVar("T")

WINDOW_S = 20.0
POSITION_TTL_S = 60.0
TTL_S = 10.0
SIZES = {"a": 500, "a.b": 3, "few.x": 10, "none.x": 0}

channel_names = st.sampled_from(sorted(SIZES))
event_ids = st.sampled_from([f"id{n}" for n in range(12)])


@dataclass
class Channel:
    """What the model holds of a channel."""

    top: Position
    touched: float
    events: list[tuple[Position, str]] = field(default_factory=list)
    expires: float = 0.0
    floor: int = 0
    ids: dict[str, tuple[Position, float]] = field(default_factory=dict)
    subscribed: bool = False


class Machine(RuleBasedStateMachine):
    def __init__(self, open_rig: OpenRig) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        rules = [
            ChannelRule(match=match, history_size=size, history_ttl_s=TTL_S)
            for match, size in SIZES.items()
        ]
        opened = open_rig(rules=rules, idempotency_window_s=WINDOW_S, position_ttl_s=POSITION_TTL_S)
        self.rig = self.run(self.stack.enter_async_context(opened))
        self.channels: dict[str, Channel] = {}
        # The highest offset that each channel ever had.
        self.highest: dict[str, int] = {}
        # What the sink must have heard.
        self.heard: dict[str, list[tuple[str, Position]]] = {name: [] for name in SIZES}

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()

    @property
    def now(self) -> float:
        return self.rig.clock.monotonic()

    def adopt(self, name: str, top: Position) -> Channel:
        """Take over a top that the broker made up: a new record starts with any epoch.

        It starts at 0, or above what a stream in Redis, which goes later than it must, still holds.
        """
        assert top == start(top.epoch, top.offset)
        assert top.offset <= self.highest.get(name, 0)
        self.channels[name] = Channel(top, self.now)
        return self.channels[name]

    # ---- steps

    @rule(batch=st.lists(st.tuples(channel_names, event_ids), max_size=8))
    def publish(self, batch: list[tuple[str, str]]) -> None:
        answers = self.run(self.rig.publish(*[draft(i, name) for name, i in batch]))
        assert len(answers) == len(batch)
        for (name, event_id), answer in zip(batch, answers, strict=True):
            assert (answer.channel, answer.id) == (name, event_id)
            channel = self.channels.get(name)
            if channel is None:
                first = answer.position
                channel = self.adopt(name, start(first.epoch, first.offset - 1))
            position, taken = channel.ids.get(event_id, (None, 0.0))
            if answer.duplicate:
                assert position == answer.position
                assert self.now <= taken + 2 * WINDOW_S
                continue
            assert position is None or self.now >= taken + WINDOW_S
            self._take(name, channel, event_id, answer.position)

    def _take(self, name: str, channel: Channel, event_id: str, given: Position) -> None:
        top = channel.top
        position = Position(top.epoch, top.offset + 1, chain(top.check, event_id))
        assert given == position
        channel.top = position
        self.highest[name] = position.offset
        channel.ids[event_id] = (position, self.now)
        channel.touched = self.now
        channel.expires = self.now + TTL_S
        channel.events.append((position, event_id))
        channel.events = channel.events[-SIZES[name] :] if SIZES[name] else []
        if channel.subscribed:
            self.heard[name].append((event_id, position))

    @rule(name=channel_names)
    def subscribe(self, name: str) -> None:
        top = self.run(self.rig.broker.subscribe(name))
        channel = self.channels.get(name) or self.adopt(name, top)
        assert top == channel.top
        channel.subscribed = True

    @rule(name=channel_names)
    def unsubscribe(self, name: str) -> None:
        self.run(self.rig.broker.unsubscribe(name))
        channel = self.channels.get(name)
        if channel is not None and channel.subscribed:
            channel.subscribed = False
            channel.touched = self.now

    @rule(name=channel_names)
    def purge(self, name: str) -> None:
        async def purge() -> Position | None:
            async with self.rig.settle():
                return await self.rig.broker.purge(name)

        floor = self.run(purge())
        channel = self.channels.get(name)
        if channel is None:
            assert floor is None
            return
        assert floor == channel.top
        channel.floor = channel.top.offset
        channel.events = []
        channel.touched = self.now
        if channel.subscribed:
            self.heard[name].append(("purge", channel.top))

    @rule(name=channel_names, below=st.integers(-3, 12), wrong=st.booleans())
    def contradict(self, name: str, below: int, wrong: bool) -> None:
        channel = self.channels.get(name)
        if channel is None:
            return
        offset = max(0, channel.top.offset - below)
        known = {position.offset: position for position, _ in channel.events}
        known[channel.top.offset] = channel.top
        right = known.get(offset)
        evidence = Position(channel.top.epoch, offset, "f" * 16)
        if not wrong and right is not None and right.epoch == channel.top.epoch:
            evidence = right
        fork = offset > channel.top.offset or (
            evidence is not right and right is not None and right.epoch == channel.top.epoch
        )

        async def contradict() -> Position:
            async with self.rig.settle():
                return await self.rig.broker.contradict(name, evidence)

        top = self.run(contradict())
        if not fork and top != channel.top:
            # The event behind it is kept, and tells the check at an offset where none is.
            first = min(p.offset for p, _ in channel.events if p.epoch == channel.top.epoch)
            fork = offset == first - 1
        if not fork:
            assert top == channel.top
            return
        higher = max(offset, channel.top.offset)
        assert top.epoch != channel.top.epoch
        assert top == Position(top.epoch, higher, top.epoch)
        channel.top = top
        self.highest[name] = top.offset
        channel.touched = self.now
        if channel.subscribed:
            self.heard[name].append(("fork", top))

    @rule(seconds=st.sampled_from([0.001, 1.0, 9.0, 11.0, 25.0, 41.0, 130.0]), tidy=st.booleans())
    def time_passes(self, seconds: float, tidy: bool) -> None:
        self.run(self.rig.advance(seconds))
        if tidy:
            self.run(self.rig.tidy())
        for name, channel in list(self.channels.items()):
            if channel.events and channel.expires <= self.now:
                channel.events = []
                channel.touched = max(channel.touched, channel.expires)
            idle = not channel.events and not channel.subscribed
            if idle and channel.touched + POSITION_TTL_S <= self.now:
                self._may_lapse(name, channel, must=tidy)

    def _may_lapse(self, name: str, channel: Channel, must: bool) -> None:
        top = self.run(self.rig.broker.top(name))
        if top is None:
            del self.channels[name]
        else:
            assert not must or not self.rig.lapses
            assert top == channel.top

    @precondition(lambda self: not self.rig.one_clock)
    @rule(wall_s=st.sampled_from([-5_000.0, 5_000.0]))
    def clock_steps(self, wall_s: float) -> None:
        self.rig.clock.wall_s += wall_s

    # ---- what must always be so

    @invariant()
    def history_is_the_models(self) -> None:
        for name in SIZES:
            found = self.run(self.rig.broker.history(name, limit=1_000))
            channel = self.channels.get(name)
            if channel is None:
                assert found is None
                continue
            assert found is not None
            assert (found.top, found.floor) == (channel.top, channel.floor)
            assert [(event.position, event.id) for event in found.events] == channel.events
            times = [event.time for event in found.events]
            assert times == sorted(times)

    @invariant()
    def the_sink_heard_what_was_acknowledged(self) -> None:
        heard: dict[str, list[tuple[str, Position]]] = {name: [] for name in SIZES}
        for kind, name, what in self.rig.notes.calls:
            notes = heard[name]
            if isinstance(what, Position):
                notes.append((kind, what))
                continue
            self._assert_chained(what)
            notes += [(event.id, event.position) for event in what]
        assert heard == self.heard

    def _assert_chained(self, events: list[Event]) -> None:
        for before, event in pairwise(events):
            assert event.before() == before.position

    @invariant()
    def the_list_shows_what_is_active(self) -> None:
        states = self.run(self.rig.broker.channels(prefix="", after="", limit=100))
        assert [(state.channel, state.top) for state in states] == [
            (name, channel.top)
            for name, channel in sorted(self.channels.items())
            if channel.events or channel.subscribed
        ]


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
            suppress_health_check=list(HealthCheck),
        ),
    )
