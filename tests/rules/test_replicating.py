"""Rule 19, where no replica is needed; tests/pubsub/test_wait_replicas.py has the rest."""

import asyncio

import pytest

from broker_rig import Notes, draft, ids
from pubsub.errors import NotReplicated
from pubsub.redis_keys import RedisKeys
from redis_rig import open_broker
from redis_server import RedisServer
from rule_rig import kept, top_of
from server.publishing import refusal

TOO_FEW = pytest.mark.expect_log("pubsub.redis_link", "NotReplicated", required=False)


@TOO_FEW
async def test_rule_19_a_duplicate_writes_what_it_waits_for(keys: RedisKeys) -> None:
    """What is counted is how far replicas are with what the connection that waits has written."""
    with RedisServer() as server:
        async with (
            open_broker(server, Notes(), keys=keys) as first,
            open_broker(server, Notes(), keys=keys, wait_replicas=1, wait_timeout_s=0.05) as second,
        ):
            await first.publish([draft("x")])
            before = written(server)
            await first.publish([draft("x")])
            assert written(server) == before
            (answer,) = await second.publish([draft("x")])
            assert isinstance(answer, NotReplicated)
            assert written(server) > before


@TOO_FEW
async def test_rule_19_nothing_but_publishes_waits_for_replicas(keys: RedisKeys) -> None:
    with RedisServer() as server:
        async with open_broker(
            server,
            notes := Notes(),
            keys=keys,
            wait_replicas=1,
            wait_timeout_s=20.0,
            call_timeout_s=25.0,
        ) as broker:
            publishing = asyncio.create_task(broker.publish([draft("x")]))
            async with asyncio.timeout(10):
                await broker.subscribe("a.b")
                assert await broker.settled()
                assert (await top_of(broker)).offset == 1
                assert await kept(broker) == ["x"]
            assert not publishing.done()
            publishing.cancel()
            assert broker.problem() is None
            assert ids(notes.events("a.b")) in ([], ["x"])


async def test_rule_19_clients_are_told_to_try_again() -> None:
    refused = refusal(NotReplicated("0 of 1 replicas have it"))
    assert (refused.code, refused.status, refused.retry) == ("not_replicated", 503, True)


def written(server: RedisServer) -> int:
    """How many changes a Redis has made."""
    return int(server.ask("INFO", "persistence")["rdb_changes_since_last_save"])
