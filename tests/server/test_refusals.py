"""How many refusals a session may collect, and how it then ends."""

from server.closing import Closing
from server.errors import BadRequest, RateLimited, Refused, Unavailable
from server.refusals import Refusals

WRONG = BadRequest("no")
HASTY = RateLimited("slowly", reason="x")
LATER = Unavailable("not now")


def ends(refused: list[Refused], most: int = 3) -> list[Closing | None]:
    refusals = Refusals()
    return [refusals.count(each, 1.0, most) for each in refused]


def test_one_more_than_allowed_ends_it_for_good() -> None:
    assert ends([WRONG] * 4) == [None, None, None, Closing.TOO_MANY_ERRORS]


def test_who_is_too_eager_may_come_back() -> None:
    assert ends([HASTY] * 4) == [None, None, None, Closing.RATE_LIMITED]


def test_one_mistake_among_the_eager_is_not_for_good() -> None:
    """Sixty rates and one refusal of another kind ended a session for good."""
    assert ends([HASTY, HASTY, WRONG, HASTY, HASTY])[-1] is Closing.RATE_LIMITED


def test_what_may_succeed_later_is_not_counted() -> None:
    """While the broker was away, clients that tried again were sent away for good."""
    assert ends([LATER] * 100) == [None] * 100


def test_a_minute_later_all_is_forgotten() -> None:
    refusals = Refusals()
    for _ in range(3):
        assert refusals.count(WRONG, 1.0, 3) is None
    assert refusals.count(WRONG, 61.5, 3) is None
    assert refusals.count(WRONG, 100.0, 3) is None
    assert refusals.count(WRONG, 100.0, 3) is None
    assert refusals.count(WRONG, 100.0, 3) is Closing.TOO_MANY_ERRORS


def test_zero_is_no_limit() -> None:
    assert ends([WRONG] * 1_000 + [HASTY] * 1_000, most=0) == [None] * 2_000
