"""What any archive must do: the sentences of `Archive`."""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archive_rig import (
    ARCHIVE_PARAMS,
    EPOCH,
    LATER_EPOCH,
    TIME,
    OpenArchive,
    events,
    kept,
)
from pubsub.archive import Archive, Entry, Kept, Purged, Query, Unarchived
from pubsub.envelope import MOST_OFFSET
from pubsub.event import Event
from pubsub.position import Position, start


@pytest.fixture(params=ARCHIVE_PARAMS)
def open_archive(request: pytest.FixtureRequest) -> OpenArchive:
    rig: OpenArchive = request.param
    return rig


# ---- writing


async def test_what_was_written_is_read(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        found = events(3)
        await rig.archive.write(kept(found))
        assert await rig.archive.read(Query(channel="a.b", limit=10)) == found


async def test_nothing_is_written_by_nothing(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        await rig.archive.write([])
        assert await rig.archive.channels(limit=10) == []
        assert await rig.offsets() == []


async def test_all_of_an_event_comes_back(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        user = "użytkownik"
        tags = {"région": "Île-de-France \U0001f600", "empty": "", "$set": "a.b"}
        data = '"\u2028\\u0000 \U0001f600 é"'.encode()
        found = [
            *events(1, name="order.paid", data=data, tags=tags, user=user, exclude="session-1"),
            *events(1, channel="a.c", data=b'"' + b"x" * 2_000_000 + b'"'),
            *events(1, channel="a.d", data=b"0", tags={}, user="", exclude=None),
        ]
        await rig.archive.write(kept(found))
        for event in found:
            assert await rig.archive.read(Query(channel=event.channel, limit=10)) == [event]


async def test_offsets_are_exact_up_to_the_highest(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        found = events(3, after=start(EPOCH, MOST_OFFSET - 3), time=TIME)
        await rig.archive.write(kept(found))
        top = MOST_OFFSET
        assert await rig.offsets() == [top - 2, top - 1, top]
        assert await rig.offsets(after=top - 2, before=top) == [top - 1]


async def test_writing_again_changes_nothing(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        found = events(5)
        await rig.archive.write(kept(found))
        await rig.archive.write(kept(found[3:], expires=TIME))
        await rig.archive.write([*kept(found[:2]), *kept(found)])
        # Also not when it would expire.
        await rig.archive.sweep(TIME + 10_000, 100)
        assert await rig.archive.read(Query(channel="a.b", limit=10)) == found


async def test_an_event_that_was_written_stays_as_it_is(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        (found,) = events(1)
        (other,) = events(1, data=b'"other"')
        assert found.position == other.position
        await rig.archive.write(kept([found]))
        await rig.archive.write(kept([other]))
        assert await rig.archive.read(Query(channel="a.b", limit=10)) == [found]


async def test_order_of_writing_is_no_order_of_reading(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        found = events(9)
        await rig.archive.write(kept(found[5:]))
        await rig.archive.write(kept(found[:5][::-1]))
        assert await rig.archive.read(Query(channel="a.b", limit=10)) == found


async def test_events_of_many_channels_come_in_one_write(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        found = [event for n in range(20) for event in events(3, channel=f"c.{n}")]
        await rig.archive.write(kept(found))
        for n in range(20):
            assert await rig.offsets(f"c.{n}") == [1, 2, 3]


async def test_branches_with_the_same_offsets_stand_side_by_side(open_archive: OpenArchive) -> None:
    """A fail-over lost a tail: two branches of one epoch, then a new epoch above."""
    async with open_archive() as rig:
        trunk = events(3)
        after = trunk[-1].position
        dead = events(2, after=after, prefix="dead", time=TIME + 100)
        alive = events(3, after=after, prefix="alive", time=TIME + 200)
        later = events(
            2, after=Position(LATER_EPOCH, 4, LATER_EPOCH), prefix="later", time=TIME + 300
        )
        await rig.archive.write(kept([*later, *trunk, *alive, *dead]))
        assert await rig.ids() == [
            *("x1", "x2", "x3"),
            *("dead4", "alive4"),
            *("dead5", "alive5", "later5"),
            *("alive6", "later6"),
        ]
        assert await rig.ids(newest=True, limit=4) == ["alive5", "later5", "alive6", "later6"]


# ---- reading


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"limit": 3}, [1, 2, 3]),
        ({"limit": 3, "newest": True}, [7, 8, 9]),
        ({"after": 4, "limit": 3}, [5, 6, 7]),
        ({"after": 4, "before": 8}, [5, 6, 7]),
        ({"after": 4, "before": 8, "limit": 2, "newest": True}, [6, 7]),
        ({"after": 9}, []),
        ({"before": 1, "newest": True}, []),
        ({"after": 7, "before": 3}, []),
        ({"limit": 0}, []),
        ({"limit": 0, "newest": True}, []),
        ({"since_ms": TIME + 40}, [4, 5, 6, 7, 8, 9]),
        ({"until_ms": TIME + 40}, [1, 2, 3]),
        ({"since_ms": TIME + 21, "until_ms": TIME + 50}, [3, 4]),
        ({"since_ms": TIME + 21, "until_ms": TIME + 80, "limit": 2}, [3, 4]),
        ({"since_ms": TIME + 21, "until_ms": TIME + 80, "limit": 2, "newest": True}, [6, 7]),
        ({"since_ms": TIME + 40, "after": 6}, [7, 8, 9]),
        ({"until_ms": TIME + 40, "before": 3, "newest": True}, [1, 2]),
        ({"since_ms": TIME + 50, "until_ms": TIME + 50}, []),
    ],
)
async def test_a_query_shows_what_it_asks_for(
    open_archive: OpenArchive, query: dict[str, Any], expected: list[int]
) -> None:
    async with open_archive() as rig:
        found = events(9)
        await rig.archive.write(kept([*found, *events(3, channel="a.bc")]))
        assert await rig.offsets(**query) == expected


async def test_the_unknown_has_no_events(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        await rig.archive.write(kept(events(2)))
        assert await rig.offsets("a") == []
        assert await rig.archive.unarchived("a") == []


_times = st.none() | st.integers(TIME - 5, TIME + 65)
_offsets = st.integers(0, 8)
_queries = st.builds(
    Query,
    channel=st.sampled_from(("a", "a.b")),
    after=_offsets,
    before=st.none() | _offsets,
    since_ms=_times,
    until_ms=_times,
    limit=st.integers(0, 9),
    newest=st.booleans(),
)
_events = st.builds(
    Event,
    channel=st.sampled_from(("a", "a.b")),
    position=st.builds(
        Position,
        st.sampled_from((EPOCH, LATER_EPOCH)),
        st.integers(1, 7),
        st.sampled_from(("c" * 16, "d" * 16)),
    ),
    prev=st.just("b" * 16),
    id=st.sampled_from(("i", "j")),
    name=st.sampled_from(("m", "n")),
    data=st.just(b"1"),
    # Equal offsets have different times, since the order of equal times is nobody's promise.
    time=st.just(0),
)


def _model(stored: list[Event], query: Query) -> list[Event]:
    found = [
        event
        for event in stored
        if event.channel == query.channel
        and query.after < event.position.offset
        and (query.before is None or event.position.offset < query.before)
        and (query.since_ms is None or query.since_ms <= event.time)
        and (query.until_ms is None or event.time < query.until_ms)
    ]
    found.sort(key=lambda event: (event.position.offset, event.time))
    if query.newest:
        return found[max(0, len(found) - query.limit) :]
    return found[: query.limit]


async def test_reads_are_those_of_a_list(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        loop = asyncio.get_running_loop()

        @settings(max_examples=40, suppress_health_check=list(HealthCheck))
        @given(st.lists(_events, max_size=20), st.lists(_queries, min_size=5, max_size=5))
        def check(drawn: list[Event], queries: list[Query]) -> None:
            asyncio.run_coroutine_threadsafe(compare(drawn, queries), loop).result(20)

        rounds = 0

        async def compare(drawn: list[Event], queries: list[Query]) -> None:
            nonlocal rounds
            rounds += 1
            stored: dict[tuple[str, Position], Event] = {}
            for time, event in enumerate(drawn):
                channel = f"{event.channel}.{rounds}"
                at = TIME + 3 * time
                event = Event(
                    channel, event.position, event.prev, event.id, event.name, b"1", time=at
                )
                stored.setdefault((channel, event.position), event)
                await rig.archive.write(kept([event]))
            for query in queries:
                parts = {name: getattr(query, name) for name in query.__struct_fields__}
                query = Query(**{**parts, "channel": f"{query.channel}.{rounds}"})
                assert await rig.archive.read(query) == _model(list(stored.values()), query)

        await asyncio.to_thread(check)


# ---- purging


async def test_a_purge_deletes_up_to_its_floor(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        found = events(9)
        other = events(2, channel="a.bc")
        await rig.archive.write(kept([*found, *other]))
        await rig.archive.write([Purged("a.b", found[5].position)])
        assert await rig.offsets() == [7, 8, 9]
        assert await rig.offsets(newest=True, since_ms=TIME) == [7, 8, 9]
        assert await rig.offsets("a.bc") == [1, 2]


async def test_a_purge_applies_in_order(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        found = events(6)
        entries: list[Entry] = [
            *kept(found[:4]),
            Purged("a.b", found[3].position),
            *kept(found[4:]),
        ]
        await rig.archive.write(entries)
        assert await rig.offsets() == [5, 6]
        await rig.archive.write(entries)
        assert await rig.offsets() == [5, 6]


async def test_what_was_purged_stays_away(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        found = events(6)
        await rig.archive.write([*kept(found[:2]), Purged("a.b", found[3].position)])
        # Some were not even there when it was purged.
        await rig.archive.write(kept(found))
        assert await rig.offsets() == [5, 6]
        # Nor do they come back when what is left of them is swept.
        while await rig.archive.sweep(TIME + 10**9, 100):
            pass
        await rig.archive.write(kept(found))
        assert await rig.offsets() == [5, 6]


async def test_a_purge_deletes_the_epochs_before_it(open_archive: OpenArchive) -> None:
    """A record that had lapsed began anew at 0, below what the archive holds."""
    async with open_archive() as rig:
        old = events(9)
        new = events(3, after=start(LATER_EPOCH), prefix="new")
        await rig.archive.write(kept([*old, *new]))
        await rig.archive.write([Purged("a.b", new[1].position)])
        assert await rig.ids() == ["new3"]
        await rig.archive.write(kept([*old, *new]))
        assert await rig.ids() == ["new3"]


async def test_a_purge_that_is_repeated_spares_later_epochs(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        old = events(9)
        new = events(3, after=start(LATER_EPOCH), prefix="new")
        purged = Purged("a.b", old[-1].position)
        await rig.archive.write([*kept(old), purged])
        await rig.archive.write([*kept(new), purged])
        await rig.archive.write([purged])
        assert await rig.ids() == ["new1", "new2", "new3"]


async def test_a_purge_of_the_unknown_is_nothing(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        await rig.archive.write(
            [Purged("a.b", start(EPOCH)), Purged("a.b", Position(EPOCH, 3, EPOCH))]
        )
        await rig.archive.write(kept(events(5)))
        assert await rig.offsets() == [4, 5]


# ---- expiry


async def test_a_sweep_deletes_what_has_expired(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        found = events(9)
        now = TIME + 1_000
        await rig.archive.write(
            [*kept(found[:3]), *kept(found[3:7], now), *kept(found[7:], now + 1)]
        )
        assert await rig.archive.sweep(now - 1, 100) == 0
        assert await rig.offsets() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        assert await rig.archive.sweep(now, 100) == 4
        assert await rig.archive.sweep(now, 100) == 0
        assert await rig.offsets() == [1, 2, 3, 8, 9]


async def test_a_sweep_is_bounded(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        await rig.archive.write(kept(events(25), TIME))
        now = TIME + 10_000
        assert await rig.archive.sweep(now, 0) == 0
        assert [await rig.archive.sweep(now, 10) for _ in range(4)] == [10, 10, 5, 0]
        assert await rig.offsets() == []


# ---- what is known to be missing


async def test_what_is_missing_is_told_by_offset(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        second = Unarchived("a.b", EPOCH, 20, 29, TIME + 1)
        first = Unarchived("a.b", EPOCH, 3, 3, TIME)
        highest = Unarchived("a.b", LATER_EPOCH, 30, MOST_OFFSET, TIME + 2)
        other = Unarchived("a.c", EPOCH, 1, 9, TIME)
        await rig.archive.write([second, first])
        await rig.archive.write([other, highest, *kept(events(1)), second])
        archive = rig.archive
        assert await archive.unarchived("a.b") == [first, second, highest]
        assert await archive.unarchived("a.b", after=3) == [second, highest]
        assert await archive.unarchived("a.b", after=28, before=30) == [second]
        assert await archive.unarchived("a.b", after=29, before=30) == []
        assert await archive.unarchived("a.b", before=3) == []
        assert await archive.unarchived("a.b", before=4) == [first]
        assert await archive.unarchived("a.c") == [other]


async def test_what_was_purged_is_not_missing(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        below = Unarchived("a.b", EPOCH, 2, 4, TIME)
        across = Unarchived("a.b", EPOCH, 5, 7, TIME)
        await rig.archive.write([below, across, Purged("a.b", Position(EPOCH, 6, EPOCH))])
        await rig.archive.write([below])
        assert await rig.archive.unarchived("a.b") == [across]


# ---- channels


async def test_channels_come_by_name_in_pages(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        names = ["a", "a.b", "a.b.c", "a.c", "a0", "b.1", "b.10", "b.2", "z", "é.\U0001f600"]
        await rig.archive.write(kept([e for name in names[::-1] for e in events(2, channel=name)]))
        channels = rig.archive.channels
        assert await channels(limit=100) == names
        assert await channels(limit=0) == []
        assert await channels(prefix="a.", limit=100) == ["a.b", "a.b.c", "a.c"]
        assert await channels(prefix="b.1", limit=100) == ["b.1", "b.10"]
        assert await channels(prefix="a.", after="a.b", limit=1) == ["a.b.c"]
        assert await channels(after="a.c", limit=2) == ["a0", "b.1"]
        assert await channels(prefix="a", after="b.1", limit=100) == []


async def test_channels_without_events_are_not_named(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        purged = events(2, channel="purged")
        await rig.archive.write(kept([*purged, *events(1, channel="kept")]))
        await rig.archive.write(kept(events(2, channel="expired"), TIME))
        await rig.archive.write([Purged("purged", purged[-1].position)])
        await rig.archive.sweep(TIME + 10_000, 100)
        assert await rig.archive.channels(limit=100) == ["kept"]


# ---- several at once


async def test_reads_go_on_while_others_write(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        found = events(300)
        done = asyncio.Event()

        async def write() -> None:
            for begin in range(0, 300, 10):
                await rig.archive.write(kept(found[begin : begin + 10]))
            done.set()

        async def read() -> None:
            seen = 0
            while not done.is_set():
                offsets = await rig.offsets()
                assert offsets == list(range(1, len(offsets) + 1))
                assert len(offsets) >= seen
                seen = len(offsets)

        await asyncio.gather(write(), read(), read())
        assert await rig.offsets() == list(range(1, 301))


async def test_two_writers_of_the_same_entries_write_them_once(open_archive: OpenArchive) -> None:
    """A consumer that was given up for dead goes on beside the one that took its entries over."""
    async with open_archive() as rig, rig.another() as other:
        found = events(120)
        missing = Unarchived("a.b", EPOCH, 200, 210, TIME)
        entries: list[Entry] = [
            *kept(found[:60]),
            Purged("a.b", found[39].position),
            *kept(found[60:]),
            missing,
        ]

        async def write(archive: Archive, size: int) -> None:
            for begin in range(0, len(entries), size):
                await archive.write(entries[begin : begin + size])

        await asyncio.gather(write(rig.archive, 7), write(other, 11), write(rig.archive, 13))
        assert await rig.archive.read(Query(channel="a.b", limit=200)) == found[40:]
        assert await other.unarchived("a.b") == [missing]


async def test_another_sees_what_was_written(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        found = events(3)
        await rig.archive.write(kept(found))
        async with rig.another() as other:
            assert await other.read(Query(channel="a.b", limit=10)) == found


# ---- start and end


async def test_it_may_be_started_and_closed_twice(open_archive: OpenArchive) -> None:
    async with open_archive() as rig:
        await rig.archive.start()
        await rig.archive.write([Kept(event) for event in events(1)])
        await rig.archive.close()
        await rig.archive.close()
        await rig.archive.start()
        assert await rig.offsets() == [1]
