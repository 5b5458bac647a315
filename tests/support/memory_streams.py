"""A Redis in memory. This file: streams and their groups, as far as the product's scripts use them.

Arguments are bytes; what has no place here is refused, rather than done otherwise than Redis does.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Id = tuple[int, int]
# Entries in a node (`stream-node-max-entries`), where nodes are bounded in nothing else; and the
# most that one `MAXLEN ~` lets go.
_NODE = 100
_MOST_CUT = 100 * _NODE


class ReplyError(Exception):
    """What Redis answers instead; the text begins with its code."""


class Group:
    """What was handed out to a group, and not acknowledged."""

    def __init__(self, delivered: Id) -> None:
        self.delivered = delivered
        # Ids by consumer; kept in order, since they are handed out in order.
        self.pending: dict[Id, bytes] = {}


@dataclass(slots=True)
class Node:
    """A run of entries: how many are left, and how many were let go, whose place is not free."""

    left: int = 0
    gone: int = 0


class Stream:
    """Entries by id, and the nodes in which they lie: `MAXLEN ~` lets go of whole ones."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.ids: list[Id] = []
        self.fields: list[list[bytes]] = []
        self.last: Id = (0, 0)
        self.groups: dict[bytes, Group] = {}

    def add(self, given: bytes, fields: Sequence[bytes], now_ms: int) -> bytes:
        if given == b"*":
            ms, number = self.last
            at = (now_ms, 0) if now_ms > ms else (ms, number + 1)
        else:
            at = read_id(given, 0)
        if at <= self.last:
            raise ReplyError(
                "ERR The ID specified in XADD is equal or smaller than the target stream top item"
            )
        if not self.nodes or self.nodes[-1].left + self.nodes[-1].gone >= _NODE:
            self.nodes.append(Node())
        self.nodes[-1].left += 1
        self.ids.append(at)
        self.fields.append(list(fields))
        self.last = at
        return write_id(at)

    def cut(self, count: int) -> int:
        """Let go of the oldest."""
        left = count = max(0, min(count, len(self.ids)))
        while self.nodes and left >= self.nodes[0].left:
            left -= self.nodes.pop(0).left
        if left:
            self.nodes[0].left -= left
            self.nodes[0].gone += left
        del self.ids[:count]
        del self.fields[:count]
        return count

    def about(self, most: int) -> int:
        """Let whole nodes go, so that at least `most` entries are left."""
        count = 0
        for node in self.nodes:
            if len(self.ids) - count - node.left < most or count + node.left > _MOST_CUT:
                break
            count += node.left
        return self.cut(count)

    def range(self, first: bytes, last: bytes, count: int | None) -> list[Any]:
        begin, end = self._places(first, last)
        stop = end if count is None else min(end, begin + count)
        return [[write_id(self.ids[at]), self.fields[at]] for at in range(begin, stop)]

    def reversed(self, last: bytes, first: bytes, count: int | None) -> list[Any]:
        begin, end = self._places(first, last)
        stop = begin if count is None else max(begin, end - count)
        return [[write_id(self.ids[at]), self.fields[at]] for at in range(end - 1, stop - 1, -1)]

    def _places(self, first: bytes, last: bytes) -> tuple[int, int]:
        if first == b"-":
            begin = 0
        elif first[:1] == b"(":
            begin = bisect_right(self.ids, read_id(first[1:], 0))
        else:
            begin = bisect_left(self.ids, read_id(first, 0))
        if last == b"+":
            end = len(self.ids)
        elif last[:1] == b"(":
            end = bisect_left(self.ids, read_id(last[1:], 0))
        else:
            end = bisect_right(self.ids, read_id(last, 2**64))
        return begin, max(begin, end)

    # Groups

    def create(self, name: bytes, given: bytes) -> None:
        if name in self.groups:
            raise ReplyError("BUSYGROUP Consumer Group name already exists")
        self.groups[name] = Group(read_id(given, 0))

    def group(self, name: bytes) -> Group:
        group = self.groups.get(name)
        if group is None:
            raise ReplyError("NOGROUP No such key or consumer group")
        return group

    def read(
        self, name: bytes, consumer: bytes, given: bytes, count: int, noack: bool
    ) -> list[Any] | None:
        """Hand out what nobody had (`>`), or again what this consumer has, above an id."""
        group = self.group(name)
        if given == b">":
            begin = bisect_right(self.ids, group.delivered)
            found = self.ids[begin : begin + count]
            for at in found:
                group.delivered = at
                if not noack:
                    group.pending[at] = consumer
            return [
                [write_id(at), self.fields[begin + place]] for place, at in enumerate(found)
            ] or None
        after = read_id(given, 0)
        mine = [at for at, whose in sorted(group.pending.items()) if whose == consumer]
        return [[write_id(at), self._at(at)] for at in mine if at > after][:count]

    def _at(self, at: Id) -> list[bytes] | None:
        place = bisect_left(self.ids, at)
        return self.fields[place] if self.ids[place : place + 1] == [at] else None

    def acknowledge(self, name: bytes, ids: Sequence[bytes]) -> int:
        group = self.groups.get(name)
        if group is None:
            return 0
        return sum(group.pending.pop(read_id(each, 0), None) is not None for each in ids)

    def pending(self, name: bytes) -> list[Any]:
        held = sorted(self.group(name).pending)
        if not held:
            return [0, None, None, None]
        consumers: dict[bytes, int] = {}
        for whose in self.group(name).pending.values():
            consumers[whose] = consumers.get(whose, 0) + 1
        told = [[name, b"%d" % number] for name, number in sorted(consumers.items())]
        return [len(held), write_id(held[0]), write_id(held[-1]), told]


def read_id(text: bytes, number: int) -> Id:
    """Return an id; `number` stands for the second part if there is none."""
    ms, _, rest = text.partition(b"-")
    return int(ms), int(rest) if rest else number


def write_id(at: Id) -> bytes:
    return b"%d-%d" % at
