"""How do bytes come in and go out? This file: which nodes there are, and how they stand."""

from typing import ClassVar

from handlers.base import BaseHandler
from handlers.models import NodeItem, NodeList
from server.orders import NodeState


class NodesHandler(BaseHandler):
    """`GET /v1/nodes`: all living nodes by name, with their load."""

    route: ClassVar[str] = "/v1/nodes"

    async def get(self) -> None:
        """Answer the list."""
        self.authenticate().require_scope("metrics")
        states, silent = await self.node.nodes.describe()
        items = [_item(name, state) for name, state in states.items()]
        items += [NodeItem(node=name, silent=True) for name in silent]
        self.reply(NodeList(nodes=sorted(items, key=lambda item: item.node)))


def _item(name: str, state: NodeState) -> NodeItem:
    item = NodeItem(
        node=name,
        version=state.version,
        phase=state.phase,
        ready=not state.reasons,
        reasons=state.reasons,
        uptime_s=state.uptime_s,
        sessions=state.sessions,
        connections=state.connections,
        subscriptions=state.subscriptions,
        channels=state.channels,
        events_in=state.events_in,
        events_out=state.events_out,
        unsent_bytes=state.unsent_bytes,
        loop_lag_s=state.loop_lag_s,
    )
    if state.rss_bytes is not None:
        item.rss_bytes = state.rss_bytes
    return item
