"""How do bytes come in and go out? This file: a channel's kept events, to be read and purged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from config.patterns import NameRejected, check_event_name
from handlers.base import BaseHandler
from handlers.models import EventPage, Missing, Purged
from pubsub.broker import History
from pubsub.chain import Gap
from pubsub.chain import follows as follows_event
from pubsub.chronicle import Chronicle
from pubsub.envelope import MOST_OFFSET
from pubsub.errors import PubSubError
from pubsub.event import Event
from pubsub.position import Position
from server.codec import JSON
from server.commands import channel_name, knows, position
from server.errors import BadRequest, Conflict, NotFound
from server.publishing import refusal
from server.sequence import chained

_DEFAULT_LIMIT: Final = 50
# Events that one request looks through for those of a name, about.
_MOST_SCANNED: Final = 5_000


def follows(since: Position, history: History) -> bool:
    """Say whether the events after `since` are all there, from the first on.

    `history` holds at least the first kept event after `since.offset`, if there is one.
    """
    top = history.top
    if since == top:
        return True
    if since.epoch != top.epoch or since.offset >= top.offset or since.offset < history.floor:
        return False
    return bool(history.events) and chained(since, history.events[:1])


def behind(cursor: Position, events: Sequence[Event]) -> Sequence[Event] | None:
    """Return the events that follow the one at `cursor`; None if some that followed are gone.

    `events` are read from `cursor.offset` on, that one included if it is kept still. Unlike a
    `since`, a cursor goes on into the next epoch: this is a walk through what is kept.
    """
    if events and events[0].position == cursor:
        return events[1:]
    return events if events and chained(cursor, events[:1]) else None


class HistoryHandler(BaseHandler):
    """`GET` and `DELETE /v1/channels/{channel}/events`.

    In order `asc` (oldest first) a page begins behind `since` or `cursor`, with the first event
    of `from` or later, else with the oldest kept event; in order `desc` it begins before `before`
    or `cursor`, with the last event before `to`, else with the newest. A `since` or `cursor` with
    a gap behind it is a conflict, and a gap within is told: nothing is left out in silence.
    """

    route: ClassVar[str] = "/v1/channels/{channel}/events"

    async def get(self, name: str) -> None:
        """Answer a page of kept events."""
        channel = channel_name(name)
        self.authenticate(anonymous=True).require("history", channel)
        order = self.parameter("order") or "asc"
        if order not in ("asc", "desc"):
            raise BadRequest("order is asc or desc")
        walk = _Walk(
            self.node.chronicle,
            channel,
            archived=self.node.rules.archived(channel),
            since=self._position("since"),
            before=self._position("before"),
            from_ms=self.time("from"),
            to_ms=self.time("to"),
            name=self._event_name(),
            cursor=self._position("cursor"),
            limit=self.count("limit", _DEFAULT_LIMIT, self.node.settings.limits.history_per_reply),
        )
        try:
            page = await (walk.forward() if order == "asc" else walk.backward())
        except PubSubError as error:
            raise refusal(error) from None
        self.reply(page)

    async def delete(self, name: str) -> None:
        """Purge: epoch and offsets go on, and nobody in step notices."""
        channel = channel_name(name)
        self.authenticate().require_scope("purge", channel)
        try:
            floor = await self.node.broker.purge(channel)
        except PubSubError as error:
            raise refusal(error) from None
        if floor is None:
            raise NotFound(f"there is no channel {channel}")
        self.reply(Purged(channel=channel, position=str(floor)))

    def _position(self, name: str) -> Position | None:
        return position(self.parameter(name), name)

    def _event_name(self) -> str | None:
        name = self.parameter("name")
        if name is not None:
            try:
                check_event_name(name)
            except NameRejected as error:
                raise BadRequest(f"name: {error}") from None
        return name


@dataclass(slots=True, kw_only=True)
class _Bounds:
    """What a page is to hold."""

    since: Position | None
    before: Position | None
    from_ms: int | None
    to_ms: int | None
    name: str | None
    cursor: Position | None
    limit: int


class _Walk:
    """Reads the events of one page, in as many pieces as it takes."""

    def __init__(
        self, chronicle: Chronicle, channel: str, *, archived: bool, **bounds: Any
    ) -> None:
        self._chronicle = chronicle
        self._channel = channel
        self._archived = archived
        self._bounds = _Bounds(**bounds)
        self._shown: list[Event] = []
        self._missing: list[Gap] = []
        self._last: Event | None = None
        self._scanned = 0
        self._ended = False

    async def forward(self) -> EventPage:
        """Return a page of the oldest events first."""
        bounds = self._bounds
        since, cursor, limit = bounds.since, bounds.cursor, bounds.limit
        end = None if bounds.before is None else bounds.before.offset
        if cursor is not None:
            history = await self._read(cursor.offset - 1, end, limit + 2)
            if history is not None and history.events and history.events[0].position == cursor:
                self._last = history.events[0]
            events = None if history is None else behind(cursor, history.events)
            if events is None and history is not None and cursor == history.top:
                events = ()
            elif events is None and history is not None and self._archived and history.events:
                # It begins behind a gap: that is told.
                events = [e for e in history.events if e.position.offset > cursor.offset]
                self._missing += [Gap(cursor, each.before()) for each in events[:1]]
            if events is None:
                raise Conflict("events behind cursor are gone; begin anew")
        else:
            after = 0 if since is None else since.offset
            if bounds.from_ms is not None:
                first, _whole = await self._chronicle.first_since(self._channel, bounds.from_ms)
                after = MOST_OFFSET if first is None else max(after, first.offset)
            history = await self._read(after, end, limit + 1)
            events = () if history is None else history.events
            if since is not None:
                await self._require_since(
                    since, history if events and after == since.offset else None
                )
        self._require_before(bounds.before, history)
        while True:
            whole = self._take(events)
            if not whole or not events or not self._goes_on():
                return self._page(history, more=not whole)
            last = events[-1].position
            following = await self._read(last.offset, end, limit + 1)
            if following is None or not following.events:
                return self._page(history, more=False)
            events = following.events
            if self._scanned > _MOST_SCANNED:
                return self._page(history, more=True)

    async def backward(self) -> EventPage:
        """Return a page of the newest events first."""
        bounds = self._bounds
        end = bounds.cursor or bounds.before
        after = 0 if bounds.since is None else bounds.since.offset
        if bounds.since is not None:
            await self._require_since(bounds.since, None)
        high = None if end is None else end.offset
        if bounds.to_ms is not None and bounds.cursor is None:
            first, _whole = await self._chronicle.first_since(self._channel, bounds.to_ms)
            if first is not None:
                high = first.offset + 1 if high is None else min(high, first.offset + 1)
        if bounds.cursor is not None:
            # With the event at the cursor, to see whether the next one is the one before it.
            history = await self._read(
                after, bounds.cursor.offset + 1, bounds.limit + 2, newest=True
            )
        else:
            history = await self._read(after, high, bounds.limit + 1, newest=True)
        self._require_before(end, history)
        found = history
        while True:
            events = () if found is None else found.events[::-1]
            if bounds.cursor is not None and events and events[0].position == bounds.cursor:
                self._last, events = events[0], events[1:]
            whole = self._take(events)
            if not whole or not events or not self._goes_on():
                return self._page(history, more=not whole)
            if self._scanned > _MOST_SCANNED:
                return self._page(history, more=True)
            found = await self._read(
                after, events[-1].position.offset, bounds.limit + 1, newest=True
            )

    def _goes_on(self) -> bool:
        """Say whether the page is to be filled from more events than it can hold."""
        return self._bounds.name is not None and not self._ended

    def _take(self, events: Sequence[Event]) -> bool:
        """Put events on the page as they come; False if there are more than fit."""
        bounds = self._bounds
        for event in events:
            if bounds.to_ms is not None and event.time >= bounds.to_ms:
                # Backwards nothing that late is read; forwards it is the end.
                self._ended = True
                return True
            if bounds.from_ms is not None and event.time < bounds.from_ms:
                self._ended = True
                return True
            if len(self._shown) == bounds.limit:
                return False
            if self._last is not None:
                older, newer = sorted((self._last, event), key=_offset)
                if not follows_event(older.position, newer):
                    self._missing.append(Gap(older.position, newer.before()))
            self._last = event
            self._scanned += 1
            if bounds.name is None or event.name == bounds.name:
                self._shown.append(event)
        return True

    def _page(self, history: History | None, *, more: bool) -> EventPage:
        last = self._last
        return EventPage(
            channel=self._channel,
            position=None if history is None else str(history.top),
            events=[JSON.item(event) for event in self._shown],
            missing=[
                Missing(after=str(gap.after), before=str(gap.before)) for gap in self._missing
            ],
            cursor=str(last.position) if more and last is not None else None,
        )

    async def _read(
        self, after: int, before: int | None, limit: int, *, newest: bool = False
    ) -> History | None:
        return await self._chronicle.history(
            self._channel, after=after, before=before, limit=limit, newest=newest
        )

    async def _require_since(self, since: Position, history: History | None) -> None:
        """Return if the channel can be continued from `since`; raises Conflict.

        `history` holds the first event after it, or None if that has to be read yet.
        """
        if history is None:
            history = await self._read(since.offset, None, 1)
        if history is None or not follows(since, history):
            raise Conflict("since cannot be continued: read your state anew")

    @staticmethod
    def _require_before(before: Position | None, history: History | None) -> None:
        if before is not None and (history is None or not knows(history, before)):
            raise BadRequest("before is a position of another channel, or of one that began anew")


def _offset(event: Event) -> int:
    return event.position.offset
