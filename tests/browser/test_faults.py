"""static/galecast.js in a real browser, while nodes die, drain, and the network fails."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import pytest
from playwright.async_api import Page, Route

from chromium import MISSING, browser_page, browsing, open_page
from cutting_proxy import CuttingProxy
from library_page import LibraryClient, Publisher, ask, kept, publish
from processes import ServerProcess
from redis_server import RedisServer

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

TRANSPORTS = ("websocket", "sse")
_CHANNEL = "faults.a"
_PATIENCE_S = 40.0
# What a Publisher publishes.
_A_SECOND = 200
# What Chromium itself says of connections that fail or break; a page cannot keep it from that.
_OF_THE_NETWORK = ("net::ERR_", "WebSocket connection to ")


@pytest.fixture(scope="module")
def lasting() -> Iterator[ServerProcess]:
    """A node for tests that leave it as it is; each has channels of its own."""
    with ServerProcess() as node:
        yield node


class Site(NamedTuple):
    """A node behind a proxy, and a page that came through it, with its console's complaints."""

    node: ServerProcess
    proxy: CuttingProxy
    page: Page
    complaints: list[str]


@asynccontextmanager
async def site(
    environ: Mapping[str, str] | None = None, arguments: Sequence[str] = ()
) -> AsyncIterator[Site]:
    """Open a page of a node through a proxy; its console may complain of the network only."""
    async with CuttingProxy() as proxy:
        settings = {"GALECAST_ORIGINS": proxy.origin, **(environ or {})}
        with ServerProcess("--dev", *arguments, environ=settings) as node:
            proxy.target = node.port
            async with browser_page(proxy.origin + "/docs") as (page, complaints):
                yield Site(node, proxy, page, complaints)
                assert_of_the_network(complaints)


def assert_of_the_network(complaints: Sequence[str]) -> None:
    assert [each for each in complaints if not any(part in each for part in _OF_THE_NETWORK)] == []


async def of_each_transport(page: Page, **options: Any) -> list[LibraryClient]:
    """Connect over WebSocket, and over HTTP alone."""
    return [await LibraryClient.connect(page, transports=[each], **options) for each in TRANSPORTS]


def user(name: str, ttl_s: float = 600) -> dict[str, Any]:
    """Return what a token of this user is minted of."""
    grants = {">": ["subscribe", "publish", "presence", "history"]}
    return {"sub": name, "grants": grants, "ttl_s": ttl_s}


# ---- nothing is wrong


async def test_pages_hear_and_see_each_other(lasting: ServerProcess) -> None:
    channel = "faults.pages"
    async with AsyncExitStack() as stack:
        browser = await stack.enter_async_context(browsing())
        pages: list[Page] = []
        clients: list[LibraryClient] = []
        heard: list[list[str]] = []
        for name, transport in (("ann", "websocket"), ("bob", "websocket"), ("cyd", "sse")):
            page, complaints = await open_page(browser, lasting.url + "/docs")
            client = await LibraryClient.connect(page, transports=[transport], mint=user(name))
            await client.follow(channel, presence=True)
            assert await client.do("(client) => client.connection.transport") == transport
            pages.append(page)
            clients.append(client)
            heard.append(complaints)
        ann, bob, cyd = clients
        present: dict[str, Any] = {"ann": {}, "bob": {}, "cyd": {}}
        await until_members(clients, channel, present)
        entry = "(client, channel) => client.followed[channel].subscription.setPresence({ x: 1 })"
        await bob.do(entry, channel)
        await until_members(clients, channel, present | {"bob": {"x": 1}})

        for client in clients:
            assert (await client.publish(channel, {"text": "hello"}))["duplicate"] is False
        for client in clients:
            assert await client.hear(channel, 3) == [{"text": "hello"}] * 3

        await pages[1].close()
        await until_members([ann, cyd], channel, {"ann": {}, "cyd": {}})
        await pages[2].close()
        await until_members([ann], channel, {"ann": {}})
        actions = await ann.followed(channel, "members")
        assert actions == ["sync", "join", "join", "update", "leave", "leave"]
        assert heard == [[], [], []]


async def until_members(
    clients: Sequence[LibraryClient], channel: str, expected: dict[str, Any]
) -> None:
    """Wait until all know that these users are in the channel, each with what it has set."""
    for client in clients:
        await client.until(
            """
            (client, [channel, expected]) => {
              const { members } = client.followed[channel].subscription;
              const found = [...members.values()].map(({ user, info }) => [user, info]);
              return JSON.stringify(found.sort()) === JSON.stringify(expected);
            }
            """,
            [channel, sorted([name, info] for name, info in expected.items())],
        )


async def test_odd_characters_come_through_unchanged(lasting: ServerProcess) -> None:
    """U+2028 ends a line to a regular expression, CR and LF end one of a stream."""
    odd = "\ufeff\u2028\u2029\u0085\0\r\n\r\ndata: x\r\x0b\u202e\U0001f600\\u2028</script>"
    values = [odd, {odd: [odd]}, "\u2028", "data: {}\n\nevent: control", 2**53 - 1, -0.5, None]
    channel = "faults.odd"
    async with browser_page(lasting.url + "/docs") as (page, complaints):
        clients = await of_each_transport(page)
        for client in clients:
            await client.follow(channel)
        for value in values:
            for client in clients:
                await client.publish(channel, value)
            await asyncio.to_thread(publish, lasting.port, channel, value)
        expected = [value for value in values for _ in range(3)]
        for client in clients:
            assert await client.hear(channel, len(expected)) == expected
        assert complaints == []


async def test_tokens_are_refreshed_before_they_end() -> None:
    """Tokens of 5 s; over WebSocket the session stays the same, a stream is opened anew."""
    # A machine that stands still for less than this does no harm.
    environ = {"GALECAST_SESSION_EXPIRING_S": "4"}
    with ServerProcess("--dev", environ=environ) as node:
        async with browser_page(node.url + "/docs") as (page, complaints):
            clients = await of_each_transport(page, mint=user("ann", ttl_s=5))
            for client in clients:
                await client.follow(_CHANNEL)
            session = await clients[0].do("(client) => client.connection.session")
            with Publisher(node.port, _CHANNEL) as publisher:
                for client in clients:
                    # One a second, so the first token has ended.
                    await client.until("(client) => client.reasons.length >= 7")
                count = publisher.stop()
            for client in clients:
                assert await client.hear(_CHANNEL, count) == list(range(count))
                first, *others = await client.do("(client) => client.reasons")
                assert (first, set(others)) == ("connect", {"expiring"})
                assert [each["state"] for each in await client.states()] == ["connected"]
                assert await client.do("(client) => client.connection.user") == "ann"
                assert await client.followed(_CHANNEL, "resets") == 0
            assert await clients[0].do("(client) => client.connection.session") == session
            assert complaints == []


# ---- nodes


async def test_a_node_that_is_killed_and_started_again() -> None:
    """Its channels begin anew: that is told, and what was published meanwhile arrives once."""
    async with AsyncExitStack() as stack:
        node = stack.enter_context(ServerProcess())
        page, complaints = await stack.enter_async_context(browser_page(node.url + "/docs"))
        clients = dict(zip(TRANSPORTS, await of_each_transport(page), strict=True))
        for channel, client in clients.items():
            await client.follow(channel)
            await client.publish(channel, "before")
            await client.hear(channel, 1)

        node.signal(signal.SIGKILL)
        node.wait()
        meanwhile = [f"meanwhile {number}" for number in range(5)]
        for channel, client in clients.items():
            await client.until("(client) => client.states.at(-1).state === 'waiting'")
            await client.publish_unanswered(channel, meanwhile)
        again = stack.enter_context(ServerProcess("--dev", "--port", str(node.port)))

        for channel, client in clients.items():
            await client.reach("connected")
            assert [each["duplicate"] for each in await client.answers()] == [False] * 5
            await client.publish(channel, "after")
            assert await client.hear(channel, 7) == ["before", *meanwhile, "after"]
            assert await asyncio.to_thread(kept, again.port, channel) == [*meanwhile, "after"]
            assert await client.followed(channel, "recovered") == [None, False]
            assert await client.followed(channel, "resets") == 1
            states = [each["state"] for each in await client.states()]
            assert (states[0], states[-1]) == ("connected", "connected")
            assert states[1:3] == ["waiting", "connecting"]
        assert_of_the_network(complaints)


_SPREAD = {"GALECAST_DRAIN_RETRY_SPREAD_MS": "3000"}
_LONG = {"GALECAST_CHANNELS": '[{"match": ">", "history_size": 50000}]'}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_node_that_is_drained(transport: str) -> None:
    """The client resumes on another node of the same Redis, at the time that the first has named.

    Every event arrives once and in order: those before, those meanwhile, and those after.
    """
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        arguments = ("--broker-url", redis.url)
        opened = site(_SPREAD | _LONG, arguments)
        node, proxy, page, _ = await stack.enter_async_context(opened)
        environ = {"GALECAST_ORIGINS": proxy.origin, **_LONG}
        other = stack.enter_context(ServerProcess("--dev", *arguments, environ=environ))
        client = await LibraryClient.connect(page, transports=[transport])
        await client.follow(_CHANNEL)
        left = await client.do("(client) => client.connection.node")
        publisher = stack.enter_context(Publisher(other.port, _CHANNEL))
        await client.hear(_CHANNEL, _A_SECOND)

        proxy.target = other.port
        node.signal(signal.SIGTERM)
        await client.until("(client) => client.states.some(({ state }) => state === 'waiting')")
        assert await asyncio.to_thread(node.wait) == 0
        await client.reach("connected")
        await publisher.reach(publisher.acknowledged + _A_SECOND)
        count = publisher.stop()

        assert await client.hear(_CHANNEL, count) == list(range(count))
        farewells = await came_back_at_the_advised_time(client)
        assert await client.followed(_CHANNEL, "recovered") == [None] + [True] * farewells
        assert await client.followed(_CHANNEL, "resets") == 0
        assert await client.do("(client) => client.connection.node") != left


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_drained_client_goes_to_a_node_that_knows_nothing(transport: str) -> None:
    """It comes at the time that the first has named, is told, and goes on with the second."""
    async with AsyncExitStack() as stack:
        node, proxy, page, _ = await stack.enter_async_context(site(_SPREAD))
        client = await LibraryClient.connect(page, transports=[transport])
        await client.follow(_CHANNEL)
        await client.publish(_CHANNEL, "before")
        await client.hear(_CHANNEL, 1)

        environ = {"GALECAST_ORIGINS": proxy.origin}
        other = stack.enter_context(ServerProcess("--dev", environ=environ))
        proxy.target = other.port
        node.signal(signal.SIGTERM)
        await client.until("(client) => client.states.some(({ state }) => state === 'waiting')")
        # Advised to come back at once, it may still find the first one, which would take these.
        assert await asyncio.to_thread(node.wait) == 0
        await client.publish_unanswered(_CHANNEL, ["meanwhile 0", "meanwhile 1"])
        assert len(await client.answers()) == 2

        assert await client.hear(_CHANNEL, 3) == ["before", "meanwhile 0", "meanwhile 1"]
        farewells = await came_back_at_the_advised_time(client)
        recovered = await client.followed(_CHANNEL, "recovered")
        assert recovered == [None] + [True] * (farewells - 1) + [False]
        assert await asyncio.to_thread(kept, other.port, _CHANNEL) == ["meanwhile 0", "meanwhile 1"]


async def came_back_at_the_advised_time(client: LibraryClient) -> int:
    """The node said when to come back, and so it was; return how often it said so.

    Mostly once: a client that is advised to come back at once may find the node that drains again,
    by a connection that the browser has kept.
    """
    farewells = await client.do("(client) => client.farewells")
    assert {(each["code"], each["reason"]) for each in farewells} == {(4001, "draining")}
    advised = farewells[-1]["retry_in_ms"]
    waiting, coming, connected = (await client.states())[-3:]
    states = [each["state"] for each in (waiting, coming, connected)]
    assert states == ["waiting", "connecting", "connected"]
    assert advised <= waiting["retryInMs"] <= max(advised, 1000)
    # Clocks of browsers are coarse, and machines may be busy.
    paused = coming["at"] - waiting["at"]
    assert waiting["retryInMs"] - 20 <= paused <= waiting["retryInMs"] + 5000
    return len(farewells)


# ---- the network

_BUSY = {
    **_LONG,
    # Silence shows after 1.5 s, and an answer to a ping is waited for 5 s.
    "GALECAST_SESSION_PING_S": "1",
    "GALECAST_SSE_COMMENT_S": "0.5",
}


@pytest.mark.parametrize("fault", ["cut", "held"])
async def test_the_network_fails_for_5_s_under_200_events_each_second(fault: str) -> None:
    """Every acknowledged event arrives once and in order, over WebSocket and as a stream."""
    async with site(_BUSY) as (node, proxy, page, _):
        # Each pause is half of what it may be, so that none takes longer than the test may.
        await page.evaluate("Math.random = () => 0.5")
        clients = await of_each_transport(page)
        for client in clients:
            await client.follow(_CHANNEL)
        with Publisher(node.port, _CHANNEL) as publisher:
            for client in clients:
                await client.hear(_CHANNEL, 2 * _A_SECOND)
            with proxy.down() if fault == "cut" else proxy.hold():
                await publisher.reach(publisher.acknowledged + 5 * _A_SECOND)
                heard = [len(await client.followed(_CHANNEL, "data")) for client in clients]
                for client in clients:
                    await client.until("(client) => client.states.length > 1")
            for client in clients:
                await client.reach("connected")
            await publisher.reach(publisher.acknowledged + 2 * _A_SECOND)
            count = publisher.stop()
        assert count >= 9 * _A_SECOND
        assert max(heard) < count - 6 * _A_SECOND
        for client in clients:
            assert await client.hear(_CHANNEL, count) == list(range(count))
            assert set((await client.followed(_CHANNEL, "recovered"))[1:]) == {True}
            assert await client.followed(_CHANNEL, "resets") == 0


@pytest.mark.parametrize("obstacle", ["network", "browser"])
async def test_where_websocket_cannot_be_had(obstacle: str) -> None:
    """Streams and HTTP do the same: receive, resume, publish."""
    async with site() as (node, proxy, page, _):
        if obstacle == "network":
            proxy.forbidden = "GET /v1/ws"
        else:
            await page.evaluate("delete globalThis.WebSocket")
        client = await LibraryClient.connect(page)
        await client.follow(_CHANNEL)
        assert await client.do("(client) => client.connection.transport") == "sse"
        assert proxy.requests.count("GET /v1/ws") == (2 if obstacle == "network" else 0)
        await client.publish(_CHANNEL, 0)
        assert "POST /v1/events" in proxy.requests
        expected = [0]
        for number in range(1, 5, 2):
            await client.hear(_CHANNEL, number)
            with proxy.down():
                await client.until("(client) => client.states.at(-1).state === 'waiting'")
                await asyncio.to_thread(publish, node.port, _CHANNEL, number)
                await client.publish_unanswered(_CHANNEL, [number + 1])
            expected += [number, number + 1]
        assert await client.hear(_CHANNEL, 5) == expected
        assert [each["duplicate"] for each in await client.answers()] == [False] * 2
        assert await client.do("(client) => client.connection.transport") == "sse"
        assert await client.followed(_CHANNEL, "resets") == 0
        last = "(client, channel) => client.connection.history(channel, { limit: 1 })"
        assert [event["data"] for event in (await client.do(last, _CHANNEL))["events"]] == [4]
        assert await client.do("(client) => client.connection.ping()") > 0


async def test_an_answer_that_breaks_off_is_asked_for_again(lasting: ServerProcess) -> None:
    """The publish was carried out, and its answer was lost: it is sent once more, not doubled.

    It was rejected with the browser's own error if the head of the answer had come and the rest
    had not.
    """
    channel = "faults.broken"
    async with browser_page(lasting.url + "/docs") as (page, complaints):
        await page.evaluate(
            """
            () => {
              const real = fetch;
              window.posts = 0;
              globalThis.fetch = async (...request) => {
                const response = await real(...request);
                if (request[1]?.method !== "POST" || posts++) return response;
                const body = new ReadableStream({
                  start: (controller) => controller.error(new TypeError("network error")),
                });
                return new Response(body, response);
              };
            }
            """
        )
        client = await LibraryClient.connect(page, transports=["sse"])
        await client.follow(channel)
        assert (await client.publish(channel, 1))["duplicate"] is True
        assert (await client.publish(channel, 2))["duplicate"] is False
        assert await client.hear(channel, 2) == [1, 2]
        assert await page.evaluate("posts") == 3
        assert complaints == []


async def test_a_time_to_retry_that_is_a_date_is_no_reason_to_hurry() -> None:
    """Proxies write such; it was read as no pause at all."""
    async with site() as (_node, _proxy, page, complaints):

        async def refuse(route: Route) -> None:
            date = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
            await route.fulfill(status=503, headers=date, body="busy")

        await page.route("**/v1/sse?*", refuse)
        await page.evaluate("Math.random = () => 0.5")
        client = await LibraryClient.connect(page, transports=["sse"])
        await client.do("(client) => { client.connection.subscribe('faults.a', () => {}); }")
        await client.until("(client) => client.states.length >= 4")
        pauses = [each["retryInMs"] for each in await client.states() if each["state"] == "waiting"]
        assert pauses[:2] == [500, 1000]
        await client.do("(client) => client.connection.close()")
        assert all("503 (Service Unavailable)" in each for each in complaints)
        complaints.clear()


# ---- for good, and at once


async def test_an_invalid_token_ends_it_for_good() -> None:
    async with site() as found:
        # The first could also do without WebSocket.
        clients = [
            await LibraryClient.connect(found.page, transports=transports, token="no token")
            for transports in (["websocket", "sse"], ["sse"])
        ]
        for client in clients:
            # It may be closed before this comes.
            subscribe = "async (client) => client.connection.subscribe('faults.a').ready"
            code_of = f"(client) => ({subscribe})(client).catch(({{ code }}) => code)"
            assert await client.do(code_of) == "closed"
        await stay_away(found, clients, 4501)
        assert ["401 (Unauthorized)" in each for each in found.complaints] == [True]
        found.complaints.clear()


async def test_an_operator_ends_it_for_good() -> None:
    async with site() as found:
        clients = [
            await LibraryClient.connect(found.page, transports=transports)
            for transports in (["websocket", "sse"], ["sse"])
        ]
        for client in clients:
            await client.follow(_CHANNEL)
            session = await client.do("(client) => client.connection.session")
            await asyncio.to_thread(ask, found.node.port, "DELETE", f"/v1/sessions/{session}")
        await stay_away(found, clients, 4502)
        for client in clients:
            assert await client.followed(_CHANNEL, "ended") == "closed"


async def stay_away(site: Site, clients: Sequence[LibraryClient], code: int) -> None:
    """All have ended with this code after one connection, and nothing makes them come back."""
    for client in clients:
        await client.reach("closed")
    for reason in _REASONS:
        await site.page.evaluate(reason)
    for client in clients:
        await client.do("(client) => client.connection.resume()")
    # That something does not come cannot be waited for: the first pause is 1 s at most.
    await asyncio.sleep(1.2)
    tried = [each for each in site.proxy.requests if each.startswith(("GET /v1/ws", "GET /v1/sse"))]
    assert len(tried) == len(clients)
    for client in clients:
        last = (await client.states())[-1]
        assert (last["state"], last["code"], last["transport"]) == ("closed", code, None)
        publish = "(client) => client.connection.publish('faults.a', 1).catch(({ code }) => code)"
        assert await client.do(publish) == "closed"


_REASONS = (
    "document.dispatchEvent(new Event('visibilitychange'))",
    "window.dispatchEvent(new Event('online'))",
)


async def test_it_comes_back_at_once_when_there_is_a_reason() -> None:
    """Looked at again, or online: the pause ends, though the network may not be back."""
    async with site() as (_node, proxy, page, _):
        # Nearly the longest pauses: 1 s, 2 s, 4 s.
        await page.evaluate("Math.random = () => 0.99")
        clients = await of_each_transport(page)
        for client in clients:
            await client.follow(_CHANNEL)
        with proxy.down():
            for reason in _REASONS:
                counts = await when_all_wait(page, clients, reason)
                for client, count in zip(clients, counts, strict=True):
                    await client.until("(client, count) => client.states.length > count", count)
                    waiting, coming = (await client.states())[count - 1 : count + 1]
                    assert (waiting["state"], coming["state"]) == ("waiting", "connecting")
                    assert coming["at"] - waiting["at"] < waiting["retryInMs"] - 1000
            await when_all_wait(page, clients, "null")
        # The browser says by itself that it is online again.
        await page.context.set_offline(True)
        await page.context.set_offline(False)
        for client in clients:
            await client.reach("connected")
            await client.publish(_CHANNEL, 1)
        for client in clients:
            assert await client.hear(_CHANNEL, 2) == [1, 1]
            assert await client.followed(_CHANNEL, "recovered") == [None, True]


_WHEN_ALL_WAIT = """
(clients) => {
  const long = ({ state, retryInMs, at }) =>
    state === "waiting" && retryInMs > 3900 && at + retryInMs - performance.now() > 2000;
  if (!clients.every(({ states }) => long(states.at(-1)))) return null;
  const counts = clients.map(({ states }) => states.length);
  %s;
  return counts;
}
"""


async def when_all_wait(page: Page, clients: Sequence[LibraryClient], what: str) -> list[int]:
    """Do something once all are in a pause of nearly 4 s or more, of which 2 s are left.

    In one go, since pauses end while a machine is busy. Return how many states each had had.
    """
    handles = [client.handle for client in clients]
    deadline = time.monotonic() + _PATIENCE_S
    while (counts := await page.evaluate(_WHEN_ALL_WAIT % what, handles)) is None:
        assert time.monotonic() < deadline, [await client.states() for client in clients]
        await asyncio.sleep(0.02)
    found: list[int] = counts
    return found
