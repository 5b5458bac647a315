"""Every gate at which a channel is named, against names that mean to be another one."""

from __future__ import annotations

import json
from typing import Final
from urllib.parse import quote

import pytest

from live_rig import ALL, JSON, MSGPACK, Rig, live, token

GRANTS: Final = {"room.a": ALL, "room.*.x": ALL}
# What is no channel, and what is one that is not granted.
NO_NAMES: Final = [
    *("*", ">", "?", "[", "room.*", "room.>", "room.?", "room.[a]", "room.a*"),
    *("..", "room..a", "room.a.", ".room.a", "room.a..", "room.a/../b", "../room.a"),
    *("room.a\x00", "\x00room.a", "room.a\r\n", "room.a\r\nroom.b", "room.a\n", "room.a\x7f"),
    # Cyrillic o, full-width a, a zero-width space, a combining accent, Turkish dotless i.
    *("rооm.a", "room.\uff41", "room.a\u200b", "room.a\u0301", "room.\u0131"),
    *(" room.a", "room.a ", "room.a\t", "room.a,room.b", "room.a;", "room.a#", "room.a%00"),
    *("$room.a", "$sys", "{sub}", "room.{sub}", "room.${a}", ""),
    "room." + "a" * 251,
]
NOT_GRANTED: Final = ["Room.a", "ROOM.A", "room.A", "room.a.b", "room.b.y", "room.b.x.x", "room"]


async def ws_codes(rig: Rig, encoding: str, channel: str) -> dict[str, str]:
    """Return what each command says of a channel."""
    client = await rig.ws(encoding, token=token("u1", GRANTS))
    position = (await client.call("subscribe", channel="room.a"))["position"]
    found = {}
    for gate, fields in {
        "subscribe": {},
        "resume": {"type_": "subscribe", "since": position},
        "rewind": {"type_": "subscribe", "rewind": 5},
        "publish": {"data": 1},
        "history": {},
        "presence": {},
        "enter": {"type_": "presence", "info": 1},
        "unsubscribe": {},
    }.items():
        reply = await client.call(**{"type_": gate, "channel": channel, **fields})
        found[gate] = reply.get("code", reply["type"])
    await client.goodbye()
    return found


async def http_codes(rig: Rig, channel: str, position: str) -> dict[str, str]:
    """Return what each request says of a channel."""
    bearer = {"Authorization": f"Bearer {token('u1', GRANTS)}"}
    name = quote(channel, safe="")
    found = {}
    for gate, (method, path, body) in {
        "publish": ("POST", "/v1/events", {"channel": channel, "data": 1}),
        "publish many": ("POST", "/v1/events", [{"channel": channel, "data": 1}]),
        "history": ("GET", f"/v1/channels/{name}/events", None),
        "presence": ("GET", f"/v1/channels/{name}/presence", None),
        "stream": ("GET", f"/v1/sse?channel={name}", None),
        "stream rewound": ("GET", f"/v1/sse?channel={name}&rewind=5", None),
        "stream resumed": ("GET", f"/v1/sse?channel={name}&since={position}", None),
        "purge": ("DELETE", f"/v1/channels/{name}/events", None),
        "look": ("GET", f"/v1/channels/{name}", None),
    }.items():
        response = await rig.request(method, path, body, **bearer)
        assert response.status >= 400, (gate, channel, response.body)
        found[gate] = json.loads(response.body)["code"]
    return found


@pytest.mark.parametrize("encoding", [JSON, MSGPACK])
async def test_commands(encoding: str) -> None:
    async with live(limits__handshakes_per_s=0) as rig:
        for channel in NO_NAMES:
            codes = await ws_codes(rig, encoding, channel)
            assert {*codes.values()} == {"bad_request"}, (channel, codes)
        for channel in NOT_GRANTED:
            codes = await ws_codes(rig, encoding, channel)
            assert codes.pop("unsubscribe") == "not_found"
            assert {*codes.values()} <= {"forbidden"}, (channel, codes)
        codes = await ws_codes(rig, encoding, "room.b.x")
        assert not {*codes.values()} & {"forbidden", "bad_request"}, codes
        assert set(rig.node.hub.feeds) <= {"room.a", "room.b.x"}


async def test_requests() -> None:
    async with live(limits__session_commands_per_s=0, limits__session_publishes_per_s=0) as rig:
        position = (await rig.publish("room.a", 1))["position"]
        for channel in NO_NAMES:
            codes = await http_codes(rig, channel, position)
            assert {*codes.values()} <= {"bad_request", "forbidden", "not_found"}, (channel, codes)
            for gate in ("publish", "publish many", "stream"):
                assert codes[gate] == "bad_request", (channel, codes)
        for channel in NOT_GRANTED:
            codes = await http_codes(rig, channel, position)
            assert {*codes.values()} == {"forbidden"}, (channel, codes)
        assert rig.nobody_left() and set(rig.node.hub.feeds) <= {"room.a"}
