"""How does an event get its position? This file: which ids were published before."""

import logging
import sys
from collections import deque
from typing import Final

from pubsub.litter import Litter
from pubsub.position import Position

_log = logging.getLogger(__name__)

# A channel with very many ids closes its generation early, so that the bound never forgets more
# than this part of what it allows in one go.
_PARTS: Final = 8

_WARN_EVERY_S: Final = 60.0


class Generation(dict[str, Position]):
    """The ids that a channel took in one stretch of time, each with its event's position."""

    __slots__ = ("owner", "started")

    def __init__(self, owner: "ChannelIds", started: float) -> None:
        self.owner = owner
        self.started = started


class ChannelIds:
    """The generations of one channel: the open one, and those that are closed, newest first."""

    __slots__ = ("older", "recent")

    def __init__(self) -> None:
        self.recent: Generation | None = None
        self.older: tuple[Generation, ...] = ()


class PublishedIds:
    """The ids of all channels, each remembered for the window at least, and for two at most.

    There is no timer and no object per id but its entry: a channel's ids stand in generations,
    which are closed after a window and forgotten whole after another. `max_ids` (0: no bound)
    holds over all channels: beyond it the oldest generations are forgotten early, which
    `forgotten_early` counts and the log tells once a minute. A window of 0 remembers nothing
    beyond the call. All times are in seconds of one monotonic clock.
    """

    __slots__ = (
        "_generation_ids",
        "_litter",
        "_max_ids",
        "_queue",
        "_warned",
        "_window_s",
        "count",
        "forgotten_early",
    )

    def __init__(self, window_s: float, max_ids: int, litter: Litter) -> None:
        self.count = 0
        self.forgotten_early = 0
        self._window_s = window_s
        self._max_ids = max_ids or sys.maxsize
        self._generation_ids = max(1, self._max_ids // _PARTS)
        # All generations by their start, which is also the order in which they may be forgotten.
        self._queue: deque[Generation] = deque()
        self._litter = litter
        self._warned = float("-inf")

    def open(self, ids: ChannelIds, now: float) -> tuple[Generation, tuple[Generation, ...]]:
        """Return the generation to look in and add to, and the others to look in.

        Whoever adds to it calls `added` in the same turn.
        """
        oldest = now - 2 * self._window_s
        if ids.older and ids.older[-1].started <= oldest:
            ids.older = tuple(old for old in ids.older if old.started > oldest)
        recent = ids.recent
        if recent is not None:
            if now < recent.started + self._window_s and len(recent) < self._generation_ids:
                return recent, ids.older
            # It may have expired itself, if nothing was published since.
            if recent.started > oldest:
                ids.older = (recent, *ids.older)
        recent = ids.recent = Generation(ids, now)
        self._queue.append(recent)
        return recent, ids.older

    def added(self, count: int, now: float) -> None:
        """Take note that `count` ids were added; forget what is too old or too much."""
        self.count += count
        # Twice as much as came in, so that the litter shrinks under any load.
        if self._litter:
            self._litter.free(2 * count)
        self.sweep(now, 2)
        if self.count > self._max_ids:
            before = self.count
            while self.count > self._max_ids:
                self._forget(self._queue.popleft())
            self._tell(before - self.count, now)

    def sweep(self, now: float, limit: int) -> int:
        """Forget at most `limit` generations that have expired; return how many."""
        oldest = now - 2 * self._window_s
        queue = self._queue
        done = 0
        while done < limit and queue and queue[0].started <= oldest:
            self._forget(queue.popleft())
            done += 1
        return done

    def _forget(self, generation: Generation) -> None:
        self.count -= len(generation)
        owner = generation.owner
        if owner.recent is generation:
            owner.recent = None
        else:
            owner.older = tuple(old for old in owner.older if old is not generation)
        self._litter.throw(generation)

    def _tell(self, forgotten: int, now: float) -> None:
        self.forgotten_early += forgotten
        if now - self._warned >= _WARN_EVERY_S:
            self._warned = now
            _log.warning(
                "more than %d event ids within %g s: %d forgotten before their time so far, "
                "a retry of those would publish again",
                self._max_ids,
                self._window_s,
                self.forgotten_early,
            )
