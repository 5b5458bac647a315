"""ULIDs: their form, and that each sorts behind the one before it."""

import re

from hypothesis import given
from hypothesis import strategies as st

from pubsub.ulid import UlidFactory

FORM = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
ALL_ONES = (1 << 80) - 1


def value(ulid: str) -> int:
    number = 0
    for character in ulid:
        number = number * 32 + ALPHABET.index(character)
    return number


def factory(times_ms: list[int], bits: int = 0) -> UlidFactory:
    return UlidFactory(iter(times_ms).__next__, lambda count: bits & ((1 << count) - 1))


def test_the_time_and_the_random_bits_stand_where_they_belong() -> None:
    """The time is the example of the specification."""
    ulid = factory([1469918176385], 0x1234_5678_9ABC_DEF0_1234)()
    assert ulid.startswith("01ARYZ6S41")
    assert value(ulid) == 1469918176385 << 80 | 0x1234_5678_9ABC_DEF0_1234
    assert factory([(1 << 48) - 1], ALL_ONES)() == "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"
    assert factory([0], 0)() == "0" * 26


@given(st.lists(st.integers(0, (1 << 47)), min_size=1), st.integers(0, ALL_ONES))
def test_each_sorts_behind_the_one_before(times_ms: list[int], bits: int) -> None:
    make = factory(times_ms, bits)
    made = [make() for _ in times_ms]
    assert all(FORM.fullmatch(ulid) for ulid in made)
    assert made == sorted(set(made))
    assert [value(ulid) for ulid in made] == sorted(value(ulid) for ulid in made)


def test_within_a_ms_the_next_is_one_more() -> None:
    make = factory([5, 5, 5], 41)
    assert [value(make()) & ALL_ONES for _ in range(3)] == [41, 42, 43]


def test_a_clock_that_steps_back_does_not_take_the_ids_with_it() -> None:
    make = factory([500, 400, 499, 500, 501], 7)
    made = [value(make()) for _ in range(5)]
    assert [number >> 80 for number in made] == [500, 500, 500, 500, 501]
    assert [number & ALL_ONES for number in made] == [7, 8, 9, 10, 7]


def test_a_carry_runs_through_the_cached_bits_and_into_the_time() -> None:
    make = factory([5, 5, 5, 6, 7], (1 << 40) - 1)
    assert [value(make()) & ALL_ONES for _ in range(2)] == [(1 << 40) - 1, 1 << 40]
    make = factory([5, 5, 6, 7], ALL_ONES)
    made = [value(make()) for _ in range(4)]
    assert made[1] == made[0] + 1 == 6 << 80
    assert made[2] == made[1] + 1
    assert made[3] == 7 << 80 | ALL_ONES


def test_factories_of_their_own_do_not_meet() -> None:
    one, other = UlidFactory(), UlidFactory()
    made = [make() for _ in range(2_000) for make in (one, other)]
    assert len(set(made)) == len(made)
    assert made[0::2] == sorted(made[0::2])
