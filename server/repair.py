"""Who is connected here? This file: how a feed finds back to its channel's true sequence."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from pubsub.broker import Broker, History
from pubsub.errors import PubSubError
from pubsub.position import Position
from server.feed import Feed, State
from server.sequence import chained

_log = logging.getLogger(__name__)

_PIECE = 256
_LOOKS = 3
_PAUSE_S = (0.05, 2.0)


class Repair:
    """Repairs one feed: fills a gap from history, or resets it where continuity is lost.

    Once per channel and node; clients notice nothing of a gap that could be filled.
    """

    def __init__(
        self,
        feed: Feed,
        broker: Broker,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._feed = feed
        self._broker = broker
        self._sleep = sleep

    async def run(self) -> None:
        """Return when the feed is live again or was given up; tries while the broker is away."""
        feed = self._feed
        pause = _PAUSE_S[0]
        looks = 0
        while feed.state is State.REPAIRING:
            doubts = feed.doubts
            try:
                behind = await self._look()
            except Exception as error:
                # Whatever it is, a feed that stopped repairing would be silent for good.
                if isinstance(error, PubSubError):
                    _log.info("repair waits: %s", error, extra={"channel": feed.channel})
                else:
                    _log.exception("repair failed", extra={"channel": feed.channel})
                await self._sleep(random.uniform(0.5, 1) * pause)  # noqa: S311
                pause = min(pause * 2, _PAUSE_S[1])
                continue
            if behind or feed.doubts != doubts:
                # Something new came while this looked: that is not known to be untrue.
                looks = 0
            elif feed.heard > feed.top.offset and looks < _LOOKS:
                # What was heard may be on its way still, or was never true.
                looks += 1
                await self._sleep(_PAUSE_S[0])
            else:
                feed.heard = feed.top.offset
                feed.repaired()

    async def _look(self) -> bool:
        """Do one step; say whether more is known to be missing."""
        feed = self._feed
        # What is sent more slowly than it is published is read no faster than it is sent.
        await feed.fanout.eased()
        if feed.state is not State.REPAIRING:
            return True
        top = feed.top
        history = await self._broker.history(
            feed.channel, after=top.offset, limit=_PIECE, hidden=True
        )
        if feed.state is not State.REPAIRING or feed.top != top:
            return True
        if history is None or self._contradicted(top, history):
            new = await self._broker.contradict(feed.channel, top)
            if feed.top == top:
                self._restart(new)
            return new != top
        if history.top == top:
            return False
        if history.top.epoch == top.epoch and history.events and chained(top, history.events):
            feed.accept(history.events)
            return feed.top.offset < history.top.offset
        self._restart(history.top)
        return True

    @staticmethod
    def _contradicted(top: Position, history: History) -> bool:
        """Say whether the broker's record of the same epoch is not the feed's."""
        if history.top.epoch != top.epoch:
            return False
        if history.top.offset <= top.offset:
            return history.top != top
        return bool(
            history.events
            and history.events[0].position.offset == top.offset + 1
            and history.events[0].prev != top.check
        )

    def _restart(self, top: Position) -> None:
        """Tell every session that continuity is lost."""
        feed = self._feed
        if top == feed.top:
            return
        _log.warning("feed reset", extra={"channel": feed.channel})
        feed.reset(top)
