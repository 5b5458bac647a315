"""How do bytes come in and go out? This file: who is present in a channel."""

from typing import ClassVar

from handlers.base import BaseHandler
from handlers.models import MemberPage
from pubsub.errors import PubSubError
from server.codec import JSON
from server.commands import channel_name
from server.errors import BadRequest
from server.publishing import refusal


class PresenceHandler(BaseHandler):
    """`GET /v1/channels/{channel}/presence`."""

    route: ClassVar[str] = "/v1/channels/{channel}/presence"

    async def get(self, name: str) -> None:
        """Answer a page of the presence set."""
        node, principal = self.node, self.authenticate(anonymous=True)
        channel = channel_name(name)
        node.commands.require_presence(principal, channel)
        most = node.settings.limits.members_per_reply
        limit, cursor = self.count("limit", most, most), self.parameter("cursor")
        try:
            page = await node.presence.members(channel, cursor=cursor, limit=limit)
        except PubSubError as error:
            raise refusal(error) from None
        except ValueError:
            raise BadRequest("cursor is none that was given out") from None
        self.reply(
            MemberPage(
                channel=channel,
                members=[JSON.member(member) for member in page.members],
                total=page.total,
                cursor=page.cursor,
            )
        )
