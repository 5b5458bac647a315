"""Who is connected here? This file: what the node shares with others, chosen by the settings."""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from config.checks import MEMORY, NO_ARCHIVE
from config.rules import ChannelRules
from config.settings import Settings
from pubsub.archive import Archive
from pubsub.archivist import Archivist
from pubsub.broker import Broker
from pubsub.chronicle import Coming
from pubsub.control import Control
from pubsub.durable_broker import DurableBroker
from pubsub.durable_firing import DurableFiring
from pubsub.memory_broker import MemoryBroker
from pubsub.memory_control import MemoryControl
from pubsub.memory_presence import MemoryPresence
from pubsub.presence import PresenceStore
from pubsub.redis_archive_queue import RedisArchiveQueue
from pubsub.redis_broker import RedisBroker
from pubsub.redis_client import connect
from pubsub.redis_control import RedisControl
from pubsub.redis_firing import RedisFiring
from pubsub.redis_keys import RedisKeys
from pubsub.redis_link import RedisLink
from pubsub.redis_presence import RedisPresence
from pubsub.redis_url import parse_redis_url
from pubsub.scheduler import Scheduler
from server.archiving import Retention, open_archive, open_sqlite
from server.control import TOPICS
from server.ticker import Ticker

_SWEEP_EVERY_S: Final = 0.5
_SWEEP: Final = 2_000
# One exchange with Redis, of which a call may need several.
_EXCHANGE_S: Final = 2.0


class Backplane(Protocol):
    """The broker and all that stands beside it; owned by the composition root.

    `start` comes after broker, presence and control are bound; `close` may be called twice.
    """

    @property
    def broker(self) -> Broker: ...
    @property
    def presence(self) -> PresenceStore: ...
    @property
    def control(self) -> Control: ...
    @property
    def archive(self) -> Archive | None: ...
    @property
    def coming(self) -> Coming | None: ...
    @property
    def scheduler(self) -> Scheduler | None: ...

    def problem(self) -> str | None:
        """Return what keeps it from working, or None."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Return what it has counted, by name."""
        ...

    def archived(self) -> Mapping[str, float]:
        """Return how the archive stands, by name; empty without one."""
        ...

    def scheduled(self) -> Mapping[str, float]:
        """Return how schedules stand, by name; empty without an archive."""
        ...

    async def start(self) -> None:
        """Connect, now or as soon as it can be done.

        Raises ArchiveUnavailable where nothing could be published without the archive.
        """
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


def _scheduled(scheduler: Scheduler | None) -> Mapping[str, float]:
    if scheduler is None:
        return {}
    return {
        "delivered": scheduler.delivered,
        "dropped": scheduler.dropped,
        "failures": scheduler.failures,
        "late_seconds": scheduler.late_s,
        "pending": scheduler.pending,
    }


def open_backplane(
    settings: Settings,
    rules: ChannelRules,
    loop: asyncio.AbstractEventLoop,
    *,
    node: str,
    revision: Callable[[], int],
) -> Backplane:
    """Return the backplane that `broker.url` names; nothing is connected yet.

    `node` is the name of this node, `revision` returns the one of `rules`. Raises RedisUrlRejected
    and ArchiveUrlRejected.
    """
    if settings.broker.url == MEMORY:
        return InMemory(settings, rules, loop, node)
    return OverRedis(settings, rules, node, revision)


class InMemory:
    """All in this process: one node."""

    def __init__(
        self, settings: Settings, rules: ChannelRules, loop: asyncio.AbstractEventLoop, node: str
    ) -> None:
        section = settings.broker
        self._loop = loop
        options: dict[str, Any] = {
            "max_channels": section.max_channels,
            "idempotency_window_s": section.idempotency_window_s,
            "idempotency_max_ids": section.idempotency_max_ids,
            "position_ttl_s": section.position_ttl_s,
        }
        self.archive: Archive | None = None
        self.broker: MemoryBroker
        self._durable: DurableBroker | None = None
        self.scheduler: Scheduler | None = None
        self._retention: Retention | None = None
        if settings.archive.url == NO_ARCHIVE:
            self.broker = MemoryBroker(rules, **options)
        else:
            self.archive = ledger = open_sqlite(settings)
            timeout_s = settings.archive.call_timeout_s
            self._durable = DurableBroker(rules, ledger, call_timeout_s=timeout_s, **options)
            self.broker = self._durable
            self._retention = Retention(ledger)
            firing = DurableFiring(self._durable, ledger.schedules)
            self.scheduler = Scheduler(ledger.schedules, firing, holder=node)
        self.presence = MemoryPresence()
        self.control = MemoryControl(node=node, topics=TOPICS)
        self._sweeper: Ticker | None = None

    @property
    def coming(self) -> Coming | None:
        """Nothing is on its way: an event is archived before anybody gets it."""
        return None

    def problem(self) -> str | None:
        return None

    def counters(self) -> Mapping[str, int]:
        return {}

    def archived(self) -> Mapping[str, float]:
        durable, retention = self._durable, self._retention
        if durable is None or retention is None:
            return {}
        return {
            "backlog": durable.waiting,
            "written": durable.committed,
            "failures": durable.failures,
            "swept": retention.swept,
        }

    def scheduled(self) -> Mapping[str, float]:
        return _scheduled(self.scheduler)

    async def start(self) -> None:
        if self._durable is not None and self._retention is not None:
            await self._durable.start()
            self._retention.start()
        if self.scheduler is not None:
            self.scheduler.start()
        self._sweeper = Ticker(self._loop, _SWEEP_EVERY_S, self._sweep)
        await self.control.start()

    def _sweep(self) -> None:
        if self.broker.sweep(_SWEEP) >= _SWEEP:
            self._loop.call_soon(self._sweep)

    async def close(self) -> None:
        await self.control.close()
        if self.scheduler is not None:
            await self.scheduler.close()
        if self._retention is not None:
            await self._retention.close()
        await self.broker.close()
        if self._sweeper is not None:
            self._sweeper.close()


class OverRedis:
    """All that nodes share is in Redis."""

    def __init__(
        self, settings: Settings, rules: ChannelRules, node: str, revision: Callable[[], int]
    ) -> None:
        section = settings.broker
        archive = open_archive(settings)
        link = RedisLink(
            connect(parse_redis_url(section.url), timeout_s=_EXCHANGE_S),
            call_timeout_s=section.call_timeout_s,
            monotonic=time.monotonic,
        )
        self.broker = RedisBroker(
            link,
            rules,
            node=node,
            keys=RedisKeys(section.prefix),
            max_channels=section.max_channels,
            idempotency_window_s=section.idempotency_window_s,
            position_ttl_s=section.position_ttl_s,
            revision=revision,
            interval_s=section.check_s,
            wait_replicas=settings.publish.wait_replicas,
            wait_timeout_s=settings.publish.wait_timeout_s,
            archive_queue_max=settings.archive.queue_max if archive is not None else None,
        )
        self.archive = archive
        self.coming: RedisArchiveQueue | None = None
        self._archivist: Archivist | None = None
        self._retention: Retention | None = None
        self.scheduler: Scheduler | None = None
        if archive is not None:
            self.coming = RedisArchiveQueue(self.broker)
            self._archivist = Archivist(self.coming, archive)
            self._retention = Retention(archive)
            # A node that begins anew must not take the claims of its former life for its own.
            holder = f"{self.broker.node} {secrets.token_hex(8)}"
            firing = RedisFiring(self.broker, archive.schedules)
            self.scheduler = Scheduler(
                archive.schedules, firing, holder=holder, prepare=self._archivist.open
            )
        self.presence = RedisPresence(self.broker, lease_s=section.lease_s)
        self.control = RedisControl(self.broker, topics=TOPICS)

    def problem(self) -> str | None:
        # The control's own comes after the broker's.
        return self.broker.problem() or self.control.problem()

    def counters(self) -> Mapping[str, int]:
        broker, control = self.broker, self.control
        return {
            "acknowledgements_forgotten": broker.acknowledgements_forgotten,
            "circuit_openings": broker.circuit_openings,
            "doubts": broker.doubts,
            "history_reads": broker.history_reads,
            "junk": broker.junk + self.presence.junk + control.junk,
            "notices_dropped": control.notices_dropped,
            "notices_repaired": control.notices.repaired,
            "orders_dropped": control.orders_dropped,
            "orders_silent": control.silent,
            "reconnects": broker.reconnects,
            "silences": broker.silences,
            "surprises": broker.surprises,
        }

    def archived(self) -> Mapping[str, float]:
        archivist, retention = self._archivist, self._retention
        if archivist is None or retention is None:
            return {}
        return {
            "backlog": archivist.backlog,
            "lag_seconds": archivist.lag_s,
            "missing_channels": archivist.waiting,
            "written": archivist.written,
            "failures": archivist.failures,
            "gaps": archivist.gaps,
            "junk": archivist.junk,
            "swept": retention.swept,
        }

    def scheduled(self) -> Mapping[str, float]:
        return _scheduled(self.scheduler)

    async def start(self) -> None:
        await self.broker.start()
        await self.presence.start()
        await self.control.start()
        if self._archivist is not None and self._retention is not None:
            await self._archivist.start()
            self._retention.start()
        if self.scheduler is not None:
            self.scheduler.start()

    async def close(self) -> None:
        # Over the broker's connections entries of this node are removed, and its lease, so that
        # other nodes do not wait for its answers.
        await self.presence.close()
        await self.control.close()
        if self.scheduler is not None:
            await self.scheduler.close()
        if self._archivist is not None and self._retention is not None:
            await self._retention.close()
            await self._archivist.close()
        await self.broker.close()
        if self.archive is not None:
            await self.archive.close()
