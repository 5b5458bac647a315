"""How does an event get its position? This file: how Redis is asked, and what happens when it is
away.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import RedisError

from pubsub.circuit import Circuit
from pubsub.errors import BrokerUnavailable
from pubsub.redis_client import Part, Topology
from pubsub.redis_lane import Ask, CallFailed, Lane
from pubsub.redis_scripts import Script
from pubsub.redis_sentinel import Sentinel

_log = logging.getLogger(__name__)

_TELL_EVERY_S: Final = 60.0
# Between two tries of the same call, in s.
_PAUSE_S: Final = (0.02, 0.5)
# Pipelines under way in a lane, and in one whose pipelines each wait for replicas.
_FLIGHTS: Final = 2
_WAITING_FLIGHTS: Final = 6


class RedisLink:
    """Sends calls to Redis, each with a deadline.

    Publishes have a lane of their own, so that large answers to reads do not hold them up. After
    some failures in a row the circuit opens: all calls fail at once until Redis answers a PING,
    which is tried now and then; `on_return` is called then. Calls may be cancelled at any time.

    - `call_timeout_s`: how long a call may take in all, its wait and its retries included.
    - `most_waiting`, `most_waiting_bytes`: what may wait in each lane; more is refused.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        call_timeout_s: float = 5.0,
        most_waiting: int = 20_000,
        most_waiting_bytes: int = 64 * 1024 * 1024,
        on_return: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float],
    ) -> None:
        self.topology = topology
        self.circuit = Circuit(monotonic)
        self._monotonic = monotonic
        self._tell_after = -math.inf
        self.call_timeout_s = call_timeout_s
        self.on_return = on_return
        self._reviving: asyncio.Task[None] | None = None
        self._closed = False
        self._why: str | None = None
        self._try_soon = asyncio.Event()
        if isinstance(topology, Sentinel):
            topology.on_master = self._try_soon.set
        self._most_waiting = most_waiting
        self._most_waiting_bytes = most_waiting_bytes
        self._lanes = [self._lane(topology.ask, _FLIGHTS) for _ in range(2)]
        self._replicated: Lane | None = None

    def _lane(self, ask: Ask, flights: int) -> Lane:
        return Lane(
            ask,
            on_answer=self._on_answer,
            on_failure=self._on_failure,
            on_refusal=self._on_refusal,
            flights=flights,
            most_waiting=self._most_waiting,
            most_waiting_bytes=self._most_waiting_bytes,
        )

    def wait_replicas(self, replicas: int, timeout_s: float) -> None:
        """Make a lane for publishes that wait until replicas have them; called at most once.

        Its connections are its own while they wait, so that nothing else does.
        """
        # 0 would be for ever.
        timeout_ms = max(1, round(timeout_s * 1000))
        ask = partial(self.topology.ask, replicas=replicas, replicas_timeout_ms=timeout_ms)
        self._replicated = self._lane(ask, _WAITING_FLIGHTS)
        self._lanes.append(self._replicated)

    def problem(self) -> str | None:
        """Return what is wrong, or None."""
        return self._why or "Redis does not answer" if self.circuit.open else None

    def send_publish(
        self,
        script: Script,
        keys: Sequence[str],
        parts: Sequence[Part],
        size: int,
        *,
        replicated: bool = False,
    ) -> "asyncio.Future[Any]":
        """Let a publish wait for the end of this turn; the future gets its answer or CallFailed.

        If it is to be `replicated`, which `wait_replicas` must have made possible, the future may
        also get NotReplicated. Raises BrokerUnavailable if Redis is known to be away, or too many
        wait.
        """
        self._check()
        lane = self._replicated if replicated and self._replicated else self._lanes[0]
        return lane.send(script, keys, parts, size)

    async def run(
        self, script: Script, keys: Sequence[str], *parts: Part, repeat: bool = True
    ) -> Any:
        """Run a script and return its answer; raises BrokerUnavailable.

        With `repeat`, which only a script bears that may be carried out twice, it is tried again
        until the deadline if Redis did not answer.
        """
        return await self._call(script, keys, parts, repeat)

    async def command(self, *parts: Part) -> Any:
        """Run a command that only reads, and return its answer; raises BrokerUnavailable."""
        return await self._call(None, (), parts, True)

    async def close(self) -> None:
        """Fail all calls and let go of all connections; may be called twice."""
        self._closed = True
        if self._reviving is not None:
            self._reviving.cancel()
            await asyncio.wait([self._reviving])
        for lane in self._lanes:
            await lane.close()
        await self.topology.close()

    def _check(self) -> None:
        if self._closed:
            raise BrokerUnavailable("the broker is closed")
        if problem := self.problem():
            raise BrokerUnavailable(problem)

    async def _call(
        self, script: Script | None, keys: Sequence[str], parts: Sequence[Part], repeat: bool
    ) -> Any:
        deadline = asyncio.get_running_loop().time() + self.call_timeout_s
        pauses = Pauses(deadline)
        while True:
            self._check()
            answer = self._lanes[1].send(script, keys, parts)
            try:
                async with asyncio.timeout_at(deadline):
                    return await answer
            except TimeoutError:
                raise BrokerUnavailable("Redis did not answer in time") from None
            except CallFailed as error:
                again = error.passing and (repeat or error.refused)
                if not again or not await pauses.wait():
                    raise

    # Whether Redis is there

    def _on_answer(self) -> None:
        self.circuit.succeeded()

    def _on_failure(self, error: Exception) -> None:
        self._note(error)
        if self.circuit.failed() and not self._closed:
            _log.warning("Redis is away: %s: %s", type(error).__name__, error)
            for lane in self._lanes:
                lane.refuse("Redis does not answer")
            if self._reviving is None or self._reviving.done():
                self._reviving = asyncio.get_running_loop().create_task(self._revive())

    def _note(self, error: Exception) -> None:
        # Other texts name addresses.
        self._why = str(error) if isinstance(error, MasterNotFoundError) else None

    def _on_refusal(self, text: str) -> None:
        """Say so in the log, once in a while: clients are only told that the broker is away."""
        now = self._monotonic()
        if now >= self._tell_after:
            self._tell_after = now + _TELL_EVERY_S
            _log.warning("Redis refused a call: %s", text)

    async def _revive(self) -> None:
        """Try whether Redis answers again: now and then, and when there is a new master."""
        self._try_soon.clear()
        while True:
            try:
                async with asyncio.timeout(self.circuit.pause()):
                    await self._try_soon.wait()
            except TimeoutError:
                pass
            self._try_soon.clear()
            # A call that was under way when the circuit opened may have closed it.
            if self.circuit.open:
                try:
                    await self.topology.ask([("PING",)])
                except (RedisError, OSError, TimeoutError) as error:
                    self.circuit.failed()
                    self._note(error)
                    _log.info("Redis is still away: %s", error)
                    continue
                except Exception as error:
                    # If this task ended, nobody would try again.
                    self.circuit.failed()
                    self._note(error)
                    _log.exception("asking whether Redis is back failed")
                    continue
            self.circuit.succeeded()
            _log.info("Redis is back")
            self.on_return()
            return


class Pauses:
    """The growing, jittered pauses between tries of a call, none beyond its deadline."""

    __slots__ = ("_deadline", "_pause")

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._pause = _PAUSE_S[0]

    async def wait(self) -> bool:
        """Wait a while; False, and at once, if the deadline comes first."""
        pause = random.uniform(0.5, 1) * self._pause  # noqa: S311
        self._pause = min(self._pause * 2, _PAUSE_S[1])
        if asyncio.get_running_loop().time() + pause >= self._deadline:
            return False
        await asyncio.sleep(pause)
        return True
