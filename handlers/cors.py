"""How do bytes come in and go out? This file: which web pages may read what is answered (pure).

The rules are those of the Fetch standard (https://fetch.spec.whatwg.org/#http-cors-protocol).
No credentials mode: nothing here rests on cookies.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from tornado.httputil import split_host_and_port

from config.checks import is_loopback
from handlers.handshake import check_origin
from server.errors import Forbidden

ALLOWED_HEADERS: Final = (
    "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Request-Id, "
    "ce-id, ce-source, ce-specversion, ce-subject, ce-time, ce-type"
)
EXPOSED_HEADERS: Final = (
    "X-Request-Id, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After"
)
MAX_AGE_S: Final = 600


def require_origin(origin: str | None, allowed: frozenset[str]) -> None:
    """Return if a page of this origin may send requests, or no page sent it; raises Forbidden.

    A browser would only hide the answer from a foreign page; the request itself must not count.
    """
    if origin is not None and not check_origin(origin, allowed):
        raise Forbidden("this origin is not allowed", reason="origins")


def require_loopback(host: str) -> None:
    """Return if `Host` names this machine, as a node in development mode asks; raises Forbidden.

    Anybody may do anything there. A foreign page whose own name was made to resolve to 127.0.0.1
    (DNS rebinding) sends that name, and no Origin with a GET.
    """
    if not _is_this_machine(host):
        raise Forbidden("development mode answers to localhost and 127.0.0.1", reason="origins")


# Clients name it with each request, and with few words.
@lru_cache(maxsize=64)
def _is_this_machine(host: str) -> bool:
    return is_loopback(split_host_and_port(host)[0].strip("[]").lower())


def origin_headers(origin: str | None, allowed: frozenset[str]) -> list[tuple[str, str]]:
    """Return the headers that every response carries, for a request with this Origin.

    `Vary` stands there even without one: a cache must not give one page's answer to another.
    """
    if not allowed:
        return []
    headers = [("Vary", "Origin")]
    if origin is not None and check_origin(origin, allowed):
        headers += [
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Expose-Headers", EXPOSED_HEADERS),
        ]
    return headers


def preflight_headers(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Return what the answer to an allowed page's preflight adds."""
    return [
        ("Access-Control-Allow-Methods", ", ".join(methods)),
        ("Access-Control-Allow-Headers", ALLOWED_HEADERS),
        ("Access-Control-Max-Age", str(MAX_AGE_S)),
    ]
