"""How do bytes come in and go out? This file: from the table of routes to applications."""

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from tornado.routing import PathMatches, Rule

from handlers.base import NotFoundHandler
from handlers.gate import GatedApplication
from handlers.health import MetricsHandler
from handlers.live import Live
from handlers.media import JSON
from handlers.ndjson import NdjsonHandler, StreamMatcher
from handlers.openapi import document
from handlers.operations import Route
from handlers.pages import PageHandler, asset, load_assets
from handlers.sse import SseHandler
from handlers.table import ADMIN_TABLE, TABLE
from handlers.websocket import WebSocketHandler
from server.node import Node

_part: Final = re.compile(r"\{[a-z]+\}")


def make_routes(node: Node, live: Live | None = None) -> list[Rule]:
    """Return the rules of the main port; without `live` there are no live sessions."""
    assets = load_assets()
    assets["openapi.json"] = asset(document(TABLE, _version()), JSON)
    rules = [Rule(StreamMatcher(), NdjsonHandler, {"node": node})]
    for route in TABLE:
        arguments: dict[str, Any] = {"node": node}
        if issubclass(route.handler, WebSocketHandler | SseHandler):
            if live is None:
                continue
            arguments = {"live": live}
        elif issubclass(route.handler, PageHandler):
            arguments["assets"] = assets
        rules.append(_rule(route, arguments))
    return rules


def make_admin_routes(node: Node) -> list[Rule]:
    """Return the rules of the admin port: health and metrics, open to whoever reaches it."""
    return [
        _rule(route, {"node": node, **({"open": True} if route.handler is MetricsHandler else {})})
        for route in ADMIN_TABLE
    ]


def make_application(node: Node, live: Live | None = None) -> GatedApplication:
    """Return what serves the main port."""
    return _application(node, make_routes(node, live), publishing=True)


def make_admin_application(node: Node) -> GatedApplication:
    """Return what serves the admin port."""
    return _application(node, make_admin_routes(node))


def _application(
    node: Node, rules: Iterable[Rule], *, publishing: bool = False
) -> GatedApplication:
    return GatedApplication(
        node,
        rules,
        publishing=publishing,
        default_handler_class=NotFoundHandler,
        default_handler_args={"node": node},
    )


def _rule(route: Route, arguments: dict[str, Any]) -> Rule:
    return Rule(PathMatches(_part.sub("([^/]+)", route.path) + "$"), route.handler, arguments)


def _version() -> str:
    try:
        return version("galecast")
    except PackageNotFoundError:
        return "0"
