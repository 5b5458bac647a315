"""The short way of a publish: no client can tell it from the way through a handler of Tornado's.

A body of known length goes the short way, the same body in chunks goes through the handler.
"""

import asyncio
import json
import logging
import re
from collections.abc import Sequence
from typing import Any

import pytest

from config.access import AnonymousSettings
from config.limits import LimitSettings
from handlers.direct import DirectPublish, answer_bytes
from handlers.publish import PublishHandler
from live_rig import until
from nodes import KEY, Served, make_token, serving
from pubsub.errors import BrokerUnavailable, PubSubError
from pubsub.event import Draft, Published
from server.lifecycle import Phase

PAGE = "https://app.example.com"
EVENT = {"channel": "a", "name": "n", "data": {"x": [1, "\u20ac"]}, "tags": {"k": "v"}, "id": "one"}
CLOUD = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "subject": "a", "data": 1}
ASKED = {"Host": "localhost", "X-Request-Id": "mine", "Authorization": f"Bearer {KEY}"}

Fields = dict[str, str | None]


def head(fields: Fields, path: str = "/v1/events") -> bytes:
    """A request's head without its last line; None takes a header of ASKED away."""
    lines = [f"{name}: {value}" for name, value in (ASKED | fields).items() if value is not None]
    return "\r\n".join((f"POST {path} HTTP/1.1", *lines, "")).encode()


def whole(fields: Fields, body: bytes, path: str = "/v1/events") -> bytes:
    """A request that goes the short way."""
    return head(fields, path) + b"Content-Length: %d\r\n\r\n" % len(body) + body


def in_chunks(fields: Fields, body: bytes, path: str = "/v1/events") -> bytes:
    """The same request on its way through the handler."""
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return head(fields, path) + b"Transfer-Encoding: chunked\r\n\r\n" + chunks


def encoded(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def seen(answer: bytes) -> tuple[str, list[tuple[str, str]], Any]:
    """Status line, headers and body, without what differs from one answer to the next."""
    top, _, body = answer.partition(b"\r\n\r\n")
    line, *fields = top.decode("latin-1").split("\r\n")
    split = (each.partition(": ") for each in fields)
    # Their case means nothing, and Tornado writes all of them in one way.
    headers = [(name.title(), value) for name, _, value in split]
    assert dict(headers)["Content-Length"] == str(len(body))
    # Positions have a random epoch, pauses are drawn, and limits are a matter of time.
    text = re.sub(r'"[0-9a-f]{16}-([0-9]+)-[0-9a-f]{16}"', r'"epoch-\1-check"', body.decode())
    varying = {"Date", "Retry-After", "Ratelimit-Remaining", "Ratelimit-Reset"}
    return line, [(name, "" if name in varying else value) for name, value in headers], text


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which ways were taken, in order."""
    taken: list[str] = []
    finish, prepare = DirectPublish.finish, PublishHandler.prepare

    def on_finish(self: DirectPublish) -> None:
        taken.append("direct")
        finish(self)

    def on_prepare(self: PublishHandler) -> None:
        taken.append("handler")
        prepare(self)

    monkeypatch.setattr(DirectPublish, "finish", on_finish)
    monkeypatch.setattr(PublishHandler, "prepare", on_prepare)
    return taken


CASES: dict[str, tuple[Fields, Any, str]] = {
    "an event": ({}, EVENT, ""),
    "an array": ({}, [EVENT, EVENT | {"id": "two"}, EVENT], ""),
    "an array that is empty": ({}, [], ""),
    "an array with one that is wrong": ({}, [EVENT, EVENT | {"channel": "*"}], ""),
    "more than a batch may have": ({}, [EVENT] * 6, ""),
    "a CloudEvent": ({"Content-Type": "application/cloudevents+json"}, CLOUD, ""),
    "CloudEvents": ({"Content-Type": "application/cloudevents-batch+json"}, [CLOUD, CLOUD], ""),
    "a CloudEvent elsewhere": (
        {"Content-Type": "application/cloudevents+json"},
        CLOUD,
        "?channel=b",
    ),
    "a CloudEvent in binary mode": (
        {"ce-id": "1", "ce-source": "/s", "ce-type": "t", "ce-specversion": "1.0"},
        {"n": 1},
        "?channel=a",
    ),
    "lines that are a CloudEvent": (
        {"Content-Type": "application/x-ndjson", "Ce-Specversion": "1.0"},
        EVENT,
        "",
    ),
    "a form": ({"Content-Type": "application/x-www-form-urlencoded"}, EVENT, ""),
    "another charset": ({"Content-Type": "application/json; charset=latin-1"}, EVENT, ""),
    "another type": ({"Content-Type": "text/plain"}, EVENT, ""),
    "compressed": ({"Content-Encoding": "gzip"}, EVENT, ""),
    "a key of its own": ({"Idempotency-Key": "k"}, {"channel": "a", "data": 1}, ""),
    "two ids": ({"Idempotency-Key": "k"}, EVENT, ""),
    "a key that is too long": ({"Idempotency-Key": "k" * 51}, EVENT, ""),
    "excluding": ({}, EVENT | {"exclude": "s"}, ""),
    "later without an archive": ({}, EVENT | {"deliver_at": 9_999_999_999_999}, ""),
    "no JSON": ({}, b"{", ""),
    "blanks": ({}, b" \r\n", ""),
    "bad UTF-8": ({}, b'{"channel":"a","data":"\xff"}', ""),
    "a bad parameter": ({}, EVENT, "?channel=*"),
    "a parameter twice": ({}, EVENT, "?channel=a&channel=b"),
    "a parameter in bad UTF-8": ({}, EVENT, "?channel=%ff"),
    "nobody": ({"Authorization": None}, {"channel": "a", "data": 1, "id": "x"}, ""),
    "a wrong key": ({"Authorization": "Bearer test.wrong"}, EVENT, ""),
    "no bearer": ({"Authorization": "Basic dGVzdA=="}, EVENT, ""),
    "a user": ({"Authorization": "token"}, EVENT, ""),
    "a user where it may not": ({"Authorization": "token"}, EVENT | {"channel": "closed.a"}, ""),
    "a user for another": ({"Authorization": "token"}, EVENT | {"exclude": "s"}, ""),
    "a page": ({"Origin": PAGE}, EVENT, ""),
    "a page that is refused": ({"Origin": PAGE}, b"{", ""),
    "a foreign page": ({"Origin": "https://evil.example"}, EVENT, ""),
    "a page of nobody": ({"Origin": "null"}, EVENT, ""),
    "the last request": ({"Connection": "close"}, EVENT, ""),
    "the last request, refused": ({"Connection": "close"}, b"[", ""),
    "a word before": ({"Expect": "100-continue"}, EVENT, ""),
    "markup in its id": ({"X-Request-Id": "<b>"}, EVENT, ""),
    "two addresses": ({"X-Forwarded-For": "203.0.113.9"}, EVENT, ""),
}


@pytest.mark.parametrize("case", CASES)
async def test_both_ways_answer_alike(
    case: str, ways: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    fields, body, query = CASES[case]
    if fields.get("Authorization") == "token":
        fields = fields | {"Authorization": f"Bearer {make_token()}"}
    answers, logged, counted = [], [], []
    for request in (whole, in_chunks):
        settings: dict[str, Any] = {
            "origins": (PAGE,),
            "limits": LimitSettings(batch_events=5),
            "trusted_proxies": ("127.0.0.1/32",),
            "anonymous": AnonymousSettings(grants={"a": ("publish",)}),
        }
        caplog.clear()
        async with serving(**settings) as served:
            with caplog.at_level(logging.DEBUG, "galecast.access"):
                reader, writer = await served.connect()
                writer.write(request(fields, encoded(body), f"/v1/events{query}"))
                answer = await read_answer(reader)
                if answer.startswith(b"HTTP/1.1 100"):
                    answer = await read_answer(reader)
                await served.node.lifecycle.requests_done()
            writer.close()
            line, headers, text = seen(answer)
            if case == "markup in its id":
                made = dict(headers)["X-Request-Id"]
                assert re.fullmatch("[0-9a-f]{16}", made)
                headers = [(name, "" if value == made else value) for name, value in headers]
            answers.append((line, headers, text))
            logged.append(
                [
                    (each.getMessage(), each.__dict__["route"], each.__dict__["address"])
                    for each in caplog.records
                    if each.name == "galecast.access"
                ]
            )
            counted.append(counts(served))
    assert ways == ["direct", "handler"]
    assert answers[0] == answers[1]
    assert logged[0] == logged[1]
    assert len(logged[0]) == 1
    assert counted[0] == counted[1]


def counts(served: Served) -> list[str]:
    """What the node counted, without what is a matter of time."""
    text = served.node.metrics.exposition(None)[0].decode()
    names = ("http_requests", "events_", "refusals", "http_request_seconds_count")
    lines = [each for each in text.splitlines() if each.startswith("galecast_")]
    kept = [each for each in lines if any(name in each for name in names)]
    return [each for each in kept if "_created" not in each and not each.endswith(" 0.0")]


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """One answer, with the body that it announces."""
    top = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"Content-Length: (\d+)", top)
    return top + (await reader.readexactly(int(found[1])) if found else b"")


@pytest.mark.parametrize("last", [{}, {"Connection": "close"}], ids=["", "last"])
@pytest.mark.parametrize("phase", [Phase.READY, Phase.DRAINING])
async def test_a_draining_node_says_so_on_both_ways(
    phase: Phase, last: Fields, ways: list[str]
) -> None:
    async with serving() as served:
        served.node.lifecycle.phase = phase
        answers = []
        for request in (whole, in_chunks):
            reader, writer = await served.connect()
            event = {"channel": request.__name__, "data": 1, "id": "x"}
            writer.write(request(last, encoded(event)))
            _line, headers, _text = seen(await read_answer(reader))
            answers.append([each for each in headers if each[0] != "Content-Length"])
            writer.close()
        assert ways == ["direct", "handler"]
        assert answers[0] == answers[1]
        closes = phase is Phase.DRAINING or bool(last)
        assert answers[0].count(("Connection", "close")) == closes


@pytest.mark.usefixtures("rates_stand_still")
@pytest.mark.parametrize(
    "limits", [LimitSettings(key_requests_per_s=1), LimitSettings(key_publishes_per_s=1)]
)
async def test_limits_are_told_on_both_ways(limits: LimitSettings, ways: list[str]) -> None:
    told = []
    for request in (whole, in_chunks):
        async with serving(limits=limits) as served:
            reader, writer = await served.connect()
            events = [encoded({"channel": "a", "data": 1, "id": each}) for each in "xy"]
            writer.write(b"".join(request({}, each) for each in events))
            told.append([seen(await read_answer(reader)) for _ in events])
            writer.close()
    assert told[0] == told[1]
    assert [line.split()[1] for line, _headers, _text in told[0]] == ["200", "429"]
    assert ways == ["direct"] * 2 + ["handler"] * 2


@pytest.mark.expect_log("handlers.exchange", "^request failed$")
async def test_a_broker_that_fails_on_both_ways(
    monkeypatch: pytest.MonkeyPatch, ways: list[str]
) -> None:
    failures: list[Exception] = [BrokerUnavailable("gone"), KeyError("an inner matter")]
    async with serving() as served:

        async def fail(drafts: Sequence[Draft]) -> list[Published | PubSubError]:
            raise failures[-1]

        monkeypatch.setattr(served.node.broker, "publish", fail)
        for status in (500, 503):
            answers = []
            for request in (whole, in_chunks):
                reader, writer = await served.connect()
                writer.write(request({}, encoded(EVENT)))
                answers.append(seen(await read_answer(reader)))
                writer.close()
            assert answers[0] == answers[1]
            assert int(answers[0][0].split()[1]) == status
            assert "inner" not in answers[0][2]
            failures.pop()
        assert ways == ["direct", "handler"] * 2


@pytest.mark.parametrize(
    "top",
    [
        # Tornado calls nobody for a body without bytes.
        "POST /v1/events HTTP/1.1\r\nContent-Length: 0",
        "POST /v1/events HTTP/1.1",
        "GET /v1/events HTTP/1.1",
        "HEAD /v1/events HTTP/1.1",
        "PUT /v1/events HTTP/1.1\r\nContent-Length: 0",
        "OPTIONS /v1/events HTTP/1.1",
        "POST /v1/events/ HTTP/1.1\r\nContent-Length: 0",
        "POST /v1/eventsx HTTP/1.1\r\nContent-Length: 0",
    ],
)
async def test_what_does_not_go_the_short_way(top: str, ways: list[str]) -> None:
    async with serving() as served:
        line, *fields = top.split("\r\n")
        lines = "\r\n".join((line, *fields, f"Authorization: Bearer {KEY}", "Host: a", "", ""))
        answer = await served.raw(lines.replace("Host", "Connection: close\r\nHost").encode())
        assert "direct" not in ways
        assert int(answer.split()[1]) in (400, 404, 405, 204)


async def test_a_length_said_twice(ways: list[str]) -> None:
    """Tornado takes two equal lengths as one and refuses unequal ones."""
    body = encoded(EVENT)
    async with serving() as served:
        for second, status in ((len(body), 200), (len(body) + 1, 400)):
            both = f"Content-Length: {len(body)}\r\nContent-Length: {second}\r\n\r\n"
            answer = await served.raw(head({"Connection": "close"}) + both.encode() + body)
            assert int(answer.split()[1]) == status
        assert ways == ["handler"]


async def test_requests_that_come_at_once_are_answered_in_order(ways: list[str]) -> None:
    async with serving() as served:
        reader, writer = await served.connect()
        events = [encoded({"channel": "a", "data": n, "id": f"e{n}"}) for n in range(20)]
        writer.write(b"".join((whole, in_chunks)[n % 2]({}, each) for n, each in enumerate(events)))
        for number in range(20):
            answer = await read_answer(reader)
            assert f'"id":"e{number}"'.encode() in answer
        writer.close()
        assert ways == ["direct", "handler"] * 10


async def test_a_body_that_comes_in_pieces(ways: list[str]) -> None:
    body = encoded({"channel": "a", "data": "x" * 50_000, "id": "e"})
    async with serving() as served:
        reader, writer = await served.connect()
        request = whole({}, body)
        for start in range(0, len(request), 9_000):
            writer.write(request[start : start + 9_000])
            await writer.drain()
            await asyncio.sleep(0)
        assert (await read_answer(reader)).startswith(b"HTTP/1.1 200 ")
        writer.close()
        assert ways == ["direct"]


async def test_a_client_that_leaves_in_the_midst_of_its_body(ways: list[str]) -> None:
    async with serving() as served:
        body = encoded(EVENT)
        _reader, writer = await served.connect()
        writer.write(whole({}, body)[:-1])
        await writer.drain()
        await until(lambda: served.app.http_connections)
        writer.close()
        await until(lambda: not served.app.http_connections)
        await served.node.lifecycle.requests_done()
        assert served.node.metrics.events_in == 0
        assert ways == []


async def test_a_client_that_leaves_before_it_is_answered(
    monkeypatch: pytest.MonkeyPatch, ways: list[str]
) -> None:
    """What was asked for is carried out, and the request is counted out."""
    async with serving() as served:
        publish, begun, go = served.node.broker.publish, asyncio.Event(), asyncio.Event()

        async def wait(drafts: Sequence[Draft]) -> list[Published | PubSubError]:
            begun.set()
            await go.wait()
            return await publish(drafts)

        monkeypatch.setattr(served.node.broker, "publish", wait)
        _reader, writer = await served.connect()
        writer.write(whole({}, encoded(EVENT)))
        await begun.wait()
        writer.transport.abort()
        # The server can know only when it reads or writes again.
        await asyncio.sleep(0.05)
        go.set()
        await served.node.lifecycle.requests_done()
        assert served.node.metrics.events_in == 1
        await until(lambda: not served.app.http_connections)
        assert ways == ["direct"]


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nX: y", "a\rX: y"])
def test_a_header_that_breaks_its_line_is_not_sent(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        answer_bytes(200, [("X-Request-Id", value)], b"{}")


@pytest.mark.parametrize(("zeros", "status"), [(99, "200"), (500, "200"), (5000, "400")])
async def test_a_length_may_begin_with_zeros(
    zeros: int, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served:
        reader, writer = await served.connect()
        body = encoded(EVENT)
        length = b"0" * zeros + b"%d" % len(body)
        writer.write(head({}, "/v1/events") + b"Content-Length: " + length + b"\r\n\r\n" + body)
        assert (await reader.readline()).split()[1].decode() == status
        writer.close()
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []
