"""Reading and purging a channel's kept events: nothing is left out in silence."""

from typing import Any

import pytest

from config.limits import LimitSettings
from config.rules import ChannelRule
from nodes import KEY, Answer, Served, api_key, make_token, serving
from pubsub.position import Position, chain, new_epoch

URL = "/v1/channels/a/events"


async def fill(served: Served, count: int, start: int = 0) -> list[str]:
    """Publish events with the data start, start + 1, ...; return their positions."""
    events = [{"channel": "a", "data": start + i} for i in range(count)]
    answer = await served.ask("POST", "/v1/events", events)
    return [each["position"] for each in answer.json["results"]]


def data(page: Any) -> list[int]:
    return [each["data"] for each in page["events"]]


async def read(served: Served, query: str = "") -> Any:
    answer = await served.ask("GET", f"{URL}?{query}")
    assert answer.status == 200
    return answer.json


async def walk(served: Served, query: str) -> list[list[int]]:
    pages, cursor = [], ""
    while True:
        page = await read(served, query + cursor)
        pages.append(data(page))
        if "cursor" not in page:
            return pages
        cursor = f"&cursor={page['cursor']}"


def refused(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["code"]


async def test_an_event_as_it_was_published() -> None:
    async with serving() as served:
        event = {
            "channel": "a",
            "name": "n",
            "data": {"x": "\u20ac"},
            "tags": {"k": "v"},
            "id": "one",
        }
        token = make_token("u1")
        position = (await served.ask("POST", "/v1/events", event, bearer=token)).json["position"]
        page = await read(served)
        (item,) = page["events"]
        assert isinstance(item.pop("time"), int)
        assert item == event | {"position": position, "user": "u1"}
        assert (page["channel"], page["position"]) == ("a", position)


async def test_a_channel_without_events() -> None:
    async with serving() as served:
        assert await read(served) == {"channel": "a", "position": None, "events": []}
        feed = await served.node.hub.hold("a")
        top = str(await served.node.broker.top("a"))
        assert await read(served, f"since={top}") == {"channel": "a", "position": top, "events": []}
        served.node.hub.release(feed)


async def test_both_orders_in_pages() -> None:
    async with serving() as served:
        await fill(served, 5)
        assert await walk(served, "limit=2") == [[0, 1], [2, 3], [4]]
        assert await walk(served, "limit=2&order=desc") == [[4, 3], [2, 1], [0]]
        assert await walk(served, "limit=5") == [[0, 1, 2, 3, 4]]
        assert await walk(served, "limit=5&order=desc") == [[4, 3, 2, 1, 0]]
        assert await walk(served, "limit=1") == [[0], [1], [2], [3], [4]]


async def test_bounds_in_both_orders() -> None:
    async with serving() as served:
        at = await fill(served, 6)
        for order in ("asc", "desc"):
            for query, expected in (
                (f"since={at[1]}", [2, 3, 4, 5]),
                (f"before={at[4]}", [0, 1, 2, 3]),
                (f"since={at[1]}&before={at[4]}", [2, 3]),
                (f"since={at[5]}", []),
                (f"before={at[0]}", []),
                (f"since={at[3]}&before={at[4]}", []),
            ):
                found = [
                    n for page in await walk(served, f"{query}&limit=1&order={order}") for n in page
                ]
                assert found == (expected if order == "asc" else expected[::-1])


async def test_the_limits_of_a_page() -> None:
    async with serving(limits=LimitSettings(history_per_reply=60)) as served:
        await fill(served, 100)
        assert len((await read(served))["events"]) == 50
        assert len((await read(served, "limit=1000"))["events"]) == 60


@pytest.mark.parametrize(
    "query",
    [
        "order=up",
        "since=x",
        "before=x",
        "cursor=x",
        "since=",
        "limit=0",
        "limit=x",
        "since=0000000000000000-01-0000000000000000",
    ],
)
async def test_what_is_no_question(query: str) -> None:
    async with serving() as served:
        await fill(served, 1)
        assert refused(await served.ask("GET", f"{URL}?{query}")) == (400, "bad_request")


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_since_that_cannot_be_continued(order: str) -> None:
    async with serving(channels=(ChannelRule(match=">", history_size=3),)) as served:
        at = [Position.parse(each) for each in await fill(served, 6)]
        last = at[5]
        contradicted = Position(last.epoch, last.offset, "0" * 16)
        for since in (
            at[1],  # trimmed away behind it
            Position(new_epoch(), last.offset, last.check),
            Position(last.epoch, last.offset + 1, chain(last.check, "next")),
            contradicted,
            Position(last.epoch, at[3].offset, "0" * 16),
        ):
            answer = await served.ask("GET", f"{URL}?since={since}&order={order}")
            assert refused(answer) == (409, "conflict")
        assert data(await read(served, f"since={at[2]}")) == [3, 4, 5]
        # A fork: what went before cannot be continued, and is shown for what it is.
        new = await served.node.broker.contradict("a", contradicted)
        assert new.epoch != last.epoch
        answer = await served.ask("GET", f"{URL}?since={last}&order={order}")
        assert refused(answer) == (409, "conflict")
        assert refused(await served.ask("GET", f"/v1/channels/b/events?since={last}"))[0] == 409


async def test_pages_go_on_over_a_fork() -> None:
    async with serving() as served:
        last = Position.parse((await fill(served, 3))[-1])
        await served.node.broker.contradict("a", Position(last.epoch, last.offset, "0" * 16))
        await fill(served, 3, 3)
        assert await walk(served, "limit=2") == [[0, 1], [2, 3], [4, 5]]
        assert await walk(served, "limit=1") == [[0], [1], [2], [3], [4], [5]]
        assert await walk(served, "limit=2&order=desc") == [[5, 4], [3, 2], [1, 0]]


async def test_a_cursor_whose_events_are_gone() -> None:
    async with serving(channels=(ChannelRule(match=">", history_size=3),)) as served:
        await fill(served, 3)
        cursor = (await read(served, "limit=1"))["cursor"]
        await fill(served, 1, 3)
        assert data(await read(served, f"cursor={cursor}")) == [1, 2, 3]
        await fill(served, 5, 4)
        answer = await served.ask("GET", f"{URL}?cursor={cursor}")
        assert refused(answer) == (409, "conflict")


async def test_a_cursor_at_the_top() -> None:
    async with serving() as served:
        at = await fill(served, 2)
        assert data(await read(served, f"cursor={at[1]}")) == []
        await served.ask("DELETE", URL)
        assert data(await read(served, f"cursor={at[1]}")) == []


async def test_a_before_of_another_channel() -> None:
    async with serving() as served:
        await fill(served, 3)
        strange = Position(new_epoch(), 3, "0" * 16)
        for order in ("asc", "desc"):
            answer = await served.ask("GET", f"{URL}?before={strange}&order={order}")
            assert refused(answer) == (400, "bad_request")


async def test_purge() -> None:
    async with serving() as served:
        at = await fill(served, 3)
        answer = await served.ask("DELETE", URL)
        assert answer.json == {"channel": "a", "position": at[-1]}
        assert data(await read(served)) == []
        later = await fill(served, 2, 10)
        assert Position.parse(later[0]).offset == 4
        assert data(await read(served, f"since={at[2]}")) == [10, 11]
        answer = await served.ask("GET", f"{URL}?since={at[1]}")
        assert refused(answer) == (409, "conflict")
        missing = await served.ask("DELETE", "/v1/channels/nothing/events")
        assert refused(missing) == (404, "not_found")


async def test_who_may_read_and_purge() -> None:
    narrow = "narrow.0123456789abcdef"
    keys = (api_key(KEY), api_key(narrow, history=("a",), purge=("b",)))
    async with serving(keys=keys) as served:
        other = "/v1/channels/b/events"
        reader, nobody = make_token("u", {"a": ["history"]}), make_token("u", {"a": ["subscribe"]})
        for method, path, bearer, status in (
            ("GET", URL, narrow, 200),
            ("GET", other, narrow, 403),
            ("DELETE", URL, narrow, 403),
            ("DELETE", other, narrow, 404),
            ("GET", URL, reader, 200),
            ("GET", other, reader, 403),
            ("DELETE", URL, reader, 403),
            ("GET", URL, nobody, 403),
            ("GET", URL, None, 401),
            ("DELETE", URL, None, 401),
        ):
            assert (await served.ask(method, path, bearer=bearer)).status == status


async def test_a_broker_that_is_away() -> None:
    async with serving() as served:
        await served.node.broker.close()
        for method in ("GET", "DELETE"):
            assert refused(await served.ask(method, URL)) == (503, "unavailable")
