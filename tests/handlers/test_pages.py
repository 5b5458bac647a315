"""Pages and what they load: nothing from elsewhere, nothing outside, nothing stale."""

import gzip
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import static
from handlers.pages import asset, load_assets, takes_gzip
from nodes import serving

FOLDER = Path(static.__file__).parent
PAGE = "https://app.example.com"
SCRIPT = "/static/docs.js"
GZIP = {"Accept-Encoding": "gzip, deflate, br"}


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
    # `package.json` is for those who take the module from a registry.
    for name in ("a.js", "b.py", "c.svg", "d", "a.d.ts", "package.json", "openapi.json"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "e.js").mkdir()
    assets = load_assets(tmp_path)
    assert {name: each.media_type for name, each in assets.items()} == {
        "a.js": "text/javascript; charset=utf-8",
        "a.d.ts": "text/plain; charset=utf-8",
        "c.svg": "image/svg+xml",
    }


async def test_declarations_are_shown_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "export declare const answer: 42;\n" * 10
    one = {"galecast.d.ts": asset(text.encode(), "text/plain; charset=utf-8")}
    monkeypatch.setattr("handlers.routes.load_assets", lambda: dict(one))
    async with serving() as served:
        answer = await served.ask("GET", "/static/galecast.d.ts", bearer=None)
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.body.decode() == text


# ---- compressed


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("gzip", True),
        ("deflate, GZip ;q=1.0", True),
        ("x-gzip", True),
        ("gzip;q=0.001", True),
        ("*", True),
        ("identity, *;q=0.5", True),
        ("", False),
        ("br, deflate", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("*;q=0", False),
        ("identity", False),
        ("gzipped", False),
        (";;,,=", False),
    ],
)
def test_who_takes_gzip(header: str, taken: bool) -> None:
    assert takes_gzip(header) is taken


async def test_text_is_sent_compressed_to_who_takes_it() -> None:
    async with serving(demo=True) as served:
        for path in (SCRIPT, "/static/docs.css", "/", "/docs", "/openapi.json"):
            plain = await served.ask("GET", path, bearer=None)
            packed = await served.ask("GET", path, bearer=None, headers=GZIP)
            assert "Content-Encoding" not in plain.headers
            assert packed.headers["Content-Encoding"] == "gzip"
            assert packed.headers["Content-Length"] == str(len(packed.body))
            assert len(packed.body) < len(plain.body)
            assert gzip.decompress(packed.body) == plain.body
            # A cache has to keep them apart.
            assert plain.headers["Vary"] == packed.headers["Vary"] == "Accept-Encoding"
            assert plain.headers["Etag"] != packed.headers["Etag"]
            assert plain.headers["Content-Type"] == packed.headers["Content-Type"]
            head = await served.ask("HEAD", path, bearer=None, headers=GZIP)
            assert head.headers["Content-Length"] == str(len(packed.body))
            again = GZIP | {"If-None-Match": packed.headers["Etag"]}
            known = await served.ask("GET", path, bearer=None, headers=again)
            assert (known.status, known.body) == (304, b"")
            assert known.headers["Vary"] == "Accept-Encoding"
            assert "Content-Encoding" not in known.headers
            other = {"If-None-Match": packed.headers["Etag"]}
            assert (await served.ask("GET", path, bearer=None, headers=other)).status == 200


def test_what_does_not_get_smaller_stays_as_it_is() -> None:
    assert asset(b"x", "text/plain").gzipped is None
    assert asset(b"\0" * 1_000, "image/x-icon").gzipped is None
    first, second = asset(b"x" * 1_000, "text/css"), asset(b"x" * 1_000, "text/css")
    assert first == second and first.gzipped is not None


async def test_a_file_that_is_not_compressed_does_not_vary() -> None:
    async with serving() as served:
        answer = await served.ask("GET", "/static/icon.svg", bearer=None)
        small = load_assets()["icon.svg"].gzipped is None
        assert ("Vary" not in answer.headers) is small


# ---- kept


async def test_a_file_may_be_kept_for_ever_at_the_address_of_its_version() -> None:
    async with serving() as served:
        for headers in ({}, GZIP):
            plain = await served.ask("GET", SCRIPT, bearer=None, headers=headers)
            assert plain.headers["Cache-Control"] == "no-cache"
            tag = plain.headers["Etag"].strip('"')
            kept = await served.ask("GET", f"{SCRIPT}?v={tag}", bearer=None, headers=headers)
            assert kept.headers["Cache-Control"] == "public, max-age=31536000, immutable"
            assert kept.headers["Etag"] == plain.headers["Etag"]
            assert kept.body == plain.body
            known = headers | {"If-None-Match": plain.headers["Etag"]}
            again = await served.ask("GET", f"{SCRIPT}?v={tag}", bearer=None, headers=known)
            assert again.status == 304
            assert again.headers["Cache-Control"] == kept.headers["Cache-Control"]


@pytest.mark.parametrize("query", ["v=", "v=x", "v=%FF", "v={other}", "w={own}", "v={own}&v=x"])
async def test_another_version_is_not_kept(query: str) -> None:
    """During a roll-out the page of one node asks another node for what it loads."""
    async with serving() as served:
        assets = load_assets()
        query = query.format(own=assets["docs.js"].tag, other=assets["docs.css"].tag)
        answer = await served.ask("GET", f"{SCRIPT}?{query}", bearer=None)
        assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-cache")


async def test_pages_have_no_versions() -> None:
    async with serving() as served:
        for path in ("/docs", "/openapi.json"):
            tag = (await served.ask("GET", path, bearer=None)).headers["Etag"].strip('"')
            answer = await served.ask("GET", f"{path}?v={tag}", bearer=None)
            assert answer.headers["Cache-Control"] == "no-cache"
        answer = await served.ask("GET", "/static/nothing.js?v=x", bearer=None)
        assert (answer.status, answer.headers["Cache-Control"]) == (404, "no-store")


# ---- pages elsewhere


async def test_an_allowed_page_elsewhere_imports_the_module() -> None:
    async with serving(origins=(PAGE,)) as served:
        for headers in ({"Origin": PAGE}, {"Origin": PAGE} | GZIP):
            answer = await served.ask("GET", SCRIPT, bearer=None, headers=headers)
            assert answer.status == 200
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE
            assert answer.headers["Vary"] == "Origin,Accept-Encoding"
            known = headers | {"If-None-Match": answer.headers["Etag"]}
            again = await served.ask("GET", SCRIPT, bearer=None, headers=known)
            assert again.status == 304
            # The browser updates what it has kept with these.
            assert again.headers["Access-Control-Allow-Origin"] == PAGE
        # All others are hindered by the browser; what is served is no secret.
        for origin in ("https://evil.com", "null"):
            answer = await served.ask("GET", SCRIPT, bearer=None, headers={"Origin": origin})
            assert answer.status == 200
            assert "Access-Control-Allow-Origin" not in answer.headers
            assert answer.headers["Vary"] == "Origin,Accept-Encoding"
