"""Who is connected here? This file: the session, one connected client."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET

from server.allowance import pay_command
from server.closing import Closing
from server.codec import Undecodable
from server.connection import Connection, Wire
from server.errors import (
    BadRef,
    Conflict,
    Forbidden,
    Internal,
    RateLimited,
    Refused,
    Unauthorized,
)
from server.lagging import finish, relieve
from server.limits import TokenBucket
from server.principal import Principal
from server.protocol import (
    ClosingMessage,
    Command,
    Connect,
    Connected,
    ErrorMessage,
    Expiring,
    Message,
    Subscribe,
    Unsubscribed,
)
from server.refusals import Refusals
from server.subscription import Subscription
from server.timetable import Entry

if TYPE_CHECKING:
    from server.node import Node

_log = logging.getLogger(__name__)

# Commands that wait before the session stops reading, and when it reads on.
_INBOX_HIGH: Final = 128
_INBOX_LOW: Final = 32
# Commands whose replies are sent with one call, and how long they may hold the loop, before others
# get their turn.
_TURN: Final = 64
_HOLD_S: Final = 0.005

# When a session comes back that was ended for its rate.
_EAGER_PAUSE_MS: Final = (1_000, 5_000)

NOBODY: Final = Principal(kind="anonymous")


class State(Enum):
    """Where a session stands."""

    CONNECTING = "waits for `connect`"
    OPEN = "takes commands"
    ENDED = "is over"


class Session:
    """One connected client: its principal, its subscriptions, and the order of its commands.

    Commands are carried out one after the other, each is answered once. The task that does so
    exists only while commands wait. `last_ref` is the greatest `ref` seen. A `principal` that is
    known from the start was counted with its user (`Occupancy.enter`). `behind` are
    the subscriptions that wait for room on its connection (see lagging), `commands` and `publishes`
    what it has left of its allowances, once it has used any (see allowance).
    """

    __slots__ = (
        "_deadline",
        "_inbox",
        "_parting",
        "_paused",
        "_refusals",
        "_replies",
        "_worker",
        "address",
        "behind",
        "commands",
        "connected_at",
        "connection",
        "id",
        "last_ref",
        "node",
        "principal",
        "publishes",
        "state",
        "subscriptions",
        "wire",
    )

    def __init__(
        self,
        node: "Node",
        wire: Wire,
        connection: Connection,
        address: str,
        principal: Principal = NOBODY,
    ) -> None:
        self.node = node
        self.id = node.new_id()
        self.wire = wire
        self.connection = connection
        self.address = address
        self.connected_at = int(time.time() * 1000)
        self.principal = principal
        self.subscriptions: dict[str, Subscription] = {}
        self.state = State.CONNECTING
        self.last_ref = 0
        self.behind: dict[Subscription, None] | None = None
        self._inbox: deque[bytes] | None = None
        self._replies: list[bytes] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._parting: Callable[[], None] | None = None
        self._paused = False
        self.commands: TokenBucket | None = None
        self.publishes: TokenBucket | None = None
        self._refusals: Refusals | None = None
        self._deadline: Entry | None = node.timetable.call_in(
            node.settings.session.connect_timeout_s, self._on_connect_timeout
        )

    # Opening

    def open(self, principal: Principal, ref: int | None = None) -> None:
        """Begin to act for `principal`.

        Raises LimitExceeded if its user has too many sessions, and Unauthorized if it is no longer
        anyone: a stream waits between the look at its token and this.
        """
        node = self.node
        if principal.user is not None and node.auth.current(principal) is None:
            raise Unauthorized("this user's sessions were ended", reason="ended")
        if principal.user is not None and self.principal.user is None:
            node.occupancy.identify(principal.user)
        self.principal = principal
        self.state = State.OPEN
        node.hub.add(self)
        node.metrics.session_opened(self.wire)
        self._watch_expiry()
        _log.debug(
            "session opened",
            extra={"session": self.id, "transport": self.wire.transport, "kind": principal.kind},
        )
        expires_s = seconds_left(principal)
        limits = node.settings.limits
        self.reply(
            Connected(
                ref=ref,
                session=self.id,
                user=principal.user,
                node=node.name,
                ping_s=max(1, round(self.alive_s())),
                expires_s=UNSET if expires_s is None else expires_s,
                limits={
                    "frame_bytes": limits.frame_bytes,
                    "data_bytes": limits.data_bytes,
                    "subscriptions": limits.subscriptions_per_session,
                    "commands_per_s": limits.session_commands_per_s
                    if principal.key is None
                    else limits.key_requests_per_s,
                    "publishes_per_s": limits.session_publishes_per_s
                    if principal.key is None
                    else limits.key_publishes_per_s,
                },
            )
        )
        self.flush()

    def alive_s(self) -> float:
        """Return how often the client hears at least a sign of life, in s."""
        return self.node.settings.session.ping_s

    def renew(self, principal: Principal) -> None:
        """Act for the same user with a newer token; what it no longer grants ends."""
        self.principal = principal
        self._watch_expiry()
        self.drop_ungranted()

    def drop_ungranted(self) -> None:
        """End subscriptions that the principal is not granted (any more).

        So ends one with presence if that is no longer granted; the client may begin it without.
        Those that the server made need no grant, and to watch presence none if it gave that too.
        """
        for subscription in list(self.subscriptions.values()):
            allows, channel = self.principal.allows, subscription.channel
            granted = subscription.by_server or allows("subscribe", channel)
            presence = self.node.rules.rule(channel).presence and (
                subscription.watching_by_server or allows("presence", channel)
            )
            if not granted or (subscription.watching and not presence):
                self.drop(subscription, Forbidden("no longer granted"))
        self.flush()

    def drop(self, subscription: Subscription, why: Refused) -> None:
        """End a subscription that the client did not end, and say why with the next `flush`."""
        self.node.subscribing.end(subscription)
        self.reply(Unsubscribed(channel=subscription.channel, code=why.code, message=why.message))

    # Commands

    def on_messages(self, payloads: Sequence[bytes]) -> None:
        """Take complete messages; they are carried out in order."""
        if self.state is State.ENDED:
            return
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.extend(payloads)
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())
        if len(self._inbox) > _INBOX_HIGH and not self._paused:
            self._paused = True
            self.connection.pause()

    async def _work(self) -> None:
        inbox = self._inbox
        assert inbox is not None  # noqa: S101 - set by the only caller
        done, hold_until = 0, time.monotonic() + _HOLD_S
        try:
            while inbox and self.state is not State.ENDED:
                await self._carry_out(inbox.popleft())
                if self._paused and len(inbox) < _INBOX_LOW:
                    self._paused = False
                    self.connection.resume()
                done += 1
                if not inbox or done >= _TURN or time.monotonic() > hold_until:
                    self.flush()
                    await asyncio.sleep(0)
                    done, hold_until = 0, time.monotonic() + _HOLD_S
        finally:
            self.flush()
            self._worker = None
            self._inbox = None
            if self._parting is not None:
                self._part(self._parting)

    async def _carry_out(self, payload: bytes) -> None:
        """Decode one command, carry it out and answer it."""
        ref: int | None = None
        command: Command | None = None
        try:
            # Read before it is paid for: a refusal has to say which command it answers.
            try:
                command = self.wire.codec.decode(payload, self.node.values)
                ref = command.ref
            except Undecodable as error:
                ref, flaw = error.ref, error.refused
            if ref is not None:
                self._advance(ref)
            pay_command(self)
            if command is None:
                raise flaw
            if self.state is State.CONNECTING and type(command) is not Connect:
                raise Unauthorized("`connect` comes first")
            if self.state is State.OPEN and type(command) is Connect:
                raise Conflict("the session is open already")
            await self.node.commands.carry_out(self, command)
        except Refused as refused:
            # A new token may grant less than a client with many channels knows of.
            self.refuse(ref, refused, counted=type(command) is not Subscribe)
        except Exception:
            _log.exception("command failed", extra={"session": self.id})
            self.refuse(ref, Internal("something went wrong"))

    def _advance(self, ref: int) -> None:
        if ref <= self.last_ref:
            raise BadRef(f"ref {ref} is not greater than {self.last_ref}")
        self.last_ref = ref

    def refuse(self, ref: int | None, refused: Refused, *, counted: bool = True) -> None:
        """Answer a refusal; a session with too many of those that are `counted` is ended."""
        metrics, most = self.node.metrics, self.node.settings.limits.errors_per_minute
        metrics.refused(refused.reason)
        self.reply(
            ErrorMessage(
                ref=UNSET if ref is None else ref,
                code=refused.code,
                message=refused.message,
                retry=refused.retry,
            )
        )
        if not counted and not isinstance(refused, RateLimited):
            return
        if self._refusals is None:
            self._refusals = Refusals()
        closing = self._refusals.count(refused, time.monotonic(), most)
        if closing is not None:
            metrics.refused("errors_per_minute")
            eager = closing is Closing.RATE_LIMITED
            pause_ms = random.randint(*_EAGER_PAUSE_MS) if eager else None  # noqa: S311
            self.end(closing, retry_in_ms=pause_ms)

    # Sending

    def reply(self, message: Message) -> None:
        """Send a message with the next `flush`."""
        if self._replies is None:
            self._replies = []
        self._replies.append(self.wire.message(message))

    def flush(self) -> None:
        """Send the messages that wait."""
        replies, self._replies = self._replies, None
        if replies and self.state is not State.ENDED:
            data = replies[0] if len(replies) == 1 else b"".join(replies)
            self.node.metrics.bytes_out += len(data)
            self.connection.send(data)

    def send_events(self, items: Sequence[Any], frames: Sequence[bytes]) -> None:
        """Send items of a feed in one call; `frames` are their bytes on this wire."""
        data = b"".join(frames)
        self.node.metrics.bytes_out += len(data)
        self.connection.send(data)

    # The end

    def end(self, closing: Closing, *, retry_in_ms: int | None = None) -> None:
        """End the session and say why; nothing happens if it is over."""
        if self.state is State.ENDED:
            return
        if closing is not Closing.TOO_SLOW:
            finish(self)
        message = ClosingMessage(code=closing.code, reason=closing.reason)
        if retry_in_ms is not None:
            message.retry_in_ms = retry_in_ms
        self.reply(message)
        replies, self._replies = self._replies, None
        # Detached before the close frame: nothing may come behind it.
        self._leave()
        self.node.metrics.closed(closing)
        _log.debug("session ended", extra={"session": self.id, "code": closing.code})
        last = b"".join(replies or ())
        self.node.metrics.bytes_out += len(last)
        self.connection.close(closing, last)

    def on_slow(self) -> None:
        """End a session that does not keep up; it comes back and resumes."""
        if self.state is not State.ENDED:
            self.node.metrics.slow_closes += 1
            self.node.metrics.refused("unsent_bytes")
            self.end(Closing.TOO_SLOW)

    def on_room(self) -> None:
        """Send what was held back while the connection lagged."""
        if self.behind is not None:
            relieve(self)

    def on_violation(self, closing: Closing) -> None:
        """End a session whose client broke the protocol, or is gone."""
        self.end(closing)

    def on_goodbye(self, answer: Callable[[], None]) -> None:
        """Let go of everything when all commands are carried out, then `answer` the client."""
        if self._worker is None:
            self._part(answer)
        else:
            self._parting = answer
            # The connection is not to read on when few commands are left.
            self._paused = False

    def _part(self, answer: Callable[[], None]) -> None:
        self._parting = None
        self._leave()
        answer()

    def on_lost(self) -> None:
        """Let go of everything; the connection is over."""
        self._parting = None
        self._leave()

    def _leave(self) -> None:
        if self.state is State.ENDED:
            return
        was_open = self.state is State.OPEN
        self.state = State.ENDED
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        for subscription in list(self.subscriptions.values()):
            self.node.subscribing.end(subscription)
        if was_open:
            self.node.hub.remove(self)
            self.node.metrics.session_closed(self.wire)
        self.node.occupancy.leave(self.address, self.principal.user)
        if self._inbox is not None:
            self._inbox.clear()

    # Deadlines

    def _on_connect_timeout(self) -> None:
        self._deadline = None
        if self.state is State.CONNECTING:
            self.end(Closing.CONNECT_TIMEOUT)

    def _watch_expiry(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        expires_at = self.principal.expires_at
        if expires_at is not None:
            left = expires_at - time.time()
            warn = left - self.node.settings.session.expiring_s
            self._deadline = self.node.timetable.call_in(max(warn, 0), self._on_expiring)

    def _on_expiring(self) -> None:
        self._deadline = None
        expires_at = self.principal.expires_at
        if expires_at is None or self.state is not State.OPEN:
            return
        left = expires_at - time.time()
        if left <= 0:
            self._on_expired()
            return
        if self.node.settings.session.expiring_s > 0:
            self.reply(Expiring(in_s=round(left)))
            self.flush()
        self._deadline = self.node.timetable.call_in(left, self._on_expired)

    def _on_expired(self) -> None:
        self._deadline = None
        if self.state is State.OPEN:
            self.end(Closing.TOKEN_EXPIRED)


def seconds_left(principal: Principal) -> int | None:
    """Return how long the principal's token is valid, in whole seconds; None: without end."""
    if principal.expires_at is None:
        return None
    return max(0, round(principal.expires_at - time.time()))
