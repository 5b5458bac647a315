"""Publishing one event or many over HTTP: what is taken, what is answered, and what is refused."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from config.limits import LimitSettings
from config.storage import BrokerSettings
from nodes import KEY, Answer, Served, api_key, make_token, serving
from pubsub.errors import BrokerUnavailable, PubSubError
from pubsub.event import Draft, Event, Published

URL = "/v1/events"


async def publish(served: Served, body: Any, **more: Any) -> Answer:
    return await served.ask("POST", URL, body, **more)


async def kept(served: Served, channel: str = "a") -> tuple[Event, ...]:
    history = await served.node.broker.history(channel, limit=1_000)
    return () if history is None else history.events


def code(answer: Answer) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    return answer.status, answer.json["code"]


async def test_one_event() -> None:
    async with serving() as served:
        event = {
            "channel": "a",
            "name": "n",
            "data": {"x": [1, "\u20ac"]},
            "tags": {"k": "v"},
            "id": "one",
            "exclude": "session-1",
        }
        answer = await publish(served, event)
        (stored,) = await kept(served)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.json == {
            "channel": "a",
            "position": str(stored.position),
            "id": "one",
            "duplicate": False,
        }
        assert (stored.name, stored.tags, stored.exclude) == ("n", {"k": "v"}, "session-1")
        assert (stored.user, json.loads(stored.data)) == (None, event["data"])
        again = await publish(served, event | {"data": 2})
        assert again.json == answer.json | {"duplicate": True}
        assert len(await kept(served)) == 1


async def test_the_data_stays_the_publisher_s_bytes() -> None:
    async with serving() as served:
        await publish(served, b'{"channel":"a","data":\r\n{"b" :\n1.0, "a":1e2}\n}')
        (stored,) = await kept(served)
        assert stored.data == b'{"b" : 1.0, "a":1e2}'


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "application/json",
        "application/json; charset=utf-8",
        "application/x-www-form-urlencoded",
    ],
)
async def test_the_types_that_are_json(kind: str | None) -> None:
    async with serving() as served:
        # As a form this would have more arguments than Tornado takes.
        body = json.dumps({"channel": "a", "data": "&" * 20_000}).encode()
        fields = "" if kind is None else f"Content-Type: {kind}\r\n"
        head = (
            f"POST {URL} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n{fields}"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        assert (await served.raw(head.encode() + body)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "fields",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/xml"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
async def test_the_types_that_are_not_read(fields: dict[str, str]) -> None:
    async with serving() as served:
        answer = await publish(served, {"channel": "a", "data": 1}, headers=fields)
        assert code(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"channel": "a"}, (400, "bad_request")),
        ({"channel": "a.*", "data": 1}, (400, "bad_request")),
        ({"channel": "a.>", "data": 1}, (400, "bad_request")),
        ({"channel": "a\x00", "data": 1}, (400, "bad_request")),
        ({"channel": "a\n", "data": 1}, (400, "bad_request")),
        ({"channel": "$sys", "data": 1}, (400, "bad_request")),
        ({"channel": "a..b", "data": 1}, (400, "bad_request")),
        ({"channel": "", "data": 1}, (400, "bad_request")),
        ({"channel": "\u0430", "data": 1}, (400, "bad_request")),
        ({"channel": "x" * 256, "data": 1}, (400, "bad_request")),
        ({"channel": "a", "data": 1, "name": "with space"}, (400, "bad_request")),
        ({"channel": "a", "data": 1, "id": ""}, (400, "bad_request")),
        ({"channel": "a", "data": 1, "id": "x" * 65}, (400, "bad_request")),
        ({"channel": "a", "data": 1, "id": "\u00e9"}, (400, "bad_request")),
        ({"channel": "a", "data": 1, "exclude": "x" * 65}, (400, "bad_request")),
        ({"channel": "a", "data": 2**64}, (422, "invalid_data")),
        ({"channel": "a", "data": 1, "tags": {"k": "v" * 300}}, (422, "invalid_data")),
        (
            {"channel": "a", "data": 1, "tags": {str(i): "" for i in range(33)}},
            (422, "invalid_data"),
        ),
        ({"channel": "a", "data": "x" * 70_000}, (413, "too_large")),
    ],
)
async def test_an_event_that_is_refused(event: Any, expected: tuple[int, str]) -> None:
    async with serving() as served:
        assert code(await publish(served, event)) == expected
        assert served.node.metrics.events_in == 0


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"1e999", "invalid_data"),
        (b"9" * 5_000, "invalid_data"),
        (b'"\xff"', "invalid_data"),
        (b'"\\ud800"', "invalid_data"),
        (b"[" * 65 + b"]" * 65, "invalid_data"),
        (b"[" * 30_000 + b"]" * 30_000, "bad_request"),
        # No JSON at all, so no event with bad data.
        (b"NaN", "bad_request"),
        (b"Infinity", "bad_request"),
    ],
)
async def test_data_that_a_browser_could_not_read(data: bytes, expected: str) -> None:
    async with serving() as served:
        answer = await publish(served, b'{"channel":"a","data":' + data + b"}")
        assert answer.json["code"] == expected
        assert await kept(served) == ()


async def test_a_user_leaves_out_only_sessions_of_its_own() -> None:
    """Else it could say something behind the back of whom it names."""
    async with serving() as served:
        event = {"channel": "a", "data": 1, "exclude": "of-somebody-else"}
        assert code(await publish(served, event, bearer=make_token())) == (403, "forbidden")
        assert await kept(served) == ()


async def test_data_at_its_limits() -> None:
    async with serving(limits=LimitSettings(data_bytes=100, depth=3)) as served:
        assert (await publish(served, {"channel": "a", "data": "x" * 98})).status == 200
        assert code(await publish(served, {"channel": "a", "data": "x" * 99}))[0] == 413
        assert (await publish(served, {"channel": "a", "data": [[[]]]})).status == 200
        assert code(await publish(served, {"channel": "a", "data": [[[[]]]]}))[0] == 422


async def test_who_may_publish() -> None:
    narrow = "narrow.0123456789abcdef"
    keys = (api_key(KEY), api_key(narrow, publish=("a.>",), channels=(">",)))
    async with serving(keys=keys) as served:

        async def attempt(channel: str, bearer: str | None) -> int:
            event = {"channel": channel, "data": 1}
            return (await publish(served, event, bearer=bearer)).status

        assert await attempt("a.b", narrow) == 200
        assert await attempt("b", narrow) == 403
        assert await attempt("closed.a", KEY) == 200
        user = make_token("u7", {"a.>": ["publish"], "closed.>": ["publish"]})
        assert await attempt("a.b", user) == 200
        assert await attempt("b", user) == 403
        assert await attempt("closed.a", user) == 403  # the rule takes none from clients
        assert await attempt("a.b", None) == 401
        assert (await kept(served, "a.b"))[-1].user == "u7"


async def test_idempotency_key() -> None:
    async with serving() as served:
        event = {"channel": "a", "data": 1}
        fields = {"Idempotency-Key": "k1"}
        first = await publish(served, event, headers=fields)
        again = await publish(served, event, headers=fields)
        assert first.json["id"] == "k1"
        assert (first.json["duplicate"], again.json["duplicate"]) == (False, True)
        both = await publish(served, event | {"id": "x"}, headers=fields)
        assert code(both) == (400, "bad_request")
        many = await publish(served, [event, event], headers=fields)
        assert [each["id"] for each in many.json["results"]] == ["k1:0", "k1:1"]
        assert code(await publish(served, [event, event | {"id": "x"}], headers=fields))[0] == 400
        longest = {"Idempotency-Key": "x" * 50}
        assert (await publish(served, [event] * 12, headers=longest)).status == 200
        too_long = {"Idempotency-Key": "x" * 51}
        assert code(await publish(served, event, headers=too_long)) == (400, "bad_request")


async def test_many_events() -> None:
    async with serving() as served:
        events = [{"channel": "ab"[i % 2], "data": i, "id": f"e{i}"} for i in range(700)]
        answer = await publish(served, b" \n" + json.dumps(events).encode())
        assert answer.status == 200
        results = answer.json["results"]
        assert [each["id"] for each in results] == [each["id"] for each in events]
        assert [json.loads(each.data) for each in await kept(served, "b")] == list(range(1, 700, 2))
        again = (await publish(served, events[:3])).json["results"]
        assert again == [each | {"duplicate": True} for each in results[:3]]
        assert (await publish(served, [])).json == {"results": []}


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"channel": "a.*", "data": 1}, (400, "bad_request")),
        ({"channel": "$x", "data": 1}, (400, "bad_request")),
        ({"channel": "a", "data": "x" * 70_000}, (413, "too_large")),
        ({"channel": "a", "data": 1, "tags": {"k": "v" * 300}}, (422, "invalid_data")),
        ({"channel": "forbidden", "data": 1}, (403, "forbidden")),
        ({"channel": 7, "data": 1}, (400, "bad_request")),
    ],
)
async def test_one_wrong_event_refuses_the_whole_array(
    wrong: Any, expected: tuple[int, str]
) -> None:
    async with serving() as served:
        token = make_token(grants={"a": ["publish"]})
        events = [{"channel": "a", "data": 1}] * 300 + [wrong]
        answer = await publish(served, events, bearer=token)
        assert code(answer) == expected
        assert "300" in answer.json["detail"]
        assert await kept(served) == ()


async def test_an_array_at_its_limit_and_beyond() -> None:
    async with serving(limits=LimitSettings(batch_events=3)) as served:
        event = {"channel": "a", "data": 1}
        assert (await publish(served, [event] * 3)).status == 200
        answer = await publish(served, [event] * 4)
        assert code(answer) == (413, "too_large")
        assert len(await kept(served)) == 3


@pytest.mark.usefixtures("rates_stand_still")
async def test_the_rate_of_events() -> None:
    async with serving(limits=LimitSettings(key_publishes_per_s=5)) as served:
        event = {"channel": "a", "data": 1}
        assert (await publish(served, [event] * 4)).status == 200
        answer = await publish(served, [event] * 4)
        assert code(answer) == (429, "rate_limited")
        assert int(answer.headers["Retry-After"]) >= 1
        assert len(await kept(served)) == 4
        # What is not valid costs nothing.
        assert code(await publish(served, {"channel": "*", "data": 1}))[0] == 400
        assert (await publish(served, event)).status == 200


async def test_channels_are_bounded() -> None:
    async with serving(broker=BrokerSettings(max_channels=1)) as served:
        events = [{"channel": name, "data": 1} for name in "ab"]
        answer = await publish(served, events)
        first, second = answer.json["results"]
        assert first["channel"] == "a"
        assert second["error"]["code"] == "limit_exceeded"
        assert second["error"]["retry"] is False
        assert code(await publish(served, events[1])) == (429, "limit_exceeded")


async def test_a_broker_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as served:

        async def away(drafts: Sequence[Draft]) -> list[Published | PubSubError]:
            raise BrokerUnavailable("gone")

        monkeypatch.setattr(served.node.broker, "publish", away)
        event = {"channel": "a", "data": 1}
        answer = await publish(served, event)
        assert code(answer) == (503, "unavailable")
        assert answer.json["retry"] is True
        assert 1 <= int(answer.headers["Retry-After"]) <= 3
        results = (await publish(served, [event, event])).json["results"]
        assert [each["error"]["code"] for each in results] == ["unavailable"] * 2


CLOUD = {
    "specversion": "1.0",
    "id": "1",
    "source": "/s",
    "type": "com.example.x",
    "subject": "a",
    "data": {"n": 1},
}
STRUCTURED = {"Content-Type": "application/cloudevents+json; charset=utf-8"}
BATCH = {"Content-Type": "application/cloudevents-batch+json"}


async def test_cloudevents() -> None:
    async with serving() as served:
        one = await publish(served, CLOUD, headers=STRUCTURED)
        assert one.json["id"].startswith("ce-")
        (stored,) = await kept(served)
        assert (stored.name, stored.tags) == ("com.example.x", {"ce-id": "1", "ce-source": "/s"})
        many = await publish(served, [CLOUD, CLOUD | {"id": "2"}], headers=BATCH)
        assert [each["duplicate"] for each in many.json["results"]] == [True, False]
        fields = {f"ce-{name}": str(CLOUD[name]) for name in CLOUD if name != "data"}
        binary = await publish(served, {"n": 1}, headers=fields)
        assert binary.json == one.json | {"duplicate": True}
        moved = await served.ask("POST", f"{URL}?channel=b", CLOUD, headers=STRUCTURED)
        assert moved.json["channel"] == "b"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"type": "with space"}, (400, "bad_request")),
        ({"subject": "a.*"}, (400, "bad_request")),
        ({"specversion": "0.3"}, (400, "bad_request")),
        ({"data_base64": "AA=="}, (422, "invalid_data")),
        ({"data": 2**65}, (422, "invalid_data")),
        ({f"e{i}": "x" for i in range(40)}, (422, "invalid_data")),
    ],
)
async def test_cloudevents_that_are_refused(
    changes: dict[str, Any], expected: tuple[int, str]
) -> None:
    async with serving() as served:
        assert code(await publish(served, CLOUD | changes, headers=STRUCTURED)) == expected
        answer = await publish(served, [CLOUD, CLOUD | changes], headers=BATCH)
        assert code(answer) == expected
        assert "event 1" in answer.json["detail"]
        assert await kept(served) == ()


async def test_cloudevents_bring_their_own_id() -> None:
    async with serving() as served:
        fields = STRUCTURED | {"Idempotency-Key": "k"}
        assert code(await publish(served, CLOUD, headers=fields)) == (400, "bad_request")


async def test_binary_cloudevents_hold_json() -> None:
    async with serving() as served:
        fields = {f"ce-{name}": str(CLOUD[name]) for name in CLOUD if name != "data"}
        for kind in ("text/plain", "application/octet-stream", "application/x-ndjson"):
            answer = await publish(served, b"1", headers=fields | {"Content-Type": kind})
            assert code(answer) == (422, "invalid_data")
        answer = await publish(served, b"not json", headers=fields)
        assert code(answer) == (422, "invalid_data")
