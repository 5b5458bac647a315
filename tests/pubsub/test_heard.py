"""What was heard, against what a top says: lost, fallen back, another; never what is on its way."""

import pytest

from pubsub.heard import Acknowledged, Heard
from pubsub.position import Position, start

A, B = "a" * 16, "b" * 16


def at(offset: int, epoch: str = A, check: str = "") -> Position:
    return Position(epoch, offset, check or f"{offset:016x}")


@pytest.mark.parametrize(
    ("before", "top", "now", "doubtful"),
    [
        (at(5), at(5), at(5), False),
        # Lost.
        (at(5), at(6), at(5), True),
        (at(5), at(8), at(6), True),
        # Fallen back: a tail died with a master.
        (at(5), at(4), at(5), True),
        (at(5), at(4), at(7), True),
        # Another history.
        (at(5), at(5, check="f" * 16), at(5), True),
        (at(5), at(5, check="f" * 16), at(6), True),
        (at(5), at(6, check="f" * 16), at(6), True),
        (at(5), at(5, B), at(5), True),
        (at(5), at(9, B), at(7), True),
        # More came while it was read.
        (at(5), at(5), at(9), False),
        (at(5), at(7), at(9), False),
        (at(5), at(7), at(7), False),
        # A newer epoch came while it was read.
        (at(5), at(5), at(5, B), False),
        (at(5), at(6), at(9, B), False),
        (at(5), at(4), at(9, B), True),
        # The new epoch began while it was read.
        (at(5), at(5, B), at(6, B), False),
        (at(5), at(7, B), at(6, B), True),
    ],
)
def test_when_a_top_is_doubtful(
    before: Position, top: Position, now: Position, doubtful: bool
) -> None:
    heard = Heard()
    heard.begin("x", before)
    snapshot = heard.snapshot()
    heard.take("x", now)
    assert heard.doubtful(snapshot, {"x": top}) == ([("x", top)] if doubtful else [])
    # Told once.
    assert heard.doubtful(heard.snapshot(), {"x": top}) == [] or not doubtful


def test_what_is_not_subscribed_is_never_doubtful() -> None:
    heard = Heard()
    heard.take("x", at(3))
    assert "x" not in heard
    heard.begin("y", at(3))
    snapshot = heard.snapshot()
    heard.end("y")
    heard.end("y")
    assert heard.doubtful(snapshot, {"x": at(9), "y": at(9)}) == []
    assert len(heard) == 0


def test_what_came_before_the_top_was_known_is_kept() -> None:
    heard = Heard()
    heard.begin("x", at(3))
    heard.take("x", at(5))
    heard.begin("x", at(4))
    assert heard.snapshot() == {"x": at(5)}
    heard.begin("x", at(6))
    assert heard.snapshot() == {"x": at(6)}
    heard.begin("x", start(B))
    assert heard.snapshot() == {"x": start(B)}


def test_rule_6_the_highest_acknowledgement_is_remembered_for_a_minute() -> None:
    acknowledged = Acknowledged(most=2)
    acknowledged.add("x", at(5), 100.0)
    acknowledged.add("x", at(4), 101.0)
    assert acknowledged.recent(101.0) == [("x", at(5))]
    acknowledged.add("x", at(2, B), 102.0)
    acknowledged.add("y", at(1), 110.0)
    assert acknowledged.recent(162.0) == [("x", at(2, B)), ("y", at(1))]
    assert acknowledged.recent(162.1) == [("y", at(1))]
    assert acknowledged.recent(170.1) == []


def test_rule_6_acknowledgements_are_bounded() -> None:
    acknowledged = Acknowledged(most=2)
    for number, channel in enumerate("xyxz"):
        acknowledged.add(channel, at(number), 1.0)
    assert [channel for channel, _ in acknowledged.recent(1.0)] == ["x", "z"]
    assert acknowledged.forgotten == 1


def test_rule_6_what_is_long_past_makes_room_and_is_not_counted() -> None:
    acknowledged = Acknowledged(most=2)
    acknowledged.add("x", at(1), 0.0)
    acknowledged.add("y", at(1), 1.0)
    acknowledged.add("z", at(1), 60.5)
    acknowledged.add("x", at(2), 121.5)
    assert acknowledged.forgotten == 0
    assert acknowledged.recent(61.0) == [("z", at(1)), ("x", at(2))]


def test_rule_6_what_does_not_fit_of_many_losses_is_counted() -> None:
    acknowledged = Acknowledged(most=1)
    for number in range(6):
        acknowledged.add(f"x{number}", at(1), 1.0)
        acknowledged.seal()
    assert acknowledged.forgotten == 2


def test_rule_6_a_known_event_of_an_older_epoch_replaces_nothing() -> None:
    acknowledged = Acknowledged()
    old, new = Position("a" * 16, 9, "0" * 16), Position("b" * 16, 3, "1" * 16)
    acknowledged.add("a.b", old, 0.0, known=True)
    acknowledged.add("a.b", new, 0.0)
    acknowledged.add("a.b", old, 0.0, known=True)
    assert acknowledged.recent(0.0) == [("a.b", new)]


def test_rule_6_what_was_acknowledged_before_a_loss_is_kept_beside_what_came_after() -> None:
    """A publish after a fail-over got the offset of one that was lost, and hid that it was."""
    acknowledged = Acknowledged()
    acknowledged.add("x", at(5), 1.0)
    acknowledged.seal()
    acknowledged.seal()
    acknowledged.add("x", at(6), 2.0)
    assert acknowledged.recent(2.0) == [("x", at(5)), ("x", at(6))]
    acknowledged.join()
    assert acknowledged.recent(2.0) == [("x", at(6))]


def test_rule_6_many_losses_are_remembered_within_a_bound() -> None:
    acknowledged = Acknowledged(most=2)
    for number in range(1, 10):
        acknowledged.add("x", at(number), 1.0)
        acknowledged.add(f"y{number}", at(number), 1.0)
        acknowledged.seal()
    found = acknowledged.recent(1.0)
    assert len(found) <= 8
    assert found[0] == ("x", at(1))
    assert ("x", at(9)) in found
    assert ("y9", at(9)) in found
    assert acknowledged.recent(62.0) == []
