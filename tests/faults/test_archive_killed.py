"""Nodes, Redis and the archive's database die in turn under load: the archive has everything."""

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress

import pytest

from fleet import Fleet, await_true
from fleet_clients import KINDS, following, until
from fleet_publishers import Publisher, acknowledged, all_came, in_order, publishing
from mongo_server import MISSING, MongoServer, mongo_is_missing
from pubsub.archive import Archive, Query
from pubsub.archive_url import parse_archive_url
from pubsub.chain import gaps
from pubsub.errors import ArchiveUnavailable
from pubsub.event import Event
from pubsub.mongo_archive import MongoArchive

CHANNELS = ("orders.eu", "orders.us", "stock.7")
RULE = """
[[channels]]
match = ">"
history_size = 20000
archive = true
"""
_ROWS = re.compile(r"^galecast_archive_backlog ([0-9.]+)", re.M)


async def more(publishers: Sequence[Publisher], number: int = 10) -> None:
    """Wait until each publisher has had some more publishes acknowledged."""
    before = [len(each.acknowledged) for each in publishers]
    await until(
        lambda: all(
            len(each.acknowledged) >= was + number
            for each, was in zip(publishers, before, strict=True)
        )
    )


async def every_event(archive: Archive, channel: str) -> list[Event]:
    """Read all of a channel, page by page."""
    found: list[Event] = []
    while True:
        after = found[-1].position.offset if found else 0
        page = await archive.read(Query(channel=channel, after=after, limit=1_000))
        if not page:
            return found
        found += page


async def assert_complete(archive: Archive, publishers: Sequence[Publisher]) -> None:
    """Check that the archive has all that was acknowledged, in order, once, and nothing else."""
    for channel in CHANNELS:
        expected = acknowledged(publishers, channel)

        events: list[Event] = []
        async with asyncio.timeout(60):
            while not expected.keys() <= {event.id for event in events}:
                with suppress(ArchiveUnavailable):
                    events = await every_event(archive, channel)
                await asyncio.sleep(0.2)
        assert list(gaps(events)) == []
        assert {event.id: event.position for event in events} == expected
        assert len(events) == len(expected)
        in_order(publishers, channel, [event.id for event in events])


@pytest.mark.skipif(mongo_is_missing(), reason=MISSING)
@pytest.mark.timeout(seconds=170)
async def test_the_archive_is_what_was_acknowledged() -> None:
    with MongoServer() as database:
        target = parse_archive_url(database.url)
        fleet = Fleet(archive_url=database.url, rule=RULE)
        archive = MongoArchive(target.url, target.database)
        try:
            await asyncio.to_thread(fleet.__enter__)
            await archive.start()
            url, tls = fleet.nginx.url, fleet.nginx.tls()
            async with following(url, tls, CHANNELS, KINDS) as followers:
                async with publishing(
                    url, tls, CHANNELS, 6, hows=["key", "id"], patient=True, pause_s=0.05
                ) as publishers:
                    await more(publishers)
                    # A node dies, and what it had taken from the queue is taken again.
                    node = fleet.nodes[0]
                    await asyncio.to_thread(node.kill)
                    await more(publishers)
                    await asyncio.to_thread(node.start)
                    # The database dies: nobody notices, and it is caught up with.
                    await asyncio.to_thread(database.kill)
                    failed = sum(len(each.failures) for each in publishers)
                    await more(publishers, 20)
                    assert sum(len(each.failures) for each in publishers) == failed
                    ready = [one.readiness()[0] for one in fleet.nodes]
                    assert ready == [200, 200, 200]
                    await asyncio.to_thread(
                        await_true, lambda: backlog(fleet) > 0, lambda: "no backlog shows"
                    )
                    await asyncio.to_thread(database.start)
                    # Redis dies, with all that waits for the archive.
                    await asyncio.to_thread(fleet.redis.kill)
                    await until(lambda: all(each.failures for each in publishers))
                    await asyncio.to_thread(fleet.redis.start)
                    await more(publishers)
                await all_came(followers, publishers)
                await assert_complete(archive, publishers)
                await asyncio.to_thread(
                    await_true, lambda: backlog(fleet) == 0, lambda: "the backlog stays"
                )
        finally:
            await archive.close()
            await asyncio.to_thread(fleet.close)


def backlog(fleet: Fleet) -> float:
    """Return how much waits for the archive, as all nodes say together."""
    found = [_ROWS.search(node.ask_admin("/metrics")[1]) for node in fleet.nodes]
    return sum(float(each[1]) for each in found if each)
