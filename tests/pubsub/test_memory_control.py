"""The control of a single node: what it keeps is bounded."""

import pytest

from broker_rig import Clock
from control_rig import NotedControl
from pubsub.errors import BrokerUnavailable
from pubsub.memory_control import MemoryControl


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_what_is_taken_is_bounded_and_never_forgotten_too_early(clock: Clock) -> None:
    control = MemoryControl(
        node="n1", topics=["user"], most_taken=100, now=clock.wall, monotonic=clock.monotonic
    )
    for number in range(100):
        assert await control.take(f"t{number}", 30.0)
    with pytest.raises(BrokerUnavailable, match="too much"):
        await control.take("one more", 30.0)
    assert not await control.take("t0", 30.0)
    clock.advance(30.0)
    for number in range(100):
        assert await control.take(f"t{number}", 10.0 + number)
    with pytest.raises(BrokerUnavailable, match="too much"):
        await control.take("one more", 30.0)
    clock.advance(10.0)
    assert await control.take("one more", 30.0)
    await control.close()


async def test_a_name_that_was_taken_again_is_not_freed_by_its_first_end(clock: Clock) -> None:
    control = MemoryControl(node="n1", topics=["user"], now=clock.wall, monotonic=clock.monotonic)
    for number in range(100):
        assert await control.take(f"t{number}", 1.0)
    clock.advance(1.0)
    # Not all of what has ended went yet.
    assert await control.take("t99", 50.0)
    clock.advance(1.0)
    for number in range(5):
        assert await control.take(f"x{number}", 1.0)
        assert not await control.take("t99", 1.0)
    await control.close()


async def test_it_needs_no_start_to_be_closed(clock: Clock) -> None:
    control = MemoryControl(node="n1", topics=["user"], now=clock.wall, monotonic=clock.monotonic)
    control.bind(NotedControl("n1"))
    await control.start()
    assert control.problem() is None
    assert (control.silent, control.answers_refused, control.notices_dropped) == (0, 0, 0)
    await control.close()
    assert control.problem() is not None


@pytest.mark.expect_log("pubsub.memory_control", "the oldest of user go")
async def test_that_notices_go_is_logged_once_a_minute(clock: Clock, log_watch: "object") -> None:
    control = MemoryControl(
        node="n1", topics=["user"], most_notices=1, now=clock.wall, monotonic=clock.monotonic
    )
    control.bind(NotedControl("n1"))
    records: list[object] = getattr(log_watch, "records")  # noqa: B009
    for number in range(5):
        await control.notify("user", f"u{number}", clock.wall(), clock.wall() + 600)
    assert len(records) == 1
    clock.advance(60.0)
    await control.notify("user", "u", clock.wall(), clock.wall() + 600)
    assert len(records) == 2
    assert control.notices_dropped == 5
    await control.close()
