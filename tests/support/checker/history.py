"""What was seen in a run? This file: its records, sorted by what they are about (pure)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha1
from typing import NamedTuple

from checker.records import (
    Closed,
    Delivery,
    Drained,
    Dump,
    Fault,
    Present,
    Publish,
    Record,
    Reset,
    Scope,
    Seen,
    Strange,
    Subscribed,
)


class Place(NamedTuple):
    """A position, read apart from the product's own code."""

    epoch: str
    offset: int
    check: str


def place(text: str) -> Place:
    """Read a position."""
    epoch, offset, check = text.split("-")
    return Place(epoch, int(offset), check)


def follows(check: str, event_id: str) -> str:
    """Return the check of the event that follows: 16 digits of SHA-1 over check and id."""
    return sha1((check + event_id).encode(), usedforsecurity=False).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise: which rule, and what broke it."""

    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


@dataclass(slots=True)
class Published:
    """An event, over all attempts to publish it."""

    channel: str
    id: str
    data: str
    publisher: str
    began: float
    # When it was first acknowledged, and where (more than once only if something is wrong).
    acknowledged: float | None = None
    places: list[Place] = field(default_factory=list)
    refused: bool = True

    def add(self, attempt: Publish) -> None:
        self.began = min(self.began, attempt.began)
        self.refused = self.refused and attempt.outcome == "refused"
        if attempt.outcome == "acknowledged":
            if self.acknowledged is None:
                self.acknowledged = attempt.at
            if (at := place(attempt.position)) not in self.places:
                self.places.append(at)


@dataclass(frozen=True, slots=True)
class Telling:
    """A client was told that events may be missing, and goes on behind a place."""

    at: float
    place: Place

    def excuses(self, event: Published, where: Place) -> bool:
        """Say whether it tells of this event: one that was begun before, and does not follow."""
        follows = where.epoch == self.place.epoch and where.offset > self.place.offset
        return not follows and event.began < self.at


@dataclass(slots=True)
class Thread:
    """What one client saw of one channel, in order."""

    client: str
    channel: str
    records: list[Subscribed | Delivery | Reset] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.client} on {self.channel}"

    def tellings(self) -> Iterator[Telling]:
        """Yield what it was told; the first is that it began."""
        for number, record in enumerate(self.records):
            match record:
                case Reset() | Subscribed(recovered=False):
                    yield Telling(record.at, place(record.position))
                case Subscribed() if not number or record.recovered is None:
                    yield Telling(record.at, place(record.position))

    def got(self) -> Iterator[tuple[Delivery, Place]]:
        """Yield what was delivered."""
        for record in self.records:
            if isinstance(record, Delivery):
                yield record, place(record.position)


@dataclass(slots=True)
class History:
    """The records of one run, by what they are about."""

    scope: Scope = field(default_factory=Scope)
    events: dict[tuple[str, str], Published] = field(default_factory=dict)
    threads: dict[tuple[str, str], Thread] = field(default_factory=dict)
    dumps: list[Dump] = field(default_factory=list)
    strange: list[Strange] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    seen: dict[tuple[str, str], list[Seen]] = field(default_factory=lambda: defaultdict(list))
    present: dict[str, list[Present]] = field(default_factory=lambda: defaultdict(list))
    # Of each client: how many of its sessions ended, which one it is in, and whether it went.
    endings: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    closed: list[Closed] = field(default_factory=list)
    sessions: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    drained: float | None = None

    @classmethod
    def of(cls, records: Iterable[Record]) -> "History":
        history = cls()
        for record in records:
            history._add(record)
        return history

    def _add(self, record: Record) -> None:
        match record:
            case Scope():
                self.scope = record
            case Publish(channel=channel, id=event_id):
                self.events.setdefault(
                    (channel, event_id),
                    Published(channel, event_id, record.data, record.publisher, record.began),
                ).add(record)
            case Subscribed() | Delivery() | Reset():
                if isinstance(record, Subscribed):
                    self.sessions[record.client] = record.session
                key = (record.client, record.channel)
                self.threads.setdefault(key, Thread(*key)).records.append(record)
            case Closed():
                if self.sessions.get(record.client) == record.session:
                    del self.sessions[record.client]
                if record.last:
                    self.gone.add(record.client)
                else:
                    self.endings[record.client] += 1
                    self.closed.append(record)
            case Seen():
                self.seen[record.client, record.channel].append(record)
            case Present():
                self.present[record.channel].append(record)
            case Fault():
                self.faults.append(record)
            case Dump():
                self.dumps.append(record)
            case Strange():
                self.strange.append(record)
            case Drained():
                self.drained = record.at

    def conflates(self, thread: Thread) -> bool:
        """Say whether a thread is promised the newest event only."""
        return thread.channel in self.scope.conflating or thread.client in self.scope.rated

    def channels(self) -> set[str]:
        """Return all channels that were published to or followed."""
        return {channel for channel, _id in self.events} | {c for _client, c in self.threads}
