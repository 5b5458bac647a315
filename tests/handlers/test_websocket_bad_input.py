"""Bad input over a WebSocket gets a named error or close code, and nothing else suffers."""

from __future__ import annotations

import json
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest

from client_frames import BINARY, CONTINUATION, PING, TEXT, client_frame, client_header
from live_rig import JSON, MSGPACK, Client, Rig, live, until

both = pytest.mark.parametrize("encoding", [JSON, MSGPACK])


async def error(client: Client, payload: bytes) -> dict[str, Any]:
    """Send a message as it is and return the error that answers it."""
    await client.write(client_frame(BINARY if client.encoding == MSGPACK else TEXT, payload))
    message = await client.message()
    assert message["type"] == "error", message
    assert set(message) <= {"type", "ref", "code", "message", "retry"}
    assert message["message"] and message["retry"] is False
    return message


async def alive(client: Client) -> None:
    """See that the session goes on as if nothing had been."""
    assert (await client.call("ping"))["type"] == "pong"


async def closed(rig: Rig, client: Client, code: int) -> None:
    ended = await client.ended()
    assert ended.code == code and ended.last["type"] == "closing"
    assert ended.last["code"] == code
    client.close()
    await until(rig.nobody_left)


def json_publish(ref: int, data: bytes, **more: Any) -> bytes:
    head = json.dumps({"type": "publish", "ref": ref, "channel": "bad.a", **more}).encode()
    return head[:-1] + b',"data":' + data + b"}"


# ---- refs


@both
async def test_refs_rise(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        await client.send(type="ping", ref=100)
        assert await client.message() == {"type": "pong", "ref": 100}
        for ref in (100, 99, 1):
            await client.send(type="ping", ref=ref)
            reply = await client.message()
            assert (reply["type"], reply["code"], reply["ref"]) == ("error", "bad_ref", ref)
        await client.send(type="ping", ref=2**53 - 1)
        assert (await client.message())["type"] == "pong"


@both
@pytest.mark.parametrize("ref", [None, 0, -1, 1.5, "7", 2**53, True, [], {}])
async def test_refs_that_are_none(encoding: str, ref: Any) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        for command in ({"type": "ping", "ref": ref}, {"type": "ping"}):
            await client.send(**command)
            reply = await client.message()
            assert reply["code"] == "bad_ref" and "ref" not in reply
        await alive(client)


@both
async def test_a_refused_command_uses_its_ref_up(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        await client.send(type="dance", ref=50)
        assert (await client.message())["ref"] == 50
        await client.send(type="ping", ref=50)
        assert (await client.message())["code"] == "bad_ref"


# ---- fields


@both
@pytest.mark.parametrize(
    "command",
    [
        {"type": "dance"},
        {"type": 5},
        {"type": None},
        {},
        {"type": "Ping"},
        {"type": "subscribe"},
        {"type": "subscribe", "channel": 5},
        {"type": "subscribe", "channel": None},
        {"type": "subscribe", "channel": "a", "rewind": "5"},
        {"type": "subscribe", "channel": "a", "rewind": 0},
        {"type": "subscribe", "channel": "a", "rewind": 100_001},
        {"type": "subscribe", "channel": "a", "since": 5},
        {"type": "subscribe", "channel": "a", "presence": "yes"},
        {"type": "publish", "channel": "a"},
        {"type": "publish", "data": 1},
        {"type": "publish", "channel": "a", "data": 1, "echo": 0},
        {"type": "publish", "channel": "a", "data": 1, "tags": {"k": 1}},
        {"type": "publish", "channel": "a", "data": 1, "tags": []},
        {"type": "publish", "channel": "a", "data": 1, "name": ""},
        {"type": "publish", "channel": "a", "data": 1, "name": "with space"},
        {"type": "publish", "channel": "a", "data": 1, "name": "n" * 65},
        {"type": "publish", "channel": "a", "data": 1, "id": ""},
        {"type": "publish", "channel": "a", "data": 1, "id": "i" * 65},
        {"type": "publish", "channel": "a", "data": 1, "id": "nö"},
        {"type": "history"},
        {"type": "refresh", "token": 5},
    ],
    ids=str,
)
async def test_wrong_fields(encoding: str, command: dict[str, Any]) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        client.ref += 1
        await client.send(ref=client.ref, **command)
        reply = await client.message()
        assert reply["type"] == "error" and reply["ref"] == client.ref
        assert reply["code"] == "bad_request"
        assert rig.refusals("bad_request") == 1
        await alive(client)


@both
async def test_unknown_fields_are_ignored(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        assert (await client.call("ping", later={"x": [1]}, version=9))["type"] == "pong"


@both
@pytest.mark.parametrize(
    "channel",
    [
        *("*", ">", "a.*", "a.>", "*.b", "a*"),
        *("", ".", "a.", ".a", "a..b", "a b", "a\n", "a\x00b", "a\r\nb", "ä", "a/b", "a?", "a[b"),
        *("$sys", "а.b", "a" * 256),
    ],
    ids=ascii,
)
async def test_names_that_are_no_channels(encoding: str, channel: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        for type_ in ("subscribe", "publish", "unsubscribe", "history", "presence"):
            reply = await client.call(type_, channel=channel, data=1)
            assert reply["code"] == "bad_request", (type_, reply)
            assert all(character.isprintable() for character in reply["message"])
        assert not rig.node.hub.feeds
        await alive(client)


async def test_the_longest_names() -> None:
    async with live() as rig:
        client = await rig.ws()
        channel = ("a" * 63 + ".") * 3 + "b" * 63
        await client.call("subscribe", channel=channel)
        await client.call("publish", channel=channel, data=1, name="n" * 64, id="i" * 64)
        assert (await client.next("event"))["name"] == "n" * 64


# ---- encodings


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"ping"',
        b'{"type":"ping","ref":2}{"type":"ping","ref":3}',
        b"{'type':'ping','ref':2}",
        b'{"type":"ping","ref":2,}',
        b"\xef\xbb\xbf{}",
        b"\x00",
    ],
)
async def test_what_is_no_json(payload: bytes) -> None:
    async with live() as rig:
        client = await rig.ws()
        reply = await error(client, payload)
        assert reply["code"] == "bad_request" and "ref" not in reply
        await alive(client)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\xc0",
        b"\x82\xa4type",
        b'{"type":"ping","ref":2}',
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff" * 100,
        msgpack.packb({"type": "ping", "ref": 2}) + b"\x00",
        msgpack.packb({1: 2}),
    ],
)
async def test_what_is_no_messagepack(payload: bytes) -> None:
    async with live() as rig:
        client = await rig.ws(MSGPACK)
        reply = await error(client, payload)
        assert reply["code"] in ("bad_request", "bad_ref")
        await alive(client)


async def test_nesting_bombs() -> None:
    async with live() as rig:
        client = await rig.ws()
        for levels in (65, 1000, 30_000):
            client.ref += 1
            for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
                data = opening * levels + b"1" + closing * levels
                if len(data) > 120_000:
                    continue
                reply = await error(client, json_publish(client.ref, data))
                # So deep that not even the ref could be read, or refused for its data.
                assert reply["code"] in ("invalid_data", "too_large", "bad_ref")
                client.ref += 1
            reply = await error(client, b'{"x":' + b"[" * levels)
            assert reply["code"] in ("bad_request", "invalid_data")
        packed = await rig.ws(MSGPACK)
        for levels in (65, 1000, 60_000):
            packed.ref += 1
            head = msgpack.packb(
                {"type": "publish", "ref": packed.ref, "channel": "bad.a", "data": 0}
            )
            reply = await error(packed, head[:-1] + b"\x91" * levels + b"\x01")
            assert reply["code"] in ("invalid_data", "too_large")
            assert (await error(packed, b"\x81" * levels))["code"] in (
                "bad_request",
                "invalid_data",
                "bad_ref",
            )
        await alive(client)
        await alive(packed)


async def test_depth_at_its_limit() -> None:
    async with live(limits__depth=5) as rig:
        client = await rig.ws()
        reply = await client.call("publish", channel="d.a", data=[[[[[]]]]])
        assert reply["type"] == "published"
        reply = await client.call("publish", channel="d.a", data=[[[[[[]]]]]])
        assert reply["code"] == "invalid_data"


@pytest.mark.parametrize(
    "data",
    [
        b"1e999",
        b"-1e999",
        b"NaN",
        b"Infinity",
        b"9" * 5000,
        b"18446744073709551616",
        b"-9223372036854775809",
        b'"\\ud800"',
        b'{"\\udfff":1}',
        b"01",
        b'{"a":1,}',
        b'"\x01"',
        b"",
    ],
    ids=lambda data: ascii(data[:12]),
)
async def test_data_that_a_browser_cannot_read(data: bytes) -> None:
    async with live() as rig:
        client, reader = await rig.ws(), await rig.ws(MSGPACK)
        await reader.call("subscribe", channel="bad.a")
        client.ref += 1
        reply = await error(client, json_publish(client.ref, data))
        assert reply["code"] in ("invalid_data", "bad_request")
        await alive(client)
        await rig.publish("bad.a", "good")
        assert (await reader.next("event"))["data"] == "good"


@pytest.mark.parametrize(
    "data",
    [
        b"\xc4\x01x",
        b"\xd4\x01x",
        msgpack.packb(float("nan")),
        msgpack.packb(float("inf")),
        msgpack.packb({1: 2}),
        b"\xa2\xff\xfe",
        b"\xa3\xed\xa0\x80",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        msgpack.packb({"a": msgpack.Timestamp(1)}),
    ],
)
async def test_messagepack_data_outside_the_value_space(data: bytes) -> None:
    async with live() as rig:
        client = await rig.ws(MSGPACK)
        client.ref += 1
        head = msgpack.packb({"type": "publish", "ref": client.ref, "channel": "bad.a", "data": 0})
        reply = await error(client, head[:-1] + data)
        assert reply["code"] in ("invalid_data", "bad_request", "bad_ref")
        await alive(client)


async def test_line_breaks_in_data_cannot_break_a_line() -> None:
    async with live() as rig:
        client = await rig.ws()
        stream = await rig.sse("channel=bad.a")
        await stream.control("subscribed")
        client.ref += 1
        data = b'{"a":\r\n1,\n"b":\r"x\\r\\n\\ndata: evil"}'
        await client.write(client_frame(TEXT, json_publish(client.ref, data)))
        event = await stream.event()
        assert event["data"] == {"a": 1, "b": "x\r\n\ndata: evil"}


# ---- frames


async def test_invalid_utf8_in_text() -> None:
    async with live() as rig:
        client = await rig.ws()
        await client.write(client_frame(TEXT, json_publish(2, b'"\xff"')))
        await closed(rig, client, 4500)
        assert rig.refusals("protocol_error") == 1


@both
async def test_the_wrong_kind_of_frame(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        await client.write(client_frame(TEXT if encoding == MSGPACK else BINARY, b"{}"))
        await closed(rig, client, 4500)
        assert rig.refusals("protocol_error") == 1


async def test_an_unmasked_frame() -> None:
    async with live() as rig:
        client = await rig.ws()
        await client.write(client_frame(TEXT, b'{"type":"ping","ref":2}', mask=None))
        await closed(rig, client, 4500)


@pytest.mark.parametrize(
    "frame",
    [
        client_frame(3),
        client_frame(TEXT, b"{}", rsv=4),
        client_frame(PING, b"x", fin=False),
        client_frame(CONTINUATION, b"x"),
        client_frame(TEXT, b"{}", length_bytes=8),
        client_frame(8, b"x"),
        client_frame(8, b"\x03\xed"),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_broken_frames(frame: bytes) -> None:
    async with live() as rig:
        client, other = await rig.ws(), await rig.ws()
        await client.write(frame)
        ended = await client.ended()
        assert ended.code == 4500
        await alive(other)


async def test_a_frame_at_and_over_its_limit() -> None:
    async with live(limits__frame_bytes=70_000) as rig:
        client = await rig.ws()
        room = 70_000 - len(json_publish(2, b'""'))
        # Right at the limit of a frame, over that of an event's data.
        reply = await error(client, json_publish(2, b'"%s"' % (b"x" * room)))
        assert reply["code"] == "too_large"
        await client.write(client_frame(TEXT, json_publish(3, b'"%s"' % (b"x" * (room + 1)))))
        await closed(rig, client, 4505)
        assert rig.refusals("frame_bytes") == 1


async def test_an_oversized_frame_is_known_by_its_header() -> None:
    async with live() as rig:
        for header in (
            client_header(TEXT, 131_073),
            client_header(TEXT, 1 << 62, length_bytes=8),
        ):
            client = await rig.ws()
            await client.write(header)
            await closed(rig, client, 4505)


async def test_an_oversized_message_in_fragments() -> None:
    async with live(limits__frame_bytes=10_000) as rig:
        client = await rig.ws()
        await client.write(client_frame(TEXT, b" " * 9_000, fin=False))
        await client.write(client_frame(CONTINUATION, b" " * 1_001))
        await closed(rig, client, 4505)


async def test_commands_before_a_broken_frame() -> None:
    """What comes in one piece with a broken frame may be lost; the end is always told."""
    async with live() as rig:
        client = await rig.ws()
        await client.write(client.encode(client.numbered("ping")) + client_frame(3))
        await closed(rig, client, 4500)
