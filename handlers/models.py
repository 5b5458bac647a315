"""How do bytes come in and go out? This file: the bodies of requests and answers, one type each.

The same types decode what comes, encode what goes, and describe both in /openapi.json.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from config.rules import Action
from server.protocol import Count, EventItem, MemberItem, Rate

ChannelName = Annotated[
    str,
    Meta(
        description="Segments joined by dots.",
        extra_json_schema={
            "pattern": r"^[A-Za-z0-9_~@:=-]+(\.[A-Za-z0-9_~@:=-]+)*$",
            "minLength": 1,
            "maxLength": 255,
        },
    ),
]
EventName = Annotated[
    str,
    Meta(
        extra_json_schema={
            "pattern": "^[A-Za-z0-9_~@:=.-]+$",
            "minLength": 1,
            "maxLength": 64,
        }
    ),
]
EventId = Annotated[
    str,
    Meta(
        description="Unique in its channel within the idempotency window; a ULID unless given.",
        extra_json_schema={
            "pattern": "^[!-~]([ -~]*[!-~])?$",
            "minLength": 1,
            "maxLength": 64,
        },
    ),
]
Position = Annotated[str, Meta(description="Where an event stands in its channel; opaque.")]
Cursor = Annotated[str, Meta(description="Asks for what follows; opaque.")]
Silent = Annotated[
    list[str], Meta(description="Nodes that live and did not answer; what they know is missing.")
]


DeliverAt = Annotated[int, Meta(ge=0, le=2**52, description="A time in ms since 1970.")]


class PublishRequest(msgspec.Struct, kw_only=True):
    """An event to be published, now or at `deliver_at`.

    `exclude` names a session that is not to get it.
    """

    channel: ChannelName
    data: Annotated[Raw, Meta(description="Any JSON value.")]
    name: EventName = "message"
    tags: dict[str, str] = {}
    id: EventId | None = None
    exclude: str | None = None
    deliver_at: DeliverAt | None = None


class PublishResult(msgspec.Struct, kw_only=True):
    """The event has its place. A duplicate has the place of the first one."""

    channel: ChannelName
    position: Position
    id: EventId
    duplicate: bool


class ScheduledResult(msgspec.Struct, kw_only=True):
    """The event will be published at its time; `duplicate` says that it was scheduled before."""

    channel: ChannelName
    id: EventId
    deliver_at: DeliverAt
    scheduled: Literal[True] = True
    duplicate: bool | UnsetType = UNSET


class ScheduleItem(msgspec.Struct, kw_only=True):
    """An event that waits for its time."""

    id: EventId
    deliver_at: DeliverAt
    name: EventName
    data: Raw
    tags: dict[str, str]
    user: str | None


class SchedulePage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is scheduled in a channel, by time and id; without `cursor` there is no more."""

    channel: ChannelName
    schedules: list[ScheduleItem]
    cursor: Cursor | None = None


class ErrorItem(msgspec.Struct, kw_only=True):
    """Why one event was refused, and whether to try it again."""

    code: str
    message: str
    retry: bool


class ErrorResult(msgspec.Struct, kw_only=True):
    """One event was refused; the others are not affected."""

    error: ErrorItem


class PublishResults(msgspec.Struct, kw_only=True):
    """What became of each event, in their order."""

    # A union of structs can be decoded only by a tag, so msgspec refuses it; nobody decodes this.
    results: Annotated[
        list[Any],
        Meta(
            extra_json_schema={
                "items": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/PublishResult"},
                        {"$ref": "#/components/schemas/ScheduledResult"},
                        {"$ref": "#/components/schemas/ErrorResult"},
                    ]
                }
            }
        ),
    ]


class CloudEvent(msgspec.Struct, kw_only=True):
    """A CloudEvent 1.0 in JSON; other members are extensions."""

    specversion: Literal["1.0"]
    id: Annotated[str, Meta(min_length=1)]
    source: Annotated[str, Meta(min_length=1)]
    type: EventName
    subject: ChannelName | None = None
    time: str | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    data: Any = None


class Rule(msgspec.Struct, kw_only=True):
    """How a channel behaves."""

    match: str
    history_size: int
    history_ttl_s: float
    archive: bool
    archive_ttl_s: float
    presence: bool
    client_publish: bool
    slow: str


class ChannelItem(msgspec.Struct, kw_only=True):
    """An active channel: one with events kept or sessions subscribed."""

    channel: ChannelName
    position: Position
    subscribers: int


class ChannelPage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Active channels by name; without `cursor` there are no more."""

    channels: list[ChannelItem]
    cursor: Cursor | None = None
    silent: Silent = []


class Channel(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A channel, its subscribers, and the rule that applies."""

    channel: ChannelName
    position: Position
    subscribers: int
    rule: Rule
    silent: Silent = []


class Missing(msgspec.Struct, kw_only=True):
    """Events between two positions that are gone, or never came into the archive."""

    after: Position
    before: Position


class EventPage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Kept events in the order asked for, and the channel's top; without `cursor` no more.

    With a `name` a page may have fewer than `limit`, or none, and a `cursor` all the same.
    """

    channel: ChannelName
    position: Position | None
    events: list[EventItem]
    missing: list[Missing] = []
    cursor: Cursor | None = None


class Purged(msgspec.Struct, kw_only=True):
    """All events up to and including `position` are gone."""

    channel: ChannelName
    position: Position


class MemberPage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Who is present, by session; `total` counts all of them."""

    channel: ChannelName
    members: list[MemberItem]
    total: int
    cursor: Cursor | None = None


class SessionItem(msgspec.Struct, kw_only=True):
    """A live session. `connected_at` is in ms since 1970."""

    session: str
    node: str
    kind: Literal["user", "service", "anonymous"]
    user: str | None
    transport: str
    encoding: str
    address: str
    connected_at: int
    subscriptions: int


class SessionPage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Live sessions by id; without `cursor` there are no more."""

    sessions: list[SessionItem]
    cursor: Cursor | None = None
    silent: Silent = []


class Ended(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How many sessions were ended; those of silent nodes end as soon as these hear of it."""

    ended: int
    silent: Silent = []


class UserSubscription(msgspec.Struct, kw_only=True):
    """How a user's sessions are to be subscribed, as in the command `subscribe`."""

    since: Position | None = None
    rewind: Count | None = None
    presence: bool = False
    max_rate_hz: Rate | None = None


class UserSubscribed(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How many sessions are subscribed now; `refused` are those at their limit."""

    sessions: int
    refused: int
    silent: Silent = []


class UserUnsubscribed(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How many sessions were subscribed."""

    sessions: int
    silent: Silent = []


class NodeItem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A node and how it stands; of a silent one only the name is known.

    `events_in`, `events_out` count since its start.
    """

    node: str
    silent: bool = False
    version: str | UnsetType = UNSET
    phase: Literal["starting", "ready", "draining", "stopped"] | UnsetType = UNSET
    ready: bool | UnsetType = UNSET
    reasons: Annotated[list[str], Meta(description="Why it is not ready.")] | UnsetType = UNSET
    uptime_s: float | UnsetType = UNSET
    sessions: int | UnsetType = UNSET
    connections: int | UnsetType = UNSET
    subscriptions: int | UnsetType = UNSET
    channels: int | UnsetType = UNSET
    events_in: int | UnsetType = UNSET
    events_out: int | UnsetType = UNSET
    unsent_bytes: int | UnsetType = UNSET
    loop_lag_s: float | UnsetType = UNSET
    rss_bytes: int | UnsetType = UNSET


class NodeList(msgspec.Struct, kw_only=True):
    """All living nodes, by name."""

    nodes: list[NodeItem]


class TokenRequest(msgspec.Struct, kw_only=True):
    """A client token to be minted. `grants` maps patterns to actions."""

    sub: Annotated[str, Meta(description="The user, 1 to 255 bytes of printable text.")]
    grants: dict[str, list[Action]] = {}
    ttl_s: float | None = None


class Token(msgspec.Struct, kw_only=True):
    """A client token, and how long it is valid."""

    token: str
    expires_s: int


class Ticket(msgspec.Struct, kw_only=True):
    """A ticket for one event stream, and how long until its first use."""

    ticket: str
    expires_s: int


class Health(msgspec.Struct, kw_only=True):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(msgspec.Struct, kw_only=True):
    """Whether to send clients here, and if not, why."""

    status: Literal["ready", "not ready"]
    reasons: list[str]
