"""Who is connected here, and what may they do? This file: the same, asked of all nodes."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from heapq import merge
from itertools import islice
from typing import Final, Generic, NamedTuple, TypeVar

from pubsub.control import Control
from pubsub.errors import BrokerUnavailable
from server.auth import Auth
from server.control import TICKET, USER
from server.errors import NotFound, Unavailable
from server.hub import Hub
from server.orders import (
    MOST_CHANNELS,
    MOST_SESSIONS,
    AnyOrder,
    CountSubscribers,
    DescribeNode,
    Ended,
    EndSession,
    EndUser,
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
    read_answer,
)

_log = logging.getLogger(__name__)

A = TypeVar("A")

# Until all nodes know of an ended ticket: the first pause, the longest, and how often.
_PAUSE_S: Final = 0.5
_MOST_PAUSE_S: Final = 10.0
_TRIES: Final = 60
_MOST_ID: Final = 64


class Heard(NamedTuple, Generic[A]):
    """What nodes answered, and the names of those that did not, or could not, in order."""

    answers: dict[str, A]
    silent: list[str]


class Listed(NamedTuple):
    """A page of sessions by id, each with its node; `more` says whether others follow."""

    sessions: list[tuple[str, SessionEntry]]
    more: bool
    silent: list[str]


class AllNodes:
    """Asks and tells all nodes, this one included. Calls raise Unavailable; safe to cancel.

    A node that could not do all of an order counts as silent, and so does one that does not know
    it: during a roll-out nodes of several versions live together.
    """

    def __init__(
        self,
        control: Control,
        auth: Auth,
        hub: Hub,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._control = control
        self._auth = auth
        self._hub = hub
        self._sleep = sleep

    async def end_session(self, session: str) -> None:
        """End a session; raises NotFound if no node has it, Unavailable if one that may is silent.

        It is answered for once the node that has it has ended it.
        """
        silent: list[str] = []
        if len(session) <= _MOST_ID:
            answers, silent = await self._ask(EndSession(session), Ended)
            if any(each.ended for each in answers.values()):
                return
        if silent:
            raise Unavailable(f"not found, but these nodes did not answer: {', '.join(silent)}")
        raise NotFound("there is no such session")

    async def end_user(self, user: str) -> tuple[int, list[str]]:
        """End all sessions of a user and refuse the tokens that the user has up to now.

        Returns how many there were, and the nodes that did not answer. They hear of it all the
        same: once this node has told it, it is kept. Raises Unavailable if that failed.
        """
        at_s, until_s = self._auth.revocations.span()
        try:
            await self._control.notify(USER, user, at_s, until_s)
        except BrokerUnavailable:
            raise Unavailable("the broker is away") from None
        answers, silent = await self._ask(EndUser(user, at_s, until_s), Ended)
        return sum(each.ended for each in answers.values()), silent

    async def subscribe_user(self, order: SubscribeUser) -> tuple[int, int, list[str]]:
        """Subscribe a user's sessions to a channel.

        Returns how many are subscribed now, how many were at their limit, and the silent nodes.
        """
        answers, silent = await self._ask(order, UserSubscribed)
        found = answers.values()
        return sum(e.sessions for e in found), sum(e.refused for e in found), silent

    async def unsubscribe_user(self, user: str, channel: str) -> tuple[int, list[str]]:
        """Take a channel from a user's sessions; return how many had it, and the silent nodes."""
        answers, silent = await self._ask(UnsubscribeUser(user, channel), UserUnsubscribed)
        return sum(each.sessions for each in answers.values()), silent

    async def sessions(self, user: str | None, after: str, limit: int) -> Listed:
        """Return the first `limit` sessions behind an id, of all nodes that answer.

        `limit` is at most `MOST_SESSIONS - 1`. None of those nodes' sessions is left out.
        """
        # One more than asked for tells whether there are more.
        order = ListSessions(user, after[:_MOST_ID], min(limit + 1, MOST_SESSIONS))
        answers, silent = await self._ask(order, SessionsFound)
        pages = ([(name, each) for each in page.sessions] for name, page in answers.items())
        joined = list(islice(merge(*pages, key=lambda pair: pair[1].session), limit + 1))
        return Listed(joined[:limit], len(joined) > limit, silent)

    async def subscribers(self, channels: Sequence[str]) -> tuple[list[int], list[str]]:
        """Return how many subscriptions each channel has, and the silent nodes."""
        counts: list[int] = []
        quiet: set[str] = set()
        for start in range(0, len(channels), MOST_CHANNELS):
            part = list(channels[start : start + MOST_CHANNELS])
            answers, silent = await self._ask(CountSubscribers(part), SubscribersCounted)
            whole = {n: a.counts for n, a in answers.items() if len(a.counts) == len(part)}
            quiet |= {*silent, *(answers.keys() - whole.keys())}
            counts += map(sum, zip(*whole.values(), strict=True)) if whole else [0] * len(part)
        return counts, sorted(quiet)

    async def describe(self) -> Heard[NodeState]:
        """Return how the nodes stand."""
        return await self._ask(DescribeNode(), NodeState)

    # ---- tickets

    async def take_ticket(self, name: str, ttl_s: float) -> bool:
        """Use a ticket first; False if that was done before, on whatever node."""
        try:
            return await self._control.take(name, ttl_s)
        except BrokerUnavailable:
            raise Unavailable("the broker is away") from None

    def end_ticket(self, proof: bytes, expires_at: float | None) -> None:
        """Refuse a ticket from now on, here at once and then on all nodes.

        `expires_at` is that of its principal.
        """
        at_s, until_s = self._auth.tickets.span(expires_at)
        self._auth.tickets.end(proof, until_s)
        self._hub.spawn(self._tell_ticket(proof.decode(), at_s, until_s))

    async def _tell_ticket(self, proof: str, at_s: float, until_s: float) -> None:
        pause_s = _PAUSE_S
        for _ in range(_TRIES):
            try:
                await self._control.notify(TICKET, proof, at_s, until_s)
                return
            except BrokerUnavailable as error:
                _log.info("an ended ticket waits to be told: %s", error)
            await self._sleep(random.uniform(0.5, 1) * pause_s)  # noqa: S311
            pause_s = min(pause_s * 2, _MOST_PAUSE_S)

    # ---- asking

    async def _ask(self, order: AnyOrder, kind: type[A]) -> Heard[A]:
        try:
            heard = await self._control.ask(pack(order))
        except BrokerUnavailable:
            raise Unavailable("the other nodes cannot be asked") from None
        answers: dict[str, A] = {}
        silent = set(heard.silent)
        for name, payload in heard.answers.items():
            answer = read_answer(payload)
            if isinstance(answer, kind):
                answers[name] = answer
                continue
            silent.add(name)
            if answer is None or isinstance(answer, Unknown):
                _log.info(
                    "a node of another version did not understand",
                    extra={"node": name, "order": type(order).__name__},
                )
        return Heard(answers, sorted(silent))
