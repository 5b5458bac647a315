"""Where is an event kept? This file: whether an archive can be used, and how large it is."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

from pubsub.archive_url import ArchiveTarget
from pubsub.errors import ArchiveUnavailable
from pubsub.mongo_archive import MongoArchive
from pubsub.sqlite_schema import VERSION, read_version, transaction

Finding = tuple[Literal["ok", "warn", "fail"], str]

# How long counting may take, and how many of SQLite's steps lie between two looks at the clock.
_COUNT_S: Final = 1.0
_STEPS: Final = 10_000


async def look_at(target: ArchiveTarget, *, call_timeout_s: float) -> list[Finding]:
    """Return what there is to say of an archive; makes and changes nothing. Raises nothing."""
    if target.kind == "none":
        return [("ok", "none is used")]
    if target.kind == "sqlite":
        return list(_sqlite(target))
    archive = MongoArchive(target.url, target.database, call_timeout_s=call_timeout_s)
    try:
        events, replicated = await archive.look()
    except ArchiveUnavailable as error:
        return [("fail", f"{target}: cannot be reached: {error}")]
    finally:
        await archive.close()
    found: list[Finding] = [("ok", f"{target}: MongoDB, about {events:,} events")]
    if not replicated:
        text = "what it acknowledges is on one server, which a majority does not change"
        found.append(("warn", f"the server is no replica set: {text}"))
    return found


def is_open(path: str) -> bool:
    """Say whether any process has the SQLite database of an archive open.

    It is asked for the lock of the whole file, which nobody gets beside others.
    """
    if not Path(path).is_file():
        return False
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return True
        except sqlite3.DatabaseError:
            # It is none, which whoever opens it is told.
            return False
        connection.execute("ROLLBACK")
    return False


def _sqlite(target: ArchiveTarget) -> Iterator[Finding]:
    path = Path(target.path)
    folder = path.absolute().parent
    if not folder.is_dir():
        yield "fail", f"{target}: the folder {folder} does not exist"
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        yield "fail", f"{target}: the folder {folder} is not writable for this user"
        return
    if not path.exists():
        yield "ok", f"{target}: SQLite; the file is made when a node starts"
        return
    if not os.access(path, os.R_OK | os.W_OK):
        yield "fail", f"{target}: the file is not writable for this user"
        return
    try:
        with closing(_open_to_read(target.path)) as connection:
            with transaction(connection, "BEGIN"):
                older = read_version(connection, VERSION) < VERSION
            said = "made or migrated when a node starts" if older else _size(connection, path)
    except (sqlite3.Error, ArchiveUnavailable) as error:
        yield "fail", f"{target}: {error}"
    else:
        yield "ok", f"{target}: SQLite, {said}"


def _open_to_read(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None)


def _size(connection: sqlite3.Connection, path: Path) -> str:
    channels = connection.execute("SELECT count(*) FROM channels").fetchone()[0]
    deadline = time.monotonic() + _COUNT_S
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
    events = "more than could be counted"
    with suppress(sqlite3.OperationalError):
        counted = connection.execute("SELECT count(*) FROM events").fetchone()[0]
        events = f"{counted:,}"
    size = path.stat().st_size
    shown = f"{size / 1e6:,.1f} MB" if size >= 1_000_000 else f"{size / 1e3:.0f} KB"
    return f"{shown}; channels: {channels:,}, events: {events}"
