"""Who is present in a channel, told over HTTP."""

import pytest

from config.limits import LimitSettings
from nodes import KEY, Served, api_key, make_token, serving
from pubsub.errors import BrokerUnavailable
from pubsub.presence import Member

URL = "/v1/channels/a/presence"


async def enter(served: Served, *sessions: str) -> None:
    for session in sessions:
        member = Member(session, f"user of {session}", b'{"x": 1}')
        await served.node.presence.enter("a", member)


async def test_members_in_pages() -> None:
    async with serving(limits=LimitSettings(members_per_reply=2)) as served:
        await enter(served, "s2", "s1", "s3")
        first = (await served.ask("GET", f"{URL}?limit=50")).json
        assert first["members"] == [
            {"session": "s1", "user": "user of s1", "info": {"x": 1}},
            {"session": "s2", "user": "user of s2", "info": {"x": 1}},
        ]
        assert (first["channel"], first["total"]) == ("a", 3)
        second = (await served.ask("GET", f"{URL}?cursor={first['cursor']}")).json
        assert [each["session"] for each in second["members"]] == ["s3"]
        assert "cursor" not in second
        one = (await served.ask("GET", f"{URL}?limit=1")).json
        assert len(one["members"]) == 1


async def test_nobody_is_there() -> None:
    async with serving() as served:
        answer = await served.ask("GET", URL)
        assert answer.json == {"channel": "a", "members": [], "total": 0}


@pytest.mark.parametrize("cursor", ["%21", "", "AA=="])
async def test_a_cursor_that_nobody_gave_out(cursor: str) -> None:
    async with serving() as served:
        await enter(served, "s1")
        answer = await served.ask("GET", f"{URL}?cursor={cursor}")
        assert (answer.status, answer.json["code"]) == (400, "bad_request")


async def test_where_presence_is_off() -> None:
    async with serving() as served:
        answer = await served.ask("GET", "/v1/channels/closed.a/presence")
        assert (answer.status, answer.json["code"]) == (403, "forbidden")


async def test_who_may_look() -> None:
    narrow = "narrow.0123456789abcdef"
    async with serving(keys=(api_key(KEY), api_key(narrow, presence=("b",)))) as served:
        granted, other = make_token("u", {"a": ["presence"]}), make_token("u", {"a": ["subscribe"]})
        for bearer, status in ((granted, 200), (other, 403), (narrow, 403), (None, 401)):
            assert (await served.ask("GET", URL, bearer=bearer)).status == status


async def test_a_store_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as served:

        async def away(*args: object, **more: object) -> None:
            raise BrokerUnavailable("gone")

        monkeypatch.setattr(served.node.presence, "members", away)
        answer = await served.ask("GET", URL)
        assert (answer.status, answer.json["code"]) == (503, "unavailable")
