"""What rounds make of figures, and how figures read."""

import pytest

from _case import claim_ratio
from _results import OURS, Claim, Figure, Result, Rounds, said, shown, table


def figure(who: str, rate: float, *, variant: str = "", warning: str = "") -> Figure:
    return Figure(who=who, variant=variant, values={"rate_per_s": rate}, warning=warning)


def test_figures_are_medians() -> None:
    rounds = Rounds()
    for rate in (10.0, 500.0, 30.0):
        rounds.add(figure(OURS, rate))
    (found,) = rounds.figures()
    assert (found.values, found.rounds) == ({"rate_per_s": 30.0}, 3)


def test_ratios_are_those_of_the_rounds_and_not_of_the_medians() -> None:
    """A machine that slows down for one round weighs on both sides of it."""
    rounds = Rounds()
    for mine, theirs in ((100.0, 50.0), (10.0, 5.0), (90.0, 45.0)):
        rounds.add(figure(OURS, mine))
        rounds.add(figure("other", theirs))
    assert rounds.ratios("rate_per_s", OURS, "other") == [2.0, 2.0, 2.0]


def test_there_is_no_ratio_to_who_was_not_measured() -> None:
    rounds = Rounds()
    rounds.add(figure(OURS, 1.0))
    assert rounds.ratios("rate_per_s", OURS, "other") == []
    rounds.add(figure("other", 0.0))
    assert rounds.ratios("rate_per_s", OURS, "other") == []
    rounds.forget("other")
    assert [each.who for each in rounds.figures()] == [OURS]


def test_one_round_that_was_held_up_is_no_warning() -> None:
    rounds = Rounds()
    for warning in ("", "the load was the limit", ""):
        rounds.add(figure(OURS, 1.0, warning=warning))
    assert rounds.figures()[0].warning == ""
    for _ in range(3):
        rounds.add(figure(OURS, 1.0, warning="the load was the limit"))
    assert rounds.figures()[0].warning == "the load was the limit"


@pytest.mark.parametrize(
    ("value", "target", "at_most", "met"),
    [
        (1.1, 1.1, False, True),
        (1.0, 1.1, False, False),
        (2.0, 2.0, True, True),
        (2.1, 2.0, True, False),
        (0.0, None, False, True),
    ],
)
def test_a_claim_is_met_or_not(value: float, target: float, at_most: bool, met: bool) -> None:
    claim = Claim(key="a", what="a", value=value, target=target, at_most=at_most)
    assert claim.met is met
    result = Result(case="a", title="a", command="a", options={}, claims=[claim])
    assert result.met is met
    assert ("NOT MET" in table(result)) is not met


def test_a_problem_is_never_as_asked() -> None:
    result = Result(case="a", title="a", command="a", options={}, problems=["lost"])
    assert not result.met
    assert "PROBLEM: lost" in table(result)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("delivered_per_s", 4_012_345.0, "4.01M/s"),
        ("delivered_per_s", 251_234.0, "251k/s"),
        ("delivered_per_s", 8_800.0, "8.8k/s"),
        ("delivered_per_s", 999_499.0, "999k/s"),
        ("delivered_per_s", 50.0, "50/s"),
        ("p50_ms", 3.256, "3.26 ms"),
        ("p50_ms", 274.4, "274 ms"),
        ("p50_ms", 27.44, "27.4 ms"),
        ("session_bytes", 1_712.3, "1,712 bytes"),
        ("cpu_share", 0.0052, "0.52 %"),
        ("delivery_us", 2.5, "2.50 us"),
        ("all_back_s", 1.25, "1.25 s"),
        ("times", 12.0, "12 times"),
        ("reads", 3.0, "3"),
    ],
)
def test_a_value_is_shown_with_its_unit(name: str, value: float, text: str) -> None:
    assert shown(name, value) == text


def test_a_claim_says_what_is_asked() -> None:
    claim = Claim(key="a", what="p99", value=8.5, unit="_ms", target=8.0, at_most=True)
    assert said(claim) == "p99: 8.50 ms (at most 8 ms)"


def test_a_claim_of_several_rounds_says_between_what_they_lay() -> None:
    result = Result(case="a", title="a", command="a", options={})
    rounds = Rounds()
    for mine in (10.0, 30.0, 20.0):
        rounds.add(figure(OURS, mine))
        rounds.add(figure("other", 10.0))
    claim_ratio(result, rounds, "a", "rate", "rate_per_s", OURS, "other", target=1.5)
    (claim,) = result.claims
    assert said(claim) == "rate: 2 times (1 to 3) (at least 1.50 times)"
    assert claim.met


def test_a_claim_of_one_round_says_no_more() -> None:
    result = Result(case="a", title="a", command="a", options={})
    rounds = Rounds()
    rounds.add(figure(OURS, 20.0))
    rounds.add(figure("other", 10.0))
    claim_ratio(result, rounds, "a", "rate", "rate_per_s", OURS, "other")
    assert [said(claim) for claim in result.claims] == ["rate: 2 times"]


def test_who_was_left_out_is_told() -> None:
    result = Result(
        case="a", title="a", command="a", options={}, left_out={"nchan": "there is no nginx"}
    )
    assert "left out: nchan: there is no nginx" in table(result)


def test_rows_of_other_shapes_stand_in_one_table() -> None:
    result = Result(
        case="a",
        title="a",
        command="a",
        options={},
        figures=[
            Figure(who="short", values={"p50_ms": 1.0}),
            Figure(who="long", values={"p50_ms": 1.0, "p99_ms": 2.0}, load_cpu=0.5, warning="x"),
        ],
    )
    lines = table(result).splitlines()
    assert "p99 2 ms" in lines[2]
    assert "load CPU 50 %" in lines[2]
    assert "LOAD WAS THE LIMIT" in lines[2]
    assert "LIMIT" not in lines[1]
