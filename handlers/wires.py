"""How do bytes come in and go out? This file: what the messages of a WebSocket look like."""

import asyncio
from typing import Final

from config.serving import WebSocketSettings
from handlers.deflate import deflate
from handlers.frames import BINARY, TEXT, binary_frame, deflated_frame, text_frame
from pubsub.event import Event
from server.codec import JSON, MSGPACK, Codec
from server.metrics import Metrics
from server.protocol import Message

# What is larger is sent as it is. So much takes 1 to 2 ms at level 4 whatever it holds; at level 5
# up to 5 ms, at level 6, which no setting allows, 14 ms for text that is made for it.
_MOST_BYTES: Final = 81_920
# How long compressing may hold the loop in one turn of it, the last event not counted.
_HOLD_S: Final = 0.004
# Frames that are kept for sessions that come back, with what else an event is in memory.
_KEPT_BYTES: Final = 4_194_304
_EVENT_BYTES: Final = 512


class WebSocketWire:
    """Messages as WebSocket frames, one message a frame: text for JSON, binary for MessagePack."""

    individual = False

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.transport = "ws"
        self.label = codec.name
        self._frame = binary_frame if codec.binary else text_frame

    def event(self, event: Event, skipped: int = 0) -> bytes:
        """Return the frame of an event."""
        return self._frame(self.codec.event(event, skipped))

    def message(self, message: Message) -> bytes:
        """Return the frame of any other message."""
        return self._frame(self.codec.encode(message))


class CompressingTime:
    """How long all compressing wires of a node together hold the loop in one turn of it.

    One feed joins many events, and in a turn many sessions may have theirs replayed. Each event can
    be sent as it is, so what there is no time for is not compressed.
    """

    __slots__ = ("_spent", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._spent = 0.0

    @property
    def over(self) -> bool:
        """Whether nothing more is to be compressed in this turn."""
        return self._spent > _HOLD_S

    def spend(self, seconds: float) -> None:
        """Count the time that an event took."""
        if not self._spent:
            self.loop.call_soon(self._begin)
        self._spent += seconds

    def _begin(self) -> None:
        self._spent = 0.0


class DeflateWire(WebSocketWire):
    """The same with compressed events, each compressed once for all sessions.

    Only events are: other messages are for one session or small. A frame is kept for a while, so
    that sessions that come back together and have the same events replayed share it too.
    """

    def __init__(
        self, codec: Codec, settings: WebSocketSettings, time: CompressingTime, metrics: Metrics
    ) -> None:
        super().__init__(codec)
        self._opcode = BINARY if codec.binary else TEXT
        self._level = settings.compression_level
        self._least = settings.compression_min_bytes
        self._time = time
        self._metrics = metrics
        # By identity: feed, memory broker and shared reads hand out one object for one event, and
        # it stays alive, so its number its own, while it stands here.
        self._kept: dict[int, tuple[Event, bytes]] = {}
        self.kept_bytes = 0

    def event(self, event: Event, skipped: int = 0) -> bytes:
        """Return the frame of an event, compressed where that makes it smaller."""
        # Frames that say what was skipped are kept by who asks for them.
        kept = self._kept.get(id(event)) if not skipped else None
        if kept is not None:
            return kept[1]
        payload = self.codec.event(event, skipped)
        if not self._least <= len(payload) <= _MOST_BYTES or self._time.over:
            return self._frame(payload)
        clock = self._time.loop.time
        began = clock()
        squeezed = deflate(payload, self._level)
        self._time.spend(clock() - began)
        if len(squeezed) < len(payload):
            self._metrics.deflate_in += len(payload)
            self._metrics.deflate_out += len(squeezed)
            frame = deflated_frame(self._opcode, squeezed)
        else:
            frame = self._frame(payload)
        if not skipped:
            self._keep(event, frame)
        return frame

    def _keep(self, event: Event, frame: bytes) -> None:
        kept = self._kept
        kept[id(event)] = event, frame
        self.kept_bytes += _size(event, frame)
        while self.kept_bytes > _KEPT_BYTES:
            self.kept_bytes -= _size(*kept.pop(next(iter(kept))))


def _size(event: Event, frame: bytes) -> int:
    return _EVENT_BYTES + len(event.data) + len(frame)


WS_JSON: Final = WebSocketWire(JSON)
WS_MSGPACK: Final = WebSocketWire(MSGPACK)


class Wires:
    """The wires of a node: one object for each encoding, with and without compression."""

    def __init__(
        self, settings: WebSocketSettings, loop: asyncio.AbstractEventLoop, metrics: Metrics
    ) -> None:
        time = CompressingTime(loop)
        self._json = DeflateWire(JSON, settings, time, metrics)
        self._msgpack = DeflateWire(MSGPACK, settings, time, metrics)

    def find(self, *, binary: bool, deflated: bool) -> WebSocketWire:
        """Return the wire of a session."""
        if deflated:
            return self._msgpack if binary else self._json
        return WS_MSGPACK if binary else WS_JSON
