"""How do bytes come in? This file: publishing over HTTP by the shortest way.

A publish is the request that comes most often. Tornado's RequestHandler costs more than all that a
publish does, so one whose length is known beforehand is taken by a plain delegate, within the task
that reads the connection. What it means and how it is answered is the same code as for handlers.
"""

import re
import time
from asyncio import CancelledError
from collections.abc import Awaitable, Iterable, Sequence
from http.client import responses
from typing import Final

import msgspec
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
    format_timestamp,
)

from handlers.exchange import Asked, Callers, Exchange, field
from handlers.media import JSON
from handlers.ndjson import is_stream
from handlers.problem import PROBLEM_TYPE, Header, ProblemError
from handlers.publish import PublishHandler, publish
from server.errors import Unavailable
from server.node import Node

_has_body: Final = re.compile("0*[1-9][0-9]{0,18}").fullmatch
# All others are for Tornado to judge.
_is_plain_host: Final = re.compile("[A-Za-z0-9.-]+(?::[0-9]{1,5})?").fullmatch
_encode: Final = msgspec.json.Encoder().encode


class _Plain:
    """What is asked without a query: all that a publish needs of Tornado's HTTPServerRequest.

    That one parses the empty query and copies it, which costs more than to check the event.
    """

    __slots__ = ("headers", "host", "path", "remote_ip")

    method = "POST"
    query_arguments: Final[dict[str, list[bytes]]] = {}

    def __init__(self, path: str, headers: HTTPHeaders, host: str, remote_ip: str | None) -> None:
        self.path = path
        self.headers = headers
        self.host = host
        self.remote_ip = remote_ip


class DirectPublishing:
    """Takes the publishes that can go the short way, and leaves all else to other routes."""

    def __init__(self, node: Node, callers: Callers) -> None:
        self.node = node
        self.callers = callers
        self._second = 0
        self._date = ""

    def take(
        self,
        start_line: RequestStartLine,
        headers: HTTPHeaders,
        connection: HTTPConnection,
        server_conn: object,
    ) -> "DirectPublish | None":
        """Return what serves a request, None if it is not one of these; raises HTTPInputError."""
        method, uri, version = start_line
        path, mark, _query = uri.partition("?")
        if method != "POST" or path != PublishHandler.route or version != "HTTP/1.1":
            return None
        length = field(headers, "Content-Length")
        # Without a body it would never be carried out; a list of lengths is for Tornado to judge.
        if (
            length is None
            or not _has_body(length)
            or "Transfer-Encoding" in headers
            or is_stream(method, path, headers)
        ):
            return None
        host = field(headers, "Host")
        asked: Asked
        if mark or host is None or not _is_plain_host(host):
            asked = HTTPServerRequest(
                connection=connection,
                server_connection=server_conn,
                start_line=start_line,
                headers=headers,
            )
        else:
            context = connection.context  # type: ignore[attr-defined]
            asked = _Plain(path, headers, host, context.remote_ip)
        return DirectPublish(self, asked, connection, int(length))

    def date(self) -> str:
        """Return the time for a header `Date`, written anew once a second."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._date = format_timestamp(second)
        return self._date


def answer_bytes(status: int, headers: Iterable[Header], body: bytes) -> bytes:
    """Return a response of HTTP/1.1 as it is sent; raises ValueError if a header breaks its line.

    Tornado's `write_headers` looks for that in each line; here all are searched at once.
    """
    lines = [f"HTTP/1.1 {status} {responses[status]}"]
    lines += [f"{name}: {value}" for name, value in headers]
    head = "\n".join(lines)
    if head.count("\n") != len(lines) - 1 or "\r" in head:
        raise ValueError("a header has a line break")
    return head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body


class DirectPublish(HTTPMessageDelegate):
    """One publish with a body of known length.

    It is carried out when the last byte is there, while Tornado's reading of the connection waits
    for that byte to be taken. So it needs no task, and nobody has to watch for the end of the
    connection meanwhile; the answer is written when Tornado says that the request is whole.
    """

    def __init__(
        self, publishing: DirectPublishing, asked: Asked, connection: HTTPConnection, length: int
    ) -> None:
        self._publishing = publishing
        self._asked = asked
        self._connection = connection
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
        publishing = self._publishing
        exchange = self._exchange = Exchange(
            publishing.node, publishing.callers, self._asked, PublishHandler.route
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
        body = self._body
        headers = [
            ("Content-Type", self._kind),
            ("Date", self._publishing.date()),
            *exchange.headers(),
            *self._headers,
            ("Content-Length", str(len(body))),
        ]
        asked_for = field(self._asked.headers, "Connection")
        if asked_for is not None and asked_for.lower() == "close":
            headers.append(("Connection", "close"))
        connection = self._connection
        connection.write(answer_bytes(self._status, headers, body))
        connection.finish()
        exchange.ended(self._status)

    def on_connection_close(self) -> None:
        """Let go of the body of a client that went away."""
        self._chunks = []
