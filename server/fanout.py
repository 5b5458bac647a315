"""Who is connected here? This file: sending to all sessions of a feed, joined and self-paced."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from server.connection import Wire
from server.metrics import Metrics

if TYPE_CHECKING:
    from server.conflation import Conflation
    from server.subscription import Subscription

Item = TypeVar("Item")

# Sends between two looks at the clock, and how long flushes may hold the loop before they give way.
_LOOK_EVERY = 128
_HOLD_S = 0.005
# An item that comes within this part of the last flush's duration after its end is not alone,
# perhaps: it waits for the end of the turn, in which one client may bring many.
_SOON = 0.25
# From this load on, items wait as long as the last flush took, so that many leave in one call per
# session. The load is the part of the time that flushes would take if each push was sent as it
# came, as a mean in which the last flush weighs a quarter: chance alone seldom brings a few items
# that come closely behind each other so far. A flush counts as long as the shortest of late, which
# creeps up to those that take longer: a machine that is slow for some of them makes nobody wait,
# and flushes that waited, which take longer themselves, are no reason to wait on.
_FULL = 0.85
_WEIGHT = 0.25
_CREEP = 1 / 32
# Data that a flush joins at most, so that one call alone never meets the limit of unsent bytes.
_JOIN_BYTES = 262_144
# Publishers on this node wait while more is pending than that for each session, but no more than
# so much for all of them: its flush takes some 10 ms, and a longer one would join hardly better.
_FLUSH_BYTES = 33_554_432
_LEAST_BYTES = 16_384
# From that on, items are refused: those that come from other nodes wait for nobody.
_MOST_BYTES = 8_388_608
# What an item is in memory and on the wire, besides its data.
_ITEM_BYTES = 256


class Turn:
    """How long all flushes of a node together may hold the loop in one turn of it.

    Else an array of events for twenty channels would begin twenty flushes in the same turn.
    """

    __slots__ = ("_until", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._until = 0.0

    def over(self) -> bool:
        """Whether nothing more is to be sent in this turn."""
        now = self.loop.time()
        if self._until:
            return now > self._until
        self._until = now + _HOLD_S
        self.loop.call_soon(self._begin)
        return False

    def _begin(self) -> None:
        self._until = 0.0


class Fanout(Generic[Item]):
    """Sends items to its audience: at once when idle, joined and paced under load.

    Items are encoded once for each wire in use. A flush walks a snapshot of the audience: sessions
    that attach during it take part in later flushes only, those that ended are skipped. From
    `push` to the socket there is no task, no future, and no work per session but the send.
    `on_begin` is told which items a flush begins with, in the same turn, before any is sent.
    `counted`: its items are events, and count as such in the metrics. `conflation`, where there is
    one, sends to those that lag or want less than everything.
    """

    __slots__ = (
        "_began",
        "_bytes",
        "_cost",
        "_counted",
        "_duration",
        "_encode",
        "_ended",
        "_load",
        "_loop",
        "_metrics",
        "_on_begin",
        "_pending",
        "_pushes",
        "_run",
        "_since",
        "_timer",
        "_turn",
        "_waiters",
        "audiences",
        "conflation",
    )

    def __init__(
        self,
        turn: Turn,
        metrics: Metrics,
        encode: Callable[[Wire, Item], bytes],
        on_begin: Callable[[Sequence[Item]], None],
        *,
        counted: bool = True,
    ) -> None:
        self.audiences: dict[Wire, dict[str, Subscription]] = {}
        self.conflation: Conflation | None = None
        self._loop = turn.loop
        self._turn = turn
        self._metrics = metrics
        self._encode = encode
        self._on_begin = on_begin
        self._counted = counted
        self._pending: list[Item] = []
        self._bytes = 0
        self._pushes = 0
        self._since = 0.0
        self._began = 0.0
        self._ended = 0.0
        self._duration = 0.0
        self._cost = 0.0
        self._load = 0.0
        self._run: Iterator[None] | None = None
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._waiters: list[asyncio.Future[None]] | None = None

    def add(self, subscription: "Subscription") -> None:
        """Let a subscription take part in all flushes that begin from now on."""
        session = subscription.session
        audience = self.audiences.get(session.wire)
        if audience is None:
            audience = self.audiences[session.wire] = {}
        audience[session.id] = subscription

    def remove(self, subscription: "Subscription") -> None:
        """Take a subscription out; a flush under way skips it by `live`."""
        session = subscription.session
        audience = self.audiences.get(session.wire)
        # The place may be another's: the session's next subscription of the channel.
        if audience is None or audience.get(session.id) is not subscription:
            return
        del audience[session.id]
        if not audience:
            del self.audiences[session.wire]

    def find(self, session: str) -> "Subscription | None":
        """Return the subscription of a session that takes part, if there is one."""
        for audience in self.audiences.values():
            if (found := audience.get(session)) is not None:
                return found
        return None

    def push(self, items: Sequence[Item]) -> None:
        """Send items: now if idle, else joined with others when their time comes."""
        if not self._pending:
            self._since = self._loop.time()
        self._pushes += 1
        self._pending.extend(items)
        self._bytes += _size(items)
        if self._run is None and self._timer is None:
            if self._since - self._ended < self._duration * _SOON:
                self._wait()
            else:
                self._begin()

    def hurry(self) -> bool:
        """Begin the flush of what is pending now, unless one is under way; say whether all left."""
        if self._run is None and self._pending:
            self._begin()
        return not self._pending and self._run is None

    @property
    def behind(self) -> bool:
        """Whether so much is pending that who publishes more should wait (`eased`)."""
        pending = self._bytes
        if pending <= _LEAST_BYTES:
            return False
        sessions = sum(map(len, self.audiences.values()))
        return pending > min(_JOIN_BYTES, max(_LEAST_BYTES, _FLUSH_BYTES // (sessions or 1)))

    @property
    def full(self) -> bool:
        """Whether so much is pending that nothing more may be pushed."""
        return self._bytes > _MOST_BYTES

    async def eased(self) -> None:
        """Wait until it is not `behind`, or closed. Safe to cancel."""
        while self.behind:
            if self._run is None:
                self._begin()
            if self.behind:
                await self.flushed()

    async def flushed(self) -> None:
        """Wait until the flush under way has ended. Safe to cancel."""
        if self._run is None:
            return
        future: asyncio.Future[None] = self._loop.create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(future)
        await future

    def close(self) -> None:
        """Drop what is pending; the audience is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._run = None
        self._pending = []
        self._bytes = 0
        self.audiences.clear()
        self._wake()

    def _wait(self) -> None:
        """Begin after as long as the last flush took if there is so much to send, else soon."""
        if self._load > _FULL:
            self._timer = self._loop.call_later(self._duration, self._begin)
        else:
            self._timer = self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._pending:
            return
        items = self._take()
        before, self._began = self._began, self._loop.time()
        needed, since_then = self._pushes * self._cost, self._began - before
        self._pushes = 0
        self._load += (min(1.0, needed / (since_then or 1.0)) - self._load) * _WEIGHT
        self._on_begin(items)
        self._run = self._send(items, self._since)
        self._step()

    def _step(self) -> None:
        self._timer = None
        run = self._run
        if run is None:
            return
        try:
            for _ in run:
                # More is left: the loop serves others first. What they sent meanwhile is read in
                # the next turn, but behind what is due in it already: this comes a turn later.
                self._timer = self._loop.call_soon(self._after_others)
                return
        except BaseException:
            # Whatever this is, it must not silence the feed for good.
            self._run = None
            self._wake()
            raise
        self._run = None
        self._ended = self._loop.time()
        self._duration = taken = self._ended - self._began
        longer = taken - self._cost
        self._cost += longer * _CREEP if longer > 0.0 < self._cost else longer
        self._wake()
        if self._pending and self._timer is None:
            self._wait()

    def _after_others(self) -> None:
        self._timer = self._loop.call_soon(self._step)

    def _take(self) -> Sequence[Item]:
        """Take what the next flush sends: all that is pending, unless that is too much to join."""
        items = self._pending
        if self._bytes > _JOIN_BYTES:
            left = _JOIN_BYTES
            for place, item in enumerate(items):
                left -= _size((item,))
                if left < 0 and place:
                    self._pending = items[place:]
                    self._bytes = _size(self._pending)
                    return items[:place]
        self._pending = []
        self._bytes = 0
        return items

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def _send(self, items: Sequence[Item], since: float) -> Iterator[None]:
        excluded = {name for item in items if (name := getattr(item, "exclude", None))}
        jobs: list[tuple[Any, list[bytes], list[Subscription]]] = []
        for wire, audience in self.audiences.items():
            frames = [self._encode(wire, item) for item in items]
            members = list(audience.values())
            if excluded:
                self._send_without(items, frames, [audience.get(i) for i in excluded])
                members = [each for each in members if each.session.id not in excluded]
            jobs.append((wire, frames, members))
        over = self._turn.over
        count = len(items)
        metrics = self._metrics
        conflation = self.conflation
        # Decided once for a flush: channels that do not conflate pay nothing for those that do.
        conflates = conflation is not None and conflation.conflates
        for wire, frames, members in jobs:
            payload = frames[0] if count == 1 else b"".join(frames)
            for start in range(0, len(members), _LOOK_EVERY):
                while over():
                    yield
                part = members[start : start + _LOOK_EVERY]
                if conflates and conflation is not None:
                    conflation.send(part, wire, items, frames, payload)
                elif wire.individual:
                    for each in part:
                        if each.live:
                            each.session.send_events(items, frames)
                else:
                    for each in part:
                        if each.live:
                            each.connection.send(payload)
                    metrics.bytes_out += len(payload) * len(part)
                if self._counted and not conflates:
                    metrics.events_out += count * len(part)
        late = () if conflation is None else conflation.waiting()
        for start in range(0, len(late), _LOOK_EVERY):
            while over():
                yield
            if conflation is not None:
                conflation.offer(late[start : start + _LOOK_EVERY])
        if self._counted:
            metrics.delivery_seconds.observe(self._loop.time() - since)

    def _send_without(
        self,
        items: Sequence[Item],
        frames: Sequence[bytes],
        excluded: Sequence["Subscription | None"],
    ) -> None:
        """Send to sessions that published some of the items and asked to be left out."""
        for each in excluded:
            if each is None or not each.live:
                continue
            session = each.session
            kept = [
                place
                for place, item in enumerate(items)
                if getattr(item, "exclude", None) != session.id
            ]
            if kept:
                session.send_events([items[i] for i in kept], [frames[i] for i in kept])
                self._metrics.events_out += len(kept)


def _size(items: Sequence[object]) -> int:
    return sum(_ITEM_BYTES + len(getattr(item, "data", b"")) for item in items)
