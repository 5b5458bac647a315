"""Positions: their text, and the chain of checks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.errors import PositionRejected, PubSubError
from pubsub.position import Position, chain, new_epoch, start

hexes = st.text("0123456789abcdef", min_size=16, max_size=16)
positions = st.builds(Position, hexes, st.integers(0, 10**18 - 1), hexes)

EPOCH = "0123456789abcdef"
CHECK = "fedcba9876543210"


@given(positions)
def test_a_position_survives_its_text(position: Position) -> None:
    assert Position.parse(str(position)) == position


@given(st.text())
def test_any_other_text_is_refused_by_name(text: str) -> None:
    try:
        position = Position.parse(text)
    except PositionRejected as error:
        # Nothing of the text, which may come from anybody, gets into the message.
        assert str(error) == "not a position"
    else:
        assert str(position) == text


@given(positions, st.integers(0, 60), st.characters())
def test_a_changed_text_is_no_position_or_another(position: Position, at: int, by: str) -> None:
    text = str(position)
    changed = text[:at] + by + text[at + 1 :]
    try:
        read = Position.parse(changed)
    except PositionRejected:
        assert changed != text
    else:
        assert str(read) == changed
        assert (read == position) == (changed == text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "--",
        EPOCH,
        f"{EPOCH}-1",
        f"{EPOCH}-1-",
        f"{EPOCH}--{CHECK}",
        f"{EPOCH}-1-{CHECK}-",
        f"{EPOCH}-1-{CHECK}-1",
        f"{EPOCH}-1-{CHECK}\n",
        f"\n{EPOCH}-1-{CHECK}",
        f" {EPOCH}-1-{CHECK}",
        f"{EPOCH}-1-{CHECK}\x00",
        f"{EPOCH}-1 -{CHECK}",
        f"{EPOCH}-+1-{CHECK}",
        f"{EPOCH}--1-{CHECK}",
        f"{EPOCH}-01-{CHECK}",
        f"{EPOCH}-00-{CHECK}",
        f"{EPOCH}-1_0-{CHECK}",
        f"{EPOCH}-1.0-{CHECK}",
        f"{EPOCH}-1e3-{CHECK}",
        f"{EPOCH}-0x1-{CHECK}",
        f"{EPOCH}-\u0661-{CHECK}",
        f"{EPOCH}-\uff11-{CHECK}",
        f"{EPOCH}-1\u0662-{CHECK}",
        f"{EPOCH}-{10**18}-{CHECK}",
        f"{EPOCH}-{'9' * 5000}-{CHECK}",
        f"{EPOCH.upper()}-1-{CHECK}",
        f"{EPOCH}-1-{CHECK.upper()}",
        f"{EPOCH[:-1]}-1-{CHECK}",
        f"{EPOCH}0-1-{CHECK}",
        f"{EPOCH}-1-{CHECK[:-1]}",
        f"{EPOCH}-1-{CHECK}0",
        f"{EPOCH[:-1]}g-1-{CHECK}",
        f"{EPOCH[:-1]}\u0661-1-{CHECK}",
    ],
)
def test_a_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(PositionRejected):
        Position.parse(text)


def test_the_refusal_is_an_error_of_this_room_and_of_value() -> None:
    with pytest.raises(PubSubError):
        Position.parse("")
    with pytest.raises(ValueError, match="not a position"):
        Position.parse("")


def test_the_highest_offset_can_be_read() -> None:
    assert Position.parse(f"{EPOCH}-{10**18 - 1}-{CHECK}").offset == 10**18 - 1


def test_an_epoch_starts_with_itself_as_check() -> None:
    epoch = new_epoch()
    assert start(epoch) == Position(epoch, 0, epoch)
    assert start(epoch, 7) == Position(epoch, 7, epoch)
    assert Position.parse(str(start(epoch))) == start(epoch)
    assert new_epoch() != epoch


def test_a_check_is_what_scripts_compute() -> None:
    """`printf 0123456789abcdefid1 | sha1sum | cut -c 1-16`"""
    assert chain(EPOCH, "id1") == "f1ca501e8a23ec28"


@given(hexes, hexes, st.text(max_size=5), st.text(max_size=5))
def test_checks_differ_once_they_differed(one: str, other: str, x: str, y: str) -> None:
    assert (chain(one, x) == chain(other, y)) == (one + x == other + y)
    assert (chain(chain(one, x), "z") == chain(chain(other, y), "z")) == (one + x == other + y)
