"""Where is an event kept? This file: one SQLite connection and the thread that alone uses it."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from pubsub.errors import ArchiveUnavailable

T = TypeVar("T")

# Steps of SQLite's machine between two looks at the deadline: about a millisecond.
_STEPS: Final = 10_000
_LATE: Final = "SQLite did not answer in time"


class SqliteThread:
    """Runs work on a connection of its own, one after another, away from the loop.

    Work is given up after `call_timeout_s`, waiting included. What runs then is ended by SQLite if
    `interruptible`; otherwise it is done to its end, unseen. So is work that is cancelled.
    """

    def __init__(
        self,
        name: str,
        open_connection: Callable[[], sqlite3.Connection],
        *,
        call_timeout_s: float,
        interruptible: bool,
    ) -> None:
        self._name = name
        self._open_connection = open_connection
        self._call_timeout_s = call_timeout_s
        self._interruptible = interruptible
        self._executor: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None
        self._deadline = 0.0

    async def open(self) -> None:
        """Start the thread and open the connection; raises ArchiveUnavailable."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix=self._name)
            try:
                await self._submit(self._open)
            except (Exception, asyncio.CancelledError):
                await self.close()
                raise

    async def run(self, work: Callable[[sqlite3.Connection], T], *, patient: bool = False) -> T:
        """Return what `work` returns; `patient` waits for as long as that takes."""
        if patient:
            return await self._submit(lambda: self._work(work, 0.0))
        deadline = time.monotonic() + self._call_timeout_s
        try:
            async with asyncio.timeout(self._call_timeout_s):
                return await self._submit(lambda: self._work(work, deadline))
        except TimeoutError:
            raise ArchiveUnavailable(_LATE) from None

    async def close(self) -> None:
        """Close the connection once what runs has ended; may be called twice."""
        executor, self._executor = self._executor, None
        if executor is not None:
            closed = asyncio.wrap_future(executor.submit(self._close))
            executor.shutdown(wait=False)
            # The file is closed behind whoever does not wait for it.
            await asyncio.shield(closed)

    async def _submit(self, work: Callable[[], T]) -> T:
        if self._executor is None:
            raise ArchiveUnavailable("the archive is not open")
        try:
            return await asyncio.wrap_future(self._executor.submit(work))
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                # The thread may see the deadline before the loop does.
                raise ArchiveUnavailable(_LATE) from None
            raise ArchiveUnavailable(f"SQLite: {error}") from error

    # ---- in the thread

    def _open(self) -> None:
        self._connection = self._open_connection()
        if self._interruptible:
            self._connection.set_progress_handler(self._is_over, _STEPS)

    def _work(self, work: Callable[[sqlite3.Connection], T], deadline: float) -> T:
        assert self._connection is not None  # noqa: S101
        self._deadline = deadline
        return work(self._connection)

    def _is_over(self) -> bool:
        return bool(self._deadline) and time.monotonic() > self._deadline

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
