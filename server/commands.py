"""Who is connected here, and what may they do? This file: how each command is carried out."""

from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import UNSET, UnsetType

from config.limits import LimitSettings
from config.patterns import NameRejected, check_channel
from config.rules import ChannelRules
from pubsub.broker import History
from pubsub.chronicle import Chronicle
from pubsub.errors import PositionRejected, PubSubError
from pubsub.position import Position
from pubsub.presence import Member, PresenceStore
from server.allowance import pay_publish
from server.auth import Auth
from server.closing import Closing
from server.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    LimitExceeded,
    NotFound,
    Refused,
    TokenExpired,
    Unavailable,
)
from server.principal import Principal
from server.protocol import (
    HIGHEST_RATE,
    LOWEST_RATE,
    Command,
    Connect,
    EventsReply,
    HistoryCommand,
    MembersReply,
    Ping,
    Pong,
    Presence,
    Publish,
    PublishedReply,
    Refresh,
    Refreshed,
    Subscribe,
    Unsubscribe,
    Unsubscribed,
)
from server.publishing import Publishing, refusal
from server.session import Session, seconds_left
from server.subscribing import Subscribing
from server.subscription import Subscription


def channel_name(text: str) -> str:
    """Return `text` if it names a channel; raises BadRequest."""
    try:
        check_channel(text)
    except NameRejected as error:
        raise BadRequest(str(error)) from None
    return text


def refuse_pattern(text: str) -> None:
    """Return unless `text` looks like a pattern; raises BadRequest."""
    if "*" in text or ">" in text:
        raise BadRequest("patterns cannot be subscribed to in this version")


def position(text: str | None, field: str) -> Position | None:
    """Return the position that a client gave as `field`; raises BadRequest."""
    if text is None:
        return None
    try:
        return Position.parse(text)
    except PositionRejected:
        raise BadRequest(f"{field} is not a position") from None


def check_past(rewind: int | None, from_ms: int | None) -> bool:
    """Return whether either is given; raises BadRequest if both are."""
    if rewind is not None and from_ms is not None:
        raise BadRequest("rewind and from exclude each other")
    return rewind is not None or from_ms is not None


def check_rate(max_rate_hz: float | None) -> None:
    """Return unless a subscription cannot have this rate; raises BadRequest."""
    # Written so that it refuses NaN too, which MessagePack has.
    if max_rate_hz is not None and not LOWEST_RATE <= max_rate_hz <= HIGHEST_RATE:
        raise BadRequest(f"max_rate_hz is a number from {LOWEST_RATE} to {HIGHEST_RATE}")


def knows(history: History, before: Position) -> bool:
    """Say whether `before` can be of the channel whose events before it were read."""
    if before.offset > history.top.offset:
        return False
    return before.epoch in {history.top.epoch, *(each.position.epoch for each in history.events)}


class Commands:
    """Carries out the commands of sessions; one object for all of them.

    A command that is refused raises Refused; the session answers it.
    """

    def __init__(
        self,
        *,
        auth: Auth,
        chronicle: Chronicle,
        presence: PresenceStore,
        rules: ChannelRules,
        publishing: Publishing,
        subscribing: Subscribing,
        limits: LimitSettings,
    ) -> None:
        self._auth = auth
        self._chronicle = chronicle
        self._presence = presence
        self._rules = rules
        self._publishing = publishing
        self._subscribing = subscribing
        self._limits = limits
        self._table: dict[type[Command], Callable[[Session, Any], Awaitable[None]]] = {
            Publish: self._publish,
            Subscribe: self._subscribe,
            Unsubscribe: self._unsubscribe,
            Presence: self._presence_set,
            HistoryCommand: self._history,
            Ping: self._ping,
            Refresh: self._refresh,
            Connect: self._connect,
        }

    async def carry_out(self, session: Session, command: Command) -> None:
        """Carry out a command and answer it; raises Refused."""
        try:
            await self._table[type(command)](session, command)
        except PubSubError as error:
            raise refusal(error) from None

    async def _connect(self, session: Session, command: Connect) -> None:
        try:
            if command.token is None:
                principal = self._auth.anonymous()
            else:
                principal = self._auth.token(command.token)
            session.open(principal, command.ref)
        except TokenExpired as refused:
            session.refuse(command.ref, refused)
            session.end(Closing.TOKEN_EXPIRED)
        except LimitExceeded as refused:
            # Another session of this user may end; so the client is to come back.
            session.refuse(command.ref, refused)
            session.end(Closing.RATE_LIMITED)
        except Refused as refused:
            session.refuse(command.ref, refused)
            session.end(Closing.INVALID_TOKEN)

    async def _refresh(self, session: Session, command: Refresh) -> None:
        principal = self._auth.refresh(session.principal, command.token)
        session.reply(Refreshed(ref=command.ref, expires_s=seconds_left(principal) or 0))
        session.renew(principal)

    async def _publish(self, session: Session, command: Publish) -> None:
        pay_publish(session)
        if command.deliver_at is not UNSET:
            raise BadRequest("deliver_at is taken over HTTP only")
        draft = self._publishing.draft(
            session.principal,
            channel=command.channel,
            name=command.name,
            data=bytes(command.data),
            tags=command.tags,
            event_id=command.id,
            exclude=None if command.echo else session.id,
        )
        (answer,) = await self._publishing.publish((draft,))
        if isinstance(answer, Refused):
            raise answer
        session.reply(
            PublishedReply(
                ref=command.ref,
                channel=answer.channel,
                position=str(answer.position),
                id=answer.id,
                duplicate=answer.duplicate,
            )
        )

    async def _subscribe(self, session: Session, command: Subscribe) -> None:
        refuse_pattern(command.channel)
        since = position(command.since, "since")
        await self.subscribe(
            session,
            command.channel,
            ref=command.ref,
            since=since,
            rewind=command.rewind,
            from_ms=command.from_ms,
            presence=command.presence,
            max_rate_hz=command.max_rate_hz,
        )

    async def subscribe(
        self,
        session: Session,
        channel: str,
        *,
        ref: int | None = None,
        since: Position | None = None,
        rewind: int | None = None,
        from_ms: int | None = None,
        presence: bool = False,
        max_rate_hz: float | None = None,
    ) -> None:
        """Begin a subscription for a session; raises Refused or PubSubError.

        One that the server made gives way to it, so that a client which comes back, and was
        subscribed by the server meanwhile, still goes on behind its `since`.
        """
        check_rate(max_rate_hz)
        given = session.subscriptions.get(channel)
        if given is not None and not given.by_server:
            given = None
        self.require_subscribe(
            session.principal,
            channel,
            past=check_past(rewind, from_ms),
            presence=presence,
            given=given is not None,
        )
        if given is None:
            await self._begin(
                session,
                channel,
                ref,
                since,
                rewind,
                presence,
                from_ms=from_ms,
                max_rate_hz=max_rate_hz,
            )
            return
        self._subscribing.end(given)
        try:
            await self._begin(
                session,
                channel,
                ref,
                since,
                rewind,
                presence,
                from_ms=from_ms,
                max_rate_hz=max_rate_hz,
                by_server=True,
            )
        except (Refused, PubSubError):
            # The refusal alone would mean that all is as before.
            session.reply(
                Unsubscribed(channel=channel, code=Unavailable.code, message="could not go on")
            )
            raise

    async def give(
        self,
        session: Session,
        channel: str,
        *,
        since: Position | None = None,
        rewind: int | None = None,
        presence: bool = False,
        max_rate_hz: float | None = None,
    ) -> None:
        """Begin a subscription that the server makes; it needs no grant while the session lasts.

        One that is there already is left as it is, but needs none from now on either. Raises
        LimitExceeded, PubSubError, and Forbidden if it was ended meanwhile.
        """
        known = session.subscriptions.get(channel)
        if known is not None:
            known.by_server = True
            known.watching_by_server |= presence
            return
        await self._begin(
            session,
            channel,
            None,
            since,
            rewind,
            presence,
            max_rate_hz=max_rate_hz,
            by_server=True,
            watching_by_server=presence,
        )

    async def _begin(
        self,
        session: Session,
        channel: str,
        ref: int | None,
        since: Position | None,
        rewind: int | None,
        presence: bool,
        *,
        from_ms: int | None = None,
        max_rate_hz: float | None = None,
        by_server: bool = False,
        watching_by_server: bool = False,
    ) -> None:
        if channel in session.subscriptions:
            raise Conflict(f"subscribed to {channel} already")
        most = self._limits.subscriptions_per_session
        if most and len(session.subscriptions) >= most:
            raise LimitExceeded(
                f"a session has at most {most} subscriptions",
                reason="subscriptions_per_session",
            )
        subscription = Subscription(
            session, channel, watching=presence, by_server=by_server, max_rate_hz=max_rate_hz
        )
        subscription.watching_by_server = watching_by_server
        session.subscriptions[channel] = subscription
        member = None
        if self._rules.rule(channel).presence and session.principal.kind != "service":
            member = Member(session.id, session.principal.user)
        await self._subscribing.subscribe(
            subscription, ref=ref, since=since, rewind=rewind, from_ms=from_ms, member=member
        )

    def require_subscribe(
        self,
        principal: Principal,
        channel: str,
        *,
        past: bool,
        presence: bool,
        given: bool = False,
    ) -> None:
        """Return if `principal` may subscribe so; raises BadRequest or Forbidden.

        `past`: with events of the time before. `given`: the server has subscribed it already, which
        stands for the grant to subscribe.
        """
        channel_name(channel)
        if not given:
            principal.require("subscribe", channel)
        if past:
            principal.require("history", channel)
        if presence:
            self.require_presence(principal, channel)

    async def _unsubscribe(self, session: Session, command: Unsubscribe) -> None:
        subscription = session.subscriptions.get(channel_name(command.channel))
        if subscription is None:
            raise NotFound(f"not subscribed to {command.channel}")
        self._subscribing.end(subscription)
        session.reply(Unsubscribed(ref=command.ref, channel=command.channel))

    async def _presence_set(self, session: Session, command: Presence) -> None:
        channel = channel_name(command.channel)
        self.require_presence(session.principal, channel)
        if not isinstance(command.info, UnsetType):
            subscription = session.subscriptions.get(channel)
            if subscription is None:
                raise Conflict(f"subscribe to {channel} before setting an entry there")
            subscription.member = True
            await self._presence.enter(
                channel, Member(session.id, session.principal.user, bytes(command.info))
            )
            if subscription.ended:
                await self._presence.leave(channel, session.id)
        try:
            page = await self._presence.members(
                channel, cursor=command.cursor, limit=self._limits.members_per_reply
            )
        except ValueError:
            raise BadRequest("cursor is none that was given out") from None
        members = [session.wire.codec.member(member) for member in page.members]
        session.reply(
            MembersReply(ref=command.ref, channel=channel, members=members, cursor=page.cursor)
        )

    def require_presence(self, principal: Principal, channel: str) -> None:
        """Return if `principal` may see who is present, and the rule keeps it; raises Forbidden."""
        principal.require("presence", channel)
        self.require_kept_presence(channel)

    def require_kept_presence(self, channel: str) -> None:
        """Return if the channel's rule keeps presence; raises Forbidden."""
        if not self._rules.rule(channel).presence:
            raise Forbidden(f"presence is off for channel {channel}")

    async def _history(self, session: Session, command: HistoryCommand) -> None:
        channel = channel_name(command.channel)
        session.principal.require("history", channel)
        before = position(command.before, "before")
        limit = min(command.limit, self._limits.history_per_reply)
        history = await self._chronicle.history(
            channel,
            before=None if before is None else before.offset,
            limit=limit + 1,
            newest=True,
        )
        if before is not None and (history is None or not knows(history, before)):
            raise BadRequest("before is not a position of this channel")
        events = () if history is None else history.events
        # One more than asked for tells whether there are more.
        more, events = len(events) > limit, events[-limit:]
        items = [session.wire.codec.item(event) for event in events]
        cursor = str(events[0].position) if more else None
        session.reply(EventsReply(ref=command.ref, channel=channel, events=items, cursor=cursor))

    async def _ping(self, session: Session, command: Ping) -> None:
        session.reply(Pong(ref=command.ref))
