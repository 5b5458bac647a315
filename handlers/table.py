"""How do bytes come in and go out? This file: which address leads where, in one table.

Router, metrics and descriptions all read it.
"""

from typing import Final

from handlers import models
from handlers.channels import ChannelHandler, ChannelsHandler
from handlers.event_operations import CANCEL, HISTORY, PUBLISH, SCHEDULES
from handlers.health import HealthHandler, MetricsHandler, ReadyHandler
from handlers.history import HistoryHandler
from handlers.media import JSON
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
from handlers.parameters import CHANNEL, CURSOR, LIMIT, NAME, TEXT
from handlers.presence import PresenceHandler
from handlers.publish import PublishHandler
from handlers.schedules import ScheduleHandler, SchedulesHandler
from handlers.sessions import SessionHandler, SessionsHandler, UserSessionsHandler
from handlers.sse import SseHandler
from handlers.tokens import TicketsHandler, TokensHandler
from handlers.user_subscriptions import UserSubscriptionHandler
from handlers.websocket import WebSocketHandler
from server.errors import (
    LimitExceeded,
    NotFound,
    RateLimited,
    TokenExpired,
    Unauthorized,
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
        parameters=(_USER, CHANNEL),
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
        parameters=(_USER, CHANNEL),
        errors=KNOWN,
    ),
)
_SESSION_ID: Final = path("session", "Id of the session.", TEXT)

TABLE: Final[tuple[Route, ...]] = (
    Route(PublishHandler.route, PublishHandler, (PUBLISH,)),
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
                    query("prefix", "Only channels that begin with this.", TEXT),
                    LIMIT,
                    CURSOR,
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
                parameters=(CHANNEL,),
                errors=(*KNOWN, NotFound),
            ),
        ),
    ),
    Route(
        HistoryHandler.route,
        HistoryHandler,
        (
            HISTORY,
            Operation(
                "DELETE",
                "purge",
                "Purge a channel's kept events",
                (ok("The last position that was purged.", models.Purged),),
                description="Needs the scope `purge`. Positions go on; sessions in step stay so.",
                parameters=(CHANNEL,),
                errors=(*KNOWN, NotFound),
            ),
        ),
    ),
    Route(SchedulesHandler.route, SchedulesHandler, (SCHEDULES,)),
    Route(ScheduleHandler.route, ScheduleHandler, (CANCEL,)),
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
                parameters=(CHANNEL, LIMIT, CURSOR),
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
                parameters=(query("user", "Only sessions of this user.", TEXT), LIMIT, CURSOR),
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
                    Answer(200, "A stream.", (Body("text/event-stream", TEXT),)),
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
                        {"type": "array", "items": NAME, "minItems": 1},
                        required=True,
                    ),
                    query(
                        "since",
                        "Resume behind the `id` of this block; or the last position of each "
                        "channel in their order, joined by commas.",
                        TEXT,
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
                        "max_rate_hz",
                        "At most so many events a second, from 0.01 to 1000, the newest ones; or "
                        "a number for each channel in their order, joined by commas.",
                        {
                            "type": "string",
                            "pattern": "^([0-9]{1,4}(\\.[0-9]{1,20})?)?"
                            "(,([0-9]{1,4}(\\.[0-9]{1,20})?)?)*$",
                        },
                    ),
                    query(
                        "presence",
                        "Once for each of the channels whose presence is to be seen.",
                        {"type": "array", "items": NAME},
                    ),
                    query("ticket", "Of `POST /v1/tickets`, for EventSource.", TEXT),
                    Parameter("Last-Event-ID", "header", "Resume behind this block.", TEXT),
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
                (Answer(200, "All metrics of this node.", (Body("text/plain", TEXT),)),),
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
