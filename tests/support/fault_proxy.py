"""A TCP proxy that does what bad networks and dying servers do to connections; seeded.

A direction is called `up` (from who dialled to the target) or `down` (back).
"""

import asyncio
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

_NO_LINGER: Final = struct.pack("ii", 1, 0)
_READ_BYTES: Final = 65_536


class Way:
    """What happens to the bytes of one direction, on all connections.

    `latency_s` and up to `jitter_s` more is how long each piece waits, one after another;
    `bytes_per_s` is what passes at most (0: no limit); `slice_bytes` cuts what passes into pieces
    of 1 to so many bytes (0: as it comes), each a segment of its own. While it is held, nothing
    passes and all comes later, as when a network is away for a time. While it `swallows`, what
    comes is gone for good, and `heal` resets the connections that lack something.
    """

    def __init__(self) -> None:
        self.flowing = asyncio.Event()
        self.clear()

    def clear(self) -> None:
        """Let everything pass as it comes."""
        self.latency_s = 0.0
        self.jitter_s = 0.0
        self.bytes_per_s = 0
        self.slice_bytes = 0
        self.swallows = False
        self.flowing.set()

    def hold(self) -> None:
        """Let nothing pass for the time being."""
        self.flowing.clear()

    def pieces(self, data: bytes, rng: random.Random) -> Iterator[bytes]:
        """Cut what came."""
        most = self.slice_bytes or len(data)
        if self.bytes_per_s:
            # A tenth of a second at a time.
            most = min(most, max(1, self.bytes_per_s // 10))
        start = 0
        while start < len(data):
            size = rng.randint(1, most) if self.slice_bytes else most
            yield data[start : start + size]
            start += size

    def pause_s(self, piece: bytes, rng: random.Random) -> float:
        """Return how long a piece waits."""
        pause_s = self.latency_s + rng.uniform(0, self.jitter_s)
        return pause_s + (len(piece) / self.bytes_per_s if self.bytes_per_s else 0)


class Link:
    """One connection through the proxy: `near` is who dialled, `far` the target.

    `listens` once Redis was asked to subscribe; `loses` the next answer; `lacks` something that
    was swallowed.
    """

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.near = near
        self.far = far
        self.listens = False
        self.loses = False
        self.lacks = False

    def cut(self) -> None:
        """End it at once in both directions; what is on its way is lost."""
        self.near.transport.abort()
        self.far.transport.abort()

    def reset(self) -> None:
        """The same, and both ends get a RST."""
        for writer in (self.near, self.far):
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.cut()


class FaultProxy:
    """Passes bytes on to the port `target` of this machine, unless it is told otherwise.

    `up` and `down` say what happens on the way. `refuse` is how many of the next dials are
    reset at once. The answer to the next request that holds `lose` (if set) is swallowed and its
    connection cut; `lost` counts. `dials` counts connections.
    """

    def __init__(self, target: int = 0, *, seed: int = 0, port: int = 0) -> None:
        self.target = target
        self.port = port
        self.up = Way()
        self.back = Way()
        self.refuse = 0
        self.lose = b""
        self.lost = 0
        self.dials = 0
        self.links: set[Link] = set()
        self._rng = random.Random(seed)
        self._refusing = False
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
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
        self.heal()
        self.cut()
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def cut(self) -> None:
        """End every connection at once, in both directions; what is on its way is lost."""
        for link in self.links:
            link.cut()

    def reset(self) -> None:
        """Reset every connection."""
        for link in self.links:
            link.reset()

    def half_close(self) -> None:
        """Tell the target on every connection that nothing more comes; it may still answer."""
        for link in self.links:
            if link.far.can_write_eof() and not link.far.is_closing():
                link.far.write_eof()

    def heal(self) -> None:
        """Let everything pass from now on; connections that lack something are reset."""
        self.up.clear()
        self.back.clear()
        self.refuse = 0
        self.lose = b""
        self._refusing = False
        for link in self.links:
            if link.lacks:
                link.reset()

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
        self.up.hold()
        self.back.hold()
        try:
            yield
        finally:
            self.up.flowing.set()
            self.back.flowing.set()

    def passes_up(self, link: Link, data: bytes) -> bool:
        """Say whether what was sent may pass; where not, the connection ends."""
        return True

    def passes_down(self, link: Link, data: bytes) -> bool:
        """Say whether what the target sends passes; where not, it is swallowed."""
        return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dials += 1
        if self._refusing or self.refuse:
            self.refuse = max(0, self.refuse - 1)
            Link(writer, writer).reset()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._carry(reader, writer)
        except (OSError, asyncio.CancelledError):
            # Only `__aexit__` cancels; a task of start_server that is cancelled would be logged.
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, far = await asyncio.open_connection("127.0.0.1", self.target)
        link = Link(writer, far)
        self.links.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump_up(link, reader))
                group.create_task(self._pump_down(link, onward))
        finally:
            link.cut()
            self.links.discard(link)

    async def _pump_up(self, link: Link, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(_READ_BYTES):
                if not self.passes_up(link, data):
                    link.cut()
                    return
                if self.lose and self.lose in data:
                    link.loses = True
                    self.lose = b""
                await self._pass(link, self.up, data, link.far)
            if link.far.can_write_eof():
                link.far.write_eof()
        except (OSError, RuntimeError):
            link.cut()

    async def _pump_down(self, link: Link, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(_READ_BYTES):
                if not self.passes_down(link, data):
                    continue
                if link.loses:
                    self.lost += 1
                    link.cut()
                    return
                await self._pass(link, self.back, data, link.near)
            # What is on its way still arrives when an end is orderly.
            link.near.close()
            link.far.close()
        except OSError:
            link.cut()

    async def _pass(self, link: Link, way: Way, data: bytes, to: asyncio.StreamWriter) -> None:
        for piece in way.pieces(data, self._rng):
            if pause_s := way.pause_s(piece, self._rng):
                await asyncio.sleep(pause_s)
            await way.flowing.wait()
            if way.swallows:
                link.lacks = True
                continue
            to.write(piece)
            await to.drain()
            if way.slice_bytes:
                # Lets the kernel send it before the next one comes.
                await asyncio.sleep(0)
