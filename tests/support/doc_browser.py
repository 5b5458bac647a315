"""Runs what a document says that pages do, in a real browser."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from playwright.async_api import Browser, Page, Route

from doc_shell import WAIT_S
from doc_text import pattern

# What the shorter examples of a document begin with.
BEGINNING: Final = 'import { connect } from "/static/galecast.js";\nconst connection = connect();\n'
_ADD: Final = """
() => {
  const script = document.createElement("script");
  script.type = "module";
  script.src = "/example.js";
  document.head.append(script);
}
"""


async def until(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    """Wait until a condition holds; fail with `what` when it takes too long."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.02)


class Watched:
    """A page, what it prints, and what its console complains of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.printed: list[str] = []
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._console(message.type, message.text))

    def _console(self, kind: str, text: str) -> None:
        (self.complaints if kind in ("error", "warning") else self.printed).append(text)

    async def shows(self, wanted: list[str], place: str) -> None:
        """Wait until the page has printed these lines and no others."""

        def story() -> str:
            return f"{place}: prints {self.printed}, complains {self.complaints}"

        expected = pattern("\n".join(wanted))
        await until(lambda: len(self.printed) >= len(wanted) or bool(self.complaints), story)
        assert expected.fullmatch("\n".join(self.printed)), story()


@asynccontextmanager
async def example(running: Browser, port: str, source: str, backend: str) -> AsyncIterator[Watched]:
    """Run a module in a page of the node, under the policy that the node sends with its pages.

    What the page asks of its own server goes to the `backend`, as a proxy before both would do it.
    """
    origin = f"http://127.0.0.1:{port}"
    page = await running.new_page()
    watched = Watched(page)

    async def script(route: Route) -> None:
        await route.fulfill(body=source, content_type="text/javascript; charset=utf-8")

    async def forward(route: Route) -> None:
        await route.fulfill(response=await route.fetch(url=f"{backend}/galecast-token"))

    try:
        await page.route(f"{origin}/example.js", script)
        await page.route(f"{origin}/galecast-token", forward)
        await page.goto(f"{origin}/docs")
        await page.evaluate(_ADD)
        yield watched
    finally:
        await page.close()
