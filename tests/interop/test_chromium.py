"""A real browser: the page at `/`, WebSocket in both encodings, and its own EventSource."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import playwright
import pytest
from playwright.async_api import Page, async_playwright

from cutting_proxy import CuttingProxy
from one_session import JSON, MSGPACK, run_session
from processes import ServerProcess

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in _NAMES if (path := shutil.which(name))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_PATIENCE_S = 20.0
_PUBLISH = """
async ([channel, data]) => {
  const response = await fetch("/v1/events", {
    method: "POST",
    headers: { Authorization: "Bearer dev.galecast", "Content-Type": "application/json" },
    body: JSON.stringify({ channel, name: "n", data }),
  });
  return response.status;
}
"""


def what_is_missing() -> str:
    """Return why no browser can be driven on this machine; empty if one can."""
    if CHROMIUM is None:
        return "there is no Chromium on this machine"
    node = Path(playwright.__file__).with_name("driver") / "node"
    done = subprocess.run([node, "--version"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"its driver does not run: {done.stderr[-200:]}"


MISSING = what_is_missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    # The browser comes back soon, so that the tests need not wait long.
    with ServerProcess("--dev", environ={"GALECAST_SSE_RETRY_MS": "100"}) as running:
        yield running


@asynccontextmanager
async def browser_page(url: str) -> AsyncIterator[tuple[Page, list[str]]]:
    """Open a page; yield it with what its console complains of."""
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = await browser.new_page()
            complaints: list[str] = []
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "console",
                lambda message: (
                    complaints.append(message.text)
                    if message.type in ("error", "warning")
                    else None
                ),
            )
            await page.goto(url)
            yield page, complaints
        finally:
            await browser.close()


async def until(page: Page, expression: str, argument: Any = None) -> None:
    """Wait until an expression is true in the page.

    Not `wait_for_function`: its polling is `eval` in the page, which the page's own policy forbids.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while not await page.evaluate(expression, argument):
        assert time.monotonic() < deadline, expression
        await asyncio.sleep(0.02)


async def publish(page: Page, channel: str, data: Any) -> None:
    assert await page.evaluate(_PUBLISH, [channel, data]) == 200


async def test_the_page_shows_live_events_as_text(server: ServerProcess) -> None:
    async with browser_page(server.url) as (page, complaints):
        await until(page, "document.getElementById('state').textContent.startsWith('following')")
        assert "curl" in await page.inner_text("#curl")
        await publish(page, "a.b", {"html": "<img src=x onerror=alert(1)>"})
        await page.wait_for_selector("#events li")
        assert "<img src=x" in await page.inner_text("#events li")
        assert await page.query_selector("#events img") is None
        assert complaints == []


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
