"""What was seen in a run? This file: whether sessions ended as they may (pure)."""

from collections.abc import Iterator
from typing import Final

from checker.history import History, Violation
from checker.presence import quiet_times

# "Come back" of the protocol, and what HTTP servers say that go away.
GOING_AWAY: Final = 1001
CODES: Final = range(4000, 4008)


def check_endings(history: History) -> Iterator[Violation]:
    """Yield which sessions ended without need, or in a way that is not documented."""
    within_s = history.scope.cuts_s
    if within_s is None:
        return
    first = min((each.at for each in history.faults if each.begins), default=float("inf"))
    quiet = quiet_times(history.faults, float("inf"))
    for each in history.closed:
        who = f"the session {each.session} of {each.client}"
        why = f"{each.code or 'a cut'} at {each.at:.1f} s {each.reason}"
        if each.at < first:
            yield Violation("endings", f"{who} ended before any fault: {why}")
        elif each.code in CODES:
            if not each.told:
                yield Violation("endings", f"{who} ended and was not told before: {why}")
        elif each.code not in (0, GOING_AWAY):
            yield Violation("endings", f"{who} ended by a code that it may not: {why}")
        elif not each.code and any(since + within_s < each.at < upto for since, upto in quiet):
            yield Violation("endings", f"{who} ended while no fault lasted: {why}")
