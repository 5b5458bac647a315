"""A real browser: WebSocket in both encodings, and its own EventSource."""

from collections.abc import Iterator

import pytest
from playwright.async_api import Page

from chromium import MISSING, browser_page, publish, until
from cutting_proxy import CuttingProxy
from one_session import JSON, MSGPACK, deflate_in, run_session
from processes import ServerProcess

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    # The browser comes back soon, so that the tests need not wait long.
    with ServerProcess("--dev", environ={"GALECAST_SSE_RETRY_MS": "100"}) as running:
        yield running


async def test_the_docs_page_works_offline(server: ServerProcess) -> None:
    async with browser_page(server.url + "/docs") as (page, complaints):
        await until(page, "document.body.innerText.includes('/v1/events')")
        assert complaints == []


class BrowserSocket:
    """A WebSocket of a page, as the session of all clients wants it."""

    def __init__(self, page: Page, subprotocol: str) -> None:
        self._page = page
        self._taken = 0
        self.subprotocol: str | None = subprotocol

    async def open(self, url: str) -> None:
        """Connect; what comes is kept in the page."""
        self.subprotocol = await self._page.evaluate(
            """
            ([url, subprotocol]) => {
              window.heard = [];
              window.socket = new WebSocket(url, subprotocol);
              socket.binaryType = "arraybuffer";
              socket.onmessage = ({ data }) =>
                heard.push(typeof data === "string" ? data : Array.from(new Uint8Array(data)));
              return new Promise((done) => { socket.onopen = () => done(socket.protocol); });
            }
            """,
            [url, self.subprotocol],
        )

    async def send(self, payload: str | bytes) -> None:
        """Send a text or a binary message."""
        if isinstance(payload, str):
            await self._page.evaluate("(text) => socket.send(text)", payload)
        else:
            send = "(bytes) => socket.send(new Uint8Array(bytes))"
            await self._page.evaluate(send, list(payload))

    async def receive(self) -> str | bytes:
        """Return the next message."""
        await until(self._page, "(n) => heard.length > n", self._taken)
        message = await self._page.evaluate("(n) => heard[n]", self._taken)
        self._taken += 1
        return message if isinstance(message, str) else bytes(message)

    async def close(self) -> None:
        """End the connection and wait for the server's answer."""
        code = (
            "new Promise((done) => { socket.onclose = (e) => done(e.wasClean); socket.close(); })"
        )
        assert await self._page.evaluate(code) is True


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
async def test_the_same_session(server: ServerProcess, subprotocol: str) -> None:
    async with browser_page(server.url + "/docs") as (page, complaints):

        async def connect(url: str) -> BrowserSocket:
            client = BrowserSocket(page, subprotocol)
            await client.open(url)
            return client

        channel = f"browser.{subprotocol.rpartition('.')[2]}"
        await run_session(server, connect, subprotocol, channel)
        assert complaints == []


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
async def test_the_same_session_where_compression_is_on(subprotocol: str) -> None:
    """The browser offers it by itself."""
    environ = {
        "GALECAST_WEBSOCKET_COMPRESSION": "true",
        "GALECAST_WEBSOCKET_COMPRESSION_MIN_BYTES": "0",
    }
    with ServerProcess("--dev", environ=environ) as server:
        async with browser_page(server.url + "/docs") as (page, complaints):

            async def connect(url: str) -> BrowserSocket:
                client = BrowserSocket(page, subprotocol)
                await client.open(url)
                extensions = await page.evaluate("socket.extensions")
                assert extensions.startswith("permessage-deflate; server_no_context_takeover")
                return client

            await run_session(server, connect, subprotocol, "browser.deflate")
            assert complaints == []
            assert deflate_in(server) > 0


@pytest.mark.parametrize("ticket", [False, True])
@pytest.mark.parametrize("channels", [["es.one"], ["es.two", "es.three"]])
async def test_event_source_resumes_with_nothing_lost(channels: list[str], ticket: bool) -> None:
    """The connection is cut again and again; the browser comes back by itself."""
    async with CuttingProxy() as proxy:
        origin = f"http://127.0.0.1:{proxy.port}"
        environ = {"GALECAST_SSE_RETRY_MS": "100", "GALECAST_ORIGINS": origin}
        with ServerProcess("--dev", environ=environ) as server:
            proxy.target = server.port
            async with browser_page(origin + "/docs") as (page, complaints):
                await follow(page, channels, ticket)
                expected = await publish_and_cut(page, proxy, channels)
                heard = await page.evaluate("heard.map((event) => [event.channel, event.data])")
                for channel in channels:
                    assert [each for each in heard if each[0] == channel] == [
                        each for each in expected if each[0] == channel
                    ]
                # A stream that is cut is an error to the console, and nothing else is.
                assert all("ERR_" in complaint for complaint in complaints)


async def follow(page: Page, channels: list[str], ticket: bool) -> None:
    """Open an EventSource in the page."""
    await page.evaluate(
        """
        async ([channels, ticket]) => {
          const query = new URLSearchParams(channels.map((channel) => ["channel", channel]));
          if (ticket) {
            const headers = { Authorization: "Bearer dev.galecast" };
            const response = await fetch("/v1/tickets", { method: "POST", headers });
            query.set("ticket", (await response.json()).ticket);
          }
          window.heard = [];
          window.opened = 0;
          window.source = new EventSource(`/v1/sse?${query}`);
          source.onmessage = ({ data }) => heard.push(JSON.parse(data));
          source.addEventListener("control", ({ data }) => {
            if (JSON.parse(data).type === "subscribed") window.opened += 1;
          });
        }
        """,
        [channels, ticket],
    )
    await until(page, "(n) => opened === n", len(channels))


async def publish_and_cut(
    page: Page, proxy: CuttingProxy, channels: list[str]
) -> list[list[object]]:
    """Publish, cut, and publish while the stream is away, four times; return what was published."""
    expected: list[list[object]] = []
    for number in range(4):
        for channel in channels:
            await publish(page, channel, number)
            expected.append([channel, number])
        await until(page, "(n) => heard.length === n", len(expected))
        opened = await page.evaluate("opened")
        proxy.cut()
        for channel in channels:
            await publish(page, channel, f"meanwhile {number}")
            expected.append([channel, f"meanwhile {number}"])
        await until(page, "(n) => heard.length === n", len(expected))
        await until(page, "(n) => opened > n", opened)
    return expected
