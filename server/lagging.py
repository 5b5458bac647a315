"""Who is connected here? This file: a connection that lags, and who waits for room on it."""

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from server.session import Session
    from server.subscription import Subscription

# Late subscriptions that get what they are owed in one turn of the loop.
_RELIEVED: Final = 256


def hold(subscription: "Subscription") -> None:
    """Let a late subscription wait until its connection has room."""
    session = subscription.session
    if session.behind is None:
        session.behind = {}
    session.behind[subscription] = None


def release(subscription: "Subscription") -> None:
    """Let a subscription wait no longer."""
    session = subscription.session
    if session.behind is not None:
        session.behind.pop(subscription, None)
        if not session.behind:
            session.behind = None


def relieve(session: "Session") -> None:
    """Send what late subscriptions are owed, who waits longest first, until there is no room.

    One at least, so that they have their share of a connection that always has something unsent;
    and never so many that others have to wait for long.
    """
    for subscription in list(islice(session.behind or (), _RELIEVED)):
        if subscription.feed is not None:
            subscription.feed.conflation.relieve(subscription)
        if session.connection.unsent:
            return
    if session.behind is not None:
        asyncio.get_running_loop().call_soon(relieve, session)


def finish(session: "Session") -> None:
    """Send what late subscriptions are owed, as far as the limit of unsent bytes allows."""
    most = session.node.settings.limits.unsent_bytes
    for subscription in session.subscriptions.values():
        if subscription.late is not None and subscription.feed is not None:
            if session.connection.unsent > most:
                return
            subscription.feed.conflation.finish(subscription)
