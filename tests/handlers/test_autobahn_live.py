"""The cases of the Autobahn test suite against a running node.

The protocol has no echo. What is valid must not end the connection, and its pings are answered;
what is invalid ends it with a close frame and the end of the stream.
"""

from __future__ import annotations

import zlib

import pytest

from autobahn_cases import LARGEST_BYTES, Case, cases
from client_frames import BINARY, CLOSE, PING, TEXT, client_frame
from live_rig import JSON, MSGPACK, Client, Rig, live

# Each message in them is answered by an error, so those limits are out of the way.
OPEN = {
    "limits__frame_bytes": LARGEST_BYTES,
    "limits__unsent_bytes": 4 * LARGEST_BYTES,
    "limits__errors_per_minute": 0,
    "limits__session_commands_per_s": 0,
    "limits__control_frames_per_s": 1000,
}
GROUPS = sorted({case.id.partition(".")[0] for case in cases()}, key=int)


def encoding_of(case: Case) -> str:
    """Say which encoding makes the messages of a case the right kind of frame."""
    kinds = {opcode for opcode, _payload in case.items if opcode in (TEXT, BINARY)}
    opening = case.frames[0][0] & 0x0F
    return MSGPACK if BINARY in kinds or (not kinds and opening == BINARY) else JSON


async def run(rig: Rig, case: Case) -> None:
    client = await rig.ws(encoding_of(case))
    for chunk in case.chunks():
        try:
            await client.write(chunk)
        except (BrokenPipeError, ConnectionResetError):
            # The server may be done before the client has sent it all.
            assert case.failure is not None
            break
    if case.failure is not None:
        await failed(client)
        return
    await held(client, case)


async def failed(client: Client) -> None:
    """See a proper close frame and the end of the stream."""
    ended = await client.ended(answer=False)
    assert ended.code in (4500, 4505)
    assert ended.last == {
        "type": "closing",
        "code": ended.code,
        "reason": ended.reason,
    }


async def held(client: Client, case: Case) -> None:
    """See every message and ping answered, and the close frame if there was one."""
    closes = [payload for opcode, payload in case.items if opcode == CLOSE]
    pings = [payload for opcode, payload in case.items if opcode == PING]
    messages = sum(opcode in (TEXT, BINARY) for opcode, _payload in case.items)
    if closes:
        ended = await client.ended(answer=False)
        assert ended.code == (int.from_bytes(closes[0][:2], "big") if closes[0] else 1005)
        assert [each["type"] for each in ended.messages] == ["error"] * messages
    else:
        for _ in range(messages):
            message = await client.message()
            assert message["type"] == "error", message
            assert message["code"] in ("bad_request", "bad_ref", "invalid_data")
        assert (await client.call("ping"))["type"] == "pong"
    assert client.pongs == pings


@pytest.mark.parametrize("group", GROUPS)
async def test_group(group: str) -> None:
    async with live(**OPEN) as rig:
        for case in cases():
            if case.id.partition(".")[0] != group:
                continue
            try:
                await run(rig, case)
            except BaseException as error:
                error.add_note(f"in case {case.id}")
                raise
            rig.open.pop().close()


# What the suite offers in its groups 12 and 13, and some that are none.
OFFERS = [
    "permessage-deflate",
    "permessage-deflate; client_no_context_takeover; client_max_window_bits",
    "permessage-deflate; server_no_context_takeover; server_max_window_bits=9",
    "permessage-deflate; server_max_window_bits=15, permessage-deflate",
    "x-webkit-deflate-frame",
    "permessage-bzip2",
    'permessage-deflate; server_max_window_bits="99"',
    ";;=,",
]


@pytest.mark.parametrize("offer", OFFERS)
async def test_compression_is_not_negotiated(offer: str) -> None:
    """Unless that is set: a compressed frame has a reserved bit set, and is never inflated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(b" " * (16 << 20)) + packer.flush(zlib.Z_SYNC_FLUSH)
    async with live() as rig:
        client = await rig.ws(Sec_WebSocket_Extensions=offer)
        assert "sec-websocket-extensions" not in client.handshake.headers
        assert (await client.call("ping"))["type"] == "pong"
        await client.write(client_frame(TEXT, packed.removesuffix(b"\0\0\xff\xff"), rsv=4))
        await failed(client)
        assert rig.refusals("protocol_error") == 1
