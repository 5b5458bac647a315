"""How do bytes come in and go out? Compressed, where both ends agreed to it (RFC 7692).

Pure: permessage-deflate without context takeover in either direction. Each message is compressed on
its own, so what is compressed once serves every client, and nothing is kept between messages.
"""

from __future__ import annotations

import zlib
from typing import Final

WINDOW_BITS: Final = 12
"""What we compress with looks back 2^12 bytes, which every client that asks for less than the whole
32 KiB still takes (the library websockets asks for 12). Measured against 15: the same size up to
4 KB, 6 % more at 64 KB, and less to clear for each event."""

_MEMORY_LEVEL: Final = 5
# Clients look back as far as they like: it costs memory only while a message is read.
_CLIENT_WINDOW_BITS: Final = 15

# What a flush ends with; it is not sent (RFC 7692 7.2.1) and put back to read (7.2.2).
_TAIL: Final = b"\0\0\xff\xff"
# An empty last block behind that: reached only if everything before it is whole.
_END: Final = b"\1\0\0\xff\xff"
# A message may hold several final blocks (RFC 7692 7.2.1). Nobody sends many, and each is a new
# start that copies what follows it.
_MOST_STREAMS: Final = 64


class DeflateError(ValueError):
    """Compressed data is malformed or ends within a block."""


def deflate(payload: bytes, level: int) -> bytes:
    """Compress a message; `level` is zlib's, from 1 (fast) to 9 (small)."""
    squeezer = zlib.compressobj(level, zlib.DEFLATED, -WINDOW_BITS, _MEMORY_LEVEL)
    return (squeezer.compress(payload) + squeezer.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]


def inflate(payload: bytes | bytearray, most: int) -> bytes:
    """Return what a compressed message holds, but no more than `most` bytes and one.

    So a result over `most` bytes stands for a message that is too large, however large it would
    be; no more of it is made. Raises DeflateError.
    """
    rest = bytes(payload) + _TAIL + _END
    found = b""
    for _ in range(_MOST_STREAMS):
        stretcher = zlib.decompressobj(-_CLIENT_WINDOW_BITS)
        try:
            found += stretcher.decompress(rest, most + 1 - len(found))
        except zlib.error:
            raise DeflateError("malformed compressed data") from None
        if len(found) > most:
            return found
        if not stretcher.eof:
            break
        rest = stretcher.unused_data
        if not rest:
            return found
    raise DeflateError("compressed data without its end")
