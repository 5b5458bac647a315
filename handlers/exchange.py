"""How do bytes come in and go out? This file: what every HTTP request has in common.

A request is served by a handler of Tornado's (`handlers/base.py`), or by a plain delegate where
that costs too much (`handlers/direct.py`). Both ask here, so that no client can tell them apart.
"""

import logging
import random
import re
import time
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

from tornado.httputil import HTTPHeaders
from tornado.web import HTTPError

from config.settings import Settings
from handlers.address import Networks, client_address, networks
from handlers.cors import origin_headers, require_loopback, require_origin
from handlers.problem import Header, ProblemError
from server.errors import BadRequest, Refused, Unauthorized
from server.node import Node
from server.principal import Principal

_log: Final = logging.getLogger(__name__)
_access: Final = logging.getLogger("galecast.access")

_is_request_id: Final = re.compile(r"[A-Za-z0-9._-]{1,128}").fullmatch

_GUARDS: Final = (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"))


def request_id(given: str | None) -> str:
    """Return the id that the client gave its request, if it may be one, else a new one."""
    if given is not None and _is_request_id(given):
        return given
    # It has to differ from others, not to be secret, and the kernel's random bytes cost more.
    return f"{random.getrandbits(64):016x}"


def field(headers: HTTPHeaders, name: str) -> str | None:
    """Return a header, None if it is not there.

    Most of what is asked for is absent, and `headers.get` finds that out by way of an exception,
    which costs thrice as much.
    """
    return headers[name] if name in headers else None


class Asked(Protocol):
    """What is asked for, of which Tornado's HTTPServerRequest knows more."""

    @property
    def method(self) -> str | None: ...
    @property
    def path(self) -> str: ...
    @property
    def headers(self) -> HTTPHeaders: ...
    @property
    def host(self) -> str: ...
    @property
    def remote_ip(self) -> str | None: ...
    @property
    def query_arguments(self) -> dict[str, list[bytes]]: ...


class Callers(NamedTuple):
    """From where requests may come: web pages, and proxies that are believed."""

    origins: frozenset[str]
    proxies: Networks

    @classmethod
    def of(cls, settings: Settings) -> "Callers":
        """Take them from the settings."""
        return cls(frozenset(settings.origins), networks(settings.trusted_proxies))


class Exchange:
    """One request and its answer: its id, whom it acts for, and how its end is told and counted.

    Counted in when it is made; whoever makes it calls `ended` once. `route` is the address with
    placeholders, as metrics and descriptions show it. `quota` are the headers that tell what is
    left of a limit; none before it is known who asks.
    """

    __slots__ = (
        "_began",
        "_callers",
        "_in_flight",
        "content_type",
        "node",
        "principal",
        "quota",
        "request",
        "request_id",
        "route",
    )

    def __init__(self, node: Node, callers: Callers, request: Asked, route: str) -> None:
        self.node = node
        self.request = request
        self.route = route
        self.principal: Principal | None = None
        self.quota: tuple[Header, ...] = ()
        self._callers = callers
        self._began = time.perf_counter()
        self._in_flight = True
        node.lifecycle.request_began()
        headers = request.headers
        self.request_id = request_id(field(headers, "X-Request-Id"))
        self.content_type = field(headers, "Content-Type")

    # ---- who asks

    def require_page(self) -> None:
        """Return if no foreign web page asks; raises Forbidden."""
        if self.node.settings.dev:
            require_loopback(self.request.host)
        origin = field(self.request.headers, "Origin")
        if origin is not None:
            require_origin(origin, self._callers.origins)

    def authenticate(self, *, anonymous: bool = False) -> Principal:
        """Return whom the request acts for, and count it; raises Refused.

        The bearer is all that counts: no cookie is ever read, so that a foreign page cannot make a
        browser act for its user. With `anonymous` a request without one acts for the anonymous
        principal, where the settings let it in; credentials that are not valid never do.
        """
        header = field(self.request.headers, "Authorization")
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
        self.quota = self._quota_of(principal)
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
        trusted = self._callers.proxies
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

    # ---- the answer

    def headers(self) -> list[Header]:
        """Return the headers of every answer."""
        headers = [("X-Request-Id", self.request_id), *_GUARDS, *self.cors_headers()]
        if self.node.lifecycle.draining:
            headers.append(("Connection", "close"))
        return headers

    def cors_headers(self) -> list[Header]:
        """Return the headers that let an allowed page read the answer."""
        origins = self._callers.origins
        return origin_headers(field(self.request.headers, "Origin"), origins) if origins else []

    def refuse(self, problem: ProblemError) -> tuple[list[Header], bytes]:
        """Count a refusal; return what its answer has beside `headers`, and its body.

        That is of PROBLEM_TYPE.
        """
        if self.principal is not None:
            self.quota = self._quota_of(self.principal)
        self.node.metrics.refused(problem.reason)
        return [*self.quota, *problem.headers], problem.body(self.request_id)

    def _quota_of(self, principal: Principal) -> tuple[Header, ...]:
        rates = self.node.rates
        if principal.key is not None:
            bucket = rates.requests(principal.key)
        elif principal.user is not None:
            bucket = rates.user_requests(principal.user)
        else:
            bucket = rates.address_requests(self.client_address)
        quota = bucket.quota(time.monotonic())
        if quota is None:
            return ()
        return (
            ("RateLimit-Limit", str(quota.limit)),
            ("RateLimit-Remaining", str(quota.remaining)),
            ("RateLimit-Reset", str(quota.reset_s)),
        )

    def log_unexpected(self, error: BaseException | None) -> None:
        """Log what nobody expected; refusals are told to the client and counted."""
        if not isinstance(error, HTTPError | Refused | ProblemError):
            _log.error(
                "request failed",
                exc_info=error,
                extra={"request": self.request_id, "route": self.route},
            )

    # ---- the end

    def ended(self, status: int) -> None:
        """Count the request out, and log it; only the first time."""
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
