"""Who is connected here? This file: the sockets of a load client, read as cheaply as may be."""

import select
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from server.load_publisher import LoadPublisher
from server.load_target import LoadFailed
from server.load_verdict import Session

_BUFFER_BYTES: Final = 1 << 20
# Sockets asked for at once: in between the clock is looked at, and what is due is sent.
_AT_ONCE: Final = 128
# epoll knows milliseconds only; shorter waits are left to `select`.
_FINE_S: Final = 0.02
# What is no longer is no event.
_LEAST_BYTES: Final = 8
_SESSION: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_PUBLISHER: Final = _SESSION | select.EPOLLOUT
_OVER: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

Take = Callable[[bytearray], int]
"""Reads a socket into the buffer and returns how much; raises BlockingIOError, OSError."""


class LoadLoop:
    """Reads all sockets through one edge-triggered epoll into one buffer, and counts bytes.

    `counts` are by the sockets' numbers. It ends with `close`.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._buffer = bytearray(_BUFFER_BYTES)
        self._takes: list[Take] = []
        self._sessions: dict[int, Session] = {}
        self._pings: Sequence[bytes] = ()
        self.counts: list[int] = []

    def register(
        self,
        sessions: Sequence[tuple[Session, Take]],
        publishers: Sequence[tuple[socket.socket, LoadPublisher]],
        pings: Sequence[bytes],
    ) -> None:
        """Take part in what comes from now on; `pings` are those of each wire."""
        numbers = [each.sock.fileno() for each, _ in sessions]
        numbers += [sock.fileno() for sock, _ in publishers]
        self._takes = [_unknown] * (max(numbers, default=0) + 1)
        self.counts = [0] * len(self._takes)
        self._pings = pings
        for session, take in sessions:
            number = session.sock.fileno()
            self._takes[number] = take
            self._sessions[number] = session
            self.counts[number] = session.early
            self._epoll.register(number, _SESSION)
        for sock, publisher in publishers:
            self._takes[sock.fileno()] = publisher.take
            self._epoll.register(sock.fileno(), _PUBLISHER)

    def turn(self, timeout_s: float) -> None:
        """Wait until something comes, for so long at most, and take it.

        Raises LoadFailed when there is no publishing any more.
        """
        epoll, takes, counts, buffer = self._epoll, self._takes, self.counts, self._buffer
        least, most, plain = _LEAST_BYTES, _BUFFER_BYTES, select.EPOLLIN
        if 0.0 < timeout_s < _FINE_S:
            select.select((epoll,), (), (), timeout_s)
            timeout_s = 0.0
        ready: Iterator[tuple[int, int]] = iter(epoll.poll(timeout_s, _AT_ONCE))
        number = -1
        while True:
            try:
                for number, event in ready:
                    size = takes[number](buffer)
                    counts[number] += size
                    if event != plain or not least < size < most:
                        self._odd(number, size, event)
            except BlockingIOError:
                continue
            except OSError as error:
                self._lost(number, error.strerror or str(error))
                continue
            return

    def _odd(self, number: int, size: int, event: int) -> None:
        """Deal with a read that is no event, or that may not be all there is."""
        while size == _BUFFER_BYTES or (size and event & _OVER):
            # Of what is left an edge-triggered epoll says nothing, nor of the end behind it.
            size = self._takes[number](self._buffer)
            self.counts[number] += size
        session = self._sessions.get(number)
        if size == 0:
            self._lost(number, "the server closed the connection")
        elif session is not None and self._buffer[:size] == self._pings[session.wire]:
            session.pings += 1

    def _lost(self, number: int, reason: str) -> None:
        session = self._sessions.get(number)
        if session is None:
            raise LoadFailed(f"a publisher's connection ended: {reason}")
        if not session.lost:
            session.lost = reason
            self._epoll.unregister(number)

    def close(self) -> None:
        """Read no more; may be called twice."""
        self._epoll.close()


def _unknown(_buffer: bytearray) -> int:
    raise AssertionError("nothing was said of this socket")
