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

# Sends between two looks at the clock, and how long a flush may hold the loop before it gives way.
_LOOK_EVERY = 128
_HOLD_S = 0.005
# An item that comes within this part of the last flush's duration after its end waits for one
# such duration, so that under load many events leave in one call per session.
_PACE = 0.25
# Data that a flush joins at most, so that one call alone never meets the limit of unsent bytes.
_JOIN_BYTES = 262_144


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
        "_counted",
        "_duration",
        "_encode",
        "_ended",
        "_loop",
        "_metrics",
        "_on_begin",
        "_pending",
        "_run",
        "_since",
        "_timer",
        "_waiters",
        "audiences",
        "conflation",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        metrics: Metrics,
        encode: Callable[[Wire, Item], bytes],
        on_begin: Callable[[Sequence[Item]], None],
        *,
        counted: bool = True,
    ) -> None:
        self.audiences: dict[Wire, dict[str, Subscription]] = {}
        self.conflation: Conflation | None = None
        self._loop = loop
        self._metrics = metrics
        self._encode = encode
        self._on_begin = on_begin
        self._counted = counted
        self._pending: list[Item] = []
        self._since = 0.0
        self._began = 0.0
        self._ended = 0.0
        self._duration = 0.0
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
        self._pending.extend(items)
        if self._run is None and self._timer is None:
            if self._since - self._ended < self._duration * _PACE:
                self._timer = self._loop.call_later(self._duration, self._begin)
            else:
                self._begin()

    def hurry(self) -> bool:
        """Begin the flush of what is pending now, unless one is under way; say whether all left."""
        if self._run is None and self._pending:
            self._begin()
        return not self._pending and self._run is None

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
        self.audiences.clear()
        self._wake()

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._pending:
            return
        items = self._take()
        self._began = self._loop.time()
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
                # More is left: the loop serves others first.
                self._timer = self._loop.call_soon(self._step)
                return
        except BaseException:
            # Whatever this is, it must not silence the feed for good.
            self._run = None
            self._wake()
            raise
        self._run = None
        self._ended = self._loop.time()
        self._duration = self._ended - self._began
        self._wake()
        if self._pending and self._timer is None:
            self._timer = self._loop.call_later(self._duration, self._begin)

    def _take(self) -> Sequence[Item]:
        """Take what the next flush sends: all that is pending, unless that is too much to join."""
        items = self._pending
        left = _JOIN_BYTES
        for place, item in enumerate(items):
            left -= len(getattr(item, "data", b""))
            if left < 0 and place:
                self._pending = items[place:]
                return items[:place]
        self._pending = []
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
        clock, hold_until = self._loop.time, self._began + _HOLD_S
        count = len(items)
        metrics = self._metrics
        conflation = self.conflation
        # Decided once for a flush: channels that do not conflate pay nothing for those that do.
        conflates = conflation is not None and conflation.conflates
        for wire, frames, members in jobs:
            payload = frames[0] if count == 1 else b"".join(frames)
            for start in range(0, len(members), _LOOK_EVERY):
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
                if clock() > hold_until:
                    yield
                    hold_until = clock() + _HOLD_S
        late = () if conflation is None else conflation.waiting()
        for start in range(0, len(late), _LOOK_EVERY):
            if conflation is not None:
                conflation.offer(late[start : start + _LOOK_EVERY])
            if clock() > hold_until:
                yield
                hold_until = clock() + _HOLD_S
        if self._counted:
            metrics.delivery_seconds.observe(clock() - since)

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
