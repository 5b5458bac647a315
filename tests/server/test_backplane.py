"""Nodes over a real Redis, chosen by their settings."""

import asyncio
import secrets
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from config.sources import changed
from live_rig import BEARER, Rig, live
from mongo_server import MISSING, mongo_is_missing, shared_mongo_url
from pubsub.redis_keys import RedisKeys
from redis_rig import until
from redis_server import RedisServer

MONGO = [
    pytest.param("mongo", marks=pytest.mark.skipif(mongo_is_missing(), reason=MISSING)),
]


def node(server: RedisServer, name: str = "n1", **more: Any) -> AbstractAsyncContextManager[Rig]:
    return live(
        node=name,
        broker__url=server.url,
        broker__check_s=0.2,
        broker__lease_s=2.0,
        **more,
    )


def ready(rig: Rig) -> bool:
    return not rig.node.lifecycle.why_not_ready()


async def test_two_nodes_are_one_server() -> None:
    with RedisServer() as server:
        async with node(server, "n1") as one, node(server, "n2") as two:
            await until(lambda: ready(one) and ready(two))
            client, other = await one.ws(), await two.ws("msgpack")
            await client.call("subscribe", channel="a.b", presence=True)
            await other.call("subscribe", channel="a.b")
            joined = await client.next("presence")
            assert joined["action"] == "join"
            position = (await two.publish("a.b", 1, id="x"))["position"]
            again = await one.publish("a.b", 1, id="x")
            assert (again["position"], again["duplicate"]) == (position, True)
            for each in (client, other):
                event = await each.next("event")
                assert (event["id"], event["position"], event["data"]) == ("x", position, 1)
            history = await one.request("GET", "/v1/channels/a.b/events", **BEARER)
            assert [event["id"] for event in history.json["events"]] == ["x"]


@pytest.mark.expect_log("pubsub", "Redis is away|Redis refused", required=False)
async def test_while_redis_is_away_nothing_is_acknowledged_and_nobody_is_sent_away() -> None:
    with RedisServer(aof=True) as server:
        async with node(server, broker__call_timeout_s=1.0) as rig:
            await until(lambda: ready(rig))
            client = await rig.ws()
            await client.call("subscribe", channel="a.b")
            await rig.publish("a.b", 1)
            await client.next("event")
            server.kill()
            began = asyncio.get_running_loop().time()
            event = {"channel": "a.b", "data": 2, "id": "two"}
            refused = await rig.request("POST", "/v1/events", event, **BEARER)
            assert (refused.status, refused.json["code"], refused.json["retry"]) == (
                503,
                "unavailable",
                True,
            )
            assert asyncio.get_running_loop().time() - began < 5
            await until(lambda: not ready(rig))
            response = await rig.request("GET", "/readyz")
            assert response.status == 503
            assert response.json["reasons"]
            assert (await client.call("ping"))["type"] == "pong"
            server.start()
            await until(lambda: ready(rig))
            await rig.publish("a.b", 2, id="two")
            assert (await client.next("event"))["id"] == "two"
            assert rig.counter("galecast_broker_reconnects_total") >= 1


@pytest.mark.expect_log("pubsub", "Redis is away", required=False)
async def test_a_node_starts_without_its_redis_and_is_ready_when_that_comes() -> None:
    with RedisServer() as server:
        server.kill()
        async with node(server) as rig:
            assert (await rig.request("GET", "/healthz")).status == 200
            assert (await rig.request("GET", "/readyz")).status == 503
            server.start()
            await until(lambda: ready(rig))
            assert (await rig.request("GET", "/readyz")).status == 200


async def test_a_reloaded_revision_of_the_rules_goes_with_the_next_publish() -> None:
    with RedisServer() as server:
        async with node(server) as rig:
            await until(lambda: ready(rig))
            record = RedisKeys().record("a.b")
            await rig.publish("a.b", 1)
            assert server.ask("HGET", record, "revision") == b"0"
            rig.app.reload(changed(rig.app.settings, {"broker.rules_revision": 7}))
            await rig.publish("a.b", 2)
            assert server.ask("HGET", record, "revision") == b"7"


@pytest.mark.parametrize("kind", ["sqlite", *MONGO])
async def test_what_is_scheduled_on_one_node_is_delivered_on_all(tmp_path: Path, kind: str) -> None:
    with RedisServer() as server:
        name = f"backplane_{secrets.token_hex(6)}"
        archive = (
            f"sqlite:///{tmp_path}/archive.db"
            if kind == "sqlite"
            else f"{shared_mongo_url().rpartition('/')[0]}/{name}"
        )
        async with (
            node(server, "n1", archive__url=archive) as one,
            node(server, "n2", archive__url=archive) as two,
        ):
            await until(lambda: ready(one) and ready(two))
            clients = [await rig.ws() for rig in (one, two)]
            for client in clients:
                await client.call("subscribe", channel="a.b")
            path = "/v1/channels/a.b/schedules"
            for rig in (one, two):
                # The archive is opened in the background.
                while (await rig.request("GET", path, **BEARER)).status != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            # Not before all below is asked, by whoever is held up.
            at = time.time_ns() // 1_000_000 + 4_000
            for event_id, later in [("x", 0), ("y", 5), ("z", 10)]:
                event = {"channel": "a.b", "data": 1, "id": event_id, "deliver_at": at + later}
                answer = await one.request("POST", "/v1/events", event, **BEARER)
                assert answer.status == 202, answer.body
            listed = await two.request("GET", path, **BEARER)
            assert [each["id"] for each in listed.json["schedules"]] == ["x", "y", "z"]
            assert (await two.request("DELETE", f"{path}/y", **BEARER)).status == 204
            assert (await one.request("DELETE", f"{path}/y", **BEARER)).status == 404
            for client in clients:
                found = [await client.next("event") for _ in range(2)]
                assert [event["id"] for event in found] == ["x", "z"]
                assert min(event["time"] for event in found) >= at
            assert (await two.request("DELETE", f"{path}/x", **BEARER)).status == 404
            delivered = [rig.node.scheduling._require().delivered for rig in (one, two)]
            assert sum(delivered) == 2
