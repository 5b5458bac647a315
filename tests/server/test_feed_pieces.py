"""A feed alone, and pieces of the truth: whatever it hears, it tells a prefix of it, in order."""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from delivery_rig import HandLoop, LineWire, NotedConnection, as_loop
from pubsub.event import Event
from pubsub.position import Position, chain, start
from server.fanout import Turn
from server.feed import Feed, State
from server.metrics import Metrics
from server.subscription import Subscription

CHANNEL = "a.b"
EPOCH = "e" * 16
RING = 8


def truth(count: int) -> list[Event]:
    """A channel's events, chained."""
    events, at = [], start(EPOCH)
    for number in range(1, count + 1):
        position = Position(EPOCH, number, chain(at.check, f"e{number}"))
        events.append(Event(CHANNEL, position, at.check, f"e{number}", "n", b"1", number))
        at = position
    return events


@dataclass(slots=True)
class Model:
    """A feed with one attached session, and how often it asked for a repair."""

    doubts: int = 0
    feed: Feed = field(init=False)
    connection: NotedConnection = field(default_factory=NotedConnection)
    loop: HandLoop = field(default_factory=HandLoop)

    def __post_init__(self) -> None:
        self.feed = Feed(
            CHANNEL, Turn(as_loop(self.loop)), Metrics(version="0"), RING, self._on_doubt
        )
        self.feed.open(start(EPOCH))
        session = SimpleNamespace(id="s", wire=LineWire(), connection=self.connection)
        subscription = Subscription(cast(Any, session), CHANNEL)
        subscription.live = True
        self.feed.attach(subscription)

    def _on_doubt(self, _feed: Feed) -> None:
        self.doubts += 1

    def told(self) -> list[str]:
        self.loop.advance(60)
        lines = b"".join(self.connection.sent).splitlines()
        return [message["id"] for line in lines if (message := json.loads(line))["type"] == "event"]


deliveries = st.lists(
    st.tuples(st.integers(0, 14), st.integers(1, 5)),
    max_size=20,
)


@given(deliveries)
def test_a_prefix_of_the_truth_in_order_whatever_is_heard(pieces: list[tuple[int, int]]) -> None:
    """Pieces of the truth come in any order, again, or not at all."""
    events, model = truth(15), Model()
    for first, count in pieces:
        piece = events[first : first + count]
        before, state = model.feed.top.offset, model.feed.state
        model.feed.on_events(piece)
        if state is State.LIVE and before - RING <= first + 1 <= before + 1:
            # It begins where the ring can tell: what is new of it is taken.
            assert model.feed.top.offset == max(before, first + len(piece))
            assert model.feed.state is State.LIVE
        elif state is State.LIVE:
            # Behind a gap, or older than the ring: whether it is true has to be looked up.
            assert model.feed.state is State.REPAIRING
            assert model.feed.heard == first + len(piece)
    top = model.feed.top.offset
    assert model.told() == [event.id for event in events[:top]]
    assert model.doubts == (model.feed.state is State.REPAIRING)
    # The ring serves whoever comes back to any position that it holds.
    for offset in range(max(0, top - RING), top + 1):
        at = start(EPOCH) if offset == 0 else events[offset - 1].position
        assert model.feed.sequence.since(at, 100) == events[offset:top]
    # A repair that brings what is missing leaves nothing out and nothing twice.
    if top < 15:
        model.feed.accept(events[top:])
    model.feed.repaired()
    assert model.told() == [event.id for event in events]


@given(st.integers(1, 10), st.integers(1, 10), st.booleans())
def test_another_history_is_never_taken_for_a_known_one(
    accepted: int, place: int, same_offset: bool
) -> None:
    """An event that differs anywhere before it is no event of this feed."""
    events, model = truth(12), Model()
    model.feed.on_events(events[:accepted])
    other = events[min(place, accepted) - 1] if same_offset else events[accepted]
    forged = Event(
        CHANNEL,
        Position(EPOCH, other.position.offset, "f" * 16),
        other.prev if same_offset else "f" * 16,
        "forged",
        "n",
        b"1",
        1,
    )
    model.feed.on_events((forged,))
    assert model.feed.state is State.REPAIRING
    assert model.doubts == 1
    assert model.told() == [event.id for event in events[:accepted]]
