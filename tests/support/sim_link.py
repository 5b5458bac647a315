"""A simulated world in which nodes call Redis and hear nothing: each call is late, or is lost."""

import asyncio
import random
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from pubsub.errors import BrokerUnavailable
from pubsub.redis_client import Part
from pubsub.redis_lane import CallFailed
from pubsub.redis_scripts import Script
from sim_backplane import Faults
from sim_redis import Server
from sim_scheduler import Process, Scheduler

CALL_TIMEOUT_S = 2.0
_PAUSE_S = 0.2
_PATTERN = "{sim:*"


class SimStore:
    """The server: what is asked of it, and what it published."""

    def __init__(self, scheduler: Scheduler, server: Server, faults: Faults) -> None:
        self.scheduler = scheduler
        self.rng = scheduler.rng
        self.faults = faults
        self.away = False
        self.calls = 0
        self.published = server.pushed
        self.server = server
        # Told after each call.
        self.on_call: Callable[[], object] = lambda: None
        server.begin(_PATTERN)
        self.wipe()

    def look(self, *commands: tuple[Part, ...]) -> list[Any]:
        """Look at what it holds."""
        return self.server.ask(commands)

    def wipe(self) -> None:
        """All is forgotten."""
        (keys,) = self.look(("KEYS", _PATTERN))
        if keys:
            self.look(("DEL", *keys))

    def carry_out(self, command: tuple[Part, ...]) -> Any:
        self.calls += 1
        (answer,) = self.server.ask((command,))
        self.on_call()
        if isinstance(answer, Exception):
            raise answer
        return answer


class SimLink:
    """How one node calls it; see `pubsub.redis_link.RedisLink`."""

    call_timeout_s = CALL_TIMEOUT_S
    topology = None
    on_return: Callable[[], None]

    def __init__(self, store: SimStore, process: Process) -> None:
        # Whoever calls.
        self.owner: Any = None
        # Whether calls fail at once: Redis was away, and whether it is back was not tried yet.
        self.shut = False
        self._store = store
        self._process = process

    async def run(
        self, script: Script, keys: Sequence[str], *parts: Part, repeat: bool = True
    ) -> Any:
        return await self._call(("EVAL", _text(script), len(keys), *keys, *parts), repeat)

    def send_publish(
        self,
        script: Script,
        keys: Sequence[str],
        parts: Sequence[Part],
        _size: int,
        *,
        replicated: bool = False,
    ) -> "asyncio.Future[Any]":
        assert not replicated
        loop = self._process.loop
        answer: asyncio.Future[Any] = loop.create_future()
        command = ("EVAL", _text(script), len(keys), *keys, *parts)
        self._send(command, answer)
        return answer

    async def command(self, *parts: Part) -> Any:
        return await self._call(parts, True)

    async def _call(self, command: tuple[Part, ...], repeat: bool) -> Any:
        loop = self._process.loop
        deadline = loop.time() + self.call_timeout_s
        while True:
            if self.shut:
                raise BrokerUnavailable("Redis does not answer")
            answer: asyncio.Future[Any] = loop.create_future()
            self._send(command, answer)
            late = loop.call_at(deadline, _settle, answer, _Late())
            try:
                return await answer
            except CallFailed:
                if not repeat:
                    raise BrokerUnavailable("Redis did not answer") from None
            finally:
                late.cancel()
            pause = random.uniform(0.5, 1) * _PAUSE_S
            if loop.time() + pause >= deadline:
                raise BrokerUnavailable("Redis did not answer")
            await asyncio.sleep(pause)

    def _send(self, command: tuple[Part, ...], answer: "asyncio.Future[Any]") -> None:
        self._store.scheduler.soon(None, partial(self._arrive, command, answer))

    def _arrive(self, command: tuple[Part, ...], answer: "asyncio.Future[Any]") -> None:
        """What a dead process has sent arrives nonetheless."""
        store, faults = self._store, self._store.faults
        dice = store.rng.random()
        what: Any = CallFailed("Redis did not answer", passing=True)
        if not store.away and dice >= faults.refuse:
            done = store.carry_out(command)
            if dice >= faults.refuse + faults.forget:
                what = done
        if dice <= 1 - faults.silence:
            store.scheduler.soon(self._process, partial(_settle, answer, what))


class _Late(BrokerUnavailable):
    def __init__(self) -> None:
        super().__init__("Redis did not answer in time")


def _settle(answer: "asyncio.Future[Any]", what: Any) -> None:
    if answer.done():
        return
    if isinstance(what, Exception):
        answer.set_exception(what)
    else:
        answer.set_result(what)


@cache
def _text(script: Script) -> bytes:
    return script.text.encode()
