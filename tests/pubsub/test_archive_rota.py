"""When the archivist looks at which partition."""

from pubsub.archive_rota import Rota


def rota(*partitions: int) -> Rota:
    """A rota without jitter, that has partitions since 0 s."""
    found = Rota(lambda _low, high: high)
    found.hold(partitions, 0.0)
    return found


def test_what_is_new_is_due_and_not_again_before_it_is_back() -> None:
    turns = rota(1, 2)
    assert turns.take(0.0) == [1, 2]
    assert turns.take(9.0) == []
    assert turns.next_at() is None
    turns.rest(1, 9.0)
    assert turns.next_at() == 9.05
    assert turns.take(9.1) == [1]


def test_pauses_of_the_idle_grow_to_a_bound_until_something_comes() -> None:
    turns = rota(1)
    pauses = []
    now = 0.0
    for _ in range(7):
        assert turns.take(now) == [1]
        turns.rest(1, now)
        at = turns.next_at()
        assert at is not None
        pauses.append(round(at - now, 6))
        now = at
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert turns.wake(1, now - 0.5)
    assert turns.take(now - 0.5) == [1]
    turns.well(1)
    turns.rest(1, now)
    assert turns.next_at() == now + 0.05


def test_what_failed_waits_for_its_time_though_something_comes() -> None:
    turns = rota(1)
    pauses: list[float] = []
    now = 0.0
    for _ in range(11):
        assert turns.take(now) == [1]
        if pauses:
            assert not turns.wake(1, now)
        turns.fail(1, now)
        assert not turns.wake(1, now)
        at = turns.next_at()
        assert at is not None
        pauses.append(round(at - now, 6))
        now = at
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    turns.retry(1.0)
    assert turns.take(1.0) == [1]
    turns.rest(1, 1.0)
    assert turns.next_at() == 1.05


def test_what_comes_while_it_is_looked_at_is_looked_at_again_at_once() -> None:
    turns = rota(1)
    assert turns.take(0.0) == [1]
    assert not turns.wake(1, 0.5)
    turns.rest(1, 1.0)
    assert turns.take(1.0) == [1]
    turns.rest(1, 1.0)
    assert turns.take(1.0) == []


def test_what_is_lost_is_due_no_more_and_its_return_disturbs_nothing() -> None:
    turns = rota(1, 2)
    assert turns.take(0.0) == [1, 2]
    assert not turns.wake(1, 0.0)
    turns.hold([2], 0.0)
    assert not turns.wake(1, 0.0)
    turns.rest(1, 0.0)
    turns.well(1)
    turns.rest(2, 0.0)
    assert turns.take(5.0) == [2]
    assert set(turns.held) == {2}
    # Lost and gained while it is still looked at: not twice at a time.
    turns.hold([], 5.0)
    turns.hold([2], 5.0)
    assert turns.take(6.0) == []
    turns.fail(2, 6.0)
    assert turns.take(7.0) == [2]


def test_the_longest_waiting_comes_first() -> None:
    turns = rota(1)
    turns.hold([1, 2, 3], 5.0)
    turns.wake(3, 1.0)
    assert turns.take(9.0) == [1, 3, 2]
