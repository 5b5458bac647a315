"""How does an event reach every node? This file: a Redis Cluster, in which each server has a part.

A pipeline is split by the owners of its slots, and its parts go out together. What a server refuses
since a slot has moved (MOVED, ASK) was not carried out and is sent on to where it belongs; what got
no answer is never sent again here. A master that is away fails the calls for its slots only.

Redis-py has a cluster client too. It is not used, since it repeats by itself what got no answer,
lays a pipeline out anew as a whole when one server fails, and raises one error for all of it. Its
hash of keys, connections, pools and errors are used.

While a slot migrates, what is published at its new owner before the migration ends is not heard by
those who listen at the former one; that too comes by the comparison of tops.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ResponseError,
    TryAgainError,
)

from pubsub.redis_client import Part
from pubsub.redis_keys import SEND
from pubsub.redis_servers import GONE, ClusterServer, ClusterServers
from pubsub.redis_slots import slot_of, slot_of_key
from pubsub.redis_url import Endpoint, RedisTarget

# How often a call is sent on: it may have to go twice, and need its script each time.
_HOPS: Final = 5
Command = tuple[Part, ...]


class ShardAway(ResponseError):
    """The answer to a call that was not sent, since the master of its slot is known to be away."""


class _Hop:
    """A call on its way: where it goes next, whether by ASKING, and with the text of its script."""

    __slots__ = ("asking", "at", "command", "server", "text")

    def __init__(self, at: int, command: Command, server: ClusterServer | None) -> None:
        self.at = at
        self.command = command
        self.server = server
        self.asking = False
        self.text: str | None = None


class Cluster:
    """A Redis Cluster; see `Topology`, and `Spread` for what it says of listening.

    An answer may also be the RedisError, OSError or TimeoutError that kept one server from
    answering; such a call may have been carried out. `ask` raises only when no master answers.

    - `timeout_s`: how long connecting, one write and one read may take.
    - `sharded`: whether envelopes travel on sharded pub/sub; None: as the servers can.
    - `on_change` is called when slots have other owners than before.
    """

    def __init__(
        self,
        target: RedisTarget,
        *,
        timeout_s: float,
        sharded: bool | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._texts: dict[str, str] = {}
        self._servers = ClusterServers(
            target,
            timeout_s=timeout_s,
            sharded=sharded,
            monotonic=monotonic,
            on_change=lambda: self.on_change(),
        )

    @property
    def looks(self) -> int:
        """How often a server was asked for the slots."""
        return self._servers.looks

    # ---- calls

    async def ask(
        self,
        commands: Sequence[Command],
        *,
        replicas: int = 0,
        replicas_timeout_ms: int = 0,
    ) -> list[Any]:
        await self.prepare()
        answers: list[Any] = [None] * len(commands)
        hops = self._lay_out(commands)
        for _ in range(_HOPS):
            parts: dict[Endpoint, list[_Hop]] = {}
            for hop in hops:
                if hop.server is None:
                    self.doubt()
                    answers[hop.at] = ClusterDownError("nobody owns the slot")
                else:
                    parts.setdefault(hop.server.place, []).append(hop)
            again: list[_Hop] = []
            for part, answered in await self._ask_all(parts, replicas, replicas_timeout_ms):
                for hop, answer in zip(part, answered, strict=True):
                    answers[hop.at] = answer
                    if isinstance(answer, ResponseError) and self._send_on(hop, answer):
                        answers[hop.at] = TryAgainError("the slot is on its way")
                        again.append(hop)
            hops = again
            if not hops:
                break
        self._raise_if_gone(answers)
        return answers

    def _lay_out(self, commands: Sequence[Command]) -> list[_Hop]:
        """Decide where each command goes."""
        hops = []
        anyone: ClusterServer | None = None
        for at, given in enumerate(commands):
            command = self._worded(given)
            slot = slot_of(command)
            if slot is not None:
                hops.append(_Hop(at, command, self._owner(slot)))
            else:
                anyone = anyone or self._servers.anyone()
                hops.append(_Hop(at, command, anyone))
        return hops

    def _owner(self, slot: int) -> ClusterServer | None:
        place = self._servers.slots.owner(slot)
        return None if place is None else self._servers.server(place)

    def _worded(self, command: Command) -> Command:
        """Say how envelopes are sent, and learn the texts of scripts."""
        if command[0] == "EVAL":
            text = str(command[1])
            self._texts.setdefault(sha1(text.encode(), usedforsecurity=False).hexdigest(), text)
        if not self.sharded:
            return command
        return tuple("SPUBLISH" if part is SEND else part for part in command)

    async def _ask_all(
        self, parts: dict[Endpoint, list[_Hop]], replicas: int, replicas_timeout_ms: int
    ) -> list[tuple[list[_Hop], list[Any]]]:
        """Ask all servers at once; one that does not answer costs only its own part."""
        calls = [self._ask_server(part, replicas, replicas_timeout_ms) for part in parts.values()]
        # Before the tasks begin: a server that was let go of in this turn would be asked all the
        # same, on connections that are closed meanwhile, or that nobody closes.
        servers = [server for part in parts.values() if (server := part[0].server)]
        for server in servers:
            server.busy += 1
        try:
            if len(calls) == 1:
                answered = [await calls[0]]
            else:
                async with asyncio.TaskGroup() as tasks:
                    started = [tasks.create_task(call) for call in calls]
                answered = [task.result() for task in started]
        finally:
            for server in servers:
                server.busy -= 1
        return list(zip(parts.values(), answered, strict=True))

    async def _ask_server(
        self, part: list[_Hop], replicas: int, replicas_timeout_ms: int
    ) -> list[Any]:
        server = part[0].server
        assert server is not None  # noqa: S101
        if server.circuit.open:
            return [ShardAway("the master of the slot does not answer")] * len(part)
        brought: set[Part] = set()
        pipeline: list[Command] = []
        wanted: list[int] = []
        for hop in part:
            if hop.asking:
                pipeline.append(("ASKING",))
            wanted.append(len(pipeline))
            pipeline.append(_with_text(hop, brought))
        try:
            answers = await server.redis.ask(
                pipeline, replicas=replicas, replicas_timeout_ms=replicas_timeout_ms
            )
        except GONE as error:
            self._servers.on_failure(server, error)
            return [error] * len(part)
        self._servers.on_answer(server)
        return [answers[at] for at in wanted]

    def _send_on(self, hop: _Hop, refusal: ResponseError) -> bool:
        """Decide where a refused call goes next; False if it stays refused."""
        assert hop.server is not None  # noqa: S101
        if isinstance(refusal, AskError):
            place = Endpoint(refusal.host or hop.server.place.host, refusal.port)
            hop.asking = not isinstance(refusal, MovedError)
            hop.text = None
            hop.server = self._servers.server(place)
            if not hop.asking:
                self._servers.move(refusal.slot_id, place)
            return True
        if isinstance(refusal, NoScriptError) and hop.command[0] == "EVALSHA":
            hop.text = self._texts.get(str(hop.command[1]))
            return hop.text is not None
        if isinstance(refusal, ClusterDownError):
            self.doubt()
        return False

    def _raise_if_gone(self, answers: list[Any]) -> None:
        """Raise what happened if nothing was answered, and nobody else is known to be there."""
        for answer in answers:
            if not isinstance(answer, Exception):
                return
            if isinstance(answer, ResponseError) and not isinstance(answer, ShardAway):
                return
        if answers and all(server.failing for server in self._servers.masters()):
            raise answers[0]

    # ---- who listens

    @property
    def sharded(self) -> bool:
        """Whether envelopes travel on sharded pub/sub; known when `prepare` has returned."""
        return bool(self._servers.sharded)

    async def prepare(self) -> None:
        """Wait until the slots are known; raises RedisError, OSError or TimeoutError."""
        await self._servers.prepare()

    def home(self, address: str) -> Endpoint | None:
        """Return the master from which comes what is sent on an address."""
        return self._servers.slots.owner(slot_of_key(address))

    def listening(self, home: Endpoint | None = None) -> AbstractConnection:
        """Return a new connection for pub/sub to a master, to any with None."""
        server = self._servers.anyone() if home is None else self._servers.server(home)
        return server.redis.listening()

    def doubt(self) -> None:
        """Look soon whether slots have other owners; as often as one likes."""
        self._servers.doubt()

    def moved(self, slot: int, host: str, port: int) -> None:
        """Take note of what a server said of a slot to somebody who listens."""
        self._servers.move(slot, Endpoint(host, port))

    async def close(self) -> None:
        """Close all connections but those for pub/sub; may be called twice."""
        await self._servers.close()


def _with_text(hop: _Hop, brought: set[Part]) -> Command:
    """Return what is sent; of several calls of an unknown script the first brings its text."""
    digest = hop.command[1] if len(hop.command) > 1 else ""
    if hop.text is None or digest in brought:
        return hop.command
    brought.add(digest)
    return ("EVAL", hop.text, *hop.command[2:])
