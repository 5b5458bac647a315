"""A TCP proxy that does what bad networks do: it cuts, refuses, and falls silent."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

_REQUEST = re.compile(rb"([A-Z]+ \S+) HTTP/1\.1\r\n")


class CuttingProxy:
    """Passes bytes on to the port `target` of this machine, unless it is told otherwise.

    `requests` has the method and the address of each HTTP request that came, in their order. One
    that begins with `forbidden` (such as `"GET /v1/ws"`) ends its connection instead.
    """

    def __init__(self) -> None:
        self.target = 0
        self.port = 0
        self.forbidden: str | None = None
        self.requests: list[str] = []
        self._refusing = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    @property
    def origin(self) -> str:
        """The address of a page that comes through here."""
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End every connection at once, in both directions; what is on its way is lost."""
        for writer in self._writers:
            writer.transport.abort()

    @contextmanager
    def down(self) -> Iterator[None]:
        """Cut every connection, and for as long as the block runs also each new one."""
        self._refusing = True
        self.cut()
        try:
            yield
        finally:
            self._refusing = False

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let nothing through for as long as the block runs, though connections stand."""
        self._flowing.clear()
        try:
            yield
        finally:
            self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            onward, outward = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(outward)
            try:
                await asyncio.gather(
                    self._pump(reader, outward, asking=True), self._pump(onward, writer)
                )
            finally:
                self._writers.discard(outward)
                outward.transport.abort()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, asking: bool = False
    ) -> None:
        try:
            while data := await reader.read(65_536):
                await self._flowing.wait()
                if asking and not self._passes(data):
                    writer.transport.abort()
                    return
                writer.write(data)
                await writer.drain()
            # What is on its way still arrives when an end is orderly.
            writer.close()
        except OSError:
            writer.transport.abort()

    def _passes(self, data: bytes) -> bool:
        """Note a request; say whether it may go on."""
        if (match := _REQUEST.match(data)) is None:
            return True
        request = match[1].decode("latin-1")
        self.requests.append(request)
        return self.forbidden is None or not request.startswith(self.forbidden)
