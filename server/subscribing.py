"""Who is connected here? This file: how a subscription begins, and catches up without a gap."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from pubsub.broker import Broker
from pubsub.chronicle import Chronicle
from pubsub.errors import PubSubError
from pubsub.event import Event
from pubsub.position import Position
from pubsub.presence import Member, Members, PresenceStore
from server.backfill import keep
from server.closing import Closing
from server.errors import Forbidden
from server.feed import Feed, ResetNotice, State, encode_item
from server.hub import Hub
from server.metrics import Metrics
from server.protocol import Subscribed
from server.sequence import chained, continued
from server.session import State as SessionState
from server.subscription import Subscription

_log = logging.getLogger(__name__)

# Replayed events that are read, or sent, in one piece; and how much data may be sent in one, lest
# a replay of large events meets the limit of unsent bytes.
_PIECE = 100
_PIECE_BYTES = 32_768
_PAUSE_S = (0.05, 2.0)


class Start:
    """Where a subscription begins: behind `position` (None: at the cut), with a first piece read.

    `recovered` is None without `since` and without a time. `walks`: it lies in the past, from where
    the way may lead over gaps and forks.
    """

    __slots__ = ("piece", "position", "recovered", "walks")

    def __init__(
        self,
        position: Position | None,
        recovered: bool | None,
        piece: Sequence[Event] = (),
        *,
        walks: bool = False,
    ) -> None:
        self.walks = walks
        self.position = position
        self.recovered = recovered
        self.piece = piece


class Subscribing:
    """Begins subscriptions: live, after a position, of a time on, or with the last events."""

    def __init__(
        self,
        hub: Hub,
        broker: Broker,
        chronicle: Chronicle,
        presence: PresenceStore,
        metrics: Metrics,
        *,
        members_per_reply: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._hub = hub
        self._broker = broker
        self._chronicle = chronicle
        self._presence = presence
        self._metrics = metrics
        self._members_per_reply = members_per_reply
        self._sleep = sleep

    async def subscribe(
        self,
        subscription: Subscription,
        *,
        ref: int | None,
        since: Position | None = None,
        rewind: int | None = None,
        from_ms: int | None = None,
        member: Member | None = None,
    ) -> None:
        """Answer `subscribed`, replay what was missed, and attach; no gap, no overlap.

        `subscription` stands in its session already. With `member` the session joins the
        channel's presence set. Raises PubSubError before the answer, and Forbidden when the
        subscription was ended meanwhile but not the session; then the subscription is ended.
        """
        try:
            feed = await self._hub.hold(subscription.channel)
            subscription.feed = feed
            start = await self._start(feed, since, rewind, from_ms)
            subscription.walks = start.walks
            page = await self._enter(subscription, member)
            await feed.settled(start.position)
        except BaseException:
            self.end(subscription)
            self._let_go(subscription)
            raise
        if subscription.ended:
            # It ended while this waited, perhaps before the entry into the presence set was done.
            subscription.member = member is not None
            self._let_go(subscription)
            if subscription.session.state is SessionState.OPEN:
                raise Forbidden("the subscription was ended before it began")
            return
        # No await from here to the end of the first piece: what is told is what follows.
        position = start.position if start.position is not None else feed.cut
        if start.recovered is not None:
            self._metrics.recovered(start.recovered)
        self._answer(subscription, ref, position, start.recovered, page)
        self._replay(subscription, position, start.piece)

    async def _enter(self, subscription: Subscription, member: Member | None) -> Members | None:
        """Enter the channel's presence set; return its first page if that is to be told."""
        channel = subscription.channel
        if member is not None and not subscription.ended:
            subscription.member = True
            await self._presence.enter(channel, member)
        if not subscription.watching or subscription.ended:
            return None
        return await self._presence.members(channel, limit=self._members_per_reply)

    def end(self, subscription: Subscription) -> None:
        """End a subscription, in whatever state it is; nothing more is sent to it."""
        if subscription.ended:
            return
        session = subscription.session
        if subscription.feed is not None and session.state is SessionState.OPEN:
            # What it is owed was published before this.
            subscription.feed.conflation.finish(subscription)
        subscription.ended = True
        if session.subscriptions.get(subscription.channel) is subscription:
            del session.subscriptions[subscription.channel]
        if subscription.feed is not None:
            self._let_go(subscription)

    def _let_go(self, subscription: Subscription) -> None:
        """Detach and release, once; a subscription that still waits for its feed does so later."""
        feed, subscription.feed = subscription.feed, None
        if feed is not None:
            feed.detach(subscription)
            self._hub.release(feed)
        self._hub.leave((subscription,))

    # Where to begin

    async def _start(
        self, feed: Feed, since: Position | None, rewind: int | None, from_ms: int | None
    ) -> Start:
        recovered = None
        if since is not None:
            start = await self._resume(feed, since)
            if start is not None:
                return start
            recovered = False
        if from_ms is not None:
            return await self._from(feed, from_ms, recovered)
        if rewind is not None:
            return await self._rewind(feed, rewind, recovered)
        return Start(None, recovered)

    async def _resume(self, feed: Feed, since: Position) -> Start | None:
        """Return the start behind `since`, or None if the channel cannot be continued there."""
        if since.epoch != feed.top.epoch or since.offset > feed.top.offset:
            # The session may have seen more on another node: the broker's top decides.
            top = await self._broker.top(feed.channel)
            if top is None or top.epoch != since.epoch or top.offset < since.offset:
                return None
            feed.on_top(top)
            if not await feed.reach(since):
                return None
        if since.offset < feed.sequence.floor:
            return None
        known = feed.sequence.at(since.offset)
        if known is not None:
            return Start(since, True) if known == since else None
        history = await self._hub.reads.after(feed.channel, since.offset, _PIECE)
        keep(self._hub, feed, history)
        if history is None or not history.events or not chained(since, history.events):
            return None
        return Start(since, True, history.events)

    async def _rewind(self, feed: Feed, count: int, recovered: bool | None) -> Start:
        """Return the start before the last `count` events of the epoch, read piece by piece."""
        begun_at = feed.top
        after = max(0, begun_at.offset - count)
        while True:
            history = await self._hub.reads.after(feed.channel, after, _PIECE)
            if history is None or not history.events:
                # Not at the cut, which is taken later: what is published until then was asked for.
                return Start(begun_at, recovered)
            top = feed.top
            events = [each for each in history.events if each.position.epoch == top.epoch]
            if events:
                start = events[0].before()
                # A feed that is behind by more than what is kept will have to begin anew.
                begun = start.offset <= top.offset
                return Start(start, recovered, events) if begun else Start(None, recovered)
            after = history.events[-1].position.offset

    async def _from(self, feed: Feed, from_ms: int, recovered: bool | None) -> Start:
        """Return the start before the first event of a time or later, in whatever epoch."""
        begun_at = feed.top
        position, whole = await self._chronicle.first_since(feed.channel, from_ms)
        if recovered is None:
            recovered = whole
        if position is None:
            # Not at the cut, which is taken later: what is published until then was asked for.
            return Start(begun_at, recovered)
        if position.epoch == feed.top.epoch and position.offset > feed.top.offset:
            # The feed is behind; all that it is yet to see was asked for.
            return Start(feed.top, recovered)
        history = await self._hub.reads.after(feed.channel, position.offset, _PIECE)
        piece = () if history is None else history.events
        return Start(position, recovered, piece, walks=True)

    def _answer(
        self,
        subscription: Subscription,
        ref: int | None,
        position: Position,
        recovered: bool | None,
        page: Members | None,
    ) -> None:
        session = subscription.session
        message = Subscribed(ref=ref, channel=subscription.channel, position=str(position))
        message.max_rate_hz = subscription.max_rate_hz
        if recovered is not None:
            message.recovered = recovered
        if page is not None:
            message.members = [session.wire.codec.member(each) for each in page.members]
            message.more = page.cursor is not None
        subscription.cursor = position
        session.reply(message)
        session.flush()
        feed = subscription.feed
        subscription.live = True
        if page is not None and feed is not None and not feed.watch(subscription, page.version):
            # Changes passed by between the reading and now.
            self._hub.sync_presence(feed)

    # Catching up

    def _replay(self, subscription: Subscription, at: Position, piece: Sequence[Event]) -> None:
        """Send what lies between `at` and the cut, as the client reads, then attach.

        Goes on in a task of its own as soon as it has to wait, so that the session's other
        commands are carried out.
        """
        feed = subscription.feed
        while feed is not None and (at == feed.cut or subscription.connection.clear()):
            # More may have come while this waited than the ring holds: then it is to be read.
            if at != feed.cut and not piece and _known(feed, at, piece) is None:
                break
            if not self._send_piece(subscription, at, piece):
                return
            at = subscription.cursor or at
            if _known(feed, at, piece) is None:
                break
        self._hub.spawn(self._replay_slowly(subscription, at, piece))

    async def _replay_slowly(
        self, subscription: Subscription, at: Position, piece: Sequence[Event]
    ) -> None:
        """Go on with a replay that waits for the client, or for history to be read."""
        try:
            pause = _PAUSE_S[0]
            while not subscription.ended and await subscription.connection.drained():
                feed = subscription.feed
                if feed is None:
                    return
                walks = subscription.walks
                if (walks or at.epoch == feed.top.epoch) and _known(feed, at, piece) is None:
                    try:
                        piece = await self._read(feed, at)
                    except PubSubError as error:
                        _log.info("replay waits: %s", error, extra={"channel": feed.channel})
                        await self._sleep(random.uniform(0.5, 1) * pause)  # noqa: S311
                        pause = min(pause * 2, _PAUSE_S[1])
                        continue
                await feed.settled(at)
                # Other replays of the session may have filled the connection meanwhile.
                if at != feed.cut and not subscription.connection.clear():
                    continue
                if not self._send_piece(subscription, at, piece):
                    return
                at = subscription.cursor or at
        except Exception:
            _log.exception("replay failed", extra={"session": subscription.session.id})
            # It comes back and resumes: a session that is not attached would hear nothing.
            subscription.session.end(Closing.UNAVAILABLE)

    async def _read(self, feed: Feed, at: Position) -> Sequence[Event]:
        history = await self._hub.reads.after(feed.channel, at.offset, _PIECE)
        keep(self._hub, feed, history)
        return () if history is None else history.events

    def _send_piece(self, subscription: Subscription, at: Position, piece: Sequence[Event]) -> bool:
        """Send one bounded piece behind `at`, up to the cut; attach if that reaches it.

        `piece` holds events read from history, if any. False if there is nothing left to do.
        """
        feed = subscription.feed
        if subscription.ended or feed is None or feed.state is State.CLOSED:
            return False
        session, cut = subscription.session, feed.cut
        if at != cut:
            events = _following(feed, at, piece, walks=subscription.walks)
            if not events:
                # It cannot be continued: told so, and nothing older follows.
                self._reset(subscription, cut)
            else:
                if not chained(at, events[:1]):
                    self._reset(subscription, events[0].before())
                shown = [each for each in events if each.exclude != session.id]
                if shown:
                    session.send_events(shown, [encode_item(session.wire, e) for e in shown])
                    self._metrics.replayed += len(shown)
                subscription.cursor = events[-1].position
                if subscription.cursor != cut:
                    return True
        feed.attach(subscription)
        return False

    def _reset(self, subscription: Subscription, position: Position) -> None:
        """Tell a subscription that continuity is lost, and goes on behind `position`."""
        session = subscription.session
        self._metrics.resets += 1
        notice = ResetNotice(subscription.channel, position)
        session.send_events([notice], [encode_item(session.wire, notice)])
        subscription.cursor = position


def _following(feed: Feed, at: Position, piece: Sequence[Event], *, walks: bool) -> Sequence[Event]:
    """Return a bounded piece of what follows `at`, up to the cut; empty if nothing continues it.

    One that `walks` also goes through an earlier epoch, and over what is missing.
    """
    cut = feed.cut
    events: Sequence[Event] = ()
    if at.epoch == cut.epoch and at.offset < cut.offset:
        events = (_known(feed, at, piece) or ())[: cut.offset - at.offset]
    elif walks and at.epoch != cut.epoch:
        events = _known(feed, at, piece) or ()
    if walks and not events:
        events = _beyond(at, cut, piece)
    return _bounded(events)


def _known(feed: Feed, at: Position, piece: Sequence[Event]) -> Sequence[Event] | None:
    """Return events that follow `at`, from the ring or else from `piece`; None if in neither."""
    events: Sequence[Event] | None = feed.sequence.since(at, _PIECE)
    return continued(at, piece, _PIECE) or None if events is None else events


def _beyond(at: Position, cut: Position, piece: Sequence[Event]) -> Sequence[Event]:
    """Return the events behind a gap, or of the next epoch, as far as they are before the cut."""
    for place, event in enumerate(piece):
        if event.position.offset > at.offset:
            before = event.before()
            if before.epoch == cut.epoch and before.offset >= cut.offset:
                return ()
            events = continued(before, piece[place:], _PIECE)
            return events[: cut.offset - before.offset] if before.epoch == cut.epoch else events
    return ()


def _bounded(events: Sequence[Event]) -> Sequence[Event]:
    """Return the first of `events`, one at least, that are not too many bytes."""
    left = _PIECE_BYTES
    for place, event in enumerate(events):
        left -= len(event.data)
        if left < 0 and place:
            return events[:place]
    return events
