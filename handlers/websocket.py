"""How do bytes come in and go out? This file: WebSocket sessions."""

import socket
import time
from typing import Final

from handlers.base import BaseHandler, ProblemError
from handlers.frames import (
    BINARY,
    CLOSE,
    PING,
    PING_FRAME,
    PONG,
    TEXT,
    FrameLimits,
    FrameReader,
    binary_frame,
    close_frame,
    parse_close,
    pong_frame,
    text_frame,
)
from handlers.handshake import MSGPACK_PROTOCOL, HandshakeRejected, accept_upgrade, response_head
from handlers.lean import ConnectionContext, Heartbeat, LeanConnection
from handlers.live import Live
from pubsub.event import Event
from server.closing import Closing
from server.codec import JSON, MSGPACK, Codec
from server.connection import Peer
from server.limits import TokenBucket
from server.protocol import Message
from server.session import NOBODY, Session


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


WS_JSON: Final = WebSocketWire(JSON)
WS_MSGPACK: Final = WebSocketWire(MSGPACK)


class WebSocketConnection(LeanConnection):
    """A WebSocket on a socket of its own.

    Pings are driven by the wheel; a client from which nothing came since the last one is gone. So
    is one whose message takes longer than from one beat to the next, whatever drips in.
    """

    transport = "ws"

    __slots__ = ("_controls", "_heard", "_midway", "_opcode", "_rate", "_reader", "_slot")

    def __init__(
        self,
        sock: socket.socket,
        context: ConnectionContext,
        limits: FrameLimits,
        heartbeat: Heartbeat,
        *,
        binary: bool,
        controls_per_s: int,
    ) -> None:
        super().__init__(sock, context)
        self._reader = FrameReader(limits)
        self._opcode = BINARY if binary else TEXT
        self._heard = True
        self._midway = False
        self._rate = controls_per_s
        self._controls: TokenBucket | None = None
        self._slot = heartbeat.add(self)

    def receive(self, data: bytes) -> None:
        """Take frames apart: messages go to the session, control frames are answered here."""
        self._heard = True
        reader, peer = self._reader, self.peer
        if self._closing or peer is None:
            self._await_close(data)
            return
        messages = []
        for opcode, payload in reader.feed(data):
            if opcode == self._opcode:
                messages.append(payload)
            elif opcode == CLOSE:
                if messages:
                    peer.on_messages(messages)
                self._on_close(peer, payload)
                return
            elif opcode in (PING, PONG):
                if not self._allow_control():
                    self._context.metrics.refused("control_frames_per_s")
                    peer.on_violation(Closing.RATE_LIMITED)
                    return
                if opcode == PING:
                    self.send(pong_frame(payload))
            else:
                # Text where MessagePack was agreed on, or the other way round.
                self._context.metrics.refused("protocol_error")
                peer.on_violation(Closing.PROTOCOL_ERROR)
                return
        if messages:
            self._midway = False
            peer.on_messages(messages)
        violation = reader.violation
        if violation is not None:
            too_large = violation.code == Closing.TOO_LARGE.code
            self._context.metrics.refused("frame_bytes" if too_large else "protocol_error")
            peer.on_violation(Closing.TOO_LARGE if too_large else Closing.PROTOCOL_ERROR)

    def _allow_control(self) -> bool:
        if self._controls is None:
            self._controls = TokenBucket(self._rate)
        return not self._controls.take(time.monotonic())

    def _await_close(self, data: bytes) -> None:
        """After our close frame only the peer's matters; all else is dropped unread."""
        if any(opcode == CLOSE for opcode, _payload in self._reader.feed(data)):
            if self._buffer is None:
                self.abort()
            # Else it ends when all is sent: both may have closed at the same time.

    def _on_close(self, peer: Peer, payload: bytes) -> None:
        """Answer the peer's close frame with its own code, once its session is over."""
        # Nothing more is read: an end of the stream here would cut off what is still carried out.
        self.pause()
        code, _reason = parse_close(payload)
        peer.on_goodbye(lambda: self._answer_close(code))

    def _answer_close(self, code: int) -> None:
        if not self._closing:
            self.peer = None
            self.send(close_frame(code))
            self._begin_end()

    def farewell(self, closing: Closing) -> bytes:
        """Return the close frame."""
        return close_frame(closing.code, closing.reason)

    def _finish(self) -> None:
        # The peer's close frame is awaited (RFC 6455 7.1.1), or has come already.
        if self._reader.closed:
            super()._finish()

    def beat(self) -> None:
        """Ping; a peer that gave no sign of life since the last one is gone."""
        if self._closing or self.peer is None:
            return
        if self._paused:
            return
        if not self._heard:
            self.peer.on_violation(Closing.NO_PONG)
            return
        if self._reader.midway and self._midway:
            self._context.metrics.refused("slow_message")
            self.peer.on_violation(Closing.PROTOCOL_ERROR)
            return
        self._midway = self._reader.midway
        self._heard = False
        self.send(PING_FRAME)

    def lost(self) -> None:
        """Leave the wheel."""
        self._slot.pop(self, None)


class WebSocketHandler(BaseHandler):
    """`GET /v1/ws`: checks the handshake, then hands the socket to a session."""

    route = "/v1/ws"

    def initialize(self, live: Live) -> None:  # type: ignore[override]
        """Take what all live connections of the node share."""
        super().initialize(live.node)
        self._live = live

    async def get(self) -> None:
        """Become a WebSocket."""
        try:
            accepted = accept_upgrade(
                self.request.method or "", self.request.version, self.request.headers
            )
        except HandshakeRejected as error:
            raise ProblemError.of_handshake(error) from None
        live = self._live
        principal = live.check(self)
        sock, early = live.take(self, principal)
        binary = accepted.subprotocol == MSGPACK_PROTOCOL
        connection = WebSocketConnection(
            sock,
            live.context,
            live.frames,
            live.pings,
            binary=binary,
            controls_per_s=live.node.settings.limits.control_frames_per_s,
        )
        wire = WS_MSGPACK if binary else WS_JSON
        session = Session(live.node, wire, connection, self.client_address, principal or NOBODY)
        connection.send(response_head(accepted))
        connection.start(session)
        if principal is not None:
            session.open(principal)
        if early:
            connection.take(early)
