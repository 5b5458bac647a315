"""Who is connected here, and what may they do? This file: the messages, one type for each.

`data` and `info` are `msgspec.Raw`: JSON text on its way in, and on its way out text of the
session's own encoding (see codec).
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

Ref = Annotated[int, Meta(ge=1, le=2**53 - 1)]
Count = Annotated[int, Meta(ge=1, le=100_000)]
Time = Annotated[int, Meta(ge=0, le=2**52)]
# Events a second.
LOWEST_RATE, HIGHEST_RATE = 0.01, 1_000
Rate = Annotated[float, Meta(ge=LOWEST_RATE, le=HIGHEST_RATE)]


class Command(msgspec.Struct, tag_field="type", kw_only=True):
    """What a client asks for; gets exactly one reply with the same `ref`."""

    ref: Ref


class Connect(Command, tag="connect", kw_only=True):
    """Open the session; without a token as an anonymous client."""

    token: str | None = None


class Subscribe(Command, tag="subscribe", kw_only=True):
    """Receive a channel's events, from now, after a position, of a time on, or with the last N."""

    channel: str
    since: str | None = None
    rewind: Count | None = None
    from_ms: Time | None = msgspec.field(default=None, name="from")
    presence: bool = False
    max_rate_hz: float | None = None


class Publish(Command, tag="publish", kw_only=True):
    """Publish an event; `echo: false` leaves this session out.

    `deliver_at` is refused, since who sends it would wait in vain if it were ignored.
    """

    channel: str
    data: Raw
    name: str = "message"
    tags: dict[str, str] = {}
    id: str | None = None
    echo: bool = True
    deliver_at: Raw | UnsetType = UNSET


class Unsubscribe(Command, tag="unsubscribe", kw_only=True):
    """Receive no more of a channel."""

    channel: str


class Presence(Command, tag="presence", kw_only=True):
    """Read a channel's presence set; with `info` set one's own entry first."""

    channel: str
    info: Raw | UnsetType = UNSET
    cursor: str | None = None


class HistoryCommand(Command, tag="history", kw_only=True):
    """Read kept events, the newest `limit` before a position."""

    channel: str
    limit: Count = 50
    before: str | None = None


class Refresh(Command, tag="refresh", kw_only=True):
    """Continue the session with a newer token of the same user."""

    token: str


class Ping(Command, tag="ping", kw_only=True):
    """Ask for a pong."""


AnyCommand = (
    Connect | Subscribe | Publish | Unsubscribe | Presence | HistoryCommand | Refresh | Ping
)


class Message(msgspec.Struct, tag_field="type", kw_only=True, omit_defaults=True):
    """What the server says."""


class Connected(Message, tag="connected", kw_only=True):
    """The session is open. `expires_s` stands where the principal's token expires."""

    ref: int | None = None
    session: str
    user: str | None
    node: str
    ping_s: int
    expires_s: int | UnsetType = UNSET
    limits: dict[str, int]


class MemberItem(msgspec.Struct):
    """A member of a presence set."""

    session: str
    user: str | None
    info: Raw


class Subscribed(Message, tag="subscribed", kw_only=True):
    """Events follow from `position` on; `recovered` stands only with `since`."""

    ref: int | None = None
    channel: str
    position: str
    recovered: bool | UnsetType = UNSET
    members: list[MemberItem] | UnsetType = UNSET
    more: bool = False
    max_rate_hz: float | None = None


class EventItem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An event as clients see it."""

    channel: str
    position: str
    id: str
    name: str
    data: Raw
    tags: dict[str, str]
    time: int
    user: str | None = None


class EventMessage(EventItem, tag_field="type", tag="event", kw_only=True, omit_defaults=True):
    """An event of a subscription; `skipped` events of its channel were left out before it."""

    skipped: int = 0


class PublishedReply(Message, tag="published", kw_only=True):
    """The event has its place."""

    ref: int
    channel: str
    position: str
    id: str
    duplicate: bool


class Unsubscribed(Message, tag="unsubscribed", kw_only=True):
    """The subscription ended: asked for (`ref`), or by the server (`code`, `message`)."""

    ref: int | None = None
    channel: str
    code: str | None = None
    message: str | None = None


class MembersReply(Message, tag="members", kw_only=True):
    """A page of a presence set; `cursor` asks for the next."""

    ref: int
    channel: str
    members: list[MemberItem]
    cursor: str | None = None


class EventsReply(Message, tag="events", kw_only=True):
    """Kept events, oldest first; `cursor` is the `before` that asks for those before them."""

    ref: int
    channel: str
    events: list[EventItem]
    cursor: str | None = None


class Refreshed(Message, tag="refreshed", kw_only=True):
    """The session goes on."""

    ref: int
    expires_s: int


class Pong(Message, tag="pong", kw_only=True):
    """Answers a ping."""

    ref: int


class PresenceMessage(Message, tag="presence", kw_only=True):
    """A presence set changed (`member`), or is to be replaced (`sync`: `members`)."""

    channel: str
    action: Literal["join", "leave", "update", "sync"]
    member: MemberItem | UnsetType = UNSET
    members: list[MemberItem] | UnsetType = UNSET
    more: bool = False


class Reset(Message, tag="reset", kw_only=True):
    """Continuity was lost: read your state anew; events go on behind `position`."""

    channel: str
    position: str


class Expiring(Message, tag="expiring", kw_only=True):
    """The token expires soon: send `refresh`."""

    in_s: int


class ErrorMessage(Message, tag="error", kw_only=True, omit_defaults=False):
    """A command was refused; without `ref` when none could be read."""

    ref: int | UnsetType = UNSET
    code: str
    message: str
    retry: bool


class ClosingMessage(Message, tag="closing", kw_only=True):
    """The last message before the close frame."""

    code: int
    reason: str
    retry_in_ms: int | UnsetType = UNSET
