"""Small things that would become large, deep or slow: refused by name, and nobody else notices."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]
import pytest

from client_frames import TEXT, client_frame
from live_rig import JSON, MSGPACK, live
from nodes import Answer, Served, serving

ROOT: Final = Path(__file__).parent.parent.parent
LEVELS: Final = 100_000
BODIES: Final = {
    "event": ("POST", "/v1/events", "application/json"),
    "lines": ("POST", "/v1/events", "application/x-ndjson"),
    "CloudEvent": ("POST", "/v1/events", "application/cloudevents+json"),
    "CloudEvents": ("POST", "/v1/events", "application/cloudevents-batch+json"),
    "token": ("POST", "/v1/tokens", "application/json"),
    "subscription": ("PUT", "/v1/users/u/subscriptions/a", "application/json"),
}
every_body = pytest.mark.parametrize("kind", BODIES)


async def send(served: Served, kind: str, body: bytes, **headers: str) -> Answer:
    method, path, media = BODIES[kind]
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await served.ask(method, path, body, headers={"Content-Type": media} | named)


def code(answer: Answer) -> str:
    """Return the code of a refusal; of a stream of lines, that of its first."""
    document = json.loads(answer.body.split(b"\n")[0])
    found: str = document["error"]["code"] if "error" in document else document["code"]
    return found


# ---- compression


@pytest.fixture(scope="module")
def packed() -> dict[str, bytes]:
    """16 MiB in some KB, by coding."""
    zeros = b"0" * (16 << 20)
    zipped, deflated = gzip.compress(zeros, 9), zlib.compress(zeros, 9)
    assert len(zipped) < 30_000
    return {
        "gzip": zipped,
        "x-gzip": zipped,
        "GZIP": zipped,
        "deflate": deflated,
        "br": zipped,
        "zstd": zipped,
        "identity, gzip": zipped,
        "gzip, gzip": gzip.compress(zipped),
    }


@every_body
async def test_compressed_bodies_are_not_read(kind: str, packed: dict[str, bytes]) -> None:
    async with serving() as served:
        for coding, body in packed.items():
            answer = await send(served, kind, body, Content_Encoding=coding)
            assert (answer.status, code(answer)) == (415, "unsupported_media_type"), coding
        # Not by what it looks like either.
        assert (await send(served, kind, packed["gzip"])).status in (200, 400)
        assert served.node.metrics.events_in == 0


# ---- nesting


def nested(opening: bytes, closing: bytes, inside: bytes = b"1") -> bytes:
    return opening * LEVELS + inside + closing * LEVELS


NESTED: Final = {
    "arrays": nested(b"[", b"]"),
    "objects": nested(b'{"a":', b"}"),
    "both": nested(b'[{"a":', b"}]"),
    "without an end": b"[" * LEVELS,
    "ends only": b"]" * LEVELS,
}


@every_body
@pytest.mark.parametrize("value", NESTED)
async def test_a_hundred_thousand_levels(kind: str, value: str) -> None:
    bomb = NESTED[value]
    bodies = [
        bomb,
        b'{"channel":"a","data":%s}' % bomb,
        b'{"channel":"a","data":1,"later":%s}' % bomb,
        b'{"channel":"a","data":1,"tags":{"a":%s}}' % bomb,
        b'{"specversion":"1.0","id":"1","source":"s","type":"t","subject":"a","data":%s}' % bomb,
        b'{"specversion":"1.0","id":"1","source":"s","type":"t","subject":"a","x":%s}' % bomb,
        b'[{"channel":"a","data":%s}]' % bomb,
        b'{"sub":"u","grants":%s}' % bomb,
        b'{"rewind":%s}' % bomb,
    ]
    async with serving() as served:
        for body in bodies:
            answer = await send(served, kind, body)
            assert (answer.status, code(answer)) in (
                (200, "too_large"),  # a line, which is answered by itself
                (200, "invalid_data"),
                (200, "bad_request"),
                (400, "bad_request"),
                (413, "too_large"),
                (422, "invalid_data"),
            ), body[:100]
        assert served.node.metrics.events_in == 0
        assert (await served.ask("GET", "/healthz")).status == 200


# ---- numbers


@pytest.mark.parametrize("number", ["9" * 5_000, "1e999", "NaN", "Infinity", "-1", "0x9", "1_0"])
async def test_numbers_in_addresses_and_headers(number: str) -> None:
    async with serving() as served:
        for path in (
            f"/v1/channels?limit={number}",
            f"/v1/channels/a/events?limit={number}",
            f"/v1/channels/a/events?from={number}",
            f"/v1/channels/a/presence?limit={number}",
            f"/v1/sessions?limit={number}",
            f"/v1/sse?channel=a&rewind={number}",
            f"/v1/sse?channel=a&from={number}",
            f"/v1/sse?channel=a&since={number}",
        ):
            answer = await served.ask("GET", path)
            assert (answer.status, code(answer)) == (400, "bad_request"), path


@pytest.mark.parametrize(
    "number",
    ["9" * 5_000, "1e999", "-1e999", "NaN", "Infinity", '"\\ud800"', "18446744073709551616"],
)
async def test_numbers_and_text_that_no_browser_could_read(number: str) -> None:
    cloud = '{"specversion":"1.0","id":"1","source":"s","type":"t","subject":"a",'
    bodies = [
        ("event", '{"channel":"a","data":%s}'),
        ("event", '[{"channel":"a","data":{"b":[%s]}}]'),
        ("event", '{"channel":"a","data":1,"tags":{"a":%s}}'),
        ("lines", '{"channel":"a","data":%s}'),
        ("CloudEvent", cloud + '"data":%s}'),
        ("CloudEvent", cloud + '"x":%s}'),
        ("CloudEvents", "[" + cloud + '"data":[%s]}]'),
        ("token", '{"sub":"u","ttl_s":%s}'),
        ("subscription", '{"rewind":%s}'),
    ]
    async with serving() as served:
        for kind, body in bodies:
            answer = await send(served, kind, (body % number).encode())
            assert answer.status in (200, 400, 422), (kind, body)
            assert code(answer) in ("invalid_data", "bad_request"), (kind, body)
        assert served.node.metrics.events_in == 0


# ---- keys


async def test_large_many_and_repeated_keys() -> None:
    """They pass, within the limit of an event, and mean the same to every kind of client."""
    values: list[tuple[str, Any]] = [
        (json.dumps({"k" * 60_000: 1}), None),
        (json.dumps({str(number): number for number in range(4_000)}), None),
        ('{"a":1,"b":2,"a":3}', {"a": 3, "b": 2}),
        ('{"a":{"x":1},"a":{"y":2}}', {"a": {"y": 2}}),
        ('{"__proto__":{"a":1},"constructor":1}', None),
        ('{"":0}', None),
    ]
    async with live(limits__session_publishes_per_s=0) as rig:
        clients = [await rig.ws(JSON), await rig.ws(MSGPACK)]
        stream = await rig.sse("channel=keys.a")
        for client in clients:
            await client.call("subscribe", channel="keys.a")
        for ref, (text, value) in enumerate(values, 100):
            command = f'{{"type":"publish","ref":{ref},"channel":"keys.a","data":{text}}}'
            await clients[0].write(client_frame(TEXT, command.encode()))
            seen = [(await client.next("event"))["data"] for client in clients]
            seen.append((await stream.event())["data"])
            expected = json.loads(text) if value is None else value
            assert seen == [expected] * 3


async def test_large_and_repeated_keys_in_messagepack() -> None:
    async with live() as rig:
        client, reader = await rig.ws(MSGPACK), await rig.ws(JSON)
        await reader.call("subscribe", channel="keys.a")
        await client.call("publish", channel="keys.a", data={"k" * 60_000: 1})
        assert (await reader.next("event"))["data"] == {"k" * 60_000: 1}
        client.ref += 1
        head = msgpack.packb({"type": "publish", "ref": client.ref, "channel": "keys.a", "data": 0})
        twice = b"\x82\xa1a\x01\xa1a\x03"
        await client.write(client_frame(2, head[:-1] + twice))
        assert (await client.reply(client.ref))["type"] == "published"
        assert (await reader.next("event"))["data"] == {"a": 3}


def test_keys_cannot_be_made_to_collide() -> None:
    """Python mixes a secret into the hash of text, unless the environment forbids it."""
    for name in ("Dockerfile", "deploy/docker-compose.yml", "docs/operations.md"):
        assert "PYTHONHASHSEED" not in (ROOT / name).read_text()
