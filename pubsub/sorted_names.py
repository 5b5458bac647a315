"""Where are events kept, and who is present? This file: a sorted set of names for paged lists."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import islice
from typing import Final

# One sorted list of 1,000,000 names would move 4 MB of pointers for each insertion.
_BLOCK: Final = 512


class SortedNames:
    """Distinct names in order: a list of short sorted lists.

    To add, remove or find takes a few microseconds, however many names there are.
    """

    __slots__ = ("_blocks", "_lasts", "_size")

    def __init__(self) -> None:
        self._blocks: list[list[str]] = []
        # The last name of each block, to find a name's block by.
        self._lasts: list[str] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, name: str) -> None:
        """Add a name that is not there yet."""
        self._size += 1
        if not self._blocks:
            self._blocks.append([name])
            self._lasts.append(name)
            return
        at = bisect_left(self._lasts, name)
        if at == len(self._lasts):
            at -= 1
            self._lasts[at] = name
        block = self._blocks[at]
        insort(block, name)
        if len(block) > _BLOCK:
            half = len(block) // 2
            self._blocks[at : at + 1] = [block[:half], block[half:]]
            self._lasts.insert(at, block[half - 1])

    def remove(self, name: str) -> None:
        """Remove a name; raises KeyError if it is not there."""
        at = bisect_left(self._lasts, name)
        if at == len(self._lasts):
            raise KeyError(name)
        block = self._blocks[at]
        place = bisect_left(block, name)
        if block[place] != name:
            raise KeyError(name)
        del block[place]
        self._size -= 1
        if not block:
            del self._blocks[at], self._lasts[at]
        else:
            self._lasts[at] = block[-1]

    def walk(self, start: str, *, inclusive: bool) -> Iterator[str]:
        """Iterate in order from `start`, itself included or not.

        `start` need not be there. No name may be added or removed meanwhile.
        """
        bisect = bisect_left if inclusive else bisect_right
        at = bisect(self._lasts, start)
        if at == len(self._lasts):
            return
        block = self._blocks[at]
        yield from islice(block, bisect(block, start), None)
        for block in islice(self._blocks, at + 1, None):
            yield from block
