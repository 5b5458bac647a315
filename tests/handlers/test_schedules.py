"""Scheduled events over HTTP: what is taken, what is answered, listed and cancelled."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from config.limits import LimitSettings
from config.rules import ChannelRule
from config.storage import ArchiveSettings
from nodes import KEY, Answer, Served, api_key, make_token, serving
from pubsub.errors import ArchiveUnavailable
from redis_rig import until

URL = "/v1/events"
LIST = "/v1/channels/a/schedules"
RULES = (
    ChannelRule(match="closed.>"),
    ChannelRule(match="plain.>", client_publish=True),
    ChannelRule(match=">", archive=True, client_publish=True),
)
HOUR_MS = 3_600_000

Serving = Callable[..., Any]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def keeping(tmp_path: Path) -> Serving:
    """Serves a node with an archive."""

    @asynccontextmanager
    async def keeping(**changes: Any) -> AsyncIterator[Served]:
        archive = ArchiveSettings(url=f"sqlite:///{tmp_path}/archive.db")
        values: dict[str, Any] = {"archive": archive, "channels": RULES, **changes}
        async with serving(**values) as served:
            yield served

    return keeping


def event(event_id: str = "x", channel: str = "a", **parts: Any) -> dict[str, Any]:
    return {"channel": channel, "data": {"x": 1}, "id": event_id, **parts}


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["code"]


async def kept(served: Served, channel: str = "a") -> list[str]:
    history = await served.node.broker.history(channel, limit=1_000)
    return [] if history is None else [event.id for event in history.events]


async def delivered(served: Served, channel: str = "a") -> None:
    """Wait until something was delivered."""
    while not await kept(served, channel):  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def stand_still(served: Served) -> Callable[[], None]:
    """Let it stay now for all that is scheduled, until what this returns is called.

    So nothing is due before a test is done with it, however slow the machine is.
    """
    scheduling = served.node.scheduling
    scheduler = scheduling._require()
    moment, firing, clock = now_ms(), scheduler.firing.now_ms, scheduling._clock_ms

    async def still() -> int:
        return moment

    def go_on() -> None:
        scheduler.firing.now_ms = firing  # type: ignore[method-assign]
        scheduling._clock_ms = clock
        scheduler._soon.set()

    scheduler.firing.now_ms = still  # type: ignore[method-assign]
    scheduling._clock_ms = lambda: moment
    return go_on


async def listed(served: Served, query: str = "", **more: Any) -> list[str]:
    answer = await served.ask("GET", LIST + query, **more)
    assert answer.status == 200, answer.body
    return [item["id"] for item in answer.json["schedules"]]


# ---- scheduling


async def test_one_event_is_scheduled_and_delivered(keeping: Serving) -> None:
    async with keeping() as served:
        go_on = stand_still(served)
        at = now_ms() + 300
        asked = event(deliver_at=at, name="n", tags={"k": "v"})
        answer = await served.ask("POST", URL, asked)
        assert answer.status == 202
        assert answer.json == {"channel": "a", "id": "x", "deliver_at": at, "scheduled": True}
        assert await kept(served) == []
        again = await served.ask("POST", URL, asked)
        assert (again.status, again.json) == (202, answer.json | {"duplicate": True})
        other = await served.ask("POST", URL, asked | {"data": 2})
        assert code(other) == (409, "conflict")
        assert code(await served.ask("POST", URL, asked | {"deliver_at": at + 1})) == (
            409,
            "conflict",
        )
        go_on()
        await delivered(served)
        history = await served.node.broker.history("a", limit=10)
        assert history is not None
        (stored,) = history.events
        assert (stored.id, stored.name, stored.tags) == ("x", "n", {"k": "v"})
        assert stored.data == b'{"x": 1}'
        assert stored.time >= at
        assert await listed(served) == []


@pytest.mark.parametrize("ago", [0, 1, HOUR_MS])
async def test_the_past_is_now(keeping: Serving, ago: int) -> None:
    async with keeping() as served:
        answer = await served.ask("POST", URL, event(deliver_at=now_ms() - ago))
        assert answer.status == 200
        assert "position" in answer.json
        assert (await served.ask("POST", URL, event("y", deliver_at=0))).status == 200
        assert await kept(served) == ["x", "y"]


async def test_a_year_is_the_most(keeping: Serving) -> None:
    async with keeping() as served:
        year = 366 * 24 * HOUR_MS
        far = await served.ask("POST", URL, event(deliver_at=now_ms() + year + 60_000))
        assert code(far) == (400, "bad_request")
        assert far.json["detail"] == "deliver_at is more than a year ahead"
        near = await served.ask("POST", URL, event(deliver_at=now_ms() + year - 60_000))
        assert near.status == 202


async def test_a_schedule_needs_an_archive() -> None:
    async with serving() as served:
        answer = await served.ask("POST", URL, event(deliver_at=now_ms() + HOUR_MS))
        assert code(answer) == (400, "bad_request")
        assert answer.json["detail"] == "a schedule needs an archive, and archive.url names none"
        assert (await served.ask("POST", URL, event(deliver_at=now_ms()))).status == 200
        assert code(await served.ask("GET", LIST)) == (400, "bad_request")
        assert code(await served.ask("DELETE", f"{LIST}/x")) == (400, "bad_request")


@pytest.mark.parametrize("at", [-1, 1.5, "2030-01-01", True, 2**53, [], {}])
async def test_what_is_no_time(keeping: Serving, at: Any) -> None:
    async with keeping() as served:
        answer = await served.ask("POST", URL, event(deliver_at=at))
        assert code(answer) == (400, "bad_request")
        assert "deliver_at" in answer.json["detail"]


async def test_null_is_no_time_either(keeping: Serving) -> None:
    async with keeping() as served:
        assert (await served.ask("POST", URL, event(deliver_at=None))).status == 200


async def test_an_array_of_both(keeping: Serving) -> None:
    async with keeping() as served:
        at = now_ms() + HOUR_MS
        batch = [
            event("a", deliver_at=at),
            event("b"),
            event("c", deliver_at=at - 5),
            event("d", deliver_at=5),
            event("a", deliver_at=at),
            event("a", deliver_at=at + 1),
        ]
        answer = await served.ask("POST", URL, batch)
        assert answer.status == 200
        results = answer.json["results"]
        first = {"channel": "a", "id": "a", "deliver_at": at, "scheduled": True}
        assert results[0] == first
        assert [results[n]["id"] for n in (1, 2, 3)] == ["b", "c", "d"]
        assert ["position" in result for result in results] == [False, True, False, True] + [
            False
        ] * 2
        assert results[4] == first | {"duplicate": True}
        assert results[5]["error"]["code"] == "conflict"
        assert await kept(served) == ["b", "d"]
        assert await listed(served) == ["c", "a"]


async def test_an_array_is_validated_whole(keeping: Serving) -> None:
    async with keeping() as served:
        batch = [event("a", deliver_at=now_ms() + HOUR_MS), event("b", deliver_at=2**51)]
        answer = await served.ask("POST", URL, batch)
        assert code(answer) == (400, "bad_request")
        assert answer.json["detail"] == "event 1: deliver_at is more than a year ahead"
        assert await listed(served) == []


async def test_a_long_array(keeping: Serving) -> None:
    """More than what goes to the broker at once."""
    async with keeping() as served:
        at = now_ms() + HOUR_MS
        batch = [event(f"x{n:03}", deliver_at=at + n if n % 2 else 0) for n in range(600)]
        answer = await served.ask("POST", URL, batch)
        results = answer.json["results"]
        assert [result["id"] for result in results] == [each["id"] for each in batch]
        assert ["scheduled" in result for result in results] == [bool(n % 2) for n in range(600)]
        assert await served.node.scheduling._require().store.pending() == 300


async def test_lines_of_both(keeping: Serving) -> None:
    async with keeping() as served:
        at = now_ms() + HOUR_MS
        lines = [
            event("a", deliver_at=at),
            event("b"),
            event("c", deliver_at=2**51),
            event("d", deliver_at=at),
        ]
        body = "\n".join(map(json.dumps, lines)).encode()
        kind = {"Content-Type": "application/x-ndjson"}
        answer = await served.ask("POST", URL, body, headers=kind)
        results = [json.loads(line) for line in answer.body.splitlines()]
        assert results[0] == {"channel": "a", "id": "a", "deliver_at": at, "scheduled": True}
        assert results[1]["id"] == "b"
        assert results[2]["error"]["message"] == "deliver_at is more than a year ahead"
        assert results[3]["scheduled"] is True
        assert await listed(served) == ["a", "d"]


async def test_an_idempotency_key_is_the_id(keeping: Serving) -> None:
    async with keeping() as served:
        asked = {"channel": "a", "data": 1, "deliver_at": now_ms() + HOUR_MS}
        key = {"Idempotency-Key": "k"}
        assert (await served.ask("POST", URL, asked, headers=key)).json["id"] == "k"
        again = await served.ask("POST", URL, asked, headers=key)
        assert again.json["duplicate"] is True


async def test_a_cloud_event_is_not_scheduled(keeping: Serving) -> None:
    async with keeping() as served:
        body = {
            "specversion": "1.0",
            "id": "1",
            "source": "/s",
            "type": "t",
            "subject": "a",
            "data": 1,
            "deliverat": "5",
        }
        kind = {"Content-Type": "application/cloudevents+json"}
        assert (await served.ask("POST", URL, body, headers=kind)).status == 200


# ---- who may


async def test_who_may_not_publish_may_not_schedule(keeping: Serving) -> None:
    async with keeping(keys=(api_key(KEY), api_key("other.xyz", publish=("b",)))) as served:
        later: dict[str, Any] = {"deliver_at": now_ms() + HOUR_MS}
        answer = await served.ask("POST", URL, event(**later), bearer="other.xyz")
        assert code(answer) == (403, "forbidden")
        user = make_token("u1", {">": ["publish"]})
        refused = await served.ask("POST", URL, event(channel="closed.x", **later), bearer=user)
        assert code(refused) == (403, "forbidden")
        for method, path in (("GET", LIST), ("DELETE", f"{LIST}/x")):
            assert code(await served.ask(method, path, bearer="other.xyz")) == (403, "forbidden")
            assert code(await served.ask(method, path, bearer=None)) == (401, "unauthorized")
            none = make_token("u1", {"a": ["subscribe", "history"]})
            assert code(await served.ask(method, path, bearer=none)) == (403, "forbidden")


async def test_users_see_and_cancel_their_own(keeping: Serving) -> None:
    async with keeping() as served:
        one, two = make_token("u1"), make_token("u2")
        later: dict[str, Any] = {"deliver_at": now_ms() + HOUR_MS}
        await served.ask("POST", URL, event("by-key", **later))
        await served.ask("POST", URL, event("by-1", **later), bearer=one)
        await served.ask("POST", URL, event("by-2", **later), bearer=two)
        assert await listed(served) == ["by-1", "by-2", "by-key"]
        assert await listed(served, bearer=one) == ["by-1"]
        # The same content of somebody else is not the same.
        answer = await served.ask("POST", URL, event("by-1", **later), bearer=two)
        assert code(answer) == (409, "conflict")
        for other in ("by-1", "by-key"):
            answer = await served.ask("DELETE", f"{LIST}/{other}", bearer=two)
            assert code(answer) == (404, "not_found")
        assert (await served.ask("DELETE", f"{LIST}/by-2", bearer=two)).status == 204
        assert (await served.ask("DELETE", f"{LIST}/by-1")).status == 204
        assert await listed(served) == ["by-key"]


# ---- limits


async def test_a_channel_has_so_many(keeping: Serving) -> None:
    async with keeping(limits=LimitSettings(schedules_per_channel=3)) as served:
        later: dict[str, Any] = {"deliver_at": now_ms() + HOUR_MS}
        batch = [event(str(n), **later) for n in range(3)]
        await served.ask("POST", URL, batch)
        answer = await served.ask("POST", URL, event("3", **later))
        assert code(answer) == (429, "limit_exceeded")
        assert answer.json["retry"] is False
        assert (await served.ask("POST", URL, batch[0])).json["duplicate"] is True
        assert (await served.ask("POST", URL, event("3", "b", **later))).status == 202
        assert (await served.ask("DELETE", f"{LIST}/0")).status == 204
        assert (await served.ask("POST", URL, event("3", **later))).status == 202
        text, _ = served.node.metrics.exposition(None)
        assert b'galecast_refusals_total{reason="schedules_per_channel"} 1.0' in text


async def test_no_limit(keeping: Serving) -> None:
    async with keeping(limits=LimitSettings(schedules_per_channel=0)) as served:
        batch = [event(str(n), deliver_at=now_ms() + HOUR_MS) for n in range(300)]
        answer = await served.ask("POST", URL, batch)
        assert all(result["scheduled"] for result in answer.json["results"])


# ---- listing and cancelling


async def test_pages(keeping: Serving) -> None:
    async with keeping() as served:
        at = now_ms() + HOUR_MS
        batch = [event(f"x-{n}", deliver_at=at + n // 2) for n in range(5)]
        await served.ask("POST", URL, [*batch, event("y", "b", deliver_at=at)])
        first = (await served.ask("GET", f"{LIST}?limit=2")).json
        assert first["channel"] == "a"
        assert first["schedules"][0] == {
            "id": "x-0",
            "deliver_at": at,
            "name": "message",
            "data": {"x": 1},
            "tags": {},
            "user": None,
        }
        found = [item["id"] for item in first["schedules"]]
        cursor = first["cursor"]
        while cursor is not None:
            page = (await served.ask("GET", f"{LIST}?limit=2&cursor={cursor}")).json
            found += [item["id"] for item in page["schedules"]]
            cursor = page.get("cursor")
        assert found == [each["id"] for each in batch]
        assert len(await listed(served, "?limit=5")) == 5
        assert "cursor" not in (await served.ask("GET", f"{LIST}?limit=5")).json


@pytest.mark.parametrize("cursor", ["", "x", "5", "5-", "-x", "5.0-x", "1" * 17 + "-x", "٥-x"])
async def test_a_cursor_that_was_not_given_out(keeping: Serving, cursor: str) -> None:
    async with keeping() as served:
        answer = await served.ask("GET", f"{LIST}?cursor={quote(cursor)}")
        assert code(answer) == (400, "bad_request")


async def test_the_name_of_a_channel_is_checked(keeping: Serving) -> None:
    async with keeping() as served:
        for method, tail in (("GET", ""), ("DELETE", "/x")):
            answer = await served.ask(method, f"/v1/channels/a..b/schedules{tail}")
            assert code(answer) == (400, "bad_request")


async def test_what_is_cancelled_is_never_delivered(keeping: Serving) -> None:
    async with keeping() as served:
        go_on = stand_still(served)
        at = now_ms() + 400
        for channel in ("a", "plain.a"):
            await served.ask("POST", URL, [event("x", channel, deliver_at=at)])
            await served.ask("POST", URL, [event("y", channel, deliver_at=at + 1)])
            path = f"/v1/channels/{channel}/schedules/x"
            answer = await served.ask("DELETE", path)
            assert (answer.status, answer.body) == (204, b"")
            assert code(await served.ask("DELETE", path)) == (404, "not_found")
        go_on()
        for channel in ("a", "plain.a"):
            await delivered(served, channel)
            assert await kept(served, channel) == ["y"]
            answer = await served.ask("DELETE", f"/v1/channels/{channel}/schedules/y")
            assert code(answer) == (404, "not_found")


async def test_an_id_that_is_no_part_of_a_path(keeping: Serving) -> None:
    async with keeping() as served:
        later: dict[str, Any] = {"deliver_at": now_ms() + HOUR_MS}
        await served.ask("POST", URL, event("a/b %2F?#+", **later))
        answer = await served.ask("DELETE", f"{LIST}/a%2Fb%20%252F%3F%23%2B")
        assert answer.status == 204


async def test_one_that_was_cancelled_may_be_scheduled_anew(keeping: Serving) -> None:
    async with keeping() as served:
        await served.ask("POST", URL, event(deliver_at=now_ms() + HOUR_MS))
        await served.ask("DELETE", f"{LIST}/x")
        go_on = stand_still(served)
        at = now_ms() + 100
        answer = await served.ask("POST", URL, event(deliver_at=at))
        assert answer.status == 202
        assert "duplicate" not in answer.json
        go_on()
        await delivered(served)


async def test_while_the_archive_is_away(keeping: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    async with keeping() as served:
        store = served.node.scheduling._require().store

        async def away(*_: Any, **__: Any) -> Any:
            raise ArchiveUnavailable("it is away")

        for name in ("add", "find", "page"):
            monkeypatch.setattr(store, name, away)
        answer = await served.ask("POST", URL, event(deliver_at=now_ms() + HOUR_MS))
        assert code(answer) == (503, "unavailable")
        assert code(await served.ask("GET", LIST)) == (503, "unavailable")
        assert code(await served.ask("DELETE", f"{LIST}/x")) == (503, "unavailable")


async def test_metrics_tell_of_schedules(keeping: Serving) -> None:
    async with keeping() as served:
        go_on = stand_still(served)
        await served.ask("POST", URL, event(deliver_at=now_ms() + 50))
        go_on()
        scheduler = served.node.scheduling._require()
        await until(lambda: scheduler.delivered)
        text, _ = served.node.metrics.exposition(None)
        assert b"galecast_schedules_delivered_total 1.0" in text
        assert b"galecast_schedules_dropped_total 0.0" in text
        assert b"galecast_schedules_late_seconds" in text
        assert b"galecast_schedules_pending" in text
