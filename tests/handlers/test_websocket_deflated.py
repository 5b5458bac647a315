"""Compression on a running node (RFC 7692), byte by byte, with the cases of the Autobahn suite."""

from __future__ import annotations

import json
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest

from client_frames import BINARY, PING, TEXT, client_frame, cut, deflated, fragments
from deflate_cases import FRAGMENTS, SIZES, Offer, offers, text
from handlers import wires
from handlers.deflate import deflate
from live_rig import JSON, MSGPACK, Client, Rig, live, until
from server.closing import Closing

RSV1 = 4
OFFER = "permessage-deflate; client_max_window_bits"
ON: dict[str, Any] = {"websocket__compression": True}
OPEN = {
    **ON,
    "limits__session_commands_per_s": 0,
    "limits__errors_per_minute": 0,
    "limits__frame_bytes": 2 * SIZES[-1],
}
DATA = {"text": "All happy families are alike; each unhappy family is so in its own way. " * 9}


async def compressing(rig: Rig, encoding: str = JSON, **more: Any) -> Client:
    client = await rig.ws(encoding, Sec_WebSocket_Extensions=OFFER, **more)
    assert "sec-websocket-extensions" in client.handshake.headers
    return client


def frames_of(client: Client, fields: dict[str, Any], size: int | None = None) -> bytes:
    """Return a compressed command, in fragments of `size`."""
    binary = client.encoding == MSGPACK
    payload = deflated(msgpack.packb(fields) if binary else json.dumps(fields).encode())
    parts = cut(payload, size) if size else [payload]
    return b"".join(fragments(BINARY if binary else TEXT, *parts, rsv=RSV1))


async def call(client: Client, type_: str, size: int | None = None, **fields: Any) -> Any:
    await client.write(frames_of(client, client.numbered(type_, **fields), size))
    return await client.reply(client.ref)


# ---- negotiation


async def test_it_is_off_by_default() -> None:
    async with live() as rig:
        client = await rig.ws(Sec_WebSocket_Extensions=OFFER)
        assert "sec-websocket-extensions" not in client.handshake.headers
        await client.call("subscribe", channel="a.b")
        await rig.publish("a.b", DATA)
        assert (await client.next("event"))["data"] == DATA
        assert client.deflated == []

        await client.write(frames_of(client, client.numbered("ping")))
        assert (await client.ended()).code == 4500
        assert rig.refusals("protocol_error") == 1


async def test_who_does_not_offer_it_does_not_get_it() -> None:
    async with live(**ON) as rig:
        client = await rig.ws()
        await client.call("subscribe", channel="a.b")
        await rig.publish("a.b", DATA)

        assert "sec-websocket-extensions" not in client.handshake.headers
        assert (await client.next("event"))["data"] == DATA
        await client.write(frames_of(client, client.numbered("ping")))
        assert (await client.ended()).code == 4500


@pytest.mark.parametrize("offer", offers(), ids=lambda offer: offer.id)
async def test_autobahn_13(offer: Offer) -> None:
    async with live(**OPEN) as rig:
        client = await rig.ws(Sec_WebSocket_Extensions=offer.header)
        assert ("sec-websocket-extensions" in client.handshake.headers) is offer.taken
        await client.call("subscribe", channel="a.b")
        for size in SIZES[:-2]:
            data = text(size, "words")
            if offer.taken:
                assert (await call(client, "ping", pad=data))["type"] == "pong"
            await rig.publish("a.b", data)
            assert (await client.next("event"))["data"] == data

        assert bool(client.deflated) is offer.taken


# ---- receiving


@pytest.mark.parametrize("kind", ["words", "zeros", "noise"])
@pytest.mark.parametrize("encoding", [JSON, MSGPACK])
async def test_autobahn_12(encoding: str, kind: str) -> None:
    async with live(**OPEN) as rig:
        client = await compressing(rig, encoding)
        for size in SIZES:
            assert (await call(client, "ping", pad=text(size, kind)))["type"] == "pong"
        for size in FRAGMENTS:
            pad = text(SIZES[-1], kind)
            assert (await call(client, "ping", size, pad=pad))["type"] == "pong"


async def test_control_frames_within_a_compressed_message() -> None:
    async with live(**ON) as rig:
        client = await compressing(rig)
        payload = deflated(json.dumps(client.numbered("ping")).encode())
        first, second = fragments(TEXT, payload[:9], payload[9:], rsv=RSV1)
        await client.write(first + client_frame(PING, b"between") + second)

        assert (await client.reply(client.ref))["type"] == "pong"
        assert client.pongs == [b"between"]


async def test_bomb_is_too_large() -> None:
    async with live(**ON) as rig:
        client = await compressing(rig)
        await client.write(client_frame(TEXT, deflated(b" " * 50_000_000), rsv=RSV1))

        assert (await client.ended()).code == 4505
        assert rig.refusals("frame_bytes") == 1
        await until(rig.nobody_left)


async def test_malformed_data_breaks_the_protocol() -> None:
    async with live(**ON) as rig:
        for frame in (
            client_frame(TEXT, b"Hello, world!", rsv=RSV1),
            client_frame(PING, b"", rsv=RSV1),
            client_frame(TEXT, deflated(b"\xff\xff"), rsv=RSV1),
        ):
            client = await compressing(rig)
            await client.write(frame)
            assert (await client.ended()).code == 4500
        assert rig.refusals("protocol_error") == 3


@pytest.mark.parametrize(("size", "count"), [(250_000, 200), (1_000, 1_500)])
async def test_many_messages_that_inflate_to_much_are_all_answered(size: int, count: int) -> None:
    """They come in one write, and are read no faster than they are carried out.

    Of the small ones the reader gives more at once than the session takes: it pauses, with more to
    read on either side.
    """
    async with live(**OPEN) as rig:
        client = await compressing(rig)
        pad = " " * size
        commands = [frames_of(client, client.numbered("ping", pad=pad)) for _ in range(count)]
        assert len(b"".join(commands)) < 120_000
        await client.write(b"".join(commands))
        last = client.ref

        for ref in range(last - count + 1, last + 1):
            assert (await client.reply(ref))["type"] == "pong"
        assert client.passed == []
        # And the connection still reads.
        assert (await client.call("ping"))["type"] == "pong"
        await client.goodbye()
        await until(rig.nobody_left)


async def test_end_comes_in_the_middle_of_what_is_still_to_be_read() -> None:
    # The client's close frame stands behind all that: it has to be come to.
    async with live(**OPEN, session__close_timeout_s=60.0) as rig:
        pad = "x" * 250_000
        for cut_off in (True, False):
            client = await compressing(rig)
            frames = [frames_of(client, client.numbered("ping", pad=pad)) for _ in range(100)]
            await client.write(b"".join(frames))
            if cut_off:
                client.reset()
            else:
                assert (await client.reply(client.ref - 99))["type"] == "pong"
                rig.sessions[0].end(Closing.GOING_AWAY)
                assert (await client.ended()).code == 4000
            await until(rig.nobody_left)


# ---- sending


@pytest.mark.parametrize("encoding", [JSON, MSGPACK])
async def test_events_come_compressed_and_nothing_else(encoding: str) -> None:
    async with live(**ON) as rig:
        client = await compressing(rig, encoding)
        await client.call("subscribe", channel="a.b")
        await rig.publish("a.b", 1)
        await rig.publish("a.b", DATA)
        small, large = await client.events(2)
        assert (small["data"], large["data"]) == (1, DATA)
        assert len(client.deflated) == 1

        assert (await client.call("history", channel="a.b"))["type"] == "events"
        assert len(client.deflated) == 1
        deflate_in = rig.counter("galecast_deflate_in_bytes_total")
        deflate_out = rig.counter("galecast_deflate_out_bytes_total")
        assert deflate_in > 600 > deflate_out == len(client.deflated[0])


async def test_bytes_out_are_those_on_the_wire() -> None:
    async with live(**ON) as rig:
        client = await compressing(rig)
        await client.call("subscribe", channel="a.b")
        before = rig.counter("galecast_bytes_out_total")
        await rig.publish("a.b", DATA)
        await client.next("event")

        # Of a frame with a header of four bytes.
        sent = rig.counter("galecast_bytes_out_total") - before
        assert sent == 4 + len(client.deflated[0])


async def test_one_frame_serves_many_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Live and replayed, in both encodings; sessions without compression beside them."""
    compressed: list[bytes] = []

    def counting(payload: bytes, level: int) -> bytes:
        compressed.append(payload)
        return deflate(payload, level)

    monkeypatch.setattr(wires, "deflate", counting)
    async with live(**ON) as rig:
        clients = [await compressing(rig, encoding) for encoding in (JSON, MSGPACK) * 15]
        plain = [await rig.ws(encoding) for encoding in (JSON, MSGPACK)]
        for client in clients + plain:
            await client.call("subscribe", channel="a.b")
        for number in range(3):
            await rig.publish("a.b", {**DATA, "n": number})
        for client in clients + plain:
            assert [each["data"]["n"] for each in await client.events(3)] == [0, 1, 2]
        assert len(compressed) == 6
        assert all(client.deflated == clients[0].deflated for client in clients[::2])
        assert all(client.deflated == clients[1].deflated for client in clients[1::2])
        assert all(client.deflated == [] for client in plain)

        for _ in range(5):
            late = await compressing(rig)
            await late.call("subscribe", channel="a.b", rewind=3)
            assert [each["data"]["n"] for each in await late.events(3)] == [0, 1, 2]
            assert late.deflated == clients[0].deflated
        assert len(compressed) == 6


async def test_publisher_that_is_left_out() -> None:
    async with live(**ON) as rig:
        author, reader = await compressing(rig), await compressing(rig)
        for client in (author, reader):
            await client.call("subscribe", channel="a.b")
        await call(author, "publish", channel="a.b", data=DATA, echo=False)
        await call(author, "publish", channel="a.b", data={**DATA, "n": 2})

        assert [each["data"] for each in await reader.events(2)] == [DATA, {**DATA, "n": 2}]
        assert (await author.next("event"))["data"] == {**DATA, "n": 2}
        assert author.passed == []
