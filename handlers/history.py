"""How do bytes come in and go out? This file: a channel's kept events, to be read and purged."""

from collections.abc import Sequence
from typing import ClassVar, Final

from handlers.base import BaseHandler
from handlers.models import EventPage, Purged
from pubsub.broker import History
from pubsub.errors import PubSubError
from pubsub.event import Event
from pubsub.position import Position
from server.codec import JSON
from server.commands import channel_name, knows, position
from server.errors import BadRequest, Conflict, NotFound
from server.publishing import refusal
from server.sequence import chained

_DEFAULT_LIMIT: Final = 50


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

    In order `asc` (oldest first) a page begins behind `since` or `cursor`, else with the oldest
    kept event; in order `desc` it begins before `before` or `cursor`, else with the newest. A
    `since` or `cursor` with a gap behind it is a conflict: nothing is left out in silence.
    """

    route: ClassVar[str] = "/v1/channels/{channel}/events"

    async def get(self, name: str) -> None:
        """Answer a page of kept events."""
        channel = channel_name(name)
        self.authenticate(anonymous=True).require("history", channel)
        order = self.parameter("order") or "asc"
        if order not in ("asc", "desc"):
            raise BadRequest("order is asc or desc")
        limit = self.count("limit", _DEFAULT_LIMIT, self.node.settings.limits.history_per_reply)
        since, before = self._position("since"), self._position("before")
        cursor = self._position("cursor")
        try:
            if order == "asc":
                page = await self._forward(channel, since, before, cursor, limit)
            else:
                page = await self._backward(channel, since, before, cursor, limit)
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

    async def _forward(
        self,
        channel: str,
        since: Position | None,
        before: Position | None,
        cursor: Position | None,
        limit: int,
    ) -> EventPage:
        end = None if before is None else before.offset
        if cursor is not None:
            history = await self._read(channel, cursor.offset - 1, end, limit + 2)
            events = None if history is None else behind(cursor, history.events)
            if events is None and history is not None and cursor == history.top:
                events = ()
        else:
            after = 0 if since is None else since.offset
            history = await self._read(channel, after, end, limit + 1)
            events = () if history is None else history.events
            if since is not None:
                await self._require_since(channel, since, history if events else None)
        if events is None:
            raise Conflict("events behind cursor are gone; begin anew")
        self._require_before(before, history)
        return _page(channel, history, events, limit)

    async def _backward(
        self,
        channel: str,
        since: Position | None,
        before: Position | None,
        cursor: Position | None,
        limit: int,
    ) -> EventPage:
        end = cursor or before
        after = 0 if since is None else since.offset
        if since is not None:
            await self._require_since(channel, since, None)
        history = await self.node.broker.history(
            channel,
            after=after,
            before=None if end is None else end.offset,
            limit=limit + 1,
            newest=True,
        )
        self._require_before(end, history)
        events = () if history is None else history.events[::-1]
        return _page(channel, history, events, limit)

    async def _read(
        self, channel: str, after: int, before: int | None, limit: int
    ) -> History | None:
        return await self.node.broker.history(channel, after=after, before=before, limit=limit)

    async def _require_since(self, channel: str, since: Position, history: History | None) -> None:
        """Return if the channel can be continued from `since`; raises Conflict.

        `history` holds the first event after it, or None if that has to be read yet.
        """
        if history is None:
            history = await self._read(channel, since.offset, None, 1)
        if history is None or not follows(since, history):
            raise Conflict("since cannot be continued: read your state anew")

    @staticmethod
    def _require_before(before: Position | None, history: History | None) -> None:
        if before is not None and (history is None or not knows(history, before)):
            raise BadRequest("before is a position of another channel, or of one that began anew")


def _page(channel: str, history: History | None, events: Sequence[Event], limit: int) -> EventPage:
    shown = events[:limit]
    return EventPage(
        channel=channel,
        position=None if history is None else str(history.top),
        events=[JSON.item(event) for event in shown],
        cursor=str(shown[-1].position) if len(events) > limit else None,
    )
