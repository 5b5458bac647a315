"""Server-Sent Events over real sockets: what a browser's EventSource relies on."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from live_rig import BEARER, Rig, Stream, live, token, until
from pubsub.position import Position
from server.closing import Closing


async def ready(rig: Rig, query: str, **headers: Any) -> Stream:
    """Open a stream and read until all its channels are subscribed to."""
    stream = await rig.sse(query, **headers)
    for _ in range(query.count("channel=")):
        await stream.control("subscribed")
    return stream


# ---- the stream


async def test_the_head() -> None:
    async with live() as rig:
        stream = await rig.sse("channel=a", X_Request_Id="abc-1")
        headers = stream.head.headers
        assert headers["content-type"] == "text/event-stream"
        assert "no-cache" in headers["cache-control"]
        assert headers["x-accel-buffering"] == "no"
        assert headers["connection"] == "close"
        assert headers["x-request-id"] == "abc-1"
        assert headers["x-content-type-options"] == "nosniff"
        assert "content-length" not in headers and "transfer-encoding" not in headers
        assert "access-control-allow-origin" not in headers


async def test_the_first_blocks() -> None:
    async with live(sse__retry_ms=1234) as rig:
        stream = await rig.sse("channel=a.b")
        first = await stream.block()
        assert first.value("data") is None and first.value("event") is None
        assert first.value("retry") == "1234"
        position = first.id
        assert position and re.fullmatch(r"[0-9a-f]{16}-0-[0-9a-f]{16}", position)
        connected = await stream.block()
        assert connected.control and connected.data["type"] == "connected"
        assert "ref" not in connected.data and connected.id is None
        subscribed = await stream.block()
        assert subscribed.control
        assert subscribed.data == {
            "type": "subscribed",
            "channel": "a.b",
            "position": position,
        }
        assert subscribed.id == position
        ack = await rig.publish("a.b", {"x": 1}, name="n", id="e1")
        event = await stream.block()
        assert [name for name, _value in event.fields] == ["id", "data"]
        assert event.id == ack["position"]
        assert event.data | {"time": 0} == {
            "type": "event",
            "channel": "a.b",
            "position": ack["position"],
            "id": "e1",
            "name": "n",
            "data": {"x": 1},
            "tags": {},
            "time": 0,
        }
        assert rig.counter('galecast_sessions{encoding="json",transport="sse"}') == 1
        assert rig.counter('galecast_connections{transport="sse"}') == 1
        stream.close()
        await until(rig.nobody_left)
        assert rig.counter('galecast_sessions{encoding="json",transport="sse"}') == 0


async def test_http_1_0_is_served() -> None:
    """Some proxies speak it; a stream that ends with its connection is what it knows best."""
    async with live() as rig:
        stream = await ready(rig, "channel=a", version="1.0")
        await rig.publish("a", 1)
        assert (await stream.event())["data"] == 1


async def test_line_breaks_in_data_cannot_break_a_line() -> None:
    async with live() as rig:
        stream = await ready(rig, "channel=a")
        body = b'{"channel":"a","data":{"x":\r\n[1,\n2],"y":"\\r\\n\\nid: 7"}\r}'
        response = await rig.request("POST", "/v1/events", body, **BEARER)
        assert response.status == 200
        event = await stream.event()
        assert event["data"] == {"x": [1, 2], "y": "\r\n\nid: 7"}
        assert stream.last_id == event["position"]


async def test_control_blocks(ends_in: Callable[[float, float], None]) -> None:
    async with live(session__expiring_s=60.0, token__leeway_s=0.0) as rig:
        expires_at = time.time() + 1_000
        bearer = f"Bearer {token('u1', {'a': ['subscribe']}, exp=expires_at)}"
        stream = await ready(rig, "channel=a", Authorization=bearer)
        feed = rig.node.hub.feeds["a"]
        top = feed.top
        await rig.node.broker.contradict("a", type(top)(top.epoch, 9, top.check))
        block = await stream.next(lambda each: each.control)
        assert block.data["type"] == "reset"
        assert block.id == block.data["position"] != str(top)
        ends_in(expires_at, 0.8)
        rig.sessions[0]._watch_expiry()
        assert (await stream.control("expiring"))["in_s"] == 1
        closing = await stream.next(lambda each: each.control and each.data["type"] == "closing")
        assert closing.data == {"type": "closing", "code": 4005, "reason": "token_expired"}
        assert closing.value("retry") is None
        assert await stream.rest() == b""
        await until(rig.nobody_left)


async def test_an_unsubscription_is_told() -> None:
    async with live() as rig:
        stream = await ready(rig, "channel=a&channel=b")
        (session,) = rig.sessions
        session.renew(rig.node.auth.token(token("u1", {"b": ["subscribe"]})))
        gone = await stream.control("unsubscribed")
        assert (gone["channel"], gone["code"]) == ("a", "forbidden")
        await rig.publish("a", 1)
        await rig.publish("b", 2)
        assert (await stream.event())["data"] == 2
        session.principal = rig.node.auth.anonymous()


async def test_comments_keep_it_alive() -> None:
    async with live(sse__comment_s=0.05) as rig:
        stream = await ready(rig, "channel=a")
        for _ in range(3):
            block = await stream.block()
            assert block.comments == [""] and not block.fields


async def test_draining_says_when_to_come_back() -> None:
    async with live(drain__retry_spread_ms=5000) as rig:
        stream = await ready(rig, "channel=a")
        await rig.node.lifecycle.dismiss(rig.sessions)
        block = await stream.next(lambda each: each.control)
        assert block.data["code"] == 4001
        assert block.value("retry") == str(block.data["retry_in_ms"])
        assert await stream.rest() == b""
        await until(rig.nobody_left)


async def test_a_slow_reader_comes_back_and_misses_nothing() -> None:
    async with live(limits__unsent_bytes=200_000, session__close_timeout_s=60.0) as rig:
        stream = await rig.sse("channel=slow.a", receive_bytes=4096)
        await stream.control("subscribed")
        sent = 0
        while rig.sessions:
            await rig.publish("slow.a", "x" * 60_000, tags={"n": str(sent)})
            sent += 1
            assert sent < 500
        seen = []
        while True:
            block = await stream.block()
            if block.control:
                break
            seen.append(int(block.data["tags"]["n"]))
        assert block.data["code"] == 4002
        assert await stream.rest() == b""
        assert seen == list(range(len(seen))) and len(seen) < sent
        again = await rig.sse("channel=slow.a", Last_Event_ID=stream.last_id)
        assert (await again.control("subscribed"))["recovered"] is True
        missed = [int((await again.event())["tags"]["n"]) for _ in range(sent - len(seen))]
        assert seen + missed == list(range(sent))


async def test_what_a_client_sends_on_it_is_dropped() -> None:
    async with live() as rig:
        stream = await ready(rig, "channel=a")
        await stream.write(b"GET /v1/sse?channel=b HTTP/1.1\r\n\r\n" * 100)
        await rig.publish("a", 1)
        assert (await stream.event())["data"] == 1


# ---- resuming


async def test_it_resumes_with_nothing_lost_or_repeated() -> None:
    async with live() as rig:
        stream = await ready(rig, "channel=a")
        seen = []
        for number in range(5):
            await rig.publish("a", number * 2)
            seen.append((await stream.event())["data"])
            stream.close()
            await rig.publish("a", number * 2 + 1)
            stream = await rig.sse("channel=a", Last_Event_ID=stream.last_id)
            assert (await stream.control("subscribed"))["recovered"] is True
            seen.append((await stream.event())["data"])
        assert seen == list(range(10))


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
async def test_it_resumes_from_wherever_it_broke(blocks: int) -> None:
    """After the first block, the `connected`, either `subscribed`: the id is good every time."""
    async with live() as rig:
        stream = await rig.sse("channel=a&channel=b")
        for _ in range(blocks):
            await stream.block()
        stream.close()
        await rig.publish("a", 1)
        await rig.publish("b", 2)
        again = await rig.sse("channel=a&channel=b", Last_Event_ID=stream.last_id)
        events = [await again.event() for _ in range(2)]
        assert sorted(each["data"] for each in events) == [1, 2]


async def test_a_stream_of_many_channels_resumes() -> None:
    channels = [f"m.{number}" for number in range(5)]
    query = "&".join(f"channel={each}" for each in channels)
    async with live() as rig:
        stream = await ready(rig, query)
        assert stream.last_id.count(",") == 4
        seen: list[int] = []
        number = 0
        for _ in range(8):
            for _ in range(3):
                await rig.publish(channels[number % 5], number)
                number += 1
            for _ in range(2):
                seen.append((await stream.event())["data"])
            stream.close()  # one that was sent, or is on its way, is not read
            stream = await rig.sse(query, Last_Event_ID=stream.last_id)
            block = await stream.next(lambda each: each.value("data"))
            while block.control:
                assert block.data.get("recovered", True) is True
                block = await stream.next(lambda each: each.value("data"))
            seen.append(block.data["data"])
        assert sorted(seen) == list(range(number))


async def test_ids_of_a_stream_of_many_channels() -> None:
    async with live() as rig:
        stream = await ready(rig, "channel=a&channel=b")
        ack_b = await rig.publish("b", 1)
        block = await stream.next(lambda each: not each.control)
        before, after = (block.id or "").split(",")
        assert after == ack_b["position"] and "-0-" in before
        ack_a = await rig.publish("a", 2)
        block = await stream.next(lambda each: not each.control)
        assert block.id == f"{ack_a['position']},{ack_b['position']}"
        top = rig.node.hub.feeds["a"].top
        await rig.node.broker.contradict("a", type(top)(top.epoch, 99, top.check))
        block = await stream.next(lambda each: each.control)
        assert block.id == f"{block.data['position']},{ack_b['position']}"


async def test_since_and_rewind() -> None:
    async with live() as rig:
        acks = [await rig.publish("a", number) for number in range(4)]
        stream = await rig.sse(f"channel=a&since={acks[1]['position']}")
        assert (await stream.control("subscribed"))["recovered"] is True
        assert [(await stream.event())["data"] for _ in range(2)] == [2, 3]
        stream = await rig.sse("channel=a&rewind=3")
        first = await stream.block()
        assert first.id == ""  # nothing to resume from: it would rewind again
        assert [(await stream.event())["data"] for _ in range(3)] == [1, 2, 3]
        # What the client saw last counts for more than where it once began.
        again = await rig.sse(
            f"channel=a&since={acks[0]['position']}&rewind=3", Last_Event_ID=stream.last_id
        )
        assert (await again.control("subscribed"))["recovered"] is True
        await rig.publish("a", 4)
        assert (await again.event())["data"] == 4
        broken = "0" * 16 + "-1-" + "0" * 16
        stream = await rig.sse(f"channel=a&since={broken}&rewind=2")
        assert (await stream.control("subscribed"))["recovered"] is False
        assert [(await stream.event())["data"] for _ in range(2)] == [3, 4]


async def test_a_cursor_with_a_gap_begins_there_live() -> None:
    async with live() as rig:
        ack = await rig.publish("a", 1)
        await rig.publish("a", 2)
        await rig.publish("b", 1)
        stream = await rig.sse(f"channel=a&channel=b&since={ack['position']},")
        assert (await stream.control("subscribed"))["recovered"] is True
        assert (await stream.event())["data"] == 2
        assert "recovered" not in await stream.control("subscribed")


# ---- what is refused


async def refused(rig: Rig, query: str, **headers: str) -> tuple[int, str]:
    response = await rig.request("GET", f"/v1/sse{query}", **headers)
    assert response.headers["content-type"] == "application/problem+json"
    assert rig.nobody_left()
    return response.status, response.json["code"]


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?channel=",
        "?channel=a&channel=a",
        "?channel=a.*",
        "?channel=%3E",
        "?channel=a%0D%0AX-Evil:1",
        "?channel=%FF",
        "?channel=$sys",
        "?channel=a&rewind=0",
        "?channel=a&rewind=-1",
        "?channel=a&rewind=100001",
        "?channel=a&rewind=x",
        "?channel=a&rewind=1&rewind=2",
        "?channel=a&rewind=1,1",
        "?channel=a&rewind=01",
        "?channel=a&presence=",
        "?channel=a&presence=a.b",
        "?channel=a&presence=%FF",
        "?channel=a&since=junk",
        "?channel=a&since=" + "0" * 16 + "-1-" + "0" * 16 + ",",
        "?channel=a&channel=b&since=" + "0" * 16 + "-1-" + "0" * 16,
        "?channel=a&since=x&since=y",
    ],
)
async def test_bad_requests(query: str) -> None:
    async with live() as rig:
        assert await refused(rig, query) == (400, "bad_request")
        assert not rig.node.hub.feeds


async def test_a_bad_last_event_id() -> None:
    async with live() as rig:
        for junk in ("junk", ",", "-1", "é"):
            assert await refused(rig, "?channel=a", Last_Event_ID=junk) == (400, "bad_request")


async def test_too_many_channels() -> None:
    async with live(sse__max_channels=3) as rig:
        await ready(rig, "channel=a&channel=b&channel=c")
        query = "/v1/sse?channel=a&channel=b&channel=c&channel=d"
        response = await rig.request("GET", query)
        assert response.status == 429 and response.json["code"] == "limit_exceeded"
        assert rig.refusals("sse.max_channels") == 1


async def test_grants() -> None:
    async with live() as rig:
        bearer = {"Authorization": f"Bearer {token('u1', {'a': ['subscribe']})}"}
        assert await refused(rig, "?channel=b", **bearer) == (403, "forbidden")
        assert await refused(rig, "?channel=a&channel=b", **bearer) == (403, "forbidden")
        assert await refused(rig, "?channel=a&rewind=1", **bearer) == (403, "forbidden")
        await ready(rig, "channel=a", **bearer)


async def test_credentials() -> None:
    async with live(anonymous__grants={}) as rig:
        assert await refused(rig, "?channel=a") == (401, "unauthorized")
        assert await refused(rig, "?channel=a", Authorization="Bearer x.y.z") == (
            401,
            "unauthorized",
        )
        expired = f"Bearer {token(ttl_s=-60)}"
        assert await refused(rig, "?channel=a", Authorization=expired) == (401, "token_expired")
        await ready(rig, "channel=a", **BEARER)


async def test_other_methods() -> None:
    async with live() as rig:
        for method in ("HEAD", "POST", "PUT", "DELETE"):
            response = await rig.request(method, "/v1/sse?channel=a")
            assert response.status == 405, method
            assert response.headers["allow"] == "GET, OPTIONS"
        assert rig.nobody_left() and not rig.node.hub.feeds


async def test_pages_of_other_origins() -> None:
    page = "https://app.example"
    async with live(origins=(page,)) as rig:
        stream = await ready(rig, "channel=a", Origin=page)
        assert stream.head.headers["access-control-allow-origin"] == page
        assert "origin" in stream.head.headers["vary"].lower()
        response = await rig.request("GET", "/v1/sse?channel=a", Origin="https://evil.com")
        assert response.status == 403
        assert "access-control-allow-origin" not in response.headers
        assert rig.refusals("origins") == 1
        response = await rig.request("GET", "/v1/sse", Origin=page)
        assert response.status == 400
        assert response.headers["access-control-allow-origin"] == page
        preflight = await rig.request(
            "OPTIONS", "/v1/sse", Origin=page, Access_Control_Request_Method="GET"
        )
        assert preflight.status == 204


async def test_a_broker_that_is_full() -> None:
    async with live(broker__max_channels=1) as rig:
        await ready(rig, "channel=a")
        stream = await rig.sse("channel=b")
        assert (await stream.control("closing"))["code"] == 4006
        assert await stream.rest() == b""
        await until(lambda: len(rig.sessions) == 1 and rig.app.live.connections() == 1)


# ---- tickets


async def ticket(rig: Rig, **headers: str) -> str:
    response = await rig.request("POST", "/v1/tickets", b"", **headers)
    assert response.status == 200, response.body
    found: str = response.json["ticket"]
    return found


def bearer(sub: str = "u1", **claims: Any) -> dict[str, Any]:
    return {"Authorization": f"Bearer {token(sub, **claims)}"}


async def test_a_ticket_opens_a_stream_once() -> None:
    async with live(anonymous__grants={}) as rig:
        text = await ticket(rig, **bearer("u7"))
        stream = await ready(rig, f"channel=a&ticket={text}")
        assert rig.sessions[0].principal.user == "u7"
        response = await rig.request("GET", f"/v1/sse?channel=a&ticket={text}")
        assert response.status == 401 and response.json["code"] == "unauthorized"
        # EventSource comes back by itself, with the id that the stream gave it.
        for number in range(3):
            await rig.publish("a", number)
            assert (await stream.event())["data"] == number
            stream.close()
            await rig.publish("a", f"missed {number}")
            stream = await rig.sse(f"channel=a&ticket={text}", Last_Event_ID=stream.last_id)
            assert (await stream.control("subscribed"))["recovered"] is True
            assert (await stream.event())["data"] == f"missed {number}"


async def test_a_ticket_for_many_channels_resumes_from_its_first_block() -> None:
    async with live() as rig:
        text = await ticket(rig, **bearer())
        query = f"channel=a&channel=b&ticket={text}"
        stream = await rig.sse(query)
        await stream.block()
        stream.close()
        await rig.publish("b", 1)
        stream = await rig.sse(query, Last_Event_ID=stream.last_id)
        assert (await stream.event())["data"] == 1


async def test_a_ticket_is_told_to_stay_away_by_204() -> None:
    async with live(token__leeway_s=0.0) as rig:
        text = await ticket(rig, **bearer("u1", iat=int(time.time()) - 5))
        stream = await ready(rig, f"channel=a&ticket={text}")
        path = f"/v1/sse?channel=a&ticket={text}"
        for wrong in ("junk", "x" * 22 + stream.last_id[22:], stream.last_id[1:]):
            response = await rig.request("GET", path, Last_Event_ID=wrong)
            assert response.status == 204 and response.body == b""
        await rig.node.nodes.end_user("u1")
        assert (await stream.control("closing"))["code"] == 4502
        response = await rig.request("GET", path, Last_Event_ID=stream.last_id)
        assert response.status == 204
        await until(rig.nobody_left)


async def test_a_stream_that_was_ended_does_not_come_back_with_its_ticket() -> None:
    """An EventSource reconnects by itself, so ending its session had no effect."""
    async with live() as rig:
        tickets = [await ticket(rig, **bearer()) for _ in range(2)]
        paths = [f"channel=a&ticket={each}" for each in tickets]
        ended, other = [await ready(rig, path) for path in paths]
        session = next(each for each in rig.sessions if each.principal.user == "u1")
        session.end(Closing.ENDED)
        assert (await ended.control("closing"))["code"] == 4502
        response = await rig.request("GET", f"/v1/sse?{paths[0]}", Last_Event_ID=ended.last_id)
        assert response.status == 204
        # The user's other stream is not meant, nor one that may come back.
        rig.sessions[0].end(Closing.TOO_SLOW)
        await other.control("closing")
        again = await rig.sse(paths[1], Last_Event_ID=other.last_id)
        assert (await again.control("subscribed"))["recovered"] is True


async def test_a_ticket_ends_with_its_token(ends_in: Callable[[float, float], None]) -> None:
    async with live(token__leeway_s=0.0) as rig:
        expires_at = time.time() + 1_000
        text = await ticket(rig, **bearer("u1", exp=expires_at))
        ends_in(expires_at, 0.6)
        stream = await ready(rig, f"channel=a&ticket={text}")
        assert (await stream.control("closing"))["code"] == 4005
        rig.node.auth.tickets._now = lambda: expires_at
        path = f"/v1/sse?channel=a&ticket={text}"
        response = await rig.request("GET", path, Last_Event_ID=stream.last_id)
        assert response.status == 204
        response = await rig.request("GET", path)
        assert response.status == 401 and response.json["code"] == "token_expired"


async def test_a_ticket_that_is_used_too_late() -> None:
    async with live(sse__ticket_ttl_s=0.05) as rig:
        text = await ticket(rig, **bearer())
        late = time.time() + 0.06
        await until(lambda: time.time() > late)
        response = await rig.request("GET", f"/v1/sse?channel=a&ticket={text}")
        assert response.status == 401


async def test_a_header_counts_for_more_than_a_ticket() -> None:
    async with live() as rig:
        await ready(rig, "channel=a&ticket=junk", **bearer("u3"))
        assert rig.sessions[0].principal.user == "u3"
        response = await rig.request("GET", "/v1/sse?channel=a&ticket=x&ticket=y")
        assert response.status == 400


async def test_a_stream_that_still_begins_ends_with_its_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream opens when its feeds are there; a reload passed by those that waited for them.

    So a key that was removed meanwhile went on, until its stream ended by itself.
    """
    async with live() as rig:
        subscribe, go_on = rig.node.broker.subscribe, asyncio.Event()

        async def slowly(channel: str) -> Position:
            await go_on.wait()
            return await subscribe(channel)

        monkeypatch.setattr(rig.node.broker, "subscribe", slowly)
        stream = await rig.sse("channel=a", **BEARER)
        rig.app.reload(msgspec.structs.replace(rig.app.settings, keys=()))
        go_on.set()
        assert b"connected" not in await stream.rest()
        await until(rig.nobody_left)


async def test_a_ticket_whose_key_goes_while_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """To use a ticket first takes a while; what the key was is not what it is after that."""
    async with live() as rig:
        text = await ticket(rig, **BEARER)
        take = rig.node.control.take

        async def slowly(name: str, ttl_s: float) -> bool:
            rig.app.reload(msgspec.structs.replace(rig.app.settings, keys=()))
            return await take(name, ttl_s)

        monkeypatch.setattr(rig.node.control, "take", slowly)
        response = await rig.request("GET", f"/v1/sse?channel=a&ticket={text}")
        assert (response.status, response.json["detail"]) == (401, "ticket: no longer valid")


async def test_a_ticket_for_nobody() -> None:
    async with live() as rig:
        text = await ticket(rig)
        await ready(rig, f"channel=a&ticket={text}")
        assert rig.sessions[0].principal.kind == "anonymous"
        rig.sessions[0].end(Closing.ENDED)
        await until(lambda: not rig.sessions)
