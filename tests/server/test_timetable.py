"""Deadlines for very many sessions with one timer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery_rig import HandLoop, as_loop
from server.timetable import Entry, Timetable


def table(**options: float) -> tuple[HandLoop, Timetable]:
    loop = HandLoop()
    loop.now = 1_000.3  # not at a tick
    return loop, Timetable(as_loop(loop), **options)  # type: ignore[arg-type]


@given(delays=st.lists(st.floats(0, 30), min_size=1, max_size=20), phase=st.floats(0, 2))
def test_every_callback_comes_once_never_early_and_at_most_one_tick_late(
    delays: list[float], phase: float
) -> None:
    loop, timetable = table(tick_s=0.5)
    loop.now += phase
    came: list[tuple[float, float]] = []
    for delay in delays:
        due = loop.now + delay
        timetable.call_in(delay, lambda due=due: came.append((due, loop.now)))  # type: ignore[misc]
        loop.advance(phase / 3)
    loop.advance(40)
    assert len(came) == len(delays)
    for due, at in came:
        assert due - 1e-6 <= at <= due + 0.5 + 1e-6


def test_a_cancelled_entry_never_comes_and_may_be_cancelled_again() -> None:
    loop, timetable = table()
    came: list[str] = []
    kept = timetable.call_in(1, lambda: came.append("kept"))
    gone = timetable.call_in(1, lambda: came.append("gone"))
    gone.cancel()
    gone.cancel()
    loop.advance(3)
    kept.cancel()
    assert came == ["kept"]


def test_no_timer_runs_without_entries() -> None:
    loop, timetable = table()
    assert loop.waiting() == 0
    timetable.call_in(1, lambda: None)
    timetable.call_in(20, lambda: None)
    assert loop.waiting() == 1
    loop.advance(5)
    assert loop.waiting() == 1
    loop.advance(20)
    assert loop.waiting() == 0


def test_after_a_pause_without_entries_deadlines_count_from_now() -> None:
    loop, timetable = table()
    timetable.call_in(1, lambda: None)
    loop.advance(1_000)
    came: list[float] = []
    begin = loop.now
    timetable.call_in(2, lambda: came.append(loop.now))
    loop.advance(5)
    assert len(came) == 1
    assert 2 <= came[0] - begin <= 2.5


def test_a_callback_may_make_entries_while_others_of_its_tick_wait() -> None:
    """A callback that made an entry let the table forget where it stood: the ticks that it had
    yet to serve were skipped, and a later tick was thrown away unserved."""
    loop, timetable = table()
    came: list[str] = []

    def again(name: str, left: int) -> None:
        came.append(name)
        if left:
            timetable.call_in(0.6, lambda: again(name, left - 1))

    for name in ("a", "b", "c"):
        timetable.call_in(1, lambda name=name: again(name, 3))  # type: ignore[misc]
    for delay in (1.0, 1.6, 2.1, 2.6, 3.1, 9.9):
        timetable.call_in(delay, lambda delay=delay: came.append(str(delay)))  # type: ignore[misc]
    # The loop was held up: several ticks are served in one turn.
    loop.now += 1.7
    loop.advance(20)
    assert sorted(came) == sorted(["a", "b", "c"] * 4 + "1.0 1.6 2.1 2.6 3.1 9.9".split())
    assert loop.waiting() == 0


def test_what_is_due_in_one_tick_is_spread_over_turns() -> None:
    loop, timetable = table(per_turn=10)
    came: list[int] = []
    for number in range(25):
        timetable.call_in(1, lambda number=number: came.append(number))  # type: ignore[misc]
    loop.now += 2
    served = []
    while len(came) < 25:
        loop.turn()
        served.append(len(came))
    assert served == [10, 20, 25]
    assert came == list(range(25))


def test_a_cancel_by_a_callback_of_the_same_tick_holds() -> None:
    loop, timetable = table()
    came: list[str] = []
    entries: list[Entry] = []
    timetable.call_in(1, lambda: entries[0].cancel())
    entries.append(timetable.call_in(1, lambda: came.append("late")))
    loop.advance(3)
    assert came == []


def test_a_callback_that_raises_does_not_stop_the_others() -> None:
    loop, timetable = table()
    came: list[str] = []
    timetable.call_in(1, lambda: 1 / 0)  # type: ignore[arg-type]
    timetable.call_in(1, lambda: came.append("same tick"))
    timetable.call_in(4, lambda: came.append("later"))
    with pytest.raises(ZeroDivisionError):
        loop.advance(3)
    loop.advance(5)
    assert came == ["same tick", "later"]


def test_close_forgets_all_and_may_be_called_twice_and_from_a_callback() -> None:
    loop, timetable = table()
    came: list[str] = []
    timetable.call_in(1, timetable.close)
    timetable.call_in(1, lambda: came.append("after close"))
    later = timetable.call_in(5, lambda: came.append("after close"))
    loop.advance(10)
    timetable.close()
    later.cancel()
    assert came == []
    assert loop.waiting() == 0
    timetable.call_in(50, lambda: None)
    timetable.close()
    assert loop.waiting() == 0
