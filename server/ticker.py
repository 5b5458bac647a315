"""Who is connected here? This file: what is done at regular times, and how late it was."""

import asyncio
from collections.abc import Callable

from server.metrics import Metrics

_LAG_EVERY_S = 0.25


class Ticker:
    """Calls a function every `interval_s`; one timer, no task. The function must not raise."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, interval_s: float, call: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._interval_s = interval_s
        self._call = call
        self.due = loop.time() + interval_s
        self._timer: asyncio.TimerHandle | None = loop.call_at(self.due, self._tick)

    def _tick(self) -> None:
        self._call()
        if self._timer is None:
            return
        self.due = self._loop.time() + self._interval_s
        self._timer = self._loop.call_at(self.due, self._tick)

    def close(self) -> None:
        """Stop; may be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class LoopLag:
    """Measures how much later than asked for the loop calls back: what everyone waits for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, metrics: Metrics) -> None:
        self._loop = loop
        self._metrics = metrics
        self._ticker = Ticker(loop, _LAG_EVERY_S, self._measure)

    def _measure(self) -> None:
        self._metrics.loop_lag(max(0.0, self._loop.time() - self._ticker.due))

    def close(self) -> None:
        """Stop; may be called twice."""
        self._ticker.close()
