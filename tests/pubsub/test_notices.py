"""The notices that a node knows of: the latest of each name, bounded, and gone when they end."""

from hypothesis import given
from hypothesis import strategies as st

from pubsub.control_message import Notice
from pubsub.notices import Notices


def notice(name: str, at_s: float = 1.0, until_s: float = 100.0) -> Notice:
    return Notice("user", name, at_s, until_s)


def names(notices: Notices) -> list[str]:
    return [each.name for each in notices.all()]


def test_what_has_ended_goes() -> None:
    notices = Notices(10)
    assert notices.put(notice("a", until_s=5.0), 0.0)
    assert notices.put(notice("b", until_s=7.0), 0.0)
    assert notices.put(notice("b", 2.0, until_s=20.0), 0.0)
    assert not notices.put(notice("c", until_s=8.0), 8.0)
    assert names(notices) == ["b"]
    assert notices.put(notice("c", until_s=21.0), 20.0)
    assert names(notices) == ["c"]
    assert notices.dropped == 0


def test_the_longest_unchanged_goes_first() -> None:
    notices = Notices(3)
    for name in "abc":
        notices.put(notice(name), 0.0)
    notices.put(notice("a", 2.0), 0.0)
    notices.put(notice("d"), 0.0)
    assert names(notices) == ["c", "a", "d"]
    assert (len(notices), notices.dropped) == (3, 1)


def test_a_name_that_changes_for_ever_takes_no_more_memory() -> None:
    notices = Notices(5)
    for number in range(1_000):
        assert notices.put(notice("a", float(number), 2_000.0 + number), 0.0)
    assert len(notices._ends) < 100
    assert not notices.put(notice("x", until_s=2_998.5), 2_998.5)
    assert names(notices) == ["a"]
    assert notices.put(notice("x", until_s=9_999.0), 2_999.0)
    assert names(notices) == ["x"]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 20)), max_size=40)
)
def test_any_order_of_arrival_leads_to_the_same(steps: list[tuple[str, int, int]]) -> None:
    """Nodes hear of notices in different orders; nothing ends meanwhile."""
    every = [Notice("user", name, float(at), 100.0 + until) for name, at, until in steps]
    one, two = Notices(10), Notices(10)
    for each in every:
        one.put(each, 0.0)
    for each in reversed(every):
        two.put(each, 0.0)
    assert {each.name: each for each in one.all()} == {each.name: each for each in two.all()}
