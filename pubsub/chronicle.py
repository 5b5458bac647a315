"""Where is an event kept? This file: the archive and the recent past, read as one."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from msgspec.structs import replace

from pubsub.archive import Archive, Query
from pubsub.broker import Broker, History
from pubsub.chain import Gap, begins_epoch, follows, gaps, leaps, straighten
from pubsub.errors import ArchiveBehind
from pubsub.event import Event
from pubsub.position import Position

_PAUSE_S: Final = (0.02, 0.5)
# Events that are looked through in one read for the first one of a time.
_PIECE: Final = 500


class ArchiveRules(Protocol):
    """Where it is found whether a channel is archived."""

    def archived(self, channel: str) -> bool: ...


class Coming(Protocol):
    """What brings events into the archive."""

    async def mark(self, channel: str) -> tuple[int, int]:
        """Return up to where events of the channel have been sent on their way by now."""
        ...

    async def passed(self, channel: str, mark: tuple[int, int]) -> bool:
        """Return whether all that was on its way at that mark has come into the archive."""
        ...


class Chronicle:
    """Reads events of channels, wherever they are kept.

    The recent past comes from the broker, and the archive is asked only for what lies before it,
    so that whoever was away for a moment does not depend on the archive. What was read is one
    chain: an event that is missing between others may be on its way from the one to the other, so
    it is waited for, up to `wait_s`; then ArchiveBehind is raised. Only a gap that is for good
    (its events never came into the archive) stays in a History, and shows by `gaps`.

    With `archive` None it reads from the broker alone. Safe to cancel.
    """

    def __init__(
        self,
        broker: Broker,
        archive: Archive | None,
        rules: ArchiveRules,
        coming: Coming | None = None,
        *,
        wait_s: float = 5.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._broker = broker
        self._archive = archive
        self._rules = rules
        self._coming = coming
        self._wait_s = wait_s
        self._sleep = sleep

    async def history(
        self,
        channel: str,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int,
        newest: bool = False,
    ) -> History | None:
        """Return events as `Broker.history` does, archived ones included; None if there are none.

        Raises BrokerUnavailable and ArchiveUnavailable. Of a channel without a record, the top is
        the last event that the archive has.
        """
        if self._archive is None or not self._rules.archived(channel):
            return await self._broker.history(
                channel, after=after, before=before, limit=limit, newest=newest
            )
        archive, coming = self._archive, self._coming
        found = await self._read(archive, channel, after, before, limit, newest)
        if found is None or coming is None:
            return found
        missing = _missing(found, after, before, limit, newest)
        if not missing or not await self._come(archive, coming, channel, missing):
            return found
        # As of then: of what was published since, more may be on its way by now.
        top = found.top
        before = top.offset + 1 if before is None else min(before, top.offset + 1)
        found = await self._read(archive, channel, after, before, limit, newest)
        return None if found is None else History(found.events, top, found.floor)

    async def first_since(self, channel: str, since_ms: int) -> tuple[Position | None, bool]:
        """Return the position before the first event of a time or later, None if there is none.

        And whether it is known that there was no other such event before it, which is gone.
        """
        after = 0
        archived = self._archive is not None and self._rules.archived(channel)
        if self._archive is not None and archived:
            # From the last one before it on, to see whether they join. An epoch may have leapt.
            query = Query(channel=channel, since_ms=since_ms, limit=1)
            events = await self._archive.read(query)
            high = events[0].position.offset if events else None
            query = Query(channel=channel, before=high, limit=1, newest=True)
            if events := await self._archive.read(query):
                after = max(0, events[0].position.offset - 1)
        before: Event | None = None
        while True:
            history = await self.history(channel, after=after, limit=_PIECE)
            if history is None:
                return None, True
            for event in history.events:
                if event.time >= since_ms:
                    start = event.before()
                    if before is not None:
                        whole = follows(before.position, event)
                    else:
                        # A new record of an archived channel does not begin at 0.
                        whole = archived and begins_epoch(event)
                    return start, whole or start.offset in (0, history.floor)
                before = event
            if not history.events:
                last = history.floor if before is None else before.position.offset
                top = history.top
                return None, last >= top.offset or (archived and top.check == top.epoch)
            after = history.events[-1].position.offset

    # What stands behind

    async def _come(
        self, archive: Archive, coming: Coming, channel: str, missing: Sequence[Gap]
    ) -> bool:
        """Wait for all that is on its way by now; False if what is missing will never come."""
        deadline = asyncio.get_running_loop().time() + self._wait_s
        pause = _PAUSE_S[0]
        mark = await coming.mark(channel)
        while not await coming.passed(channel, mark):
            if await self._lost(archive, channel, missing):
                return False
            if asyncio.get_running_loop().time() + pause > deadline:
                raise ArchiveBehind("events are still on their way into the archive")
            await self._sleep(pause)
            pause = min(2 * pause, _PAUSE_S[1])
        return True

    async def _read(
        self,
        archive: Archive,
        channel: str,
        after: int,
        before: int | None,
        limit: int,
        newest: bool,
    ) -> History | None:
        recent = await self._broker.history(
            channel, after=after, before=before, limit=limit, newest=newest
        )
        events: Sequence[Event] = () if recent is None else recent.events
        low = after if recent is None else max(after, recent.floor)
        if events:
            high: int | None = events[0].position.offset
        else:
            high = before
            if recent is not None:
                beyond = recent.top.offset + 1
                high = beyond if before is None else min(before, beyond)
        room = limit - len(events) if newest else limit
        if room > 0 and (high is None or high > low + 1):
            query = Query(channel=channel, after=low, before=high, limit=room, newest=newest)
            older = await self._older(archive, query, events)
            later: Sequence[Event] = events
            if before is not None and not events and _is_tied(older):
                # What follows says which is the true one, though it was not asked for.
                tied = older[-1].position.offset
                ahead = await self._read(archive, channel, tied, None, 1, False)
                later = () if ahead is None else ahead.events
            joined = straighten(older, later)
            if not events:
                joined = joined[: len(joined) - len(later)]
        else:
            joined = list(events)
        joined = joined[-limit:] if newest else joined[:limit]
        if recent is not None:
            return History(tuple(joined), recent.top, recent.floor)
        last = await archive.read(Query(channel=channel, limit=1, newest=True))
        return History(tuple(joined), last[-1].position, 0) if last else None

    @staticmethod
    async def _older(archive: Archive, query: Query, events: Sequence[Event]) -> list[Event]:
        """Return archived events, of which as many as asked for are true, if there are that many.

        `events` are the recent ones behind them. What a fail-over made untrue must not fill a page,
        which then would look like the last one. At the cut there are all events of an offset.
        """
        found: list[Event] = []
        ask, after, before = query.limit + 1, query.after, query.before
        while True:
            piece = await archive.read(replace(query, after=after, before=before, limit=ask))
            whole = len(piece) < ask
            if not whole:
                # There may be further ones of the offset where it was cut.
                cut = piece[0 if query.newest else -1].position.offset
                piece = [event for event in piece if event.position.offset != cut]
                if not piece:
                    ask *= 2
                    continue
            found = [*piece, *found] if query.newest else [*found, *piece]
            if whole:
                return found
            if query.newest:
                if len(straighten(found, events)) >= query.limit + len(events):
                    return found
                before = piece[0].position.offset
            else:
                if len(straighten(found)) >= query.limit and not _is_tied(found):
                    return found
                after = piece[-1].position.offset

    @staticmethod
    async def _lost(archive: Archive, channel: str, missing: Sequence[Gap]) -> bool:
        """Return whether all that is missing is known never to have come into the archive."""
        after, before = missing[0].after.offset, missing[-1].before.offset + 1
        known = await archive.unarchived(channel, after=after, before=before)
        ranges = [(each.first - 1, each.last) for each in known]
        return all(_covered(gap, ranges) for gap in missing)


def _is_tied(events: Sequence[Event]) -> bool:
    """Return whether the last event is not the only one at its offset."""
    return len(events) > 1 and events[-1].position.offset == events[-2].position.offset


def _covered(gap: Gap, ranges: Sequence[tuple[int, int]]) -> bool:
    """Return whether ranges of offsets (after, up to), together, hold all of a gap."""
    reached = gap.after.offset
    for after, last in sorted(ranges):
        if after <= reached:
            reached = max(reached, last)
    return reached >= gap.before.offset


def _missing(
    history: History, after: int, before: int | None, limit: int, newest: bool
) -> Sequence[Gap]:
    """Return where events may be missing: between others, and between them and the ends.

    Where an epoch begins further on than one behind the last event, the end of the one before may
    be missing. Nothing shows it, so that is among them.
    """
    events, top = history.events, history.top
    end = top.offset if before is None else min(top.offset, before - 1)
    low = max(after, history.floor)
    full = len(events) >= limit
    if not events:
        # With a top that begins an epoch there is nothing below it but for earlier ones.
        nothing = end <= low or limit <= 0 or (not low and top.check == top.epoch)
        return () if nothing else [Gap(Position(top.epoch, low, ""), Position(top.epoch, end, ""))]
    found = sorted([*gaps(events), *leaps(events)], key=lambda gap: gap.after.offset)
    first, last = events[0].before(), events[-1].position
    if (not newest or not full) and first.offset > low and (low or not begins_epoch(events[0])):
        found.insert(0, Gap(Position(first.epoch, low, ""), first))
    if (newest or not full) and last.offset < end:
        found.append(Gap(last, Position(top.epoch, end, "")))
    return found
