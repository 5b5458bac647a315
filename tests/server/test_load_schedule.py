import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.load_schedule import Schedule


def test_messages_are_due_evenly() -> None:
    schedule = Schedule(rate=10.0, batch=1, start=100.0)
    assert schedule.due(99.9, 200.0) == []
    assert schedule.due(100.25, 200.0) == pytest.approx([100.0, 100.1, 100.2])
    assert schedule.next_due == pytest.approx(100.3)


def test_a_batch_is_one_message() -> None:
    assert Schedule(rate=100.0, batch=50, start=0.0).due(1.4, 9.0) == [0.0, 0.5, 1.0]


def test_nothing_is_due_at_the_end_or_behind_it() -> None:
    assert Schedule(rate=2.0, batch=1, start=0.0).due(5.0, 1.0) == [0.0, 0.5]


def test_a_load_that_was_held_up_keeps_the_times_at_which_events_were_due() -> None:
    """Coordinated omission: after a pause the late events still count from their own times."""
    schedule = Schedule(rate=1_000.0, batch=1, start=0.0)
    found: list[float] = []
    while due := schedule.due(0.5, 10.0):
        found += due
    assert found == pytest.approx([place / 1_000 for place in range(501)])


@given(st.floats(0.1, 1e6), st.integers(1, 500), st.lists(st.floats(0.0, 3.0), max_size=30))
def test_each_message_is_due_once_and_in_order(rate: float, batch: int, looks: list[float]) -> None:
    schedule = Schedule(rate, batch, 0.0)
    found: list[float] = []
    for now in sorted(looks):
        due = schedule.due(now, 2.0)
        assert all(at <= now and at < 2.0 for at in due)
        found += due
    assert found == pytest.approx([place * batch / rate for place in range(len(found))])


@pytest.mark.parametrize(("rate", "batch"), [(0.0, 1), (-1.0, 1), (1.0, 0)])
def test_a_schedule_needs_a_rate_and_a_batch(rate: float, batch: int) -> None:
    with pytest.raises(ValueError, match="above zero"):
        Schedule(rate, batch, 0.0)
