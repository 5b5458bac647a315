"""How do bytes come in and go out? As WebSocket frames: read strictly, built once (RFC 6455).

Pure: bytes in, messages out, no I/O and no clock. The reader belongs to the server side of a
connection: frames that come in are masked, frames that go out are not. Where compression was agreed
on, messages come out inflated (RFC 7692).
"""

from __future__ import annotations

import codecs
import struct
import sys
from dataclasses import dataclass
from typing import ClassVar, Final, TypeAlias

from handlers.deflate import DeflateError, inflate

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

NO_STATUS: Final = 1005
"""Stands for a close frame without a code; never on the wire (RFC 6455 7.4.1)."""

MAX_CONTROL_BYTES: Final = 125
MAX_REASON_BYTES: Final = MAX_CONTROL_BYTES - 2

Item: TypeAlias = tuple[int, bytes]
"""What the reader gives: an opcode (TEXT, BINARY, PING, PONG or CLOSE) and the whole payload."""

_FIN: Final = 0x80
_RSV: Final = 0x70
_RSV1: Final = 0x40
_OPCODE: Final = 0x0F
_MASKED: Final = 0x80

# One look-up settles RSV bits, reserved opcodes and fragmented control frames.
_DATA_OPENINGS: Final = frozenset({CONTINUATION, TEXT, BINARY})
_OPENINGS: Final = _DATA_OPENINGS | {_FIN | op for op in (*_DATA_OPENINGS, CLOSE, PING, PONG)}
# Compressed is what begins a message, and nothing else (RFC 7692 6.1).
_DEFLATED_OPENINGS: Final = _OPENINGS | {_RSV1 | fin | op for fin in (0, _FIN) for op in (1, 2)}
_WHOLE_TEXT: Final = _FIN | TEXT
_WHOLE_BINARY: Final = _FIN | BINARY

# Measured: below about 1 KiB one XOR of big integers wins; above it, four table look-ups over
# every fourth byte take half the time.
_TRANSLATE_FROM_BYTES: Final = 1024
_XOR_TABLES: Final = tuple(bytes(byte ^ key for byte in range(256)) for key in range(256))


class FrameViolation(ValueError):
    """The peer broke RFC 6455, or a limit; the connection has to end.

    `code` is the close code to send, `rfc_code` the one that RFC 6455 7.4.1 gives to this kind of
    violation (for metrics and tests), `reason` a fixed phrase that repeats nothing of the peer's.

    FrameViolation            1002, sent as 4500
        InvalidText           1007, sent as 4500
        MessageTooBig         1009, sent as 4505
    """

    code: ClassVar[int] = 4500
    rfc_code: ClassVar[int] = 1002

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class InvalidText(FrameViolation):
    """A text message or a close reason is not UTF-8."""

    rfc_code: ClassVar[int] = 1007


class MessageTooBig(FrameViolation):
    """A header announces more than a message may hold, or a compressed message inflates to more."""

    code: ClassVar[int] = 4505
    rfc_code: ClassVar[int] = 1009


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """What one message may cost; one object is shared by all readers.

    `message_bytes` bounds a message's payload, and so each frame and the sum of its fragments; of a
    compressed one also what it inflates to. `fragments` bounds how many frames a message may come
    in: empty ones cost no bytes. `deflated`: messages may come compressed, as was agreed on.
    """

    message_bytes: int
    fragments: int = 1000
    deflated: bool = False


class FrameReader:
    """Turns the bytes of one connection into messages and control frames.

    `closed` is true after a close frame or a violation: what follows is not read. `violation` is
    then what the peer did wrong, or None. Idle it owns no other object; a partial frame or message
    is held only while it lasts, at most `message_bytes` and one control frame in all.
    """

    __slots__ = ("_limits", "_message", "_partial", "_wanted", "closed", "violation")

    def __init__(self, limits: FrameLimits) -> None:
        self._limits = limits
        self._partial: bytearray | None = None
        self._wanted = 0
        self._message: _Message | None = None
        self.closed = False
        self.violation: FrameViolation | None = None

    @property
    def midway(self) -> bool:
        """Whether a frame or a fragmented message has begun and not ended."""
        return self._partial is not None or self._message is not None

    @property
    def held_bytes(self) -> int:
        """Bytes kept until the frame or message they belong to is complete, or until called for."""
        partial, message = self._partial, self._message
        return (len(partial) if partial else 0) + (len(message.payload) if message else 0)

    @property
    def backlog(self) -> bool:
        """Whether more was received than was read, so that `feed(b"")` reads on.

        Little that is received may inflate to a thousand times as much. So where messages may be
        compressed, a call ends when `message_bytes` or more were read.
        """
        return self._partial is not None and not self._wanted

    def feed(self, data: bytes) -> list[Item]:
        """Take what was received; return what it completes, in order.

        Never raises. What came before a violation is still returned; look at `violation` after
        having handled the items. Text is valid UTF-8; a CLOSE payload is valid for `parse_close`.
        The cost is linear in the bytes fed, however they are cut.
        """
        items: list[Item] = []
        if self.closed:
            return items
        buffer: bytes | bytearray = data
        if self._partial is not None:
            self._partial += data
            # Looking again, and copying, only when a step further is certain: else each byte that
            # comes alone would cost as much as all that is held.
            if len(self._partial) < self._wanted:
                return items
            buffer = self._partial
            self._partial = None
        try:
            at = self._read_frames(buffer, items)
        except FrameViolation as violation:
            # Without the traceback, whose frames would keep the buffers and this object alive.
            self.violation = violation.with_traceback(None)
            self._end()
            return items
        if at < len(buffer) and not self.closed:
            self._partial = bytearray(buffer[at:])
        return items

    def _read_frames(self, buffer: bytes | bytearray, items: list[Item]) -> int:
        """Read the complete frames of a buffer; return where the first incomplete one begins."""
        at, size = 0, len(buffer)
        limit = min(self._limits.message_bytes, 125)
        room = self._limits.message_bytes if self._limits.deflated else sys.maxsize
        while at < size and not self.closed:
            # The short way: a whole small message, nearly all that clients send.
            if size - at >= 6 and self._message is None:
                first, length, body = buffer[at], buffer[at + 1] - _MASKED, at + 6
                end = body + length
                if (
                    0 <= length <= limit
                    and end <= size
                    and (first == _WHOLE_TEXT or first == _WHOLE_BINARY)
                ):
                    payload = _unmask(buffer, body, end)
                    if first == _WHOLE_TEXT and not _is_text(payload):
                        raise InvalidText("text is not UTF-8")
                    items.append((first & _OPCODE, payload))
                    at = end
                    continue
            known = len(items)
            end = self._read_frame(buffer, at, items)
            if end == at:
                break
            at = end
            if len(items) > known:
                room -= len(items[-1][1])
                if room <= 0:
                    self._wanted = 0
                    break
        return at

    def _read_frame(self, buffer: bytes | bytearray, at: int, items: list[Item]) -> int:
        """Read one frame of any kind; return its end, or `at` when more bytes are wanted.

        All that a header can be refused for is refused as soon as the header is there.
        """
        deflated = self._limits.deflated
        header, length = _read_header(buffer, at, _DEFLATED_OPENINGS if deflated else _OPENINGS)
        opcode = buffer[at] & _OPCODE
        if length >= 0 and opcode < CLOSE:
            self._admit(opcode, length)
        end = at + header + length
        if length < 0 or end > len(buffer):
            self._wanted = header + max(length, 0)
            return at
        payload = _unmask(buffer, at + header, end)
        final, deflated = bool(buffer[at] & _FIN), bool(buffer[at] & _RSV1)
        if opcode >= CLOSE:
            if opcode == CLOSE:
                parse_close(payload)
                self._end()
            items.append((opcode, payload))
            return end
        message = self._message
        if message is None and final:
            if deflated:
                payload = self._inflate(payload)
            if opcode == TEXT and not _is_text(payload):
                raise InvalidText("text is not UTF-8")
            items.append((opcode, payload))
            return end
        if message is None:
            message = self._message = _Message(opcode, deflated)
        message.add(payload, final)
        if final:
            payload = bytes(message.payload)
            if message.deflated:
                payload = self._inflate(payload)
                if message.opcode == TEXT and not _is_text(payload):
                    raise InvalidText("text is not UTF-8")
            items.append((message.opcode, payload))
            self._message = None
        return end

    def _inflate(self, payload: bytes) -> bytes:
        most = self._limits.message_bytes
        try:
            payload = inflate(payload, most)
        except DeflateError as error:
            raise FrameViolation(str(error)) from None
        if len(payload) > most:
            raise MessageTooBig(f"message over {most} bytes")
        return payload

    def _admit(self, opcode: int, length: int) -> None:
        """Check a data frame against the message that it begins or continues."""
        message, limits = self._message, self._limits
        if opcode == CONTINUATION:
            if message is None:
                raise FrameViolation("continuation without a message")
            if message.fragments >= limits.fragments:
                raise FrameViolation(f"more than {limits.fragments} fragments")
            length += len(message.payload)
        elif message is not None:
            raise FrameViolation("new message inside a fragmented one")
        if length > limits.message_bytes:
            raise MessageTooBig(f"message over {limits.message_bytes} bytes")

    def _end(self) -> None:
        self.closed = True
        self._partial = self._message = None


class _Message:
    """A message of which more fragments are to come."""

    __slots__ = ("_decoder", "deflated", "fragments", "opcode", "payload")

    def __init__(self, opcode: int, deflated: bool) -> None:
        self.opcode = opcode
        self.deflated = deflated
        self.payload = bytearray()
        self.fragments = 0
        # What is compressed is inflated, and its text checked, when all of it is there.
        readable = opcode == TEXT and not deflated
        self._decoder = codecs.getincrementaldecoder("utf-8")() if readable else None

    def add(self, payload: bytes, final: bool) -> None:
        self.fragments += 1
        self.payload += payload
        if self._decoder is not None and not self._is_text(self._decoder, payload, final):
            raise InvalidText("text is not UTF-8")

    @staticmethod
    def _is_text(decoder: codecs.IncrementalDecoder, payload: bytes, final: bool) -> bool:
        try:
            decoder.decode(payload, final)
        except UnicodeDecodeError:
            return False
        return True


def _read_header(buffer: bytes | bytearray, at: int, openings: frozenset[int]) -> tuple[int, int]:
    """Return a header's size, mask included, and the payload's; the latter is -1 when not known."""
    size = len(buffer) - at
    if size < 2:
        return 2, -1
    first, second = buffer[at], buffer[at + 1]
    if first not in openings:
        raise _opening_violation(first)
    if second < _MASKED:
        raise FrameViolation("frame without a mask")
    length = second - _MASKED
    if length <= MAX_CONTROL_BYTES:
        return 6, length
    if first & _OPCODE >= CLOSE:
        raise FrameViolation(f"control frame over {MAX_CONTROL_BYTES} bytes")
    # The shortest encoding is required (RFC 6455 5.2); a top bit set is far over any limit.
    if length == 126:
        header, least = 8, 126
    else:
        header, least = 14, 1 << 16
    if size < header - 4:
        return header - 4, -1
    length = int.from_bytes(buffer[at + 2 : at + header - 4], "big")
    if length < least:
        raise FrameViolation("length not in its shortest form")
    if length >> 63:
        raise FrameViolation("length with its top bit set")
    return header, length


def _opening_violation(first: int) -> FrameViolation:
    if first & _RSV:
        return FrameViolation("reserved bits set")
    if _FIN | first in _OPENINGS:
        return FrameViolation("fragmented control frame")
    return FrameViolation("reserved opcode")


def _unmask(buffer: bytes | bytearray, start: int, end: int) -> bytes:
    """Return the payload between `start` and `end`, whose mask stands right before it."""
    length = end - start
    mask = buffer[start - 4 : start]
    if length < _TRANSLATE_FROM_BYTES:
        # Python has no XOR of byte strings; big integers are the nearest.
        key = (mask * ((length + 3) >> 2))[:length]
        xored = int.from_bytes(buffer[start:end], "big") ^ int.from_bytes(key, "big")
        return xored.to_bytes(length, "big")
    payload = bytearray(length)
    for lane, key_byte in enumerate(mask):
        payload[lane::4] = buffer[start + lane : end : 4].translate(_XOR_TABLES[key_byte])
    return bytes(payload)


def _is_text(payload: bytes) -> bool:
    if payload.isascii():
        return True
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_close_code(code: int) -> bool:
    """Whether a close frame may carry this code (RFC 6455 7.4 and the IANA registry)."""
    return 3000 <= code <= 4999 or 1000 <= code <= 1003 or 1007 <= code <= 1014


def parse_close(payload: bytes) -> tuple[int, str]:
    """Return the code and reason of a close frame's payload; `NO_STATUS` when it is empty.

    Raises FrameViolation when it has one byte, a code that may not be sent, or a reason that is
    not UTF-8.
    """
    if not payload:
        return NO_STATUS, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not _is_close_code(code):
        raise FrameViolation("invalid close code")
    reason = payload[2:]
    if not _is_text(reason):
        raise InvalidText("close reason is not UTF-8")
    return code, reason.decode()


def frame(opcode: int, payload: bytes) -> bytes:
    """Build a final, unmasked frame, the same for every client."""
    length = len(payload)
    if length < 126:
        return bytes((_FIN | opcode, length)) + payload
    if length < 1 << 16:
        return struct.pack("!BBH", _FIN | opcode, 126, length) + payload
    return struct.pack("!BBQ", _FIN | opcode, 127, length) + payload


def text_frame(payload: bytes) -> bytes:
    """Build a text frame of a payload that is known to be UTF-8."""
    return frame(TEXT, payload)


def binary_frame(payload: bytes) -> bytes:
    """Build a binary frame."""
    return frame(BINARY, payload)


def deflated_frame(opcode: int, payload: bytes) -> bytes:
    """Build a text or binary frame of a payload that is compressed (RFC 7692 6)."""
    return frame(_RSV1 | opcode, payload)


def pong_frame(payload: bytes) -> bytes:
    """Build the answer to a ping, which carries the ping's own payload (at most 125 bytes)."""
    return frame(PONG, payload)


def close_frame(code: int, reason: str = "") -> bytes:
    """Build a close frame; `NO_STATUS` gives an empty one, the echo of an empty one.

    The reason is cut to 123 bytes at a character boundary. Raises ValueError for a code that may
    not be sent.
    """
    if code == NO_STATUS:
        return frame(CLOSE, b"")
    if not _is_close_code(code):
        raise ValueError(f"close code {code} may not be sent")
    text = reason.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")
    return frame(CLOSE, code.to_bytes(2, "big") + text.encode())


PING_FRAME: Final = frame(PING, b"")
