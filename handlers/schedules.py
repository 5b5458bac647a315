"""How do bytes come in and go out? This file: what is scheduled in a channel."""

from typing import ClassVar

from msgspec import Raw

from handlers.base import BaseHandler
from handlers.models import ScheduleItem, SchedulePage
from server.commands import channel_name


class SchedulesHandler(BaseHandler):
    """`GET /v1/channels/{channel}/schedules`."""

    route: ClassVar[str] = "/v1/channels/{channel}/schedules"

    async def get(self, name: str) -> None:
        """Answer a page of what waits for its time."""
        node, principal = self.node, self.authenticate()
        channel = channel_name(name)
        most = node.settings.limits.items_per_page
        limit, cursor = self.count("limit", most, most), self.parameter("cursor")
        found, cursor = await node.scheduling.page(principal, channel, cursor, limit)
        items = [
            ScheduleItem(
                id=schedule.draft.id,
                deliver_at=schedule.deliver_at,
                name=schedule.draft.name,
                data=Raw(schedule.draft.data),
                tags=schedule.draft.tags,
                user=schedule.draft.user,
            )
            for schedule in found
        ]
        self.reply(SchedulePage(channel=channel, schedules=items, cursor=cursor))


class ScheduleHandler(BaseHandler):
    """`DELETE /v1/channels/{channel}/schedules/{id}`."""

    route: ClassVar[str] = "/v1/channels/{channel}/schedules/{id}"

    async def delete(self, name: str, event_id: str) -> None:
        """Cancel, unless it was published."""
        principal = self.authenticate()
        await self.node.scheduling.cancel(principal, channel_name(name), event_id)
        self.set_status(204)
