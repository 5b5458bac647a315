"""How do bytes come in and go out? This file: who is connected, and ending that."""

from typing import ClassVar

from config.patterns import NameRejected, check_user
from handlers.base import BaseHandler
from handlers.models import Ended, SessionItem, SessionPage
from server.errors import BadRequest
from server.orders import MOST_SESSIONS, SessionEntry


def user_name(text: str) -> str:
    """Return `text` if it names a user; raises BadRequest."""
    try:
        check_user(text)
    except NameRejected as error:
        raise BadRequest(str(error)) from None
    return text


class SessionsHandler(BaseHandler):
    """`GET /v1/sessions`: live sessions of all nodes by id, all or those of one user."""

    route: ClassVar[str] = "/v1/sessions"

    async def get(self) -> None:
        """Answer a page."""
        self.authenticate().require_scope("sessions")
        most = min(self.node.settings.limits.items_per_page, MOST_SESSIONS - 1)
        limit = self.count("limit", most, most)
        after, user = self.parameter("cursor") or "", self.parameter("user")
        if user is not None:
            user_name(user)
        page = await self.node.nodes.sessions(user, after, limit)
        items = [_item(name, session) for name, session in page.sessions]
        self.reply(
            SessionPage(
                sessions=items,
                cursor=items[-1].session if page.more else None,
                silent=page.silent,
            )
        )


def _item(node: str, session: SessionEntry) -> SessionItem:
    return SessionItem(
        session=session.session,
        node=node,
        kind=session.kind,
        user=session.user,
        transport=session.transport,
        encoding=session.encoding,
        address=session.address,
        connected_at=session.connected_at,
        subscriptions=session.subscriptions,
    )


class SessionHandler(BaseHandler):
    """`DELETE /v1/sessions/{session}`, whatever node it is on."""

    route: ClassVar[str] = "/v1/sessions/{session}"

    async def delete(self, session: str) -> None:
        """End a session; its client is told to stay away (4502)."""
        self.authenticate().require_scope("sessions")
        await self.node.nodes.end_session(session)
        self.set_status(204)


class UserSessionsHandler(BaseHandler):
    """`DELETE /v1/users/{user}/sessions`."""

    route: ClassVar[str] = "/v1/users/{user}/sessions"

    async def delete(self, user: str) -> None:
        """End all sessions of a user, and refuse the tokens that the user has up to now."""
        self.authenticate().require_scope("sessions")
        ended, silent = await self.node.nodes.end_user(user_name(user))
        self.reply(Ended(ended=ended, silent=silent))
