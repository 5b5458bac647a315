"""The programs of docs/clients.md do what it says: in a browser, in Node.js, in Python.

Blocks of `js` are run as modules in a page of a node. What they print stands in their comments,
`prints:`; those without an `import` go on from the document's first lines. Blocks whose first line
is a comment with a name are files. The other commands of the document are run by test_docs.py.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from chromium import MISSING, browsing
from cutting_proxy import CuttingProxy
from doc_browser import BEGINNING, Watched, example, until
from doc_shell import APP_PORT, PORT, WAIT_S, Server, Shell, reader, wait_for
from doc_text import ROOT, Block, blocks, file_name, is_of_node, prints
from redis_server import free_port

CLIENTS = "docs/clients.md"
PACKAGES = ROOT / "tests/browser/node_modules"
in_a_browser = pytest.mark.skipif(bool(MISSING), reason=MISSING)
MISSED = "events are missing..."


def named(name: str) -> Block:
    (block,) = [block for block in blocks(CLIENTS) if file_name(block) == name]
    return block


def command(start: str) -> str:
    """The command of the document that begins so."""
    lines = [line for b in blocks(CLIENTS) if b.language == "sh" for line in b.text.splitlines()]
    (found,) = [line for line in lines if line.startswith(start)]
    return found


@contextmanager
def running(folder: Path, arguments: list[str]) -> Iterator[Callable[[], str]]:
    """Run a Python program that goes on; gives what it has written so far."""
    path = folder / "program.out"
    with path.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-u", *arguments], cwd=folder, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield path.read_text
        assert process.poll() is None, path.read_text()
    finally:
        process.terminate()
        process.wait(WAIT_S)


@contextmanager
def backend(shell: Shell) -> Iterator[str]:
    """The document's own server, which knows who is logged in; gives its address."""
    port = str(free_port())
    path = shell.write("backend.py", named("backend.py"))
    path.write_text(path.read_text().replace(APP_PORT, port))

    def listening() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(port))) == 0

    with running(shell.folder, [str(path)]) as seen:
        wait_for(listening, seen)
        yield f"http://127.0.0.1:{port}"


# ---- pages

EXAMPLES = [
    block
    for document in (CLIENTS, "README.md")
    for block in blocks(document)
    if block.language == "js" and file_name(block) is None
]
# What EXAMPLES without an import of their own go on from.
GOES_ON = re.compile(r"\bconnection\.")


def module(block: Block) -> str:
    goes_on = GOES_ON.search(block.text) and "import " not in block.text
    return f"{BEGINNING}\n{block.text}" if goes_on else block.text


@in_a_browser
async def test_every_example_prints_what_it_says(tmp_path: Path) -> None:
    assert EXAMPLES[0].text.replace("\n\n", "\n").startswith(BEGINNING)
    with reader(tmp_path) as shell, backend(shell) as own:
        async with browsing() as chromium:
            for block in EXAMPLES:
                wanted = prints(block)
                assert wanted, f"{block.place}: nothing would show that it does anything"
                async with example(chromium, shell.server.port, module(block), own) as page:
                    await page.shows(wanted, block.place)
                    assert page.complaints == [], block.place


@in_a_browser
async def test_a_false_example_is_noticed(tmp_path: Path) -> None:
    """Both are compared: what is printed, and what the console complains of."""
    with reader(tmp_path) as shell:
        async with browsing() as chromium:
            async with example(chromium, shell.server.port, "console.log(1)", "") as page:
                with pytest.raises(AssertionError, match=r"prints \['1'\]"):
                    await page.shows(["2"], "x")
            async with example(chromium, shell.server.port, "eval('1')", "") as page:
                with pytest.raises(AssertionError, match="Content Security Policy"):
                    await page.shows(["1"], "x")


class Away:
    """What clients miss while they are away, and how they come back."""

    def __init__(self, proxy: CuttingProxy, server: Server, channel: str) -> None:
        self._proxy = proxy
        self._server = server
        self._channel = channel

    @asynccontextmanager
    async def gone(self) -> AsyncIterator[None]:
        """Cut the clients off, and let them try in vain as long as the block runs."""
        with self._proxy.down():
            await until(lambda: self._server.subscriptions() == 0, self._server.log)
            yield

    def publish(self, data: object) -> None:
        event = {"channel": self._channel, "name": "created", "data": data}
        self._server.request("POST", "/v1/events", event)

    def purge(self) -> None:
        """Delete what the channel keeps: nobody can be told what it was."""
        self._server.request("DELETE", f"/v1/channels/{self._channel}/events")


@asynccontextmanager
async def chat(folder: Path) -> AsyncIterator[tuple[list[Page], Away]]:
    """Two windows of the document's chat, served as it says; their console stays clean."""
    serve = command("python3 -m http.server").split()[1:-1]
    site = folder / "site"
    site.mkdir()
    # Browsers ask for an icon that no page names.
    (site / "favicon.ico").touch()
    with running(folder, [*serve, "--directory", str(site), "0"]) as seen:
        await until(lambda: " port " in seen(), seen)
        found = re.search(r" port (\d+)", seen())
        assert found is not None
        port = found[1]
        name, origin = command("GALECAST_ORIGINS=").split()[0].split("=")
        async with CuttingProxy() as proxy:
            with reader(folder, {name: origin.replace(APP_PORT, port)}) as shell:
                proxy.target = int(shell.server.port)
                for file in ("chat.html", "chat.js"):
                    (site / file).write_text(named(file).text.replace(PORT, str(proxy.port)))
                async with browsing() as chromium:
                    pages = [await chromium.new_page() for _ in range(2)]
                    watched = [Watched(page) for page in pages]
                    for page in pages:
                        await page.goto(f"http://127.0.0.1:{port}/chat.html")
                        await expect(page.locator("#state")).to_have_text("connected")
                    yield pages, Away(proxy, shell.server, "chat.lobby")
                    told = [text for each in watched for text in each.complaints]
                    # That a connection failed stands there, whatever a page does.
                    assert [text for text in told if "ERR_" not in text] == []


@in_a_browser
async def test_the_chat_is_complete(tmp_path: Path) -> None:
    async with chat(tmp_path) as (pages, away):
        ann, bob = pages

        async def both_show(messages: list[str], members: list[str]) -> None:
            for page in pages:
                await expect(page.locator("#messages li")).to_have_text(messages)
                await expect(page.locator("#members li")).to_have_text(members)

        await both_show([], ["guest", "guest"])
        await ann.fill("#name", "Ann")
        await ann.fill("#text", "<b>hello</b>")
        await ann.press("#text", "Enter")
        await both_show(["Ann: <b>hello</b>"], ["Ann", "guest"])
        await bob.reload()
        await both_show(["Ann: <b>hello</b>"], ["Ann", "guest"])
        async with away.gone():
            await ann.fill("#text", "still there?")
            await ann.press("#text", "Enter")
            away.publish({"name": "Cy", "text": "late"})
        said = ["Ann: <b>hello</b>", "Cy: late", "Ann: still there?"]
        await both_show(said, ["Ann", "guest"])
        async with away.gone():
            away.publish({"name": "Cy", "text": "gone"})
            away.purge()
        await both_show(["(messages may be missing here)"], ["Ann", "guest"])


# ---- the same without the library


async def check_resumes(away: Away, printed: Callable[[], list[str]], form: str) -> None:
    """A client gets what it missed, once, and is told of what is lost."""
    before = printed()

    async def shows(*lines: str) -> None:
        wanted = [*before, *lines]
        await until(lambda: len(printed()) >= len(wanted), printed)
        assert [MISSED if line.startswith(MISSED[:-3]) else line for line in printed()] == wanted

    async with away.gone():
        away.publish(1)
        away.publish(2)
    one, two = form.format(1), form.format(2)
    await shows(one, two)
    async with away.gone():
        away.publish(3)
        away.purge()
    await shows(one, two, MISSED)
    away.publish(4)
    await shows(one, two, MISSED, form.format(4))


async def check_begins_anew(away: Away, page: Watched) -> None:
    """Once EventSource has given up it is not the browser any more that resumes."""
    before = list(page.printed)
    await page.page.route("**/v1/sse?*", lambda route: route.fulfill(status=503), times=1)
    async with away.gone():
        away.publish(5)
    await until(lambda: len(page.printed) > len(before), lambda: page.printed)
    assert page.printed == [*before, "5"]
    assert any("503" in text for text in page.complaints), "it did not give up"


@in_a_browser
@pytest.mark.parametrize("kind", ["WebSocket", "EventSource"])
async def test_what_a_plain_page_missed_comes_back(kind: str, tmp_path: Path) -> None:
    (block,) = [block for block in EXAMPLES if f"new {kind}(" in block.text]
    found = re.search(r'channel: "([\w.]+)"', block.text)
    assert found is not None
    async with CuttingProxy() as proxy:
        origin = f"http://127.0.0.1:{proxy.port}"
        with (
            reader(tmp_path, {"GALECAST_ORIGINS": origin}) as shell,
            backend(shell) as own,
        ):
            proxy.target = int(shell.server.port)
            async with (
                browsing() as chromium,
                example(chromium, str(proxy.port), block.text, own) as page,
            ):
                await page.shows(prints(block), block.place)
                away = Away(proxy, shell.server, found[1])
                await check_resumes(away, lambda: list(page.printed), "{}")
                if kind == "EventSource":
                    await check_begins_anew(away, page)


async def test_what_the_python_program_missed_comes_back(tmp_path: Path) -> None:
    async with CuttingProxy() as proxy:
        with reader(tmp_path) as shell:
            proxy.target = int(shell.server.port)
            text = named("follow.py").text.replace(PORT, str(proxy.port))
            with running(tmp_path, ["-c", text]) as seen:

                def printed() -> list[str]:
                    lines = seen().splitlines()
                    return [line for line in lines if not line.startswith("lost: ")]

                await until(lambda: shell.server.subscriptions() == 1, seen)
                away = Away(proxy, shell.server, "orders.eu")
                away.publish(0)
                await until(lambda: printed() == ["created 0"], seen)
                await check_resumes(away, printed, "created {}")


# ---- Node.js


def test_the_programs_of_node_run(tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("there is no Node.js on this machine")
    if not PACKAGES.is_dir():
        pytest.skip("the packages of tests/browser are not installed (npm ci)")
    # What `npm install` of the document would bring.
    packages = tmp_path / "node_modules"
    packages.mkdir()
    for name, folder in (
        ("galecast", ROOT / "static"),
        ("ws", PACKAGES / "ws"),
        ("@msgpack", PACKAGES / "@msgpack"),
    ):
        os.symlink(folder, packages / name)
    found = [block for block in blocks(CLIENTS) if is_of_node(block)]
    assert found
    with reader(tmp_path) as shell:
        for block in found:
            shell.run_block(block)
