"""Who is connected here? This file: the hub, all feeds and sessions of a node."""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from config.rules import ChannelRules
from pubsub.broker import Broker
from pubsub.errors import BrokerUnavailable, PubSubError
from pubsub.event import Event
from pubsub.position import Position
from pubsub.presence import PresenceChange, PresenceStore
from server.closing import Closing
from server.fanout import Turn
from server.feed import Feed, State
from server.metrics import Metrics
from server.reads import SharedReads
from server.repair import Repair
from server.session import Session
from server.subscription import Subscription
from server.timetable import Timetable

_log = logging.getLogger(__name__)

# Recent events that a feed keeps in memory, so that a wave of reconnects reads nothing.
RING_SIZE = 256
# How long a feed outlives its last subscription: reloads of a page find it warm.
LINGER_S = 10.0
# Between two tries to read a presence set.
_PAUSE_S = 1.0
# How long tasks may go on when the hub closes.
_CLOSE_S = 1.0


class Hub:
    """All feeds and sessions of a node; what the broker and the presence store talk to.

    Owns the tasks that serve feeds (opening, repair, presence); `close` awaits them.
    """

    def __init__(
        self,
        broker: Broker,
        reads: SharedReads,
        presence: PresenceStore,
        rules: ChannelRules,
        metrics: Metrics,
        timetable: Timetable,
        *,
        members_per_reply: int,
        linger_s: float = LINGER_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.broker = broker
        self.presence = presence
        self.rules = rules
        self.metrics = metrics
        self.timetable = timetable
        self.reads = reads
        self.feeds: dict[str, Feed] = {}
        self.sessions: dict[str, Session] = {}
        self._users: dict[str, dict[str, Session]] = {}
        self._turn: Turn | None = None
        self._members_per_reply = members_per_reply
        self._linger_s = linger_s
        self._sleep = sleep
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leaving: dict[str, asyncio.Task[Any]] = {}
        self._syncing: set[str] = set()
        self._closed = False
        broker.bind(self)
        presence.bind(self)

    # Sessions

    def add(self, session: Session) -> None:
        """Know a session that is open."""
        self.sessions[session.id] = session
        if session.principal.user is not None:
            self._users.setdefault(session.principal.user, {})[session.id] = session

    def remove(self, session: Session) -> None:
        """Forget a session."""
        self.sessions.pop(session.id, None)
        user = session.principal.user
        if user is not None and user in self._users:
            self._users[user].pop(session.id, None)
            if not self._users[user]:
                del self._users[user]

    def sessions_of(self, user: str) -> list[Session]:
        """Return the open sessions of a user."""
        return list(self._users.get(user, {}).values())

    def end_user(self, user: str, issued_until_s: float = math.inf) -> int:
        """End the sessions of a user whose tokens were issued up to then; return how many."""
        ended = 0
        for session in self.sessions_of(user):
            issued_at = session.principal.issued_at
            if issued_at is None or issued_at <= issued_until_s:
                session.end(Closing.ENDED)
                ended += 1
        return ended

    # Feeds

    def subscribers(self, channel: str) -> int:
        """Return how many subscriptions a channel has on this node."""
        feed = self.feeds.get(channel)
        return 0 if feed is None else feed.holds

    def subscriptions(self) -> int:
        """Return how many subscriptions there are on this node."""
        return sum(feed.holds for feed in self.feeds.values())

    def held(self) -> int:
        """Return how many subscriptions on this node are owed an event."""
        return sum(feed.conflation.held() for feed in self.feeds.values())

    async def hold(self, channel: str) -> Feed:
        """Return the channel's feed, open; it stays until `release`.

        Raises PubSubError, and then nothing is held. If cancelled, nothing is held either.
        """
        if self._closed:
            raise BrokerUnavailable("the node is closing")
        feed = self.feeds.get(channel)
        if feed is None:
            rule = self.rules.rule(channel)
            size = min(RING_SIZE, rule.history_size) if rule.history_ttl_s > 0 else 0
            if self._turn is None:
                self._turn = Turn(asyncio.get_running_loop())
            feed = Feed(channel, self._turn, self.metrics, size, self._repair, self.rules)
            self.feeds[channel] = feed
            feed.opening = self.spawn(self._open(feed))
        feed.holds += 1
        if feed.linger is not None:
            feed.linger.cancel()
            feed.linger = None
        if feed.opening is not None:
            try:
                await asyncio.shield(feed.opening)
                if feed.state is State.CLOSED:
                    raise BrokerUnavailable("the node is closing")
            except BaseException:
                self.release(feed)
                raise
        return feed

    def release(self, feed: Feed) -> None:
        """Hold a feed no longer; one that nobody holds is given up after a while."""
        feed.holds -= 1
        self._linger(feed)

    def _linger(self, feed: Feed) -> None:
        if feed.holds or feed.state in (State.OPENING, State.CLOSED) or self._closed:
            return
        feed.linger = self.timetable.call_in(self._linger_s, lambda: self._give_up(feed))

    async def _open(self, feed: Feed) -> None:
        try:
            leaving = self._leaving.get(feed.channel)
            if leaving is not None:
                await asyncio.wait([leaving])
            top = await self.broker.subscribe(feed.channel)
            feed.opening = None
            if feed.state is State.OPENING:
                feed.open(top)
            # Those who waited may be gone.
            self._linger(feed)
        except BaseException:
            # The next subscription tries anew.
            feed.close()
            if self.feeds.get(feed.channel) is feed:
                del self.feeds[feed.channel]
            raise

    def _give_up(self, feed: Feed) -> None:
        feed.linger = None
        feed.close()
        del self.feeds[feed.channel]
        task = self.spawn(self.broker.unsubscribe(feed.channel))
        self._leaving[feed.channel] = task
        task.add_done_callback(lambda done: self._left(feed.channel, done))

    def _left(self, channel: str, task: asyncio.Task[Any]) -> None:
        if self._leaving.get(channel) is task:
            del self._leaving[channel]

    def _repair(self, feed: Feed) -> None:
        self.spawn(Repair(feed, self.broker, self._sleep).run())

    # What the broker says

    def on_events(self, channel: str, events: Sequence[Event]) -> None:
        """Hand events to the channel's feed."""
        feed = self.feeds.get(channel)
        if feed is not None:
            feed.on_events(events)

    def on_purge(self, channel: str, floor: Position) -> None:
        """Hand a purge to the channel's feed."""
        feed = self.feeds.get(channel)
        if feed is not None:
            feed.on_purge(floor)

    def on_fork(self, channel: str, top: Position) -> None:
        """Hand a new epoch to the channel's feed."""
        feed = self.feeds.get(channel)
        if feed is not None:
            feed.on_fork(top)

    def on_top(self, channel: str, top: Position) -> None:
        """Let the channel's feed compare itself with the broker's top."""
        feed = self.feeds.get(channel)
        if feed is not None:
            feed.on_top(top)

    # Presence

    def on_presence(self, change: PresenceChange) -> None:
        """Hand a presence change to the channel's feed; ask for the whole set if some were lost."""
        self.metrics.presence_changes += 1
        feed = self.feeds.get(change.channel)
        if feed is not None and not feed.on_presence(change):
            self.sync_presence(feed)

    def watched(self) -> dict[str, int]:
        """Return the channels whose presence sets are watched here, with the version last told."""
        return {
            channel: feed.presence_version
            for channel, feed in self.feeds.items()
            if feed.presence.audiences and feed.presence_version is not None
        }

    def on_presence_version(self, channel: str, version: int) -> None:
        """Ask for the whole presence set of a channel if changes up to `version` were lost."""
        feed = self.feeds.get(channel)
        if feed is not None and feed.lacks_presence(version):
            self.sync_presence(feed)

    def sync_presence(self, feed: Feed) -> None:
        """Send the whole presence set to those who watch a channel; once at a time."""
        if feed.channel not in self._syncing:
            self._syncing.add(feed.channel)
            self.spawn(self._sync(feed))

    async def _sync(self, feed: Feed) -> None:
        try:
            while feed.state is not State.CLOSED:
                feed.presence_heard = 0
                try:
                    page = await self.presence.members(feed.channel, limit=self._members_per_reply)
                except PubSubError as error:
                    _log.info("presence sync waits: %s", error, extra={"channel": feed.channel})
                    await self._sleep(random.uniform(0.5, 1) * _PAUSE_S)  # noqa: S311
                    continue
                if feed.sync(page):
                    return
        finally:
            self._syncing.discard(feed.channel)

    def leave(self, subscriptions: Sequence[Subscription]) -> None:
        """Take subscriptions out of their channels' presence sets."""
        members = [each for each in subscriptions if each.member]
        for each in members:
            each.member = False
        if members:
            self.spawn(self._leave(members))

    async def _leave(self, subscriptions: Sequence[Subscription]) -> None:
        for each in subscriptions:
            newer = each.session.subscriptions.get(each.channel)
            if newer is not None and newer.member:
                # The session subscribed again before its leave was told.
                continue
            try:
                await self.presence.leave(each.channel, each.session.id)
            except PubSubError as error:
                _log.warning("presence leave failed: %s", error, extra={"channel": each.channel})

    # Tasks

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine in a task that the hub owns; a failure is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        if isinstance(error, PubSubError):
            _log.info("broker refused: %s", error)
        else:
            _log.error("task failed", exc_info=error)

    async def close(self) -> None:
        """Give up all feeds and await all tasks; may be called twice."""
        self._closed = True
        # First, so that no task goes on waiting for one.
        for feed in self.feeds.values():
            feed.close()
            if feed.linger is not None:
                feed.linger.cancel()
                feed.linger = None
        self.feeds.clear()
        while self._tasks:
            _done, slow = await asyncio.wait(self._tasks, timeout=_CLOSE_S)
            for task in slow:
                task.cancel()
        await self.reads.close()
