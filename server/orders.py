"""Who is connected here, and what may they do? This file: what nodes ask of each other (pure).

Orders and answers are MessagePack, one type each. Their tag holds a version: an order whose
meaning changes gets another one. Orders are read strictly, since half of one is another one: a
node that does not know an order, or a field of it, answers `Unknown` and does nothing. Fields of
answers that are not known are ignored.
"""

from collections.abc import Callable
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from server.protocol import Count, Rate

MOST_SESSIONS: Final = 500
"""Sessions in one answer: more may not fit into what nodes may send each other."""
MOST_CHANNELS: Final = 200
"""Channels in one order."""


def _tag(name: str) -> str:
    return f"{name}.1"


_User = Annotated[str, Meta(min_length=1, max_length=255)]
_Channel = Annotated[str, Meta(min_length=1, max_length=255)]
_SessionId = Annotated[str, Meta(max_length=64)]


class Order(msgspec.Struct, tag_field="order", tag=_tag, frozen=True, forbid_unknown_fields=True):
    """What all nodes are to do."""


class EndSession(Order, frozen=True):
    """End a session, whoever has it."""

    session: _SessionId


class EndUser(Order, frozen=True):
    """End a user's sessions whose tokens were issued up to `at_s`, and refuse those tokens."""

    user: _User
    at_s: float
    until_s: float


class SubscribeUser(Order, kw_only=True, frozen=True):
    """Subscribe a user's sessions to a channel, as the command `subscribe` would."""

    user: _User
    channel: _Channel
    since: str | None = None
    rewind: Count | None = None
    presence: bool = False
    max_rate_hz: Rate | None = None


class UnsubscribeUser(Order, frozen=True):
    """Take a channel from a user's sessions."""

    user: _User
    channel: _Channel


class ListSessions(Order, frozen=True):
    """Name the first sessions behind an id, of one user or of all."""

    user: _User | None
    after: _SessionId
    limit: Annotated[int, Meta(ge=1, le=MOST_SESSIONS)]


class CountSubscribers(Order, frozen=True):
    """Count the subscriptions of channels."""

    channels: Annotated[list[_Channel], Meta(max_length=MOST_CHANNELS)]


class DescribeNode(Order, frozen=True):
    """Tell how the node stands."""


class Answer(msgspec.Struct, tag_field="answer", tag=_tag, frozen=True):
    """What a node says to an order."""


class Ended(Answer, frozen=True):
    """How many sessions ended."""

    ended: int


class UserSubscribed(Answer, frozen=True):
    """How many sessions are subscribed now, and how many were at their limit."""

    sessions: int
    refused: int


class UserUnsubscribed(Answer, frozen=True):
    """How many sessions were subscribed."""

    sessions: int


class SessionEntry(msgspec.Struct, frozen=True):
    """A live session. `connected_at` is in ms since 1970."""

    session: str
    kind: Literal["user", "service", "anonymous"]
    user: str | None
    transport: str
    encoding: str
    address: str
    connected_at: int
    subscriptions: int


class SessionsFound(Answer, frozen=True):
    """Sessions by id."""

    sessions: list[SessionEntry]


class SubscribersCounted(Answer, frozen=True):
    """How many subscriptions each channel has, in the order asked for."""

    counts: list[int]


class NodeState(Answer, kw_only=True, frozen=True):
    """How a node stands. Counters count since its start; None: not known on this system."""

    version: str
    phase: Literal["starting", "ready", "draining", "stopped"]
    reasons: list[str]
    uptime_s: float
    sessions: int
    connections: int
    subscriptions: int
    channels: int
    events_in: int
    events_out: int
    unsent_bytes: int
    loop_lag_s: float
    rss_bytes: int | None = None


class Unknown(Answer, frozen=True):
    """The node knows no such order; it did nothing."""


class Failed(Answer, frozen=True):
    """The node tried, and could not do all of it; its log has the rest."""


AnyOrder: TypeAlias = (
    EndSession
    | EndUser
    | SubscribeUser
    | UnsubscribeUser
    | ListSessions
    | CountSubscribers
    | DescribeNode
)
AnyAnswer: TypeAlias = (
    Ended
    | UserSubscribed
    | UserUnsubscribed
    | SessionsFound
    | SubscribersCounted
    | NodeState
    | Unknown
    | Failed
)

_encode: Final = msgspec.msgpack.Encoder().encode
_order: Final[Callable[[bytes], AnyOrder]] = msgspec.msgpack.Decoder(AnyOrder).decode
_answer: Final[Callable[[bytes], AnyAnswer]] = msgspec.msgpack.Decoder(AnyAnswer).decode


def pack(message: AnyOrder | AnyAnswer) -> bytes:
    """Return an order or an answer as it is sent."""
    return _encode(message)


def read_order(payload: bytes) -> AnyOrder | None:
    """Return an order, or None if it is none that this version knows."""
    try:
        return _order(payload)
    except (ValueError, RecursionError):
        return None


def read_answer(payload: bytes) -> AnyAnswer | None:
    """Return an answer, or None if it is none that this version knows."""
    try:
        return _answer(payload)
    except (ValueError, RecursionError):
        return None
