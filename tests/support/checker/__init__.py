"""What was seen in a run? A pure check of it: `check` returns every broken promise.

A history is a list of records (`checker.records`), as clients, publishers and readers of the
archive made them. From the outside only: nothing here asks a server, or uses its code.

| rule | what it says when it is broken |
| --- | --- |
| lost | an acknowledged event did not come, and its subscriber was not told |
| twice | an event came twice to one client, or is twice in a store |
| order, gap, chain, epoch, resumed | what came is not one unbroken sequence |
| position, id | a position has two events, or an id two positions in one epoch |
| fork | an epoch has two branches, and somebody who saw it was not told that it is over |
| unknown, refused, changed | something came that nobody published so |
| unasked | something came outside of a subscription |
| presence | a room was seen wrong for longer than the bound |
| archive, history | a store does not have what was acknowledged, and tells no gap |
| resets, absent | more tellings than allowed; a client never came back |
| endings | a session ended too often, without need, or in a way that is not documented |
| strange | an answer or a message that never should come |
| drained | the history has no end, so that nothing can be said to be missing |
"""

from collections.abc import Iterable

from checker.archive import check_stores
from checker.delivery import check_bounds, check_delivery
from checker.endings import check_endings
from checker.history import History, Violation
from checker.presence import check_presence
from checker.records import Record

__all__ = ["History", "Violation", "check"]


def check(records: Iterable[Record]) -> list[Violation]:
    """Return every broken promise of a history; the same records give the same answer."""
    history = History.of(records)
    found = [Violation("strange", f"{each.who}: {each.text}") for each in history.strange]
    if history.drained is None:
        found.append(Violation("drained", "the history does not say that all has come"))
    found += check_delivery(history)
    found += check_bounds(history)
    found += check_endings(history)
    found += check_presence(history)
    found += check_stores(history)
    return found
