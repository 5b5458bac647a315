"""What may an operator set? This file: how connections are served, and the node ends, key by key.

Durations end in `_s` or `_ms`, sizes in `_bytes`; rates allow one second's worth at once.
"""

from typing import Annotated

import msgspec

from config import checks
from config.declare import DAY_S, says


class SessionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Live sessions."""

    ping_s: Annotated[
        float,
        says(
            "Time between two pings of a WebSocket session; without a pong before the next one "
            "the session is closed (4003).",
            unit="s",
            low=0.05,
            high=3_600,
        ),
    ] = 25.0
    connect_timeout_s: Annotated[
        float,
        says(
            "Time for the `connect` message, else the session is closed (4004).",
            unit="s",
            low=0.05,
            high=300,
        ),
    ] = 10.0
    expiring_s: Annotated[
        float,
        says(
            "How long before its token expires a session gets `expiring`.",
            unit="s",
            zero="no warning",
            low=0,
            high=DAY_S,
        ),
    ] = 60.0
    send_timeout_s: Annotated[
        float,
        says(
            "A peer that takes no byte for this long is cut off; also one that takes nothing of "
            "an answer over HTTP.",
            unit="s",
            low=0.05,
            high=3_600,
        ),
    ] = 30.0
    close_timeout_s: Annotated[
        float,
        says("Time for the peer to answer a close frame.", unit="s", low=0.05, high=60),
    ] = 2.0


class WebSocketSettings(msgspec.Struct, frozen=True, kw_only=True):
    """WebSocket."""

    compression: Annotated[
        bool,
        says(
            "Compress events for clients that offer it (permessage-deflate), each once for all of "
            "them; read docs/security.md first."
        ),
    ] = False
    compression_level: Annotated[
        int,
        says(
            "How hard to try, from fast to small. Beyond 5 a text that is made for it would hold "
            "up everybody.",
            unit="level",
            low=1,
            high=5,
        ),
    ] = 4
    compression_min_bytes: Annotated[
        int,
        says(
            "Events whose message is smaller are sent as they are.",
            unit="bytes",
            zero="all are compressed",
            low=0,
            high=81_920,
        ),
    ] = 256


class SseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Server-Sent Events."""

    comment_s: Annotated[
        float,
        says("Time between two comments that keep a stream alive.", unit="s", low=0.05, high=3_600),
    ] = 15.0
    retry_ms: Annotated[
        int,
        says(
            "Reconnect hint sent as `retry:`.",
            unit="ms",
            zero="clients come back at once",
            low=0,
            high=600_000,
        ),
    ] = 2_000
    ticket_ttl_s: Annotated[
        float, says("Time for the first use of a ticket.", unit="s", low=0.05, high=3_600)
    ] = 30.0
    max_channels: Annotated[
        int, says("Channels of one stream at most.", unit="channels", low=1, high=10_000)
    ] = 50


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """HTTP requests."""

    body_timeout_s: Annotated[
        float, says("Time for a request's body.", unit="s", low=0.05, high=3_600)
    ] = 30.0
    idle_timeout_s: Annotated[
        float,
        says(
            "Time for a request's whole header, counted from the opening of the connection or the "
            "response before; so also how long a connection may idle.",
            unit="s",
            low=0.05,
            high=DAY_S,
        ),
    ] = 75.0


class DrainSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a node stops (SIGTERM)."""

    delay_s: Annotated[
        float,
        says(
            "How long connections are still accepted after the node says that it is not ready.",
            unit="s",
            zero="stops accepting at once",
            low=0,
            high=600,
        ),
    ] = 5.0
    grace_s: Annotated[
        float,
        says(
            "Time for sessions and requests to end after that.",
            unit="s",
            zero="ends at once",
            low=0,
            high=3_600,
        ),
    ] = 25.0
    batch: Annotated[
        int,
        says("Sessions told to leave in each 100 ms.", unit="sessions", low=1, high=1_000_000),
    ] = 500
    retry_spread_ms: Annotated[
        int,
        says(
            "`retry_in_ms` is drawn from 0 to this.",
            unit="ms",
            zero="all come back at once",
            low=0,
            high=600_000,
        ),
    ] = 5_000


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Logs, on standard error."""

    level: Annotated[
        str,
        says(
            "Least level that is logged.",
            check=checks.check_level,
            allowed="one of debug, info, warning, error",
        ),
    ] = "info"
    format: Annotated[
        str,
        says(
            "`json`, `pretty`, or `auto`: pretty on a terminal, JSON else.",
            check=checks.check_format,
            allowed="one of auto, json, pretty",
        ),
    ] = "auto"
