"""One session, the same for both client libraries and both encodings."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import websocket
from websockets import Subprotocol
from websockets.asyncio.client import connect as async_connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import connect as websockets_connect

from one_session import JSON, MSGPACK, TIMEOUT_S, deflate_in, run_session
from processes import ServerProcess

# Every event, however small.
COMPRESSION = {
    "GALECAST_WEBSOCKET_COMPRESSION": "true",
    "GALECAST_WEBSOCKET_COMPRESSION_MIN_BYTES": "0",
}


class WebsocketClient:
    """The library websocket-client."""

    compresses = False

    def __init__(self, url: str, subprotocol: str) -> None:
        self._socket = websocket.create_connection(
            url, subprotocols=[subprotocol], timeout=TIMEOUT_S
        )
        self.subprotocol = self._socket.getsubprotocol()

    def send(self, payload: str | bytes) -> None:
        if isinstance(payload, bytes):
            self._socket.send_binary(payload)
        else:
            self._socket.send(payload)

    def receive(self) -> str | bytes:
        message: str | bytes = self._socket.recv()
        return message

    def close(self) -> None:
        self._socket.close()


class Websockets:
    """The library websockets."""

    def __init__(self, url: str, subprotocol: str) -> None:
        self._stack = ExitStack()
        self._socket = self._stack.enter_context(
            websockets_connect(url, subprotocols=[Subprotocol(subprotocol)], proxy=None)
        )
        self.subprotocol = self._socket.subprotocol
        self.compresses = bool(self._socket.protocol.extensions)

    def send(self, payload: str | bytes) -> None:
        self._socket.send(payload)

    def receive(self) -> str | bytes:
        return self._socket.recv(TIMEOUT_S)

    def close(self) -> None:
        self._stack.close()


class InThread:
    """A client library that blocks, each call in a thread."""

    def __init__(self, library: WebsocketClient | Websockets) -> None:
        self._library = library
        self.subprotocol = library.subprotocol

    async def send(self, payload: str | bytes) -> None:
        await asyncio.to_thread(self._library.send, payload)

    async def receive(self) -> str | bytes:
        return await asyncio.to_thread(self._library.receive)

    async def close(self) -> None:
        await asyncio.to_thread(self._library.close)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as running:
        yield running


@pytest.fixture(scope="module")
def compressing() -> Iterator[ServerProcess]:
    with ServerProcess("--dev", environ=COMPRESSION) as running:
        yield running


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
@pytest.mark.parametrize("library", [WebsocketClient, Websockets])
async def test_the_same_session(
    server: ServerProcess, library: type[WebsocketClient | Websockets], subprotocol: str
) -> None:
    async def connect(url: str) -> InThread:
        return InThread(await asyncio.to_thread(library, url, subprotocol))

    channel = f"interop.{library.__name__}.{subprotocol.rpartition('.')[2]}"
    await run_session(server, connect, subprotocol, channel)


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
@pytest.mark.parametrize("library", [WebsocketClient, Websockets])
async def test_the_same_session_where_compression_is_on(
    compressing: ServerProcess, library: type[WebsocketClient | Websockets], subprotocol: str
) -> None:
    """The library websockets offers it by itself, websocket-client knows nothing of it."""
    before = deflate_in(compressing)

    async def connect(url: str) -> InThread:
        opened: WebsocketClient | Websockets
        opened = await asyncio.to_thread(library, url, subprotocol)
        assert opened.compresses is (library is Websockets)
        return InThread(opened)

    channel = f"deflate.{library.__name__}.{subprotocol.rpartition('.')[2]}"
    await run_session(compressing, connect, subprotocol, channel)
    assert (deflate_in(compressing) > before) is (library is Websockets)


@pytest.mark.parametrize(
    "wanted",
    [
        {"server_no_context_takeover": True, "client_no_context_takeover": True},
        {"server_max_window_bits": 15, "client_max_window_bits": True},
        {"client_max_window_bits": 9},
        {"server_max_window_bits": 13, "client_max_window_bits": 15},
    ],
    ids=str,
)
async def test_whatever_is_offered_large_messages_pass_both_ways(
    compressing: ServerProcess, wanted: dict[str, Any]
) -> None:
    url = f"ws://127.0.0.1:{compressing.port}/v1/ws"
    extensions = [ClientPerMessageDeflateFactory(**wanted)]
    channel = f"deflate.{len(wanted)}.{sum(wanted.values())}"
    data = [{"n": number, "name": f"row {number % 7}"} for number in range(1500)]
    async with async_connect(url, compression=None, extensions=extensions, proxy=None) as socket:
        assert socket.protocol.extensions
        for command in (
            {"type": "connect", "ref": 1},
            {"type": "subscribe", "ref": 2, "channel": channel},
            {"type": "publish", "ref": 3, "channel": channel, "data": data},
        ):
            await socket.send(json.dumps(command))
        while (message := json.loads(await socket.recv()))["type"] != "event":
            assert message["type"] != "error", message
    assert message["data"] == data
