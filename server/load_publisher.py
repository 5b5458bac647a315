"""Who is connected here? This file: one connection that publishes under load."""

import socket
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Final

from server.load_target import LoadFailed, Publishing, mark_of

_SHOWN: Final = 300


class PublishRefused(LoadFailed):
    """The server refused an event; `answer` is what it said, or the part around its refusal."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(f"a publish was refused: {answer.decode('utf-8', 'replace')}")
        self.answer = answer


class PublisherClosed(LoadFailed):
    """The server ended a publisher's session; `answer` is what it said."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(f"a publisher's session was closed: {answer.decode('utf-8', 'replace')}")
        self.answer = answer


class LoadPublisher:
    """Sends events of its lanes, one after the other, and counts what was acknowledged.

    `padding` follows the mark in each event's data. Bytes that the kernel does not take wait here.
    """

    __slots__ = (
        "_build",
        "_lanes",
        "_names",
        "_out",
        "_padding",
        "_sent",
        "_sock",
        "_tail",
        "_turn",
        "_way",
        "acked",
        "published",
    )

    def __init__(
        self,
        sock: socket.socket,
        way: Publishing,
        lanes: Sequence[int],
        names: Sequence[str],
        padding: bytes,
        sent: Sequence["array[float]"],
    ) -> None:
        self._sock = sock
        self._way = way
        self._build = way.build
        self._lanes = list(lanes)
        self._names = names
        self._padding = padding
        self._sent = sent
        self._turn = 0
        self._out: deque[bytes] = deque()
        self._tail = b""
        self.acked = 0
        self.published = 0

    def publish(self, due: Sequence[float]) -> None:
        """Send one message with as many events as there are times at which they are due."""
        lanes, sent, turn, names = self._lanes, self._sent, self._turn, self._names
        count, everyone = len(lanes), len(sent)
        events = []
        for at in due:
            lane = lanes[turn]
            turn = turn + 1 if turn + 1 < count else 0
            times = sent[lane]
            events.append((names[lane], mark_of(len(times) * everyone + lane) + self._padding))
            times.append(at)
        self._turn = turn
        self.published += len(events)
        message = self._build(events)
        if self._out:
            self._out.append(message)
        else:
            self._send(message)

    def take(self, buffer: bytearray) -> int:
        """Read acknowledgements and send what waits; 0 when the connection is over."""
        if self._out:
            self.flush()
        try:
            size = self._sock.recv_into(buffer)
        except BlockingIOError:
            # Only room to write.
            return -1
        way = self._way
        data = self._tail + buffer[:size]
        # What is split between two reads is seen once, and so is what was whole before.
        self.acked += data.count(way.acked) - self._tail.count(way.acked)
        if way.refused and way.refused in data:
            at = data.index(way.refused)
            raise PublishRefused(bytes(data[max(0, at - _SHOWN) : at + _SHOWN]))
        if way.closing and way.closing in data:
            raise PublisherClosed(bytes(data[data.index(way.closing) :][:_SHOWN]))
        self._tail = bytes(data[-(max(map(len, (way.acked, way.refused, way.closing))) - 1) :])
        return size

    def keep_alive(self) -> None:
        """Let the server hear that this is still there."""
        if self._way.keepalive and not self._out:
            self._send(self._way.keepalive)

    def flush(self) -> None:
        """Send what waits, as far as the kernel takes it."""
        out, self._out = self._out, deque()
        if out:
            self._send(b"".join(out))

    @property
    def unsent(self) -> bool:
        """Whether bytes wait that the kernel did not take."""
        return bool(self._out)

    def _send(self, data: bytes) -> None:
        try:
            size = self._sock.send(data)
        except BlockingIOError:
            size = 0
        except OSError as error:
            raise LoadFailed(f"publishing ended: {error.strerror or error}") from None
        if size < len(data):
            self._out.append(data[size:])
