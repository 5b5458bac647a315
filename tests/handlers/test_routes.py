"""One table leads to every handler; metrics show its addresses."""

from typing import cast

from tornado.routing import PathMatches

from handlers.base import BaseHandler
from handlers.routes import make_admin_routes, make_application, make_routes
from handlers.table import ADMIN_TABLE, TABLE
from nodes import make_settings, serving


def test_every_address_is_there_once() -> None:
    paths = [route.path for route in TABLE]
    assert len(paths) == len(set(paths))
    assert [route.path for route in ADMIN_TABLE] == ["/healthz", "/readyz", "/metrics"]


def test_what_metrics_show_is_the_address() -> None:
    for route in TABLE:
        assert route.handler.route == route.path


async def test_each_address_is_matched_whole() -> None:
    async with serving() as served:
        rules = {
            cast(type[BaseHandler], rule.target): rule.matcher
            for rule in make_routes(served.node, served.app.live)
            if isinstance(rule.matcher, PathMatches)
        }
        assert set(rules) == {route.handler for route in TABLE}
        for route in TABLE:
            path = route.path.replace("{", "").replace("}", "")
            matcher = rules[route.handler]
            assert matcher.regex.match(path)
            assert not matcher.regex.match(path + "/")
            assert not matcher.regex.match("/x" + path)


async def test_without_live_there_are_no_live_sessions() -> None:
    async with serving(make_settings()) as served:
        main, admin = make_routes(served.node), make_admin_routes(served.node)
        assert len(make_routes(served.node, served.app.live)) == len(main) + 2
        assert len(admin) == 3
        assert make_application(served.node).settings["default_handler_args"] == {
            "node": served.node
        }
