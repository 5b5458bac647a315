"""How does an event get its position? This file: calls that wait for Redis go out together."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from redis.exceptions import (
    ClusterDownError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from pubsub.errors import BrokerUnavailable, NotReplicated
from pubsub.redis_client import Part, refusal_code
from pubsub.redis_scripts import Script

_log = logging.getLogger(__name__)

# What one pipeline takes at most: its answers come only when the last of them is there.
_MOST_CALLS: Final = 1_000
_MOST_BYTES: Final = 4 * 1024 * 1024

# Refusals that pass: a slot migrates, a fail-over is under way, replicas are short.
_PASSING: Final = (TryAgainError, ClusterDownError, ReadOnlyError)
_PASSING_CODES: Final = frozenset(
    {"TRYAGAIN", "CLUSTERDOWN", "READONLY", "MASTERDOWN", "BUSY", "NOREPLICAS"}
)

Ask = Callable[[Sequence[tuple[Part, ...]]], Awaitable[list[Any]]]


class CallFailed(BrokerUnavailable):
    """Redis refused a call, or its answer did not come.

    `passing` says whether the same call may well succeed in a moment; `refused` that it was not
    carried out, else it may have been.
    """

    def __init__(self, text: str, *, passing: bool, refused: bool = False) -> None:
        super().__init__(text)
        self.passing = passing
        self.refused = refused


class Call:
    """A call that waits: a script with its keys and arguments, or a plain command without keys."""

    __slots__ = ("answer", "keys", "parts", "script", "size")

    def __init__(
        self,
        answer: "asyncio.Future[Any]",
        script: Script | None,
        keys: Sequence[str],
        parts: Sequence[Part],
        size: int,
    ) -> None:
        self.answer = answer
        self.script = script
        self.keys = keys
        self.parts = parts
        self.size = size

    def command(self, known: set[str] | None) -> tuple[Part, ...]:
        """Return what is sent; a script not among the `known` brings its text (None: all are)."""
        script = self.script
        if script is None:
            return tuple(self.parts)
        if known is None or script.digest in known:
            return ("EVALSHA", script.digest, len(self.keys), *self.keys, *self.parts)
        known.add(script.digest)
        return ("EVAL", script.text, len(self.keys), *self.keys, *self.parts)


class Lane:
    """Sends the calls that wait in one turn of the loop as one pipeline, in their order.

    At most `flights` pipelines are under way; what comes meanwhile waits and then goes together.
    At most `most_waiting` calls and `most_waiting_bytes` wait, more are refused. A caller that no
    longer waits does not disturb the pipeline that its call is in: connections are shared.
    `on_answer` is called when a pipeline was answered, `on_failure` when one was not, `on_refusal`
    for an answer that is an error and will not pass, or that too few replicas have.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        on_answer: Callable[[], None],
        on_failure: Callable[[Exception], None],
        on_refusal: Callable[[str], None],
        flights: int,
        most_waiting: int,
        most_waiting_bytes: int,
    ) -> None:
        self._ask_redis = ask
        self._on_answer = on_answer
        self._on_failure = on_failure
        self._on_refusal = on_refusal
        self._flights = flights
        self._most_waiting = most_waiting
        self._most_waiting_bytes = most_waiting_bytes
        self._waiting: deque[Call] = deque()
        self._waiting_bytes = 0
        self._soon = False
        self._tasks: set[asyncio.Task[None]] = set()

    def send(
        self, script: Script | None, keys: Sequence[str], parts: Sequence[Part], size: int = 0
    ) -> "asyncio.Future[Any]":
        """Let a call wait for the end of this turn; raises BrokerUnavailable if too many do.

        The future gets the answer, or CallFailed, or NotReplicated. `size` is what the call
        weighs, in bytes.
        """
        if len(self._waiting) >= self._most_waiting or (
            self._waiting and self._waiting_bytes + size > self._most_waiting_bytes
        ):
            raise BrokerUnavailable("too many calls wait for Redis")
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(Call(future, script, keys, parts, size))
        self._waiting_bytes += size
        self._schedule()
        return future

    def refuse(self, text: str) -> None:
        """Fail all calls that wait."""
        waiting, self._waiting = self._waiting, deque()
        self._waiting_bytes = 0
        for call in waiting:
            _fail(call, CallFailed(text, passing=False))

    async def close(self) -> None:
        """Fail all calls, also those under way; may be called twice."""
        self.refuse("the broker is closed")
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _depart(self) -> None:
        self._soon = False
        calls: list[Call] = []
        size = 0
        while self._waiting and len(calls) < _MOST_CALLS and (size < _MOST_BYTES or not calls):
            call = self._waiting.popleft()
            self._waiting_bytes -= call.size
            # Whoever gave up need not be served.
            if not call.answer.done():
                calls.append(call)
                size += call.size
        if calls:
            task = asyncio.get_running_loop().create_task(self._fly(calls))
            self._tasks.add(task)
            task.add_done_callback(partial(self._landed, calls))
            self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._soon and len(self._tasks) < self._flights:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._depart)

    def _landed(self, calls: list[Call], task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if task.cancelled():
            # Before it had begun, so it cannot have told them.
            for call in calls:
                _fail(call, CallFailed("the broker is closed", passing=False))
        self._schedule()

    async def _fly(self, calls: list[Call]) -> None:
        try:
            answers = await self._ask(calls, None)
            strange = [
                call
                for call, answer in zip(calls, answers, strict=True)
                if isinstance(answer, NoScriptError)
            ]
            if strange:
                # Redis began anew. None of these was carried out.
                again = iter(await self._ask(strange, set()))
                answers = [next(again) if isinstance(a, NoScriptError) else a for a in answers]
        except (RedisError, OSError, TimeoutError) as error:
            self._on_failure(error)
            failure = CallFailed("Redis did not answer", passing=True)
        except asyncio.CancelledError:
            failure = CallFailed("the broker is closed", passing=False)
        except Exception:
            _log.exception("a pipeline failed")
            failure = CallFailed("the broker failed", passing=False)
        else:
            self._on_answer()
            for call, answer in zip(calls, answers, strict=True):
                if isinstance(answer, Exception):
                    refusal = _refusal(answer)
                    if isinstance(refusal, NotReplicated) or not refusal.passing:
                        self._on_refusal(f"{type(answer).__name__}: {answer}")
                    _fail(call, refusal)
                elif not call.answer.done():
                    call.answer.set_result(answer)
            return
        for call in calls:
            _fail(call, failure)

    async def _ask(self, calls: list[Call], known: set[str] | None) -> list[Any]:
        return await self._ask_redis([call.command(known) for call in calls])


def _fail(call: Call, error: CallFailed | NotReplicated) -> None:
    if not call.answer.done():
        call.answer.set_exception(error)


def _refusal(answer: Exception) -> CallFailed | NotReplicated:
    if isinstance(answer, NotReplicated):
        return answer
    if not isinstance(answer, ResponseError):
        # One server of several did not answer; it may have carried the call out.
        return CallFailed("Redis did not answer", passing=True)
    passing = isinstance(answer, _PASSING) or refusal_code(answer) in _PASSING_CODES
    return CallFailed(f"Redis refused: {answer}", passing=passing, refused=True)
