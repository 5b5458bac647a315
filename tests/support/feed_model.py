"""What a feed must tell its sessions, as a model that is too simple to be wrong."""

from dataclasses import dataclass, field
from typing import Any

from pubsub.event import Published
from pubsub.position import Position, chain, start


@dataclass(frozen=True)
class Happened:
    """An event at its place: its id, the position before it, and the session that is left out."""

    position: Position
    before: Position
    id: str
    exclude: str | None


@dataclass
class Truth:
    """All events that a channel ever had, each at a position of its own."""

    events: dict[Position, Happened] = field(default_factory=dict)

    def take(self, answer: Published, exclude: str | None) -> None:
        """Take note of an acknowledgement, at the place that the broker gave it."""
        at = answer.position
        line = [each for each in self.events if each.epoch == at.epoch]
        before = next((each for each in line if chain(each.check, answer.id) == at.check), None)
        if before is None or before.offset != at.offset - 1:
            before = start(at.epoch, at.offset - 1)
        assert chain(before.check, answer.id) == at.check, "it does not chain"
        assert at not in self.events, "two events at one position"
        self.events[at] = Happened(at, before, answer.id, exclude)

    def missed(self, at: Position, by: Position, session: str) -> int | None:
        """Return how many events for a session lie behind `at`, before the one at `by`.

        None if that does not continue `at`.
        """
        count = 0
        while (before := self.events[by].before) != at:
            if before not in self.events or before.offset < at.offset:
                return None
            count += self.events[before].exclude != session
            by = before
        return count

    def follow(self, messages: list[dict[str, Any]], session: str) -> Position | None:
        """Follow what a session was told, step by step; return where it stands at the end.

        Each event continues what was told before, unless it says how many it skipped. Where that
        is not so a `reset` tells it, and nothing is told twice.
        """
        at: Position | None = None
        told: set[Position] = set()
        for message in messages:
            kind = message["type"]
            if kind not in ("subscribed", "unsubscribed", "reset", "event"):
                continue
            if kind == "unsubscribed":
                at = None
                continue
            position = Position.parse(message["position"])
            if kind == "subscribed":
                told.clear()
            elif kind == "reset":
                assert at is not None, "a reset of nothing"
                assert position.epoch != at.epoch or position.offset >= at.offset, "it goes back"
            else:
                assert at is not None, "an event of no subscription"
                event = self.events[position]
                assert event.id == message["id"]
                assert event.exclude != session
                assert position not in told, "told twice"
                assert self.missed(at, position, session) == message.get("skipped", 0)
                told.add(position)
            at = position
        return at

    def owed(self, at: Position, top: Position, session: str) -> int | None:
        """Return how many events a session that stands at `at` is yet to get, up to the top."""
        if at == top:
            return 0
        if top not in self.events:
            return None
        missed = self.missed(at, top, session)
        return None if missed is None else missed + (self.events[top].exclude != session)
