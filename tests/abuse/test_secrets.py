"""No secret of clients or operators is in any log, metric or error, whatever is done with it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jwt
import pytest

from client_frames import TEXT, client_frame
from config.settings import hash_secret
from live_rig import Response, Rig
from ports import steady_ports
from processes import ServerProcess

CANARY: Final = "c4n4ry"
SECRET: Final = f"{CANARY}-signs-tokens-and-has-enough-bytes"
KEY: Final = f"shop.{CANARY}0123456789abcdef"
PAYLOAD: Final = f"{CANARY}-payload"
SETTINGS: Final = f"""
origins = ["https://app.example"]
[drain]
delay_s = 0.0
[log]
level = "debug"
[limits]
session_commands_per_s = 0
[[channels]]
match = ">"
presence = true
client_publish = true
[token]
secret = "{SECRET}"
[[keys]]
name = "shop"
id = "shop"
hash = "{hash_secret(KEY.split(".")[1])}"
scopes = {{ publish = [">"], history = [">"], tokens = true, sessions = true }}
"""


class Far(Rig):
    """Clients of a node in a process of its own; keeps what was answered."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.open = []
        self.answers: list[bytes] = []

    async def request(self, *args: Any, **fields: Any) -> Response:
        response = await super().request(*args, **fields)
        self.answers.append(repr(response.headers).encode())
        if response.status >= 400 or args[1] == "/metrics":
            self.answers.append(response.body)
        return response

    def close(self) -> None:
        for wire in self.open:
            wire.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[ServerProcess, int]]:
    config = tmp_path / "galecast.toml"
    config.write_text(SETTINGS)
    (admin,) = steady_ports(1)
    with ServerProcess("--config", str(config), "--admin-port", str(admin)) as server:
        yield server, admin


def signed(**claims: Any) -> str:
    """Return a token with the canary in a claim that means nothing."""
    payload = {"sub": "u1", "exp": time.time() + 600, "grants": {">": ["subscribe", "publish"]}}
    return jwt.encode(payload | {"note": CANARY} | claims, SECRET, algorithm="HS256")


def broken(token: str) -> str:
    head, payload, _signature = token.split(".")
    return f"{head}.{payload}.{CANARY}"


async def over_http(rig: Far) -> None:
    """Show keys, tokens and payloads in every right and wrong way."""
    event = {"channel": "a", "data": PAYLOAD, "tags": {"t": PAYLOAD}}
    good = signed()
    for bearer in (
        *(KEY, f"shop.{CANARY}", f"{CANARY}.{CANARY}", KEY + "x", f"{KEY}.{CANARY}"),
        *(good, broken(good), signed(exp=1), signed(sub=f"{CANARY}\n"), signed(exp=CANARY)),
        *(signed(grants={"a*": [CANARY]}), f"{CANARY}.x.y", CANARY * 3_000, f"{CANARY}\u00e9"),
    ):
        for scheme in ("Bearer", "bearer  ", "Basic", "Token", ""):
            await rig.request("POST", "/v1/events", event, Authorization=f"{scheme} {bearer}")
    auth = {"Authorization": f"Bearer {KEY}"}
    for path in (
        f"/v1/channels/a/events?token={good}",
        f"/v1/sse?channel=a&ticket={good}",
        f"/v1/sse?channel=a&ticket={CANARY}",
        f"/v1/sse?channel=a&ticket={CANARY}%ff",
        f"/v1/sse?channel=a&access_token={KEY}",
        f"/v1/sse?channel=a&since={CANARY}",
        f"/v1/none?ticket={CANARY}",
        f"/v1/channels?cursor={CANARY}%00",
    ):
        await rig.request("GET", path)
        if "/sse" not in path or "since" in path:
            await rig.request("GET", path, **auth)
    for body in (
        f'{{"channel":"a","data":"{PAYLOAD}"',
        f'{{"channel":"a","data":{PAYLOAD}}}',
        f'{{"channel":5,"data":"{PAYLOAD}"}}',
        f'{{"channel":"a","data":"{PAYLOAD}","tags":{{"{PAYLOAD}":5}}}}',
        f'{{"channel":"a","data":"{PAYLOAD}\\ud800"}}',
        f'[{{"channel":"a","data":"{PAYLOAD}"}},"{PAYLOAD}"]',
    ):
        await rig.request("POST", "/v1/events", body.encode(), **auth)
    for media in ("application/cloudevents+json", "application/x-ndjson", f"text/{CANARY}"):
        await rig.request("POST", "/v1/events", event, **auth, Content_Type=media)
    await rig.request("POST", "/v1/events", event, **auth, Idempotency_Key=CANARY * 20)
    await rig.request("POST", "/v1/events", event, **auth, Origin=f"https://{CANARY}.example")
    await rig.request("POST", "/v1/tokens", {"sub": "u1", "grants": {PAYLOAD: 5}}, **auth)


async def as_streams(rig: Far) -> None:
    """Use a ticket once, twice and wrongly."""
    bearer = {"Authorization": f"Bearer {signed()}"}
    ticket = (await Rig.request(rig, "POST", "/v1/tickets", b"", **bearer)).json["ticket"]
    stream = await rig.sse(f"channel=a&ticket={ticket}")
    await stream.control("subscribed")
    await rig.request("GET", f"/v1/sse?channel=a&ticket={ticket}")
    await rig.request("GET", f"/v1/sse?channel=a&ticket={ticket}x")
    await rig.request("GET", f"/v1/sse?channel=a&ticket={ticket}", Last_Event_ID=f"{CANARY}.x")
    await rig.request("GET", "/v1/sse?channel=a", Last_Event_ID=CANARY, **bearer)
    stream.close()


async def over_websocket(rig: Far) -> None:
    """The same, and payloads in commands that are refused."""
    for wrong in (broken(signed()), signed(exp=1), CANARY, f"{CANARY}.{CANARY}", KEY):
        await rig.refused_ws(Authorization=f"Bearer {wrong}x")
        client = await rig.ws(connect=False)
        await client.send(type="connect", ref=1, token=wrong)
        ended = await client.ended()
        rig.answers += [repr(ended).encode()]
    client = await rig.ws(token=signed())
    await client.call("subscribe", channel="a")
    for fields in (
        {"type_": "refresh", "token": broken(signed())},
        {"type_": "refresh", "token": signed(sub="u2")},
        {"type_": CANARY},
        {"type_": "publish", "channel": "a", "data": PAYLOAD, "name": f"{CANARY} "},
        {"type_": "publish", "channel": "a", "data": PAYLOAD, "id": f"{CANARY}\n"},
        {"type_": "publish", "channel": "a", "data": PAYLOAD, "tags": {PAYLOAD: 5}},
        {"type_": "publish", "channel": "a", "data": PAYLOAD * 5_000},
        {"type_": "subscribe", "channel": "b", "since": CANARY},
        {"type_": "history", "channel": "a", "before": CANARY},
        {"type_": "presence", "channel": "a", "info": PAYLOAD * 1_000},
    ):
        rig.answers.append(json.dumps(await client.call(**fields)).encode())
    assert (await client.call("publish", channel="a", data=PAYLOAD))["type"] == "published"
    await client.write(client_frame(TEXT, f'{{"type":"publish","data":"{PAYLOAD}'.encode()))
    rig.answers.append(json.dumps(await client.next("error")).encode())
    await client.write(client_frame(TEXT, b"\xff" + CANARY.encode()))
    rig.answers.append(repr((await client.ended()).last).encode())


async def test_no_secret_comes_out(node: tuple[ServerProcess, int]) -> None:
    server, admin = node
    rig = Far(server.port)
    try:
        await over_http(rig)
        await as_streams(rig)
        await over_websocket(rig)
        metrics = Far(admin)
        await metrics.request("GET", "/metrics")
    finally:
        rig.close()
    assert len(rig.answers) > 200
    shown = [answer for answer in rig.answers + metrics.answers if CANARY.encode() in answer]
    assert shown == []
    # The log is at its most talkative, and had something to say of each.
    assert server.log.count("\n") > 100
    assert [line for line in server.log.splitlines() if CANARY in line] == []
    assert "Traceback" not in server.log
