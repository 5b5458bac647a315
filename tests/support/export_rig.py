"""What the tests of `export` and `import` stand on: archives by address, filled and read."""

import asyncio
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pymongo
import pytest

from archive_rig import EPOCH, LATER_EPOCH, TIME, events, kept
from config.sources import load
from mongo_server import MISSING, mongo_is_missing, shared_mongo_url
from pubsub.archive import Archive, Entry, Query, Unarchived
from pubsub.archive_url import parse_archive_url
from pubsub.event import Event
from pubsub.position import start
from server.archiving import open_archive

NewUrl = Callable[[], str]
Held = dict[str, tuple[list[Event], list[Unarchived]]]

KINDS = [
    "sqlite",
    pytest.param("mongo", marks=pytest.mark.skipif(mongo_is_missing(), reason=MISSING)),
]


def _opened(url: str) -> Archive:
    archive = open_archive(load({}, {}, None).settings, url)
    assert archive is not None
    return archive


def fill(url: str, entries: Sequence[Entry]) -> None:
    """Write entries into the archive at an address."""

    async def run() -> None:
        archive = _opened(url)
        try:
            await archive.start()
            await archive.write(entries)
        finally:
            await archive.close()

    asyncio.run(run())


def held(url: str) -> Held:
    """All that the archive at an address has, by channel."""

    async def run() -> Held:
        archive = _opened(url)
        try:
            await archive.start()
            return {
                name: (
                    await archive.read(Query(channel=name, limit=100_000)),
                    await archive.unarchived(name),
                )
                for name in await archive.channels(limit=1_000)
            }
        finally:
            await archive.close()

    return asyncio.run(run())


def many() -> list[Entry]:
    """Entries of several channels: more than a page, two lives, two events at one place, a gap."""
    long = events(1_234, channel="long.one", data='{"x":"\u00e9"}'.encode(), tags={"a": "b"})
    again = events(3, channel="long.one", after=start(LATER_EPOCH, 1_300), time=TIME + 99_999)
    forked = events(3, channel="forked")
    other = events(1, channel="forked", after=forked[0].position, prefix="y", user="u\u00fc")
    gap = Unarchived("long.one", EPOCH, 1_235, 1_240, TIME + 12_400)
    few = events(2, channel="few", exclude="s1")
    return [*kept([*long, *again, *forked, *other, *few]), gap]


@pytest.fixture
def new_url(kind: str, tmp_path: Path) -> Iterator[NewUrl]:
    """Return addresses of new archives of one kind."""
    made: list[str] = []

    def make() -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / secrets.token_hex(4)}.db"
        base = shared_mongo_url()
        name = f"{parse_archive_url(base).database}_{secrets.token_hex(6)}"
        made.append(name)
        return base.rpartition("/")[0] + f"/{name}"

    yield make
    if made:
        with pymongo.MongoClient[dict[str, Any]](shared_mongo_url()) as client:
            for name in made:
                client.drop_database(name)
