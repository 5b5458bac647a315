"""The page at `/` in a real browser, as somebody sees it who has just started a node."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page

from chromium import MISSING, browser_page, browsing, open_page, publish, until
from processes import ROOT, ServerProcess

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
LOBBY = "chat.lobby"
MARKUP = "<img src=x onerror=alert(1)>"
CONNECTED = "document.getElementById('state').textContent.startsWith('Connected over ')"
SHOWN = "(text) => document.getElementById('messages').innerText.includes(text)"
HERE = "(name) => document.getElementById('members').innerText.includes(name)"
OUTCOME = "(text) => document.getElementById('outcome').textContent.includes(text)"
VALUES = "[...document.querySelectorAll('.now .value')].map((each) => each.textContent)"
# So many that their list has to be scrolled.
CROWD = """
async (channel) => {
  const { connect } = await import("/static/galecast.js");
  await Promise.all(Array.from({ length: 25 }, (_, n) => {
    const subscription = connect().subscribe(channel, () => {});
    return subscription.ready.then(() => subscription.setPresence({ name: `somebody ${n}` }));
  }));
}
"""
# The cut lasts at least until a test lets the page come back, however long that takes.
HOLD = """
(() => {
  const real = setTimeout;
  window.held = false;
  window.setTimeout = (work, delay, ...more) => {
    if (work.name !== "countDown") return real(work, delay, ...more);
    const wait = () => (held ? real(wait, 20) : work(...more));
    return real(wait, delay);
  };
})()
"""
# What a button and the line for who cannot see it say, which is not for long.
NOTE_TOLD = """
(button) => {
  const said = document.getElementById("said");
  window.told = [];
  const note = () => told.push([button.textContent, said.textContent]);
  for (const each of [button, said]) new MutationObserver(note).observe(each, { childList: true });
}
"""
NOTE = "(text) => document.getElementById('readings-note').innerText.includes(text)"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--dev", "--readings") as running:
        yield running


async def cut(page: Page) -> None:
    """Cut the connection of a page until `come_back`, and for five seconds at least."""
    await page.evaluate(HOLD)
    await page.evaluate("window.held = true")
    await page.click("#cut")


async def come_back(page: Page) -> None:
    await page.evaluate("window.held = false")


@asynccontextmanager
async def demo(server: ServerProcess, **context: Any) -> AsyncIterator[tuple[Page, list[str]]]:
    """Open the page, connected."""
    async with browser_page(server.url, **context) as (page, complaints):
        await until(page, CONNECTED)
        yield page, complaints


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program; it is killed when the block ends, if it has not ended."""
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=null, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def lines_until(stream: Any, text: str) -> None:
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"no line holds {text}")


async def say(page: Page, text: str) -> None:
    await page.fill("#text", text)
    await page.press("#text", "Enter")


async def name(page: Page, text: str) -> None:
    await page.fill("#name", text)
    await page.press("#name", "Tab")


async def test_the_page_works_at_once() -> None:
    """A node just started, no reload, nothing else: readings move, and nothing is complained of."""
    with ServerProcess("--dev", "--readings") as server:
        async with demo(server) as (page, complaints):
            await until(page, f"{VALUES}.every((text) => /\\d/.test(text))")
            # A line, not only a point.
            await until(page, "/L/.test(document.querySelector('path.line').getAttribute('d'))")
            await until(
                page, "/^[\\d.]+ ms$/.test(document.getElementById('round-trip').innerText)"
            )
            await until(page, "/^[1-9]|0\\.[1-9]/.test(document.getElementById('rate').innerText)")
            assert await page.inner_text("#state") == "Connected over WebSocket"
            assert (await page.inner_text("#node")).startswith("node-")
            assert not await page.is_visible("#readings-note")
            assert not await page.is_visible("#late-key")
            assert complaints == []


async def test_two_pages_see_each_other_and_talk(server: ServerProcess) -> None:
    async with browsing() as browser:
        (one, first), (two, second) = [await open_page(browser, server.url) for _ in range(2)]
        await name(one, "Ada of one")
        await name(two, "Bob of two")
        for page in (one, two):
            await until(page, HERE, "Ada of one")
            await until(page, HERE, "Bob of two")
        assert "Ada of one (you)" in await one.inner_text("#members")
        assert "Ada of one (you)" not in await two.inner_text("#members")
        await say(one, "hello from one")
        await until(two, SHOWN, "hello from one")
        await until(two, SHOWN, "Ada of one")
        await say(two, "and back")
        await until(one, SHOWN, "and back")
        # Once, and no longer as one that waits to be sent.
        assert (await one.inner_text("#messages")).count("hello from one") == 1
        await until(one, "document.querySelector('.waiting') === null")
        await name(two, "Bob renamed")
        await until(one, HERE, "Bob renamed")
        await two.context.close()
        await until(
            one, "(name) => !document.getElementById('members').innerText.includes(name)", "Bob"
        )
        assert (first, second) == ([], [])


async def test_the_name_is_kept_for_the_next_visit(server: ServerProcess) -> None:
    async with demo(server) as (page, complaints):
        given = await page.input_value("#name")
        assert given, "a name to begin with"
        await name(page, "Kept")
        await page.reload()
        await until(page, HERE, "Kept (you)")
        assert await page.input_value("#name") == "Kept"
        # Without a name nobody can be spoken to.
        await name(page, "   ")
        assert (await page.input_value("#name")).strip()
        assert complaints == []


async def test_markup_stays_text(server: ServerProcess) -> None:
    async with demo(server) as (page, complaints):
        await name(page, MARKUP)
        await say(page, MARKUP)
        for data in (
            {"text": f"text {MARKUP}", "from": f"by {MARKUP}"},
            {"other": MARKUP},
            [MARKUP],
            None,
            {"text": {"a": 1}, "from": {}},
        ):
            await publish(page, LOBBY, data)
        await until(page, SHOWN, '{"text":{"a":1},"from":{}}')
        shown = await page.inner_text("#messages")
        for text in (
            f"text {MARKUP}",
            f"by {MARKUP}",
            f'{{"other":"{MARKUP}"}}',
            f'["{MARKUP}"]',
        ):
            assert text in shown
        await until(page, HERE, MARKUP)
        assert await page.query_selector("img") is None
        assert complaints == []


async def test_what_is_all_too_long_is_cut(server: ServerProcess) -> None:
    async with demo(server) as (page, _):
        await publish(page, LOBBY, {"text": "x" * 5000 + "end", "from": "y" * 5000})
        await until(page, SHOWN, "x" * 100)
        shown = await page.inner_text("#messages li:last-child")
        assert len(shown) < 700
        assert "end" not in shown
        assert "…" in shown


async def test_readings_that_are_none_do_no_harm() -> None:
    none: tuple[Any, ...] = (
        {"load": "high", "cpus": -1},
        {"cpu": 1e300, "memory_used_bytes": "x"},
        {"cpus": 1e9, "memory_used_bytes": 1e300, "network_in_bytes_s": 1e308},
        [],
        None,
    )
    with ServerProcess("--dev") as server:
        async with demo(server) as (page, complaints):
            for data in none:
                await publish(page, "machine.readings", data, "reading")
            await until(page, f"{VALUES}.join() === '0.00,0 B,0 B/s in'")
            paths = "[...document.querySelectorAll('path[d]')].map((path) => path.outerHTML).join()"
            assert "NaN" not in await page.evaluate(paths)
            assert complaints == []


async def test_more_load_than_cpus_leaves_the_label_free() -> None:
    """The line of a load over the count of CPUs ran through their label."""
    extents = """
    () => ["mark", "line", "rule"].map((name) => {
      const { top, bottom } = document.querySelector(`.strip .${name}`).getBoundingClientRect();
      return [top, bottom];
    })
    """
    with ServerProcess("--dev") as server:
        async with demo(server, viewport={"width": 1280, "height": 900}) as (page, complaints):
            for load in (1.0, 9.75, 13.25, 10.0):
                reading = {"load": [load, 10.25, 1.0], "cpus": 2, "cpu": 1}
                await publish(page, "machine.readings", reading, "reading")
            await until(page, f"{VALUES}[0] === '10.00'")
            assert await page.text_content(".strip .mark") == "··· 2 CPUs"
            mark, line, rule = await page.evaluate(extents)
            assert mark[1] <= line[0] < rule[0]
            # All that is said of it stays in one line.
            assert await page.inner_text(".detail") == "CPU 100 % · 10.25 in 5 min"
            lines = "document.querySelector('.detail').getClientRects().length"
            assert await page.evaluate(lines) == 1
            assert complaints == []


async def test_what_was_missed_comes_back_and_is_counted(server: ServerProcess) -> None:
    async with browsing() as browser:
        page, complaints = await open_page(browser, server.url)
        other, _ = await open_page(browser, server.url)
        for each in (page, other):
            await until(each, CONNECTED)
            await until(each, f"{VALUES}.every((text) => /\\d/.test(text))")
        began = time.monotonic()
        await cut(page)
        await until(page, "document.body.dataset.state === 'paused'")
        assert (await page.inner_text("#cut")).startswith("Back in ")
        # To press again does nothing. (A click of the driver's would wait until it does.)
        await page.dispatch_event("#cut", "click")
        for number in range(3):
            await say(other, f"meanwhile {number}")
            await until(other, SHOWN, f"meanwhile {number}")
        # What one says meanwhile oneself is said once there is a connection.
        await say(page, "mine, later")
        await until(page, "document.querySelector('.waiting') !== null")
        assert "meanwhile" not in await page.inner_text("#messages")
        await come_back(page)
        await until(page, OUTCOME, "None is missing.")
        most = time.monotonic() - began
        outcome = await page.inner_text("#outcome")
        assert " and 3 messages missed while cut off came back, in order." in outcome
        # One a second for five seconds, or more on a machine that is busy.
        assert 3 <= int(outcome.split()[0]) <= most + 2
        late = await page.locator(".message.late .said").all_inner_texts()
        assert late == ["meanwhile 0", "meanwhile 1", "meanwhile 2"]
        assert await page.locator(".message.late .tag").count() == 3
        assert await page.is_visible("#late-key")
        await until(page, "document.querySelector('.late-line').getAttribute('d') !== ''")
        await until(other, SHOWN, "mine, later")
        await until(page, "document.querySelector('.waiting') === null")
        assert (await page.inner_text("#cut")).startswith("Cut the connection")
        # The other page was never cut off.
        assert await other.locator(".message.late").count() == 0
        assert await other.evaluate("document.querySelector('.late-line').getAttribute('d')") == ""
        assert complaints == []


async def test_what_cannot_be_continued_is_told() -> None:
    """The node is killed, and a new one knows nothing of the old one's channels."""
    with ServerProcess("--dev", "--readings") as server:
        async with demo(server) as (page, _):
            await say(page, "before")
            await until(page, SHOWN, "before")
            server.signal(signal.SIGKILL)
            await asyncio.to_thread(server.wait)
            await until(page, "document.body.dataset.state !== 'connected'")
            port = str(server.port)
            with ServerProcess("--dev", "--readings", "--port", port):
                await until(page, OUTCOME, "could not be continued")
                outcome = await page.inner_text("#outcome")
                assert "reset" in outcome
                assert "None is missing" not in outcome
                await until(page, SHOWN, "Messages may be missing here")
                await say(page, "after")
                await until(page, SHOWN, "after")
                await until(page, "document.querySelector('.waiting') === null")


async def test_where_no_websocket_can_be_had(server: ServerProcess) -> None:
    async with browsing() as browser:
        context = await browser.new_context()
        await context.add_init_script("delete window.WebSocket")
        page = await context.new_page()
        await page.goto(server.url)
        await until(page, "document.getElementById('state').textContent.includes('Server-Sent')")
        await until(page, f"{VALUES}.every((text) => /\\d/.test(text))")
        await say(page, "over plain HTTP")
        await until(page, SHOWN, "over plain HTTP")
        await until(page, "document.querySelector('.waiting') === null")
        await until(page, "/ ms$/.test(document.getElementById('round-trip').textContent)")
        await page.click("#cut")
        await until(page, OUTCOME, "None is missing.")


async def test_without_readings_it_says_how_to_get_them() -> None:
    with ServerProcess("--dev") as server:
        async with demo(server) as (page, complaints):
            command = f"galecast readings --dev --url {server.url}"
            await until(page, NOTE, command)
            with running(sys.executable, "-m", "server.cli", *command.split()[1:]) as publisher:
                await until(page, "document.getElementById('readings-note').hidden")
                publisher.send_signal(signal.SIGINT)
                assert publisher.wait(10) == 0
            assert complaints == []


async def test_a_node_that_takes_no_anonymous_clients() -> None:
    environ = {
        "GALECAST_DEMO": "true",
        "GALECAST_TOKEN_SECRET": "a secret of at least 32 bytes here",
    }
    # The page's origin has to be known, and with it the port.
    with ServerProcess("--dev") as server:
        port = server.port
    environ["GALECAST_ORIGINS"] = f"http://127.0.0.1:{port}"
    with ServerProcess("--host", "127.0.0.1", "--port", str(port), environ=environ) as server:
        async with browser_page(server.url) as (page, complaints):
            await page.wait_for_selector("#notice", state="visible")
            assert "takes no anonymous clients" in await page.inner_text("#notice")
            assert await page.inner_text("#state") == "Refused"
            assert not await page.is_visible("#lobby-title")
            assert complaints == []


async def test_the_copied_lines_work(server: ServerProcess) -> None:
    context = {"permissions": ["clipboard-read", "clipboard-write"]}
    async with demo(server, **context) as (page, complaints):
        copied = []
        for place in ("publish", "receive"):
            button = page.locator(".command", has=page.locator(f"#curl-{place}")).locator("button")
            await button.evaluate(NOTE_TOLD)
            await button.click()
            await until(page, "told.some((texts) => texts.join() === 'Copied,Copied')")
            copied.append(await page.evaluate("navigator.clipboard.readText()"))
            assert copied[-1] == await page.inner_text(f"#curl-{place}")
            await until(page, "document.getElementById('said').textContent === ''")
            assert await button.inner_text() == "Copy"
        send, receive = copied
        with running("sh", "-c", f"exec {receive}") as curl:
            # The first block says where the stream begins: from then on nothing is missed.
            await asyncio.to_thread(lines_until, curl.stdout, '"subscribed"')
            done = await asyncio.to_thread(
                subprocess.run, ["sh", "-c", send], capture_output=True, text=True
            )
            assert json.loads(done.stdout)["channel"] == LOBBY
            await asyncio.to_thread(lines_until, curl.stdout, "Hello from a terminal")
        await until(page, SHOWN, "Hello from a terminal")
        await until(page, SHOWN, "curl")
        assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 820, 1280])
async def test_every_width_in_light_and_dark(
    server: ServerProcess, width: int, scheme: str
) -> None:
    context = {"viewport": {"width": width, "height": 740}, "color_scheme": scheme}
    async with demo(server, **context) as (page, complaints):
        await say(page, "w" * 400)
        await until(page, SHOWN, "w" * 400)
        assert await page.evaluate("document.documentElement.scrollWidth") == width
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")
        assert complaints == []


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: npm ci in tests/browser")
@pytest.mark.parametrize(
    "context",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark", "viewport": {"width": 360, "height": 740}},
    ],
)
async def test_axe_finds_nothing(server: ServerProcess, context: dict[str, Any]) -> None:
    async with demo(server, reduced_motion="reduce", **context) as (page, _):
        await say(page, "something to look at")
        await until(page, SHOWN, "something to look at")
        await page.evaluate(CROWD, LOBBY)
        await until(page, HERE, "somebody 24")
        await cut(page)
        await say(page, "this one waits")
        await until(page, "document.querySelector('.waiting') !== null")
        await page.evaluate("for (const running of document.getAnimations()) running.finish()")
        # Evaluated by the driver, which the page's policy does not concern.
        await page.evaluate(AXE.read_text() + "; 0")
        for moment in ("document.querySelector('.waiting') !== null", None):
            if moment is None:
                await come_back(page)
                await until(page, OUTCOME, "None is missing.")
            else:
                assert await page.evaluate(moment)
            found = await page.evaluate("axe.run()")
            flaws = [(each["id"], each["impact"], each["nodes"]) for each in found["violations"]]
            assert flaws == []
            assert len(found["passes"]) > 20


async def test_it_can_be_used_by_keyboard_alone(server: ServerProcess) -> None:
    wanted = ["HTTP API", "cut", "name", "members", "log", "text", "Send", "Copy", "Copy"]
    async with demo(server) as (page, _):
        for each in wanted:
            await page.keyboard.press("Tab")
            active = "document.activeElement"
            assert await page.evaluate(f"{active}.id || {active}.textContent") == each
            assert await page.evaluate(f"getComputedStyle({active}).outlineStyle") != "none", each


async def test_nothing_moves_for_who_wants_no_motion(server: ServerProcess) -> None:
    async with demo(server, reduced_motion="reduce") as (page, complaints):
        await until(page, f"{VALUES}.every((text) => /\\d/.test(text))")
        await page.evaluate(
            """
            window.gusts = 0;
            const wind = document.getElementById("wind");
            const look = () => (gusts += wind.querySelectorAll(".gust").length);
            new MutationObserver(look).observe(wind, { childList: true });
            """
        )
        await publish(page, LOBBY, {"text": "still", "from": "test"})
        await until(page, SHOWN, "still")
        assert await page.evaluate("gusts") == 0
        assert complaints == []
