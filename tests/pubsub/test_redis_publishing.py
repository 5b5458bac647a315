"""Batches on their way through Redis, when their answers are lost on the way back."""

import asyncio
from collections.abc import Iterator

import pytest

from broker_rig import Notes, accepted, draft
from muting_proxy import MutingProxy
from redis_rig import open_broker
from redis_server import RedisServer

AWAY = pytest.mark.expect_log("pubsub.redis_link", "Redis is away", required=False)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(tcp=True) as opened:
        yield opened


@AWAY
async def test_rule_6_what_is_acknowledged_as_a_duplicate_of_itself_is_remembered(
    server: RedisServer,
) -> None:
    """The answer was lost, and the retry found the event there. Then Redis lost everything.

    Only what was acknowledged as new was remembered, so nothing told of the loss.
    """
    async with (
        MutingProxy(server.port) as proxy,
        open_broker(server, Notes(), url=proxy.url, interval_s=0.1) as broker,
    ):
        proxy.lose = b"lost-id"
        (answer,) = await broker.publish([draft("lost-id")])
        assert accepted(answer).duplicate
        position = accepted(answer).position
        await asyncio.to_thread(server.restart, empty=True)
        while broker.problem() is not None or (top := await broker.top("a.b")) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert top.offset == position.offset
        assert top.epoch != position.epoch


async def test_an_old_duplicate_is_not_taken_for_an_acknowledgement_of_now(
    server: RedisServer,
) -> None:
    async with open_broker(server, Notes()) as broker:
        await broker.publish([draft("x")])
        (newest,) = await broker.publish([draft("y")])
        assert accepted((await broker.publish([draft("x")]))[0]).duplicate
        remembered = dict(broker._publishing.acknowledged.recent(0))
        assert remembered["a.b"] == accepted(newest).position
