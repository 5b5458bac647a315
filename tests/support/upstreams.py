"""Nginx in front of upstreams that note what they get and may fail."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fleet_http import Answer, ask
from nginx import NginxServer


class Upstream:
    """A node that notes requests, and answers them, or hangs up once it has them (`dying`)."""

    def __init__(self) -> None:
        self.dying = False
        self.port = 0
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Hang up on everybody; may be called twice."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (EOFError, OSError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        start, *lines = head.split("\r\n")[:-2]
        headers = {name.lower(): value for name, value in (x.split(": ", 1) for x in lines)}
        body = b""
        if "chunked" in headers.get("transfer-encoding", ""):
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        self.requests.append((start, headers, body))
        if self.dying:
            return False
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        return True


class Rig:
    """Nginx and its three upstreams."""

    def __init__(self, nginx: NginxServer, upstreams: list[Upstream]) -> None:
        self.nginx = nginx
        self.upstreams = upstreams
        self.tls = nginx.tls()

    def let_die(self) -> None:
        """Let all upstreams hang up on whoever asks."""
        for upstream in self.upstreams:
            upstream.dying = True

    @property
    def requests(self) -> list[tuple[str, dict[str, str], bytes]]:
        return [each for upstream in self.upstreams for each in upstream.requests]

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> Answer:
        """Send a request on a connection of its own."""
        return await ask(self.nginx.url, tls or self.tls, method, path, body, headers)


@asynccontextmanager
async def rig(*, publishers: bool = False) -> AsyncIterator[Rig]:
    """Run Nginx in front of three upstreams; `publishers` as for `NginxServer`."""
    upstreams = [Upstream() for _ in range(3)]
    for upstream in upstreams:
        await upstream.start()
    try:
        ports = [upstream.port for upstream in upstreams]
        with NginxServer(ports, publishers=publishers) as nginx:
            yield Rig(nginx, upstreams)
    finally:
        for upstream in upstreams:
            await upstream.close()
