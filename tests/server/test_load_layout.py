from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.load_layout import Layout


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    channels = draw(st.integers(1, 40))
    return Layout(
        sessions=draw(st.integers(1, 120)),
        channels=channels,
        per_session=draw(st.integers(1, channels)),
        publishers=draw(st.integers(1, 7)),
        wires=draw(st.integers(1, 2)),
    )


@given(layouts())
def test_sessions_are_spread_evenly_over_channels(layout: Layout) -> None:
    on = Counter(each for i in range(layout.sessions) for each in layout.channels_of(i))
    counts = [on[channel] for channel in range(layout.channels)]
    assert sum(counts) == layout.sessions * layout.per_session
    assert max(counts) - min(counts) <= 1
    assert all(len(set(layout.channels_of(i))) == layout.per_session for i in range(3))


@given(layouts())
def test_every_lane_has_one_publisher_and_every_publisher_and_channel_a_lane(
    layout: Layout,
) -> None:
    lanes = [lane for each in range(layout.publishers) for lane in layout.lanes_of(each)]
    assert sorted(lanes) == list(range(layout.lanes))
    assert {lane % layout.channels for lane in lanes} == set(range(layout.channels))
    assert all(layout.lanes_of(each) for each in range(layout.publishers))


@given(layouts())
def test_every_channel_has_a_witness_for_each_of_its_wires(layout: Layout) -> None:
    def pairs(sessions: "set[int] | range") -> set[tuple[int, int]]:
        return {(layout.wire_of(i), each) for i in sessions for each in layout.channels_of(i)}

    chosen = layout.witnesses()
    assert pairs(chosen) == pairs(range(layout.sessions))
    assert {0, layout.sessions - 1} <= chosen


@pytest.mark.parametrize(
    "layout",
    [
        Layout(sessions=10, wires=2),
        Layout(sessions=20, channels=5, wires=2),
        Layout(sessions=20, channels=4, per_session=3, wires=2),
    ],
)
def test_the_subscribers_of_each_channel_have_all_wires(layout: Layout) -> None:
    for channel in range(layout.channels):
        found = Counter(
            layout.wire_of(i) for i in range(layout.sessions) if channel in layout.channels_of(i)
        )
        assert len(found) == 2


def test_few_of_many_sessions_are_witnesses() -> None:
    assert len(Layout(sessions=10_000).witnesses()) < 40


def test_names_are_as_long() -> None:
    layout = Layout(sessions=1, channels=2_000, prefix="x.y")
    assert layout.name(0) == "x.y.000000"
    assert len({len(layout.name(i)) for i in range(2_000)}) == 1


def test_a_session_cannot_be_on_more_channels_than_there_are() -> None:
    with pytest.raises(ValueError, match="more channels"):
        Layout(sessions=1, channels=2, per_session=3)
