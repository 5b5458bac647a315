"""Who is present in a channel, over all nodes? This file: the presence store over Redis.

Changes travel with the events of their channel; `RedisBroker` hands them over. Every node keeps a
lease, and cleans up behind a node whose lease has lapsed.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from pubsub.envelope import read_member
from pubsub.errors import BrokerUnavailable, JunkReceived, PubSubError
from pubsub.node_entries import KEEP_MS, NodeEntries
from pubsub.node_lease import NodeLease
from pubsub.presence import Member, Members, PresenceChange, PresenceSink
from pubsub.presence_cursor import read_cursor, write_cursor
from pubsub.presence_scripts import PresenceScripts
from pubsub.redis_broker import RedisBroker
from pubsub.redis_channels import gather

_log = logging.getLogger(__name__)

LEASE_S: Final = 10.0
# Versions in one script: it holds all of Redis up meanwhile.
_BATCH: Final = 200


class RedisPresence:
    """Keeps presence in Redis, shared by all nodes; see `PresenceStore` for what it promises.

    - `broker`: carries the changes; so only those of subscribed channels are announced here.
    - `lease_s`: how long what a dead node entered stays, about.
    - `monotonic`, `clock_ms`: as for the broker.

    A leave that Redis cannot be told raises nothing; it is told when Redis is back, or else the
    entry goes with the lease. Sessions and channels hold no NUL. Nothing connects before `start`.
    """

    def __init__(
        self,
        broker: RedisBroker,
        *,
        lease_s: float = LEASE_S,
        monotonic: Callable[[], float] = time.monotonic,
        clock_ms: Callable[[], int] | None = None,
    ) -> None:
        self.junk = 0
        self._sink: PresenceSink
        self._link = link = broker.link
        self._keys = broker.keys
        self._scripts = PresenceScripts()
        self._clock_ms = clock_ms
        self.lease = NodeLease(
            link,
            self._scripts,
            broker.keys,
            node=broker.node,
            lease_s=lease_s,
            on_new=self._on_new_life,
            monotonic=monotonic,
            clock_ms=clock_ms,
        )
        self._entries = NodeEntries(link, self._scripts, broker.keys, self.lease, self._now)
        self._next = random.randrange(self._keys.partitions)  # noqa: S311
        # This node's earlier lives, to be swept.
        self._bygone: list[str] = []
        self._beat_soon = asyncio.Event()
        self._tend_soon = asyncio.Event()
        self._rounds: list[asyncio.Task[None]] = []
        self._closed = False
        broker.carry(self)
        broker.on_return.append(self._on_return)

    def bind(self, sink: PresenceSink) -> None:
        self._sink = sink

    # Life

    async def start(self) -> None:
        """Take a lease, now or as soon as Redis can be reached; called once, on the node's loop."""
        loop = asyncio.get_running_loop()
        self._rounds = [loop.create_task(self._beat_on()), loop.create_task(self._tend_on())]

    async def close(self) -> None:
        """Remove what this node entered, and its lease; may be called twice.

        To be called before the broker's.
        """
        if self._closed:
            return
        self._closed = True
        for task in self._rounds:
            task.cancel()
        if self._rounds:
            await asyncio.wait(self._rounds)
        try:
            async with asyncio.timeout(self._link.call_timeout_s):
                await self._entries.remove_all()
                if self.lease.life:
                    self._bygone.append(self.lease.life)
                await self._sweep_bygone()
                # Nobody cleans up behind a lease that was given back: what is left now would stay.
                await self.lease.end()
        except (PubSubError, TimeoutError) as error:
            _log.info("presence entries are left to the other nodes: %s", error)
        await self._entries.close()

    # ---- the presence store

    async def enter(self, channel: str, member: Member) -> None:
        self._check()
        await self._entries.put(channel, member)

    async def leave(self, channel: str, session: str) -> None:
        if self._closed:
            return
        try:
            await self._entries.remove(channel, session)
        except BrokerUnavailable as error:
            _log.info("a presence leave waits: %s", error)

    async def members(self, channel: str, *, cursor: str | None = None, limit: int) -> Members:
        start = "-" if cursor is None else f"({read_cursor(cursor)}"
        self._check()
        answer = await self._link.run(
            self._scripts.members,
            self._keys.presence(channel),
            *(self._now(), start, max(0, limit), KEEP_MS),
        )
        found = []
        for stored in answer[4::2]:
            try:
                found.append(read_member(stored))
            except JunkReceived:
                self.junk += 1
        after = write_cursor(answer[-2].decode()) if answer[2] == 1 else None
        return Members(tuple(found), answer[0], int(answer[1]), after)

    # ---- what the broker says

    def on_presence(self, change: PresenceChange) -> None:
        """Hand over a change that came among the events of its channel."""
        self._sink.on_presence(change)

    async def versions(self) -> Mapping[str, int]:
        """Return the versions of all watched presence sets; raises BrokerUnavailable.

        A version below what was told starts again above it: a fail-over has lost changes.
        """
        shares: dict[int, list[tuple[str, int]]] = {}
        for channel, told in self._sink.watched().items():
            shares.setdefault(self._keys.partition(channel), []).append((channel, told))
        asked = [
            share[at : at + _BATCH]
            for share in shares.values()
            for at in range(0, len(share), _BATCH)
        ]
        answers = await gather([self._ask_versions(batch) for batch in asked])
        return {
            channel: int(version)
            for batch, answer in zip(asked, answers, strict=True)
            for (channel, _told), version in zip(batch, answer, strict=True)
        }

    async def _ask_versions(self, batch: list[tuple[str, int]]) -> Any:
        keys = [self._keys.presence(channel)[2] for channel, _told in batch]
        told = [version for _channel, version in batch]
        return await self._link.run(self._scripts.versions, keys, self._now(), KEEP_MS, *told)

    def on_versions(self, versions: Mapping[str, int]) -> None:
        """All that was announced before `versions` were read has come, or is lost."""
        for channel, version in versions.items():
            self._sink.on_presence_version(channel, version)

    def _check(self) -> None:
        if self._closed:
            raise BrokerUnavailable("the presence store is closed")

    def _now(self) -> int | str:
        return "" if self._clock_ms is None else self._clock_ms()

    # ---- the tasks

    def _on_return(self) -> None:
        """Redis may have forgotten, or missed a call."""
        self.lease.on_return()
        self._entries.doubt_all()
        self._beat_soon.set()

    def _on_new_life(self, before: str) -> None:
        if before:
            _log.warning("the lease of this node was gone; its presence entries are made anew")
            self._bygone.append(before)
        self._entries.doubt_all()
        self._tend_soon.set()

    async def _beat_on(self) -> None:
        while True:
            self._beat_soon.clear()
            try:
                await self.lease.beat()
            except PubSubError as error:
                _log.info("the node's lease waits: %s", error)
            except Exception:
                _log.exception("renewing the node's lease failed")
            self._tend_soon.set()
            pause = random.uniform(0.5, 1) * self.lease.lease_s / 3  # noqa: S311
            try:
                async with asyncio.timeout(pause):
                    await self._beat_soon.wait()
            except TimeoutError:
                pass

    async def _tend_on(self) -> None:
        while True:
            await self._tend_soon.wait()
            self._tend_soon.clear()
            try:
                await self.tend()
            except PubSubError as error:
                _log.info("tending presence waits: %s", error)
            except Exception:
                _log.exception("tending presence failed")

    async def tend(self) -> None:
        """Clean up behind a dead node if one was claimed, and compare what is in doubt.

        Raises BrokerUnavailable.
        """
        life = self.lease.claimed
        if life and await self._entries.sweep(life, lambda: self.lease.claimed == life):
            _log.info("the presence entries of a dead node were removed: %s", life)
            await self.lease.bury(life)
            # There may be more of them.
            self._beat_soon.set()
        self._next = (self._next + 1) % self._keys.partitions
        await self._entries.tell_doubtful()
        await self._entries.compare(self._next)
        await self._sweep_bygone()
        await self._entries.adopt(self._next)

    async def _sweep_bygone(self) -> None:
        while self._bygone:
            await self._entries.sweep(self._bygone[0], lambda: True)
            del self._bygone[0]
