"""The SQLite archive: its files, what a crash leaves, and the ledger."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from archive_rig import EPOCH, LATER_EPOCH, TIME, events, kept, started
from pubsub import sqlite_schema
from pubsub.archive import Purged, Query, Unarchived
from pubsub.errors import ArchiveRefused, ArchiveUnavailable
from pubsub.ledger import LedgerRecord, PublishedId
from pubsub.position import Position, start
from pubsub.sqlite_archive import SqliteArchive
from pubsub.sqlite_schema import MIGRATIONS, migrate

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "archive.db")


def archive_at(
    path: str, *, keep_ids_s: float = 300.0, position_ttl_s: float = 3_600.0
) -> SqliteArchive:
    return SqliteArchive(
        path, keep_ids_s=keep_ids_s, position_ttl_s=position_ttl_s, clock_ms=lambda: TIME
    )


def ask(path: str, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement).fetchall()


def records(path: str) -> list[str]:
    """The channels of which it is known where they stand."""
    return [str(name) for (name,) in ask(path, "SELECT channel FROM channels ORDER BY channel")]


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def record(position: Position, time: int, floor: int = 0, channel: str = "a.b") -> LedgerRecord:
    return LedgerRecord(channel, position, time, floor)


# ---- the file


async def test_a_new_database_is_ours_and_for_our_eyes_only(path: str) -> None:
    async with started(archive_at(path)) as archive:
        await archive.write(kept(events(1)))
        assert ask(path, "PRAGMA user_version") == [(sqlite_schema.VERSION,)]
        assert ask(path, "PRAGMA application_id") == [(sqlite_schema.APPLICATION_ID,)]
        assert ask(path, "PRAGMA journal_mode") == [("wal",)]
        for suffix in ("", "-wal"):
            assert os.stat(path + suffix).st_mode & 0o777 == 0o600
    assert [file.name for file in Path(path).parent.iterdir()] == ["archive.db"]


async def test_a_missing_folder_is_not_made(tmp_path: Path) -> None:
    archive = archive_at(str(tmp_path / "volume" / "archive.db"))
    with pytest.raises(ArchiveUnavailable, match="No such file"):
        await archive.start()
    (tmp_path / "volume").mkdir()
    async with started(archive):
        assert await archive.channels(limit=1) == []


async def test_a_newer_database_is_refused_and_stays_as_it_is(path: str) -> None:
    async with started(archive_at(path)) as archive:
        await archive.write(kept(events(1)))
    ask(path, "PRAGMA user_version = 99")
    before = content(path)
    with pytest.raises(ArchiveRefused, match="is of version 99, and this Galecast knows 2 at most"):
        await archive_at(path).start()
    assert content(path) == before


async def test_the_database_of_another_program_is_refused(path: str) -> None:
    ask(path, "CREATE TABLE t (x)")
    with pytest.raises(ArchiveRefused, match="not an archive of Galecast"):
        await archive_at(path).start()


async def test_a_file_that_is_no_database_is_refused(path: str) -> None:
    with open(path, "wb") as file:  # noqa: ASYNC230
        file.write(b"x" * 4_096)
    with pytest.raises(ArchiveUnavailable, match="not a database"):
        await archive_at(path).start()


async def test_what_is_not_open_is_unavailable(path: str) -> None:
    archive = archive_at(path)
    with pytest.raises(ArchiveUnavailable, match="not open"):
        await archive.read(Query(channel="a", limit=1))
    async with started(archive):
        pass
    with pytest.raises(ArchiveUnavailable, match="not open"):
        await archive.write(kept(events(1)))


def test_a_migration_keeps_what_is_there(path: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection)
        connection.execute("INSERT INTO floors VALUES ('a', 'b', 1)")
        further = (*MIGRATIONS, ("ALTER TABLE floors ADD COLUMN note TEXT",))
        migrate(connection, further)
        assert connection.execute("SELECT * FROM floors").fetchall() == [("a", "b", 1, None)]
        migrate(connection, further)
        assert connection.execute("PRAGMA user_version").fetchone() == (len(further),)


async def test_the_first_version_becomes_this_one(path: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, MIGRATIONS[:1])
        connection.execute("INSERT INTO channels VALUES ('a.b', 'e', 1, 'c', 5, 0)")
    async with started(archive_at(path)) as archive:
        assert await archive.top("a.b") == LedgerRecord("a.b", Position("e", 1, "c"), 5, 0)
        assert await archive.schedules.pending() == 0


def test_a_migration_that_fails_changes_nothing(path: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        broken = (*MIGRATIONS, ("ALTER TABLE floors ADD COLUMN note TEXT", "SELECT * FROM none"))
        with pytest.raises(sqlite3.OperationalError):
            migrate(connection, broken)
        assert connection.execute("SELECT * FROM sqlite_master").fetchall() == []
        assert connection.execute("PRAGMA user_version").fetchone() == (0,)


async def test_several_may_make_the_database_at_once(path: str) -> None:
    """One saw the file before and after another had made it, and took it for a stranger's."""
    for number in range(10):
        async with AsyncExitStack() as stack:
            place = f"{path}.{number}"
            archives = [archive_at(place) for _ in range(4)]
            for archive in archives:
                stack.push_async_callback(archive.close)
            await asyncio.gather(*(archive.start() for archive in archives))
            await asyncio.gather(*(archive.write(kept(events(5))) for archive in archives))
        assert ask(place, "SELECT count(*) FROM events") == [(5,)]


# ---- writing


async def test_a_full_disk_takes_all_or_nothing(path: str) -> None:
    async with started(archive_at(path)) as archive:
        await archive.write(kept(events(3)))
    pages = ask(path, "PRAGMA page_count")[0][0]
    small = archive_at(path)
    async with started(small):
        await small._writer.run(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        many = events(500, data=b'"' + b"x" * 1_000 + b'"')
        with pytest.raises(ArchiveUnavailable, match="full"):
            await small.write(kept(many))
        assert len(await small.read(Query(channel="a.b", limit=1_000))) == 3
        # It goes on when there is room again.
        await small._writer.run(lambda c: c.execute("PRAGMA max_page_count = 100000").fetchone())
        await small.write(kept(many))
        assert len(await small.read(Query(channel="a.b", limit=1_000))) == 500


async def test_a_locked_database_is_unavailable_and_then_goes_on(path: str) -> None:
    archive = SqliteArchive(path, call_timeout_s=0.1)
    async with started(archive):
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(ArchiveUnavailable, match=r"locked|in time"):
                await archive.write(kept(events(1)))
            # Reading is not in the way of writing, nor writing of reading.
            archive._reader._call_timeout_s = 5.0
            assert await archive.channels(limit=10) == []
            other.execute("ROLLBACK")
        archive._writer._call_timeout_s = 5.0
        await archive.write(kept(events(2)))
        assert len(await archive.read(Query(channel="a.b", limit=10))) == 2


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"


async def test_a_read_that_takes_too_long_is_ended(path: str) -> None:
    archive = SqliteArchive(path, call_timeout_s=0.05)
    async with started(archive):
        with pytest.raises(ArchiveUnavailable, match="in time"):
            await archive._reader.run(lambda connection: connection.execute(ENDLESS).fetchall())
        while True:
            try:
                assert await archive.channels(limit=10) == []
                break
            except ArchiveUnavailable:
                continue


async def test_a_read_that_sqlite_ends_before_the_loop_does_says_the_same(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the loop came to its deadline after the thread had, the read was "interrupted"."""
    archive = SqliteArchive(path)
    monkeypatch.setattr(archive._reader, "_is_over", lambda: True)
    async with started(archive):
        with pytest.raises(ArchiveUnavailable, match="in time"):
            await archive._reader.run(lambda connection: connection.execute(ENDLESS).fetchall())


async def test_a_cancelled_write_leaves_the_archive_usable(path: str) -> None:
    async with started(archive_at(path)) as archive:
        tasks = [asyncio.create_task(archive.write(kept(events(50)))) for _ in range(5)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await archive.write(kept(events(3)))
        assert len(await archive.read(Query(channel="a.b", limit=100))) in (3, 50)


async def test_its_threads_end_with_it(path: str) -> None:
    async with started(archive_at(path)) as archive:
        await archive.write(kept(events(1)))
        assert [t for t in threading.enumerate() if t.name.startswith("archive-")]
    while [t for t in threading.enumerate() if t.name.startswith("archive-")]:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_what_was_purged_is_not_in_the_files(path: str) -> None:
    secret = b"the-secret-that-was-purged"
    async with started(archive_at(path)) as archive:
        small = events(3, data=b'"' + secret + b'"', name=secret.decode())
        large = events(2, channel="l", data=b'"' + secret * 1_000 + b'"')
        await archive.write(kept([*small, *large]))
        files = [path, path + "-wal"]
        assert any(secret in content(file) for file in files)
        await archive.write([Purged("a.b", small[-1].position), Purged("l", large[-1].position)])
        assert not any(secret in content(file) for file in files)


# ---- a crash

WRITER = """
import asyncio, sys
from archive_rig import events, kept
from pubsub.position import start
from pubsub.sqlite_archive import SqliteArchive

async def main():
    archive = SqliteArchive(sys.argv[1])
    await archive.start()
    after = None
    while True:
        group = events(7, after=after, data=b'"' + b"x" * 500 + b'"')
        await archive.write(kept(group))
        after = group[-1].position
        print(after.offset, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("groups", [1, 5, 40])
def test_a_killed_process_keeps_what_it_acknowledged_and_whole_groups(
    path: str, groups: int
) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"}
    command = [sys.executable, "-c", WRITER, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(groups):
            writer.stdout.readline()
        writer.kill()
        acknowledged = 7 * groups
        for line in writer.stdout.read().splitlines():
            acknowledged = int(line)
    offsets = [offset for (offset,) in ask(path, 'SELECT "offset" FROM events ORDER BY 1')]
    # The last group may be there and not acknowledged.
    assert len(offsets) in (acknowledged, acknowledged + 7)
    assert offsets == list(range(1, len(offsets) + 1))
    assert ask(path, 'SELECT "offset" FROM channels') == [(len(offsets),)]
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]


# ---- the ledger


async def test_a_record_follows_its_events(path: str) -> None:
    found = events(5)
    async with started(archive_at(path)) as archive:
        assert await archive.top("a.b") is None
        await archive.write(kept(found[:3]))
        assert await archive.top("a.b") == record(found[2].position, found[2].time)
        await archive.write(kept([*found[3:], *events(1, channel="a.c")]))
        # What is written again is no news.
        await archive.write(kept(found[:2]))
        top = record(found[4].position, found[4].time)
        assert await archive.top("a.b") == top
        await archive.write([Purged("a.b", found[3].position)])
        assert await archive.top("a.b") == record(found[4].position, found[4].time, floor=4)
    async with started(archive_at(path)) as archive:
        assert await archive.top("a.b") == record(found[4].position, found[4].time, floor=4)
        second = await archive.top("a.c")
        assert second is not None and second.top.offset == 1


async def test_a_record_follows_into_a_later_epoch(path: str) -> None:
    found = events(5)
    later = events(2, after=start(LATER_EPOCH, 5), time=found[-1].time)
    lapsed = events(1, after=start("00000000000000e3"), time=TIME + 10_000)
    async with started(archive_at(path)) as archive:
        await archive.write([*kept(found), Purged("a.b", found[2].position), *kept(later)])
        assert await archive.top("a.b") == record(later[-1].position, later[-1].time, floor=3)
        await archive.write(kept(found))
        assert await archive.top("a.b") == record(later[-1].position, later[-1].time, floor=3)
        await archive.write(kept(lapsed))
        assert await archive.top("a.b") == record(lapsed[0].position, lapsed[0].time)


async def test_a_record_begins_before_its_events(path: str) -> None:
    async with started(archive_at(path)) as archive:
        begun = record(start(EPOCH), TIME)
        await archive.begin(begun)
        assert await archive.top("a.b") == begun
        assert await archive.channels(limit=10) == []
        (found,) = events(1)
        await archive.write(kept([found]))
        await archive.begin(begun)
        assert await archive.top("a.b") == record(found.position, found.time)
        forked = record(start(LATER_EPOCH, 40), TIME, floor=1)
        await archive.begin(forked)
        assert await archive.top("a.b") == forked


async def test_a_purge_of_an_unknown_channel_leaves_a_record(path: str) -> None:
    floor = Position(EPOCH, 7, EPOCH)
    async with started(archive_at(path)) as archive:
        await archive.write([Purged("a.b", floor)])
        assert await archive.top("a.b") == record(floor, TIME, floor=7)


async def test_ids_come_oldest_first_also_of_what_was_purged(path: str) -> None:
    one, other = events(3), events(2, channel="a.c", prefix="y")
    async with started(archive_at(path)) as archive:
        await archive.write(kept([one[0], other[0], one[1], one[2], other[1]]))
        await archive.write([Purged("a.b", one[-1].position)])
        found = await archive.published(TIME + 20)
        assert list(found) == [
            PublishedId("a.b", "x2", one[1].position),
            PublishedId("a.c", "y2", other[1].position),
            PublishedId("a.b", "x3", one[2].position),
        ]
        assert len(await archive.published(TIME)) == 5


async def test_an_id_outlives_its_event(path: str) -> None:
    found = events(4)
    async with started(archive_at(path, keep_ids_s=100)) as archive:
        await archive.write([*kept(found[:2], TIME + 1), *kept(found[2:])])
        await archive.write([Purged("a.b", found[2].position)])
        assert await archive.sweep(TIME + 100_000, 100) == 0
        assert len(await archive.published(TIME)) == 4
        assert await archive.sweep(TIME + 100_030, 100) == 3
        assert [each.id for each in await archive.published(TIME)] == ["x4"]


async def test_a_record_lapses_some_time_after_its_events(path: str) -> None:
    day = 24 * 3_600 * 1_000
    async with started(archive_at(path, keep_ids_s=0, position_ttl_s=3_600)) as archive:
        names = [f"c.{number}" for number in range(5)]
        for name in names:
            (found,) = events(1, channel=name)
            await archive.write(kept([found], 0 if name == "c.3" else TIME + 1))
            await archive.write([Unarchived(name, EPOCH, 5, 6, TIME)])
        await archive.write([Purged("c.1", Position(EPOCH, 1, EPOCH))])
        while await archive.sweep(TIME + 3_600_000, 2):
            pass
        assert records(path) == names
        # Records are looked at a few at a time.
        for _ in range(4):
            assert await archive.sweep(TIME + day, 2) == 0
        assert records(path) == ["c.3"]
        assert ask(path, "SELECT * FROM floors") == []
        assert [name for (name, *_) in ask(path, "SELECT * FROM unarchived")] == ["c.3"]
