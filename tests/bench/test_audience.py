"""Whether the cost of an event grows in a straight line with its subscribers."""

import pytest

from _results import Result
from audience import claim_line


def claims(costs: dict[int, float]) -> dict[str, float]:
    result = Result(case="a", title="a", command="a", options={})
    claim_line(result, costs)
    return {claim.key: claim.value for claim in result.claims}


def test_a_straight_line_is_straight() -> None:
    found = claims({size: 500.0 + 2.0 * (size - 1) for size in (1, 10, 100, 15_000)})
    assert found == pytest.approx({"audience.line": 1.0, "audience.spread": 1.0})


def test_what_grows_faster_than_its_audience_is_seen() -> None:
    found = claims({size: 500.0 + 0.01 * (size - 1) ** 2 for size in (1, 10, 100, 1000, 15_000)})
    assert found["audience.line"] > 1.5
    assert found["audience.spread"] > 2.0


@pytest.mark.parametrize("costs", [{1: 5.0, 10: 4.0}, {1: 5.0, 100: 4.0, 1000: 9.0}])
def test_of_noise_nothing_is_said(costs: dict[int, float]) -> None:
    assert claims(costs) == {}
