"""Who is connected here, and what may they do? This file: how this node carries out orders."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Final

from config.patterns import NameRejected, check_user
from pubsub.errors import PubSubError
from server.auth import Auth
from server.closing import Closing
from server.commands import Commands, position
from server.errors import Forbidden, LimitExceeded, Refused
from server.hub import Hub
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.orders import (
    AnyAnswer,
    AnyOrder,
    CountSubscribers,
    DescribeNode,
    Ended,
    EndSession,
    EndUser,
    Failed,
    ListSessions,
    NodeState,
    SessionEntry,
    SessionsFound,
    SubscribersCounted,
    SubscribeUser,
    Unknown,
    UnsubscribeUser,
    UserSubscribed,
    UserUnsubscribed,
    pack,
    read_order,
)
from server.session import Session, State
from server.tickets import PROOF_BYTES

_log = logging.getLogger(__name__)

USER: Final = "user"
TICKET: Final = "ticket"
TOPICS: Final = (USER, TICKET)
"""What notices are about: users who were ended, and tickets whose streams were."""

# Users whose sessions a notice ended, until the order comes that wants to know how many.
_MOST_COUNTS: Final = 1_000
# Sessions that are subscribed at the same time.
_AT_ONCE: Final = 100
_MEMORY: Final = Path("/proc/self/statm")


class NodeControl:
    """Carries out what any node orders, and learns what any node tells (`ControlSink`).

    `clock` is monotonic, in s.
    """

    def __init__(
        self,
        *,
        auth: Auth,
        hub: Hub,
        commands: Commands,
        lifecycle: Lifecycle,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._auth = auth
        self._hub = hub
        self._commands = commands
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._clock = clock
        self._started = clock()
        self._counts: dict[str, tuple[float, int]] = {}

    async def on_order(self, order: bytes) -> bytes:
        """Carry out an order and return the answer; raises nothing."""
        read = read_order(order)
        if read is None:
            self._metrics.ordered("unknown")
            return pack(Unknown())
        answer: AnyAnswer
        try:
            answer = await self._carry_out(read)
        except (Refused, PubSubError) as error:
            _log.info("order failed: %s", error, extra={"order": type(read).__name__})
            answer = Failed()
        except Exception:
            _log.exception("order failed", extra={"order": type(read).__name__})
            answer = Failed()
        self._metrics.ordered("failed" if isinstance(answer, Failed) else "done")
        return pack(answer)

    def on_notice(self, topic: str, name: str, at_s: float, until_s: float) -> None:
        """Learn that a user or a ticket was ended; a topic of a newer version means nothing."""
        if topic == USER:
            try:
                check_user(name)
            except NameRejected:
                return
            self._end_user(name, at_s, until_s)
        elif topic == TICKET and len(name) == PROOF_BYTES and name.isascii():
            self._auth.tickets.end(name.encode(), until_s)

    def _end_user(self, user: str, at_s: float, until_s: float) -> None:
        # First the tokens: a session that is told to go must not come back in between.
        self._auth.end_user(user, at_s, until_s)
        ended = self._hub.end_user(user, at_s)
        if not ended:
            return
        known_at_s, count = self._counts.pop(user, (at_s, 0))
        if len(self._counts) >= _MOST_COUNTS:
            del self._counts[next(iter(self._counts))]
        self._counts[user] = (at_s, ended + (count if known_at_s == at_s else 0))

    async def _carry_out(self, order: AnyOrder) -> AnyAnswer:
        match order:
            case EndSession():
                return self._end_session(order)
            case EndUser():
                # The notice may have come before, or may yet come.
                self._end_user(order.user, order.at_s, order.until_s)
                at_s, count = self._counts.get(order.user, (order.at_s, 0))
                if at_s != order.at_s:
                    return Ended(0)
                self._counts.pop(order.user, None)
                return Ended(count)
            case SubscribeUser():
                return await self._subscribe(order)
            case UnsubscribeUser():
                return self._unsubscribe(order)
            case ListSessions():
                return self._list(order)
            case CountSubscribers():
                return SubscribersCounted([self._hub.subscribers(each) for each in order.channels])
            case DescribeNode():
                return self._describe()

    def _end_session(self, order: EndSession) -> Ended:
        session = self._hub.sessions.get(order.session)
        if session is None:
            return Ended(0)
        session.end(Closing.ENDED)
        return Ended(1)

    async def _subscribe(self, order: SubscribeUser) -> UserSubscribed:
        # A stream has the channels of its address.
        sessions = iter(
            [each for each in self._hub.sessions_of(order.user) if each.wire.transport == "ws"]
        )
        subscribed = refused = 0
        while batch := list(islice(sessions, _AT_ONCE)):
            outcomes = await asyncio.gather(
                *(self._give(session, order) for session in batch), return_exceptions=True
            )
            for outcome in outcomes:
                match outcome:
                    case True:
                        subscribed += 1
                    case LimitExceeded():
                        refused += 1
                    case BaseException():
                        raise outcome
        return UserSubscribed(subscribed, refused)

    async def _give(self, session: Session, order: SubscribeUser) -> bool:
        """Subscribe one session; False if it ended meanwhile, or its subscription did."""
        if session.state is not State.OPEN:
            return False
        try:
            await self._commands.give(
                session,
                order.channel,
                since=position(order.since, "since"),
                rewind=order.rewind,
                presence=order.presence,
                max_rate_hz=order.max_rate_hz,
            )
        except Forbidden:
            return False
        return order.channel in session.subscriptions

    def _unsubscribe(self, order: UnsubscribeUser) -> UserUnsubscribed:
        count = 0
        for session in self._hub.sessions_of(order.user):
            subscription = session.subscriptions.get(order.channel)
            if subscription is not None:
                # The protocol has no word for it that says more.
                session.drop(subscription, Forbidden("unsubscribed by the server"))
                session.flush()
                count += 1
        return UserUnsubscribed(count)

    def _list(self, order: ListSessions) -> SessionsFound:
        known: Mapping[str, Session] = (
            self._hub.sessions
            if order.user is None
            else {each.id: each for each in self._hub.sessions_of(order.user)}
        )
        # Ids are nearly in order already: this takes a fifth of the time of a heap over sessions,
        # which held the loop for 10 ms with 60,000 of them.
        ids = sorted(each for each in known if each > order.after)
        found = [known[each] for each in ids[: order.limit]]
        return SessionsFound(
            [
                SessionEntry(
                    session=each.id,
                    kind=each.principal.kind,
                    user=each.principal.user,
                    transport=each.wire.transport,
                    encoding=each.wire.label,
                    address=each.address,
                    connected_at=each.connected_at,
                    subscriptions=len(each.subscriptions),
                )
                for each in found
            ]
        )

    def _describe(self) -> NodeState:
        hub, metrics = self._hub, self._metrics
        return NodeState(
            version=metrics.version,
            phase=self._lifecycle.phase.value,
            reasons=self._lifecycle.why_not_ready(),
            uptime_s=round(self._clock() - self._started, 3),
            sessions=len(hub.sessions),
            connections=metrics.connections,
            subscriptions=hub.subscriptions(),
            channels=len(hub.feeds),
            events_in=metrics.events_in,
            events_out=metrics.events_out,
            unsent_bytes=metrics.unsent_bytes,
            loop_lag_s=round(metrics.lag_s, 6),
            rss_bytes=_rss_bytes(),
        )


def _rss_bytes() -> int | None:
    """Return how much memory the process has, where that is cheap to know (Linux, proc(5))."""
    try:
        return int(_MEMORY.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
