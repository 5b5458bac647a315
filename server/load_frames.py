"""Who is connected here? This file: what a load client reads and writes on a WebSocket (pure)."""

import struct
from collections.abc import Callable
from typing import Final

Framing = Callable[[bytes], tuple[list[tuple[int, int]], int]]
"""Bytes that begin with a frame in; where each whole message lies, and where the rest begins.

Bounds are those of the whole frame, head included. Control frames that say nothing of events (ping
and pong) are left out.
"""

_CONTROL_UNHEARD: Final = (0x9, 0xA)
_LENGTH16: Final = struct.Struct(">H").unpack_from
_LENGTH64: Final = struct.Struct(">Q").unpack_from

PING: Final = b"\x89\x00"
# Unmasked frames are refused by every server; a mask of zeros is legal and costs nothing.
PONG_MASKED: Final = b"\x8a\x80\0\0\0\0"


def websocket_frames(data: bytes) -> tuple[list[tuple[int, int]], int]:
    """See Framing; frames of a server, which are not masked (RFC 6455, 5.2)."""
    found = []
    at, size = 0, len(data)
    while size - at >= 2:
        length, body = data[at + 1], at + 2
        if length == 126:
            if size - at < 4:
                break
            (length,), body = _LENGTH16(data, body), at + 4
        elif length == 127:
            if size - at < 10:
                break
            (length,), body = _LENGTH64(data, body), at + 10
        end = body + length
        if end > size:
            break
        if data[at] & 0x0F not in _CONTROL_UNHEARD:
            found.append((at, end))
        at = end
    return found, at


def masked(payload: bytes, *, binary: bool = False) -> bytes:
    """Return a client's frame with a mask of zeros; text unless `binary`."""
    size = len(payload)
    opcode = 0x82 if binary else 0x81
    if size < 126:
        head = bytes((opcode, 0x80 | size))
    elif size < 65_536:
        head = bytes((opcode, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((opcode, 0xFF)) + size.to_bytes(8, "big")
    return head + b"\0\0\0\0" + payload
