"""A real browser: Chromium without a window, its pages, and what their consoles complain of."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import playwright
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

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
async ([channel, data, name]) => {
  const response = await fetch("/v1/events", {
    method: "POST",
    headers: { Authorization: "Bearer dev.galecast", "Content-Type": "application/json" },
    body: JSON.stringify({ channel, name, data }),
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


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """Run a browser without pages."""
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


async def open_page(browser: Browser, url: str, **context: Any) -> tuple[Page, list[str]]:
    """Open a page that shares nothing with others; return it with what its console complains of.

    `context` says who looks at it, and how: `viewport`, `color_scheme`, `permissions` and more.
    """
    page = await (await browser.new_context(**context)).new_page()
    complaints: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", hear)
    await page.goto(url)
    return page, complaints


@asynccontextmanager
async def browser_page(url: str, **context: Any) -> AsyncIterator[tuple[Page, list[str]]]:
    """Open a page in a browser of its own; yield it with what its console complains of."""
    async with browsing() as browser:
        yield await open_page(browser, url, **context)


async def until(page: Page, expression: str, argument: Any = None) -> None:
    """Wait until an expression is true in the page.

    Not `wait_for_function`: its polling is `eval` in the page, which the page's own policy forbids.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while not await page.evaluate(expression, argument):
        assert time.monotonic() < deadline, expression
        await asyncio.sleep(0.02)


async def publish(page: Page, channel: str, data: Any, name: str = "n") -> None:
    """Publish from the page as a backend would, over HTTP with the key of development mode."""
    assert await page.evaluate(_PUBLISH, [channel, data, name]) == 200
