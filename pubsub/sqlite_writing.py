"""Where is an event kept? This file: how entries change the tables, within one transaction."""

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from pubsub.archive import Entry, Kept, Purged, Unarchived
from pubsub.envelope import pack_stored
from pubsub.ledger import LedgerRecord
from pubsub.position import Position

_ADD_EVENT = "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"

_RAISE_FLOOR = (
    "INSERT INTO floors VALUES (?, ?, ?) ON CONFLICT DO UPDATE "
    'SET "offset" = excluded."offset" WHERE excluded."offset" > "offset"'
)


def read_record(connection: sqlite3.Connection, channel: str) -> LedgerRecord | None:
    """Return where a channel stands."""
    row = connection.execute("SELECT * FROM channels WHERE channel = ?", (channel,)).fetchone()
    if row is None:
        return None
    _channel, epoch, offset, check, time, floor = row
    return LedgerRecord(channel, Position(epoch, offset, check), time, floor)


def is_later(record: LedgerRecord, position: Position, time: int) -> bool:
    """Say whether a position lies behind a channel's top.

    In another epoch it does if it is of a later time, and of the same time by its offset: an epoch
    begins above the one before, or long after it.
    """
    if position.epoch == record.top.epoch:
        return position.offset > record.top.offset
    return (time, position.offset) > (record.time, record.top.offset)


class Writing:
    """What one transaction knows of floors and records; `finish` writes the records."""

    def __init__(self, connection: sqlite3.Connection, *, keep_ids_ms: int, now_ms: int) -> None:
        self.purged = False
        self._connection = connection
        self._keep_ids_ms = keep_ids_ms
        self._now_ms = now_ms
        self._floors: dict[str, dict[str, int]] = {}
        self._records: dict[str, LedgerRecord | None] = {}
        self._changed: set[str] = set()

    def write(self, entries: Sequence[Entry]) -> None:
        """Carry out entries in order."""
        for kind, run in groupby(entries, type):
            if kind is Kept:
                self._connection.executemany(_ADD_EVENT, list(self._rows(run)))
            else:
                for entry in run:
                    if isinstance(entry, Purged):
                        self._purge(entry.channel, entry.floor)
                    elif isinstance(entry, Unarchived):
                        self._note_unarchived(entry)

    def begin(self, record: LedgerRecord) -> None:
        """Let a channel stand where a record says, but never go back within an epoch."""
        old = self._record(record.channel)
        if old is None or old.top.epoch != record.top.epoch or is_later(old, record.top, 0):
            self._put(record)

    def finish(self) -> None:
        """Write what changed of the records; the last call."""
        records = (self._records[channel] for channel in self._changed)
        self._connection.executemany(
            "INSERT OR REPLACE INTO channels VALUES (?, ?, ?, ?, ?, ?)",
            (
                (r.channel, r.top.epoch, r.top.offset, r.top.check, r.time, r.floor)
                for r in records
                if r is not None
            ),
        )

    def _rows(self, run: Iterable[Entry]) -> Iterable[tuple[Any, ...]]:
        for entry in run:
            assert isinstance(entry, Kept)  # noqa: S101
            event, expires = entry.event, entry.expires
            channel, position, time = event.channel, event.position, event.time
            if position.offset <= self._floor(channel, position.epoch):
                continue
            self._see(channel, position, time)
            if expires:
                # The row carries the id, which is needed for longer.
                expires = max(expires, time + self._keep_ids_ms)
            yield (
                channel,
                position.epoch,
                position.offset,
                position.check,
                time,
                expires,
                event.id,
                event.name,
                pack_stored(event),
            )

    def _purge(self, channel: str, floor: Position) -> None:
        # A repeated purge must not touch the epochs that began after it.
        if self._floor(channel, floor.epoch) < floor.offset:
            self._raise_floors(channel, floor)
            whose = 'channel = ? AND (epoch <> ? OR "offset" <= ?)'
            which = (channel, floor.epoch, floor.offset)
            self._connection.execute(
                "UPDATE events SET name = NULL, body = NULL, expires = max(time + ?, 1) "  # noqa: S608
                f"WHERE body IS NOT NULL AND {whose}",
                (self._keep_ids_ms, *which),
            )
            self._connection.execute(
                "DELETE FROM unarchived WHERE channel = ? AND (epoch <> ? OR last <= ?)", which
            )
            self.purged = True
        record = self._record(channel)
        if record is None or record.top.offset < floor.offset:
            self._put(LedgerRecord(channel, floor, self._now_ms, floor.offset))
        elif record.top.epoch == floor.epoch and record.floor < floor.offset:
            # Subscribers are told of that position, which lapses from now on.
            time = max(record.time, self._now_ms)
            self._put(LedgerRecord(channel, record.top, time, floor.offset))

    def _raise_floors(self, channel: str, floor: Position) -> None:
        others = self._connection.execute(
            'SELECT epoch, max("offset") FROM events WHERE channel = ? AND epoch <> ? '
            "GROUP BY epoch",
            (channel, floor.epoch),
        ).fetchall()
        floors = self._floors[channel]
        for epoch, offset in (*others, (floor.epoch, floor.offset)):
            floors[epoch] = max(offset, floors.get(epoch, 0))
            self._connection.execute(_RAISE_FLOOR, (channel, epoch, offset))

    def _note_unarchived(self, entry: Unarchived) -> None:
        if entry.last > self._floor(entry.channel, entry.epoch):
            self._connection.execute(
                "INSERT OR IGNORE INTO unarchived VALUES (?, ?, ?, ?, ?)",
                (entry.channel, entry.epoch, entry.first, entry.last, entry.time),
            )

    def _see(self, channel: str, position: Position, time: int) -> None:
        record = self._record(channel)
        if record is None:
            self._put(LedgerRecord(channel, position, time, 0))
        elif is_later(record, position, time):
            # An epoch that begins anew, not above the one before it, has nothing purged yet.
            floor = record.floor if position.offset > record.floor else 0
            self._put(LedgerRecord(channel, position, time, floor))

    def _floor(self, channel: str, epoch: str) -> int:
        floors = self._floors.get(channel)
        if floors is None:
            found = self._connection.execute(
                'SELECT epoch, "offset" FROM floors WHERE channel = ?', (channel,)
            )
            floors = self._floors[channel] = dict(found.fetchall())
        return floors.get(epoch, 0)

    def _record(self, channel: str) -> LedgerRecord | None:
        if channel not in self._records:
            self._records[channel] = read_record(self._connection, channel)
        return self._records[channel]

    def _put(self, record: LedgerRecord) -> None:
        self._records[record.channel] = record
        self._changed.add(record.channel)
