"""The listener's connection, ended at every moment of its life."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from pubsub.redis_client import Topology, connect
from pubsub.redis_listener import RedisListener
from pubsub.redis_url import parse_redis_url
from redis_rig import until
from redis_server import RedisServer

TIMEOUT_S = 5.0
# Turns of the loop from the start of a connection until it stands, and some more.
TURNS = range(40)


@pytest.fixture(scope="module")
def closed_redis() -> Iterator[RedisServer]:
    """A Redis that wants a password."""
    with RedisServer("requirepass secret", tcp=True) as server:
        yield server


@pytest.fixture(params=["at once", "after a login"])
def url(request: pytest.FixtureRequest, closed_redis: RedisServer) -> Iterator[str]:
    """Where a Redis is that a connection can use at once, or after AUTH and SELECT."""
    if request.param == "after a login":
        yield f"redis://:secret@127.0.0.1:{closed_redis.port}/1"
        return
    with RedisServer() as server:
        yield server.url


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[RedisListener, Topology]]:
    topology = connect(parse_redis_url(url), timeout_s=TIMEOUT_S)
    listener = RedisListener(topology, on_restored=lambda: None, on_gap=lambda _address: None)
    try:
        yield listener, topology
    finally:
        async with asyncio.timeout(TIMEOUT_S):
            await listener.close()
        await topology.close()


async def turn(turns: int) -> None:
    """Let the loop turn so many times."""
    for _ in range(turns):
        await asyncio.sleep(0)


@pytest.mark.parametrize("turns", TURNS)
async def test_a_listener_is_closed_at_any_moment(url: str, turns: int) -> None:
    """A node that was shut down just as it had subscribed anew never ended.

    Its connection had been lost, and the cancellation came when SUBSCRIBE had just been written:
    asyncio.wait_for, within redis-py, swallowed it, and the writer waited for more to write.
    """
    async with opened(url) as (listener, _topology):
        listener.start()
        listener.subscribe("a", lambda _payload: None).cancel()
        await turn(turns)


async def test_a_listener_is_broken_off_at_any_moment_and_comes_back(url: str) -> None:
    """A connection that ended as SUBSCRIBE had just been written was not replaced, ever."""
    for turns in (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20):
        heard: list[bytes] = []
        async with opened(url) as (listener, topology):
            listener.start()
            confirmed = listener.subscribe("a", heard.append)
            await turn(turns)
            listener.break_off()
            async with asyncio.timeout(TIMEOUT_S):
                await confirmed
            while not heard:
                await topology.ask([("PUBLISH", "a", "x")])
                await turn(1)
            await until(lambda at=listener: at.restored)  # type: ignore[misc]


async def test_a_pipeline_is_cancelled_at_any_moment() -> None:
    """A pipeline whose deadline came when it had just been written waited on without any."""
    with RedisServer() as server:
        topology = connect(parse_redis_url(server.url), timeout_s=10 * TIMEOUT_S)
        server.stop()
        for turns in range(20):
            asked = asyncio.create_task(topology.ask([("PING",)]))
            await turn(turns)
            asked.cancel()
            await asyncio.wait([asked], timeout=TIMEOUT_S)
            assert asked.cancelled()
        server.go_on()
        assert await topology.ask([("PING",)]) == [b"PONG"]
        await topology.close()
