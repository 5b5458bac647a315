"""A real node for tests: real broker, real server on a free port of 127.0.0.1.

`async with serving(...) as served` gives its address and a client; `make_settings` makes settings
with one API key that may do everything (KEY) and a secret for tokens. `make_token` signs one.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httputil import HTTPHeaders

from config.access import ApiKey, TokenSettings
from config.checks import SCOPES, WIDE_SCOPES
from config.rules import ACTIONS, ChannelRule
from config.serving import DrainSettings
from config.settings import Settings, hash_secret
from server.app import App
from server.node import Node
from server.tokens import TokenSigner

KEY: Final = "test.0123456789abcdef"
TOKEN: Final = TokenSettings(secret="a secret of the tests, long enough for HS256")
RULES: Final = (
    ChannelRule(match="closed.>"),
    ChannelRule(match=">", presence=True, client_publish=True),
)


def api_key(text: str, **scopes: Any) -> ApiKey:
    """The key `text` (`id.secret`) with scopes, or with all of them on all channels."""
    key_id, secret = text.split(".")
    if not scopes:
        scopes = {scope: True if scope in WIDE_SCOPES else (">",) for scope in SCOPES}
    return ApiKey(name=key_id, id=key_id, hash=hash_secret(secret), scopes=scopes)  # type: ignore[arg-type]


def make_settings(**changes: Any) -> Settings:
    """Settings that suit tests, with `changes`."""
    values: dict[str, Any] = {
        "port": 0,
        "token": TOKEN,
        "channels": RULES,
        "keys": (api_key(KEY),),
        "drain": DrainSettings(delay_s=0.0, grace_s=2.0),
    }
    return Settings(**(values | changes))


def make_token(sub: str = "u1", grants: Mapping[str, Any] | None = None, ttl_s: float = 60) -> str:
    """A token of the user `sub`; without `grants` it opens everything."""
    return TokenSigner(TOKEN).mint(sub, {">": ACTIONS} if grants is None else grants, ttl_s)


@dataclass(slots=True)
class Answer:
    """A response: `json` is its body if that is JSON."""

    status: int
    headers: HTTPHeaders
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Served:
    """A node that serves; `ask` sends one request, with KEY unless told otherwise."""

    app: App
    client: AsyncHTTPClient

    @property
    def node(self) -> Node:
        return self.app.node

    @property
    def url(self) -> str:
        return self.app.url

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        bearer: str | None = KEY,
        headers: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> Answer:
        """Send a request; what is no bytes is sent as JSON. `bearer=None`: nobody asks."""
        fields = HTTPHeaders(dict(headers or {}))
        if bearer is not None:
            fields["Authorization"] = f"Bearer {bearer}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if data is None and method in ("POST", "PUT", "PATCH"):
            data = b""
        response: HTTPResponse = await self.client.fetch(
            f"http://127.0.0.1:{port or self.app.port}{path}",
            method=method,
            headers=fields,
            body=data,
            raise_error=False,
            allow_nonstandard_methods=True,
            follow_redirects=False,
            decompress_response=False,
        )
        return Answer(response.code, response.headers, response.body or b"")

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a bare connection, to speak HTTP by hand."""
        return await asyncio.open_connection("127.0.0.1", self.app.port)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes, and return all that comes until the server closes."""
        reader, writer = await self.connect()
        writer.write(data)
        got = bytearray()
        with suppress(ConnectionError):
            while chunk := await reader.read(65_536):
                got += chunk
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        return bytes(got)


@asynccontextmanager
async def serving(settings: Settings | None = None, **changes: Any) -> AsyncIterator[Served]:
    """Serve `settings`, or those of `make_settings` with `changes`."""
    app = App(settings or make_settings(**changes), asyncio.get_running_loop())
    client = AsyncHTTPClient(force_instance=True)
    try:
        await app.start()
        yield Served(app, client)
    finally:
        client.close()
        await app.close()
