"""The bound of channels, as far as one node can know it."""

from pubsub.channel_room import ChannelRoom


def test_places_are_reserved_until_it_is_known_whether_they_were_taken() -> None:
    room = ChannelRoom(2)
    assert [room.ask(), room.ask(), room.ask()] == [True, True, False]
    room.done(False)
    assert room.ask()
    room.done(True)
    assert not room.ask()
    room.done(False)
    assert room.ask()
    room.done(True)
    assert room.known == 2
    assert not room.ask()
    room.count(1, room.made)
    assert room.ask()


def test_zero_is_no_bound() -> None:
    room = ChannelRoom(0)
    assert all(room.ask() for _ in range(1_000))


def test_what_was_made_during_a_count_is_not_forgotten() -> None:
    """The counts of a bound of 1 began before its channel was made, and gave its place away."""
    room = ChannelRoom(1)
    made = room.made
    assert room.ask()
    room.done(True)
    room.count(0, made)
    assert not room.ask()
    room.count(1, room.made)
    assert not room.ask()
