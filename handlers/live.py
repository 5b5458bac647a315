"""How do bytes come in and go out? This file: what all live connections of a node share."""

import asyncio
import socket
import time

from tornado.iostream import IOStream

from handlers.base import BaseHandler
from handlers.frames import FrameLimits
from handlers.lean import ConnectionContext, Heartbeat
from handlers.wires import Wires
from server.errors import Unavailable
from server.node import Node
from server.principal import Principal
from server.session import Session

_EARLY_BYTES = 65_536


class Live:
    """Admits live connections, and beats for them."""

    def __init__(self, node: Node, loop: asyncio.AbstractEventLoop) -> None:
        settings = node.settings
        self.node = node
        self.frames = FrameLimits(settings.limits.frame_bytes)
        self.deflated_frames = FrameLimits(settings.limits.frame_bytes, deflated=True)
        self.wires = Wires(settings.websocket, loop, node.metrics)
        self.pings = Heartbeat(loop, settings.session.ping_s)
        self.comments = Heartbeat(loop, settings.sse.comment_s)
        self.context = ConnectionContext(
            loop,
            node.metrics,
            node.timetable,
            unsent_bytes=settings.limits.unsent_bytes,
            send_timeout_s=settings.session.send_timeout_s,
            close_timeout_s=settings.session.close_timeout_s,
        )

    def check(self, handler: BaseHandler) -> Principal | None:
        """Count the handshake, and return whom the request names in its header, if anyone.

        The origin was checked before (`BaseHandler.prepare`). Raises Refused.
        """
        self.node.rates.handshake(time.monotonic())
        header = handler.request.headers.get("Authorization")
        return None if header is None else self.node.auth.bearer(header)

    def take(
        self, handler: BaseHandler, principal: Principal | None
    ) -> tuple[socket.socket, bytes]:
        """Count a session in and take its socket, with what the client sent early.

        Counts it for its user too, where `principal` names one. Raises LimitExceeded. From then on
        the session counts itself out.
        """
        occupancy, address = self.node.occupancy, handler.client_address
        user = None if principal is None else principal.user
        occupancy.enter(address, user)
        try:
            return take_socket(handler)
        except BaseException:
            occupancy.leave(address, user)
            raise

    def sessions(self) -> list[Session]:
        """Return the sessions of all connections, open or not yet."""
        connections = self.pings.connections() + self.comments.connections()
        return [each.peer for each in connections if isinstance(each.peer, Session)]

    def connections(self) -> int:
        """Return how many connections are not over yet."""
        return len(self.pings) + len(self.comments)

    def abort(self) -> None:
        """Cut all connections and stop beating; may be called twice."""
        for wheel in (self.pings, self.comments):
            for connection in wheel.connections():
                connection.abort()
        self.pings.close()
        self.comments.close()


def take_socket(handler: BaseHandler) -> tuple[socket.socket, bytes]:
    """Take the socket out of Tornado's hands; return it with what the client sent early.

    A client that is gone already shows when the socket is read. Raises Unavailable if Tornado knows
    that it is, or if this process may open no more files; the client's connection is closed then.
    """
    stream = handler.detach()
    handler.left()
    try:
        if stream.closed():
            raise Unavailable("the client is gone")
        # Before what is there is read: the end of the stream would close the original.
        try:
            sock = stream.socket.dup()
        except OSError as error:
            raise Unavailable(f"no file is left for the connection: {error.strerror}") from None
        try:
            return sock, _read_early(stream)
        except BaseException:
            sock.close()
            raise
    finally:
        stream.close()


def _read_early(stream: IOStream) -> bytes:
    """Return what the client sent behind its request and Tornado may have read with it."""
    early = b""
    while len(early) <= _EARLY_BYTES and not stream.closed():
        future = asyncio.ensure_future(stream.read_bytes(_EARLY_BYTES, partial=True))
        if not future.done():
            # Closing the stream fails the read; nobody else will ask for its outcome.
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            break
        if future.exception() is not None:
            break
        early += future.result()
    return early
