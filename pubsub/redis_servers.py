"""How does an event reach every node? This file: which servers a cluster has, and how they fare.

Whether envelopes travel on sharded pub/sub is decided once, by the first look at the cluster: if
all masters that answer then know SPUBLISH (Redis 7), else plain pub/sub, which each server passes
on to all others. So all nodes choose alike, but for those that start before and after an upgrade
from Redis 6.2: restart all nodes after one. Until then events of one half reach the other with the
comparison of tops, a few seconds late.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from pubsub.circuit import Circuit
from pubsub.redis_client import Standalone
from pubsub.redis_slots import SlotMap, read_slots
from pubsub.redis_url import Endpoint, RedisTarget

_log = logging.getLogger(__name__)

# Between two looks at the cluster, in s.
_LOOK_S: Final = (0.1, 0.2)
# How long one server may take to tell the slots: others know them too.
_LOOK_TIMEOUT_S: Final = 1.0

GONE: Final = (RedisError, OSError, TimeoutError)


class ClusterServer:
    """One server: connections to it, and how it has answered of late."""

    __slots__ = ("busy", "circuit", "failing", "place", "redis", "reviving")

    def __init__(self, place: Endpoint, redis: Standalone, circuit: Circuit) -> None:
        self.place = place
        self.redis = redis
        self.circuit = circuit
        self.failing = False
        # Pipelines under way.
        self.busy = 0
        self.reviving: asyncio.Task[None] | None = None


class ClusterServers:
    """The servers of a cluster, and who owns which slots.

    - `slots`: the owners as they were told last; empty until `prepare` has returned.
    - `sharded`: whether all masters had sharded pub/sub at the first look; None: before it.
    - `on_change` is called when slots have other owners than before.
    - `looks` counts how often a server was asked for the slots.

    The slots are asked for when somebody doubts them, by one task at a time, a few times a second
    at most.
    """

    def __init__(
        self,
        target: RedisTarget,
        *,
        timeout_s: float,
        sharded: bool | None,
        monotonic: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self.slots = SlotMap()
        self.sharded = sharded
        self.looks = 0
        self._on_change = on_change
        self._target = target
        self._timeout_s = timeout_s
        self._monotonic = monotonic
        self._servers: dict[Endpoint, ClusterServer] = {}
        self._looking: asyncio.Task[None] | None = None
        self._look_after = 0.0
        self._closed = False

    async def prepare(self) -> None:
        """Wait until the slots are known; raises RedisError, OSError or TimeoutError."""
        if self._closed:
            raise RedisConnectionError("the connections are closed")
        if not self.slots:
            await asyncio.shield(self._look_soon())

    def doubt(self) -> None:
        """Look soon whether slots have other owners; as often as one likes."""
        if not self._closed and self.slots:
            self._look_soon()

    # Who is there

    def masters(self) -> list[ClusterServer]:
        """Return the servers that own slots."""
        return [self.server(place) for place in self.slots.owners]

    def server(self, place: Endpoint) -> ClusterServer:
        """Return the server at a place."""
        server = self._servers.get(place)
        if server is None:
            target = replace(self._target, kind="tcp", endpoints=(place,))
            redis = Standalone(target, timeout_s=self._timeout_s)
            server = self._servers[place] = ClusterServer(place, redis, Circuit(self._monotonic))
        return server

    def anyone(self) -> ClusterServer:
        """Return a server that answers what any can; raises RedisError if all are away."""
        able = [each for each in self.masters() if not each.circuit.open]
        if not able:
            raise RedisConnectionError("no master of the cluster answers")
        return random.choice([each for each in able if not each.failing] or able)  # noqa: S311

    def on_answer(self, server: ClusterServer) -> None:
        """Take note that a server answered."""
        server.failing = False
        server.circuit.succeeded()

    def on_failure(self, server: ClusterServer, error: Exception) -> None:
        """Take note that a server did not answer: after some failures it is let be for a while."""
        server.failing = True
        self.doubt()
        if server.circuit.failed() and not self._closed:
            text = f"{type(error).__name__}: {error}"
            _log.warning("a master of the Redis cluster is away: %s: %s", server.place, text)
            self._see_revived(server)

    def _see_revived(self, server: ClusterServer) -> None:
        if server.reviving is None or server.reviving.done():
            server.reviving = asyncio.get_running_loop().create_task(self._revive(server))

    async def _revive(self, server: ClusterServer) -> None:
        """Try now and then whether a server answers again, until it owns no slots any more."""
        while server.circuit.open and server.place in self.slots.owners:
            await asyncio.sleep(server.circuit.pause())
            self.doubt()
            try:
                await server.redis.ask([("PING",)])
            except GONE as error:
                server.circuit.failed()
                _log.debug("%s is still away: %s", server.place, error)
            else:
                self.on_answer(server)
                _log.info("a master of the Redis cluster is back: %s", server.place)

    # Where slots are

    def move(self, slot: int, place: Endpoint) -> None:
        """Take note of what a server said of a slot."""
        if self.slots.owner(slot) != place:
            self.slots = self.slots.moved(slot, place)
            self._on_change()
        self.doubt()

    def _look_soon(self) -> "asyncio.Task[None]":
        """Look at the cluster, not too soon after the last time; all who ask share one look."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())
            # Whoever asked may have gone.
            self._looking.add_done_callback(_retrieve)
        return self._looking

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._look_after - loop.time())
        self._look_after = loop.time() + random.uniform(*_LOOK_S)  # noqa: S311
        slots = await self._find()
        if self.sharded is None:
            self.sharded = await self._are_sharded(slots)
            kind = "sharded" if self.sharded else "plain"
            _log.info("the Redis cluster has %d masters; pub/sub is %s", len(slots.owners), kind)
        changed = slots != self.slots
        self.slots = slots
        for server in self.masters():
            if server.circuit.open:
                self._see_revived(server)
        if changed:
            self._on_change()
        await self._forget()

    async def _find(self) -> SlotMap:
        """Ask one server after another for the slots, those first that have answered of late."""
        failure: Exception = RedisConnectionError("no server of the cluster answers")
        known = sorted(self.masters(), key=lambda each: (each.failing, random.random()))  # noqa: S311
        others = [*self.slots.replicas, *self._target.endpoints]
        for place in dict.fromkeys([*(each.place for each in known), *others]):
            server = self.server(place)
            self.looks += 1
            server.busy += 1
            try:
                async with asyncio.timeout(min(self._timeout_s, _LOOK_TIMEOUT_S)):
                    (answer,) = await server.redis.ask([("CLUSTER", "SLOTS")])
            except GONE as error:
                server.failing = True
                failure = error
                continue
            finally:
                server.busy -= 1
            if isinstance(answer, ResponseError):
                failure = answer
                continue
            try:
                slots = read_slots(answer, place)
            except ValueError as error:
                failure = RedisConnectionError(f"CLUSTER SLOTS: {error}")
                continue
            if slots:
                server.failing = server.circuit.open
                return slots
            failure = RedisConnectionError("the cluster has no slots")
        raise failure

    async def _are_sharded(self, slots: SlotMap) -> bool:
        """Return whether all masters that answer know sharded pub/sub."""
        able = []
        for place in slots.owners:
            try:
                (answer,) = await self.server(place).redis.ask([("COMMAND", "INFO", "SPUBLISH")])
            except GONE as error:
                _log.info("%s cannot say whether it has sharded pub/sub: %s", place, error)
                continue
            able.append(isinstance(answer, list) and answer != [None])
        return bool(able) and all(able)

    async def _forget(self) -> None:
        """Let go of servers that own nothing any more."""
        for place, server in list(self._servers.items()):
            if place not in self.slots.owners and not server.busy:
                del self._servers[place]
                await _end(server)

    async def close(self) -> None:
        """Let go of all connections; may be called twice."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        for server in self._servers.values():
            await _end(server)


async def _end(server: ClusterServer) -> None:
    if server.reviving is not None:
        server.reviving.cancel()
        await asyncio.wait([server.reviving])
    await server.redis.close()


def _retrieve(task: "asyncio.Task[None]") -> None:
    """Tell of a look that failed, unless nobody answers, which whoever asked is told."""
    if task.cancelled():
        return
    error = task.exception()
    if isinstance(error, GONE):
        _log.debug("the slots are not known: %s", error)
    elif error is not None:
        _log.error("looking at the Redis cluster failed", exc_info=error)
