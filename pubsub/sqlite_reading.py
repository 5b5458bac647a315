"""Where is an event kept? This file: what is asked of the tables."""

import sqlite3
from typing import Any, Final

from pubsub.archive import Query, Unarchived
from pubsub.envelope import read_stored
from pubsub.event import Event
from pubsub.ledger import PublishedId
from pubsub.position import Position

MOST_UNARCHIVED: Final = 1_000

# Sorts behind every character of a name.
_LAST: Final = "\U0010ffff"


def read_events(connection: sqlite3.Connection, query: Query) -> list[Event]:
    """Return the events that a query asks for."""
    conditions, values = _conditions(query)
    direction = "DESC" if query.newest else "ASC"
    order = f'ORDER BY "offset" {direction}, time {direction}'
    # Sorting takes the bodies along, so the rows are chosen first, by the index alone if it can.
    rows = connection.execute(
        f'SELECT "offset", body FROM events WHERE rowid IN (SELECT rowid FROM events '  # noqa: S608
        f"INDEXED BY {_index(query)} WHERE {conditions} {order} LIMIT ?) {order}",
        (*values, max(0, query.limit)),
    )
    events = [read_stored(query.channel, offset, body) for offset, body in rows]
    if query.newest:
        events.reverse()
    return events


def _conditions(query: Query) -> tuple[str, list[Any]]:
    bounds = [
        ('"offset" > ?', query.after),
        ('"offset" < ?', query.before),
        ("time >= ?", query.since_ms),
        ("time < ?", query.until_ms),
    ]
    asked = [(condition, value) for condition, value in bounds if value is not None]
    # Those that were purged have none.
    conditions = ["channel = ?", "body IS NOT NULL", *(condition for condition, _ in asked)]
    return " AND ".join(conditions), [query.channel, *(value for _, value in asked)]


def _index(query: Query) -> str:
    """Choose how to find the events: from one offset on, or all of a stretch of time.

    The former ends as soon as there are enough, unless it runs out of the times asked for; a reader
    that goes on from a cursor has only those ahead.
    """
    timeless = query.since_ms is None and query.until_ms is None
    forward = not query.newest and query.after > 0 and query.until_ms is None
    backward = query.newest and query.before is not None and query.since_ms is None
    return "events_by_offset" if timeless or forward or backward else "events_by_channel_time"


def read_unarchived(
    connection: sqlite3.Connection, channel: str, after: int, before: int | None
) -> list[Unarchived]:
    """Return what is missing between two offsets."""
    rows = connection.execute(
        "SELECT channel, epoch, first, last, time FROM unarchived "
        "WHERE channel = ? AND last > ? AND first < coalesce(?, first + 1) "
        "ORDER BY first, last LIMIT ?",
        (channel, after, before, MOST_UNARCHIVED),
    )
    return [Unarchived(*row) for row in rows]


def read_channels(connection: sqlite3.Connection, prefix: str, after: str, limit: int) -> list[str]:
    """Return channels that have events, by name."""
    rows = connection.execute(
        "SELECT channel FROM channels WHERE channel > ? AND channel >= ? AND channel <= ? "
        "AND EXISTS (SELECT 1 FROM events "
        "WHERE events.channel = channels.channel AND body IS NOT NULL) "
        "ORDER BY channel LIMIT ?",
        (after, prefix, prefix + _LAST, max(0, limit)),
    )
    return [channel for (channel,) in rows]


def read_last_time(connection: sqlite3.Connection, channel: str) -> int:
    """Return the time of a channel's latest event, 0 if there is none."""
    (time,) = connection.execute(
        "SELECT ifnull(max(time), 0) FROM events WHERE channel = ?", (channel,)
    ).fetchone()
    return int(time)


def read_published(connection: sqlite3.Connection, since_ms: int) -> list[PublishedId]:
    """Return the ids of events of a time or later, in the order in which they were written."""
    rows = connection.execute(
        'SELECT channel, id, epoch, "offset", "check" FROM events '
        "INDEXED BY events_by_time WHERE time >= ? ORDER BY time, rowid",
        (since_ms,),
    )
    return [PublishedId(channel, event_id, Position(*at)) for channel, event_id, *at in rows]
