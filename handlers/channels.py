"""How do bytes come in and go out? This file: which channels there are, and what each one is."""

from typing import ClassVar, Final

from handlers.base import BaseHandler
from handlers.models import Channel, ChannelItem, ChannelPage, Rule
from pubsub.errors import PubSubError
from server.commands import channel_name
from server.errors import NotFound
from server.publishing import refusal

# A key that may see few of very many channels gets short pages rather than a long wait.
_LOOKS: Final = 10


class ChannelsHandler(BaseHandler):
    """`GET /v1/channels`: active channels by name, those that the key's patterns cover."""

    route: ClassVar[str] = "/v1/channels"

    async def get(self) -> None:
        """Answer a page; with few matches it may hold less than `limit`, and still a cursor."""
        node, principal = self.node, self.authenticate()
        principal.require_scope("channels")
        most = node.settings.limits.items_per_page
        limit = self.count("limit", most, most)
        prefix, after = self.parameter("prefix") or "", self.parameter("cursor") or ""
        items: list[ChannelItem] = []
        try:
            for _ in range(_LOOKS):
                wanted = limit - len(items) + 1
                states = await node.broker.channels(prefix=prefix, after=after, limit=wanted)
                more = len(states) == wanted
                for state in states[: wanted - 1]:
                    after = state.channel
                    if principal.has_scope("channels", after):
                        items.append(
                            ChannelItem(channel=after, position=str(state.top), subscribers=0)
                        )
                if not more or len(items) == limit:
                    break
        except PubSubError as error:
            raise refusal(error) from None
        counts, silent = await node.nodes.subscribers([each.channel for each in items])
        for item, count in zip(items, counts, strict=True):
            item.subscribers = count
        self.reply(ChannelPage(channels=items, cursor=after if more else None, silent=silent))


class ChannelHandler(BaseHandler):
    """`GET /v1/channels/{channel}`."""

    route: ClassVar[str] = "/v1/channels/{channel}"

    async def get(self, name: str) -> None:
        """Answer position, subscribers and rule."""
        node, principal = self.node, self.authenticate()
        channel = channel_name(name)
        principal.require_scope("channels", channel)
        try:
            top = await node.broker.top(channel)
        except PubSubError as error:
            raise refusal(error) from None
        if top is None:
            raise NotFound(f"there is no channel {channel}")
        (count,), silent = await node.nodes.subscribers([channel])
        rule = node.rules.rule(channel)
        self.reply(
            Channel(
                channel=channel,
                position=str(top),
                subscribers=count,
                silent=silent,
                rule=Rule(
                    match=rule.match,
                    history_size=rule.history_size,
                    history_ttl_s=rule.history_ttl_s,
                    archive=rule.archive,
                    archive_ttl_s=rule.archive_ttl_s,
                    presence=rule.presence,
                    client_publish=rule.client_publish,
                    slow=rule.slow,
                ),
            )
        )
