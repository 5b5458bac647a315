"""Where is an event kept? This file: the documents that a MongoDB keeps of it (pure)."""

from typing import Any, Final

from bson.datetime_ms import DatetimeMS
from pymongo.errors import BulkWriteError

from pubsub.archive import Kept, Query, Unarchived
from pubsub.envelope import pack_stored, read_stored
from pubsub.event import Event
from pubsub.position import Position

Document = dict[str, Any]

DUPLICATE: Final = 11_000

# What a purge leaves of an event: its key, so that it stays away, and when that may go.
BLANK: Final = dict.fromkeys(
    ("channel", "epoch", "offset", "check", "time", "id", "name", "body"), ""
)
EVENT_PARTS: Final = {"_id": False, "offset": True, "body": True}


def only_duplicates(error: BulkWriteError) -> bool:
    """Say whether an insertion failed only for what was there already."""
    failed = error.details or {}
    codes = {each.get("code") for each in failed.get("writeErrors", ())}
    return not (codes - {DUPLICATE} or failed.get("writeConcernErrors"))


def event_document(kept: Kept) -> Document:
    """Return the document of an event; what people look for stands beside the body."""
    event = kept.event
    position = event.position
    document = {
        # The key, in the one index that every collection has from its beginning.
        "_id": f"{event.channel}:{position}",
        "channel": event.channel,
        "epoch": position.epoch,
        "offset": position.offset,
        "check": position.check,
        "time": event.time,
        "id": event.id,
        "name": event.name,
        "body": pack_stored(event),
    }
    if kept.expires:
        document["expires"] = DatetimeMS(kept.expires)
    return document


def read_event(channel: str, document: Document) -> Event:
    """Return the event of a document."""
    # BSON's own kind of integer is one that encoders do not know.
    return read_stored(channel, int(document["offset"]), document["body"])


def event_filter(query: Query) -> Document:
    """Return the condition that a query stands for."""
    found: Document = {"channel": query.channel, "offset": {"$gt": query.after}}
    if query.before is not None:
        found["offset"]["$lt"] = query.before
    times = {"$gte": query.since_ms, "$lt": query.until_ms}
    if asked := {operator: time for operator, time in times.items() if time is not None}:
        found["time"] = asked
    return found


def unarchived_document(entry: Unarchived) -> Document:
    """Return the document of what is known to be missing."""
    return {
        "_id": f"{entry.channel}:{entry.epoch}:{entry.first}-{entry.last}",
        "channel": entry.channel,
        "epoch": entry.epoch,
        "first": entry.first,
        "last": entry.last,
        "time": entry.time,
    }


def read_unarchived(document: Document) -> Unarchived:
    """Return what a document says is missing."""
    first, last, time = (int(document[name]) for name in ("first", "last", "time"))
    return Unarchived(document["channel"], document["epoch"], first, last, time)


def floor_id(channel: str, floor: Position) -> str:
    """Return the key of the purge floor of one epoch of a channel."""
    return f"{channel}:{floor.epoch}"
