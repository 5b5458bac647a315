"""Where is an event kept? This file: the archive in an SQLite database, and the ledger in it."""

import os
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from pubsub.archive import Entry, Query, Unarchived
from pubsub.errors import ArchiveRefused, ArchiveUnavailable
from pubsub.event import Event
from pubsub.ledger import LedgerRecord, PublishedId
from pubsub.schedules import Schedule
from pubsub.sqlite_reading import (
    read_channels,
    read_events,
    read_last_time,
    read_published,
    read_unarchived,
)
from pubsub.sqlite_schedules import SqliteSchedules, delete_schedules
from pubsub.sqlite_schema import migrate, transaction
from pubsub.sqlite_thread import SqliteThread
from pubsub.sqlite_writing import Writing, read_record

# What the log of writes is cut to when it was merged into the database.
_LOG_BYTES: Final = 64 * 1024 * 1024
_PATIENCE_MS: Final = 100
# The times of records in use may be behind by a part of the time to live, lest each sweep writes
# them all. A record is kept for longer by twice as much: a round over all may take as long again.
_PARTS: Final = 8


class SqliteArchive:
    """Keeps events in an SQLite database; see `Archive` and `Ledger` for what it promises.

    - `path`: the file, in a folder that exists. SQLite keeps two more beside it.
    - `keep_ids_s`: how long an event's id is kept at least, whatever its `expires`.
    - `position_ttl_s`: how long a channel's record outlives its events and its use, at least; at
      most for longer by a quarter, and by the time that a round of sweeps takes.
    - `call_timeout_s`: see `Archive`; `start` may take longer, since a migration may.
    - `clock_ms`: the time in ms since 1970.

    Writing has a thread and a connection of its own, reading has others. `write` is one
    transaction, all or nothing, and is on disk (synchronous=FULL) when it returns. Reads show
    expired events until they are swept. What was purged is overwritten in the file at once.
    """

    def __init__(
        self,
        path: str,
        *,
        keep_ids_s: float = 300.0,
        position_ttl_s: float = 604_800.0,
        call_timeout_s: float = 5.0,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._keep_ids_ms = round(keep_ids_s * 1000)
        # An id stands in a row of events, which its channel's record outlives.
        self._lapse_ms = round(max(position_ttl_s, keep_ids_s) * 1000)
        self._clock_ms = clock_ms
        self._behind_ms = self._lapse_ms // _PARTS
        self._busy_ms = round(call_timeout_s * 1000)
        self._swept_to = ""
        self.idle_s: Callable[[str], float | None] = lambda _channel: None
        self._writer = SqliteThread(
            "archive-write",
            partial(_open_writer, path, call_timeout_s),
            call_timeout_s=call_timeout_s,
            interruptible=False,
        )
        self._reader = SqliteThread(
            "archive-read",
            partial(_open_reader, path, call_timeout_s),
            call_timeout_s=call_timeout_s,
            interruptible=True,
        )
        self.schedules = SqliteSchedules(self._writer, self._reader)

    async def start(self) -> None:
        # The writer makes the database that the reader opens.
        await self._writer.open()
        await self._reader.open()

    async def close(self) -> None:
        await self._reader.close()
        await self._writer.close()

    # ---- writing

    async def write(self, entries: Sequence[Entry]) -> None:
        if entries:
            await self._writer.run(partial(self._write, tuple(entries)))

    async def fire(self, entries: Sequence[Entry], fired: Sequence[Schedule]) -> None:
        await self._writer.run(partial(self._write, tuple(entries), fired=tuple(fired)))

    async def begin(self, record: LedgerRecord) -> None:
        await self._writer.run(partial(self._begin, record))

    async def sweep(self, now_ms: int, limit: int) -> int:
        return await self._writer.run(partial(self._sweep, now_ms, limit))

    # ---- reading

    async def read(self, query: Query) -> list[Event]:
        return await self._reader.run(partial(read_events, query=query))

    async def unarchived(
        self, channel: str, *, after: int = 0, before: int | None = None
    ) -> list[Unarchived]:
        return await self._reader.run(
            partial(read_unarchived, channel=channel, after=after, before=before)
        )

    async def channels(self, *, prefix: str = "", after: str = "", limit: int) -> list[str]:
        return await self._reader.run(
            partial(read_channels, prefix=prefix, after=after, limit=limit)
        )

    async def top(self, channel: str) -> LedgerRecord | None:
        # Where writes are done, since one may be under way that nobody waits for any more.
        return await self._writer.run(partial(read_record, channel=channel))

    async def last_time(self, channel: str) -> int:
        return await self._writer.run(partial(read_last_time, channel=channel))

    async def published(self, since_ms: int) -> list[PublishedId]:
        return await self._reader.run(partial(read_published, since_ms=since_ms), patient=True)

    # ---- in the writing thread

    def _write(
        self,
        entries: Sequence[Entry],
        connection: sqlite3.Connection,
        *,
        fired: Sequence[Schedule] = (),
    ) -> None:
        writing = self._writing(connection)
        with transaction(connection):
            delete_schedules(connection, fired)
            writing.write(entries)
            writing.finish()
        if writing.purged:
            # What was purged stands in the log of writes too. A reader that is long in the way, as
            # a backup is, puts this off until the log is merged the next time.
            connection.execute(f"PRAGMA busy_timeout = {_PATIENCE_MS}")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute(f"PRAGMA busy_timeout = {self._busy_ms}")

    def _begin(self, record: LedgerRecord, connection: sqlite3.Connection) -> None:
        writing = self._writing(connection)
        with transaction(connection):
            writing.begin(record)
            writing.finish()

    def _writing(self, connection: sqlite3.Connection) -> Writing:
        return Writing(connection, keep_ids_ms=self._keep_ids_ms, now_ms=self._clock_ms())

    def _sweep(self, now_ms: int, limit: int, connection: sqlite3.Connection) -> int:
        with transaction(connection):
            deleted = self._sweep_events(connection, now_ms, limit)
            self._sweep_records(connection, now_ms, limit)
        return deleted

    def _sweep_events(self, connection: sqlite3.Connection, now_ms: int, limit: int) -> int:
        return connection.execute(
            "DELETE FROM events WHERE rowid IN (SELECT rowid FROM events "
            "INDEXED BY events_by_expiry WHERE expires > 0 AND expires <= ? AND time <= ? LIMIT ?)",
            (now_ms, now_ms - self._keep_ids_ms, limit),
        ).rowcount

    def _sweep_records(self, connection: sqlite3.Connection, now_ms: int, limit: int) -> None:
        # Records are looked at one after another, round and round, so that a sweep stays short.
        looked = connection.execute(
            "SELECT channel, time, EXISTS "
            "(SELECT 1 FROM events WHERE events.channel = channels.channel) "
            "FROM channels WHERE channel > ? ORDER BY channel LIMIT ?",
            (self._swept_to, limit),
        ).fetchall()
        self._swept_to = looked[-1][0] if looked and len(looked) == limit else ""
        lapsed = now_ms - self._lapse_ms - 2 * self._behind_ms
        gone: list[tuple[str]] = []
        in_use: list[tuple[int, str]] = []
        for channel, at, used in looked:
            # What is held would be written anew at the next event, without what stands here only.
            idle_s = self.idle_s(channel)
            if idle_s is None:
                if at <= lapsed and not used:
                    gone.append((channel,))
            elif at < (seen := now_ms - round(idle_s * 1000)) - self._behind_ms:
                in_use.append((seen, channel))
        connection.executemany("UPDATE channels SET time = ? WHERE channel = ?", in_use)
        for table in ("channels", "floors", "unarchived"):
            connection.executemany(f"DELETE FROM {table} WHERE channel = ?", gone)  # noqa: S608


def _connect(path: str, timeout_s: float) -> sqlite3.Connection:
    # A folder that is missing is not made: it may be a volume that is not there yet.
    connection = sqlite3.connect(path, timeout=timeout_s, isolation_level=None)
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def _open_writer(path: str, timeout_s: float) -> sqlite3.Connection:
    try:
        # Events are for nobody else's eyes; the files beside it get the same mode. Only a new file
        # is opened: closing one drops the locks that this process has on it (POSIX).
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise ArchiveUnavailable(f"{path}: {error.strerror}") from None
    connection = _connect(path, timeout_s)
    try:
        migrate(connection)
        mode = _use_log(connection, timeout_s)
        if mode != "wal":
            raise ArchiveRefused(f"the file system takes no write-ahead log, only {mode!a}")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


def _use_log(connection: sqlite3.Connection, timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            return mode
        except sqlite3.OperationalError as error:
            # SQLite does not wait here when two processes make the same file.
            busy = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.001, 0.01))  # noqa: S311


def _open_reader(path: str, timeout_s: float) -> sqlite3.Connection:
    connection = _connect(path, timeout_s)
    connection.execute("PRAGMA query_only = ON")
    return connection
