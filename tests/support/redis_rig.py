"""What the tests of delivery over Redis stand on: nodes without sockets that share a real Redis."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from msgspec.structs import replace

from broker_rig import draft, ready, redis_broker
from config.limits import LimitSettings
from config.rules import ChannelRule, ChannelRules
from config.settings import Settings
from delivery_rig import CHANNEL, SERVICE, LineWire, NotedConnection, as_connection
from pubsub.broker import Sink
from pubsub.event import Published
from pubsub.memory_presence import MemoryPresence
from pubsub.redis_broker import RedisBroker
from pubsub.redis_keys import RedisKeys
from pubsub.redis_presence import RedisPresence
from redis_cluster import RedisCluster
from redis_server import RedisServer
from server.auth import Auth
from server.feed import Feed, State
from server.metrics import Metrics
from server.node import Node, assemble
from server.session import Session
from server.timetable import Timetable

RULE = ChannelRule(match=">", client_publish=True)


async def until(condition: Callable[[], object], patience_s: float = 20.0) -> None:
    """Wait until `condition` holds; what it waits for takes real time."""
    deadline = asyncio.get_running_loop().time() + patience_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "the condition never held"
        await asyncio.sleep(0.002)


class AstrayKeys(RedisKeys):
    """Names under which events are stored as usual, and sent where nobody hears them."""

    def address(self, channel: str) -> str:
        return f"astray:{channel}"


@dataclass(slots=True)
class RedisNode:
    """A node over a Redis, with clients that note what they were sent."""

    node: Node
    broker: RedisBroker
    _numbers: "count[int]" = field(default_factory=lambda: count(1))

    def feed(self, channel: str = CHANNEL) -> Feed:
        return self.node.hub.feeds[channel]

    async def subscribe(
        self, channel: str = CHANNEL, *, presence: bool = False, since: str | None = None
    ) -> NotedConnection:
        """Return the connection of a new client that has subscribed to `channel`."""
        connection = NotedConnection()
        self.node.occupancy.enter("127.0.0.1")
        session = Session(self.node, LineWire(), as_connection(connection), "127.0.0.1")
        session.open(SERVICE)
        command = {"type": "subscribe", "ref": 1, "channel": channel, "presence": presence}
        if since is not None:
            command["since"] = since
        session.on_messages([json.dumps(command).encode()])
        await until(lambda: connection.of("subscribed"))
        return connection

    async def publish(self, *names: str, channel: str = CHANNEL) -> list[Published]:
        answers = await self.broker.publish([draft(name, channel) for name in names])
        assert all(isinstance(answer, Published) for answer in answers), answers
        return [answer for answer in answers if isinstance(answer, Published)]

    async def live(self, channel: str = CHANNEL) -> None:
        """Wait until the feed is live and has sent everything."""
        await until(
            lambda: self.feed(channel).state is State.LIVE and self.feed(channel).fanout.hurry()
        )


@asynccontextmanager
async def open_redis_node(
    server: RedisServer | RedisCluster,
    *rules: ChannelRule,
    lease_s: float | None = None,
    **options: Any,
) -> AsyncIterator[RedisNode]:
    """Open a node; `options` are those of `redis_broker`. With `lease_s`, presence is in Redis."""
    loop = asyncio.get_running_loop()
    limits = LimitSettings(connections_per_address=0, errors_per_minute=0)
    defaults = Settings()
    settings = replace(
        defaults,
        limits=limits,
        token=replace(defaults.token, secret=secrets.token_hex(32)),
    )
    channel_rules = ChannelRules(rules, RULE)
    broker = redis_broker(server, rules, **options)
    shared = None if lease_s is None else RedisPresence(broker, lease_s=lease_s)
    timetable = Timetable(loop, tick_s=0.05)
    node = assemble(
        settings,
        name="node",
        rules=channel_rules,
        broker=broker,
        presence=shared or MemoryPresence(),
        auth=Auth(settings, channel_rules),
        metrics=Metrics(version="0"),
        timetable=timetable,
        new_id=lambda: secrets.token_hex(8),
    )
    try:
        await broker.start()
        await ready(broker)
        if shared is not None:
            await shared.start()
        yield RedisNode(node, broker)
    finally:
        for session in list(node.hub.sessions.values()):
            session.on_lost()
        await node.hub.close()
        if shared is not None:
            await shared.close()
        await broker.close()
        timetable.close()


@asynccontextmanager
async def open_broker(
    server: RedisServer | RedisCluster,
    sink: Sink,
    rules: Sequence[ChannelRule] = (),
    **options: Any,
) -> AsyncIterator[RedisBroker]:
    """Open a broker alone; `options` are those of `redis_broker`."""
    broker = redis_broker(server, rules, **options)
    broker.bind(sink)
    try:
        await broker.start()
        await ready(broker)
        yield broker
    finally:
        await broker.close()
