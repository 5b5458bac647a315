"""How do bytes come in and go out? This file: Server-Sent Events (WHATWG HTML, 9.2)."""

import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from tornado.web import HTTPError

from handlers.base import BaseHandler, read_time
from handlers.lean import ConnectionContext, Heartbeat, LeanConnection
from handlers.live import Live
from pubsub.event import Event
from pubsub.position import Position
from server.closing import Closing
from server.codec import JSON
from server.commands import channel_name, check_past, check_rate
from server.errors import BadRequest, LimitExceeded, Refused, TokenExpired, Unauthorized
from server.principal import Principal
from server.protocol import ClosingMessage, Message, Reset, Subscribed
from server.stream import StreamSession, Wanted, parse_cursor

N = TypeVar("N", int, float)

_MAX_REWIND: Final = 100_000
_COUNT: Final = re.compile(r"[1-9][0-9]{0,5}")
_RATE: Final = re.compile(r"[0-9]{1,4}(\.[0-9]{1,20})?")
_COMMENT: Final = b":\n\n"


class SseWire:
    """Messages as blocks of a stream: events as they are, everything else as `event: control`.

    `individual`: the session writes the `id:` lines itself. Otherwise they stand here, since the
    cursor of a stream with one channel is the event's position, the same for all.
    """

    codec = JSON
    transport = "sse"
    label = "json"

    def __init__(self, *, individual: bool) -> None:
        self.individual = individual

    def event(self, event: Event, skipped: int = 0) -> bytes:
        """Return the block of an event."""
        payload = self.codec.event(event, skipped)
        if self.individual:
            return b"data: %s\n\n" % payload
        return b"id: %s\ndata: %s\n\n" % (str(event.position).encode(), payload)

    def message(self, message: Message) -> bytes:
        """Return the block of any other message."""
        block = b"event: control\ndata: %s\n\n" % self.codec.encode(message)
        if isinstance(message, ClosingMessage) and isinstance(message.retry_in_ms, int):
            return b"retry: %d\n%s" % (message.retry_in_ms, block)
        if isinstance(message, Subscribed | Reset) and not self.individual:
            return b"id: %s\n%s" % (message.position.encode(), block)
        return block


SHARED: Final = SseWire(individual=False)
COMPOSED: Final = SseWire(individual=True)


class StreamConnection(LeanConnection):
    """A response without length, which ends with its connection."""

    transport = "sse"

    __slots__ = ("_slot",)

    def __init__(
        self, sock: socket.socket, context: ConnectionContext, heartbeat: Heartbeat
    ) -> None:
        super().__init__(sock, context)
        self._slot = heartbeat.add(self)

    def receive(self, data: bytes) -> None:
        """Drop it: the client has nothing more to say on this connection."""

    def farewell(self, closing: Closing) -> bytes:
        """Return nothing: the stream just ends."""
        return b""

    def beat(self) -> None:
        """Send a comment, so that proxies keep the stream and a dead peer shows."""
        if self._buffer is None:
            self.send(_COMMENT)

    def lost(self) -> None:
        """Leave the wheel."""
        self._slot.pop(self, None)


@contextmanager
def concerning(channel: str) -> Iterator[None]:
    """Let a refusal name the channel, so that a client of many knows which one to leave out."""
    try:
        yield
    except Refused as refused:
        refused.channel = channel
        raise


class SseHandler(BaseHandler):
    """`GET /v1/sse`: checks the request, then hands the socket to a stream's session."""

    route = "/v1/sse"

    def initialize(self, live: Live) -> None:  # type: ignore[override]
        """Take what all live connections of the node share."""
        super().initialize(live.node)
        self._live = live

    @classmethod
    def methods(cls) -> list[str]:
        """Return the methods that this route has."""
        return ["GET", "OPTIONS"]

    async def head(self, *_args: str) -> None:
        """Refuse: a stream is nothing without its body."""
        raise HTTPError(405)

    async def get(self) -> None:
        """Become a stream."""
        live, node = self._live, self._live.node
        channels = self._channels()
        rewinds = self._each("rewind", channels, _count)
        times = self._each("from", channels, lambda text: read_time(text, "from"))
        rates = self._each("max_rate_hz", channels, _rate)
        watched = self._watched(channels)
        named = live.check(self)
        last_id = self.request.headers.get("Last-Event-ID") or None
        proof: bytes | None = None
        ticket = self.parameter("ticket")
        if named is None and ticket is not None:
            try:
                named, proof, last_id, name, ttl_s = node.auth.redeem(ticket, last_id)
                if last_id is None:
                    if not await node.nodes.take_ticket(name, ttl_s):
                        raise Unauthorized("ticket: already used")
                    # A key may have been removed meanwhile, or a user ended.
                    named = node.auth.current(named)
                    if named is None:
                        raise Unauthorized("ticket: no longer valid")
            except (Unauthorized, TokenExpired):
                if last_id is None:
                    raise
                # An EventSource comes back by itself: this tells it to stay away.
                self.set_status(204)
                return
        principal = node.auth.anonymous() if named is None else named
        cursor = last_id or self.parameter("since")
        since: Sequence[Position | None] = [None] * len(channels)
        if cursor:
            since = parse_cursor(cursor, channels)
        wanted = [
            Wanted(channel, start, count, time, channel in watched, rate)
            for channel, start, count, time, rate in zip(
                channels, since, rewinds, times, rates, strict=True
            )
        ]
        for each in wanted:
            with concerning(each.channel):
                node.commands.require_subscribe(
                    principal,
                    each.channel,
                    past=check_past(each.rewind, each.from_ms),
                    presence=each.presence,
                )
        self._start(principal, wanted, proof)

    def _start(self, principal: Principal, wanted: Sequence[Wanted], proof: bytes | None) -> None:
        live = self._live
        head = self._head()
        sock, _early = live.take(self, principal)
        connection = StreamConnection(sock, live.context, live.comments)
        wire = SHARED if proof is None and len(wanted) == 1 else COMPOSED
        session = StreamSession(
            live.node, wire, connection, self.client_address, principal, proof=proof
        )
        connection.send(head)
        connection.start(session)
        session.begin(wanted, live.node.settings.sse.retry_ms)

    def _channels(self) -> list[str]:
        channels = self._names("channel")
        if not channels:
            raise BadRequest("channel is missing: /v1/sse?channel=a&channel=b")
        self._check_number(channels)
        if len(set(channels)) != len(channels):
            raise BadRequest("a channel is named twice")
        for channel in channels:
            with concerning(channel):
                channel_name(channel)
        return channels

    def _names(self, parameter: str) -> list[str]:
        given = self.request.query_arguments.get(parameter, ())
        return [name.decode("utf-8", "replace") for name in given]

    def _check_number(self, channels: Sequence[str]) -> None:
        settings = self._live.node.settings
        most, reason = settings.sse.max_channels, "sse.max_channels"
        of_a_session = settings.limits.subscriptions_per_session
        if 0 < of_a_session < most:
            most, reason = of_a_session, "subscriptions_per_session"
        if len(channels) > most:
            with concerning(channels[most]):
                raise LimitExceeded(f"a stream has at most {most} channels", reason=reason)

    def _each(self, name: str, channels: Sequence[str], read: Callable[[str], N]) -> list[N | None]:
        """Return a number for each channel: one for all of them, or one by one."""
        parts = (self.parameter(name) or "").split(",")
        if len(parts) == 1:
            parts *= len(channels)
        if len(parts) != len(channels):
            raise BadRequest(f"{name} is of {len(parts)} channels, the stream has {len(channels)}")
        numbers: list[N | None] = []
        for channel, part in zip(channels, parts, strict=True):
            with concerning(channel):
                numbers.append(read(part) if part else None)
        return numbers

    def _watched(self, channels: Sequence[str]) -> frozenset[str]:
        """Return the channels whose presence is to be seen."""
        watched = self._names("presence")
        for name in watched:
            if name not in channels:
                with concerning(name):
                    raise BadRequest("presence has to name a channel of the stream")
        return frozenset(watched)

    def _head(self) -> bytes:
        lines = [
            "HTTP/1.1 200 OK",
            "Content-Type: text/event-stream",
            "Cache-Control: no-cache, no-transform",
            "Connection: close",
            # Nginx would hold events back.
            "X-Accel-Buffering: no",
            "X-Content-Type-Options: nosniff",
            f"X-Request-Id: {self.request_id}",
        ]
        lines += [f"{name}: {value}" for name, value in self.exchange.cors_headers()]
        return "\r\n".join((*lines, "", "")).encode("latin-1")


def _count(text: str) -> int:
    if _COUNT.fullmatch(text) is None or int(text) > _MAX_REWIND:
        raise BadRequest(f"rewind is a number from 1 to {_MAX_REWIND}")
    return int(text)


def _rate(text: str) -> float:
    # A text that is no number is refused as one that is out of range.
    rate = float(text) if _RATE.fullmatch(text) else 0.0
    check_rate(rate)
    return rate
