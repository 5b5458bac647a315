"""Rule 29: a node alone, whose archived events survive it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker_rig import Notes, accepted, draft, drafts, ids
from config.rules import ChannelRule, ChannelRules
from pubsub.archive import Entry, Query
from pubsub.durable_broker import DurableBroker
from pubsub.errors import ArchiveUnavailable
from pubsub.event import Event
from pubsub.ledger import LedgerRecord
from pubsub.position import Position
from pubsub.sqlite_archive import SqliteArchive

RULES = ChannelRules((ChannelRule(match="plain.>"), ChannelRule(match=">", archive=True)))


class Steps(Notes):
    """Notes in which order an event is committed, handed out and acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []

    def on_events(self, channel: str, events: Sequence[Event]) -> None:
        super().on_events(channel, events)
        self.steps.append("handed out")


class Ledger(SqliteArchive):
    """A real one that notes its commits, and may fail once one was done."""

    def __init__(self, path: str, steps: list[str]) -> None:
        super().__init__(path)
        self.steps = steps
        self.fails = ""

    async def write(self, entries: Sequence[Entry]) -> None:
        await self._do(super().write(entries))
        self.steps.append("committed")

    async def begin(self, record: LedgerRecord) -> None:
        await self._do(super().begin(record))

    async def _do(self, work: Coroutine[Any, Any, None]) -> None:
        if self.fails == "before":
            work.close()
            raise ArchiveUnavailable("told to fail")
        await work
        if self.fails == "after":
            raise ArchiveUnavailable("told to fail, though it was done")


class Node:
    def __init__(self, path: Path, wall_s: float) -> None:
        self.notes = Steps()
        self.ledger = Ledger(str(path / "archive.db"), self.notes.steps)
        self.broker = DurableBroker(
            RULES, self.ledger, idempotency_window_s=60.0, now=lambda: wall_s
        )
        self.broker.bind(self.notes)


@asynccontextmanager
async def life(path: Path, wall_s: float = 1_000.0) -> AsyncIterator[Node]:
    """One life of the node, from start to end."""
    node = Node(path, wall_s)
    try:
        await node.broker.start()
        yield node
    finally:
        await node.broker.close()


async def test_rule_29_an_event_is_committed_then_handed_out_then_acknowledged(
    tmp_path: Path,
) -> None:
    async with life(tmp_path) as node:
        await node.broker.subscribe("a.b")
        asked = asyncio.ensure_future(node.broker.publish([draft("x")]))
        asked.add_done_callback(lambda _done: node.notes.steps.append("acknowledged"))
        await asked
        await asyncio.sleep(0)
        assert node.notes.steps == ["committed", "handed out", "acknowledged"]
        assert ids(await node.ledger.read(Query(channel="a.b", limit=10))) == ["x"]


async def test_rule_29_what_is_not_committed_is_neither_handed_out_nor_acknowledged(
    tmp_path: Path,
) -> None:
    async with life(tmp_path) as node:
        top = await node.broker.subscribe("a.b")
        node.ledger.fails = "before"
        with pytest.raises(ArchiveUnavailable):
            await node.broker.publish([draft("x")])
        assert node.notes.steps == []
        assert await node.broker.top("a.b") == top


async def test_rule_29_a_commit_that_was_done_though_it_failed_keeps_its_position(
    tmp_path: Path,
) -> None:
    """Else the next event would get a position that another one has on the disk."""
    async with life(tmp_path) as node:
        await node.broker.subscribe("a.b")
        node.ledger.fails = "after"
        with pytest.raises(ArchiveUnavailable):
            await node.broker.publish([draft("x")])
        node.ledger.fails = ""
        answers = await node.broker.publish([draft("y"), draft("x")])
        assert [accepted(each).position.offset for each in answers] == [2, 1]
        assert [accepted(each).duplicate for each in answers] == [False, True]
        assert ids(node.notes.events("a.b")) == ["x", "y"]


async def test_rule_29_a_restart_reloads_positions(tmp_path: Path) -> None:
    async with life(tmp_path) as node:
        last = [accepted(each) for each in await node.broker.publish(drafts("x", 3))][-1]
        empty = await node.broker.subscribe("a.empty")
    async with life(tmp_path) as node:
        assert await node.broker.top("a.b") == last.position
        assert await node.broker.subscribe("a.empty") == empty
        (event,) = await node.broker.publish([draft("later")])
        assert accepted(event).position.epoch == last.position.epoch
        assert accepted(event).position.offset == 4


@pytest.mark.parametrize("fails", ["before", "after"])
async def test_rule_29_no_position_is_handed_out_that_is_not_on_the_disk(
    tmp_path: Path, fails: str
) -> None:
    """What could not be written stayed in memory. The next subscriber was given it as a position,
    which nobody knew after a restart."""
    async with life(tmp_path) as node:
        node.ledger.fails = "before"
        for _ in range(2):
            with pytest.raises(ArchiveUnavailable):
                await node.broker.subscribe("a.b")
        node.ledger.fails = fails
        with pytest.raises(ArchiveUnavailable):
            await node.broker.publish([draft("x")])
        node.ledger.fails = ""
        assert ids(await node.ledger.read(Query(channel="a.b", limit=10))) == []
        top = await node.broker.subscribe("a.b")
        assert top.offset == 0
    async with life(tmp_path) as node:
        assert await node.broker.subscribe("a.b") == top


@pytest.mark.parametrize("fails", ["before", "after"])
async def test_rule_29_a_new_epoch_is_told_only_when_it_is_on_the_disk(
    tmp_path: Path, fails: str
) -> None:
    """One that could not be written was told and went on in memory; a restart went back to the one
    before it."""
    async with life(tmp_path) as node:
        await node.broker.subscribe("a.b")
        before = accepted((await node.broker.publish([draft("x")]))[0]).position
        evidence = Position(before.epoch, 5, "f" * 16)
        node.ledger.fails = fails
        with pytest.raises(ArchiveUnavailable):
            await node.broker.contradict("a.b", evidence)
        assert await node.broker.top("a.b") == before
        assert node.notes.kinds("a.b") == ["events"]
        node.ledger.fails = ""
        top = await node.broker.contradict("a.b", evidence)
        assert top.epoch != before.epoch
        assert top.offset == 5
        assert node.notes.calls[1:] == [("fork", "a.b", top)]
    async with life(tmp_path) as node:
        assert await node.broker.top("a.b") == top


async def test_rule_29_a_new_epoch_that_was_written_though_that_failed_is_told_later(
    tmp_path: Path,
) -> None:
    """Events that went on in the one before it had no place in the ledger."""
    async with life(tmp_path) as node:
        await node.broker.subscribe("a.b")
        before = accepted((await node.broker.publish([draft("x")]))[0]).position
        node.ledger.fails = "after"
        with pytest.raises(ArchiveUnavailable):
            await node.broker.contradict("a.b", Position(before.epoch, 5, "f" * 16))
        node.ledger.fails = ""
        written = await node.ledger.top("a.b")
        assert written is not None and written.top.epoch != before.epoch
        top = accepted((await node.broker.publish([draft("y")]))[0]).position
        assert (top.epoch, top.offset) == (written.top.epoch, 6)
        assert node.notes.kinds("a.b") == ["events", "fork", "events"]
    async with life(tmp_path) as node:
        assert await node.broker.top("a.b") == top


async def test_rule_29_a_restart_reloads_floors_and_new_epochs(tmp_path: Path) -> None:
    async with life(tmp_path) as node:
        (first, *_rest) = await node.broker.publish(drafts("x", 2))
        await node.broker.purge("a.b")
        epoch = accepted(first).position.epoch
        top = await node.broker.contradict("a.b", Position(epoch, 2, "f" * 16))
        assert top.epoch != epoch
    async with life(tmp_path) as node:
        found = await node.broker.history("a.b", limit=10)
        assert found is not None
        assert (found.top, found.floor) == (top, 2)


async def test_rule_29_a_restart_reloads_the_ids_of_the_window_and_no_others(
    tmp_path: Path,
) -> None:
    async with life(tmp_path, wall_s=1_000.0) as node:
        await node.broker.publish([draft("old")])
    async with life(tmp_path, wall_s=2_000.0) as node:
        (first,) = await node.broker.publish([draft("x")])
    # As long as an id may be remembered: twice the window.
    async with life(tmp_path, wall_s=2_119.0) as node:
        (again, old) = await node.broker.publish([draft("x"), draft("old")])
        assert accepted(again).duplicate
        assert accepted(again).position == accepted(first).position
        assert not accepted(old).duplicate


async def test_rule_29_other_channels_begin_a_new_epoch(tmp_path: Path) -> None:
    async with life(tmp_path) as node:
        (before,) = await node.broker.publish([draft("p", "plain.a")])
    async with life(tmp_path) as node:
        assert await node.broker.top("plain.a") is None
        (after,) = await node.broker.publish([draft("p", "plain.a")])
        assert not accepted(after).duplicate
        assert accepted(after).position.epoch != accepted(before).position.epoch
