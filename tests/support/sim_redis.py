"""A Redis in a simulated world: the product's scripts run as they are, networks as the seed says.

It is one in memory (`memory_redis`), or a real one on one blocking connection: either way a command
is carried out at the very step in which it arrives, at the world's time. Between that and the nodes
lie lines, on which pipelines, answers and messages travel, are late, or are lost.
"""

import asyncio
import random
import socket
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, cast

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from pubsub.redis_client import Part
from redis_server import RedisServer
from sim_backplane import Faults
from sim_scheduler import Line, Process, Scheduler

_ASK_TIMEOUT_S = 2.0
_READ_BYTES = 65_536
_END = b"all was answered"


class Server(Protocol):
    """What carries commands out at once; `pushed` holds what they published, in order."""

    pushed: list[tuple[bytes, bytes]]

    def begin(self, pattern: str) -> None:
        """A world begins, whose pub/sub channels fit a pattern; no script is known."""

    def ask(self, commands: Sequence[tuple[Part, ...]]) -> list[Any]: ...

    def end(self, pattern: str) -> None: ...


class Wire:
    """One blocking connection to a server, on which what is published comes too."""

    def __init__(self, server: RedisServer) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(str(server.socket))
        self._reader = hiredis.Reader()
        self.pushed: list[tuple[bytes, bytes]] = []
        self.ask([("HELLO", 3)])

    def ask(self, commands: Sequence[tuple[Part, ...]]) -> list[Any]:
        """Carry commands out; `pushed` holds what they published, in order."""
        # What a command publishes comes behind its answer, and before that of the next one.
        packed = [hiredis.pack_command(cast(Any, each)) for each in (*commands, ("PING", _END))]
        self._socket.sendall(b"".join(packed))
        answers: list[Any] = []
        while True:
            answer = self._reader.gets()
            if answer == _END:
                return answers
            if answer is False:
                self._reader.feed(self._socket.recv(_READ_BYTES))
            elif isinstance(answer, hiredis.PushNotification):
                kind, *said = answer
                if kind == b"pmessage":
                    self.pushed.append((said[1], said[2]))
            else:
                answers.append(_read(answer))

    def begin(self, pattern: str) -> None:
        self.pushed.clear()
        self.ask([("SCRIPT", "FLUSH"), ("PSUBSCRIBE", pattern)])

    def end(self, pattern: str) -> None:
        self.ask([("PUNSUBSCRIBE", pattern)])

    def close(self) -> None:
        self._socket.close()


def _read(answer: Any) -> Any:
    if not isinstance(answer, hiredis.ReplyError):
        return answer
    text = str(answer)
    if text.startswith("NOSCRIPT"):
        return NoScriptError(text.partition(" ")[2])
    return ResponseError(text)


class SimRedis:
    """The server as the nodes of a world have it; under one prefix, which the world owns."""

    def __init__(self, scheduler: Scheduler, wire: Server, prefix: str, faults: Faults) -> None:
        self.scheduler = scheduler
        self.rng: random.Random = scheduler.rng
        self.faults = faults
        self.away = False
        self.calls = 0
        self.connections: list[SimPubSub] = []
        # All that was published, in order: pub/sub channel and payload.
        self.published: list[tuple[bytes, bytes]] = []
        self._wire = wire
        self._pattern = f"{{{prefix}:*"
        # Each run meets a server that knows no script.
        wire.begin(self._pattern)

    def ask(self, *commands: tuple[Part, ...]) -> list[Any]:
        """Carry commands out at once, and send what they publish on its way."""
        self.calls += len(commands)
        answers = self._wire.ask(commands)
        pushed = self._wire.pushed
        if pushed:
            self.published += pushed
            for channel, payload in pushed:
                for each in self.connections:
                    each.publish(channel, payload)
            pushed.clear()
        # In what order members of sets are told is the server's own chance.
        return [
            sorted(answer) if command[0] == "SRANDMEMBER" else answer
            for command, answer in zip(commands, answers, strict=True)
        ]

    def keys(self) -> list[bytes]:
        return sorted(self._wire.ask([("KEYS", self._pattern)])[0])

    def wipe(self) -> None:
        """All is forgotten."""
        keys = self.keys()
        if keys:
            self._wire.ask([("DEL", *cast(list[Any], keys))])

    def close(self) -> None:
        self._wire.end(self._pattern)
        self.wipe()


class SimTopology:
    """How one node reaches the server; see `pubsub.redis_client.Topology`."""

    def __init__(self, server: SimRedis, process: Process) -> None:
        self._server = server
        self._process = process

    async def ask(
        self,
        commands: Sequence[tuple[Part, ...]],
        *,
        replicas: int = 0,
        replicas_timeout_ms: int = 0,
    ) -> list[Any]:
        answer: asyncio.Future[list[Any]] = self._process.loop.create_future()
        self._server.scheduler.soon(None, partial(self._arrive, list(commands), answer))
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            return await answer

    def _arrive(
        self, commands: list[tuple[Part, ...]], answer: "asyncio.Future[list[Any]]"
    ) -> None:
        server = self._server
        faults, soon = server.faults, server.scheduler.soon
        dice = server.rng.random()
        # What a dead process has sent arrives nonetheless.
        if server.away or dice < faults.refuse:
            soon(self._process, partial(_fail, answer))
            return
        answers = server.ask(*commands)
        if dice < faults.refuse + faults.forget:
            soon(self._process, partial(_fail, answer))
        elif dice > faults.refuse + faults.forget + faults.silence:
            soon(self._process, partial(_settle, answer, answers))

    def listening(self) -> AbstractConnection:
        connection = SimPubSub(self._server, self._process)
        self._server.connections.append(connection)
        return cast(AbstractConnection, connection)

    async def close(self) -> None:
        pass


def _fail(answer: "asyncio.Future[list[Any]]") -> None:
    if not answer.done():
        answer.set_exception(RedisConnectionError("lost"))


def _settle(answer: "asyncio.Future[list[Any]]", answers: list[Any]) -> None:
    if not answer.done():
        answer.set_result(answers)


class SimPubSub:
    """A connection for listening, of which `pubsub.redis_line.Line` knows no better."""

    def __init__(self, server: SimRedis, process: Process) -> None:
        self._server = server
        self.process = process
        self._down = Line(server.scheduler, process)
        self._up = Line(server.scheduler, None)
        self._topics: set[bytes] = set()
        self._inbox: deque[list[Any] | Exception] = deque()
        self._some = asyncio.Event()

    # What the server does

    def publish(self, channel: bytes, payload: bytes) -> None:
        server = self._server
        if channel in self._topics and server.rng.random() >= server.faults.loss:
            self._down.send(partial(self._hear, [b"message", channel, payload]))

    def lose(self) -> None:
        """It breaks; the node learns of it some time."""
        self._topics.clear()
        self._up.cut()
        self._down.cut()
        self._down.send(partial(self._hear, RedisConnectionError("lost")))

    def _arrive(self, verb: str, names: Sequence[bytes]) -> None:
        if self not in self._server.connections:
            return
        for name in names:
            if verb == "SUBSCRIBE":
                self._topics.add(name)
            else:
                self._topics.discard(name)
            self._down.send(partial(self._hear, [verb.lower().encode(), name, 1]))

    def _hear(self, what: list[Any] | Exception) -> None:
        self._inbox.append(what)
        self._some.set()

    # What the node does

    async def connect(self) -> None:
        if self._server.away:
            raise RedisConnectionError("away")

    async def disconnect(self, nowait: bool = False) -> None:
        if self in self._server.connections:
            self._server.connections.remove(self)
        self._topics.clear()

    def pack_command(self, verb: str, *names: bytes) -> tuple[str, Sequence[bytes]]:
        return verb, names

    async def send_packed_command(
        self, packed: tuple[str, Sequence[bytes]], check_health: bool = True
    ) -> None:
        self._up.send(partial(self._arrive, *packed))

    async def read_response(self, **_options: Any) -> Any:
        while not self._inbox:
            self._some.clear()
            await self._some.wait()
        what = self._inbox.popleft()
        if isinstance(what, Exception):
            raise what
        return what
