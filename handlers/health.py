"""How do bytes go out? This file: what balancers, orchestrators and monitoring ask."""

from typing import ClassVar

from handlers.base import BaseHandler
from handlers.models import Health, Readiness
from server.node import Node


class HealthHandler(BaseHandler):
    """`GET /healthz`: the loop turns, or there would be no answer."""

    route: ClassVar[str] = "/healthz"

    def get(self) -> None:
        """Answer that all is well."""
        self.reply(Health())


class ReadyHandler(BaseHandler):
    """`GET /readyz`: whether clients should be sent here."""

    route: ClassVar[str] = "/readyz"

    def get(self) -> None:
        """Answer 200, or 503 with the reasons."""
        reasons = self.node.lifecycle.why_not_ready()
        if reasons:
            self.reply(Readiness(status="not ready", reasons=reasons), 503)
        else:
            self.reply(Readiness(status="ready", reasons=[]))


class MetricsHandler(BaseHandler):
    """`GET /metrics`, in the text format of Prometheus; `open` where the port is the guard."""

    route: ClassVar[str] = "/metrics"

    def initialize(self, node: Node, open: bool = False) -> None:
        """Take whether anybody may ask."""
        super().initialize(node)
        self._open = open

    def get(self) -> None:
        """Answer all metrics of this node."""
        if not self._open:
            self.authenticate().require_scope("metrics")
        body, content_type = self.node.metrics.exposition(self.request.headers.get("Accept"))
        self.set_header("Content-Type", content_type)
        self.finish(body)
