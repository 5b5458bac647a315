"""Where are events kept? This file: how big containers are freed without holding the loop."""

from collections import deque
from collections.abc import MutableMapping
from typing import Any, Final

# Freeing this many events or ids takes well under a millisecond, so it is done at once.
_SMALL: Final = 1_000


class Litter:
    """Containers that nobody needs any more, freed piece by piece.

    To drop the last reference to a list of 100,000 events takes 20 ms or more. What is thrown in
    here must have no other user, since it is emptied.
    """

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: deque[list[Any] | MutableMapping[Any, Any]] = deque()

    def __bool__(self) -> bool:
        return bool(self._heap)

    def throw(self, thing: list[Any] | MutableMapping[Any, Any]) -> None:
        """Take `thing`; one that is small is left to its caller to drop."""
        if len(thing) > _SMALL:
            self._heap.append(thing)

    def free(self, limit: int) -> int:
        """Free at most `limit` entries; return how many."""
        left = limit
        while left > 0 and self._heap:
            thing = self._heap[0]
            count = min(left, len(thing))
            if isinstance(thing, list):
                del thing[len(thing) - count :]
            else:
                for _ in range(count):
                    thing.popitem()
            left -= count
            if not thing:
                self._heap.popleft()
        return limit - left
