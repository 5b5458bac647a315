"""What a broker must do, as a model that is too simple to be wrong; times are in s."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import NamedTuple

from pubsub.event import Event
from pubsub.position import Position, chain


class Entry(NamedTuple):
    """An event: where it stands, the check before it, and its id."""

    position: Position
    prev: str
    id: str


class Remembered(NamedTuple):
    """Where an id was published, until when that must be known, and until when it may be."""

    position: Position
    must: float
    may: float
    wall: float


def entries(events: Sequence[Event]) -> list[Entry]:
    """Return what the model says of events."""
    return [Entry(each.position, each.prev, each.id) for each in events]


@dataclass
class Channel:
    """A channel that has a record.

    `shown` are the events that the rule shows, `stored` all that were neither purged nor lost, of
    earlier records too.
    """

    top: Position
    touched: float
    stored: list[Entry]
    shown: list[Entry] = field(default_factory=list)
    expires: float = 0.0
    floor: int = 0

    def add(self, event_id: str, size: int, now: float, ttl_s: float) -> Position:
        """Publish an event; return its position."""
        top = self.top
        self.top = Position(top.epoch, top.offset + 1, chain(top.check, event_id))
        self.touched = now
        self.expires = now + ttl_s if size else 0.0
        entry = Entry(self.top, top.check, event_id)
        self.stored.append(entry)
        self.shown = [*self.shown, entry][-size:] if size else []
        return self.top

    def expire(self, now: float) -> None:
        """Let what has expired be shown no more."""
        if self.expires and self.expires <= now:
            self.touched = max(self.touched, self.expires)
            self.hide()

    def hide(self) -> None:
        self.shown, self.expires = [], 0.0

    def purge(self, now: float) -> None:
        self.hide()
        self.stored.clear()
        self.floor, self.touched = self.top.offset, now

    def contradicted(self, evidence: Position) -> bool:
        """Say whether what is shown cannot be true together with `evidence`."""
        if evidence.epoch != self.top.epoch:
            return False
        if evidence.offset > self.top.offset:
            return True
        checks = {self.top.offset: self.top.check}
        for entry in reversed(self.shown):
            at = entry.position
            if at.epoch == self.top.epoch:
                checks.setdefault(at.offset, at.check)
                checks.setdefault(at.offset - 1, entry.prev)
        return checks.get(evidence.offset, evidence.check) != evidence.check

    def allows(self, found: list[Entry], reading: "Reading") -> bool:
        """Say whether a reading may have found this."""
        shown = reading.chosen(self.shown)
        if not reading.hidden:
            return found == reading.limited(shown)
        # What is kept beyond what is shown is the broker's matter, but it is one run up to the end.
        stored = reading.chosen(self.stored)
        if len(found) < min(reading.limit, len(shown)):
            return False
        if reading.newest or len(found) < reading.limit:
            return found == stored[len(stored) - len(found) :]
        first = stored.index(found[0]) if found and found[0] in stored else 0
        reaches = not shown or not found or found[0].position.offset <= shown[0].position.offset
        return reaches and found == stored[first : first + reading.limit]


@dataclass(frozen=True)
class Reading:
    """What is asked of a channel's history."""

    after: int
    before: int | None
    limit: int
    newest: bool
    hidden: bool

    def chosen(self, among: list[Entry]) -> list[Entry]:
        """Return the entries of the range."""
        end = float("inf") if self.before is None else self.before
        return [each for each in among if self.after < each.position.offset < end]

    def limited(self, among: list[Entry]) -> list[Entry]:
        """Return as many as are asked for."""
        if self.newest:
            return among[max(0, len(among) - self.limit) :]
        return among[: self.limit]


@dataclass
class Kept:
    """What a broker keeps: all that is lost, or goes back in time, with its data.

    `last` is the highest offset of an event of which there still is a trace.
    """

    channels: dict[str, Channel] = field(default_factory=dict)
    stored: dict[str, list[Entry]] = field(default_factory=dict)
    ids: dict[tuple[str, str], Remembered] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)

    def make(self, name: str, top: Position, now: float) -> Channel:
        """Make the record of a channel."""
        stored = self.stored.setdefault(name, [])
        channel = self.channels[name] = Channel(top, now, stored)
        return channel

    def copy(self) -> "Kept":
        return deepcopy(self)

    def forget(self, name: str) -> None:
        """Let no trace of a channel be left."""
        self.last.pop(name, None)
        if self.stored.get(name):
            del self.stored[name]

    def lose_events(self, name: str) -> None:
        """Lose the events of a channel, but not its record."""
        self.last.pop(name, None)
        self.stored.get(name, []).clear()
        if name in self.channels:
            self.channels[name].shown = []
