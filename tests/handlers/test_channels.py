"""Which channels there are, and what each one is."""

from config.limits import LimitSettings
from node_group import serve_group
from nodes import KEY, Served, api_key, make_token, serving

NARROW = "narrow.0123456789abcdef"


async def fill(served: Served, *channels: str) -> None:
    for channel in channels:
        answer = await served.ask("POST", "/v1/events", {"channel": channel, "data": 1})
        assert answer.status == 200


async def walk(served: Served, query: str, bearer: str = KEY) -> list[list[str]]:
    """The pages of a list, followed by their cursors."""
    pages, cursor = [], ""
    while True:
        page = (await served.ask("GET", f"/v1/channels?{query}{cursor}", bearer=bearer)).json
        pages.append([each["channel"] for each in page["channels"]])
        if "cursor" not in page:
            return pages
        cursor = f"&cursor={page['cursor']}"


async def test_active_channels_by_name() -> None:
    async with serving() as served:
        await fill(served, "b", "a.2", "a.1", "c")
        answer = await served.ask("GET", "/v1/channels")
        assert [each["channel"] for each in answer.json["channels"]] == ["a.1", "a.2", "b", "c"]
        top = await served.node.broker.top("b")
        assert answer.json["channels"][2] == {
            "channel": "b",
            "position": str(top),
            "subscribers": 0,
        }
        assert await walk(served, "limit=1") == [["a.1"], ["a.2"], ["b"], ["c"]]
        assert await walk(served, "limit=3") == [["a.1", "a.2", "b"], ["c"]]
        assert await walk(served, "limit=4") == [["a.1", "a.2", "b", "c"]]
        assert await walk(served, "prefix=a.") == [["a.1", "a.2"]]
        assert await walk(served, "prefix=x") == [[]]


async def test_subscribers_are_counted() -> None:
    async with serving() as served:
        feed = await served.node.hub.hold("a")
        (item,) = (await served.ask("GET", "/v1/channels")).json["channels"]
        assert item["subscribers"] == 1
        assert (await served.ask("GET", "/v1/channels/a")).json["subscribers"] == 1
        served.node.hub.release(feed)


async def test_a_page_is_cut_to_its_limit() -> None:
    async with serving(limits=LimitSettings(items_per_page=2)) as served:
        await fill(served, "a", "b", "c")
        assert await walk(served, "limit=100") == [["a", "b"], ["c"]]


async def test_a_key_sees_what_its_patterns_cover() -> None:
    keys = (api_key(KEY), api_key(NARROW, channels=("z.*", "b")))
    async with serving(keys=keys) as served:
        await fill(served, *[f"a.{i}" for i in range(30)], "b", "z.1", "z.2")
        pages = await walk(served, "limit=2", NARROW)
        assert [name for page in pages for name in page] == ["b", "z.1", "z.2"]
        assert all(len(page) <= 2 for page in pages)
        assert (await served.ask("GET", "/v1/channels/b", bearer=NARROW)).status == 200
        assert (await served.ask("GET", "/v1/channels/a.1", bearer=NARROW)).status == 403


async def test_who_may_not_look() -> None:
    keys = (api_key(KEY), api_key(NARROW, publish=(">",)))
    async with serving(keys=keys) as served:
        for bearer, status in ((NARROW, 403), (make_token(), 403), (None, 401)):
            for path in ("/v1/channels", "/v1/channels/a"):
                assert (await served.ask("GET", path, bearer=bearer)).status == status


async def test_one_channel() -> None:
    async with serving() as served:
        await fill(served, "closed.a")
        answer = await served.ask("GET", "/v1/channels/closed.a")
        assert answer.json == {
            "channel": "closed.a",
            "position": str(await served.node.broker.top("closed.a")),
            "subscribers": 0,
            "rule": {
                "match": "closed.>",
                "history_size": 500,
                "history_ttl_s": 300.0,
                "archive": False,
                "archive_ttl_s": 0.0,
                "presence": False,
                "client_publish": False,
                "slow": "disconnect",
            },
        }
        missing = await served.ask("GET", "/v1/channels/nothing")
        assert (missing.status, missing.json["code"]) == (404, "not_found")


async def test_a_broker_that_is_away() -> None:
    async with serving() as served:
        await served.node.broker.close()
        for path in ("/v1/channels", "/v1/channels/a"):
            answer = await served.ask("GET", path)
            assert (answer.status, answer.json["code"]) == (503, "unavailable")


async def test_subscribers_are_counted_over_all_nodes() -> None:
    async with serve_group("n1", "n2", "n3") as (group, nodes):
        first = nodes[0]
        for node in nodes:
            await node.node.hub.hold("a")
        await nodes[2].node.hub.hold("a")
        await first.node.hub.hold("b")
        page = (await first.ask("GET", "/v1/channels")).json
        assert [(each["channel"], each["subscribers"]) for each in page["channels"]] == [
            ("a", 4),
            ("b", 1),
        ]
        assert "silent" not in page
        assert group.orders == 1
        group.silent = {"n3"}
        for path in ("/v1/channels?limit=1", "/v1/channels/a"):
            answer = (await first.ask("GET", path)).json
            assert answer["silent"] == ["n3"]
        assert answer["subscribers"] == 2
        group.away = True
        for path in ("/v1/channels", "/v1/channels/a"):
            answer = await first.ask("GET", path)
            assert (answer.status, answer.json["code"]) == (503, "unavailable")
