"""How do bytes come in and go out? This file: what can be done with events, described."""

from typing import Final

from handlers import models
from handlers.media import CLOUDEVENT, CLOUDEVENTS, JSON, NDJSON
from handlers.operations import (
    KNOWN,
    WITH_BODY,
    Answer,
    Body,
    Operation,
    Parameter,
    ok,
    path,
    query,
)
from handlers.parameters import CHANNEL, COUNT, CURSOR, LIMIT, NAME, POSITION, TEXT, TIME
from server.errors import Conflict, InvalidData, LimitExceeded, NotFound

PUBLISH: Final = Operation(
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
                Body(NDJSON, TEXT),
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
        query("channel", "Channel of CloudEvents; else their `subject` names it.", NAME),
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
        Body(NDJSON, TEXT),
        Body(CLOUDEVENT, models.CloudEvent),
        Body(CLOUDEVENTS, list[models.CloudEvent]),
    ),
    errors=(*WITH_BODY, InvalidData, LimitExceeded, Conflict),
)

SCHEDULES: Final = Operation(
    "GET",
    "schedules",
    "List what is scheduled in a channel",
    (ok("A page of events that wait, by time and id.", models.SchedulePage),),
    description=(
        "Needs the scope `publish`; users need the grant, and see what they have scheduled "
        "themselves."
    ),
    parameters=(CHANNEL, LIMIT, CURSOR),
    errors=KNOWN,
)
CANCEL: Final = Operation(
    "DELETE",
    "cancelSchedule",
    "Cancel a scheduled event",
    (Answer(204, "It is never published."),),
    description=(
        "Needs the scope `publish`; users need the grant, and cancel what they have scheduled "
        "themselves. `not_found` says that nothing of that id waits, or that it was published."
    ),
    parameters=(CHANNEL, path("id", "Id of the event, percent-encoded.", TEXT)),
    errors=(*KNOWN, NotFound),
)

HISTORY: Final = Operation(
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
        CHANNEL,
        query("since", "Only events after this position.", POSITION),
        query("before", "Only events before this position.", POSITION),
        query("from", "Only events of this time or later, in ms since 1970.", TIME),
        query("to", "Only events before this time, in ms since 1970.", TIME),
        query("name", "Only events of this name.", TEXT),
        query(
            "order",
            "`asc`: the oldest first; `desc`: the newest first.",
            {"type": "string", "enum": ["asc", "desc"], "default": "asc"},
        ),
        query("limit", "Most events wanted (50); cut to what the settings allow.", COUNT),
        query("cursor", "`cursor` of the page before.", POSITION),
    ),
    errors=(*KNOWN, Conflict),
)
