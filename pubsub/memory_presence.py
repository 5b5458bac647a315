"""Who is present in a channel, over all nodes? This file: the presence store of a single node."""

from collections import OrderedDict
from itertools import islice
from typing import Literal

from pubsub.presence import Member, Members, PresenceChange, PresenceSink
from pubsub.presence_cursor import read_cursor, write_cursor
from pubsub.sorted_names import SortedNames


class _Set:
    """The members of one channel, by session."""

    __slots__ = ("members", "sessions", "version")

    def __init__(self, version: int) -> None:
        self.version = version
        self.members: dict[str, Member] = {}
        self.sessions = SortedNames()


class MemoryPresence:
    """Keeps presence in the memory of this process; see `PresenceStore` for what it promises.

    A set that becomes empty is dropped, but a version must never go backwards, since those who
    saw an earlier one compare. So the versions of the last `max_empty` empty sets are remembered.
    Beyond that the longest empty is forgotten, and no channel's version starts below the highest
    version ever forgotten: whoever compares then sees changes that were none, never misses one.
    """

    def __init__(self, *, max_empty: int = 10_000) -> None:
        self._sink: PresenceSink
        self._max_empty = max_empty
        self._sets: dict[str, _Set] = {}
        # Versions of empty sets, the longest empty first.
        self._empty: OrderedDict[str, int] = OrderedDict()
        self._least = 0

    def bind(self, sink: PresenceSink) -> None:
        self._sink = sink

    async def enter(self, channel: str, member: Member) -> None:
        entry = self._sets.get(channel)
        if entry is None:
            entry = self._sets[channel] = _Set(self._empty.pop(channel, self._least))
        before = entry.members.get(member.session)
        if before == member:
            return
        entry.members[member.session] = member
        if before is None:
            entry.sessions.add(member.session)
        self._announce(channel, entry, "join" if before is None else "update", member)

    async def leave(self, channel: str, session: str) -> None:
        entry = self._sets.get(channel)
        member = None if entry is None else entry.members.pop(session, None)
        if entry is None or member is None:
            return
        entry.sessions.remove(session)
        if not entry.members:
            del self._sets[channel]
            self._remember(channel, entry.version + 1)
        self._announce(channel, entry, "leave", member)

    async def members(self, channel: str, *, cursor: str | None = None, limit: int) -> Members:
        after = None if cursor is None else read_cursor(cursor)
        entry = self._sets.get(channel)
        if entry is None:
            return Members((), 0, self._empty.get(channel, self._least))
        names = entry.sessions.walk(after or "", inclusive=after is None)
        page = list(islice(names, max(0, limit)))
        more = bool(page) and next(names, None) is not None
        return Members(
            tuple([entry.members[session] for session in page]),
            len(entry.members),
            entry.version,
            write_cursor(page[-1]) if more else None,
        )

    def _remember(self, channel: str, version: int) -> None:
        self._empty[channel] = version
        if len(self._empty) > self._max_empty:
            self._least = max(self._least, self._empty.popitem(last=False)[1])

    def _announce(
        self,
        channel: str,
        entry: _Set,
        action: Literal["join", "leave", "update"],
        member: Member,
    ) -> None:
        entry.version += 1
        self._sink.on_presence(PresenceChange(channel, action, member, entry.version))
