"""A channel's gap-free sequence: what is accepted, what the ring tells, and what it never tells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery_rig import EPOCH, run
from pubsub.event import Event
from pubsub.position import Position, start
from server.sequence import ChannelSequence, Verdict, chained


def sequence(count: int, size: int = 10) -> tuple[ChannelSequence, list[Event]]:
    begin = start(EPOCH)
    events = run(begin, count)
    made = ChannelSequence(begin, size)
    if events:
        made.accept(events)
    return made, events


def test_an_event_that_chains_to_the_top_is_next() -> None:
    made, events = sequence(3)
    (following,) = run(made.top, 1)
    assert made.judge(following) is Verdict.NEXT
    assert made.top == events[-1].position


def test_an_event_further_on_shows_a_gap() -> None:
    made, _ = sequence(3)
    assert made.judge(run(made.top, 2)[1]) is Verdict.GAP


def test_an_event_that_was_accepted_is_known_at_the_top_in_the_ring_and_just_before_it() -> None:
    made, events = sequence(5, size=2)
    assert [made.judge(event) for event in events[2:]] == [Verdict.KNOWN] * 3
    assert made.judge(events[1]) is Verdict.FORK, "the ring no longer tells"


@pytest.mark.parametrize("place", [0, 3, 4, 5])
def test_another_event_at_an_offset_is_a_fork(place: int) -> None:
    """A fail-over gave the offset to another event: before, at and behind the top."""
    made, events = sequence(5)
    base = start(EPOCH) if place == 0 else events[place - 1].position
    other = run(Position(base.epoch, base.offset, "f" * 16), 1)[0]
    assert made.judge(other) is Verdict.FORK


def test_an_event_of_another_epoch_is_a_fork_whatever_its_offset() -> None:
    made, _ = sequence(3)
    for offset in (0, 2, 3, 9):
        (event,) = run(start("b" * 16, offset), 1)
        assert made.judge(event) is Verdict.FORK


def test_since_gives_what_follows_a_position_that_the_ring_knows() -> None:
    made, events = sequence(8, size=4)
    assert made.since(events[3].position, 10) == events[4:]
    assert made.since(events[5].position, 1) == [events[6]]
    assert made.since(made.top, 10) == []


def test_since_does_not_know_what_left_the_ring_nor_what_never_was() -> None:
    made, events = sequence(8, size=4)
    assert made.since(events[2].position, 10) is None
    assert made.since(Position(EPOCH, 6, "f" * 16), 10) is None
    assert made.since(Position("b" * 16, 6, events[5].position.check), 10) is None
    assert made.since(run(made.top, 1)[0].position, 10) is None


def test_since_does_not_reach_behind_the_floor() -> None:
    made, events = sequence(8)
    made.purge(5)
    assert made.since(events[3].position, 10) is None
    assert made.since(events[4].position, 10) == events[5:]
    made.purge(2)
    assert made.floor == 5


def test_an_empty_ring_knows_only_the_top() -> None:
    made, events = sequence(5, size=0)
    assert made.at(5) == made.top
    assert made.at(4) is None
    made.purge(5)
    assert made.since(made.top, 10) == []
    assert made.judge(events[3]) is Verdict.FORK


def test_a_restart_forgets_everything_before() -> None:
    """The floor too: a channel whose record was lost may begin anew with lower offsets."""
    made, events = sequence(5)
    made.purge(5)
    made.asked = True
    top = start("b" * 16, 2)
    made.restart(top)
    assert made.at(2) == top
    assert made.at(4) is None
    assert made.floor == 0
    assert not made.asked
    later = run(top, 2)
    made.accept(later)
    assert made.since(top, 10) == later
    assert made.judge(events[4]) is Verdict.FORK


def late(count: int, size: int, heard: int = 0) -> tuple[ChannelSequence, list[Event]]:
    """Return a sequence that began after all of `count` events but the `heard` last ones."""
    events = run(start(EPOCH), count)
    made = ChannelSequence(events[count - heard - 1].position, size)
    if heard:
        made.accept(events[count - heard :])
    return made, events


@pytest.mark.parametrize("heard", [0, 1, 3])
def test_a_read_that_reaches_the_ring_is_put_before_it(heard: int) -> None:
    made, events = late(8, 10, heard)
    assert made.backfill(events[2:])
    assert list(made.ring) == events[2:]
    assert made.since(events[1].position, 10) == events[2:]
    assert made.backfill(events)
    assert made.since(start(EPOCH), 10) == events
    assert made.room() == 0


def test_a_read_may_have_seen_less_or_more_than_the_sequence() -> None:
    made, events = late(8, 20)
    assert made.backfill([*events[3:], *run(made.top, 3)])
    assert list(made.ring) == events[3:]
    made, events = late(8, 20, heard=4)
    assert made.backfill(events[1:6])
    assert list(made.ring) == events[1:]


def test_a_read_with_a_gap_behind_it_is_not_kept() -> None:
    made, events = late(8, 10, heard=2)
    assert not made.backfill(events[1:5])
    assert not made.backfill([])
    assert list(made.ring) == events[6:]
    assert made.room() == 6


def test_what_does_not_fit_is_the_oldest_of_a_read() -> None:
    """A full ring that is extended on its left drops its newest event."""
    made, events = late(8, 5, heard=2)
    assert made.backfill(events[:6])
    assert list(made.ring) == events[3:]
    assert made.backfill(events[:3])
    assert list(made.ring) == events[3:]
    none, events = late(8, 0)
    assert none.backfill(events)
    assert not none.ring


def test_a_read_that_contradicts_is_kept_only_as_far_as_it_chains() -> None:
    made, events = late(8, 10, heard=2)
    forged = run(Position(EPOCH, 3, "f" * 16), 3)
    assert made.backfill(forged)
    assert list(made.ring) == events[6:]
    assert made.backfill([*forged[:1], *events[4:6]])
    assert list(made.ring) == events[4:]


def test_a_read_from_before_a_purge_or_of_an_earlier_epoch_adds_nothing_of_that() -> None:
    made, events = late(8, 10, heard=2)
    made.purge(4)
    assert made.room() == 2
    assert made.backfill(events)
    assert list(made.ring) == events[4:]
    made.purge(8)
    assert made.backfill(events)
    assert not made.ring
    made, events = late(8, 10)
    made.restart(start("b" * 16, 8))
    assert made.backfill(events)
    assert not made.ring


@given(
    count=st.integers(1, 20),
    size=st.integers(0, 12),
    heard=st.integers(0, 19),
    reads=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=4),
    floor=st.integers(0, 20),
)
def test_a_ring_is_a_run_up_to_the_top_whatever_was_read(
    count: int, size: int, heard: int, reads: list[tuple[int, int]], floor: int
) -> None:
    made, events = late(count, size, min(heard, count - 1))
    top = made.top
    for place, (first, length) in enumerate(reads):
        before = list(made.ring)
        made.backfill(events[first : first + length])
        assert list(made.ring)[len(made.ring) - len(before) :] == before
        if place == 1:
            made.purge(floor)
    assert made.top == top
    ring = list(made.ring)
    assert len(ring) <= size
    assert ring == events[count - len(ring) :]
    assert len(reads) < 2 or all(each.position.offset > floor for each in ring)


@given(
    count=st.integers(0, 30),
    size=st.integers(0, 12),
    floor=st.integers(0, 40),
    after=st.integers(0, 40),
    limit=st.integers(1, 12),
)
def test_since_is_a_run_of_what_was_accepted_or_nothing(
    count: int, size: int, floor: int, after: int, limit: int
) -> None:
    made, events = sequence(count, size)
    made.purge(floor)
    positions = [start(EPOCH), *(event.position for event in events)]
    if after >= len(positions):
        return
    got = made.since(positions[after], limit)
    if got is None:
        assert after < floor or count - after > size
    else:
        assert got == events[after : after + limit]
        assert after >= floor


def test_chained_wants_every_link() -> None:
    events = run(start(EPOCH), 4)
    assert chained(start(EPOCH), events)
    assert chained(start(EPOCH), [])
    assert not chained(start(EPOCH), events[1:])
    assert not chained(start(EPOCH), [events[0], events[2]])
    assert not chained(start("b" * 16), events)
    assert not chained(Position(EPOCH, 0, "f" * 16), events)
