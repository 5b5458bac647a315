"""The MongoDB archive: a server that dies, freezes or refuses, its indexes, and slow writers."""

import asyncio
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import pymongo
import pytest

from archive_rig import EPOCH, TIME, events, kept, started
from mongo_server import MISSING, MongoServer, mongo_is_missing, shared_mongo_url
from pubsub.archive import Purged, Query, Unarchived
from pubsub.archive_url import parse_archive_url
from pubsub.errors import ArchiveUnavailable
from pubsub.mongo_archive import MongoArchive
from redis_server import free_port

T = TypeVar("T")

pytestmark = pytest.mark.skipif(mongo_is_missing(), reason=MISSING)


@pytest.fixture
def server() -> Iterator[MongoServer]:
    """A server of the test's own, which it may kill; not the one that MONGO_URL names."""
    with MongoServer() as server:
        yield server


@pytest.fixture
def database() -> Iterator[Any]:
    """A database of the test's own, at the shared server."""
    url = shared_mongo_url()
    name = f"{parse_archive_url(url).database}_{secrets.token_hex(6)}"
    with pymongo.MongoClient[dict[str, Any]](url, tz_aware=True) as client:
        try:
            yield client[name]
        finally:
            client.drop_database(name)


def archive_at(database: Any, **options: Any) -> MongoArchive:
    return MongoArchive(shared_mongo_url(), database.name, clock_ms=lambda: TIME, **options)


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Return what a call returns, made as often as it takes."""
    while True:
        try:
            return await call()
        except ArchiveUnavailable:
            await asyncio.sleep(0.01)


# ---- a server that is away


@pytest.mark.timeout(seconds=60)
async def test_a_killed_server_is_unavailable_and_available_again(server: MongoServer) -> None:
    found = events(200)
    archive = MongoArchive(server.url, "galecast", call_timeout_s=6.0)
    try:
        await insist(archive.start)
        acknowledged = 0

        async def write() -> None:
            nonlocal acknowledged
            for begin in range(0, 200, 5):
                group = partial(archive.write, kept(found[begin : begin + 5]))
                # It is there up to then, if it is slow.
                await (insist(group) if acknowledged < 50 else group())
                acknowledged = begin + 5

        writing = asyncio.create_task(write())
        while acknowledged < 50:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asyncio.to_thread(server.kill)
        # It had written all of them if the kill was slow.
        await asyncio.gather(writing, return_exceptions=True)
        assert writing.exception() is None or isinstance(writing.exception(), ArchiveUnavailable)
        with pytest.raises(ArchiveUnavailable) as caught:
            await archive.read(Query(channel="a.b", limit=1))
        said = "".join(traceback.format_exception(caught.value))
        assert str(server.port) not in said
        await asyncio.to_thread(server.start)
        await insist(partial(archive.write, kept(found[190:])))
        everything = partial(archive.read, Query(channel="a.b", limit=1_000))
        assert (await insist(everything))[:acknowledged] == found[:acknowledged]
        await insist(partial(archive.write, kept(found)))
        assert await insist(everything) == found
    finally:
        await archive.close()


@pytest.mark.timeout(seconds=60)
async def test_a_frozen_server_is_given_up_in_time(server: MongoServer) -> None:
    archive = MongoArchive(server.url, "galecast", call_timeout_s=2.0)
    try:
        await insist(archive.start)
        await insist(partial(archive.write, kept(events(1))))
        server.stop()
        try:
            before = time.monotonic()
            calls = [archive.write(kept(events(3))) for _ in range(3)]
            reads = [archive.read(Query(channel="a.b", limit=1)) for _ in range(20)]
            answers = await asyncio.gather(*calls, *reads, return_exceptions=True)
            assert {type(answer) for answer in answers} == {ArchiveUnavailable}
            # Not one after another.
            assert time.monotonic() - before < 20
        finally:
            server.go_on()
        await insist(partial(archive.write, kept(events(4))))
        assert len(await insist(partial(archive.read, Query(channel="a.b", limit=10)))) == 4
    finally:
        await archive.close()


@pytest.mark.timeout(seconds=60)
async def test_a_start_may_come_before_the_server(server: MongoServer) -> None:
    await asyncio.to_thread(server.kill)
    archive = MongoArchive(server.url, "galecast", call_timeout_s=1.0)
    try:
        with pytest.raises(ArchiveUnavailable):
            await archive.start()
        with pytest.raises(ArchiveUnavailable, match="not open"):
            await archive.write(kept(events(1)))
        await asyncio.to_thread(server.start)
        await insist(archive.start)
        await insist(partial(archive.write, kept(events(1))))
    finally:
        await archive.close()


@pytest.mark.parametrize("options", ["", "?tlsInsecure=true&tlsAllowInvalidCertificates=true"])
async def test_no_error_tells_the_address(options: str) -> None:
    port = free_port()
    url = f"mongodb://user:s3cret@127.0.0.1:{port}/galecast{options}"
    archive = MongoArchive(url, "galecast", call_timeout_s=0.3)
    try:
        with pytest.raises(ArchiveUnavailable, match=r"MongoDB: \w+|in time") as caught:
            await archive.start()
        said = "".join(traceback.format_exception(caught.value))
        assert "s3cret" not in said
        assert str(port) not in said
    finally:
        await archive.close()


# ---- what it makes and what it refuses


async def test_indexes_are_made_at_start(database: Any) -> None:
    for _ in range(2):
        async with started(archive_at(database)):
            pass
    indexes = {tuple(each["key"].items()): each for each in database["events"].list_indexes()}
    assert (("channel", 1), ("offset", 1), ("time", 1)) in indexes
    assert (("channel", 1), ("time", 1), ("offset", 1)) in indexes
    # Events leave by themselves where the server can do that, and by `sweep` anywhere.
    assert indexes[(("expires", 1),)].get("expireAfterSeconds", 0) == 0


async def test_an_index_of_before_is_no_hindrance(database: Any) -> None:
    database["events"].create_index("expires")
    async with started(archive_at(database)) as archive:
        await archive.write(kept(events(1)))


async def test_what_people_look_for_stands_in_the_document(database: Any) -> None:
    async with started(archive_at(database)) as archive:
        (found,) = events(1)
        await archive.write(kept([found], TIME + 1))
    (document,) = database["events"].find()
    assert document.pop("body")
    assert document.pop("expires").timestamp() * 1000 == TIME + 1
    position = found.position
    assert document == {
        "_id": f"a.b:{position}",
        "channel": "a.b",
        "epoch": EPOCH,
        "offset": 1,
        "check": position.check,
        "time": found.time,
        "id": "x1",
        "name": "message",
    }


class Refusing:
    """Stands in for a collection, since no server refuses a document on demand."""

    def __init__(self, *codes: int, concern: bool = False) -> None:
        self._details = {
            "writeErrors": [{"code": code, "errmsg": "secret"} for code in codes],
            "writeConcernErrors": [{"code": 64, "errmsg": "secret"}] if concern else [],
        }

    async def insert_many(self, documents: list[Any], ordered: bool) -> None:
        assert not ordered
        raise pymongo.errors.BulkWriteError(self._details)


@pytest.mark.parametrize(
    ("collection", "kind"),
    [
        (Refusing(11_000, 11_000), None),
        (Refusing(11_000, 121), "BulkWriteError"),
        # Written, but not by a majority yet.
        (Refusing(11_000, concern=True), "BulkWriteError"),
        (Refusing(concern=True), "BulkWriteError"),
    ],
)
async def test_only_a_duplicate_is_taken_as_done(
    database: Any, monkeypatch: pytest.MonkeyPatch, collection: Refusing, kind: str | None
) -> None:
    async with started(archive_at(database)) as archive:
        monkeypatch.setattr(archive, "_events", collection)
        if kind is None:
            await archive.write(kept(events(2)))
        else:
            with pytest.raises(ArchiveUnavailable, match=f"^MongoDB: {kind}"):
                await archive.write(kept(events(2)))


# ---- purging beside slow writers


async def test_a_purge_leaves_the_key_alone(database: Any) -> None:
    async with started(archive_at(database, keep_purged_s=60.0)) as archive:
        (found,) = events(1)
        await archive.write([*kept([found]), Purged("a.b", found.position)])
        (document,) = database["events"].find()
        assert document.pop("_id") == f"a.b:{found.position}"
        assert document.pop("expires").timestamp() * 1000 == TIME + 60_000
        assert document == {}
        assert await archive.sweep(TIME + 60_000, 10) == 1


async def test_a_writer_that_looked_before_the_purge_brings_nothing_back(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer read the floors, stalled, and wrote after another had purged."""
    async with started(archive_at(database)) as archive, started(archive_at(database)) as slow:
        found = events(5)
        purged = Purged("a.b", found[3].position)
        looked, go_on = asyncio.Event(), asyncio.Event()
        read_floors = slow._read_floors

        async def stall(channels: Any) -> Any:
            floors = await read_floors(channels)
            looked.set()
            await go_on.wait()
            return floors

        monkeypatch.setattr(slow, "_read_floors", stall)
        writing = asyncio.create_task(slow.write(kept(found)))
        await looked.wait()
        await archive.write([*kept(found), purged])
        go_on.set()
        await writing
        assert await archive.read(Query(channel="a.b", limit=10)) == found[4:]


async def test_a_purge_that_was_broken_off_is_done_again(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(archive_at(database)) as archive:
        found = events(4)
        purged = Purged("a.b", found[2].position)
        missing = Unarchived("a.b", EPOCH, 1, 2, TIME)
        await archive.write([*kept(found), missing])
        with monkeypatch.context() as patched:

            async def fail(*_: Any) -> None:
                raise pymongo.errors.AutoReconnect("cut")

            patched.setattr(archive, "_blank", fail)
            with pytest.raises(ArchiveUnavailable, match="AutoReconnect"):
                await archive.write([purged])
        assert len(await archive.read(Query(channel="a.b", limit=10))) == 4
        await archive.write([purged])
        assert await archive.read(Query(channel="a.b", limit=10)) == found[3:]
        assert await archive.unarchived("a.b") == []
