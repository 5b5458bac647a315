"""One session that every kind of client has to be able to have."""

import asyncio
import http.client
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgpack  # type: ignore[import-untyped]

from processes import ServerProcess

JSON, MSGPACK = "galecast.v1.json", "galecast.v1.msgpack"
TIMEOUT_S = 10.0


class Client(Protocol):
    """What the session needs of a client: messages as text or bytes."""

    subprotocol: str | None

    async def send(self, payload: str | bytes) -> None: ...
    async def receive(self) -> str | bytes: ...
    async def close(self) -> None: ...


def publish(server: ServerProcess, **event: Any) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
    headers = {"Authorization": "Bearer dev.galecast"}
    connection.request("POST", "/v1/events", json.dumps(event), headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == 200, body
    answer: dict[str, Any] = json.loads(body)
    return answer


def deflate_in(server: ServerProcess) -> int:
    """Return how many bytes of events the server has compressed."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
    connection.request("GET", "/metrics", headers={"Authorization": "Bearer dev.galecast"})
    body = connection.getresponse().read().decode()
    connection.close()
    found = re.search(r"^galecast_deflate_in_bytes_total (\S+)$", body, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


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


async def run_session(
    server: ServerProcess,
    connect: Callable[[str], Awaitable[Client]],
    subprotocol: str,
    channel: str,
) -> None:
    """Connect, subscribe, receive, publish, see who is there, read back, leave and resume."""
    url = f"ws://127.0.0.1:{server.port}/v1/ws"
    client = await connect(url)
    assert client.subprotocol == subprotocol

    async def say(message: dict[str, Any]) -> None:
        await client.send(encode(subprotocol, message))

    async def hear() -> dict[str, Any]:
        return decode(subprotocol, await client.receive())

    await say({"type": "connect", "ref": 1})
    connected = await hear()
    assert connected["type"] == "connected"
    assert connected["user"] is None
    await say({"type": "subscribe", "ref": 2, "channel": channel, "presence": True})
    subscribed = await hear()
    assert subscribed["ref"] == 2
    assert [each["session"] for each in subscribed["members"]] == [connected["session"]]

    data = {"text": "häßlich 🌬", "n": [2**64 - 1, -(2**63), 0.5, True, None], "o": {"": []}}
    answer = await asyncio.to_thread(
        publish, server, channel=channel, name="greet", data=data, tags={"k": "v"}, id="e-1"
    )
    assert answer["duplicate"] is False
    event = await hear()
    assert event["data"] == data
    assert (event["type"], event["channel"], event["id"]) == ("event", channel, "e-1")
    assert (event["name"], event["tags"], event["position"]) == (
        "greet",
        {"k": "v"},
        answer["position"],
    )
    # The same id again: the same position, and nothing is delivered.
    again = await asyncio.to_thread(
        publish, server, channel=channel, name="greet", data=data, id="e-1"
    )
    assert again == {**answer, "duplicate": True}

    await say({"type": "publish", "ref": 3, "channel": channel, "data": data, "echo": False})
    published = await hear()
    assert (published["type"], published["duplicate"]) == ("published", False)
    await say({"type": "presence", "ref": 4, "channel": channel, "info": {"name": "one"}})
    replies = [await hear(), await hear()]
    assert {each["type"] for each in replies} == {"presence", "members"}
    await say({"type": "history", "ref": 5, "channel": channel, "limit": 10})
    assert [each["data"] for each in (await hear())["events"]] == [data, data]
    await say({"type": "subscribe", "ref": 6, "channel": channel})
    assert (await hear())["code"] == "conflict"
    await say({"type": "unsubscribe", "ref": 7, "channel": channel})
    assert (await hear())["type"] == "unsubscribed"
    await client.close()

    # Back with the last event's position: what was missed comes, once.
    await asyncio.to_thread(publish, server, channel=channel, data=1)
    client = await connect(url)
    await say({"type": "connect", "ref": 1})
    await hear()
    await say({"type": "subscribe", "ref": 2, "channel": channel, "since": event["position"]})
    resumed = await hear()
    assert (resumed["recovered"], resumed["position"]) == (True, event["position"])
    assert [(await hear())["data"], (await hear())["data"]] == [data, 1]
    await say({"type": "ping", "ref": 3})
    assert await hear() == {"type": "pong", "ref": 3}
    await client.close()
