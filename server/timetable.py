"""Who is connected here? This file: deadlines for very many sessions with one timer."""

import asyncio
from collections.abc import Callable
from math import ceil


class Entry:
    """A deadline that can be cancelled."""

    __slots__ = ("_bucket", "callback")

    def __init__(self, bucket: "dict[Entry, None]", callback: Callable[[], None]) -> None:
        self._bucket = bucket
        self.callback = callback

    def cancel(self) -> None:
        """Forget the deadline; nothing happens if it has passed."""
        self._bucket.pop(self, None)


class Timetable:
    """Calls back at deadlines, at most one tick late; an entry costs no timer of its own.

    A tick in which thousands are due is spread over turns of the loop by `per_turn`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, tick_s: float = 0.5, per_turn: int = 500
    ) -> None:
        self._loop = loop
        self._tick_s = tick_s
        self._per_turn = per_turn
        self._buckets: dict[int, dict[Entry, None]] = {}
        # The last tick whose entries were called back.
        self._now = int(loop.time() / tick_s)
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None

    def call_in(self, delay_s: float, callback: Callable[[], None]) -> Entry:
        """Call back once, `delay_s` from now or at most one tick later."""
        now = self._loop.time()
        if self._timer is None:
            self._now = int(now / self._tick_s)
            self._wait()
        due = max(ceil((now + delay_s) / self._tick_s), self._now + 1)
        bucket = self._buckets.get(due)
        if bucket is None:
            bucket = self._buckets[due] = {}
        entry = Entry(bucket, callback)
        bucket[entry] = None
        return entry

    def _wait(self) -> None:
        self._timer = self._loop.call_at((self._now + 1) * self._tick_s, self._tick)

    def _tick(self) -> None:
        # Set before anything is called: a callback that raises must not stop all others.
        self._timer = again = self._loop.call_soon(self._tick)
        left = self._per_turn
        end = int(self._loop.time() / self._tick_s)
        while self._now < end:
            bucket = self._buckets.get(self._now + 1)
            while bucket:
                if left == 0:
                    return
                left -= 1
                entry = next(iter(bucket))
                del bucket[entry]
                entry.callback()
            self._now += 1
            self._buckets.pop(self._now, None)
        again.cancel()
        self._timer = None
        if self._buckets:
            self._wait()

    def close(self) -> None:
        """Forget all deadlines; may be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for bucket in self._buckets.values():
            bucket.clear()
        self._buckets.clear()
