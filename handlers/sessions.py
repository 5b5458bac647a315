"""How do bytes come in and go out? This file: who is connected, and ending that."""

from collections.abc import Iterable
from heapq import nsmallest
from operator import attrgetter
from typing import ClassVar

from config.patterns import NameRejected, check_user
from handlers.base import BaseHandler
from handlers.models import Ended, SessionItem, SessionPage
from server.closing import Closing
from server.errors import BadRequest, NotFound
from server.session import Session

_id_of = attrgetter("id")


class SessionsHandler(BaseHandler):
    """`GET /v1/sessions`: live sessions by id, all or those of one user."""

    route: ClassVar[str] = "/v1/sessions"

    def get(self) -> None:
        """Answer a page."""
        self.authenticate().require_scope("sessions")
        node, most = self.node, self.node.settings.limits.items_per_page
        limit = self.count("limit", most, most)
        after, user = self.parameter("cursor") or "", self.parameter("user")
        sessions: Iterable[Session] = (
            node.hub.sessions.values() if user is None else node.hub.sessions_of(user)
        )
        page = nsmallest(limit + 1, (each for each in sessions if each.id > after), key=_id_of)
        items = [self._item(session) for session in page[:limit]]
        more = len(page) > limit
        self.reply(SessionPage(sessions=items, cursor=items[-1].session if more else None))

    def _item(self, session: Session) -> SessionItem:
        return SessionItem(
            session=session.id,
            node=self.node.name,
            kind=session.principal.kind,
            user=session.principal.user,
            transport=session.wire.transport,
            encoding=session.wire.label,
            address=session.address,
            connected_at=session.connected_at,
            subscriptions=len(session.subscriptions),
        )


class SessionHandler(BaseHandler):
    """`DELETE /v1/sessions/{session}`."""

    route: ClassVar[str] = "/v1/sessions/{session}"

    def delete(self, session_id: str) -> None:
        """End a session; its client is told to stay away (4502)."""
        self.authenticate().require_scope("sessions")
        session = self.node.hub.sessions.get(session_id)
        if session is None:
            raise NotFound("there is no such session")
        session.end(Closing.ENDED)
        self.set_status(204)


class UserSessionsHandler(BaseHandler):
    """`DELETE /v1/users/{user}/sessions`."""

    route: ClassVar[str] = "/v1/users/{user}/sessions"

    def delete(self, user: str) -> None:
        """End all sessions of a user, and refuse the tokens that the user has up to now."""
        self.authenticate().require_scope("sessions")
        try:
            check_user(user)
        except NameRejected as error:
            raise BadRequest(str(error)) from None
        # First the tokens: a session that is told to go must not come back in between.
        self.node.auth.end_user(user)
        self.reply(Ended(ended=self.node.hub.end_user(user)))
