"""What the tests of presence stores stand on: a sink that notes, and nodes over a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from broker_rig import Clock, Notes, ready, redis_broker
from pubsub.memory_presence import MemoryPresence
from pubsub.presence import Member, PresenceChange, PresenceStore
from pubsub.redis_broker import RedisBroker
from pubsub.redis_keys import RedisKeys
from pubsub.redis_presence import RedisPresence
from redis_cluster import RedisCluster
from redis_kinds import redis_params
from redis_server import RedisServer

CHANNELS = ("a", "b")
# Of nodes whose time only the test turns.
LEASE_S = 9.0


@dataclass(slots=True)
class Heard:
    """A sink that follows the changes, and watches the channels in `told`."""

    changes: list[PresenceChange] = field(default_factory=list)
    told: dict[str, int] = field(default_factory=dict)
    lost: list[tuple[str, int]] = field(default_factory=list)

    def on_presence(self, change: PresenceChange) -> None:
        self.changes.append(change)
        if change.channel in self.told:
            self.told[change.channel] = change.version

    def watched(self) -> dict[str, int]:
        return dict(self.told)

    def on_presence_version(self, channel: str, version: int) -> None:
        if version > self.told[channel]:
            self.lost.append((channel, version))

    def short(self, channel: str = "a") -> list[tuple[str, str]]:
        return [
            (change.action, change.member.session)
            for change in self.changes
            if change.channel == channel
        ]


@dataclass(slots=True)
class PresenceRig:
    """A presence store and what its sink heard; `settle` waits until it has heard all."""

    store: PresenceStore
    heard: Heard
    settle: Callable[[], Awaitable[None]]


class OpenPresence(Protocol):
    """Opens a store that is bound to its sink, which hears of the channels in `CHANNELS`."""

    def __call__(self) -> AbstractAsyncContextManager[PresenceRig]: ...


async def _at_once() -> None:
    """The memory store announces before it answers."""


@asynccontextmanager
async def open_memory_presence() -> AsyncIterator[PresenceRig]:
    store, heard = MemoryPresence(), Heard()
    store.bind(heard)
    yield PresenceRig(store, heard, _at_once)


@dataclass(slots=True)
class PresenceNode:
    """A broker and a presence store over a Redis."""

    broker: RedisBroker
    store: RedisPresence
    heard: Heard

    async def enter(self, *sessions: str, channel: str = "a") -> None:
        for session in sessions:
            await self.store.enter(channel, member(session))

    async def sessions(self, channel: str = "a") -> list[str]:
        page = await self.store.members(channel, limit=10_000)
        assert page.total == len(page.members)
        return [each.session for each in page.members]

    async def watch(self, *channels: str) -> None:
        """Subscribe to channels, and watch their presence sets."""
        for channel in channels:
            await self.broker.subscribe(channel)
            self.heard.told[channel] = (await self.store.members(channel, limit=1)).version

    async def settle(self) -> None:
        assert await self.broker.settled()

    async def die(self) -> None:
        """End as a crash does: nothing is taken back."""
        store = self.store
        for task in [*store._rounds, *store._entries._pushes]:
            task.cancel()
        store._rounds.clear()
        store._closed = True
        await self.broker.close()


@asynccontextmanager
async def open_presence_node(
    server: RedisServer | RedisCluster,
    *,
    lease_s: float = 3_600.0,
    start: bool = True,
    **options: Any,
) -> AsyncIterator[PresenceNode]:
    """Open a node; without `start` the test asks for its rounds. `options` are the broker's."""
    clock_ms = options.get("clock_ms")
    monotonic = {"monotonic": options["monotonic"]} if "monotonic" in options else {}
    broker = redis_broker(server, **options)
    store, heard = RedisPresence(broker, lease_s=lease_s, clock_ms=clock_ms, **monotonic), Heard()
    broker.bind(Notes())
    store.bind(heard)
    try:
        await broker.start()
        await ready(broker)
        if start:
            await store.start()
        yield PresenceNode(broker, store, heard)
    finally:
        await store.close()
        await broker.close()


@asynccontextmanager
async def open_presence_nodes(
    server: RedisServer | RedisCluster, count: int, **options: Any
) -> AsyncIterator[list[PresenceNode]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(open_presence_node(server, **options))
            for _ in range(count)
        ]


@asynccontextmanager
async def _open_redis_presence(server: RedisServer | RedisCluster) -> AsyncIterator[PresenceRig]:
    async with open_presence_node(server) as node:
        await node.watch(*CHANNELS)
        yield PresenceRig(node.store, node.heard, node.settle)


# Every presence store stands here, as parameters of a test that is skipped where a part is missing.
PRESENCE_PARAMS = [
    pytest.param(open_memory_presence, id="memory"),
    *redis_params(_open_redis_presence),
]


def member(session: str, info: bytes = b"{}", user: str | None = None) -> Member:
    return Member(session, user, info)


def timed(clock: Clock, keys: RedisKeys) -> dict[str, Any]:
    """Options of a node whose time only the test turns, and whose rounds it asks for."""
    return {
        "lease_s": LEASE_S,
        "start": False,
        "keys": keys,
        "monotonic": clock.monotonic,
        "clock_ms": lambda: round(clock.wall_s * 1000),
    }


async def rounds(clock: Clock, seconds: float, *alive: PresenceNode) -> None:
    """Let time pass, in which the live nodes beat and tend as they should."""
    while seconds > 0:
        clock.advance(min(seconds, LEASE_S / 3))
        seconds -= LEASE_S / 3
        await asyncio.gather(*(node.store.lease.beat() for node in alive))
        await asyncio.gather(*(node.store.tend() for node in alive))
