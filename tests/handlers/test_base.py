"""What every request has in common: ids, credentials, limits, methods, pages, and its end."""

import logging
import re

import pytest

from config.limits import LimitSettings
from nodes import KEY, api_key, make_token, serving
from server.lifecycle import Phase

PAGE = "https://app.example.com"


def counter(text: bytes, name: str) -> float:
    """The value of a series in the text format of Prometheus."""
    found = re.search(rf"^{re.escape(name)} ([0-9.e+-]+)$", text.decode(), re.MULTILINE)
    return 0.0 if found is None else float(found[1])


async def test_a_request_id_is_taken_or_made() -> None:
    async with serving() as served:
        for given in ("a", "A-z_0.9", "x" * 128):
            answer = await served.ask("GET", "/healthz", headers={"X-Request-Id": given})
            assert answer.headers["X-Request-Id"] == given
        for given in ("", "x" * 129, "a b", "a,b", "<x>", "\u00e9"):
            answer = await served.ask("GET", "/healthz", headers={"X-Request-Id": given})
            assert re.fullmatch("[0-9a-f]{16}", answer.headers["X-Request-Id"])
        refused = await served.ask("GET", "/nowhere", headers={"X-Request-Id": "mine"})
        assert refused.headers["X-Request-Id"] == refused.json["instance"] == "mine"


async def test_every_answer_is_guarded() -> None:
    async with serving() as served:
        for path in ("/healthz", "/nowhere", "/v1/sessions", "/docs"):
            headers = (await served.ask("GET", path)).headers
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert "Server" not in headers
            assert headers["Cache-Control"] in ("no-store", "no-cache")


async def test_an_address_that_is_no_route() -> None:
    async with serving() as served:
        for method in ("GET", "POST", "DELETE", "OPTIONS"):
            answer = await served.ask(method, "/v1/nothing")
            assert answer.status == 404
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.json["code"] == "not_found"
        assert (await served.ask("GET", "/v1/channels/a/b/c")).status == 404


async def test_a_method_that_is_none() -> None:
    async with serving() as served:
        answer = await served.ask("GET", "/v1/events")
        assert answer.status == 405
        assert answer.headers["Allow"] == "POST, OPTIONS"
        assert answer.json["code"] == "bad_request"
        answer = await served.ask("PUT", "/v1/channels/a/events", b"x")
        assert answer.headers["Allow"] == "GET, HEAD, DELETE, OPTIONS"
        assert (await served.ask("BREW", "/healthz")).status == 405
        assert (await served.ask("HEAD", "/v1/events")).status == 405


async def test_head_is_get_without_a_body() -> None:
    async with serving() as served:
        for path in ("/healthz", "/v1/channels", "/docs"):
            full, head = await served.ask("GET", path), await served.ask("HEAD", path)
            assert head.status == full.status == 200
            assert head.body == b""
            assert head.headers["Content-Length"] == str(len(full.body))
            assert head.headers["Content-Type"] == full.headers["Content-Type"]


async def test_options_tells_the_methods() -> None:
    async with serving() as served:
        answer = await served.ask("OPTIONS", "/v1/channels/a/events", bearer=None)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["Allow"] == "GET, HEAD, DELETE, OPTIONS"
        assert "Access-Control-Allow-Methods" not in answer.headers


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "bearer x", "Basic dGVzdA==", "Bearer test.wrong", "Bearer x.y.z", KEY],
)
async def test_without_valid_credentials(header: str | None) -> None:
    async with serving() as served:
        headers = {} if header is None else {"Authorization": header}
        answer = await served.ask("GET", "/v1/sessions", bearer=None, headers=headers)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json["code"] == "unauthorized"
        assert "test" not in answer.json["detail"]


async def test_two_credentials_are_none() -> None:
    async with serving() as served:
        head = "".join(f"Authorization: Bearer {key}\r\n" for key in (KEY, KEY))
        request = f"GET /v1/sessions HTTP/1.1\r\nHost: a\r\n{head}Connection: close\r\n\r\n"
        assert (await served.raw(request.encode())).startswith(b"HTTP/1.1 401 ")


async def test_the_scheme_is_read_in_any_case() -> None:
    async with serving() as served:
        headers = {"Authorization": f"bearer {KEY}"}
        assert (await served.ask("GET", "/v1/sessions", bearer=None, headers=headers)).status == 200


@pytest.mark.usefixtures("rates_stand_still")
async def test_requests_of_a_key_are_limited_and_told() -> None:
    other = "other.0123456789abcdef"
    limits = LimitSettings(key_requests_per_s=3)
    async with serving(limits=limits, keys=(api_key(KEY), api_key(other))) as served:
        left = []
        while (answer := await served.ask("GET", "/v1/sessions")).status == 200:
            assert answer.headers["RateLimit-Limit"] == "3"
            left.append(int(answer.headers["RateLimit-Remaining"]))
            assert 0 <= int(answer.headers["RateLimit-Reset"]) <= 1
        assert left == sorted(left, reverse=True)
        assert (answer.status, answer.json["code"]) == (429, "rate_limited")
        assert answer.json["retry"] is True
        assert answer.headers["Retry-After"] == "1"
        assert answer.headers["RateLimit-Remaining"] == "0"
        assert (await served.ask("GET", "/v1/sessions", bearer=other)).status == 200
        text = (await served.ask("GET", "/metrics", bearer=other)).body
        assert counter(text, 'galecast_refusals_total{reason="key_requests_per_s"}') == 1


@pytest.mark.usefixtures("rates_stand_still")
async def test_a_user_s_requests_count_like_the_commands_of_a_session() -> None:
    async with serving(limits=LimitSettings(session_commands_per_s=2)) as served:
        for left in ("1", "0"):
            answer = await served.ask("GET", "/v1/channels/a/events", bearer=make_token())
            assert answer.status == 200
            assert answer.headers["RateLimit-Limit"] == "2"
            assert answer.headers["RateLimit-Remaining"] == left
        refused = await served.ask("GET", "/v1/channels/a/events", bearer=make_token())
        assert refused.status == 429
        assert refused.headers["Retry-After"] == "1"
        # Another user has an allowance of its own.
        other = await served.ask("GET", "/v1/channels/a/events", bearer=make_token("other"))
        assert other.status == 200


async def test_development_mode_answers_to_this_machine_only() -> None:
    """A foreign page whose name resolves to 127.0.0.1 sends that name (DNS rebinding)."""
    async with serving(dev=True) as served:
        for host in ("localhost", "127.0.0.1:8000", "[::1]", "LOCALHOST:1"):
            assert (await served.ask("GET", "/healthz", headers={"Host": host})).status == 200
        for host in ("evil.example", "127.0.0.1.evil.example:8000", "localhost.evil.example"):
            assert (await served.ask("GET", "/healthz", headers={"Host": host})).status == 403
    async with serving() as served:
        answer = await served.ask("GET", "/healthz", headers={"Host": "events.example.com"})
        assert answer.status == 200


async def test_an_allowed_page_reads_the_answer() -> None:
    async with serving(origins=(PAGE,)) as served:
        for path, status in (("/v1/channels", 200), ("/nowhere", 404)):
            answer = await served.ask("GET", path, headers={"Origin": PAGE})
            assert answer.status == status
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE
            assert "RateLimit-Limit" in answer.headers["Access-Control-Expose-Headers"]
            assert answer.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Origin" not in (await served.ask("GET", "/healthz")).headers


async def test_a_preflight() -> None:
    async with serving(origins=(PAGE,)) as served:
        asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
        answer = await served.ask("OPTIONS", "/v1/events", bearer=None, headers=asked)
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert answer.headers["Access-Control-Allow-Methods"] == "POST, OPTIONS"
        assert "Idempotency-Key" in answer.headers["Access-Control-Allow-Headers"]
        assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize("origin", ["https://evil.com", "null", "https://app.example.com.evil.com"])
async def test_a_foreign_page_is_refused(origin: str) -> None:
    async with serving(origins=(PAGE,)) as served:
        for method in ("GET", "OPTIONS"):
            headers = {"Origin": origin, "Sec-Fetch-Site": "same-origin"}
            answer = await served.ask(method, "/v1/channels", headers=headers)
            assert (answer.status, answer.json["code"]) == (403, "forbidden")
            assert "Access-Control-Allow-Origin" not in answer.headers
        event = {"channel": "a", "data": 1}
        headers = {"Origin": origin}
        assert (await served.ask("POST", "/v1/events", event, headers=headers)).status == 403
        assert served.node.metrics.events_in == 0


async def test_while_draining_connections_are_closed() -> None:
    async with serving() as served:
        served.node.lifecycle.phase = Phase.DRAINING
        for path in ("/healthz", "/nowhere"):
            assert (await served.ask("GET", path)).headers["Connection"] == "close"


async def test_every_request_is_counted_in_and_out() -> None:
    async with serving() as served:
        for path in ("/healthz", "/nowhere", "/v1/sessions"):
            await served.ask("GET", path, bearer=None)
        await served.node.lifecycle.requests_done()
        text = (await served.ask("GET", "/metrics")).body
        name = 'galecast_http_requests_total{method="GET",route="%s",status="%d"}'
        assert counter(text, name % ("/healthz", 200)) == 1
        assert counter(text, name % ("other", 404)) == 1
        assert counter(text, name % ("/v1/sessions", 401)) == 1
        assert counter(text, 'galecast_refusals_total{reason="unauthorized"}') == 1


@pytest.mark.expect_log("handlers.exchange", "^request failed$")
async def test_what_nobody_expected_is_a_fixed_phrase(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served:

        def fail() -> list[str]:
            raise KeyError("an inner matter")

        monkeypatch.setattr(served.node.lifecycle, "checks", [fail])
        answer = await served.ask("GET", "/readyz", headers={"X-Request-Id": "seek-me"})
        assert (answer.status, answer.json["code"]) == (500, "internal")
        assert answer.json["detail"] == "something went wrong"
        (record,) = [each for each in caplog.records if each.name == "handlers.exchange"]
        assert record.__dict__["request"] == "seek-me"
        assert record.exc_info is not None


async def test_the_access_log_shows_no_query_and_no_credentials(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(trusted_proxies=("127.0.0.1/32",)) as served:
        with caplog.at_level(logging.DEBUG):
            headers = {"X-Forwarded-For": "203.0.113.9"}
            await served.ask("GET", "/healthz?ticket=canary", headers=headers)
            await served.ask("GET", "/v1/nowhere?ticket=canary")
        lines = [each for each in caplog.records if each.name == "galecast.access"]
        assert [each.levelno for each in lines] == [logging.DEBUG, logging.INFO]
        assert lines[0].getMessage() == "GET '/healthz' 200"
        assert lines[0].__dict__["address"] == "203.0.113.9"
        for record in caplog.records:
            assert "canary" not in str(record.__dict__)
            assert KEY not in str(record.__dict__)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=1.0",
        "limit=9999999999",
        "limit=1&limit=2",
        "cursor=%FF",
    ],
)
async def test_a_parameter_that_is_not_valid(query: str) -> None:
    async with serving() as served:
        answer = await served.ask("GET", f"/v1/sessions?{query}")
        assert (answer.status, answer.json["code"]) == (400, "bad_request")


@pytest.mark.parametrize("channel", ["a%00", "a%20", "%20a", "a%0A", "*", "a.%3E", "%FF", "a..b"])
async def test_a_part_of_the_address_that_is_no_channel(channel: str) -> None:
    async with serving() as served:
        for path in (f"/v1/channels/{channel}", f"/v1/channels/{channel}/events"):
            answer = await served.ask("GET", path)
            assert (answer.status, answer.json["code"]) == (400, "bad_request")


async def test_unknown_parameters_are_ignored() -> None:
    async with serving() as served:
        assert (await served.ask("GET", "/v1/sessions?nothing=1")).status == 200
