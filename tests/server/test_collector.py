"""The garbage collector is kept from holding the loop, and forgets nothing for good."""

import gc
import logging
import weakref
from collections.abc import Iterator

import pytest

from server.collector import Collector


class Cycle:
    """Something that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    assert gc.get_threshold() == thresholds
    assert gc.get_freeze_count() == 0
    assert not [
        each for each in gc.callbacks if isinstance(getattr(each, "__self__", 0), Collector)
    ]


def test_what_a_full_collection_left_is_not_looked_at_again() -> None:
    with Collector():
        kept = [[] for _ in range(10_000)]  # type: list[list[int]]
        assert len(gc.get_objects(generation=0)) + len(gc.get_objects(generation=1)) > 1_000
        gc.collect()
        aside = gc.get_freeze_count()
        assert aside > 10_000
        assert sum(len(gc.get_objects(generation=each)) for each in range(3)) < 1_000
        del kept
        # Freed by their reference counts.
        assert gc.get_freeze_count() < aside - 9_000


def test_young_garbage_is_collected_as_ever() -> None:
    with Collector():
        gone = weakref.ref(Cycle())
        gc.collect(0)
        assert gone() is None


def test_a_cycle_that_was_set_aside_waits_for_a_complete_collection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "server.collector")
    with Collector(complete_every=3):
        cycle = Cycle()
        gc.collect()
        gone = weakref.ref(cycle)
        del cycle
        gc.collect()
        gc.collect()
        assert gone() is not None
        assert not caplog.records
        gc.collect()
        assert gone() is None
        (record,) = caplog.records
        assert record.getMessage() == "complete garbage collection"
        assert vars(record)["collected"] >= 1 and vars(record)["took_ms"] >= 0
        # And the next one is as far away again.
        gc.collect()
        gc.collect()
        gc.collect()
        assert len(caplog.records) == 1


def test_collections_of_the_young_do_not_count() -> None:
    with Collector(complete_every=1):
        cycle = Cycle()
        gc.collect()
        gone = weakref.ref(cycle)
        del cycle
        for _ in range(5):
            gc.collect(1)
        assert gone() is not None
        gc.collect()
        assert gone() is None
