from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_rig import text_frame
from server.load_frames import PING, websocket_frames
from server.load_target import LoadFailed, mark_of, padding
from server.load_witness import Witness


class Watched:
    """A witness of two channels with one lane each, and what it told."""

    def __init__(self, events: int = 10) -> None:
        self.late: list[tuple[float, float]] = []
        sent = [array("d", (number * 1.0 for number in range(events))) for _ in range(2)]
        self.witness = Witness(
            websocket_frames,
            {0: 0, 1: 1},
            sent,
            lambda due, late: self.late.append((due, late)),
        )
        self.witness.since = 0.0

    def feed(self, *numbers: int, now: float = 100.0) -> None:
        self.witness.feed(b"".join(event(number) for number in numbers), now)


def event(number: int) -> bytes:
    return text_frame(b'{"data":"' + mark_of(number) + b'xx"}')


def test_events_are_counted_by_channel_in_events_and_bytes() -> None:
    watched = Watched()
    watched.feed(0, 1, 2, 4, 3)
    witness = watched.witness
    size = len(event(0))
    assert witness.problems == []
    assert (witness.events(), witness.came()) == ({0: 3, 1: 2}, 5)
    assert witness.bytes_of == {0: 3 * size, 1: 2 * size}
    assert witness.missing() == 15


@given(st.lists(st.integers(1, 60), max_size=40))
def test_it_does_not_matter_how_the_bytes_are_cut(cuts: list[int]) -> None:
    data = b"".join(event(number) + PING for number in range(20))
    whole, cut = Watched(), Watched()
    whole.witness.feed(data, 50.0)
    at = 0
    for size in [*cuts, len(data)]:
        cut.witness.feed(data[at : at + size], 50.0)
        at += size
    assert cut.witness.problems == whole.witness.problems == []
    assert cut.witness.crc == whole.witness.crc != 0
    assert (cut.witness.came(), cut.late) == (20, whole.late)


def test_latency_counts_from_the_time_at_which_an_event_was_due_in_the_measured_phase() -> None:
    watched = Watched()
    watched.witness.since, watched.witness.until = 1.0, 3.0
    watched.feed(0, 2, 4, 6, now=10.0)
    assert watched.late == [(1.0, 9.0), (2.0, 8.0)]


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ((0, 0), "event 0 came again, or behind later ones"),
        ((0, 4), "1 events are missing before event 4"),
        ((0, 2, 0), "event 0 came again, or behind later ones"),
        ((20,), "an event came that was not published to it: 20"),
    ],
)
def test_what_is_lost_repeated_or_made_up_is_a_problem(
    numbers: tuple[int, ...], problem: str
) -> None:
    watched = Watched()
    watched.feed(*numbers)
    assert watched.witness.problems == [problem]


def test_what_is_swapped_is_a_problem() -> None:
    watched = Watched()
    watched.feed(2, 0)
    assert watched.witness.problems == [
        "1 events are missing before event 2",
        "event 0 came again, or behind later ones",
    ]


def test_what_is_no_event_is_shown() -> None:
    watched = Watched()
    watched.witness.feed(text_frame(b'{"type":"reset"}'), 1.0)
    (problem,) = watched.witness.problems
    assert '{"type":"reset"}' in problem


def test_the_mark_of_something_else_is_no_event_of_ours() -> None:
    watched = Watched()
    watched.witness.feed(text_frame(b"~ev:12345678901x"), 1.0)
    assert watched.witness.problems == ["an event came that was not published to it: -1"]


def test_problems_are_bounded() -> None:
    watched = Watched()
    for _ in range(50):
        watched.feed(20)
    assert len(watched.witness.problems) == 5


def test_data_is_as_long_as_asked_for() -> None:
    for size in (18, 64, 16_384):
        assert len(b'"' + mark_of(7) + padding(size) + b'"') == size
    with pytest.raises(LoadFailed, match="smaller than 18 bytes"):
        padding(17)
