"""A TCP proxy in front of a Redis, for what a network and a server do to a connection."""

import asyncio
from types import TracebackType
from typing import Self


class _Pair:
    """One connection: `listens` once it has subscribed; `loses` the next answer."""

    def __init__(self, down: asyncio.StreamWriter, up: asyncio.StreamWriter) -> None:
        self.down = down
        self.up = up
        self.listens = False
        self.loses = False


class MutingProxy:
    """Passes bytes on to a port of this machine; connections that subscribe are told apart.

    While `mute` is set, what Redis sends to connections that listen is swallowed: cut one way.
    The answer to the next request that holds `lose` (if set) is swallowed and its connection cut;
    `lost` counts.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.mute = False
        self.lose = b""
        self.lost = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._pairs: set[_Pair] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

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
        for pair in self._pairs:
            pair.down.transport.abort()
            pair.up.transport.abort()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def inject(self, data: bytes) -> None:
        """Send bytes to all connections that listen, as if Redis did."""
        for pair in self._pairs:
            if pair.listens:
                pair.down.write(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            onward, up = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            self._tasks.discard(task)
            return
        pair = _Pair(writer, up)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pass_up(pair, reader), self._pass_down(pair, onward))
        finally:
            self._pairs.discard(pair)
            self._tasks.discard(task)

    async def _pass_up(self, pair: _Pair, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(65_536):
                pair.listens = pair.listens or b"SUBSCRIBE" in data
                if self.lose and self.lose in data:
                    pair.loses = True
                    self.lose = b""
                pair.up.write(data)
                await pair.up.drain()
        except OSError:
            pass
        pair.up.transport.abort()

    async def _pass_down(self, pair: _Pair, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(65_536):
                if pair.listens and self.mute:
                    continue
                if pair.loses:
                    self.lost += 1
                    break
                pair.down.write(data)
                await pair.down.drain()
        except OSError:
            pass
        pair.down.transport.abort()
        pair.up.transport.abort()
