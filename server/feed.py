"""Who is connected here? This file: the feed, one channel on one node."""

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum

import msgspec

from config.rules import ChannelRules
from pubsub.event import Event
from pubsub.position import Position
from pubsub.presence import Members, PresenceChange
from server.conflation import Conflation
from server.connection import Wire
from server.fanout import Fanout, Turn
from server.metrics import Metrics
from server.protocol import PresenceMessage, Reset
from server.sequence import ChannelSequence, Verdict, chained
from server.subscription import Subscription
from server.timetable import Entry


class ResetNotice(msgspec.Struct, frozen=True):
    """Takes its place among the events: continuity ends here, and goes on behind `position`."""

    channel: str
    position: Position

    def message(self) -> Reset:
        """Return what clients see."""
        return Reset(channel=self.channel, position=str(self.position))


class State(Enum):
    """What a feed does with what it hears."""

    OPENING = "waits for the broker's confirmation"
    LIVE = "accepts what chains to its top"
    REPAIRING = "only remembers the highest offset heard"
    CLOSED = "was given up"


def encode_item(wire: Wire, item: Event | ResetNotice) -> bytes:
    """Return the bytes of what a feed sends in order."""
    return wire.event(item) if type(item) is Event else wire.message(item.message())  # type: ignore[union-attr]


class PresenceSync(msgspec.Struct, frozen=True):
    """Takes its place among the presence changes: a whole set instead of what was known of it."""

    channel: str
    page: Members


def _encode_change(wire: Wire, item: PresenceChange | PresenceSync) -> bytes:
    member = wire.codec.member
    if isinstance(item, PresenceChange):
        message = PresenceMessage(
            channel=item.channel, action=item.action, member=member(item.member)
        )
    else:
        message = PresenceMessage(
            channel=item.channel,
            action="sync",
            members=[member(each) for each in item.page.members],
            more=item.page.cursor is not None,
        )
    return wire.message(message)


class Feed:
    """A channel's gap-free sequence of events on this node, and the sessions attached to it.

    The sessions attached are in step with it by construction, so none keeps an offset. `cut` is
    the last position handed to a flush, begun or done. `holds` counts subscriptions, those that
    still wait included. `on_doubt` is called when a gap or a contradiction shows; `doubts` counts
    what speaks against the top, also while a repair is under way, which then has to look again.
    `presence_heard` is the highest presence version that came since it was last set to 0.
    `rules` say whether the channel conflates; without them it does not.
    """

    __slots__ = (
        "_metrics",
        "_on_doubt",
        "_waiting",
        "channel",
        "conflation",
        "cut",
        "doubts",
        "fanout",
        "heard",
        "holds",
        "linger",
        "opening",
        "presence",
        "presence_heard",
        "presence_version",
        "sequence",
        "state",
    )

    def __init__(
        self,
        channel: str,
        turn: Turn,
        metrics: Metrics,
        ring_size: int,
        on_doubt: Callable[["Feed"], None],
        rules: ChannelRules | None = None,
    ) -> None:
        nowhere = Position("", 0, "")
        self.channel = channel
        self.state = State.OPENING
        self.sequence = ChannelSequence(nowhere, ring_size)
        self.cut = nowhere
        self.heard = 0
        self.doubts = 0
        self.holds = 0
        self.linger: Entry | None = None
        self.opening: asyncio.Task[None] | None = None
        self.fanout: Fanout[Event | ResetNotice] = Fanout(
            turn, metrics, encode_item, self._on_begin
        )
        self.conflation = Conflation(
            channel, turn.loop, metrics, rules or ChannelRules(), self.fanout
        )
        self.fanout.conflation = self.conflation
        self.presence: Fanout[PresenceChange | PresenceSync] = Fanout(
            turn, metrics, _encode_change, lambda _items: None, counted=False
        )
        self.presence_version: int | None = None
        self.presence_heard = 0
        self._metrics = metrics
        self._on_doubt = on_doubt
        self._waiting: list[tuple[int, asyncio.Future[bool]]] | None = None

    @property
    def top(self) -> Position:
        """The last position accepted."""
        return self.sequence.top

    def open(self, top: Position) -> None:
        """Begin at the top that the broker confirmed."""
        self.sequence.restart(top)
        self.cut = top
        self.state = State.LIVE
        if self.heard > top.offset or self.doubts:
            self.doubt()

    def close(self) -> None:
        """Give the feed up, with its ring; it is never opened again."""
        self.state = State.CLOSED
        self.conflation.close()
        self.fanout.close()
        self.presence.close()
        self._disappoint()

    # What the broker says

    def on_events(self, events: Sequence[Event]) -> None:
        """Accept events that chain to the top; anything else begins a repair."""
        if self.state is State.LIVE:
            if self.fanout.full:
                # They are read from history when what is pending has left.
                self._hear(events)
                self.doubt()
                return
            if chained(self.sequence.top, events):
                self.accept(events)
                return
            for place, event in enumerate(events):
                verdict = self.sequence.judge(event)
                if verdict is Verdict.NEXT:
                    self.accept((event,))
                elif verdict is not Verdict.KNOWN:
                    self._hear(events[place:])
                    self.doubt()
                    return
        else:
            self._hear(events)

    def on_purge(self, floor: Position) -> None:
        """Forget what was purged; who is in step stays so."""
        sequence, top = self.sequence, self.top
        known = sequence.at(floor.offset) if floor.epoch == top.epoch else None
        if floor.epoch == top.epoch:
            sequence.purge(floor.offset)
        if known != floor and (known is not None or floor.offset > top.offset):
            # Events before the purge were lost on the way, or are others than the broker's.
            self.on_top(floor)

    def on_fork(self, top: Position) -> None:
        """Begin anew at `top`, unless that epoch is the feed's already, and tell every session."""
        if self.state is State.OPENING:
            # The top that the broker confirms may be older than this.
            self.doubts += 1
        elif self.state is not State.CLOSED and top.epoch != self.top.epoch:
            self.reset(top)

    def reset(self, top: Position) -> None:
        """Begin anew at `top`, and tell every session that continuity is lost."""
        self.sequence.restart(top)
        self.heard = top.offset
        self._metrics.resets += 1
        self.fanout.push((ResetNotice(self.channel, top),))
        self._disappoint()

    def on_top(self, top: Position) -> None:
        """Compare with the broker's top, in both directions."""
        if top != self.top:
            self.heard = max(self.heard, top.offset)
            self.doubt()

    def on_presence(self, change: PresenceChange) -> bool:
        """Pass on a presence change; False if some before it were lost, so that a sync is due."""
        version, known = change.version, self.presence_version
        self.presence_heard = max(self.presence_heard, version)
        if known is not None and version <= known:
            return True
        if self.presence.audiences:
            if known is not None and version > known + 1:
                # The sync brings this one too.
                return False
            self.presence.push((change,))
        self.presence_version = version
        return True

    def lacks_presence(self, version: int) -> bool:
        """Return whether somebody watches who was not told of the presence set's `version`."""
        known = self.presence_version
        return bool(self.presence.audiences) and (known is None or known < version)

    def sync(self, page: Members) -> bool:
        """Pass on a whole presence set; False if changes came meanwhile that it does not know."""
        if page.version < self.presence_heard:
            return False
        self.presence_version = page.version
        self.presence.push((PresenceSync(self.channel, page),))
        return True

    # Repair

    def doubt(self) -> None:
        """Stop accepting until a repair has found what is true."""
        self.doubts += 1
        if self.state is State.LIVE:
            self.state = State.REPAIRING
            self._on_doubt(self)

    def accept(self, events: Sequence[Event]) -> None:
        """Take events that chain to the top, and send them."""
        self.sequence.accept(events)
        self.fanout.push(events)
        if self._waiting is not None:
            self._reached()

    def repaired(self) -> None:
        """Go on accepting."""
        if self.state is State.REPAIRING:
            self.state = State.LIVE

    def _hear(self, events: Sequence[Event]) -> None:
        highest = max(event.position.offset for event in events)
        if highest > self.heard:
            self.heard = highest
            if self.state is State.REPAIRING:
                self.doubts += 1

    # What subscriptions need

    def attach(self, subscription: Subscription) -> None:
        """Let a subscription, which has everything up to the cut, take part in later flushes."""
        subscription.attached = True
        if subscription.max_rate_hz is None:
            self.fanout.add(subscription)
        else:
            self.conflation.attach(subscription, subscription.max_rate_hz)

    def detach(self, subscription: Subscription) -> None:
        """Send nothing more to a subscription."""
        subscription.live = subscription.attached = False
        self.fanout.remove(subscription)
        self.conflation.detach(subscription)
        if subscription.watching:
            self.presence.remove(subscription)

    def watch(self, subscription: Subscription, version: int) -> bool:
        """Let a subscription, told the presence set of `version`, take part in later changes.

        False if changes passed by since, so that a sync is due.
        """
        # What was told includes the changes that wait here.
        self.presence.hurry()
        self.presence.add(subscription)
        if self.presence_version is None:
            self.presence_version = version
        return version >= self.presence_version

    async def settled(self, position: Position | None = None) -> None:
        """Wait until the cut is of the top's epoch, and not before `position` if that is of it too.

        Then a session that has seen `position` attaches without seeing an event twice. Returns at
        once when the feed was given up.
        """
        while self.state is not State.CLOSED and not self._is_settled(position):
            self.fanout.hurry()
            if not self._is_settled(position):
                await self.fanout.flushed()

    def _is_settled(self, position: Position | None) -> bool:
        top, cut = self.top, self.cut
        if cut.epoch != top.epoch:
            return False
        if position is None or position.epoch != top.epoch or cut.offset >= position.offset:
            return True
        return top.offset < position.offset

    async def reach(self, position: Position) -> bool:
        """Wait until the top has come to `position` or beyond.

        False if the feed was given up, or began anew in an epoch that is not the position's. Safe
        to cancel.
        """
        while self.state is not State.CLOSED:
            if self.top.epoch == position.epoch and self.top.offset >= position.offset:
                return True
            future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            if self._waiting is None:
                self._waiting = []
            self._waiting.append((position.offset, future))
            if not await future and self.top.epoch != position.epoch:
                return False
        return False

    def _reached(self) -> None:
        kept = []
        for offset, future in self._waiting or ():
            if future.done():
                continue
            if self.top.offset >= offset:
                future.set_result(True)
            else:
                kept.append((offset, future))
        self._waiting = kept or None

    def _disappoint(self) -> None:
        """Wake all who wait for a top: it will not come by the way on which they expect it."""
        waiting, self._waiting = self._waiting, None
        for _offset, future in waiting or ():
            if not future.done():
                future.set_result(False)

    def _on_begin(self, items: Sequence[Event | ResetNotice]) -> None:
        self.cut = items[-1].position
        self.conflation.begin(items)
