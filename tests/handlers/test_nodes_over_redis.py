"""Three whole nodes over a real Redis: what one is asked holds on all."""

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from config.storage import BrokerSettings
from node_group import Member
from nodes import Served, make_token, serving
from pubsub.redis_control import RedisControl
from redis_rig import until
from redis_server import find_redis_server, shared_redis

pytestmark = pytest.mark.skipif(find_redis_server() is None, reason="there is no redis-server")

USER = "<b>u&1</b>"
PATH = "/v1/users/%3Cb%3Eu%261%3C%2Fb%3E"


async def ready(served: Served) -> None:
    await until(lambda: not served.node.lifecycle.why_not_ready())


@asynccontextmanager
async def three_nodes() -> AsyncIterator[list[Served]]:
    broker = replace(BrokerSettings(), url=shared_redis().url, prefix=f"t{secrets.token_hex(8)}")
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(serving(broker=broker, node=f"n{number}"))
            for number in (1, 2, 3)
        ]
        for each in nodes:
            await ready(each)
            # All live in this process: none is silent because it is held up.
            assert isinstance(each.node.control, RedisControl)
            each.node.control._answer_timeout_s = 20.0
        yield nodes


@asynccontextmanager
async def session(served: Served, token: str) -> AsyncIterator[Member]:
    url = f"ws://127.0.0.1:{served.app.port}/v1/ws"
    headers = {"Authorization": f"Bearer {token}"}
    async with connect(url, additional_headers=headers, compression=None, proxy=None) as open_:
        yield Member(open_, json.loads(await open_.recv())["session"])


async def code(connection: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await connection.recv()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


async def body(served: Served, method: str, path: str, body: Any = None) -> Any:
    answer = await served.ask(method, path, body)
    assert answer.status == 200, answer.body
    return answer.json


async def test_no_client_can_tell_which_node_it_asked() -> None:
    token = make_token(USER, ttl_s=600)
    async with three_nodes() as nodes:
        first, second, third = nodes
        async with (
            session(first, token) as one,
            session(second, token) as two,
            session(third, token) as three,
        ):
            members = (one, two, three)
            listed = (await body(second, "GET", "/v1/sessions"))["sessions"]
            assert {each["session"] for each in listed} == {each.id for each in members}
            assert {each["node"] for each in listed} == {"n1", "n2", "n3"}
            states = (await body(third, "GET", "/v1/nodes"))["nodes"]
            assert [(each["node"], each["sessions"]) for each in states] == [
                ("n1", 1),
                ("n2", 1),
                ("n3", 1),
            ]
            subscription = f"{PATH}/subscriptions/a.b"
            assert await body(first, "PUT", subscription) == {"sessions": 3, "refused": 0}
            assert (await body(second, "GET", "/v1/channels/a.b"))["subscribers"] == 3
            await body(third, "POST", "/v1/events", {"channel": "a.b", "data": 7})
            for member in members:
                await member.hear("subscribed")
                assert (await member.hear("event"))["data"] == 7
            assert await body(second, "DELETE", subscription) == {"sessions": 3}
            path = f"/v1/sessions/{three.id}"
            assert (await first.ask("DELETE", path)).status == 204
            assert await code(three.connection) == 4502
            assert (await first.ask("DELETE", path)).status == 404
            ticket = (await first.ask("POST", "/v1/tickets", bearer=token)).json["ticket"]
            redeemed = [each.node.auth.redeem(ticket) for each in nodes]
            used = [
                await each.node.nodes.take_ticket(found.name, found.name_ttl_s)
                for each, found in zip(nodes, redeemed, strict=True)
            ]
            assert used == [True, False, False]
            assert await body(third, "DELETE", f"{PATH}/sessions") == {"ended": 2}
            assert [await code(one.connection), await code(two.connection)] == [4502, 4502]
            for each in nodes:
                refused = await each.ask("GET", "/v1/channels/a.b/events", bearer=token)
                assert refused.status == 401
        # Who joins later knows it too.
        async with serving(replace(third.app.settings, node="n4")) as late:
            await ready(late)
            refused = await late.ask("GET", "/v1/channels/a.b/events", bearer=token)
            assert refused.status == 401
