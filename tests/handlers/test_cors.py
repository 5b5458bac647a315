"""Which web pages may read what is answered."""

import pytest

from handlers.cors import origin_headers, preflight_headers, require_origin
from server.errors import Forbidden

ALLOWED = frozenset({"https://app.example.com"})


@pytest.mark.parametrize("origin", [None, "https://app.example.com"])
def test_an_allowed_page_or_none(origin: str | None) -> None:
    require_origin(origin, ALLOWED)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://app.example.com.evil.com",
        "https://evil.com/https://app.example.com",
        "https://app.example.com https://evil.com",
    ],
)
def test_a_foreign_page(origin: str) -> None:
    with pytest.raises(Forbidden) as refused:
        require_origin(origin, ALLOWED)
    assert refused.value.reason == "origins"
    assert origin_headers(origin, ALLOWED) == [("Vary", "Origin")]


def test_the_headers_of_an_answer() -> None:
    headers = dict(origin_headers("https://app.example.com", ALLOWED))
    assert headers["Access-Control-Allow-Origin"] == "https://app.example.com"
    for name in ("X-Request-Id", "RateLimit-Remaining", "Retry-After"):
        assert name in headers["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Credentials" not in headers
    assert origin_headers(None, ALLOWED) == [("Vary", "Origin")]
    assert origin_headers("https://app.example.com", frozenset()) == []


def test_the_headers_of_a_preflight() -> None:
    headers = dict(preflight_headers(["GET", "DELETE"]))
    assert headers["Access-Control-Allow-Methods"] == "GET, DELETE"
    for name in ("Authorization", "Content-Type", "Idempotency-Key", "X-Request-Id"):
        assert name in headers["Access-Control-Allow-Headers"]
