"""A node on a free port, and clients that speak to it byte by byte.

Clients are raw sockets on the test's own loop: they read only when asked to, and send whatever a
test wants, right or wrong. Every wait has a deadline.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jwt
import msgpack  # type: ignore[import-untyped]

from client_frames import BINARY, CLOSE, PING, PONG, TEXT, client_close, client_frame, inflated
from config.settings import DEV_KEY, DEV_SECRET
from config.sources import changed, load
from server.app import App

T = TypeVar("T")

PATIENCE_S = 8.0
JSON, MSGPACK = "json", "msgpack"
BEARER: dict[str, Any] = {"Authorization": f"Bearer {DEV_KEY}"}
ALL = ("subscribe", "publish", "presence", "history")


async def within(work: Awaitable[T], seconds: float = PATIENCE_S) -> T:
    """Await, but not for ever."""
    return await asyncio.wait_for(work, seconds)


async def until(condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        await asyncio.sleep(0.005)


@dataclass
class Ended:
    """How a WebSocket ended: what was said before, the close frame, and whether EOF followed."""

    messages: list[dict[str, Any]]
    code: int | None = None
    reason: str = ""

    @property
    def last(self) -> dict[str, Any]:
        return self.messages[-1]


class Wire:
    """A raw socket that reads when asked to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray()

    @classmethod
    async def open(cls, port: int, *, receive_bytes: int | None = None, first: bytes = b"") -> Wire:
        """Connect, and send `first` in the same turn: it is there when a node takes the socket."""
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel answers by itself.
        sock.settimeout(PATIENCE_S)
        sock.connect(("127.0.0.1", port))
        sock.setblocking(False)
        wire = cls(sock)
        if first:
            sent = sock.send(first)
            await wire.write(first[sent:])
        return wire

    async def write(self, data: bytes) -> None:
        await within(asyncio.get_running_loop().sock_sendall(self.sock, data))

    async def more(self) -> None:
        """Read some bytes; raises EOFError at the end."""
        data = await within(asyncio.get_running_loop().sock_recv(self.sock, 1 << 20))
        if not data:
            raise EOFError
        self.buffer += data

    async def take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            await self.more()
        found = bytes(self.buffer[:size])
        del self.buffer[:size]
        return found

    async def take_until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            await self.more()
        return await self.take(self.buffer.index(mark) + len(mark))

    async def rest(self) -> bytes:
        """Return all that comes until the end."""
        try:
            while True:
                await self.more()
        except EOFError:
            pass
        return await self.take(len(self.buffer))

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close so that the peer gets a reset."""
        linger = (1).to_bytes(4, "little") + bytes(4)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.sock.close()


@dataclass
class Response:
    """An HTTP response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def parse_head(head: bytes) -> Response:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines if line)
    return Response(int(first.split()[1]), {key.lower(): value.strip() for key, value in pairs})


class Client(Wire):
    """A WebSocket client, in JSON or MessagePack."""

    encoding = JSON
    answers_pings = True

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.ref = 0
        self.passed: list[dict[str, Any]] = []
        self.pings = 0
        self.pongs: list[bytes] = []
        self.deflated: list[bytes] = []
        self.handshake = Response(0, {})

    # Sending

    def encode(self, fields: Mapping[str, Any]) -> bytes:
        if self.encoding == MSGPACK:
            packed: bytes = msgpack.packb(fields)
            return client_frame(BINARY, packed)
        return client_frame(TEXT, json.dumps(fields).encode())

    async def send(self, **fields: Any) -> None:
        await self.write(self.encode(fields))

    def numbered(self, type_: str, **fields: Any) -> dict[str, Any]:
        self.ref += 1
        return {"type": type_, "ref": self.ref, **fields}

    async def call(self, type_: str, **fields: Any) -> dict[str, Any]:
        """Send a command and return its reply; what comes before it is kept in `passed`."""
        await self.send(**self.numbered(type_, **fields))
        return await self.reply(self.ref)

    async def reply(self, ref: int) -> dict[str, Any]:
        while True:
            message = await self.message()
            if message.get("ref") == ref:
                return message
            self.passed.append(message)

    # Receiving

    async def frame(self) -> tuple[int, bytes]:
        """Return the next frame; raises EOFError."""
        first, second = await self.take(2)
        deflated = first & 0x40 and "sec-websocket-extensions" in self.handshake.headers
        assert first & (0x30 if deflated else 0x70) == 0, "no reserved bits"
        assert first & 0x80, "a whole frame"
        assert second < 0x80, "a server does not mask"
        size = second
        if size == 126:
            size = int.from_bytes(await self.take(2), "big")
        elif size == 127:
            size = int.from_bytes(await self.take(8), "big")
        payload = await self.take(size)
        if deflated:
            assert first & 0x0F in (TEXT, BINARY), "control frames are not compressed"
            self.deflated.append(payload)
            payload = inflated(payload)
        return first & 0x0F, payload

    async def item(self) -> tuple[int, bytes]:
        """Return the next message or close frame; pings are answered on the way."""
        while True:
            opcode, payload = await self.frame()
            if opcode == PING:
                self.pings += 1
                if self.answers_pings:
                    # If nobody hears it any more, what was said before that is still to be read.
                    with suppress(ConnectionError):
                        await self.write(client_frame(PONG, payload))
            elif opcode == PONG:
                self.pongs.append(payload)
            else:
                return opcode, payload

    def decode(self, opcode: int, payload: bytes) -> dict[str, Any]:
        assert opcode == (BINARY if self.encoding == MSGPACK else TEXT), (opcode, payload)
        found: dict[str, Any] = (
            msgpack.unpackb(payload) if opcode == BINARY else json.loads(payload)
        )
        return found

    async def message(self) -> dict[str, Any]:
        """Return the next message, out of `passed` never."""
        return self.decode(*await self.item())

    async def next(self, type_: str) -> dict[str, Any]:
        """Return the next message of a type, of those passed by first; others are kept there."""
        for place, message in enumerate(self.passed):
            if message["type"] == type_:
                return self.passed.pop(place)
        while True:
            message = await self.message()
            if message["type"] == type_:
                return message
            self.passed.append(message)

    async def events(self, count: int) -> list[dict[str, Any]]:
        return [await self.next("event") for _ in range(count)]

    async def pong(self) -> bytes:
        """Return the payload of the next pong."""
        while not self.pongs:
            opcode, payload = await self.frame()
            if opcode == PONG:
                self.pongs.append(payload)
            else:
                self.passed.append(self.decode(opcode, payload))
        return self.pongs.pop(0)

    async def ended(self, *, answer: bool = True, writing: bool = False) -> Ended:
        """Read to the end of the connection; with `answer` the close frame is answered.

        Who goes on `writing` may find the connection reset behind the close frame.
        """
        ended = Ended([])
        try:
            while True:
                opcode, payload = await self.item()
                if opcode != CLOSE:
                    assert ended.code is None, "nothing comes behind a close frame"
                    ended.messages.append(self.decode(opcode, payload))
                    continue
                assert ended.code is None, "one close frame"
                ended.code = int.from_bytes(payload[:2], "big") if payload else 1005
                ended.reason = payload[2:].decode()
                if answer:
                    await self.write(client_frame(CLOSE, payload))
        except EOFError:
            return ended
        except ConnectionError:
            if ended.code is None or not (answer or writing):
                raise
            # A server waits so long for the answer, and what comes later is not read.
            return ended

    async def goodbye(self) -> None:
        """Close as a client should, and see that the server does so too."""
        await self.write(client_close(1000))
        ended = await self.ended(answer=False)
        assert ended.code == 1000
        self.close()


@dataclass
class Block:
    """One block of a stream, as EventSource reads it."""

    fields: list[tuple[str, str]] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)

    def value(self, name: str) -> str | None:
        found = [value for key, value in self.fields if key == name]
        return found[-1] if found else None

    @property
    def id(self) -> str | None:
        return self.value("id")

    @property
    def control(self) -> bool:
        return self.value("event") == "control"

    @property
    def data(self) -> Any:
        lines = [value for key, value in self.fields if key == "data"]
        assert len(lines) == 1, self.fields
        return json.loads(lines[0])


class Stream(Wire):
    """A reader of Server-Sent Events; keeps the last id as EventSource does."""

    head: Response
    last_id = ""

    async def block(self) -> Block:
        """Return the next block; raises EOFError."""
        text = (await self.take_until(b"\n\n")).decode()
        block = Block()
        for line in text.splitlines():
            name, colon, value = line.partition(":")
            if not name and colon:
                block.comments.append(value.strip())
            elif name:
                assert name in ("id", "event", "data", "retry"), line
                block.fields.append((name, value.removeprefix(" ")))
        if block.id is not None:
            self.last_id = block.id
        return block

    async def next(self, wanted: Callable[[Block], object]) -> Block:
        while True:
            block = await self.block()
            if wanted(block):
                return block

    async def control(self, type_: str) -> dict[str, Any]:
        """Return the next control message of a type."""
        block = await self.next(lambda block: block.control and block.data["type"] == type_)
        found: dict[str, Any] = block.data
        return found

    async def event(self) -> dict[str, Any]:
        """Return the next event."""
        block = await self.next(lambda block: not block.control and block.value("data"))
        found: dict[str, Any] = block.data
        assert found["type"] == "event"
        return found


class Rig:
    """A running node and the clients that a test opened."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.node = app.node
        self.port = app.port
        self.open: list[Wire] = []

    # WebSocket

    async def wire(self, *, receive_bytes: int | None = None, first: bytes = b"") -> Wire:
        wire = await Wire.open(self.port, receive_bytes=receive_bytes, first=first)
        self.open.append(wire)
        return wire

    def handshake(self, encoding: str | None = JSON, **headers: str | None) -> bytes:
        """Return the request that opens a WebSocket; `headers` with None are left out."""
        fields: dict[str, str | None] = {
            "Host": f"127.0.0.1:{self.port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": b64encode(bytes(range(16))).decode(),
        }
        if encoding is not None:
            fields["Sec-WebSocket-Protocol"] = f"galecast.v1.{encoding}"
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
        return "\r\n".join(("GET /v1/ws HTTP/1.1", *lines, "", "")).encode()

    async def ws(
        self,
        encoding: str = JSON,
        *,
        token: str | None = None,
        connect: bool = True,
        early: bytes = b"",
        receive_bytes: int | None = None,
        **headers: str,
    ) -> Client:
        """Open a WebSocket and, unless told otherwise, the session on it."""
        client = await Client.open(self.port, receive_bytes=receive_bytes)
        assert isinstance(client, Client)
        self.open.append(client)
        client.encoding = encoding
        await client.write(self.handshake(encoding, **headers) + early)
        client.handshake = parse_head(await client.take_until(b"\r\n\r\n"))
        assert client.handshake.status == 101, await client.rest()
        if connect:
            more = {} if token is None else {"token": token}
            assert (await client.call("connect", **more))["type"] == "connected"
        return client

    async def refused_ws(self, **headers: str | None) -> Response:
        """Try a handshake that is refused; return the response."""
        wire = await self.wire()
        await wire.write(self.handshake(**headers))
        return await self.response(wire)

    # HTTP

    async def response(self, wire: Wire) -> Response:
        response = parse_head(await wire.take_until(b"\r\n\r\n"))
        response.body = await wire.take(int(response.headers.get("content-length", "0")))
        return response

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        version: str = "1.1",
        **headers: str,
    ) -> Response:
        fields = {"Host": f"127.0.0.1:{self.port}", "Connection": "close"}
        payload = b""
        if body is not None:
            payload = body if isinstance(body, bytes) else json.dumps(body).encode()
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(payload))}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{name}: {value}" for name, value in fields.items()]
        head = "\r\n".join((f"{method} {path} HTTP/{version}", *lines, "", ""))
        wire = await self.wire(first=head.encode("utf-8") + payload)
        response = parse_head(await wire.take_until(b"\r\n\r\n"))
        if method != "HEAD":
            response.body = await wire.rest()
        wire.close()
        return response

    async def publish(self, channel: str, data: Any = None, **fields: Any) -> dict[str, Any]:
        """Publish over HTTP; return the acknowledgement."""
        event = {"channel": channel, "data": data, **fields}
        response = await self.request("POST", "/v1/events", event, **BEARER)
        assert response.status == 200, response.body
        found: dict[str, Any] = response.json
        return found

    # Server-Sent Events

    async def sse(self, query: str, *, receive_bytes: int | None = None, **headers: str) -> Stream:
        """Open a stream; its head was read and is 200."""
        stream = await Stream.open(self.port, receive_bytes=receive_bytes)
        assert isinstance(stream, Stream)
        self.open.append(stream)
        version = headers.pop("version", "1.1")
        fields = {"Host": f"127.0.0.1:{self.port}", "Accept": "text/event-stream"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{name}: {value}" for name, value in fields.items()]
        request = (f"GET /v1/sse?{query} HTTP/{version}", *lines, "", "")
        await stream.write("\r\n".join(request).encode())
        stream.head = parse_head(await stream.take_until(b"\r\n\r\n"))
        assert stream.head.status == 200, await stream.rest()
        return stream

    # Looking in

    def refusals(self, reason: str) -> int:
        """Return what `galecast_refusals_total` says of a reason."""
        return self.counter(f'galecast_refusals_total{{reason="{reason}"}}')

    def counter(self, series: str) -> int:
        text, _type = self.node.metrics.exposition(None)
        for line in text.decode().splitlines():
            if line.rpartition(" ")[0] == series:
                return int(float(line.rpartition(" ")[2]))
        raise AssertionError(f"no such series: {series}")

    @property
    def sessions(self) -> list[Any]:
        return list(self.node.hub.sessions.values())

    def nobody_left(self) -> bool:
        """Whether nothing of any connection remains."""
        node = self.node
        return not (
            self.app.live.connections()
            or node.hub.sessions
            or node.occupancy.sessions
            or len(node.occupancy)
            or node.metrics.unsent_bytes
            or node.hub.subscriptions()
        )


def token(
    sub: str = "u1",
    grants: Mapping[str, Sequence[str]] | None = None,
    *,
    ttl_s: float = 7_200,
    secret: str = DEV_SECRET,
    **claims: Any,
) -> str:
    """Return a JWT as the development secret signs it.

    It holds for long: one that is made when tests are collected is used much later.
    """
    now = time.time()
    payload = {"sub": sub, "exp": now + ttl_s, "iat": int(now), **claims}
    payload["grants"] = {">": list(ALL)} if grants is None else grants
    return jwt.encode(payload, secret, algorithm="HS256")


@asynccontextmanager
async def live(**overrides: Any) -> AsyncIterator[Rig]:
    """Run a node in development mode; `session__ping_s=0.2` overrides a setting by its path."""
    settings = load({"dev": "true", "port": "0"}, {}, None).settings
    quick = {"drain.delay_s": 0.0, "session.close_timeout_s": 0.5}
    given = {path.replace("__", "."): value for path, value in overrides.items()}
    app = App(changed(settings, quick | given), asyncio.get_running_loop())
    rig = Rig(app)
    try:
        await app.start()
        yield rig
    finally:
        for wire in rig.open:
            wire.close()
        await app.close()
