"""What clients see of a node through Nginx: at once, under their own address, within limits."""

import asyncio
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.asyncio.client import connect

from fleet import KEY, Fleet, Node
from fleet_clients import KINDS, Follower, following, until
from fleet_http import ask, open_exchange, read_pieces

AUTH = {"Authorization": f"Bearer {KEY}"}
# Nginx would hold for longer than this what it buffers.
SOON_S = 10.0


@pytest.fixture(scope="module")
def running() -> Iterator[Fleet]:
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("GALECAST_WEBSOCKET_COMPRESSION", "true")
        with Fleet() as fleet:
            yield fleet


async def publish(fleet: Fleet, channel: str, event_id: str, data: Any = 1) -> None:
    body = {"channel": channel, "data": data, "id": event_id}
    answer = await ask(fleet.nginx.url, fleet.nginx.tls(), "POST", "/v1/events", body, AUTH)
    assert answer.status == 200, answer.body


@pytest.mark.parametrize("kind", KINDS)
async def test_a_small_event_comes_at_once(running: Fleet, kind: type[Follower]) -> None:
    channel = f"soon.{kind.__name__}"
    url, tls = running.nginx.url, running.nginx.tls()
    async with following(url, tls, [channel], [kind]) as (follower,):
        for name in ("first", "second"):
            await publish(running, channel, name)
            await until(lambda n=name: n in follower.channels[channel].ids, SOON_S)  # type: ignore[misc]


async def test_compression_is_agreed_on_and_passes(running: Fleet) -> None:
    url = running.nginx.url.replace("http", "ws", 1) + "/v1/ws"
    data = ["the same again"] * 500
    async with connect(url, ssl=running.nginx.tls(), additional_headers=AUTH, proxy=None) as socket:
        assert socket.protocol.extensions
        command = {"type": "subscribe", "ref": 1, "channel": "soon.deflated"}
        await socket.send(json.dumps(command))
        while json.loads(await socket.recv())["type"] != "subscribed":
            pass
        await publish(running, "soon.deflated", "deflated", data)
        assert json.loads(await asyncio.wait_for(socket.recv(), SOON_S))["data"] == data
    told = "".join(node.ask_admin("/metrics")[1] for node in running.nodes)
    sums = re.findall(r"^galecast_deflate_(?:in|out)_bytes_total (\S+)$", told, re.MULTILINE)
    assert len(sums) == 6 and sum(map(float, sums)) > len(json.dumps(data))


async def test_a_stream_over_http_2_comes_at_once(running: Fleet) -> None:
    """Browsers take it for streams, since they have few connections to one server otherwise."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--show-error", "--no-buffer", "--http2", "--include"),
        *("--cacert", str(running.nginx.server_ca), "--header", f"Authorization: Bearer {KEY}"),
        f"{running.nginx.url}/v1/sse?channel=soon.h2",
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(SOON_S):
            assert await process.stdout.readline() == b"HTTP/2 200 \r\n"
            await process.stdout.readuntil(b'"subscribed"')
            await publish(running, "soon.h2", "over-h2")
            await process.stdout.readuntil(b'"over-h2"')
    finally:
        process.kill()
        await process.communicate()


async def test_lines_are_answered_while_the_request_goes_on(running: Fleet) -> None:
    headers = {
        **AUTH,
        "Content-Type": "application/x-ndjson",
        "Transfer-Encoding": "chunked",
    }
    async with open_exchange(running.nginx.url, running.nginx.tls()) as exchange:
        answer = await exchange.begin("POST", "/v1/events", chunk("line-0"), headers)
        assert answer.status == 200
        pieces = read_pieces(exchange.reader, answer.headers)
        async with asyncio.timeout(SOON_S):
            assert json.loads(await anext(pieces))["id"] == "line-0"
            for number in range(1, 4):
                exchange.writer.write(chunk(f"line-{number}"))
                assert json.loads(await anext(pieces))["id"] == f"line-{number}"
            exchange.writer.write(b"0\r\n\r\n")
            assert [piece async for piece in pieces] == []


def chunk(event_id: str) -> bytes:
    line = json.dumps({"channel": "lines.a", "data": 1, "id": event_id}).encode() + b"\n"
    return b"%x\r\n%s\r\n" % (len(line), line)


async def test_a_client_has_its_own_address(running: Fleet) -> None:
    """Not that of Nginx, and not the one that it claims to have."""
    headers = {**AUTH, "X-Forwarded-For": "203.0.113.9", "X-Real-IP": "203.0.113.9"}
    address = running.nginx.url.replace("http", "ws", 1) + "/v1/ws"
    sock = socket.create_connection(
        ("127.0.0.1", running.nginx.port), source_address=("127.0.0.2", 0)
    )
    async with connect(
        address, sock=sock, ssl=running.nginx.tls(), additional_headers=headers, proxy=None
    ) as client:
        connected = json.loads(await client.recv())
        answer = await asyncio.to_thread(sessions, running, connected["node"])
        found = {each["session"]: each["address"] for each in answer["sessions"]}
        assert found[connected["session"]] == "127.0.0.2"


def sessions(fleet: Fleet, name: str) -> dict[str, Any]:
    """Return the sessions of a node."""
    status, body = fleet.node(name).ask("/v1/sessions", AUTH)
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found


async def test_a_client_that_does_not_read_is_told_to_come_back(running: Fleet) -> None:
    """Nginx keeps little, so the node sees who is slow; nobody else is held up."""
    url, tls = running.nginx.url, running.nginx.tls()
    names = [f"big-{number}" for number in range(600)]
    async with open_exchange(url, tls) as slow, open_exchange(url, tls) as publisher:
        raw = slow.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        answer = await slow.begin("GET", "/v1/sse?channel=slow.a", headers=AUTH)
        assert answer.status == 200
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with following(url, tls, ["slow.a"], KINDS) as quick:
            for start in range(0, len(names), 60):
                events = [
                    {"channel": "slow.a", "data": "x" * 60_000, "id": name}
                    for name in names[start : start + 60]
                ]
                done = await publisher.ask("POST", "/v1/events", events, AUTH)
                assert done.status == 200, done.body
            await until(lambda: all(one.channels["slow.a"].ids == names for one in quick))
            assert [one.nodes for one in quick if one.lost] == []
        await until(lambda: sum(map(slow_closes, running.nodes)) == 1)


def slow_closes(node: Node) -> float:
    """Return how many sessions a node ended for not reading."""
    lines = node.ask_admin("/metrics")[1].splitlines()
    return sum(
        float(line.split()[1]) for line in lines if line.startswith("galecast_slow_closes_total ")
    )
