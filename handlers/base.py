"""How do bytes come in and go out? This file: requests that a handler of Tornado's serves."""

import re
from collections.abc import Iterable
from types import TracebackType
from typing import Any, ClassVar, Final

import msgspec
from tornado.web import HTTPError, RequestHandler

from handlers.cors import preflight_headers
from handlers.exchange import Exchange
from handlers.problem import PROBLEM_TYPE, Header, ProblemError
from server.errors import BadRequest
from server.node import Node
from server.principal import Principal

__all__ = ["BaseHandler", "ProblemError"]

_is_count: Final = re.compile(r"[1-9][0-9]{0,8}").fullmatch
_is_time: Final = re.compile(r"[0-9]{1,15}").fullmatch
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
# What proxies log of a client that went away; no such response is ever sent.
_CLIENT_GONE: Final = 499

_encode: Final = msgspec.json.Encoder().encode


def read_time(text: str, name: str) -> int:
    """Return a time in ms since 1970; raises BadRequest."""
    if not _is_time(text):
        raise BadRequest(f"{name} has to be a time in ms since 1970")
    return int(text)


class BaseHandler(RequestHandler):
    """One request, served by Tornado's machinery.

    Refusals are raised as `Refused` (or ProblemError) and answered as problem documents; anything
    else that is raised is answered by a fixed phrase and logged with the request's id. `route` is
    the address with placeholders, as metrics and descriptions show it.
    """

    route: ClassVar[str] = "other"

    node: Node
    exchange: Exchange

    def initialize(self, node: Node) -> None:
        """Take what all handlers of a node share, and count the request in."""
        self.node = node
        self.exchange = Exchange(node, self.settings["callers"], self.request, self.route)
        if self.exchange.content_type is not None:
            # Taken away from Tornado, which would parse forms before anybody is asked who he is.
            del self.request.headers["Content-Type"]
        self._set_headers()

    def prepare(self) -> None:
        """Refuse requests of foreign web pages."""
        self.exchange.require_page()

    # ---- methods

    @classmethod
    def methods(cls) -> list[str]:
        """Return the methods that this route has."""
        found = [
            method
            for method in _METHODS
            if getattr(cls, method.lower()) is not getattr(RequestHandler, method.lower())
        ]
        if "GET" in found:
            found.insert(1, "HEAD")
        return [*found, "OPTIONS"]

    async def head(self, *args: str) -> None:
        """Answer like GET; the body is left out when it is sent."""
        outcome = self.get(*args)
        if outcome is not None:
            await outcome

    def options(self, *args: str) -> None:
        """Answer a preflight, or tell the methods of this route."""
        methods = self.methods()
        headers = self.request.headers
        self.set_status(204)
        self.set_header("Allow", ", ".join(methods))
        if "Origin" in headers and "Access-Control-Request-Method" in headers:
            for name, value in preflight_headers(methods):
                self.set_header(name, value)

    # ---- who asks, and what (see Exchange)

    @property
    def request_id(self) -> str:
        """The id of the request, given or made."""
        return self.exchange.request_id

    @property
    def content_type(self) -> str | None:
        """What the request says that its body is."""
        return self.exchange.content_type

    @property
    def client_address(self) -> str:
        """The address of the client, seen through trusted proxies."""
        return self.exchange.client_address

    def authenticate(self, *, anonymous: bool = False) -> Principal:
        """Return whom the request acts for, and count it; raises Refused."""
        principal = self.exchange.authenticate(anonymous=anonymous)
        self.add_headers(self.exchange.quota)
        return principal

    def parameter(self, name: str) -> str | None:
        """Return a parameter of the query as it is, None if it is not there; raises BadRequest."""
        return self.exchange.parameter(name)

    def count(self, name: str, default: int, most: int) -> int:
        """Return a parameter that counts, cut to `most`; raises BadRequest."""
        text = self.parameter(name)
        if text is None:
            return min(default, most)
        if not _is_count(text):
            raise BadRequest(f"{name} has to be a number from 1")
        return min(int(text), most)

    def time(self, name: str) -> int | None:
        """Return a parameter that is a time in ms since 1970; raises BadRequest."""
        text = self.parameter(name)
        return None if text is None else read_time(text, name)

    # ---- the answer

    def reply(self, body: msgspec.Struct, status: int = 200) -> None:
        """Answer with JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(_encode(body))

    def compute_etag(self) -> None:
        """No ETag: answers are not to be stored."""

    def _set_headers(self) -> None:
        self.clear_header("Server")
        self.add_headers(self.exchange.headers())

    def add_headers(self, headers: Iterable[Header]) -> None:
        """Set headers of the answer."""
        for name, value in headers:
            self.set_header(name, value)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer a failure with a problem document."""
        exc_info = kwargs.get("exc_info")
        allow = ", ".join(self.methods())
        problem = ProblemError.of(exc_info[1] if exc_info else None, status_code, allow)
        headers, body = self.exchange.refuse(problem)
        self._set_headers()
        self.add_headers(headers)
        self.set_header("Content-Type", PROBLEM_TYPE)
        self.set_status(problem.status)
        self.finish(body)

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Log what nobody expected."""
        self.exchange.log_unexpected(value)

    # ---- the end

    def on_finish(self) -> None:
        """Count the request out."""
        self.exchange.ended(self.get_status())

    def left(self) -> None:
        """Count the request out, since its socket was taken to live on without HTTP."""
        self.exchange.ended(101 if "Sec-WebSocket-Key" in self.request.headers else 200)

    def gave_up(self) -> None:
        """Count the request out, since its client went away before the end."""
        self.exchange.ended(_CLIENT_GONE)

    def _log(self) -> None:
        """Tornado's own line would show the query, and with it tickets."""


class NotFoundHandler(BaseHandler):
    """Any address that is no route."""

    def prepare(self) -> None:
        """Refuse."""
        super().prepare()
        raise HTTPError(404)
