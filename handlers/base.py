"""How do bytes come in and go out? This file: what every HTTP request has in common."""

import logging
import re
import secrets
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, ClassVar, Final

import msgspec
from tornado.web import HTTPError, RequestHandler

from handlers.address import client_address, networks
from handlers.cors import origin_headers, preflight_headers, require_loopback, require_origin
from handlers.problem import PROBLEM_TYPE, ProblemError
from server.errors import BadRequest, Refused, Unauthorized
from server.node import Node
from server.principal import Principal

__all__ = ["BaseHandler", "ProblemError"]

_log: Final = logging.getLogger(__name__)
_access: Final = logging.getLogger("galecast.access")

_is_request_id: Final = re.compile(r"[A-Za-z0-9._-]{1,128}").fullmatch
_is_count: Final = re.compile(r"[1-9][0-9]{0,8}").fullmatch
_is_time: Final = re.compile(r"[0-9]{1,15}").fullmatch
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
# What proxies log of a client that went away; no such response is ever sent.
_CLIENT_GONE: Final = 499

_encode: Final = msgspec.json.Encoder().encode


def request_id(given: str | None) -> str:
    """Return the id that the client gave its request, if it may be one, else a new one."""
    return given if given is not None and _is_request_id(given) else secrets.token_hex(8)


def read_time(text: str, name: str) -> int:
    """Return a time in ms since 1970; raises BadRequest."""
    if not _is_time(text):
        raise BadRequest(f"{name} has to be a time in ms since 1970")
    return int(text)


class BaseHandler(RequestHandler):
    """One request: its id, whom it acts for, and how its end is told and counted.

    Refusals are raised as `Refused` (or ProblemError) and answered as problem documents; anything
    else that is raised is answered by a fixed phrase and logged with the request's id. `route` is
    the address with placeholders, as metrics and descriptions show it.
    """

    route: ClassVar[str] = "other"

    node: Node
    principal: Principal | None = None
    request_id: str = ""

    def initialize(self, node: Node) -> None:
        """Take what all handlers of a node share, and count the request in."""
        self.node = node
        self._began = time.perf_counter()
        self._in_flight = True
        node.lifecycle.request_began()
        headers = self.request.headers
        self.request_id = request_id(headers.get("X-Request-Id"))
        self.content_type: str | None = None
        if "Content-Type" in headers:
            # Taken away from Tornado, which would parse forms before anybody is asked who he is.
            self.content_type = headers.pop("Content-Type")
        self._set_headers()

    def prepare(self) -> None:
        """Refuse requests of foreign web pages."""
        if self.node.settings.dev:
            require_loopback(self.request.host)
        origin = self.request.headers.get("Origin")
        if origin is not None:
            require_origin(origin, self._origins)

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

    # ---- who asks

    def authenticate(self, *, anonymous: bool = False) -> Principal:
        """Return whom the request acts for, and count it; raises Refused.

        The bearer is all that counts: no cookie is ever read, so that a foreign page cannot make a
        browser act for its user. With `anonymous` a request without one acts for the anonymous
        principal, where the settings let it in; credentials that are not valid never do.
        """
        header = self.request.headers.get("Authorization")
        if header is not None:
            return self._admit(self.node.auth.bearer(header))
        if anonymous:
            with suppress(Unauthorized):
                return self._admit(self.node.auth.anonymous())
        raise Unauthorized("Authorization is missing: Bearer, a space, an API key or a token")

    def _admit(self, principal: Principal) -> Principal:
        """Count the request against its API key, user or address; raises RateLimited."""
        self.principal = principal
        rates, now = self.node.rates, time.monotonic()
        if principal.key is not None:
            rates.request(principal.key, now)
        elif principal.user is not None:
            rates.user_request(principal.user, now)
        else:
            rates.address_request(self.client_address, now)
        self._set_quota(principal)
        return principal

    def pay_publish(self, principal: Principal, count: int = 1) -> None:
        """Count events to be published; raises RateLimited, and then none is counted."""
        rates, now = self.node.rates, time.monotonic()
        if principal.key is not None:
            rates.publish(principal.key, now, count)
        elif principal.user is not None:
            rates.user_publish(principal.user, now, count)
        else:
            rates.address_publish(self.client_address, now, count)

    @property
    def client_address(self) -> str:
        """The address of the client, seen through trusted proxies."""
        trusted = self.settings.get("trusted_networks")
        if trusted is None:
            trusted = networks(self.node.settings.trusted_proxies)
            self.settings["trusted_networks"] = trusted
        forwarded = self.request.headers.get_list("X-Forwarded-For") if trusted else ()
        return client_address(self.request.remote_ip or "", forwarded, trusted)

    # ---- what is asked

    def parameter(self, name: str) -> str | None:
        """Return a parameter of the query as it is, None if it is not there; raises BadRequest.

        Tornado's own accessors strip blanks and replace control characters, and so would turn some
        invalid names into valid ones.
        """
        values = self.request.query_arguments.get(name)
        if values is None:
            return None
        if len(values) > 1:
            raise BadRequest(f"{name} is given more than once")
        try:
            return values[0].decode()
        except UnicodeDecodeError:
            raise BadRequest(f"{name} is not valid UTF-8") from None

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

    def cors_headers(self) -> list[tuple[str, str]]:
        """Return the headers that let an allowed page read the answer."""
        return origin_headers(self.request.headers.get("Origin"), self._origins)

    @property
    def _origins(self) -> frozenset[str]:
        known: frozenset[str] | None = self.settings.get("allowed_origins")
        if known is None:
            known = self.settings["allowed_origins"] = frozenset(self.node.settings.origins)
        return known

    def _set_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("X-Request-Id", self.request_id)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        for name, value in self.cors_headers():
            self.set_header(name, value)
        if self.node.lifecycle.draining:
            self.set_header("Connection", "close")

    def _set_quota(self, principal: Principal) -> None:
        rates = self.node.rates
        if principal.key is not None:
            bucket = rates.requests(principal.key)
        elif principal.user is not None:
            bucket = rates.user_requests(principal.user)
        else:
            bucket = rates.address_requests(self.client_address)
        quota = bucket.quota(time.monotonic())
        if quota is not None:
            self.set_header("RateLimit-Limit", str(quota.limit))
            self.set_header("RateLimit-Remaining", str(quota.remaining))
            self.set_header("RateLimit-Reset", str(quota.reset_s))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer a failure with a problem document."""
        exc_info = kwargs.get("exc_info")
        allow = ", ".join(self.methods())
        problem = ProblemError.of(exc_info[1] if exc_info else None, status_code, allow)
        self._set_headers()
        if self.principal is not None:
            self._set_quota(self.principal)
        self.set_status(problem.status)
        for name, value in problem.headers:
            self.set_header(name, value)
        self.set_header("Content-Type", PROBLEM_TYPE)
        self.node.metrics.refused(problem.reason)
        self.finish(problem.body(self.request_id))

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Log what nobody expected; refusals are told to the client and counted."""
        if not isinstance(value, HTTPError | Refused | ProblemError):
            info = None if typ is None or value is None else (typ, value, tb)
            _log.error(
                "request failed",
                exc_info=info,
                extra={"request": self.request_id, "route": self.route},
            )

    # ---- the end

    def on_finish(self) -> None:
        """Count the request out."""
        self._count_out(self.get_status())

    def left(self) -> None:
        """Count the request out, since its socket was taken to live on without HTTP."""
        self._count_out(101 if "Sec-WebSocket-Key" in self.request.headers else 200)

    def gave_up(self) -> None:
        """Count the request out, since its client went away before the end."""
        self._count_out(_CLIENT_GONE)

    def _count_out(self, status: int) -> None:
        if not self._in_flight:
            return
        self._in_flight = False
        self.node.lifecycle.request_ended()
        duration = time.perf_counter() - self._began
        method = self.request.method or ""
        self.node.metrics.http_request(method, self.route, status, duration)
        level = logging.DEBUG if status < 400 else logging.INFO
        if _access.isEnabledFor(level):
            _access.log(
                level,
                "%s %a %d",
                method,
                self.request.path[:255],
                status,
                extra={
                    "request": self.request_id,
                    "route": self.route,
                    "address": self.client_address,
                    "duration_ms": round(duration * 1000, 3),
                },
            )

    def _log(self) -> None:
        """Tornado's own line would show the query, and with it tickets."""


class NotFoundHandler(BaseHandler):
    """Any address that is no route."""

    def prepare(self) -> None:
        """Refuse."""
        super().prepare()
        raise HTTPError(404)
