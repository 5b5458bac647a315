"""What Nginx does by itself: what it sends again, passes on, hides, limits and refuses."""

import asyncio
import json
import ssl
from collections import Counter
from itertools import chain

import pytest

from fleet_clients import until
from fleet_http import Exchange, open_exchange
from nginx import NginxServer
from upstreams import rig

EVENT = b'{"channel":"a","data":1}'
OPTION = pytest.mark.parametrize("publishers", [False, True])


@OPTION
def test_nginx_takes_the_configuration(publishers: bool) -> None:
    nginx = NginxServer([1, 2, 3], publishers=publishers)
    try:
        said = nginx.test()
    finally:
        nginx.close()
    assert "test is successful" in said
    assert "[warn]" not in said.replace("open file resource limit", "")


# ---- what is sent a second time


@pytest.mark.parametrize(
    ("headers", "times"),
    [
        # An answer that never came says nothing about what was done.
        ({}, 1),
        ({"Content-Type": "application/json; x=cloudevents"}, 1),
        ({"Ce-Id": "1"}, 1),
        # The id is the same at whichever node it arrives, so it stays one event.
        ({"Idempotency-Key": "k"}, 3),
        ({"Content-Type": "application/cloudevents+json"}, 3),
        ({"Content-Type": "application/cloudevents-batch+json; charset=utf-8"}, 3),
        ({"Ce-Id": "1", "Ce-Specversion": "1.0"}, 3),
        # A stream is not kept, so it cannot be sent again.
        ({"Content-Type": "application/x-ndjson", "Idempotency-Key": "k"}, 1),
    ],
)
async def test_a_publish_is_sent_again_only_if_it_stays_one_event(
    headers: dict[str, str], times: int
) -> None:
    """A publish with no more than `Ce-Id` was sent again; to the nodes it is no CloudEvent."""
    async with rig() as nginx:
        nginx.let_die()
        answer = await nginx.ask("POST", "/v1/events?channel=a", EVENT, headers)
        assert answer.status == 503
        assert answer.json["code"] == "unavailable"
        assert answer.json["retry"] is True
        assert answer.headers["content-type"] == "application/problem+json"
        assert len(nginx.requests) == times
        for start, _headers, body in nginx.requests:
            assert (start, body) == ("POST /v1/events?channel=a HTTP/1.1", EVENT)


async def test_one_living_node_is_enough() -> None:
    async with rig() as nginx:
        for upstream in nginx.upstreams[:2]:
            await upstream.close()
        for _ in range(6):
            assert (await nginx.ask("POST", "/v1/events", EVENT)).status == 200
            assert (await nginx.ask("GET", "/v1/sse?channel=a")).status == 200
        assert len(nginx.upstreams[2].requests) == 12


async def test_a_node_that_failed_gets_sessions_again_at_once() -> None:
    """Sessions were refused, with all nodes running, when all had been restarted in turn.

    Nginx took each for dead after it had failed twice, and believes in a node again only when a
    request to it has ended: but sessions do not end.
    """
    async with rig() as nginx:
        nginx.let_die()
        for _ in range(3):
            assert (await nginx.ask("GET", "/v1/ws")).status == 503
        for upstream in nginx.upstreams:
            upstream.dying = False
            upstream.requests.clear()
        for _ in range(6):
            assert (await nginx.ask("GET", "/v1/ws")).status == 200
        assert len(nginx.requests) == 6


# ---- what nodes are told


FORGED = {
    "X-Forwarded-For": "203.0.113.9, 127.0.0.1",
    "X-Real-Ip": "203.0.113.9",
    "Forwarded": "for=203.0.113.9",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "http",
}


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/ws"), ("GET", "/v1/sse?channel=a"), ("POST", "/v1/events"), ("GET", "/docs")],
)
async def test_a_client_cannot_say_who_it_is(method: str, path: str) -> None:
    async with rig() as nginx:
        body = EVENT if method == "POST" else None
        assert (await nginx.ask(method, path, body, FORGED)).status == 200
        ((start, headers, _body),) = nginx.requests
        assert start == f"{method} {path} HTTP/1.1"
        assert headers["x-forwarded-for"] == "127.0.0.1"
        assert headers["x-forwarded-proto"] == "https"
        assert not {"x-real-ip", "forwarded", "x-forwarded-host"} & headers.keys()


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ({"Upgrade": "WebSocket", "Connection": "Upgrade"}, ("websocket", "upgrade")),
        ({"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings"}, (None, None)),
        ({"Connection": "close, X-Forwarded-For"}, (None, None)),
    ],
)
async def test_only_websocket_takes_a_connection_over(
    given: dict[str, str], passed: tuple[str | None, str | None]
) -> None:
    async with rig() as nginx:
        await nginx.ask("GET", "/v1/ws", headers=given)
        ((_start, headers, _body),) = nginx.requests
        assert (headers.get("upgrade"), headers.get("connection")) == passed
        assert headers["x-forwarded-for"] == "127.0.0.1"


async def test_a_request_has_one_name_everywhere() -> None:
    async with rig() as nginx:
        await nginx.ask("GET", "/docs", headers={"X-Request-Id": "abc-1"})
        await nginx.ask("GET", "/docs", headers={"X-Request-Id": '","retry":true,"x":"'})
        given, made = (headers["x-request-id"] for _start, headers, _body in nginx.requests)
        assert given == "abc-1"
        assert len(made) == 32
        await until(lambda: nginx.nginx.access_log.count("\n") >= 2)
        lines = [json.loads(line) for line in nginx.nginx.access_log.splitlines()]
        assert [line["request"] for line in lines] == [given, made]


async def test_no_query_is_logged() -> None:
    """A ticket stands in the address of a stream."""
    async with rig() as nginx:
        await nginx.ask("GET", "/v1/sse?channel=a&ticket=canary")
        await nginx.ask("POST", "/v1/events?channel=canary", EVENT)
        nginx.let_die()
        await nginx.ask("GET", "/v1/sse?channel=a&ticket=canary")
        # A line is written when its answer is out.
        await until(lambda: nginx.nginx.access_log.count("\n") >= 3)
        lines = [json.loads(line) for line in nginx.nginx.access_log.splitlines()]
        assert [line["address"] for line in lines] == ["/v1/sse", "/v1/events", "/v1/sse"]
        assert "canary" not in nginx.nginx.access_log + nginx.nginx.error_log


# ---- what nobody outside gets


async def test_health_and_metrics_are_not_public() -> None:
    async with rig() as nginx:
        for path in ("/metrics", "/healthz", "/readyz", "//metrics", "/./readyz", "/%6detrics"):
            assert (await nginx.ask("GET", path)).status == 404
        for kind in ("plain", "keyed", "stream"):
            assert (await nginx.ask("POST", f"/publish/{kind}", EVENT)).status == 404
        assert nginx.requests == []
        reader, writer = await asyncio.open_connection("127.0.0.1", nginx.nginx.status_port)
        exchange = Exchange(reader, writer)
        assert b"Active connections" in (await exchange.ask("GET", "/status")).body
        exchange.close()


async def test_plain_http_leads_to_https() -> None:
    async with rig() as nginx:
        reader, writer = await asyncio.open_connection("127.0.0.1", nginx.nginx.plain_port)
        exchange = Exchange(reader, writer)
        answer = await exchange.ask("POST", "/v1/events?x=1", EVENT)
        exchange.close()
        assert answer.status == 308
        assert answer.headers["location"] == "https://events.example.com/v1/events?x=1"
        assert nginx.requests == []


async def test_protocols() -> None:
    async with rig() as nginx:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            tls = nginx.nginx.tls()
            tls.minimum_version = tls.maximum_version = version
            tls.set_alpn_protocols(["h2", "http/1.1"])
            async with open_exchange(nginx.nginx.url, tls) as exchange:
                taken = exchange.writer.get_extra_info("ssl_object")
                assert taken.selected_alpn_protocol() == "h2"
        answer = await nginx.ask("GET", "/docs")
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert answer.headers["server"] == "nginx"


# ---- limits


async def test_a_body_may_be_as_long_as_the_nodes_take() -> None:
    most = 4 * 1024 * 1024
    async with rig() as nginx:
        fits = EVENT + b" " * (most - len(EVENT))
        assert (await nginx.ask("POST", "/v1/events", fits)).status == 200
        assert nginx.requests[0][2] == fits
        for headers in (None, {"Idempotency-Key": "k"}):
            answer = await nginx.ask("POST", "/v1/events", fits + b" ", headers)
            assert (answer.status, answer.json["code"]) == (413, "too_large")
        kind = {"Content-Type": "application/x-ndjson"}
        answer = await nginx.ask("POST", "/v1/events", fits + b"\n" + fits, kind)
        assert answer.status == 200
        assert len(nginx.requests) == 2


async def test_handshakes_are_limited_by_address() -> None:
    async with rig() as nginx:

        async def hammer() -> list[int]:
            async with open_exchange(nginx.nginx.url, nginx.tls) as exchange:
                statuses = []
                # More than one of them may have where the others are held up.
                for _ in range(1_000):
                    answer = await exchange.ask("GET", "/v1/ws")
                    statuses.append(answer.status)
                    if answer.status == 429:
                        assert answer.json["code"] == "rate_limited"
                        break
                return statuses

        found = Counter(chain(*await asyncio.gather(*(hammer() for _ in range(8)))))
        assert found[200] >= 300
        assert found[429] == 8
        assert found.total() == found[200] + found[429]
        # Other requests go on.
        assert (await nginx.ask("POST", "/v1/events", EVENT)).status == 200


# ---- the option


async def test_publishing_may_need_a_client_certificate() -> None:
    async with rig(publishers=True) as nginx:
        for path in ("/v1/events", "//v1/events", "/v1/./events?x=1", "/v1/%65vents"):
            answer = await nginx.ask("POST", path, EVENT, {"Idempotency-Key": "k"})
            assert (answer.status, answer.json["code"]) == (403, "forbidden")
        assert nginx.requests == []
        assert (await nginx.ask("GET", "/v1/sse?channel=a")).status == 200
        publisher = nginx.nginx.tls(nginx.nginx.issuer.issue("publisher"))
        assert (await nginx.ask("POST", "/v1/events", EVENT, tls=publisher)).status == 200
        assert len(nginx.requests) == 2


async def test_a_certificate_of_somebody_else_is_refused() -> None:
    async with rig(publishers=True) as nginx:
        stranger = nginx.nginx.tls(nginx.nginx.strangers.issue("stranger"))
        assert (await nginx.ask("POST", "/v1/events", EVENT, tls=stranger)).status == 400
        assert nginx.requests == []
