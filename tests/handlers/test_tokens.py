"""Tokens and tickets for clients: what a key may give away, and to whom."""

from typing import Any

import pytest

from config.access import AnonymousSettings, TokenSettings
from config.rules import ACTIONS
from config.serving import SseSettings
from nodes import KEY, TOKEN, api_key, make_token, serving

URL = "/v1/tokens"
NARROW = "narrow.0123456789abcdef"
KEYS = (
    api_key(KEY),
    api_key(
        NARROW,
        tokens=True,
        publish=("a.*", "p"),
        history=("h.>",),
        presence=("a.b",),
    ),
)


async def test_a_token_that_is_accepted() -> None:
    async with serving() as served:
        wanted = {"sub": "u1", "grants": {"a.>": ["publish", "history"]}, "ttl_s": 90}
        answer = await served.ask("POST", URL, wanted)
        assert answer.status == 200
        assert answer.json["expires_s"] == 90
        token = answer.json["token"]
        event = {"channel": "a.b", "data": 1}
        assert (await served.ask("POST", "/v1/events", event, bearer=token)).status == 200
        event = {"channel": "b", "data": 1}
        assert (await served.ask("POST", "/v1/events", event, bearer=token)).status == 403
        by_default = await served.ask("POST", URL, {"sub": "u1"})
        assert by_default.json["expires_s"] == 3600


@pytest.mark.parametrize(
    ("grants", "status"),
    [
        ({"a.*": ["publish"]}, 200),
        ({"a.b": ["publish", "presence"]}, 200),
        ({"h.>": ["subscribe", "history"]}, 200),
        ({"h.*.x.>": ["subscribe"]}, 200),
        ({"p": ["publish"]}, 200),
        ({}, 200),
        ({">": ["publish"]}, 403),
        ({"a.>": ["publish"]}, 403),
        ({"*": ["publish"]}, 403),
        ({"a.b.c": ["publish"]}, 403),
        ({"a.b": ["subscribe"]}, 403),
        ({"h.x": ["publish"]}, 403),
        ({"a.*": ["presence"]}, 403),
        ({"a.*": ["publish"], "b": ["publish"]}, 403),
        ({"h": ["history"]}, 403),
    ],
)
async def test_a_key_grants_only_what_is_its_own(grants: Any, status: int) -> None:
    async with serving(keys=KEYS) as served:
        answer = await served.ask("POST", URL, {"sub": "u1", "grants": grants}, bearer=NARROW)
        assert answer.status == status


@pytest.mark.parametrize(
    "wanted",
    [
        b"",
        b"[]",
        b"{",
        {"grants": {}},
        {"sub": 1},
        {"sub": ""},
        {"sub": "a\u0000"},
        {"sub": "x" * 256},
        {"sub": "u", "ttl_s": 0},
        {"sub": "u", "ttl_s": -5},
        {"sub": "u", "ttl_s": 1e12},
        {"sub": "u", "ttl_s": "1"},
        {"sub": "u", "grants": {"a": ["fly"]}},
        {"sub": "u", "grants": {"a": "publish"}},
        {"sub": "u", "grants": {"a..b": ["publish"]}},
        {"sub": "u", "grants": {"a.>.b": ["publish"]}},
        {"sub": "u", "grants": {"user.{sub}": ["publish"]}},
        {"sub": "u", "grants": {f"a{i}": ["publish"] for i in range(257)}},
    ],
)
async def test_what_is_no_token_to_mint(wanted: Any) -> None:
    async with serving() as served:
        answer = await served.ask("POST", URL, wanted)
        assert (answer.status, answer.json["code"]) == (400, "bad_request")


async def test_who_may_not_mint() -> None:
    other = "other.0123456789abcdef"
    async with serving(keys=(*KEYS, api_key(other, publish=(">",)))) as served:
        for bearer, status in ((other, 403), (make_token(), 403), (None, 401)):
            assert (await served.ask("POST", URL, {"sub": "u"}, bearer=bearer)).status == status


async def test_without_a_secret_there_is_nothing_to_sign_with() -> None:
    async with serving(token=TokenSettings()) as served:
        answer = await served.ask("POST", URL, {"sub": "u"})
        assert (answer.status, answer.json["code"]) == (403, "forbidden")


async def test_the_body_is_json() -> None:
    async with serving() as served:
        for kind, status in (
            ("application/x-www-form-urlencoded", 200),
            ("application/json", 200),
            ("text/plain", 415),
            ("multipart/form-data", 415),
        ):
            headers = {"Content-Type": kind}
            assert (await served.ask("POST", URL, {"sub": "u"}, headers=headers)).status == status


async def test_the_answer_is_not_to_be_stored() -> None:
    async with serving() as served:
        answer = await served.ask("POST", URL, {"sub": "u"})
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("kind", ["service", "user"])
async def test_a_ticket(kind: str) -> None:
    async with serving(sse=SseSettings(ticket_ttl_s=7)) as served:
        bearer = KEY if kind == "service" else make_token("u1")
        answer = await served.ask("POST", "/v1/tickets", bearer=bearer)
        assert answer.json["expires_s"] == 7
        principal, _proof, cursor, *_ = served.node.auth.redeem(answer.json["ticket"])
        assert (principal.kind, cursor) == (kind, None)


async def test_a_ticket_for_nobody() -> None:
    async with serving() as served:
        assert (await served.ask("POST", "/v1/tickets", bearer=None)).status == 401
    anonymous = AnonymousSettings(grants={"a": ACTIONS})
    async with serving(anonymous=anonymous, token=TOKEN) as served:
        answer = await served.ask("POST", "/v1/tickets", b"a=1&b", bearer=None)
        assert served.node.auth.redeem(answer.json["ticket"])[0].kind == "anonymous"
        # Credentials that are not valid are never taken for none.
        assert (await served.ask("POST", "/v1/tickets", bearer="x.y")).status == 401
