"""Frames as a client sends them, right or wrong in any way that a test asks for."""

from __future__ import annotations

import sys
import zlib

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

MASK = bytes.fromhex("37fa213d")  # of the example in RFC 6455 5.7


def mask_bytes(payload: bytes, mask: bytes = MASK) -> bytes:
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    number = int.from_bytes(payload, sys.byteorder) ^ int.from_bytes(key, sys.byteorder)
    return number.to_bytes(size, sys.byteorder)


def client_header(
    opcode: int,
    length: int,
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length_bytes: int | None = None,
) -> bytes:
    """Build the part before the mask; `length_bytes` (0, 2 or 8) forces a form of the length."""
    if length_bytes is None:
        length_bytes = 0 if length < 126 else 2 if length < 65536 else 8
    short = {0: length, 2: 126, 8: 127}[length_bytes]
    opening = bytes(((0x80 if fin else 0) | rsv << 4 | opcode, (0x80 if masked else 0) | short))
    return opening + (length.to_bytes(length_bytes, "big") if length_bytes else b"")


def client_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    length_bytes: int | None = None,
) -> bytes:
    """Build a frame; without `mask` it is sent bare."""
    header = client_header(
        opcode,
        len(payload),
        fin=fin,
        rsv=rsv,
        masked=mask is not None,
        length_bytes=length_bytes,
    )
    return header + (payload if mask is None else mask + mask_bytes(payload, mask))


def deflated(payload: bytes, level: int = 6, window_bits: int = 15) -> bytes:
    """Compress a message as a client does (RFC 7692 7.2.1)."""
    squeezer = zlib.compressobj(level, zlib.DEFLATED, -window_bits)
    squeezed = squeezer.compress(payload) + squeezer.flush(zlib.Z_SYNC_FLUSH)
    assert squeezed.endswith(b"\0\0\xff\xff")
    return squeezed[:-4]


def inflated(payload: bytes) -> bytes:
    """Read a message of a server that said to look back 4 KiB at most (RFC 7692 7.2.2)."""
    stretcher = zlib.decompressobj(-12)
    found = stretcher.decompress(payload + b"\0\0\xff\xff")
    assert not stretcher.eof and not stretcher.unconsumed_tail
    return found


def client_close(code: int | None = None, reason: bytes = b"") -> bytes:
    return client_frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason)


def fragments(opcode: int, *parts: bytes, rsv: int = 0) -> tuple[bytes, ...]:
    """Build one message in as many frames as there are parts; `rsv` is the first one's."""
    last = len(parts) - 1
    return tuple(
        client_frame(
            CONTINUATION if index else opcode,
            part,
            fin=index == last,
            rsv=0 if index else rsv,
        )
        for index, part in enumerate(parts)
    )


def cut(payload: bytes, size: int) -> list[bytes]:
    return [payload[at : at + size] for at in range(0, len(payload), size)]
