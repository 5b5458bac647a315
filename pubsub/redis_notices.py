"""How do nodes act as one? This file: notices in Redis, and what this node has read of them.

A notice is kept by a script that also announces it. Announcements may be lost; so every few seconds
a node reads what changed since the revision that it has read up to. If what it has read is no part
of what Redis holds, Redis has lost something: then all is read anew, and what Redis does not know
any more is told to it again.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from pubsub.control_message import Notice, pack_message, pack_times, read_kept
from pubsub.control_scripts import ControlScripts
from pubsub.errors import JunkReceived
from pubsub.notices import Notices
from pubsub.position import new_epoch
from pubsub.redis_keys import RedisKeys
from pubsub.redis_link import RedisLink

_log = logging.getLogger(__name__)

# Notices in one script: it holds all of Redis up meanwhile.
_PAGE: Final = 500
_BATCH: Final = 100
# A master that fails may have acknowledged what its replica did not get yet.
_TELL_EVERY_S: Final = 60.0

# Nothing was read yet.
_NOTHING: Final = ("", 0)


class RedisNotices:
    """What holds of which names, in a few topics, as Redis and this node know it.

    - `tell` is told of each notice once, and of no older one of its name after a newer one.
    - `most`: what is kept of each topic; beyond it the oldest goes.
    - `now`: the time in s since 1970. `monotonic`: a clock in s. `clock_ms` is for tests.

    `repaired` counts notices that came by reading only, after the first time; `restored` those that
    Redis had lost; `dropped` those that went before their end, since there were too many.
    """

    def __init__(
        self,
        link: RedisLink,
        keys: RedisKeys,
        scripts: ControlScripts,
        *,
        topics: Iterable[str],
        most: int,
        tell: Callable[[Notice], None],
        now: Callable[[], float],
        monotonic: Callable[[], float],
        clock_ms: Callable[[], int] | None,
    ) -> None:
        self.junk = 0
        self.repaired = 0
        self.restored = 0
        self.dropped = 0
        self.loaded = False
        self._link = link
        self._keys = keys
        self._scripts = scripts
        self._most = most
        self._tell = tell
        self._now = now
        self._monotonic = monotonic
        self._clock_ms = clock_ms
        self._known = {topic: Notices(most) for topic in topics}
        # Epoch and revision up to which each topic was read.
        self._read = dict.fromkeys(self._known, _NOTHING)
        self._tell_after = -math.inf

    def __contains__(self, topic: str) -> bool:
        return topic in self._known

    def learn(self, notice: Notice) -> bool:
        """Take a notice of one of the topics, and tell of it; False if it was known, or ended."""
        new = self._known[notice.topic].put(notice, self._now())
        if new:
            self._tell(notice)
        return new

    async def keep(self, notice: Notice) -> None:
        """Let Redis keep and announce a notice; raises BrokerUnavailable."""
        await self._keep(notice.topic, [notice])
        self.learn(notice)

    def doubt(self) -> None:
        """Redis may have lost some: the next comparison reads all, and restores what it lacks.

        Revisions do not show that, if others have told of newer notices since.
        """
        self._read = dict.fromkeys(self._known, _NOTHING)

    async def compare(self) -> None:
        """Read what changed since the last time; at first, everything. Raises BrokerUnavailable."""
        for topic in self._known:
            await self._compare(topic)
        self.loaded = True

    async def _compare(self, topic: str) -> None:
        epoch, revision = self._read[topic]
        unread: dict[str, Notice] = {}
        while True:
            answer = await self._link.run(
                self._scripts.notices,
                self._keys.notices(topic),
                *(self._time(), epoch, revision, _PAGE),
            )
            # Without an epoch Redis holds none; this node may have heard of some since it read.
            if answer[0] == 1 or not answer[1]:
                unread = {notice.name: notice for notice in self._known[topic].all()}
            for at in range(4, len(answer), 2):
                self._take(topic, answer[at], answer[at + 1], unread)
            epoch, revision = answer[1].decode(errors="replace"), self._read_revision(answer[2])
            if answer[3] == 0:
                break
        await self._keep_again(topic, list(unread.values()))
        self._read[topic] = (epoch, revision)

    def _read_revision(self, text: bytes) -> int:
        try:
            return int(text)
        except ValueError:
            self.junk += 1
            raise JunkReceived("a revision is no number") from None

    def _take(self, topic: str, name: bytes, kept: bytes, unread: dict[str, Notice]) -> None:
        try:
            notice = read_kept(topic, name, kept)
        except JunkReceived:
            self.junk += 1
            return
        mine = unread.get(notice.name)
        if mine is not None and not mine.exceeds(notice):
            del unread[notice.name]
        if self.learn(notice) and self.loaded:
            self.repaired += 1

    async def _keep_again(self, topic: str, notices: Sequence[Notice]) -> None:
        """Let Redis keep what it may have lost; nothing happens with what it has."""
        now = self._now()
        lasting = [notice for notice in notices if notice.until_s > now]
        for at in range(0, len(lasting), _BATCH):
            restored = await self._keep(topic, lasting[at : at + _BATCH])
            self.restored += restored

    async def _keep(self, topic: str, notices: Sequence[Notice]) -> int:
        """Return how many of them Redis did not have."""
        parts: list[str | bytes] = []
        for notice in notices:
            parts += [notice.name, *pack_times(notice), pack_message(notice)]
        keys = self._keys
        changed: Any
        dropped: Any
        changed, dropped = await self._link.run(
            self._scripts.notify,
            keys.notices(topic),
            *(self._time(), new_epoch(), keys.nodes, keys.send, self._most),
            *parts,
        )
        if dropped:
            self._on_drop(topic, dropped)
        return int(changed)

    def _on_drop(self, topic: str, count: int) -> None:
        self.dropped += count
        now = self._monotonic()
        if now >= self._tell_after:
            self._tell_after = now + _TELL_EVERY_S
            _log.warning("too many notices are kept: the oldest of %s go", topic)

    def _time(self) -> int | str:
        return "" if self._clock_ms is None else self._clock_ms()
