"""Who is connected, told over HTTP, and ending that; with live sessions over WebSocket."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from config.access import AnonymousSettings
from config.limits import LimitSettings
from config.rules import ACTIONS
from node_group import serve_group
from nodes import KEY, Served, api_key, make_token, serving


@asynccontextmanager
async def session(
    served: Served, bearer: str | None
) -> AsyncIterator[tuple[ClientConnection, dict[str, Any]]]:
    """A live session, and what it was told when it opened."""
    headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    url = f"{served.url}/v1/ws".replace("http", "ws", 1)
    async with connect(url, additional_headers=headers, compression=None, proxy=None) as connection:
        if bearer is None:
            await connection.send('{"type":"connect","ref":1}')
        yield connection, json.loads(await connection.recv())


async def ended(connection: ClientConnection) -> int:
    """The code with which the server closed."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await connection.recv()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


async def test_live_sessions() -> None:
    anonymous = AnonymousSettings(grants={">": ACTIONS})
    async with serving(anonymous=anonymous) as served:
        started = int(time.time() * 1000)
        async with (
            session(served, make_token("u1")) as (first, told),
            session(served, KEY),
            session(served, None),
        ):
            await first.send('{"type":"subscribe","ref":1,"channel":"a"}')
            await first.recv()
            items = (await served.ask("GET", "/v1/sessions")).json["sessions"]
            assert [(each["kind"], each["user"]) for each in items] == [
                ("user", "u1"),
                ("service", None),
                ("anonymous", None),
            ]
            item = items[0]
            assert started <= item.pop("connected_at") <= int(time.time() * 1000)
            assert item == {
                "session": told["session"],
                "node": served.node.name,
                "kind": "user",
                "user": "u1",
                "transport": "ws",
                "encoding": "json",
                "address": "127.0.0.1",
                "subscriptions": 1,
            }


async def test_pages_and_the_sessions_of_one_user() -> None:
    async with serving(limits=LimitSettings(items_per_page=2)) as served:
        async with (
            session(served, make_token("u1")) as (_, a),
            session(served, make_token("u2")) as (_, b),
            session(served, make_token("u1")) as (_, c),
        ):
            ids = [a["session"], b["session"], c["session"]]
            first = (await served.ask("GET", "/v1/sessions?limit=9")).json
            assert [each["session"] for each in first["sessions"]] == ids[:2]
            second = (await served.ask("GET", f"/v1/sessions?cursor={first['cursor']}")).json
            assert [each["session"] for each in second["sessions"]] == ids[2:]
            assert "cursor" not in second
            mine = (await served.ask("GET", "/v1/sessions?user=u1&limit=1")).json
            assert [each["session"] for each in mine["sessions"]] == ids[:1]
            rest = (await served.ask("GET", f"/v1/sessions?user=u1&cursor={mine['cursor']}")).json
            assert [each["session"] for each in rest["sessions"]] == ids[2:]
            assert (await served.ask("GET", "/v1/sessions?user=u3")).json == {"sessions": []}


async def test_ending_one_session() -> None:
    async with serving() as served:
        async with session(served, make_token("u1")) as (connection, told):
            answer = await served.ask("DELETE", f"/v1/sessions/{told['session']}")
            assert (answer.status, answer.body) == (204, b"")
            assert await ended(connection) == 4502
        again = await served.ask("DELETE", f"/v1/sessions/{told['session']}")
        assert (again.status, again.json["code"]) == (404, "not_found")


@pytest.mark.parametrize("user", ["u1", "a/b c%", "jürgen?#", "."])
async def test_an_ended_user_cannot_come_back_with_an_old_token(user: str) -> None:
    async with serving() as served:
        old = make_token(user)
        path = f"/v1/users/{quote(user, safe='')}/sessions"
        async with session(served, old) as (first, _), session(served, old) as (second, _):
            answer = await served.ask("DELETE", path)
            assert answer.json == {"ended": 2}
            assert [*await asyncio.gather(ended(first), ended(second))] == [4502, 4502]
        refused = await served.ask("GET", "/v1/channels/a/events", bearer=old)
        assert (refused.status, refused.json["code"]) == (401, "unauthorized")
        other = await served.ask("GET", "/v1/channels/a/events", bearer=make_token("u9"))
        assert other.status == 200
        assert (await served.ask("DELETE", path)).json == {"ended": 0}


@pytest.mark.parametrize("user", ["%00", "%FF", "a%0Ab", "x" * 256])
async def test_what_is_no_user(user: str) -> None:
    async with serving() as served:
        answer = await served.ask("DELETE", f"/v1/users/{user}/sessions")
        assert (answer.status, answer.json["code"]) == (400, "bad_request")


async def test_who_may_not() -> None:
    narrow = "narrow.0123456789abcdef"
    keys = (api_key(KEY), api_key(narrow, publish=(">",), tokens=True))
    async with serving(keys=keys) as served:
        for bearer, status in ((narrow, 403), (make_token(), 403), (None, 401)):
            for method, path in (
                ("GET", "/v1/sessions"),
                ("DELETE", "/v1/sessions/x"),
                ("DELETE", "/v1/users/u1/sessions"),
            ):
                assert (await served.ask(method, path, bearer=bearer)).status == status
        assert (await served.ask("GET", "/v1/channels/a/events", bearer=make_token())).status == 200


# ---- over all nodes


async def test_sessions_of_all_nodes_in_pages() -> None:
    limits = LimitSettings(items_per_page=2)
    async with serve_group("n1", "n2", limits=limits) as (group, (first, second)):
        async with (
            first.session(make_token("u1")) as a,
            second.session(make_token("u1")) as b,
            second.session(make_token("<b>")) as c,
        ):
            page = (await first.ask("GET", "/v1/sessions")).json
            assert [(e["session"], e["node"]) for e in page["sessions"]] == [
                (a.id, "n1"),
                (b.id, "n2"),
            ]
            rest = (await second.ask("GET", f"/v1/sessions?cursor={page['cursor']}")).json
            assert [(e["session"], e["user"]) for e in rest["sessions"]] == [(c.id, "<b>")]
            assert rest.keys() == {"sessions"}
            found = (await first.ask("GET", "/v1/sessions?user=%3Cb%3E")).json["sessions"]
            assert [each["session"] for each in found] == [c.id]
            group.silent = {"n2"}
            page = (await first.ask("GET", "/v1/sessions")).json
            assert [each["session"] for each in page["sessions"]] == [a.id]
            assert page["silent"] == ["n2"]
            group.away = True
            answer = await first.ask("GET", "/v1/sessions")
            assert (answer.status, answer.json["code"]) == (503, "unavailable")


async def test_ending_a_session_of_another_node() -> None:
    async with serve_group("n1", "n2", "n3") as (group, (first, second, third)):
        async with second.session(make_token()) as here, third.session(make_token()) as there:
            group.silent = {"n3"}
            assert (await first.ask("DELETE", f"/v1/sessions/{here.id}")).status == 204
            assert await ended(here.connection) == 4502
            answer = await first.ask("DELETE", f"/v1/sessions/{there.id}")
            assert (answer.status, answer.json["code"], answer.json["retry"]) == (
                503,
                "unavailable",
                True,
            )
            group.silent = set()
            assert (await first.ask("DELETE", f"/v1/sessions/{here.id}")).status == 404
            assert (await first.ask("DELETE", f"/v1/sessions/{'x' * 300}")).status == 404
            assert (await there.call("ping"))["type"] == "pong"


async def test_ending_a_user_on_all_nodes() -> None:
    async with serve_group("n1", "n2", "n3") as (group, (first, second, third)):
        old = make_token("u1")
        async with (
            second.session(old) as one,
            third.session(old) as two,
            third.session(make_token("u2")) as other,
        ):
            group.fails = {"notify"}
            answer = await first.ask("DELETE", "/v1/users/u1/sessions")
            assert (answer.status, answer.json["code"], answer.json["retry"]) == (
                503,
                "unavailable",
                True,
            )
            assert (await one.call("ping"))["type"] == "pong"
            group.fails, group.silent, group.late = set(), {"n3"}, {"n3"}
            answer = await first.ask("DELETE", "/v1/users/u1/sessions")
            assert answer.json == {"ended": 1, "silent": ["n3"]}
            assert await ended(one.connection) == 4502
            assert (await two.call("ping"))["type"] == "pong"
            group.catch_up()
            assert await ended(two.connection) == 4502
            assert (await other.call("ping"))["type"] == "pong"
            for node in (first, second, third):
                refused = await node.ask("GET", "/v1/channels/a/events", bearer=old)
                assert (refused.status, refused.json["code"]) == (401, "unauthorized")
