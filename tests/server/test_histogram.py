"""Durations as a scrape shows them: the same as the library's own histogram."""

import re
from collections.abc import Callable

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from server.histogram import Histogram

BOUNDS = (0.0005, 0.001, 0.25, 1.0, 5.0)
# At the bounds, between, below and beyond them.
VALUES = st.sampled_from((0.0, *BOUNDS, 0.0006, 0.3, 7.5))


@pytest.mark.parametrize("write", [generate_latest, openmetrics.generate_latest])
@given(values=st.lists(VALUES))
def test_a_scrape_shows_what_the_library_would(
    write: Callable[[CollectorRegistry], bytes], values: list[float]
) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("a_seconds", "How long it takes.", BOUNDS)
    ours.register(histogram)
    other = prometheus_client.Histogram(
        "a_seconds", "How long it takes.", registry=theirs, buckets=BOUNDS
    )
    for value in values:
        histogram.observe(value)
        other.observe(value)
    assert without_time(write(ours)) == without_time(write(theirs))


def without_time(text: bytes) -> bytes:
    return re.sub(rb"(_created )\S+", rb"\1", text)
