"""The archive that the settings name, and how it is cleaned."""

import asyncio
from pathlib import Path

import pytest

from archive_rig import events, started
from config.settings import Settings
from config.storage import ArchiveSettings
from pubsub.archive import Kept, Query
from pubsub.errors import ArchiveUnavailable
from pubsub.mongo_archive import MongoArchive
from pubsub.sqlite_archive import SqliteArchive
from server import archiving
from server.archiving import Retention, open_archive


class Sleeps:
    """Time that passes when it is asked to; the first sleeps take no time."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.durations: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.durations.append(seconds)
        self.left -= 1
        if self.left < 0:
            await asyncio.Event().wait()


def settings(url: str) -> Settings:
    return Settings(archive=ArchiveSettings(url=url))


def test_the_address_says_which_archive_it_is() -> None:
    assert open_archive(settings("none")) is None
    assert isinstance(open_archive(settings("sqlite:///archive.db")), SqliteArchive)
    assert isinstance(open_archive(settings("mongodb://127.0.0.1/galecast")), MongoArchive)
    other = open_archive(settings("none"), "sqlite:///other.db")
    assert isinstance(other, SqliteArchive)


async def test_what_has_expired_goes_in_small_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiving, "_SWEEP", 10)
    archive = SqliteArchive(str(tmp_path / "archive.db"), keep_ids_s=0)
    async with started(archive):
        kept = [Kept(event, 1 if event.position.offset <= 35 else 0) for event in events(50)]
        await archive.write(kept)
        sleeps = Sleeps(4)
        retention = Retention(archive, sleeps)
        retention.start()
        while sleeps.left >= 0:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert retention.swept == 35
        left = await archive.read(Query(channel="a.b", limit=100))
        assert [event.position.offset for event in left] == list(range(36, 51))
        # A long pause, then short ones while there is more.
        first, *others = sleeps.durations
        assert first > 10 and all(each < 1 for each in others[:3])
        await retention.close()
        await retention.close()


async def test_an_archive_that_is_away_is_swept_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    archive = SqliteArchive(str(tmp_path / "archive.db"), keep_ids_s=0)
    asked: list[int] = []

    async def sweep(now_ms: int, limit: int) -> int:
        asked.append(limit)
        if len(asked) == 1:
            raise ArchiveUnavailable("it is away")
        return 0

    monkeypatch.setattr(archive, "sweep", sweep)
    retention = Retention(archive, Sleeps(2))
    retention.start()
    while len(asked) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert retention.swept == 0
    await retention.close()
