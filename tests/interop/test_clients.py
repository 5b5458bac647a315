"""One session, the same for both client libraries and both encodings."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import websocket
from websockets import Subprotocol
from websockets.sync.client import connect as websockets_connect

from one_session import JSON, MSGPACK, TIMEOUT_S, run_session
from processes import ServerProcess


class WebsocketClient:
    """The library websocket-client."""

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


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
@pytest.mark.parametrize("library", [WebsocketClient, Websockets])
async def test_the_same_session(
    server: ServerProcess, library: type[WebsocketClient | Websockets], subprotocol: str
) -> None:
    async def connect(url: str) -> InThread:
        return InThread(await asyncio.to_thread(library, url, subprotocol))

    channel = f"interop.{library.__name__}.{subprotocol.rpartition('.')[2]}"
    await run_session(server, connect, subprotocol, channel)
