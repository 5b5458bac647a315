"""How does an event get its position and reach every node? This file: events."""

import msgspec

from pubsub.position import Position


class Draft(msgspec.Struct, frozen=True, gc=False):
    """An event that was checked and is yet to get its position.

    `data` is JSON text as the publisher sent it (valid UTF-8, checked, without CR or LF). `id` is
    fixed before the first attempt, so that a retry cannot double the event. `exclude` names the
    session that is to be left out.
    """

    channel: str
    id: str
    name: str
    data: bytes
    tags: dict[str, str] = {}
    user: str | None = None
    exclude: str | None = None


class Event(msgspec.Struct, frozen=True, gc=False):
    """An event at its place in its channel.

    `prev` is the check of the position before it, so that two events chain if
    `second.prev == first.position.check`. `time` is in ms since 1970, never decreasing within
    a channel.
    """

    channel: str
    position: Position
    prev: str
    id: str
    name: str
    data: bytes
    time: int
    tags: dict[str, str] = {}
    user: str | None = None
    exclude: str | None = None

    def before(self) -> Position:
        """Return the position just before this event."""
        return Position(self.position.epoch, self.position.offset - 1, self.prev)


class Published(msgspec.Struct, frozen=True, gc=False):
    """The broker's acknowledgement: the event has this position, on all nodes, for good.

    `duplicate` says that the id had been published within the idempotency window; the position
    is then the first one's and nothing was delivered again.
    """

    channel: str
    position: Position
    id: str
    duplicate: bool = False
