"""Who is connected here? This file: one session on one channel."""

from typing import TYPE_CHECKING

from pubsub.position import Position
from server.connection import Connection

if TYPE_CHECKING:
    from server.conflation import Late
    from server.feed import Feed
    from server.session import Session


class Subscription:
    """One session on one channel.

    `live`: it was answered and has not ended. `attached`: it takes part in the feed's flushes, all
    that came before was sent. `watching`: it gets presence changes.
    `member`: it is in the channel's presence set. `ended`: nothing more is sent, whatever waits.
    `by_server`: the server made it, so it needs no grant as long as its session lasts;
    `watching_by_server`: nor one to watch presence.
    `walks`: it began at a time, and goes on beyond what cannot be continued, which it is told.
    `max_rate_hz`: it gets that many events a second at most, the newest ones. `late`: it is not in
    step with the feed, which owes it its newest event or soon may (see conflation).
    `cursor` is the position last written, kept only where the session composes its own cursors.
    """

    __slots__ = (
        "attached",
        "by_server",
        "channel",
        "connection",
        "cursor",
        "ended",
        "feed",
        "late",
        "live",
        "max_rate_hz",
        "member",
        "session",
        "walks",
        "watching",
        "watching_by_server",
    )

    def __init__(
        self,
        session: "Session",
        channel: str,
        *,
        watching: bool = False,
        by_server: bool = False,
        max_rate_hz: float | None = None,
    ) -> None:
        self.session = session
        self.connection: Connection = session.connection
        self.channel = channel
        self.feed: Feed | None = None
        self.cursor: Position | None = None
        self.max_rate_hz = max_rate_hz
        self.late: Late | None = None
        self.live = False
        self.attached = False
        self.watching = watching
        self.by_server = by_server
        self.watching_by_server = False
        self.walks = False
        self.member = False
        self.ended = False
