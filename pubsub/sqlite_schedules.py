"""Where is an event kept? This file: schedules in the SQLite database of the archive."""

import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from pubsub.envelope import pack_draft, read_draft
from pubsub.errors import JunkReceived
from pubsub.schedules import Added, Claimed, Key, Schedule, sort_out
from pubsub.sqlite_schema import transaction
from pubsub.sqlite_thread import SqliteThread

_ALL: Final = "SELECT channel, deliver_at, serial, body FROM schedules "


class SqliteSchedules:
    """Keeps schedules in an SQLite database; see `Schedules` for what it promises.

    Writing and reading have the threads of the archive, which owns them.
    """

    def __init__(self, writer: SqliteThread, reader: SqliteThread) -> None:
        self._writer = writer
        self._reader = reader

    async def add(self, schedules: Sequence[Schedule], most: int) -> list[Added]:
        return await self._writer.run(partial(_add, tuple(schedules), most))

    async def find(self, channel: str, event_id: str) -> Schedule | None:
        return await self._reader.run(partial(_find, (channel, event_id)))

    async def page(
        self,
        channel: str,
        *,
        after: tuple[int, str] = (-1, ""),
        user: str | None = None,
        limit: int,
    ) -> list[Schedule]:
        return await self._reader.run(partial(_page, channel, after, user, limit))

    async def earliest(self, after_ms: int = -1) -> int | None:
        return await self._reader.run(partial(_earliest, after_ms))

    async def pending(self) -> int:
        return await self._reader.run(_pending)

    async def claim(self, holder: str, now_ms: int, till_ms: int, limit: int) -> Claimed:
        return await self._writer.run(partial(_claim, holder, now_ms, till_ms, limit))

    async def keep(self, holder: str, channels: Sequence[str], till_ms: int) -> None:
        await self._writer.run(partial(_keep, holder, tuple(channels), till_ms))

    async def release(self, holder: str, channels: Sequence[str]) -> None:
        await self._writer.run(partial(_release, holder, tuple(channels)))

    async def remove(self, schedules: Sequence[Schedule]) -> int:
        return await self._writer.run(partial(_remove, tuple(schedules)))

    async def present(self, schedules: Sequence[Schedule]) -> list[bool]:
        """Say of each whether it stands, behind all that was asked to be written before."""
        return await self._writer.run(partial(_present, tuple(schedules)))


def delete_schedules(connection: sqlite3.Connection, schedules: Sequence[Schedule]) -> int:
    """Delete schedules within a transaction; return how many were there."""
    before = connection.total_changes
    connection.executemany(
        "DELETE FROM schedules WHERE channel = ? AND id = ? AND serial = ?",
        [(*schedule.key, schedule.serial) for schedule in schedules],
    )
    return connection.total_changes - before


def _read(row: Sequence[Any]) -> Schedule:
    channel, deliver_at, serial, body = row
    return Schedule(read_draft(channel, body), deliver_at, serial)


def _readable(rows: Sequence[Sequence[Any]]) -> list[Schedule]:
    found = []
    for row in rows:
        try:
            found.append(_read(row))
        except JunkReceived:
            continue
    return found


def _add(schedules: Sequence[Schedule], most: int, connection: sqlite3.Connection) -> list[Added]:
    with transaction(connection):
        known: dict[Key, Schedule] = {}
        for schedule in schedules:
            found = _find(schedule.key, connection)
            if found is not None:
                known[schedule.key] = found
        counts = {
            channel: connection.execute(
                "SELECT count(*) FROM schedules WHERE channel = ?", (channel,)
            ).fetchone()[0]
            for channel in ({each.draft.channel for each in schedules} if most else ())
        }
        answers, fresh = sort_out(schedules, known, counts, most)
        connection.executemany(
            # One that cannot be read gives way.
            "INSERT OR REPLACE INTO schedules VALUES (?, ?, ?, ?, ?, ?)",
            [
                (*each.key, each.deliver_at, each.serial, each.draft.user, pack_draft(each.draft))
                for each in fresh
            ],
        )
    return answers


def _find(key: Key, connection: sqlite3.Connection) -> Schedule | None:
    rows = connection.execute(_ALL + "WHERE channel = ? AND id = ?", key).fetchall()
    return next(iter(_readable(rows)), None)


def _page(
    channel: str,
    after: tuple[int, str],
    user: str | None,
    limit: int,
    connection: sqlite3.Connection,
) -> list[Schedule]:
    whose, values = ("", ()) if user is None else ("AND user = ? ", (user,))
    rows = connection.execute(
        _ALL + "WHERE channel = ? AND (deliver_at, id) > (?, ?) "
        f"{whose}ORDER BY deliver_at, id LIMIT ?",
        (channel, *after, *values, max(0, limit)),
    )
    return _readable(rows.fetchall())


def _earliest(after_ms: int, connection: sqlite3.Connection) -> int | None:
    found: int | None = connection.execute(
        "SELECT min(deliver_at) FROM schedules WHERE deliver_at > ?", (after_ms,)
    ).fetchone()[0]
    return found


def _pending(connection: sqlite3.Connection) -> int:
    found: int = connection.execute("SELECT count(*) FROM schedules").fetchone()[0]
    return found


def _claim(
    holder: str, now_ms: int, till_ms: int, limit: int, connection: sqlite3.Connection
) -> Claimed:
    with transaction(connection):
        rows = connection.execute(
            _ALL  # noqa: S608
            + "WHERE deliver_at <= ? AND NOT EXISTS (SELECT 1 FROM claims "
            "WHERE claims.channel = schedules.channel AND till > ?) "
            "ORDER BY deliver_at, id LIMIT ?",
            (now_ms, now_ms, max(0, limit)),
        ).fetchall()
        found = _readable(rows)
        if len(found) < len(rows):
            readable = {each.serial for each in found}
            connection.executemany(
                "DELETE FROM schedules WHERE channel = ? AND serial = ?",
                [(channel, serial) for channel, _, serial, _ in rows if serial not in readable],
            )
        connection.execute("DELETE FROM claims WHERE till <= ?", (now_ms,))
        connection.executemany(
            "INSERT INTO claims VALUES (?, ?, ?)",
            [(channel, holder, till_ms) for channel in {each.draft.channel for each in found}],
        )
    return Claimed(tuple(found), len(rows) - len(found))


def _keep(
    holder: str, channels: Sequence[str], till_ms: int, connection: sqlite3.Connection
) -> None:
    with transaction(connection):
        connection.executemany(
            "UPDATE claims SET till = ? WHERE channel = ? AND holder = ?",
            [(till_ms, channel, holder) for channel in channels],
        )


def _release(holder: str, channels: Sequence[str], connection: sqlite3.Connection) -> None:
    with transaction(connection):
        connection.executemany(
            "DELETE FROM claims WHERE channel = ? AND holder = ?",
            [(channel, holder) for channel in channels],
        )


def _remove(schedules: Sequence[Schedule], connection: sqlite3.Connection) -> int:
    with transaction(connection):
        return delete_schedules(connection, schedules)


def _present(schedules: Sequence[Schedule], connection: sqlite3.Connection) -> list[bool]:
    return [
        connection.execute(
            "SELECT 1 FROM schedules WHERE channel = ? AND id = ? AND serial = ?",
            (*schedule.key, schedule.serial),
        ).fetchone()
        is not None
        for schedule in schedules
    ]
