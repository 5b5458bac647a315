"""What a stream asks of each of its channels: where it begins, who is present, and refusals."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from config.rules import ChannelRule
from live_rig import BEARER, MSGPACK, Rig, Stream, live, token, until

BAD_POSITION = "0" * 16 + "-x-" + "0" * 16


def bearer(**grants: Any) -> dict[str, Any]:
    return {"Authorization": f"Bearer {token('u1', grants)}"}


async def subscribed(stream: Stream, count: int) -> dict[str, dict[str, Any]]:
    """The `subscribed` of each channel."""
    found = [await stream.control("subscribed") for _ in range(count)]
    return {each["channel"]: each for each in found}


async def events(stream: Stream, count: int) -> list[tuple[str, Any]]:
    found = [await stream.event() for _ in range(count)]
    return sorted((each["channel"], each["data"]) for each in found)


# ---- where each channel begins


async def filled(rig: Rig, *channels: str) -> dict[str, list[str]]:
    """Publish 0, 1, 2, 3 into each channel; return the positions."""
    return {
        channel: [(await rig.publish(channel, number))["position"] for number in range(4)]
        for channel in channels
    }


async def test_each_channel_rewinds_by_its_own_count() -> None:
    async with live() as rig:
        await filled(rig, "a", "b", "c")
        stream = await rig.sse("channel=a&channel=b&channel=c&rewind=2,,1")
        first = await stream.block()
        # Where nothing was to be rewound it resumes from where it began, else it rewinds again.
        before, b, after = (first.id or "").split(",")
        assert (before, after) == ("", "") and "-4-" in b
        assert await events(stream, 3) == [("a", 2), ("a", 3), ("c", 3)]
        await rig.publish("b", "live")
        assert await events(stream, 1) == [("b", "live")]


@pytest.mark.parametrize(("rewind", "count"), [("2", 4), ("", 0), (",", 0)])
async def test_one_count_is_for_all(rewind: str, count: int) -> None:
    async with live() as rig:
        await filled(rig, "a", "b")
        stream = await rig.sse(f"channel=a&channel=b&rewind={rewind}")
        await until(lambda: rig.sessions and len(rig.sessions[0].subscriptions) == 2)
        await until(lambda: all(each.live for each in rig.sessions[0].subscriptions.values()))
        await rig.publish("a", 9)
        found = await events(stream, count + 1)
        assert ("a", 9) in found and len(found) == count + 1


async def test_only_what_rewinds_needs_the_grant_for_history() -> None:
    async with live() as rig:
        who = bearer(a=["subscribe", "history"], b=["subscribe"])
        await subscribed(await rig.sse("channel=a&channel=b&rewind=5,", **who), 2)
        response = await rig.request("GET", "/v1/sse?channel=a&channel=b&rewind=5", **who)
        assert (response.status, response.json["channel"]) == (403, "b")


async def test_a_client_composes_since_of_the_positions_that_it_saw() -> None:
    """A client with a fetch stream keeps one position a channel, whatever stream it came by."""
    async with live() as rig:
        positions = await filled(rig, "a", "b", "c")
        since = f"{positions['a'][1]},,{positions['c'][3]}"
        # `b` begins anew.
        stream = await rig.sse(f"channel=a&channel=b&channel=c&since={since}")
        found = await subscribed(stream, 1)
        assert found["a"]["recovered"] is True
        assert await events(stream, 2) == [("a", 2), ("a", 3)]
        found = await subscribed(stream, 2)
        assert "recovered" not in found["b"] and found["c"]["recovered"] is True
        assert found["c"]["position"] == positions["c"][3]
        await rig.publish("c", "live")
        assert await events(stream, 1) == [("c", "live")]


async def test_since_and_rewind_stand_for_the_same_channels() -> None:
    async with live() as rig:
        positions = await filled(rig, "a", "b")
        since = f"{positions['a'][2]},"
        stream = await rig.sse(f"channel=a&channel=b&since={since}&rewind=4,1")
        # `rewind` is for where `since` cannot be continued.
        assert await events(stream, 2) == [("a", 3), ("b", 3)]


# ---- who is present

SHARED, COMPOSED = "channel=a", "channel=a&channel=b"


@pytest.mark.parametrize("query", [SHARED, COMPOSED])
async def test_presence_is_seen_where_it_is_asked_for(query: str) -> None:
    async with live() as rig:
        other = await rig.ws(token=token("u2"))
        await other.call("subscribe", channel="a")
        stream = await rig.sse(f"{query}&presence=a", **bearer(**{">": ["subscribe", "presence"]}))
        found = await subscribed(stream, query.count("channel"))
        assert sorted(each["user"] for each in found["a"]["members"]) == ["u1", "u2"]
        assert all("members" not in each for name, each in found.items() if name != "a")
        cursor = stream.last_id
        await other.call("subscribe", channel="b")
        await other.call("presence", channel="a", info={"typing": True})
        block = await stream.block()
        assert [name for name, _value in block.fields] == ["event", "data"]
        assert block.data["action"] == "update"
        assert block.data["member"]["info"] == {"typing": True}
        await other.call("unsubscribe", channel="a")
        left = await stream.control("presence")
        assert (left["action"], left["member"]["user"]) == ("leave", "u2")
        # What is no event moves no cursor.
        assert stream.last_id == cursor
        await rig.publish("a", 1)
        assert await events(stream, 1) == [("a", 1)]


async def test_a_stream_with_a_ticket_sees_presence() -> None:
    async with live() as rig:
        answer = await rig.request(
            "POST", "/v1/tickets", b"", **bearer(a=["subscribe", "presence"])
        )
        stream = await rig.sse(f"channel=a&presence=a&ticket={answer.json['ticket']}")
        assert len((await stream.control("subscribed"))["members"]) == 1
        other = await rig.ws(token=token("u2"))
        await other.call("subscribe", channel="a")
        assert (await stream.control("presence"))["member"]["user"] == "u2"


async def test_everyone_hears_of_presence_in_the_way_of_their_own_wire() -> None:
    async with live() as rig:
        streams = [await rig.sse(f"{query}&presence=a") for query in (SHARED, COMPOSED)]
        for stream, count in zip(streams, (1, 2), strict=True):
            await subscribed(stream, count)
        sockets = [await rig.ws(), await rig.ws(MSGPACK)]
        for socket in sockets:
            await socket.call("subscribe", channel="a", presence=True)
        assert len(rig.node.hub.feeds["a"].presence.audiences) == 4
        await (await rig.ws(token=token("u9"))).call("subscribe", channel="a")

        def is_it(message: dict[str, Any]) -> bool:
            return bool(message["type"] == "presence" and message["member"]["user"] == "u9")

        told = [
            (await each.next(lambda block: block.control and is_it(block.data))).data
            for each in streams
        ]
        for socket in sockets:
            while not is_it(message := await socket.next("presence")):
                pass
            told.append(message)
        assert told[0]["action"] == "join" and told[0]["member"]["info"] == {}
        assert all(each == told[0] for each in told)


@pytest.mark.parametrize("query", [SHARED, COMPOSED])
async def test_a_sync_replaces_the_set(query: str) -> None:
    async with live(limits__members_per_reply=2) as rig:
        stream = await rig.sse(f"{query}&presence=a")
        found = await subscribed(stream, query.count("channel"))
        assert len(found["a"]["members"]) == 1 and "more" not in found["a"]
        for _ in range(2):
            await (await rig.ws()).call("subscribe", channel="a")
        rig.node.hub.sync_presence(rig.node.hub.feeds["a"])
        while (message := await stream.control("presence"))["action"] != "sync":
            assert message["action"] == "join"
        assert len(message["members"]) == 2 and message["more"] is True


async def test_presence_that_is_no_longer_granted_ends_the_channel() -> None:
    async with live() as rig:
        who = bearer(**{">": ["subscribe", "presence"]})
        stream = await rig.sse("channel=a&channel=b&presence=b", **who)
        await subscribed(stream, 2)
        (session,) = rig.sessions
        session.renew(rig.node.auth.token(token("u1", {">": ["subscribe"]})))
        gone = await stream.control("unsubscribed")
        assert (gone["channel"], gone["code"]) == ("b", "forbidden")
        await rig.publish("b", 1)
        await rig.publish("a", 2)
        assert await events(stream, 1) == [("a", 2)]


async def test_nobody_is_left_in_the_audience_of_presence() -> None:
    async with live() as rig:
        stream = await rig.sse(f"{COMPOSED}&presence=a&presence=b", **BEARER)
        found = await subscribed(stream, 2)
        # A service sees who is present, and is no member itself.
        assert found["a"]["members"] == found["b"]["members"] == []
        feeds = [rig.node.hub.feeds[name] for name in "ab"]
        assert all(feed.presence.audiences for feed in feeds)
        rig.sessions[0].on_lost()
        assert not any(feed.presence.audiences for feed in feeds)


# ---- refusals say which channel they are about


@pytest.mark.parametrize(
    ("query", "status", "channel"),
    [
        ("channel=a&channel=secret.x", 403, "secret.x"),
        ("channel=a&channel=b&rewind=,3", 403, "b"),
        ("channel=a&channel=b&presence=b&presence=a", 403, "b"),
        ("channel=quiet&channel=a&presence=quiet&presence=a", 403, "quiet"),
        ("channel=a&channel=b..c", 400, "b..c"),
        ("channel=a&channel=a.*", 400, "a.*"),
        (f"channel=a&channel={quote('x<b>')}", 400, "x<b>"),
        ("channel=a&channel=b&presence=c", 400, "c"),
        (f"channel=a&channel=b&since=,{BAD_POSITION}", 400, "b"),
        ("channel=a&channel=b&rewind=3,x", 400, "b"),
        ("channel=a&channel=b&rewind=0,1", 400, "a"),
        ("channel=a&channel=b&rewind=1,2,3", 400, None),
        ("channel=a&channel=b&since=,,", 400, None),
        ("channel=a&channel=a", 400, None),
    ],
)
async def test_a_refusal_names_its_channel(query: str, status: int, channel: str | None) -> None:
    rules = (
        ChannelRule(match="quiet", presence=False),
        ChannelRule(match=">", presence=True),
    )
    async with live(channels=rules) as rig:
        seen = ["subscribe", "history", "presence"]
        who = bearer(a=seen, b=["subscribe"], quiet=seen)
        response = await rig.request("GET", f"/v1/sse?{query}", **who)
        assert response.headers["content-type"] == "application/problem+json"
        assert response.status == status, response.body
        assert response.json.get("channel") == channel
        assert rig.nobody_left() and not rig.node.hub.feeds


async def test_a_client_that_leaves_out_what_is_refused_gets_the_rest() -> None:
    async with live() as rig:
        who = bearer(a=["subscribe"], c=["subscribe"])
        channels = ["a", "b", "c", "d"]
        for refused in ("b", "d"):
            query = "&".join(f"channel={each}" for each in channels)
            response = await rig.request("GET", f"/v1/sse?{query}", **who)
            assert (response.status, response.json["channel"]) == (403, refused)
            channels.remove(refused)
        query = "&".join(f"channel={each}" for each in channels)
        assert set(await subscribed(await rig.sse(query, **who), 2)) == {"a", "c"}


@pytest.mark.parametrize(
    "limits",
    [
        {"sse__max_channels": 2},
        {"limits__subscriptions_per_session": 2},
    ],
)
async def test_the_first_channel_over_the_limit_is_named(limits: dict[str, int]) -> None:
    async with live(**limits) as rig:
        await subscribed(await rig.sse("channel=a&channel=b"), 2)
        response = await rig.request("GET", "/v1/sse?channel=a&channel=b&channel=c&channel=d")
        assert (response.status, response.json["code"]) == (429, "limit_exceeded")
        assert (response.json["channel"], response.json["retry"]) == ("c", False)
        (reason,) = limits
        assert rig.refusals(reason.replace("sse__", "sse.").removeprefix("limits__")) == 1


async def test_no_limit_of_subscriptions_is_no_limit_of_streams() -> None:
    async with live(limits__subscriptions_per_session=0) as rig:
        await subscribed(await rig.sse("channel=a&channel=b&channel=c"), 3)


async def test_what_concerns_the_whole_stream_names_no_channel() -> None:
    async with live(anonymous__grants={}) as rig:
        response = await rig.request("GET", "/v1/sse?channel=a&channel=b")
        assert response.status == 401 and "channel" not in response.json


async def test_a_stream_tells_how_often_it_gives_a_sign_of_life() -> None:
    """It told the pause between pings, which it does not have; clients that watch for silence
    gave up a quiet stream again and again where pings were more frequent than comments.
    """
    async with live(session__ping_s=5, sse__comment_s=33) as rig:
        stream = await rig.sse("channel=a")
        assert (await stream.control("connected"))["ping_s"] == 33
