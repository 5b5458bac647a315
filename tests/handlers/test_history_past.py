"""Reading a channel's events of any age: by time, by name, across archive and recent past."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from config.rules import ChannelRule
from config.storage import ArchiveSettings
from nodes import Served, serving

URL = "/v1/channels/a/events"
ARCHIVED = (ChannelRule(match=">", archive=True, history_size=10),)


@asynccontextmanager
async def archiving(folder: Path) -> AsyncIterator[Served]:
    """Serve a node that archives, with a history of ten events."""
    archive = ArchiveSettings(url=f"sqlite:///{folder / 'archive.db'}")
    async with serving(channels=ARCHIVED, archive=archive) as served:
        yield served


async def fill(served: Served, count: int, start: int = 0, name: str = "message") -> list[Any]:
    """Publish events with the data start, start + 1, ...; return them as they were kept."""
    events = [{"channel": "a", "data": start + i, "name": name} for i in range(count)]
    answer = await served.ask("POST", "/v1/events", events)
    (first, *_others) = [each["position"] for each in answer.json["results"]]
    page = await read(served, f"limit=1000&before={first}&order=desc")
    assert page["position"] == answer.json["results"][-1]["position"]
    return list((await read(served, "limit=1000"))["events"][-count:])


async def read(served: Served, query: str = "") -> Any:
    answer = await served.ask("GET", f"{URL}?{query}")
    assert answer.status == 200, answer.body
    return answer.json


async def walk(served: Served, query: str) -> tuple[list[int], list[Any]]:
    """Read page after page; return the data of all events, and what is missing."""
    found: list[int] = []
    missing: list[Any] = []
    cursor = ""
    for _ in range(1_000):
        page = await read(served, query + cursor)
        found += [each["data"] for each in page["events"]]
        missing += page.get("missing", [])
        if "cursor" not in page:
            return found, missing
        cursor = f"&cursor={page['cursor']}"
    raise AssertionError("there is always one more page")


@pytest.mark.parametrize("limit", [1, 7, 10, 99, 100, 1_000])
async def test_pages_lead_through_the_archive_into_the_recent_past(
    tmp_path: Path, limit: int
) -> None:
    async with archiving(tmp_path) as served:
        await fill(served, 100)
        assert await walk(served, f"limit={limit}") == (list(range(100)), [])
        back = list(reversed(range(100)))
        assert await walk(served, f"limit={limit}&order=desc") == (back, [])


async def test_since_and_before_may_be_of_any_age(tmp_path: Path) -> None:
    async with archiving(tmp_path) as served:
        places = [each["position"] for each in await fill(served, 50)]
        both = f"since={places[9]}&before={places[20]}"
        assert await walk(served, f"limit=3&{both}") == (list(range(10, 20)), [])
        back = list(reversed(range(10, 20)))
        assert await walk(served, f"limit=3&order=desc&{both}") == (back, [])
        assert await walk(served, f"limit=30&since={places[9]}") == (list(range(10, 50)), [])


async def test_events_of_a_stretch_of_time(tmp_path: Path) -> None:
    async with archiving(tmp_path) as served:
        times = []
        for start in (0, 20, 40):
            times.append((await fill(served, 20, start))[0]["time"])
            await asyncio.sleep(0.005)
        for limit in (3, 100):
            for query, expected in [
                (f"from={times[1]}", range(20, 60)),
                (f"to={times[1]}", range(20)),
                (f"from={times[1]}&to={times[2]}", range(20, 40)),
                (f"from={times[1] + 1}&to={times[2] + 1}", range(40, 60)),
                (f"from={times[2] + 60_000}", ()),
                ("from=0&to=1", ()),
                ("from=0", range(60)),
            ]:
                assert await walk(served, f"limit={limit}&{query}") == (list(expected), []), query
                back = list(reversed(expected))
                assert await walk(served, f"limit={limit}&order=desc&{query}") == (back, []), query


async def test_events_of_one_name(tmp_path: Path) -> None:
    async with archiving(tmp_path) as served:
        for start in range(0, 60, 6):
            await fill(served, 5, start, "often")
            await fill(served, 1, start + 5, "seldom")
        seldom = list(range(5, 60, 6))
        for limit in (1, 4, 10, 1_000):
            assert await walk(served, f"limit={limit}&name=seldom") == (seldom, [])
            assert await walk(served, f"limit={limit}&name=seldom&order=desc") == (
                seldom[::-1],
                [],
            )
        assert await walk(served, "name=never") == ([], [])


async def test_a_name_that_is_seldom_is_looked_for_in_bounded_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.history._MOST_SCANNED", 20)
    async with archiving(tmp_path) as served:
        await fill(served, 1, 0, "seldom")
        await fill(served, 99, 1)
        page = await read(served, "limit=5&name=never")
        assert page["events"] == [] and "cursor" in page
        assert await walk(served, "limit=5&name=seldom") == ([0], [])
        assert await walk(served, "limit=5&name=seldom&order=desc") == ([0], [])


async def test_what_is_missing_within_is_told(tmp_path: Path) -> None:
    async with archiving(tmp_path) as served:
        events = await fill(served, 60)
        database = sqlite3.connect(tmp_path / "archive.db")
        with database:
            database.execute("DELETE FROM events WHERE offset BETWEEN 21 AND 30")
        database.close()
        rest = [*range(20), *range(30, 60)]
        gap = {"after": events[19]["position"], "before": events[29]["position"]}
        for limit in (5, 20, 100):
            assert await walk(served, f"limit={limit}") == (rest, [gap])
            assert await walk(served, f"limit={limit}&order=desc") == (rest[::-1], [gap])
        answer = await served.ask("GET", f"{URL}?since={events[19]['position']}")
        assert (answer.status, answer.json["code"]) == (409, "conflict")


async def test_a_purge_reaches_the_archive(tmp_path: Path) -> None:
    async with archiving(tmp_path) as served:
        await fill(served, 30)
        assert (await served.ask("DELETE", URL)).status == 200
        assert await walk(served, "limit=7") == ([], [])
        await fill(served, 5, 30)
        assert await walk(served, "limit=2") == (list(range(30, 35)), [])


@pytest.mark.parametrize("query", ["from=x", "from=-1", "to=1.5", "name=", "name=a%20b", "from="])
async def test_what_is_no_time_or_name_is_refused(query: str) -> None:
    async with serving() as served:
        answer = await served.ask("GET", f"{URL}?{query}")
        assert (answer.status, answer.json["code"]) == (400, "bad_request")
        assert query.partition("=")[0] in answer.json["detail"]
