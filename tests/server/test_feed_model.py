"""A feed and its sessions, compared with a simple model of what each has to be told.

The backplane drops, repeats, holds back and swaps; sessions come, stall, go and resume; history is
trimmed and purged, and the broker fails over. Every session gets all events behind its position
once and in order, or is told that it does not.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from config.rules import ChannelRule
from delivery_rig import CHANNEL, Client, LineWire, open_delivery_rig, turns, until
from feed_model import Truth
from pubsub.event import Draft, Event, Published
from pubsub.position import Position
from quick_loop import QuickLoop
from server.feed import State

T = TypeVar("T")

WIRES = [LineWire(), LineWire(), LineWire(individual=True)]
PLENTY = 10_000

# Which of those that are there; one that is not there is another.
which = st.integers(0, 5)
fates = st.sampled_from(["comes", "comes", "lost", "held", "repeated", "swapped", "torn"])


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack = AsyncExitStack()
        self.runner = asyncio.Runner(loop_factory=QuickLoop)
        self.truth = Truth()
        self.names = 0
        self.fate = "comes"
        self.held: list[tuple[str, Sequence[Event]]] = []
        self.clients: list[Client] = []
        self.gone: list[Client] = []
        self.harmless = True

    @initialize(
        history=st.sampled_from([PLENTY, PLENTY, 20, 3, 0]),
        ring=st.sampled_from([0, 4, 256]),
        piece=st.sampled_from([2, 100]),
        slow=st.sampled_from(["disconnect", "disconnect", "conflate"]),
        look_s=st.sampled_from([0.0, 0.0003, 0.01]),
        linger_s=st.sampled_from([0.0, 10.0]),
    )
    def open(
        self, history: int, ring: int, piece: int, slow: str, look_s: float, linger_s: float
    ) -> None:
        for name, value in (
            ("server.hub.RING_SIZE", ring),
            ("server.subscribing._PIECE", piece),
            ("server.repair._PIECE", piece),
            ("server.fanout._LOOK_EVERY", 1),
        ):
            self.stack.enter_context(mock.patch(name, value))
        loop = self.runner.get_loop()
        assert isinstance(loop, QuickLoop)
        rules = ChannelRule(match=">", history_size=history, history_ttl_s=86_400.0, slow=slow)
        opened = open_delivery_rig(rules, linger_s=linger_s, waits=True, monotonic=lambda: loop.now)
        self.rig = self.run(self.stack.enter_async_context(opened))
        self.rig.broker.way = self.way
        self.harmless = history == PLENTY
        loop.look_s = look_s

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def call(self, work: Callable[..., T], *args: Any, **fields: Any) -> T:
        """Call what wants a running loop."""

        async def do() -> T:
            return work(*args, **fields)

        return self.run(do())

    def teardown(self) -> None:
        try:
            if hasattr(self, "rig"):
                self.settle(resume=0)
                self.everybody_knows_what_happened()
        finally:
            self.run(self.stack.aclose())
            self.runner.close()

    def way(self, channel: str, events: Sequence[Event]) -> Iterable[Sequence[Event]]:
        """What the backplane makes of a batch."""
        match self.fate:
            case "lost":
                return ()
            case "held":
                self.held.append((channel, events))
                return ()
            case "repeated":
                return (events, events)
            case "swapped":
                return (events[1:], events[:1]) if len(events) > 1 else (events,)
            case "torn":
                return ((events[0],), events[-1:])
        return (events,)

    # ---- steps

    @rule(number=st.sampled_from([1, 1, 2, 5, 30]), fate=fates, own=st.none() | which)
    def publish(self, number: int, fate: str, own: int | None) -> None:
        self.fate = fate
        exclude = None
        if own is not None and own < len(self.clients):
            exclude = self.clients[own].session.id
        drafts = []
        for _ in range(number):
            self.names += 1
            drafts.append(Draft(CHANNEL, f"e{self.names}", "n", b"1", exclude=exclude))
        for answer in self.run(self.rig.broker.publish(drafts)):
            assert isinstance(answer, Published)
            self.truth.take(answer, exclude)

    @rule(newest_first=st.booleans())
    def arrive(self, newest_first: bool) -> None:
        """What was held back comes, in either order."""
        while self.held:
            self.call(self.rig.broker.sink.on_events, *self.held.pop(-1 if newest_first else 0))

    @rule(
        since=st.none() | st.integers(0, 40),
        rewind=st.none() | st.sampled_from([1, 3, 300]),
        rate=st.none() | st.sampled_from([1.0, 50.0]),
        stalled=st.booleans(),
        wire=st.sampled_from(WIRES),
    )
    def come(
        self,
        since: int | None,
        rewind: int | None,
        rate: float | None,
        stalled: bool,
        wire: LineWire,
    ) -> None:
        if len(self.clients) >= 6:
            return
        client = self.call(self.rig.session, wire=wire)
        client.connection._low_bytes = 400
        client.connection.stalled = stalled
        self.clients.append(client)
        fields: dict[str, Any] = {"rewind": rewind, "max_rate_hz": rate}
        events = list(self.truth.events)
        if since is not None and since < len(events):
            # It may have seen more, on another node, than this one has heard of.
            fields["since"] = str(events[-1 - since])
        self.ask(client, fields)

    @precondition(lambda self: self.gone)
    @rule(place=which)
    def come_back(self, place: int) -> None:
        """A client goes on where it was, as a new session."""
        before = self.gone[place % len(self.gone)]
        if before.connection.of("subscribed") and len(self.clients) < 6:
            client = self.call(self.rig.session, wire=WIRES[0])
            self.clients.append(client)
            self.ask(client, {"since": before.position()})

    def ask(self, client: Client, fields: dict[str, Any]) -> None:
        given = {name: value for name, value in fields.items() if value is not None}
        self.call(client.say, "subscribe", channel=CHANNEL, **given)

    @precondition(lambda self: self.clients)
    @rule(place=which, back=st.booleans())
    def unsubscribe(self, place: int, back: bool) -> None:
        """A session unsubscribes, and perhaps comes again at once to where it was."""
        client = self.clients[place % len(self.clients)]
        self.call(client.say, "unsubscribe", channel=CHANNEL)
        if back:
            known = client.connection.of("subscribed")
            self.ask(client, {"since": client.position() if known else None})

    @precondition(lambda self: self.clients)
    @rule(place=which)
    def go(self, place: int) -> None:
        client = self.clients.pop(place % len(self.clients))
        self.call(client.leave)
        self.gone.append(client)

    @precondition(lambda self: self.clients)
    @rule(place=which, stalled=st.booleans())
    def read(self, place: int, stalled: bool) -> None:
        client = self.clients[place % len(self.clients)]
        client.connection.stalled = stalled
        self.call(client.connection.read)

    @rule(number=st.sampled_from([1, 3, 20]))
    def turn(self, number: int) -> None:
        self.run(turns(number))

    @rule(seconds=st.sampled_from([0.06, 1.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(number=st.sampled_from([0, 0, 1, 5]))
    def slow_down(self, number: int) -> None:
        """Let calls to the broker take their time."""
        self.rig.broker.turns = lambda: number

    @rule(away=st.booleans())
    def falter(self, away: bool) -> None:
        self.rig.broker.away = away

    @rule()
    def compare(self) -> None:
        feed = self.rig.hub.feeds.get(CHANNEL)
        top = self.top()
        if feed is not None and feed.state is not State.OPENING and top is not None:
            self.call(feed.on_top, top)

    def top(self) -> Position | None:
        return self.run(self.rig.broker.inner.top(CHANNEL))

    # ---- harm

    @rule(told=st.booleans())
    def purge(self, told: bool) -> None:
        self.harmless = False
        self.rig.broker.purges = told
        self.run(self.rig.broker.purge(CHANNEL))

    @rule(lost=st.integers(1, 3))
    def fail_over(self, lost: int) -> None:
        """The broker forgets its newest events; their offsets will be others'."""
        top = self.top()
        if top is not None and top.offset > lost and CHANNEL in self.rig.hub.feeds:
            self.harmless = False
            self.run(self.rig.lose_tail(top.offset - lost))

    @rule(told=st.booleans(), ahead=st.integers(0, 3))
    def begin_epoch(self, told: bool, ahead: int) -> None:
        top = self.top()
        if top is not None:
            self.harmless = False
            self.rig.broker.forks = told
            evidence = Position(top.epoch, top.offset + ahead, "f" * 16)
            self.run(self.rig.broker.inner.contradict(CHANNEL, evidence))

    # ---- what must hold

    @rule(resume=st.integers(1, 30))
    def settle(self, resume: int) -> None:
        """One event that comes is enough, and everybody stands at the top."""
        self.rig.broker.away = False
        self.rig.broker.turns = lambda: 0
        self.rig.broker.purges = self.rig.broker.forks = True
        self.arrive(newest_first=False)
        self.publish(number=1, fate="comes", own=None)
        self.run(self.all_read())
        top = self.top()
        for client in self.clients:
            if client.session.subscriptions:
                at = self.truth.follow(client.connection.messages(), client.session.id)
                assert at is not None
                assert top is not None
                assert self.truth.owed(at, top, client.session.id) == 0
        if resume:
            self.run(self.come_from(resume))

    async def all_read(self) -> None:
        for _ in range(40):
            for client in self.clients:
                client.connection.stalled = False
                client.connection.read()
            await asyncio.sleep(2.5)
        await until(lambda: all(client.attached for client in self.clients))
        if CHANNEL in self.rig.hub.feeds:
            await self.rig.live()

    async def come_from(self, back: int) -> None:
        """Whoever comes from an earlier position gets all that history holds, or is refused."""
        history = await self.rig.broker.inner.history(CHANNEL, limit=1_000)
        assert history is not None
        positions = list(self.truth.events)
        if back > len(positions):
            return
        since = positions[-back]
        client = self.rig.session()
        reply = await client.subscribe(since=str(since))
        await until(lambda: client.attached)
        line = [each.before() for each in history.events] + [history.top]
        kept = since in line[-back:] and since.epoch == history.top.epoch
        if kept and since.offset >= history.floor:
            assert reply["recovered"] is True
        elif since.epoch != history.top.epoch:
            assert reply["recovered"] is False
        at = self.truth.follow(client.connection.messages(), client.session.id)
        assert at == history.top
        client.leave()

    @invariant()
    def everybody_knows_what_happened(self) -> None:
        for client in self.clients + self.gone:
            messages = client.connection.messages()
            self.truth.follow(messages, client.session.id)
            if self.harmless:
                assert not client.connection.of("reset")
                assert all(each.get("recovered", True) for each in messages)


def test_every_session_is_told_what_the_model_says(expect_log: Any) -> None:
    expect_log("server.repair", "feed reset", required=False)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
