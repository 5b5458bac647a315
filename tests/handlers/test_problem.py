"""Refusals as problem documents: status, code, headers, and nothing that is not to be told."""

import json

import pytest
from tornado.web import HTTPError

from handlers.handshake import HandshakeRejected
from handlers.problem import ProblemError
from server.errors import (
    ALL,
    Forbidden,
    LimitExceeded,
    RateLimited,
    Refused,
    TokenExpired,
    Unauthorized,
    Unavailable,
)


@pytest.mark.parametrize("kind", ALL)
def test_every_refusal_keeps_its_code_status_and_retry(kind: type[Refused]) -> None:
    problem = ProblemError.of(kind("because"), 500)
    document = json.loads(problem.body("req-1"))
    title = document.pop("title")
    assert title and title != "Unknown"
    assert document == {
        "type": "about:blank",
        "status": kind.status,
        "detail": "because",
        "instance": "req-1",
        "code": kind.code,
        "retry": kind.retry,
    }


@pytest.mark.parametrize("kind", [Unauthorized, TokenExpired])
def test_401_says_what_is_wanted(kind: type[Refused]) -> None:
    assert ProblemError.of(kind("x"), 500).headers == (("WWW-Authenticate", "Bearer"),)


@pytest.mark.parametrize(("hint", "said"), [(0.01, "1"), (1.0, "1"), (1.2, "2"), (59.5, "60")])
def test_retry_after_is_rounded_up(hint: float, said: str) -> None:
    problem = ProblemError.of(RateLimited("x", retry_after_s=hint), 500)
    assert problem.headers == (("Retry-After", said),)


@pytest.mark.parametrize("kind", [Unavailable, LimitExceeded])
def test_retry_after_without_a_hint_is_short(kind: type[Refused]) -> None:
    ((name, value),) = ProblemError.of(kind("x"), 500).headers
    assert name == "Retry-After"
    assert 1 <= int(value) <= 3


def test_an_unexpected_error_says_nothing() -> None:
    problem = ProblemError.of(KeyError("secret-value"), 500)
    assert (problem.status, problem.code, problem.retry) == (500, "internal", True)
    assert b"secret" not in problem.body("r")


def test_errors_of_tornado() -> None:
    problem = ProblemError.of(HTTPError(405), 500, "GET, HEAD")
    assert problem.status == 405
    assert problem.code == "bad_request"
    assert problem.headers == (("Allow", "GET, HEAD"),)
    assert ProblemError.of(HTTPError(404), 500).code == "not_found"
    assert ProblemError.of(None, 413).code == "too_large"
    odd = ProblemError.of(HTTPError(400, "it said /x?token=abc"), 500)
    assert (odd.status, odd.code) == (400, "bad_request")
    assert b"abc" not in odd.body("r")


def test_problems_stay_as_they_are() -> None:
    rejected = HandshakeRejected(426, "bad_request", "upgrade", (("Upgrade", "websocket"),))
    problem = ProblemError.of_handshake(rejected)
    assert ProblemError.of(problem, 500) is problem
    assert (problem.status, problem.headers) == (426, (("Upgrade", "websocket"),))


def test_the_reason_is_counted() -> None:
    assert ProblemError.of(Forbidden("x", reason="origins"), 500).reason == "origins"


def test_one_channel_of_many_is_named() -> None:
    refused = Forbidden("x")
    assert "channel" not in json.loads(ProblemError.of(refused, 500).body("r"))
    refused.channel = "a.b"
    assert json.loads(ProblemError.of(refused, 500).body("r"))["channel"] == "a.b"
    assert "channel" not in json.loads(ProblemError.of(Forbidden("x"), 500).body("r"))
