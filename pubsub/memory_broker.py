"""How does an event get its position and reach every node? This file: the broker of a single node.

All is kept in memory: a restart begins new epochs. Delivery happens within `publish`, in the same
turn of the loop, through the sink and by no other path.
"""

import time
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import inf
from typing import Final

from pubsub.broker import ChannelState, History, HistoryRules, Sink
from pubsub.channel_record import ChannelRecord
from pubsub.errors import BrokerUnavailable, PubSubError, TooManyChannels
from pubsub.event import Draft, Event, Published
from pubsub.idempotency import Generation, PublishedIds
from pubsub.litter import Litter
from pubsub.position import Position, chain, new_epoch, start
from pubsub.sorted_names import SortedNames

# Expired channels that one listing cleans up, lest it holds the loop.
_MOST_STALE: Final = 1_000


class Run:
    """Events of one channel that follow each other, between getting positions and being published.

    `top` and `time` are what the record's will be.
    """

    __slots__ = ("fresh", "ids", "recent", "record", "time", "top")

    def __init__(self, record: ChannelRecord) -> None:
        self.record = record
        self.top = record.top
        self.time = record.time
        self.ids: dict[str, Position] = {}
        self.recent: Generation | None = None
        self.fresh: list[Event] = []


class MemoryBroker:
    """Keeps channels in the memory of this process; see `Broker` for what it promises.

    - `max_channels` (0: no bound): one more is refused with TooManyChannels.
    - `idempotency_window_s`, `idempotency_max_ids` (0: no bound): see `PublishedIds`.
    - `position_ttl_s`: how long a channel's position outlives its events.
    - `now`: the wall clock in s, for events; `monotonic`: a clock in s, for all that expires.

    What has expired is not shown, and is freed by `sweep`, which somebody must call now and then.
    A call takes time in proportion to the events that it is given or returns.
    """

    def __init__(
        self,
        rules: HistoryRules,
        *,
        max_channels: int = 1_000_000,
        idempotency_window_s: float = 300.0,
        idempotency_max_ids: int = 2_000_000,
        position_ttl_s: float = 604_800.0,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = rules
        self._sink: Sink
        self._max_channels = max_channels or inf
        # A record holds its channel's ids, so it must not go before them.
        self._lapse_s = max(position_ttl_s, 2 * idempotency_window_s)
        self._now = now
        self._monotonic = monotonic
        self._closed = False
        self._records: dict[str, ChannelRecord] = {}
        self._active = SortedNames()
        self._litter = Litter()
        self._ids = PublishedIds(idempotency_window_s, idempotency_max_ids, self._litter)
        # When to look at a channel's events, and at a channel without any: (time, channel). An
        # entry may come too early, never too late, so that a publish need not move it.
        self._fading: list[tuple[float, str]] = []
        self._lapsing: list[tuple[float, str]] = []

    @property
    def forgotten_early(self) -> int:
        """How many event ids were forgotten within the window because of the bound."""
        return self._ids.forgotten_early

    def bind(self, sink: Sink) -> None:
        self._sink = sink

    # ---- the broker

    async def publish(self, drafts: Sequence[Draft]) -> list[Published | PubSubError]:
        now = self._begin()
        wall = int(self._now() * 1000)
        answers: list[Published | PubSubError] = []
        begin, count = 0, len(drafts)
        while begin < count:
            channel = drafts[begin].channel
            end = begin + 1
            while end < count and drafts[end].channel == channel:
                end += 1
            record = self._alive(channel, now) or self._make(channel, now)
            if record is None:
                answers += [self._refusal()] * (end - begin)
            else:
                run = Run(record)
                self.draw(run, drafts[begin:end], answers, now, wall)
                self.enter(run, now)
            begin = end
        return answers

    async def subscribe(self, channel: str) -> Position:
        now = self._begin()
        record = self._alive(channel, now) or self._make(channel, now)
        if record is None:
            raise self._refusal()
        record.subscribed = True
        self._file(record)
        return record.top

    async def unsubscribe(self, channel: str) -> None:
        now = self._begin()
        record = self._alive(channel, now)
        if record is not None and record.subscribed:
            record.subscribed = False
            record.touched = now
            self._file(record)

    async def top(self, channel: str) -> Position | None:
        record = self._alive(channel, self._begin())
        return None if record is None else record.top

    async def history(
        self,
        channel: str,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int,
        newest: bool = False,
        hidden: bool = False,
    ) -> History | None:
        record = self._alive(channel, self._begin())
        if record is None:
            return None
        return History(record.run(after, before, limit, newest), record.top, record.floor)

    async def contradict(self, channel: str, evidence: Position) -> Position:
        now = self._begin()
        record = self._alive(channel, now)
        if record is None:
            record = self._make(channel, now, evidence.offset)
            if record is None:
                raise self._refusal()
        elif (top := self._refuted(record, evidence)) is not None:
            self._fork(record, top)
        return record.top

    async def purge(self, channel: str) -> Position | None:
        now = self._begin()
        record = self._alive(channel, now)
        if record is None:
            return None
        floor = record.top
        record.floor = floor.offset
        record.touched = now
        self._drop_events(record)
        if record.subscribed:
            self._sink.on_purge(channel, floor)
        return floor

    async def channels(self, *, prefix: str, after: str, limit: int) -> list[ChannelState]:
        now = self._begin()
        states: list[ChannelState] = []
        stale: list[ChannelRecord] = []
        names = (
            self._active.walk(after, inclusive=False)
            if after >= prefix
            else self._active.walk(prefix, inclusive=True)
        )
        for name in names:
            if len(states) >= limit or not name.startswith(prefix):
                break
            record = self._records[name]
            if record.subscribed or record.expires > now or len(stale) >= _MOST_STALE:
                states.append(ChannelState(name, record.top))
            else:
                stale.append(record)
        for record in stale:
            self._expire(record)
        return states

    async def close(self) -> None:
        self._closed = True
        self._records = {}
        self._active = SortedNames()
        self._litter = Litter()
        self._fading = []
        self._lapsing = []

    # ---- what a timer calls

    def sweep(self, limit: int = 2_000) -> int:
        """Free what has expired, a bounded piece of it; return how much work was done.

        A call with the default takes a few ms at most. If the answer is `limit` or more, there may
        be more to do: call again, in a later turn.
        """
        now = self._monotonic()
        done = self._litter.free(limit)
        done += self._ids.sweep(now, limit - done)
        while done < limit and self._fading and self._fading[0][0] <= now:
            done += 1 + self._fade(*heappop(self._fading), now)
        while done < limit and self._lapsing and self._lapsing[0][0] <= now:
            self._lapse(heappop(self._lapsing)[1], now)
            done += 1
        return done

    def _fade(self, due: float, name: str, now: float) -> int:
        """Drop the events of a channel if they have expired; return how many were."""
        record = self._records.get(name)
        # A rule with a shorter time has put in an earlier entry, which took this one's place.
        if record is None or record.fades != due:
            return 0
        record.fades = inf
        if not record.events:
            return 0
        if record.expires > now:
            self._plan_fade(record)
            return 0
        count = len(record.events)
        self._expire(record)
        return count

    def _lapse(self, name: str, now: float) -> None:
        """Drop a channel if it has been idle for long enough."""
        record = self._records[name]
        record.lapsing = False
        if self._lapsed(record, now):
            del self._records[name]
        else:
            self._file(record)

    # ---- records

    def _begin(self) -> float:
        if self._closed:
            raise BrokerUnavailable("the broker is closed")
        return self._monotonic()

    def _refusal(self) -> TooManyChannels:
        return TooManyChannels(f"{len(self._records)} channels are kept, as many as allowed")

    def _has_room(self) -> bool:
        return len(self._records) < self._max_channels

    def _make(self, channel: str, now: float, offset: int = 0) -> ChannelRecord | None:
        """Make a channel's record in a new epoch; None at the bound."""
        if not self._has_room():
            return None
        record = self._records[channel] = ChannelRecord(channel, start(new_epoch(), offset), now)
        self._file(record)
        return record

    def _alive(self, channel: str, now: float) -> ChannelRecord | None:
        """Return a channel's record, without what has expired."""
        record = self._records.get(channel)
        if record is None:
            return None
        if record.events and record.expires <= now:
            self._expire(record)
        return record

    def _lapsed(self, record: ChannelRecord, now: float) -> bool:
        return not record.listed and record.touched + self._lapse_s <= now

    def _file(self, record: ChannelRecord) -> None:
        """Put a record among the active or the lapsing, as it is now."""
        active = record.subscribed or bool(record.events)
        if active != record.listed:
            record.listed = active
            if active:
                self._active.add(record.name)
            else:
                self._active.remove(record.name)
        if not active and not record.lapsing:
            record.lapsing = True
            heappush(self._lapsing, (record.touched + self._lapse_s, record.name))

    def _plan_fade(self, record: ChannelRecord) -> None:
        record.fades = record.expires
        heappush(self._fading, (record.expires, record.name))

    def _expire(self, record: ChannelRecord) -> None:
        # Seen late or not, the position outlives the events from when they expired.
        record.touched = max(record.touched, record.expires)
        self._drop_events(record)

    def _drop_events(self, record: ChannelRecord) -> None:
        self._litter.throw(record.events)
        record.events = []
        self._file(record)

    # ---- forks

    def _refuted(self, record: ChannelRecord, evidence: Position) -> Position | None:
        """Return the top of a new epoch if a record is contradicted, else None; nothing is done."""
        top = record.top
        if evidence.epoch != top.epoch:
            return None
        if evidence.offset <= top.offset:
            check = record.check_at(evidence.offset)
            if check is None or check == evidence.check:
                return None
        return start(new_epoch(), max(top.offset, evidence.offset))

    def _fork(self, record: ChannelRecord, top: Position) -> None:
        """Begin a new epoch at its top, and tell the sink."""
        record.top = top
        record.touched = self._monotonic()
        if record.subscribed:
            self._sink.on_fork(record.name, top)

    # ---- publishing

    def draw(
        self,
        run: "Run",
        drafts: Sequence[Draft],
        answers: list[Published | PubSubError],
        now: float,
        wall: int,
    ) -> None:
        """Give events of one channel their positions; nothing is published yet."""
        record = run.record
        channel = record.name
        top = run.top
        epoch, offset, check = top.epoch, top.offset, top.check
        moment = max(run.time, wall)
        recent, older = self._ids.open(record.ids, now)
        run.recent = recent
        ids, fresh = run.ids, run.fresh
        for draft in drafts:
            event_id = draft.id
            first = recent.get(event_id) or ids.get(event_id)
            if first is None:
                for generation in older:
                    first = generation.get(event_id)
                    if first is not None:
                        break
            if first is not None:
                answers.append(Published(channel, first, event_id, True))
                continue
            prev = check
            check = chain(prev, event_id)
            offset += 1
            top = ids[event_id] = Position(epoch, offset, check)
            fresh.append(
                Event(
                    channel,
                    top,
                    prev,
                    event_id,
                    draft.name,
                    draft.data,
                    moment,
                    draft.tags,
                    draft.user,
                    draft.exclude,
                )
            )
            answers.append(Published(channel, top, event_id))
        run.top = top
        if fresh:
            run.time = moment

    def enter(self, run: "Run", now: float) -> None:
        """Publish what a run has drawn, and hand it to the sink as one."""
        if not run.fresh:
            return
        record = run.record
        record.top = run.top
        record.time = run.time
        recent = record.ids.recent
        if recent is None or recent is not run.recent:
            # A generation ended meanwhile.
            recent, _older = self._ids.open(record.ids, now)
        recent.update(run.ids)
        self._keep(record, run.fresh, now)
        self._ids.added(len(run.fresh), now)
        if record.subscribed:
            self._sink.on_events(record.name, run.fresh)

    def _keep(self, record: ChannelRecord, fresh: list[Event], now: float) -> None:
        rule = self._rules.rule(record.name)
        record.keep(fresh, rule.history_size if rule.history_ttl_s > 0 else 0)
        record.touched = now
        record.expires = now + rule.history_ttl_s
        if record.events:
            if record.expires < record.fades:
                self._plan_fade(record)
            if record.listed:
                return
        self._file(record)
