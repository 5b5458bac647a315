"""Take the pictures that the documents show, from the running product: `make screenshots`.

A node in development mode with its readings, people who write to each other, and one whose
connection is cut for a while: the page then shows what was missed and came back.
"""

import argparse
import asyncio
import json
import sys
import time
import urllib.request
from pathlib import Path

from playwright.async_api import Browser, Page

from chromium import MISSING, browsing, open_page, until
from processes import ROOT, ServerProcess

# Name and scheme of each picture, and who looks at the page then.
VIEWS = (("demo-light", "light", "Mistral"), ("demo-dark", "dark", "Zephyr"))
SIZE = {"width": 1280, "height": 1000}
SAID = (
    (0, "Does anybody else see the load go up?"),
    (1, "Only while the build runs."),
)
MISSED = ("Build is through. You get this a little later.", "So this one, <b>as text</b>.")
NAME = "localStorage.setItem('galecast.name', %s)"


async def visit(browser: Browser, url: str, scheme: str, who: str) -> Page:
    """Open the page as somebody sees it."""
    look = {"viewport": SIZE, "color_scheme": scheme, "locale": "en-GB"}
    page, _ = await open_page(browser, "about:blank", **look)
    await page.add_init_script(NAME % json.dumps(who))
    await page.goto(url)
    await until(page, "document.getElementById('state').textContent.startsWith('Connected')")
    return page


def publish(url: str, text: str) -> None:
    """Say something in the lobby, as a program does."""
    event = {"channel": "chat.lobby", "data": {"text": text, "from": "curl"}}
    request = urllib.request.Request(
        url + "/v1/events",
        json.dumps(event).encode(),
        {"Authorization": "Bearer dev.galecast"},
    )
    urllib.request.urlopen(request).close()


async def take(folder: Path, seconds: float) -> None:
    """Take all pictures into `folder`, once the readings of so many seconds are there."""
    began = time.monotonic()
    with ServerProcess("--dev", "--readings") as server:
        async with browsing() as browser:
            pages = [await visit(browser, server.url, scheme, who) for _, scheme, who in VIEWS]
            await asyncio.sleep(max(0.0, began + seconds - 12 - time.monotonic()))
            for place, text in SAID:
                await pages[place].fill("#text", text)
                await pages[place].press("#text", "Enter")
            for page in pages:
                await until(page, "(text) => document.body.innerText.includes(text)", SAID[-1][1])
                await page.click("#cut")
            await asyncio.sleep(2)
            for text in MISSED:
                publish(server.url, text)
            for page in pages:
                await until(page, "document.getElementById('outcome').textContent.includes('None')")
            await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
            for page, (name, *_) in zip(pages, VIEWS, strict=True):
                await page.screenshot(path=folder / f"{name}.png", full_page=True)


def main() -> None:
    """Read the arguments and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "docs")
    parser.add_argument("--seconds", type=float, default=75.0, help="readings on the chart")
    args = parser.parse_args()
    if MISSING:
        sys.exit(MISSING)
    asyncio.run(take(args.folder, args.seconds))


if __name__ == "__main__":
    main()
