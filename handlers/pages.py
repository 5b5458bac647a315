"""How do bytes go out? This file: the pages that a browser opens, and what they load."""

from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

from tornado.web import HTTPError

import static
from handlers.base import BaseHandler
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
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


class Asset(NamedTuple):
    """A file as it is sent."""

    body: bytes
    media_type: str
    etag: str


def asset(body: bytes, media_type: str) -> Asset:
    """Return `body` with the tag that changes when it does."""
    return Asset(body, media_type, f'"{sha256(body).hexdigest()[:32]}"')


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

    def send(self, name: str) -> None:
        """Send the asset of that name; raises HTTPError if there is none."""
        asset = self._assets.get(name)
        if asset is None:
            raise HTTPError(404)
        self.set_header("Cache-Control", "no-cache")
        self.set_header("Etag", asset.etag)
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Referrer-Policy", "no-referrer")
        if self.check_etag_header():
            self.set_status(304)
            return
        self.set_header("Content-Type", asset.media_type)
        self.finish(asset.body)


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
    """`GET /static/{file}`: what the pages load."""

    route: ClassVar[str] = "/static/{file}"

    def get(self, name: str) -> None:
        """Send the file; pages have addresses of their own."""
        if name.endswith((".html", ".json")):
            raise HTTPError(404)
        self.send(name)
