"""Whoever floods a node is answered as documented and ended; memory stays, and others are served.

The node is a process of its own, so that its memory is only its own. The flood comes from another
address, as it would.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Final

import pytest

from client_frames import CLOSE, CONTINUATION, PING, PONG, TEXT, client_frame, client_header
from live_rig import Client, Rig, until
from processes import ServerProcess

LIMITS: Final = {
    "GALECAST_LIMITS_CONNECTIONS_PER_ADDRESS": "20",
    "GALECAST_LIMITS_HTTP_CONNECTIONS_PER_ADDRESS": "20",
    "GALECAST_SESSION_CLOSE_TIMEOUT_S": "0.2",
}
MOST_GROWTH_BYTES: Final = 32 << 20
FLOOD_S: Final = 0.5


class Far(Rig):
    """Clients of a node in a process of its own; floods come from another address."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.open = []

    async def flooder(self) -> Client:
        """Return a bare connection from the address of the flood."""
        sock = socket.socket()
        sock.bind(("127.0.0.2", 0))
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        client = Client(sock)
        self.open.append(client)
        return client

    async def session(self) -> Client:
        """Return a session from there."""
        client = await self.flooder()
        await client.write(self.handshake())
        assert b" 101 " in await client.take_until(b"\r\n\r\n")
        assert (await client.call("connect"))["type"] == "connected"
        return client

    def close(self) -> None:
        for wire in self.open:
            wire.close()


@pytest.fixture(scope="module")
def node() -> Iterator[ServerProcess]:
    with ServerProcess("--dev", environ=LIMITS) as server:
        yield server


def resident_bytes(node: ServerProcess) -> int:
    pages = int(Path(f"/proc/{node.pid}/statm").read_text().split()[1])
    return pages * 4_096


@asynccontextmanager
async def others(rig: Far) -> AsyncIterator[None]:
    """See, while the block runs, that events reach a WebSocket and an event stream."""
    client, stream = await rig.ws(), await rig.sse("channel=calm.a")
    await stream.control("subscribed")
    await client.call("subscribe", channel="calm.a")
    over, sent = False, 0

    async def publish() -> None:
        nonlocal sent
        while not over:
            await rig.publish("calm.a", sent)
            for event in (await client.next("event"), await stream.event()):
                assert event["data"] == sent
            sent += 1
            await asyncio.sleep(0.02)

    publishing = asyncio.create_task(publish())
    try:
        yield
    finally:
        over = True
        await publishing
        assert sent


async def until_ended(client: Client, piece: Callable[[], bytes]) -> int | None:
    """Send without end, and return the close code."""

    async def send() -> None:
        with suppress(ConnectionError):
            while True:
                await client.write(piece())
                await asyncio.sleep(0)

    client.answers_pings = False
    sending = asyncio.create_task(send())
    try:
        while True:
            opcode, payload = await client.item()
            if opcode == CLOSE:
                return int.from_bytes(payload[:2], "big")
    except (EOFError, ConnectionError):
        # The end was lost: what was still sent met a closed socket.
        return None
    finally:
        sending.cancel()
        await asyncio.wait([sending])
        client.close()


def commands(client: Client, *types: str, **fields: str) -> Callable[[], bytes]:
    """Return what makes many commands in one piece, each with a channel of its own."""
    number = count()

    def piece() -> bytes:
        made = []
        for _ in range(20):
            channel = f"flood.{next(number)}"
            made += [
                client.encode(client.numbered(each, channel=channel, **fields)) for each in types
            ]
        return b"".join(made)

    return piece


Flood = tuple[Callable[[Client], Callable[[], bytes]], set[int]]
FLOODS: Final[dict[str, Flood]] = {
    "pings": (lambda _: lambda: client_frame(PING, b"x" * 125) * 50, {4007}),
    "pongs": (lambda _: lambda: client_frame(PONG) * 50, {4007}),
    "empty fragments": (
        lambda _: iter_pieces(
            client_frame(TEXT, fin=False), client_frame(CONTINUATION, fin=False) * 50
        ),
        {4500},
    ),
    "empty messages": (lambda _: lambda: client_frame(TEXT) * 50, {4504, 4007}),
    "what is no command": (lambda _: lambda: client_frame(TEXT, b"{" * 1_000) * 20, {4504, 4007}),
    "the same ref": (lambda c: lambda: c.encode({"type": "ping", "ref": 1}) * 50, {4504, 4007}),
    "refs that are none": (lambda c: lambda: c.encode({"type": "ping", "ref": "1"}) * 50, {4504}),
    "commands": (lambda c: commands(c, "ping"), {4007}),
    "subscriptions": (lambda c: commands(c, "subscribe"), {4007}),
    "subscriptions that come and go": (lambda c: commands(c, "subscribe", "unsubscribe"), {4007}),
    "publishes": (lambda c: commands(c, "publish", data="x" * 1_000), {4007}),
    "what is not subscribed": (lambda c: commands(c, "unsubscribe"), {4504, 4007}),
    "names that are none": (lambda c: commands(c, "subscribe", since="*"), {4504, 4007}),
    "messages too large": (lambda _: lambda: client_header(TEXT, 1 << 40, length_bytes=8), {4505}),
    "frames that are none": (lambda _: lambda: b"\xff" * 1_000, {4500}),
}


def iter_pieces(first: bytes, then: bytes) -> Callable[[], bytes]:
    pieces = iter((first,))
    return lambda: next(pieces, then)


async def repeated(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again for a while, at least twice."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    for number in count():
        if number > 1 and loop.time() > end:
            return
        await work()


@asynccontextmanager
async def watched(node: ServerProcess) -> AsyncIterator[Far]:
    """Serve others meanwhile, and see that memory does not grow without end."""
    rig = Far(node.port)
    try:
        async with others(rig):
            before = resident_bytes(node)
            yield rig
            assert resident_bytes(node) - before < MOST_GROWTH_BYTES
    finally:
        rig.close()
    assert "Traceback" not in node.log


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_in_a_session(name: str, node: ServerProcess) -> None:
    make, codes = FLOODS[name]
    seen: list[int | None] = []
    async with watched(node) as rig:

        async def once() -> None:
            client = await rig.session()
            seen.append(await until_ended(client, make(client)))

        await repeated(FLOOD_S, once)
    assert codes >= {code for code in seen if code is not None}
    assert any(seen)


async def test_a_flood_of_connections_that_say_nothing(node: ServerProcess) -> None:
    async with watched(node) as rig:

        async def once() -> None:
            wires = [await rig.flooder() for _ in range(60)]
            ends = [asyncio.create_task(wire.rest()) for wire in wires]
            await until(lambda: sum(each.done() for each in ends) == 40)
            for wire in wires:
                with suppress(OSError):
                    wire.sock.shutdown(socket.SHUT_WR)
            # Else the node may still count those that it took when the next begin.
            await asyncio.gather(*ends, return_exceptions=True)
            for wire in wires:
                wire.close()

        await repeated(FLOOD_S, once)


async def test_a_flood_of_handshakes(node: ServerProcess) -> None:
    async with watched(node) as rig:

        async def once() -> None:
            held = []
            for number in range(60):
                client = await rig.flooder()
                await client.write(rig.handshake())
                head = await client.take_until(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 101 " if number < 20 else b"HTTP/1.1 429 ")
                if number < 20:
                    held.append(client)
                else:
                    client.close()
            for client in held:
                # Else the node may still count the last ones when the next begin.
                await client.goodbye()

        await repeated(FLOOD_S, once)


async def test_a_flood_of_heads(node: ServerProcess) -> None:
    """Over 64 KiB the connection ends, whether in one line or in many."""
    async with watched(node) as rig:
        for piece in (b"a" * 1_000, b"a: b\r\n" * 100):

            async def once(piece: bytes = piece) -> None:
                client = await rig.flooder()
                sent = 0
                with suppress(ConnectionError):
                    await client.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
                    while True:
                        await client.write(piece)
                        sent += len(piece)
                        # The kernels hold some of it.
                        assert sent < 16 << 20
                client.close()

            await repeated(FLOOD_S / 2, once)


async def test_a_flood_of_requests_in_one_piece(node: ServerProcess) -> None:
    async with watched(node) as rig:

        async def once() -> None:
            client = await rig.flooder()
            request = b"GET /v1/none HTTP/1.1\r\nHost: localhost\r\n\r\n"
            last = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            await client.write(request * 500 + last)
            assert (await client.rest()).count(b"HTTP/1.1 404 ") == 501
            client.close()

        await repeated(FLOOD_S, once)
