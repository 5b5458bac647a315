"""Who is connected here, and what may they do? This file: times on the command line."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from server.cli_output import CommandFailed

_UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_is_ms: Final = re.compile(r"[0-9]{1,15}", re.ASCII).fullmatch
_is_ahead: Final = re.compile(r"\+([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)", re.ASCII).fullmatch


def parse_time(text: str, name: str, now_s: Callable[[], float] = time.time) -> int:
    """Return a time in ms since 1970; raises CommandFailed, which calls it `name`.

    It is given as that, as so much from now (`+30s`), or by ISO 8601, in the zone of this machine
    unless it names one.
    """
    if _is_ms(text):
        return int(text)
    if match := _is_ahead(text):
        return round(now_s() * 1000 + float(match[1]) * _UNITS_MS[match[2]])
    try:
        return round(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise CommandFailed(
            f"{name} {text}: write 2030-01-31T08:00:00Z, ms since 1970, or +30s"
        ) from None


def show_time(time_ms: int) -> str:
    """Return a time in ms since 1970 as people read it."""
    when = datetime.fromtimestamp(time_ms / 1000, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
