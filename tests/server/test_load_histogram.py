import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.load_histogram import Histogram

durations = st.lists(st.floats(1e-6, 900.0), min_size=1, max_size=200)


@given(durations, st.floats(0.0, 1.0))
def test_a_quantile_is_a_duration_that_was_counted_but_for_one_percent(
    found: list[float], share: float
) -> None:
    histogram = Histogram()
    for each in found:
        histogram.add(each)
    rank = max(1, math.ceil(round(share * len(found), 9)))
    exact = sorted(found)[rank - 1]
    assert math.isclose(histogram.quantile(share), exact, rel_tol=0.0101)
    assert histogram.quantile(1.0) <= histogram.greatest == max(found)
    assert histogram.total == len(found)


def test_quantiles_of_known_durations() -> None:
    histogram = Histogram()
    for number in range(1, 101):
        histogram.add(number / 1000)
    found = histogram.quantiles_ms((0.5, 0.9, 0.99))
    assert found == pytest.approx([50, 90, 99], rel=0.0101)


def test_nothing_counted_is_zero() -> None:
    assert Histogram().quantile(0.99) == 0.0


def test_what_lies_outside_counts_at_the_ends() -> None:
    histogram = Histogram()
    for each in (-1.0, 0.0, 1e-9, 5_000.0):
        histogram.add(each)
    assert histogram.total == 4
    assert histogram.quantile(0.5) < 2e-6
    assert 990 < histogram.quantile(1.0) <= histogram.greatest == 5_000.0


def test_merging_is_like_counting_all_in_one() -> None:
    draw = random.Random(7)
    one, two, both = Histogram(), Histogram(), Histogram()
    for place in range(500):
        seconds = draw.expovariate(100)
        (one if place % 2 else two).add(seconds, 3)
        both.add(seconds, 3)
    one.merge(two)
    shares = [place / 20 for place in range(21)]
    assert one.quantiles_ms(shares) == both.quantiles_ms(shares)
    assert (one.total, one.greatest) == (both.total, both.greatest)
