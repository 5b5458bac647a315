"""Who is connected here? This file: the newest event, not every one, for who lags or wants less.

A subscription in step with its feed stands in the fan-out's audience, and nothing here knows of
it. One that is *late* was taken out of there: of it is kept how far it was served, and of the feed
which event is the newest. So an event costs nothing for a late subscription until one leaves to it,
and what all late subscriptions of a feed hold together is one event.
"""

import asyncio
from collections.abc import Sequence
from itertools import islice
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from config.rules import ChannelRules
from pubsub.event import Event
from server.connection import Wire
from server.lagging import hold, release
from server.metrics import Metrics

if TYPE_CHECKING:
    from server.fanout import Fanout
    from server.subscription import Subscription

# Subscriptions whose rest is over, served in one turn of the loop.
_PER_TURN: Final = 256


def interval_s(rate_hz: float) -> float:
    """Return the time between two events at a rate, rounded up to two digits.

    So there are few intervals, whatever clients ask for, and a lane for each is a bound.
    """
    exact_us = 1e6 / rate_hz
    unit: int = 10 ** max(0, floor(log10(exact_us)) - 1)
    # What is a whole number but for its last bit is not rounded up.
    return ceil(exact_us / unit - 1e-9) * unit / 1e6


class Late:
    """How far a subscription was served that is not in step.

    It has seen everything up to the feed's `mark`, and the resets up to `seen`. Since then `own`
    events came from which it is left out; where the feed's newest, at `pinned_at`, is one of them,
    the newest of the others is `pinned`. `behind`: it waits for room on its connection. With a
    `lane` it is late for good, and after each event rests until `due`.
    """

    __slots__ = ("behind", "due", "lane", "mark", "own", "pinned", "pinned_at", "resting", "seen")

    def __init__(self, mark: int, seen: int, lane: "Lane | None" = None) -> None:
        self.mark = mark
        self.seen = seen
        self.lane = lane
        self.own = 0
        self.pinned: Event | None = None
        self.pinned_at = -1
        self.behind = False
        self.resting = False
        self.due = 0.0


class Lane:
    """The subscriptions of a feed that get an event in `interval_s` at most; one timer in all.

    Who was sent one is `resting`, in the order in which that ends; who waits for one is `ready`.
    """

    __slots__ = ("interval_s", "ready", "resting", "size", "timer")

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self.ready: dict[Subscription, None] = {}
        self.resting: dict[Subscription, None] = {}
        self.size = 0
        self.timer: asyncio.TimerHandle | asyncio.Handle | None = None


class _Reset(NamedTuple):
    """A reset within a flush, and what was newest before it."""

    serial: int
    newest: Event | None
    notice: Any


class Conflation:
    """The late subscriptions of one feed.

    `serial` counts the events handed to flushes, so that the events which a late subscription did
    not get are a difference. It leaves nothing behind that is newer: what it is owed leaves before
    a reset, before its end, and before it is in step again.
    """

    __slots__ = (
        "_begun",
        "_channel",
        "_fanout",
        "_frames",
        "_lanes",
        "_late",
        "_loop",
        "_metrics",
        "_newest",
        "_resets",
        "_resets_begun",
        "_resets_seen",
        "_revision",
        "_rules",
        "_serial",
        "conflates",
    )

    def __init__(
        self,
        channel: str,
        loop: asyncio.AbstractEventLoop,
        metrics: Metrics,
        rules: ChannelRules,
        fanout: "Fanout[Any]",
    ) -> None:
        self.conflates = False
        self._channel = channel
        self._loop = loop
        self._metrics = metrics
        self._rules = rules
        self._revision = -1
        self._fanout = fanout
        self._late: dict[str, Subscription] = {}
        self._lanes: dict[float, Lane] = {}
        self._serial = self._begun = 0
        self._newest: Event | None = None
        self._resets: list[_Reset] = []
        self._resets_seen = self._resets_begun = 0
        self._frames: dict[tuple[Wire, str, int], bytes] | None = None

    # Subscriptions

    def attach(self, subscription: "Subscription", max_rate_hz: float) -> None:
        """Let a subscription take part in later flushes, with so many events a second at most."""
        interval = interval_s(max_rate_hz)
        lane = self._lanes.get(interval)
        if lane is None:
            lane = self._lanes[interval] = Lane(interval)
        lane.size += 1
        lane.ready[subscription] = None
        subscription.late = Late(self._serial, self._resets_seen, lane)
        self._late[subscription.session.id] = subscription

    def detach(self, subscription: "Subscription") -> None:
        """Forget a late subscription, and what it is owed."""
        late, subscription.late = subscription.late, None
        if late is None:
            return
        if self._late.get(subscription.session.id) is subscription:
            del self._late[subscription.session.id]
        release(subscription)
        lane = late.lane
        if lane is None:
            return
        lane.ready.pop(subscription, None)
        lane.resting.pop(subscription, None)
        lane.size -= 1
        if not lane.size:
            self._stop(lane)
            del self._lanes[lane.interval_s]

    def finish(self, subscription: "Subscription") -> None:
        """Send a late subscription what it is owed, whatever its rate, with or without room."""
        late = subscription.late
        if late is not None:
            self._catch_up(subscription, late)

    def relieve(self, subscription: "Subscription") -> None:
        """Send what it is owed to a subscription whose connection has room again."""
        late = subscription.late
        release(subscription)
        if late is None:
            return
        late.behind = False
        sent = self._catch_up(subscription, late)
        if late.lane is None:
            del self._late[subscription.session.id]
            subscription.late = None
            self._fanout.add(subscription)
        elif sent:
            self._rest(subscription, late, late.lane)
        else:
            late.lane.ready[subscription] = None

    def held(self) -> int:
        """Return how many subscriptions are owed an event now."""
        return sum(
            each.late is not None and self._owed(each.late) > 0 for each in self._late.values()
        )

    def close(self) -> None:
        """Forget everything; the feed was given up."""
        for lane in self._lanes.values():
            self._stop(lane)
        for each in list(self._late.values()):
            self.detach(each)
        self._lanes.clear()

    # Flushes

    def begin(self, items: Sequence[Any]) -> None:
        """Take in what a flush begins with, before anything of it is sent."""
        if self._revision != self._rules.revision:
            self._look_up()
        if not self.conflates and not self._late:
            return
        self._begun, self._resets_begun = self._serial, self._resets_seen
        self._resets.clear()
        for item in items:
            if type(item) is Event:
                previous, self._newest = self._newest, item
                self._serial += 1
                if item.exclude is not None:
                    self._leave_out(item.exclude, previous)
            else:
                self._resets_seen += 1
                self._resets.append(_Reset(self._serial, self._newest, item))

    def send(
        self,
        part: Sequence["Subscription"],
        wire: Wire,
        items: Sequence[Any],
        frames: Sequence[bytes],
        payload: bytes,
    ) -> None:
        """Send a flush to subscriptions in step; those whose connections lag become late."""
        sent = 0
        for each in part:
            if not each.live:
                continue
            if each.connection.unsent:
                late = self._fall_behind(each)
                if late.seen != self._resets_seen:
                    self._pass_resets(each, late)
                continue
            sent += 1
            if wire.individual:
                each.session.send_events(items, frames)
            else:
                each.connection.send(payload)
        if not wire.individual:
            self._metrics.bytes_out += len(payload) * sent
        self._metrics.events_out += len(items) * sent

    def waiting(self) -> list["Subscription"]:
        """Return whom the flush that has begun concerns, of those that are late."""
        if not self._late:
            return []
        if self._resets:
            return list(self._late.values())
        return [each for lane in self._lanes.values() for each in lane.ready]

    def offer(self, part: Sequence["Subscription"]) -> None:
        """Send late subscriptions what is due to them; frames are built once for all of them."""
        self._frames = {}
        for each in part:
            late = each.late
            if late is None:
                continue
            if late.seen != self._resets_seen:
                self._pass_resets(each, late)
            if late.lane is not None and not late.resting and not late.behind:
                self._serve(each, late, late.lane)
        self._frames = None

    # Within

    def _look_up(self) -> None:
        """Learn what the channel's rule is now; who lagged under the old one is in step again."""
        self._revision = self._rules.revision
        self.conflates = self._rules.rule(self._channel).slow == "conflate"
        if not self.conflates:
            for each in [each for each in self._late.values() if each.late and not each.late.lane]:
                self.relieve(each)

    def _owed(self, late: Late) -> int:
        """Return how many events it did not get."""
        return self._serial - late.mark - late.own

    def _fall_behind(self, subscription: "Subscription") -> Late:
        """Take a subscription out of step, as it was when the flush began."""
        late = subscription.late = Late(self._begun, self._resets_begun)
        late.behind = True
        self._late[subscription.session.id] = subscription
        self._fanout.remove(subscription)
        hold(subscription)
        return late

    def _leave_out(self, session: str, previous: Event | None) -> None:
        """Note that the newest event is not for a session; `previous` was the newest before."""
        subscription = self._late.get(session)
        if subscription is None:
            subscription = self._fanout.find(session) if self.conflates else None
            if subscription is None or not subscription.connection.unsent:
                # In step: the fan-out sends it the others.
                return
            self._fall_behind(subscription)
        late = subscription.late
        assert late is not None  # noqa: S101 - it is late
        if late.seen != self._resets_seen:
            self._pass_resets(subscription, late)
        if late.pinned_at != self._serial - 1:
            late.pinned = previous
        late.pinned_at = self._serial
        late.own += 1

    def _serve(self, subscription: "Subscription", late: Late, lane: Lane) -> None:
        """Send one that is ready what it is owed, if anything, and if there is room."""
        if self._owed(late) <= 0:
            return
        if subscription.connection.unsent:
            del lane.ready[subscription]
            late.behind = True
            hold(subscription)
            return
        self._catch_up(subscription, late)
        self._rest(subscription, late, lane)

    def _catch_up(self, subscription: "Subscription", late: Late) -> bool:
        """Send what it is owed; say whether that was an event."""
        if late.seen != self._resets_seen:
            self._pass_resets(subscription, late)
        return self._send_newest(subscription, late, self._serial, self._newest)

    def _pass_resets(self, subscription: "Subscription", late: Late) -> None:
        """Send the resets of the flush that it was not sent, each behind what came before."""
        session = subscription.session
        for serial, newest, notice in self._resets[late.seen - self._resets_seen :]:
            self._send_newest(subscription, late, serial, newest)
            session.send_events([notice], [session.wire.message(notice.message())])
        late.seen = self._resets_seen

    def _send_newest(
        self, subscription: "Subscription", late: Late, serial: int, newest: Event | None
    ) -> bool:
        """Send the newest event as of `serial`, with the number of those skipped, if owed one."""
        owed = serial - late.mark - late.own
        event = late.pinned if late.pinned_at == serial else newest
        late.mark, late.own, late.pinned = serial, 0, None
        if owed <= 0 or event is None:
            return False
        session = subscription.session
        session.send_events((event,), (self._frame(session.wire, event, owed - 1),))
        self._metrics.events_out += 1
        self._metrics.events_conflated += owed - 1
        return True

    def _frame(self, wire: Wire, event: Event, skipped: int) -> bytes:
        """Return an event's bytes, the same for all who skipped as many."""
        frames = self._frames
        if frames is None:
            return wire.event(event, skipped)
        key = (wire, event.id, skipped)
        frame = frames.get(key)
        if frame is None:
            frame = frames[key] = wire.event(event, skipped)
        return frame

    # Lanes

    def _rest(self, subscription: "Subscription", late: Late, lane: Lane) -> None:
        """Send nothing more to it for an interval."""
        late.resting = True
        late.due = self._loop.time() + lane.interval_s
        lane.ready.pop(subscription, None)
        lane.resting[subscription] = None
        self._wait(lane)

    def _tick(self, lane: Lane) -> None:
        """Serve those whose rest is over; equal rests end in the order in which they began."""
        now = self._loop.time()
        over: list[Subscription] = []
        for each in islice(lane.resting, _PER_TURN):
            if each.late is not None and each.late.due > now:
                break
            over.append(each)
        for each in over:
            del lane.resting[each]
            lane.ready[each] = None
            if each.late is not None:
                each.late.resting = False
        try:
            self.offer(over)
        finally:
            # Whoever rests now does so for longer than those whose turn did not come.
            self._stop(lane)
            self._wait(lane)

    def _wait(self, lane: Lane) -> None:
        """Let the lane's timer wait for the first whose rest ends."""
        if lane.timer is not None:
            return
        first = next(iter(lane.resting), None)
        if first is not None and first.late is not None:
            lane.timer = self._loop.call_at(first.late.due, self._tick, lane)

    @staticmethod
    def _stop(lane: Lane) -> None:
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
