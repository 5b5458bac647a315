"""Clients that stop reading, or want less than everything, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from config.rules import ChannelRule
from live_rig import BEARER, JSON, MSGPACK, Client, Rig, Stream, live, token, until

RULES = (ChannelRule(match="all.>"), ChannelRule(match=">", slow="conflate"))
BIG = "x" * 60_000
KINDS = ("json", "msgpack", "stream", "stream of two")


@asynccontextmanager
async def conflating(**overrides: Any) -> AsyncIterator[Rig]:
    overrides = {"channels": RULES, "limits__unsent_bytes": 300_000} | overrides
    async with live(**overrides) as rig:
        yield rig


async def listen(rig: Rig, kind: str, channel: str, **more: Any) -> Client | Stream:
    """Open a session on a channel, over a connection that holds little."""
    if kind in (JSON, MSGPACK):
        client = await rig.ws(kind, receive_bytes=4096)
        reply = await client.call("subscribe", channel=channel, **more)
        assert reply["type"] == "subscribed", reply
        return client
    other = "&channel=other.a" if kind == "stream of two" else ""
    query = "".join(f"&{name}={value}" for name, value in more.items())
    stream = await rig.sse(f"channel={channel}{other}{query}", receive_bytes=4096)
    for _ in range(1 + bool(other)):
        await stream.control("subscribed")
    return stream


async def next_event(client: Client | Stream) -> dict[str, Any]:
    if isinstance(client, Stream):
        return await client.event()
    return await client.next("event")


async def fill(rig: Rig, channel: str, sent: int = 0) -> int:
    """Publish until something is unsent; return how many were published."""
    while not rig.node.metrics.unsent_bytes:
        await rig.publish(channel, BIG, name=f"n{sent}")
        sent += 1
        assert sent < 500
    return sent


@pytest.mark.parametrize("kind", KINDS)
async def test_who_stops_reading_gets_the_newest_and_nobody_waits_for_it(kind: str) -> None:
    async with conflating() as rig:
        slow = await listen(rig, kind, "new.a")
        quick = await rig.ws()
        await quick.call("subscribe", channel="new.a")
        sent = await fill(rig, "new.a")
        held_at = rig.node.metrics.unsent_bytes
        for number in range(sent, sent + 100):
            await rig.publish("new.a", BIG, name=f"n{number}")
            # Meanwhile whoever reads gets every event as it comes.
            while (await next_event(quick))["name"] != f"n{number}":
                pass
        sent += 100
        assert rig.node.metrics.unsent_bytes <= held_at, "nothing was added to what waits"
        assert rig.counter("galecast_events_held") == 1
        assert "skipped" not in await quick.call("ping")
        accounted = 0
        while True:
            event = await next_event(slow)
            accounted += 1 + event.get("skipped", 0)
            assert event["name"] == f"n{accounted - 1}"
            assert event["data"] == BIG
            if accounted == sent:
                break
        assert event["skipped"] >= 50
        assert rig.counter("galecast_events_held") == 0
        assert rig.counter("galecast_events_conflated_total") >= 50
        # It is in step again, and resumes behind what it has seen.
        await rig.publish("new.a", "after")
        after = await next_event(slow)
        assert after["data"] == "after" and "skipped" not in after
        assert rig.counter("galecast_slow_closes_total") == 0


@pytest.mark.parametrize("kind", ["stream", "stream of two"])
async def test_the_cursor_of_a_stream_is_where_it_would_go_on(kind: str) -> None:
    async with conflating() as rig:
        stream = await listen(rig, kind, "new.a")
        assert isinstance(stream, Stream)
        sent = await fill(rig, "new.a")
        for number in range(sent, sent + 10):
            await rig.publish("new.a", BIG, name=f"n{number}")
        last = await rig.publish("new.a", "last")
        while (event := await next_event(stream))["data"] != "last":
            pass
        assert event["skipped"] >= 5
        assert last["position"] in stream.last_id
        cursor = stream.last_id
        stream.close()
        await rig.publish("new.a", "missed 1")
        await rig.publish("new.a", "missed 2")
        other = "&channel=other.a" if kind == "stream of two" else ""
        again = await rig.sse(f"channel=new.a{other}", Last_Event_ID=cursor)
        assert [(await again.event())["data"] for _ in range(2)] == ["missed 1", "missed 2"]


async def test_replies_and_other_channels_are_not_conflated() -> None:
    async with conflating(limits__unsent_bytes=1 << 30) as rig:
        client = await listen(rig, JSON, "new.a")
        assert isinstance(client, Client)
        await client.call("subscribe", channel="all.a")
        sent = await fill(rig, "new.a")
        for number in range(20):
            await rig.publish("new.a", BIG, name=f"n{sent + number}")
            await rig.publish("all.a", number)
            await client.send(**client.numbered("ping"))
        pongs, numbers, accounted = 0, [], 0
        while accounted < sent + 20:
            message = await client.message()
            if message["type"] == "pong":
                pongs += 1
            elif message["channel"] == "all.a":
                numbers.append(message["data"])
            else:
                accounted += 1 + message.get("skipped", 0)
        assert numbers == list(range(20))
        while pongs < 20:
            pongs += (await client.message())["type"] == "pong"


async def test_only_channels_that_disconnect_count_towards_the_limit() -> None:
    async with conflating(session__close_timeout_s=60.0) as rig:
        client = await listen(rig, JSON, "new.a")
        assert isinstance(client, Client)
        await client.call("subscribe", channel="all.a")
        sent = await fill(rig, "new.a")
        for number in range(20):
            await rig.publish("new.a", BIG, name=f"n{sent + number}")
        assert rig.sessions
        while rig.sessions:
            await rig.publish("all.a", BIG)
        ended = await client.ended()
        assert ended.code == 4002
        assert rig.refusals("unsent_bytes") == 1
        assert rig.counter("galecast_events_held") == 0
        await until(rig.nobody_left)


@pytest.mark.parametrize("kind", KINDS)
async def test_who_never_reads_is_cut_off(kind: str) -> None:
    async with conflating(session__send_timeout_s=0.3) as rig:
        await listen(rig, kind, "new.a")
        sent = await fill(rig, "new.a")
        while rig.sessions:
            await rig.publish("new.a", BIG, name=f"n{sent}")
        await until(rig.nobody_left)
        assert rig.refusals("send_timeout_s") == 1
        assert rig.refusals("unsent_bytes") == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_reset_comes_behind_what_is_held_and_before_what_is_newer(kind: str) -> None:
    async with conflating() as rig:
        client = await listen(rig, kind, "new.a")
        sent = await fill(rig, "new.a")
        for number in range(sent, sent + 5):
            await rig.publish("new.a", BIG, name=f"n{number}")
        feed = rig.node.hub.feeds["new.a"]
        feed.reset(feed.top)
        for number in range(sent + 5, sent + 10):
            await rig.publish("new.a", BIG, name=f"n{number}")
        told: list[tuple[str, int]] = []
        while told[-1:] != [(f"n{sent + 9}", 4)]:
            if isinstance(client, Stream):
                message = (await client.next(lambda block: block.value("data"))).data
            else:
                message = await client.message()
            told.append((message.get("name", message["type"]), message.get("skipped", 0)))
        place = told.index(("reset", 0))
        assert told[place - 1][0] == f"n{sent + 4}"
        accounted = sum(1 + skipped for _name, skipped in told) - 1
        assert accounted == sent + 10


@pytest.mark.parametrize("encoding", [JSON, MSGPACK])
async def test_unsubscribed_comes_behind_what_is_held(encoding: str) -> None:
    async with conflating() as rig:
        client = await listen(rig, encoding, "new.a")
        assert isinstance(client, Client)
        sent = await fill(rig, "new.a")
        for number in range(sent, sent + 5):
            await rig.publish("new.a", BIG, name=f"n{number}")
        reply = await client.call("unsubscribe", channel="new.a")
        assert reply["type"] == "unsubscribed"
        assert client.passed[-1]["name"] == f"n{sent + 4}"
        assert sum(1 + each.get("skipped", 0) for each in client.passed) == sent + 5
        await rig.publish("new.a", "nobody")
        assert (await client.call("ping"))["type"] == "pong"
        assert len(client.passed) and client.passed[-1]["name"] == f"n{sent + 4}"


async def test_many_channels_are_held_at_once() -> None:
    async with conflating() as rig:
        client = await listen(rig, JSON, "new.a")
        assert isinstance(client, Client)
        names = [f"many.{number}" for number in range(40)]
        for name in names:
            await client.call("subscribe", channel=name)
        sent = await fill(rig, "new.a")
        before = rig.node.metrics.unsent_bytes
        for number in range(3):
            events = [{"channel": name, "data": number} for name in names]
            assert (await rig.request("POST", "/v1/events", events, **BEARER)).status == 200
        assert rig.node.metrics.unsent_bytes == before
        assert rig.counter("galecast_events_held") == len(names)
        found: dict[str, tuple[int, int]] = {}
        while len(found) < len(names):
            event = await client.next("event")
            if event["channel"] != "new.a":
                assert event["channel"] not in found
                found[event["channel"]] = (event["data"], event["skipped"])
        assert found == dict.fromkeys(names, (2, 2))
        assert sent and rig.counter("galecast_events_held") == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_is_gone_is_owed_nothing(kind: str) -> None:
    async with conflating() as rig:
        client = await listen(rig, kind, "new.a")
        sent = await fill(rig, "new.a")
        await rig.publish("new.a", BIG, name=f"n{sent}")
        assert rig.counter("galecast_events_held") == 1
        client.reset()
        await until(rig.nobody_left)
        assert rig.counter("galecast_events_held") == 0
        await rig.publish("new.a", "after")


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_held_leaves_when_the_node_drains(kind: str) -> None:
    async with conflating(session__close_timeout_s=60.0) as rig:
        client = await listen(rig, kind, "new.a")
        sent = await fill(rig, "new.a")
        for number in range(sent, sent + 10):
            await rig.publish("new.a", BIG, name=f"n{number}")
        drained = asyncio.get_running_loop().create_task(rig.app.drain())
        names: list[str] = []
        closing: dict[str, Any] | None = None
        while closing is None:
            if isinstance(client, Stream):
                message = (await client.next(lambda block: block.value("data"))).data
            else:
                message = await client.message()
            if message["type"] == "closing":
                closing = message
            elif message["type"] == "event":
                names.append(message["name"])
        assert closing["code"] == 4001
        assert names[-1] == f"n{sent + 9}"
        client.close()
        await drained


async def test_the_rule_may_change_while_events_are_held() -> None:
    async with conflating() as rig:
        client = await listen(rig, JSON, "new.a")
        sent = await fill(rig, "new.a")
        for number in range(sent, sent + 10):
            await rig.publish("new.a", BIG, name=f"n{number}")
        rig.node.rules.replace([ChannelRule(match=">")])
        await rig.publish("new.a", "every", name="a")
        await rig.publish("new.a", "single", name="b")
        names: list[str] = []
        accounted = 0
        while names[-1:] != ["b"]:
            event = await next_event(client)
            accounted += 1 + event.get("skipped", 0)
            names.append(event["name"])
        assert accounted == sent + 12
        assert names[-3:] == [f"n{sent + 9}", "a", "b"]


# ---- rates


@pytest.mark.parametrize("kind", KINDS)
async def test_at_most_so_many_events_a_second(kind: str) -> None:
    async with live() as rig:
        client = await listen(rig, kind, "all.a", max_rate_hz=20)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(60):
            await rig.publish("all.a", number)
        accounted = count = 0
        while accounted < 60:
            event = await next_event(client)
            count += 1
            accounted += 1 + event.get("skipped", 0)
            assert event["data"] == accounted - 1
        # The first is sent at once.
        assert count <= 1 + (loop.time() - began) * 20
        assert rig.counter("galecast_events_conflated_total") == 60 - count


async def test_each_channel_of_a_stream_has_its_own_rate() -> None:
    async with live() as rig:
        stream = await rig.sse("channel=a&channel=b&max_rate_hz=,0.01")
        for _ in range(2):
            reply = await stream.control("subscribed")
            assert reply.get("max_rate_hz") == {"a": None, "b": 0.01}[reply["channel"]]
        for number in range(3):
            await rig.publish("b", number)
        for number in range(3):
            await rig.publish("a", number)
        found = [await stream.event() for _ in range(4)]
        assert [(each["channel"], each["data"]) for each in found] == [
            ("b", 0),
            ("a", 0),
            ("a", 1),
            ("a", 2),
        ]


@pytest.mark.parametrize("rate", ["0", "1001", "x", "-1", "1e1", "nan", "1,2,3", "٣"])
async def test_a_stream_with_a_bad_rate_is_refused(rate: str) -> None:
    async with live() as rig:
        response = await rig.request("GET", f"/v1/sse?channel=a&channel=b&max_rate_hz={rate}")
        assert (response.status, response.json["code"]) == (400, "bad_request")
        assert "max_rate_hz" in response.json["detail"]
        assert rig.nobody_left()


async def test_nan_is_no_rate() -> None:
    """MessagePack has it, and it is neither below a bound nor above one."""
    async with live() as rig:
        client = await rig.ws(MSGPACK)
        reply = await client.call("subscribe", channel="a", max_rate_hz=float("nan"))
        assert (reply["type"], reply["code"]) == ("error", "bad_request")


async def test_a_service_gives_users_a_rate() -> None:
    async with live() as rig:
        client = await rig.ws(token=token("u1"))
        path = "/v1/users/u1/subscriptions/all.a"
        refused = await rig.request("PUT", path, {"max_rate_hz": 0}, **BEARER)
        assert (refused.status, refused.json["code"]) == (400, "bad_request")
        response = await rig.request("PUT", path, {"max_rate_hz": 0.01}, **BEARER)
        assert response.json == {"sessions": 1, "refused": 0}
        assert (await client.next("subscribed"))["max_rate_hz"] == 0.01
        for number in range(5):
            await rig.publish("all.a", number)
        removed = await rig.request("DELETE", path, **BEARER)
        assert removed.json == {"sessions": 1}
        found = await client.events(2)
        assert [(each["data"], each.get("skipped")) for each in found] == [(0, None), (4, 3)]
        assert (await client.message())["type"] == "unsubscribed"
