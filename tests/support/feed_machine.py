"""A feed and its sessions, and what may happen to them, step by step, for a state machine.

The backplane drops, repeats, holds back and swaps; sessions come, stall, go and resume; history is
trimmed and purged, and the broker fails over.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from copy import copy
from typing import Any, TypeVar
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from config.rules import ChannelRule
from delivery_rig import CHANNEL, Client, LineWire, open_delivery_rig, turns
from feed_model import Asked, Truth
from feed_witness import Witness
from pubsub.errors import PubSubError
from pubsub.event import Draft, Event, Published
from pubsub.position import Position
from quick_loop import QuickLoop
from server.closing import Closing
from server.feed import State

T = TypeVar("T")

WIRES = [LineWire(), LineWire(), LineWire(individual=True)]
PLENTY = 10_000
PIECE_BYTES = 400
LOW_BYTES = 400

# Which of those that are there; one that is not there is another.
which = st.integers(0, 5)
# How many events lie behind a position.
behind = st.sampled_from([0, 0, 1, 2, 4, 8, 20, 40])
few = st.integers(1, 3)
ends = st.sampled_from(["event", "event", "top", "purge", "itself"])
fates = st.sampled_from(["comes", "comes", "lost", "held", "repeated", "swapped", "torn"])


class FeedMachine(RuleBasedStateMachine):
    """One step at a time; `harms` says what may be lost for good, and `last` what comes last."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = AsyncExitStack()
        self.runner = asyncio.Runner(loop_factory=QuickLoop)
        self.truth = Truth()
        self.names = 0
        self.fate = "comes"
        self.held: list[tuple[str, Sequence[Event]]] = []
        self.clients: list[Client] = []
        self.leaving: list[Client] = []
        self.gone: list[Client] = []
        self.witnesses: dict[str, Witness] = {}
        # Nothing was lost for good; nothing but by a purge or by its age; every purge was told.
        self.harmless = True
        self.whole = True
        self.purges_told = True
        # Something was lost on the way, and nothing has come since by which it shows.
        self.behind = False

    @initialize(
        history=st.sampled_from([PLENTY, PLENTY, 20, 3, 0]),
        ring=st.sampled_from([0, 4, 256, 256]),
        piece=st.sampled_from([2, 100]),
        slow=st.sampled_from(["disconnect", "disconnect", "conflate"]),
        look_s=st.sampled_from([0.0, 0.0003, 0.01]),
        linger_s=st.sampled_from([0.0, 10.0]),
        harms=st.sampled_from(["", "purges", "forks", "purges and forks"]),
        sliced=st.booleans(),
        last=st.tuples(few, st.booleans(), st.sampled_from([-3, 0, 0, 1]), ends, few),
    )
    def open(
        self,
        history: int,
        ring: int,
        piece: int,
        slow: str,
        look_s: float,
        linger_s: float,
        harms: str,
        sliced: bool,
        last: tuple[int, bool, int, str, int],
    ) -> None:
        for name, value in (
            ("server.hub.RING_SIZE", ring),
            ("server.subscribing._PIECE", piece),
            ("server.subscribing._PIECE_BYTES", PIECE_BYTES),
            ("server.repair._PIECE", piece),
            ("server.fanout._LOOK_EVERY", 1),
            *((("server.fanout._HOLD_S", -1.0),) * sliced),
        ):
            self.stack.enter_context(mock.patch(name, value))
        loop = self.runner.get_loop()
        assert isinstance(loop, QuickLoop)
        rules = ChannelRule(match=">", history_size=history, history_ttl_s=86_400.0, slow=slow)
        opened = open_delivery_rig(rules, linger_s=linger_s, waits=True, monotonic=lambda: loop.now)
        self.rig = self.run(self.stack.enter_async_context(opened))
        self.rig.broker.way = self.way
        self.rule = rules
        self.harms = harms
        self.last = last
        self.harmless = history == PLENTY
        loop.look_s = look_s

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def call(self, work: Callable[..., T], *args: Any, **fields: Any) -> T:
        """Call what wants a running loop."""

        async def do() -> T:
            return work(*args, **fields)

        return self.run(do())

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

    @rule(
        number=st.sampled_from([1, 1, 2, 5, 30]),
        fate=fates,
        own=st.none() | which,
        size=st.sampled_from([1, 1, 150]),
    )
    def publish(
        self,
        number: int,
        fate: str,
        own: int | None = None,
        size: int = 1,
        first: Callable[[], object] = lambda: None,
    ) -> None:
        self.fate = fate
        feed = self.rig.hub.feeds.get(CHANNEL)
        if fate == "lost":
            self.behind = True
        elif fate != "held" and (feed is None or feed.state is not State.OPENING):
            self.behind = False
        exclude = None
        if own is not None and own < len(self.clients):
            exclude = self.clients[own].session.id
        drafts = []
        for _ in range(number):
            self.names += 1
            drafts.append(Draft(CHANNEL, f"e{self.names}", "n", b"1" * size, exclude=exclude))

        async def publish() -> list[Published | PubSubError]:
            first()
            return await self.rig.broker.publish(drafts)

        for answer in self.run(publish()):
            assert isinstance(answer, Published)
            self.truth.take(answer, exclude)

    @rule(newest_first=st.booleans())
    def arrive(self, newest_first: bool) -> None:
        """What was held back comes, in either order."""
        while self.held:
            self.call(self.rig.broker.sink.on_events, *self.held.pop(-1 if newest_first else 0))

    @rule(
        since=st.none() | behind,
        rewind=st.none() | st.sampled_from([1, 3, 300]),
        rate=st.none() | st.sampled_from([1.0, 50.0]),
        stalled=st.booleans(),
        wire=st.sampled_from(WIRES),
    )
    def come(
        self,
        since: int | None = None,
        rewind: int | None = None,
        rate: float | None = None,
        stalled: bool = False,
        wire: LineWire = WIRES[0],
    ) -> None:
        if len(self.clients) >= 6:
            return
        client = self.new_client(wire)
        client.connection.stalled = stalled
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
            self.ask(self.new_client(WIRES[0]), {"since": before.position()})

    def new_client(self, wire: LineWire) -> Client:
        client = self.call(self.rig.session, wire=wire)
        client.connection._low_bytes = LOW_BYTES
        self.clients.append(client)
        self.witness(client)
        return client

    def witness(self, client: Client) -> Witness:
        witness = self.witnesses[client.session.id] = Witness(
            client,
            CHANNEL,
            piece_bytes=PIECE_BYTES,
            low_bytes=LOW_BYTES,
            whole=lambda: self.whole,
            all_kept=lambda: self.harmless,
        )
        return witness

    def ask(self, client: Client, fields: dict[str, Any]) -> None:
        given = {name: value for name, value in fields.items() if value is not None}
        conflates = self.rule.slow == "conflate" or "max_rate_hz" in given
        asked = Asked(given.get("since"), given.get("rewind"), conflates)
        # Told at once, perhaps.
        self.witnesses[client.session.id].asked[next(copy(client._refs))] = asked
        self.call(client.say, "subscribe", channel=CHANNEL, **given)

    def follow(self, client: Client) -> Position | None:
        witness = self.witnesses[client.session.id]
        assert not witness.faults, witness.faults
        assert not client.connection.too_late, "something was sent behind the close"
        messages = client.connection.messages()
        return self.truth.follow(messages, client.session.id, witness.asked)

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
        self.leaving.append(client)

    @precondition(lambda self: self.clients)
    @rule(place=which, amid=st.booleans())
    def end(self, place: int, amid: bool) -> None:
        """The server ends a session, just before an event is sent, or amid it."""
        client = self.clients.pop(place % len(self.clients))
        if amid:
            self.publish(1, "comes")
        self.publish(1, "comes", first=lambda: client.session.end(Closing.ENDED))
        self.leaving.append(client)

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
            self.behind = False
            self.call(feed.on_top, top)

    def top(self) -> Position | None:
        top = self.run(self.rig.broker.inner.top(CHANNEL))
        self.truth.begun.update(self.rig.broker.forked)
        if top is not None and top not in self.truth.events:
            self.truth.begun.add(top)
        return top

    # ---- harm

    @precondition(lambda self: "purges" in self.harms)
    @rule(told=st.booleans())
    def purge(self, told: bool) -> None:
        self.harmless = False
        self.purges_told &= told
        self.rig.broker.purges = told
        self.run(self.rig.broker.purge(CHANNEL))

    @precondition(lambda self: "forks" in self.harms)
    @rule(lost=few, unseen=st.booleans(), again=few | st.just(0))
    def fail_over(self, lost: int, unseen: bool, again: int) -> None:
        """The broker forgets its newest events; their offsets will be others'.

        It may be that nobody has seen them, and that nothing comes of those that take their place.
        """
        if unseen:
            self.publish(lost, "lost")
        top = self.top()
        kept = self.rig.broker.inner._records[CHANNEL].events if top is not None else []
        if top is None or CHANNEL not in self.rig.hub.feeds:
            return
        if any(event.position.offset <= top.offset - lost for event in kept):
            self.harmless = self.whole = False
            self.behind = True
            self.run(self.rig.lose_tail(top.offset - lost))
            if again:
                self.publish(again, "lost")

    @precondition(lambda self: "forks" in self.harms)
    @rule(told=st.booleans(), ahead=st.integers(0, 3))
    def begin_epoch(self, told: bool, ahead: int) -> None:
        top = self.top()
        if top is not None:
            self.harmless = self.whole = False
            self.behind |= not told
            self.rig.broker.forks = told
            evidence = Position(top.epoch, top.offset + ahead, "f" * 16)
            self.run(self.rig.broker.inner.contradict(CHANNEL, evidence))
