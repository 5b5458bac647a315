"""What a client without credentials may do over HTTP, where the settings let such clients in."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from config.access import AnonymousSettings
from config.limits import LimitSettings
from config.rules import ACTIONS
from nodes import KEY, Answer, Served, api_key, make_token, serving
from pubsub.presence import Member

GRANTS = AnonymousSettings(
    grants={
        "a": ACTIONS,
        "closed.>": ("publish", "presence"),
        "heard": ("subscribe",),
    }
)
EVENT = {"channel": "a", "data": 1}
READS = ("/v1/channels/a/events", "/v1/channels/a/presence")


async def ask(served: Served, method: str, path: str, body: Any = None, **more: Any) -> Answer:
    return await served.ask(method, path, body, bearer=None, **more)


async def publish(served: Served, **changes: Any) -> Answer:
    return await ask(served, "POST", "/v1/events", EVENT | changes)


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["code"]


async def test_it_acts_with_the_grants_of_anonymous_clients() -> None:
    async with serving(anonymous=GRANTS) as served:
        assert (await publish(served)).status == 200
        history = await ask(served, "GET", "/v1/channels/a/events")
        assert [each["data"] for each in history.json["events"]] == [1]
        # No user: whoever reads it sees that nobody vouches for it.
        assert "user" not in history.json["events"][0]
        await served.node.presence.enter("a", Member("s1", None))
        present = await ask(served, "GET", "/v1/channels/a/presence")
        assert present.json["members"] == [{"session": "s1", "user": None, "info": {}}]


async def test_it_is_refused_what_it_is_not_granted() -> None:
    async with serving(anonymous=GRANTS) as served:
        assert code(await publish(served, channel="heard")) == (403, "forbidden")
        for path in ("/v1/channels/heard/events", "/v1/channels/heard/presence"):
            assert code(await ask(served, "GET", path)) == (403, "forbidden")


async def test_the_rules_are_those_of_clients() -> None:
    """A service may publish anywhere; for all others the channel has to take it."""
    async with serving(anonymous=GRANTS) as served:
        answer = await publish(served, channel="closed.a")
        assert code(answer) == (403, "forbidden")
        assert "takes no publishes from clients" in answer.json["detail"]
        answer = await ask(served, "GET", "/v1/channels/closed.a/presence")
        assert "presence is off" in answer.json["detail"]
        assert served.node.metrics.events_in == 0


async def test_where_anonymous_clients_are_not_let_in() -> None:
    async with serving() as served:
        answers = [await publish(served)] + [await ask(served, "GET", path) for path in READS]
        answers.append(await ask(served, "POST", "/v1/tickets"))
        for answer in answers:
            assert code(answer) == (401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.json["detail"].startswith("Authorization is missing")
            assert "RateLimit-Limit" not in answer.headers


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer test.wrong", "Bearer x.y.z", "Basic eA=="]
)
async def test_credentials_that_are_not_valid_are_never_taken_for_none(header: str) -> None:
    async with serving(anonymous=GRANTS) as served:
        for method, path in (("POST", "/v1/events"), *(("GET", path) for path in READS)):
            body = EVENT if method == "POST" else None
            answer = await ask(served, method, path, body, headers={"Authorization": header})
            assert code(answer) == (401, "unauthorized")
        assert served.node.metrics.events_in == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/channels"),
        ("GET", "/v1/channels/a"),
        ("DELETE", "/v1/channels/a/events"),
        ("GET", "/v1/sessions"),
        ("DELETE", "/v1/sessions/x"),
        ("DELETE", "/v1/users/u1/sessions"),
        ("POST", "/v1/tokens"),
        ("GET", "/metrics"),
    ],
)
async def test_what_only_keys_may_do_asks_for_one(method: str, path: str) -> None:
    """401, unlike 403, tells that credentials would help."""
    async with serving(anonymous=AnonymousSettings(grants={">": ACTIONS})) as served:
        answer = await ask(served, method, path)
        assert code(answer) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@asynccontextmanager
async def open_session(served: Served, kind: str) -> AsyncIterator[str]:
    """Have a stream open; gives its session."""
    who = f"Authorization: Bearer {KEY}\r\n" if kind == "service" else ""
    reader, writer = await served.connect()
    writer.write(f"GET /v1/sse?channel=a HTTP/1.1\r\nHost: a\r\n{who}\r\n".encode())
    while b'"subscribed"' not in await reader.readline():
        pass
    ((name, session),) = served.node.hub.sessions.items()
    assert session.principal.kind == kind
    try:
        yield name
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("kind", ["anonymous", "service"])
async def test_it_leaves_out_no_session(kind: str) -> None:
    """Services and anonymous clients have no user: that made them look like one and the same."""
    async with serving(anonymous=GRANTS) as served, open_session(served, kind) as session:
        assert code(await publish(served, exclude=session)) == (403, "forbidden")
        batch = await ask(served, "POST", "/v1/events", [EVENT, EVENT | {"exclude": session}])
        assert code(batch) == (403, "forbidden")
        assert code(await publish(served, exclude="nobody")) == (403, "forbidden")
        assert served.node.metrics.events_in == 0


@pytest.mark.usefixtures("rates_stand_still")
async def test_a_stream_of_lines() -> None:
    async with serving(anonymous=GRANTS, limits=LimitSettings(session_publishes_per_s=2)) as served:
        lines = [
            EVENT,
            EVENT | {"channel": "heard"},
            EVENT | {"exclude": "x"},
            EVENT | {"channel": "closed.a"},
            EVENT,
            EVENT,
        ]
        body = b"".join(json.dumps(each).encode() + b"\n" for each in lines)
        headers = {"Content-Type": "application/x-ndjson"}
        answer = await ask(served, "POST", "/v1/events", body, headers=headers)
        assert answer.status == 200
        found = [json.loads(each).get("error", {}).get("code") for each in answer.body.splitlines()]
        assert found == [None, "forbidden", "forbidden", "forbidden", None, "rate_limited"]


# ---- how much


@pytest.mark.usefixtures("rates_stand_still")
async def test_requests_are_counted_by_address() -> None:
    limits = LimitSettings(session_commands_per_s=2)
    async with serving(
        anonymous=GRANTS, limits=limits, trusted_proxies=("127.0.0.1/32",)
    ) as served:

        async def read(address: str, bearer: str | None = None) -> Answer:
            headers = {"X-Forwarded-For": address}
            return await served.ask("GET", READS[0], bearer=bearer, headers=headers)

        for left in ("1", "0"):
            answer = await read("2001:db8:1:2::1")
            assert answer.status == 200
            assert answer.headers["RateLimit-Limit"] == "2"
            assert answer.headers["RateLimit-Remaining"] == left
        # The same subscriber, by another address of its network.
        refused = await read("2001:db8:1:2:ffff::9")
        assert code(refused) == (429, "rate_limited")
        assert refused.headers["RateLimit-Remaining"] == "0"
        assert refused.headers["Retry-After"] == "1"
        assert (await read("2001:db8:1:3::1")).status == 200
        # A user of that name is somebody else.
        for user in ("2001:db8:1:2::/64", "2001:db8:1:2::1"):
            assert (await read("2001:db8:1:2::1", make_token(user))).status == 200


@pytest.mark.usefixtures("rates_stand_still")
async def test_publishes_are_counted_by_address() -> None:
    limits = LimitSettings(session_publishes_per_s=3)
    async with serving(anonymous=GRANTS, limits=limits) as served:
        assert (await ask(served, "POST", "/v1/events", [EVENT] * 3)).status == 200
        refused = await publish(served)
        assert code(refused) == (429, "rate_limited")
        assert served.node.metrics.events_in == 3
        # Keys and users have their own.
        for bearer in (KEY, make_token()):
            assert (await served.ask("POST", "/v1/events", EVENT, bearer=bearer)).status == 200


@pytest.mark.usefixtures("rates_stand_still")
async def test_tickets_are_counted_too() -> None:
    limits = LimitSettings(session_commands_per_s=1)
    async with serving(anonymous=GRANTS, limits=limits, keys=(api_key(KEY),)) as served:
        assert (await ask(served, "POST", "/v1/tickets")).status == 200
        assert (await ask(served, "POST", "/v1/tickets")).status == 429


async def test_a_foreign_page_cannot_publish_through_its_visitor() -> None:
    """It needs no credentials that the browser would have to add; what stops it is its origin."""
    async with serving(anonymous=GRANTS) as served:
        headers = {
            "Origin": "https://evil.com",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        answer = await ask(served, "POST", "/v1/events", EVENT, headers=headers)
        assert code(answer) == (403, "forbidden")
        assert served.node.metrics.events_in == 0
