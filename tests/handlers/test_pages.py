"""Pages and what they load: nothing from elsewhere, nothing outside, nothing stale."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import static
from handlers.pages import load_assets
from nodes import serving

FOLDER = Path(static.__file__).parent


async def test_the_docs_page_and_all_that_it_loads() -> None:
    async with serving() as served:
        page = await served.ask("GET", "/docs", bearer=None)
        assert page.status == 200
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = page.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert page.headers["Referrer-Policy"] == "no-referrer"
        loaded = re.findall(r'(?:src|href)="([^"#]+)"', page.body.decode())
        assert "/static/docs.js" in loaded
        for address in loaded:
            assert (await served.ask("GET", address, bearer=None)).status == 200


async def test_a_page_s_own_modules_are_loaded_with_an_origin() -> None:
    """Chromium sends Origin for `<script type="module">` of the same site: it was refused."""
    async with serving() as served:
        headers = {"Origin": served.url}
        for path in ("/static/docs.js", "/openapi.json"):
            answer = await served.ask("GET", path, bearer=None, headers=headers)
            assert answer.status == 200
            assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("name", [path.name for path in FOLDER.glob("*.html")])
def test_pages_have_nothing_inline_and_nothing_from_elsewhere(name: str) -> None:
    class Look(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            for attribute, value in attrs:
                assert not attribute.startswith("on")
                assert attribute != "style"
                assert not (attribute in ("src", "href") and "//" in (value or ""))
            assert tag != "style"
            assert tag != "script" or any(attribute == "src" for attribute, _ in attrs)

    Look().feed((FOLDER / name).read_text())


def test_scripts_never_make_markup_of_text() -> None:
    for path in FOLDER.glob("*.*js"):
        script = path.read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in script, path.name


async def test_a_file_that_the_browser_has_already() -> None:
    async with serving() as served:
        for path in ("/static/docs.js", "/docs", "/openapi.json"):
            first = await served.ask("GET", path, bearer=None)
            assert first.headers["Cache-Control"] == "no-cache"
            headers = {"If-None-Match": first.headers["Etag"]}
            again = await served.ask("GET", path, bearer=None, headers=headers)
            assert (again.status, again.body) == (304, b"")
            assert again.headers["Etag"] == first.headers["Etag"]
            other = await served.ask("GET", path, bearer=None, headers={"If-None-Match": '"x"'})
            assert other.status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/nothing.js",
        "/static/__init__.py",
        "/static/py.typed",
        "/static/..",
        "/static/../pyproject.toml",
        "/static/..%2Fpyproject.toml",
        "/static/%2Fetc%2Fpasswd",
        "/static/docs.js%00",
        "/static/docs.html",
        "/static/openapi.json",
        "/static/sub/docs.js",
    ],
)
async def test_what_is_not_there_to_be_loaded(path: str) -> None:
    async with serving() as served:
        answer = await served.ask("GET", path, bearer=None)
        assert answer.status == 404
        assert answer.json["code"] == "not_found"


async def test_the_page_at_the_root_is_shown_only_where_wanted() -> None:
    async with serving() as served:
        assert (await served.ask("GET", "/", bearer=None)).status == 404
    async with serving(demo=True) as served:
        answer = await served.ask("GET", "/", bearer=None)
        assert answer.status == 200
        assert b"<!doctype html>" in answer.body


def test_only_what_a_browser_loads_is_read(tmp_path: Path) -> None:
    for name in ("a.js", "b.py", "c.svg", "d"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "e.js").mkdir()
    assets = load_assets(tmp_path)
    assert {name: each.media_type for name, each in assets.items()} == {
        "a.js": "text/javascript; charset=utf-8",
        "c.svg": "image/svg+xml",
    }
