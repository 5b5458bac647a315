"""How do bytes come in? First by a connection: how many of them there may be."""

import asyncio
import errno
import fcntl
import logging
import resource
import socket
import struct
import sys
import termios
from asyncio import Future
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from math import inf
from typing import Final

from tornado.iostream import IOStream

from handlers.address import Networks, networks
from handlers.http_server import HttpServer
from server.limits import countable
from server.node import Node
from server.timetable import Entry

_log = logging.getLogger(__name__)

# Connections taken before others get their turn.
_AT_ONCE: Final = 64
# What the kernel holds at most of connections that were not accepted yet.
_ALL: Final = 65_536
# What the process needs beside connections: logs, clients of its own, sockets that are closing.
RESERVE: Final = 64
_PAUSE_S: Final = 0.25
# SO_LINGER on, for no time.
_AT_ONCE_GONE: Final = struct.pack("ii", 1, 0)
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class CountedStream(IOStream):
    """A stream that says when its socket is closed, also when a live session keeps a duplicate.

    A peer that takes no byte of its answer for `session.send_timeout_s` is cut off.
    """

    def __init__(
        self, connection: socket.socket, node: Node, on_closed: Callable[[], None]
    ) -> None:
        self._node = node
        self._on_closed: Callable[[], None] | None = on_closed
        self._written = 0
        self._taken = 0
        self._deadline: Entry | None = None
        super().__init__(connection)
        self._done = Future[None]()
        self._done.set_result(None)
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def write(self, data: bytes | memoryview) -> "Future[None]":
        """Write as IOStream does, but for what the kernel takes at once: that needs no queue.

        Whether the peer takes the rest is watched.
        """
        if data and isinstance(data, bytes) and not self.closed() and not self.writing():
            try:
                sent = self.write_to_fd(memoryview(data))
            except OSError:
                # Not ready, or broken: there it is found again, and told as it should be.
                sent = 0
            if sent == len(data):
                return self._done
            data = memoryview(data)[sent:]
        written = super().write(data)
        if self._deadline is None and self.writing():
            self._watch()
        return written

    def set_nodelay(self, value: bool) -> None:
        """Keep the flag as it was set when the connection came.

        Tornado sets and clears it for each response, which is two calls of the kernel; every
        response is written as a whole, so nothing is gained by holding back small writes between.
        """

    def write_to_fd(self, data: memoryview) -> int:
        """Write what the kernel takes."""
        size = super().write_to_fd(data)
        self._written += size
        return size

    def close_fd(self) -> None:
        """Close the socket."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        super().close_fd()
        told, self._on_closed = self._on_closed, None
        if told is not None:
            told()

    def _watch(self) -> None:
        self._taken = self._count_taken()
        after_s = self._node.settings.session.send_timeout_s
        self._deadline = self._node.timetable.call_in(after_s, self._check_progress)

    def _check_progress(self) -> None:
        self._deadline = None
        if not self.writing():
            return
        if self._count_taken() > self._taken:
            self._watch()
            return
        self._node.metrics.refused("send_timeout_s")
        # With a reset: the kernel would keep for minutes what nobody takes.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE_GONE)
        self.close()

    def _count_taken(self) -> int:
        """Return how many bytes the peer took; the kernel has room anew only in large steps."""
        waiting = fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4))
        return self._written - int.from_bytes(waiting, sys.byteorder)


class Acceptor:
    """Takes connections for an HTTP server, as many as the limits and the file limit allow.

    One beyond that is closed at once, so that its client need not wait to learn it. A machine that
    is out of descriptors is left alone for a while: accepting again at once would only burn CPU.
    Addresses of trusted proxies have no limit of their own.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node: Node,
        server: HttpServer,
        sockets: Sequence[socket.socket],
        *,
        reserve: int = RESERVE,
    ) -> None:
        self._loop = loop
        self._node = node
        self._server = server
        self._sockets = list(sockets)
        self._addresses: dict[str, int] = {}
        self._trusted: Networks = networks(node.settings.trusted_proxies)
        soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_files = inf if soft == resource.RLIM_INFINITY else soft - reserve
        self._paused: asyncio.TimerHandle | None = None
        self.connections = 0

    def start(self) -> None:
        """Begin to accept."""
        for sock in self._sockets:
            sock.setblocking(False)
            self._loop.add_reader(sock, self._on_ready, sock)

    def close(self) -> None:
        """Accept no more; connections that were taken go on. May be called twice."""
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            self._loop.remove_reader(sock)
            # Their clients are connected, and may have sent a request: they would be reset.
            self._accept(sock, _ALL)
            sock.close()
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None

    def _on_ready(self, sock: socket.socket) -> None:
        self._accept(sock, _AT_ONCE)

    def _accept(self, sock: socket.socket, most: int) -> None:
        for _ in range(most):
            try:
                connection, address = sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause(error)
                    return
                # The client went away while it waited.
                continue
            self._take(connection, address)

    def _take(self, connection: socket.socket, address: tuple[str, int]) -> None:
        host = countable(address[0]) if address else ""
        reason = self._refusal(host)
        if reason:
            self._node.metrics.refused(reason)
            connection.close()
            return
        self.connections += 1
        self._addresses[host] = self._addresses.get(host, 0) + 1
        stream = CountedStream(connection, self._node, lambda: self._on_closed(host))
        self._server.handle_stream(stream, address)

    def _refusal(self, host: str) -> str:
        """Return which limit a further connection would break; empty if none."""
        limits = self._node.settings.limits
        if self.connections + self._node.occupancy.sessions >= self._most_files:
            return "file_limit"
        if limits.http_connections and self.connections >= limits.http_connections:
            return "http_connections"
        most = limits.http_connections_per_address
        if most and self._addresses.get(host, 0) >= most and not self._is_proxy(host):
            return "http_connections_per_address"
        return ""

    def _is_proxy(self, host: str) -> bool:
        try:
            address = ip_address(host.partition("/")[0])
        except ValueError:
            return False
        return any(address in network for network in self._trusted)

    def _on_closed(self, host: str) -> None:
        self.connections -= 1
        if self._addresses[host] == 1:
            del self._addresses[host]
        else:
            self._addresses[host] -= 1

    def _pause(self, error: OSError) -> None:
        if self._paused is None:
            _log.warning("no connections are accepted for a while: %s", error)
            self._node.metrics.refused("file_limit")
            for sock in self._sockets:
                self._loop.remove_reader(sock)
            self._paused = self._loop.call_later(_PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._paused = None
        self.start()
