"""How does an event reach every node? This file: the master that Sentinels name.

Sentinels say who is master, and a connection is used only once its server has said so itself
(ROLE). While a master runs, the Sentinels are listened to, and asked about once a second, since a
fail-over may leave the old master alive: nothing would come on pub/sub connections that still
stand there. A fail-over found, every connection to the old master is cut, so that what is under
way there fails rather than being acknowledged.

What this cannot do: an old master that lives, and is cut off from the Sentinels or not told by them
yet (they take about 10 s), believes that it is master still. What it acknowledges until this node
hears of the new one is lost when it becomes a replica; that shows as a fork, and every subscriber
is told (`reset`). Waiting for replicas narrows it, `min-replicas-to-write` bounds it.

Redis-py has a Sentinel client too. It is not used, since it believes the first Sentinel that
answers, also one that was away and knows an older master, does not ask the master itself, waits
for silent Sentinels one after the other, and is told of nothing while a connection stands.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
)
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from pubsub.redis_client import (
    MOST_CONNECTIONS,
    Part,
    connection_options,
    converse,
    refusal_code,
)
from pubsub.redis_url import Endpoint, RedisTarget
from pubsub.redis_witness import GONE, Witness, ask_witnesses

_log = logging.getLogger(__name__)

# How often the Sentinels are asked while a master runs.
_WATCH_S: Final = 1.0
# What only a server that is no master says.
_NO_MASTER: Final = frozenset({"READONLY", "MASTERDOWN", "UNBLOCKED"})


class Named:
    """A master that was named: how often, and the highest number of the fail-over to it."""

    __slots__ = ("epoch", "place", "votes")

    def __init__(self, place: Endpoint, epoch: int) -> None:
        self.place = place
        self.epoch = epoch
        self.votes = 0


class Sentinel:
    """The master of a service, whichever server that is; see `Topology`.

    Of several masters that are named, that of the latest fail-over comes first, though only one
    Sentinel may know of it yet. The last known one stays a candidate, so that it is used on without
    any Sentinel; it comes last only if most Sentinels answer and none of them names it. The first
    that answers, and says that it is a master, is taken.

    `timeout_s` is how long a pipeline may take, connecting included. `on_master` is called when
    there is another master.
    """

    def __init__(self, target: RedisTarget, *, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.on_master: Callable[[], None] = lambda: None
        self._service = target.service
        self._options = connection_options(target, timeout_s) | {"redis_connect_func": _greet}
        self._kind = SSLConnection if target.tls else Connection
        options = connection_options(target, timeout_s) | {
            "db": 0,
            "username": target.sentinel_user or None,
            "password": target.sentinel_password or None,
        }
        self._witnesses = [
            Witness(partial(self._kind, host=each.host, port=each.port, **options), self._service)
            for each in target.endpoints
        ]
        self._master: Named | None = None
        self._pool: ConnectionPool | None = None
        # Whether the master should be looked for before it is used again.
        self._doubted = True
        self._listening: set[_Listening] = set()
        self._finding: asyncio.Task[ConnectionPool] | None = None
        self._switched = asyncio.Event()
        self._watching: list[asyncio.Task[None]] = []
        self._cutting: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def master(self) -> Endpoint | None:
        """The master that is used, if one was found."""
        return self._master.place if self._master else None

    async def ask(
        self,
        commands: Sequence[tuple[Part, ...]],
        *,
        replicas: int = 0,
        replicas_timeout_ms: int = 0,
    ) -> list[Any]:
        async with asyncio.timeout(self.timeout_s + replicas_timeout_ms / 1000):
            pool = await self.find()
            try:
                connection = await pool.get_connection()  # type: ignore[no-untyped-call]
                try:
                    answers = await converse(connection, commands, replicas, replicas_timeout_ms)
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                finally:
                    stale = pool is not self._pool
                    if stale:
                        # It was connected while the master changed.
                        await connection.disconnect(nowait=True)
                    await asyncio.shield(pool.release(connection))
                if stale:
                    # What a former master answers now is lost, and nobody would compare it.
                    raise RedisConnectionError("the master changed")
            except BaseException:
                self._doubt(pool)
                raise
        if any(isinstance(each, ResponseError) and _is_no_master(each) for each in answers):
            self._doubt(pool)
        return answers

    def listening(self) -> AbstractConnection:
        connection = _ListeningTls if self._kind is SSLConnection else _Listening
        return connection(self, **self._options)

    async def close(self) -> None:
        self._closed = True
        tasks = [*self._watching, *([self._finding] if self._finding else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._cutting:
            await asyncio.wait(self._cutting)
        for witness in self._witnesses:
            await witness.close()
        if self._pool is not None:
            await self._pool.aclose()

    # Finding the master

    async def find(self) -> ConnectionPool:
        """Return connections to the master, looked for if need be; those who ask share the search.

        Raises MasterNotFoundError; may be cancelled.
        """
        if self._pool is not None and not self._doubted:
            return self._pool
        return await asyncio.shield(self._find())

    def joined(self, connection: "_Listening") -> None:
        """Take note of a connection that listens at the master, to be cut when that changes."""
        self._listening.add(connection)

    def left(self, connection: "_Listening") -> None:
        """Take note that a connection no longer listens."""
        self._listening.discard(connection)

    def _doubt(self, pool: ConnectionPool) -> None:
        if pool is self._pool:
            self._doubted = True

    def _find(self) -> "asyncio.Task[ConnectionPool]":
        if self._closed:
            raise MasterNotFoundError("the broker is closed")
        if self._finding is None or self._finding.done():
            self._finding = asyncio.get_running_loop().create_task(self._search())
            # Whoever asked may have gone.
            self._finding.add_done_callback(_retrieve)
        return self._finding

    async def _search(self) -> ConnectionPool:
        candidates, trouble = await self._candidates()
        for candidate in candidates:
            if self._pool is not None and not self._doubted and self._is_master(candidate):
                self._master = candidate
                return self._pool
            try:
                return await self._take(candidate)
            except GONE as error:
                _log.info("%s is not used as the master: %s", candidate.place, error)
        raise MasterNotFoundError(trouble or "no master that a Sentinel names answers as one")

    async def _candidates(self) -> tuple[list[Named], str]:
        """Return who may be master, the likeliest first, and what was wrong if nobody knows."""
        told, trouble = await ask_witnesses(self._witnesses, self.timeout_s / 2)
        named: dict[Endpoint, Named] = {}
        for place, epoch in told:
            candidate = named.setdefault(place, Named(place, epoch))
            candidate.epoch = max(candidate.epoch, epoch)
            candidate.votes += 1
        known = self._master
        past: Named | None = None
        if known is not None and known.place not in named:
            candidate = named[known.place] = Named(known.place, known.epoch)
            if len(told) > len(self._witnesses) // 2:
                # They may have been set up anew, and count from 0.
                past = candidate
        order = sorted(
            named.values(),
            key=lambda each: (each is not past, each.epoch, each.votes),
            reverse=True,
        )
        return order, "" if told else trouble

    def _is_master(self, candidate: Named) -> bool:
        return self._master is not None and candidate.place == self._master.place

    async def _take(self, candidate: Named) -> ConnectionPool:
        """Connect to a candidate, which must say that it is a master, and use it from now on."""
        pool = self._pool
        changed = pool is None or not self._is_master(candidate)
        if pool is None or changed:
            place = candidate.place
            pool = ConnectionPool(
                connection_class=self._kind,
                max_connections=MOST_CONNECTIONS,
                host=place.host,
                port=place.port,
                **self._options,
            )
        async with asyncio.timeout(self.timeout_s):
            # A new one: what stands in the pool has said so long ago.
            probe = pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                await probe.connect()
            finally:
                await probe.disconnect(nowait=True)
        former, self._pool, self._master = self._pool, pool, candidate
        self._doubted = False
        if changed:
            _log.info("the Redis master is %s", candidate.place)
            await self._cut(former)
            self.on_master()
        if not self._watching:
            tasks = [self._watch(), *map(self._listen, self._witnesses)]
            self._watching = [asyncio.get_running_loop().create_task(each) for each in tasks]
        return pool

    async def _cut(self, former: ConnectionPool | None) -> None:
        """End what stands at the former master: nothing comes there any more, or not for long."""
        for connection in list(self._listening):
            await connection.disconnect(nowait=True)
        if former is not None:
            # Not awaited: a frozen server takes nothing more.
            task = asyncio.get_running_loop().create_task(former.disconnect())
            self._cutting.add(task)
            task.add_done_callback(self._cutting.discard)
            task.add_done_callback(_retrieve)

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_jittered(_WATCH_S)):
                    await self._switched.wait()
            except TimeoutError:
                pass
            self._switched.clear()
            if self._finding is not None and not self._finding.done():
                # It may have begun before the fail-over.
                await asyncio.wait([self._finding])
            try:
                await asyncio.shield(self._find())
            except GONE as error:
                _log.debug("the Redis master is not known: %s", error)
            except Exception:
                _log.exception("looking for the Redis master failed")

    async def _listen(self, witness: Witness) -> None:
        while True:
            try:
                await witness.listen(self._switched.set, self.timeout_s)
            except GONE as error:
                _log.debug("a Sentinel is not heard: %s", error)
            except Exception:
                _log.exception("listening to a Sentinel failed")
            await asyncio.sleep(_jittered(_WATCH_S))


class _Listening(Connection):
    """A connection for pub/sub to whoever is master when it connects."""

    def __init__(self, sentinel: Sentinel, **options: Any) -> None:
        super().__init__(**options)
        self._sentinel = sentinel

    async def connect(self) -> None:
        async with asyncio.timeout(self._sentinel.timeout_s):
            pool = await self._sentinel.find()
            self.host, self.port = (pool.connection_kwargs[each] for each in ("host", "port"))
            self._sentinel.joined(self)
            await super().connect()  # type: ignore[no-untyped-call]
            if await self._sentinel.find() is not pool:
                await self.disconnect(nowait=True)
                raise RedisConnectionError("the master changed")

    async def disconnect(self, *args: Any, **options: Any) -> None:
        self._sentinel.left(self)
        await super().disconnect(*args, **options)


class _ListeningTls(_Listening, SSLConnection):
    pass


async def _greet(connection: AbstractConnection) -> None:
    """Log in, and let the server say that it is a master."""
    await connection.on_connect()
    await connection.send_command("ROLE", check_health=False)
    role = await connection.read_response()
    if role[0] != b"master":
        raise RedisConnectionError("it is not a master")


def _jittered(seconds: float) -> float:
    return random.uniform(0.75, 1.25) * seconds  # noqa: S311


def _is_no_master(refusal: ResponseError) -> bool:
    return refusal_code(refusal) in _NO_MASTER


def _retrieve(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()
