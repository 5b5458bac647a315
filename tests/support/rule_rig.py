"""What the tests of the rules of delivery share: what they look at, and a fail-over to replay."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker_rig import Rig, ids
from config.rules import ChannelRule
from delivery_rig import CHANNEL, Client, DeliveryRig
from pubsub.broker import History
from pubsub.event import Event
from pubsub.position import Position
from pubsub.redis_broker import RedisBroker
from pubsub.redis_keys import RedisKeys
from redis_rig import until
from redis_server import RedisServer

AWAY = pytest.mark.expect_log("pubsub.redis_link", "Redis is away", required=False)
SILENT = pytest.mark.expect_log("pubsub.redis_watch", "Redis pub/sub is silent", required=False)
RESET = pytest.mark.expect_log("server.repair", "feed reset")
MAYBE_RESET = pytest.mark.expect_log("server.repair", "feed reset", required=False)


# ---- any broker


def rule(match: str = ">", *, size: int = 500, ttl_s: float = 300.0) -> ChannelRule:
    return ChannelRule(match=match, history_size=size, history_ttl_s=ttl_s)


async def history(rig: Rig, channel: str = "a.b", limit: int = 1_000, after: int = 0) -> History:
    found = await rig.broker.history(channel, after=after, limit=limit)
    assert found is not None
    return found


def assert_chained(before: Position, events: list[Event]) -> None:
    """Assert that events follow each other and a position, in one epoch."""
    for event in events:
        assert event.before() == before
        assert event.prev == before.check
        before = event.position


# ---- a node without sockets


def types(client: Client) -> list[str]:
    """What a client was told, in order, without what opened its session."""
    return [each["type"] for each in client.connection.messages() if each["type"] != "connected"]


async def top(rig: DeliveryRig) -> Position:
    found = await rig.broker.inner.top(CHANNEL)
    assert found is not None
    return found


@asynccontextmanager
async def slices() -> AsyncIterator[None]:
    """Each flush gives way after each send."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.fanout._LOOK_EVERY", 1)
        patch.setattr("server.fanout._HOLD_S", -1.0)
        yield


# ---- a real Redis


async def back(broker: RedisBroker) -> None:
    """Wait until a broker has come back from a failure and published again."""
    await until(lambda: broker.problem() is None)


async def top_of(broker: RedisBroker, channel: str = CHANNEL) -> Position:
    found = await broker.top(channel)
    assert found is not None
    return found


async def kept(broker: RedisBroker, *, hidden: bool = False, after: int = 0) -> list[str]:
    """The ids of the events that a broker shows, or (`hidden`) keeps."""
    found = await broker.history(CHANNEL, limit=10_000, hidden=hidden, after=after)
    assert found is not None
    return ids(found.events)


class Lagging:
    """A replica that knows all that a Redis holds under a prefix now, and nothing later."""

    def __init__(self, server: RedisServer, keys: RedisKeys) -> None:
        self._server = server
        self._pattern = f"{{{keys.prefix}:*"
        self._held = {key: server.ask("DUMP", key) for key in self._keys()}

    def take_over(self) -> None:
        """Let the Redis hold what the replica does: the tail died with the master."""
        for key in self._keys():
            self._server.ask("DEL", key)
        for key, dumped in self._held.items():
            self._server.ask("RESTORE", key, 0, dumped)

    def _keys(self) -> list[bytes]:
        found: list[bytes] = self._server.ask("KEYS", self._pattern)
        return found


def calls(server: RedisServer) -> int:
    """How many scripts a Redis has run."""
    said = server.ask("INFO", "commandstats")
    return sum(int(said[name]["calls"]) for name in said if re.match("cmdstat_eval", name))
