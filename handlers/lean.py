"""How do bytes come in and go out? This file: the lean connection, a socket and little else.

Tornado serves the request; then the handler detaches and one small object owns the socket. No
coroutine, future, stream or HTTP object remains for a session that is idle.
"""

import asyncio
import socket
from collections import deque
from itertools import islice
from typing import ClassVar, Final

from server.closing import Closing
from server.connection import Peer
from server.metrics import Metrics
from server.timetable import Entry, Timetable

_READ_BYTES: Final = 65_536
# Below this a replay goes on, so that it is bounded by what the client reads; less where the limit
# of unsent bytes is small.
_LOW_BYTES: Final = 65_536
# Buffers handed to the kernel in one call; it takes at most 1024.
_GATHER: Final = 64
# How long at least the kernel holds bytes that the peer's host does not confirm (half-open peers).
_UNCONFIRMED_S: Final = 30.0


class ConnectionContext:
    """What all connections of a node share."""

    __slots__ = (
        "close_timeout_s",
        "loop",
        "low_bytes",
        "metrics",
        "send_timeout_s",
        "timetable",
        "unsent_bytes",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        metrics: Metrics,
        timetable: Timetable,
        *,
        unsent_bytes: int,
        send_timeout_s: float,
        close_timeout_s: float,
    ) -> None:
        self.loop = loop
        self.metrics = metrics
        self.timetable = timetable
        self.unsent_bytes = unsent_bytes
        self.low_bytes = min(_LOW_BYTES, unsent_bytes // 4)
        self.send_timeout_s = send_timeout_s
        self.close_timeout_s = close_timeout_s


class LeanConnection:
    """Owns a socket: writes at once what the kernel takes, keeps the rest, counts it.

    `send` neither waits nor raises. Whatever ends the connection, the peer object hears `on_lost`
    once, never from within a `send`. Subclasses say what bytes that come in mean and how the end
    looks. A connection that is idle has no buffer, timer or future.
    """

    transport: ClassVar[str]
    label: ClassVar[str] = ""

    __slots__ = (
        "_buffer",
        "_closing",
        "_context",
        "_deadline",
        "_moved",
        "_paused",
        "_slow",
        "_socket",
        "_started",
        "_waiter",
        "peer",
        "unsent",
    )

    def __init__(self, sock: socket.socket, context: ConnectionContext) -> None:
        sock.setblocking(False)
        prepare_socket(sock, max(_UNCONFIRMED_S, context.send_timeout_s))
        self._socket: socket.socket | None = sock
        self._context = context
        self._buffer: deque[bytes | memoryview] | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._deadline: Entry | None = None
        self._closing = False
        self._slow = False
        self._started = False
        self._moved = False
        self._paused = False
        self.unsent = 0
        self.peer: Peer | None = None

    def start(self, peer: Peer) -> None:
        """Begin to read; `peer` hears of everything from now on."""
        self.peer = peer
        self._started = True
        self._context.metrics.connection_opened(self)
        if self._socket is not None:
            # By number: asyncio asks for a reader that is not there, and of a socket object the
            # error would have a text that takes two calls of the kernel.
            self._context.loop.add_reader(self._socket.fileno(), self._on_readable)

    @property
    def over(self) -> bool:
        """Whether the socket is closed."""
        return self._socket is None

    # Writing

    def send(self, data: bytes) -> None:
        """Write what the kernel takes, keep the rest; nothing is sent once it is closing."""
        if self._buffer is not None:
            if not self._closing:
                self._keep(data)
            return
        sock = self._socket
        if sock is None or self._closing:
            return
        try:
            sent = sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._context.loop.call_soon(self.abort)
            return
        if sent < len(data):
            self._keep(memoryview(data)[sent:] if sent else data)

    def _keep(self, data: bytes | memoryview) -> None:
        context = self._context
        if self._buffer is None:
            self._buffer = deque()
            assert self._socket is not None  # noqa: S101 - callers checked
            context.loop.add_writer(self._socket, self._on_writable)
            # A deadline left from an earlier backlog may be near: this one gets a whole one.
            self._moved = self._deadline is not None
            if self._deadline is None:
                self._deadline = context.timetable.call_in(
                    context.send_timeout_s, self._check_progress
                )
        self._buffer.append(data)
        self.unsent += len(data)
        context.metrics.unsent_bytes += len(data)
        if self.unsent > context.unsent_bytes and not self._slow:
            self._slow = True
            context.loop.call_soon(self._tell_slow)

    def _on_writable(self) -> None:
        buffer, sock = self._buffer, self._socket
        if buffer is None or sock is None:
            return
        try:
            sent = sock.sendmsg(list(islice(buffer, _GATHER)))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        self._moved = True
        self.unsent -= sent
        self._context.metrics.unsent_bytes -= sent
        while sent:
            first = buffer[0]
            if sent < len(first):
                buffer[0] = memoryview(first)[sent:]
                break
            sent -= len(first)
            buffer.popleft()
        if not buffer:
            self._buffer = None
            self._context.loop.remove_writer(sock)
            if self._closing:
                self._finish()
        if self.unsent <= self._context.low_bytes and self.peer is not None and not self._closing:
            # Before a replay goes on, which would fill what room there is.
            self.peer.on_room()
        if self._waiter is not None and self.unsent <= self._context.low_bytes:
            self._wake(True)

    def _drop_unbegun(self) -> None:
        """Forget what waits, but for the rest of a buffer that was begun."""
        buffer = self._buffer
        if not buffer:
            return
        kept = [buffer[0]] if isinstance(buffer[0], memoryview) else []
        size = sum(len(each) for each in kept)
        self._context.metrics.unsent_bytes -= self.unsent - size
        self.unsent = size
        buffer.clear()
        buffer.extend(kept)

    def clear(self) -> bool:
        """Say whether so little is unsent that a replay may go on."""
        return self.unsent <= self._context.low_bytes

    async def drained(self) -> bool:
        """Wait until little is unsent; False when the connection ended. Safe to cancel."""
        while not self._closing and self._socket is not None:
            if self.unsent <= self._context.low_bytes:
                return True
            if self._waiter is None or self._waiter.done():
                self._waiter = self._context.loop.create_future()
            await asyncio.shield(self._waiter)
        return False

    def _wake(self, value: bool) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(value)

    def _tell_slow(self) -> None:
        if self.peer is not None and not self._closing:
            self.peer.on_slow()

    def _check_progress(self) -> None:
        """Cut off a peer that took no byte for the whole of the send timeout."""
        self._deadline = None
        if self._buffer is None:
            return
        if not self._moved:
            self._context.metrics.refused("send_timeout_s")
            self.abort()
            return
        self._moved = False
        self._deadline = self._context.timetable.call_in(
            self._context.send_timeout_s, self._check_progress
        )

    # Reading

    def pause(self) -> None:
        """Read no more for now."""
        if not self._paused and self._socket is not None:
            self._paused = True
            self._context.loop.remove_reader(self._socket)

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._socket is not None:
            self._paused = False
            self._context.loop.add_reader(self._socket, self._on_readable)

    def _on_readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.abort()
            return
        self.take(data)

    def take(self, data: bytes) -> None:
        """Count bytes that came in, and take them."""
        self._context.metrics.bytes_in += len(data)
        self.receive(data)

    def receive(self, data: bytes) -> None:
        """Take bytes that came in."""
        raise NotImplementedError

    def beat(self) -> None:
        """Do what keeps the connection alive, or find that it is not."""
        raise NotImplementedError

    # The end

    def close(self, closing: Closing, last: bytes = b"") -> None:
        """Send `last` and the connection's own farewell, then end; nothing is sent after that."""
        if self._closing or self._socket is None:
            return
        if closing is Closing.TOO_SLOW:
            self._drop_unbegun()
        farewell = last + self.farewell(closing)
        if farewell:
            self.send(farewell)
        self._begin_end()

    def farewell(self, closing: Closing) -> bytes:
        """Return what is sent last."""
        raise NotImplementedError

    def _begin_end(self) -> None:
        """Take nothing more to send; end when all is sent, or when the time for it is over."""
        self._closing = True
        if self._socket is None:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        context = self._context
        self._deadline = context.timetable.call_in(context.close_timeout_s, self._on_close_timeout)
        self._wake(False)
        self.resume()
        if self._buffer is None:
            self._finish()

    def _finish(self) -> None:
        """All is sent: say so to the peer's host, and wait for it to close too."""
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.abort()

    def _on_close_timeout(self) -> None:
        self._deadline = None
        self.abort()

    def abort(self) -> None:
        """End at once; may be called twice."""
        sock, self._socket = self._socket, None
        if sock is None:
            return
        loop = self._context.loop
        loop.remove_reader(sock)
        if self._buffer is not None:
            loop.remove_writer(sock)
            self._context.metrics.unsent_bytes -= self.unsent
            self._buffer = None
            self.unsent = 0
        sock.close()
        self._closing = True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._wake(False)
        self.lost()
        peer, self.peer = self.peer, None
        if self._started:
            self._context.metrics.connection_closed(self)
        if peer is not None:
            peer.on_lost()

    def lost(self) -> None:
        """Let go of what the kind of connection holds."""


def prepare_socket(sock: socket.socket, unconfirmed_s: float) -> None:
    """Send small writes at once, and let the kernel find peers whose host is gone."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unconfirmed_s * 1000))


class Heartbeat:
    """One wheel for all connections of a kind: each gets its `beat` once in `interval_s`.

    One timer in all. A connection stands in one of the wheel's slots, the one served last when it
    came, so that beats spread over the interval.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, interval_s: float, slots: int = 100
    ) -> None:
        self._loop = loop
        self._tick_s = interval_s / slots
        self._slots: list[dict[LeanConnection, None]] = [{} for _ in range(slots)]
        self._at = 0
        self._next = loop.time() + self._tick_s
        self._timer: asyncio.TimerHandle | None = loop.call_at(self._next, self._tick)

    def add(self, connection: LeanConnection) -> dict[LeanConnection, None]:
        """Take a connection in; its first beat comes one interval from now. Returns its slot."""
        slot = self._slots[self._at - 1]
        slot[connection] = None
        return slot

    def __len__(self) -> int:
        """Return how many connections are on the wheel."""
        return sum(map(len, self._slots))

    def connections(self) -> list[LeanConnection]:
        """Return the connections on the wheel."""
        return [connection for slot in self._slots for connection in slot]

    def _tick(self) -> None:
        slot = self._slots[self._at]
        self._at = (self._at + 1) % len(self._slots)
        # Ticks that a busy loop missed are not made up for: a burst of pings helps nobody. Set
        # before the beats, so that nothing that goes wrong in one of them stops the wheel.
        self._next = max(self._next + self._tick_s, self._loop.time())
        self._timer = self._loop.call_at(self._next, self._tick)
        for connection in list(slot):
            connection.beat()

    def close(self) -> None:
        """Stop; may be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
