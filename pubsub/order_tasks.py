"""How do nodes act as one? This file: the tasks in which a node carries orders out."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from pubsub.control import ControlSink

_log = logging.getLogger(__name__)

# At the same time; others wait.
_RUNNING: Final = 100


class OrderTasks:
    """Carries orders out, each in a task of its own; owns the tasks.

    At most `most` run or wait; one more is not taken.
    """

    __slots__ = ("_most", "_room", "_tasks")

    def __init__(self, most: int) -> None:
        self._most = most
        self._room = asyncio.Semaphore(_RUNNING)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def full(self) -> bool:
        """Whether an order would not be taken now."""
        return len(self._tasks) >= self._most

    def run(
        self, sink: ControlSink, order: bytes, answer: Callable[[bytes], Awaitable[None]]
    ) -> bool:
        """Let an order be carried out, then call `answer`; False if too many are."""
        if self.full:
            return False
        task = asyncio.get_running_loop().create_task(self._run(sink, order, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def close(self) -> None:
        """End all that run; may be called twice."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(
        self, sink: ControlSink, order: bytes, answer: Callable[[bytes], Awaitable[None]]
    ) -> None:
        try:
            async with self._room:
                await answer(await sink.on_order(order))
        except Exception:
            _log.exception("an order failed")
