"""Subscribing a user from the server, over all nodes; with live sessions over WebSocket."""

import json
from typing import Any
from urllib.parse import quote

import pytest

from config.limits import LimitSettings
from node_group import serve_group
from nodes import KEY, api_key, make_token

NARROW = "narrow.0123456789abcdef"
MARKUP = "<script>alert('u')</script>/../%"
POSITION = f"{'0' * 16}-0-{'0' * 16}"


def path(user: str = "u1", channel: str = "a.b") -> str:
    return f"/v1/users/{quote(user, safe='')}/subscriptions/{quote(channel, safe='')}"


@pytest.mark.parametrize("user", ["u1", MARKUP])
async def test_all_sessions_of_a_user_on_all_nodes(user: str) -> None:
    async with serve_group("n1", "n2") as (_group, (first, second)):
        token, other = make_token(user, {}), make_token("u2", {})
        async with (
            first.session(token) as one,
            second.session(token) as two,
            second.session(other) as three,
        ):
            answer = await first.ask("PUT", path(user))
            assert (answer.status, answer.json) == (200, {"sessions": 2, "refused": 0})
            for member in (one, two):
                told = await member.hear("subscribed")
                assert told.keys() == {"type", "channel", "position"}
                assert (told["type"], told["channel"]) == ("subscribed", "a.b")
            again = await second.ask("PUT", path(user), {"presence": False})
            assert again.json == {"sessions": 2, "refused": 0}
            event = {"channel": "a.b", "data": 1}
            assert (await second.ask("POST", "/v1/events", event)).status == 200
            assert (await two.hear("event"))["channel"] == "a.b"
            assert (await three.call("ping"))["type"] == "pong"
            answer = await second.ask("DELETE", path(user))
            assert (answer.status, answer.json) == (200, {"sessions": 2})
            for member in (one, two):
                assert await member.hear("unsubscribed") == {
                    "type": "unsubscribed",
                    "channel": "a.b",
                    "code": "forbidden",
                    "message": "unsubscribed by the server",
                }
            assert (await first.ask("DELETE", path(user))).json == {"sessions": 0}
            items = (await first.ask("GET", "/v1/sessions?user=u2")).json["sessions"]
            assert [each["session"] for each in items] == [three.id]


async def test_since_rewind_and_presence() -> None:
    async with serve_group("n1") as (_group, (node,)):
        for number in range(3):
            await node.ask("POST", "/v1/events", {"channel": "a.b", "data": number})
        async with node.session(make_token("u1", {})) as member:
            body = {"since": POSITION, "rewind": 2, "presence": True, "later": 1}
            assert (await node.ask("PUT", path(), body)).json == {"sessions": 1, "refused": 0}
            told = await member.hear("subscribed")
            assert told["recovered"] is False
            assert [each["session"] for each in told["members"]] == [member.id]
            # Among them the presence message of its own joining.
            assert [(await member.hear("event"))["data"] for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("given", [False, True])
async def test_presence_by_a_grant_of_its_own_ends_with_that_grant(given: bool) -> None:
    """Presence went on without a grant, since the server had subscribed the session too."""
    async with serve_group("n1") as (_group, (node,)):
        async with node.session(make_token("u1")) as client:
            await client.call("subscribe", channel="a.b", presence=True)
            answer = await node.ask("PUT", path(), {"presence": given})
            assert answer.json == {"sessions": 1, "refused": 0}
            await client.call("refresh", token=make_token("u1", {"a.b": ["subscribe"]}))
            if not given:
                assert (await client.hear("unsubscribed"))["code"] == "forbidden"
            (session,) = node.node.hub.sessions.values()
            assert ("a.b" in session.subscriptions) is given


async def test_sessions_at_their_limit_and_silent_nodes() -> None:
    limits = LimitSettings(subscriptions_per_session=1)
    async with serve_group("n1", "n2", limits=limits) as (group, (first, second)):
        async with first.session(make_token()) as full, second.session(make_token()):
            await full.call("subscribe", channel="x")
            assert (await first.ask("PUT", path())).json == {"sessions": 1, "refused": 1}
            group.silent = {"n2"}
            assert (await first.ask("PUT", path())).json == {
                "sessions": 0,
                "refused": 1,
                "silent": ["n2"],
            }
            assert (await first.ask("DELETE", path())).json == {"sessions": 0, "silent": ["n2"]}
            group.away = True
            for method in ("PUT", "DELETE"):
                answer = await first.ask(method, path())
                assert (answer.status, answer.json["code"], answer.json["retry"]) == (
                    503,
                    "unavailable",
                    True,
                )


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense",
        b"[]",
        {"since": "yesterday"},
        {"since": 1},
        {"rewind": 0},
        {"rewind": 100_001},
        {"rewind": "all"},
        {"presence": 1},
    ],
    ids=str,
)
async def test_what_is_no_subscription(body: Any) -> None:
    async with serve_group("n1") as (group, (node,)):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await node.ask("PUT", path(), data)
        assert (answer.status, answer.json["code"]) == (400, "bad_request")
        assert group.orders == 0


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_names_that_are_none(method: str) -> None:
    async with serve_group("n1") as (group, (node,)):
        for channel in ("a.*", "a.>", ">", "a..b", "a b", "$sys", "x" * 256, "é"):
            answer = await node.ask(method, path(channel=channel))
            assert (answer.status, answer.json["code"]) == (400, "bad_request")
        for user in ("a\nb", "x" * 256, "\x00"):
            answer = await node.ask(method, path(user))
            assert (answer.status, answer.json["code"]) == (400, "bad_request")
        assert group.orders == 0


async def test_bodies_that_are_not_read() -> None:
    async with serve_group("n1") as (_group, (node,)):
        answer = await node.ask("PUT", path(), b"<a/>", Content_Type="text/xml")
        assert (answer.status, answer.json["code"]) == (415, "unsupported_media_type")
        answer = await node.ask("PUT", path(), b"{}", Content_Encoding="gzip")
        assert answer.status == 415


async def test_presence_where_no_rule_keeps_it() -> None:
    async with serve_group("n1") as (group, (node,)):
        answer = await node.ask("PUT", path(channel="closed.a"), {"presence": True})
        assert (answer.status, answer.json["code"]) == (403, "forbidden")
        assert group.orders == 0


async def test_who_may_not() -> None:
    keys = (api_key(KEY), api_key(NARROW, publish=(">",), history=(">",), metrics=True))
    async with serve_group("n1", keys=keys) as (_group, (node,)):
        for bearer, status in ((NARROW, 403), (make_token(), 403), (None, 401)):
            for method in ("PUT", "DELETE"):
                assert (await node.ask(method, path(), bearer=bearer)).status == status
        assert (await node.ask("GET", path())).status == 405
