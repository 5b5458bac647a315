"""HTTP/1.1 by hand, over TLS if asked to, to see each connection and each piece as it comes."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

TIMEOUT_S = 20.0


@dataclass(slots=True)
class Answer:
    """An answer; the names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """One connection, for requests one after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, url: str, tls: ssl.SSLContext | None) -> Self:
        place = urlsplit(url)
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(place.hostname, place.port, ssl=tls)
        return cls(reader, writer)

    async def begin(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request and return the head of its answer."""
        fields = {"Host": "localhost", **(headers or {})}
        if body is not None and "Transfer-Encoding" not in fields:
            fields.setdefault("Content-Length", str(len(body)))
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items()), "", ""]
        self.writer.write("\r\n".join(lines).encode() + (body or b""))
        async with asyncio.timeout(TIMEOUT_S):
            await self.writer.drain()
            return await self.read_head()

    async def read_head(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        start, *rest = head.split("\r\n")[:-2]
        found = dict(line.split(": ", 1) for line in rest)
        return Answer(int(start.split()[1]), {name.lower(): found[name] for name in found})

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request and return its answer; what is no bytes is sent as JSON."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        answer = await self.begin(method, path, body, headers)
        async with asyncio.timeout(TIMEOUT_S):
            pieces = [piece async for piece in read_pieces(self.reader, answer.headers)]
        answer.body = b"".join(pieces)
        return answer

    def close(self) -> None:
        self.writer.transport.abort()


async def read_pieces(
    reader: asyncio.StreamReader, headers: Mapping[str, str]
) -> AsyncIterator[bytes]:
    """Yield the body of an answer, piece by piece; raises EOFError where it is cut off."""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    elif headers.get("content-type", "").startswith("text/event-stream"):
        # It ends with its connection.
        while piece := await reader.read(65_536):
            yield piece
    else:
        yield await reader.readexactly(int(headers.get("content-length", "0")))


@asynccontextmanager
async def open_exchange(url: str, tls: ssl.SSLContext | None) -> AsyncIterator[Exchange]:
    """Open a connection for the block."""
    exchange = await Exchange.open(url, tls)
    try:
        yield exchange
    finally:
        exchange.close()


async def ask(
    url: str,
    tls: ssl.SSLContext | None,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request on a connection of its own."""
    async with open_exchange(url, tls) as exchange:
        return await exchange.ask(method, path, body, headers)
