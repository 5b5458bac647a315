"""The sorted set of names, compared with a set."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pubsub import sorted_names
from pubsub.sorted_names import SortedNames


@pytest.fixture(autouse=True, scope="module")
def short_blocks() -> Iterator[None]:
    """Blocks of 4, so that few names fill many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_names, "_BLOCK", 4)
        yield


few = st.integers(0, 60).map(lambda number: f"{number:02}")


@settings(max_examples=300)
@given(st.lists(st.tuples(st.booleans(), few), max_size=150), few)
def test_it_holds_what_a_set_holds(steps: list[tuple[bool, str]], at: str) -> None:
    names, model = SortedNames(), set[str]()
    for add, name in steps:
        if add and name not in model:
            names.add(name)
            model.add(name)
        elif not add and name in model:
            names.remove(name)
            model.remove(name)
        elif not add:
            with pytest.raises(KeyError):
                names.remove(name)
    assert len(names) == len(model)
    assert list(names.walk("", inclusive=True)) == sorted(model)
    assert list(names.walk(at, inclusive=True)) == sorted(n for n in model if n >= at)
    assert list(names.walk(at, inclusive=False)) == sorted(n for n in model if n > at)


def test_removing_from_nothing_is_an_error() -> None:
    with pytest.raises(KeyError):
        SortedNames().remove("a")


def test_names_that_come_in_order_and_go_in_order() -> None:
    names = SortedNames()
    every = [f"{number:04}" for number in range(1_000)]
    for name in every:
        names.add(name)
    assert list(names.walk("", inclusive=True)) == every
    for name in every[:-1]:
        names.remove(name)
    assert list(names.walk("", inclusive=True)) == every[-1:]
