from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.load_histogram import Histogram
from server.load_plot import decades, plot, ticks
from server.load_report import Slice

SVG = "{http://www.w3.org/2000/svg}"


def slices(*rates: float) -> list[Slice]:
    found = []
    for place, rate in enumerate(rates):
        latency = Histogram()
        for number in range(10):
            latency.add(0.001 * (number + 1))
        found.append(Slice(place, place + 1, rate, rate / 10, latency))
    return found


def drawn(text: str) -> ElementTree.Element:
    """Parse a drawing, and check that it needs nothing from elsewhere."""
    root = ElementTree.fromstring(text)  # noqa: S314 - our own
    assert root.tag == f"{SVG}svg"
    assert "href" not in text and "url(" not in text and "<script" not in text
    return root


def test_a_drawing_has_a_line_for_the_rate_and_one_for_each_quantile() -> None:
    root = drawn(plot("a title", "more of it", slices(1_000, 2_000, 1_500)))
    lines = [path.get("class") for path in root.iter(f"{SVG}path")]
    assert [each for each in lines if each and each.startswith("line")] == [
        "line rate",
        "line p50",
        "line p90",
        "line p99",
    ]
    texts = ["".join(each.itertext()) for each in root.iter(f"{SVG}text")]
    assert {"a title", "more of it", "p50", "p90", "p99", "2k"} <= set(texts)
    assert "prefers-color-scheme: dark" in plot("", "", [])


def test_more_is_drawn_higher() -> None:
    root = drawn(plot("", "", slices(1_000, 4_000, 2_000)))
    (rate,) = (each for each in root.iter(f"{SVG}path") if each.get("class") == "line rate")
    heights = [float(point.split()[1]) for point in (rate.get("d") or "")[1:].split(" L")]
    assert heights[1] < heights[2] < heights[0]


@given(st.text())
def test_any_text_stays_text(text: str) -> None:
    root = drawn(plot(text, f"<b>{text}", slices(1.0)))
    (title,) = root.iter(f"{SVG}title")
    shown = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
    assert (title.text or "") == shown
    assert not list(root.iter(f"{SVG}b"))


@pytest.mark.parametrize("found", [[], slices(0.0), [Slice(0.0, 1.0)], slices(7.5)])
def test_little_or_nothing_can_be_drawn_too(found: list[Slice]) -> None:
    root = drawn(plot("x", "y", found))
    texts = ["".join(each.itertext()) for each in root.iter(f"{SVG}text")]
    assert ("nothing was measured" in texts) == (not found)


@given(st.floats(1e-3, 1e12))
def test_ticks_are_few_and_cover_what_there_is(most: float) -> None:
    found = ticks(most)
    assert found[0] == 0.0
    assert found[-1] >= most * (1 - 1e-9) and found[-2] < most
    assert 3 <= len(found) <= 8


@given(st.floats(1e-3, 1e5), st.floats(1.0, 1e6))
def test_decades_cover_what_there_is(least: float, times: float) -> None:
    found = decades(least, least * times)
    assert found[0] <= least * (1 + 1e-9)
    assert found[-1] >= least * times * (1 - 1e-9)
    assert len(found) >= 2
