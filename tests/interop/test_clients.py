"""One session, the same for every client library and encoding: the protocol as others speak it."""

import asyncio
import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import msgpack  # type: ignore[import-untyped]
import pytest
import websocket
from websockets import Subprotocol
from websockets.sync.client import connect as websockets_connect

from processes import ServerProcess

JSON, MSGPACK = "galecast.v1.json", "galecast.v1.msgpack"
_TIMEOUT_S = 10.0


class Client(Protocol):
    """What the session below needs of a client library."""

    subprotocol: str | None

    def send(self, payload: str | bytes) -> None: ...
    def receive(self) -> str | bytes: ...
    def close(self) -> None: ...


class WebsocketClient:
    """The library websocket-client."""

    def __init__(self, url: str, subprotocol: str) -> None:
        self._socket = websocket.create_connection(
            url, subprotocols=[subprotocol], timeout=_TIMEOUT_S
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
        return self._socket.recv(_TIMEOUT_S)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as running:
        yield running


def publish(server: ServerProcess, **event: Any) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_TIMEOUT_S)
    headers = {"Authorization": "Bearer dev.galecast"}
    connection.request("POST", "/v1/events", json.dumps(event), headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == 200, body
    answer: dict[str, Any] = json.loads(body)
    return answer


def encode(subprotocol: str, message: dict[str, Any]) -> str | bytes:
    if subprotocol == JSON:
        return json.dumps(message)
    packed: bytes = msgpack.packb(message)
    return packed


def decode(subprotocol: str, payload: str | bytes) -> dict[str, Any]:
    if subprotocol == JSON:
        assert isinstance(payload, str)
        message = json.loads(payload)
    else:
        assert isinstance(payload, bytes)
        message = msgpack.unpackb(payload)
    assert isinstance(message, dict)
    return message


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
@pytest.mark.parametrize("library", [WebsocketClient, Websockets])
async def test_the_same_session(
    server: ServerProcess, library: Callable[[str, str], Client], subprotocol: str
) -> None:
    channel = f"interop.{library.__name__}.{subprotocol.rpartition('.')[2]}"
    await asyncio.to_thread(session, server, library, subprotocol, channel)


def session(
    server: ServerProcess, library: Callable[[str, str], Client], subprotocol: str, channel: str
) -> None:
    url = f"ws://127.0.0.1:{server.port}/v1/ws"
    client = library(url, subprotocol)
    assert client.subprotocol == subprotocol

    def say(message: dict[str, Any]) -> None:
        client.send(encode(subprotocol, message))

    def hear() -> dict[str, Any]:
        return decode(subprotocol, client.receive())

    say({"type": "connect", "ref": 1})
    connected = hear()
    assert connected["type"] == "connected"
    assert connected["user"] is None
    say({"type": "subscribe", "ref": 2, "channel": channel, "presence": True})
    subscribed = hear()
    assert subscribed["ref"] == 2
    assert [each["session"] for each in subscribed["members"]] == [connected["session"]]

    data = {"text": "häßlich 🌬", "n": [2**64 - 1, -(2**63), 0.5, True, None], "o": {"": []}}
    answer = publish(server, channel=channel, name="greet", data=data, tags={"k": "v"}, id="e-1")
    assert answer["duplicate"] is False
    event = hear()
    assert event["data"] == data
    assert (event["type"], event["channel"], event["id"]) == ("event", channel, "e-1")
    assert (event["name"], event["tags"], event["position"]) == (
        "greet",
        {"k": "v"},
        answer["position"],
    )
    # The same id again: the same position, and nothing is delivered.
    again = publish(server, channel=channel, name="greet", data=data, id="e-1")
    assert again == {**answer, "duplicate": True}

    say({"type": "publish", "ref": 3, "channel": channel, "data": data, "echo": False})
    published = hear()
    assert (published["type"], published["duplicate"]) == ("published", False)
    say({"type": "presence", "ref": 4, "channel": channel, "info": {"name": "one"}})
    replies = [hear(), hear()]
    assert {each["type"] for each in replies} == {"presence", "members"}
    say({"type": "history", "ref": 5, "channel": channel, "limit": 10})
    assert [each["data"] for each in hear()["events"]] == [data, data]
    say({"type": "subscribe", "ref": 6, "channel": channel})
    assert hear()["code"] == "conflict"
    say({"type": "unsubscribe", "ref": 7, "channel": channel})
    assert hear()["type"] == "unsubscribed"
    client.close()

    # Back with the last event's position: what was missed comes, once.
    publish(server, channel=channel, data=1)
    client = library(url, subprotocol)
    say({"type": "connect", "ref": 1})
    hear()
    say({"type": "subscribe", "ref": 2, "channel": channel, "since": event["position"]})
    resumed = hear()
    assert (resumed["recovered"], resumed["position"]) == (True, event["position"])
    assert [hear()["data"], hear()["data"]] == [data, 1]
    say({"type": "ping", "ref": 3})
    assert hear() == {"type": "pong", "ref": 3}
    client.close()
