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


# How many cases the suite has in each group; of 9, those whose sizes are taken here. 12 and 13,
# which are about compression, are in `test_websocket_deflated.py`; 8 and 11 it has not.
SUITE = {
    **{"1.1": 8, "1.2": 8, "2": 11, "3": 7, "4.1": 5, "4.2": 5, "5": 20},
    **{"6.1": 3, "6.2": 4, "6.3": 2, "6.4": 4, "6.5": 5, "6.6": 11, "6.7": 4, "6.8": 2},
    **{"6.9": 4, "6.10": 3, "6.11": 5, "6.12": 8, "6.13": 5, "6.14": 10, "6.15": 1, "6.16": 3},
    **{"6.17": 5, "6.18": 5, "6.19": 5, "6.20": 7, "6.21": 8, "6.22": 34, "6.23": 7},
    **{"7.1": 6, "7.3": 6, "7.5": 1, "7.7": 13, "7.9": 9, "7.13": 2},
    **{"9.1": 3, "9.2": 3, "9.3": 4, "9.4": 4, "9.5": 6, "9.6": 6, "9.7": 6, "9.8": 6, "10.1": 1},
}


@pytest.mark.parametrize("group", SUITE)
def test_no_case_is_left_out(group: str) -> None:
    ids = {case.id for case in cases()}
    first = 3 if group in ("9.3", "9.4") else 1

    assert {f"{group}.{number}" for number in range(first, first + SUITE[group])} <= ids


def test_case_numbers_are_unique() -> None:
    ids = [case.id for case in cases()]

    assert len(ids) == len(set(ids))
    assert {case_id.rpartition(".")[0] for case_id in ids} == SUITE.keys()
