"""Who may do what, and what is said when not? This file: the refusals that clients see.

Refused
├── BadRequest, BadRef, InvalidData, UnsupportedMediaType      the request is wrong
├── Unauthorized, TokenExpired, Forbidden                      the principal is wrong
├── NotFound, Conflict                                         the state is wrong
├── TooLarge, RateLimited, LimitExceeded                       a limit was met
└── Internal, NotReplicated, Unavailable                       the server's fault
"""

from typing import ClassVar


class Refused(Exception):
    """A refusal with a public text.

    `code` and `status` are one table for WebSocket, SSE and REST; `retry` tells whether the same
    request may succeed later; `reason` is a fixed word for the metric of refusals, `retry_after_s`
    a hint when to come back. Where a request is about many channels, `channel` is set to the one
    that this refusal is about.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retry: bool = False
    channel: str | None = None

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        retry_after_s: float | None = None,
        retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.code
        self.retry_after_s = retry_after_s
        if retry is not None:
            self.retry = retry


class BadRequest(Refused):
    """The request is malformed or asks for what does not exist in this protocol."""

    code = "bad_request"
    status = 400


class BadRef(Refused):
    """A command's `ref` is missing, no positive integer, or not greater than all before it."""

    code = "bad_ref"
    status = 400


class InvalidData(Refused):
    """`data`, `info` or `tags` hold a value outside the allowed value space."""

    code = "invalid_data"
    status = 422


class Unauthorized(Refused):
    """No credentials, or credentials that are not valid."""

    code = "unauthorized"
    status = 401


class TokenExpired(Refused):
    """The token was valid once."""

    code = "token_expired"
    status = 401


class Forbidden(Refused):
    """The principal is known and not granted this."""

    code = "forbidden"
    status = 403


class NotFound(Refused):
    """There is nothing under that name."""

    code = "not_found"
    status = 404


class Conflict(Refused):
    """The request contradicts the present state."""

    code = "conflict"
    status = 409


class TooLarge(Refused):
    """A body, a message, a batch or an event's data is over its limit."""

    code = "too_large"
    status = 413


class UnsupportedMediaType(Refused):
    """The content type is none that this endpoint reads."""

    code = "unsupported_media_type"
    status = 415


class RateLimited(Refused):
    """Too many requests in a time; come back later."""

    code = "rate_limited"
    status = 429
    retry = True


class LimitExceeded(Refused):
    """Too many of something at the same time."""

    code = "limit_exceeded"
    status = 429


class Internal(Refused):
    """Something unexpected; the log has the rest."""

    code = "internal"
    status = 500
    retry = True


class NotReplicated(Refused):
    """Published, but on fewer replicas than asked for."""

    code = "not_replicated"
    status = 503
    retry = True


class Unavailable(Refused):
    """The broker is away, or the node is going away."""

    code = "unavailable"
    status = 503
    retry = True


ALL: tuple[type[Refused], ...] = (
    BadRequest,
    BadRef,
    InvalidData,
    Unauthorized,
    TokenExpired,
    Forbidden,
    NotFound,
    Conflict,
    TooLarge,
    UnsupportedMediaType,
    RateLimited,
    LimitExceeded,
    Internal,
    NotReplicated,
    Unavailable,
)
