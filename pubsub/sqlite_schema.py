"""Where is an event kept? This file: the tables of an SQLite archive, and how they came to be."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pubsub.errors import ArchiveRefused

# "GALE": tells a file of ours from another program's.
APPLICATION_ID: Final = 0x47414C45

# A purged event keeps its key and id, with no name and no body, until its id may be forgotten.
# `expires` is when the row may go, 0 for never. `floors` says of each epoch up to where the channel
# was purged, `channels` where it stands.
_FIRST: Final = (
    """CREATE TABLE events (
        channel TEXT NOT NULL,
        epoch TEXT NOT NULL,
        "offset" INTEGER NOT NULL,
        "check" TEXT NOT NULL,
        time INTEGER NOT NULL,
        expires INTEGER NOT NULL,
        id TEXT NOT NULL,
        name TEXT,
        body BLOB
    ) STRICT""",
    """CREATE UNIQUE INDEX events_by_offset ON events (channel, "offset", epoch, "check")""",
    """CREATE INDEX events_by_channel_time ON events (channel, time, "offset")""",
    """CREATE INDEX events_by_time ON events (time)""",
    """CREATE INDEX events_by_expiry ON events (expires) WHERE expires > 0""",
    """CREATE TABLE channels (
        channel TEXT PRIMARY KEY,
        epoch TEXT NOT NULL,
        "offset" INTEGER NOT NULL,
        "check" TEXT NOT NULL,
        time INTEGER NOT NULL,
        floor INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE floors (
        channel TEXT NOT NULL,
        epoch TEXT NOT NULL,
        "offset" INTEGER NOT NULL,
        PRIMARY KEY (channel, epoch)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE unarchived (
        channel TEXT NOT NULL,
        epoch TEXT NOT NULL,
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        time INTEGER NOT NULL,
        PRIMARY KEY (channel, first, last, epoch)
    ) STRICT, WITHOUT ROWID""",
    f"PRAGMA application_id = {APPLICATION_ID}",
)

# An event that is to be published at a time, and who is about to publish what is due of a channel.
_SECOND: Final = (
    """CREATE TABLE schedules (
        channel TEXT NOT NULL,
        id TEXT NOT NULL,
        deliver_at INTEGER NOT NULL,
        serial TEXT NOT NULL,
        user TEXT,
        body BLOB NOT NULL,
        PRIMARY KEY (channel, id)
    ) STRICT""",
    """CREATE INDEX schedules_by_time ON schedules (deliver_at, id)""",
    """CREATE INDEX schedules_by_channel ON schedules (channel, deliver_at, id)""",
    """CREATE TABLE claims (
        channel TEXT PRIMARY KEY,
        holder TEXT NOT NULL,
        till INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
)

# Each step leads to the next version; one that was released never changes.
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (_FIRST, _SECOND)
VERSION: Final = len(MIGRATIONS)


def migrate(
    connection: sqlite3.Connection, migrations: tuple[tuple[str, ...], ...] = MIGRATIONS
) -> None:
    """Bring a database to this version, all or nothing; a new file gets its tables.

    Raises ArchiveRefused for a database of a later version or of another program.
    """
    with transaction(connection, "BEGIN"):
        version = read_version(connection, len(migrations))
    if version == len(migrations):
        return
    with transaction(connection):
        # Another process may have done it meanwhile.
        version = read_version(connection, len(migrations))
        for statements in migrations[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")


@contextmanager
def transaction(connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """Do what is done within it as one: all of it, or nothing when an error ends it."""
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk may have ended it already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def read_version(connection: sqlite3.Connection, newest: int) -> int:
    """Return the version of a database, 0 for a new file.

    To be called within a transaction, lest a file that another process makes looks like half of
    one. Raises ArchiveRefused for a version beyond `newest`, or another program's database.
    """
    version = _pragma(connection, "user_version")
    if _pragma(connection, "application_id") != APPLICATION_ID:
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version or tables:
            raise ArchiveRefused("the database is not an archive of Galecast")
    if version > newest:
        raise ArchiveRefused(
            f"the archive is of version {version}, and this Galecast knows {newest} at most"
        )
    return version


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    found: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return found
