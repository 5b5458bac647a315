"""WebSocket sessions over real sockets: how they open, whom they act for, and how that ends."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import pytest

from client_frames import TEXT, client_frame
from config.access import ApiKey
from config.rules import ChannelRule
from config.settings import hash_secret
from live_rig import ALL, BEARER, JSON, MSGPACK, live, token, until

HASH = hash_secret("secret")
KEYS = (
    ApiKey(name="writer", id="writer", hash=HASH, scopes={"publish": ("w.*",)}),
    ApiKey(name="reader", id="reader", hash=HASH, scopes={"history": ("r.*",)}),
)


# ---- the handshake


@pytest.mark.parametrize(
    ("headers", "status", "says"),
    [
        ({"Upgrade": None}, 426, "Upgrade: websocket"),
        ({"Upgrade": "h2c"}, 426, "Upgrade: websocket"),
        ({"Connection": "keep-alive"}, 426, "proxy"),
        ({"Sec_WebSocket_Version": "8"}, 426, "13"),
        ({"Sec_WebSocket_Key": None}, 400, "Sec-WebSocket-Key"),
        ({"Sec_WebSocket_Key": "short"}, 400, "Sec-WebSocket-Key"),
        ({"Sec_WebSocket_Protocol": "soap"}, 400, "galecast.v1.json"),
    ],
)
async def test_half_handshakes(headers: dict[str, str | None], status: int, says: str) -> None:
    async with live() as rig:
        response = await rig.refused_ws(**headers)
        assert response.status == status
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json
        assert problem["code"] == "bad_request" and problem["status"] == status
        assert says in problem["detail"]
        assert response.headers["x-request-id"] == problem["instance"]
        if status == 426:
            assert response.headers["upgrade"] == "websocket"
        assert rig.nobody_left()


async def test_other_methods_are_refused() -> None:
    async with live() as rig:
        for method in ("POST", "PUT", "DELETE"):
            response = await rig.request(method, "/v1/ws", b"{}")
            assert response.status == 405 and "GET" in response.headers["allow"]
        assert (await rig.request("HEAD", "/v1/ws")).status == 405
        assert rig.nobody_left()


async def test_http_1_0_is_refused() -> None:
    async with live() as rig:
        wire = await rig.wire()
        await wire.write(rig.handshake().replace(b"HTTP/1.1", b"HTTP/1.0"))
        response = await rig.response(wire)
        assert response.status == 400 and response.json["code"] == "bad_request"


async def test_json_is_spoken_when_nothing_is_offered() -> None:
    async with live() as rig:
        wire = await rig.wire()
        await wire.write(rig.handshake(None))
        head = await wire.take_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"Sec-WebSocket-Protocol" not in head
        await wire.write(client_frame(TEXT, b'{"type":"connect","ref":1}'))
        assert b'"connected"' in await wire.take(100)
        json = await rig.ws()
        assert json.handshake.headers["sec-websocket-protocol"] == "galecast.v1.json"
        msgpack = await rig.ws(MSGPACK)
        assert msgpack.handshake.headers["sec-websocket-protocol"] == "galecast.v1.msgpack"


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.evil.com",
        "http://app.example",  # the port is another
        "null",
        "https://app.example:8443",
        "https://app.example, https://evil.com",
        "https://APP.example.",
        "",
    ],
)
async def test_foreign_origins(origin: str) -> None:
    async with live(origins=("https://app.example",)) as rig:
        response = await rig.refused_ws(Origin=origin, Sec_Fetch_Site="same-origin")
        assert response.status == 403 and response.json["code"] == "forbidden"
        assert rig.refusals("origins") == 1
        assert rig.nobody_left()


async def test_allowed_origins() -> None:
    async with live(origins=("https://app.example",)) as rig:
        await rig.ws(Origin="https://app.example")
        await rig.ws(Origin="https://APP.example:443")
        await rig.ws()  # no browser


# ---- who


async def test_a_key_on_the_handshake_opens_at_once() -> None:
    async with live() as rig:
        client = await rig.ws(connect=False, **BEARER)
        connected = await client.message()
        assert "ref" not in connected and "expires_s" not in connected
        assert connected["type"] == "connected" and connected["user"] is None
        (session,) = rig.sessions
        assert session.id == connected["session"] and session.principal.kind == "service"
        assert connected["node"] == rig.node.name
        assert (await client.call("connect"))["code"] == "conflict"


@pytest.mark.parametrize("encoding", [JSON, MSGPACK])
async def test_a_token_on_the_handshake_opens_at_once(encoding: str) -> None:
    async with live() as rig:
        bearer = f"bearer  {token('u7', ttl_s=3600)}"
        client = await rig.ws(encoding, connect=False, Authorization=bearer)
        connected = await client.message()
        assert connected["user"] == "u7" and "ref" not in connected
        assert 3_590 <= connected["expires_s"] <= 3_600
        assert connected["ping_s"] == 25
        limits = rig.node.settings.limits
        assert connected["limits"] == {
            "frame_bytes": limits.frame_bytes,
            "data_bytes": limits.data_bytes,
            "subscriptions": limits.subscriptions_per_session,
            "commands_per_s": limits.session_commands_per_s,
            "publishes_per_s": limits.session_publishes_per_s,
        }
        await client.goodbye()
        await until(rig.nobody_left)


@pytest.mark.parametrize(
    ("bearer", "code"),
    [
        ("Bearer dev.wrong", "unauthorized"),
        ("Bearer nobody.galecast", "unauthorized"),
        ("Bearer", "unauthorized"),
        ("Basic ZGV2OmdhbGVjYXN0", "unauthorized"),
        ("Bearer not.a.token", "unauthorized"),
        (f"Bearer {token(secret='another secret that is long enough')}", "unauthorized"),
        (f"Bearer {token(ttl_s=-60)}", "token_expired"),
        (f"Bearer {token(nbf=time.time() + 3_600)}", "unauthorized"),
        ("Bearer " + "x." * 5000 + "y", "unauthorized"),
    ],
)
async def test_a_bad_bearer_is_a_401(bearer: str, code: str) -> None:
    async with live() as rig:
        response = await rig.refused_ws(Authorization=bearer)
        assert response.status == 401 and response.json["code"] == code
        assert response.headers["www-authenticate"] == "Bearer"
        assert bearer[7:] == "" or bearer[7:].encode() not in response.body
        assert rig.nobody_left()


@pytest.mark.parametrize("encoding", [JSON, MSGPACK])
async def test_connect_with_a_token(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding, connect=False)
        assert rig.sessions == []
        connected = await client.call("connect", token=token("ü7"))
        assert connected["type"] == "connected" and connected["user"] == "ü7"
        series = f'galecast_sessions{{encoding="{encoding}",transport="ws"}}'
        assert rig.counter(series) == 1
        assert (await client.call("connect"))["code"] == "conflict"
        client.close()
        await until(rig.nobody_left)
        assert rig.counter(series) == 0


async def test_connect_as_nobody_where_that_is_not_allowed() -> None:
    async with live(anonymous__grants={}) as rig:
        client = await rig.ws(connect=False)
        await client.send(type="connect", ref=1)
        ended = await client.ended()
        error, closing = ended.messages
        assert (error["ref"], error["code"], error["retry"]) == (1, "unauthorized", False)
        assert closing["code"] == ended.code == 4501
        await until(rig.nobody_left)


@pytest.mark.parametrize(
    ("text", "code", "close"),
    [
        ("", "unauthorized", 4501),
        ("not.a.token", "unauthorized", 4501),
        ("dev.galecast", "unauthorized", 4501),  # a key does not travel in a message
        (token(secret="another secret that is long enough"), "unauthorized", 4501),
        (token(ttl_s=-60), "token_expired", 4005),
        ("x" * 9000, "unauthorized", 4501),
    ],
)
async def test_connect_with_a_bad_token(text: str, code: str, close: int) -> None:
    async with live() as rig:
        client = await rig.ws(connect=False)
        await client.send(type="connect", ref=1, token=text)
        ended = await client.ended()
        assert ended.messages[0]["code"] == code and ended.code == close
        assert rig.refusals(code) == 1
        await until(rig.nobody_left)


async def test_nobody_connects_in_time() -> None:
    async with live(session__connect_timeout_s=0.1) as rig:
        client = await rig.ws(connect=False)
        ended = await client.ended()
        assert ended.messages == [{"type": "closing", "code": 4004, "reason": "connect_timeout"}]
        assert (ended.code, ended.reason) == (4004, "connect_timeout")
        await until(rig.nobody_left)


async def test_commands_before_connect() -> None:
    async with live() as rig:
        client = await rig.ws(connect=False)
        for type_ in ("ping", "subscribe", "publish"):
            error = await client.call(type_, channel="a", data=1)
            assert error["code"] == "unauthorized" and "connect" in error["message"]
        assert (await client.call("connect"))["type"] == "connected"
        assert (await client.call("ping"))["type"] == "pong"


async def test_a_service_session() -> None:
    async with live(keys=KEYS) as rig:
        writer = await rig.ws(connect=False, Authorization="Bearer writer.secret")
        reader = await rig.ws(connect=False, Authorization="Bearer reader.secret")
        for client in (writer, reader):
            assert (await client.message())["type"] == "connected"
        published = await writer.call("publish", channel="w.a", data={"x": 1})
        assert published["type"] == "published"
        assert (await writer.call("publish", channel="x.a", data=1))["code"] == "forbidden"
        assert (await writer.call("subscribe", channel="w.a"))["code"] == "forbidden"
        assert (await reader.call("subscribe", channel="r.a"))["type"] == "subscribed"
        assert (await reader.call("history", channel="r.a"))["type"] == "events"
        assert (await reader.call("publish", channel="r.a", data=1))["code"] == "forbidden"
        assert (await reader.call("refresh", token=token()))["code"] == "forbidden"
        # A service is no member of what it reads.
        assert not (await rig.node.presence.members("r.a", limit=10)).members


async def test_grants_by_pattern_and_by_rule() -> None:
    rule = ChannelRule(match="user.{sub}.>", grant=("subscribe",))
    async with live(channels=(rule,)) as rig:
        client = await rig.ws(token=token("u1", {"chat.*": ["subscribe"]}))
        assert (await client.call("subscribe", channel="chat.a"))["type"] == "subscribed"
        assert (await client.call("subscribe", channel="user.u1.x"))["type"] == "subscribed"
        for channel in ("user.u2.x", "chat.a.b", "chat", "Chat.a", "user.u1"):
            assert (await client.call("subscribe", channel=channel))["code"] == "forbidden"


# ---- the end of a token


async def test_a_token_expires_on_a_live_session(ends_in: Callable[[float, float], None]) -> None:
    async with live(session__expiring_s=1.0, token__leeway_s=0.0) as rig:
        began = rig.app._loop.time()
        expires_at = time.time() + 1_000
        ends_in(expires_at, 1.4)
        client = await rig.ws(token=token(exp=expires_at))
        ended = await client.ended()
        assert [each["type"] for each in ended.messages] == ["expiring", "closing"]
        assert ended.messages[0]["in_s"] == 1
        assert ended.code == 4005
        # Of the clock here there are still 1.4 s left when a second is.
        assert rig.app._loop.time() - began > 0.4 + 1.4
        await until(rig.nobody_left)


async def test_no_warning_where_none_is_set(ends_in: Callable[[float, float], None]) -> None:
    async with live(session__expiring_s=0.0, token__leeway_s=0.0) as rig:
        expires_at = time.time() + 1_000
        ends_in(expires_at, 0.3)
        client = await rig.ws(token=token(exp=expires_at))
        ended = await client.ended()
        assert [each["type"] for each in ended.messages] == ["closing"]
        assert ended.code == 4005


async def test_a_refresh_keeps_the_session(ends_in: Callable[[float, float], None]) -> None:
    async with live(session__expiring_s=60.0) as rig:
        first = time.time() + 1_000
        ends_in(first, 3.0)
        client = await rig.ws(token=token("u1", exp=first))
        await client.call("subscribe", channel="exp.a")
        await client.next("expiring")
        reply = await client.call("refresh", token=token("u1", exp=first + 900))
        assert reply == {"type": "refreshed", "ref": client.ref, "expires_s": 903}
        over = rig.app._loop.time() + 3.6
        await until(lambda: rig.app._loop.time() > over)
        assert (await client.call("ping"))["type"] == "pong"
        await rig.publish("exp.a", 1)
        await client.next("event")


async def test_a_refresh_may_not_change_the_user() -> None:
    async with live() as rig:
        client = await rig.ws(token=token("u1"))
        assert (await client.call("refresh", token=token("u2")))["code"] == "forbidden"
        assert (await client.call("refresh", token="junk"))["code"] == "unauthorized"
        expired = await client.call("refresh", token=token("u1", ttl_s=-60))
        assert expired["code"] == "token_expired"
        assert (await client.call("refresh"))["code"] == "bad_request"
        assert rig.sessions[0].principal.user == "u1"
        nobody = await rig.ws()
        assert (await nobody.call("refresh", token=token("u1")))["code"] == "forbidden"


async def test_a_refresh_ends_what_is_no_longer_granted() -> None:
    async with live() as rig:
        client = await rig.ws(token=token("u1", {">": ALL}))
        await client.call("subscribe", channel="old.a")
        await client.call("subscribe", channel="new.a")
        await client.call("refresh", token=token("u1", {"new.*": ALL}))
        gone = await client.next("unsubscribed")
        assert (gone["channel"], gone["code"]) == ("old.a", "forbidden")
        assert "ref" not in gone and gone["message"]
        await rig.publish("old.a", 1)
        await rig.publish("new.a", 2)
        assert (await client.next("event"))["channel"] == "new.a"


async def test_an_ended_user_does_not_come_back() -> None:
    async with live() as rig:
        old = token("u1", iat=int(time.time()) - 5)
        clients = [await rig.ws(token=old) for _ in range(2)]
        other = await rig.ws(token=token("u2"))
        assert await rig.node.nodes.end_user("u1") == (2, [])
        for client in clients:
            ended = await client.ended()
            assert ended.code == 4502 and ended.last["code"] == 4502
        again = await rig.ws(connect=False)
        await again.send(type="connect", ref=1, token=old)
        ended = await again.ended()
        assert ended.code == 4501 and ended.messages[0]["code"] == "unauthorized"
        response = await rig.refused_ws(Authorization=f"Bearer {old}")
        assert response.status == 401
        assert (await other.call("ping"))["type"] == "pong"
        newer = token("u1", iat=int(time.time()) + 2)
        await rig.ws(token=newer)


async def test_an_operator_ends_users_over_rest() -> None:
    async with live() as rig:
        client = await rig.ws(token=token("u1", iat=int(time.time()) - 5))
        response = await rig.request("DELETE", "/v1/users/u1/sessions", **BEARER)
        assert response.status in (200, 204)
        assert (await client.ended()).code == 4502


async def test_draining_tells_when_to_come_back() -> None:
    async with live(drain__retry_spread_ms=5000) as rig:
        clients = [await rig.ws(encoding) for encoding in (JSON, MSGPACK)]
        await rig.node.lifecycle.dismiss(rig.sessions)
        for client in clients:
            ended = await client.ended()
            assert ended.code == 4001
            assert 0 <= ended.last["retry_in_ms"] <= 5000
        await until(rig.nobody_left)


async def test_a_reload_takes_what_a_key_lost() -> None:
    async with live(keys=KEYS) as rig:
        reader = await rig.ws(connect=False, Authorization="Bearer reader.secret")
        writer = await rig.ws(connect=False, Authorization="Bearer writer.secret")
        for client in (reader, writer):
            await client.message()
        await reader.call("subscribe", channel="r.a")
        fewer = msgspec.structs.replace(KEYS[1], scopes={"history": ("q.*",)})
        rig.app.reload(msgspec.structs.replace(rig.app.settings, keys=(fewer,)))
        assert (await reader.next("unsubscribed"))["code"] == "forbidden"
        assert (await writer.ended()).code == 4501
