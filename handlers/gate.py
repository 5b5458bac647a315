"""How do bytes come in? This file: what is refused before any handler sees it.

Tornado answers a body over its limit, and a request that it cannot read, with an empty 400. The
gate stands before its router and answers with problem documents. What stays an empty 400 are
header lines and chunks that are no HTTP at all: they are refused before there is a request.
"""

import re
from collections.abc import Awaitable, Iterable
from http.client import responses
from typing import Any, Final

from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.web import Application

from handlers.base import BaseHandler
from handlers.cors import origin_headers
from handlers.direct import DirectPublishing
from handlers.exchange import Callers, request_id
from handlers.http_server import UNWATCHED, Awaiting, Line
from handlers.ndjson import is_stream
from handlers.problem import PROBLEM_TYPE, ProblemError
from server.errors import BadRequest, Refused, TooLarge
from server.node import Node

# Read and dropped before the connection is closed: a client that still sends when it is reset
# never sees the answer.
_DROP_BYTES: Final = 16 << 20
_NO_LIMIT: Final = 10**30
# Longer ones are no lengths to Tornado either, and it answers them by itself.
_is_digits: Final = re.compile("[0-9]{1,1000}").fullmatch


class GatedApplication(Application):
    """An application whose requests pass the gate first; with `publishing`, some go no further.

    Made for an HttpServer; on connections of another nothing is told what it awaits.
    """

    def __init__(
        self, node: Node, rules: Iterable[Any], *, publishing: bool = False, **settings: Any
    ) -> None:
        callers = Callers.of(node.settings)
        super().__init__(list(rules), callers=callers, **settings)
        self.node = node
        self.callers = callers
        self._direct = DirectPublishing(node, callers) if publishing else None

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        """Return what takes the request's parts as they come."""
        if request_conn.stream.closed():  # type: ignore[attr-defined]
            # The connection ended with the answer before: what lies behind that request in the
            # buffer is none that a client may count on (RFC 9112 9.6), and maybe a smuggled one.
            return HTTPMessageDelegate()
        return _Gate(self, server_conn, request_conn)

    def route(
        self,
        start_line: RequestStartLine,
        headers: HTTPHeaders,
        connection: HTTPConnection,
        server_conn: object,
    ) -> HTTPMessageDelegate:
        """Return what serves a request; raises HTTPInputError."""
        if self._direct is not None:
            found = self._direct.take(start_line, headers, connection, server_conn)
            if found is not None:
                return found
        request = HTTPServerRequest(
            connection=connection,
            server_connection=server_conn,
            start_line=start_line,
            headers=headers,
        )
        return self.find_handler(request)


class _Gate(HTTPMessageDelegate):
    """One request on its way to what serves it; `_inner` is that, once it was let through."""

    def __init__(
        self, application: GatedApplication, server_conn: object, connection: HTTPConnection
    ) -> None:
        self._application = application
        self._node = application.node
        self._server_conn = server_conn
        self._connection = connection
        context = connection.context  # type: ignore[attr-defined]
        self._line: Awaiting = context if isinstance(context, Line) else UNWATCHED
        self._inner: HTTPMessageDelegate | None = None
        self._counting = False
        self._length = -1
        self._ended = False
        self._seen = 0
        self._drop = 0
        self._line.await_head()

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        assert isinstance(start_line, RequestStartLine)  # noqa: S101 - a server gets no other
        self._start_line, self._headers = start_line, headers
        self._line.await_body()
        if not self._may_come(start_line, headers):
            return None
        try:
            inner = self._inner = self._application.route(
                start_line, headers, self._connection, self._server_conn
            )
        except HTTPInputError:
            self._counting = False
            self._refuse(BadRequest("the request is malformed"))
            return None
        return inner.headers_received(start_line, headers)

    def _may_come(self, start_line: RequestStartLine, headers: HTTPHeaders) -> bool:
        """Refuse a body that says to be too large; prepare to count one that does not say."""
        chunked = "Transfer-Encoding" in headers
        text = headers.get("Content-Length", "")
        if not chunked:
            length = self._length = int(text[:19]) if _is_digits(text) else -1
            if length <= self._most:
                return True
        if is_stream(start_line.method, start_line.path.partition("?")[0], headers):
            # As long as its publisher likes, and it is watched by its handler.
            self._line.await_nothing()
            return True
        # From here on the limit is the gate's.
        self._connection.set_max_body_size(_NO_LIMIT)  # type: ignore[attr-defined]
        self._counting = chunked
        if not chunked:
            self._refuse(self._too_large())
        return chunked

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        self._seen += len(chunk)
        if self._seen == self._length:
            self._line.await_nothing()
        if self._inner is None:
            # Ended before the body is, the connection is closed with the answer.
            if self._seen >= self._drop:
                self._end()
            return None
        if self._counting and self._seen > self._most:
            self._inner.on_connection_close()
            self._refuse(self._too_large())
            return None
        return self._inner.data_received(chunk)

    def finish(self) -> None:
        self._line.await_nothing()
        if self._inner is None:
            self._end()
        else:
            self._inner.finish()

    def on_connection_close(self) -> None:
        if self._inner is not None:
            self._inner.on_connection_close()

    @property
    def _most(self) -> int:
        return self._node.settings.limits.body_bytes

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is over {self._most} bytes", reason="limits.body_bytes")

    def _refuse(self, refused: Refused) -> None:
        """Answer at once, and close when the client has sent what it sends, within reason."""
        self._inner = None
        given, problem = self._headers, ProblemError.of_refused(refused)
        name = request_id(given.get("X-Request-Id"))
        body = problem.body(name)
        headers = HTTPHeaders(
            {
                "Content-Type": PROBLEM_TYPE,
                "Content-Length": str(len(body)),
                "X-Request-Id": name,
                "X-Content-Type-Options": "nosniff",
                "Cache-Control": "no-store",
                "Connection": "close",
            }
        )
        for header, value in origin_headers(given.get("Origin"), self._application.callers.origins):
            headers[header] = value
        status, method = problem.status, self._start_line.method
        line = ResponseStartLine("HTTP/1.1", status, responses[status])
        self._connection.write_headers(line, headers, None if method == "HEAD" else body)
        self._node.metrics.refused(problem.reason)
        self._node.metrics.http_request(method, BaseHandler.route, status, 0.0)
        self._drop = _DROP_BYTES if self._counting else self._announced()
        # A client that expects a word before it sends the body has it now.
        if "Expect" in given or self._seen >= self._drop:
            self._end()

    def _announced(self) -> int:
        length = self._headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self._headers or not _is_digits(length):
            # Where the body ends may be doubtful, and Tornado would answer that a second time.
            return 0
        return min(_DROP_BYTES, int(length[:19]))

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._connection.finish()
