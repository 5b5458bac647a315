"""How does an event reach every node? This file: the connection on which Redis sends to this node.

Pub/sub loses what is sent while nobody listens, and tells nobody. So whatever may have opened a gap
is told: `on_gap`, with the addresses, for what Redis said unasked; `on_restored` when a lost
connection was replaced and every subscription was confirmed anew.
"""

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Callable
from itertools import groupby
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from pubsub.errors import BrokerUnavailable
from pubsub.redis_client import Topology

_log = logging.getLogger(__name__)

_PAUSE_S: Final = (0.05, 2.0)
# Names in one SUBSCRIBE.
_BATCH: Final = 500
# Reading gives way to the rest of the node after this long.
_SLICE_S: Final = 0.005

Receive = Callable[[bytes], None]


class _Topic:
    """A subscription that is wanted: who receives, whether Redis confirmed, who waits for it."""

    __slots__ = ("confirmed", "receive", "waiting")

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.confirmed = False
        self.waiting: list[asyncio.Future[None]] = []


class RedisListener:
    """Owns the pub/sub connection, and the tasks that keep it; a lost one is replaced.

    Messages are handed over by plain calls, in the order in which Redis sent them. `reconnects`
    counts connections that were lost, `surprises` what Redis said unasked.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        on_restored: Callable[[], None],
        on_gap: Callable[[str], None],
    ) -> None:
        self.reconnects = 0
        self.surprises = 0
        self.restored = False
        self._topology = topology
        self._on_restored = on_restored
        self._on_gap = on_gap
        self._topics: dict[bytes, _Topic] = {}
        # What this connection has yet to confirm, in the order in which it was asked.
        self._expected: dict[bytes, deque[_Topic | None]] = {}
        # What is yet to be said: a topic to join, or None to leave.
        self._outbox: list[tuple[bytes, _Topic | None]] = []
        self._post = asyncio.Event()
        self._connected = False
        self._unconfirmed: set[bytes] = set()
        self._task: asyncio.Task[None] | None = None
        self._session: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Connect, and stay connected; called once."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def subscribe(self, address: str, receive: Receive) -> "asyncio.Future[None]":
        """Hand what comes on `address` to `receive`; the future is done when Redis has confirmed.

        An address that is subscribed already keeps its receiver. Raises BrokerUnavailable when
        closed. The future may be cancelled; the subscription stays.
        """
        if self._closed:
            raise BrokerUnavailable("the broker is closed")
        name = address.encode()
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = _Topic(receive)
            self._say(name, topic)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if topic.confirmed:
            future.set_result(None)
        else:
            topic.waiting.append(future)
        return future

    def unsubscribe(self, address: str) -> None:
        """Hand over nothing more that comes on `address`."""
        name = address.encode()
        topic = self._topics.pop(name, None)
        if topic is None:
            return
        self._unconfirmed.discard(name)
        _fail(topic, "the subscription was ended")
        self._say(name, None)
        self._check_restored()

    def break_off(self) -> None:
        """Replace the connection: it is not what it seems."""
        if self._session is not None:
            self._session.cancel()

    async def close(self) -> None:
        """Let go of the connection; may be called twice."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for topic in self._topics.values():
            _fail(topic, "the broker is closed")
        self._topics.clear()

    # The connection

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause = _PAUSE_S[0]
        while True:
            began = loop.time()
            self._session = loop.create_task(self._serve())
            try:
                await asyncio.wait([self._session])
            finally:
                self._session.cancel()
                await asyncio.wait([self._session])
            # Else Redis would be asked again at once, for everything, if it ends each connection.
            if loop.time() - began > _PAUSE_S[1]:
                pause = _PAUSE_S[0]
            self.reconnects += self.restored
            self._forget()
            _tell_end(self._session)
            await asyncio.sleep(random.uniform(0.5, 1) * pause)  # noqa: S311
            pause = min(pause * 2, _PAUSE_S[1])

    async def _serve(self) -> None:
        """Serve one connection until it fails."""
        connection = self._topology.listening()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            self._connected = True
            self._unconfirmed = set(self._topics)
            self._outbox = list(self._topics.items())
            self._post.set()
            self._check_restored()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(connection))
                tasks.create_task(self._read(connection))
        finally:
            await connection.disconnect(nowait=True)

    def _forget(self) -> None:
        self.restored = self._connected = False
        self._expected.clear()
        self._outbox.clear()
        for topic in self._topics.values():
            topic.confirmed = False

    def _check_restored(self) -> None:
        if not self.restored and self._connected and not self._unconfirmed:
            self.restored = True
            self._on_restored()

    # What is said

    def _say(self, name: bytes, topic: _Topic | None) -> None:
        # A new connection joins all topics anyway.
        if self._connected:
            self._outbox.append((name, topic))
            self._post.set()

    async def _write(self, connection: AbstractConnection) -> None:
        while True:
            await self._post.wait()
            self._post.clear()
            outbox, self._outbox = self._outbox, []
            for leave, run in groupby(outbox, key=lambda each: each[1] is None):
                said = list(run)
                for at in range(0, len(said), _BATCH):
                    batch = said[at : at + _BATCH]
                    for name, topic in batch:
                        self._expected.setdefault(name, deque()).append(topic)
                    verb = "UNSUBSCRIBE" if leave else "SUBSCRIBE"
                    packed = connection.pack_command(verb, *(name for name, _topic in batch))
                    await connection.send_packed_command(packed, check_health=False)

    # What is heard

    async def _read(self, connection: AbstractConnection) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + _SLICE_S
        while True:
            # Silence is for the probe to notice.
            reply = await connection.read_response(
                disable_decoding=True, timeout=math.inf, disconnect_on_error=False
            )
            self._hear(reply)
            if loop.time() > end:
                await asyncio.sleep(0)
                end = loop.time() + _SLICE_S

    def _hear(self, reply: Any) -> None:
        kind, name, what = reply
        if kind == b"message":
            topic = self._topics.get(name)
            if topic is not None:
                topic.receive(what)
        elif kind == b"subscribe":
            self._confirm(name)
        elif kind == b"unsubscribe":
            expected = self._expected.get(name)
            if expected and expected[0] is None:
                self._expect_no_more(name, expected)
            else:
                self._surprise(name)

    def _confirm(self, name: bytes) -> None:
        expected = self._expected.get(name)
        topic = expected[0] if expected else None
        if not expected or topic is None:
            self._surprise(name)
            return
        self._expect_no_more(name, expected)
        if self._topics.get(name) is not topic:
            return
        if topic.confirmed:
            self._on_gap(name.decode())
        topic.confirmed = True
        for future in topic.waiting:
            if not future.done():
                future.set_result(None)
        topic.waiting.clear()
        self._unconfirmed.discard(name)
        self._check_restored()

    def _expect_no_more(self, name: bytes, expected: "deque[_Topic | None]") -> None:
        expected.popleft()
        if not expected:
            del self._expected[name]

    def _surprise(self, name: bytes) -> None:
        """Redis said what was not asked: join again, and tell of a gap when that is confirmed."""
        topic = self._topics.get(name)
        if topic is not None:
            self.surprises += 1
            self._say(name, topic)


def _fail(topic: _Topic, text: str) -> None:
    for future in topic.waiting:
        if not future.done():
            future.set_exception(BrokerUnavailable(text))
    topic.waiting.clear()


def _tell_end(session: "asyncio.Task[None]") -> None:
    """Log why a connection ended; what is unexpected, in full."""
    if session.cancelled():
        _log.info("Redis pub/sub connection was broken off")
        return
    error = session.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, RedisError | OSError | TimeoutError):
        _log.info("Redis pub/sub connection ended: %s", error)
    elif error is not None:
        _log.error("Redis pub/sub connection failed", exc_info=error)
