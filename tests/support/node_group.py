"""Several nodes in one process that share a control: orders, notices, what can be taken once.

`open_group` makes nodes without sockets, `serve_group` nodes that serve HTTP and WebSocket. Each
has a broker of its own: what they share is what nodes tell each other beside events.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from websockets.asyncio.client import ClientConnection, connect

from config.rules import ACTIONS, ChannelRules
from config.settings import Settings, default_rule
from delivery_rig import LineWire, NotedConnection, as_connection, until
from handlers.live import Live
from handlers.routes import make_application
from nodes import KEY, Answer, make_settings
from pubsub.control import Answers, ControlSink
from pubsub.errors import BrokerUnavailable
from pubsub.memory_broker import MemoryBroker
from pubsub.memory_presence import MemoryPresence
from server.auth import Auth
from server.lifecycle import Phase
from server.metrics import Metrics
from server.node import Node, assemble
from server.principal import Principal
from server.session import Session
from server.stream import StreamSession, Wanted
from server.timetable import Timetable


@dataclass(slots=True)
class Group:
    """What the nodes share. Those in `silent` carry nothing out, those in `late` are told of
    notices only by `catch_up`; `garbled` answers stand in place of a node's own. While `away`,
    every call fails; those named in `fails` fail alone."""

    sinks: dict[str, ControlSink] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)
    garbled: dict[str, bytes] = field(default_factory=dict)
    fails: set[str] = field(default_factory=set)
    away: bool = False
    taken: set[str] = field(default_factory=set)
    notices: list[tuple[str, str, float, float]] = field(default_factory=list)
    orders: int = 0

    def check(self, call: str) -> None:
        if self.away or call in self.fails:
            raise BrokerUnavailable("away")

    def catch_up(self) -> None:
        """Let the late ones compare."""
        for name in self.late:
            for notice in self.notices:
                self.sinks[name].on_notice(*notice)


class GroupControl:
    """One node's part of a group."""

    def __init__(self, group: Group, name: str) -> None:
        self._group = group
        self._name = name

    def bind(self, sink: ControlSink) -> None:
        self._group.sinks[self._name] = sink

    async def start(self) -> None:
        """Nothing has to be begun."""

    def problem(self) -> str | None:
        return None

    async def ask(self, order: bytes) -> Answers:
        group = self._group
        group.check("ask")
        group.orders += 1
        asked = [name for name in group.sinks if name not in group.silent]
        found = await asyncio.gather(*(group.sinks[name].on_order(order) for name in asked))
        answers = dict(zip(asked, found, strict=True)) | group.garbled
        return Answers(answers, tuple(group.silent))

    async def take(self, name: str, ttl_s: float) -> bool:
        self._group.check("take")
        first = name not in self._group.taken
        self._group.taken.add(name)
        return first

    async def notify(self, topic: str, name: str, at_s: float, until_s: float) -> None:
        self._group.check("notify")
        self._group.notices.append((topic, name, at_s, until_s))
        for node, sink in self._group.sinks.items():
            if node not in self._group.late:
                sink.on_notice(topic, name, at_s, until_s)

    async def close(self) -> None:
        """Nothing is held."""


async def no_pause(_seconds: float) -> None:
    """Wait as little as can be."""
    await asyncio.sleep(0)


def _node(name: str, group: Group, settings: Settings, rules: ChannelRules) -> Node:
    loop, numbers = asyncio.get_running_loop(), count(1)
    node = assemble(
        settings,
        name=name,
        rules=rules,
        broker=MemoryBroker(rules),
        presence=MemoryPresence(),
        auth=Auth(settings, rules),
        metrics=Metrics(version="9.8.7"),
        timetable=Timetable(loop, tick_s=0.05),
        # In turn, when listed by id: s1-a, s1-b, s2-a.
        new_id=lambda: f"s{next(numbers)}-{name}",
        control=GroupControl(group, name),
        sleep=no_pause,
    )
    node.lifecycle.phase = Phase.READY
    return node


@asynccontextmanager
async def open_group(*names: str, **changes: Any) -> AsyncIterator[tuple[Group, list[Node]]]:
    """Open nodes without sockets; `changes` are those of the settings."""
    settings, group = make_settings(**changes), Group()
    rules = ChannelRules(settings.channels, default_rule(settings))
    nodes = [_node(name, group, settings, rules) for name in names]
    try:
        yield group, nodes
    finally:
        for node in nodes:
            for session in list(node.hub.sessions.values()):
                session.on_lost()
            await node.hub.close()
            await node.broker.close()
            node.timetable.close()


WIRE = LineWire()


class StreamWire(LineWire):
    transport = "sse"


def user(node: Node, name: str = "u1", *, issued_at: float = 1_000.0, **grants: Any) -> Principal:
    """A user with a token issued then; granted all on `a` unless told otherwise."""
    return Principal(
        kind="user",
        user=name,
        grants=node.auth._grants.grants(grants or {"a": ACTIONS}),
        issued_at=issued_at,
        expires_at=9e9,
    )


def opened(node: Node, principal: Principal) -> tuple[Session, NotedConnection]:
    """A session of that principal, over WebSocket."""
    connection = NotedConnection()
    node.occupancy.enter("127.0.0.1", principal.user)
    session = Session(node, WIRE, as_connection(connection), "127.0.0.1", principal)
    session.open(principal)
    return session, connection


async def streaming(
    node: Node, principal: Principal, proof: bytes | None = None
) -> tuple[Session, NotedConnection]:
    """The same as an event stream of `a`."""
    connection = NotedConnection()
    node.occupancy.enter("127.0.0.1", principal.user)
    session = StreamSession(
        node, StreamWire(), as_connection(connection), "127.0.0.1", principal, proof=proof
    )
    session.begin([Wanted("a")], 1000)
    await until(lambda: connection.of("subscribed"))
    return session, connection


@dataclass(slots=True)
class ServedNode:
    """A node of a group that serves on a port."""

    node: Node
    port: int
    client: AsyncHTTPClient

    async def ask(
        self, method: str, path: str, body: Any = None, *, bearer: str | None = KEY, **headers: str
    ) -> Answer:
        """Send one request, with KEY unless told otherwise; what is no bytes is sent as JSON."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if bearer is not None:
            fields["Authorization"] = f"Bearer {bearer}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if data is None and method in ("POST", "PUT"):
            data = b""
        response = await self.client.fetch(
            f"http://127.0.0.1:{self.port}{path}",
            method=method,
            headers=fields,
            body=data,
            raise_error=False,
            allow_nonstandard_methods=True,
        )
        return Answer(response.code, response.headers, response.body or b"")

    @asynccontextmanager
    async def session(self, bearer: str) -> AsyncIterator["Member"]:
        """A live session over WebSocket."""
        headers = {"Authorization": f"Bearer {bearer}"}
        url = f"ws://127.0.0.1:{self.port}/v1/ws"
        async with connect(
            url, additional_headers=headers, compression=None, proxy=None
        ) as connection:
            yield Member(connection, json.loads(await connection.recv())["session"])


@dataclass(slots=True)
class Member:
    """A client of a node."""

    connection: ClientConnection
    id: str
    refs: "count[int]" = field(default_factory=lambda: count(1))

    async def hear(self, *types: str) -> dict[str, Any]:
        """Return the next message of these types (none: of any)."""
        while True:
            message: dict[str, Any] = json.loads(await self.connection.recv())
            if not types or message["type"] in types:
                return message

    async def call(self, type_: str, **fields: Any) -> dict[str, Any]:
        """Send a command, return its reply."""
        ref = next(self.refs)
        await self.connection.send(json.dumps({"type": type_, "ref": ref} | fields))
        while True:
            message = await self.hear()
            if message.get("ref") == ref:
                return message


@asynccontextmanager
async def serve_group(*names: str, **changes: Any) -> AsyncIterator[tuple[Group, list[ServedNode]]]:
    """Open nodes that serve on ports of their own."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        group, nodes = await stack.enter_async_context(open_group(*names, **changes))
        client = AsyncHTTPClient(force_instance=True)
        stack.callback(client.close)
        served: list[ServedNode] = []
        for node in nodes:
            live = Live(node, loop)
            server = HTTPServer(make_application(node, live))
            (sock,) = bind_sockets(0, "127.0.0.1")
            server.add_sockets([sock])
            stack.push_async_callback(server.close_all_connections)
            stack.callback(live.abort)
            stack.callback(server.stop)
            served.append(ServedNode(node, sock.getsockname()[1], client))
        yield group, served
