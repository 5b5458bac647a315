"""Publishing a stream of events: answered line by line, in order, in bounded memory."""

import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace

from config.limits import LimitSettings
from config.storage import BrokerSettings
from live_rig import until
from nodes import KEY, Answer, Served, api_key, make_token, serving
from server.lifecycle import Phase

TYPE = {"Content-Type": "application/x-ndjson"}
LIMITS = LimitSettings(body_bytes=4_000, frame_bytes=2_000, data_bytes=1_000)


def line(data: Any = 1, **more: Any) -> bytes:
    return json.dumps({"channel": "a", "data": data} | more).encode() + b"\n"


def results(answer: Answer) -> list[dict[str, Any]]:
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(each) for each in answer.body.splitlines()]


async def publish(served: Served, body: bytes, **more: Any) -> Answer:
    headers = TYPE | more.pop("headers", {})
    return await served.ask("POST", "/v1/events", body, headers=headers, **more)


def shorten(served: Served, idle_timeout_s: float) -> None:
    """Let streams be silent for so long only, from the next line that is complete.

    Not from their beginning: a machine that is slow would end them before they had begun.
    """
    settings = served.node.settings
    http = replace(settings.http, idle_timeout_s=idle_timeout_s)
    # A node keeps its settings for good.
    object.__setattr__(served.node, "settings", replace(settings, http=http))


class Stream:
    """A stream that is written and read by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, served: Served, bearer: str = KEY) -> "Stream":
        stream = cls(*await served.connect())
        stream.writer.write(
            b"POST /v1/events HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-ndjson\r\n"
            b"Authorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n\r\n" % bearer.encode()
        )
        return stream

    def send(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def answers(self) -> list[dict[str, Any]]:
        """The lines of the next chunk of the answer."""
        size = int(await self.reader.readline(), 16)
        data = await self.reader.readexactly(size + 2)
        return [json.loads(each) for each in data.splitlines() if each]

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


async def test_each_line_is_answered_in_order() -> None:
    async with serving() as served:
        body = line(1, id="x") + b"\n" + line(2, name="n n") + b"nonsense\n" + line(3).rstrip()
        found = results(await publish(served, body))
        assert found[0]["id"] == "x"
        assert [each.get("error", {}).get("code") for each in found] == [
            None,
            "bad_request",
            "bad_request",
            None,
        ]
        history = await served.node.broker.history("a", limit=10)
        assert history is not None
        assert [each.data for each in history.events] == [b"1", b"3"]
        assert str(history.top) == found[3]["position"]


async def test_more_lines_than_go_in_one_piece() -> None:
    async with serving() as served:
        found = results(await publish(served, b"".join(line(i, id=f"e{i}") for i in range(1_000))))
        assert [each["id"] for each in found] == [f"e{i}" for i in range(1_000)]
        assert served.node.metrics.events_in == 1_000


async def test_an_empty_stream() -> None:
    async with serving() as served:
        assert results(await publish(served, b"\n \n")) == []


async def test_keys_count_the_lines() -> None:
    async with serving() as served:
        headers = {"Idempotency-Key": "k"}
        body = line(1) + b"\nnonsense\n" + line(2)
        found = results(await publish(served, body, headers=headers))
        assert [each.get("id") for each in found] == ["k:0", None, "k:2"]
        again = results(await publish(served, body, headers=headers))
        assert [each.get("duplicate") for each in again] == [True, None, True]
        both = results(await publish(served, line(1, id="x"), headers=headers))
        assert both[0]["error"]["code"] == "bad_request"


async def test_a_stream_is_not_bounded_but_its_lines_are() -> None:
    async with serving(limits=LIMITS) as served:
        good = line("x" * 900)
        body = good * 20 + b"x" * 2_001 + b"\n" + good + line("x" * 1_001) + b"y" * 10_000
        found = results(await publish(served, body))
        errors = [each.get("error", {}).get("code") for each in found]
        assert errors == [None] * 20 + ["too_large", None, "too_large", "too_large"]


@pytest.mark.parametrize(
    ("headers", "bearer", "status"),
    [
        ({}, None, 401),
        ({}, "test.wrong", 401),
        ({"Content-Type": "application/x-ndjson; charset=latin-1"}, KEY, 415),
        ({"Content-Encoding": "gzip"}, KEY, 415),
        ({"Idempotency-Key": "x" * 51}, KEY, 400),
        ({"Origin": "https://evil.com"}, KEY, 403),
    ],
)
async def test_what_is_refused_before_the_first_line(
    headers: dict[str, str], bearer: str | None, status: int
) -> None:
    async with serving() as served:
        answer = await publish(served, line(), headers=headers, bearer=bearer)
        assert answer.status == status
        assert answer.json["status"] == status
        assert served.node.metrics.events_in == 0
        await served.node.lifecycle.requests_done()


@pytest.mark.usefixtures("rates_stand_still")
async def test_grants_and_rates_are_those_of_each_line() -> None:
    narrow = "narrow.0123456789abcdef"
    keys = (api_key(KEY), api_key(narrow, publish=("a",)))
    async with serving(keys=keys, limits=LimitSettings(key_publishes_per_s=2)) as served:
        body = line(channel="b") + line() + line() + line()
        found = results(await publish(served, body, bearer=narrow))
        codes = [each.get("error", {}).get("code") for each in found]
        assert codes == ["forbidden", None, None, "rate_limited"]


async def test_answers_come_while_the_stream_goes_on() -> None:
    async with serving() as served:
        stream = await Stream.open(served)
        stream.send(line(1)[:5])
        stream.send(line(1)[5:] + line(2)[:7])
        assert b"200 OK" in await stream.head()
        first = await stream.answers()
        stream.send(line(2)[7:])
        second = await stream.answers()
        assert len(first) == len(second) == 1
        assert first[0]["position"] < second[0]["position"]
        stream.writer.write(b"0\r\n\r\n")
        assert await stream.reader.readline() == b"0\r\n"
        await stream.close()


async def test_a_client_that_leaves_in_the_middle() -> None:
    async with serving() as served:
        stream = await Stream.open(served)
        stream.send(line(1) + line(2)[:5])
        await stream.head()
        await stream.answers()
        await stream.close()
        await served.node.lifecycle.requests_done()
        assert served.node.metrics.events_in == 1
        text = (await served.ask("GET", "/metrics")).body
        assert b'route="/v1/events",status="499"} 1.0' in text


async def test_a_draining_node_ends_streams() -> None:
    async with serving() as served:
        stream = await Stream.open(served)
        stream.send(line(1))
        await stream.head()
        await stream.answers()
        served.node.lifecycle.phase = Phase.DRAINING
        stream.send(line(2))
        (last,) = await stream.answers()
        assert last["error"] == {
            "code": "unavailable",
            "message": "this node is going away",
            "retry": True,
        }
        assert (await stream.reader.read()).startswith(b"0\r\n")
        await stream.close()
        assert served.node.metrics.events_in == 1


async def test_a_key_that_was_removed_ends_its_streams() -> None:
    async with serving() as served:
        stream = await Stream.open(served)
        stream.send(line(1))
        await stream.head()
        await stream.answers()
        served.node.auth.keys.replace(())
        stream.send(line(2))
        (last,) = await stream.answers()
        assert last["error"]["code"] == "unauthorized"
        await stream.reader.read()
        await stream.close()


async def test_a_token_that_expires_ends_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as served:
        stream = await Stream.open(served, make_token(ttl_s=60))
        stream.send(line(1))
        await stream.head()
        await stream.answers()
        monkeypatch.setattr("handlers.ndjson.time.time", lambda: 4e9)
        stream.send(line(2))
        (last,) = await stream.answers()
        assert last["error"]["code"] == "token_expired"
        await stream.reader.read()
        await stream.close()


async def test_a_stream_that_stays_silent_is_ended() -> None:
    async with serving() as served:
        stream = await Stream.open(served)
        stream.send(line(1))
        await stream.head()
        await stream.answers()
        shorten(served, 0.05)
        stream.send(line(2))
        await stream.answers()
        assert await stream.reader.read() == b"0\r\n\r\n"
        await stream.close()


async def test_a_line_without_an_end_is_no_sign_of_life() -> None:
    """A stream into which a byte came now and then was never ended."""
    async with serving() as served:
        stream = await Stream.open(served)
        stream.send(line(1))
        await stream.head()
        await stream.answers()
        shorten(served, 0.3)
        stream.send(line(2))
        await stream.answers()

        async def drip() -> None:
            while True:
                stream.send(b" ")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert await stream.reader.read() == b"0\r\n\r\n"
        dripping.cancel()
        await asyncio.wait([dripping])
        await stream.close()


async def test_the_wait_for_answers_to_be_taken_is_no_silence() -> None:
    """The stream was ended amid an answer that was on its way, and the request went on for ever."""
    async with serving() as served:
        stream = await Stream.open(served)
        stream.writer.transport.pause_reading()  # type: ignore[attr-defined]
        many = 100_000
        stream.send(b"{}\n" * many)
        stream.writer.write(b"0\r\n\r\n")
        refusals, seen = served.node.metrics._refusals, -1
        await until(lambda: refusals["bad_request"])
        shorten(served, 0.05)
        # Until the answers are more than both kernels take.
        while seen != refusals["bad_request"]:
            seen = refusals["bad_request"]
            await asyncio.sleep(0.3)
        assert 0 < seen < many
        stream.writer.transport.resume_reading()  # type: ignore[attr-defined]
        pieces = [b""]
        while not pieces[-1].endswith(b"0\r\n\r\n"):
            pieces.append(await stream.reader.read(1 << 20))
        assert b"".join(pieces).count(b'"bad_request"') == many
        await stream.close()
        await served.node.lifecycle.requests_done()


@pytest.mark.expect_log("handlers.ndjson", "^stream failed$")
async def test_what_nobody_expected_is_a_fixed_phrase(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as served:

        async def fail(drafts: object) -> None:
            raise KeyError("an inner matter")

        monkeypatch.setattr(served.node.broker, "publish", fail)
        (last,) = results(await publish(served, line(1)))
        assert last["error"] == {
            "code": "internal",
            "message": "something went wrong",
            "retry": True,
        }


async def test_a_broker_that_refuses_some() -> None:
    async with serving(broker=BrokerSettings(max_channels=1)) as served:
        found = results(await publish(served, line(1) + line(2, channel="b") + line(3)))
        assert [each.get("error", {}).get("code") for each in found] == [
            None,
            "limit_exceeded",
            None,
        ]


async def test_a_client_that_never_reads_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as served:
        stream = await Stream.open(served)
        publish_all, begun = served.node.broker.publish, asyncio.Event()

        async def publish_and_lose(drafts: Any) -> Any:
            begun.set()
            stream.writer.transport.abort()
            return await publish_all(drafts)

        monkeypatch.setattr(served.node.broker, "publish", publish_and_lose)
        stream.send(line(1) * 2_000)
        await begun.wait()
        await served.node.lifecycle.requests_done()
        await stream.close()
