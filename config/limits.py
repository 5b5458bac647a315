"""What may an operator set? This file answers: the limits, and how each one answers.

Each limit's setting stands here once, with what a peer gets that goes beyond it. The reason that
`galecast_refusals_total` counts is the setting's name.
"""

from typing import Annotated, Final

import msgspec

from config.declare import MOST, NO_LIMIT, says


def _count(meaning: str, unit: str) -> msgspec.Meta:
    return says(meaning, unit=unit, zero=NO_LIMIT, low=0, high=MOST)


def _size(meaning: str, unit: str = "bytes", *, low: int = 1, high: int = 1 << 30) -> msgspec.Meta:
    return says(meaning, unit=unit, zero="refused", low=low, high=high)


class LimitSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What one node, address, user, session, key or message may use."""

    http_connections: Annotated[
        int, _count("Connections that are not live sessions, on this node.", "connections")
    ] = 10_000
    http_connections_per_address: Annotated[
        int,
        _count("The same from one address that is no trusted proxy.", "connections"),
    ] = 1_000
    connections: Annotated[int, _count("Live sessions on this node.", "sessions")] = 100_000
    connections_per_address: Annotated[
        int, _count("Live sessions from one address.", "sessions")
    ] = 1_000
    connections_per_user: Annotated[int, _count("Live sessions of one user.", "sessions")] = 100
    handshakes_per_s: Annotated[
        int, _count("New sessions on this node in a second.", "per second")
    ] = 1_000
    session_commands_per_s: Annotated[
        int,
        _count(
            "Commands of one session in a second; over HTTP requests of one user, or of anonymous "
            "clients from one address.",
            "per second",
        ),
    ] = 100
    session_publishes_per_s: Annotated[
        int,
        _count(
            "Publishes of one client's session in a second; over HTTP of one user, or of anonymous "
            "clients from one address.",
            "per second",
        ),
    ] = 50
    key_requests_per_s: Annotated[
        int, _count("Requests and commands with one API key in a second.", "per second")
    ] = 100_000
    key_publishes_per_s: Annotated[
        int, _count("Events published with one API key in a second.", "per second")
    ] = 200_000
    subscriptions_per_session: Annotated[
        int, _count("Subscriptions of one session.", "subscriptions")
    ] = 1_000
    control_frames_per_s: Annotated[
        int, _count("Control frames of one session in a second.", "per second")
    ] = 20
    frame_bytes: Annotated[int, _size("One message over WebSocket.", low=1_024)] = 131_072
    body_bytes: Annotated[int, _size("Body of one request.", low=1_024)] = 4_194_304
    data_bytes: Annotated[int, _size("`data` of one event.")] = 65_536
    depth: Annotated[int, _size("Nesting of arrays and objects.", "levels", high=500)] = 64
    unsent_bytes: Annotated[int, _size("Bytes that wait to be sent to one session.", low=1_024)] = (
        1_048_576
    )
    batch_events: Annotated[int, _size("Events in one batch.", "events", high=1_000_000)] = 10_000
    members_per_reply: Annotated[
        int, _size("Members in one reply; more are told by a cursor.", "members", high=10_000)
    ] = 100
    history_per_reply: Annotated[
        int, _size("Events in one reply of history.", "events", high=100_000)
    ] = 1_000
    schedules_per_channel: Annotated[
        int, _count("Events of one channel that wait for their `deliver_at`.", "events")
    ] = 10_000
    items_per_page: Annotated[
        int, _size("Channels or sessions in one page of a list.", "items", high=10_000)
    ] = 100
    errors_per_minute: Annotated[
        int,
        _count("Refusals of one session in a minute; not those that may succeed later.", "errors"),
    ] = 60
    tags: Annotated[int, _size("Tags of one event.", "tags", high=1_000)] = 32
    presence_info_bytes: Annotated[int, _size("`info` of one presence entry.")] = 4_096


# What a peer gets that goes beyond a limit, by the limit's name.
ANSWERS: Final[dict[str, str]] = {
    "http_connections": "the connection is closed at once",
    "http_connections_per_address": "the connection is closed at once",
    "connections": "429 `limit_exceeded`",
    "connections_per_address": "429 `limit_exceeded`",
    "connections_per_user": "429 `limit_exceeded`",
    "handshakes_per_s": "429 `rate_limited`",
    "session_commands_per_s": "`rate_limited`",
    "session_publishes_per_s": "`rate_limited`",
    "key_requests_per_s": "429 `rate_limited`",
    "key_publishes_per_s": "429 `rate_limited`",
    "subscriptions_per_session": "`limit_exceeded`",
    "control_frames_per_s": "close 4007",
    "frame_bytes": "close 4505",
    "body_bytes": "413 `too_large`",
    "data_bytes": "413 `too_large`",
    "depth": "422 `invalid_data`",
    "unsent_bytes": "close 4002",
    "batch_events": "413 `too_large`",
    "members_per_reply": "the reply is cut, with `cursor`",
    "history_per_reply": "the reply is cut, with `cursor`",
    "schedules_per_channel": "429 `limit_exceeded`",
    "items_per_page": "the page is cut, with `cursor`",
    "errors_per_minute": "close 4504, or 4007 for `rate_limited`",
    "tags": "422 `invalid_data`",
    "presence_info_bytes": "413 `too_large`",
}
