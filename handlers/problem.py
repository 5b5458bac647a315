"""How do bytes go out? This file: what is refused, as an HTTP response (RFC 9457)."""

import random
from http.client import responses
from math import ceil
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType
from tornado.web import HTTPError

from handlers.handshake import HandshakeRejected
from server.errors import BadRequest, Internal, NotFound, Refused, TooLarge

PROBLEM_TYPE: Final = "application/problem+json"

_PROBLEM_TYPE_URI: Final = "about:blank"
_MOST_PAUSE_S: Final = 3

Header = tuple[str, str]


class Problem(msgspec.Struct, kw_only=True):
    """A refusal. `code` is one of the protocol's words, `retry` whether to try the same again.

    `channel` stands where one of several channels was refused.
    """

    type: Literal["about:blank"] = _PROBLEM_TYPE_URI
    title: str
    status: int
    detail: str
    instance: str
    code: str
    retry: bool
    channel: str | UnsetType = UNSET


class ProblemError(Exception):
    """A refusal with the HTTP status and the headers of its response.

    `reason` is the word that the metric of refusals counts, `channel` the one that is refused.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry: bool = False,
        reason: str | None = None,
        headers: tuple[Header, ...] = (),
        channel: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry = retry
        self.reason = reason or code
        self.headers = headers
        self.channel = channel

    @classmethod
    def of_refused(cls, refused: Refused) -> "ProblemError":
        """Return a refusal as a response."""
        status = refused.status
        headers: tuple[Header, ...] = ()
        if status == 401:
            headers = (("WWW-Authenticate", "Bearer"),)
        elif status in (429, 503):
            headers = (("Retry-After", str(_pause_s(refused.retry_after_s))),)
        return cls(
            status,
            refused.code,
            refused.message,
            retry=refused.retry,
            reason=refused.reason,
            headers=headers,
            channel=refused.channel,
        )

    @classmethod
    def of_handshake(cls, rejected: HandshakeRejected) -> "ProblemError":
        """Return a rejected WebSocket handshake as a plain response."""
        return cls(rejected.status, rejected.code, rejected.text, headers=rejected.headers)

    @classmethod
    def of(cls, error: BaseException | None, status: int, allow: str = "") -> "ProblemError":
        """Return any failure of a request as a response; what is unexpected says nothing.

        `status` is what counts if the error brings none; `allow` lists the methods of the route.
        """
        if isinstance(error, ProblemError):
            return error
        if isinstance(error, Refused):
            return cls.of_refused(error)
        if isinstance(error, HTTPError):
            status = error.status_code
        if status == 405:
            return cls(405, BadRequest.code, f"use {allow}", headers=(("Allow", allow),))
        if status == 404:
            return cls.of_refused(NotFound("there is nothing at this address"))
        if status == 413:
            return cls.of_refused(TooLarge("the body is too large", reason="limits.body_bytes"))
        if 400 <= status < 500:
            return cls(status, BadRequest.code, "the request is malformed")
        return cls.of_refused(Internal("something went wrong"))

    def body(self, request_id: str) -> bytes:
        """Return the problem document."""
        return msgspec.json.encode(
            Problem(
                title=responses.get(self.status, "Unknown"),
                status=self.status,
                detail=self.message,
                instance=request_id,
                code=self.code,
                retry=self.retry,
                channel=UNSET if self.channel is None else self.channel,
            )
        )


def _pause_s(hint_s: float | None) -> int:
    """Return whole seconds for Retry-After: the hint, or a short time unlike that of others."""
    if hint_s is not None:
        return max(1, ceil(hint_s))
    return random.randint(1, _MOST_PAUSE_S)  # noqa: S311
