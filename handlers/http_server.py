"""How do bytes come in? This file: connections that speak HTTP, and how long they may take.

Tornado reads and writes HTTP/1.1; the deadlines are ours. Its own take two timers and two futures
for each request, a quarter of what it costs to read one and answer; these take one entry in the
timetable for each connection.
"""

import asyncio
from math import inf
from typing import Final, Protocol

from tornado.http1connection import HTTP1ConnectionParameters, HTTP1ServerConnection
from tornado.httputil import (
    HTTPConnection,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
)
from tornado.iostream import IOStream

from config.serving import HttpSettings
from server.timetable import Entry, Timetable

MAX_HEADER_BYTES: Final = 65_536
# How long what is under way may hold up the end.
_LAST_S: Final = 0.5


class Awaiting(Protocol):
    """Is told what a connection has to bring next."""

    def await_head(self) -> None: ...
    def await_body(self) -> None: ...
    def await_nothing(self) -> None: ...


class _Unwatched:
    """Nothing has to come in time."""

    def await_head(self) -> None:
        pass

    await_body = await_nothing = await_head


UNWATCHED: Final[Awaiting] = _Unwatched()


class Line:
    """One connection: from where it is, and until when something has to come.

    It is the `context` of Tornado's connection, which takes `remote_ip` and `protocol` from it.
    """

    __slots__ = ("_due", "_entry", "_loop", "_settings", "_stream", "_timetable", "remote_ip")

    protocol = "http"

    def __init__(
        self,
        stream: IOStream,
        remote_ip: str,
        settings: HttpSettings,
        loop: asyncio.AbstractEventLoop,
        timetable: Timetable,
    ) -> None:
        self.remote_ip = remote_ip
        self._stream = stream
        self._settings = settings
        self._loop = loop
        self._timetable = timetable
        self._due = inf
        self._entry: Entry | None = None
        self._wait()

    def __str__(self) -> str:
        return self.remote_ip

    def await_head(self) -> None:
        """Close the connection unless a whole header comes in time."""
        self._due = self._loop.time() + self._settings.idle_timeout_s

    def await_body(self) -> None:
        """Close the connection unless a whole body comes in time."""
        self._due = self._loop.time() + self._settings.body_timeout_s

    def await_nothing(self) -> None:
        """Leave the connection as it is; it is our turn, or others watch over it."""
        self._due = inf

    def over(self) -> None:
        """Forget the deadline."""
        if self._entry is not None:
            self._entry.cancel()
            self._entry = None

    def _wait(self) -> None:
        # Never longer than the shorter time: an entry need not move when a deadline is set.
        settings = self._settings
        most_s = min(settings.idle_timeout_s, settings.body_timeout_s)
        left_s = self._due - self._loop.time()
        self._entry = self._timetable.call_in(min(left_s, most_s), self._look)

    def _look(self) -> None:
        self._entry = None
        if self._due <= self._loop.time():
            self._stream.close()
        else:
            self._wait()


class HttpServer(HTTPServerConnectionDelegate):
    """Serves HTTP on streams that others accept; `application` takes the requests.

    The context of their connections is a Line, which whoever takes a request tells what it awaits.
    A request has a header of at most MAX_HEADER_BYTES and a body of at most `body_bytes`.
    """

    def __init__(
        self,
        application: HTTPServerConnectionDelegate,
        settings: HttpSettings,
        loop: asyncio.AbstractEventLoop,
        timetable: Timetable,
        *,
        body_bytes: int,
    ) -> None:
        self._application = application
        self._settings = settings
        self._loop = loop
        self._timetable = timetable
        self._parameters = HTTP1ConnectionParameters(
            max_header_size=MAX_HEADER_BYTES, max_body_size=body_bytes
        )
        self._lines: dict[HTTP1ServerConnection, Line] = {}

    def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
        """Serve a connection until it ends or is detached."""
        host = address[0] if address else ""
        line = Line(stream, host, self._settings, self._loop, self._timetable)
        connection = HTTP1ServerConnection(stream, self._parameters, line)
        self._lines[connection] = line
        connection.start_serving(self)

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        """Return what takes the next request of a connection."""
        return self._application.start_request(server_conn, request_conn)

    def on_close(self, server_conn: object) -> None:
        """Forget a connection."""
        assert isinstance(server_conn, HTTP1ServerConnection)  # noqa: S101 - it is given back
        self._lines.pop(server_conn).over()

    async def close_all_connections(self) -> None:
        """Close all connections; what is under way on them has a moment to end."""
        closing = [asyncio.ensure_future(each.close()) for each in list(self._lines)]
        if closing:
            _done, late = await asyncio.wait(closing, timeout=_LAST_S)
            for each in late:
                each.cancel()
            await asyncio.wait(closing)
