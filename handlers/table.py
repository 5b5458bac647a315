"""How do bytes come in and go out? This file: which address leads where, in one table.

Router, metrics and descriptions all read it.
"""

from typing import Any, Final

from handlers import models
from handlers.channels import ChannelHandler, ChannelsHandler
from handlers.health import HealthHandler, MetricsHandler, ReadyHandler
from handlers.history import HistoryHandler
from handlers.media import CLOUDEVENT, CLOUDEVENTS, JSON, NDJSON
from handlers.nodes import NodesHandler
from handlers.operations import (
    ANYBODY,
    KNOWN,
    WITH_BODY,
    Answer,
    Body,
    Operation,
    Parameter,
    Route,
    ok,
    path,
    query,
)
from handlers.pages import DocsHandler, HomeHandler, OpenApiHandler, StaticHandler
from handlers.presence import PresenceHandler
from handlers.publish import PublishHandler
from handlers.schedules import ScheduleHandler, SchedulesHandler
from handlers.sessions import SessionHandler, SessionsHandler, UserSessionsHandler
from handlers.sse import SseHandler
from handlers.tokens import TicketsHandler, TokensHandler
from handlers.user_subscriptions import UserSubscriptionHandler
from handlers.websocket import WebSocketHandler
from server.errors import (
    Conflict,
    InvalidData,
    LimitExceeded,
    NotFound,
    RateLimited,
    TokenExpired,
    Unauthorized,
)

_TEXT: Final[dict[str, Any]] = {"type": "string"}
_COUNT: Final[dict[str, Any]] = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
_NAME: Final[dict[str, Any]] = {
    "type": "string",
    "pattern": r"^[A-Za-z0-9_~@:=-]+(\.[A-Za-z0-9_~@:=-]+)*$",
    "minLength": 1,
    "maxLength": 255,
}
_POSITION: Final[dict[str, Any]] = {
    "type": "string",
    "pattern": "^[0-9a-f]{16}-(0|[1-9][0-9]{0,17})-[0-9a-f]{16}$",
}

_CHANNEL: Final = path("channel", "Name of the channel.", _NAME)
_CURSOR: Final = query("cursor", "`cursor` of the page before.", _TEXT)
_TIME: Final = {"type": "integer", "minimum": 0, "maximum": 999_999_999_999_999}
_LIMIT: Final = query("limit", "Most items wanted; cut to what the settings allow.", _COUNT)

_PUBLISH: Final = Operation(
    "POST",
    "publish",
    "Publish one event, or many",
    (
        Answer(
            200,
            "Where the event stands; for an array or a batch, that or the error of each one; for "
            "a stream, a line with that or the error for each line.",
            (
                Body(JSON, models.PublishResult),
                Body(JSON, models.PublishResults),
                Body(NDJSON, _TEXT),
            ),
        ),
        ok("It is scheduled, and will be published.", models.ScheduledResult, 202),
    ),
    description=(
        "Services need the scope `publish`; users and anonymous clients need the grant, on a "
        "channel that takes publishes from clients. An array or a batch is validated whole before "
        "anything is published. `application/x-ndjson` is a stream: one event a line, answered "
        "line by line in order, read as fast as its answers are taken. CloudEvents in binary mode "
        "(`ce-*` headers, JSON data) are read too. A CloudEvent's `type` is the name; `source` and "
        "`id` make the id; `data` stays as it is; all other attributes become tags (`ce-source`). "
        "With `deliver_at` an event is kept until then, a year at most, where there is an archive; "
        "another one of that channel and id that waits is a `conflict`. "
        "Without a Content-Type the body is read as JSON."
    ),
    access="optional",
    parameters=(
        query("channel", "Channel of CloudEvents; else their `subject` names it.", _NAME),
        Parameter(
            "Idempotency-Key",
            "header",
            "Takes the place of `id`; for many events `key:index` does.",
            {"type": "string", "pattern": "^[!-~]([ -~]*[!-~])?$", "maxLength": 50},
        ),
    ),
    bodies=(
        Body(JSON, models.PublishRequest),
        Body(JSON, list[models.PublishRequest]),
        Body(NDJSON, _TEXT),
        Body(CLOUDEVENT, models.CloudEvent),
        Body(CLOUDEVENTS, list[models.CloudEvent]),
    ),
    errors=(*WITH_BODY, InvalidData, LimitExceeded, Conflict),
)

_SCHEDULES: Final = Operation(
    "GET",
    "schedules",
    "List what is scheduled in a channel",
    (ok("A page of events that wait, by time and id.", models.SchedulePage),),
    description=(
        "Needs the scope `publish`; users need the grant, and see what they have scheduled "
        "themselves."
    ),
    parameters=(_CHANNEL, _LIMIT, _CURSOR),
    errors=KNOWN,
)
_CANCEL: Final = Operation(
    "DELETE",
    "cancelSchedule",
    "Cancel a scheduled event",
    (Answer(204, "It is never published."),),
    description=(
        "Needs the scope `publish`; users need the grant, and cancel what they have scheduled "
        "themselves. `not_found` says that nothing of that id waits, or that it was published."
    ),
    parameters=(_CHANNEL, path("id", "Id of the event, percent-encoded.", _TEXT)),
    errors=(*KNOWN, NotFound),
)

_HISTORY: Final = Operation(
    "GET",
    "history",
    "Read kept events",
    (ok("A page of events, and the channel's top.", models.EventPage),),
    description=(
        "Needs the scope or the grant `history`. `conflict` says that events behind `since` or "
        "`cursor` are gone, or that the channel began anew; `missing` says where events within a "
        "page are: nothing is left out in silence. Channels whose rule says `archive` are read "
        "from the archive as well."
    ),
    access="optional",
    parameters=(
        _CHANNEL,
        query("since", "Only events after this position.", _POSITION),
        query("before", "Only events before this position.", _POSITION),
        query("from", "Only events of this time or later, in ms since 1970.", _TIME),
        query("to", "Only events before this time, in ms since 1970.", _TIME),
        query("name", "Only events of this name.", _TEXT),
        query(
            "order",
            "`asc`: the oldest first; `desc`: the newest first.",
            {"type": "string", "enum": ["asc", "desc"], "default": "asc"},
        ),
        query("limit", "Most events wanted (50); cut to what the settings allow.", _COUNT),
        query("cursor", "`cursor` of the page before.", _POSITION),
    ),
    errors=(*KNOWN, Conflict),
)

_USER: Final = path("user", "The user, percent-encoded.", {"type": "string", "minLength": 1})
_USER_SUBSCRIPTION: Final = (
    Operation(
        "PUT",
        "subscribeUser",
        "Subscribe a user's live sessions to a channel",
        (ok("How many are subscribed now.", models.UserSubscribed),),
        description=(
            "Needs the scope `sessions`. Sessions over WebSocket only: a stream keeps the channels "
            "of its address. Such a subscription needs no grant of the user and lasts as long as "
            "its session. Those that are subscribed already stay as they are. The same again does "
            "no harm, so ask again where nodes were `silent`."
        ),
        parameters=(_USER, _CHANNEL),
        bodies=(Body(JSON, models.UserSubscription),),
        body_required=False,
        errors=WITH_BODY,
    ),
    Operation(
        "DELETE",
        "unsubscribeUser",
        "Take a channel from a user's live sessions",
        (ok("How many were subscribed.", models.UserUnsubscribed),),
        description=(
            "Needs the scope `sessions`. Event streams lose the channel too, until they are opened "
            "anew. A client that is granted the channel may subscribe again."
        ),
        parameters=(_USER, _CHANNEL),
        errors=KNOWN,
    ),
)
_SESSION_ID: Final = path("session", "Id of the session.", _TEXT)

TABLE: Final[tuple[Route, ...]] = (
    Route(PublishHandler.route, PublishHandler, (_PUBLISH,)),
    Route(
        ChannelsHandler.route,
        ChannelsHandler,
        (
            Operation(
                "GET",
                "channels",
                "List active channels",
                (ok("A page of channels, by name.", models.ChannelPage),),
                description=(
                    "Needs the scope `channels`; shows what its patterns cover. Subscribers are "
                    "counted over all nodes but those that are `silent`."
                ),
                parameters=(
                    query("prefix", "Only channels that begin with this.", _TEXT),
                    _LIMIT,
                    _CURSOR,
                ),
                errors=KNOWN,
            ),
        ),
    ),
    Route(
        ChannelHandler.route,
        ChannelHandler,
        (
            Operation(
                "GET",
                "channel",
                "Look at a channel",
                (ok("Position, subscribers and rule.", models.Channel),),
                description="Needs the scope `channels`.",
                parameters=(_CHANNEL,),
                errors=(*KNOWN, NotFound),
            ),
        ),
    ),
    Route(
        HistoryHandler.route,
        HistoryHandler,
        (
            _HISTORY,
            Operation(
                "DELETE",
                "purge",
                "Purge a channel's kept events",
                (ok("The last position that was purged.", models.Purged),),
                description="Needs the scope `purge`. Positions go on; sessions in step stay so.",
                parameters=(_CHANNEL,),
                errors=(*KNOWN, NotFound),
            ),
        ),
    ),
    Route(SchedulesHandler.route, SchedulesHandler, (_SCHEDULES,)),
    Route(ScheduleHandler.route, ScheduleHandler, (_CANCEL,)),
    Route(
        PresenceHandler.route,
        PresenceHandler,
        (
            Operation(
                "GET",
                "presence",
                "List who is present",
                (ok("A page of members, by session.", models.MemberPage),),
                description="Needs the scope or the grant `presence`, and a rule that keeps it.",
                access="optional",
                parameters=(_CHANNEL, _LIMIT, _CURSOR),
                errors=KNOWN,
            ),
        ),
    ),
    Route(
        SessionsHandler.route,
        SessionsHandler,
        (
            Operation(
                "GET",
                "sessions",
                "List live sessions",
                (ok("A page of sessions, by id.", models.SessionPage),),
                description=(
                    "Needs the scope `sessions`. Of all nodes; the sessions of those that are "
                    "`silent` are missing in this page."
                ),
                parameters=(query("user", "Only sessions of this user.", _TEXT), _LIMIT, _CURSOR),
                errors=KNOWN,
            ),
        ),
    ),
    Route(
        SessionHandler.route,
        SessionHandler,
        (
            Operation(
                "DELETE",
                "endSession",
                "End a session",
                (Answer(204, "It is over; its client is told to stay away."),),
                description=(
                    "Needs the scope `sessions`. Whatever node it is on; `unavailable` says that "
                    "it was not found, but not all nodes answered."
                ),
                parameters=(_SESSION_ID,),
                errors=(*KNOWN, NotFound),
            ),
        ),
    ),
    Route(
        UserSessionsHandler.route,
        UserSessionsHandler,
        (
            Operation(
                "DELETE",
                "endUser",
                "End all sessions of a user",
                (ok("How many there were.", models.Ended),),
                description=(
                    "Needs the scope `sessions`. Tokens of the user that were issued before now "
                    "are refused from now on, on all nodes; those that are `silent` hear of it "
                    "later, and then end the user's sessions too."
                ),
                parameters=(_USER,),
                errors=KNOWN,
            ),
        ),
    ),
    Route(UserSubscriptionHandler.route, UserSubscriptionHandler, _USER_SUBSCRIPTION),
    Route(
        NodesHandler.route,
        NodesHandler,
        (
            Operation(
                "GET",
                "nodes",
                "List the nodes",
                (ok("All living nodes, by name.", models.NodeList),),
                description="Needs the scope `metrics`. Of a silent node only the name is known.",
                errors=KNOWN,
            ),
        ),
    ),
    Route(
        TokensHandler.route,
        TokensHandler,
        (
            Operation(
                "POST",
                "mintToken",
                "Mint a token for a client",
                (ok("The token.", models.Token),),
                description=(
                    "Needs the scope `tokens`. The key may grant what its own scopes cover: "
                    "`subscribe` and `history` within `history`, `publish` and `presence` within "
                    "those of the same name."
                ),
                bodies=(Body(JSON, models.TokenRequest),),
                errors=WITH_BODY,
            ),
        ),
    ),
    Route(
        TicketsHandler.route,
        TicketsHandler,
        (
            Operation(
                "POST",
                "ticket",
                "Get a ticket for an event stream",
                (ok("The ticket, for `/v1/sse?ticket=`.", models.Ticket),),
                description="For whoever asks; without Authorization where anonymous may listen.",
                access="optional",
                errors=KNOWN,
            ),
        ),
    ),
    Route(
        "/v1/sse",
        SseHandler,
        (
            Operation(
                "GET",
                "stream",
                "Receive events as Server-Sent Events",
                (
                    Answer(200, "A stream.", (Body("text/event-stream", _TEXT),)),
                    Answer(204, "Stay away: an EventSource does not come back."),
                ),
                description=(
                    "Needs the grant `subscribe` for each channel, `history` for those that "
                    "begin in the past, and `presence` for those whose presence is seen. A refusal "
                    "that is about one of them names it in `channel`."
                ),
                access="optional",
                parameters=(
                    query(
                        "channel",
                        "Once for each channel.",
                        {"type": "array", "items": _NAME, "minItems": 1},
                        required=True,
                    ),
                    query(
                        "since",
                        "Resume behind the `id` of this block; or the last position of each "
                        "channel in their order, joined by commas.",
                        _TEXT,
                    ),
                    query(
                        "rewind",
                        "Begin with the last events, that many; or as many for each channel in "
                        "their order, joined by commas.",
                        {"type": "string", "pattern": "^([1-9][0-9]{0,5})?(,([1-9][0-9]{0,5})?)*$"},
                    ),
                    query(
                        "from",
                        "Begin with the first event of this time or later, in ms since 1970; or "
                        "a time for each channel in their order, joined by commas.",
                        {"type": "string", "pattern": "^([0-9]{1,15})?(,([0-9]{1,15})?)*$"},
                    ),
                    query(
                        "presence",
                        "Once for each of the channels whose presence is to be seen.",
                        {"type": "array", "items": _NAME},
                    ),
                    query("ticket", "Of `POST /v1/tickets`, for EventSource.", _TEXT),
                    Parameter("Last-Event-ID", "header", "Resume behind this block.", _TEXT),
                ),
                errors=(*KNOWN, LimitExceeded),
            ),
        ),
    ),
    Route(
        "/v1/ws",
        WebSocketHandler,
        (
            Operation(
                "GET",
                "session",
                "Open a session over WebSocket",
                (
                    Answer(101, "A session in `galecast.v1.json` or `galecast.v1.msgpack`."),
                    Answer(426, "This is no WebSocket handshake."),
                ),
                access="optional",
                errors=(*KNOWN, LimitExceeded),
            ),
        ),
    ),
    Route(
        HealthHandler.route,
        HealthHandler,
        (
            Operation(
                "GET",
                "healthz",
                "Is the process alive?",
                (ok("It is.", models.Health),),
                access="open",
                errors=ANYBODY,
            ),
        ),
    ),
    Route(
        ReadyHandler.route,
        ReadyHandler,
        (
            Operation(
                "GET",
                "readyz",
                "Should clients be sent here?",
                (
                    ok("They should.", models.Readiness),
                    ok("They should not, for these reasons.", models.Readiness, 503),
                ),
                access="open",
                errors=ANYBODY,
            ),
        ),
    ),
    Route(
        MetricsHandler.route,
        MetricsHandler,
        (
            Operation(
                "GET",
                "metrics",
                "Metrics for Prometheus",
                (Answer(200, "All metrics of this node.", (Body("text/plain", _TEXT),)),),
                description="Needs the scope `metrics`; open on the admin port.",
                errors=(*ANYBODY, Unauthorized, TokenExpired, RateLimited),
            ),
        ),
    ),
    Route(OpenApiHandler.route, OpenApiHandler),
    Route(DocsHandler.route, DocsHandler),
    Route(HomeHandler.route, HomeHandler),
    Route(StaticHandler.route, StaticHandler),
)

ADMIN_TABLE: Final[tuple[Route, ...]] = tuple(
    route for route in TABLE if route.handler in (HealthHandler, ReadyHandler, MetricsHandler)
)
