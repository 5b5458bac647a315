"""Whether events from several places are one chain, and which of them a fail-over made untrue."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from archive_rig import EPOCH, LATER_EPOCH, TIME, events
from pubsub.chain import Gap, begins_epoch, follows, gaps, leaps, straighten
from pubsub.event import Event
from pubsub.position import Position, start

LAST_EPOCH = "00000000000000e3"


def mixed(*branches: Sequence[Event]) -> list[Event]:
    """Events as an archive hands them out: by offset, of equal ones by time."""
    found = [event for branch in branches for event in branch]
    return sorted(found, key=lambda event: (event.position.offset, event.time))


def after(event: Event, count: int, prefix: str, time: int | None = None) -> list[Event]:
    """Events that continue one."""
    return events(count, after=event.position, prefix=prefix, time=time)


def later(
    offset: int, count: int, epoch: str = LATER_EPOCH, time: int | None = None
) -> list[Event]:
    """The first events of a later epoch, which begins behind an offset."""
    return events(count, after=start(epoch, offset), prefix="z", time=time)


# ---- what follows what


def test_an_event_follows_the_position_before_it_only() -> None:
    one, two, three = events(3)
    assert follows(start(EPOCH), one)
    assert follows(one.position, two)
    assert not follows(one.position, three)
    assert not follows(two.position, two)
    assert not follows(three.position, two)


def test_an_event_of_another_branch_does_not_follow() -> None:
    one, _two, three = events(3)
    dead, _ = after(one, 2, "dead")
    assert dead.position.offset + 1 == three.position.offset
    assert not follows(dead.position, three)


def test_the_first_of_an_epoch_follows_all_that_is_below_it() -> None:
    last = events(3)[-1]
    for offset in (3, 4, 1_000_000):
        first, second = later(offset, 2)
        assert begins_epoch(first)
        assert not begins_epoch(second)
        assert follows(last.position, first)
        assert not follows(last.position, second)
    for offset in (0, 2):
        assert not follows(last.position, later(offset, 1)[0])


def test_gaps_show_what_is_missing_and_what_does_not_chain() -> None:
    one, two, three, four = events(4)
    assert list(gaps([])) == list(gaps([one])) == list(gaps([one, two, three])) == []
    assert list(gaps([one, three, four])) == [Gap(one.position, two.position)]
    assert list(gaps([one, four])) == [Gap(one.position, three.position)]
    (dead,) = after(one, 1, "dead")
    assert list(gaps([one, dead, three])) == [Gap(dead.position, two.position)]
    first, second, third = later(4, 3)
    assert list(gaps([four, first, second, third])) == []
    assert list(gaps([four, second, third])) == [Gap(four.position, first.position)]


def test_a_leap_is_where_an_epoch_begins_further_on() -> None:
    old = events(3)
    assert list(leaps([*old, *later(3, 2)])) == []
    assert list(leaps([*old, *later(5, 2)])) == [Gap(old[-1].position, start(LATER_EPOCH, 5))]
    assert list(leaps([old[0], old[2]])) == []


# ---- what a fail-over made untrue


def test_nothing_is_straight() -> None:
    assert straighten([]) == []
    assert straighten([], later(3, 2)) == later(3, 2)


def test_of_two_at_one_place_the_one_that_was_continued_stays() -> None:
    true = events(6)
    dead = after(true[2], 2, "dead")
    assert straighten(mixed(true, dead)) == true
    # Whatever their times say: clocks of two Redis differ.
    early = after(true[2], 2, "dead", time=TIME)
    late = after(true[2], 2, "dead", time=TIME + 1_000_000)
    assert straighten(mixed(true, early)) == straighten(mixed(true, late)) == true


def test_of_two_at_the_end_the_later_one_stays() -> None:
    base = events(3)
    old = after(base[-1], 1, "old", time=TIME + 100)
    new = after(base[-1], 1, "new", time=TIME + 200)
    assert straighten(mixed(base, old, new)) == [*base, *new]


def test_several_dead_branches_go() -> None:
    true = events(8)
    dead = [after(true[1], 3, "a"), after(true[3], 2, "b"), after(true[1], 1, "c")]
    assert straighten(mixed(true, *dead)) == true


def test_a_branch_of_a_dead_branch_goes() -> None:
    true = events(8)
    dead = after(true[1], 4, "a")
    assert straighten(mixed(true, dead, after(dead[1], 1, "b"))) == true


def test_what_lies_beyond_the_start_of_the_next_epoch_goes() -> None:
    old = events(6)
    new = later(4, 5, time=TIME + 1_000)
    assert straighten(mixed(old, new)) == [*old[:4], *new]


def test_an_epoch_that_was_lost_with_its_master_goes() -> None:
    """The replica that took over did not know of it, and went on in the one before."""
    true = events(9)
    dead = later(4, 2, time=TIME + 45)
    assert straighten(mixed(true, dead)) == true
    last = later(1_000_000, 2, LAST_EPOCH)
    assert straighten(mixed(true, dead, last)) == [*true, *last]


def test_an_end_that_was_lost_is_longer_than_what_came_in_its_place() -> None:
    """What is furthest is not what was true last: the short epoch was gone from what is read."""
    old = events(10)
    short = later(5, 2, time=TIME + 1_000)
    last = later(1_000_000, 3, LAST_EPOCH, time=TIME + 2_000)
    assert straighten(mixed(old, short, last)) == [*old[:5], *short, *last]
    assert straighten(mixed(old, short), last) == [*old[:5], *short, *last]
    assert straighten(mixed(old, short)) == [*old[:5], *short]


def test_missing_events_do_not_take_others_along() -> None:
    true = events(9)
    assert straighten([true[0], *true[4:]]) == [true[0], *true[4:]]
    new = later(20, 4)
    assert straighten([*true, *new[2:]]) == [*true, *new[2:]]


def test_what_cannot_be_the_one_before_goes() -> None:
    true = events(5)
    (dead,) = after(true[2], 1, "dead")
    # The true one at its place is missing.
    assert straighten([*true[:3], dead, true[4]]) == [*true[:3], true[4]]


def test_what_is_known_to_be_true_stays() -> None:
    """Though the clock of the Redis that took over is behind."""
    old = events(6)
    recent = [replace(event, time=TIME) for event in after(old[3], 3, "new")]
    assert straighten(old, recent) == [*old[:4], *recent]


# ---- whatever there is


@st.composite
def true_chains(draw: st.DrawFn) -> list[Event]:
    """A channel's life: epochs that begin above each other, by clocks that may be turned."""
    found: list[Event] = []
    offset = 0
    for number in range(draw(st.integers(1, 4))):
        offset += draw(st.sampled_from([0, 0, 1, 7, 1_000_000]))
        time = TIME + draw(st.integers(-50, 50))
        before = start(f"{number:016x}", offset)
        found += events(draw(st.integers(1, 6)), after=before, prefix=f"p{number}-", time=time)
        offset = found[-1].position.offset
    return found


@given(true_chains(), st.integers(0, 24))
def test_a_true_chain_stays_whole(chain: list[Event], cut: int) -> None:
    assert list(gaps(chain)) == []
    assert straighten(chain) == chain
    assert straighten(chain[:cut], chain[cut:]) == chain


@given(true_chains(), st.sets(st.integers(0, 24)))
def test_what_is_there_of_a_true_chain_stays(chain: list[Event], gone: set[int]) -> None:
    left = [event for number, event in enumerate(chain) if number not in gone]
    assert straighten(left) == left


@given(true_chains(), st.data())
def test_dead_branches_go_whatever_they_are(chain: list[Event], data: st.DataObject) -> None:
    """Branches that end before the chain does, and before an epoch begins further on."""
    found = [chain]
    for number in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(chain) - 1))
        run = at
        while run + 1 < len(chain) and chain[run + 1].before() == chain[run].position:
            run += 1
        count = data.draw(st.integers(0, max(0, run - at - 1)))
        time = TIME + data.draw(st.integers(-50, 50))
        found.append(after(chain[at], count, f"dead{number}-", time=time))
    assert straighten(mixed(*found)) == chain


@given(true_chains(), true_chains())
def test_what_stays_has_one_event_at_each_place(one: list[Event], two: list[Event]) -> None:
    both = straighten(mixed(one, [replace(e, prev=e.prev, id=f"o{e.id}") for e in two]))
    offsets = [event.position.offset for event in both]
    assert offsets == sorted(set(offsets))
    assert all(gap.after.offset <= gap.before.offset for gap in gaps(both))


def test_a_gap_is_what_lies_between() -> None:
    one, _, three = events(3)
    (gap,) = gaps([one, three])
    assert gap.after == one.position
    assert gap.before == Position(EPOCH, 2, three.prev)
