"""What the tests of control between nodes stand on: a sink that notes, and nodes over a Redis."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from broker_rig import Clock, Notes, ready, redis_broker
from pubsub.control import Control
from pubsub.memory_control import MemoryControl
from pubsub.redis_broker import RedisBroker
from pubsub.redis_control import RedisControl
from pubsub.redis_keys import RedisKeys
from pubsub.redis_presence import RedisPresence
from redis_cluster import RedisCluster
from redis_kinds import redis_params
from redis_rig import until
from redis_server import RedisServer

TOPICS = ("user", "ticket")
# Far beyond the clock of any test.
LATER_S = 4_000_000_000.0


@dataclass(slots=True)
class NotedControl:
    """A sink that notes what it was told; it answers an order with its name and the order.

    While `blocked`, orders wait for `release`. `reply` stands in place of the usual answer.
    """

    name: str
    orders: list[bytes] = field(default_factory=list)
    notices: list[tuple[str, str, float, float]] = field(default_factory=list)
    reply: bytes | None = None
    blocked: bool = False
    running: int = 0
    most_running: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def on_order(self, order: bytes) -> bytes:
        self.orders.append(order)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.blocked:
                await self.release.wait()
        finally:
            self.running -= 1
        return self.name.encode() + b":" + order if self.reply is None else self.reply

    def on_notice(self, topic: str, name: str, at_s: float, until_s: float) -> None:
        self.notices.append((topic, name, at_s, until_s))

    def names(self, topic: str = "user") -> list[str]:
        return [name for each, name, _at, _until in self.notices if each == topic]


@dataclass(slots=True)
class ControlNode:
    """One node: its control and its sink; over Redis also its broker and its lease."""

    name: str
    control: Control
    sink: NotedControl


@dataclass(slots=True)
class RedisControlNode:
    """One node over Redis."""

    name: str
    control: RedisControl
    sink: NotedControl
    broker: RedisBroker
    presence: RedisPresence


@dataclass(slots=True)
class ControlRig:
    """All nodes, and `advance`, which lets time pass for all."""

    nodes: list[ControlNode]
    clock: Clock
    advance: Callable[[float], Awaitable[None]]


class OpenControl(Protocol):
    """Opens a rig of as many nodes as the implementation is for."""

    def __call__(
        self, *, answer_timeout_s: float = 10.0, most_notices: int = 1_000
    ) -> AbstractAsyncContextManager[ControlRig]: ...


@asynccontextmanager
async def open_memory_control(
    *, answer_timeout_s: float = 10.0, most_notices: int = 1_000
) -> AsyncIterator[ControlRig]:
    clock = Clock()
    sink = NotedControl("n1")
    control = MemoryControl(
        node="n1",
        topics=TOPICS,
        answer_timeout_s=answer_timeout_s,
        most_notices=most_notices,
        now=clock.wall,
        monotonic=clock.monotonic,
    )
    control.bind(sink)
    await control.start()

    async def advance(seconds: float) -> None:
        clock.advance(seconds)

    try:
        yield ControlRig([ControlNode("n1", control, sink)], clock, advance)
    finally:
        await control.close()


@asynccontextmanager
async def open_control_node(
    server: RedisServer | RedisCluster,
    name: str = "n1",
    *,
    lease_s: float = 3_600.0,
    control: dict[str, Any] | None = None,
    wait: bool = True,
    **options: Any,
) -> AsyncIterator[RedisControlNode]:
    """Open a node; `options` are the broker's, `control` those of the control.

    Without `wait` Redis need not be there.
    """
    broker = redis_broker(server, node=name, **options)
    clock_ms = options.get("clock_ms")
    presence = RedisPresence(broker, lease_s=lease_s, clock_ms=clock_ms)
    # As a node does; tests that ask for a comparison themselves say so.
    settings = {"topics": TOPICS, "answer_timeout_s": 10.0, "clock_ms": clock_ms, **(control or {})}
    made = RedisControl(broker, **settings)
    sink = NotedControl(name)
    broker.bind(Notes())
    made.bind(sink)
    try:
        await broker.start()
        if wait:
            await ready(broker)
            await presence.start()
            await until(lambda: presence.lease.life)
        await made.start()
        if wait:
            await until(lambda: made.problem() is None)
        yield RedisControlNode(name, made, sink, broker, presence)
    finally:
        await made.close()
        await presence.close()
        await broker.close()


@asynccontextmanager
async def open_control_nodes(
    server: RedisServer | RedisCluster, count: int, **options: Any
) -> AsyncIterator[list[RedisControlNode]]:
    """Open nodes n1, n2, ... that share a Redis and a prefix."""
    options.setdefault("keys", RedisKeys(f"t{secrets.token_hex(8)}"))
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(open_control_node(server, f"n{number}", **options))
            for number in range(1, count + 1)
        ]


@asynccontextmanager
async def _open_redis_control(
    server: RedisServer | RedisCluster,
    *,
    answer_timeout_s: float = 10.0,
    most_notices: int = 1_000,
) -> AsyncIterator[ControlRig]:
    clock = Clock()
    settings = {
        "answer_timeout_s": answer_timeout_s,
        "most_notices": most_notices,
        "now": clock.wall,
        "monotonic": clock.monotonic,
    }
    async with open_control_nodes(
        server,
        2,
        lease_s=1e6,
        control=settings,
        clock_ms=lambda: round(clock.wall_s * 1000),
    ) as nodes:

        async def advance(seconds: float) -> None:
            clock.advance(seconds)

        rig = [ControlNode(node.name, node.control, node.sink) for node in nodes]
        yield ControlRig(rig, clock, advance)


# Every control stands here, as parameters of a test that is skipped where a part is missing.
CONTROL_PARAMS = [
    pytest.param(open_memory_control, id="memory"),
    *redis_params(_open_redis_control),
]
