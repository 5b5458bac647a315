"""Times on the command line."""

import pytest

from server.cli_output import CommandFailed
from server.cli_times import parse_time, show_time

NOW_S = 1_789_000_000.5


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("1789000000123", 1_789_000_000_123),
        ("0", 0),
        ("+30s", 1_789_000_030_500),
        ("+0s", 1_789_000_000_500),
        ("+1.5s", 1_789_000_002_000),
        ("+250ms", 1_789_000_000_750),
        ("+2m", 1_789_000_120_500),
        ("+1h", 1_789_003_600_500),
        ("+1d", 1_789_086_400_500),
        ("2026-09-10T01:46:40Z", 1_789_004_800_000),
        ("2026-09-10T01:46:40.250+02:00", 1_788_997_600_250),
        ("2026-09-10T01:46:40-01:00", 1_789_008_400_000),
    ],
)
def test_a_time(text: str, time_ms: int) -> None:
    assert parse_time(text, "--deliver-at", lambda: NOW_S) == time_ms


def test_without_a_zone_it_is_that_of_this_machine() -> None:
    found = parse_time("2026-09-10T01:46:40", "--deliver-at")
    assert abs(found - 1_789_004_800_000) <= 15 * 3_600_000


@pytest.mark.parametrize(
    "text", ["", "soon", "30s", "+30", "+s", "-30s", "+-1s", "1.5", "٣", "+1w", "9" * 16, "99:99"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(CommandFailed, match="write 2030"):
        parse_time(text, "--deliver-at")


def test_it_is_shown_in_utc() -> None:
    assert show_time(1_789_000_000_005) == "2026-09-10T00:26:40.005Z"
