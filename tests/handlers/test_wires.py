from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest

from client_frames import inflated
from config.serving import WebSocketSettings
from handlers import wires
from handlers.deflate import deflate
from handlers.wires import WS_JSON, WS_MSGPACK, CompressingTime, DeflateWire, Wires
from pubsub.event import Event
from pubsub.position import Position
from server.codec import JSON, MSGPACK, Codec
from server.metrics import Metrics
from server.protocol import Pong

TEXT = b'"' + b"All happy families are alike. " * 40 + b'"'


def event(data: bytes = TEXT, offset: int = 1) -> Event:
    position = Position("0123456789abcdef", offset, "0" * 16)
    return Event("a.b", position, "0" * 16, "id", "message", data, 1_789_000_000_000)


class Rig:
    """A wire, and how often it compressed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, codec: Codec = JSON, **settings: Any):
        self.metrics = Metrics(version="1")
        self.time = CompressingTime(asyncio.get_running_loop())
        given = WebSocketSettings(compression=True, **settings)
        self.wire = DeflateWire(codec, given, self.time, self.metrics)
        self.compressed = 0
        compress = deflate

        def counting(payload: bytes, level: int) -> bytes:
            self.compressed += 1
            return compress(payload, level)

        monkeypatch.setattr(wires, "deflate", counting)


Make = Callable[..., Rig]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    return lambda *args, **settings: Rig(monkeypatch, *args, **settings)


def payload_of(frame: bytes) -> bytes:
    size = frame[1]
    return frame[2:] if size < 126 else frame[4:] if size == 126 else frame[10:]


@pytest.mark.parametrize(("codec", "opcode"), [(JSON, 1), (MSGPACK, 2)])
async def test_event_is_compressed(make: Make, codec: Codec, opcode: int) -> None:
    rig = make(codec)
    frame = rig.wire.event(event())

    assert frame[0] == 0xC0 | opcode
    assert inflated(payload_of(frame)) == codec.event(event())
    assert len(frame) < len(codec.event(event())) / 3
    assert rig.metrics.deflate_in == len(codec.event(event()))
    assert rig.metrics.deflate_out == len(payload_of(frame))


async def test_event_is_compressed_once_whoever_asks(make: Make) -> None:
    """A session that comes back has the same object replayed that went to the others live."""
    rig, one = make(), event()

    frames = [rig.wire.event(one) for _ in range(1000)]

    assert all(frame is frames[0] for frame in frames)
    assert rig.compressed == 1


async def test_event_that_says_what_was_skipped_is_another_frame(make: Make) -> None:
    rig, one = make(), event()
    whole, after = rig.wire.event(one), rig.wire.event(one, 3)

    assert json.loads(inflated(payload_of(after)))["skipped"] == 3
    assert "skipped" not in json.loads(inflated(payload_of(whole)))
    assert rig.wire.event(one) is whole


async def test_small_event_stays_as_it_is(make: Make) -> None:
    size = len(JSON.event(event()))

    for least, compressed in ((0, 1), (size, 1), (size + 1, 0)):
        rig = make(compression_min_bytes=least)
        frame = rig.wire.event(event())
        assert rig.compressed == compressed
        assert (frame == WS_JSON.event(event())) is not compressed


async def test_event_that_does_not_get_smaller_is_sent_as_it_is(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, one = make(compression_min_bytes=0), event()
    monkeypatch.setattr(rig.wire, "codec", _Random())

    frame = rig.wire.event(one)
    assert frame[0] == 0x81 and len(payload_of(frame)) == 300
    assert rig.metrics.deflate_in == 0
    # Not tried again either.
    assert rig.wire.event(one) is frame and rig.compressed == 1


class _Random:
    """A codec whose events cannot be compressed."""

    name, binary = "json", False

    def event(self, _event: Event, _skipped: int = 0) -> bytes:
        return os.urandom(300)


async def test_very_large_event_is_not_compressed(make: Make) -> None:
    rig = make()
    frame = rig.wire.event(event(b'"' + b"a" * 90_000 + b'"'))

    assert rig.compressed == 0 and frame[0] == 0x81


@pytest.mark.parametrize("codec", [JSON, MSGPACK])
async def test_other_messages_are_not_compressed(make: Make, codec: Codec) -> None:
    rig = make(codec, compression_min_bytes=0)

    plain = WS_JSON if codec is JSON else WS_MSGPACK
    assert rig.wire.message(Pong(ref=1)) == plain.message(Pong(ref=1))
    assert rig.compressed == 0


async def test_compressing_has_its_time_in_each_turn(make: Make) -> None:
    rig = make()
    rig.wire.event(event(offset=1))
    before = rig.time.over
    rig.time.spend(1.0)
    assert (before, rig.time.over) == (False, True)

    shed = event(offset=2)
    assert rig.wire.event(shed) == WS_JSON.event(shed)
    await asyncio.sleep(0)

    # What there was no time for is not taken for what cannot be compressed.
    assert rig.wire.event(shed)[0] == 0xC1
    assert rig.compressed == 2


async def test_time_is_of_all_wires_together() -> None:
    settings = WebSocketSettings(compression=True)
    both = Wires(settings, asyncio.get_running_loop(), Metrics(version="1"))
    json = both.find(binary=False, deflated=True)
    msgpack_ = both.find(binary=True, deflated=True)
    assert isinstance(json, DeflateWire) and isinstance(msgpack_, DeflateWire)

    json._time.spend(1.0)

    assert msgpack_.event(event())[0] == 0x82


async def test_frames_kept_are_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wires, "_KEPT_BYTES", 20_000)
    rig = make()
    events = [event(offset=number) for number in range(50)]
    for each in events:
        rig.wire.event(each)
        await asyncio.sleep(0)
        assert rig.wire.kept_bytes <= 20_000
    assert rig.compressed == 50

    # The newest are there, the oldest are not.
    rig.wire.event(events[-1])
    assert rig.compressed == 50
    rig.wire.event(events[0])
    assert rig.compressed == 51
    kept = rig.wire._kept.values()
    assert rig.wire.kept_bytes == sum(512 + len(each.data) + len(f) for each, f in kept)


async def test_one_object_for_all_sessions_of_a_kind() -> None:
    loop, metrics = asyncio.get_running_loop(), Metrics(version="1")
    both = Wires(WebSocketSettings(), loop, metrics)

    assert both.find(binary=False, deflated=False) is WS_JSON
    assert both.find(binary=True, deflated=False) is WS_MSGPACK
    for binary in (False, True):
        wire = both.find(binary=binary, deflated=True)
        assert wire is both.find(binary=binary, deflated=True)
        assert (wire.transport, wire.label) == ("ws", "msgpack" if binary else "json")
    frame = both.find(binary=True, deflated=True).event(event())
    assert msgpack.unpackb(inflated(payload_of(frame)))["type"] == "event"
