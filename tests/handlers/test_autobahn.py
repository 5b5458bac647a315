"""The frame reader against the cases of the Autobahn test suite."""

from __future__ import annotations

import pytest

from autobahn_cases import LARGEST_BYTES, Case, cases
from handlers.frames import FrameLimits, FrameReader

LIMITS = FrameLimits(message_bytes=LARGEST_BYTES)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_case(case: Case) -> None:
    reader = FrameReader(LIMITS)
    items: list[tuple[int, bytes]] = []
    failed_by = None
    for index, chunk in enumerate(case.chunks()):
        items += reader.feed(chunk)
        if reader.violation is not None and failed_by is None:
            failed_by = index

    assert items == list(case.items)
    assert (reader.violation and reader.violation.rfc_code) == case.failure
    if case.failed_by is not None:
        assert failed_by == case.failed_by
    if reader.closed:
        assert reader.held_bytes == 0 and not reader.midway


def test_case_numbers_are_unique() -> None:
    ids = [case.id for case in cases()]

    assert len(ids) == len(set(ids))
    assert len(ids) > 230
