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
    room.known = 1
    assert room.ask()


def test_zero_is_no_bound() -> None:
    room = ChannelRoom(0)
    assert all(room.ask() for _ in range(1_000))
