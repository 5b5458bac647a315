"""How a subscription begins in the past: at a time, or after a position of any age."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from config.rules import ChannelRule
from delivery_rig import CHANNEL, Client, DeliveryRig, open_delivery_rig, until
from pubsub.event import Draft
from pubsub.position import Position

ARCHIVED = ChannelRule(match=">", archive=True, history_size=5)


class Wall:
    """A clock for events, in s; one ms goes by with each look."""

    def __init__(self, s: float = 1_000.0) -> None:
        self.s = s

    def __call__(self) -> float:
        self.s += 0.001
        return self.s


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "archive.db")


async def begun(rig: DeliveryRig, **fields: Any) -> tuple[Client, dict[str, Any]]:
    """Subscribe, and wait until all of the past has been sent."""
    client = rig.session()
    reply = await client.subscribe(**fields)
    await until(lambda: client.attached)
    return client, reply


async def goes_on(rig: DeliveryRig, client: Client) -> None:
    """Check that what is published now comes next, once."""
    before = client.ids()
    await rig.publish("live")
    await until(lambda: client.ids() != before)
    assert client.ids() == [*before, "live"]


async def test_all_of_the_archive_then_what_is_recent_then_live(path: str) -> None:
    async with open_delivery_rig(ARCHIVED, archive_path=path) as rig:
        names = await rig.publish_many(512)
        client, reply = await begun(rig, **{"from": 0})
        assert reply["recovered"] is True
        assert str(reply["position"]).split("-")[1] == "0"
        assert client.ids() == names
        await goes_on(rig, client)


async def test_a_position_of_any_age_is_continued(path: str) -> None:
    async with open_delivery_rig(ARCHIVED, archive_path=path) as rig:
        (first,) = await rig.publish("first")
        names = await rig.publish_many(300)
        client, reply = await begun(rig, since=str(first))
        assert (reply["recovered"], reply["position"]) == (True, str(first))
        assert client.ids() == names
        await goes_on(rig, client)


async def test_a_restart_changes_nothing(path: str) -> None:
    async with open_delivery_rig(ARCHIVED, archive_path=path) as rig:
        (first,) = await rig.publish("first")
        names = await rig.publish_many(20)
        empty = await rig.broker.subscribe("a.empty")
    async with open_delivery_rig(ARCHIVED, archive_path=path) as rig:
        (again,) = await rig.broker.publish([Draft(CHANNEL, names[-1], "message", b"1")])
        assert getattr(again, "duplicate", None) is True
        client, reply = await begun(rig, since=str(first))
        assert reply["recovered"] is True
        assert client.ids() == names
        await goes_on(rig, client)
        # Offset 0 is a position too.
        other = rig.session()
        reply = await other.subscribe("a.empty", since=str(empty))
        assert (reply["recovered"], reply["position"]) == (True, str(empty))


async def test_a_time_is_where_the_first_event_of_it_or_later_is(path: str) -> None:
    for archive_path in (path, ""):
        wall = Wall()
        rule = ChannelRule(match=">", archive=bool(archive_path), history_size=50)
        async with open_delivery_rig(rule, archive_path=archive_path, now=wall) as rig:
            early = await rig.publish_many(10)
            wall.s = 2_000.0
            late = await rig.publish_many(10)
            client, reply = await begun(rig, **{"from": 1_500_000})
            assert (client.ids(), reply["recovered"]) == (late, True)
            client, reply = await begun(rig, **{"from": 2_000_001})
            assert (client.ids(), reply["recovered"]) == (late, True)
            client, reply = await begun(rig, **{"from": 2_000_002})
            assert (client.ids(), reply["recovered"]) == (late[1:], True)
            client, reply = await begun(rig, **{"from": 0})
            assert (client.ids(), reply["recovered"]) == ([*early, *late], True)
            client, reply = await begun(rig, **{"from": 9_000_000})
            assert (client.ids(), reply["recovered"]) == ([], True)
            await goes_on(rig, client)


async def test_what_is_kept_no_more_is_told() -> None:
    """Without an archive the past begins where history does."""
    wall = Wall()
    rule = ChannelRule(match=">", history_size=5)
    async with open_delivery_rig(rule, now=wall) as rig:
        names = await rig.publish_many(20)
        client, reply = await begun(rig, **{"from": 0})
        assert (client.ids(), reply["recovered"]) == (names[-5:], False)
        await goes_on(rig, client)


async def test_what_was_purged_is_not_missing(path: str) -> None:
    async with open_delivery_rig(ARCHIVED, archive_path=path) as rig:
        await rig.publish_many(20)
        await rig.broker.purge(CHANNEL)
        client, reply = await begun(rig, **{"from": 0})
        assert (client.ids(), reply["recovered"]) == ([], True)
        names = await rig.publish_many(20)
        client, reply = await begun(rig, **{"from": 0})
        assert (client.ids(), reply["recovered"]) == (names, True)


async def test_the_way_leads_through_earlier_epochs_and_says_so(path: str) -> None:
    async with open_delivery_rig(ARCHIVED, archive_path=path) as rig:
        epochs: list[list[str]] = []
        for number in range(3):
            epochs.append(await rig.publish_many(130))
            if number < 2:
                top = await rig.broker.top(CHANNEL)
                assert top is not None
                await rig.broker.contradict(CHANNEL, Position(top.epoch, top.offset, "f" * 16))
        client, _reply = await begun(rig, **{"from": 0})
        assert client.ids() == [name for names in epochs for name in names]
        told = [m for m in client.connection.messages() if m["type"] in ("event", "reset")]
        resets = [place for place, message in enumerate(told) if message["type"] == "reset"]
        assert resets == [130, 261]
        await goes_on(rig, client)


async def test_what_is_missing_for_good_is_told_and_passed_over(path: str) -> None:
    async with open_delivery_rig(ARCHIVED, archive_path=path) as rig:
        names = await rig.publish_many(300)
        with sqlite3.connect(path) as database:
            database.execute("DELETE FROM events WHERE offset BETWEEN 101 AND 150")
        database.close()
        client, _reply = await begun(rig, **{"from": 0})
        assert client.ids() == names[:100] + names[150:]
        (reset,) = client.connection.of("reset")
        assert reset["position"].split("-")[1] == "150"
        await goes_on(rig, client)


async def test_a_client_that_reads_slowly_gets_it_slowly(path: str) -> None:
    async with open_delivery_rig(ARCHIVED, archive_path=path) as rig:
        drafts = [
            Draft(CHANNEL, f"e{n}", "message", b'"%s"' % (b"x" * 1_000)) for n in range(2_000)
        ]
        await rig.broker.publish(drafts)
        client = rig.session()
        client.connection.stalled = True
        begin: dict[str, Any] = {"from": 0}
        await client.subscribe(CHANNEL, **begin)
        await until(lambda: not client.connection.clear())
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(client.ids()) < 200
        async with asyncio.timeout(20):
            while not client.attached:
                client.connection.read()
                await asyncio.sleep(0.001)
        # A piece or two beyond what the connection takes.
        assert client.connection.most_unsent < 200_000
        assert client.ids() == [draft.id for draft in drafts]


async def test_both_ways_of_beginning_exclude_each_other() -> None:
    async with open_delivery_rig() as rig:
        client = rig.session()
        reply = await client.ask("subscribe", channel=CHANNEL, rewind=1, **{"from": 0})
        assert (reply["type"], reply["code"]) == ("error", "bad_request")
        for wrong in (-1, 1.5, "yesterday", 2**53):
            reply = await client.ask("subscribe", channel=CHANNEL, **{"from": wrong})
            assert (reply["type"], reply["code"]) == ("error", "bad_request")
