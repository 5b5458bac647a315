"""What was truly written and told in the world of a single node, and what may never come of it.

A ledger's tables are followed change by change, and everything that somebody is told is compared
with what was in them. What breaks the promise is a failure of the run.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pubsub.broker import History
from pubsub.errors import PubSubError, TooManyChannels
from pubsub.event import Draft, Event, Published
from pubsub.position import Position, chain
from pubsub.schedules import Schedule
from sim_disk import Note
from sim_scheduler import Scheduler

WINDOW_S: Final = 30.0
TTL_S: Final = 90.0

Place = tuple[str, str, int]
Key = tuple[str, str]


def is_plain(channel: str) -> bool:
    """Say whether a channel is one that is not archived."""
    return channel.startswith("plain.")


@dataclass(frozen=True, slots=True)
class Row:
    """An event that is in the ledger, since when and by which life."""

    id: str
    position: Position
    at: float
    life: int


@dataclass(slots=True)
class Plan:
    """A schedule: whether it stood for certain, and how it fared."""

    schedule: Schedule
    sure: bool = False
    cancelling: bool = False
    cancelled: bool = False
    delivered: int = 0


@dataclass(slots=True)
class Heard:
    """What one life has told its sink: where each channel stands, and the ids of plain ones."""

    number: int
    tops: dict[str, Position] = field(default_factory=dict)
    plain: dict[Key, tuple[Position, float]] = field(default_factory=dict)


class Truth:
    """The ledger as it must be, over all lives; `life` is the one that lives now."""

    def __init__(self, scheduler: Scheduler, *, leaps: bool, bounded: bool) -> None:
        self.scheduler = scheduler
        self.life = Heard(0)
        self.met: Counter[str] = Counter()
        self.plans: dict[Key, Plan] = {}
        # How often each id was asked for, without what was refused for certain.
        self.hopes: Counter[Key] = Counter()
        # Epochs that somebody had a reason to end.
        self.contradicted: set[tuple[str, str]] = set()
        # How many purges may have been done of which nobody was told.
        self.purging: Counter[str] = Counter()
        self.records: dict[str, Position] = {}
        self.rows: dict[Key, list[Row]] = defaultdict(list)
        self.acknowledged: list[Published] = []
        # Channels may be refused.
        self.bounded = bounded
        self._leaps = leaps
        self._points: dict[Place, str] = {}
        self._ids: dict[Place, str] = {}
        self._epochs: dict[tuple[str, str], int] = {}
        self._floors: dict[str, Position] = {}
        self._told: dict[str, Position] = {}
        self._written: dict[str, float] = {}
        self._lapsed: set[Position] = set()
        self._swept: set[Position] = set()

    def expect(self, condition: object, text: str) -> None:
        """Note a failure; what runs is not disturbed."""
        if not condition:
            self.scheduler.failures.append(text)

    # ---- what is written

    def on_note(self, note: Note) -> None:
        kind, channel, *values = note
        self.expect(not is_plain(channel), f"{channel} is in the ledger")
        if kind == "gone":
            self._on_gone(channel)
            return
        if kind == "swept":
            self._swept.add(Position(*values))
            return
        self._written[channel] = self.scheduler.clock.now
        if kind == "event":
            self._on_row(channel, Position(*values[:3]), values[3])
        else:
            self._on_record(channel, Position(*values))

    def _on_row(self, channel: str, at: Position, event_id: str) -> None:
        now, key = self.scheduler.clock.now, (channel, event_id)
        place = (channel, at.epoch, at.offset)
        self.expect(place not in self._points, f"{place} is of two events")
        before = self._points.get((channel, at.epoch, at.offset - 1))
        self.expect(before is not None, f"{place} is written behind a hole")
        self.expect(at.check == chain(before or "", event_id), f"{place} does not chain")
        plan = self.plans.get(key)
        self.expect(self.hopes[key] or plan, f"{key} was refused, and is written")
        self.expect(self.hopes[key] or not (plan and plan.cancelled), f"{key} was cancelled")
        for row in self.rows[key][-1:]:
            elsewhere = self._leaps and row.life != self.life.number
            self.expect(now - row.at >= WINDOW_S or elsewhere, f"{key} is written twice")
        self.met["scheduled"] += plan is not None
        self.met["written"] += 1
        self.rows[key].append(Row(event_id, at, now, self.life.number))
        self._points[place], self._ids[place] = at.check, event_id

    def _on_record(self, channel: str, top: Position) -> None:
        old = self.records.get(channel)
        self.records[channel] = top
        if (channel, top.epoch) not in self._epochs:
            self._epochs[channel, top.epoch] = len(self._epochs)
            self._points[channel, top.epoch, top.offset] = top.check
            contradicted = old is None or (channel, old.epoch) in self.contradicted
            lost = old in self._swept and self._told.get(channel) != old
            self.met["lost in doubt"] += lost and not contradicted
            self.expect(contradicted or lost, f"{channel} began a new epoch for no reason")
            self.met["epochs"] += old is not None
        self._check_point(channel, top, "the record")
        if old is not None:
            self.expect(
                self._rank(channel, top) >= self._rank(channel, old), f"{channel} went back"
            )

    def _on_gone(self, channel: str) -> None:
        idle = self.scheduler.clock.now - self._written[channel]
        self.expect(idle >= TTL_S or self._leaps, f"{channel} lapsed after {idle} s")
        self.expect(channel not in self.life.tops, f"{channel} lapsed, and is in use")
        self.met["lapsed"] += 1
        for known in (self.records, self._floors, self._told):
            known.pop(channel, None)
        self._lapsed |= self._ever(channel)

    # ---- what is told

    def least(self, channel: str) -> Position | None:
        """Return what a channel stands at, or beyond, by what was told of it until now."""
        return self._told.get(channel)

    def floor(self, channel: str) -> Position | None:
        return self._floors.get(channel)

    def on_told(self, channel: str, position: Position) -> None:
        """A position was told: that of an archived channel is on the disk, and stays."""
        if is_plain(channel):
            self._epochs.setdefault((channel, position.epoch), len(self._epochs))
        else:
            self._check_point(channel, position, "what was told")
        told = self._told.get(channel)
        if told is None or self._rank(channel, position) > self._rank(channel, told):
            self._told[channel] = position

    def on_top(self, channel: str, top: Position, least: Position | None) -> None:
        """A top was told to who asked when `least` was known; that may have lapsed since."""
        if least is not None and not is_plain(channel) and channel in self.records:
            self.expect(
                self._rank(channel, top) >= self._rank(channel, least), f"{channel} is behind"
            )
        self.on_told(channel, top)

    def on_subscribed(self, life: Heard, channel: str, top: Position) -> None:
        self.expect(life.tops.get(channel, top) == top, f"{channel} is not where it was told to be")
        life.tops[channel] = top

    def on_events(self, life: Heard, channel: str, events: Sequence[Event]) -> None:
        for event in events:
            self._check_event(event)
            if channel in life.tops:
                self.expect(event.before() == life.tops[channel], f"{event.id} leaves a hole")
            else:
                self.expect(False, f"{event.id} is for nobody")
            life.tops[channel] = event.position
            self.on_told(channel, event.position)
            key = (channel, event.id)
            self.expect(self.hopes[key] or key in self.plans, f"{key} was refused, and is heard")
            if is_plain(channel) and (plan := self.plans.get(key)):
                plan.delivered += 1
                self.met["scheduled"] += 1
                once = plan.delivered == 1 and not plan.cancelled
                self.expect(once or self.hopes[key], f"{key} is heard twice, or was cancelled")
        self.met["heard"] += len(events)

    def on_fork(self, life: Heard, channel: str, top: Position) -> None:
        before = life.tops[channel]
        self.expect(top.epoch != before.epoch and top.offset >= before.offset, f"{top} is no fork")
        life.tops[channel] = top
        self.on_told(channel, top)
        self.met["forks"] += 1

    def on_purged(self, channel: str, floor: Position) -> None:
        self.on_told(channel, floor)
        known = self._floors.get(channel)
        if known is None or self._rank(channel, floor) > self._rank(channel, known):
            self._floors[channel] = floor
            self.met["purges"] += 1

    def on_answer(self, life: Heard, draft: Draft, answer: Published, since: float) -> None:
        """A publish that was begun at `since` is acknowledged."""
        channel, key, at = draft.channel, (draft.channel, draft.id), answer.position
        self.expect((answer.channel, answer.id) == key, f"{key} has the answer of another")
        if is_plain(channel):
            now = self.scheduler.clock.now
            first, then = life.plain.setdefault(key, (at, now))
            if first != at:
                self.expect(now - then >= WINDOW_S, f"{key} is published twice")
                life.plain[key] = (at, now)
        else:
            rows = [row for row in self.rows[key] if row.position == at]
            self.expect(rows, f"{key} is acknowledged, and not in the ledger")
            for row in rows:
                fresh = row.at >= since
                self.expect(fresh or answer.duplicate, f"{key} is acknowledged as if it was new")
                self.met["repeats"] += answer.duplicate and row.life == life.number
                self.met["repeats in later lives"] += row.life != life.number
            self.acknowledged.append(answer)
        self.on_told(channel, at)
        top = life.tops.get(channel)
        if top is not None:
            heard = self._rank(channel, top) >= self._rank(channel, at)
            self.expect(heard, f"{key} is acknowledged, and was not handed out")

    def on_refused(self, error: PubSubError) -> None:
        room = self.bounded or not isinstance(error, TooManyChannels)
        self.expect(room, "refused, and there is room")
        self.met[type(error).__name__] += 1

    def on_history(self, channel: str, found: History, least: Position | None) -> None:
        self.on_top(channel, found.top, least)
        for event, after in zip(found.events, found.events[1:], strict=False):
            same = after.position.epoch == event.position.epoch
            self.expect(not same or after.before() == event.position, f"{channel} has a hole")

    def on_read(self, channel: str, events: Sequence[Event], floor: Position | None) -> None:
        """Events were read by who asked when `floor` was purged."""
        for event in events:
            self._check_event(event)
            self.expect(not self._is_purged(channel, event.position, floor), f"{event.id} is back")

    def check_rows(self, channel: str, found: Sequence[Position], *, expire: bool) -> None:
        """The ledger has all that was written to it and not purged, and nothing else."""
        there, floor = set(found), self._floors.get(channel)
        ever = self._ever(channel) - self._lapsed
        assert there <= ever, f"{channel} has what was never written"
        assert len(there) == len(found), f"{channel} has events twice"
        purged = {each for each in there if self._is_purged(channel, each, floor)}
        assert not purged, f"{channel} has what was purged"
        if not expire and not self.purging[channel]:
            left = {each for each in ever if not self._is_purged(channel, each, floor)}
            assert left == there, f"{channel} has lost {left - there}"

    def _ever(self, channel: str) -> set[Position]:
        return {
            row.position for (of, _), rows in self.rows.items() if of == channel for row in rows
        }

    # ---- how positions are compared

    def _rank(self, channel: str, position: Position) -> tuple[int, int]:
        return self._epochs.get((channel, position.epoch), -1), position.offset

    def _is_purged(self, channel: str, position: Position, floor: Position | None) -> bool:
        return floor is not None and self._rank(channel, position) <= self._rank(channel, floor)

    def _check_point(self, channel: str, position: Position, what: str) -> None:
        known = self._points.get((channel, position.epoch, position.offset))
        self.expect(
            known == position.check, f"{what} of {channel} is not in the ledger: {position}"
        )

    def _check_event(self, event: Event) -> None:
        place = (event.channel, event.position.epoch, event.position.offset)
        if is_plain(event.channel):
            self._ids.setdefault(place, event.id)
        known = self._ids.get(place)
        self.expect(known == event.id, f"{event.id} is handed out, and not at its place")
        self.expect(event.data == json.dumps(event.id).encode(), f"{event.id} has other data")
