"""Who is connected here? This file: why the server ends a session, as clients see it."""

from enum import Enum


class Closing(Enum):
    """Close codes: 4000-4499 come back, 4500-4999 stay away. The value is (code, reason)."""

    GOING_AWAY = (4000, "going_away")
    DRAINING = (4001, "draining")
    TOO_SLOW = (4002, "too_slow")
    NO_PONG = (4003, "no_pong")
    CONNECT_TIMEOUT = (4004, "connect_timeout")
    TOKEN_EXPIRED = (4005, "token_expired")
    UNAVAILABLE = (4006, "unavailable")
    RATE_LIMITED = (4007, "rate_limited")
    PROTOCOL_ERROR = (4500, "protocol_error")
    INVALID_TOKEN = (4501, "invalid_token")
    ENDED = (4502, "ended")
    ORIGIN_REFUSED = (4503, "origin_refused")
    TOO_MANY_ERRORS = (4504, "too_many_errors")
    TOO_LARGE = (4505, "too_large")

    @property
    def code(self) -> int:
        """The WebSocket close code."""
        return self.value[0]

    @property
    def reason(self) -> str:
        """The fixed word for it."""
        return self.value[1]

    @property
    def come_back(self) -> bool:
        """Whether the client should reconnect."""
        return self.code < 4500
