"""Every limit of a live session at its value and one beyond: the answer, and what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from client_frames import TEXT, client_frame
from live_rig import BEARER, JSON, MSGPACK, Client, live, token, until

both = pytest.mark.parametrize("encoding", [JSON, MSGPACK])


async def burst(client: Client, *commands: dict[str, Any]) -> list[dict[str, Any]]:
    """Send commands with one write and return their replies."""
    await client.write(b"".join(map(client.encode, commands)))
    return [await client.reply(command["ref"]) for command in commands]


@both
async def test_commands_per_second(encoding: str, rates_stand_still: Callable[[], None]) -> None:
    async with live(limits__session_commands_per_s=5) as rig:
        client = await rig.ws(encoding)
        replies = await burst(client, *(client.numbered("ping") for _ in range(5)))
        assert [each["type"] for each in replies[:4]] == ["pong"] * 4  # `connect` was one
        refused = replies[4]
        assert (refused["code"], refused["retry"]) == ("rate_limited", True)
        assert rig.refusals("session_commands_per_s") == 1
        # With time comes more.
        rates_stand_still()
        for _ in range(50):
            if (await client.call("ping"))["type"] == "pong":
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the limit never lets go")


@both
async def test_whoever_is_merely_too_eager_may_come_back(encoding: str) -> None:
    """It was sent away for good (4504), as if it had done wrong."""
    async with live(limits__session_commands_per_s=2, limits__errors_per_minute=3) as rig:
        client = await rig.ws(encoding)
        commands = [client.numbered("ping") for _ in range(8)]
        await client.write(b"".join(map(client.encode, commands)))
        ended = await client.ended()
        assert ended.code == 4007
        assert 1_000 <= ended.messages[-1]["retry_in_ms"] <= 5_000


@pytest.mark.usefixtures("rates_stand_still")
async def test_a_refused_command_has_used_its_ref() -> None:
    async with live(limits__session_commands_per_s=1) as rig:
        client = await rig.ws()
        command = client.numbered("ping")
        (refused,) = await burst(client, command)
        assert refused["code"] == "rate_limited"
        await client.send(**command)
        assert (await client.message())["code"] == "bad_ref"


async def test_a_service_is_told_the_limits_of_its_key() -> None:
    async with live(limits__key_publishes_per_s=77, limits__key_requests_per_s=99) as rig:
        client = await rig.ws(connect=False, **BEARER)
        limits = (await client.message())["limits"]
        assert (limits["commands_per_s"], limits["publishes_per_s"]) == (99, 77)


@pytest.mark.usefixtures("rates_stand_still")
async def test_what_is_not_understood_counts_too() -> None:
    async with live(limits__session_commands_per_s=3) as rig:
        client = await rig.ws()
        await client.write(client_frame(TEXT, b"junk") * 3)
        codes = [(await client.message())["code"] for _ in range(3)]
        assert codes == ["bad_request", "bad_request", "rate_limited"]


@pytest.mark.usefixtures("rates_stand_still")
@both
async def test_publishes_per_second(encoding: str) -> None:
    async with live(limits__session_publishes_per_s=3) as rig:
        client = await rig.ws(encoding)
        replies = await burst(
            client, *(client.numbered("publish", channel="l.a", data=n) for n in range(4))
        )
        assert [each["type"] for each in replies[:3]] == ["published"] * 3
        assert replies[3]["code"] == "rate_limited" and replies[3]["retry"] is True
        assert rig.refusals("session_publishes_per_s") == 1
        assert (await client.call("ping"))["type"] == "pong"


@pytest.mark.usefixtures("rates_stand_still")
async def test_a_service_pays_with_its_key() -> None:
    async with live(limits__key_requests_per_s=4, limits__key_publishes_per_s=2) as rig:
        one = await rig.ws(connect=False, **BEARER)
        two = await rig.ws(connect=False, **BEARER)
        for client in (one, two):
            await client.message()
            client.ref = 1
            replies = await burst(client, client.numbered("publish", channel="l.a", data=1))
            assert replies[0]["type"] == "published"
        assert (await one.call("publish", channel="l.a", data=2))["code"] == "rate_limited"
        assert rig.refusals("key_publishes_per_s") == 1
        assert (await two.call("ping"))["type"] == "pong"
        assert (await one.call("ping"))["code"] == "rate_limited"
        assert rig.refusals("key_requests_per_s") == 1


@both
async def test_subscriptions_per_session(encoding: str) -> None:
    async with live(limits__subscriptions_per_session=2) as rig:
        client = await rig.ws(encoding)
        for name in ("a", "b"):
            assert (await client.call("subscribe", channel=name))["type"] == "subscribed"
        refused = await client.call("subscribe", channel="c")
        assert (refused["code"], refused["retry"]) == ("limit_exceeded", False)
        assert rig.refusals("subscriptions_per_session") == 1
        await client.call("unsubscribe", channel="a")
        assert (await client.call("subscribe", channel="c"))["type"] == "subscribed"


@both
async def test_size_of_data(encoding: str) -> None:
    async with live(limits__data_bytes=100) as rig:
        client = await rig.ws(encoding)
        fits = "x" * 98
        reply = await client.call("publish", channel="l.a", data=fits)
        assert reply["type"] == "published"
        refused = await client.call("publish", channel="l.a", data=fits + "x")
        assert (refused["code"], refused["retry"]) == ("too_large", False)
        assert rig.refusals("data_bytes") == 1


@both
async def test_size_of_info_and_number_of_tags(encoding: str) -> None:
    async with live(limits__presence_info_bytes=20, limits__tags=2) as rig:
        client = await rig.ws(encoding)
        await client.call("subscribe", channel="l.a")
        reply = await client.call("presence", channel="l.a", info="x" * 18)
        assert reply["type"] == "members"
        refused = await client.call("presence", channel="l.a", info="x" * 19)
        assert refused["code"] == "too_large"
        assert rig.refusals("presence_info_bytes") == 1
        tags = {"a": "1", "b": "2"}
        reply = await client.call("publish", channel="l.a", data=1, tags=tags)
        assert reply["type"] == "published"
        refused = await client.call("publish", channel="l.a", data=1, tags=tags | {"c": "3"})
        assert refused["code"] == "invalid_data"
        assert rig.refusals("tags") == 1


async def test_all_sessions() -> None:
    async with live(limits__connections=2) as rig:
        first, _second = await rig.ws(), await rig.sse("channel=l.a")
        for response in (
            await rig.refused_ws(),
            await rig.request("GET", "/v1/sse?channel=l.a"),
        ):
            assert response.status == 429 and response.json["code"] == "limit_exceeded"
            assert int(response.headers["retry-after"]) >= 1
        assert rig.refusals("connections") == 2
        await first.goodbye()
        await until(lambda: rig.node.occupancy.sessions == 1)
        await rig.ws()


async def test_sessions_of_one_address() -> None:
    proxied = {"limits__connections_per_address": 2, "trusted_proxies": ("127.0.0.1",)}
    async with live(**proxied) as rig:
        client = await rig.ws(X_Forwarded_For="192.0.2.1")
        await rig.ws(X_Forwarded_For="10.9.9.9, 192.0.2.1")
        response = await rig.refused_ws(X_Forwarded_For="192.0.2.1")
        assert response.status == 429 and response.json["code"] == "limit_exceeded"
        assert rig.refusals("connections_per_address") == 1
        await rig.ws(X_Forwarded_For="192.0.2.2")
        client.close()
        await until(lambda: rig.node.occupancy.sessions == 2)
        await rig.ws(X_Forwarded_For="192.0.2.1")


async def test_an_address_that_nobody_vouches_for_does_not_count() -> None:
    async with live(limits__connections_per_address=1) as rig:
        await rig.ws(X_Forwarded_For="192.0.2.1")
        response = await rig.refused_ws(X_Forwarded_For="192.0.2.2")
        assert response.status == 429


@both
async def test_sessions_of_one_user(encoding: str) -> None:
    async with live(limits__connections_per_user=2) as rig:
        first = await rig.ws(encoding, token=token("u1"))
        bearer: dict[str, Any] = {"Authorization": f"Bearer {token('u1')}"}
        await rig.sse("channel=l.a", **bearer)
        third = await rig.ws(encoding, connect=False)
        await third.send(**third.numbered("connect", token=token("u1")))
        ended = await third.ended()
        assert [each["type"] for each in ended.messages] == ["error", "closing"]
        assert ended.messages[0]["code"] == "limit_exceeded"
        # To come back: a session of this user may have ended by then.
        assert (ended.code, ended.reason) == (4007, "rate_limited")
        assert rig.refusals("connections_per_user") == 1
        for response in (
            await rig.refused_ws(**bearer),
            await rig.request("GET", "/v1/sse?channel=l.a", **bearer),
        ):
            assert response.status == 429 and response.json["code"] == "limit_exceeded"
        assert rig.refusals("connections_per_user") == 3
        await rig.ws(encoding, token=token("u2"))
        first.close()
        await until(lambda: rig.node.occupancy.sessions == 2)
        await rig.ws(encoding, token=token("u1"))


@pytest.mark.usefixtures("rates_stand_still")
async def test_handshakes_per_second() -> None:
    async with live(limits__handshakes_per_s=2) as rig:
        await rig.ws()
        await rig.sse("channel=l.a")
        response = await rig.refused_ws()
        assert response.status == 429 and response.json["code"] == "rate_limited"
        assert response.json["retry"] is True and response.headers["retry-after"]
        assert rig.refusals("handshakes_per_s") == 1


@both
async def test_errors_per_minute(encoding: str) -> None:
    async with live(limits__errors_per_minute=3) as rig:
        client = await rig.ws(encoding)
        for _ in range(3):
            assert (await client.call("unsubscribe", channel="no"))["code"] == "not_found"
        assert (await client.call("ping"))["type"] == "pong"
        await client.send(**client.numbered("unsubscribe", channel="no"))
        ended = await client.ended()
        assert [each["type"] for each in ended.messages] == ["error", "closing"]
        assert (ended.code, ended.reason) == (4504, "too_many_errors")
        assert rig.refusals("errors_per_minute") == 1
        await until(rig.nobody_left)


async def test_zero_is_no_limit() -> None:
    none = {
        "limits__session_commands_per_s": 0,
        "limits__session_publishes_per_s": 0,
        "limits__errors_per_minute": 0,
        "limits__subscriptions_per_session": 0,
        "limits__connections": 0,
        "limits__connections_per_address": 0,
        "limits__connections_per_user": 0,
        "limits__handshakes_per_s": 0,
    }
    async with live(**none) as rig:
        client = await rig.ws(token=token("u1"))
        commands = [client.numbered("publish", channel="l.a", data=n) for n in range(300)]
        commands += [client.numbered("unsubscribe", channel="no") for _ in range(300)]
        replies = await burst(client, *commands)
        assert [each["type"] for each in replies] == ["published"] * 300 + ["error"] * 300


async def test_a_full_broker() -> None:
    async with live(broker__max_channels=1) as rig:
        client = await rig.ws()
        assert (await client.call("subscribe", channel="l.a"))["type"] == "subscribed"
        for type_ in ("publish", "subscribe"):
            refused = await client.call(type_, channel="l.b", data=1)
            assert refused["code"] == "limit_exceeded"
        assert rig.refusals("broker.max_channels") == 2
        assert (await client.call("ping"))["type"] == "pong"
