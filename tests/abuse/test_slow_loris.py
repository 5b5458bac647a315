"""Who sends or reads too slowly is cut off, in whatever phase, while all others are served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import chain, repeat
from typing import Final

import pytest

from client_frames import CONTINUATION, TEXT, client_frame, client_header
from live_rig import Rig, Wire, live, until

# All times that cut somebody off, shortened; far shorter than the test waits.
SHORT: Final = {
    "http__idle_timeout_s": 0.5,
    "http__body_timeout_s": 0.5,
    "session__ping_s": 0.3,
    "session__send_timeout_s": 0.5,
    "session__close_timeout_s": 0.5,
}
PAUSE_S: Final = 0.03
BIG: Final = "x" * 60_000


def head(start: str, *lines: str) -> bytes:
    return "\r\n".join((start, "Host: localhost", *lines, "", "")).encode()


AUTH: Final = "Authorization: Bearer dev.galecast"
POST: Final = "POST /v1/events HTTP/1.1"
CHUNKED: Final = "Transfer-Encoding: chunked"
NDJSON: Final = "Content-Type: application/x-ndjson"

# What is sent at once, then byte by byte without an end.
DRIPS: Final = {
    "nothing": (b"", b""),
    "first line": (b"", b"GET /" + b"a" * 1_000),
    "head": (head("GET /healthz HTTP/1.1")[:-2], b"X-A: " + b"b" * 1_000),
    "header lines": (head("GET /healthz HTTP/1.1")[:-2], b"a: b\r\n" * 200),
    "handshake": (
        head("GET /v1/ws HTTP/1.1", "Upgrade: websocket", "Connection: Upgrade")[:-2],
        b"X-A: " + b"b" * 1_000,
    ),
    "empty lines before a request": (b"", b"\r\n" * 500),
    "body": (head(POST, AUTH, "Content-Length: 1000"), b" " * 999),
    "body of a request that is refused": (head(POST, "Content-Length: 1000"), b" " * 999),
    "body over the limit": (head(POST, AUTH, "Content-Length: 99999999"), b" " * 1_000),
    "chunks": (head(POST, AUTH, CHUNKED), b"1\r\n \r\n" * 200),
    "size of a chunk": (head(POST, AUTH, CHUNKED), b"0" * 60),
    "line": (head(POST, AUTH, NDJSON, CHUNKED), b"1\r\n \r\n" * 200),
    "body of a WebSocket handshake": (
        head("GET /v1/ws HTTP/1.1", "Upgrade: websocket", "Content-Length: 1000"),
        b" " * 999,
    ),
}


async def drip(wire: Wire, data: bytes) -> None:
    """Send bytes one by one, and the last ones again and again."""
    with suppress(ConnectionError):
        for byte in chain(data, repeat(None)):
            if byte is not None:
                await wire.write(bytes((byte,)))
            await asyncio.sleep(PAUSE_S)


@asynccontextmanager
async def others_are_served(rig: Rig) -> AsyncIterator[None]:
    """See, while the block runs, that events reach a WebSocket and an event stream."""
    client, stream = await rig.ws(), await rig.sse("channel=served.a")
    await client.call("subscribe", channel="served.a")
    sent, over = 0, False

    async def publish() -> None:
        nonlocal sent
        while not over:
            await rig.publish("served.a", sent)
            sent += 1
            for event in (await client.next("event"), await stream.event()):
                assert event["data"] == sent - 1
            await asyncio.sleep(PAUSE_S)

    publishing = asyncio.create_task(publish())
    try:
        yield
    finally:
        over = True
        await publishing
        assert sent > 1


async def cut_off(wire: Wire, work: Callable[[], Awaitable[None]]) -> None:
    """Do something on a connection for as long as it lasts, and see it end."""
    working = asyncio.ensure_future(work())
    try:
        with suppress(ConnectionError):
            await wire.rest()
    finally:
        working.cancel()
        await asyncio.wait([working])
        wire.close()


async def test_who_sends_byte_by_byte() -> None:
    """All of them at once. Who sent a stream of lines byte by byte could do so for ever."""
    async with live(**SHORT) as rig, others_are_served(rig):

        async def one(phase: str) -> None:
            at_once, slowly = DRIPS[phase]
            wire = await rig.wire()
            await wire.write(at_once)
            try:
                await cut_off(wire, lambda: drip(wire, slowly))
            except BaseException as error:
                error.add_note(f"in the phase {phase!r}")
                raise

        await asyncio.gather(*map(one, DRIPS))
        await until(lambda: rig.app.http_connections <= 1)
        assert len(rig.sessions) == 2


async def test_between_two_requests() -> None:
    async with live(**SHORT) as rig, others_are_served(rig):
        wire = await rig.wire()
        await wire.write(head("GET /healthz HTTP/1.1"))
        assert (await rig.response(wire)).status == 200
        await cut_off(wire, lambda: drip(wire, b"GET /" + b"a" * 1_000))


async def test_before_connect() -> None:
    short = SHORT | {"session__connect_timeout_s": 0.5}
    async with live(**short) as rig, others_are_served(rig):
        client = await rig.ws(connect=False)
        ended = await client.ended()
        assert ended.code == 4004
        client.close()


@pytest.mark.parametrize(
    "piece", [client_frame(CONTINUATION, fin=False), client_frame(CONTINUATION, b" ", fin=False)]
)
async def test_a_message_in_pieces_without_an_end(piece: bytes) -> None:
    async with live(**SHORT) as rig, others_are_served(rig):
        client = await rig.ws()
        await client.write(client_frame(TEXT, b"{", fin=False))
        await cut_off(client, lambda: drip(client, piece * 100))
        assert rig.refusals("slow_message") == 1


async def test_a_frame_without_an_end() -> None:
    async with live(**SHORT) as rig, others_are_served(rig):
        client = await rig.ws()
        await client.write(client_header(TEXT, 1_000))
        await cut_off(client, lambda: drip(client, b" " * 900))
        assert rig.refusals("slow_message") == 1


# ---- reading


async def unread(rig: Rig, phase: str) -> Wire:
    """Open something that the node has much to say to, and of which nothing is read."""
    if phase == "WebSocket":
        client = await rig.ws(receive_bytes=4_096)
        await client.call("subscribe", channel="unread.a")
        return client
    if phase == "event stream":
        stream = await rig.sse("channel=unread.a", receive_bytes=4_096)
        await stream.control("subscribed")
        return stream
    wire = await rig.wire(receive_bytes=4_096)
    if phase == "answer":
        await wire.write(head("GET /v1/channels/unread.a/events?limit=500 HTTP/1.1", AUTH))
    elif phase == "answers one after another":
        request = head("GET /v1/channels/unread.a/events?limit=20 HTTP/1.1", AUTH)
        await wire.write(request * 200)
    else:
        await wire.write(head(POST, AUTH, NDJSON, CHUNKED))
    return wire


@pytest.mark.parametrize(
    "phase", ["WebSocket", "event stream", "answer", "answers one after another", "lines"]
)
async def test_who_never_reads(phase: str) -> None:
    """Over HTTP they were never cut off: each held its whole answer for as long as it liked."""
    patient = {"session__ping_s": 60.0, "limits__unsent_bytes": 1 << 30}
    async with live(**(SHORT | patient)) as rig, others_are_served(rig):
        for _ in range(100):
            await rig.publish("unread.a", BIG)
        wire = await unread(rig, phase)
        if phase in ("WebSocket", "event stream"):
            while not rig.node.metrics.unsent_bytes:
                await rig.publish("unread.a", BIG)
        elif phase == "lines":
            line = b'{"channel":"unread.b"}\n' * 1_000
            with pytest.raises(ConnectionError):
                while True:
                    await wire.write(b"%x\r\n%s\r\n" % (len(line), line))
        await until(lambda: rig.refusals("send_timeout_s") == 1)
        await until(lambda: len(rig.sessions) == 2 and rig.app.http_connections <= 1)
        await rig.node.lifecycle.requests_done()


async def test_who_reads_slowly_is_not_cut_off() -> None:
    """An answer may take as long as it likes, while some of it is taken."""
    # Longer than a machine stands still: then nothing is taken either.
    async with live(**(SHORT | {"session__send_timeout_s": 2.0})) as rig:
        for _ in range(100):
            await rig.publish("unread.a", BIG)
        wire = await unread(rig, "answer")
        loop = asyncio.get_running_loop()
        end = loop.time() + 2.5 * 2.0
        while loop.time() < end:
            wire.buffer += await loop.sock_recv(wire.sock, 4_096)
            await asyncio.sleep(PAUSE_S)
        assert len((await rig.response(wire)).json["events"]) == 100
        assert rig.refusals("send_timeout_s") == 0
