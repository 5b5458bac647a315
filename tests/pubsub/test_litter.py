"""Big containers are freed in pieces."""

from pubsub.litter import Litter


def test_a_small_thing_is_left_alone() -> None:
    litter, small = Litter(), [1, 2, 3]
    litter.throw(small)
    assert not litter
    assert small == [1, 2, 3]
    assert litter.free(10) == 0


def test_big_things_shrink_by_as_much_as_asked() -> None:
    litter = Litter()
    numbers, names = list(range(1_500)), dict.fromkeys(range(1_200), "x")
    litter.throw(numbers)
    litter.throw(names)
    assert litter.free(1_000) == 1_000
    assert (len(numbers), len(names)) == (500, 1_200)
    assert litter.free(1_000) == 1_000
    assert (len(numbers), len(names)) == (0, 700)
    assert litter
    assert litter.free(1_000) == 700
    assert not litter
    assert litter.free(1_000) == 0
