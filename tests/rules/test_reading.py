"""Rule 28: what is read across archive and history is one contiguous chain, over a real Redis."""

import asyncio
from pathlib import Path

import pytest

from broker_rig import Clock, drafts, ids
from pubsub.archive import Kept
from pubsub.chain import begins_epoch, gaps
from pubsub.errors import ArchiveBehind
from pubsub.event import Event
from pubsub.position import Position, chain
from pubsub.redis_keys import RedisKeys
from reading_rig import ReadingNode, open_reading_node
from redis_rig import until
from redis_server import RedisServer


def names(first: int, last: int, prefix: str = "x") -> list[str]:
    return [f"{prefix}{number}" for number in range(first, last + 1)]


async def fork(node: ReadingNode) -> Position:
    """Let the channel begin a new epoch, as a fail-over does."""
    top = await node.broker.top("a.b")
    assert top is not None
    return await node.broker.contradict("a.b", Position(top.epoch, top.offset, "f" * 16))


async def test_rule_28_archive_and_history_are_read_as_one_chain(
    server: RedisServer, keys: RedisKeys, tmp_path: Path
) -> None:
    async with open_reading_node(server, tmp_path, keys=keys) as node:
        answers = await node.publish(*drafts("x", 20))
        shown = await node.broker.history("a.b", limit=100)
        assert shown is not None
        assert ids(shown.events) == names(17, 20)
        await node.flushed()
        for size in (1, 3, 4, 5, 100):
            for found in (await node.forwards(size), await node.backwards(size)):
                assert [event.position for event in found] == [each.position for each in answers]
                assert list(gaps(found)) == []
        assert node.waits == 0


async def test_rule_28_what_is_on_its_way_is_awaited(
    server: RedisServer, keys: RedisKeys, tmp_path: Path
) -> None:
    async with open_reading_node(server, tmp_path, keys=keys, archiving=False) as node:
        await node.publish(*drafts("x", 10))
        reading = [
            asyncio.create_task(node.history()),
            asyncio.create_task(node.history(newest=True)),
        ]
        await until(lambda: node.waits > 4 or reading[0].done())
        await node.archivist.start()
        for history in await asyncio.gather(*reading):
            assert ids(history.events) == names(1, 10)


async def test_rule_28_what_does_not_come_in_time_is_answered_with_retry(
    server: RedisServer, keys: RedisKeys, tmp_path: Path
) -> None:
    async with open_reading_node(server, tmp_path, keys=keys, archiving=False, wait_s=0.1) as node:
        start = (await node.publish(*drafts("x", 10)))[0].position.offset - 1
        for bounds in ({}, {"newest": True}, {"after": start + 3, "before": start + 6}):
            with pytest.raises(ArchiveBehind):
                await node.history(**bounds)
        # Whoever was away for a moment does not depend on the archive.
        assert ids((await node.history(after=start + 6)).events) == names(7, 10)


async def test_rule_28_the_end_of_an_epoch_is_not_skipped(
    server: RedisServer, keys: RedisKeys, tmp_path: Path
) -> None:
    async with open_reading_node(server, tmp_path, keys=keys, archiving=False) as node:
        await node.publish(*drafts("x", 7))
        found = await node.queue.collect(node.queue.partition("a.b"))
        await node.archive.write(found.entries[:5])
        await fork(node)
        # All of these are shown, and the first one follows whatever was before.
        await node.publish(*drafts("y", 4))
        reading = asyncio.create_task(node.history())
        await until(lambda: node.waits > 0 or reading.done())
        await node.archivist.start()
        assert ids((await reading).events) == names(1, 7) + names(1, 4, "y")


async def test_rule_28_a_gap_that_is_for_good_shows(
    server: RedisServer, keys: RedisKeys, tmp_path: Path
) -> None:
    async with open_reading_node(
        server, tmp_path, keys=keys, archiving=False, archive_queue_max=3
    ) as node:
        await node.publish(*drafts("x", 10))
        await node.archivist.start()
        await node.flushed()
        history = await node.history()
        assert ids(history.events) == names(1, 3) + names(7, 10)
        (gap,) = gaps(history.events)
        assert gap.before.offset - gap.after.offset == 3
        assert node.waits == 0


async def test_rule_28_what_a_fail_over_took_back_fills_no_page(
    server: RedisServer, keys: RedisKeys, tmp_path: Path
) -> None:
    async with open_reading_node(server, tmp_path, keys=keys) as node:
        answers = await node.publish(*drafts("x", 12))
        await node.flushed()
        before = answers[2].position
        dead = []
        for number in range(6):
            event_id = f"dead{number}"
            at = Position(before.epoch, before.offset + 1, chain(before.check, event_id))
            dead.append(Event("a.b", at, before.check, event_id, "message", b"1", 1))
            before = at
        await node.archive.write([Kept(event) for event in dead])
        for size in range(1, 14):
            assert ids(await node.forwards(size)) == names(1, 12)
            assert ids(await node.backwards(size)) == names(1, 12)


async def test_rule_28_two_lives_of_a_channel_are_read_in_their_order(
    server: RedisServer, keys: RedisKeys, tmp_path: Path, clock: Clock
) -> None:
    """Redis had forgotten the channel, and it began at 0 again, among what the archive held."""
    async with open_reading_node(
        server, tmp_path, keys=keys, clock_ms=lambda: round(clock.wall_s * 1000)
    ) as node:
        await node.publish(*drafts("x", 10))
        await node.flushed()
        clock.advance(1_000_000)
        # Its time to live is in real time.
        server.ask("DEL", keys.stream("a.b"))
        await node.publish(*drafts("y", 6))
        await node.flushed()
        whole = names(1, 10) + names(1, 6, "y")
        for size in (1, 3, 10, 11, 100):
            for found in (await node.forwards(size), await node.backwards(size)):
                assert ids(found) == whole
                assert list(gaps(found)) == []
                assert [event.id for event in found if begins_epoch(event)] == ["x1", "y1"]
        history = await node.history()
        assert history.top == history.events[-1].position
