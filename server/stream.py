"""Who is connected here? This file: the session of an event stream, which only listens."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pubsub.errors import PubSubError
from pubsub.event import Event
from pubsub.position import Position
from server.closing import Closing
from server.connection import Connection, Wire
from server.errors import BadRequest, Refused
from server.feed import Feed, ResetNotice
from server.principal import Principal
from server.protocol import Message, Subscribed
from server.session import Session, State

if TYPE_CHECKING:
    from server.node import Node

_log = logging.getLogger(__name__)


def parse_cursor(text: str, channels: Sequence[str]) -> list[Position | None]:
    """Return the position for each channel that a stream's cursor holds; raises BadRequest.

    A cursor is the positions of the stream's channels in their order, joined by commas; one that
    is missing stands for a channel that the stream had not begun yet. Clients compose cursors too,
    of positions that they keep: the refusal names the channel whose position is bad.
    """
    parts = text.split(",")
    if len(parts) != len(channels):
        raise BadRequest(f"the cursor is of {len(parts)} channels, the stream has {len(channels)}")
    positions: list[Position | None] = []
    for part, channel in zip(parts, channels, strict=True):
        try:
            positions.append(Position.parse(part) if part else None)
        except ValueError:
            refused = BadRequest("the cursor is none that was given out")
            refused.channel = channel
            raise refused from None
    return positions


class Wanted(NamedTuple):
    """What a stream is to have of one channel; as in `subscribe` over WebSocket."""

    channel: str
    since: Position | None = None
    rewind: int | None = None
    from_ms: int | None = None
    presence: bool = False
    max_rate_hz: float | None = None


class StreamSession(Session):
    """A session that takes no commands: its subscriptions are those of the request.

    Where the wire is `individual` it composes its own `id:` lines: the positions last written of
    all its channels, behind the proof of its ticket if it has one.
    """

    __slots__ = ("_cursors", "_proof")

    def __init__(
        self,
        node: "Node",
        wire: Wire,
        connection: Connection,
        address: str,
        principal: Principal,
        *,
        proof: bytes | None,
    ) -> None:
        super().__init__(node, wire, connection, address, principal)
        self._cursors: dict[str, str] = {}
        self._proof = proof

    def begin(self, wanted: Sequence[Wanted], retry_ms: int) -> None:
        """Open the stream and begin its subscriptions, in a task that the hub owns."""
        self._cursors = dict.fromkeys((each.channel for each in wanted), "")
        self.node.hub.spawn(self._run(wanted, retry_ms))

    async def _run(self, wanted: Sequence[Wanted], retry_ms: int) -> None:
        held: list[Feed] = []
        try:
            for each in wanted:
                held.append(await self.node.hub.hold(each.channel))
            for feed, each in zip(held, wanted, strict=True):
                # A stream that breaks before its first event resumes from where it began.
                if each.since is not None:
                    self._cursors[each.channel] = str(each.since)
                elif each.rewind is None and each.from_ms is None:
                    self._cursors[each.channel] = str(feed.cut)
            if self.state is State.ENDED:
                return
            self.connection.send(b"retry: %d\n%s\n" % (retry_ms, self._id_line()))
            self.open(self.principal)
            for each in wanted:
                if self.state is not State.OPEN:
                    return
                await self.node.commands.subscribe(
                    self,
                    each.channel,
                    since=each.since,
                    rewind=each.rewind,
                    from_ms=each.from_ms,
                    presence=each.presence,
                    max_rate_hz=each.max_rate_hz,
                )
        except (Refused, PubSubError) as error:
            _log.info("stream refused: %s", error, extra={"session": self.id})
            self.end(Closing.UNAVAILABLE)
        except Exception:
            _log.exception("stream failed", extra={"session": self.id})
            self.end(Closing.UNAVAILABLE)
        finally:
            for feed in held:
                self.node.hub.release(feed)

    def _id_line(self) -> bytes:
        cursor = ",".join(self._cursors.values()).encode()
        if self._proof is not None:
            cursor = self._proof + b"." + cursor
        return b"id: %s\n" % cursor

    def alive_s(self) -> float:
        """Return how often a comment is sent, in s: a stream has no pings."""
        return self.node.settings.sse.comment_s

    def end(self, closing: Closing, *, retry_in_ms: int | None = None) -> None:
        """End the stream; an EventSource comes back by itself, so it is refused if it may not."""
        if self._proof is not None and not closing.come_back:
            self.node.nodes.end_ticket(self._proof, self.principal.expires_at)
        super().end(closing, retry_in_ms=retry_in_ms)

    def send_events(self, items: Sequence[Any], frames: Sequence[bytes]) -> None:
        """Send items of a feed in one call, each with this stream's own cursor."""
        if not self.wire.individual:
            super().send_events(items, frames)
            return
        parts: list[bytes] = []
        for item, frame in zip(items, frames, strict=True):
            if type(item) is Event or type(item) is ResetNotice:
                self._cursors[item.channel] = str(item.position)
                parts.append(self._id_line())
            parts.append(frame)
        data = b"".join(parts)
        self.node.metrics.bytes_out += len(data)
        self.connection.send(data)

    def reply(self, message: Message) -> None:
        """Send a message with the next `flush`; what moves the cursor carries it."""
        super().reply(message)
        if isinstance(message, Subscribed) and self._replies:
            self._cursors[message.channel] = message.position
            if self.wire.individual:
                self._replies[-1] = self._id_line() + self._replies[-1]
