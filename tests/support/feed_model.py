"""What a feed must tell its sessions, as a model that is too simple to be wrong."""

from collections.abc import Mapping
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
class Asked:
    """What a session asked for when it subscribed; `cut`: what had been sent when it was told so.

    It `conflates` if the newest event is enough for it. `least` is where it begins at the latest.
    """

    since: str | None = None
    rewind: int | None = None
    conflates: bool = False
    cut: Position | None = None
    least: int | None = None

    def check(self, message: dict[str, Any], position: Position) -> None:
        """Compare with what it was told."""
        recovered = message.get("recovered")
        assert (recovered is None) == (self.since is None), (
            "told of a position that it did not give"
        )
        if recovered:
            assert message["position"] == self.since, "resumed elsewhere"
        elif self.rewind is None:
            assert position == self.cut, "not where what follows begins"
        elif self.least is not None:
            assert position.offset <= self.least, "fewer events than it asked for"


@dataclass
class Truth:
    """All events that a channel ever had, each at a position of its own.

    `begun` holds the positions before the first event of each epoch.
    """

    events: dict[Position, Happened] = field(default_factory=dict)
    begun: set[Position] = field(default_factory=set)
    _places: dict[tuple[str, int], list[Position]] = field(default_factory=dict)

    def take(self, answer: Published, exclude: str | None) -> None:
        """Take note of an acknowledgement, at the place that the broker gave it."""
        at = answer.position
        place = (at.epoch, at.offset - 1)
        line = self._places.get(place, [])
        before = next((each for each in line if chain(each.check, answer.id) == at.check), None)
        if before is None:
            before = start(*place)
            self.begun.add(before)
        assert chain(before.check, answer.id) == at.check, "it does not chain"
        assert at not in self.events, "two events at one position"
        self.events[at] = Happened(at, before, answer.id, exclude)
        self._places.setdefault((at.epoch, at.offset), []).append(at)

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

    def follow(
        self, messages: list[dict[str, Any]], session: str, asked: Mapping[int, Asked]
    ) -> Position | None:
        """Follow what a session was told, step by step; return where it stands at the end.

        It begins where it `asked` to. Each event continues what was told before, unless it says how
        many it skipped, which only those hear for whom the newest is enough. Where that is not so a
        `reset` tells it, and nothing is told twice.
        """
        at: Position | None = None
        conflates = False
        told: set[Position] = set()
        for message in messages:
            kind = message["type"]
            if kind not in ("subscribed", "unsubscribed", "reset", "event"):
                continue
            if kind == "unsubscribed":
                at = None
                continue
            position = Position.parse(message["position"])
            assert position in self.events or position in self.begun, "it never was"
            if kind == "subscribed":
                assert at is None, "subscribed twice"
                asked[message["ref"]].check(message, position)
                conflates = asked[message["ref"]].conflates
                told.clear()
            elif kind == "reset":
                assert at is not None, "a reset of nothing"
                assert position != at, "a reset to where it was"
                assert position.epoch != at.epoch or position.offset >= at.offset, "it goes back"
            else:
                assert at is not None, "an event of no subscription"
                event = self.events[position]
                assert event.id == message["id"]
                assert event.exclude != session
                assert position not in told, "told twice"
                assert conflates or "skipped" not in message, "it is owed all of them"
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
