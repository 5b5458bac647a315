"""How does an event reach every node? This file: one connection on which Redis sends to this node.

A line belongs to a listener, which has one for each server that it has to hear. It joins its topics
anew on each new connection, and tells its owner of whatever may have opened a gap.
"""

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, Final, Protocol

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import MovedError, RedisError

from pubsub.errors import BrokerUnavailable
from pubsub.redis_slots import slot_of_key
from pubsub.redis_url import Endpoint

_log = logging.getLogger(__name__)

_PAUSE_S: Final = (0.05, 2.0)
# How long connecting may take in all: finding the server, the handshake, the login.
_CONNECT_S: Final = 10.0
# Names in one SUBSCRIBE.
_BATCH: Final = 500
# Reading gives way to the rest of the node after this long.
_SLICE_S: Final = 0.005

Receive = Callable[[bytes], None]


class Topic:
    """A subscription that is wanted: who receives, whether Redis confirmed, who waits for it."""

    __slots__ = ("confirmed", "line", "receive", "waiting")

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.confirmed = False
        self.waiting: list[asyncio.Future[None]] = []
        self.line: Line | None = None

    def fail(self, text: str) -> None:
        """Tell those who wait that it was not confirmed."""
        for future in self.waiting:
            if not future.done():
                future.set_exception(BrokerUnavailable(text))
        self.waiting.clear()

    def confirm(self) -> None:
        """Tell those who wait that it stands."""
        self.confirmed = True
        for future in self.waiting:
            if not future.done():
                future.set_result(None)
        self.waiting.clear()


class LineOwner(Protocol):
    """Whoever is told what happens on a line."""

    def on_whole(self, line: "Line") -> None:
        """A new connection stands, and everything was confirmed on it."""

    def on_gap(self, address: str) -> None:
        """A subscription was interrupted, and stands again."""

    def on_surprise(self) -> None:
        """Redis said of a topic what was not asked."""

    def on_lost(self) -> None:
        """A connection is no more, told in the turn that this shows, before all else."""

    def on_end(self, line: "Line", whole: bool) -> None:
        """A connection ended, or could not be made; `whole`: all stood on it."""

    def on_moved(self, slot: int, host: str, port: int) -> None:
        """The server says that another one sends what is in a slot."""


class Line:
    """Keeps a connection to one server, and on it the topics that were joined.

    - `home`: the server; None: whichever `connect` chooses.
    - `sharded`: whether the topics are of sharded pub/sub.

    Messages are handed over by plain calls, in the order in which Redis sent them.
    """

    def __init__(
        self,
        home: Endpoint | None,
        connect: Callable[[], AbstractConnection],
        owner: LineOwner,
        *,
        sharded: bool,
    ) -> None:
        self.home = home
        self.whole = False
        self.topics: dict[bytes, Topic] = {}
        self._connect = connect
        self._owner = owner
        self._sharded = sharded
        self._shard = "S" if sharded else ""
        # What this connection has yet to confirm, in the order in which it was asked.
        self._expected: dict[bytes, deque[Topic | None]] = {}
        # What is yet to be said: a topic to join, or None to leave.
        self._outbox: list[tuple[bytes, Topic | None]] = []
        self._post = asyncio.Event()
        self._connected = False
        self._unconfirmed: set[bytes] = set()
        self._session: asyncio.Task[None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def unconfirmed(self) -> int:
        """How much a connection that stands has yet to confirm, before it is `whole`."""
        return len(self._unconfirmed) if self._connected else 0

    def join(self, name: bytes, topic: Topic) -> None:
        """Hear a topic from now on."""
        topic.line = self
        self.topics[name] = topic
        self._say(name, topic)

    def leave(self, name: bytes, *, say: bool = True) -> None:
        """Hear a topic no more; without `say`, Redis knows that already."""
        self.topics.pop(name).line = None
        self._unconfirmed.discard(name)
        if say:
            self._say(name, None)
        self._check_whole()

    def break_off(self) -> None:
        """Replace the connection: it is not what it seems."""
        if self._session is not None:
            self._session.cancel()

    async def close(self) -> None:
        """Let go of the connection; may be called twice."""
        self._task.cancel()
        await asyncio.wait([self._task])

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
            whole = self.whole
            self._forget()
            _tell_end(self._session)
            self._owner.on_end(self, whole)
            await asyncio.sleep(random.uniform(0.5, 1) * pause)  # noqa: S311
            pause = min(pause * 2, _PAUSE_S[1])

    async def _serve(self) -> None:
        """Serve one connection until it fails."""
        connection = self._connect()
        try:
            async with asyncio.timeout(_CONNECT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
            self._connected = True
            self._unconfirmed = set(self.topics)
            self._outbox = list(self.topics.items())
            self._post.set()
            self._check_whole()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(connection))
                tasks.create_task(self._read_on(connection))
        finally:
            await connection.disconnect(nowait=True)

    def _forget(self) -> None:
        self.whole = self._connected = False
        self._expected.clear()
        self._outbox.clear()
        for topic in self.topics.values():
            topic.confirmed = False

    def _check_whole(self) -> None:
        if not self.whole and self._connected and not self._unconfirmed:
            self.whole = True
            self._owner.on_whole(self)

    # What is said

    def _say(self, name: bytes, topic: Topic | None) -> None:
        # A new connection joins all topics anyway.
        if self._connected:
            self._outbox.append((name, topic))
            self._post.set()

    async def _write(self, connection: AbstractConnection) -> None:
        while True:
            await self._post.wait()
            self._post.clear()
            outbox, self._outbox = self._outbox, []
            for leaving, run in groupby(outbox, key=lambda each: each[1] is None):
                verb = f"{self._shard}{'UN' if leaving else ''}SUBSCRIBE"
                for batch in self._batches(list(run)):
                    for name, topic in batch:
                        self._expected.setdefault(name, deque()).append(topic)
                    names = (name for name, _topic in batch)
                    packed = connection.pack_command(verb, *names)
                    await connection.send_packed_command(packed, check_health=False)
                    # What the kernel takes at once does not give way to the rest of the node.
                    await asyncio.sleep(0)

    def _batches(
        self, said: list[tuple[bytes, Topic | None]]
    ) -> Iterator[list[tuple[bytes, Topic | None]]]:
        """Cut what is to be said into commands, which name one slot each if they are sharded."""
        by_slot: dict[int, list[tuple[bytes, Topic | None]]] = {0: said}
        if self._sharded:
            by_slot = {}
            for each in said:
                by_slot.setdefault(slot_of_key(each[0].decode()), []).append(each)
        for same in by_slot.values():
            for at in range(0, len(same), _BATCH):
                yield same[at : at + _BATCH]

    # What is heard

    async def _read_on(self, connection: AbstractConnection) -> None:
        try:
            await self._read(connection)
        finally:
            self._owner.on_lost()

    async def _read(self, connection: AbstractConnection) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + _SLICE_S
        while True:
            try:
                # Silence is for the probe to notice.
                reply = await connection.read_response(
                    disable_decoding=True, timeout=math.inf, disconnect_on_error=False
                )
            except MovedError as moved:
                self._move(moved)
            else:
                self._hear(reply)
            if loop.time() > end:
                await asyncio.sleep(0)
                end = loop.time() + _SLICE_S

    def _hear(self, reply: Any) -> None:
        kind, name, what = reply
        if self._sharded:
            kind = kind[1:]
        if kind == b"message":
            topic = self.topics.get(name)
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
        if self.topics.get(name) is not topic:
            return
        if topic.confirmed:
            self._owner.on_gap(name.decode())
        topic.confirm()
        self._unconfirmed.discard(name)
        self._check_whole()

    def _expect_no_more(self, name: bytes, expected: "deque[Topic | None]") -> None:
        expected.popleft()
        if not expected:
            del self._expected[name]

    def _surprise(self, name: bytes) -> None:
        """Redis said what was not asked: join again, and tell of a gap when that is confirmed.

        When a slot has moved, the former owner ends its subscriptions unasked, and names the new
        one to whoever joins again.
        """
        topic = self.topics.get(name)
        if topic is not None:
            self._owner.on_surprise()
            self._say(name, topic)

    def _move(self, moved: MovedError) -> None:
        """Nothing of what was asked for a slot will be confirmed here."""
        refused = [each for each in self._expected if slot_of_key(each.decode()) == moved.slot_id]
        for name in refused:
            del self._expected[name]
        host = moved.host or (self.home.host if self.home else "")
        self._owner.on_moved(moved.slot_id, host, moved.port)
        if any(name in self.topics for name in refused):
            # They were not taken elsewhere, so all has to be asked for again.
            raise moved


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
