"""How does an event get its position and reach every node? This file: the broker over Redis.

Every step that must be one is one script; `channel.lua` says what is kept. Events come on pub/sub,
which loses: what was lost shows by offsets, checks and tops, and is read from the stream.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

from pubsub.broker import ChannelState, History, HistoryRules, Sink
from pubsub.channel_room import ChannelRoom
from pubsub.envelope import Batch, Purge, read_envelope
from pubsub.errors import BrokerUnavailable, JunkReceived, PubSubError
from pubsub.event import Draft, Published
from pubsub.heard import Heard
from pubsub.position import Position
from pubsub.presence import PresenceChange
from pubsub.redis_channels import RedisChannels
from pubsub.redis_keys import RedisKeys
from pubsub.redis_link import RedisLink
from pubsub.redis_listener import RedisListener
from pubsub.redis_publishing import RedisPublishing
from pubsub.redis_records import RedisRecords
from pubsub.redis_scripts import RedisScripts
from pubsub.redis_times import RedisTimes
from pubsub.redis_watch import RedisWatch

# How often delivery is probed and tops are compared.
INTERVAL_S: Final = 5.0


class Carried(Protocol):
    """Whose messages travel among the events of their channels: the presence store."""

    def on_presence(self, change: PresenceChange) -> None:
        """A change came, in order with the events of its channel."""

    async def versions(self) -> Mapping[str, int]:
        """Return how far changes have been announced, of all watched channels."""
        ...

    def on_versions(self, versions: Mapping[str, int]) -> None:
        """All that was announced before `versions` were read has come, or is lost."""


class RedisBroker:
    """Keeps channels in Redis, shared by all nodes; see `Broker` for what it promises.

    - `node`: the name of this node, of which there must be one only.
    - `keys`: the prefix of all names; nodes share channels only if they share it.
    - `max_channels` (0: no bound): one more is refused with TooManyChannels; several nodes may
      together pass it by what they make within a few seconds.
    - `idempotency_window_s`, `position_ttl_s`: as for `MemoryBroker`, by Redis's clock.
    - `revision`: the revision of the rules; where nodes differ, the highest applies.
    - `interval_s`: how often delivery is probed and tops are compared, jittered.
    - `wait_replicas` (0: none): how many replicas must have an event before it is acknowledged,
      within `wait_timeout_s`, which must be shorter than a call may take; else NotReplicated.
    - `archive_queue_max`: how many entries the archive's queue of a partition takes (0: no bound;
      None: there is no archive, and nothing is queued).
    - `monotonic`: a clock in s. `clock_ms` is for tests: a time for the scripts instead of Redis's.

    Nothing connects before `start`. A step of Redis's clock forward by more than a time to live
    expires what has it.
    """

    def __init__(
        self,
        link: RedisLink,
        rules: HistoryRules,
        *,
        node: str = "",
        keys: RedisKeys | None = None,
        max_channels: int = 1_000_000,
        idempotency_window_s: float = 300.0,
        position_ttl_s: float = 604_800.0,
        revision: Callable[[], int] = lambda: 0,
        interval_s: float = INTERVAL_S,
        wait_replicas: int = 0,
        wait_timeout_s: float = 1.0,
        archive_queue_max: int | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        clock_ms: Callable[[], int] | None = None,
    ) -> None:
        self._junk = 0
        # Called when a connection was lost and is there again.
        self.on_return: list[Callable[[], None]] = []
        # Told of a channel when something was put into the archive's queue for it.
        self.on_queued: Callable[[str], None] = lambda _channel: None
        self.archive_queue_max = archive_queue_max
        self._sink: Sink
        self._carried: Carried | None = None
        self.link = link
        self.keys = keys or RedisKeys()
        self.node = node or secrets.token_hex(8)
        scripts = RedisScripts()
        self.times = RedisTimes(
            idempotency_window_s=idempotency_window_s,
            position_ttl_s=position_ttl_s,
            clock_ms=clock_ms,
        )
        self._closed = False
        self._heard = Heard()
        self._channels = RedisChannels(
            link, scripts, self.keys, self.times, ChannelRoom(max_channels)
        )
        self._records = RedisRecords(
            link,
            scripts,
            self.keys,
            self.times,
            self._channels,
            rules,
            node=self.node,
            queue_max=archive_queue_max,
        )
        self._publishing = RedisPublishing(
            link,
            scripts,
            self.keys,
            self.times,
            self._channels,
            rules,
            revision,
            monotonic,
            wait_replicas=wait_replicas,
            wait_timeout_s=wait_timeout_s,
            queue_max=archive_queue_max,
            on_queued=lambda channel: self.on_queued(channel),
        )
        self.listener = RedisListener(
            link.topology,
            on_restored=self._on_return,
            on_gap=self._on_gap,
            on_lost=self._publishing.acknowledged.seal,
        )
        self._watch = RedisWatch(
            link,
            self.listener,
            self._channels,
            self._publishing,
            self._heard,
            node=self.node,
            interval_s=interval_s,
            tell=self._on_doubt,
            versions=self._versions,
            tell_versions=self._on_versions,
            reopen=self._records.open,
            contradict=self._records.contradict,
            monotonic=monotonic,
        )
        link.on_return = self._on_return

    def bind(self, sink: Sink) -> None:
        self._sink = sink

    def carry(self, carried: Carried) -> None:
        """Say where presence changes go; called at most once, before `start`."""
        self._carried = carried

    # What an operator sees

    def problem(self) -> str | None:
        """Return what keeps this node from publishing or hearing, or None."""
        if self._closed:
            return "the broker is closed"
        if not self.listener.restored:
            return self.link.problem() or "not all subscriptions stand at Redis"
        return self.link.problem() or self._watch.problem()

    @property
    def listening(self) -> int:
        """How many channels are subscribed."""
        return len(self._heard)

    @property
    def history_reads(self) -> int:
        """How often the past of a channel was read."""
        return self._records.reads

    @property
    def junk(self) -> int:
        """How much came, or was stored, that is nothing of ours."""
        return self._junk + self._records.junk

    @property
    def reconnects(self) -> int:
        """How many pub/sub connections were lost."""
        return self.listener.reconnects

    @property
    def silences(self) -> int:
        """How many pub/sub connections were replaced since nothing came back on them."""
        return self._watch.silences

    @property
    def doubts(self) -> int:
        """How often a channel's top was not what was heard of it."""
        return self._watch.doubts

    @property
    def acknowledgements_forgotten(self) -> int:
        """How often an acknowledgement was forgotten within its minute: there were too many."""
        return self._publishing.acknowledged.forgotten

    @property
    def surprises(self) -> int:
        """How often Redis confirmed or ended a subscription unasked."""
        return self.listener.surprises

    @property
    def circuit_openings(self) -> int:
        """How often Redis was given up for a while."""
        return self.link.circuit.openings

    # Life

    async def start(self) -> None:
        """Connect, now or as soon as Redis can be reached; called once, on the node's loop."""
        self.listener.start()
        self._watch.start()

    async def close(self) -> None:
        self._closed = True
        await self._watch.close()
        await self.listener.close()
        await self.link.close()
        await self._channels.close()

    # ---- the broker

    async def publish(self, drafts: Sequence[Draft]) -> list[Published | PubSubError]:
        self._check()
        return await self._publishing.publish(drafts)

    async def fire(
        self, drafts: Sequence[Draft], serials: Sequence[str], till_ms: int, keep_ms: int
    ) -> list[Published | PubSubError]:
        """Publish what schedules say; see `RedisPublishing.fire`. Raises BrokerUnavailable."""
        self._check()
        return await self._publishing.fire(drafts, serials, till_ms, keep_ms)

    async def subscribe(self, channel: str) -> Position:
        self._check()
        address = self.keys.address(channel)
        reconnects = self.listener.reconnects
        confirmed = self.listener.subscribe(address, partial(self._receive, channel))
        try:
            # First the confirmation, then the top: what comes between is sent.
            try:
                async with asyncio.timeout(self.link.call_timeout_s):
                    await confirmed
            except TimeoutError:
                raise BrokerUnavailable("Redis did not confirm the subscription") from None
            top = await self._records.open(channel)
        except BaseException:
            if channel not in self._heard:
                self.listener.unsubscribe(address)
            raise
        self._heard.begin(channel, top)
        if self.listener.reconnects != reconnects:
            # The comparison after a reconnect may have come before this channel was known.
            self._watch.hurry()
        return top

    async def unsubscribe(self, channel: str) -> None:
        self._check()
        self._heard.end(channel)
        self.listener.unsubscribe(self.keys.address(channel))
        await self._records.leave(channel)

    async def top(self, channel: str) -> Position | None:
        self._check()
        found = (await self._channels.tops([channel]))[channel]
        return None if found is None else found[0]

    async def history(
        self,
        channel: str,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int,
        newest: bool = False,
        hidden: bool = False,
    ) -> History | None:
        self._check()
        return await self._records.history(channel, after, before, limit, newest, hidden)

    async def contradict(self, channel: str, evidence: Position) -> Position:
        self._check()
        return await self._records.contradict(channel, evidence)

    async def purge(self, channel: str) -> Position | None:
        self._check()
        floor = await self._records.purge(channel)
        if self._records.archived(channel):
            self.on_queued(channel)
        return floor

    async def channels(self, *, prefix: str, after: str, limit: int) -> list[ChannelState]:
        self._check()
        return await self._channels.active(prefix, after, limit)

    # ---- for tests and commands

    async def settled(self) -> bool:
        """Wait until what was published by now has come; False if Redis does not send it."""
        return await self._watch.probe(self.link.call_timeout_s)

    async def compare(self) -> None:
        """Compare all tops at once, as is done every few seconds."""
        await self._watch.compare()

    async def sweep(self) -> None:
        """Clean up the lists of all partitions, a few of which are cleaned up at a time."""
        for partition in range(self.keys.partitions):
            await self._channels.sweep(partition)

    # ---- what stands behind

    def _check(self) -> None:
        if self._closed:
            raise BrokerUnavailable("the broker is closed")

    # ---- what Redis sends

    def _receive(self, channel: str, payload: bytes) -> None:
        try:
            content = read_envelope(channel, payload)
        except JunkReceived:
            self._junk += 1
            return
        if isinstance(content, Batch):
            self._heard.take(channel, content.events[-1].position)
            self._sink.on_events(channel, content.events)
        elif isinstance(content, Purge):
            self._heard.take(channel, content.floor)
            self._sink.on_purge(channel, content.floor)
        elif isinstance(content, PresenceChange):
            if self._carried is not None:
                self._carried.on_presence(content)
        else:
            self._heard.take(channel, content.top)
            self._sink.on_fork(channel, content.top)

    def _on_doubt(self, channel: str, top: Position) -> None:
        self._sink.on_top(channel, top)

    def _on_return(self) -> None:
        self._watch.on_return()
        for tell in self.on_return:
            tell()

    async def _versions(self) -> Mapping[str, int]:
        return {} if self._carried is None else await self._carried.versions()

    def _on_versions(self, versions: Mapping[str, int]) -> None:
        if self._carried is not None:
            self._carried.on_versions(versions)

    def _on_gap(self, _address: str) -> None:
        self._watch.hurry()
