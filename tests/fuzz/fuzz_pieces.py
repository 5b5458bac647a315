"""Fuzz targets of bytes that come in pieces: however they are cut, the same is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from client_frames import client_frame
from fuzz_targets import target
from handlers.deflate import deflate, inflate
from handlers.frames import CLOSE, TEXT, FrameLimits, FrameReader, frame, parse_close
from handlers.lines import LineCutter, LineTooLong


def pieces(data: bytes, sizes: bytes) -> Iterator[bytes]:
    """Cut bytes by sizes that come around again."""
    at = index = 0
    while at < len(data):
        size = 1 + sizes[index % len(sizes)] if sizes else 1
        yield data[at : at + size]
        at, index = at + size, index + 1


def read_frames(parts: Iterator[bytes], limits: FrameLimits) -> tuple[list[Any], str | None]:
    reader = FrameReader(limits)
    items = []
    for part in parts:
        items += reader.feed(part)
        while reader.backlog:
            items += reader.feed(b"")
        assert reader.held_bytes <= limits.message_bytes + 2 * 139
    return items, reader.violation.reason if reader.violation else None


@target
def frames(data: bytes) -> None:
    """However bytes are cut, the same frames are read, and they read back as they are built."""
    sizes, _, stream = data[:600].partition(b"\0")
    plain, deflated = FrameLimits(1 << 16), FrameLimits(1 << 16, deflated=True)
    for limits in (plain, deflated, FrameLimits(200, fragments=3)):
        whole = read_frames(iter((stream,)), limits)
        assert read_frames(pieces(stream, b""), limits) == whole
        assert read_frames(pieces(stream, sizes), limits) == whole
        for opcode, payload in whole[0]:
            if opcode == TEXT:
                payload.decode()
            elif opcode == CLOSE:
                parse_close(payload)
            assert len(payload) <= limits.message_bytes
            again, flaw = read_frames(iter((client_frame(opcode, payload),)), limits)
            assert again == [(opcode, payload)] and flaw is None
            assert frame(opcode, payload).endswith(payload)
            assert inflate(deflate(payload, 4), len(payload)) == payload


@target
def lines(data: bytes) -> None:
    """However bytes are cut, the same lines are read, none over the limit."""
    sizes, _, stream = data.partition(b"\0")

    def cut(parts: Iterator[bytes]) -> list[object]:
        cutter = LineCutter(20)
        found: list[object] = []
        for part in parts:
            found += cutter.feed(part)
        found += cutter.end()
        return [LineTooLong if isinstance(each, LineTooLong) else each for each in found]

    whole = cut(iter((stream,)))
    assert cut(pieces(stream, b"")) == whole
    assert cut(pieces(stream, sizes)) == whole
    assert all(each is LineTooLong or 0 < len(each) <= 20 for each in whole)  # type: ignore[arg-type]
