"""Clients of a fleet that come back and resume."""

import asyncio
import json
import random
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final
from urllib.parse import urlsplit

from websockets import Subprotocol
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from fleet import KEY, make_token
from fleet_http import open_exchange, read_pieces
from one_session import JSON, MSGPACK, decode, encode
from pubsub.position import Position

PATIENCE_S: Final = 25.0
LOST = (
    OSError,
    EOFError,
    TimeoutError,
    ConnectionClosed,
    InvalidHandshake,
    asyncio.LimitOverrunError,
)


async def until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Wait until `condition` holds; what it waits for takes real time."""
    deadline = asyncio.get_running_loop().time() + patience_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "the condition never held"
        await asyncio.sleep(0.02)


@dataclass(slots=True)
class Followed:
    """What a client knows of one channel: its position, and each event with its own.

    `cuts` are the places among the events where the client was told that some may be missing.
    """

    since: str | None = None
    first: Position | None = None
    events: list[tuple[Position, str]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    members: set[str] = field(default_factory=set)

    @property
    def ids(self) -> list[str]:
        return [event_id for _position, event_id in self.events]


class Follower(ABC):
    """A client that stays with its channels until `close`, whatever happens to its connections."""

    def __init__(
        self,
        url: str,
        tls: ssl.SSLContext | None,
        channels: Sequence[str],
        *,
        user: str | None = None,
    ) -> None:
        self.url = url
        self.tls = tls
        self.channels = {channel: Followed() for channel in channels}
        self.bearer = KEY if user is None else make_token(user)
        self.presence = user is not None
        self.nodes: list[str] = []
        self.session = ""
        self.retry_in_ms = 0
        self.unexpected: list[dict[str, Any]] = []
        # How many connections ended, and how many were never made.
        self.lost = 0
        self.refused = 0
        self.live = False
        self._closing = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    @abstractmethod
    async def _stay(self) -> None:
        """Connect and follow all channels, until the connection ends."""

    def on_begin(self) -> None:
        """A connection is about to be made."""
        self.live = False

    def on_end(self, error: Exception | None) -> None:
        """It ended, or was never made."""
        self.live = False

    async def _run(self) -> None:
        while not self._closing.is_set():
            before = len(self.nodes)
            self.on_begin()
            ended: Exception | None = None
            try:
                await self._stay()
            except LOST as error:
                ended = error
            self.on_end(ended)
            if len(self.nodes) > before:
                self.lost += 1
            else:
                self.refused += 1
            pause = max(self.retry_in_ms / 1000, random.uniform(0.02, 0.3))
            self.retry_in_ms = 0
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)

    async def close(self) -> None:
        """End it."""
        self._closing.set()
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    @property
    def node(self) -> str:
        """The node that it is on, or was on last."""
        return self.nodes[-1] if self.nodes else ""

    def take(self, message: dict[str, Any]) -> None:
        """Take what the server sent; raises ConnectionError where it takes a new connection."""
        kind = message["type"]
        if kind == "event":
            followed = self.channels[message["channel"]]
            followed.events.append((Position.parse(message["position"]), message["id"]))
            followed.since = message["position"]
        elif kind == "connected":
            self.nodes.append(message["node"])
            self.session = message["session"]
        elif kind == "subscribed":
            self._on_subscribed(self.channels[message["channel"]], message)
        elif kind == "reset":
            followed = self.channels[message["channel"]]
            followed.cuts.append(len(followed.events))
            followed.since = message["position"]
        elif kind == "closing":
            self.retry_in_ms = message.get("retry_in_ms", 0)
        elif kind == "presence":
            self._on_presence(self.channels[message["channel"]].members, message)
        elif kind == "error" and message["retry"]:
            raise ConnectionError(message["code"])
        else:
            self.unexpected.append(message)

    def _on_subscribed(self, followed: Followed, message: dict[str, Any]) -> None:
        if message.get("recovered") is False:
            followed.cuts.append(len(followed.events))
        if followed.first is None:
            followed.first = Position.parse(message["position"])
        followed.since = message["position"]
        followed.members = {member["session"] for member in message.get("members", ())}
        self.live = True

    def _on_presence(self, members: set[str], message: dict[str, Any]) -> None:
        action = message["action"]
        if action == "sync":
            members.clear()
            members.update(member["session"] for member in message["members"])
        elif action == "leave":
            members.discard(message["member"]["session"])
        else:
            members.add(message["member"]["session"])


class WebSocketFollower(Follower):
    """Over WebSocket, in one of the encodings."""

    subprotocol = JSON
    max_rate_hz: float | None = None
    # What the connection was closed with, 1006 where it was cut, 0 while it is not closed.
    code = 0
    # Whether it has buffers that hold little.
    narrow = False

    async def _stay(self) -> None:
        async with connect(
            self.url.replace("http", "ws", 1) + "/v1/ws",
            ssl=self.tls,
            subprotocols=[Subprotocol(self.subprotocol)],
            additional_headers={"Authorization": f"Bearer {self.bearer}"},
            compression=None,
            proxy=None,
            open_timeout=10,
            close_timeout=1,
            sock=await _dial_narrow(self.url) if self.narrow else None,
        ) as connection:
            try:
                await self._follow(connection)
            finally:
                self.code = connection.close_code or 0

    async def _follow(self, connection: ClientConnection) -> None:
        numbers = count(1)
        for channel, followed in self.channels.items():
            command: dict[str, Any] = {
                "type": "subscribe",
                "ref": next(numbers),
                "channel": channel,
                "presence": self.presence,
            }
            if followed.since is not None:
                command["since"] = followed.since
            if self.max_rate_hz is not None:
                command["max_rate_hz"] = self.max_rate_hz
            await connection.send(encode(self.subprotocol, command))
        async for payload in connection:
            await self.before_reading()
            self.take(decode(self.subprotocol, payload))

    async def before_reading(self) -> None:
        """Wait as long as it does not want to read on."""


async def _dial_narrow(url: str) -> socket.socket:
    """Return a connection on which a kernel, at either end, keeps little that is not read."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    # The sender's buffer grows with the size of segments, which are large on the loopback.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    place = urlsplit(url)
    await asyncio.get_running_loop().sock_connect(sock, (place.hostname, place.port))
    return sock


class MsgpackFollower(WebSocketFollower):
    """Over WebSocket, in MessagePack."""

    subprotocol = MSGPACK


class StreamFollower(Follower):
    """Over Server-Sent Events."""

    _cursor = ""

    async def _stay(self) -> None:
        names = "&".join(f"channel={channel}" for channel in self.channels)
        headers = {"Authorization": f"Bearer {self.bearer}", "Accept": "text/event-stream"}
        if self._cursor:
            headers["Last-Event-ID"] = self._cursor
        elif any(followed.since for followed in self.channels.values()):
            positions = (followed.since or "" for followed in self.channels.values())
            names += f"&since={','.join(positions)}"
        async with open_exchange(self.url, self.tls) as exchange:
            answer = await exchange.begin("GET", f"/v1/sse?{names}", headers=headers)
            if answer.status != 200:
                raise ConnectionError(answer.status)
            left = b""
            async for piece in read_pieces(exchange.reader, answer.headers):
                *blocks, left = (left + piece).split(b"\n\n")
                for block in blocks:
                    self._take_block(block)

    def _take_block(self, block: bytes) -> None:
        fields = dict(
            line.split(b": ", 1) for line in block.split(b"\n") if line and line[:1] != b":"
        )
        if b"data" in fields:
            self.take(json.loads(fields[b"data"]))
        if b"id" in fields:
            # Only what was dealt with is not to come again.
            self._cursor = fields[b"id"].decode()


KINDS: Final = (WebSocketFollower, MsgpackFollower, StreamFollower)


@asynccontextmanager
async def following(
    url: str,
    tls: ssl.SSLContext | None,
    channels: Sequence[str],
    kinds: Iterable[type[Follower]],
    *,
    users: str | None = None,
) -> AsyncIterator[list[Follower]]:
    """Open clients, wait until all of them are there, and end them with the block.

    With `users` each is a user of its own, whose name begins so, and sees presence.
    """
    followers = [
        kind(url, tls, channels, user=None if users is None else f"{users}-{place}")
        for place, kind in enumerate(kinds)
    ]
    try:
        await until(
            lambda: all(
                each.first is not None for one in followers for each in one.channels.values()
            )
        )
        yield followers
    finally:
        await asyncio.gather(*(follower.close() for follower in followers))
