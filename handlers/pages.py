"""How do bytes go out? This file: the pages that a browser opens, and what they load."""

import gzip
import re
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

from tornado.web import HTTPError

import static
from handlers.base import BaseHandler
from handlers.media import JSON
from server.node import Node

# Nothing from elsewhere and nothing inline: markup in an event or a name stays text.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    # Declarations (.d.ts), for people and for editors: those go by the name.
    ".ts": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}
_COMPRESSED: Final = ("text/", "image/svg+xml", JSON)

_ASK_AGAIN: Final = "no-cache"
_FOR_EVER: Final = "public, max-age=31536000, immutable"
_NEVER: Final = re.compile(r"q=0(\.0*)?").fullmatch


class Asset(NamedTuple):
    """A file as it is sent; `tag` changes when it does, `gzipped` is None if that is no gain."""

    body: bytes
    media_type: str
    tag: str
    gzipped: bytes | None = None


def asset(body: bytes, media_type: str) -> Asset:
    """Return a file with its tag, and compressed where that makes it smaller."""
    gzipped = None
    if media_type.startswith(_COMPRESSED):
        # No time in it: every node sends the same.
        gzipped = gzip.compress(body, mtime=0)
        if len(gzipped) >= len(body):
            gzipped = None
    return Asset(body, media_type, sha256(body).hexdigest()[:32], gzipped)


def takes_gzip(accept_encoding: str) -> bool:
    """Say whether a client that sends this Accept-Encoding reads gzip (RFC 9110, 12.5.3)."""
    anything = False
    for entry in accept_encoding.lower().split(","):
        coding, _, weight = entry.replace(" ", "").replace("\t", "").partition(";")
        taken = _NEVER(weight) is None
        if coding in ("gzip", "x-gzip"):
            return taken
        if coding == "*":
            anything = taken
    return anything


def load_assets(folder: Path | None = None) -> dict[str, Asset]:
    """Return the files of `static/` (or another folder) by name; only what a browser loads.

    Read once: what is not here by name cannot be asked for, whatever the path looks like.
    """
    folder = Path(static.__file__).parent if folder is None else folder
    return {
        path.name: asset(path.read_bytes(), _MEDIA_TYPES[path.suffix])
        for path in sorted(folder.iterdir())
        if path.suffix in _MEDIA_TYPES and path.is_file()
    }


class PageHandler(BaseHandler):
    """Sends files; a client that has one already is told so."""

    def initialize(self, node: Node, assets: dict[str, Asset]) -> None:  # type: ignore[override]
        """Take all that can be asked for, by name."""
        super().initialize(node)
        self._assets = assets

    def prepare(self) -> None:
        """Let every page in: files are for all, and browsers send Origin for their own modules."""

    def send(self, name: str, version: str | None = None) -> None:
        """Send the asset of that name; raises HTTPError if there is none.

        At the address of its present `version` it may be kept for ever. At that of another one it
        may not: during a roll-out a page of one node asks another for what it loads.
        """
        asset = self._assets.get(name)
        if asset is None:
            raise HTTPError(404)
        body, etag = asset.body, asset.tag
        if asset.gzipped is not None:
            self.add_header("Vary", "Accept-Encoding")
            if takes_gzip(self.request.headers.get("Accept-Encoding", "")):
                self.set_header("Content-Encoding", "gzip")
                body, etag = asset.gzipped, f"{asset.tag}-gz"
        self.set_header("Cache-Control", _FOR_EVER if version == asset.tag else _ASK_AGAIN)
        self.set_header("Etag", f'"{etag}"')
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Referrer-Policy", "no-referrer")
        if self.check_etag_header():
            self.set_status(304)
            return
        self.set_header("Content-Type", asset.media_type)
        self.finish(body)


class HomeHandler(PageHandler):
    """`GET /`: the page that shows a channel's events, where the settings want it."""

    route: ClassVar[str] = "/"

    def get(self) -> None:
        """Send the page."""
        if not self.node.settings.demo:
            raise HTTPError(404)
        self.send("index.html")


class DocsHandler(PageHandler):
    """`GET /docs`: the description, for people."""

    route: ClassVar[str] = "/docs"

    def get(self) -> None:
        """Send the page."""
        self.send("docs.html")


class OpenApiHandler(PageHandler):
    """`GET /openapi.json`: the description, for programs."""

    route: ClassVar[str] = "/openapi.json"

    def get(self) -> None:
        """Send the document."""
        self.send("openapi.json")


class StaticHandler(PageHandler):
    """`GET /static/{file}`: what the pages load; with `?v=` and its tag it is never asked again."""

    route: ClassVar[str] = "/static/{file}"

    def get(self, name: str) -> None:
        """Send the file; pages have addresses of their own."""
        if name.endswith((".html", ".json")):
            raise HTTPError(404)
        versions = self.request.query_arguments.get("v", ())
        # Who takes it from an ETag may have got that of the compressed one.
        version = versions[-1].decode("latin-1").removesuffix("-gz") if versions else None
        self.send(name, version)
