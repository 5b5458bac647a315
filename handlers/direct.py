"""How do bytes come in? This file: publishing over HTTP by the shortest way.

A publish is the request that comes most often. Tornado's RequestHandler costs more than all that a
publish does, so one whose length is known beforehand is taken by a plain delegate, within the task
that reads the connection. What it means and how it is answered is the same code as for handlers.
"""

import re
import time
from asyncio import CancelledError
from collections.abc import Awaitable, Sequence
from http.client import responses
from typing import Any, Final

import msgspec
from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
    format_timestamp,
)
from tornado.routing import Router

from handlers.exchange import Callers, Exchange
from handlers.media import JSON
from handlers.ndjson import is_stream
from handlers.problem import PROBLEM_TYPE, Header, ProblemError
from handlers.publish import PublishHandler, publish
from server.errors import Unavailable
from server.node import Node

_has_body: Final = re.compile("0*[1-9][0-9]{0,18}").fullmatch
_encode: Final = msgspec.json.Encoder().encode


class DirectRouter(Router):
    """Takes the publishes that can go the short way, and leaves all else to other routes."""

    def __init__(self, node: Node, callers: Callers) -> None:
        self.node = node
        self.callers = callers
        self._second = 0
        self._date = ""

    def find_handler(self, request: HTTPServerRequest, **_kwargs: Any) -> "DirectPublish | None":
        """Return what serves a request, None if it is not one of these."""
        if request.method != "POST" or request.path != PublishHandler.route:
            return None
        headers = request.headers
        length = headers.get("Content-Length", "")
        # Without a body it would never be carried out; a list of lengths is for Tornado to judge.
        if (
            not _has_body(length)
            or "Transfer-Encoding" in headers
            or is_stream(request.method, request.path, headers)
        ):
            return None
        return DirectPublish(self, request, int(length))

    def date(self) -> str:
        """Return the time for a header `Date`, written anew once a second."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._date = format_timestamp(second)
        return self._date


class DirectPublish(HTTPMessageDelegate):
    """One publish with a body of known length.

    It is carried out when the last byte is there, while Tornado's reading of the connection waits
    for that byte to be taken. So it needs no task, and nobody has to watch for the end of the
    connection meanwhile; the answer is written when Tornado says that the request is whole.
    """

    def __init__(self, router: DirectRouter, request: HTTPServerRequest, length: int) -> None:
        self._router = router
        self._request = request
        self._left = length
        self._chunks: list[bytes] = []
        self._exchange: Exchange | None = None
        self._status = 0
        self._kind = JSON
        self._headers: Sequence[Header] = ()
        self._body = b""

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> None:
        """Wait for the body, and nothing else: who is not let in learns it after it."""

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Keep a part of the body; publish with the last one."""
        self._chunks.append(chunk)
        self._left -= len(chunk)
        if self._left > 0:
            return None
        body, self._chunks = b"".join(self._chunks), []
        return self._carry_out(body)

    async def _carry_out(self, body: bytes) -> None:
        router = self._router
        exchange = self._exchange = Exchange(
            router.node, router.callers, self._request, PublishHandler.route
        )
        try:
            exchange.require_page()
            self._status, answer = await publish(exchange, body)
            self._body = _encode(answer)
            self._headers = exchange.quota
        except (Exception, CancelledError) as error:
            if isinstance(error, CancelledError):
                # By the server, when it closes and cannot wait: the connection is closed already.
                error = Unavailable("this node is going away")
            exchange.log_unexpected(error)
            problem = ProblemError.of(error, 500)
            self._status = problem.status
            self._kind = PROBLEM_TYPE
            self._headers, self._body = exchange.refuse(problem)

    def finish(self) -> None:
        """Answer; a client that went away meanwhile is not told, and counted all the same."""
        exchange = self._exchange
        assert exchange is not None  # noqa: S101 - the body came before its end
        connection, body = self._request.connection, self._body
        assert connection is not None  # noqa: S101 - a server's request has one
        headers = HTTPHeaders()
        headers["Content-Type"] = self._kind
        headers["Date"] = self._router.date()
        for name, value in exchange.headers():
            headers[name] = value
        for name, value in self._headers:
            headers[name] = value
        headers["Content-Length"] = str(len(body))
        line = ResponseStartLine("HTTP/1.1", self._status, responses[self._status])
        connection.write_headers(line, headers, body)
        connection.finish()
        exchange.ended(self._status)

    def on_connection_close(self) -> None:
        """Let go of the body of a client that went away."""
        self._chunks = []
