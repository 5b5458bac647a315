"""What the tests of whole fleets get without asking; for the conftest.py of their folders."""

from collections.abc import Iterator

import pytest

from fleet import Fleet


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Three nodes behind Nginx over a Redis, for one test."""
    with Fleet() as running:
        yield running
