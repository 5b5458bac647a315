"""Who is connected here? This file: what the node shares with others, chosen by the settings."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from config.checks import MEMORY
from config.rules import ChannelRules
from config.settings import Settings
from pubsub.broker import Broker
from pubsub.control import Control
from pubsub.memory_broker import MemoryBroker
from pubsub.memory_control import MemoryControl
from pubsub.memory_presence import MemoryPresence
from pubsub.presence import PresenceStore
from pubsub.redis_broker import RedisBroker
from pubsub.redis_client import connect
from pubsub.redis_control import RedisControl
from pubsub.redis_keys import RedisKeys
from pubsub.redis_link import RedisLink
from pubsub.redis_presence import RedisPresence
from pubsub.redis_url import parse_redis_url
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

    def problem(self) -> str | None:
        """Return what keeps it from working, or None."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Return what it has counted, by name."""
        ...

    async def start(self) -> None:
        """Connect, now or as soon as it can be done."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


def open_backplane(
    settings: Settings,
    rules: ChannelRules,
    loop: asyncio.AbstractEventLoop,
    *,
    node: str,
    revision: Callable[[], int],
) -> Backplane:
    """Return the backplane that `broker.url` names; nothing is connected yet.

    `node` is the name of this node, `revision` returns the one of `rules`. Raises RedisUrlRejected.
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
        self.broker = MemoryBroker(
            rules,
            max_channels=section.max_channels,
            idempotency_window_s=section.idempotency_window_s,
            idempotency_max_ids=section.idempotency_max_ids,
            position_ttl_s=section.position_ttl_s,
        )
        self.presence = MemoryPresence()
        self.control = MemoryControl(node=node, topics=TOPICS)
        self._sweeper: Ticker | None = None

    def problem(self) -> str | None:
        return None

    def counters(self) -> Mapping[str, int]:
        return {}

    async def start(self) -> None:
        self._sweeper = Ticker(self._loop, _SWEEP_EVERY_S, self._sweep)
        await self.control.start()

    def _sweep(self) -> None:
        if self.broker.sweep(_SWEEP) >= _SWEEP:
            self._loop.call_soon(self._sweep)

    async def close(self) -> None:
        await self.control.close()
        await self.broker.close()
        if self._sweeper is not None:
            self._sweeper.close()


class OverRedis:
    """All that nodes share is in Redis."""

    def __init__(
        self, settings: Settings, rules: ChannelRules, node: str, revision: Callable[[], int]
    ) -> None:
        section = settings.broker
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

    async def start(self) -> None:
        await self.broker.start()
        await self.presence.start()
        await self.control.start()

    async def close(self) -> None:
        # Over the broker's connections entries of this node are removed, and its lease, so that
        # other nodes do not wait for its answers.
        await self.presence.close()
        await self.control.close()
        await self.broker.close()
