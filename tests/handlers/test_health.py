"""What balancers, orchestrators and monitoring ask."""

from handlers.routes import make_admin_application
from nodes import KEY, api_key, make_token, serving
from server.lifecycle import Phase


async def test_health() -> None:
    async with serving() as served:
        served.node.lifecycle.phase = Phase.DRAINING
        answer = await served.ask("GET", "/healthz", bearer=None)
        assert (answer.status, answer.json) == (200, {"status": "ok"})


async def test_readiness() -> None:
    async with serving() as served:
        answer = await served.ask("GET", "/readyz", bearer=None)
        assert (answer.status, answer.json) == (200, {"status": "ready", "reasons": []})
        served.node.lifecycle.checks.append(lambda: "the broker is away")
        answer = await served.ask("GET", "/readyz", bearer=None)
        assert answer.status == 503
        assert answer.json == {"status": "not ready", "reasons": ["the broker is away"]}
        served.node.lifecycle.phase = Phase.DRAINING
        answer = await served.ask("GET", "/readyz", bearer=None)
        assert answer.json["reasons"] == ["draining", "the broker is away"]


async def test_metrics_need_the_scope() -> None:
    narrow = "narrow.0123456789abcdef"
    async with serving(keys=(api_key(KEY), api_key(narrow, sessions=True))) as served:
        for bearer, status in ((KEY, 200), (narrow, 403), (make_token(), 403), (None, 401)):
            assert (await served.ask("GET", "/metrics", bearer=bearer)).status == status
        answer = await served.ask("GET", "/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert b"galecast_build_info" in answer.body
        assert KEY.encode() not in answer.body


async def test_the_admin_port_is_open_and_serves_nothing_else() -> None:
    async with serving() as served:
        server = make_admin_application(served.node).listen(0, "127.0.0.1")
        (socket,) = server._sockets.values()
        port = socket.getsockname()[1]
        for path, status in (
            ("/healthz", 200),
            ("/readyz", 200),
            ("/metrics", 200),
            ("/v1/sessions", 404),
            ("/docs", 404),
            ("/", 404),
        ):
            answer = await served.ask("GET", path, bearer=None, port=port)
            assert answer.status == status
        server.stop()
        await server.close_all_connections()
