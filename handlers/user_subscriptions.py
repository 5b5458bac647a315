"""How do bytes come in and go out? This file: what a user's sessions are subscribed to."""

from typing import ClassVar, Final

import msgspec

from handlers.base import BaseHandler
from handlers.drafting import read
from handlers.media import JSON, check_encoding, media_type
from handlers.models import UserSubscribed, UserSubscription, UserUnsubscribed
from handlers.sessions import user_name
from server.commands import channel_name, check_rate, position, refuse_pattern
from server.errors import UnsupportedMediaType
from server.orders import SubscribeUser

_decode: Final = msgspec.json.Decoder(UserSubscription).decode


class UserSubscriptionHandler(BaseHandler):
    """`/v1/users/{user}/subscriptions/{channel}`: of all live sessions of a user, on all nodes."""

    route: ClassVar[str] = "/v1/users/{user}/subscriptions/{channel}"

    async def put(self, user: str, channel: str) -> None:
        """Subscribe them; those over WebSocket, since a stream has the channels of its address."""
        self.authenticate().require_scope("sessions")
        user, channel = _names(user, channel)
        wanted = self._wanted()
        position(wanted.since, "since")
        check_rate(wanted.max_rate_hz)
        if wanted.presence:
            self.node.commands.require_kept_presence(channel)
        sessions, refused, silent = await self.node.nodes.subscribe_user(
            SubscribeUser(
                user=user,
                channel=channel,
                since=wanted.since,
                rewind=wanted.rewind,
                presence=wanted.presence,
                max_rate_hz=wanted.max_rate_hz,
            )
        )
        self.reply(UserSubscribed(sessions=sessions, refused=refused, silent=silent))

    async def delete(self, user: str, channel: str) -> None:
        """Take the channel from them."""
        self.authenticate().require_scope("sessions")
        user, channel = _names(user, channel)
        sessions, silent = await self.node.nodes.unsubscribe_user(user, channel)
        self.reply(UserUnsubscribed(sessions=sessions, silent=silent))

    def _wanted(self) -> UserSubscription:
        check_encoding(self.request.headers.get("Content-Encoding"))
        body = self.request.body
        if not body:
            return UserSubscription()
        if media_type(self.content_type) != JSON:
            raise UnsupportedMediaType("the request is read as application/json")
        return read(_decode, body, "the body")


def _names(user: str, channel: str) -> tuple[str, str]:
    refuse_pattern(channel)
    return user_name(user), channel_name(channel)
